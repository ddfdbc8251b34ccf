//! Packets of a client go through a gateway that has our table, to hosts on the other side, and what the kernel tells
//! of them becomes records. Everything but the policy and the cables is the real thing.

#![allow(clippy::wildcard_enum_match_arm, clippy::disallowed_methods)] // a test stands outside, and looks at few of many

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::sched::{CloneFlags, setns};
use outgate_rules::{DomainName, RuleSet};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::tests::{appliance, checked, rules};
use super::*;
use crate::console::tests::Heard;
use crate::kernel::conntrack::{self, Filter};
use crate::kernel::namespace::{inside, run};
use crate::kernel::told::{Element, Flow, ToldSets};
use crate::kernel::{Kept, apply};
use crate::network::Listening;
use crate::recorder::tests::{LONG, recorder};

const POLICY: &str = "outbound_rules:
  - {name: tag, type: address, destination: {addresses: [52.1.0.0/16, '2603:1::/32'], protocol: UDP, port_ranges: '5831'}}
  - {name: ban, type: address, action: deny, destination: {addresses: [52.1.9.0/24], port_ranges: '*'}}
  - {name: bulk, type: address, offload: kernel, destination: {addresses: [52.4.0.0/16], protocol: TCP, port_ranges: '*'}}
  - {name: ping, type: address, destination: {addresses: [52.3.0.1], protocol: ICMP}}
  - {name: time, type: fqdn, destination: time.example.org, protocol: UDP, ports: [123]}
";
/// Longer than anything takes here, and short enough for somebody who waits.
const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace of its own, kept by a program that does nothing.
struct Host(Child);

impl Host {
    fn start() -> Self {
        let child =
            Command::new("unshare").args(["--net", "sleep", "600"]).stdin(Stdio::null()).spawn().unwrap();
        let host = Self(child);
        let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
        until("the host has its namespace", || {
            fs::metadata(host.namespace()).is_ok_and(|found| found.ino() != own)
        });
        host
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// Runs `ip` there.
    fn ip(&self, arguments: &str) {
        let net = format!("--net={}", self.namespace());
        let mut all = vec![net.as_str(), "ip"];
        all.extend(arguments.split(' '));
        run("nsenter", &all);
    }

    /// What comes of a function that runs there.
    fn does<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let there = || {
            setns(File::open(self.namespace()).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            act()
        };
        thread::scope(|scope| scope.spawn(there).join().unwrap())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        thread::yield_now();
    }
}

/// A client, this gateway, and hosts on the other side.
struct Network {
    client: Host,
    hosts: Host,
}

impl Network {
    fn new() -> Self {
        let (client, hosts) = (Host::start(), Host::start());
        for (name, host, ours, theirs) in [
            ("inner", &client, ["10.1.0.1/24", "fd00:1::1/64"], ["10.1.0.4/24", "fd00:1::4/64"]),
            ("outer", &hosts, ["192.168.9.1/24", "fd09::1/64"], ["192.168.9.2/24", "fd09::2/64"]),
        ] {
            let process = host.0.id().to_string();
            run("ip", &["link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", &process]);
            run("ip", &["link", "set", name, "up"]);
            host.ip("link set eth0 up");
            host.ip("link set lo up");
            for (ours, theirs) in ours.iter().zip(theirs) {
                let nodad: &[&str] = if ours.contains(':') { &["nodad"] } else { &[] };
                run("ip", &[&["addr", "add", ours, "dev", name], nodad].concat());
                host.ip(format!("addr add {theirs} dev eth0 {}", nodad.concat()).trim());
            }
        }
        client.ip("route add default via 10.1.0.1");
        client.ip("-6 route add default via fd00:1::1");
        for address in ["52.1.0.1", "52.1.9.1", "52.3.0.1", "52.4.0.1", "9.9.9.9"] {
            hosts.ip(&format!("addr add {address}/32 dev lo"));
        }
        hosts.ip("addr add 2603:1::1/128 dev lo nodad");
        run("ip", &["route", "add", "default", "via", "192.168.9.2"]);
        run("ip", &["-6", "route", "add", "default", "via", "fd09::2"]);
        for (setting, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/netfilter/nf_conntrack_acct", "1"),
        ] {
            fs::write(Path::new("/proc/sys").join(setting), value).unwrap();
        }
        Self { client, hosts }
    }

    /// Hosts that send back what they get.
    fn echo(&self, addresses: &[&str]) {
        for address in addresses {
            let socket = self.hosts.does(|| UdpSocket::bind(address).unwrap());
            thread::spawn(move || {
                let mut buffer = [0; 1500];
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    _ = socket.send_to(&buffer[..length], from);
                }
            });
        }
    }

    /// What becomes of a datagram of the client: an answer, or an error.
    fn asks(&self, address: &str) -> Result<(), ErrorKind> {
        let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = self.client.does(|| UdpSocket::bind(any).unwrap());
        self.asks_on(&socket, address)
    }

    fn asks_on(&self, socket: &UdpSocket, address: &str) -> Result<(), ErrorKind> {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(address).unwrap();
        let answered = socket.send(b"question").and_then(|_| socket.recv(&mut [0; 64]));
        answered.map(|_| ()).map_err(|error| error.kind())
    }

    fn connects(&self, address: &str) -> Result<(), ErrorKind> {
        let address: SocketAddr = address.parse().unwrap();
        let connected = self.client.does(|| TcpStream::connect_timeout(&address, PATIENCE));
        connected.map(|_| ()).map_err(|error| error.kind())
    }
}

/// The gate as far as it takes part here.
struct Gate {
    folder: tempfile::TempDir,
    rules: Arc<Mutex<Arc<RuleSet>>>,
    recorder: Arc<crate::recorder::Recorder>,
    runtime: Runtime,
    listening: Listening,
}

impl Gate {
    fn start() -> Self {
        let folder = tempfile::TempDir::new().unwrap();
        let runtime = Runtime::new().unwrap();
        let recorder = {
            let _in_runtime = runtime.enter();
            Arc::new(recorder(&folder.path().join("audit.jsonl"), &Heard::default(), LONG))
        };
        let rules = Arc::new(Mutex::new(rules(POLICY)));
        let in_force = Arc::clone(&rules);
        let listening = Listening::start(
            7,
            Box::new(move || Arc::clone(&in_force.lock().unwrap())),
            Box::new(|_, _| vec![name()]),
            Arc::clone(&recorder),
            runtime.handle().clone(),
        );
        let listening = listening.unwrap_or_else(|error| panic!("{error}"));
        let gate = Self { folder, rules, recorder, runtime, listening };
        gate.apply();
        gate
    }

    fn apply(&self) {
        let plan = self.rules.lock().unwrap().network_plan(Timestamp::UNIX_EPOCH);
        apply(&checked(hub(&plan, &appliance())), &Kept::sets(TOLD))
            .unwrap_or_else(|error| panic!("{error}"));
    }

    fn reload(&self, text: &str) {
        *self.rules.lock().unwrap() = rules(text);
        self.apply();
    }

    /// Stops, and gives the records: each with what this is about.
    fn records(self) -> Vec<String> {
        self.listening.stop();
        self.runtime.block_on(self.recorder.flush_and_close(LONG)).unwrap();
        let text = fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap();
        let records = text.lines().map(|line| serde_json::from_str(line).unwrap());
        records.map(|record: Value| shown(&record)).collect()
    }
}

fn shown(record: &Value) -> String {
    assert_eq!(record["kind"], "network", "{record}");
    let text = |key: &str| match &record[key] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let rule = record["rule"]["name"].as_str().unwrap_or("-");
    let keys = ["event", "client", "host", "port", "protocol", "verdict", "reason"].map(text);
    let bytes =
        if record["event"] == "close" { format!(" {} down", text("bytes_down")) } else { String::new() };
    format!("{} {rule}{bytes}", keys.join(" "))
}

fn name() -> DomainName {
    DomainName::parse("time.example.org").unwrap()
}

fn told(port: u16) -> Element {
    let (client, address) = (Ipv4Addr::new(10, 1, 0, 4).into(), Ipv4Addr::new(9, 9, 9, 9).into());
    Element { flow: Flow { client, address, protocol: UDP, port }, name: name() }
}

#[test]
fn packets_pass_or_are_refused_as_the_policy_says_and_each_is_on_record() {
    inside(|| {
        let network = Network::new();
        let gate = Gate::start();
        let mut sets = ToldSets::open(TABLE, TOLD).unwrap();
        sets.add(&[told(123)], PATIENCE).unwrap();
        network.echo(&[
            "52.1.0.1:5831",
            "52.1.0.1:5832",
            "52.1.9.1:5831",
            "9.9.9.9:123",
            "9.9.9.9:124",
            "9.9.9.9:443",
        ]);
        network.echo(&["[2603:1::1]:5831", "[2603:1::1]:5832"]);
        let _bulk = network.hosts.does(|| TcpListener::bind("52.4.0.1:2049").unwrap());
        let _web = network.hosts.does(|| TcpListener::bind("9.9.9.9:443").unwrap());

        assert_eq!(network.asks("52.1.0.1:5831"), Ok(()));
        assert_eq!(network.asks("52.1.0.1:5832"), Err(ErrorKind::HostUnreachable));
        assert_eq!(network.asks("52.1.9.1:5831"), Err(ErrorKind::HostUnreachable));
        assert_eq!(network.asks("9.9.9.9:123"), Ok(()));
        assert_eq!(network.asks("9.9.9.9:124"), Err(ErrorKind::HostUnreachable));
        assert_eq!(network.asks("9.9.9.9:443"), Err(ErrorKind::HostUnreachable));
        assert_eq!(network.asks("[2603:1::1]:5831"), Ok(()));
        assert_eq!(network.asks("[2603:1::1]:5832"), Err(ErrorKind::PermissionDenied));
        assert_eq!(network.connects("52.4.0.1:2049"), Ok(()));
        assert_eq!(network.connects("9.9.9.9:443"), Err(ErrorKind::HostUnreachable), "nobody listens for it");
        run("nsenter", &[&format!("--net={}", network.client.namespace()), "ping", "-c1", "-W9", "52.3.0.1"]);

        let records = gate.records();
        let of_client: Vec<&str> = records.iter().map(String::as_str).collect();
        assert_eq!(
            of_client,
            [
                "decision 10.1.0.4 52.1.0.1 5831 UDP allow rule tag",
                "decision 10.1.0.4 52.1.0.1 5832 UDP deny port-not-in-rule -",
                "decision 10.1.0.4 52.1.9.1 5831 UDP deny deny-rule ban",
                "decision 10.1.0.4 time.example.org 123 UDP allow rule time",
                "decision 10.1.0.4 9.9.9.9 124 UDP deny no-rule -",
                "decision 10.1.0.4 9.9.9.9 443 UDP deny quic -",
                "decision fd00:1::4 2603:1::1 5831 UDP allow rule tag",
                "decision fd00:1::4 2603:1::1 5832 UDP deny port-not-in-rule -",
                "decision 10.1.0.4 52.4.0.1 2049 TCP allow rule bulk",
                "decision 10.1.0.4 9.9.9.9 443 TCP deny no-rule -",
                "decision 10.1.0.4 52.3.0.1 - ICMP allow rule ping",
            ]
        );
    });
}

#[test]
fn a_reload_holds_for_the_next_packet_of_an_open_flow_and_its_end_has_its_bytes() {
    inside(|| {
        let network = Network::new();
        let gate = Gate::start();
        let mut sets = ToldSets::open(TABLE, TOLD).unwrap();
        sets.add(&[told(123)], PATIENCE).unwrap();
        network.echo(&["52.1.0.1:5831", "9.9.9.9:123"]);
        let sockets =
            network.client.does(|| ["0.0.0.0:1001", "0.0.0.0:1002"].map(|any| UdpSocket::bind(any).unwrap()));
        assert_eq!(network.asks_on(&sockets[0], "52.1.0.1:5831"), Ok(()));
        assert_eq!(network.asks_on(&sockets[1], "9.9.9.9:123"), Ok(()));
        gate.reload("outbound_rules: []\n");
        assert_eq!(network.asks_on(&sockets[0], "52.1.0.1:5831"), Err(ErrorKind::HostUnreachable));
        assert_eq!(network.asks_on(&sockets[1], "9.9.9.9:123"), Ok(()), "what was told is kept");
        sets.delete(&[told(123).flow]).unwrap();
        assert_eq!(network.asks_on(&sockets[1], "9.9.9.9:123"), Ok(()), "an open flow goes on by its mark");
        let passed = Filter { mark: Some(mark::FORWARDED), ..Filter::default() };
        let flows = conntrack::dump(&passed).unwrap();
        assert_eq!(flows.len(), 2);
        assert_eq!(conntrack::delete(&flows).unwrap(), 2);
        assert_eq!(
            network.asks_on(&sockets[1], "9.9.9.9:123"),
            Err(ErrorKind::HostUnreachable),
            "until it is cut"
        );
        let mut records = gate.records();
        records.sort();
        assert_eq!(
            records,
            [
                "close 10.1.0.4 52.1.0.1 5831 UDP allow rule tag 36 down",
                "close 10.1.0.4 time.example.org 123 UDP allow rule time 108 down",
                "decision 10.1.0.4 52.1.0.1 5831 UDP allow rule tag",
                "decision 10.1.0.4 52.1.0.1 5831 UDP deny no-rule -",
                "decision 10.1.0.4 9.9.9.9 123 UDP deny no-rule -",
                "decision 10.1.0.4 time.example.org 123 UDP allow rule time",
            ]
        );
    });
}

#[test]
fn a_closed_gateway_lets_nothing_through_and_an_open_one_goes_on_where_it_was() {
    inside(|| {
        let network = Network::new();
        let gate = Gate::start();
        let mut sets = ToldSets::open(TABLE, TOLD).unwrap();
        sets.add(&[told(123)], PATIENCE).unwrap();
        network.echo(&["52.1.0.1:5831", "9.9.9.9:123"]);
        assert_eq!(network.asks("9.9.9.9:123"), Ok(()));
        apply(&checked(closed(&appliance())), &Kept::sets(TOLD)).unwrap();
        assert_eq!(network.asks("9.9.9.9:123"), Err(ErrorKind::HostUnreachable));
        assert_eq!(network.asks("52.1.0.1:5831"), Err(ErrorKind::HostUnreachable));
        assert_eq!(network.connects("9.9.9.9:443"), Err(ErrorKind::HostUnreachable));
        gate.apply();
        assert_eq!(network.asks("9.9.9.9:123"), Ok(()), "the client need not ask for the name again");
        drop(gate.records());
    });
}
