//! Decisions on flows whose clients know nothing of the gate: there is an address that they chose, perhaps a name
//! inside, and perhaps an answer that we gave them.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use crate::decision::Decision;
use crate::destination::Destination;
use crate::name::DomainName;
use crate::port::Port;
use crate::reason::Reason;
use crate::rule::Protocol;
use crate::ruleset::{Enforcement, Request, RuleSet};

/// A TCP flow that was redirected to the gate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Intercepted {
    /// The address that the client dialled: the original destination. None for a client that was sent to a
    /// listener by DNS, and so dialled the gate itself.
    pub original: Option<IpAddr>,
    /// The port that it dialled.
    pub port: Port,
    /// What is known of the name that it wants.
    pub seen: Seen,
}

/// What is known of the name that an intercepted flow is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    /// The one name in a ClientHello or a Host field.
    Name(DomainName),
    /// Nothing can be seen on such a port, or before the origin has spoken. These are the names, if any, for which
    /// this very client was told the address.
    Told(Vec<DomainName>),
    /// A name should be seen and is not, for this reason.
    Nothing(Reason),
}

impl RuleSet {
    /// Decides on an intercepted flow of `client`.
    ///
    /// A deny rule on the address or the name wins. A name that a rule allows comes next, and its permit is one for
    /// the name: it leads to the name's own addresses, whatever address the client chose. Then comes a rule that
    /// covers the original destination, and that permit is one for exactly this address; then an answer that the
    /// client was given; and then the mode.
    #[must_use]
    pub fn decide_intercepted(
        self: &Arc<Self>,
        client: IpAddr,
        flow: &Intercepted,
        now: Timestamp,
    ) -> Decision {
        let decide = |destination: &Destination| {
            self.decide(&Request { client, destination, protocol: Protocol::Tcp }, now)
        };
        let by_address = flow.original.map(|address| decide(&Destination::address(address, flow.port)));
        let by_address = match by_address {
            Some(denied) if denied.reason == Reason::DenyRule => return denied,
            by_address => by_address,
        };
        match &flow.seen {
            Seen::Name(name) => {
                let by_name = decide(&Destination::name(name.clone(), flow.port));
                self.by_seen_name(name, by_name, by_address, now)
            }
            Seen::Told(names) => {
                let by_told_name = |name: &DomainName| decide(&Destination::name(name.clone(), flow.port));
                self.by_told_names(flow, names, by_told_name, by_address)
            }
            Seen::Nothing(reason) => self.by_no_name(*reason, by_address),
        }
    }

    /// A name was seen. Where no rule speaks for it, one that covers the address may, unless that rule is for
    /// other names.
    fn by_seen_name(
        self: &Arc<Self>,
        name: &DomainName,
        by_name: Decision,
        by_address: Option<Decision>,
        now: Timestamp,
    ) -> Decision {
        if matches!(by_name.reason, Reason::Rule | Reason::DenyRule) {
            return by_name;
        }
        match by_address {
            Some(mut covered) if covered.reason == Reason::Rule => {
                match covered.permit.as_ref().map(|permit| permit.vet_seen_name(name, now)) {
                    Some(Ok(None)) => covered,
                    // The mode may still allow the name.
                    _ if by_name.allows() => by_name,
                    Some(Ok(Some(denial)) | Err(denial)) => {
                        covered.permit = covered.permit.filter(|_| self.is_suspended());
                        Decision { reason: denial.reason, rule: denial.rule, ..covered }
                    }
                    None => by_name,
                }
            }
            _ => by_name,
        }
    }

    /// No name can be seen. Ports 80 and 443 have names to be seen, so what a client was told opens none there.
    fn by_told_names(
        self: &Arc<Self>,
        flow: &Intercepted,
        names: &[DomainName],
        by_told_name: impl Fn(&DomainName) -> Decision,
        by_address: Option<Decision>,
    ) -> Decision {
        let has_names_inside = matches!(flow.port, Port::HTTP | Port::HTTPS);
        match by_address {
            Some(covered) if covered.reason != Reason::Rule && !has_names_inside => {
                let decisions = names.iter().map(by_told_name);
                let allowed = decisions.filter(|decision| decision.reason == Reason::Rule);
                told(flow.original, allowed).unwrap_or(covered)
            }
            // A Host that is the address itself shows no name.
            Some(covered) if covered.reason == Reason::Rule && has_names_inside => {
                self.by_no_name(Reason::SniNotInRule, Some(covered))
            }
            Some(covered) => covered,
            None => self.denied(Reason::NoRule),
        }
    }

    /// A name should be there and is not. What a rule opens for certain names it does not open to a client that
    /// shows none.
    fn by_no_name(self: &Arc<Self>, reason: Reason, by_address: Option<Decision>) -> Decision {
        let Some(mut covered) = by_address else { return self.denied(reason) };
        let bound = covered.permit.as_ref().and_then(|permit| permit.first_bound_to_names());
        if covered.allows() && bound.is_none() {
            return covered;
        }
        covered.permit = covered.permit.filter(|_| self.is_suspended());
        Decision { reason, rule: bound.map(|rule| self.rule_ref(rule)), nearest: None, ..covered }
    }

    /// A denial that not even report mode can let pass: there is no address to dial.
    fn denied(self: &Arc<Self>, reason: Reason) -> Decision {
        let settings = self.settings();
        Decision {
            reason,
            rule: None,
            nearest: None,
            enforcement: Enforcement::Enforce,
            revision: settings.revision,
            permit: None,
        }
    }

    fn is_suspended(&self) -> bool {
        self.settings().enforcement == Enforcement::Report
    }
}

/// The first of the decisions on told names, with a permit for the address that was told. The names of the others
/// may be seen inside as well.
fn told(original: Option<IpAddr>, mut allowed: impl Iterator<Item = Decision>) -> Option<Decision> {
    let mut first = allowed.next()?;
    let others = allowed.filter_map(|decision| decision.permit?.name().cloned()).collect();
    first.permit = first.permit.map(|permit| permit.told(original, others));
    Some(first)
}

#[cfg(test)]
mod tests;
