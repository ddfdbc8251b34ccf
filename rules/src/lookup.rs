//! Decisions on looking a name up: what a client may learn from DNS is what it may reach.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use crate::address::AddressClass;
use crate::decision::{Denial, RuleRef};
use crate::name::DomainName;
use crate::port::PortSet;
use crate::reason::Reason;
use crate::rule::{Action, Opens, Protocol, Rule, RuleId};
use crate::ruleset::{Enforcement, Matches, Revision, RuleSet};

/// What the rules say of a lookup.
#[derive(Debug)]
pub struct LookupDecision {
    /// Why. [`Reason::allows`] tells the verdict.
    pub reason: Reason,
    /// The rule that decided, where one did.
    pub rule: Option<RuleRef>,
    /// Whether the verdict holds or is only recorded.
    pub enforcement: Enforcement,
    /// The revision that decided.
    pub revision: Revision,
    permit: Option<LookupPermit>,
}

impl LookupDecision {
    /// The permit to look the name up, if there is one; in report mode there always is.
    ///
    /// # Errors
    /// The denial, where there is none.
    pub fn into_permit(self) -> Result<LookupPermit, Denial> {
        let denial = Denial { reason: self.reason, rule: self.rule, nearest: None };
        self.permit.ok_or(denial)
    }
}

/// The rules for a name.
#[derive(Default)]
struct ForLookup {
    denies: Matches,
    allows: Matches,
    /// Whether other clients have an allow rule.
    of_others: bool,
}

/// Proof that a client may look a name up: only [`RuleSet::decide_lookup`] makes one.
#[derive(Clone, Debug)]
pub struct LookupPermit {
    rules: Arc<RuleSet>,
    client: IpAddr,
    name: DomainName,
    /// The rules by which the name resolves, the most specific first.
    allowed_by: Matches,
    /// Whether public addresses may be learned without any of these rules.
    any_public: bool,
}

impl RuleSet {
    /// Decides whether `client` may look `name` up: whether some rule would let it reach the name on some port,
    /// or says that it resolves. A deny rule that leaves nothing to reach denies the lookup as well.
    #[must_use]
    pub fn decide_lookup(
        self: &Arc<Self>,
        client: IpAddr,
        name: &DomainName,
        now: Timestamp,
    ) -> LookupDecision {
        let ForLookup { denies, allows, of_others } = self.rules_for_lookup(client, name, now);
        let (denied, allowed_by): (Matches, Matches) = allows
            .into_iter()
            .partition(|id| self.rule(*id).is_none_or(|allow| self.leaves_nothing(&denies, allow)));
        let denies_all = denies.iter().find(|id| self.rule(**id).is_some_and(denies_every_flow));
        let (reason, rule) = match (allowed_by.first(), denied.first().and(denies.first()).or(denies_all)) {
            (Some(allow), _) => (Reason::Rule, Some(*allow)),
            (None, Some(deny)) => (Reason::DenyRule, Some(*deny)),
            (None, None) if self.allows_internet() => (Reason::InternetMode, None),
            (None, None) if of_others => (Reason::SourceNotInRule, None),
            (None, None) => (Reason::NoRule, None),
        };
        let enforcement = self.settings().enforcement;
        let permit = (reason.allows() || enforcement == Enforcement::Report).then(|| LookupPermit {
            rules: Arc::clone(self),
            client,
            name: name.clone(),
            allowed_by,
            any_public: reason != Reason::Rule || self.allows_internet(),
        });
        LookupDecision {
            reason,
            rule: rule.map(|id| self.rule_ref(id)),
            enforcement,
            revision: self.settings().revision,
            permit,
        }
    }

    /// Whether some client may be allowed to look something up below `name`: then a denial of `name` must not
    /// say that the name does not exist, for nothing below it would exist either (RFC 8020).
    #[must_use]
    pub fn names_something_below(&self, name: &DomainName) -> bool {
        self.allows_internet() || self.names().names_something_below(name)
    }

    /// The rules for a name that hold for `client` now, on any port.
    fn rules_for_lookup(&self, client: IpAddr, name: &DomainName, now: Timestamp) -> ForLookup {
        let mut found = ForLookup::default();
        if self.names().is_foreign(name) {
            return found;
        }
        self.each_rule_named(name, |id| {
            let Some(rule) = self.rule(id) else { return };
            match rule.terms.action {
                Action::Deny if holds(rule, client, now) => found.denies.push(id),
                Action::Allow if holds(rule, client, now) && !found.allows.contains(&id) => {
                    found.allows.push(id)
                }
                Action::Deny => {}
                Action::Allow => found.of_others |= !rule.terms.sources.contains(client),
            }
        });
        found
    }

    /// Whether the deny rules cover all that an allow rule opens.
    fn leaves_nothing(&self, denies: &[RuleId], allow: &Rule) -> bool {
        let mut denies = denies.iter().filter_map(|id| self.rule(*id)).map(|rule| &rule.terms);
        if allow.terms.opens == Opens::Lookups {
            return denies.any(|deny| deny.ports.is_all() && deny.protocol.covers(allow.terms.protocol));
        }
        let denied: PortSet = denies
            .filter(|deny| deny.protocol.covers(allow.terms.protocol))
            .map(|deny| &deny.ports)
            .collect();
        denied.covers(&allow.terms.ports)
    }
}

impl LookupPermit {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &DomainName {
        &self.name
    }

    /// The most specific rule by which the name resolves; none where the mode lets it.
    #[must_use]
    pub fn rule(&self) -> Option<RuleRef> {
        self.allowed_by.first().map(|id| self.rules.rule_ref(*id))
    }

    /// The addresses that the most specific rule with a word about it gives to the name, so that nobody is asked.
    #[must_use]
    pub fn pinned(&self) -> Option<&[IpAddr]> {
        self.allowed_by.iter().find_map(|id| self.rules.rule(*id)?.terms.reach.pinned())
    }

    /// Whether records of this type resolve beside A, AAAA, HTTPS and SVCB.
    #[must_use]
    pub fn lists_type(&self, record_type: u16) -> bool {
        self.allowed_by
            .iter()
            .filter_map(|id| self.rules.rule(*id))
            .any(|rule| rule.terms.record_types.contains(&record_type))
    }

    /// The name below which this permit is one for any name: the literal part of the wildcard or, where the
    /// mode lets the name resolve, its registrable domain. None where a rule names the name itself.
    ///
    /// Who serves that zone reads whatever the client writes in front.
    #[must_use]
    pub fn open_below(&self) -> Option<&str> {
        match self.allowed_by.as_slice() {
            [] => psl::domain_str(self.name.as_str()).filter(|domain| *domain != self.name.as_str()),
            rules => self.rules.names().wildcard_above(&self.name, rules),
        }
    }

    /// The ports on which this client may use `address` once it was told it for this name: those of each rule that
    /// allows the name and takes the address, without those that a deny rule for name or address takes away. Never
    /// 80 and 443: there a flow says for itself which name it is for. Empty for [`Protocol::Icmp`], which has none,
    /// and where the mode alone lets the name resolve, for then the mode opens what there is to open.
    #[must_use]
    pub fn opens(&self, address: IpAddr, protocol: Protocol, now: Timestamp) -> PortSet {
        if protocol == Protocol::Icmp {
            return PortSet::default();
        }
        let class = AddressClass::of(address);
        let allows = self.allowed_by.iter().filter_map(|id| self.rules.rule(*id)).filter(|rule| {
            rule.terms.opens == Opens::Flows
                && rule.terms.protocol.contains(protocol)
                && rule.terms.reach.admits(address, class).is_ok()
        });
        let opened: PortSet = allows.map(|rule| &rule.terms.ports).collect();
        opened.without(&PortSet::web()).without(&self.denied_ports(address, protocol, now))
    }

    /// The ports that deny rules take away from this name, or from an address. None while they are suspended.
    fn denied_ports(&self, address: IpAddr, protocol: Protocol, now: Timestamp) -> PortSet {
        let mut denied = Vec::new();
        let mut weigh = |id: RuleId| {
            let Some(rule) = self.rules.rule(id).filter(|rule| holds(rule, self.client, now)) else { return };
            if rule.terms.action == Action::Deny && rule.terms.protocol.contains(protocol) {
                denied.push(&rule.terms.ports);
            }
        };
        if self.rules.settings().enforcement == Enforcement::Enforce {
            self.rules.each_rule_named(&self.name, &mut weigh);
            self.rules.each_rule_for(address, &mut weigh);
        }
        denied.into_iter().collect()
    }

    /// Vets an address in an answer: the client may learn what some rule would let it dial.
    ///
    /// # Errors
    /// Why it may not.
    pub fn vet(&self, address: IpAddr, now: Timestamp) -> Result<(), Denial> {
        if self.rules.settings().enforcement == Enforcement::Enforce
            && let Some(deny) = self.denied_by(address, now)
        {
            return Err(self.denial(Reason::DenyRule, Some(deny)));
        }
        let class = AddressClass::of(address);
        let mut refused = None;
        for id in &self.allowed_by {
            let Some(rule) = self.rules.rule(*id) else { continue };
            match rule.terms.reach.admits(address, class) {
                Ok(()) => return Ok(()),
                Err(reason) => _ = refused.get_or_insert((reason, *id)),
            }
        }
        if self.any_public && class == AddressClass::Public {
            return Ok(());
        }
        let (reason, rule) = refused.map_or((class.reason(), None), |(reason, rule)| (reason, Some(rule)));
        Err(self.denial(reason, rule))
    }

    /// A deny rule that leaves nothing of an address to reach.
    fn denied_by(&self, address: IpAddr, now: Timestamp) -> Option<RuleId> {
        let mut denied_by = None;
        self.rules.each_rule_for(address, &mut |id| {
            let denies = self.rules.rule(id).is_some_and(|rule| {
                rule.terms.action == Action::Deny && holds(rule, self.client, now) && denies_every_flow(rule)
            });
            denied_by = denied_by.or(denies.then_some(id));
        });
        denied_by
    }

    fn denial(&self, reason: Reason, rule: Option<RuleId>) -> Denial {
        Denial { reason, rule: rule.map(|id| self.rules.rule_ref(id)), nearest: None }
    }
}

/// Whether a rule is for `client` and has not expired.
fn holds(rule: &Rule, client: IpAddr, now: Timestamp) -> bool {
    rule.terms.sources.contains(client) && rule.terms.expires.is_none_or(|expires| expires > now)
}

fn denies_every_flow(rule: &Rule) -> bool {
    rule.terms.ports.is_all() && rule.terms.protocol == crate::rule::Protocols::Any
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy;

    fn rules(text: &str) -> Arc<RuleSet> {
        let source = policy::Source { name: "policy.yaml".to_owned(), bytes: text.as_bytes().to_vec() };
        let compiled = policy::compile(&[source], &mut |_| Err("no such file".to_owned()), None, NOW);
        Arc::new(compiled.unwrap_or_else(|diagnostics| panic!("{diagnostics}")).rules)
    }

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn reason(rules: &Arc<RuleSet>, client: &str, name: &str) -> Reason {
        rules.decide_lookup(client.parse().unwrap(), &DomainName::parse(name).unwrap(), NOW).reason
    }

    #[test]
    fn a_name_resolves_for_whom_it_can_be_reached_on_some_port() {
        let rules = rules(
            "sources: {training: [10.1.0.0/24]}
outbound_rules:
  - {name: odd, type: fqdn, destination: db.example.org, ports: [5432], sources: [training]}
  - {name: dc, type: resolve, destination: '*.corp.example.org', resolves_to: private}
",
        );
        assert_eq!(reason(&rules, "10.1.0.4", "db.example.org"), Reason::Rule);
        assert_eq!(
            reason(&rules, "10.2.0.4", "db.example.org"),
            Reason::SourceNotInRule,
            "for whom it is not"
        );
        assert_eq!(reason(&rules, "10.2.0.4", "a.corp.example.org"), Reason::Rule, "resolving is enough");
        assert_eq!(reason(&rules, "10.1.0.4", "other.example.org"), Reason::NoRule);
    }

    #[test]
    fn a_deny_rule_denies_the_lookup_where_it_leaves_nothing_to_reach() {
        let rules = rules(
            "outbound_rules:
  - {name: all, type: fqdn, destination: '*.example.org'}
  - {name: whole, action: deny, type: fqdn, destination: a.example.org}
  - {name: web, action: deny, type: fqdn, destination: b.example.org, protocol: TCP, ports: [80, 443]}
  - {name: half, action: deny, type: fqdn, destination: c.example.org, protocol: TCP, ports: [80]}
",
        );
        assert_eq!(reason(&rules, "10.1.0.4", "a.example.org"), Reason::DenyRule);
        assert_eq!(
            reason(&rules, "10.1.0.4", "b.example.org"),
            Reason::DenyRule,
            "80 and 443 is all there was"
        );
        assert_eq!(reason(&rules, "10.1.0.4", "c.example.org"), Reason::Rule, "443 is left");
    }

    #[test]
    fn a_denied_name_has_no_permit_in_any_mode_that_enforces() {
        let text = "outbound_rules:
  - {name: whole, action: deny, type: fqdn, destination: '*.example.org'}
  - {name: web, action: deny, type: fqdn, destination: b.example.com, protocol: TCP, ports: [80, 443]}
";
        let internet = format!("isolation_mode: allow_internet_outbound\n{text}");
        for (text, name, denied) in [
            (text, "a.example.org", Some(Reason::DenyRule)),
            (text, "b.example.com", Some(Reason::NoRule)),
            (&internet, "a.example.org", Some(Reason::DenyRule)),
            (&internet, "b.example.com", None),
        ] {
            let name = DomainName::parse(name).unwrap();
            let permit = rules(text).decide_lookup([10, 0, 0, 1].into(), &name, NOW).into_permit();
            assert_eq!(permit.err().map(|denial| denial.reason), denied, "{name}");
        }
    }

    #[test]
    fn no_mode_tells_more_than_public_addresses() {
        for mode in ["isolation_mode: allow_internet_outbound", "enforcement: report"] {
            let rules = rules(&format!("{mode}\n"));
            let name = DomainName::parse("any.example").unwrap();
            let permit = rules.decide_lookup([10, 0, 0, 1].into(), &name, NOW).into_permit().unwrap();
            let vet =
                |address: &str| permit.vet(address.parse().unwrap(), NOW).map_err(|denial| denial.reason);
            assert_eq!(vet("9.9.9.9"), Ok(()), "{mode}");
            assert_eq!(vet("10.0.0.7"), Err(Reason::AddressPrivate), "{mode}");
            assert_eq!(vet("169.254.169.254"), Err(Reason::AddressMetadata), "{mode}");
            assert_eq!(vet("64:ff9b::a00:7"), Err(Reason::AddressPrivate), "{mode}");
        }
    }

    #[test]
    fn what_lies_above_a_name_that_is_spoken_of_is_known() {
        let rules = rules(
            "outbound_rules:
  - {name: exact, type: fqdn, destination: a.b.example.org}
  - {name: below, type: fqdn, destination: '*.c.example.com'}
  - {name: in-label, type: fqdn, destination: 'x-*.d.example.net'}
",
        );
        let below = |name: &str| rules.names_something_below(&DomainName::parse(name).unwrap());
        for name in ["org", "example.org", "b.example.org", "com", "c.example.com", "net", "d.example.net"] {
            assert!(below(name), "{name}");
        }
        for name in
            ["a.b.example.org", "z.example.org", "q.c.example.com", "x-1.d.example.net", "dev", "xample.org"]
        {
            assert!(!below(name), "{name}");
        }
    }

    #[test]
    fn a_name_with_a_foreign_top_level_domain_is_no_other_case() {
        let text = "outbound_rules:
  - {name: single, type: fqdn, destination: intranet}
  - {name: exact, type: fqdn, destination: a.example}
  - {name: below, type: fqdn, destination: '*.corp'}
  - {name: in-label, type: fqdn, destination: 'x-*.q.lan'}
";
        for (name, expected) in [
            ("intranet", Reason::Rule),
            ("a.example", Reason::Rule),
            ("b.c.corp", Reason::Rule),
            ("x-1.q.lan", Reason::Rule),
            ("a.example.cluster.local", Reason::NoRule),
            ("a.intranet", Reason::NoRule),
            ("foreign", Reason::NoRule),
        ] {
            assert_eq!(reason(&rules(text), "10.1.0.4", name), expected, "{name}");
            let internet = rules(&format!("isolation_mode: allow_internet_outbound\n{text}"));
            let expected = if expected == Reason::NoRule { Reason::InternetMode } else { expected };
            assert_eq!(reason(&internet, "10.1.0.4", name), expected, "{name}");
        }
    }

    #[test]
    fn a_wildcard_is_open_below_its_literal_part_and_a_name_is_not() {
        let text = "outbound_rules:
  - {name: exact, type: fqdn, destination: a.example.org}
  - {name: below, type: fqdn, destination: '*.example.org'}
  - {name: other, type: fqdn, destination: '*.deep.example.net', sources: [10.9.0.0/16]}
  - {name: wide, type: fqdn, destination: '*.example.net'}
  - {name: in-label, type: fqdn, destination: 'x-*.example.com'}
";
        let open_below = |rules: &Arc<RuleSet>, name: &str| {
            let name = DomainName::parse(name).unwrap();
            let permit = rules.decide_lookup([10, 0, 0, 1].into(), &name, NOW).into_permit().unwrap();
            permit.open_below().map(str::to_owned)
        };
        let approved = rules(text);
        assert_eq!(open_below(&approved, "a.example.org"), None);
        assert_eq!(open_below(&approved, "b.c.example.org").as_deref(), Some("example.org"));
        assert_eq!(
            open_below(&approved, "a.deep.example.net").as_deref(),
            Some("example.net"),
            "the narrower wildcard is another client's"
        );
        assert_eq!(open_below(&approved, "x-1.example.com").as_deref(), Some("example.com"));
        let internet = rules("isolation_mode: allow_internet_outbound\n");
        assert_eq!(open_below(&internet, "a.b.example.co.uk").as_deref(), Some("example.co.uk"));
        assert_eq!(open_below(&internet, "example.co.uk"), None);
    }

    #[test]
    fn an_answer_holds_what_could_be_dialled() {
        let rules = rules(
            "outbound_rules:
  - {name: public, type: fqdn, destination: a.example.org}
  - {name: private, type: fqdn, destination: b.example.org, resolves_to: private}
  - {name: not-there, action: deny, type: address, destination: {addresses: [8.8.8.0/24]}}
",
        );
        let vet = |name: &str, address: &str| {
            let name = DomainName::parse(name).unwrap();
            let permit = rules.decide_lookup([10, 0, 0, 1].into(), &name, NOW).into_permit().unwrap();
            permit.vet(address.parse().unwrap(), NOW).map_err(|denial| denial.reason)
        };
        assert_eq!(vet("a.example.org", "9.9.9.9"), Ok(()));
        assert_eq!(vet("a.example.org", "8.8.8.8"), Err(Reason::DenyRule));
        assert_eq!(vet("a.example.org", "10.0.0.7"), Err(Reason::AddressPrivate));
        assert_eq!(vet("a.example.org", "::ffff:127.0.0.1"), Err(Reason::AddressLoopback));
        assert_eq!(vet("b.example.org", "10.0.0.7"), Ok(()));
        assert_eq!(vet("b.example.org", "9.9.9.9"), Err(Reason::AddressPublic));
    }

    #[test]
    fn a_private_endpoint_may_give_its_names_their_addresses_and_then_has_no_others() {
        let rules = rules(
            "sources: {training: [10.1.0.0/24]}
outbound_rules:
  - name: pinned
    type: private_endpoint
    sources: [training]
    destination:
      service_resource_id: /subscriptions/s/resourceGroups/g/providers/Microsoft.KeyVault/vaults/mlvault
      addresses: [10.1.5.4, 'fd00:1::4']
  - {name: asked, type: fqdn, destination: '*.vault.azure.net', resolves_to: private}
",
        );
        let name = DomainName::parse("mlvault.vault.azure.net").unwrap();
        let permit =
            |client: &str| rules.decide_lookup(client.parse().unwrap(), &name, NOW).into_permit().unwrap();
        let addresses: [IpAddr; 2] = ["10.1.5.4", "fd00:1::4"].map(|address| address.parse().unwrap());
        assert_eq!(permit("10.1.0.4").pinned(), Some(&addresses[..]));
        assert_eq!(permit("10.2.0.4").pinned(), None, "the rule is not for this client");
        for address in addresses {
            assert_eq!(permit("10.1.0.4").vet(address, NOW).map_err(|denial| denial.reason), Ok(()));
        }
        let pinned = rules.rules().iter().find(|rule| &*rule.name == "pinned").unwrap();
        for other in ["10.1.5.5", "9.9.9.9", "127.0.0.1"] {
            let (other, class) = (other.parse().unwrap(), AddressClass::of(other.parse().unwrap()));
            assert_eq!(pinned.terms.reach.admits(other, class), Err(Reason::AddressNotInRule));
        }
    }

    #[test]
    fn a_told_address_opens_the_ports_of_the_rules_that_take_it() {
        let text = "outbound_rules:
  - {name: db, type: fqdn, destination: db.example.org, protocol: '*', ports: [443, 5432]}
  - {name: inside, type: fqdn, destination: db.example.org, protocol: UDP, ports: [7], resolves_to: private}
  - {name: ntp, type: fqdn, destination: '*.example.org', protocol: UDP, ports: [80, '123', 5432-5440]}
  - {name: other, type: fqdn, destination: db.example.org, protocol: UDP, ports: [9], sources: [10.9.0.0/16]}
  - {name: no-name, action: deny, type: fqdn, destination: db.example.org, protocol: UDP, ports: [5435-5436]}
  - {name: no-address, action: deny, type: address, destination: {addresses: [8.8.8.8], protocol: '*', port_ranges: '123'}}
  - {name: dc, type: resolve, destination: dc.example.org}
";
        let opens = |text: &str, name: &str, address: &str, protocol| {
            let name = DomainName::parse(name).unwrap();
            let permit = rules(text).decide_lookup([10, 0, 0, 1].into(), &name, NOW).into_permit().unwrap();
            permit.opens(address.parse().unwrap(), protocol, NOW).to_string()
        };
        for (name, address, protocol, ports) in [
            ("db.example.org", "8.8.4.4", Protocol::Udp, "123, 5432-5434, 5437-5440"),
            ("db.example.org", "8.8.8.8", Protocol::Udp, "5432-5434, 5437-5440"),
            ("db.example.org", "10.0.0.7", Protocol::Udp, "7"),
            ("db.example.org", "8.8.4.4", Protocol::Tcp, "5432"),
            ("db.example.org", "8.8.4.4", Protocol::Icmp, ""),
            ("a.example.org", "8.8.4.4", Protocol::Udp, "123, 5432-5440"),
            ("a.example.org", "8.8.4.4", Protocol::Tcp, ""),
        ] {
            assert_eq!(opens(text, name, address, protocol), ports, "{name} {address} {protocol:?}");
        }
        let report = format!("enforcement: report\n{text}");
        assert_eq!(opens(&report, "db.example.org", "8.8.8.8", Protocol::Udp), "123, 5432-5440");
        let internet = "isolation_mode: allow_internet_outbound\n";
        assert_eq!(opens(internet, "db.example.org", "8.8.8.8", Protocol::Udp), "");
    }
}
