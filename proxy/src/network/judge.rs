//! Why the kernel passed or refused a packet, in the words of the rules.
//!
//! The kernel tells what it did and, where a rule made it do so, the rule's number. The rest is asked of the same
//! [`RuleSet::decide`] that made the kernel's rules, so that a record of a packet names what is missing or what
//! would have denied it as a record of a connection does.

use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use outgate_rules::rule::Action;
use outgate_rules::{
    Decision, Destination, DomainName, Enforcement, Isolation, OwnAddresses, Port, Protocol, Reason, Request,
    RuleRef, RuleSet, Settings,
};

use super::{Logged, Prefix, Told};
use crate::record::Forwarded;
use crate::record::network::Packets;

/// Revisions that a message may still be of: those in the kernel's queue when a reload comes, and a reload or
/// two behind it.
const REVISIONS: usize = 4;

/// Gives the rules in force.
pub type RulesInForce = Box<dyn Fn() -> Arc<RuleSet> + Send>;
/// Gives the names that a client was told an address for, the latest first.
pub type NamesTold = Box<dyn Fn(IpAddr, IpAddr) -> Vec<DomainName> + Send>;

/// Knows the rules of the last revisions, and what clients were told.
pub(crate) struct Judge {
    in_force: RulesInForce,
    names: NamesTold,
    /// The latest first.
    revisions: VecDeque<Arc<RuleSet>>,
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge").field("revisions", &self.revisions.len()).finish_non_exhaustive()
    }
}

impl Judge {
    pub(crate) fn new(in_force: RulesInForce, names: NamesTold) -> Self {
        let revisions = VecDeque::from([in_force()]);
        Self { in_force, names, revisions }
    }

    /// Looks whether there is a new revision. To be called now and then, lest one is missed.
    pub(crate) fn refresh(&mut self) {
        let rules = (self.in_force)();
        if !self.revisions.iter().any(|known| Arc::ptr_eq(known, &rules)) {
            self.revisions.push_front(rules);
            self.revisions.truncate(REVISIONS);
        }
    }

    /// What there is to say of a packet that the kernel told of.
    pub(crate) fn logged(&mut self, logged: &Logged, time: Timestamp) -> Forwarded {
        let Logged { prefix, packets, .. } = *logged;
        if self.of_revision(&prefix).is_none() {
            self.refresh();
        }
        let rules = self.of_revision(&prefix);
        let settings = rules.as_ref().map(|rules| rules.settings());
        let rule = rules.as_ref().and_then(|rules| rules.rule_numbered(prefix.rule?));
        let decision = rules.as_ref().and_then(|rules| decide(rules, &packets, time));
        let (name, why) = match prefix.told {
            Told::Passed => (None, passed(rule, decision, settings)),
            Told::PassedByName => self.by_name(rules.as_ref(), &packets, held(settings), time),
            Told::WouldRefuse => (None, would_refuse(decision, &packets)),
            Told::Refused if rule.is_some() => (None, (Reason::DenyRule, rule, Enforcement::Enforce)),
            Told::Refused => (None, refused(decision, &packets, time)),
            Told::NotServed => (None, (Reason::ClientNotServed, None, Enforcement::Enforce)),
            Told::RefusedQuic => (None, (Reason::Quic, None, Enforcement::Enforce)),
        };
        let (reason, rule, enforcement) = why;
        let revision = Some(prefix.revision);
        Forwarded { time, packets, name, reason, rule, enforcement, revision, count: 1 }
    }

    /// What there is to say of a flow that passed, where its first packet was not told of.
    pub(crate) fn unseen(&mut self, packets: Packets, by_name: bool, time: Timestamp) -> Forwarded {
        self.refresh();
        let told = if by_name { Told::PassedByName } else { Told::Passed };
        let revision = (self.in_force)().settings().revision;
        self.logged(&Logged { prefix: Prefix { told, rule: None, revision }, packets, sequence: None }, time)
    }

    fn of_revision(&self, prefix: &Prefix) -> Option<Arc<RuleSet>> {
        self.revisions.iter().find(|rules| rules.settings().revision == prefix.revision).cloned()
    }

    /// The name that lets a client use an address that it was told, and the rule that says so.
    fn by_name(
        &self,
        rules: Option<&Arc<RuleSet>>,
        packets: &Packets,
        held: Enforcement,
        time: Timestamp,
    ) -> (Option<DomainName>, Why) {
        let names = (self.names)(packets.client.ip(), packets.destination.ip());
        let port = Port::new(packets.destination.port());
        let by_rule = |name: &DomainName| {
            let destination = Destination::name(name.clone(), port?);
            let protocol = packets.protocol.of_rules()?;
            let request = Request { client: packets.client.ip(), destination: &destination, protocol };
            rules?.decide(&request, time).rule.filter(|rule| rule.terms.action == Action::Allow)
        };
        let found = names.iter().find_map(|name| by_rule(name).map(|rule| (name.clone(), rule)));
        let (name, rule) = found.unzip();
        (name.or_else(|| names.into_iter().next()), (Reason::Rule, rule, held))
    }
}

type Why = (Reason, Option<RuleRef>, Enforcement);

/// What the rules say of the address; none where they have no word for the protocol.
fn decide(rules: &Arc<RuleSet>, packets: &Packets, time: Timestamp) -> Option<Decision> {
    let protocol = packets.protocol.of_rules()?;
    // ICMP has no port, and no rule asks for it.
    let port = Port::new(packets.destination.port()).or((protocol == Protocol::Icmp).then_some(Port::HTTP))?;
    let destination = Destination::address(packets.destination.ip(), port);
    Some(rules.decide(&Request { client: packets.client.ip(), destination: &destination, protocol }, time))
}

/// A rule let it pass, or the mode. A deny rule that is suspended is told of all the same.
fn passed(rule: Option<RuleRef>, decision: Option<Decision>, settings: Option<&Settings>) -> Why {
    let held = held(settings);
    match (decision, rule) {
        (Some(decision), _) if held == Enforcement::Report && !decision.allows() => {
            (decision.reason, decision.rule, held)
        }
        (_, Some(rule)) => (Reason::Rule, Some(rule), held),
        (Some(decision), None) if decision.allows() => (decision.reason, decision.rule, held),
        // Of a flow that began under other rules, or over a protocol that rules have no word for.
        (Some(_) | None, None) => {
            let mode = settings.map(|settings| settings.isolation);
            let by_mode = mode == Some(Isolation::AllowInternetOutbound);
            (if by_mode { Reason::InternetMode } else { Reason::Rule }, None, held)
        }
    }
}

fn held(settings: Option<&Settings>) -> Enforcement {
    settings.map_or(Enforcement::Enforce, |settings| settings.enforcement)
}

/// It passed because verdicts are suspended.
fn would_refuse(decision: Option<Decision>, packets: &Packets) -> Why {
    let is_quic = packets.protocol.of_rules() == Some(Protocol::Udp) && packets.destination.port() == 443;
    let (reason, rule) = match decision {
        Some(decision) if !decision.allows() => (decision.reason, decision.rule),
        Some(decision) if is_quic && decision.rule.is_none() => (Reason::Quic, None),
        Some(decision) => (decision.reason, decision.rule),
        None => (Reason::NoRule, None),
    };
    (reason, rule, Enforcement::Report)
}

/// No rule let it pass: what came nearest says why, or else its address.
fn refused(decision: Option<Decision>, packets: &Packets, time: Timestamp) -> Why {
    let Some(decision) = decision else { return (Reason::NoRule, None, Enforcement::Enforce) };
    let (said, by) = (decision.reason, decision.rule.clone());
    let vetted = decision.into_permit().map(|permit| {
        permit
            .vet(packets.destination.ip(), &OwnAddresses::default(), time)
            .err()
            .map(|denial| (denial.reason, denial.rule))
    });
    let (reason, rule) = match vetted {
        // It was refused by its address; in report mode too, whatever the rules said.
        Ok(Some(denial)) => denial,
        Ok(None) | Err(_) if !said.allows() => (said, by),
        Ok(None) | Err(_) => (Reason::NoRule, None),
    };
    (reason, rule, Enforcement::Enforce)
}
