//! Why a request was decided as it was, for a person: by the same judgement that enforces.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;

use crate::decision::{Decision, OwnAddresses, RuleRef};
use crate::destination::Host;
use crate::name::DomainName;
use crate::rule::{Action, RuleId};
use crate::ruleset::{Lack, Request, RuleSet, lacks};

/// Most near misses that are told: the reader wants the one to mend.
const MAX_NEAR: usize = 5;

/// A decision with what led to it.
#[derive(Debug)]
pub struct Explanation {
    /// The decision.
    pub decision: Decision,
    /// An allow rule that a deny rule overruled.
    pub lost: Option<RuleRef>,
    /// On a denial, the allow rules that came nearest, the nearest first.
    pub near: Vec<Near>,
}

/// An allow rule that did not allow a request.
#[derive(Debug)]
pub struct Near {
    /// The rule.
    pub rule: RuleRef,
    /// Its pattern or destination that came near, where it was not the one asked for.
    pub pattern: Option<String>,
    /// What it lacked; nothing where only the pattern is another.
    pub lacks: Vec<Lack>,
}

impl RuleSet {
    /// Explains a decision.
    #[must_use]
    pub fn explain(self: &Arc<Self>, request: &Request<'_>, now: Timestamp) -> Explanation {
        let decision = self.decide(request, now);
        let judgement = self.judge(request, now);
        let lost = judgement.denied_by.and_then(|_| judgement.allowed_by.first().copied());
        // Where a deny rule decided, no allow rule lacked anything.
        let near =
            if decision.allows() || decision.rule.is_some() { Vec::new() } else { self.near(request, now) };
        Explanation { decision, lost: lost.map(|rule| self.rule_ref(rule)), near }
    }

    /// Why a permit of this decision could not dial an address that the destination was given as.
    #[must_use]
    pub fn explain_address(decision: &Decision, own: &OwnAddresses, now: Timestamp) -> Option<crate::Denial> {
        let permit = decision.permit.as_ref()?;
        permit.vet(permit.destination().host.address()?, own, now).err()
    }

    fn near(self: &Arc<Self>, request: &Request<'_>, now: Timestamp) -> Vec<Near> {
        let mut near = self.near_by_terms(request, now);
        let mut known: HashSet<RuleId> = near.iter().map(|near| near.rule.id()).collect();
        if let Host::Name(name) = &request.destination.host {
            self.names().find_below(&registrable(name), |id, pattern| {
                if near.len() < MAX_NEAR && self.allows(id) && known.insert(id) {
                    let rule = self.rule_ref(id);
                    let lacks = lacks(&rule.terms, request, now).collect();
                    near.push(Near { rule, pattern: Some(pattern), lacks });
                }
            });
        }
        near.truncate(MAX_NEAR);
        near
    }

    /// Rules that speak of the very destination, with what keeps them from allowing it.
    fn near_by_terms(self: &Arc<Self>, request: &Request<'_>, now: Timestamp) -> Vec<Near> {
        let mut near = Vec::new();
        let mut take = |id| {
            if self.allows(id) {
                let rule = self.rule_ref(id);
                let lacks: Vec<Lack> = lacks(&rule.terms, request, now).collect();
                near.push(Near { rule, pattern: None, lacks });
            }
        };
        match &request.destination.host {
            Host::Name(name) => self.each_rule_named(name, take),
            Host::Address(address) => self.each_rule_for(*address, &mut take),
        }
        near.retain(|near| !near.lacks.is_empty());
        near.sort_by_key(|near| near.lacks.len());
        near
    }

    fn allows(&self, id: RuleId) -> bool {
        self.rule(id).is_some_and(|rule| rule.terms.action == Action::Allow)
    }
}

/// The name that was registered, under which a person would look for a rule; the name itself where it is one.
fn registrable(name: &DomainName) -> DomainName {
    psl::domain_str(name.as_str())
        .and_then(|domain| DomainName::parse(domain).ok())
        .unwrap_or_else(|| name.clone())
}
