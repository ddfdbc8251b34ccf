//! DNS over IPv6: every transport, and clients by their prefixes.

use std::net::TcpStream;

use hickory_proto::op::ResponseCode;
use outgate_tests::alone::{Alone, alone};
use outgate_tests::authority::{NameServer, Software};
use outgate_tests::lookup::{A, AAAA, Datagrams, addresses, code, framed, over_tcp, query, read_framed};
use outgate_tests::program::skip;
use outgate_tests::tls::Authority;
use outgate_tests::{Setup, wait_until};
use serde_json::json;

use super::resolving;

const ZONE: &str = "www A 9.9.9.1\nwww AAAA 2620:fe::9\nhidden AAAA 2620:fe::66\n";
const SERVED: &str = "fd00:2::4";
const STRANGER: &str = "fd00:3::4";

/// A network with clients, if this machine has IPv6 at all.
fn network<F: Fn()>(this: F) -> Option<Alone> {
    if !std::path::Path::new("/proc/net/if_inet6").exists() {
        skip("this machine has no IPv6");
        return None;
    }
    let network = alone(this)?;
    [SERVED, STRANGER].iter().for_each(|address| network.own(address));
    Some(network)
}

/// A gate that listens at `dns` and asks a server over IPv6.
fn gate(upstream: &NameServer, dns: serde_json::Value) -> Setup {
    Setup::new(&resolving(&["www.example"]))
        .set("dns.upstreams", [upstream.address().to_string()])
        .set("listen.dns", dns)
}

fn upstream() -> Option<NameServer> {
    NameServer::authority(Software::Knot, &[("example", ZONE)], Some("[::1]:5300".parse().unwrap()))
}

#[test]
fn datagrams_streams_and_tls_are_answered() {
    let Some(_network) = network(datagrams_streams_and_tls_are_answered) else { return };
    let Some(upstream) = upstream() else { return };
    let authority = Authority::new();
    let (certificate, key) = authority.server_pem("dns.gate.example");
    let tls = json!({"address": "[::1]:853", "certificate": "dns.pem", "key": "dns.key"});
    let gate = gate(&upstream, json!({"address": "[::1]:53", "tls": tls}))
        .file("dns.pem", certificate)
        .file("dns.key", key)
        .start();
    let (allowed, denied) = (query(1, "www.example", AAAA), query(2, "hidden.example", AAAA));
    let client = Datagrams::from("::1", gate.dns());
    let mut secure = authority.client("dns.gate.example", TcpStream::connect("[::1]:853").unwrap());
    let mut over_tls = |query: &[u8]| {
        std::io::Write::write_all(&mut secure, &framed(query)).unwrap();
        read_framed(&mut secure)
    };
    for (transport, answers) in [
        ("udp", [client.ask(&allowed), client.ask(&denied)]),
        (
            "tcp",
            [
                over_tcp(gate.dns(), std::slice::from_ref(&allowed)).remove(0),
                over_tcp(gate.dns(), std::slice::from_ref(&denied)).remove(0),
            ],
        ),
        ("tls", [over_tls(&allowed), over_tls(&denied)]),
    ] {
        assert_eq!(addresses(&answers[0]), ["2620:fe::9"], "{transport}");
        assert_eq!(code(&answers[1]), ResponseCode::NXDomain, "{transport}");
        let record = gate.record(transport, |r| r["transport"] == transport && r["host"] == "www.example");
        assert_eq!((&record["client"], &record["verdict"]), (&json!("::1"), &json!("allow")), "{record}");
    }
    let told = gate.record("the first", |r| r["answered_by"] == "upstream");
    assert_eq!(told["upstream"], "[::1]:5300");
}

#[test]
fn clients_are_served_by_prefix_over_every_transport() {
    let Some(_network) = network(clients_are_served_by_prefix_over_every_transport) else { return };
    let Some(upstream) = upstream() else { return };
    let gate = gate(&upstream, json!({"address": "[::]:53", "clients": ["fd00:2::/64"]})).start();
    let server = "[fd00:2::4]:53".parse().unwrap();
    let (served, stranger) = (Datagrams::from(SERVED, server), Datagrams::from(STRANGER, server));
    stranger.send(&query(1, "www.example", A));
    assert_eq!(addresses(&served.ask(&query(1, "www.example", A))), ["9.9.9.1"]);
    wait_until("the drop to be counted", || {
        gate.metric("outgate_dns_dropped_total", "client-not-served") >= 1.0
    });
    assert_eq!(stranger.received(), None);
    // What a system connects to itself from is the address that it connects to.
    assert_eq!(addresses(&over_tcp(server, &[query(1, "www.example", A)])[0]), ["9.9.9.1"]);
    let mut refused = outgate_tests::Client::to("[fd00:3::4]:53".parse().unwrap());
    refused.send_to_whom_it_may_concern(framed(&query(1, "www.example", A)));
    assert!(refused.is_closed(), "a stranger's connection is closed without a word");
}

#[test]
fn a_listener_for_both_families_knows_ipv4_clients_by_their_own_addresses() {
    let Some(_network) = network(a_listener_for_both_families_knows_ipv4_clients_by_their_own_addresses)
    else {
        return;
    };
    let Some(upstream) = upstream() else { return };
    let dns = json!({"address": "[::]:53", "clients": ["127.0.0.8/29"]});
    let gate = gate(&upstream, dns).start();
    let server = "127.0.0.1:53".parse().unwrap();
    let (served, stranger) = (Datagrams::from("127.0.0.9", server), Datagrams::from("127.0.0.1", server));
    stranger.send(&query(1, "www.example", A));
    assert_eq!(addresses(&served.ask(&query(1, "www.example", A))), ["9.9.9.1"]);
    assert_eq!(gate.decision("www.example")["client"], "127.0.0.9");
    wait_until("the drop to be counted", || {
        gate.metric("outgate_dns_dropped_total", "client-not-served") >= 1.0
    });
    assert_eq!(stranger.received(), None);
}
