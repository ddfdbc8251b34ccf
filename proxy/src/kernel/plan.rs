//! The tables that the gate gives the kernel: what the policy says, where the gate listens, and nothing else open.
//!
//! Three shapes, each a [`Table`] of its own right and put in force as one:
//!
//! - [`hub`]: a gateway whose clients know nothing of it. Their TCP and DNS go to the gate's listeners, and the rest
//!   is forwarded or refused by address, as a [`NetworkPlan`] says, or by what the client was told for a name.
//! - [`closed`]: the same gateway while no gate runs. Nothing is forwarded.
//! - [`local`]: a sidecar or a sandbox, where the clients are programs of the same network namespace.
//!
//! A packet's way through [`hub`] is read top-down in its code. Three things about it are easily broken:
//!
//! - No shortcut for established flows comes before the verdict, but for replies. A reload so holds for packets of open
//!   flows, too; whoever reloads deletes the conntrack entries of those that end, lest their replies still pass.
//! - The first packet of a flow that passes is told of, and its flow marked: see [`mark`]. What
//!   began before a name's answer ran out goes on by that mark.
//! - Where the gate's process is gone, TPROXY finds no socket and the next rule refuses.
//!
//! Whenever the table changes, the kernel walks every range of addresses into the chains that it leads to, for it looks
//! for circles. All of Microsoft's service tags in rules of the same ports are in force in a second or two; in thousands
//! of rules with hundreds of different lists of ports they take up to a minute, in which the old table holds.
//!
//! **What the kernel does not see** is what is inside: no names, no requests, no bytes to be limited. Deny rules on
//! names cannot hold for what it passes, which is UDP by address and the TCP of `offload: kernel`; `outgate check`
//! warns of it. Names hold for UDP as far as a client asks for them and is told an address, and such an address
//! may be another name's, too.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use outgate_rules::network::{Class, ClassId, NetworkPlan, Otherwise, Step, StepVerdict};
use outgate_rules::rule::{Protocol as RuleProtocol, Protocols, RuleId, Sources};
use outgate_rules::{PortSet, PrefixSet, Revision};

use super::table::Expr::{self, Dispatch, Do, Is, IsNot};
use super::table::{
    Addresses, Chain, Contents, CtDirection, CtState, Family, Field, Hook, HookKind, HookPlace, ICMP, ICMPV6,
    LOOSE_SOURCE_ROUTE, Log, Mark, Match, Policy, Reject, Rule, STRICT_SOURCE_ROUTE, Set, Statement, TCP,
    Table, ToldLimits, TproxyTo, UDP, Verdict,
};
use crate::network::{Prefix, Told, mark};

/// The name of the table.
pub const TABLE: &str = "outgate";
/// The sets of flows that pass by a name, for IPv4 and for IPv6.
pub const TOLD: [&str; 2] = ["told4", "told6"];
/// How the names of the sets begin that are filled with what names open to groups of clients.
pub const WAYS: &str = "ways-";

/// Flows that may pass by names at a time. One takes about 200 bytes of the kernel's memory.
const TOLD_LIMITS: ToldLimits = ToldLimits { size: 262_144, clear_every: Duration::from_secs(60) };
/// Messages that the kernel gathers before it wakes the gate: one system call for twenty packets.
const GATHERED: u16 = 20;
/// The protocols whose ports stand where TCP has them: TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u8; 5] = [TCP, UDP, 33, 132, 136];
const DNS: u16 = 53;
const HTTPS: u16 = 443;
const HTTP: u16 = 80;
/// Neighbour discovery and multicast listener reports (RFC 4861, RFC 3810): without them there is no IPv6.
const NEIGHBOURS: [u8; 4] = [133, 135, 136, 143];

/// Where a gate stands in the network, as its configuration says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Appliance {
    /// Whose traffic is the gate's. Nobody else's is forwarded.
    pub clients: PrefixSet,
    /// Where the gate listens on this host.
    pub ports: Ports,
    /// How TCP gets there.
    pub redirection: Redirection,
    /// The mark of packets for TPROXY, which a routing rule sends to this host.
    pub mark: u32,
    /// The routing table that the rule for the mark leads to.
    pub route_table: u32,
    /// The NFLOG group that the gate listens to.
    pub log_group: u16,
    /// Whether what is forwarded leaves from this host's own address.
    pub masquerade: bool,
    /// The user whose sockets are the gate's own, in a sidecar; none where the gate is outside.
    pub own_uid: Option<u32>,
}

/// The ports of listeners; what has none is refused, but for TLS and HTTP, which then are TCP like any other.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ports {
    /// For TCP to port 443.
    pub tls: Option<u16>,
    /// For TCP to port 80.
    pub http: Option<u16>,
    /// For TCP to any other port.
    pub tcp: Option<u16>,
    /// For port 53, over UDP and TCP.
    pub dns: Option<u16>,
}

/// How the kernel gives TCP to a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Redirection {
    /// Addresses untouched: the original destination is the socket's own address.
    Tproxy,
    /// By destination NAT: the original destination is conntrack's to tell.
    Redirect,
}

/// Clients whom the rules treat alike, and the two sets of the ways that names open to all of them. A set's name says
/// whose it is: with other clients in the group it is another one, and what is in this one is never theirs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// Who is in it: nobody who is in another one.
    pub clients: Vec<RangeInclusive<IpAddr>>,
    /// The sets, for IPv4 and for IPv6. Each begins with [`WAYS`].
    pub sets: [String; 2],
}

impl Group {
    /// The names of its sets.
    #[must_use]
    pub fn sets(&self) -> [&str; 2] {
        self.sets.each_ref().map(String::as_str)
    }
}

/// The table of a gateway.
#[must_use]
pub fn hub(plan: &NetworkPlan, appliance: &Appliance) -> Table {
    hub_of_several(plan, &[], appliance)
}

/// The same for one of several gateways, each of which resolves names for these groups of clients by itself.
#[must_use]
pub fn hub_of_several(plan: &NetworkPlan, groups: &[Group], appliance: &Appliance) -> Table {
    let mut draft = Draft::new(appliance, plan.revision());
    draft.clients();
    draft.policy(plan);
    draft.groups(groups);
    let mut chains = vec![draft.arriving(), draft.redirecting(), forwarding()];
    chains.extend(draft.leaving());
    chains.push(draft.intercept());
    chains.push(draft.to_gate());
    chains.push(draft.outgoing());
    chains.extend(draft.ends());
    draft.finish(chains)
}

/// The table of a gateway without a gate: what clients send is refused, and what comes for them is dropped. Flows
/// that names opened are kept for when the gate is back.
#[must_use]
pub fn closed(appliance: &Appliance) -> Table {
    let mut draft = Draft::new(appliance, Revision::new([0; 6]));
    draft.clients();
    let hook = hook(HookKind::Filter, HookPlace::Forward, 0, Policy::Drop);
    let refused = draft.of_clients([], &Verdict::Goto(REFUSE.into()));
    let chains = vec![chain("forward", Some(hook), refused), draft.refuse()];
    draft.finish(chains)
}

/// The table of a network namespace whose own programs are the clients. All their TCP but to loopback, and what they
/// ask of any DNS server, goes to the gate; the rest is refused. The gate's own user is free.
#[must_use]
pub fn local(appliance: &Appliance) -> Table {
    let draft = Draft::new(appliance, Revision::new([0; 6]));
    let redirect = hook(HookKind::Nat, HookPlace::Output, -100, Policy::Accept);
    let filter = hook(HookKind::Filter, HookPlace::Output, 0, Policy::Drop);
    let own = || appliance.own_uid.map(|user| Rule::new([Is(Match::SocketUser(user)), ACCEPT]));
    let to_loopback = || LOOPBACK.map(|range| Rule::new([Is(to(range)), ACCEPT]));
    let mut redirected: Vec<Rule> = own().into_iter().collect();
    redirected.extend(draft.redirect_dns());
    redirected.extend(to_loopback());
    redirected.extend(draft.redirect_tcp());
    let mut passed: Vec<Rule> = own().into_iter().chain(to_loopback()).collect();
    passed.push(replies());
    passed.extend(NEIGHBOURS.map(|kind| Rule::new([Is(Match::IcmpType(Family::V6, kind)), ACCEPT])));
    passed.push(Rule::new([Expr::Verdict(Verdict::Goto(REFUSE.into()))]));
    let chains = vec![
        chain("redirect", Some(redirect), redirected),
        chain("output", Some(filter), passed),
        draft.refuse(),
    ];
    Table { name: TABLE.into(), sets: Vec::new(), chains }
}

/// Names of chains that others lead to.
const INTERCEPT: &str = "intercept";
const TO_GATE: &str = "to-gate";
const OUTGOING: &str = "outgoing";
const BY_NAME: &str = "by-name";
const BY_MODE: &str = "by-mode";
const WOULD_REFUSE: &str = "would-refuse";
const REFUSE: &str = "refuse";

const ACCEPT: Expr = Expr::Verdict(Verdict::Accept);
const RETURN: Expr = Expr::Verdict(Verdict::Return);
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const LOOPBACK: [RangeInclusive<IpAddr>; 2] = [
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0))..=IpAddr::V4(Ipv4Addr::new(127, 255, 255, 255)),
    IpAddr::V6(Ipv6Addr::LOCALHOST)..=IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// What comes in is forwarded only by way of [`Draft::outgoing`], and what comes back to clients.
fn forwarding() -> Chain {
    let hook = hook(HookKind::Filter, HookPlace::Forward, 0, Policy::Drop);
    let odd = Is(Match::CtState(vec![CtState::Invalid, CtState::Untracked]));
    let rules = vec![
        replies(),
        Rule::new([odd, Do(Statement::Count), Expr::Verdict(Verdict::Drop)]),
        Rule::new([Expr::Verdict(Verdict::Goto(OUTGOING.into()))]),
    ];
    chain("forward", Some(hook), rules)
}

/// Answers, and ICMP errors about what was sent. Errors that a client sends go the other way: they could carry
/// data to an address whose flow ended at the gate.
fn replies() -> Rule {
    let states = vec![CtState::Established, CtState::Related];
    Rule::new([Is(Match::CtDirection(CtDirection::Reply)), Is(Match::CtState(states)), ACCEPT])
}

/// A table in the making.
struct Draft<'a> {
    appliance: &'a Appliance,
    revision: Revision,
    sets: Vec<Set>,
    /// Families in which there are clients.
    families: Vec<Family>,
    /// The number of each set of sources.
    sources: HashMap<PrefixSet, usize>,
    /// Chains of classes, and of the rules that their steps lead to.
    chains: Vec<Chain>,
    /// Families in which there is a map of offloaded addresses.
    offloads: Vec<Family>,
    /// Families in which there is a map of groups of clients.
    grouped: Vec<Family>,
}

impl<'a> Draft<'a> {
    fn new(appliance: &'a Appliance, revision: Revision) -> Self {
        Self {
            appliance,
            revision,
            sets: Vec::new(),
            families: Vec::new(),
            sources: HashMap::new(),
            chains: Vec::new(),
            offloads: Vec::new(),
            grouped: Vec::new(),
        }
    }

    /// The sets of clients, and of what they were told.
    fn clients(&mut self) {
        for (family, told) in FAMILIES.into_iter().zip(TOLD) {
            let ranges = of_family(&self.appliance.clients, family);
            if !ranges.is_empty() {
                self.families.push(family);
                self.add_set(&clients(family), Contents::Addresses(family, ranges));
            }
            self.add_set(told, Contents::Told(family, TOLD_LIMITS));
        }
    }

    fn add_set(&mut self, name: &str, contents: Contents) {
        self.sets.push(Set { name: name.to_owned(), contents });
    }

    /// The maps from addresses to chains, and those chains.
    fn policy(&mut self, plan: &NetworkPlan) {
        let (mut used, mut rules) = (BTreeSet::new(), BTreeSet::new());
        for family in FAMILIES {
            let (mut spans, mut offloaded) = (Vec::new(), Vec::new());
            for span in plan.spans().iter().filter(|span| Family::of(*span.range.start()) == family) {
                let Some(class) = plan.classes().get(span.class.number() as usize) else { continue };
                spans.push((span.range.clone(), Verdict::Jump(class_chain(span.class, family))));
                used.insert((span.class, family));
                if class.steps.iter().any(Step::offloads) {
                    offloaded.push((span.range.clone(), Verdict::Jump(offload_chain(span.class, family))));
                }
            }
            self.add_set(&spans_map(family), Contents::Dispatch(family, spans));
            if !offloaded.is_empty() {
                self.offloads.push(family);
                self.add_set(&offload_map(family), Contents::Dispatch(family, offloaded));
            }
        }
        for (id, family) in used {
            let Some(class) = plan.classes().get(id.number() as usize) else { continue };
            self.class(id, class, family);
            let decided = class.steps.iter().filter(|step| step.verdict != StepVerdict::Gate);
            rules.extend(decided.map(|step| (step.rule, step.verdict == StepVerdict::Deny)));
        }
        for (rule, denies) in rules {
            let chain = self.rule(plan, rule, denies);
            self.chains.push(chain);
        }
    }

    /// The sets of ways, and who is led to which.
    fn groups(&mut self, groups: &[Group]) {
        for (index, family) in FAMILIES.into_iter().enumerate() {
            let mut led = Vec::new();
            for Group { clients, sets } in groups {
                let Some(set) = sets.get(index) else { continue };
                self.add_set(set, Contents::Ways(family, TOLD_LIMITS));
                let to = || Verdict::Jump(set.clone());
                let of_family = clients.iter().filter(|range| Family::of(*range.start()) == family);
                led.extend(of_family.map(|range| (range.clone(), to())));
                let open = Expr::Verdict(Verdict::Goto(BY_NAME.into()));
                self.chains.push(chain(set, None, vec![Rule::new([Is(Match::Way(set.clone())), open])]));
            }
            if !led.is_empty() {
                self.grouped.push(family);
                self.add_set(&groups_map(family), Contents::Dispatch(family, led));
            }
        }
    }

    /// The steps of a class, as the forwarding hook reads them and, where TCP may pass, as the first hook does.
    fn class(&mut self, id: ClassId, class: &Class, family: Family) {
        let mut rules = Vec::new();
        let mut offload = Vec::new();
        for step in &class.steps {
            for matches in self.matches(step, family) {
                let verdict = match step.verdict {
                    StepVerdict::Allow | StepVerdict::Deny => {
                        Verdict::Goto(rule_chain(step.rule, step.verdict == StepVerdict::Deny))
                    }
                    // TCP that comes as far has escaped its redirection.
                    StepVerdict::Gate => Verdict::Goto(REFUSE.into()),
                };
                rules.push(Rule::new(matches.iter().cloned().chain([Expr::Verdict(verdict)])));
                if step.protocol.contains(RuleProtocol::Tcp) {
                    let verdict = if step.verdict == StepVerdict::Allow { ACCEPT } else { RETURN };
                    offload.push(Rule::new(matches.into_iter().chain([verdict])));
                }
            }
        }
        rules.extend(otherwise(class.otherwise));
        self.chains.push(chain(&class_chain(id, family), None, rules));
        if class.steps.iter().any(Step::offloads) {
            self.chains.push(chain(&offload_chain(id, family), None, offload));
        }
    }

    /// What is true of the packets that a step takes: one list of matches or two, none where no packet of this
    /// family can be one.
    fn matches(&mut self, step: &Step, family: Family) -> Vec<Vec<Expr>> {
        let sources = match step.sources() {
            Sources::Everyone => None,
            Sources::Only { prefixes, .. } => {
                let Some(set) = self.sources(prefixes, family) else { return Vec::new() };
                Some(Is(Match::Address(Field::Source, Addresses::In(set))))
            }
        };
        let mut matches = flows(step.protocol, step.ports());
        for one in &mut matches {
            one.splice(..0, sources.clone());
        }
        matches
    }

    /// The set of these sources in one family; none where it would be empty.
    fn sources(&mut self, prefixes: &PrefixSet, family: Family) -> Option<String> {
        let next = self.sources.len();
        let number = *self.sources.entry(prefixes.clone()).or_insert(next);
        let name = format!("sources-{number}-{}", word(family));
        let ranges = of_family(prefixes, family);
        if ranges.is_empty() {
            return None;
        }
        if !self.sets.iter().any(|set| set.name == name) {
            self.add_set(&name, Contents::Addresses(family, ranges));
        }
        Some(name)
    }

    /// What becomes of the packets that a rule takes.
    fn rule(&self, plan: &NetworkPlan, id: RuleId, denies: bool) -> Chain {
        let told = if denies { Told::Refused } else { Told::Passed };
        let log = self.log(told, Some(id));
        let mut rules = if denies { vec![Rule::new([log, REJECT])] } else { pass(log, mark::PASSED) };
        if let (Some(rule), Some(first)) = (plan.rule(id), rules.first_mut()) {
            *first = std::mem::take(first).comment(&format!("{} ({})", rule.name, rule.place));
        }
        chain(&rule_chain(id, denies), None, rules)
    }

    /// First of all: what is the gate's?
    fn arriving(&self) -> Chain {
        let log = || self.log(Told::Refused, None);
        let routed = [
            Match::Ipv4Option(LOOSE_SOURCE_ROUTE),
            Match::Ipv4Option(STRICT_SOURCE_ROUTE),
            Match::RoutingHeader,
        ];
        let mut rules: Vec<Rule> =
            routed.map(|found| Rule::new([Is(found), log(), Expr::Verdict(Verdict::Drop)])).into();
        if self.appliance.redirection == Redirection::Tproxy {
            rules.push(Rule::new([Is(Match::LocalDestination), RETURN]));
            // Answers to a connection that the gate made with a client's address: they are for its socket.
            let ours = [is_protocol(TCP), Is(Match::TransparentSocket)];
            let marked = Do(Statement::SetMark(self.appliance.mark));
            rules.push(Rule::new(ours.into_iter().chain([marked, ACCEPT])));
            rules.push(Rule::new([Is(Match::CtDirection(CtDirection::Reply)), RETURN]));
            rules.extend(self.of_clients([is_protocol(TCP)], &Verdict::Goto(INTERCEPT.into())));
        }
        chain("arriving", Some(hook(HookKind::Filter, HookPlace::Prerouting, -150, Policy::Accept)), rules)
    }

    /// TCP of a client: through the kernel where a rule says so, else to the gate. A flow that is the gate's stays
    /// the gate's.
    fn intercept(&self) -> Chain {
        let mut rules = Vec::new();
        if self.appliance.ports.dns.is_some() {
            rules.push(Rule::new([is_protocol(TCP), to_port(DNS), RETURN]));
        }
        let to_gate = || Expr::Verdict(Verdict::Goto(TO_GATE.into()));
        rules.push(Rule::new([Is(Match::CtMark(Mark::whole(mark::INTERCEPTED))), to_gate()]));
        rules.extend(self.offloaded());
        rules.push(Rule::new([to_gate()]));
        chain(INTERCEPT, None, rules)
    }

    fn offloaded(&self) -> impl Iterator<Item = Rule> {
        let dispatch = |family: &Family| {
            Rule::new([Dispatch { address: Field::Destination, map: offload_map(*family) }])
        };
        self.offloads.iter().map(dispatch)
    }

    /// To the listener of the port, or back with an error where nobody listens.
    fn to_gate(&self) -> Chain {
        let Appliance { redirection, mark, .. } = *self.appliance;
        let mut rules = match redirection {
            Redirection::Redirect => self.redirect_tcp(),
            Redirection::Tproxy => self.by_port(|port| {
                vec![
                    Do(Statement::SetMark(mark)),
                    Do(Statement::SetCtMark(mark::INTERCEPTED)),
                    Do(Statement::Tproxy(TproxyTo::Port(port))),
                    ACCEPT,
                ]
            }),
        };
        if redirection == Redirection::Tproxy {
            rules.push(Rule::new([self.log(Told::Refused, None), REJECT]));
        }
        chain(TO_GATE, None, rules)
    }

    fn redirect_tcp(&self) -> Vec<Rule> {
        self.by_port(|port| vec![Do(Statement::Redirect(port))])
    }

    /// A rule for each listener of TCP.
    fn by_port(&self, give: impl Fn(u16) -> Vec<Expr>) -> Vec<Rule> {
        let Ports { tls, http, tcp, .. } = self.appliance.ports;
        let listeners = [(Some(HTTPS), tls), (Some(HTTP), http), (None, tcp)];
        let rule = |(port, listener): (Option<u16>, Option<u16>)| {
            let matches = [is_protocol(TCP)].into_iter().chain(port.map(to_port));
            Some(Rule::new(matches.chain(give(listener?))))
        };
        listeners.into_iter().filter_map(rule).collect()
    }

    /// Destination NAT: what asks a DNS server asks ours, whichever it was meant for.
    fn redirecting(&self) -> Chain {
        let hook = hook(HookKind::Nat, HookPlace::Prerouting, -100, Policy::Accept);
        let mut rules = Vec::new();
        if self.appliance.ports.dns == Some(DNS) {
            // It is where it should be, perhaps on an address that is not the interface's first.
            rules.push(Rule::new([Is(Match::LocalDestination), ACCEPT]));
        }
        for rule in self.redirect_dns() {
            rules.extend(self.families.iter().map(|family| Rule {
                expressions: [from_client(*family)].into_iter().chain(rule.expressions.clone()).collect(),
                comment: None,
            }));
        }
        if self.appliance.redirection == Redirection::Redirect {
            rules.push(Rule::new([Is(Match::LocalDestination), ACCEPT]));
            rules.extend(self.of_clients([is_protocol(TCP)], &Verdict::Goto(INTERCEPT.into())));
        }
        chain("redirecting", Some(hook), rules)
    }

    fn redirect_dns(&self) -> Vec<Rule> {
        let rule =
            |protocol, port| Rule::new([is_protocol(protocol), to_port(DNS), Do(Statement::Redirect(port))]);
        self.appliance.ports.dns.iter().flat_map(|port| [rule(UDP, *port), rule(TCP, *port)]).collect()
    }

    /// What a client sends through: by address, by what it was told, or not at all.
    fn outgoing(&self) -> Chain {
        let mut rules: Vec<Rule> = Vec::new();
        for family in &self.families {
            rules.push(Rule::new([
                from_client(*family),
                Expr::Verdict(Verdict::Jump(outgoing_chain(*family))),
            ]));
        }
        // An answer to whom nobody knows would go wherever the sender pleased.
        rules.push(Rule::new([self.log(Told::NotServed, None), DROP]));
        chain(OUTGOING, None, rules)
    }

    fn outgoing_of(&self, family: Family, told: &str) -> Chain {
        let by_mark = [Is(Match::CtMark(Mark::whole(mark::BY_NAME))), ACCEPT];
        let mut rules = vec![
            Rule::new([Dispatch { address: Field::Destination, map: spans_map(family) }]),
            Rule::new(by_mark),
            Rule::new([
                is_protocol(UDP),
                Is(Match::Told(told.into())),
                Expr::Verdict(Verdict::Goto(BY_NAME.into())),
            ]),
        ];
        if self.grouped.contains(&family) {
            let to_group = Dispatch { address: Field::Source, map: groups_map(family) };
            rules.push(Rule::new([is_protocol(UDP), to_group]));
        }
        rules.push(Rule::new([Expr::Verdict(Verdict::Goto(REFUSE.into()))]));
        chain(&outgoing_chain(family), None, rules)
    }

    /// Where a packet's way ends.
    fn ends(&self) -> Vec<Chain> {
        let families = FAMILIES.into_iter().zip(TOLD).filter(|(family, _)| self.families.contains(family));
        let mut ends: Vec<Chain> = families.map(|(family, told)| self.outgoing_of(family, told)).collect();
        ends.extend([
            chain(BY_NAME, None, pass(self.log(Told::PassedByName, None), mark::BY_NAME)),
            chain(BY_MODE, None, pass(self.log(Told::Passed, None), mark::PASSED)),
            chain(WOULD_REFUSE, None, pass(self.log(Told::WouldRefuse, None), mark::PASSED)),
            self.refuse(),
        ]);
        ends
    }

    /// An ICMP message, so that nobody waits.
    fn refuse(&self) -> Chain {
        let quic = [is_protocol(UDP), to_port(HTTPS), self.log(Told::RefusedQuic, None), REJECT];
        chain(REFUSE, None, vec![Rule::new(quic), Rule::new([self.log(Told::Refused, None), REJECT])])
    }

    /// Masquerading, of what was forwarded and not of what the gate sends itself.
    fn leaving(&self) -> Option<Chain> {
        let hook = hook(HookKind::Nat, HookPlace::Postrouting, 100, Policy::Accept);
        let rules = vec![Rule::new([Is(Match::CtMark(mark::FORWARDED)), Do(Statement::Masquerade)])];
        self.appliance.masquerade.then(|| chain("leaving", Some(hook), rules))
    }

    fn of_clients<const N: usize>(&self, matches: [Expr; N], verdict: &Verdict) -> Vec<Rule> {
        let rule = |family: &Family| {
            let all = [from_client(*family)].into_iter().chain(matches.clone());
            Rule::new(all.chain([Expr::Verdict(verdict.clone())]))
        };
        self.families.iter().map(rule).collect()
    }

    fn log(&self, told: Told, rule: Option<RuleId>) -> Expr {
        let prefix = Prefix { told, rule: rule.map(RuleId::number), revision: self.revision };
        let log =
            Log::new(self.appliance.log_group, &prefix.to_string(), crate::network::nflog::COPIED, GATHERED);
        Do(Statement::Log(log))
    }

    fn finish(self, mut chains: Vec<Chain>) -> Table {
        chains.extend(self.chains);
        Table { name: TABLE.into(), sets: self.sets, chains }
    }
}

const DROP: Expr = Expr::Verdict(Verdict::Drop);
const REJECT: Expr = Do(Statement::Reject(Reject::AdminProhibited));

/// The first packet of a flow is told of, and its flow marked; then and from then on it passes.
fn pass(log: Expr, passed: u32) -> Vec<Rule> {
    let first = IsNot(Match::CtMark(Mark::whole(passed)));
    vec![Rule::new([first, Do(Statement::SetCtMark(passed)), log]), Rule::new([ACCEPT])]
}

/// What a class says of packets that no step took.
fn otherwise(otherwise: Otherwise) -> Vec<Rule> {
    let tcp = || Rule::new([is_protocol(TCP), RETURN]);
    let quic = || Rule::new([is_protocol(UDP), to_port(HTTPS), RETURN]);
    let goto = |chain: &str| Rule::new([Expr::Verdict(Verdict::Goto(chain.into()))]);
    match otherwise {
        Otherwise::Refuse => Vec::new(),
        Otherwise::Pass => vec![tcp(), quic(), goto(BY_MODE)],
        Otherwise::Report => vec![tcp(), goto(WOULD_REFUSE)],
    }
}

/// The packets of a protocol to some ports. A rule for every protocol and some ports takes all packets of protocols
/// without ports.
fn flows(protocol: Protocols, ports: &PortSet) -> Vec<Vec<Expr>> {
    let is = |numbers: &[u8]| Is(Match::Protocol(numbers.to_vec()));
    let is_port = || Is(Match::DestinationPort(ports.ranges().collect()));
    let with_ports = |numbers: &[u8]| {
        if ports.is_all() { vec![is(numbers)] } else { vec![is(numbers), is_port()] }
    };
    match protocol {
        Protocols::One(RuleProtocol::Tcp) => vec![with_ports(&[TCP])],
        Protocols::One(RuleProtocol::Udp) => vec![with_ports(&[UDP])],
        Protocols::One(RuleProtocol::Icmp) => vec![vec![is(&[ICMP, ICMPV6])]],
        Protocols::Any if ports.is_all() => vec![Vec::new()],
        Protocols::Any => vec![with_ports(&WITH_PORTS), vec![IsNot(Match::Protocol(WITH_PORTS.to_vec()))]],
    }
}

fn is_protocol(number: u8) -> Expr {
    Is(Match::Protocol(vec![number]))
}

fn to_port(port: u16) -> Expr {
    Is(Match::DestinationPort(vec![port..=port]))
}

fn to(range: RangeInclusive<IpAddr>) -> Match {
    Match::Address(Field::Destination, Addresses::Ranges(vec![range]))
}

fn from_client(family: Family) -> Expr {
    Is(Match::Address(Field::Source, Addresses::In(clients(family))))
}

fn of_family(prefixes: &PrefixSet, family: Family) -> Vec<RangeInclusive<IpAddr>> {
    prefixes.ranges().filter(|range| Family::of(*range.start()) == family).collect()
}

fn hook(kind: HookKind, place: HookPlace, priority: i32, policy: Policy) -> Hook {
    Hook { kind, place, priority, policy }
}

fn chain(name: &str, hook: Option<Hook>, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), hook, rules }
}

fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    }
}

fn clients(family: Family) -> String {
    format!("clients-{}", word(family))
}

fn spans_map(family: Family) -> String {
    format!("addresses-{}", word(family))
}

fn offload_map(family: Family) -> String {
    format!("offloaded-{}", word(family))
}

fn groups_map(family: Family) -> String {
    format!("groups-{}", word(family))
}

fn outgoing_chain(family: Family) -> String {
    format!("outgoing-{}", word(family))
}

fn class_chain(class: ClassId, family: Family) -> String {
    format!("class-{}-{}", class.number(), word(family))
}

fn offload_chain(class: ClassId, family: Family) -> String {
    format!("offload-{}-{}", class.number(), word(family))
}

fn rule_chain(rule: RuleId, denies: bool) -> String {
    format!("{}-{}", if denies { "deny" } else { "allow" }, rule.number())
}

#[cfg(test)]
mod gateway;
#[cfg(test)]
mod tests;
