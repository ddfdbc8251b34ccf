//! What a policy opens or leaves dead without its author meaning to: warnings, never errors.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;

use crate::address::AddressClass;
use crate::pattern::Pattern;
use crate::ranges::PrefixSet;
use crate::rule::{Action, RuleId, Terms};
use crate::ruleset::{RuleSet, Settings};

use super::compile::{Origin, Preset};
use super::raw::{Access, Kind, RawRule, ResolvesTo, some_of};
use super::stores;
use crate::document::{Report, Severity, Span, quoted};

mod kernel;
mod shadow;

use shadow::Shadows;

/// Names of one rule that are kept to look for rules that make it useless. A longer list is hardly ever useless
/// as a whole.
const KEPT_NAMES: usize = 10_000;
/// What is seen of the rules while they are compiled.
#[derive(Default)]
pub(crate) struct Lint {
    /// By the number of the rule.
    rules: Vec<Seen>,
}

/// One rule.
struct Seen {
    id: RuleId,
    name: Arc<str>,
    span: Span,
    origin: Origin,
    kind: Kind,
    action: Action,
    access: Option<Access>,
    limited: bool,
    offload: Option<Span>,
    wide_reach: Option<Span>,
    patterns: Vec<Pattern>,
    names: usize,
    prefixes: PrefixSet,
    risky_prefix: Option<(IpNet, AddressClass)>,
    under_suffix: Examples,
    /// Wildcards over stores where everybody can have an account, and hosts that all accounts share.
    open_stores: Examples,
    /// One account of such a store.
    account: Examples,
}

/// The first of many places, a few of the texts there, and how many there are.
#[derive(Default)]
struct Examples {
    first: Option<Span>,
    texts: Vec<String>,
    more: usize,
}

impl Examples {
    fn add(&mut self, text: String, span: Span) {
        self.first.get_or_insert(span);
        if self.texts.len() < 3 { self.texts.push(quoted(&text)) } else { self.more += 1 }
    }

    fn list(&self) -> String {
        let list = self.texts.join(", ");
        if self.more > 0 { format!("{list} and {} more", self.more) } else { list }
    }
}

impl Lint {
    /// A rule's names and prefixes follow.
    pub(crate) fn begin_rule(&mut self, id: RuleId, raw: &RawRule, origin: Origin, prefixes: &[IpNet]) {
        self.rules.push(Seen {
            id,
            name: Arc::clone(&raw.name.value),
            span: raw.name.span,
            origin,
            kind: raw.kind,
            action: raw.action,
            access: raw.access,
            limited: raw.max_upload.is_some() || raw.max_upload_per_hour.is_some(),
            offload: raw.offload,
            wide_reach: raw.resolves_to.as_ref().and_then(|reach| match &reach.value {
                ResolvesTo::Prefixes(prefixes) if prefixes.iter().any(spans_private_and_public) => {
                    Some(reach.span)
                }
                ResolvesTo::Prefixes(_) | ResolvesTo::Public | ResolvesTo::Private => None,
            }),
            patterns: Vec::new(),
            names: 0,
            prefixes: prefixes.iter().copied().collect(),
            risky_prefix: prefixes.iter().find_map(risk_of),
            under_suffix: Examples::default(),
            open_stores: Examples::default(),
            account: Examples::default(),
        });
    }

    /// A name of the rule that was begun last.
    pub(crate) fn name(&mut self, pattern: &Pattern, span: Span) {
        let Some(rule) = self.rules.last_mut() else { return };
        rule.names += 1;
        if rule.names <= KEPT_NAMES {
            rule.patterns.push(pattern.clone());
        }
        // Denying too much opens nothing, and a private endpoint's answers are private.
        if rule.action == Action::Deny || rule.kind == Kind::PrivateEndpoint {
            return;
        }
        if let Some(suffix) = pattern.wildcard_under_public_suffix() {
            rule.under_suffix.add(suffix.to_owned(), span);
        }
        match stores::opened_by(pattern) {
            Some(stores::Opened::Any) => rule.open_stores.add(pattern.to_string(), span),
            Some(stores::Opened::Account) => rule.account.add(pattern.to_string(), span),
            None => {}
        }
    }

    /// Says what was seen.
    pub(crate) fn finish(self, report: &mut Report, rules: &RuleSet, presets: &[Preset], now: Timestamp) {
        let Settings { isolation, enforcement, .. } = Settings::default();
        let denies = rules.settings().isolation == isolation && rules.settings().enforcement == enforcement;
        if self.rules.is_empty() && denies {
            report
                .overall(Severity::Warning, "the policy has no rules: it denies everything")
                .hint("`presets: [azure-ml, python]`, or rules under `outbound_rules:`");
        }
        let mut shadows = Shadows::new(rules, &self.rules, now);
        for rule in self.rules.iter().filter(|rule| rule.origin == Origin::Own) {
            let Some(terms) = rules.rule(rule.id).map(|rule| Arc::clone(&rule.terms)) else { continue };
            if terms.expires.is_some_and(|expires| expires <= now) {
                expired(report, rule, &terms);
                continue;
            }
            wide(report, rule);
            if rule.action == Action::Allow {
                useless(report, &mut shadows, rule, &terms);
                kernel::out_of_sight(report, rules, &self.rules, rule, &terms);
            }
        }
        self.stores_of_presets(report, presets);
    }

    /// What presets open to strangers is said where they are asked for.
    fn stores_of_presets(&self, report: &mut Report, presets: &[Preset]) {
        for (number, preset) in presets.iter().enumerate() {
            let open = self.rules.iter().filter(|rule| {
                let writable = matches!(rule.access, Some(Access::Write | Access::ReadWrite));
                let wide = rule.open_stores.first.is_some() || rule.under_suffix.first.is_some();
                rule.origin == Origin::Preset(number) && writable && wide
            });
            let names: Vec<String> = open.flat_map(|rule| rule.open_stores.texts.iter().cloned()).collect();
            let mut unique = names;
            unique.sort();
            unique.dedup();
            if !unique.is_empty() {
                let list = some_of(&unique);
                report
                    .warning(
                        preset.asked,
                        format!(
                            "the preset `{}` opens stores that anybody can write to: {list}",
                            preset.name
                        ),
                    )
                    .hint("whoever is let out to these can carry data to an account of their own");
            }
        }
    }
}

/// Warns where other rules leave nothing for this one to do: all of it denied, or all of it allowed already.
fn useless(report: &mut Report, shadows: &mut Shadows<'_>, rule: &Seen, terms: &Terms) {
    let Some(other) = shadows.over(rule, terms) else { return };
    let name = quoted(&rule.name);
    let (message, part, hint) = match other.action {
        Action::Deny => (
            format!("the rule {name} opens nothing: another rule denies all of it"),
            "this rule denies it",
            "a deny rule wins, whatever the order",
        ),
        Action::Allow => (
            format!("the rule {name} adds nothing: another rule allows all of it"),
            "this rule allows it",
            "leave one of the two out",
        ),
    };
    report.overlap(rule.span, message, other.span, part).hint(hint);
}

fn expired(report: &mut Report, rule: &Seen, terms: &Terms) {
    let when = terms.expires.map_or_else(String::new, |expires| format!(" on {expires}"));
    let (verb, rest) = match rule.action {
        Action::Allow => ("opens", "nothing any more"),
        Action::Deny => ("denies", "nothing any more"),
    };
    report
        .warning(rule.span, format!("the rule {} expired{when} and {verb} {rest}", quoted(&rule.name)))
        .hint("leave it out, or give it a later `expires:`");
}

/// Warns of what a rule opens beyond what it names.
fn wide(report: &mut Report, rule: &Seen) {
    if rule.action == Action::Deny {
        return;
    }
    if let Some(span) = rule.under_suffix.first {
        let list = rule.under_suffix.list();
        report
            .warning(span, format!("a wildcard right under a public suffix: {list}"))
            .hint("anybody can get a name there and receive what is sent; list the names that are needed");
    } else if let Some(span) = rule.open_stores.first.filter(|_| !accepted(rule)) {
        let list = rule.open_stores.list();
        report.warning(span, format!("the rule opens a store that can be written to: {list}")).hint(
            "set `max_upload_per_hour:`, deny what is not needed, or say `access: read-write` if that is meant",
        );
    }
    if let Some(span) = rule.account.first.filter(|_| !accepted(rule)) {
        let list = rule.account.list();
        report
            .note(span, format!("the rule opens an account that can be written to: {list}"))
            .hint("if it is yours, say `access: read-write`; a rule of type `private_endpoint` keeps it in your network");
    }
    if rule.kind == Kind::ServiceTag && rule.names == 0 {
        report
            .warning(
                rule.span,
                format!(
                    "nothing will resolve for the rule {}: a tag opens addresses, not names",
                    quoted(&rule.name)
                ),
            )
            .hint("add the names that clients ask for: `names: [login.microsoftonline.com]`");
    }
    if let Some(span) = rule.wide_reach {
        report
            .warning(span, "a prefix takes in private and public addresses alike")
            .hint("`resolves_to: private` or `public`, or the prefixes that are meant");
    }
    if let Some((prefix, class)) = rule.risky_prefix {
        let what = match class {
            AddressClass::Metadata => "a cloud's metadata or platform service, which hands out credentials",
            AddressClass::Loopback => "the gate's own machine",
            AddressClass::LinkLocal
            | AddressClass::Public
            | AddressClass::Private
            | AddressClass::Multicast
            | AddressClass::Unspecified
            | AddressClass::Reserved => "link-local addresses, among them metadata services",
        };
        report
            .warning(rule.span, format!("the rule {} opens {prefix}: {what}", quoted(&rule.name)))
            .hint("leave it out unless clients may have exactly that");
    }
}

/// Whether the author has said that writing is meant, or bounded it.
fn accepted(rule: &Seen) -> bool {
    rule.limited || matches!(rule.access, Some(Access::Write | Access::ReadWrite))
}

fn spans_private_and_public(prefix: &IpNet) -> bool {
    const PRIVATE: [&str; 5] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"];
    let private = PRIVATE.iter().filter_map(|range| range.parse::<IpNet>().ok());
    private.into_iter().any(|range| prefix.contains(&range) && *prefix != range)
}

fn risk_of(prefix: &IpNet) -> Option<(IpNet, AddressClass)> {
    let class = AddressClass::of(prefix.network());
    let risky = matches!(class, AddressClass::Metadata | AddressClass::Loopback | AddressClass::LinkLocal);
    (risky && prefix.prefix_len() >= 8).then_some((*prefix, class))
}

/// The places of rules by name, for the tests of a policy.
pub(crate) fn rule_names(rules: &RuleSet) -> HashMap<&str, RuleId> {
    (0..).map(RuleId).zip(rules.rules()).map(|(id, rule)| (&*rule.name, id)).collect()
}
