//! A gate that other hosts have as their router: what it asks of the kernel, and when.
//!
//! The kernel hands TCP and DNS to the listeners and decides by itself on what no proxy can carry: UDP, ICMP and the
//! rest. Its rules come from the same rule set. They are there before the gate serves anybody and stay when it ends,
//! closed: only [`Appliance::down`] takes them away.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use outgate_dns::ledger::{Ledger, Opener};
use outgate_rules::{DomainName, NetworkPlan, NetworkVerdict, Port, Protocol, RuleSet};

use crate::config::{self, Config};
use crate::console::Console;
use crate::kernel::plan::{Group, Ports, TABLE, TOLD, WAYS, closed, hub_of_several, local};
use crate::kernel::routes::{Routes, Setting, unfit_settings};
use crate::kernel::table::Mark;
use crate::kernel::text::text;
use crate::kernel::told::{Element, Flow, Standing, ToldSets};
use crate::kernel::{self, Kept, conntrack, plan};
use crate::listener::Way;
use crate::network::mark;
use crate::record::IpProtocol;

mod names;

pub use names::Names;

/// The routing rule's place, before the main table's at 32766 and behind what an administrator may have put first.
const PRIORITY: u32 = 0x6f6;
/// Ports of one name for one client that are opened in the kernel, each with an element of its own.
pub const MOST_PORTS: usize = 1024;

/// What a gateway asks of the kernel.
#[derive(Clone, Debug)]
pub struct Appliance {
    config: config::Appliance,
    kernel: plan::Appliance,
    routes: Routes,
    /// The names that each of several gates resolves by itself; none where there is one gate.
    names: Option<Arc<Names>>,
}

/// What a reload cut in the kernel.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Cut {
    /// Flows that were open.
    pub flows: usize,
    /// Ways that were open to clients by what they had been told.
    pub told: usize,
}

impl Appliance {
    /// A gateway whose listeners are on these ports.
    #[must_use]
    pub fn new(config: &config::Appliance, ports: Ports) -> Self {
        let kernel = plan::Appliance {
            clients: config.clients.clone(),
            ports,
            redirection: config.redirection,
            mark: config.mark,
            route_table: config.route_table,
            log_group: config.log_group,
            masquerade: config.masquerade,
            own_uid: None,
        };
        let routes = Routes { mark: Mark::whole(config.mark), table: config.route_table, priority: PRIORITY };
        let several = config.gates == config::Gates::Several;
        let names = several.then(|| Arc::new(Names::new(config.clients.clone())));
        Self { config: config.clone(), kernel, routes, names }
    }

    /// The gateway that a configuration describes, if it describes one.
    #[must_use]
    pub fn of(config: &Config) -> Option<Self> {
        config.appliance.as_ref().map(|appliance| Self::new(appliance, ports_of(config)))
    }

    /// The same for the programs of this very host, all but those of one user: a sidecar's.
    #[must_use]
    pub fn beside(config: &config::Appliance, ports: Ports, own_uid: u32) -> Self {
        let mut appliance = Self::new(config, ports);
        appliance.kernel.own_uid = Some(own_uid);
        appliance.kernel.redirection = plan::Redirection::Redirect;
        appliance.names = None;
        appliance
    }

    /// The names that this gate resolves by itself, where it is one of several.
    #[must_use]
    pub fn names(&self) -> Option<Arc<Names>> {
        self.names.clone()
    }

    /// What these rules ask that this gateway cannot keep, each with its rule.
    #[must_use]
    pub fn unkept(&self, rules: &Arc<RuleSet>) -> Vec<String> {
        unkept(&self.config, rules)
    }

    /// The NFLOG group that the kernel's rules tell.
    #[must_use]
    pub fn log_group(&self) -> u16 {
        self.kernel.log_group
    }

    /// Lets nothing pass, unless rules of an earlier gate are in force: those hold until there are others.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn secure(&self) -> Result<(), kernel::Error> {
        if kernel::is_up(TABLE)? { Ok(()) } else { self.close() }
    }

    /// Puts the kernel's part of `rules` in force, in one step. What clients were told stays open.
    ///
    /// # Errors
    /// The kernel refuses: then what was in force still is.
    pub fn enforce(&self, rules: &Arc<RuleSet>) -> Result<(), kernel::Error> {
        if self.kernel.own_uid.is_some() {
            return kernel::apply(&local(&self.kernel), &Kept::none());
        }
        self.routes.up()?;
        let groups = self.groups(rules);
        let kept = Kept::sets(TOLD.into_iter().chain(groups.iter().flat_map(Group::sets)));
        let plan = rules.network_plan(Timestamp::now());
        kernel::apply(&hub_of_several(&plan, &groups, &self.kernel), &kept)?;
        if let Some(names) = &self.names {
            // The rules are in force all the same. What stays closed is tried again, and told of, by `cut`.
            let _ = names.open(rules);
        }
        Ok(())
    }

    /// Lets nothing pass. What clients were told is kept for when the gate is back.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn close(&self) -> Result<(), kernel::Error> {
        let ways = format!("{WAYS}*");
        kernel::apply(&closed(&self.kernel), &Kept::sets(TOLD.into_iter().chain([ways.as_str()])))
    }

    /// Takes away everything that is the gate's in the kernel. False if there was nothing.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn down(&self) -> Result<bool, kernel::Error> {
        self.routes.down()?;
        kernel::remove(TABLE)
    }

    /// The kernel's rules and routes as text that `nft -f` and a shell take.
    #[must_use]
    pub fn show(&self, rules: &Arc<RuleSet>) -> String {
        if self.kernel.own_uid.is_some() {
            return text(&local(&self.kernel));
        }
        let plan = rules.network_plan(Timestamp::now());
        let table = hub_of_several(&plan, &self.groups(rules), &self.kernel);
        format!("{}\n# Routes:\n{}", text(&table), self.routes.text())
    }

    /// Ends what the kernel let pass by earlier rules and these do not: ways that were opened by name, and open flows.
    /// A flow that cannot be judged from here is forgotten, and the kernel judges its next packet.
    ///
    /// # Errors
    /// The kernel does not tell, or refuses.
    pub fn cut(&self, rules: &Arc<RuleSet>, ledger: &Ledger) -> Result<Cut, kernel::Error> {
        let now = Timestamp::now();
        let mut sets = <ToldSets>::open(TABLE, TOLD)?;
        let revoked: Vec<Flow> = sets
            .dump()?
            .into_iter()
            .filter(|standing| {
                !standing.name.as_ref().is_some_and(|name| opens(rules, &standing.flow, name, now))
            })
            .map(|standing| standing.flow)
            .collect();
        sets.delete(&revoked)?;
        let of_groups = self.names.as_ref().map_or(Ok(0), |names| names.close(rules))?;
        let plan = rules.network_plan(now);
        let forwarded = conntrack::Filter { mark: Some(mark::FORWARDED), ..conntrack::Filter::default() };
        let mut flows = conntrack::dump(&forwarded)?;
        flows.retain(|flow| !may_go_on(flow, &plan, rules, ledger, now));
        let cut = Cut { flows: conntrack::delete(&flows)?, told: revoked.len() + of_groups };
        self.names.as_ref().map_or(Ok(()), |names| names.open(rules))?;
        Ok(cut)
    }

    /// Forgets the flows of clients that began without the gate, so that their next packets are judged as new ones.
    /// Says how many there were.
    ///
    /// # Errors
    /// The kernel does not tell, or refuses.
    pub fn forget_strangers(&self) -> Result<usize, kernel::Error> {
        let mut flows = conntrack::dump(&conntrack::Filter::default())?;
        let ours = |flow: &conntrack::Flow| mark::is_ours(flow.mark);
        flows.retain(|flow| self.kernel.clients.contains(flow.original.source) && !ours(flow));
        conntrack::delete(&flows)
    }

    /// Fills the ledger of a gate that has just started with what its predecessor told, as the kernel remembers it.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn remember(&self, rules: &Arc<RuleSet>, ledger: &Ledger) -> Result<usize, kernel::Error> {
        if let Some(names) = &self.names {
            names.remember(rules, ledger)?;
        }
        let (standing, now) = (<ToldSets>::open(TABLE, TOLD)?.dump()?, Instant::now());
        for Standing { flow, name, left } in &standing {
            if let Some(name) = name {
                ledger.note_standing(flow.client, flow.address, name, *left, now);
            }
        }
        Ok(standing.len())
    }

    fn groups(&self, rules: &Arc<RuleSet>) -> Vec<Group> {
        self.names.as_ref().map_or_else(Vec::new, |names| names.groups(rules))
    }
}

/// What a policy asks that the appliance of this configuration cannot keep, each with its rule.
#[must_use]
pub fn unkept(config: &config::Appliance, rules: &Arc<RuleSet>) -> Vec<String> {
    let beyond = rules.beyond_web();
    let wildcards = beyond.wildcards.iter().filter(|_| config.gates == config::Gates::Several).map(|id| {
        (*id, "a wildcard on a port without TLS or HTTP needs a client's lookups and flows at the same gate, and there \
               are several: write the names out, or list addresses")
    });
    let many = beyond.datagrams.iter().filter(|id| {
        rules.rule_numbered(id.number()).is_some_and(|rule| rule.terms.ports.len() > MOST_PORTS)
    });
    let many = many.map(|id| (*id, "a name for UDP can have 1024 ports at most: each is opened on its own"));
    let told = wildcards.chain(many).filter_map(|(id, why)| {
        let rule = rules.rule_numbered(id.number())?;
        Some(format!("rule \"{}\", {}: {why}", rule.name, rule.place))
    });
    let too_many = (config.gates == config::Gates::Several).then(|| names::too_many(rules, &config.clients));
    told.chain(too_many.flatten()).collect()
}

/// The settings of this host without which a gateway forwards nothing, and those that weaken it; the former first.
#[must_use]
pub fn settings() -> (Vec<Setting>, Vec<Setting>) {
    unfit_settings().into_iter().partition(|setting| setting.needed)
}

/// What is wrong with a setting, and the command that mends it.
#[must_use]
pub fn unfit(setting: &Setting) -> String {
    let Setting { name, wanted, found, why, .. } = setting;
    let found = found.as_deref().unwrap_or("unknown");
    format!("{name} is {found}: {why}; set it with `sysctl -w {name}={wanted}`")
}

/// Where a configuration's listeners are.
#[must_use]
pub fn ports_of(config: &Config) -> Ports {
    let port = |wanted: Way| {
        let found = config.transparent.iter().find(|(way, _)| *way == wanted);
        found.map(|(_, listen)| listen.address.port())
    };
    Ports {
        tls: port(Way::Tls),
        http: port(Way::Http),
        tcp: port(Way::Tcp),
        dns: config.dns.as_ref().map(|dns| dns.address.port()),
    }
}

/// Whether a client may use a way that was opened to it by name.
fn opens(rules: &Arc<RuleSet>, flow: &Flow, name: &DomainName, now: Timestamp) -> bool {
    let permit = rules.decide_lookup(flow.client, name, now).into_permit();
    match (permit, IpProtocol(flow.protocol).of_rules(), Port::new(flow.port)) {
        (Ok(permit), Some(protocol), Some(port)) => permit.opens(flow.address, protocol, now).contains(port),
        _ => false,
    }
}

/// Whether a flow that the kernel passes may go on by these rules.
fn may_go_on(
    flow: &conntrack::Flow,
    plan: &NetworkPlan,
    rules: &Arc<RuleSet>,
    ledger: &Ledger,
    now: Timestamp,
) -> bool {
    let (client, address) = (flow.original.source, flow.original.destination);
    let Some(protocol) = IpProtocol(flow.protocol).of_rules() else { return false };
    let port = Port::new(flow.original.destination_port);
    let by_plan = plan.verdict(client, address, protocol, port);
    if matches!(by_plan, NetworkVerdict::Pass(_)) {
        return true;
    }
    let way = Flow { client, address, protocol: flow.protocol, port: flow.original.destination_port };
    let denied = matches!(by_plan, NetworkVerdict::Refuse(Some(_)));
    !denied && ledger.names(client, address, Instant::now()).iter().any(|name| opens(rules, &way, name, now))
}

/// Opens ways in the kernel for what clients are told.
#[derive(Debug)]
pub struct Openings {
    rules: Arc<ArcSwap<RuleSet>>,
    sets: Mutex<ToldSets>,
    console: Console,
}

impl Openings {
    /// Openings by the rules in force, in the network namespace of this thread.
    ///
    /// # Errors
    /// There is no socket to be had.
    pub fn new(rules: Arc<ArcSwap<RuleSet>>, console: Console) -> Result<Self, kernel::Error> {
        Ok(Self { rules, sets: Mutex::new(ToldSets::open(TABLE, TOLD)?), console })
    }

    /// The ways that a client may use once it has been told the address. TCP is the gate's, which asks the ledger.
    fn elements(&self, client: IpAddr, address: IpAddr, name: &DomainName) -> Vec<Element> {
        let (rules, now) = (self.rules.load(), Timestamp::now());
        if rules.beyond_web().datagrams.is_empty() {
            return Vec::new();
        }
        let Ok(permit) = rules.decide_lookup(client, name, now).into_permit() else { return Vec::new() };
        let ports = permit.opens(address, Protocol::Udp, now);
        let each = ports.ranges().flatten().take(MOST_PORTS);
        each.map(|port| Element {
            flow: Flow { client, address, protocol: kernel::table::UDP, port },
            name: name.clone(),
        })
        .collect()
    }
}

impl Opener for Openings {
    fn open(&self, client: IpAddr, address: IpAddr, name: &DomainName, lasts: Duration) {
        let elements = self.elements(client, address, name);
        if elements.is_empty() {
            return;
        }
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = sets.add(&elements, lasts) {
            // The client will find its way closed: said where a person looks, as no record is of a flow yet.
            self.console.notice(format!("{client} cannot use {name} by UDP: {error}"));
        }
    }
}
