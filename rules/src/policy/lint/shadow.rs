//! Rules that other rules leave nothing to do.

use std::sync::Arc;

use jiff::Timestamp;

use super::{KEPT_NAMES, Seen};
use crate::name::DomainName;
use crate::pattern::Pattern;
use crate::rule::{Action, Opens, Protocols, Reach, RuleId, Terms};
use crate::ruleset::RuleSet;

/// Rules that are looked at, all names together, to find those that make others useless. Where a great many
/// rules speak of the same names, the rest is left unsaid: a reload is not to take minutes for a warning.
const LOOKED_AT: usize = 20_000_000;
/// Rules by address that are compared with each other, each with each.
const COMPARED: usize = 500;

/// Looks for rules that make another one useless.
pub(super) struct Shadows<'s> {
    rules: &'s RuleSet,
    seen: &'s [Seen],
    by_address: Vec<&'s Seen>,
    /// Rules that may still be looked at.
    budget: usize,
    now: Timestamp,
}

impl<'s> Shadows<'s> {
    pub(super) fn new(rules: &'s RuleSet, seen: &'s [Seen], now: Timestamp) -> Self {
        let by_address = seen.iter().filter(|rule| !rule.prefixes.is_empty()).take(COMPARED).collect();
        Self { rules, seen, by_address, budget: LOOKED_AT, now }
    }

    /// The rule that denies the last of what an allow rule opens, if all of it is denied; or else the one that
    /// allows the last of it, if all of it is allowed without.
    pub(super) fn over(&mut self, rule: &Seen, terms: &Terms) -> Option<&'s Seen> {
        let found = self
            .taking_over(rule, terms, denies_all_of)
            .or_else(|| self.taking_over(rule, terms, allows_all_of))?;
        self.seen.get(found.0 as usize)
    }

    fn taking_over(&mut self, rule: &Seen, terms: &Terms, judge: Judge) -> Option<RuleId> {
        if rule.names > KEPT_NAMES || self.budget == 0 {
            return None;
        }
        let mut last = None;
        for pattern in &rule.patterns {
            last = Some(self.covering(pattern, rule.id, terms, judge)?);
        }
        if !rule.prefixes.is_empty() {
            let covers = |other: &&&Seen| {
                rule.prefixes.prefixes().all(|prefix| other.prefixes.covers(prefix))
                    && self.takes_over(other.id, rule.id, terms, judge)
            };
            last = Some(self.by_address.iter().find(covers)?.id);
        }
        last
    }

    /// A rule whose pattern covers this one and that takes over.
    fn covering(&mut self, pattern: &Pattern, rule: RuleId, terms: &Terms, judge: Judge) -> Option<RuleId> {
        let name = match pattern {
            Pattern::Exact(name) => name.clone(),
            // The index finds by name: what takes a name that nobody lists takes all names below.
            Pattern::Below(parent) => {
                DomainName::parse(&format!("outgate-nobody-lists-this.{parent}")).ok()?
            }
            // Whether one pattern inside a label covers another cannot be told by the index.
            Pattern::InLabel(_) => return None,
        };
        let (mut found, mut budget) = (None, self.budget);
        self.rules.each_rule_named(&name, |id| {
            if found.is_none() && budget > 0 {
                budget -= 1;
                found = self.takes_over(id, rule, terms, judge).then_some(id);
            }
        });
        self.budget = budget;
        found
    }

    fn takes_over(&self, other: RuleId, rule: RuleId, terms: &Terms, judge: Judge) -> bool {
        let Some(other_terms) = self.rules.rule(other).map(|other| &other.terms) else { return false };
        other != rule
            && other_terms.expires.is_none_or(|expires| expires > self.now)
            && judge(other_terms, terms)
            // Of two that say the same, the later is the one too many.
            && (other < rule || !judge(terms, other_terms))
    }
}

/// Whether the first terms take over everything that the second ones allow.
type Judge = fn(&Terms, &Terms) -> bool;

/// Whether `deny` denies everything that `allow` allows, as far as names and addresses are the same.
fn denies_all_of(deny: &Terms, allow: &Terms) -> bool {
    deny.action == Action::Deny && takes_whom_and_how(deny, allow)
}

/// Whether `wide` allows everything that `narrow` allows, and `narrow` does not narrow it either: the limits of
/// the most specific rule hold, and the strictest word on TLS.
fn allows_all_of(wide: &Terms, narrow: &Terms) -> bool {
    wide.action == Action::Allow
        && narrow.action == Action::Allow
        && takes_whom_and_how(wide, narrow)
        && (wide.opens == Opens::Flows || narrow.opens == Opens::Lookups)
        && takes_addresses(&wide.reach, &narrow.reach)
        && wide.bound_to_names == narrow.bound_to_names
        && (wide.sni, wide.tls_only, wide.offload) == (narrow.sni, narrow.tls_only, narrow.offload)
        && (wide.max_upload, wide.max_upload_per_hour) == (narrow.max_upload, narrow.max_upload_per_hour)
        && narrow.record_types.iter().all(|number| wide.record_types.contains(number))
}

fn takes_whom_and_how(wide: &Terms, narrow: &Terms) -> bool {
    let sources = wide.sources.covers(&narrow.sources);
    let protocol = wide.protocol == Protocols::Any || wide.protocol == narrow.protocol;
    let lasts = wide.expires.is_none_or(|wide| narrow.expires.is_some_and(|narrow| narrow <= wide));
    // What only looks names up asks for no port.
    let ports = narrow.opens == Opens::Lookups || wide.ports.covers(&narrow.ports);
    sources && (protocol || narrow.opens == Opens::Lookups) && ports && lasts
}

fn takes_addresses(wide: &Reach, narrow: &Reach) -> bool {
    match (wide, narrow) {
        (Reach::Public, Reach::Public) | (Reach::Private, Reach::Private) => true,
        (Reach::Prefixes(wide), Reach::Prefixes(narrow)) => {
            Arc::ptr_eq(wide, narrow) || narrow.set().prefixes().all(|prefix| wide.set().covers(prefix))
        }
        (Reach::Pinned(wide), Reach::Pinned(narrow)) => wide == narrow,
        (Reach::Public | Reach::Private | Reach::Prefixes(_) | Reach::Pinned(_), _) => false,
    }
}
