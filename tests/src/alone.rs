//! A network of the test's own: loopback and nothing else, where every address and every port is free.
//!
//! A process cannot leave its network for another and take its threads along, so the test starts its own program
//! anew inside the namespaces, for this one test.

use std::any::type_name;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::program::{finish, skip, words};
use crate::{wait_for, wait_until};

/// In the environment of the program inside: the test that it was started for.
const MARK: &str = "OUTGATE_TESTS_ALONE";

/// The proof that this process has the network for itself.
#[derive(Debug)]
pub struct Alone(());

/// Given the test that calls it, runs that test in network and mount namespaces of its own. There it is given the
/// network; outside it gets none, and is over: the test has passed inside, or cannot run here.
///
/// # Panics
/// If the test fails inside.
#[must_use]
pub fn alone<F: Fn()>(_this: F) -> Option<Alone> {
    // `e2e::dns::ipv6::a_test`, of which the test runner leaves the crate out.
    let path = type_name::<F>();
    let test = path.split_once("::").map_or(path, |(_, test)| test);
    if std::env::var_os(MARK).is_some_and(|mark| mark == test) {
        ip(&["link", "set", "lo", "up"]);
        return Some(Alone(()));
    }
    let Some(mut enter) = namespaces() else {
        skip("namespaces of one's own cannot be made here");
        return None;
    };
    enter.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).env(MARK, test);
    let output = finish(&mut enter);
    let said = words(&output);
    assert!(output.status.success() && said.contains("1 passed"), "{test}, in a network of its own:\n{said}");
    for line in said.lines().filter(|line| line.starts_with("SKIPPED")) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    None
}

impl Alone {
    /// Gives this machine an address more.
    pub fn own(&self, address: &str) {
        let prefix = if address.contains(':') { 128 } else { 32 };
        ip(&["address", "add", &format!("{address}/{prefix}"), "dev", "lo", "nodad"]);
    }

    /// Lets every program resolve names by this server, on port 53.
    pub fn resolve_by(&self, server: std::net::IpAddr) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        fs::write(&file, format!("nameserver {server}\n")).unwrap();
        let output = Command::new("mount").arg("--bind").arg(&file).arg("/etc/resolv.conf").output().unwrap();
        assert!(output.status.success(), "{}", words(&output));
    }

    /// Sees, from now on, every packet but those over IPv4 from and to these ports. None where there is no Python.
    #[must_use]
    pub fn capture(&self, but: &[u16]) -> Option<Capture> {
        let python = crate::program::program("python3", &["--version"])?;
        let mut command = python.command();
        command.args(["-c", CAPTURE]).args(but.iter().map(u16::to_string));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let capture = Capture { child, packets: Arc::default() };
        std::thread::spawn({
            let packets = Arc::clone(&capture.packets);
            move || lines.map_while(Result::ok).for_each(|line| packets.lock().unwrap().push(line))
        });
        wait_until("the capture to begin", || !capture.packets.lock().unwrap().is_empty());
        Some(capture)
    }
}

/// Writes a line once it listens, and one for each packet: where it went, by which protocol. A packet that was missed
/// is a line, too. The kernel leaves out what is not wanted (Linux's networking/filter.rst): a busy test has more
/// packets than a script can read.
const CAPTURE: &str = r#"
import ctypes, socket, struct, sys
but = [int(port) for port in sys.argv[1:]]
SO_ATTACH_FILTER, SOL_PACKET, PACKET_STATISTICS = 26, 263, 6
LOAD_BYTE, LOAD_HALF_AT_X, LOAD_HEADER_LENGTH, AND, IF, RETURN = 0x30, 0x48, 0xb1, 0x54, 0x15, 0x06
# UDP and TCP over IPv4 with one of the ports go to the last instruction; all else to the one before.
accept = 8 + 2 * len(but) + 1
code = [(LOAD_BYTE, 0, 0, 0), (AND, 0, 0, 0xf0), (IF, 0, accept - 3, 0x40), (LOAD_BYTE, 0, 0, 9),
        (IF, 1, 0, 6), (IF, 0, accept - 6, 17), (LOAD_HEADER_LENGTH, 0, 0, 0)]
for at in 0, 2:
    code.append((LOAD_HALF_AT_X, 0, 0, at))
    code += [(IF, accept - here, 0, port) for here, port in enumerate(but, len(code))]
code += [(RETURN, 0, 0, 0xffffffff), (RETURN, 0, 0, 0)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
wire.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(code), ctypes.addressof(program)))
wire.bind(("lo", 0))
print("listening", flush=True)
while True:
    packet, place = wire.recvfrom(65535)
    if struct.unpack("II", wire.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]:
        print("packets were missed", flush=True)
    # Loopback shows each packet twice.
    if place[2] == socket.PACKET_OUTGOING:
        continue
    if packet[0] >> 4 == 4:
        protocol, at, to = packet[9], (packet[0] & 15) * 4, socket.inet_ntop(socket.AF_INET, packet[16:20])
    else:
        protocol, at, to = packet[6], 40, socket.inet_ntop(socket.AF_INET6, packet[24:40])
    ports = struct.unpack("!HH", packet[at:at + 4]) if protocol in (6, 17) else (0, 0)
    print({6: "tcp", 17: "udp"}.get(protocol, protocol), f"{to}:{ports[1]}", flush=True)
"#;

/// What goes over the wire.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    packets: Arc<Mutex<Vec<String>>>,
}

impl Capture {
    /// A line for each packet so far, as in `udp 127.0.0.1:53`.
    #[must_use]
    pub fn packets(&self) -> Vec<String> {
        self.packets.lock().unwrap()[1..].to_vec()
    }

    /// Waits for such a packet, and gives what came before the first.
    #[must_use]
    pub fn until(&self, last: &str) -> Vec<String> {
        wait_for(&format!("a packet of {last}"), || {
            let packets = self.packets();
            let at = packets.iter().position(|packet| packet == last)?;
            Some(packets[..at].to_vec())
        })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A command that runs another in namespaces of its own, with what it takes to arrange them.
fn namespaces() -> Option<Command> {
    let own = ["--net", "--mount"];
    let ways = [&own[..], &[&own[..], &["--user", "--map-root-user"]].concat()].map(<[&str]>::to_vec);
    let works = |way: &Vec<&str>| {
        let probe = Command::new("unshare").args(way).args(["ip", "link", "set", "lo", "up"]).output();
        probe.is_ok_and(|output| output.status.success())
    };
    let way = ways.into_iter().find(works)?;
    let mut command = Command::new("unshare");
    command.args(way).args(["--fork", "--kill-child"]);
    Some(command)
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", words(&output));
}
