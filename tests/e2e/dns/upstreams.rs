//! Upstreams that fail or lie: the next one is asked, and the lie is not believed.

use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::Record;
use outgate_tests::lookup::{A, addresses, code};
use outgate_tests::upstream::{address, alias, bytes, reply, reply_from};
use outgate_tests::{Gate, Setup, Upstream, wait_until};
use serde_json::json;

use super::resolving;

const NAME: &str = "a.example";
const TRUTH: &str = "9.9.9.1";
const LIE: &str = "6.6.6.6";

/// How an upstream answers a query.
type Says = fn(&Message) -> Vec<Vec<u8>>;

fn truth() -> Vec<Record> {
    vec![address(NAME, 60, TRUTH)]
}

/// The lie, as a correct answer.
fn lie(query: &Message) -> Message {
    reply_from(&[address(NAME, 60, LIE)], query)
}

fn gate_with(upstreams: &[&Upstream]) -> Gate {
    let upstreams: Vec<_> = upstreams.iter().map(|upstream| upstream.address().to_string()).collect();
    Setup::new(&resolving(&[NAME])).set("dns.upstreams", upstreams).start()
}

fn with_another_id(query: &Message) -> Vec<Vec<u8>> {
    let mut reply = lie(query);
    reply.metadata.id ^= 1;
    vec![bytes(&reply)]
}

fn about_another_name(query: &Message) -> Vec<Vec<u8>> {
    let mut reply = lie(query);
    let mut other = query.queries[0].clone();
    other.set_name(hickory_proto::rr::Name::from_ascii("b.example.").unwrap());
    reply.queries = vec![other];
    vec![bytes(&reply)]
}

fn about_another_type(query: &Message) -> Vec<Vec<u8>> {
    let mut reply = lie(query);
    reply.queries[0].set_query_type(hickory_proto::rr::RecordType::AAAA);
    vec![bytes(&reply)]
}

fn without_a_question(query: &Message) -> Vec<Vec<u8>> {
    let mut reply = lie(query);
    reply.queries.clear();
    vec![bytes(&reply)]
}

fn as_a_query(query: &Message) -> Vec<Vec<u8>> {
    let mut reply = lie(query);
    reply.metadata.message_type = MessageType::Query;
    vec![bytes(&reply)]
}

fn with_a_circle(query: &Message) -> Vec<Vec<u8>> {
    let mut answer = reply(query, ResponseCode::NoError);
    answer.add_answer(alias(NAME, 60, "b.example"));
    answer.add_answer(alias("b.example", 60, NAME));
    vec![bytes(&answer)]
}

fn with_a_chain_without_end(query: &Message) -> Vec<Vec<u8>> {
    let mut answer = reply(query, ResponseCode::NoError);
    answer.add_answer(alias(NAME, 60, "n0.example"));
    answer.add_answers((0..60).map(|n| alias(&format!("n{n}.example"), 60, &format!("n{}.example", n + 1))));
    answer.add_answer(address("n60.example", 60, LIE));
    vec![bytes(&answer)]
}

fn with_rubbish(query: &Message) -> Vec<Vec<u8>> {
    let [high, low] = query.metadata.id.to_be_bytes();
    vec![vec![high, low, 0x81, 0x80, 0, 1, 0xff, 0xff, 0xc0, 0x0c, 0xc0]]
}

#[test]
fn who_fails_or_lies_is_followed_by_the_next() {
    let liars: [(&str, Says); 11] = [
        ("another id", with_another_id),
        ("another name", about_another_name),
        ("another type", about_another_type),
        ("no question", without_a_question),
        ("a query", as_a_query),
        ("a circle", with_a_circle),
        ("a chain without end", with_a_chain_without_end),
        ("rubbish", with_rubbish),
        ("SERVFAIL", |query| vec![bytes(&reply(query, ResponseCode::ServFail))]),
        ("REFUSED", |query| vec![bytes(&reply(query, ResponseCode::Refused))]),
        ("silence", |_| vec![]),
    ];
    // Most of them take the gate its patience: all at once.
    std::thread::scope(|scope| {
        for (what, says) in liars {
            scope.spawn(move || {
                let (liar, honest) = (Upstream::start(says), Upstream::knowing(truth()));
                let gate = gate_with(&[&liar, &honest]);
                assert_eq!(addresses(&gate.lookup(NAME, A)), [TRUTH], "{what}");
                assert!(!liar.packets().is_empty(), "{what}");
                let upstream = honest.address().to_string();
                assert_eq!(gate.decision(NAME)["upstream"], upstream, "{what}");
            });
        }
    });
}

#[test]
fn who_is_gone_is_followed_by_the_next() {
    let (gone, honest) = (Upstream::knowing(truth()), Upstream::knowing(truth()));
    let gate = gate_with(&[&gone, &honest]);
    drop(gone);
    assert_eq!(addresses(&gate.lookup(NAME, A)), [TRUTH]);
}

#[test]
fn a_forged_answer_before_the_true_one_is_passed_over() {
    let racer = Upstream::start(|query| {
        let mut answers = [with_another_id, about_another_name].map(|forge| forge(query)).concat();
        answers.push(bytes(&reply_from(&truth(), query)));
        answers
    });
    let gate = gate_with(&[&racer]);
    assert_eq!(addresses(&gate.lookup(NAME, A)), [TRUTH]);
}

#[test]
fn an_answer_that_is_slow_comes_all_the_same() {
    let slow = Upstream::start(|query| {
        std::thread::sleep(Duration::from_millis(300));
        vec![bytes(&reply_from(&truth(), query))]
    });
    let gate = gate_with(&[&slow]);
    assert_eq!(addresses(&gate.lookup(NAME, A)), [TRUTH]);
    assert!(gate.decision(NAME)["duration_us"].as_u64().unwrap() >= 300_000);
}

#[test]
fn when_nobody_answers_the_client_hears_servfail_and_the_failure_is_remembered() {
    let refusing = Upstream::start(|query| vec![bytes(&reply(query, ResponseCode::Refused))]);
    let gate = gate_with(&[&refusing]);
    assert_eq!(code(&gate.lookup(NAME, A)), ResponseCode::ServFail);
    let asked = refusing.packets().len();
    assert_eq!(code(&gate.lookup(NAME, A)), ResponseCode::ServFail);
    assert_eq!(refusing.packets().len(), asked);
    let records = gate.records_until(2, |r| r["host"] == NAME);
    assert_eq!((&records[0]["rcode"], &records[0]["addresses"]), (&json!("SERVFAIL"), &json!([])));
}

#[test]
fn every_question_upstream_has_an_id_and_a_port_of_its_own() {
    let upstream = Upstream::start(|query| vec![bytes(&reply(query, ResponseCode::NXDomain))]);
    let policy = resolving(&["*.example"]);
    let gate = Setup::new(&policy).set("dns.upstreams", [upstream.address().to_string()]).start();
    for number in 0..40 {
        let _ = gate.lookup(&format!("n{number}.example"), A);
    }
    let ids: std::collections::HashSet<_> =
        upstream.packets().iter().map(|packet| [packet[0], packet[1]]).collect();
    assert!(ids.len() >= 38, "{} ids for 40 questions", ids.len());
    let ports: std::collections::HashSet<_> = upstream.ports().into_iter().collect();
    assert!(ports.len() >= 30, "{} ports for 40 questions", ports.len());
}

#[test]
fn sockets_that_asked_upstreams_are_closed_when_nobody_asks_any_more() {
    let upstream = Upstream::start(|query| vec![bytes(&reply(query, ResponseCode::NXDomain))]);
    let gate =
        Setup::new(&resolving(&["*.example"])).set("dns.upstreams", [upstream.address().to_string()]).start();
    let with_sockets = (0..8).map(|number| {
        let _ = gate.lookup(&format!("n{number}.example"), A);
        gate.open_files()
    });
    let most = with_sockets.max().unwrap();
    wait_until("the sockets to be closed", || gate.open_files() < most);
}
