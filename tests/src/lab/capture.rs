//! What reaches the internet, counted by its kernel: nothing is lost, however much it is.

use std::net::IpAddr;

use serde_json::Value;

use super::{Lab, Machine, Place};

/// Counters at the internet's end of both hubs' links, before any reassembly. Elements appear as packets do.
const TABLE: &str = "
table netdev capture {
    set flows4 { type ipv4_addr . ipv4_addr . inet_proto . inet_service; size 65535; flags dynamic; counter; }
    set flows6 { type ipv6_addr . ipv6_addr . inet_proto . inet_service; size 65535; flags dynamic; counter; }
    set rest4 { type ipv4_addr . ipv4_addr . inet_proto; size 65535; flags dynamic; counter; }
    set rest6 { type ipv6_addr . ipv6_addr . inet_proto; size 65535; flags dynamic; counter; }
    chain arriving {
        type filter hook ingress devices = { hub, hub2 } priority 0;
        icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, mld2-listener-report } return
        ip frag-off & 0x3fff == 0 meta l4proto { tcp, udp } update @flows4 { ip saddr . ip daddr . meta l4proto . th dport } return
        meta protocol ip6 exthdr frag missing meta l4proto { tcp, udp } update @flows6 { ip6 saddr . ip6 daddr . meta l4proto . th dport } return
        meta protocol ip update @rest4 { ip saddr . ip daddr . ip protocol }
        meta protocol ip6 update @rest6 { ip6 saddr . ip6 daddr . meta l4proto }
    }
}
";

/// The watch on what the hubs send to the internet, which is there before anything can be sent.
#[derive(Debug)]
pub struct Capture<'a> {
    internet: Machine<'a>,
}

/// Packets that reached the internet with the same ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Passed {
    /// Whom they claim to come from.
    pub source: IpAddr,
    /// Where they went.
    pub destination: IpAddr,
    /// As in `tcp`, `udp`, `icmp`.
    pub protocol: String,
    /// The destination's port, where packets have one that is not hidden in a fragment.
    pub port: Option<u16>,
    /// How many.
    pub packets: u64,
}

impl Lab {
    /// What has reached the internet since the lab was built.
    #[must_use]
    pub fn capture(&self) -> Capture<'_> {
        Capture { internet: self.machine(Place::Internet) }
    }

    pub(super) fn start_capture(&self) {
        self.machine(Place::Internet).nft(TABLE);
    }
}

impl Capture<'_> {
    /// Everything that has passed since the lab was built, or since [`Capture::forget`].
    #[must_use]
    pub fn passed(&self) -> Vec<Passed> {
        let listing =
            self.internet.run("nft", &["--json", "--numeric", "list", "table", "netdev", "capture"]);
        let listing: Value = serde_json::from_str(&listing.assert_done().stdout).unwrap();
        let objects = listing["nftables"].as_array().unwrap().iter();
        objects
            .filter_map(|object| object["set"]["elem"].as_array())
            .flatten()
            .map(|element| passed(&element["elem"]))
            .collect()
    }

    /// Forgets what has passed so far.
    pub fn forget(&self) {
        self.internet.nft(
            "flush set netdev capture flows4; flush set netdev capture flows6; flush set netdev capture rest4; \
             flush set netdev capture rest6",
        );
    }

    /// What has passed besides DNS to the hub's own resolver and what `expected` knows.
    #[must_use]
    pub fn besides(&self, expected: impl Fn(&Passed) -> bool) -> Vec<Passed> {
        let mut passed = self.passed();
        passed.retain(|packets| !packets.is_the_gates_dns() && !expected(packets));
        passed
    }

    /// Asserts that nothing has passed but DNS to the hub's own resolver and packets to ports of these addresses.
    ///
    /// # Panics
    /// With everything else that passed.
    pub fn assert_only(&self, expected: &[(&str, u16)]) {
        let others =
            self.besides(|packets| expected.iter().any(|(address, port)| packets.is_to(address, *port)));
        assert!(others.is_empty(), "more has passed than {expected:?}: {others:#?}");
    }
}

impl Passed {
    /// Whether they went to this port of this address.
    ///
    /// # Panics
    /// If that is no address.
    #[must_use]
    pub fn is_to(&self, address: &str, port: u16) -> bool {
        self.destination == address.parse::<IpAddr>().unwrap() && self.port == Some(port)
    }

    fn is_the_gates_dns(&self) -> bool {
        let from_gate = ["10.0.0.4", "10.0.1.4"].map(|address| address.parse::<IpAddr>().unwrap());
        self.is_to(super::RESOLVER, 53) && from_gate.contains(&self.source)
    }
}

fn passed(element: &Value) -> Passed {
    let parts: Vec<&Value> = element["val"]["concat"].as_array().unwrap().iter().collect();
    let address = |part: &Value| part.as_str().unwrap().parse::<IpAddr>().unwrap();
    let protocol = match parts[2].as_u64() {
        Some(number) => protocol_name(number),
        None => parts[2].as_str().unwrap().to_owned(),
    };
    Passed {
        source: address(parts[0]),
        destination: address(parts[1]),
        protocol,
        port: parts.get(3).map(|port| port.as_u64().unwrap().try_into().unwrap()),
        packets: element["counter"]["packets"].as_u64().unwrap(),
    }
}

fn protocol_name(number: u64) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "ipv6-icmp".to_owned(),
        other => other.to_string(),
    }
}
