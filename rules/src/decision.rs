//! Decisions, and the proofs that carry one onward: a [`Permit`] to resolve, a [`VettedAddr`] to dial.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;

use jiff::Timestamp;

use crate::address::{AddressClass, judged};
use crate::destination::Destination;
use crate::name::DomainName;
use crate::reason::Reason;
use crate::rule::{Action, Protocol, Reach, Rule, RuleId, SniCheck};
use crate::ruleset::{Enforcement, Matches, Request, Revision, RuleSet};

/// What the rules say of a request, and why.
#[derive(Debug)]
pub struct Decision {
    /// Why. [`Reason::allows`] tells the verdict of the rules.
    pub reason: Reason,
    /// The rule that decided, where one did.
    pub rule: Option<RuleRef>,
    /// On a denial for lack of a rule, the allow rule that came nearest.
    pub nearest: Option<RuleRef>,
    /// Whether the verdict holds or is only recorded.
    pub enforcement: Enforcement,
    /// The revision that decided.
    pub revision: Revision,
    pub(crate) permit: Option<Permit>,
}

impl Decision {
    /// The verdict of the rules; in report mode a denied request has a permit all the same.
    #[must_use]
    pub fn allows(&self) -> bool {
        self.reason.allows()
    }

    /// The permit to go on, if there is one.
    ///
    /// # Errors
    /// The denial, where there is none.
    pub fn into_permit(self) -> Result<Permit, Denial> {
        let denial = Denial { reason: self.reason, rule: self.rule, nearest: self.nearest };
        self.permit.ok_or(denial)
    }
}

/// Why something does not go on, and the rule that says so.
#[derive(Clone, Debug)]
pub struct Denial {
    /// Why.
    pub reason: Reason,
    /// The rule that decided, where one did.
    pub rule: Option<RuleRef>,
    /// The allow rule that came nearest.
    pub nearest: Option<RuleRef>,
}

impl Denial {
    /// A denial in one ASCII sentence: `pypi.org:8443: the rule allows other ports (rule "pypi",
    /// policy.yaml:12, ports 80, 443)`. This is the body of a 403 and what a person reads in a terminal.
    #[must_use]
    pub fn sentence(&self, subject: &dyn fmt::Display) -> String {
        let mut sentence = format!("{subject}: {}", self.reason.sentence());
        if let Some(rule) = self.rule.as_ref().or(self.nearest.as_ref()) {
            sentence.push_str(&format!(" (rule \"{}\", {}", rule.name, rule.place));
            if self.reason == Reason::PortNotInRule {
                sentence.push_str(&format!(", ports {}", rule.terms.ports));
            }
            sentence.push(')');
        }
        sentence.chars().map(|c| if c.is_ascii() && !c.is_ascii_control() { c } else { '?' }).collect()
    }
}

impl From<Reason> for Denial {
    fn from(reason: Reason) -> Self {
        Self { reason, rule: None, nearest: None }
    }
}

/// A rule, and the rule set that holds it alive.
#[derive(Clone)]
pub struct RuleRef {
    rules: Arc<RuleSet>,
    id: RuleId,
}

impl RuleRef {
    pub(crate) fn new(rules: Arc<RuleSet>, id: RuleId) -> Self {
        debug_assert!(rules.rule(id).is_some(), "a rule's id comes from its own set");
        Self { rules, id }
    }

    pub(crate) fn id(&self) -> RuleId {
        self.id
    }
}

impl Deref for RuleRef {
    type Target = Rule;

    fn deref(&self) -> &Rule {
        // An id is made by the set it is kept with, so it is in range.
        #[allow(clippy::indexing_slicing)]
        &self.rules.rules()[self.id.0 as usize]
    }
}

impl fmt::Debug for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RuleRef({} at {})", self.name, self.place)
    }
}

/// Proof that the rules let a request go on: only [`RuleSet::decide`] makes one. The resolver asks for it,
/// and it alone can vet an address.
#[derive(Clone, Debug)]
pub struct Permit {
    rules: Arc<RuleSet>,
    client: IpAddr,
    destination: Destination,
    protocol: Protocol,
    /// The rules that allow it, the most specific first.
    allowed_by: Matches,
    /// Whether a public address may be dialled without any of these rules: by the mode, or because
    /// enforcement is suspended.
    any_public: bool,
    /// For an address that the client was told, not for whatever the name resolves to now.
    told: Option<Told>,
}

/// What a client was told by DNS, and dialled itself.
#[derive(Clone, Debug)]
struct Told {
    address: IpAddr,
    /// Other names that it was told the address for, and that rules allow as well.
    other_names: Vec<DomainName>,
}

impl Permit {
    pub(crate) fn new(
        rules: Arc<RuleSet>,
        request: &Request<'_>,
        allowed_by: Matches,
        any_public: bool,
    ) -> Self {
        let Request { client, destination, protocol } = *request;
        let destination = destination.clone();
        Self { rules, client, destination, protocol, allowed_by, any_public, told: None }
    }

    /// The same permit for an address that the client was told for this name, and for others.
    pub(crate) fn told(self, address: Option<IpAddr>, other_names: Vec<DomainName>) -> Self {
        Self { told: address.map(|address| Told { address, other_names }), ..self }
    }

    /// What may be reached.
    #[must_use]
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Who may reach it.
    #[must_use]
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// Over which protocol.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The revision that decided.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.rules.settings().revision
    }

    /// The name that is permitted; none where the destination was given as an address, which only needs vetting.
    #[must_use]
    pub fn name(&self) -> Option<&DomainName> {
        self.destination.host.name()
    }

    /// The addresses that the most specific rule with a word about it gives to the name, so that nobody is asked.
    #[must_use]
    pub fn pinned(&self) -> Option<&[IpAddr]> {
        self.allowed_by.iter().find_map(|id| self.rules.rule(*id)?.terms.reach.pinned())
    }

    /// The one address to vet and dial; none where the name has to be resolved.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.destination.host.address().or(self.told.as_ref().map(|told| told.address))
    }

    /// Whether a server name inside the flow is one that the permit is for. A permit for an address is for none.
    #[must_use]
    pub fn is_for(&self, name: &DomainName) -> bool {
        self.name() == Some(name) || self.told.as_ref().is_some_and(|told| told.other_names.contains(name))
    }

    /// Vets one address: the destination's own, or one that its name resolved to. The most specific rule
    /// that takes the address admits it, and that rule's limits hold.
    ///
    /// # Errors
    /// Why the address may not be dialled, by the rule that denies it or the first that does not take it.
    pub fn vet(&self, address: IpAddr, own: &OwnAddresses, now: Timestamp) -> Result<VettedAddr, Denial> {
        let denied_by = self.rules.denies_address(address, &self.request(), now);
        let suspended = match denied_by.map(|deny| self.denial(Reason::DenyRule, Some(deny))) {
            Some(denial) if !self.is_suspended() => return Err(denial),
            denial => denial,
        };
        let vetted = self.vet_by_rules(address, own)?;
        Ok(VettedAddr { suspended, ..vetted })
    }

    /// Vets an address that no rule denies.
    fn vet_by_rules(&self, address: IpAddr, own: &OwnAddresses) -> Result<VettedAddr, Denial> {
        let socket = SocketAddr::new(address.to_canonical(), self.destination.port.number());
        if own.contains(socket) {
            return self.vet_own(socket);
        }
        let class = AddressClass::of(address);
        let mut refused = None;
        for id in &self.allowed_by {
            let Some(rule) = self.rules.rule(*id) else { continue };
            match rule.terms.reach.admits(address, class) {
                Ok(()) => return Ok(self.vetted(socket, Some(*id))),
                Err(reason) => _ = refused.get_or_insert((reason, *id)),
            }
        }
        if self.any_public && class == AddressClass::Public {
            return Ok(self.vetted(socket, None));
        }
        let (reason, rule) = refused.map_or((class.reason(), None), |(reason, rule)| (reason, Some(rule)));
        Err(self.denial(reason, rule))
    }

    /// Judges the server name of a TLS hello, or the Host of a request, inside a flow whose destination was
    /// given as an address: deny rules hold, and where the rules that open the address are bound to names,
    /// one of those must be seen.
    ///
    /// Where enforcement is suspended, the denial that would have been is given and the flow goes on.
    ///
    /// # Errors
    /// The rule that denies the name, or whose names do not include it.
    pub fn vet_seen_name(&self, seen: &DomainName, now: Timestamp) -> Result<Option<Denial>, Denial> {
        match self.denial_of_seen_name(seen, now) {
            Some(denial) if !self.is_suspended() => Err(denial),
            denial => Ok(denial),
        }
    }

    fn denial_of_seen_name(&self, seen: &DomainName, now: Timestamp) -> Option<Denial> {
        let mut denied_by = None;
        let mut bound_to_it = false;
        let request = self.request();
        self.rules.each_rule_named(seen, |id| {
            let Some(rule) = self.rules.rule(id) else { return };
            let matches = crate::ruleset::lacks(&rule.terms, &request, now).next().is_none();
            match rule.terms.action {
                Action::Deny if matches => denied_by = denied_by.or(Some(id)),
                Action::Deny => {}
                Action::Allow => bound_to_it |= matches && self.allowed_by.contains(&id),
            }
        });
        match (denied_by, self.first_bound_to_names()) {
            (Some(deny), _) => Some(self.denial(Reason::DenyRule, Some(deny))),
            (None, Some(rule)) if !bound_to_it => Some(self.denial(Reason::SniNotInRule, Some(rule))),
            (None, _) => None,
        }
    }

    /// Whether the rules' verdicts are only recorded.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.rules.settings().enforcement == Enforcement::Report
    }

    /// Whether TLS is wanted on this port, and what its hello has to say: the strictest word of the rules
    /// that allow the request. Where the mode allows the internet, any
    /// hello will do, and none.
    #[must_use]
    pub fn tls(&self) -> TlsTerms {
        let rules = || self.allowed_by.iter().filter_map(|id| self.rules.rule(*id));
        let tls_only = rules().any(|rule| rule.terms.tls_only);
        let by_rules = !self.allowed_by.is_empty() && rules().all(|rule| rule.terms.sni == SniCheck::Any);
        let any_name = by_rules || self.rules.allows_internet();
        TlsTerms { tls_only, any_name }
    }

    fn request(&self) -> Request<'_> {
        Request { client: self.client, destination: &self.destination, protocol: self.protocol }
    }

    /// The gate's own address needs a rule that lists it, as a prefix of one address.
    fn vet_own(&self, socket: SocketAddr) -> Result<VettedAddr, Denial> {
        let lists = |id: &&RuleId| {
            self.rules.rule(**id).is_some_and(|rule| match &rule.terms.reach {
                Reach::Prefixes(listed) => listed.lists_host(socket.ip()),
                Reach::Public | Reach::Private | Reach::Pinned(_) => false,
            })
        };
        match self.allowed_by.iter().find(lists) {
            Some(id) => Ok(self.vetted(socket, Some(*id))),
            None => Err(self.denial(Reason::AddressOwn, None)),
        }
    }

    /// The first rule by which the address is open to certain names only, if no rule opens it to all.
    pub(crate) fn first_bound_to_names(&self) -> Option<RuleId> {
        let bound = |id: &RuleId| self.rules.rule(*id).is_some_and(|rule| rule.terms.bound_to_names);
        let free = self.any_public || self.allowed_by.iter().any(|id| !bound(id));
        if free { None } else { self.allowed_by.first().copied() }
    }

    fn vetted(&self, socket: SocketAddr, rule: Option<RuleId>) -> VettedAddr {
        VettedAddr { socket, rule: rule.map(|id| self.rules.rule_ref(id)), suspended: None }
    }

    fn denial(&self, reason: Reason, rule: Option<RuleId>) -> Denial {
        Denial { reason, rule: rule.map(|id| self.rules.rule_ref(id)), nearest: None }
    }
}

impl fmt::Display for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.destination.fmt(f)
    }
}

/// What a flow's first bytes must be, as its rules say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TlsTerms {
    /// TLS is wanted whatever the port.
    pub tls_only: bool,
    /// A hello may name any server: `sni: any`.
    pub any_name: bool,
}

/// Proof that an address may be dialled for a permit: only [`Permit::vet`] makes one.
#[derive(Clone, Debug)]
pub struct VettedAddr {
    socket: SocketAddr,
    rule: Option<RuleRef>,
    suspended: Option<Denial>,
}

impl VettedAddr {
    /// The denial that would have been, were enforcement not suspended.
    #[must_use]
    pub fn suspended(&self) -> Option<&Denial> {
        self.suspended.as_ref()
    }

    /// What to dial.
    #[must_use]
    pub fn socket(&self) -> SocketAddr {
        self.socket
    }

    /// The rule that admitted the address, whose limits hold; none where the mode did.
    #[must_use]
    pub fn rule(&self) -> Option<&RuleRef> {
        self.rule.as_ref()
    }
}

/// The addresses by which a client would reach the gate or its host again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnAddresses {
    /// The listeners, as bound: an unspecified address stands for every address of its family and more.
    pub listeners: Vec<SocketAddr>,
    /// The addresses of the host's interfaces other than loopback, on any port.
    pub interfaces: Vec<IpAddr>,
}

impl OwnAddresses {
    /// Whether dialling `socket` would come back to the gate or its host.
    #[must_use]
    pub fn contains(&self, socket: SocketAddr) -> bool {
        let address = judged(socket.ip());
        let local =
            || address.is_loopback() || address.is_unspecified() || self.interfaces.contains(&address);
        self.interfaces.contains(&address)
            || self.listeners.iter().any(|listener| {
                listener.port() == socket.port()
                    && (judged(listener.ip()) == address || (listener.ip().is_unspecified() && local()))
            })
    }
}

#[cfg(test)]
mod tests;
