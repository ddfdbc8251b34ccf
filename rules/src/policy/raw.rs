//! A policy as written: each field with its place, checked by itself and not yet against the others.

use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;

use crate::port::PortSet;
use crate::rule::{Action, Protocols, SniCheck};
use crate::ruleset::{Enforcement, Isolation, OnRevoke};

use super::expectation::{RawTest, read_test};
use super::values;
use crate::document::{
    Fields, Key, Node, Placed, Report, Span, Value, duration, kind, nearest, parse_at, prefix, quoted, texts,
    unknown_key,
};

mod rule;

pub(crate) use rule::{Access, Kind, RawRule, ResolvesTo};

/// One file of a policy.
#[derive(Debug, Default)]
pub(crate) struct RawPolicy {
    /// At most two: beside `managed_network` and inside it.
    pub(crate) isolation: Vec<Placed<Isolation>>,
    pub(crate) enforcement: Option<Placed<Enforcement>>,
    pub(crate) on_revoke: Option<Placed<OnRevoke>>,
    pub(crate) presets: Vec<Placed<String>>,
    pub(crate) parameters: Vec<(Placed<String>, Placed<String>)>,
    pub(crate) service_tags: Vec<Placed<String>>,
    pub(crate) groups: Vec<(Placed<String>, Vec<IpNet>)>,
    pub(crate) rules: Vec<RawRule>,
    pub(crate) tests: Vec<RawTest>,
}

const KEYS: [&str; 10] = [
    "isolation_mode",
    "enforcement",
    "presets",
    "parameters",
    "service_tags",
    "on_revoke",
    "sources",
    "outbound_rules",
    "tests",
    "managed_network",
];

/// Keys of an Azure ML workspace that look like a slip of one of ours and are none.
const WORKSPACE_KEYS: [&str; 4] = ["$schema", "name", "tags", "identity"];

const NETWORK_KEYS: [&str; 2] = ["isolation_mode", "outbound_rules"];

/// What exports of a managed network say beside its rules.
const NETWORK_IGNORED: [&str; 8] = [
    "firewall_sku",
    "firewall_public_ip_address",
    "status",
    "network_id",
    "provision_network_now",
    "changeable_isolation_modes",
    "enable_network_monitor",
    "managed_network_kind",
];

const ISOLATION: [(&str, Option<Isolation>); 3] = [
    ("allow_only_approved_outbound", Some(Isolation::AllowOnlyApprovedOutbound)),
    ("allow_internet_outbound", Some(Isolation::AllowInternetOutbound)),
    ("disabled", None),
];

const ENFORCEMENT: [(&str, Enforcement); 2] =
    [("enforce", Enforcement::Enforce), ("report", Enforcement::Report)];

/// Reads a file's tree. Whatever can be read is there, beside what was reported.
pub(crate) fn read(report: &mut Report, root: &Node) -> RawPolicy {
    if matches!(root.value, Value::Null) {
        return RawPolicy::default();
    }
    let Some(fields) = Fields::of(report, root, "a policy: a mapping of keys such as `outbound_rules`")
    else {
        return RawPolicy::default();
    };
    let mut ignored = Ignored::default();
    check_keys(report, &fields);
    let mut policy = RawPolicy {
        isolation: isolation(report, &fields).into_iter().collect(),
        enforcement: fields.word(report, "enforcement", &ENFORCEMENT),
        on_revoke: on_revoke(report, &fields),
        presets: fields.texts(report, "presets").unwrap_or_default(),
        parameters: parameters(report, &fields),
        service_tags: fields.texts(report, "service_tags").unwrap_or_default(),
        groups: groups(report, &fields),
        rules: rules(report, &fields, &mut ignored),
        tests: tests(report, &fields),
    };
    if let Some(network) = fields.get("managed_network") {
        managed_network(report, network, &mut policy, &mut ignored);
    }
    ignored.note(report);
    duplicate_names(report, &policy.rules);
    policy
}

/// An unknown key is an error; beside `managed_network` it belongs to the workspace, unless it is a slip.
fn check_keys(report: &mut Report, fields: &Fields<'_>) {
    if fields.get("managed_network").is_none() {
        return fields.only(report, &KEYS);
    }
    let unknown =
        || fields.entries().iter().map(|(key, _)| key).filter(|key| !KEYS.contains(&key.text.as_str()));
    let slip =
        |key: &&Key| !WORKSPACE_KEYS.contains(&key.text.as_str()) && nearest(&key.text, KEYS).is_some();
    for key in unknown().filter(slip) {
        unknown_key(report, key, &KEYS);
    }
    let others: Vec<String> = unknown().filter(|key| !slip(key)).map(|key| quoted(&key.text)).collect();
    if let Some(span) = fields.key("managed_network").filter(|_| !others.is_empty()) {
        report.note(span, format!("the workspace's other keys are ignored: {}", some_of(&others)));
    }
}

/// The block that `az ml workspace create -f` takes.
fn managed_network(report: &mut Report, node: &Node, policy: &mut RawPolicy, ignored: &mut Ignored) {
    if matches!(node.value, Value::Null) {
        return;
    }
    let Some(fields) = Fields::of(report, node, "the mapping of a managed network") else { return };
    for (key, _) in fields.entries() {
        match key.text.as_str() {
            known if NETWORK_KEYS.contains(&known) => {}
            read_only if NETWORK_IGNORED.contains(&read_only) => ignored.add(key),
            ours if KEYS.contains(&ours) => {
                report
                    .error(key.span, format!("`{ours}` is not part of a managed network"))
                    .hint("put it beside `managed_network`, not inside");
            }
            _ => unknown_key(report, key, &NETWORK_KEYS),
        }
    }
    policy.isolation.extend(isolation(report, &fields));
    policy.rules.extend(rules(report, &fields, ignored));
}

fn isolation(report: &mut Report, fields: &Fields<'_>) -> Option<Placed<Isolation>> {
    let mode = fields.word(report, "isolation_mode", &ISOLATION)?;
    if mode.value.is_none() {
        report.error(mode.span, "`disabled` would leave nothing to enforce").hint(
            "to let every name pass, say `allow_internet_outbound`; to record without denying, say \
             `enforcement: report`; to filter nothing, route past the gate",
        );
    }
    mode.value.map(|value| Placed::new(value, mode.span))
}

fn on_revoke(report: &mut Report, fields: &Fields<'_>) -> Option<Placed<OnRevoke>> {
    let node = fields.get("on_revoke")?;
    if !matches!(node.value, Value::Map(_)) {
        return fields.parsed(report, "on_revoke", values::on_revoke);
    }
    let inner = Fields::of(report, node, "`close`, `keep` or {drain: 60s}")?;
    inner.only(report, &["drain"]);
    let drain = inner.parsed(report, "drain", duration)?;
    Some(Placed::new(OnRevoke::Drain(drain.value), node.span))
}

fn parameters(report: &mut Report, fields: &Fields<'_>) -> Vec<(Placed<String>, Placed<String>)> {
    let Some(node) = fields.get("parameters") else { return Vec::new() };
    let Some(fields) = Fields::of(report, node, "a mapping of parameters, as in {region: westeurope}") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (key, _) in fields.entries() {
        let name = |text: &str| values::identifier(text, "a parameter").map(|()| text.to_owned());
        let value = |text: &str| values::parameter_value(text).map(|()| text.to_owned());
        let name = parse_at(report, &key.text, key.span, name);
        let value = fields.parsed(report, &key.text, value);
        found.extend(name.zip(value));
    }
    found
}

fn groups(report: &mut Report, fields: &Fields<'_>) -> Vec<(Placed<String>, Vec<IpNet>)> {
    let Some(node) = fields.get("sources") else { return Vec::new() };
    let Some(fields) =
        Fields::of(report, node, "a mapping of source groups, as in {training: [10.1.0.0/24]}")
    else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (key, _) in fields.entries() {
        let name = |text: &str| values::identifier(text, "a source group").map(|()| text.to_owned());
        let name = parse_at(report, &key.text, key.span, name);
        let prefixes = fields.all_parsed(report, &key.text, prefix);
        let prefixes = prefixes.map(|prefixes| prefixes.into_iter().map(|prefix| prefix.value).collect());
        found.extend(name.zip(prefixes));
    }
    found
}

/// The rules: a list, or, in older exports, a mapping from names.
fn rules(report: &mut Report, fields: &Fields<'_>, ignored: &mut Ignored) -> Vec<RawRule> {
    let Some(node) = fields.get("outbound_rules") else { return Vec::new() };
    match &node.value {
        Value::List(items) => {
            items.iter().filter_map(|item| rule::read(report, item, None, ignored)).collect()
        }
        Value::Map(entries) => {
            entries.iter().filter_map(|(key, item)| rule::read(report, item, Some(key), ignored)).collect()
        }
        // No rule is what a list without items says, too.
        Value::Null | Value::Invalid => Vec::new(),
        Value::Text(_) => {
            report
                .error(node.span, format!("`outbound_rules` is a list of rules, found {}", kind(node)))
                .hint("as in `- {name: pypi, type: fqdn, destination: pypi.org}`");
            Vec::new()
        }
    }
}

fn tests(report: &mut Report, fields: &Fields<'_>) -> Vec<RawTest> {
    let items = fields.list(report, "tests").unwrap_or_default();
    items.iter().filter_map(|item| read_test(report, item)).collect()
}

fn duplicate_names(report: &mut Report, rules: &[RawRule]) {
    let mut places = std::collections::HashMap::new();
    for rule in rules {
        match places.get(&rule.name.value) {
            None => _ = places.insert(Arc::clone(&rule.name.value), rule.name.span),
            Some(first) => {
                let message = format!("two rules are named {}", quoted(&rule.name.value));
                report
                    .conflict(rule.name.span, message, *first, "first here")
                    .hint("records and tests tell rules apart by name: give one of them another");
            }
        }
    }
}

/// Keys that Azure's exports have and that say nothing here.
#[derive(Debug, Default)]
pub(crate) struct Ignored {
    first: Option<Span>,
    keys: std::collections::BTreeSet<String>,
}

impl Ignored {
    pub(crate) fn add(&mut self, key: &Key) {
        self.first.get_or_insert(key.span);
        self.keys.insert(quoted(&key.text));
    }

    fn note(&self, report: &mut Report) {
        let Some(first) = self.first else { return };
        let keys: Vec<String> = self.keys.iter().cloned().collect();
        report.note(first, format!("keys that only mean something to Azure are ignored: {}", some_of(&keys)));
    }
}

/// The first few of a list, and how many more.
pub(crate) fn some_of(texts: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = texts.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match texts.len().checked_sub(SHOWN) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}
