//! The cache: asked for again before it is too late, kept for a while when nobody answers, and never larger than
//! it may be.

use hickory_proto::op::ResponseCode;
use outgate_tests::lookup::{
    A, AAAA, Datagrams, addresses, code, extended_error, message, opt, query, question,
};
use outgate_tests::upstream::{address, asked_name, bytes, reply_from};
use outgate_tests::{Gate, Setup, Upstream, wait_for, wait_until};
use serde_json::{Value, json};

use super::{asking, resolving};

/// Knows every name.
fn upstream() -> Upstream {
    Upstream::start(|query| vec![bytes(&reply_from(&[address(&asked_name(query), 60, "9.9.9.1")], query))])
}

/// A gate whose clients may ask for as many names as they like.
fn unhurried(upstream: &Upstream) -> Setup {
    asking(upstream, resolving(&["*.example"]))
        .set("dns.queries_per_second", 1_000_000)
        .set("dns.budget", json!({"names_per_minute": 1_000_000, "entropy_per_minute": 100_000_000}))
}

/// A query unlike any other, so that it is the cache that answers: the very packet that was answered in the same
/// second is answered without a look into it.
fn packet_of_its_own(name: &str, number: usize) -> Vec<u8> {
    let opt = opt(1232 + u16::try_from(number).unwrap(), &[]);
    message(7, 0x0100, [1, 0, 0, 1], &[&question(name, A), &opt])
}

fn ask_for(client: &Datagrams, names: impl Iterator<Item = usize>) {
    for number in names {
        let answer = client.ask(&query(7, &format!("n{number}.example"), A));
        assert_eq!(addresses(&answer), ["9.9.9.1"], "{number}: {answer:?}");
    }
}

#[test]
fn a_hot_name_is_asked_for_again_before_it_expires_and_nobody_waits() {
    let upstream = upstream();
    let gate = asking(&upstream, resolving(&["hot.example", "cold.example"]))
        .set("dns.cache.max_ttl", "10s")
        .start();
    assert_eq!(addresses(&gate.lookup("cold.example", A)), ["9.9.9.1"]);
    let client = Datagrams::to(gate.dns());
    let mut ttls = Vec::new();
    wait_until("the name to be asked for again", || {
        let answer = client.ask(&query(1, "hot.example", A));
        assert_eq!(addresses(&answer), ["9.9.9.1"]);
        ttls.push(answer.answers[0].ttl);
        upstream.asked().iter().filter(|name| *name == "hot.example").count() == 2
    });
    // The old answer still held when the new one was fetched.
    assert!(ttls.iter().all(|ttl| (1..=10).contains(ttl)), "{ttls:?}");
    wait_until("the new answer", || client.ask(&query(2, "hot.example", A)).answers[0].ttl >= 9);
    assert_eq!(
        upstream.asked(),
        ["cold.example", "hot.example", "hot.example"],
        "what nobody asks for is let go"
    );
    let records = gate.records_until(ttls.len() + 1, |r| r["host"] == "hot.example");
    let waited = records.iter().filter(|r| r["answered_by"] == "upstream").count();
    assert_eq!(waited, 1, "only the first client waited");
}

#[test]
fn an_expired_answer_is_kept_for_as_long_as_the_configuration_says_and_no_longer() {
    let upstream = upstream();
    let cache = json!({"max_ttl": "1s", "stale": "2s"});
    let gate = asking(&upstream, resolving(&["a.example"])).set("dns.cache", cache).start();
    assert_eq!(addresses(&gate.lookup("a.example", A)), ["9.9.9.1"]);
    drop(upstream);
    let stale = wait_for("a stale answer", || {
        Some(gate.lookup("a.example", A))
            .filter(|answer| extended_error(answer).is_some_and(|(code, _)| code == 3))
    });
    assert_eq!(addresses(&stale), ["9.9.9.1"]);
    wait_until("it to be gone", || code(&gate.lookup("a.example", A)) == ResponseCode::ServFail);
    assert_eq!(gate.record("a failure", |r| r["rcode"] == "SERVFAIL")["addresses"], json!([]));
}

#[test]
fn a_stale_answer_is_replaced_as_soon_as_somebody_answers_again() {
    let answers = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&answers);
    let upstream = Upstream::start(move |query| {
        let says = |place| vec![bytes(&reply_from(&[address("a.example", 60, place)], query))];
        match counted.load(std::sync::atomic::Ordering::SeqCst) {
            0 => says("9.9.9.1"),
            1 => vec![bytes(&outgate_tests::upstream::reply(query, ResponseCode::ServFail))],
            _ => says("9.9.9.2"),
        }
    });
    let gate = asking(&upstream, resolving(&["a.example"])).set("dns.cache.max_ttl", "1s").start();
    let turn = |phase| answers.store(phase, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(addresses(&gate.lookup("a.example", A)), ["9.9.9.1"]);
    turn(1);
    wait_until("a stale answer", || extended_error(&gate.lookup("a.example", A)).is_some());
    turn(2);
    wait_until("the new answer", || addresses(&gate.lookup("a.example", A)) == ["9.9.9.2"]);
    assert_eq!(extended_error(&gate.lookup("a.example", A)), None);
}

#[test]
fn more_names_than_the_cache_has_entries_take_no_more_memory() {
    let upstream = upstream();
    let gate = unhurried(&upstream).set("dns.cache.entries", 500).start();
    let client = Datagrams::to(gate.dns());
    ask_for(&client, 0..1000);
    let before = gate.memory();
    ask_for(&client, 1000..6000);
    let after = gate.memory();
    // Without a bound, five thousand entries and what is noted beside them would take some megabytes.
    assert!(after < before + (4 << 20), "{before} bytes before and {after} after");
    let asked = upstream.packets().len();
    ask_for(&client, 5990..6000);
    assert_eq!(upstream.packets().len(), asked, "the latest are kept");
    ask_for(&client, 0..100);
    assert_eq!(upstream.packets().len(), asked + 100, "the first have been let go");
}

#[test]
fn what_is_used_outlives_what_is_not() {
    let upstream = upstream();
    let gate = unhurried(&upstream).set("dns.cache.entries", 100).start();
    let client = Datagrams::to(gate.dns());
    for number in 0..1000 {
        ask_for(&client, number..number + 1);
        assert_eq!(addresses(&client.ask(&packet_of_its_own("used.example", number))), ["9.9.9.1"]);
    }
    assert_eq!(upstream.asked().iter().filter(|name| *name == "used.example").count(), 1);
}

#[test]
fn a_flood_of_names_that_do_not_exist_puts_no_answer_out() {
    let upstream = Upstream::knowing([address("real.example", 60, "9.9.9.1")]);
    let gate = unhurried(&upstream).set("dns.cache.entries", 200).start();
    let client = Datagrams::to(gate.dns());
    for number in 0..1000 {
        assert_eq!(code(&client.ask(&query(1, &format!("x{number}.example"), A))), ResponseCode::NXDomain);
        assert_eq!(addresses(&client.ask(&packet_of_its_own("real.example", number))), ["9.9.9.1"]);
    }
    assert_eq!(upstream.asked().iter().filter(|name| *name == "real.example").count(), 1);
}

#[test]
fn each_type_of_a_name_is_known_by_itself() {
    let upstream =
        Upstream::knowing([address("a.example", 60, "9.9.9.1"), address("a.example", 60, "2620:fe::9")]);
    let gate = asking(&upstream, resolving(&["a.example"])).start();
    for _ in 0..3 {
        assert_eq!(addresses(&gate.lookup("a.example", A)), ["9.9.9.1"]);
        assert_eq!(addresses(&gate.lookup("a.example", AAAA)), ["2620:fe::9"]);
        assert!(gate.lookup("a.example", 65).answers.is_empty());
    }
    assert_eq!(upstream.packets().len(), 3);
}

/// What matters of an answer, in order.
fn told(gate: &Gate, name: &str) -> Value {
    let answer = gate.lookup(name, A);
    let records: Vec<String> =
        answer.answers.iter().map(|record| format!("{} {}", record.name, record.data)).collect();
    json!({"code": code(&answer).low(), "records": records, "error": extended_error(&answer).map(|(code, _)| code)})
}

#[test]
fn two_gates_with_one_policy_tell_the_same() {
    let records = [
        outgate_tests::upstream::alias("a.example", 60, "b.example"),
        address("b.example", 60, "9.9.9.3"),
        address("b.example", 60, "9.9.9.1"),
        address("b.example", 60, "10.0.0.1"),
        address("b.example", 60, "9.9.9.2"),
        address("private.example", 60, "10.0.0.1"),
    ];
    let upstream = Upstream::knowing(records);
    let policy = resolving(&["a.example", "private.example", "none.example"]);
    let (one, other) = (asking(&upstream, &policy).start(), asking(&upstream, &policy).start());
    for _ in 0..2 {
        for name in ["a.example", "private.example", "none.example", "denied.example", "example", "localhost"]
        {
            assert_eq!(told(&one, name), told(&other, name), "{name}");
        }
    }
    assert_eq!(upstream.packets().len(), 6, "each asked for itself, and once");
}

#[test]
fn a_gate_behind_a_gate_adds_its_own_no_to_the_others() {
    let upstream = Upstream::knowing(
        ["both", "hub", "spoke"].map(|name| address(&format!("{name}.example"), 60, "9.9.9.1")),
    );
    let hub = asking(&upstream, resolving(&["both.example", "hub.example"])).start();
    let spoke = Setup::new(&resolving(&["both.example", "spoke.example"]))
        .set("dns.upstreams", [hub.dns().to_string()])
        .start();
    assert_eq!(addresses(&spoke.lookup("both.example", A)), ["9.9.9.1"]);
    for name in ["hub.example", "spoke.example"] {
        assert_eq!(code(&spoke.lookup(name, A)), ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(upstream.asked(), ["both.example"]);
    assert_eq!(hub.decision("spoke.example")["verdict"], "deny");
    assert!(!hub.records().iter().any(|r| r["host"] == "hub.example"), "the spoke denied that by itself");
}
