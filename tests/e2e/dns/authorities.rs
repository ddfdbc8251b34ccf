//! Names as BIND, Knot and NSD serve them, asked directly and through unbound: long chains, many addresses,
//! private addresses in every disguise.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use outgate_tests::authority::{NameServer, Software};
use outgate_tests::lookup::{A, AAAA, Datagrams, addresses, code, extended_error, plain_query};
use outgate_tests::{Gate, Setup};
use serde_json::{Value, json};

use super::resolving;

const NOTHING: [&str; 0] = [];

/// A chain of so many links from `name`, and an address at its end.
fn chain(name: &str, links: usize) -> String {
    let link = |number: usize| if number == 0 { name.to_owned() } else { format!("{name}-{number}") };
    let aliases = (0..links).map(|number| format!("{} CNAME {}\n", link(number), link(number + 1)));
    aliases.collect::<String>() + &format!("{} A 9.9.9.11\n", link(links))
}

/// A name with so many public addresses.
fn crowd(name: &str, count: usize) -> String {
    (1..=count).map(|number| format!("{name} A 9.9.8.{number}\n")).collect()
}

fn zone() -> String {
    let by_hand = "
        public A 9.9.9.1
        private A 10.7.0.4
        mixed A 10.7.0.4
        mixed A 9.9.9.2
        mixed A 127.0.0.1
        mixed A 169.254.169.254
        shared A 100.64.0.1
        none A 0.0.0.0
        cast A 224.0.0.251
        azure A 168.63.129.16
        inside CNAME private
        mapped AAAA ::ffff:127.0.0.1
        mapped AAAA ::ffff:10.0.0.1
        nat64 AAAA 64:ff9b::7f00:1
        nat64 AAAA 64:ff9b::a00:1
        nat64 AAAA 64:ff9b::909:909
        sixtofour AAAA 2002:7f00:1::1
        teredo AAAA 2001:0:909:909::f5ff:fffe
        local AAAA fe80::1
        unique AAAA fd00::1
        unique AAAA 2620:fe::9
        dangling CNAME nowhere
        away CNAME www.elsewhere.test.
        self CNAME self
        left CNAME right
        right CNAME left
        *.below A 9.9.9.5
        child NS ns.child
        ns.child A 192.0.2.1
    ";
    let by_hand: String = by_hand.lines().map(|line| format!("{}\n", line.trim())).collect();
    [
        by_hand,
        chain("eleven", 11),
        chain("twelve", 12),
        crowd("sixty", 60),
        crowd("crowd", 120),
        crowd("mob", 200),
    ]
    .concat()
}

fn gate(upstream: &NameServer) -> Gate {
    let setup = Setup::new(&resolving(&["*.example"])).set("dns.upstreams", [upstream.address().to_string()]);
    setup.set("dns.budget.names_per_minute", 1000).start()
}

/// What a client is to hear of a name, whoever serves it.
const TOLD: [(&str, u16, ResponseCode, &[&str]); 21] = [
    ("public", A, ResponseCode::NoError, &["9.9.9.1"]),
    ("public", AAAA, ResponseCode::NoError, &NOTHING),
    ("missing", A, ResponseCode::NXDomain, &NOTHING),
    ("eleven", A, ResponseCode::NoError, &["9.9.9.11"]),
    ("twelve", A, ResponseCode::ServFail, &NOTHING),
    ("self", A, ResponseCode::ServFail, &NOTHING),
    ("left", A, ResponseCode::ServFail, &NOTHING),
    ("dangling", A, ResponseCode::NXDomain, &NOTHING),
    ("a.below", A, ResponseCode::NoError, &["9.9.9.5"]),
    ("private", A, ResponseCode::NoError, &NOTHING),
    ("mixed", A, ResponseCode::NoError, &["9.9.9.2"]),
    ("shared", A, ResponseCode::NoError, &NOTHING),
    ("none", A, ResponseCode::NoError, &NOTHING),
    ("cast", A, ResponseCode::NoError, &NOTHING),
    ("azure", A, ResponseCode::NoError, &NOTHING),
    ("inside", A, ResponseCode::NoError, &NOTHING),
    ("mapped", AAAA, ResponseCode::NoError, &NOTHING),
    ("nat64", AAAA, ResponseCode::NoError, &["64:ff9b::909:909"]),
    ("sixtofour", AAAA, ResponseCode::NoError, &NOTHING),
    ("teredo", AAAA, ResponseCode::NoError, &NOTHING),
    ("unique", AAAA, ResponseCode::NoError, &["2620:fe::9"]),
];

fn assert_told(gate: &Gate, who: &str) {
    for (name, record_type, expected, told) in TOLD {
        let answer = gate.lookup(&format!("{name}.example"), record_type);
        assert_eq!(
            (code(&answer), addresses(&answer)),
            (expected, owned(told)),
            "{name} of {who}: {answer:?}"
        );
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn every_authority_is_read_alike_directly_and_through_unbound() {
    std::thread::scope(|scope| {
        for software in [Software::Bind, Software::Knot, Software::Nsd] {
            scope.spawn(move || {
                let Some(authority) = NameServer::authority(software, &[("example", &zone())], None) else {
                    return;
                };
                assert_told(&gate(&authority), &format!("{software:?}"));
                let Some(unbound) = NameServer::unbound(&authority) else { return };
                assert_told(&gate(&unbound), &format!("{software:?} through unbound"));
            });
        }
    });
}

#[test]
fn a_chain_has_its_links_in_order_and_its_own_letter_case_is_gone() {
    let zone = "Www CNAME Edge\nEdge CNAME ORIGIN\nOrigin A 9.9.9.1\n";
    let Some(bind) = NameServer::authority(Software::Bind, &[("example", zone)], None) else { return };
    let answer = gate(&bind).lookup("www.example", A);
    let links: Vec<_> =
        answer.answers.iter().map(|record| format!("{} {}", record.name, record.record_type())).collect();
    assert_eq!(links, ["www.example. CNAME", "edge.example. CNAME", "origin.example. A"]);
}

#[test]
fn what_leads_out_of_all_that_the_upstream_knows_is_a_failure() {
    let Some(nsd) = NameServer::authority(Software::Nsd, &[("example", &zone())], None) else { return };
    let gate = gate(&nsd);
    for name in ["away.example", "www.child.example"] {
        let answer = gate.lookup(name, A);
        assert_eq!((code(&answer), addresses(&answer)), (ResponseCode::ServFail, owned(&NOTHING)), "{name}");
    }
}

#[test]
fn every_withheld_address_is_on_record_with_what_it_is() {
    let Some(bind) = NameServer::authority(Software::Bind, &[("example", &zone())], None) else { return };
    let gate = gate(&bind);
    for (name, record_type, withheld) in [
        (
            "mixed",
            A,
            json!({"10.7.0.4": "address-private", "127.0.0.1": "address-loopback", "169.254.169.254": "address-metadata"}),
        ),
        ("shared", A, json!({"100.64.0.1": "address-private"})),
        ("none", A, json!({"0.0.0.0": "address-unspecified"})),
        ("cast", A, json!({"224.0.0.251": "address-multicast"})),
        ("azure", A, json!({"168.63.129.16": "address-metadata"})),
        (
            "mapped",
            AAAA,
            json!({"::ffff:127.0.0.1": "address-loopback", "::ffff:10.0.0.1": "address-private"}),
        ),
        ("nat64", AAAA, json!({"64:ff9b::7f00:1": "address-loopback", "64:ff9b::a00:1": "address-private"})),
        ("sixtofour", AAAA, json!({"2002:7f00:1::1": "address-loopback"})),
        ("teredo", AAAA, json!({"2001:0:909:909::f5ff:fffe": "address-private"})),
        ("local", AAAA, json!({"fe80::1": "address-link-local"})),
        ("unique", AAAA, json!({"fd00::1": "address-private"})),
    ] {
        let host = format!("{name}.example");
        let _ = gate.lookup(&host, record_type);
        assert_eq!(gate.decision(&host)["withheld"], withheld, "{name}");
    }
}

#[test]
fn a_rule_that_says_private_takes_private_addresses_and_no_public_one() {
    let Some(knot) = NameServer::authority(Software::Knot, &[("example", &zone())], None) else { return };
    let rule = |name: &str, reach: &str| {
        format!(
            "  - {{name: {name}, type: fqdn, destination: {name}.example, ports: [443], resolves_to: {reach}}}\n"
        )
    };
    let policy = String::from("outbound_rules:\n")
        + &rule("mixed", "private")
        + &rule("mapped", "private")
        + &rule("inside", "[10.7.0.0/16]")
        + &rule("private", "[10.8.0.0/16]")
        + &rule("azure", "[168.63.129.16/32]");
    let gate = Setup::new(&policy).set("dns.upstreams", [knot.address().to_string()]).start();
    for (name, record_type, told) in [
        ("mixed", A, &["10.7.0.4"][..]),
        ("mapped", AAAA, &["::ffff:10.0.0.1"]),
        ("inside", A, &["10.7.0.4"]),
        ("private", A, &[]),
        ("azure", A, &["168.63.129.16"]),
    ] {
        let answer = gate.lookup(&format!("{name}.example"), record_type);
        assert_eq!(addresses(&answer), owned(told), "{name}: {answer:?}");
    }
    let withheld: Value = gate.decision("mixed.example")["withheld"].clone();
    assert!(withheld.get("9.9.9.2").is_some() && withheld.get("10.7.0.4").is_none(), "{withheld}");
}

#[test]
fn sixty_addresses_are_cut_off_for_a_small_datagram_and_whole_over_tcp() {
    let Some(bind) = NameServer::authority(Software::Bind, &[("example", &zone())], None) else { return };
    let gate = gate(&bind);
    let client = Datagrams::to(gate.dns());
    client.send(&plain_query(7, "sixty.example", A));
    let bytes = client.receive();
    assert!(bytes.len() <= 512, "{} bytes for a client without EDNS", bytes.len());
    let cut = hickory_proto::op::Message::from_vec(&bytes).unwrap();
    assert!(cut.metadata.truncation && code(&cut) == ResponseCode::NoError, "{cut:?}");
    assert_eq!(addresses(&gate.lookup_over_tcp("sixty.example", A)).len(), 60);
    let whole = gate.lookup("sixty.example", A);
    assert_eq!((whole.metadata.truncation, addresses(&whole).len()), (false, 60), "1232 bytes are enough");
}

#[test]
fn what_no_datagram_holds_is_fetched_over_tcp_and_bounded() {
    let Some(bind) = NameServer::authority(Software::Bind, &[("example", &zone())], None) else { return };
    let gate = gate(&bind);
    assert!(gate.lookup("crowd.example", A).metadata.truncation);
    assert_eq!(addresses(&gate.lookup_over_tcp("crowd.example", A)).len(), 120);
    assert_eq!(addresses(&gate.lookup_over_tcp("mob.example", A)).len(), 128, "of 200");
    let log = bind.log();
    let mut asked = log.lines().filter_map(|line| line.split_once("query: crowd.example IN A "));
    let flags = |(_, flags): (&str, &str)| flags.split(' ').next().unwrap_or_default().contains('T');
    assert_eq!((asked.next().map(flags), asked.next().map(flags)), (Some(false), Some(true)), "{log}");
}

#[test]
fn an_answer_that_is_withheld_says_so_and_holds_no_alias() {
    let Some(bind) = NameServer::authority(Software::Bind, &[("example", &zone())], None) else { return };
    let answer = gate(&bind).lookup("inside.example", A);
    assert!(!answer.answers.iter().any(|record| record.record_type() == RecordType::CNAME), "{answer:?}");
    assert_eq!(extended_error(&answer).unwrap().0, 15);
}
