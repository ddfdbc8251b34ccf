//! Names: which are allowed, and what is asked of the resolver on their behalf.

use outgate_tests::origin::{greet, listen_only};
use outgate_tests::policy::{NOTHING, allow, allow_one, allow_with};
use outgate_tests::{Answer, World};

use crate::assert_denied;

/// Asserts which names may be asked for; the allowed ones have no address, and fail only after the look-up.
fn assert_verdicts(policy: &str, allowed: &[&str], denied: &[&str]) {
    let world = World::new();
    let gate = world.gate(policy).start();
    for name in denied {
        assert_eq!(gate.client().connect(&format!("{name}:443")).status, 403, "{name}");
    }
    assert_eq!(world.dns.packets(), 0, "a denied name was looked up: {:?}", world.dns.asked());
    for name in allowed {
        assert_eq!(gate.client().connect(&format!("{name}:443")).status, 502, "{name}");
        assert!(world.dns.asked().contains(&(*name).to_owned()), "{name} was not looked up");
    }
}

#[test]
fn a_name_matches_whole_and_on_label_boundaries() {
    assert_verdicts(
        &allow_one("allowed.example", &[443]),
        &["allowed.example"],
        &[
            "evilallowed.example",
            "allowed.example.evil",
            "allowedxexample",
            "sub.allowed.example",
            "example",
            "allowed.exampl",
            "allowed-example.example",
        ],
    );
}

#[test]
fn a_wildcard_takes_whole_labels_and_never_the_apex() {
    assert_verdicts(
        &allow_one("*.allowed.example", &[443]),
        &["a.allowed.example", "a.b.c.allowed.example"],
        &["allowed.example", "aallowed.example", "allowed.example.evil"],
    );
}

#[test]
fn a_wildcard_inside_a_label_stays_there() {
    assert_verdicts(
        &allow_one("ml-*.allowed.example", &[443]),
        &["ml-1.allowed.example", "ml-x-y.allowed.example"],
        &["ml-1.evil.allowed.example", "xml-1.allowed.example", "ml-1.allowed.example.evil"],
    );
}

#[test]
fn a_deny_rule_beats_every_allow_rule() {
    let deny = "  - {name: no-gists, action: deny, type: fqdn, destination: [gist.allowed.example, \"*.gist.allowed.example\"]}\n";
    assert_verdicts(
        &(allow(&[("*.allowed.example", &[443]), ("gist.allowed.example", &[443])]) + deny),
        &["git.allowed.example"],
        &["gist.allowed.example", "a.gist.allowed.example"],
    );
}

#[test]
fn an_unapproved_name_is_denied_by_every_empty_policy() {
    for policy in [
        "",
        "\n# nothing\n",
        "outbound_rules: []\n",
        "outbound_rules: {}\n",
        "isolation_mode: allow_only_approved_outbound\n",
    ] {
        assert_verdicts(policy, &[], &["pypi.org", "anything.example"]);
    }
}

#[test]
fn a_policy_in_letters_of_any_language_allows_the_a_labels() {
    assert_verdicts(
        &allow_one("B\u{fc}cher.example", &[443]),
        &["xn--bcher-kva.example"],
        &["bucher.example"],
    );
}

#[test]
fn a_rule_for_other_sources_denies() {
    let policy = "sources:\n  near: [127.0.0.1/32]\n  far: [127.0.0.2/32]\noutbound_rules:\n\
                  \x20 - {name: far-only, type: fqdn, destination: far.example, ports: [443], sources: [far]}\n";
    let world = World::new();
    let gate = world.gate(policy).start();

    let response = gate.client().connect("far.example:443");
    assert_denied(&response, 403, "http_request_denied", "the rule is for other sources");
    assert_eq!(world.dns.packets(), 0);
    assert_eq!(gate.client_at("127.0.0.2").connect("far.example:443").status, 502);
    assert_eq!(gate.reason("source-not-in-rule")["client"], "127.0.0.1");
}

#[test]
fn another_port_and_an_expired_rule_each_say_so() {
    let world = World::new();
    let policy = allow_one("port.example", &[443])
        + "  - {name: trial, type: fqdn, destination: old.example, ports: [443], expires: 2020-01-31}\n"
        + "  - {name: dc, type: resolve, destination: dc.example, resolves_to: private}\n";
    let gate = world.gate(policy).start();

    for (target, reason) in [
        ("port.example:8443", "port-not-in-rule"),
        ("old.example:443", "rule-expired"),
        ("dc.example:443", "resolve-only"),
    ] {
        assert_eq!(gate.client().connect(target).status, 403, "{target}");
        assert_eq!(gate.reason(reason)["verdict"], "deny", "{target}");
    }
    assert_eq!(world.dns.packets(), 0);
}

#[test]
fn no_kind_of_denial_asks_the_resolver_anything() {
    let world = World::new();
    let policy = allow(&[("allowed.example", &[443]), ("*.wild.example", &[80])])
        + "  - {name: never, action: deny, type: fqdn, destination: denied.example}\n";
    let gate = world.gate(policy).start();

    for target in [
        "evil.example:443",
        "allowed.example:80",
        "denied.example:443",
        "wild.example:80",
        "10.0.0.1:443",
        "[::1]:80",
    ] {
        assert_eq!(gate.client().connect(target).status, 403, "{target}");
    }
    for target in
        ["allowed.example", "[allowed.example]:443", "allowed.example:0", "a%2eexample:443", "0x7f.1:443"]
    {
        assert_eq!(gate.client().connect(target).status, 400, "{target}");
    }
    for url in
        ["http://evil.example/", "http://allowed.example/", "http://denied.example/", "http://10.0.0.1/"]
    {
        assert_eq!(gate.client().get(url).status, 403, "{url}");
    }
    assert_eq!(world.dns.packets(), 0, "{:?}", world.dns.asked());
}

#[test]
fn each_failure_of_the_resolver_has_its_own_answer() {
    let world = World::new();
    world.dns.script("servfail.example", [Answer::ServFail]);
    world.dns.script("silent.example", [Answer::Silence]);
    world.dns.script("bare.example", [Answer::Addresses(Vec::new())]);
    let gate = world.gate(allow_one("*.example", &[443])).set("limits.dial", "2s").start();

    for (name, status, error, reason) in [
        ("missing.example", 502, "dns_error", "name-not-found"),
        ("bare.example", 502, "dns_error", "name-without-address"),
        ("servfail.example", 502, "dns_error", "resolver-failed"),
        ("silent.example", 504, "dns_timeout", "resolver-timeout"),
    ] {
        let response = gate.client().connect(&format!("{name}:443"));
        assert_denied(&response, status, error, name);
        assert_eq!(gate.close(name)["reason"], reason, "{name}");
    }
}

#[test]
fn a_rebuilt_question_carries_nothing_of_the_clients() {
    let world = World::new();
    let _origin = world.origin("a_b.example", 7000, listen_only());
    let gate = world.gate(allow_one("a_b.example", &[7000])).start();

    drop(gate.tunnel("A_b.ExAmPlE.:7000"));

    assert!(world.dns.asked().iter().all(|name| name == "a_b.example"), "{:?}", world.dns.asked());
}

#[test]
fn a_list_of_names_in_a_file_is_a_rule() {
    let world = World::new();
    let _origin = world.origin("second.example", 7000, greet("hello"));
    let policy = "outbound_rules:\n  - {name: mirrors, type: fqdn, destination_file: mirrors.txt, ports: [7000], \
                  resolves_to: [127.0.0.0/8]}\n";
    let gate =
        world.gate(policy).file("mirrors.txt", "first.example\n# a comment\nsecond.example\n\n").start();

    assert_eq!(gate.tunnel("second.example:7000").exactly(5), b"hello");
    assert_eq!(gate.client().connect("third.example:7000").status, 403);
    assert_eq!(gate.decision("second.example")["rule"]["name"], "mirrors");
}

#[test]
fn report_mode_lets_through_and_records_what_would_have_been() {
    let world = World::new();
    world.dns.set("unlisted.example", &["127.0.0.1"]);
    let gate = world.gate(format!("enforcement: report\n{NOTHING}")).start();

    // Vetting holds, so that a loopback answer is as far as this gets; and it got past the verdict.
    assert_eq!(gate.client().connect("unlisted.example:443").status, 403);

    let decision = gate.decision("unlisted.example");
    assert_eq!((&decision["verdict"], &decision["mode"]), (&"deny".into(), &"report".into()));
    assert_eq!(decision["reason"], "no-rule");
    assert_eq!(gate.close("unlisted.example")["reason"], "address-loopback");
    assert!(!world.dns.asked().is_empty());
}

#[test]
fn report_mode_reaches_an_allowed_loopback_origin_on_a_port_no_rule_allows() {
    let world = World::new();
    let gate =
        world.gate(format!("enforcement: report\n{}", allow_with("x.example", &[443], "sni: any"))).start();

    let response = gate.client().connect("x.example:9");

    // No such name: the look-up was made although the port is not in the rule.
    assert_eq!(response.status, 502);
    assert_eq!(gate.decision("x.example")["reason"], "port-not-in-rule");
    assert_eq!(gate.decision("x.example")["mode"], "report");
}

#[test]
fn the_internet_mode_allows_names_and_keeps_denies() {
    let world = World::new();
    let policy = "isolation_mode: allow_internet_outbound\noutbound_rules:\n\
                  \x20 - {name: never, action: deny, type: fqdn, destination: evil.example}\n";
    let gate = world.gate(policy).start();

    assert_eq!(gate.client().connect("anything.example:4444").status, 502);
    assert_eq!(gate.decision("anything.example")["reason"], "internet-mode");
    assert_eq!(gate.client().connect("evil.example:443").status, 403);
    assert!(!world.dns.asked().iter().any(|name| name == "evil.example"));
}
