//! What is not TCP: the kernel decides, by the same policy, and says no at once.

use std::net::Ipv4Addr;

use outgate_tests::lab::{Datagram, Machine, PUBLIC_RESOLVER, site};

use super::{Guarded, guarded};

fn echo(machine: Machine, address: &str, port: u16) -> Datagram {
    machine.datagram(address, port, b"hello")
}

fn answered() -> Datagram {
    Datagram::Answer(b"hello".to_vec())
}

#[track_caller]
fn assert_prohibited(datagram: &Datagram, what: &str) {
    assert!(datagram.is_prohibited(), "{what}: {datagram:?}");
}

/// The record that the kernel's decision leaves.
fn network_record(hub: &Guarded, host: &str, verdict: &str) -> serde_json::Value {
    hub.gate.record(&format!("{host} {verdict}"), |r| {
        r["kind"] == "network" && r["host"] == host && r["verdict"] == verdict
    })
}

#[test]
fn a_service_tags_udp_passes_and_its_neighbour_does_not() {
    let Some(hub) = guarded() else { return };
    let (inside, outside) = (site("compute.azureml.example"), site("neighbour.azure.example"));
    for machine in [hub.lab.training(), hub.lab.scoring()] {
        for (passes, fails) in [(inside.v4, outside.v4), (inside.v6, outside.v6)] {
            assert_eq!(echo(machine, passes, 5831), answered());
            assert_prohibited(&echo(machine, fails, 5831), "the neighbour");
            assert_prohibited(&echo(machine, passes, 5832), "another port");
        }
    }
    let passed = hub.lab.capture().passed();
    hub.lab.capture().assert_only(&[(inside.v4, 5831), (inside.v6, 5831)]);
    let from_gate =
        |p: &outgate_tests::lab::Passed| ["10.0.0.4", "fd00::4"].contains(&&*p.source.to_string());
    assert!(passed.iter().all(from_gate), "a client's own address went out: {passed:#?}");

    let record = network_record(&hub, inside.v4, "allow");
    assert_eq!((&record["rule"]["name"], &record["protocol"]), (&"compute".into(), &"UDP".into()));
    assert_eq!((&record["client"], &record["port"]), (&"10.1.0.4".into(), &5831.into()));
    assert_eq!(network_record(&hub, outside.v4, "deny")["reason"], "no-rule");
}

#[test]
fn a_name_opens_udp_to_the_client_that_was_told_its_address() {
    let Some(hub) = guarded() else { return };
    let (clock, training) = (site("time.cloudflare.com"), hub.lab.training());
    assert_prohibited(&training.asks_the_time(clock.v4), "before it was told");

    // The address that asks is the one that was told: by IPv6 for what it then does over IPv6.
    for (server, address, kind) in
        [(PUBLIC_RESOLVER, clock.v4, "A"), (site("dns.google").v6, clock.v6, "AAAA")]
    {
        let told = training.dig(&["+short", &format!("@{server}"), clock.name, kind]).assert_done();
        assert_eq!(told.stdout.trim(), address);
        // No pause: the kernel knew before the client did.
        let came = training.asks_the_time(address);
        assert!(matches!(came, Datagram::Answer(_)), "{address}: {came:?}");
    }

    assert_prohibited(&hub.lab.scoring().asks_the_time(clock.v4), "another client");
    assert_prohibited(&echo(training, clock.v4, 5831), "another port");
    hub.lab.capture().assert_only(&[(clock.v4, 123), (clock.v6, 123)]);
    let record = network_record(&hub, clock.name, "allow");
    assert_eq!((&record["original"], &record["rule"]["name"]), (&clock.v4.into(), &"time".into()));
}

#[test]
fn quic_is_refused_at_once_even_to_an_allowed_name() {
    let Some(hub) = guarded() else { return };
    let (azure, machine) = (site("ml.azure.com"), hub.lab.training());
    machine.dig(&[azure.name]).assert_done();
    for address in [azure.v4, azure.v6] {
        assert_prohibited(&echo(machine, address, 443), "QUIC");
    }
    assert_eq!(network_record(&hub, azure.v4, "deny")["reason"], "quic");
    hub.lab.capture().assert_only(&[]);
}

#[test]
fn ping_gets_no_further_than_the_gate() {
    let Some(hub) = guarded() else { return };
    let (evil, machine) = (site("evil.example"), hub.lab.training());
    for address in [evil.v4, evil.v6] {
        let said = machine.ping(address).assert_failed().words();
        assert!(said.contains("filtered") || said.contains("prohibited"), "{said}");
    }
    // The gate itself answers: it is a router that people look for.
    machine.ping("10.0.0.4").assert_done();
    hub.lab.capture().assert_only(&[]);
}

#[test]
fn fragments_are_judged_as_the_datagram_that_they_are() {
    let Some(hub) = guarded() else { return };
    let (inside, evil, machine) = (site("compute.azureml.example"), site("evil.example"), hub.lab.training());
    let long = vec![b'x'; 4000];
    for (passes, fails) in [(inside.v4, evil.v4), (inside.v6, evil.v6)] {
        assert_eq!(machine.datagram(passes, 5831, &long), Datagram::Answer(long.clone()), "{passes}");
        assert_prohibited(&machine.datagram(fails, 5831, &long), "a long datagram");
    }
    let target: Ipv4Addr = evil.v4.parse().unwrap();
    let header = udp(40_000, 5831, &[0; 24]);
    machine.packets(
        evil.v4,
        &[
            // A first fragment of nothing but ports; what follows it; and one that nothing came before.
            ipv4(target, 17, MORE_FRAGMENTS, &header[..8]),
            ipv4(target, 17, 1, &header[8..]),
            ipv4(target, 17, 100, b"long after"),
            // The second rewrites the ports of the first.
            ipv4(target, 17, MORE_FRAGMENTS, &udp(40_000, 53, &[0; 24])),
            ipv4(target, 17, 0, &header),
            // A TCP header cut through its flags.
            ipv4(target, 6, MORE_FRAGMENTS, &[0x9c, 0x40, 0x11, 0x5c, 0, 0, 0, 0]),
            ipv4(target, 6, 1, &[0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]),
        ],
    );
    after_what_was_sent(&hub);
    let others = hub.lab.capture().besides(|p| [inside.v4, inside.v6].contains(&&*p.destination.to_string()));
    assert!(others.is_empty(), "{others:#?}");
}

#[test]
fn a_packet_with_a_route_of_its_own_is_dropped() {
    let Some(hub) = guarded() else { return };
    let (inside, evil, machine) = (site("compute.azureml.example"), site("evil.example"), hub.lab.training());
    let octets = inside.v4.parse::<Ipv4Addr>().unwrap().octets();
    for kind in [0x83, 0x89] {
        // By way of the allowed address to another: the packet's own destination is the allowed one.
        let route = [&[kind, 7, 4][..], &octets, &[0]].concat();
        let came = machine.datagram_with_options(evil.v4, 5831, b"hello", &route);
        assert!(!matches!(came, Datagram::Answer(_)), "{came:?}");
    }
    after_what_was_sent(&hub);
    hub.lab.capture().assert_only(&[]);
}

#[test]
fn addresses_that_are_no_clients_and_other_protocols_get_nowhere() {
    let Some(hub) = guarded() else { return };
    let (inside, machine) = (site("compute.azureml.example"), hub.lab.training());
    let target: Ipv4Addr = inside.v4.parse().unwrap();
    let mut spoofed = ipv4(target, 17, 0, &udp(40_000, 5831, b"hello"));
    spoofed[12..16].copy_from_slice(&[172, 20, 0, 9]);
    // GRE, ESP, SCTP, IPv6 in IPv4, and a protocol that nobody has.
    let others = [47, 50, 132, 41, 253].map(|protocol| ipv4(target, protocol, 0, &[0; 32]));
    machine.packets(inside.v4, &[&[spoofed][..], &others].concat());
    after_what_was_sent(&hub);
    hub.lab.capture().assert_only(&[]);
    let _ = network_record(&hub, inside.v4, "deny");
}

/// A datagram that goes the same way later, and of which the test hears, has not overtaken what was sent before.
fn after_what_was_sent(hub: &Guarded) {
    assert_prohibited(&echo(hub.lab.training(), site("other.example").v4, 5831), "the last one");
}

const MORE_FRAGMENTS: u16 = 0x2000;

/// A packet of the training machine. The kernel fills in the checksum and the length.
fn ipv4(to: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0x12, 0x34];
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 1, 0, 4]);
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat()
}
