//! The compiled rules as a whole, and how they decide.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use smallvec::SmallVec;

use crate::address::judged;
use crate::decision::{Decision, Permit, RuleRef};
use crate::destination::{Destination, Host};
use crate::index::{IndexError, NameIndex, NameIndexBuilder};
use crate::name::DomainName;
use crate::pattern::Pattern;
use crate::port::PortSet;
use crate::ranges::PrefixMap;
use crate::reason::Reason;
use crate::rule::{Action, Opens, Protocol, Rule, RuleId, Terms};

/// What a client wants to do.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub client: IpAddr,
    /// For what.
    pub destination: &'a Destination,
    /// Over which protocol.
    pub protocol: Protocol,
}

/// Every rule of a policy, compiled and immutable. A reload makes a new one.
#[derive(Debug)]
pub struct RuleSet {
    rules: Vec<Rule>,
    common_terms: CommonTerms,
    names: NameIndex,
    addresses: PrefixMap<RuleId>,
    beyond_web: BeyondWeb,
    settings: Settings,
}

/// What allow rules open by name other than TCP to ports 80 and 443, where a flow says itself which name it is for.
#[derive(Clone, Default, Debug)]
pub struct BeyondWeb {
    /// The names that rules write out, each with its rule.
    pub names: Vec<(DomainName, RuleId)>,
    /// The rules for any name that fits a wildcard.
    pub wildcards: Vec<RuleId>,
    /// The rules among all of these that open UDP.
    pub datagrams: Vec<RuleId>,
}

impl BeyondWeb {
    fn note(&mut self, id: RuleId, terms: &Terms, pattern: &Pattern) {
        let datagrams = terms.protocol.contains(Protocol::Udp);
        let streams = terms.protocol.contains(Protocol::Tcp) && !PortSet::web().covers(&terms.ports);
        let opens = terms.action == Action::Allow && terms.opens == Opens::Flows && !terms.bound_to_names;
        if !opens || !(datagrams || streams) {
            return;
        }
        match pattern {
            Pattern::Exact(name) => self.names.push((name.clone(), id)),
            Pattern::Below(_) | Pattern::InLabel(_) if self.wildcards.last() != Some(&id) => {
                self.wildcards.push(id);
            }
            Pattern::Below(_) | Pattern::InLabel(_) => {}
        }
        if datagrams && self.datagrams.last() != Some(&id) {
            self.datagrams.push(id);
        }
    }
}

/// What a policy says beside its rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// What happens to what no rule speaks of.
    pub isolation: Isolation,
    /// Whether the rules' verdicts hold.
    pub enforcement: Enforcement,
    /// What happens to open flows that a reload no longer allows.
    pub on_revoke: OnRevoke,
    /// The identity of what was compiled.
    pub revision: Revision,
}

/// `isolation_mode`, as in Azure ML.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation {
    /// What no rule allows is denied. The default.
    AllowOnlyApprovedOutbound,
    /// What no rule denies is allowed, to public addresses.
    AllowInternetOutbound,
}

/// `enforcement`: whether the rules' verdicts hold or are only recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enforcement {
    /// They hold. The default.
    Enforce,
    /// They are recorded as what would have been; input checks, vetting and limits hold all the same.
    Report,
}

impl Enforcement {
    /// The word that a policy and a record use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Report => "report",
        }
    }
}

/// `on_revoke`: what happens to an open flow that a reload no longer allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnRevoke {
    /// It is closed at once. The default.
    Close,
    /// It may go on for this long.
    Drain(std::time::Duration),
    /// It may go on to its end.
    Keep,
}

/// The identity of a compiled policy: the first six bytes of the SHA-256 of all that was compiled, so that
/// two gates with the same policy show the same revision.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Revision([u8; 6]);

impl Revision {
    /// The revision with these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Reads a revision as it is shown: twelve hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = u64::from_str_radix(text, 16).ok().filter(|_| digits && text.len() == 12)?;
        let [_, _, bytes @ ..] = number.to_be_bytes();
        Some(Self(bytes))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Revision({self})")
    }
}

/// Rules that match a request by name or address, the most specific first. Four in place: more than four
/// rules seldom speak of one name.
pub(crate) type Matches = SmallVec<[RuleId; 4]>;

/// How the rules judge a request, before the mode has its word.
pub(crate) struct Judgement {
    /// The first deny rule that matches.
    pub(crate) denied_by: Option<RuleId>,
    /// The allow rules that take the whole request, the most specific first.
    pub(crate) allowed_by: Matches,
    /// The allow rule that came nearest, and what it lacked.
    pub(crate) nearest: Option<(RuleId, Lack)>,
}

/// What a rule that speaks of a destination lacks to match a request. In this order the later is the nearer
/// miss.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lack {
    /// The client is not among its sources.
    Source,
    /// It is for another protocol.
    Protocol,
    /// The port is not among its ports.
    Port,
    /// It opens nothing.
    OpensNothing,
    /// It has expired.
    Expired,
}

impl Lack {
    /// The reason that a denial for this lack carries.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::Source => Reason::SourceNotInRule,
            Self::Protocol => Reason::ProtocolNotInRule,
            Self::Port => Reason::PortNotInRule,
            Self::OpensNothing => Reason::ResolveOnly,
            Self::Expired => Reason::RuleExpired,
        }
    }
}

impl RuleSet {
    /// A set without a rule: it denies everything.
    #[must_use]
    pub fn empty() -> Self {
        RuleSetBuilder::default().finish_empty()
    }

    /// Decides whether a request may go on. Nothing goes on without the permit of an allowing decision.
    #[must_use]
    pub fn decide(self: &Arc<Self>, request: &Request<'_>, now: Timestamp) -> Decision {
        let judgement = self.judge(request, now);
        let verdict = self.verdict(&judgement);
        let permit = match (verdict.reason.allows(), self.settings.enforcement) {
            (true, _) | (false, Enforcement::Report) => Some(Permit::new(
                Arc::clone(self),
                request,
                judgement.allowed_by,
                !matches!(verdict.reason, Reason::Rule) || self.allows_internet(),
            )),
            (false, Enforcement::Enforce) => None,
        };
        Decision {
            reason: verdict.reason,
            rule: verdict.rule.map(|rule| self.rule_ref(rule)),
            nearest: judgement
                .nearest
                .filter(|_| !verdict.reason.allows() && verdict.rule.is_none())
                .map(|(rule, _)| self.rule_ref(rule)),
            enforcement: self.settings.enforcement,
            revision: self.settings.revision,
            permit,
        }
    }

    /// What the policy says beside its rules.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How many rules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is no rule at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Every rule, in the order of the policy.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule with this number, as [`RuleId::number`] gives it.
    #[must_use]
    pub fn rule_numbered(self: &Arc<Self>, number: u32) -> Option<RuleRef> {
        let id = RuleId(number);
        self.rule(id).map(|_| self.rule_ref(id))
    }

    /// What is opened by name other than TCP to ports 80 and 443.
    #[must_use]
    pub fn beyond_web(&self) -> &BeyondWeb {
        &self.beyond_web
    }

    /// The next moment after `now` at which a rule expires: then open flows have to be decided again.
    #[must_use]
    pub fn next_expiry(&self, now: Timestamp) -> Option<Timestamp> {
        self.rules.iter().filter_map(|rule| rule.terms.expires).filter(|expires| *expires > now).min()
    }

    pub(crate) fn rule(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(id.0 as usize)
    }

    /// The addresses at which the rules that speak of an address change.
    pub(crate) fn address_cuts(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.cuts()
    }

    fn terms(&self, id: RuleId) -> Option<&Terms> {
        self.common_terms.of(id).or_else(|| self.rule(id).map(|rule| &*rule.terms))
    }

    pub(crate) fn rule_ref(self: &Arc<Self>, id: RuleId) -> RuleRef {
        RuleRef::new(Arc::clone(self), id)
    }

    pub(crate) fn allows_internet(&self) -> bool {
        self.settings.isolation == Isolation::AllowInternetOutbound
    }

    pub(crate) fn names(&self) -> &NameIndex {
        &self.names
    }

    /// Judges a request by every rule that speaks of its destination.
    pub(crate) fn judge(&self, request: &Request<'_>, now: Timestamp) -> Judgement {
        let mut judgement = Judgement { denied_by: None, allowed_by: Matches::new(), nearest: None };
        let mut weigh = |id: RuleId| {
            let Some(terms) = self.terms(id) else { return };
            match (terms.action, lack(terms, request, now)) {
                (Action::Deny, None) => judgement.denied_by = judgement.denied_by.or(Some(id)),
                (Action::Deny, Some(_)) => {}
                (Action::Allow, None) if !judgement.allowed_by.contains(&id) => judgement.allowed_by.push(id),
                (Action::Allow, None) => {}
                (Action::Allow, Some(lack)) => {
                    if judgement.nearest.is_none_or(|(_, nearest)| nearest < lack) {
                        judgement.nearest = Some((id, lack));
                    }
                }
            }
        };
        match &request.destination.host {
            Host::Name(name) => self.names.find(name, weigh),
            Host::Address(address) => self.each_rule_for(*address, &mut weigh),
        }
        judgement
    }

    /// The first deny rule that takes `address` for this request. A name's deny rules were asked before; an
    /// address has its own.
    pub(crate) fn denies_address(
        &self,
        address: IpAddr,
        request: &Request<'_>,
        now: Timestamp,
    ) -> Option<RuleId> {
        let mut denied_by = None;
        self.each_rule_for(address, &mut |id| {
            let denies = self
                .terms(id)
                .is_some_and(|terms| terms.action == Action::Deny && lack(terms, request, now).is_none());
            denied_by = denied_by.or(denies.then_some(id));
        });
        denied_by
    }

    /// Calls `found` with every rule that has a pattern for `name`, the most specific first.
    pub(crate) fn each_rule_named(&self, name: &DomainName, found: impl FnMut(RuleId)) {
        self.names.find(name, found);
    }

    /// Calls `found` with every rule that has a prefix round `address`, or round the IPv4 address inside it.
    pub(crate) fn each_rule_for(&self, address: IpAddr, found: &mut impl FnMut(RuleId)) {
        let inner = judged(address);
        self.addresses.get(inner).iter().copied().for_each(&mut *found);
        if inner != address {
            self.addresses.get(address).iter().copied().for_each(found);
        }
    }

    fn verdict(&self, judgement: &Judgement) -> Verdict {
        match (judgement.denied_by, judgement.allowed_by.first()) {
            (Some(deny), _) => Verdict { reason: Reason::DenyRule, rule: Some(deny) },
            (None, Some(allow)) => Verdict { reason: Reason::Rule, rule: Some(*allow) },
            (None, None) if self.allows_internet() => Verdict { reason: Reason::InternetMode, rule: None },
            (None, None) => {
                let reason = judgement.nearest.map_or(Reason::NoRule, |(_, lack)| lack.reason());
                Verdict { reason, rule: None }
            }
        }
    }
}

/// What the rules and the mode say together.
struct Verdict {
    reason: Reason,
    rule: Option<RuleId>,
}

/// The first thing that keeps a rule from matching a request whose destination it speaks of.
fn lack(terms: &Terms, request: &Request<'_>, now: Timestamp) -> Option<Lack> {
    lacks(terms, request, now).next()
}

/// Everything that keeps a rule from matching a request whose destination it speaks of.
pub(crate) fn lacks(terms: &Terms, request: &Request<'_>, now: Timestamp) -> impl Iterator<Item = Lack> {
    let has_ports = request.protocol != Protocol::Icmp;
    [
        (!terms.sources.contains(request.client), Lack::Source),
        (!terms.protocol.contains(request.protocol), Lack::Protocol),
        (has_ports && !terms.ports.contains(request.destination.port), Lack::Port),
        (terms.opens == Opens::Lookups, Lack::OpensNothing),
        (terms.expires.is_some_and(|expires| expires <= now), Lack::Expired),
    ]
    .into_iter()
    .filter_map(|(lacking, lack)| lacking.then_some(lack))
}

/// The terms of each rule in one byte: which of the first few that differ they are. A decision hardly ever reads
/// more: of a million rules this is 1 MB, which a cache holds, and the rules themselves are 64 MB.
#[derive(Debug, Default)]
struct CommonTerms {
    /// By rule. Out of the range of `common`, where the rule's terms are not among these.
    numbers: Vec<u8>,
    common: Vec<Arc<Terms>>,
}

impl CommonTerms {
    fn of(&self, rule: RuleId) -> Option<&Terms> {
        let number = self.numbers.get(rule.0 as usize)?;
        self.common.get(usize::from(*number)).map(Arc::as_ref)
    }
}

impl<'t> FromIterator<&'t Arc<Terms>> for CommonTerms {
    fn from_iter<I: IntoIterator<Item = &'t Arc<Terms>>>(each: I) -> Self {
        let mut common = Vec::new();
        let mut known = HashMap::new();
        let mut number = |terms: &Arc<Terms>| {
            *known.entry(Arc::as_ptr(terms)).or_insert_with(|| match u8::try_from(common.len()) {
                Ok(number) if number < u8::MAX => {
                    common.push(Arc::clone(terms));
                    number
                }
                Ok(_) | Err(_) => u8::MAX,
            })
        };
        let numbers = each.into_iter().map(&mut number).collect();
        Self { numbers, common }
    }
}

/// Collects rules into a [`RuleSet`].
#[derive(Debug, Default)]
pub struct RuleSetBuilder {
    rules: Vec<Rule>,
    names: NameIndexBuilder,
    addresses: Vec<(IpNet, RuleId)>,
    beyond_web: BeyondWeb,
}

impl RuleSetBuilder {
    /// Adds a rule; its names and prefixes follow.
    pub fn add(&mut self, rule: Rule) -> RuleId {
        // A rule is at least a line of a policy, whose length is bounded far below 2³¹ lines.
        let id = RuleId(self.rules.len() as u32);
        self.rules.push(rule);
        id
    }

    /// Makes room for this many further names.
    pub fn reserve_names(&mut self, names: usize) {
        self.names.reserve(names);
    }

    /// Adds a pattern that a rule speaks of.
    ///
    /// # Errors
    /// When the names no longer fit the index.
    pub fn add_name(&mut self, rule: RuleId, pattern: &Pattern) -> Result<(), IndexError> {
        if let Some(found) = self.rules.get(rule.0 as usize) {
            self.beyond_web.note(rule, &found.terms, pattern);
        }
        self.names.add(pattern, rule)
    }

    /// Adds a prefix that a rule speaks of when a destination is given as an address.
    pub fn add_prefix(&mut self, rule: RuleId, prefix: IpNet) {
        self.addresses.push((prefix, rule));
    }

    /// The finished set.
    ///
    /// # Errors
    /// When patterns cannot be compiled together.
    pub fn build(self, settings: Settings) -> Result<RuleSet, IndexError> {
        let rules = self.rules;
        let name = |id: &RuleId| rules.get(id.0 as usize).map(|rule| &rule.name);
        let names = self.names.build(|a, b| name(a).cmp(&name(b)).then(a.cmp(b)))?;
        let common_terms = rules.iter().map(|rule| &rule.terms).collect();
        let (addresses, beyond_web) = (self.addresses.into_iter().collect(), self.beyond_web);
        Ok(RuleSet { names, addresses, beyond_web, settings, rules, common_terms })
    }

    fn finish_empty(self) -> RuleSet {
        RuleSet {
            rules: Vec::new(),
            common_terms: CommonTerms::default(),
            names: NameIndex::default(),
            addresses: std::iter::empty().collect(),
            beyond_web: BeyondWeb::default(),
            settings: Settings::default(),
        }
    }
}

impl Default for Settings {
    /// Deny what no rule allows, enforce, and close what a reload revokes.
    fn default() -> Self {
        Self {
            isolation: Isolation::AllowOnlyApprovedOutbound,
            enforcement: Enforcement::Enforce,
            on_revoke: OnRevoke::Close,
            revision: Revision([0; 6]),
        }
    }
}
