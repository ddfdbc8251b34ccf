//! A table as text that `nft -f` reads: what a person reviews, and what a test compares the kernel's view with.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::encode::hook_kind;
use super::table::ranges::{merged, merged_ports, merged_verdicts, prefix_length};
use super::table::{
    Addresses, Chain, Contents, CtDirection, CtState, Expr, Family, Field, Hook, HookPlace,
    LOOSE_SOURCE_ROUTE, Log, Mark, Match, Policy, Reject, Rule, STRICT_SOURCE_ROUTE, Set, Statement, Table,
    ToldLimits, TproxyTo, Verdict,
};

/// Sets are written with this many elements at most where a person reads; a service-tag file has a hundred
/// thousand.
const SHOWN: usize = 12;

/// The table, whole: `nft -f` makes of it what [`apply`](super::apply) makes.
#[must_use]
pub fn text(table: &Table) -> String {
    Text { table, shown: usize::MAX }.to_string()
}

/// The table for people: of a long set only the beginning, and how much more there is.
#[must_use]
pub fn summary(table: &Table) -> String {
    Text { table, shown: SHOWN }.to_string()
}

struct Text<'a> {
    table: &'a Table,
    shown: usize,
}

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.table.name)?;
        self.table.sets.iter().try_for_each(|set| self.set(f, set))?;
        self.table.chains.iter().try_for_each(|chain| self.chain(f, chain))?;
        writeln!(f, "}}")
    }
}

impl Text<'_> {
    fn set(&self, f: &mut Formatter<'_>, set: &Set) -> fmt::Result {
        let word = if matches!(set.contents, Contents::Dispatch(..)) { "map" } else { "set" };
        writeln!(f, "\t{word} {} {{", set.name)?;
        match &set.contents {
            Contents::Addresses(family, ranges) => {
                writeln!(f, "\t\ttype {}\n\t\tflags interval", address_type(*family))?;
                self.elements(f, &merged(ranges), range_text)?;
            }
            Contents::Ports(ranges) => {
                writeln!(f, "\t\ttype inet_service\n\t\tflags interval")?;
                self.elements(f, &merged_ports(ranges), port_text)?;
            }
            Contents::Dispatch(family, verdicts) => {
                writeln!(f, "\t\ttype {} : verdict\n\t\tflags interval", address_type(*family))?;
                self.elements(f, &merged_verdicts(verdicts), |(range, verdict)| {
                    format!("{} : {}", range_text(range), VerdictText(verdict))
                })?;
            }
            Contents::Told(family, limits) | Contents::Ways(family, limits) => {
                let ToldLimits { size, clear_every } = limits;
                let address = address_type(*family);
                let told = matches!(set.contents, Contents::Told(..));
                let client = if told { format!("{address} . ") } else { String::new() };
                writeln!(f, "\t\ttype {client}{address} . inet_proto . inet_service")?;
                writeln!(
                    f,
                    "\t\tsize {size}\n\t\tflags timeout\n\t\tgc-interval {}s",
                    clear_every.as_secs()
                )?;
            }
        }
        writeln!(f, "\t}}\n")
    }

    fn elements<T>(&self, f: &mut Formatter<'_>, all: &[T], line: impl Fn(&T) -> String) -> fmt::Result {
        if all.is_empty() {
            return Ok(());
        }
        write!(f, "\t\telements = {{ ")?;
        for (index, element) in all.iter().take(self.shown).enumerate() {
            let comma = if index > 0 { ",\n\t\t\t     " } else { "" };
            write!(f, "{comma}{}", line(element))?;
        }
        match all.len().saturating_sub(self.shown) {
            0 => writeln!(f, " }}"),
            more => writeln!(f, " }} # and {more} more"),
        }
    }

    fn chain(&self, f: &mut Formatter<'_>, chain: &Chain) -> fmt::Result {
        writeln!(f, "\tchain {} {{", chain.name)?;
        if let Some(hook) = &chain.hook {
            let Hook { kind, place, priority, policy } = hook;
            let (kind, place, policy) = (hook_kind(*kind), place_name(*place), policy_name(*policy));
            writeln!(f, "\t\ttype {kind} hook {place} priority {priority}; policy {policy};")?;
        }
        chain.rules.iter().try_for_each(|rule| self.rule(f, rule))?;
        writeln!(f, "\t}}\n")
    }

    fn rule(&self, f: &mut Formatter<'_>, rule: &Rule) -> fmt::Result {
        let words = rule.expressions.iter().map(|expression| self.expression(expression));
        let mut words: Vec<String> = words.collect();
        words.extend(rule.comment.as_ref().map(|comment| format!("comment \"{comment}\"")));
        writeln!(f, "\t\t{}", words.join(" "))
    }

    fn expression(&self, expression: &Expr) -> String {
        match expression {
            Expr::Is(a_match) => self.a_match(a_match, true),
            Expr::IsNot(a_match) => self.a_match(a_match, false),
            Expr::Dispatch { address, map } => {
                format!("{} vmap @{map}", address_words(self.family_of(map), *address))
            }
            Expr::Do(statement) => statement_text(statement),
            Expr::Verdict(verdict) => VerdictText(verdict).to_string(),
        }
    }

    fn a_match(&self, a_match: &Match, is: bool) -> String {
        let not = if is { "" } else { "!= " };
        match a_match {
            Match::Nfproto(family) => format!("meta nfproto {not}{}", family_name(*family)),
            Match::Protocol(numbers) => format!("meta l4proto {not}{}", listed(numbers, u8::to_string)),
            Match::InputInterface(name) => format!("iifname {not}\"{name}\""),
            Match::OutputInterface(name) => format!("oifname {not}\"{name}\""),
            Match::Mark(mark) => format!("meta mark {}", mark_text(*mark, is)),
            Match::SocketUser(user) => format!("meta skuid {not}{user}"),
            Match::Address(field, addresses) => self.address(*field, addresses, not),
            Match::DestinationPort(ranges) => {
                format!("th dport {not}{}", listed(&merged_ports(ranges), port_text))
            }
            Match::DestinationPortIn(set) => format!("th dport {not}@{set}"),
            Match::SourcePort(ranges) => {
                format!("th sport {not}{}", listed(&merged_ports(ranges), port_text))
            }
            Match::IcmpType(Family::V4, number) => format!("meta nfproto ipv4 icmp type {not}{number}"),
            Match::IcmpType(Family::V6, number) => format!("meta nfproto ipv6 icmpv6 type {not}{number}"),
            Match::CtState(states) => {
                let states: Vec<_> = states.iter().map(|state| state_name(*state)).collect();
                format!("ct state {}{}", if is { "" } else { "! " }, states.join(","))
            }
            Match::CtDirection(CtDirection::Original) => format!("ct direction {not}original"),
            Match::CtDirection(CtDirection::Reply) => format!("ct direction {not}reply"),
            Match::CtMark(mark) => format!("ct mark {}", mark_text(*mark, is)),
            Match::LocalDestination => format!("fib daddr type {not}local"),
            Match::TransparentSocket => format!("socket transparent {not}1"),
            Match::Ipv4Option(number) => format!("ip option {} {}", option_name(*number), presence(is)),
            Match::RoutingHeader => format!("exthdr rt {}", presence(is)),
            Match::Told(set) => {
                let family = self.family_of(set);
                let (source, destination) =
                    (address_words(family, Field::Source), address_words(family, Field::Destination));
                format!("{source} . {destination} . meta l4proto . th dport {not}@{set}")
            }
            Match::Way(set) => {
                let destination = address_words(self.family_of(set), Field::Destination);
                format!("{destination} . meta l4proto . th dport {not}@{set}")
            }
        }
    }

    fn address(&self, field: Field, addresses: &Addresses, not: &str) -> String {
        match addresses {
            Addresses::In(set) => format!("{} {not}@{set}", address_words(self.family_of(set), field)),
            Addresses::Ranges(ranges) => {
                let ranges = merged(ranges);
                let family = ranges.first().map_or(Family::V4, |first| Family::of(*first.start()));
                format!("{} {not}{}", address_words(family, field), listed(&ranges, range_text))
            }
        }
    }

    fn family_of(&self, set: &str) -> Family {
        let set = self.table.sets.iter().find(|candidate| candidate.name == set);
        match set.map(|set| &set.contents) {
            Some(
                Contents::Addresses(family, _)
                | Contents::Dispatch(family, _)
                | Contents::Told(family, _)
                | Contents::Ways(family, _),
            ) => *family,
            Some(Contents::Ports(_)) | None => Family::V4,
        }
    }
}

fn statement_text(statement: &Statement) -> String {
    match statement {
        Statement::Count => "counter".to_owned(),
        Statement::Log(Log { group, prefix, snaplen, queue_threshold }) => {
            let prefix = if prefix.is_empty() { String::new() } else { format!("prefix \"{prefix}\" ") };
            format!("log {prefix}group {group} snaplen {snaplen} queue-threshold {queue_threshold}")
        }
        Statement::SetMark(mark) => format!("meta mark set {mark:#010x}"),
        Statement::SetCtMark(mark) => format!("ct mark set {mark:#010x}"),
        Statement::Notrack => "notrack".to_owned(),
        Statement::Tproxy(TproxyTo::Port(port)) => format!("tproxy to :{port}"),
        Statement::Tproxy(TproxyTo::Address(IpAddr::V4(address), port)) => {
            format!("tproxy ip to {address}:{port}")
        }
        Statement::Tproxy(TproxyTo::Address(IpAddr::V6(address), port)) => {
            format!("tproxy ip6 to [{address}]:{port}")
        }
        Statement::Redirect(port) => format!("redirect to :{port}"),
        Statement::Masquerade => "masquerade".to_owned(),
        Statement::Reject(Reject::AdminProhibited) => "reject with icmpx type admin-prohibited".to_owned(),
        Statement::Reject(Reject::PortUnreachable) => "reject with icmpx type port-unreachable".to_owned(),
        Statement::Reject(Reject::TcpReset) => "reject with tcp reset".to_owned(),
    }
}

struct VerdictText<'a>(&'a Verdict);

impl Display for VerdictText<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Verdict::Accept => write!(f, "accept"),
            Verdict::Drop => write!(f, "drop"),
            Verdict::Return => write!(f, "return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// One thing as it is, several in braces.
fn listed<T>(things: &[T], text: impl Fn(&T) -> String) -> String {
    match things {
        [thing] => text(thing),
        things => format!("{{ {} }}", things.iter().map(text).collect::<Vec<_>>().join(", ")),
    }
}

fn range_text(range: &RangeInclusive<IpAddr>) -> String {
    let (start, end) = (range.start(), range.end());
    match prefix_length(range) {
        Some(_) if start == end => start.to_string(),
        Some(length) => format!("{start}/{length}"),
        None => format!("{start}-{end}"),
    }
}

fn port_text(range: &RangeInclusive<u16>) -> String {
    let (start, end) = (range.start(), range.end());
    if start == end { start.to_string() } else { format!("{start}-{end}") }
}

fn mark_text(mark: Mark, is: bool) -> String {
    let Mark { value, mask } = mark;
    match (mask, is) {
        (u32::MAX, true) => format!("{value:#010x}"),
        (u32::MAX, false) => format!("!= {value:#010x}"),
        (_, true) => format!("& {mask:#010x} == {value:#010x}"),
        (_, false) => format!("& {mask:#010x} != {value:#010x}"),
    }
}

fn address_words(family: Family, field: Field) -> &'static str {
    match (family, field) {
        (Family::V4, Field::Source) => "ip saddr",
        (Family::V4, Field::Destination) => "ip daddr",
        (Family::V6, Field::Source) => "ip6 saddr",
        (Family::V6, Field::Destination) => "ip6 daddr",
    }
}

fn address_type(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

fn place_name(place: HookPlace) -> &'static str {
    match place {
        HookPlace::Prerouting => "prerouting",
        HookPlace::Input => "input",
        HookPlace::Forward => "forward",
        HookPlace::Output => "output",
        HookPlace::Postrouting => "postrouting",
    }
}

fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::Accept => "accept",
        Policy::Drop => "drop",
    }
}

fn state_name(state: CtState) -> &'static str {
    match state {
        CtState::Invalid => "invalid",
        CtState::Established => "established",
        CtState::Related => "related",
        CtState::New => "new",
        CtState::Untracked => "untracked",
    }
}

/// The IPv4 options that nftables has words for.
fn option_name(number: u8) -> &'static str {
    match number {
        7 => "rr",
        LOOSE_SOURCE_ROUTE => "lsrr",
        STRICT_SOURCE_ROUTE => "ssrr",
        _ => "ra",
    }
}

fn presence(is: bool) -> &'static str {
    if is { "exists" } else { "missing" }
}
