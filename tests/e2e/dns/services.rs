//! HTTPS and SVCB records (RFC 9460), as dig shows them: without what hides a name, without HTTP/3, without
//! addresses that the gate would not dial, and without ways to other names.

use hickory_proto::op::ResponseCode;
use outgate_tests::authority::{NameServer, Software};
use outgate_tests::lookup::code;
use outgate_tests::program::{Program, finish, program, words};
use outgate_tests::{Gate, Setup};
use serde_json::json;

use super::resolving;

const HTTPS: u16 = 65;
const SVCB: u16 = 64;
const KEYS: &str = "AEX+DQBBtQAgACA=";

/// A record as it is published, and as a client may have it; none where it may not.
const RECORDS: [(&str, &str, &str, Option<&str>); 22] = [
    (
        "all",
        "HTTPS",
        "1 . alpn=h2,h3 ech=KEYS ipv4hint=9.9.9.2,10.0.0.1 ipv6hint=2620:fe::9,fd00::1",
        Some("1 . alpn=\"h2\" ipv4hint=9.9.9.2 ipv6hint=2620:fe::9"),
    ),
    ("h3", "HTTPS", "1 . alpn=h3", Some("1 .")),
    ("drafts", "HTTPS", "1 . alpn=h3-29,h2,h3-Q050,http/1.1", Some("1 . alpn=\"h2,http/1.1\"")),
    ("h3-alone", "HTTPS", "1 . alpn=h3 no-default-alpn", None),
    ("h2-alone", "HTTPS", "1 . alpn=h2,h3 no-default-alpn", Some("1 . alpn=\"h2\" no-default-alpn")),
    ("ech", "HTTPS", "1 . ech=KEYS", Some("1 .")),
    ("must-ech", "HTTPS", "1 . mandatory=ech ech=KEYS", Some("1 .")),
    ("must-both", "HTTPS", "1 . mandatory=alpn,ech alpn=h2 ech=KEYS", Some("1 . mandatory=alpn alpn=\"h2\"")),
    (
        "must-hint",
        "HTTPS",
        "1 . mandatory=ipv4hint,alpn alpn=h2 ipv4hint=10.0.0.1",
        Some("1 . mandatory=alpn alpn=\"h2\""),
    ),
    (
        "private",
        "HTTPS",
        "1 . alpn=h2 ipv4hint=10.0.0.1,192.168.7.7 ipv6hint=fd00::1",
        Some("1 . alpn=\"h2\""),
    ),
    (
        "disguised",
        "HTTPS",
        "1 . ipv6hint=::ffff:10.0.0.1,64:ff9b::7f00:1,64:ff9b::909:909,2620:fe::9",
        Some("1 . ipv6hint=64:ff9b::909:909,2620:fe::9"),
    ),
    ("metadata", "HTTPS", "1 . alpn=h2 ipv4hint=169.254.169.254,168.63.129.16", Some("1 . alpn=\"h2\"")),
    ("port", "HTTPS", "1 . alpn=h2 port=8443", Some("1 . alpn=\"h2\" port=8443")),
    ("later", "HTTPS", "7 . alpn=h2", Some("7 . alpn=\"h2\"")),
    ("alias", "HTTPS", "0 elsewhere", None),
    ("alias-root", "HTTPS", "0 .", None),
    ("elsewhere", "HTTPS", "1 other.example. alpn=h2", None),
    ("own", "HTTPS", "1 own.example. alpn=h2", Some("1 own.example. alpn=\"h2\"")),
    (
        "_8443._https.api",
        "SVCB",
        "1 pool.example. alpn=h2,h3 port=8443 ech=KEYS",
        Some("1 pool.example. alpn=\"h2\" port=8443"),
    ),
    ("_dns.alias", "SVCB", "0 resolver.example.", None),
    ("_hint.svc", "SVCB", "1 . ipv4hint=10.0.0.1,9.9.9.2", Some("1 . ipv4hint=9.9.9.2")),
    ("_h3.svc", "SVCB", "1 . alpn=h3 no-default-alpn", None),
];

fn zone() -> String {
    let record = |(name, record_type, published, _): &(&str, &str, &str, Option<&str>)| {
        format!("{name} {record_type} {}\n", published.replace("KEYS", KEYS))
    };
    RECORDS.iter().map(record).collect()
}

fn gate(upstream: &NameServer) -> Gate {
    let setup = Setup::new(&resolving(&["*.example"])).set("dns.upstreams", [upstream.address().to_string()]);
    setup.set("dns.budget.names_per_minute", 1000).start()
}

/// The records of a name in dig's words.
fn dig(dig: &Program, gate: &Gate, name: &str, record_type: &str) -> Vec<String> {
    let dns = gate.dns();
    let mut command = dig.command();
    command.arg(format!("@{}", dns.ip())).args(["-p", &dns.port().to_string(), "+short", name, record_type]);
    let output = finish(&mut command);
    assert!(output.status.success(), "{}", words(&output));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn what_clients_hear_of_services_is_what_the_gate_lets_them_use() {
    let Some(program) = program("dig", &["-v"]) else { return };
    for software in [Software::Bind, Software::Knot, Software::Nsd] {
        let Some(authority) = NameServer::authority(software, &[("example", &zone())], None) else { return };
        let gate = gate(&authority);
        for (name, record_type, published, expected) in RECORDS {
            let told = dig(&program, &gate, &format!("{name}.example"), record_type);
            let expected: Vec<_> = expected.into_iter().collect();
            assert_eq!(told, expected, "{name}, {published}, of {software:?}");
        }
    }
}

#[test]
fn of_several_services_the_usable_ones_stay() {
    let Some(program) = program("dig", &["-v"]) else { return };
    let zone = "www HTTPS 1 . alpn=h3 no-default-alpn\nwww HTTPS 2 . alpn=h2\nwww HTTPS 3 cdn alpn=h2\n";
    let Some(knot) = NameServer::knot(zone) else { return };
    assert_eq!(dig(&program, &gate(&knot), "www.example", "HTTPS"), ["2 . alpn=\"h2\""]);
}

#[test]
fn hints_that_are_taken_out_are_on_record() {
    let Some(bind) = NameServer::authority(Software::Bind, &[("example", &zone())], None) else { return };
    let gate = gate(&bind);
    assert_eq!(code(&gate.lookup("private.example", HTTPS)), ResponseCode::NoError);
    let record = gate.decision("private.example");
    let withheld = json!({"10.0.0.1": "address-private", "192.168.7.7": "address-private", "fd00::1": "address-private"});
    assert_eq!((&record["withheld"], &record["type"]), (&withheld, &json!("HTTPS")), "{record}");
}

#[test]
fn an_alias_before_a_service_goes_by_the_asked_name() {
    let Some(program) = program("dig", &["-v"]) else { return };
    let zone = "www CNAME edge\nedge HTTPS 1 . alpn=h2,h3 ipv4hint=9.9.9.2,10.0.0.1\n";
    let Some(bind) = NameServer::authority(Software::Bind, &[("example", zone)], None) else { return };
    let told = dig(&program, &gate(&bind), "www.example", "HTTPS");
    assert_eq!(told, ["edge.example.", "1 . alpn=\"h2\" ipv4hint=9.9.9.2"]);
}

#[test]
fn a_resolver_that_designates_another_is_not_heard() {
    let designated = "_dns SVCB 1 doh.evil.example. alpn=h2,dot dohpath=/q{?dns} ipv4hint=9.9.9.66\n";
    let zones = [("resolver.arpa", designated), ("example", "www A 9.9.9.1\n")];
    let Some(bind) = NameServer::authority(Software::Bind, &zones, None) else { return };
    let policy = "isolation_mode: allow_internet_outbound\n";
    let gate = Setup::new(policy).set("dns.upstreams", [bind.address().to_string()]).start();
    for record_type in [SVCB, HTTPS, 1, 28, 16] {
        for name in ["_dns.resolver.arpa", "resolver.arpa", "_8443._dns.resolver.arpa"] {
            let answer = gate.lookup(name, record_type);
            assert_eq!((code(&answer), answer.answers.len()), (ResponseCode::NoError, 0), "{name}");
        }
    }
    assert!(!gate.lookup("www.example", 1).answers.is_empty(), "others are asked for");
    assert_eq!(bind.asked(), ["www.example A"]);
}
