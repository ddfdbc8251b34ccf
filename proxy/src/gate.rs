//! The running instance: what all sessions share.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use outgate_dns::Resolver;
use outgate_dns::ledger::Ledger;
use outgate_dns::server::Foundation;
use outgate_rules::{OwnAddresses, RuleSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::Budget;
use crate::flow::Flows;
use crate::recorder::{Lookups, Recorder};
use crate::session::SessionIds;
use crate::upload::Hours;

/// What all sessions share.
#[derive(Debug)]
pub struct Gate {
    rules: Arc<ArcSwap<RuleSet>>,
    own: ArcSwap<OwnAddresses>,
    /// Turns permitted names into addresses.
    pub resolver: Resolver,
    /// What clients were told by DNS.
    pub ledger: Arc<Ledger>,
    /// The one outlet for records, metrics and the console.
    pub recorder: Arc<Recorder>,
    /// The open flows.
    pub flows: Arc<Flows>,
    /// What clients sent in the last hour.
    pub hours: Arc<Hours>,
    /// How many connections there may be.
    pub budget: Arc<Budget>,
    /// Bounds on time.
    pub limits: Limits,
    /// Whether clients have the gate as their router. Then none of them has the gate's own address.
    pub is_router: bool,
    /// Whether origins see the clients' addresses instead of the gate's.
    pub keeps_sources: bool,
    /// Hands out session identities.
    pub ids: SessionIds,
    /// The sessions and what they left running: a shutdown waits for them.
    pub tasks: TaskTracker,
    /// Cancelled when the gate begins to shut down.
    pub draining: CancellationToken,
}

/// Bounds that a configuration may set. Each default is explained in docs/operations.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of all clients together.
    pub connections: usize,
    /// Connections of one client.
    pub per_client: usize,
    /// For a request's head, or a ClientHello, from when it may come to its last byte.
    pub head: Duration,
    /// For resolving a name, and again for dialling its addresses.
    pub dial: Duration,
    /// Without a byte in either direction.
    pub idle: Duration,
    /// For open flows at a shutdown.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            per_client: 2_000,
            head: Duration::from_secs(10),
            dial: Duration::from_secs(10),
            idle: Duration::from_secs(3600),
            drain: Duration::from_secs(25),
        }
    }
}

impl Gate {
    /// A gate that denies everything until [`Gate::set_rules`].
    #[must_use]
    pub fn new(resolver: Resolver, recorder: Recorder, limits: Limits) -> Self {
        Self {
            rules: Arc::new(ArcSwap::from_pointee(RuleSet::empty())),
            own: ArcSwap::default(),
            resolver,
            ledger: Arc::default(),
            recorder: Arc::new(recorder),
            flows: Arc::default(),
            hours: Arc::new(Hours::new(std::time::Instant::now())),
            budget: Arc::new(Budget::new(limits.connections, limits.per_client)),
            limits,
            is_router: false,
            keeps_sources: false,
            ids: SessionIds::new(rand::random()),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
        }
    }

    /// What has to be done now and then beside the sessions. Never comes back.
    pub async fn keep_up(self: Arc<Self>) {
        tokio::join!(self.recorder.keep_up(), self.flows.keep_time(self.limits.idle));
    }

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> Arc<RuleSet> {
        self.rules.load_full()
    }

    /// The rules in force, and those that will be.
    #[must_use]
    pub fn shared_rules(&self) -> Arc<ArcSwap<RuleSet>> {
        Arc::clone(&self.rules)
    }

    /// What the DNS server stands on: it decides by the same rules, asks the same resolver, notes in the same ledger
    /// and tells the same recorder.
    #[must_use]
    pub fn foundation(&self) -> Foundation {
        Foundation {
            rules: self.shared_rules(),
            resolver: self.resolver.clone(),
            observer: Arc::new(Lookups(Arc::clone(&self.recorder))),
            ledger: Arc::clone(&self.ledger),
        }
    }

    /// The addresses that lead back to the gate or its host.
    #[must_use]
    pub fn own(&self) -> Arc<OwnAddresses> {
        self.own.load_full()
    }

    /// The address that a connection for `client` comes from, where it is not the gate's.
    #[must_use]
    pub fn source_for(&self, client: IpAddr) -> Option<IpAddr> {
        self.keeps_sources.then_some(client)
    }

    /// Puts other rules in force. Every decision after this is by them.
    pub fn set_rules(&self, rules: Arc<RuleSet>) {
        self.rules.store(rules);
    }

    /// Sets the addresses that lead back here.
    pub fn set_own(&self, own: OwnAddresses) {
        self.own.store(Arc::new(own));
    }
}
