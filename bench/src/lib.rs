//! Workloads of the benchmarks: rule sets, policies and names, the same on every run; and the parts of the
//! side-by-side runs: the clients, the origin, the proxies, and what is read of their use of the machine.

// A benchmark that cannot be set up stops with the sentence of the place that noticed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
// The clients of a benchmark stand outside: they dial the proxies.
#![allow(clippy::disallowed_methods)]

pub mod floor;
pub mod goals;
pub mod load;
pub mod namespace;
pub mod origin;
pub mod proxies;
pub mod report;
pub mod rows;
pub mod usage;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use jiff::Timestamp;
use outgate_rules::policy::{Compiled, Source, compile};
use outgate_rules::rule::{Action, Opens, Place, Protocols, Reach, SniCheck, Sources, Terms};
use outgate_rules::{
    Destination, DomainName, Pattern, Port, PortSet, Protocol, Request, Rule, RuleSet, RuleSetBuilder,
    Settings,
};

/// Queries of each benchmark of decisions.
pub const QUERIES: usize = 200_000;

/// How a rule speaks of its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// `NAME`: a query that hits asks for exactly this. Where rules are fewer than queries, names are asked for
    /// again.
    Exact,
    /// `*.NAME`: a query that hits asks for a name below, and no two for the same.
    Below,
}

/// Rules, and what is asked of them.
#[derive(Debug)]
pub struct Workload {
    /// The rules: each has one name and a text of its own.
    pub rules: Arc<RuleSet>,
    /// The queries in the order of asking: half of them hit, at random.
    pub queries: Vec<Destination>,
}

impl Workload {
    /// So many rules, each with this action.
    #[must_use]
    pub fn new(shape: Shape, action: Action, rules: usize) -> Self {
        let mut random = Random::new(1);
        let names = random.names(rules);
        let hits = QUERIES / 2;
        let mut asked: Vec<String> = match shape {
            Shape::Exact => names.iter().step_by((rules / hits).max(1)).cycle().take(hits).cloned().collect(),
            Shape::Below => (0..hits).map(|n| format!("h{n}.{}", names[random.below(rules)])).collect(),
        };
        // As deep as those that hit.
        asked.extend(random.names(QUERIES - hits).into_iter().map(|name| format!("miss.{name}")));
        random.shuffle(&mut asked);
        // Before the rules, so that they lie in memory in the order of asking: a gate has just read the name that
        // it decides about, and does not fetch it from afar.
        let queries = asked.iter().map(|name| Destination::name(domain(name), Port::HTTPS)).collect();
        Self { rules: Arc::new(rule_set(shape, action, &names)), queries }
    }
}

/// What a client on the training subnet asks for.
#[must_use]
pub fn request(destination: &Destination) -> Request<'_> {
    Request { client: IpAddr::V4(Ipv4Addr::new(10, 1, 0, 4)), destination, protocol: Protocol::Tcp }
}

fn rule_set(shape: Shape, action: Action, names: &[String]) -> RuleSet {
    let file: Arc<str> = Arc::from("policy.yaml");
    let terms = Arc::new(terms(action));
    let mut builder = RuleSetBuilder::default();
    for (number, name) in names.iter().enumerate() {
        let rule = builder.add(Rule {
            name: format!("rule-{number}").into(),
            place: Place {
                file: Arc::clone(&file),
                line: number as u32 + 1,
                text: format!("{{name: rule-{number}, type: fqdn, destination: {name}}}").into(),
            },
            terms: Arc::clone(&terms),
        });
        let pattern = match shape {
            Shape::Exact => Pattern::Exact(domain(name)),
            Shape::Below => Pattern::Below(domain(name)),
        };
        builder.add_name(rule, &pattern).expect("the names fit");
    }
    builder.build(Settings::default()).expect("the rules compile")
}

fn terms(action: Action) -> Terms {
    Terms {
        action,
        opens: Opens::Flows,
        sources: Sources::Everyone,
        protocol: Protocols::One(Protocol::Tcp),
        ports: PortSet::web(),
        reach: Reach::Public,
        sni: SniCheck::Match,
        tls_only: false,
        offload: false,
        bound_to_names: false,
        expires: None,
        max_upload: None,
        max_upload_per_hour: None,
        record_types: Vec::new(),
    }
}

fn domain(name: &str) -> DomainName {
    DomainName::parse(name).expect("a name")
}

/// A policy of one rule whose names are in `names.txt`.
pub const LISTED: &str =
    "outbound_rules:\n  - name: listed\n    type: fqdn\n    destination_file: names.txt\n";

/// The text of a `destination_file`: so many names, one a line.
#[must_use]
pub fn name_file(names: usize) -> String {
    let mut text = String::new();
    Random::new(2).names(names).iter().for_each(|name| writeln!(text, "{name}").unwrap());
    text
}

/// So many names for a list that is longer than what is asked for.
#[must_use]
pub fn list(names: usize) -> Vec<String> {
    Random::new(3).names(names)
}

/// Compiles [`LISTED`] with this `names.txt`, as a gate does at start and on a reload.
#[must_use]
pub fn load(name_file: &str) -> Compiled {
    let source = Source { name: "policy.yaml".to_owned(), bytes: LISTED.as_bytes().to_vec() };
    let mut read = |_: &str| Ok(name_file.as_bytes().to_vec());
    compile(&[source], &mut read, None, Timestamp::UNIX_EPOCH).expect("the policy compiles")
}

/// SplitMix64: enough for names, and the same on every machine.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Distinct names of two to four labels, 25 bytes in the mean.
    fn names(&mut self, count: usize) -> Vec<String> {
        // By hashes: texts that are given back would leave holes in the heap.
        let (mut known, hashed) = (HashSet::with_capacity(count), RandomState::new());
        let mut names = Vec::with_capacity(count);
        while names.len() < count {
            let name = self.name();
            if known.insert(hashed.hash_one(&name)) {
                names.push(name);
            }
        }
        names
    }

    fn name(&mut self) -> String {
        const ENDINGS: [&str; 8] = ["com", "net", "org", "io", "dev", "co.uk", "example", "cloud"];
        let mut name = String::new();
        for _ in 0..1 + self.below(2) {
            self.label(&mut name);
        }
        self.label(&mut name);
        name + ENDINGS[self.below(ENDINGS.len())]
    }

    fn label(&mut self, name: &mut String) {
        const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        for _ in 0..5 + self.below(9) {
            name.push(char::from(LETTERS[self.below(LETTERS.len())]));
        }
        name.push('.');
    }

    fn shuffle(&mut self, items: &mut [String]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
