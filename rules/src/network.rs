//! What a kernel can decide by itself, as data: which rules hold for which addresses, for UDP, for ICMP, for every
//! other protocol, and for the TCP of rules that say `offload: kernel`.
//!
//! A transparent gate sees TCP and DNS itself; the rest of its clients' traffic is forwarded by the kernel, which
//! knows addresses, protocols and ports, and no names. The plan is [`RuleSet::decide`] and [`crate::Permit::vet`]
//! written out for that kernel, and no more open than they are. In three things it is stricter:
//!
//! - QUIC (UDP to port 443) passes only where a rule takes it, not by the mode: inside TLS over TCP, to which
//!   clients fall back, names can be seen.
//! - IPv6 forms with an IPv4 address inside, other than NAT64's, are refused.
//! - TCP is the gate's, unless the most specific rule that allows it says `offload: kernel`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;

use crate::address::{AddressClass, NAT64, boundaries, is_carried};
use crate::decision::RuleRef;
use crate::port::{Port, PortSet};
use crate::rule::{Action, Opens, Protocol, Protocols, Reach, RuleId, Sources, Terms};
use crate::ruleset::{Enforcement, Revision, RuleSet};

/// What a kernel decides by itself.
#[derive(Clone, Debug)]
pub struct NetworkPlan {
    rules: Arc<RuleSet>,
    spans: Vec<Span>,
    classes: Vec<Class>,
}

/// Addresses for which the same steps hold. All of them are of one [`AddressClass`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Span {
    /// From the first to the last address, of one family.
    pub range: RangeInclusive<IpAddr>,
    /// What holds for them.
    pub class: ClassId,
}

/// A class's number in its plan.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ClassId(u32);

impl ClassId {
    /// The number, from 0.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

/// What holds for the addresses of some spans.
#[derive(Clone, Debug)]
pub struct Class {
    /// One after the other; the first that takes a packet decides. Deny rules come first.
    pub steps: Vec<Step>,
    /// What happens to a packet that no step takes. TCP is the gate's.
    pub otherwise: Otherwise,
}

/// One step: a rule, and what it says of the packets that it takes.
#[derive(Clone, Debug)]
pub struct Step {
    /// The rule.
    pub rule: RuleId,
    /// What happens to what it takes.
    pub verdict: StepVerdict,
    /// Over which protocol.
    pub protocol: Protocols,
    terms: Arc<Terms>,
}

impl Step {
    /// For which clients.
    #[must_use]
    pub fn sources(&self) -> &Sources {
        &self.terms.sources
    }

    /// To which ports; not asked of protocols that have none.
    #[must_use]
    pub fn ports(&self) -> &PortSet {
        &self.terms.ports
    }

    /// Whether it passes TCP unseen: `offload: kernel`.
    #[must_use]
    pub fn offloads(&self) -> bool {
        self.verdict == StepVerdict::Allow && self.terms.offload && self.protocol.contains(Protocol::Tcp)
    }

    fn takes(&self, client: IpAddr, protocol: Protocol, port: Option<Port>) -> bool {
        let port_taken = protocol == Protocol::Icmp || port.is_some_and(|port| self.ports().contains(port));
        self.sources().contains(client) && self.protocol.contains(protocol) && port_taken
    }

    /// Whether nothing is left for `later` where this step comes first.
    fn covers(&self, later: &Self) -> bool {
        let ports = later.protocol == Protocols::One(Protocol::Icmp) || self.ports().covers(later.ports());
        ports && self.protocol.covers(later.protocol) && self.sources().covers(later.sources())
    }
}

/// What happens to the packets that a step takes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StepVerdict {
    /// They are refused.
    Deny,
    /// They pass.
    Allow,
    /// They are TCP, and the gate's to judge.
    Gate,
}

/// What happens to what no rule takes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Otherwise {
    /// It is refused.
    Refuse,
    /// It passes, unless it is QUIC: public addresses with `isolation_mode: allow_internet_outbound`.
    Pass,
    /// It passes, and that it would not is on record: public addresses with `enforcement: report`.
    Report,
}

/// What the plan says of one flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NetworkVerdict {
    /// The kernel passes it: by a rule, or by the mode.
    Pass(Option<RuleId>),
    /// The kernel refuses it: by a deny rule, or for lack of a rule.
    Refuse(Option<RuleId>),
    /// It is the gate's to judge: TCP.
    Gate,
}

impl RuleSet {
    /// What a kernel can decide of this policy by itself. Rules that have expired at `now` are left out; see
    /// [`RuleSet::next_expiry`] for when to ask again.
    #[must_use]
    pub fn network_plan(self: &Arc<Self>, now: Timestamp) -> NetworkPlan {
        let mut draft =
            Draft { rules: self, now, spans: Vec::new(), classes: Vec::new(), known: HashMap::new() };
        let cuts = self.cuts();
        let ends = cuts.iter().skip(1).map(|next| before(*next)).chain([LAST_V6.into()]);
        for (start, end) in cuts.iter().zip(ends) {
            draft.span(*start, end);
        }
        NetworkPlan { rules: Arc::clone(self), spans: draft.spans, classes: draft.classes }
    }

    /// Addresses in order, IPv4 first: between one and the next nothing changes.
    fn cuts(&self) -> Vec<IpAddr> {
        let special = self.rules().iter().filter_map(|rule| match &rule.terms.reach {
            Reach::Prefixes(listed) => Some(listed.special().prefixes()),
            Reach::Public | Reach::Private | Reach::Pinned(_) => None,
        });
        let ends = |prefix: IpNet| [Some(prefix.network()), after(prefix.broadcast())];
        let of_prefixes = boundaries().chain(special.flatten()).flat_map(ends).flatten();
        let mut cuts: Vec<IpAddr> = [FIRST_V4.into(), FIRST_V6.into()].into();
        cuts.extend(of_prefixes.chain(self.address_cuts()));
        let translated: Vec<IpAddr> = cuts.iter().filter_map(|cut| nat64(*cut)).collect();
        cuts.extend(translated);
        cuts.sort_unstable();
        cuts.dedup();
        cuts
    }
}

impl NetworkPlan {
    /// The addresses of which there is anything to say, in order, IPv4 first; they neither touch with one class
    /// nor overlap. What lies between is refused.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The classes, by number.
    #[must_use]
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// A rule of a step.
    #[must_use]
    pub fn rule(&self, id: RuleId) -> Option<RuleRef> {
        self.rules.rule_numbered(id.number())
    }

    /// Whether the rules' verdicts hold or are only recorded.
    #[must_use]
    pub fn enforcement(&self) -> Enforcement {
        self.rules.settings().enforcement
    }

    /// The revision that the plan is of.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.rules.settings().revision
    }

    /// Walks the plan as a kernel does. `port` is not asked for [`Protocol::Icmp`]; a port 0 (none) is no rule's.
    #[must_use]
    pub fn verdict(
        &self,
        client: IpAddr,
        address: IpAddr,
        protocol: Protocol,
        port: Option<Port>,
    ) -> NetworkVerdict {
        let class = self.class_of(address);
        let steps = class.map_or(&[][..], |class| &class.steps);
        let step = steps.iter().find(|step| step.takes(client, protocol, port));
        let is_quic = protocol == Protocol::Udp && port == Some(Port::HTTPS);
        match (step.map(|step| (step.verdict, step.rule)), class.map(|class| class.otherwise)) {
            (Some((StepVerdict::Allow, rule)), _) => NetworkVerdict::Pass(Some(rule)),
            // The gate denies with more to say.
            (Some((StepVerdict::Deny | StepVerdict::Gate, _)) | None, _) if protocol == Protocol::Tcp => {
                NetworkVerdict::Gate
            }
            (Some((StepVerdict::Deny | StepVerdict::Gate, rule)), _) => NetworkVerdict::Refuse(Some(rule)),
            (None, Some(Otherwise::Report)) => NetworkVerdict::Pass(None),
            (None, Some(Otherwise::Pass)) if !is_quic => NetworkVerdict::Pass(None),
            (None, Some(Otherwise::Pass | Otherwise::Refuse) | None) => NetworkVerdict::Refuse(None),
        }
    }

    fn class_of(&self, address: IpAddr) -> Option<&Class> {
        let behind = self.spans.partition_point(|span| *span.range.start() <= address);
        let span = behind.checked_sub(1).and_then(|index| self.spans.get(index))?;
        let class = self.classes.get(span.class.0 as usize);
        class.filter(|_| span.range.contains(&address))
    }
}

const FIRST_V4: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const FIRST_V6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
const LAST_V6: Ipv6Addr = Ipv6Addr::from_bits(u128::MAX);

/// The next address of the family, if there is one.
fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(address) => address.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// The address before; before the first of IPv6 comes the last of IPv4.
fn before(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits().saturating_sub(1)).into(),
        IpAddr::V6(FIRST_V6) => Ipv4Addr::BROADCAST.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits().saturating_sub(1)).into(),
    }
}

/// An IPv4 address as clients behind NAT64 see it.
fn nat64(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(Ipv6Addr::from_bits(NAT64 | u128::from(address.to_bits())).into()),
        IpAddr::V6(_) => None,
    }
}

/// A plan in the making.
struct Draft<'r> {
    rules: &'r RuleSet,
    now: Timestamp,
    spans: Vec<Span>,
    classes: Vec<Class>,
    /// Classes by what is in them.
    known: HashMap<(Vec<(RuleId, StepVerdict)>, Otherwise), ClassId>,
}

impl Draft<'_> {
    /// Adds addresses between which nothing changes.
    fn span(&mut self, start: IpAddr, end: IpAddr) {
        let Some(class) = self.class(start) else { return };
        match self.spans.last_mut() {
            Some(last) if last.class == class && after(*last.range.end()) == Some(start) => {
                last.range = *last.range.start()..=end;
            }
            _ => self.spans.push(Span { range: start..=end, class }),
        }
    }

    /// The class of an address; none where everything is refused.
    fn class(&mut self, address: IpAddr) -> Option<ClassId> {
        if !is_carried(address) {
            return None;
        }
        let kind = AddressClass::of(address);
        let steps = useful(self.steps(address, kind));
        let otherwise = self.otherwise(kind);
        if steps.is_empty() && otherwise == Otherwise::Refuse {
            return None;
        }
        let key = (steps.iter().map(|step| (step.rule, step.verdict)).collect(), otherwise);
        let classes = &mut self.classes;
        Some(*self.known.entry(key).or_insert_with(|| {
            // There are fewer classes than spans, and fewer spans than a policy has bytes.
            let id = ClassId(classes.len() as u32);
            classes.push(Class { steps, otherwise });
            id
        }))
    }

    /// Everything that rules say of an address: denials, then what is allowed, each the most specific first.
    fn steps(&self, address: IpAddr, kind: AddressClass) -> Vec<Step> {
        let (mut denies, mut allows) = (Vec::new(), Vec::new());
        self.rules.each_rule_for(address, &mut |id| {
            let Some(rule) = self.rules.rule(id).filter(|rule| self.holds(&rule.terms)) else { return };
            let terms = &rule.terms;
            let step = |verdict, protocol| Step { rule: id, verdict, protocol, terms: Arc::clone(terms) };
            match terms.action {
                // Suspended rules say nothing. What they would have said tells whoever records the flow.
                Action::Deny if self.rules.settings().enforcement == Enforcement::Report => {}
                Action::Deny => denies.push(step(StepVerdict::Deny, terms.protocol)),
                Action::Allow if terms.reach.admits(address, kind).is_err() => {}
                Action::Allow => {
                    if !terms.offload && terms.protocol.contains(Protocol::Tcp) {
                        allows.push(step(StepVerdict::Gate, Protocols::One(Protocol::Tcp)));
                    }
                    if terms.offload || terms.protocol != Protocols::One(Protocol::Tcp) {
                        allows.push(step(StepVerdict::Allow, terms.protocol));
                    }
                }
            }
        });
        denies.extend(allows);
        denies
    }

    fn holds(&self, terms: &Terms) -> bool {
        terms.opens == Opens::Flows && terms.expires.is_none_or(|expires| expires > self.now)
    }

    fn otherwise(&self, kind: AddressClass) -> Otherwise {
        match (kind, self.rules.settings().enforcement) {
            (AddressClass::Public, Enforcement::Report) => Otherwise::Report,
            (AddressClass::Public, Enforcement::Enforce) if self.rules.allows_internet() => Otherwise::Pass,
            (_, Enforcement::Enforce | Enforcement::Report) => Otherwise::Refuse,
        }
    }
}

/// Leaves out the steps that never decide: those that come behind one that takes all of theirs, and those for
/// TCP alone where no later one could pass it.
fn useful(steps: Vec<Step>) -> Vec<Step> {
    let passes_tcp =
        |step: &Step| step.verdict == StepVerdict::Allow && step.protocol.contains(Protocol::Tcp);
    let last = steps.iter().rposition(passes_tcp);
    let mut useful: Vec<Step> = Vec::with_capacity(steps.len());
    for (index, step) in steps.into_iter().enumerate() {
        let idle = step.protocol == Protocols::One(Protocol::Tcp) && last.is_none_or(|last| last < index);
        if !idle && !useful.iter().any(|earlier| earlier.covers(&step)) {
            useful.push(step);
        }
    }
    useful
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::address::judged;
    use crate::decision::OwnAddresses;
    use crate::destination::{Destination, Host};
    use crate::policy;
    use crate::ruleset::Request;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn rules(text: &str) -> Arc<RuleSet> {
        let source = policy::Source { name: "policy.yaml".to_owned(), bytes: text.as_bytes().to_vec() };
        let compiled = policy::compile(&[source], &mut |_| Err("no such file".to_owned()), None, NOW);
        Arc::new(compiled.unwrap_or_else(|diagnostics| panic!("{diagnostics}\n{text}")).rules)
    }

    /// What the plan says, with the rule's name.
    fn says(plan: &NetworkPlan, client: &str, to: &str, protocol: Protocol) -> String {
        let to = Destination::parse(to).unwrap();
        let Host::Address(address) = to.host else { panic!("{to} is a name") };
        let name = |rule: Option<RuleId>| {
            rule.map_or_else(|| "-".to_owned(), |rule| plan.rule(rule).unwrap().name.to_string())
        };
        match plan.verdict(client.parse().unwrap(), address, protocol, Some(to.port)) {
            NetworkVerdict::Pass(rule) => format!("pass {}", name(rule)),
            NetworkVerdict::Refuse(rule) => format!("refuse {}", name(rule)),
            NetworkVerdict::Gate => "gate".to_owned(),
        }
    }

    #[test]
    fn tcp_is_the_gates_unless_the_most_specific_rule_offloads_it() {
        let plan = rules(
            "outbound_rules:
  - {name: wide, type: address, offload: kernel, destination: {addresses: [8.0.0.0/8], protocol: TCP, port_ranges: '443'}}
  - {name: any, type: address, destination: {addresses: [8.8.0.0/16], protocol: '*', port_ranges: '1-1000'}}
  - {name: no, type: address, action: deny, destination: {addresses: [8.1.0.0/16], port_ranges: '*'}}
  - {name: tcp, type: address, destination: {addresses: [9.0.0.0/8], protocol: TCP, port_ranges: '*'}}
",
        )
        .network_plan(NOW);
        for (to, protocol, said) in [
            ("8.2.0.1:443", Protocol::Tcp, "pass wide"),
            ("8.2.0.1:444", Protocol::Tcp, "gate"),
            ("8.2.0.1:443", Protocol::Udp, "refuse -"),
            ("8.8.0.1:443", Protocol::Tcp, "gate"),
            ("8.8.0.1:443", Protocol::Udp, "pass any"),
            ("8.8.0.1:1", Protocol::Icmp, "pass any"),
            ("8.1.0.1:443", Protocol::Tcp, "gate"),
            ("8.1.0.1:443", Protocol::Udp, "refuse no"),
            ("9.1.1.1:443", Protocol::Tcp, "gate"),
            ("9.1.1.1:443", Protocol::Udp, "refuse -"),
            ("[64:ff9b::808:1]:443", Protocol::Udp, "pass any"),
            ("[64:ff9b::802:1]:443", Protocol::Tcp, "pass wide"),
            ("[2002:808:1::]:443", Protocol::Udp, "refuse -"),
            ("[::ffff:0:808:1]:443", Protocol::Udp, "refuse -"),
        ] {
            assert_eq!(says(&plan, "10.1.0.4", to, protocol), said, "{to} {protocol:?}");
        }
        let spoken_of = |span: &Span| span.range.contains(&"9.1.1.1".parse::<IpAddr>().unwrap());
        assert!(!plan.spans().iter().any(spoken_of), "rules for TCP alone are not the kernel's");
    }

    #[test]
    fn special_addresses_pass_only_where_their_very_prefix_is_listed() {
        let plan = rules(
            "outbound_rules:
  - {name: everything, type: address, destination: {addresses: [0.0.0.0/0, '::/0'], protocol: '*', port_ranges: '*'}}
  - {name: metadata, type: address, destination: {addresses: [169.254.169.254], protocol: UDP, port_ranges: '80'}}
  - {name: half, type: address, destination: {addresses: [192.0.2.0/25], protocol: UDP, port_ranges: '80'}}
",
        )
        .network_plan(NOW);
        for (to, said) in [
            ("8.8.8.8:80", "pass everything"),
            ("10.0.0.1:80", "pass everything"),
            ("169.254.169.254:80", "pass metadata"),
            ("169.254.169.254:81", "refuse -"),
            ("169.254.169.253:80", "refuse -"),
            ("168.63.129.16:80", "refuse -"),
            ("168.63.129.15:80", "pass everything"),
            ("192.0.2.1:80", "pass half"),
            ("192.0.2.1:81", "refuse -"),
            ("192.0.2.128:80", "refuse -"),
            ("224.0.0.1:80", "refuse -"),
            ("127.0.0.1:80", "refuse -"),
            ("[2606:4700::1]:80", "pass everything"),
            ("[fd00::1]:80", "pass everything"),
            ("[fe80::1]:80", "refuse -"),
            ("[::1]:80", "refuse -"),
            ("[64:ff9b::a9fe:a9fe]:80", "pass metadata"),
            ("[64:ff9b::a9fe:a9fd]:80", "refuse -"),
        ] {
            assert_eq!(says(&plan, "10.1.0.4", to, Protocol::Udp), said, "{to}");
        }
    }

    #[test]
    fn quic_passes_by_a_rule_and_not_by_the_mode() {
        let text = "isolation_mode: allow_internet_outbound
outbound_rules:
  - {name: quic, type: address, destination: {addresses: [8.8.8.8], protocol: UDP, port_ranges: '443'}}
";
        let plan = rules(text).network_plan(NOW);
        assert_eq!(says(&plan, "10.1.0.4", "8.8.8.8:443", Protocol::Udp), "pass quic");
        assert_eq!(says(&plan, "10.1.0.4", "8.8.4.4:443", Protocol::Udp), "refuse -");
        assert_eq!(says(&plan, "10.1.0.4", "8.8.4.4:444", Protocol::Udp), "pass -");
        assert_eq!(says(&plan, "10.1.0.4", "10.8.4.4:444", Protocol::Udp), "refuse -");
        let report = rules(&format!("enforcement: report\n{text}")).network_plan(NOW);
        assert_eq!(says(&report, "10.1.0.4", "8.8.4.4:443", Protocol::Udp), "pass -");
        assert_eq!(says(&report, "10.1.0.4", "10.8.4.4:444", Protocol::Udp), "refuse -");
    }

    #[test]
    fn steps_that_never_decide_are_left_out() {
        let plan = rules(
            "outbound_rules:
  - {name: a, type: address, destination: {addresses: [8.8.8.0/24], protocol: UDP, port_ranges: '1-99'}}
  - {name: b, type: address, destination: {addresses: [8.8.0.0/16], protocol: UDP, port_ranges: '50'}}
  - {name: c, type: address, destination: {addresses: [8.8.0.0/16], protocol: UDP, port_ranges: '50-100'}}
  - {name: old, type: address, expires: 1960-01-01, destination: {addresses: [8.8.0.0/16], protocol: UDP, port_ranges: '7'}}
",
        )
        .network_plan(NOW);
        let steps: Vec<Vec<u32>> = plan
            .spans()
            .iter()
            .filter(|span| span.range.start().is_ipv4())
            .map(|span| {
                let class = &plan.classes()[span.class.number() as usize];
                class.steps.iter().map(|step| step.rule.number()).collect()
            })
            .collect();
        assert_eq!(steps, [vec![1, 2], vec![0, 2], vec![1, 2]]);
    }

    #[test]
    fn spans_are_sorted_disjoint_and_of_one_class_of_address() {
        let plan = rules("isolation_mode: allow_internet_outbound\n").network_plan(NOW);
        for pair in plan.spans().array_windows::<2>() {
            assert!(pair[0].range.end() < pair[1].range.start(), "{pair:?}");
        }
        for Span { range, .. } in plan.spans() {
            for address in [range.start(), range.end()] {
                assert_eq!(AddressClass::of(*address), AddressClass::Public, "{address}");
            }
        }
    }

    /// Prefixes that nest, touch, and lie over the borders of special ranges.
    const PREFIXES: [&str; 20] = [
        "0.0.0.0/0",
        "8.0.0.0/8",
        "8.8.0.0/16",
        "8.8.8.8/32",
        "10.0.0.0/8",
        "10.1.0.0/24",
        "127.0.0.0/8",
        "127.0.0.0/9",
        "168.63.129.0/24",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "169.254.169.254/32",
        "224.0.0.0/4",
        "255.255.255.255/32",
        "::/0",
        "2000::/3",
        "2606:4700::/32",
        "2001:4860::/32",
        "fd00::/8",
        "fe80::/10",
    ];

    fn rule(number: usize) -> impl Strategy<Value = String> {
        let word = |choices: &'static [&'static str]| select(choices);
        (
            vec(select(&PREFIXES[..]), 1..4),
            word(&["", "", "", ", action: deny", ", offload: kernel"]),
            word(&["TCP", "UDP", "UDP", "ICMP", "'*'"]),
            word(&["'*'", "'443'", "'53,443'", "'1-100'"]),
            word(&["", "", ", sources: [10.1.0.0/24]", ", sources: ['fd00:1::/64', 10.2.0.0/16]"]),
            word(&["", "", ", expires: 1960-01-01"]),
        )
            .prop_map(move |(prefixes, action, protocol, ports, sources, expires)| {
                let only_tcp = protocol == "TCP" || protocol == "'*'";
                let action = if action.contains("offload") && !only_tcp { "" } else { action };
                let ports =
                    if protocol == "ICMP" { String::new() } else { format!(", port_ranges: {ports}") };
                let prefixes =
                    prefixes.iter().map(|prefix| format!("'{prefix}'")).collect::<Vec<_>>().join(", ");
                format!(
                    "  - {{name: r{number}, type: address{action}{sources}{expires}, destination: \
                     {{addresses: [{prefixes}], protocol: {protocol}{ports}}}}}\n"
                )
            })
    }

    fn policy_text() -> impl Strategy<Value = String> {
        let rules = (rule(0), rule(1), rule(2), rule(3), rule(4), rule(5));
        (0..7_usize, rules, any::<bool>(), any::<bool>()).prop_map(|(count, rules, internet, report)| {
            let mut text = String::new();
            if internet {
                text.push_str("isolation_mode: allow_internet_outbound\n");
            }
            if report {
                text.push_str("enforcement: report\n");
            }
            text.push_str("outbound_rules:\n");
            let (a, b, c, d, e, f) = rules;
            [a, b, c, d, e, f].iter().take(count).for_each(|rule| write!(text, "{rule}").unwrap());
            text
        })
    }

    /// The ends of the prefixes above and of special ranges, their neighbours, and forms with IPv4 inside.
    fn address() -> impl Strategy<Value = IpAddr> {
        let ends: Vec<IpAddr> = PREFIXES
            .iter()
            .map(|text| text.parse::<IpNet>().unwrap())
            .chain(boundaries())
            .flat_map(|prefix| [prefix.network(), prefix.broadcast()])
            .flat_map(|end| [end, before(end), after(end).unwrap_or(end)])
            .collect();
        prop_oneof![
            6 => select(ends.clone()),
            2 => select(ends).prop_map(|end| nat64(end).unwrap_or(end)),
            1 => any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
            1 => any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
        ]
    }

    fn client() -> impl Strategy<Value = IpAddr> {
        select(&["10.1.0.4", "10.2.0.4", "10.3.0.4", "fd00:1::4", "fd00:2::4"][..])
            .prop_map(|text| text.parse().unwrap())
    }

    /// What the one path would say: the rule by which a flow passes, or that it does not.
    fn decided(
        rules: &Arc<RuleSet>,
        client: IpAddr,
        address: IpAddr,
        protocol: Protocol,
        port: Port,
    ) -> Option<Option<RuleId>> {
        let destination = Destination { host: Host::Address(address), port };
        let request = Request { client, destination: &destination, protocol };
        let permit = rules.decide(&request, NOW).into_permit().ok()?;
        let vetted = permit.vet(address, &OwnAddresses::default(), NOW).ok()?;
        Some(vetted.rule().map(RuleRef::id))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        /// The kernel passes what the rules pass, by the same rule, and what is stricter is said on top of the page.
        #[test]
        fn the_plan_decides_as_the_rules_do(text in policy_text(), flows in vec((client(), address()), 60)) {
            let rules = rules(&text);
            let plan = rules.network_plan(NOW);
            for (client, address) in flows {
                for (protocol, port) in [
                    (Protocol::Udp, 53), (Protocol::Udp, 443), (Protocol::Udp, 5831), (Protocol::Icmp, 1),
                    (Protocol::Tcp, 443), (Protocol::Tcp, 53),
                ] {
                    let port = Port::new(port).unwrap();
                    let says = plan.verdict(client, address, protocol, Some(port));
                    let decided = decided(&rules, client, address, protocol, port);
                    let shown = format!("{text}\n{client} {address} {protocol:?} {port}");
                    let quic = protocol == Protocol::Udp && port == Port::HTTPS && decided == Some(None)
                        && plan.enforcement() == Enforcement::Enforce;
                    if protocol == Protocol::Tcp {
                        let terms = decided.flatten().and_then(|rule| plan.rule(rule)).map(|rule| Arc::clone(&rule.terms));
                        let offloaded = is_carried(address) && terms.is_some_and(|terms| terms.offload);
                        let expected = if offloaded { NetworkVerdict::Pass(decided.flatten()) } else { NetworkVerdict::Gate };
                        prop_assert_eq!(says, expected, "{}", shown);
                    } else if !is_carried(address) || quic {
                        prop_assert!(matches!(says, NetworkVerdict::Refuse(_)), "{}", shown);
                    } else {
                        match (says, decided) {
                            (NetworkVerdict::Pass(rule), Some(by)) => prop_assert_eq!(rule, by, "{}", shown),
                            (NetworkVerdict::Refuse(_), None) => {}
                            other => prop_assert!(false, "{:?} {}", other, shown),
                        }
                    }
                }
            }
        }

        #[test]
        fn between_boundaries_the_class_of_an_address_stays_the_same(address in address(), other in address()) {
            let cuts: std::collections::BTreeSet<IpAddr> = RuleSet::empty().cuts().into_iter().collect();
            let at = |address: IpAddr| cuts.range(..=address).next_back().copied().unwrap();
            for address in [address, other] {
                let start = at(address);
                prop_assert_eq!(is_carried(address), is_carried(start), "{} {}", address, start);
                if is_carried(address) {
                    prop_assert_eq!(AddressClass::of(address), AddressClass::of(start), "{} {} {}", address, start, judged(address));
                }
            }
        }
    }
}
