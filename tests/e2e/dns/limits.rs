//! Limits: how often a client may ask, and how much it may say below a wildcard.

use std::time::Instant;

use hickory_proto::op::{Message, ResponseCode};
use outgate_tests::lookup::{A, Datagrams, addresses, code, extended_error, plain_query, query};
use outgate_tests::upstream::{address, asked_name, bytes, reply_from};
use outgate_tests::{Upstream, wait_until};

use super::{asking, resolving};

/// Knows every name.
fn upstream() -> Upstream {
    Upstream::start(|query| vec![bytes(&reply_from(&[address(&asked_name(query), 60, "9.9.9.1")], query))])
}

#[test]
fn a_client_that_asks_too_often_is_held_and_no_other() {
    let upstream = upstream();
    let gate = asking(&upstream, resolving(&["a.example"])).set("dns.queries_per_second", 2).start();
    let (greedy, modest) = (Datagrams::to(gate.dns()), Datagrams::from("127.0.0.2", gate.dns()));
    let since = Instant::now();
    let question = plain_query(1, "denied.example", A);
    (0..100).for_each(|_| greedy.send(&question));
    assert_eq!(gate.reason("lookup-rate")["client"], "127.0.0.1");
    wait_until("the rest to be dropped", || {
        let admitted = 4.0 + 2.0 * since.elapsed().as_secs_f64();
        gate.metric("outgate_dns_dropped_total", "lookup-rate") >= 100.0 - admitted
    });
    let answers: Vec<_> = std::iter::from_fn(|| greedy.received()).collect();
    assert!(answers.iter().all(|answer| answer.len() <= question.len()), "nobody is worth flooding with it");
    let (over_tcp, in_full): (Vec<Message>, Vec<Message>) = answers
        .iter()
        .map(|bytes| Message::from_vec(bytes).unwrap())
        .partition(|answer| answer.metadata.truncation);
    let admitted = 3.0 + 2.0 * since.elapsed().as_secs_f64();
    assert!(in_full.len() as f64 <= admitted, "{} answers", in_full.len());
    assert!(over_tcp.len() <= 50, "{} told to come over TCP", over_tcp.len());
    assert_eq!(addresses(&modest.ask(&query(1, "a.example", A))), ["9.9.9.1"]);
}

#[test]
fn a_client_on_a_stream_is_made_to_wait_and_answered() {
    let upstream = upstream();
    let gate = asking(&upstream, resolving(&["a.example"])).set("dns.queries_per_second", 10).start();
    let since = Instant::now();
    let queries: Vec<_> = (0..15).map(|id| query(id, "a.example", A)).collect();
    let answers = outgate_tests::lookup::over_tcp(gate.dns(), &queries);
    assert!(answers.iter().all(|answer| addresses(answer) == ["9.9.9.1"]));
    assert!(since.elapsed().as_millis() >= 350, "{:?}", since.elapsed());
}

#[test]
fn new_names_below_a_wildcard_are_as_many_as_the_configuration_says() {
    let upstream = upstream();
    let gate =
        asking(&upstream, resolving(&["*.data.example"])).set("dns.budget.names_per_minute", 20).start();
    let codes: Vec<_> = (0..60).map(|n| code(&gate.lookup(&format!("n{n}.data.example"), A))).collect();
    assert!(codes[..20].iter().all(|code| *code == ResponseCode::NoError), "{codes:?}");
    assert!(codes[20..].iter().all(|code| *code == ResponseCode::Refused), "{codes:?}");
    assert_eq!(upstream.packets().len(), 20);
    assert_eq!(addresses(&gate.lookup("n3.data.example", A)), ["9.9.9.1"], "what is known stays");
    assert_eq!(extended_error(&gate.lookup("n99.data.example", A)).unwrap().0, 15);
    let record = gate.reason("lookup-names");
    assert_eq!((&record["verdict"], &record["host"]), (&"deny".into(), &"n20.data.example".into()));
    let other = Datagrams::from("127.0.0.2", gate.dns());
    assert_eq!(
        addresses(&other.ask(&query(1, "n70.data.example", A))),
        ["9.9.9.1"],
        "another client's budget"
    );
}

/// Hexadecimal digits that follow from a number, as a tunnel's labels look.
fn digits(number: u64) -> String {
    let word = |round: u64| (number * 8 + round).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    (0..3).map(|round| format!("{:016x}", word(round).wrapping_mul(0xbf58_476d_1ce4_e5b9))).collect()
}

#[test]
fn a_tunnel_below_a_wildcard_runs_dry_under_the_defaults() {
    let upstream = upstream();
    let gate = asking(&upstream, resolving(&["*.data.example"])).start();
    let through = (0..500)
        .filter(|n| code(&gate.lookup(&format!("{}.data.example", digits(*n)), A)) == ResponseCode::NoError)
        .count();
    assert!((10..=120).contains(&through), "{through} names got through");
    assert_eq!(upstream.packets().len(), through);
    let _ = gate.reason("lookup-entropy");
}

#[test]
fn one_name_that_is_too_long_for_a_name_is_refused_at_once() {
    let upstream = upstream();
    let gate = asking(&upstream, resolving(&["*.data.example"])).start();
    let name = format!("{}.{}.{}.data.example", "a".repeat(60), "b".repeat(60), "c".repeat(60));
    assert_eq!(code(&gate.lookup(&name, A)), ResponseCode::Refused);
    assert_eq!(gate.decision(&name)["reason"], "lookup-length");
    assert_eq!(upstream.packets().len(), 0);
}

/// Names that package managers, container tools and model hubs ask for below one parent.
const ORDINARY: [(&str, &str); 8] = [
    ("pythonhosted.org", "files packages docs"),
    ("anaconda.org", "conda binstar-cio-packages-prod repo static beta docs api"),
    ("anaconda.com", "repo www docs legacy pkgs-main cdn"),
    ("docker.io", "registry-1 auth index www hub cdn production login"),
    ("docker.com", "production.cloudflare hub auth download desktop www docs"),
    (
        "hf.co",
        "cdn-lfs cdn-lfs-us-1 cdn-lfs-eu-1 cas-bridge.xethub cas-server.xethub transfer.xethub us.gcp.cdn",
    ),
    ("github.com", "codeload api raw objects gist uploads collector lfs"),
    ("blob.core.windows.net", ""),
];

#[test]
fn two_hundred_names_of_package_managers_and_model_hubs_meet_no_limit() {
    let mut names: Vec<String> = ORDINARY
        .iter()
        .flat_map(|(parent, below)| below.split_whitespace().map(move |label| format!("{label}.{parent}")))
        .collect();
    for number in 0..100 {
        names.push(format!("trainingdata{number:03}.blob.core.windows.net"));
    }
    for region in ["eastus", "westeurope", "swedencentral", "uksouth", "japaneast", "westus2"] {
        for kind in
            ["packages", "layers", "models", "artifacts", "wheels", "conda", "logs", "cache", "images"]
        {
            names.push(format!("{kind}-{region}.docker.io"));
        }
    }
    assert!(names.len() >= 200, "{}", names.len());
    let wildcards: Vec<String> = ORDINARY.iter().map(|(parent, _)| format!("*.{parent}")).collect();
    let wildcards: Vec<&str> = wildcards.iter().map(String::as_str).collect();
    let upstream = upstream();
    let gate = asking(&upstream, resolving(&wildcards)).start();
    for name in &names {
        let answer = gate.lookup(name, A);
        assert_eq!(addresses(&answer), ["9.9.9.1"], "{name}: {answer:?}");
    }
}
