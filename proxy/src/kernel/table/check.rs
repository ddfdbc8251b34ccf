//! Whether a table holds together, before the kernel or a reader sees it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use thiserror::Error;

use super::{
    Addresses, Chain, Contents, Expr, Family, HookKind, HookPlace, LOOSE_SOURCE_ROUTE, Mark, Match, Rule,
    STRICT_SOURCE_ROUTE, Set, Statement, TCP, Table, UDP, Verdict,
};

/// Protocols that have ports where TCP has them: TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u8; 5] = [TCP, UDP, 33, 132, 136];
/// Record route, loose and strict source route, router alert.
const OPTIONS: [u8; 4] = [7, LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE, 148];
/// A name and the generation that is set behind it stay well under what the kernel takes (255 bytes).
const NAME_BYTES: usize = 200;
/// What the kernel takes for the name of an interface.
const INTERFACE_BYTES: usize = 15;

/// Why a table does not hold together. Each is a mistake of whoever made the table.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{place}: {fault}")]
pub struct Flaw {
    place: String,
    fault: &'static str,
}

impl Table {
    /// Checks what the kernel would refuse without saying where, and what it would take though it cannot be
    /// meant: a name that is none, a jump or look-up that leads nowhere, an empty list, ports of a protocol
    /// that has none.
    ///
    /// # Errors
    /// The first flaw.
    pub fn check(&self) -> Result<(), Flaw> {
        named("table", &self.name)?;
        let names = Names::of(self)?;
        self.sets.iter().try_for_each(|set| names.check_set(set))?;
        self.chains.iter().try_for_each(|chain| names.check_chain(chain))
    }
}

/// What a rule may refer to.
struct Names<'a> {
    sets: HashMap<&'a str, &'a Contents>,
    jumped_to: HashSet<&'a str>,
}

impl<'a> Names<'a> {
    fn of(table: &'a Table) -> Result<Self, Flaw> {
        let mut sets = HashMap::new();
        for set in &table.sets {
            named("set", &set.name)?;
            let twin = sets.insert(set.name.as_str(), &set.contents);
            ensure(twin.is_none(), || format!("set {}", set.name), "there are two of that name")?;
        }
        let (mut chains, mut jumped_to) = (HashSet::new(), HashSet::new());
        for chain in &table.chains {
            named("chain", &chain.name)?;
            let fresh = chains.insert(chain.name.as_str());
            ensure(fresh, || format!("chain {}", chain.name), "there are two of that name")?;
            if chain.hook.is_none() {
                jumped_to.insert(chain.name.as_str());
            }
        }
        Ok(Self { sets, jumped_to })
    }

    fn check_set(&self, set: &Set) -> Result<(), Flaw> {
        let place = || format!("set {}", set.name);
        match &set.contents {
            Contents::Addresses(family, ranges) => {
                let fits = ranges.iter().all(|range| of_family(range, *family));
                ensure(fits, place, "a range is empty or of the other family")
            }
            Contents::Ports(ranges) => {
                ensure(!ranges.iter().any(RangeInclusive::is_empty), place, "an empty range")
            }
            Contents::Dispatch(family, verdicts) => {
                let fits = verdicts.iter().all(|(range, _)| of_family(range, *family));
                ensure(fits, place, "a range is empty or of the other family")?;
                ensure(disjoint(verdicts), place, "two ranges overlap")?;
                let known = verdicts.iter().all(|(_, verdict)| self.leads_somewhere(verdict));
                ensure(known, place, "a verdict leads to a chain that is not there or has a hook")
            }
            Contents::Told(_, limits) | Contents::Ways(_, limits) => {
                ensure(limits.size > 0, place, "it can hold nothing")
            }
        }
    }

    fn check_chain(&self, chain: &Chain) -> Result<(), Flaw> {
        chain.rules.iter().enumerate().try_for_each(|(index, rule)| {
            let place = || format!("chain {}, rule {}", chain.name, index + 1);
            self.fault_in(chain, rule).map_or(Ok(()), |fault| Err(Flaw { place: place(), fault }))
        })
    }

    fn fault_in(&self, chain: &Chain, rule: &Rule) -> Option<&'static str> {
        let mut protocols: &[u8] = &[];
        for (index, expression) in rule.expressions.iter().enumerate() {
            let fault = match expression {
                Expr::Is(Match::Protocol(numbers)) => {
                    protocols = numbers;
                    numbers.is_empty().then_some("no protocol is listed")
                }
                Expr::Is(a_match) | Expr::IsNot(a_match) => self.fault_in_match(a_match, protocols),
                Expr::Dispatch { map, .. } => self.fault_in_dispatch(map),
                Expr::Do(statement) => fault_in_statement(statement, chain, protocols),
                Expr::Verdict(verdict) => self.fault_in_verdict(verdict, index + 1 == rule.expressions.len()),
            };
            if fault.is_some() {
                return fault;
            }
        }
        None
    }

    fn fault_in_match(&self, a_match: &Match, protocols: &[u8]) -> Option<&'static str> {
        match a_match {
            Match::Protocol(numbers) => numbers.is_empty().then_some("no protocol is listed"),
            Match::InputInterface(name) | Match::OutputInterface(name) => {
                (!is_interface(name)).then_some("that is not the name of an interface")
            }
            Match::Mark(mark) | Match::CtMark(mark) => fault_in_mark(*mark),
            Match::Address(_, addresses) => self.fault_in_addresses(addresses),
            Match::DestinationPort(ranges) | Match::SourcePort(ranges) => {
                fault_in_ports(ranges).or_else(|| without_ports(protocols))
            }
            Match::DestinationPortIn(name) => match self.sets.get(name.as_str()) {
                Some(Contents::Ports(_)) => without_ports(protocols),
                Some(_) => Some("ports are looked up in a set of something else"),
                None => Some("ports are looked up in a set that is not there"),
            },
            Match::CtState(states) => states.is_empty().then_some("no state is listed"),
            Match::Told(name) => match self.sets.get(name.as_str()) {
                Some(Contents::Told(..)) => None,
                Some(_) => Some("a flow is looked up in a set of something else"),
                None => Some("a flow is looked up in a set that is not there"),
            },
            Match::Way(name) => match self.sets.get(name.as_str()) {
                Some(Contents::Ways(..)) => None,
                Some(_) => Some("a way is looked up in a set of something else"),
                None => Some("a way is looked up in a set that is not there"),
            },
            Match::Ipv4Option(number) => {
                (!OPTIONS.contains(number)).then_some("an IPv4 option that nftables has no word for")
            }
            Match::Nfproto(_)
            | Match::SocketUser(_)
            | Match::IcmpType(..)
            | Match::CtDirection(_)
            | Match::LocalDestination
            | Match::TransparentSocket
            | Match::RoutingHeader => None,
        }
    }

    fn fault_in_addresses(&self, addresses: &Addresses) -> Option<&'static str> {
        match addresses {
            Addresses::In(name) => match self.sets.get(name.as_str()) {
                Some(Contents::Addresses(..)) => None,
                Some(_) => Some("an address is looked up in a set of something else"),
                None => Some("an address is looked up in a set that is not there"),
            },
            Addresses::Ranges(ranges) => {
                let Some(first) = ranges.first() else { return Some("no address is listed") };
                let family = Family::of(*first.start());
                let fits = ranges.iter().all(|range| of_family(range, family));
                (!fits).then_some("a range is empty or of another family than the first")
            }
        }
    }

    fn fault_in_dispatch(&self, map: &str) -> Option<&'static str> {
        match self.sets.get(map) {
            Some(Contents::Dispatch(..)) => None,
            Some(_) => Some("a verdict is looked up in a set that has none"),
            None => Some("a verdict is looked up in a map that is not there"),
        }
    }

    fn fault_in_verdict(&self, verdict: &Verdict, last: bool) -> Option<&'static str> {
        if !last {
            return Some("something stands behind a verdict");
        }
        (!self.leads_somewhere(verdict)).then_some("it leads to a chain that is not there or has a hook")
    }

    fn leads_somewhere(&self, verdict: &Verdict) -> bool {
        match verdict {
            Verdict::Jump(chain) | Verdict::Goto(chain) => self.jumped_to.contains(chain.as_str()),
            Verdict::Accept | Verdict::Drop | Verdict::Return => true,
        }
    }
}

fn fault_in_statement(statement: &Statement, chain: &Chain, protocols: &[u8]) -> Option<&'static str> {
    match statement {
        Statement::Tproxy(_)
            if protocols.is_empty() || !protocols.iter().all(|number| [TCP, UDP].contains(number)) =>
        {
            Some("TPROXY is for TCP and UDP, and the rule does not match them first")
        }
        Statement::Tproxy(_) => outside(chain, HookKind::Filter, &[HookPlace::Prerouting]),
        Statement::Redirect(_) => without_ports(protocols)
            .or_else(|| outside(chain, HookKind::Nat, &[HookPlace::Prerouting, HookPlace::Output])),
        Statement::Masquerade => outside(chain, HookKind::Nat, &[HookPlace::Postrouting]),
        Statement::Reject(super::Reject::TcpReset) if protocols != [TCP] => {
            Some("a reset is for TCP, and the rule does not match it first")
        }
        Statement::Count
        | Statement::Log(_)
        | Statement::SetMark(_)
        | Statement::SetCtMark(_)
        | Statement::Notrack
        | Statement::Reject(_) => None,
    }
}

/// The chains that are jumped to are the kernel's to judge.
fn outside(chain: &Chain, kind: HookKind, places: &[HookPlace]) -> Option<&'static str> {
    let hook = chain.hook.as_ref()?;
    let there = hook.kind == kind && places.contains(&hook.place);
    (!there).then_some("the kernel has no such statement at this hook")
}

fn fault_in_mark(mark: Mark) -> Option<&'static str> {
    let sound = mark.mask != 0 && mark.value & !mark.mask == 0;
    (!sound).then_some("a mark that no packet can have, or that all have")
}

fn fault_in_ports(ranges: &[RangeInclusive<u16>]) -> Option<&'static str> {
    (ranges.is_empty() || ranges.iter().any(RangeInclusive::is_empty)).then_some("no port is listed")
}

fn without_ports(protocols: &[u8]) -> Option<&'static str> {
    let have = !protocols.is_empty() && protocols.iter().all(|number| WITH_PORTS.contains(number));
    (!have).then_some("ports without a protocol that has them, matched first")
}

fn of_family(range: &RangeInclusive<IpAddr>, family: Family) -> bool {
    !range.is_empty() && Family::of(*range.start()) == family && Family::of(*range.end()) == family
}

fn disjoint(verdicts: &[(RangeInclusive<IpAddr>, Verdict)]) -> bool {
    let mut bounds: Vec<_> = verdicts.iter().map(|(range, _)| (*range.start(), *range.end())).collect();
    bounds.sort_unstable();
    bounds.is_sorted_by(|(_, end), (start, _)| end < start)
}

fn is_interface(name: &str) -> bool {
    let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '@' | ':');
    (1..=INTERFACE_BYTES).contains(&name.len()) && name.chars().all(fit)
}

/// What nftables takes for a name without quotes.
fn named(kind: &str, name: &str) -> Result<(), Flaw> {
    let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let sound = name.len() <= NAME_BYTES
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(fit);
    ensure(sound, || format!("{kind} {name:?}"), "that is not a name")
}

fn ensure(holds: bool, place: impl Fn() -> String, fault: &'static str) -> Result<(), Flaw> {
    if holds { Ok(()) } else { Err(Flaw { place: place(), fault }) }
}
