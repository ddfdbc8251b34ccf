//! What a rule says in vain of the traffic that a transparent gate's kernel passes by itself: it sees addresses,
//! protocols and ports, and nothing inside.

use super::{Kind, Seen};
use crate::document::{Report, plural, quoted};
use crate::port::PortSet;
use crate::rule::{Action, Protocol, Protocols, Terms};
use crate::ruleset::RuleSet;

/// Warns of what an allow rule says and the kernel cannot hold.
pub(super) fn out_of_sight(report: &mut Report, rules: &RuleSet, seen: &[Seen], rule: &Seen, terms: &Terms) {
    let name = quoted(&rule.name);
    let denies = seen.iter().filter(|deny| deny.action == Action::Deny && deny.names > 0);
    let out_of_sight = denies
        .filter_map(|deny| rules.rule(deny.id))
        .filter(|deny| {
            deny.terms.protocol.contains(Protocol::Tcp) && overlap(&deny.terms.ports, &terms.ports)
        })
        .count();
    if let (Some(span), 1..) = (rule.offload, out_of_sight) {
        let denies = plural(out_of_sight, "deny rule");
        report
            .warning(
                span,
                format!("the kernel passes the TCP of {name} unseen: {denies} by name cannot hold there"),
            )
            .hint("leave `offload` out and the gate looks for the name, or deny addresses");
    }
    if rule.limited && terms.protocol != Protocols::One(Protocol::Tcp) {
        report.warning(rule.span, format!("the upload limits of {name} hold for TCP alone")).hint(
            "the kernel passes the rest and does not count: write a rule without limits for it, or none",
        );
    }
    let by_name = matches!(rule.kind, Kind::Fqdn | Kind::PrivateEndpoint);
    if by_name && terms.protocol == Protocols::One(Protocol::Icmp) {
        report
            .warning(
                rule.span,
                format!("the rule {name} opens nothing: a name is told for ports, and ICMP has none"),
            )
            .hint("write a rule of type `address` for it");
    }
    if by_name && terms.protocol == Protocols::One(Protocol::Udp) && overlap(&terms.ports, &PortSet::web()) {
        report
            .warning(
                rule.span,
                format!("the rule {name} does not open UDP to 80 and 443: no name opens those"),
            )
            .hint("QUIC has its names encrypted: clients fall back to TLS over TCP, where they are seen");
    }
}

fn overlap(a: &PortSet, b: &PortSet) -> bool {
    a.without(b) != *a
}
