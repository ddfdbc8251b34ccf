//! A table of the kernel's firewall as typed data: chains, rules and sets, in the words of nftables.
//!
//! What stands here is written twice, by `encode` for the kernel and by [`text`](super::text)
//! for people, and both start with [`Table::check`]: a table that holds together in one form does in the other.
//! Only the expressions that the gate needs are there, and they read like a line of `nft`:
//!
//! ```
//! use outgate::kernel::table::Expr::{Do, Is};
//! use outgate::kernel::table::{Match, Rule, Statement, TCP, TproxyTo};
//!
//! // meta l4proto tcp th dport 443 counter tproxy to :8443
//! let rule = Rule::new([
//!     Is(Match::Protocol(vec![TCP])),
//!     Is(Match::DestinationPort(vec![443..=443])),
//!     Do(Statement::Count),
//!     Do(Statement::Tproxy(TproxyTo::Port(8443))),
//! ]);
//! # assert_eq!(rule.expressions.len(), 4);
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

mod check;
pub mod ranges;

pub use check::Flaw;

/// TCP's number in an IP header.
pub const TCP: u8 = 6;
/// UDP's number in an IP header.
pub const UDP: u8 = 17;
/// ICMP's number in an IPv4 header.
pub const ICMP: u8 = 1;
/// ICMPv6's number in an IPv6 header.
pub const ICMPV6: u8 = 58;
/// The IPv4 option of loose source routing (RFC 791).
pub const LOOSE_SOURCE_ROUTE: u8 = 131;
/// The IPv4 option of strict source routing (RFC 791).
pub const STRICT_SOURCE_ROUTE: u8 = 137;

/// A table of family `inet`: IPv4 and IPv6 in one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    /// Its name, by which it is replaced and removed.
    pub name: String,
    /// Its sets and verdict maps. Names are unique among them.
    pub sets: Vec<Set>,
    /// Its chains. Names are unique among them; a jump goes to a chain without a hook.
    pub chains: Vec<Chain>,
}

/// A list of rules: read at a hook of the kernel, or jumped to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where the kernel reads it; none for a chain that is jumped to.
    pub hook: Option<Hook>,
    /// Its rules, the first of which that ends in a verdict decides.
    pub rules: Vec<Rule>,
}

/// Where and when the kernel reads a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hook {
    /// What the chain may do.
    pub kind: HookKind,
    /// The place on a packet's way.
    pub place: HookPlace,
    /// The order among chains at one place: lower is earlier. `-300` is raw, before conntrack; `-150` mangle,
    /// `-100` destination NAT, `0` filter, `100` source NAT.
    pub priority: i32,
    /// What befalls a packet that no rule decided.
    pub policy: Policy,
}

/// The type of a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HookKind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of each flow; redirection and masquerading are for such chains alone.
    Nat,
    /// As filter, and a packet whose mark it changes is routed anew. At `output` only.
    Route,
}

/// A place on a packet's way through the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HookPlace {
    /// Came in, not yet routed.
    Prerouting,
    /// Routed to this host.
    Input,
    /// Routed through this host.
    Forward,
    /// Made by this host.
    Output,
    /// About to leave.
    Postrouting,
}

/// What befalls a packet at the end of a chain with a hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// It goes on.
    Accept,
    /// It is gone.
    Drop,
}

/// Expressions, read from left to right until one does not hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rule {
    /// The expressions. A verdict is the last.
    pub expressions: Vec<Expr>,
    /// What `nft list` shows beside the rule: 127 bytes at most, quotes and control characters taken out.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule without a comment.
    pub fn new(expressions: impl IntoIterator<Item = Expr>) -> Self {
        Self { expressions: expressions.into_iter().collect(), comment: None }
    }

    /// The same with `comment` beside it, made fit for a quoted string.
    #[must_use]
    pub fn comment(self, comment: &str) -> Self {
        Self { comment: Some(quotable(comment, 127)), ..self }
    }
}

/// One part of a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expr {
    /// Goes on where the packet matches.
    Is(Match),
    /// Goes on where it does not. An address that is of the other family neither is nor is not: the rule ends.
    IsNot(Match),
    /// Looks the packet's address up in a verdict map and does what the map says; goes on where it has nothing.
    Dispatch {
        /// Which of the packet's two addresses.
        address: Field,
        /// The name of a [`Contents::Dispatch`] set, which says the family too.
        map: String,
    },
    /// Does something to the packet.
    Do(Statement),
    /// Ends the rule, and with most verdicts the packet's way through this chain.
    Verdict(Verdict),
}

/// Which address of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`, by its form.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// All its addresses.
    #[must_use]
    pub fn everything(self) -> RangeInclusive<IpAddr> {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into()..=Ipv4Addr::BROADCAST.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into()..=Ipv6Addr::from(u128::MAX).into(),
        }
    }
}

/// Something that is true of a packet or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Match {
    /// `meta nfproto`: the packet is of this family.
    Nfproto(Family),
    /// `meta l4proto`: its protocol is one of these numbers. Never empty.
    Protocol(Vec<u8>),
    /// `iifname`: it came in there.
    InputInterface(String),
    /// `oifname`: it leaves there.
    OutputInterface(String),
    /// `meta mark`: the packet's mark, as far as the mask has bits, is this.
    Mark(Mark),
    /// `meta skuid`: the socket that made it belongs to this user. At `output` and `postrouting` only.
    SocketUser(u32),
    /// `ip saddr`, `ip6 daddr`, …: the address is in a set or one of these ranges, whose family it then has.
    Address(Field, Addresses),
    /// `th dport`: TCP, UDP and the like, to one of these ports. Never empty; the same rule matches the
    /// protocol first, for in another protocol those bytes are something else.
    DestinationPort(Vec<RangeInclusive<u16>>),
    /// `th dport @set`: likewise, the ports in a [`Contents::Ports`] set.
    DestinationPortIn(String),
    /// `th sport`: likewise, from one of these ports.
    SourcePort(Vec<RangeInclusive<u16>>),
    /// `icmp type`, `icmpv6 type`: an ICMP message of that family and type.
    IcmpType(Family, u8),
    /// `ct state`: the flow is in one of these states. Never empty.
    CtState(Vec<CtState>),
    /// `ct direction`: the packet goes the way of the flow's first, or back.
    CtDirection(CtDirection),
    /// `ct mark`: the flow's mark, as far as the mask has bits, is this.
    CtMark(Mark),
    /// `fib daddr type local`: the destination is this host.
    LocalDestination,
    /// `socket transparent 1`: a transparent socket of this host has this flow.
    TransparentSocket,
    /// `ip option lsrr exists`: IPv4 with this option, one of those that nftables has a word for: record route (7),
    /// the source routes, router alert (148).
    Ipv4Option(u8),
    /// `exthdr rt exists`: IPv6 with a routing header (RFC 8200, 4.4).
    RoutingHeader,
    /// `ip saddr . ip daddr . meta l4proto . th dport @told`: the flow is in a [`Contents::Told`] set.
    Told(String),
    /// `ip daddr . meta l4proto . th dport @ways`: the flow goes where a [`Contents::Ways`] set says.
    Way(String),
}

/// Addresses of one family: in a set of the table, or written in the rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Addresses {
    /// The name of a [`Contents::Addresses`] set.
    In(String),
    /// These ranges, all of one family. Never empty.
    Ranges(Vec<RangeInclusive<IpAddr>>),
}

/// A mark, and the bits of it that count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// The bits. None outside the mask.
    pub value: u32,
    /// Which bits count; not 0.
    pub mask: u32,
}

impl Mark {
    /// This mark, all of it.
    #[must_use]
    pub fn whole(value: u32) -> Self {
        Self { value, mask: u32::MAX }
    }
}

/// What conntrack makes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CtState {
    /// It fits no flow and begins none.
    Invalid,
    /// Its flow has gone both ways.
    Established,
    /// It belongs to another flow: an ICMP error, say.
    Related,
    /// It begins a flow, or only one way of it was seen.
    New,
    /// It is not tracked.
    Untracked,
}

/// Which way a packet goes in its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CtDirection {
    /// As the flow's first.
    Original,
    /// The other way.
    Reply,
}

/// Something done to a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Statement {
    /// `counter`: counts packets and bytes.
    Count,
    /// `log group N`: a copy goes to NFLOG.
    Log(Log),
    /// `meta mark set`.
    SetMark(u32),
    /// `ct mark set`: marks the flow.
    SetCtMark(u32),
    /// `notrack`: conntrack does not see it. In a chain before conntrack (priority below -200) only.
    Notrack,
    /// `tproxy to`: gives the packet to a local socket, addresses untouched; the packet needs a mark that routes it
    /// here, too. Where no socket listens, the next rule is read: refuse there. In a filter chain at `prerouting`
    /// only, in a rule that matched TCP or UDP; the packet is not accepted by it.
    Tproxy(TproxyTo),
    /// `redirect to`: to this host's own address and this port. In a NAT chain at `prerouting` or `output` only, in a
    /// rule that matched a protocol with ports. Ends the rule.
    Redirect(u16),
    /// `masquerade`: leaves from the address of the interface it leaves by. In a NAT chain at `postrouting`
    /// only. Ends the rule.
    Masquerade,
    /// `reject`: refuses, and says so to the sender. Not at `postrouting`. Ends the rule.
    Reject(Reject),
}

/// What goes to NFLOG.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Log {
    /// The group that a listener has bound.
    pub group: u16,
    /// What stands before each message: 127 bytes at most, quotes and control characters taken out.
    pub prefix: String,
    /// Bytes of the packet to copy.
    pub snaplen: u32,
    /// Messages that the kernel gathers before it sends them on.
    pub queue_threshold: u16,
}

impl Log {
    /// A log statement, the prefix made fit for a quoted string.
    #[must_use]
    pub fn new(group: u16, prefix: &str, snaplen: u32, queue_threshold: u16) -> Self {
        Self { group, prefix: quotable(prefix, 127), snaplen, queue_threshold }
    }
}

/// Where TPROXY gives a packet to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TproxyTo {
    /// A socket on any address with this port, for both families.
    Port(u16),
    /// A socket on this address and port, for packets of its family.
    Address(IpAddr, u16),
}

/// How a packet is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reject {
    /// ICMP or ICMPv6, administratively prohibited.
    AdminProhibited,
    /// ICMP or ICMPv6, port unreachable.
    PortUnreachable,
    /// A TCP reset. In a rule that matched TCP only.
    TcpReset,
}

/// Where a packet goes from here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Through this hook; later chains at the same place still see it.
    Accept,
    /// Nowhere.
    Drop,
    /// Back to the rule behind the jump, or to the chain's policy.
    Return,
    /// Through that chain, and back here if it decides nothing.
    Jump(String),
    /// Through that chain, and from there back where this one would have.
    Goto(String),
}

/// A named set or verdict map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// What is in it.
    pub contents: Contents,
}

/// What a set holds, and how it is keyed. Ranges may come in any order, touch and overlap: they are merged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Contents {
    /// Addresses of one family (`type ipv4_addr; flags interval`).
    Addresses(Family, Vec<RangeInclusive<IpAddr>>),
    /// Ports (`type inet_service; flags interval`).
    Ports(Vec<RangeInclusive<u16>>),
    /// A verdict for each range of addresses (`type ipv4_addr : verdict; flags interval`). The ranges are
    /// disjoint.
    Dispatch(Family, Vec<(RangeInclusive<IpAddr>, Verdict)>),
    /// Client, address, protocol and port of flows by name, with a timeout each: filled by
    /// [`told`](super::told), and always empty here.
    Told(Family, ToldLimits),
    /// Address, protocol and port that are open to anybody who is led to the set, with a timeout each: filled by
    /// [`told`](super::told), and always empty here.
    Ways(Family, ToldLimits),
}

/// The bounds of a [`Contents::Told`] or [`Contents::Ways`] set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ToldLimits {
    /// Elements that it holds at most; the kernel refuses the next.
    pub size: u32,
    /// How often the kernel clears out what has run out. An element that has run out matches nothing, cleared
    /// out or not.
    pub clear_every: Duration,
}

/// `text` in a form that a quoted string of nftables can hold, for it knows no escapes: printable ASCII without
/// quotes and backslashes (a `?` stands for everything else), cut at `bytes`.
#[must_use]
pub fn quotable(text: &str, bytes: usize) -> String {
    let fit = |c: char| if matches!(c, ' '..='~') && c != '"' && c != '\\' { c } else { '?' };
    text.chars().map(fit).take(bytes).collect()
}
