//! Upstreams over TLS whose authority is one's own, and upstreams that are asked in a random letter case.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use outgate_tests::lookup::{A, addresses, code, framed};
use outgate_tests::tls::Authority;
use outgate_tests::upstream::{address, asked_name, bytes, reply_from};
use outgate_tests::{Gate, Setup, Upstream};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use super::resolving;

const NAME: &str = "abcdefghijklmnopqrstuvwxyz.example";
const TRUTH: &str = "9.9.9.1";

/// A resolver that is spoken to over TLS alone, and the names that it was asked for.
struct OverTls {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl OverTls {
    fn start(identity: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (identity, log) = (Arc::clone(&identity), Arc::clone(&log));
                std::thread::spawn(move || {
                    let connection = ServerConnection::new(identity).unwrap();
                    // A client may go at any time, and one that does not trust us does at once.
                    drop(serve(StreamOwned::new(connection, stream), &log));
                });
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(
    mut stream: StreamOwned<ServerConnection, TcpStream>,
    asked: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut query = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut query)?;
        let query = Message::from_vec(&query).unwrap();
        asked.lock().unwrap().push(asked_name(&query));
        let reply = reply_from(&[address(NAME, 60, TRUTH)], &query);
        stream.write_all(&framed(&bytes(&reply)))?;
        stream.flush()?;
    }
}

fn gate(upstream: &OverTls, name: &str, ca: PathBuf) -> Gate {
    Setup::new(&resolving(&[NAME]))
        .set("dns.upstreams", [format!("tls://{}#{name}", upstream.address)])
        .set("dns.ca", ca.to_str().unwrap())
        .start()
}

#[test]
fn an_upstream_over_tls_is_believed_by_the_word_of_the_authority_that_is_configured() {
    let authority = Authority::new();
    let upstream = OverTls::start(authority.server("dns.example"));
    let gate = gate(&upstream, "dns.example", authority.pem_file());
    assert_eq!(addresses(&gate.lookup(NAME, A)), [TRUTH]);
    assert_eq!(upstream.asked(), [NAME]);
    assert_eq!(gate.decision(NAME)["upstream"], json!(upstream.address.to_string()));
}

#[test]
fn an_upstream_that_cannot_prove_who_it_is_hears_no_name() {
    let (authority, another) = (Authority::new(), Authority::new());
    let upstream = OverTls::start(authority.server("dns.example"));
    for (name, ca) in [("dns.example", another.pem_file()), ("other.example", authority.pem_file())] {
        let gate = gate(&upstream, name, ca);
        assert_eq!(code(&gate.lookup(NAME, A)), ResponseCode::ServFail, "{name}");
        assert_eq!(gate.decision(NAME)["answered_by"], "nobody");
    }
    assert_eq!(upstream.asked(), Vec::<String>::new());
}

/// The name as each packet spells it.
fn spelt(upstream: &Upstream) -> Vec<String> {
    let name = |packet: Vec<u8>| Message::from_vec(&packet).unwrap().queries[0].name().to_ascii();
    upstream.packets().into_iter().map(name).collect()
}

#[test]
fn a_random_letter_case_goes_up_and_does_not_come_back() {
    let upstream = Upstream::knowing([address(NAME, 60, TRUTH)]);
    let setup = Setup::new(&resolving(&[NAME])).set("dns.upstreams", [upstream.address().to_string()]);
    let gate = setup.set("dns.case_randomization", true).start();
    let answer = gate.lookup(NAME, A);
    assert_eq!(addresses(&answer), [TRUTH]);
    assert_eq!(answer.answers[0].name.to_ascii(), format!("{NAME}."));
    let spelt = spelt(&upstream);
    assert_eq!(spelt.len(), 1, "an answer that repeats the case is believed: {spelt:?}");
    // One name in 2^33 comes out in lower case throughout.
    assert_ne!(spelt[0], format!("{NAME}."));
    assert_eq!(spelt[0].to_ascii_lowercase(), format!("{NAME}."));
}

#[test]
fn an_answer_in_another_letter_case_is_not_believed() {
    // A datagram is answered by whoever guessed everything but the case; over TCP the truth is told.
    let upstream = Upstream::start(|query| {
        let spelt = query.queries[0].name().to_ascii();
        let over_udp = spelt.bytes().any(|byte| byte.is_ascii_uppercase());
        let told = if over_udp { "6.6.6.6" } else { TRUTH };
        let mut reply = reply_from(&[address(NAME, 60, told)], query);
        let lower = reply.queries[0].name().to_lowercase();
        reply.queries[0].set_name(lower);
        vec![bytes(&reply)]
    });
    let setup = Setup::new(&resolving(&[NAME])).set("dns.upstreams", [upstream.address().to_string()]);
    let gate = setup.set("dns.case_randomization", true).start();
    assert_eq!(addresses(&gate.lookup(NAME, A)), [TRUTH]);
    assert_eq!(spelt(&upstream).len(), 2, "once in each way");
}
