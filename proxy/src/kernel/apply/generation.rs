//! A table under names that are not in use, so that it can come in while the old one is in force.

use super::super::table::{Addresses, Chain, Contents, Expr, Match, Rule, Set, Table, Verdict};
use super::Kept;

const MARK: &str = "-g";

/// The generation in a name; none where it carries none.
pub(super) fn generation_of(name: &str) -> Option<u64> {
    name.rsplit_once(MARK)?.1.parse().ok()
}

/// `table` with all chains and sets renamed, but for the chains at hooks and the sets that stay.
pub(super) fn of_generation(table: &Table, kept: &Kept, generation: u64) -> Table {
    let names = Names { kept, generation };
    Table {
        name: table.name.clone(),
        sets: table.sets.iter().map(|set| names.set_renamed(set)).collect(),
        chains: table.chains.iter().map(|chain| names.chain_renamed(chain)).collect(),
    }
}

struct Names<'a> {
    kept: &'a Kept,
    generation: u64,
}

impl Names<'_> {
    fn set(&self, name: &str) -> String {
        if self.kept.has(name) { name.to_owned() } else { self.chain(name) }
    }

    fn chain(&self, name: &str) -> String {
        format!("{name}{MARK}{}", self.generation)
    }

    fn set_renamed(&self, set: &Set) -> Set {
        let contents = match &set.contents {
            Contents::Dispatch(family, verdicts) => {
                let renamed = verdicts.iter().map(|(range, verdict)| (range.clone(), self.verdict(verdict)));
                Contents::Dispatch(*family, renamed.collect())
            }
            contents @ (Contents::Addresses(..)
            | Contents::Ports(_)
            | Contents::Told(..)
            | Contents::Ways(..)) => contents.clone(),
        };
        Set { name: self.set(&set.name), contents }
    }

    fn chain_renamed(&self, chain: &Chain) -> Chain {
        let name = if chain.hook.is_some() { chain.name.clone() } else { self.chain(&chain.name) };
        Chain { name, hook: chain.hook, rules: chain.rules.iter().map(|rule| self.rule(rule)).collect() }
    }

    fn rule(&self, rule: &Rule) -> Rule {
        let expressions = rule.expressions.iter().map(|expression| self.expression(expression));
        Rule { expressions: expressions.collect(), comment: rule.comment.clone() }
    }

    fn expression(&self, expression: &Expr) -> Expr {
        match expression {
            Expr::Is(a_match) => Expr::Is(self.a_match(a_match)),
            Expr::IsNot(a_match) => Expr::IsNot(self.a_match(a_match)),
            Expr::Dispatch { address, map } => Expr::Dispatch { address: *address, map: self.set(map) },
            Expr::Verdict(verdict) => Expr::Verdict(self.verdict(verdict)),
            Expr::Do(statement) => Expr::Do(statement.clone()),
        }
    }

    fn a_match(&self, a_match: &Match) -> Match {
        match a_match {
            Match::Address(field, Addresses::In(set)) => Match::Address(*field, Addresses::In(self.set(set))),
            Match::DestinationPortIn(set) => Match::DestinationPortIn(self.set(set)),
            Match::Told(set) => Match::Told(self.set(set)),
            Match::Way(set) => Match::Way(self.set(set)),
            Match::Nfproto(_)
            | Match::Protocol(_)
            | Match::InputInterface(_)
            | Match::OutputInterface(_)
            | Match::Mark(_)
            | Match::SocketUser(_)
            | Match::Address(_, Addresses::Ranges(_))
            | Match::DestinationPort(_)
            | Match::SourcePort(_)
            | Match::IcmpType(..)
            | Match::CtState(_)
            | Match::CtDirection(_)
            | Match::CtMark(_)
            | Match::LocalDestination
            | Match::TransparentSocket
            | Match::Ipv4Option(_)
            | Match::RoutingHeader => a_match.clone(),
        }
    }

    fn verdict(&self, verdict: &Verdict) -> Verdict {
        match verdict {
            Verdict::Jump(chain) => Verdict::Jump(self.chain(chain)),
            Verdict::Goto(chain) => Verdict::Goto(self.chain(chain)),
            Verdict::Accept | Verdict::Drop | Verdict::Return => verdict.clone(),
        }
    }
}
