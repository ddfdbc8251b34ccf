//! The harness of the end-to-end tests: a real gate, scripted origins, a scripted DNS server, raw clients.
//!
//! A test builds a [`World`] of names and origins on loopback addresses of their own, starts a [`Gate`] with
//! a policy, acts as a client, and looks at three places: what the client got, what the origin saw, and what
//! the audit file says. Nothing waits for time to pass; everything waits for an observed condition, with
//! [`PATIENCE`] as the deadline.

// A harness reports by panicking: a test fails with the sentence of the place that noticed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, clippy::print_stderr)]
// The tests are what stands outside: clients that dial the gate.
#![allow(clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub mod alone;
pub mod authority;
pub mod client;
pub mod dns;
pub mod gate;
pub mod hello;
pub mod lab;
pub mod lookup;
pub mod origin;
pub mod policy;
pub mod program;
pub mod tls;
pub mod upstream;
pub mod world;

pub use client::{Client, Response};
pub use dns::{Answer, Dns};
pub use gate::{Gate, Setup};
pub use origin::Origin;
pub use upstream::Upstream;
pub use world::World;

/// How long anything that must happen may take before the test gives it up. Generous: a passing test never
/// waits for it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Looks again and again until there is something to see.
///
/// # Panics
/// If `look` sees nothing within [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Waits until a condition holds.
///
/// # Panics
/// If it does not hold within [`PATIENCE`].
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || holds().then_some(()));
}

/// Stops a process until it is told to go on.
fn freeze(process: Pid) {
    kill_process(process, Signal::STOP).unwrap();
    // A thread that is at work on another core goes on until it hears of it, and could do what comes next.
    wait_until("all its threads to stand still", || threads_in_state(process, 'T'));
}

/// Whether all threads of a process are in this state, by proc_pid_stat(5).
fn threads_in_state(process: Pid, state: char) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).unwrap();
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(state))
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::UdpSocket;

    use super::*;
    use crate::origin::{base64, page};

    #[test]
    fn base64_pads() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn a_world_has_names_and_pages() {
        let world = World::new();
        let secure = world.https("page.example", page("welcome"));
        let mut inside = world.authority.client("page.example", Client::to(secure.address()));
        inside.write_all(b"GET / HTTP/1.1\r\nHost: page.example\r\n\r\n").unwrap();
        let mut answer = vec![0; 15];
        inside.read_exact(&mut answer).unwrap();
        assert_eq!(answer, b"HTTP/1.1 200 Fi");
        assert_eq!((secure.connections(), world.dns.packets()), (1, 0));
    }

    #[test]
    fn a_dns_server_says_what_it_was_told() {
        let world = World::new();
        world.dns.set("a.example", &["192.0.2.1"]);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\x07example\0\0\x01\0\x01";
        socket.send_to(question, world.dns.address()).unwrap();
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).unwrap();
        assert!(answer[..length].ends_with(&[192, 0, 2, 1]), "{:?}", &answer[..length]);
        assert_eq!(world.dns.asked(), ["a.example"]);
    }

    #[test]
    fn a_bent_hello_is_one_that_rustls_reads() {
        let mut acceptor = rustls::server::Acceptor::default();
        acceptor.read_tls(&mut &hello::Bent::naming(&[b"a.example"]).records(7)[..]).unwrap();
        let accepted = acceptor.accept().unwrap().unwrap();
        assert_eq!(accepted.client_hello().server_name(), Some("a.example"));
    }
}
