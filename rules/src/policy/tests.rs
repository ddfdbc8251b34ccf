//! What a compiled policy is, beyond what is said of it: the files under `tests/policies` have that.

use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::destination::Destination;
use crate::document::MAX_FILE;
use crate::rule::{Opens, Protocol, Reach, Rule, SniCheck};
use crate::ruleset::{Enforcement, Isolation, OnRevoke, Request};

fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

fn no_files(path: &str) -> Result<Vec<u8>, String> {
    Err(format!("no {path} here"))
}

fn source(text: &str) -> Source {
    Source { name: "policy.yaml".to_owned(), bytes: text.as_bytes().to_vec() }
}

fn taken(text: &str) -> Compiled {
    compile(&[source(text)], &mut no_files, None, now()).unwrap_or_else(|found| panic!("{found}"))
}

fn rejected(text: &str) -> Diagnostics {
    compile(&[source(text)], &mut no_files, None, now()).expect_err("a mistake")
}

fn rule<'c>(compiled: &'c Compiled, name: &str) -> &'c Rule {
    compiled.rules.rules().iter().find(|rule| &*rule.name == name).unwrap()
}

fn asks(rules: &Arc<RuleSet>, client: &str, to: &str, protocol: Protocol) -> crate::Decision {
    let destination = Destination::parse(to).unwrap();
    let client: IpAddr = client.parse().unwrap();
    rules.decide(&Request { client, destination: &destination, protocol }, now())
}

#[test]
fn a_rule_is_compiled_with_all_its_terms() {
    let compiled = taken(
        "sources: {training: [10.1.0.0/24]}\n\
         outbound_rules:\n\
         - name: all\n  type: fqdn\n  destination: a.example\n  sources: [training, 10.2.0.7]\n  ports: [443]\n\
         \x20 sni: any\n  tls_only: true\n  expires: 2027-01-31\n  max_upload: 10MB\n  max_upload_per_hour: 1GiB\n\
         \x20 record_types: [TXT, A]\n  resolves_to: [10.9.0.0/16]\n  why: because\n  source: a page\n",
    );
    let rule = rule(&compiled, "all");
    let terms = &rule.terms;
    assert!(
        terms.sources.contains("10.1.0.9".parse().unwrap())
            && terms.sources.contains("10.2.0.7".parse().unwrap())
    );
    assert!(!terms.sources.contains("10.2.0.8".parse().unwrap()));
    assert_eq!((terms.sni, terms.tls_only), (SniCheck::Any, true));
    assert_eq!(terms.expires.unwrap().to_string(), "2027-02-01T00:00:00Z");
    assert_eq!((terms.max_upload, terms.max_upload_per_hour), (Some(10_000_000), Some(1 << 30)));
    assert_eq!(terms.record_types, [16]);
    assert!(matches!(&terms.reach, Reach::Prefixes(listed) if listed.contains("10.9.1.1".parse().unwrap())));
    assert_eq!((&*rule.place.file, rule.place.line), ("policy.yaml", 3));
    assert!(
        rule.place
            .text
            .starts_with("name: all, type: fqdn, destination: a.example, sources: [training, 10.2.0.7]")
    );
    assert!(rule.place.text.chars().count() <= 200);
}

#[test]
fn settings_are_read_and_have_their_defaults() {
    let default = taken("outbound_rules: []");
    let settings = default.rules.settings();
    assert_eq!(settings.isolation, Isolation::AllowOnlyApprovedOutbound);
    assert_eq!(settings.enforcement, Enforcement::Enforce);
    assert_eq!(settings.on_revoke, OnRevoke::Close);
    let set =
        taken("isolation_mode: allow_internet_outbound\nenforcement: report\non_revoke: {drain: 60s}\n");
    let settings = set.rules.settings();
    assert_eq!(settings.isolation, Isolation::AllowInternetOutbound);
    assert_eq!(settings.enforcement, Enforcement::Report);
    assert_eq!(settings.on_revoke, OnRevoke::Drain(std::time::Duration::from_secs(60)));
    assert!(!set.diagnostics.to_string().contains("denies everything"));
}

#[test]
fn an_empty_policy_denies_everything() {
    for text in ["", "# nothing\n", "{}", "outbound_rules:\n", "outbound_rules: []\n", "---\n"] {
        let compiled = taken(text);
        assert_eq!(compiled.diagnostics.warnings(), 1, "{text:?}");
        let rules = Arc::new(compiled.rules);
        assert!(!asks(&rules, "10.0.0.1", "pypi.org:443", Protocol::Tcp).allows(), "{text:?}");
    }
}

#[test]
fn a_deny_rule_without_ports_leaves_none_open() {
    let compiled = taken(
        "isolation_mode: allow_internet_outbound\n\
         outbound_rules:\n\
         - {name: a, type: fqdn, action: deny, destination: a.example}\n\
         - {name: b, type: address, action: deny, destination: 192.0.2.0/24}\n",
    );
    let rules = Arc::new(compiled.rules);
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
        for to in ["a.example:1", "a.example:443", "a.example:65535", "192.0.2.1:22", "[::ffff:192.0.2.1]:22"]
        {
            assert!(!asks(&rules, "10.0.0.1", to, protocol).allows(), "{to} over {}", protocol.name());
        }
        assert!(asks(&rules, "10.0.0.1", "b.example:22", protocol).allows());
    }
}

#[test]
fn a_resolve_rule_opens_lookups_alone() {
    let compiled = taken(
        "outbound_rules: [{name: dc, type: resolve, destination: \"*.corp.example\", resolves_to: private}]",
    );
    assert_eq!(rule(&compiled, "dc").terms.opens, Opens::Lookups);
    let decision = asks(&Arc::new(compiled.rules), "10.0.0.1", "dc1.corp.example:443", Protocol::Tcp);
    assert_eq!(decision.reason, crate::Reason::ResolveOnly);
}

#[test]
fn rules_of_equal_terms_share_them() {
    let compiled = taken(
        "outbound_rules:\n\
         - {name: a, type: fqdn, destination: a.example}\n\
         - {name: b, type: fqdn, destination: b.example, ports: \"443,80\"}\n\
         - {name: c, type: fqdn, destination: c.example, ports: [443]}\n",
    );
    let [a, b, c] = compiled.rules.rules() else { panic!("three rules") };
    assert!(Arc::ptr_eq(&a.terms, &b.terms));
    assert!(!Arc::ptr_eq(&a.terms, &c.terms));
}

#[test]
fn the_builtin_policy_is_taken() {
    let compiled = compile(&builtin(), &mut no_files, None, now()).unwrap_or_else(|found| panic!("{found}"));
    assert_eq!(
        compiled.diagnostics.errors() + compiled.diagnostics.warnings(),
        0,
        "{}",
        compiled.diagnostics
    );
    let rules = Arc::new(compiled.rules);
    assert!(asks(&rules, "127.0.0.1", "pypi.org:443", Protocol::Tcp).allows());
    assert!(!asks(&rules, "127.0.0.1", "example.org:443", Protocol::Tcp).allows());
}

#[test]
fn each_preset_compiles_with_everything_given() {
    for name in crate::presets::names() {
        let text = format!(
            "presets: [{name}]\nparameters: {{region: westeurope, storage: s, acr: r, keyvault: k}}\n"
        );
        let found = compile(&[source(&text)], &mut no_files, None, now());
        assert!(found.is_ok(), "{}", found.err().map_or_else(String::new, |found| found.to_string()));
    }
}

const TAGS: &str = "outbound_rules:\n\
    - {name: net, type: service_tag, destination: {service_tag: nets, port_ranges: \"443\"}, names: [a.example]}\n";

fn with_tags(list: &str, previous: Option<&Tags>) -> Compiled {
    let text = format!("service_tags: [lists/nets.txt]\n{TAGS}");
    let source = Source { name: "policy.d/a.yaml".to_owned(), bytes: text.into_bytes() };
    let mut read = |path: &str| {
        assert_eq!(path, "policy.d/lists/nets.txt");
        Ok(list.as_bytes().to_vec())
    };
    compile(&[source], &mut read, previous, now()).unwrap_or_else(|found| panic!("{found}"))
}

#[test]
fn a_tag_opens_its_addresses_and_binds_its_names() {
    let compiled = with_tags("192.0.2.0/24\n", None);
    let terms = &rule(&compiled, "net").terms;
    assert!(terms.bound_to_names);
    assert_eq!(compiled.files, ["policy.d/a.yaml", "policy.d/lists/nets.txt"]);
    assert_eq!((compiled.summary.names, compiled.summary.prefixes), (1, 1));
    let rules = Arc::new(compiled.rules);
    for to in ["a.example:443", "192.0.2.9:443", "[::ffff:192.0.2.9]:443"] {
        assert!(asks(&rules, "10.0.0.1", to, Protocol::Tcp).allows(), "{to}");
    }
    for to in ["a.example:80", "192.0.3.1:443", "b.example:443"] {
        assert!(!asks(&rules, "10.0.0.1", to, Protocol::Tcp).allows(), "{to}");
    }
}

#[test]
fn a_refresh_that_changes_a_tag_abnormally_is_held_back() {
    let first = with_tags("10.0.0.0/16\n", None);
    let grown = with_tags("0.0.0.0/0\n", Some(&first.tags));
    assert_eq!(grown.tags.held_back().len(), 1);
    assert!(grown.diagnostics.to_string().contains("held back"), "{}", grown.diagnostics);
    assert!(!asks(&Arc::new(grown.rules), "10.0.0.1", "192.0.2.1:443", Protocol::Tcp).allows());
    let still = with_tags("0.0.0.0/0\n", Some(&grown.tags));
    assert_eq!(still.tags.held_back().len(), 1, "it is held back until somebody looks");
    let restarted = with_tags("0.0.0.0/0\n", None);
    assert!(asks(&Arc::new(restarted.rules), "10.0.0.1", "192.0.2.1:443", Protocol::Tcp).allows());
    let usual = with_tags("10.0.0.0/16\n10.2.0.0/24\n", Some(&first.tags));
    assert!(usual.tags.held_back().is_empty());
}

#[test]
fn a_revision_stands_for_everything_that_was_compiled() {
    let revision = |list: &str| with_tags(list, None).rules.settings().revision;
    assert_eq!(revision("192.0.2.0/24\n"), revision("192.0.2.0/24\n"));
    assert_ne!(revision("192.0.2.0/24\n"), revision("192.0.2.0/25\n"));
    let of = |text: &str| taken(text).rules.settings().revision;
    assert_ne!(of("enforcement: enforce"), of("enforcement: report"));
    let first = with_tags("10.0.0.0/16\n", None);
    let held = with_tags("0.0.0.0/0\n", Some(&first.tags)).rules.settings().revision;
    assert_ne!(held, revision("0.0.0.0/0\n"));
    assert_ne!(held, first.rules.settings().revision);
}

#[test]
fn all_mistakes_of_all_files_are_said_at_once() {
    let files = [
        Source { name: "a.yaml".to_owned(), bytes: b"outbound_rules: [".to_vec() },
        Source { name: "b.yaml".to_owned(), bytes: b"colour: blue\nsources: {x: [10.0.0.1/8]}\n".to_vec() },
        Source { name: "c.yaml".to_owned(), bytes: vec![0] },
        Source { name: "d.yaml".to_owned(), bytes: b"presets: [nonsense]\n".to_vec() },
    ];
    let found = compile(&files, &mut no_files, None, now()).unwrap_err();
    let places: Vec<String> = found
        .iter()
        .filter_map(|diagnostic| diagnostic.place.as_ref())
        .map(|place| format!("{}:{}:{}", place.file, place.line, place.column))
        .collect();
    assert_eq!(places, ["c.yaml:1:1", "a.yaml:1:17", "b.yaml:1:1", "b.yaml:2:15", "d.yaml:1:11"]);
    assert_eq!(found.errors(), 5);
}

#[test]
fn a_flood_of_mistakes_is_counted_and_cut() {
    let names = "*\n".repeat(100_000);
    let mut read = |_: &str| Ok(names.as_bytes().to_vec());
    let text = source("outbound_rules: [{name: a, type: fqdn, destination_file: names.txt}]");
    let found = compile(&[text], &mut read, None, now()).unwrap_err();
    assert_eq!(found.errors(), 100_000);
    assert!(found.iter().count() <= 1_000);
    let shown = found.to_string();
    assert!(shown.contains("... and 99950 more"), "{}", shown.len());
    assert!(shown.len() < 20_000);
}

#[test]
fn untrusted_text_is_bounded_and_harmless_in_a_message() {
    let found = rejected(&format!(
        "outbound_rules: [{{name: a, type: fqdn, destination: \"\\e[31m{}\"}}]",
        "a".repeat(100_000)
    ));
    let shown = found.to_string();
    assert!(!shown.contains('\u{1b}') && shown.len() < 2_000, "{} bytes", shown.len());
    assert!(found.render(true, 50).contains('\u{1b}'));
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let source = Source { name: "policy.yaml".to_owned(), bytes: vec![b'#'; MAX_FILE + 1] };
    let found = compile(&[source], &mut no_files, None, now()).unwrap_err();
    assert!(found.to_string().contains("more than"), "{found}");
    assert!(compile(&[], &mut no_files, None, now()).is_err());
}

#[test]
fn an_expectation_says_what_came_instead() {
    let compiled = taken(
        "outbound_rules: [{name: a, type: fqdn, destination: a.example}]\n\
         tests:\n\
         - {from: 10.0.0.1, to: \"a.example:443\", expect: allow, rule: a}\n\
         - {from: 10.0.0.1, to: \"a.example:444\", expect: allow}\n",
    );
    let outcomes = run_tests(&Arc::new(compiled.rules), &compiled.tests, now());
    assert_eq!(outcomes.iter().map(TestOutcome::passed).collect::<Vec<_>>(), [true, false]);
    assert_eq!(
        outcomes[1].to_string(),
        "policy.yaml:4: 10.0.0.1 to a.example:444: allow: failed: got deny: the rule allows other ports"
    );
}

#[test]
fn a_rule_bound_to_names_is_off_when_all_of_them_are() {
    // The preset's rule would otherwise open its prefixes to every name.
    let mut report = Report::default();
    let mut read = no_files;
    let mut compiler = Compiler::new(&mut report, References::new(&mut read));
    let text = "outbound_rules: [{name: a, type: address, destination: {addresses: 192.0.2.0/24, port_ranges: \"443\"}, names: [\"{x}.example\"]}]";
    let file = compiler.report.add_file("preset:x", text.into());
    let raw = read_text(compiler.report, file).unwrap();
    compiler.rule(&raw.rules[0], Origin::Preset(0));
    let (builder, ..) = compiler.into_parts();
    assert!(builder.build(crate::Settings::default()).unwrap().is_empty());
}

/// Pieces that policies are made of, in any order.
const PIECES: [&str; 44] = [
    "outbound_rules:",
    "managed_network:",
    "sources:",
    "tests:",
    "parameters:",
    "presets:",
    "\n",
    "\n  ",
    "\n  - ",
    "- ",
    ": ",
    ", ",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    "*",
    "&a ",
    "*a",
    "name: a",
    "type: fqdn",
    "type: service_tag",
    "destination: ",
    "a.example",
    "*.a.example",
    "{region}",
    "10.0.0.0/8",
    "::ffff:1.2.3.4",
    "443",
    "80-90",
    "#",
    "expires: 2027-01-31",
    "max_upload: 1MB",
    "|\n  ",
    ">-\n ",
    "? ",
    "---\n",
    "\t",
    "\u{e9}",
    "\u{0}",
    "!!str ",
    "~",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_makes_the_compiler_panic(text in "\\PC*") {
        _ = compile(&[source(&text)], &mut no_files, None, now()).map_err(|found| found.to_string());
    }

    #[test]
    fn no_mixture_of_a_policys_pieces_makes_it_panic(
        pieces in prop::collection::vec(prop::sample::select(PIECES.as_slice()), 0..60)
    ) {
        _ = compile(&[source(&pieces.concat())], &mut no_files, None, now()).map_err(|found| found.to_string());
    }

    #[test]
    fn no_mutation_of_a_policy_makes_it_panic(at in any::<prop::sample::Index>(), cut in 0_usize..8, put in "\\PC{0,4}") {
        let text = include_str!("../../tests/policies/design-example.yaml");
        let characters: Vec<char> = text.chars().collect();
        let at = at.index(characters.len());
        let kept = characters.iter().take(at).chain(characters.iter().skip(at + cut));
        let (before, after): (String, String) = (kept.clone().take(at).collect(), kept.skip(at).collect());
        let mutated = format!("{before}{put}{after}");
        _ = compile(&[source(&mutated)], &mut no_files, None, now()).map_err(|found| found.to_string());
    }

    #[test]
    fn bytes_of_any_kind_are_no_reason_to_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let source = Source { name: "policy.yaml".to_owned(), bytes };
        _ = compile(&[source], &mut no_files, None, now()).map_err(|found| found.to_string());
    }
}
