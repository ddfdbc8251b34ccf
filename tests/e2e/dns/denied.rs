//! Denied names: nobody upstream hears of them, and the client hears why.

use hickory_proto::op::{Message, ResponseCode};
use outgate_tests::lookup::{
    A, AAAA, Datagrams, addresses, code, extended_error, over_tcp, plain_query, query,
};
use outgate_tests::upstream::{address, alias};
use outgate_tests::{Upstream, wait_until};

use super::{LAST, asking, assert_only_asked, resolving};

/// A, NS, CNAME, SOA, NULL, PTR, HINFO, MX, TXT, AAAA, SRV, NAPTR, DS, SVCB, HTTPS, IXFR, AXFR, ANY, CAA, one
/// that nobody has given a meaning.
const TYPES: [u16; 20] = [1, 2, 5, 6, 10, 12, 13, 15, 16, 28, 33, 35, 43, 64, 65, 251, 252, 255, 257, 65_280];

fn upstream() -> Upstream {
    Upstream::knowing([
        address(LAST, 60, "9.9.9.9"),
        address("evil.example", 60, "9.9.9.66"),
        address("a.b.allowed.example", 60, "9.9.9.1"),
        alias("www.allowed.example", 60, "edge.elsewhere.example"),
        address("edge.elsewhere.example", 60, "9.9.9.2"),
    ])
}

#[test]
fn a_denied_name_is_asked_of_nobody_whatever_the_type_and_the_transport() {
    let upstream = upstream();
    let gate = asking(&upstream, resolving(&[])).start();
    let secret = "mfrggzdfmztwq2lk.evil.example";
    let client = Datagrams::to(gate.dns());
    let assert_denied = |answer: &Message, record_type: u16| {
        assert_eq!(code(answer), ResponseCode::NXDomain, "type {record_type}");
        assert_eq!(answer.all_sections().count(), 0, "type {record_type}");
        assert_eq!(extended_error(answer), Some((15, "no rule allows it".to_owned())));
    };
    for record_type in TYPES {
        assert_denied(&client.ask(&query(record_type, secret, record_type)), record_type);
    }
    let queries: Vec<_> = TYPES.iter().map(|record_type| query(*record_type, secret, *record_type)).collect();
    let answers = over_tcp(gate.dns(), &queries);
    for record_type in TYPES {
        let answer = answers.iter().find(|answer| answer.metadata.id == record_type).unwrap();
        assert_denied(answer, record_type);
    }
    assert_only_asked(&gate, &upstream, &[]);
    let told = |transport: &str| {
        let wanted = |r: &serde_json::Value| r["host"] == secret && r["transport"] == transport;
        gate.records_until(TYPES.len(), wanted).len()
    };
    assert_eq!((told("udp"), told("tcp")), (TYPES.len(), TYPES.len()));
}

#[test]
fn who_sends_no_opt_gets_none_and_no_more_bytes_than_it_sent() {
    let upstream = upstream();
    let gate = asking(&upstream, resolving(&[])).start();
    let client = Datagrams::to(gate.dns());
    let question = plain_query(7, "evil.example", A);
    client.send(&question);
    let answer = client.receive();
    assert_eq!(answer.len(), question.len());
    assert!(Message::from_vec(&answer).unwrap().edns.is_none());
    assert_only_asked(&gate, &upstream, &[]);
}

#[test]
fn a_denial_is_recorded_with_all_there_is_to_say() {
    let upstream = upstream();
    let gate = asking(&upstream, resolving(&[])).start();
    let client = Datagrams::from("127.0.0.9", gate.dns());
    let _ = client.ask(&query(1, "eViL.example", 16));
    let record = gate.decision("evil.example");
    for (key, value) in [
        ("kind", "dns"),
        ("listener", "dns"),
        ("client", "127.0.0.9"),
        ("transport", "udp"),
        ("type", "TXT"),
        ("verdict", "deny"),
        ("reason", "no-rule"),
        ("rcode", "NXDOMAIN"),
        ("answered_by", "gate"),
    ] {
        assert_eq!(record[key], value, "{key} of {record}");
    }
    assert_eq!(record["client_port"], client.port());
    assert_eq!(record["addresses"], serde_json::json!([]));
    assert!(record["duration_us"].is_u64() && record["upstream"].is_null(), "{record}");
}

#[test]
fn denied_names_are_refused_where_the_configuration_says_so() {
    let upstream = upstream();
    let gate = asking(&upstream, resolving(&["a.b.allowed.example"])).set("dns.denied", "refused").start();
    for name in ["evil.example", "b.allowed.example"] {
        let answer = gate.lookup(name, A);
        assert_eq!(code(&answer), ResponseCode::Refused, "{name}");
        assert_eq!(extended_error(&answer).unwrap().0, 15);
    }
    assert_only_asked(&gate, &upstream, &[]);
}

#[test]
fn denied_names_lead_to_the_gate_where_the_configuration_says_so() {
    let upstream = upstream();
    let gate = asking(&upstream, resolving(&[])).set("dns.denied", "gate").start();
    assert_eq!(addresses(&gate.lookup("evil.example", A)), ["127.0.0.1"]);
    let other = gate.lookup("evil.example", AAAA);
    assert_eq!((code(&other), other.answers.len()), (ResponseCode::NoError, 0));
    assert_only_asked(&gate, &upstream, &[]);
}

#[test]
fn a_denied_name_above_an_allowed_one_exists_and_has_nothing() {
    let upstream = upstream();
    let gate = asking(&upstream, resolving(&["a.b.allowed.example"])).start();
    for (name, expected) in [
        ("b.allowed.example", ResponseCode::NoError),
        ("allowed.example", ResponseCode::NoError),
        ("example", ResponseCode::NoError),
        ("c.allowed.example", ResponseCode::NXDomain),
        ("a.a.b.allowed.example", ResponseCode::NXDomain),
    ] {
        for record_type in TYPES {
            let answer = gate.lookup(name, record_type);
            assert_eq!((code(&answer), answer.answers.len()), (expected, 0), "{name} {record_type}");
        }
    }
    assert_only_asked(&gate, &upstream, &[]);
}

#[test]
fn an_alias_goes_by_the_name_that_was_asked_for_and_opens_its_target_to_nobody() {
    let upstream = upstream();
    let gate = asking(&upstream, resolving(&["www.allowed.example"])).start();
    assert_eq!(addresses(&gate.lookup("www.allowed.example", A)), ["9.9.9.2"]);
    let target = gate.lookup("edge.elsewhere.example", A);
    assert_eq!((code(&target), target.answers.len()), (ResponseCode::NXDomain, 0));
    assert_only_asked(&gate, &upstream, &["www.allowed.example"]);
}

#[test]
fn types_that_the_rule_does_not_list_have_no_data_and_are_asked_of_nobody() {
    let upstream = upstream();
    let gate = asking(&upstream, resolving(&["a.b.allowed.example"])).start();
    for record_type in TYPES.into_iter().filter(|number| ![1, 28, 64, 65].contains(number)) {
        let answer = gate.lookup("a.b.allowed.example", record_type);
        let data = answer.answers.iter().filter(|record| u16::from(record.record_type()) != 13).count();
        assert_eq!(data, 0, "type {record_type}: {answer:?}");
    }
    assert_only_asked(&gate, &upstream, &[]);
}

#[test]
fn the_names_by_which_software_goes_round_a_resolver_are_negative_under_any_policy() {
    for policy in [resolving(&["*.example"]), "isolation_mode: allow_internet_outbound\n".to_owned()] {
        let upstream = upstream();
        let gate = asking(&upstream, policy).start();
        for (name, record_type, expected) in [
            ("use-application-dns.net", A, ResponseCode::NXDomain),
            ("mask.icloud.com", A, ResponseCode::NXDomain),
            ("mask-h2.icloud.com", AAAA, ResponseCode::NXDomain),
            ("_dns.resolver.arpa", 64, ResponseCode::NoError),
        ] {
            let answer = gate.lookup(name, record_type);
            assert_eq!((code(&answer), answer.answers.len()), (expected, 0), "{name}");
        }
        assert_only_asked(&gate, &upstream, &[]);
    }
}

#[test]
fn report_mode_answers_and_records_what_would_have_been() {
    let upstream = upstream();
    let gate = asking(&upstream, "enforcement: report\noutbound_rules: []\n").start();
    assert_eq!(addresses(&gate.lookup("evil.example", A)), ["9.9.9.66"]);
    let record = gate.decision("evil.example");
    assert_eq!((&record["verdict"], &record["reason"]), (&"deny".into(), &"no-rule".into()), "{record}");
    assert_eq!(record["mode"], "report", "{record}");
    assert_eq!(record["addresses"], serde_json::json!(["9.9.9.66"]));
}

#[test]
fn a_reload_bites_at_once_and_in_spite_of_the_cache() {
    let upstream = upstream();
    let gate = asking(&upstream, resolving(&["a.b.allowed.example"])).start();
    assert_eq!(addresses(&gate.lookup("a.b.allowed.example", A)), ["9.9.9.1"]);
    gate.reload_with(&resolving(&[]));
    assert_eq!(code(&gate.lookup("a.b.allowed.example", A)), ResponseCode::NXDomain);
    gate.reload_with(&resolving(&["a.b.allowed.example"]));
    assert_eq!(addresses(&gate.lookup("a.b.allowed.example", A)), ["9.9.9.1"]);
    assert_only_asked(&gate, &upstream, &["a.b.allowed.example"]);
}

#[test]
fn a_client_that_is_not_served_hears_nothing() {
    let upstream = upstream();
    let listen = serde_json::json!({"address": "127.0.0.1:0", "clients": ["127.0.0.1/32"]});
    let gate = asking(&upstream, resolving(&["a.b.allowed.example"])).set("listen.dns", listen).start();
    let stranger = Datagrams::from("127.0.0.2", gate.dns());
    stranger.send(&query(1, "a.b.allowed.example", A));
    wait_until("the drop to be counted", || {
        gate.metric("outgate_dns_dropped_total", "client-not-served") >= 1.0
    });
    assert_eq!(stranger.received(), None);
    assert_only_asked(&gate, &upstream, &[]);
}
