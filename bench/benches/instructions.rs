//! One hot function, called so often that its share of the set-up is nothing: what callgrind counts.
//!
//! `bench/instructions` runs it, once for each case, and compares the counts with the committed ones.
// It stops with the sentence of the place that noticed.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::print_stderr)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use jiff::Timestamp;
use outgate::head::{HeadScanner, RequestHead};
use outgate::hello;
use outgate::listener::Way;
use outgate::record::{Asked, Closed, Decided, EndedBy, Flow, Kind};
use outgate::session::{Session, SessionIds};
use outgate_bench::load::Asked as Said;
use outgate_bench::{Shape, Workload, request};
use outgate_rules::Protocol;
use outgate_rules::rule::Action;

/// Calls of the function. `bench/instructions` divides by it.
const CALLS: usize = 2000;
const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("decide-100") => decide(100),
        Some("decide-1000000") => decide(1_000_000),
        Some("hello") => {
            let hello = Said::new("host-042.example.com").hello;
            count(|_| drop(black_box(hello::parse(black_box(&hello)))));
        }
        Some("head") => {
            let head = Said::new("host-042.example.com").connect;
            count(|_| {
                let mut buffer = BytesMut::from(black_box(&head[..]));
                drop(black_box(RequestHead::take(&mut HeadScanner::default(), &mut buffer)));
            });
        }
        Some("record") => record(),
        Some(_) | None => eprintln!("cases: decide-100, decide-1000000, hello, head, record"),
    }
}

/// The part that is counted: callgrind is told of its name.
#[inline(never)]
fn count(mut call: impl FnMut(usize)) {
    (0..CALLS).for_each(&mut call);
}

fn decide(rules: usize) {
    let workload = Workload::new(Shape::Exact, Action::Allow, rules);
    count(|call| drop(black_box(workload.rules.decide(black_box(&request(&workload.queries[call])), NOW))));
}

/// Both records of a tunnel.
fn record() {
    let workload = Workload::new(Shape::Exact, Action::Allow, 100);
    let decision = |destination| workload.rules.decide(&request(destination), NOW);
    let allowed = workload.queries.iter().find(|destination| decision(destination).allows());
    let destination = allowed.expect("half of the queries are allowed");
    let decision = decision(destination);
    let flow = Flow {
        session: Session {
            id: SessionIds::new(7).next(),
            client: ([10, 1, 0, 4], 40_000).into(),
            listener: Way::Proxy,
            original: None,
            accepted: Instant::now(),
        },
        kind: Kind::Connect,
        exchange: None,
        asked: Asked::Destination(destination.clone()),
        protocol: Protocol::Tcp,
        request: None,
        hello: None,
    };
    let decided = Decided::by_rules(&flow, &decision, NOW);
    let closed = Closed {
        flow: &flow,
        time: NOW,
        verdict: decided.verdict(),
        reason: decided.reason,
        rule: decided.rule,
        enforcement: decided.enforcement,
        revision: decided.revision,
        dialled: Some(([93, 184, 216, 34], 443).into()),
        bytes_up: 517,
        bytes_down: 1_234_567,
        duration: Duration::from_millis(1234),
        ended_by: EndedBy::Client,
        status: None,
    };
    let mut line = Vec::with_capacity(4096);
    count(|_| {
        line.clear();
        black_box(&decided).write_line(&mut line).expect("a record");
        black_box(&closed).write_line(&mut line).expect("a record");
        black_box(&line);
    });
}
