use super::*;
use crate::OwnAddresses;
use crate::policy;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 4));

const POLICY: &str = "
outbound_rules:
  - {name: pypi, type: fqdn, destination: pypi.org}
  - {name: db, type: fqdn, destination: db.example.org, ports: [5432]}
  - {name: web-by-odd-port, type: fqdn, destination: odd.example.org, ports: [80, 443, 8443]}
  - {name: licence, type: address, destination: {addresses: [9.9.9.0/24], protocol: TCP, port_ranges: '443,27000'}}
  - {name: sign-in, type: service_tag, destination: {service_tag: T, protocol: TCP, port_ranges: '443', address_prefixes: [8.8.4.0/24]}, names: [login.example.org]}
  - {name: not-there, action: deny, type: address, destination: {addresses: [9.9.9.66]}}
  - {name: not-that, action: deny, type: fqdn, destination: bad.example.org}
";

fn rules(text: &str) -> Arc<RuleSet> {
    let source = policy::Source { name: "policy.yaml".to_owned(), bytes: text.as_bytes().to_vec() };
    let compiled = policy::compile(&[source], &mut |_| Err("no such file".to_owned()), None, NOW);
    Arc::new(compiled.unwrap_or_else(|diagnostics| panic!("{diagnostics}")).rules)
}

fn name(text: &str) -> DomainName {
    DomainName::parse(text).unwrap()
}

fn flow(original: &str, port: u16, seen: Seen) -> Intercepted {
    let original = (original != "-").then(|| original.parse().unwrap());
    Intercepted { original, port: Port::new(port).unwrap(), seen }
}

/// The reason, and what the permit would dial: a name, or an address, or nothing.
fn decide(rules: &Arc<RuleSet>, flow: &Intercepted) -> (Reason, String) {
    let decision = rules.decide_intercepted(CLIENT, flow, NOW);
    let reason = decision.reason;
    let dials = decision.into_permit().map_or("-".to_owned(), |permit| match permit.address() {
        Some(address) => {
            permit.vet(address, &OwnAddresses::default(), NOW).unwrap();
            address.to_string()
        }
        None => permit.name().unwrap().to_string(),
    });
    (reason, dials)
}

fn seen(text: &str) -> Seen {
    Seen::Name(name(text))
}

#[test]
fn what_is_seen_and_what_was_dialled_decide_together() {
    let rules = rules(POLICY);
    let table = [
        (
            "an allowed name leads to its own addresses",
            "1.2.3.4",
            443,
            seen("pypi.org"),
            Reason::Rule,
            "pypi.org",
        ),
        ("and with nothing dialled but the gate", "-", 443, seen("pypi.org"), Reason::Rule, "pypi.org"),
        ("a name on another port is denied", "1.2.3.4", 8443, seen("pypi.org"), Reason::PortNotInRule, "-"),
        ("a denied name", "1.2.3.4", 443, seen("evil.example"), Reason::NoRule, "-"),
        (
            "covers its name: the rule for the address",
            "9.9.9.9",
            443,
            seen("evil.example"),
            Reason::Rule,
            "9.9.9.9",
        ),
        (
            "a deny rule on the name wins over the address",
            "9.9.9.9",
            443,
            seen("bad.example.org"),
            Reason::DenyRule,
            "-",
        ),
        (
            "a deny rule on the address wins over the name",
            "9.9.9.66",
            443,
            seen("pypi.org"),
            Reason::DenyRule,
            "-",
        ),
        ("no name", "1.2.3.4", 443, Seen::Nothing(Reason::SniMissing), Reason::SniMissing, "-"),
        ("no name and nowhere to go", "-", 443, Seen::Nothing(Reason::NotTls), Reason::NotTls, "-"),
        (
            "no name, and the address has a rule",
            "9.9.9.9",
            443,
            Seen::Nothing(Reason::NotTls),
            Reason::Rule,
            "9.9.9.9",
        ),
        (
            "a rule for names wants one of them",
            "8.8.4.4",
            443,
            seen("login.example.org"),
            Reason::Rule,
            "login.example.org",
        ),
        ("and takes no other", "8.8.4.4", 443, seen("evil.example"), Reason::SniNotInRule, "-"),
        ("and not none", "8.8.4.4", 443, Seen::Nothing(Reason::SniMissing), Reason::SniMissing, "-"),
        ("nor the address itself", "8.8.4.4", 443, Seen::Told(vec![]), Reason::SniNotInRule, "-"),
        ("which a rule for no names takes", "9.9.9.9", 443, Seen::Told(vec![]), Reason::Rule, "9.9.9.9"),
        ("an address by its rule", "9.9.9.9", 27000, Seen::Told(vec![]), Reason::Rule, "9.9.9.9"),
        ("an address without one", "1.2.3.4", 5432, Seen::Told(vec![]), Reason::NoRule, "-"),
        (
            "an address that was told",
            "1.2.3.4",
            5432,
            Seen::Told(vec![name("db.example.org")]),
            Reason::Rule,
            "1.2.3.4",
        ),
        (
            "on that rule's ports only",
            "1.2.3.4",
            5433,
            Seen::Told(vec![name("db.example.org")]),
            Reason::NoRule,
            "-",
        ),
        ("never on port 443", "1.2.3.4", 443, Seen::Told(vec![name("odd.example.org")]), Reason::NoRule, "-"),
        ("never on port 80", "1.2.3.4", 80, Seen::Told(vec![name("odd.example.org")]), Reason::NoRule, "-"),
        (
            "elsewhere it is",
            "1.2.3.4",
            8443,
            Seen::Told(vec![name("odd.example.org")]),
            Reason::Rule,
            "1.2.3.4",
        ),
        (
            "an address that is denied, though told",
            "9.9.9.66",
            5432,
            Seen::Told(vec![name("db.example.org")]),
            Reason::DenyRule,
            "-",
        ),
    ];
    for (case, original, port, seen, reason, dials) in table {
        let decided = decide(&rules, &flow(original, port, seen));
        assert_eq!(decided, (reason, dials.to_owned()), "{case}");
    }
}

#[test]
fn a_private_address_is_not_dialled_because_a_client_says_it_was_told() {
    let rules = rules(POLICY);
    let told = flow("10.0.0.9", 5432, Seen::Told(vec![name("db.example.org")]));
    let permit = rules.decide_intercepted(CLIENT, &told, NOW).into_permit().unwrap();
    let refused = permit.vet(permit.address().unwrap(), &OwnAddresses::default(), NOW);
    assert_eq!(refused.unwrap_err().reason, Reason::AddressPrivate);
}

#[test]
fn every_name_that_was_told_and_is_allowed_may_be_seen_inside() {
    let rules = rules(POLICY);
    let names = ["evil.example", "db.example.org", "odd.example.org"].map(name).to_vec();
    let permit = rules
        .decide_intercepted(CLIENT, &flow("1.2.3.4", 8443, Seen::Told(names)), NOW)
        .into_permit()
        .unwrap();
    assert!(permit.is_for(&name("odd.example.org")));
    assert!(!permit.is_for(&name("evil.example")));
    assert!(!permit.is_for(&name("db.example.org")), "its rule is for another port");
}

#[test]
fn the_internet_mode_allows_any_name_and_none_and_no_deny_rule_less() {
    let rules = rules(&format!("isolation_mode: allow_internet_outbound{POLICY}"));
    let allowed = [
        ("1.2.3.4", 443, seen("any.example"), "any.example"),
        ("1.2.3.4", 443, Seen::Nothing(Reason::SniMissing), "1.2.3.4"),
        ("1.2.3.4", 22, Seen::Told(vec![]), "1.2.3.4"),
    ];
    for (original, port, seen, dials) in allowed {
        let decided = decide(&rules, &flow(original, port, seen));
        assert_eq!(decided, (Reason::InternetMode, dials.to_owned()));
    }
    assert_eq!(decide(&rules, &flow("9.9.9.66", 443, seen("any.example"))).0, Reason::DenyRule);
    assert_eq!(decide(&rules, &flow("1.2.3.4", 443, seen("bad.example.org"))).0, Reason::DenyRule);
}

#[test]
fn report_mode_says_what_would_have_been_and_lets_it_go_where_there_is_somewhere_to_go() {
    let rules = rules(&format!("enforcement: report{POLICY}"));
    let table = [
        ("1.2.3.4", 443, seen("evil.example"), Reason::NoRule, "evil.example"),
        ("1.2.3.4", 443, Seen::Nothing(Reason::SniMissing), Reason::SniMissing, "1.2.3.4"),
        ("-", 443, Seen::Nothing(Reason::SniMissing), Reason::SniMissing, "-"),
        ("1.2.3.4", 5433, Seen::Told(vec![]), Reason::NoRule, "1.2.3.4"),
        ("8.8.4.4", 443, seen("evil.example"), Reason::SniNotInRule, "8.8.4.4"),
    ];
    for (original, port, seen, reason, dials) in table {
        let decided = decide(&rules, &flow(original, port, seen));
        assert_eq!(decided, (reason, dials.to_owned()), "{original}:{port}");
    }
}
