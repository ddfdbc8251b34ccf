//! What goes over the wire: for a denied name, nothing.

use std::net::TcpStream;

use hickory_proto::op::Message;
use outgate_tests::alone::{Capture, alone};
use outgate_tests::authority::{NameServer, Software};
use outgate_tests::lookup::{
    A, Datagrams, addresses, framed, message, opt, over_tcp, query, question, read_framed,
};
use outgate_tests::tls::Authority;
use outgate_tests::{Gate, Setup};
use serde_json::json;

use super::{LAST, resolving};

/// Every type that there is an assignment for, and some that there is none for.
fn types() -> impl Iterator<Item = u16> {
    (0..=300).chain([32_768, 32_769, 65_280, 65_535])
}

/// Names that no rule allows, and names that are the gate's own to answer; the labels that data would leave by.
const NAMES: [&str; 6] = [
    "mfrggzdfmztwq2lk.evil.example",
    "example",
    "sub.last.example",
    "last.example.evil.example",
    "secret.localhost",
    "_dns.resolver.arpa",
];

/// A gate whose every packet but those to and from its own listeners is seen.
struct Watched {
    authority: Authority,
    gate: Gate,
    upstream: NameServer,
    capture: Capture,
}

impl Watched {
    fn start<F: Fn()>(this: F) -> Option<Self> {
        let network = alone(this)?;
        let zone = "last A 9.9.9.9\n*.evil A 6.6.6.6\nevil A 6.6.6.6\n*.last A 6.6.6.6\n";
        let upstream = Some("127.0.0.1:5300".parse().unwrap());
        let upstream = NameServer::authority(Software::Bind, &[("example", zone)], upstream)?;
        let authority = Authority::new();
        let (certificate, key) = authority.server_pem("dns.gate.example");
        let tls = json!({"address": "127.0.0.1:853", "certificate": "dns.pem", "key": "dns.key"});
        let gate = Setup::new(&resolving(&[]))
            .file("dns.pem", certificate)
            .file("dns.key", key)
            .set("listen.dns", json!({"address": "127.0.0.1:53", "tls": tls}))
            .set("dns.upstreams", [upstream.address().to_string()])
            .set("dns.queries_per_second", 1_000_000)
            .start();
        let capture = network.capture(&[53, 853])?;
        Some(Self { authority, gate, upstream, capture })
    }

    /// Asserts that nothing has left. What is allowed does leave, and is seen.
    fn assert_silent(&self) {
        assert_eq!(addresses(&self.gate.lookup(LAST, A)), ["9.9.9.9"]);
        assert_eq!(self.capture.until("udp 127.0.0.1:5300"), Vec::<String>::new());
        assert_eq!(self.upstream.asked(), [format!("{LAST} A")]);
    }
}

#[test]
fn a_denied_name_causes_no_packet_whatever_the_type_and_the_transport() {
    let Some(watched) = Watched::start(a_denied_name_causes_no_packet_whatever_the_type_and_the_transport)
    else {
        return;
    };
    let dns = watched.gate.dns();
    let client = Datagrams::to(dns);
    let secure = TcpStream::connect("127.0.0.1:853").unwrap();
    let mut secure = watched.authority.client("dns.gate.example", secure);
    for name in NAMES {
        let queries: Vec<_> = types().map(|record_type| query(record_type, name, record_type)).collect();
        for query in &queries {
            assert!(addresses(&client.ask(query)).is_empty(), "{name} over UDP");
        }
        let over_tcp = over_tcp(dns, &queries);
        assert!(over_tcp.iter().all(|answer| addresses(answer).is_empty()), "{name} over TCP");
        for query in &queries {
            std::io::Write::write_all(&mut secure, &framed(query)).unwrap();
            assert!(addresses(&read_framed(&mut secure)).is_empty(), "{name} over TLS");
        }
    }
    watched.assert_silent();
}

#[test]
fn nor_does_one_that_is_dressed_up() {
    let Some(watched) = Watched::start(nor_does_one_that_is_dressed_up) else { return };
    let client = Datagrams::to(watched.gate.dns());
    let denied = question("secret.evil.example", A);
    let subnet = opt(1232, &[0, 8, 0, 7, 0, 1, 24, 0, 203, 0, 113]);
    let cookie = opt(4096, &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    let allowed = question(LAST, A);
    for (what, packet) in [
        ("no recursion desired", message(1, 0x0000, [1, 0, 0, 0], &[&denied])),
        ("checking disabled", message(2, 0x0110, [1, 0, 0, 0], &[&denied])),
        ("a client subnet", message(3, 0x0100, [1, 0, 0, 1], &[&denied, &subnet])),
        ("a cookie", message(4, 0x0100, [1, 0, 0, 1], &[&denied, &cookie])),
        ("behind an allowed name", message(5, 0x0100, [2, 0, 0, 0], &[&allowed, &denied])),
        ("before an allowed name", message(6, 0x0100, [2, 0, 0, 0], &[&denied, &allowed])),
        ("a notification", message(7, 0x2000, [1, 0, 0, 0], &[&denied])),
        ("an update", message(8, 0x2800, [1, 0, 0, 0], &[&denied])),
        ("a status query", message(9, 0x1000, [1, 0, 0, 0], &[&denied])),
        ("bytes behind it", message(10, 0x0100, [1, 0, 0, 0], &[&denied, b"secret"])),
        ("an allowed name with bytes behind it", message(11, 0x0100, [1, 0, 0, 0], &[&allowed, b"secret"])),
        ("a response", message(12, 0x8180, [1, 0, 0, 0], &[&denied])),
    ] {
        client.send(&packet);
        // A response is met with silence; what follows it on the same way is not.
        if what == "a response" {
            client.send(&query(0x7777, "evil.example", A));
        }
        assert!(addresses(&Message::from_vec(&client.receive()).unwrap()).is_empty(), "{what}");
        assert_eq!(watched.upstream.asked(), Vec::<String>::new(), "{what}");
    }
    watched.assert_silent();
}
