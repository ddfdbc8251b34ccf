//! Answers: what a client learns of an allowed name, from whom, and for how long.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use hickory_proto::op::ResponseCode;
use outgate_tests::lookup::{A, AAAA, Datagrams, addresses, code, extended_error, query};
use outgate_tests::origin::greet;
use outgate_tests::policy::allow_one;
use outgate_tests::upstream::{address, alias, bytes, reply, reply_from};
use outgate_tests::{Setup, Upstream, World, wait_for};
use serde_json::json;

use super::{LAST, asking, assert_only_asked, resolving};

#[test]
fn an_allowed_name_resolves_once_and_then_comes_from_the_cache() {
    let upstream = Upstream::knowing([address("a.example", 60, "9.9.9.1"), address(LAST, 60, "9.9.9.9")]);
    let gate = asking(&upstream, resolving(&["a.example"])).start();
    for _ in 0..3 {
        let answer = gate.lookup("A.example", A);
        assert_eq!((code(&answer), addresses(&answer)), (ResponseCode::NoError, vec!["9.9.9.1".to_owned()]));
        assert_eq!(answer.queries[0].name().to_ascii(), "A.example.", "in the client's own letter case");
    }
    assert_eq!(addresses(&gate.lookup_over_tcp("a.example", A)), ["9.9.9.1"]);
    assert_only_asked(&gate, &upstream, &["a.example"]);
    let records = gate.records_until(4, |r| r["host"] == "a.example");
    let from: Vec<_> = records.iter().map(|r| r["answered_by"].as_str().unwrap()).collect();
    assert_eq!(from, ["upstream", "cache", "cache", "cache"]);
    for (key, value) in [
        ("kind", json!("dns")),
        ("type", json!("A")),
        ("rcode", json!("NOERROR")),
        ("verdict", json!("allow")),
        ("reason", json!("rule")),
        ("upstream", json!(upstream.address().to_string())),
        ("addresses", json!(["9.9.9.1"])),
    ] {
        assert_eq!(records[0][key], value, "{key} of {}", records[0]);
    }
    assert_eq!(records[0]["rule"]["name"], "rule-1");
}

#[test]
fn a_name_that_does_not_exist_is_remembered_too() {
    let upstream = Upstream::knowing([address("a.example", 60, "9.9.9.1"), address(LAST, 60, "9.9.9.9")]);
    let gate = asking(&upstream, resolving(&["a.example", "none.example"])).start();
    for _ in 0..3 {
        let answer = gate.lookup("none.example", A);
        assert_eq!((code(&answer), extended_error(&answer)), (ResponseCode::NXDomain, None));
        let empty = gate.lookup("a.example", AAAA);
        assert_eq!((code(&empty), empty.answers.len()), (ResponseCode::NoError, 0));
    }
    assert_only_asked(&gate, &upstream, &["none.example", "a.example"]);
}

#[test]
fn no_ttl_is_longer_than_the_configuration_lets_it_be() {
    let records = || {
        [
            alias("a.example", 604_800, "b.example"),
            address("b.example", 86_400, "9.9.9.1"),
            address("c.example", 7, "9.9.9.2"),
        ]
    };
    for (max_ttl, longest) in [(None, 60), (Some("10s"), 10)] {
        let upstream = Upstream::knowing(records());
        let mut setup = asking(&upstream, resolving(&["a.example", "c.example"]));
        if let Some(max_ttl) = max_ttl {
            setup = setup.set("dns.cache.max_ttl", max_ttl);
        }
        let gate = setup.start();
        for (name, most) in [("a.example", longest), ("c.example", 7)] {
            let answer = gate.lookup(name, A);
            assert!(!answer.answers.is_empty(), "{answer:?}");
            assert!(answer.answers.iter().all(|record| record.ttl <= most), "{name}: {answer:?}");
        }
    }
}

#[test]
fn a_private_address_is_withheld_unless_the_names_rule_says_private() {
    let upstream = Upstream::knowing([
        address("public.example", 60, "10.7.0.4"),
        address("private.example", 60, "10.7.0.4"),
        address("mixed.example", 60, "10.7.0.4"),
        address("mixed.example", 60, "9.9.9.3"),
        address("metadata.example", 60, "169.254.169.254"),
        alias("alias.example", 60, "inside.elsewhere.example"),
        address("inside.elsewhere.example", 60, "192.168.0.1"),
        address("six.example", 60, "fd00::1"),
    ]);
    let policy = resolving(&[
        "public.example",
        "mixed.example",
        "metadata.example",
        "alias.example",
        "six.example",
    ]) + "  - {name: inside, type: fqdn, destination: private.example, ports: [443], resolves_to: private}\n";
    let gate = asking(&upstream, policy).start();
    assert_eq!(addresses(&gate.lookup("private.example", A)), ["10.7.0.4"]);
    assert_eq!(addresses(&gate.lookup("mixed.example", A)), ["9.9.9.3"]);
    for (name, record_type, withheld) in [
        ("public.example", A, json!({"10.7.0.4": "address-private"})),
        ("metadata.example", A, json!({"169.254.169.254": "address-metadata"})),
        ("alias.example", A, json!({"192.168.0.1": "address-private"})),
        ("six.example", AAAA, json!({"fd00::1": "address-private"})),
    ] {
        let answer = gate.lookup(name, record_type);
        assert_eq!((code(&answer), addresses(&answer)), (ResponseCode::NoError, vec![]), "{name}");
        assert_eq!(extended_error(&answer).unwrap().0, 15, "{name}");
        let record = gate.decision(name);
        assert_eq!((&record["withheld"], &record["verdict"]), (&withheld, &json!("deny")), "{record}");
    }
    assert_eq!(gate.decision("mixed.example")["withheld"], json!({"10.7.0.4": "address-private"}));
}

#[test]
fn a_name_that_turns_private_from_one_answer_to_the_next_is_withheld() {
    let asked = AtomicUsize::new(0);
    let upstream = Upstream::start(move |query| {
        let first = asked.fetch_add(1, Ordering::SeqCst) == 0;
        let record = address("rebind.example", 0, if first { "9.9.9.1" } else { "127.0.0.1" });
        vec![bytes(&reply_from(&[record], query))]
    });
    let gate = asking(&upstream, resolving(&["rebind.example"])).start();
    assert_eq!(addresses(&gate.lookup("rebind.example", A)), ["9.9.9.1"]);
    let rebound = wait_for("the second answer", || {
        Some(gate.lookup("rebind.example", A)).filter(|answer| addresses(answer) != ["9.9.9.1"])
    });
    assert_eq!(addresses(&rebound), Vec::<String>::new());
    assert_eq!(gate.reason("address-loopback")["host"], "rebind.example");
}

#[test]
fn a_hundred_clients_with_one_question_are_one_question_upstream() {
    let open = Arc::new((Mutex::new(false), Condvar::new()));
    let opened = Arc::clone(&open);
    let upstream = Upstream::start(move |query| {
        drop(opened.1.wait_while(opened.0.lock().unwrap(), |open| !*open).unwrap());
        vec![bytes(&reply_from(&[address("busy.example", 60, "9.9.9.1")], query))]
    });
    let gate = asking(&upstream, resolving(&["busy.example"])).start();
    let clients: Vec<_> = (0..100).map(|_| Datagrams::to(gate.dns())).collect();
    clients.iter().for_each(|client| client.send(&query(client.port(), "busy.example", A)));
    wait_for("the question", || (!upstream.packets().is_empty()).then_some(()));
    *open.0.lock().unwrap() = true;
    open.1.notify_all();
    for client in &clients {
        let answer = hickory_proto::op::Message::from_vec(&client.receive()).unwrap();
        assert_eq!((answer.metadata.id, addresses(&answer)), (client.port(), vec!["9.9.9.1".to_owned()]));
    }
    assert_eq!(upstream.packets().len(), 1);
}

#[test]
fn an_expired_answer_serves_while_no_upstream_does_and_says_so() {
    let upstream = Upstream::knowing([address("a.example", 60, "9.9.9.1")]);
    let gate =
        asking(&upstream, resolving(&["a.example", "b.example"])).set("dns.cache.max_ttl", "1s").start();
    assert_eq!(addresses(&gate.lookup("a.example", A)), ["9.9.9.1"]);
    drop(upstream);
    let stale = wait_for("a stale answer", || {
        let answer = gate.lookup("a.example", A);
        assert_eq!(addresses(&answer), ["9.9.9.1"]);
        (extended_error(&answer).map(|(code, _)| code) == Some(3)).then_some(answer)
    });
    assert!(stale.answers.iter().all(|record| record.ttl <= 30), "{stale:?}");
    let record = gate.record("a stale answer", |r| r["answered_by"] == "stale");
    assert_eq!((&record["host"], &record["addresses"]), (&json!("a.example"), &json!(["9.9.9.1"])));
    // Of what was never known there is nothing to give.
    assert_eq!(code(&gate.lookup("b.example", A)), ResponseCode::ServFail);
}

#[test]
fn what_a_client_has_looked_up_is_dialled_without_another_question() {
    let world = World::new();
    let place = world.address_of("shared.example").to_string();
    let _origin = world.origin("shared.example", 7000, greet("hello"));
    let upstream = Upstream::knowing([address("shared.example", 60, &place)]);
    let policy = allow_one("shared.example", &[7000]);
    let gate = Setup::new(&policy).set("dns.upstreams", [upstream.address().to_string()]).start();
    assert_eq!(addresses(&gate.lookup("shared.example", A)), [place]);
    assert!(gate.lookup("shared.example", AAAA).answers.is_empty());
    assert_eq!(upstream.packets().len(), 2);
    assert_eq!(gate.tunnel("shared.example:7000").exactly(5), b"hello");
    assert_eq!(upstream.packets().len(), 2);
}

#[test]
fn fixed_answers_come_from_the_configuration_and_ask_nobody() {
    let upstream = Upstream::knowing([address(LAST, 60, "9.9.9.9"), address("fixed.example", 60, "9.9.9.1")]);
    let gate = asking(&upstream, resolving(&["fixed.example"]))
        .set("dns.hosts", json!({"fixed.example": ["9.9.9.77"], "denied.example": ["9.9.9.78"]}))
        .start();
    assert_eq!(addresses(&gate.lookup("fixed.example", A)), ["9.9.9.77"]);
    assert_eq!(code(&gate.lookup("denied.example", A)), ResponseCode::NXDomain, "fixed is not allowed");
    assert_only_asked(&gate, &upstream, &[]);
    assert_eq!(gate.decision("fixed.example")["answered_by"], "fixed");
}

#[test]
fn the_longest_zone_says_who_is_asked() {
    let other = Upstream::knowing([address(LAST, 60, "9.9.9.9"), address("x.example", 60, "9.9.9.1")]);
    let wide = Upstream::knowing([address("x.corp.example", 60, "9.9.9.2")]);
    let long = Upstream::knowing([address("x.deep.corp.example", 60, "9.9.9.3")]);
    let gate = asking(&other, resolving(&["*.example"]))
        .set(
            "dns.zones",
            json!({"corp.example": [wide.address().to_string()], "deep.corp.example": [long.address().to_string()]}),
        )
        .start();
    for (name, expected) in
        [("x.example", "9.9.9.1"), ("x.corp.example", "9.9.9.2"), ("x.deep.corp.example", "9.9.9.3")]
    {
        assert_eq!(addresses(&gate.lookup(name, A)), [expected], "{name}");
    }
    assert_eq!(
        (wide.asked(), long.asked()),
        (vec!["x.corp.example".to_owned()], vec!["x.deep.corp.example".to_owned()])
    );
    assert_only_asked(&gate, &other, &["x.example"]);
}

#[test]
fn records_that_nobody_asked_for_are_dropped() {
    let upstream = Upstream::start(|query| {
        let mut reply = reply(query, ResponseCode::NoError);
        reply.add_answer(address("a.example", 60, "9.9.9.1"));
        reply.add_answer(address("bank.example", 60, "6.6.6.6"));
        reply.add_additional(address("bank.example", 60, "6.6.6.6"));
        reply.add_authority(address("bank.example", 60, "6.6.6.6"));
        vec![bytes(&reply)]
    });
    let gate = asking(&upstream, resolving(&["a.example", "bank.example"])).start();
    let answer = gate.lookup("a.example", A);
    assert_eq!((addresses(&answer), answer.all_sections().count()), (vec!["9.9.9.1".to_owned()], 1));
}
