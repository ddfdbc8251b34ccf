//! Fast ≡ naive: a rule set and its index against one loop over all rules and all of their patterns.
//!
//! Names, patterns, ports, clients and times come from alphabets of two or three, so that nearly every case
//! has rules that collide, shadow one another, deny what others allow, or miss by one field.
#![allow(clippy::unwrap_used, clippy::panic)] // a test's own helpers may stop it

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use jiff::Timestamp;
use outgate_rules::rule::{Action, Opens, Place, Protocols, Reach, SniCheck, Sources, Terms};
use outgate_rules::{
    Destination, DomainName, Isolation, Lack, Pattern, Port, PortSet, Protocol, Reason, Request, Rule,
    RuleSet, RuleSetBuilder, Settings,
};
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::select;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_rule_set_decides_as_a_loop_over_all_rules_does(
        rules in vec(written(), 0..12),
        isolation in select(&[Isolation::AllowOnlyApprovedOutbound, Isolation::AllowInternetOutbound][..]),
        asked in vec(asked(), 1..24),
    ) {
        let compiled = Arc::new(compiled(&rules, isolation));
        for asked in &asked {
            let decision = compiled.decide(&asked.request(), asked.now);
            let line = decision.rule.as_ref().map(|rule| rule.place.line);
            let nearest = decision.nearest.as_ref().map(|rule| rule.place.line);
            prop_assert_eq!((decision.reason, line, nearest), naive(&rules, isolation, asked), "{:?}", asked);
        }
    }
}

#[test]
fn each_of_many_rules_is_judged_by_its_own_terms() {
    let port = |line: u16| Port::new(1000 + line).unwrap();
    let rule = |line: u16| Written {
        name: line.to_string(),
        patterns: vec![Pattern::parse(&format!("n{line}.example")).unwrap()],
        terms: Terms { ports: std::iter::once(port(line)..=port(line)).collect(), ..allow_all() },
    };
    let rules: Vec<Written> = (0..600).map(rule).collect();
    let compiled = Arc::new(compiled(&rules, Isolation::AllowOnlyApprovedOutbound));
    for line in 0..600 {
        let name = DomainName::parse(&format!("n{line}.example")).unwrap();
        for (asked, reason) in [(port(line), Reason::Rule), (port(line + 1), Reason::PortNotInRule)] {
            let destination = Destination::name(name.clone(), asked);
            let client = Ipv4Addr::LOCALHOST.into();
            let request = Request { client, destination: &destination, protocol: Protocol::Tcp };
            assert_eq!(compiled.decide(&request, Timestamp::UNIX_EPOCH).reason, reason, "{line} on {asked}");
        }
    }
}

/// The reason, and the lines of the deciding and of the nearest rule.
type Outcome = (Reason, Option<u32>, Option<u32>);

/// What the policy reference says, word for word and with no thought of speed.
fn naive(rules: &[Written], isolation: Isolation, asked: &Asked) -> Outcome {
    let mut speaking: Vec<(usize, &Written)> =
        rules.iter().enumerate().filter(|(_, rule)| rule.specificity(&asked.name).is_some()).collect();
    speaking.sort_by_key(|(line, rule)| (rule.specificity(&asked.name), &rule.name, *line));
    let first = |action| {
        let mut matching = speaking.iter().filter(|(_, rule)| rule.terms.action == action);
        matching.find(|(_, rule)| lack(&rule.terms, asked).is_none()).map(|(line, _)| *line as u32)
    };
    if let Some(deny) = first(Action::Deny) {
        return (Reason::DenyRule, Some(deny), None);
    }
    if let Some(allow) = first(Action::Allow) {
        return (Reason::Rule, Some(allow), None);
    }
    if isolation == Isolation::AllowInternetOutbound {
        return (Reason::InternetMode, None, None);
    }
    let allowing = speaking.iter().filter(|(_, rule)| rule.terms.action == Action::Allow);
    let lacking =
        allowing.filter_map(|(line, rule)| lack(&rule.terms, asked).map(|lack| (*line as u32, lack)));
    // The greatest lack is the nearest miss; of several, the most specific rule's.
    match lacking.min_by_key(|(_, lack)| Reverse(*lack)) {
        Some((line, lack)) => (lack.reason(), None, Some(line)),
        None => (Reason::NoRule, None, None),
    }
}

/// The first thing that keeps a rule from matching, in the order of [`Lack`].
fn lack(terms: &Terms, asked: &Asked) -> Option<Lack> {
    if !terms.sources.contains(asked.client) {
        Some(Lack::Source)
    } else if !terms.protocol.contains(asked.protocol) {
        Some(Lack::Protocol)
    } else if asked.protocol != Protocol::Icmp && !terms.ports.contains(asked.port) {
        Some(Lack::Port)
    } else if terms.opens == Opens::Lookups {
        Some(Lack::OpensNothing)
    } else if terms.expires.is_some_and(|expires| expires <= asked.now) {
        Some(Lack::Expired)
    } else {
        None
    }
}

#[derive(Clone, Debug)]
struct Written {
    name: String,
    patterns: Vec<Pattern>,
    terms: Terms,
}

impl Written {
    /// How well the best of the patterns matches, the least first: exact, then suffixes from long to short, then
    /// in-label patterns likewise.
    fn specificity(&self, name: &DomainName) -> Option<(u8, Reverse<usize>)> {
        let kind = |pattern: &Pattern| match pattern {
            Pattern::Exact(_) => 0,
            Pattern::Below(_) => 1,
            Pattern::InLabel(_) => 2,
        };
        let matching = self.patterns.iter().filter(|pattern| pattern.matches(name));
        matching.map(|pattern| (kind(pattern), Reverse(pattern.suffix().as_str().len()))).min()
    }
}

#[derive(Clone, Debug)]
struct Asked {
    name: DomainName,
    destination: Destination,
    port: Port,
    client: IpAddr,
    protocol: Protocol,
    now: Timestamp,
}

impl Asked {
    fn request(&self) -> Request<'_> {
        Request { client: self.client, destination: &self.destination, protocol: self.protocol }
    }
}

fn compiled(rules: &[Written], isolation: Isolation) -> RuleSet {
    let mut builder = RuleSetBuilder::default();
    for (line, rule) in (0..).zip(rules) {
        let id = builder.add(Rule {
            name: rule.name.as_str().into(),
            place: Place { file: "policy.yaml".into(), line, text: "".into() },
            terms: Arc::new(rule.terms.clone()),
        });
        rule.patterns.iter().for_each(|pattern| builder.add_name(id, pattern).unwrap());
    }
    builder.build(Settings { isolation, ..Settings::default() }).unwrap()
}

/// `a`, `b.a`, `ab.b.a`, …
fn name() -> impl Strategy<Value = String> {
    vec(select(&["a", "b", "ab"][..]), 1..5).prop_map(|labels| labels.join("."))
}

fn pattern() -> impl Strategy<Value = Pattern> {
    let wild = select(&["?", "a*", "*b", "[a-b]", "{a,ab}", "*.*", "a?.*", "*.a*"][..]);
    prop_oneof![
        3 => name(),
        3 => name().prop_map(|name| format!("*.{name}")),
        2 => (wild.clone(), name()).prop_map(|(wild, name)| format!("{wild}.{name}")),
        1 => (wild, name()).prop_map(|(wild, name)| format!("*.{wild}.{name}")),
    ]
    // A wildcard label right under the last one may be an error: a registry might sell names there.
    .prop_filter_map("a pattern", |text| Pattern::parse(&text).ok())
}

fn written() -> impl Strategy<Value = Written> {
    (select(&["r", "s", "t"][..]), vec(pattern(), 1..4), terms())
        .prop_map(|(name, patterns, terms)| Written { name: name.to_owned(), patterns, terms })
}

fn terms() -> impl Strategy<Value = Terms> {
    let action = prop_oneof![3 => Just(Action::Allow), 1 => Just(Action::Deny)];
    let opens = prop_oneof![5 => Just(Opens::Flows), 1 => Just(Opens::Lookups)];
    let protocol = select(
        &[
            Protocols::One(Protocol::Tcp),
            Protocols::One(Protocol::Tcp),
            Protocols::One(Protocol::Udp),
            Protocols::Any,
        ][..],
    );
    let ports = prop_oneof![3 => Just(PortSet::web()), 1 => Just(PortSet::all())];
    (action, opens, weighted(0.3, client()), protocol, ports, weighted(0.3, now())).prop_map(
        |(action, opens, source, protocol, ports, expires)| Terms {
            action,
            opens,
            sources: source.map_or(Sources::Everyone, |source| Sources::Only {
                groups: Vec::new(),
                prefixes: Arc::new(std::iter::once(source.into()).collect()),
            }),
            protocol,
            ports,
            expires,
            ..allow_all()
        },
    )
}

fn allow_all() -> Terms {
    Terms {
        action: Action::Allow,
        opens: Opens::Flows,
        sources: Sources::Everyone,
        protocol: Protocols::Any,
        ports: PortSet::all(),
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

fn asked() -> impl Strategy<Value = Asked> {
    let protocol = select(&[Protocol::Tcp, Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Icmp][..]);
    let port = select(vec![Port::HTTPS, Port::HTTPS, Port::new(22).unwrap()]);
    (name(), port, client(), protocol, now()).prop_map(|(name, port, client, protocol, now)| {
        let name = DomainName::parse(&name).unwrap();
        Asked { destination: Destination::name(name.clone(), port), name, port, client, protocol, now }
    })
}

fn client() -> impl Strategy<Value = IpAddr> {
    (1..3_u8).prop_map(|host| IpAddr::V4(Ipv4Addr::new(10, 1, 0, host)))
}

fn now() -> impl Strategy<Value = Timestamp> {
    (1..4_i64).prop_map(|second| Timestamp::from_second(second).unwrap())
}
