//! What was wanted while a program ran, and the rules that would allow it.
//!
//! The recorder tells of every decision; what is kept is each destination once, with its ports. At the end of
//! `outgate run` a person reads what was denied, each with the line that would allow it, and `--learn` writes the
//! least policy by which the same run goes through.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use outgate_dns::event::{Answered, AskedName};
use outgate_rules::{Host, Protocol, Reason};

use crate::record::{Asked, Closed, Decided, Verdict};

/// Destinations that are kept apart. A program that wants more has a list of its own, and no use for ours.
const MOST: usize = 10_000;

/// What was wanted, by destination.
#[derive(Debug, Default)]
pub struct Tally {
    wanted: Mutex<BTreeMap<Target, Wanted>>,
}

/// A host that was wanted, apart from its ports.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Target {
    Name(String, &'static str),
    Address(IpAddr, &'static str),
}

/// How it was wanted.
#[derive(Clone, Default, Debug)]
struct Wanted {
    /// Ports of flows, and whether each was denied. None of them: the name was only looked up.
    ports: BTreeMap<u16, bool>,
    /// Whether a lookup of it was denied.
    lookup_denied: bool,
    /// Whether it resolved to a private address, which only a rule that says so lets pass.
    private: bool,
}

impl Tally {
    /// Counts a decision.
    pub fn decided(&self, event: &Decided<'_>) {
        let Asked::Destination(destination) = &event.flow.asked else { return };
        let denied = event.verdict() == Verdict::Deny;
        self.with(target(&destination.host, event.flow.protocol), |wanted| {
            *wanted.ports.entry(destination.port.number()).or_default() |= denied;
        });
    }

    /// Counts a flow that was refused after its decision.
    pub fn closed(&self, event: &Closed<'_>) {
        let Asked::Destination(destination) = &event.flow.asked else { return };
        if event.verdict == Verdict::Deny {
            self.with(target(&destination.host, event.flow.protocol), |wanted| {
                wanted.ports.insert(destination.port.number(), true);
                wanted.private |= event.reason == Reason::AddressPrivate;
            });
        }
    }

    /// Counts a lookup.
    pub fn looked_up(&self, event: &Answered) {
        let Some(asked) = &event.question else { return };
        let AskedName::Host(name) = &asked.name else { return };
        let denied = !event.reason.allows();
        self.with(target(&Host::Name(name.clone()), Protocol::Tcp), |wanted| {
            wanted.lookup_denied |= denied;
            wanted.private |= event.reason == Reason::AddressPrivate;
        });
    }

    /// What was denied, one destination a line, each followed by the rule that would allow it. None if nothing was.
    #[must_use]
    pub fn denials(&self) -> Option<String> {
        let wanted = self.lock();
        let mut text = String::new();
        for (target, wanted) in wanted.iter().filter(|(_, wanted)| wanted.is_denied()) {
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "  {}\n    {}",
                shown(target, wanted),
                allowing(target, &wanted.only_denied())
            );
        }
        (!text.is_empty()).then_some(text)
    }

    /// The least policy that lets through all that was wanted.
    #[must_use]
    pub fn policy(&self) -> String {
        let wanted = self.lock();
        if wanted.is_empty() {
            return "outbound_rules: []\n".to_owned();
        }
        let rules = wanted.iter().map(|(target, wanted)| format!("  {}\n", rule(target, wanted)));
        format!("outbound_rules:\n{}", rules.collect::<String>())
    }

    fn with(&self, target: Target, change: impl FnOnce(&mut Wanted)) {
        let mut wanted = self.lock();
        if wanted.len() < MOST || wanted.contains_key(&target) {
            change(wanted.entry(target).or_default());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Target, Wanted>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wanted {
    fn is_denied(&self) -> bool {
        self.ports.values().any(|denied| *denied) || (self.ports.is_empty() && self.lookup_denied)
    }

    fn only_denied(&self) -> Self {
        let ports = self.ports.iter().filter(|(_, denied)| **denied).map(|(port, denied)| (*port, *denied));
        Self { ports: ports.collect(), ..self.clone() }
    }

    fn ports(&self) -> String {
        let ports: Vec<String> = self.ports.keys().map(u16::to_string).collect();
        ports.join(", ")
    }
}

fn target(host: &Host, protocol: Protocol) -> Target {
    match host {
        Host::Name(name) => Target::Name(name.to_string(), protocol.name()),
        Host::Address(address) => Target::Address(*address, protocol.name()),
    }
}

fn shown(target: &Target, wanted: &Wanted) -> String {
    let host = match target {
        Target::Name(name, _) => name.clone(),
        Target::Address(address, _) => address.to_string(),
    };
    match wanted.only_denied().ports() {
        ports if ports.is_empty() => format!("{host} (looked up)"),
        ports => format!("{host} port {ports}"),
    }
}

/// The rule that would have allowed what was denied. A name whose lookup was denied was looked up to be reached.
fn allowing(target: &Target, denied: &Wanted) -> String {
    match target {
        Target::Name(name, _) if denied.ports.is_empty() => {
            format!("- {{name: {}, type: fqdn, destination: {name}}}", label(name))
        }
        Target::Name(..) | Target::Address(..) => rule(target, denied),
    }
}

/// The rule for it, on one line. A name that was looked up and never reached only has to resolve.
fn rule(target: &Target, wanted: &Wanted) -> String {
    let private = if wanted.private { ", resolves_to: private" } else { "" };
    match target {
        Target::Name(name, _) if wanted.ports.is_empty() => {
            format!("- {{name: {}, type: resolve, destination: {name}{private}}}", label(name))
        }
        Target::Name(name, protocol) => {
            let protocol = if *protocol == Protocol::Tcp.name() { "" } else { ", protocol: UDP" };
            let ports = wanted.ports();
            format!(
                "- {{name: {}, type: fqdn, destination: {name}, ports: [{ports}]{protocol}{private}}}",
                label(name)
            )
        }
        Target::Address(address, protocol) => format!(
            "- {{name: {}, type: address, destination: {{addresses: [\"{address}\"], protocol: {protocol}, \
             port_ranges: \"{}\"}}}}",
            label(&address.to_string()),
            wanted.ports().replace(", ", ",")
        ),
    }
}

/// A rule's name, made from a host.
fn label(host: &str) -> String {
    host.replace(['.', ':', '_'], "-")
}

#[cfg(test)]
mod tests {
    use outgate_dns::event::Asked as Question;
    use outgate_rules::{Destination, Request, policy};

    use super::*;
    use crate::record::dns::tests::answered;
    use crate::record::tests::{connect, decide, time};

    fn wants(tally: &Tally, destination: &str) {
        let (flow, decision) = (connect(destination), decide(destination));
        tally.decided(&Decided::by_rules(&flow, &decision, time()));
    }

    fn looks_up(tally: &Tally, name: &str, reason: Reason) {
        let name = outgate_rules::DomainName::parse(name).unwrap();
        let question = Question { name: AskedName::Host(name), record_type: 1 };
        tally.looked_up(&Answered { question: Some(question), ..answered(reason) });
    }

    #[test]
    fn each_denied_destination_is_told_once_with_the_rule_that_would_allow_it() {
        let tally = Tally::default();
        for destination in
            ["pypi.org:443", "evil.example:443", "evil.example:8443", "evil.example:443", "9.9.9.9:22"]
        {
            wants(&tally, destination);
        }
        looks_up(&tally, "only.example", Reason::NoRule);
        looks_up(&tally, "evil.example", Reason::NoRule);
        assert_eq!(
            tally.denials().unwrap(),
            r#"  evil.example port 443, 8443
    - {name: evil-example, type: fqdn, destination: evil.example, ports: [443, 8443]}
  only.example (looked up)
    - {name: only-example, type: fqdn, destination: only.example}
  9.9.9.9 port 22
    - {name: 9-9-9-9, type: address, destination: {addresses: ["9.9.9.9"], protocol: TCP, port_ranges: "22"}}
"#
        );
    }

    #[test]
    fn where_nothing_was_denied_there_is_nothing_to_tell() {
        let tally = Tally::default();
        wants(&tally, "pypi.org:443");
        looks_up(&tally, "pypi.org", Reason::Rule);
        assert_eq!(tally.denials(), None);
    }

    #[test]
    fn what_is_learned_is_a_policy_that_allows_what_was_wanted_and_nothing_beside_it() {
        let tally = Tally::default();
        let wanted = ["pypi.org:443", "evil.example:8443", "9.9.9.9:22", "[2606:4700::1]:443"];
        wanted.iter().for_each(|destination| wants(&tally, destination));
        looks_up(&tally, "dc.corp.example", Reason::AddressPrivate);
        let source = policy::Source { name: "learned.yaml".to_owned(), bytes: tally.policy().into_bytes() };
        let compiled = policy::compile(&[source], &mut |_| Err("none".to_owned()), None, time());
        let rules = std::sync::Arc::new(compiled.unwrap_or_else(|mistakes| panic!("{mistakes}")).rules);
        let allows = |destination: &str| {
            let destination = Destination::parse(destination).unwrap();
            let client = [127, 0, 0, 1].into();
            rules
                .decide(&Request { client, destination: &destination, protocol: Protocol::Tcp }, time())
                .allows()
        };
        assert!(wanted.iter().all(|destination| allows(destination)), "{}", tally.policy());
        for other in
            ["pypi.org:80", "evil.example:443", "9.9.9.9:443", "www.pypi.org:443", "dc.corp.example:443"]
        {
            assert!(!allows(other), "{other}");
        }
    }

    #[test]
    fn a_run_that_wanted_nothing_gets_a_policy_that_allows_nothing() {
        assert_eq!(Tally::default().policy(), "outbound_rules: []\n");
    }
}
