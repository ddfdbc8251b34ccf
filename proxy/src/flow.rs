//! Open flows: what a reload has to decide again, and what a shutdown has to wait for.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use outgate_rules::{
    DomainName, OnRevoke, OwnAddresses, Permit, Protocol, Reason, RuleRef, RuleSet, VettedAddr,
};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::metrics;
use crate::path::Wanted;
use crate::upload::{Grant, Meter};

/// A flow that has been dialled and not yet closed.
#[derive(Debug)]
pub struct Flow {
    client: IpAddr,
    wanted: Wanted,
    protocol: Protocol,
    address: SocketAddr,
    /// The rule whose limits hold now; a reload may put another in its place.
    rule: Mutex<Option<RuleRef>>,
    /// The server name seen inside a flow to an address.
    seen: Mutex<Option<DomainName>>,
    /// Counts and limits what goes up.
    pub meter: Meter,
    up: AtomicU64,
    down: AtomicU64,
    opened: Instant,
    /// When the last byte moved, in milliseconds from `opened`.
    moved: AtomicU64,
    end: Mutex<Option<End>>,
    /// Told when `end` changes. One task waits for it, the one that relays.
    ordered: Notify,
}

/// The gate's word that a flow ends, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    at: Instant,
    reason: Reason,
}

impl Flow {
    /// A permitted flow to `address`, which its rule admitted.
    #[must_use]
    pub fn new(wanted: Wanted, permit: &Permit, address: &VettedAddr, meter: Meter) -> Self {
        Self {
            client: permit.client(),
            wanted,
            protocol: permit.protocol(),
            address: address.socket(),
            rule: Mutex::new(address.rule().cloned()),
            seen: Mutex::new(None),
            meter,
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            opened: Instant::now(),
            moved: AtomicU64::new(0),
            end: Mutex::new(None),
            ordered: Notify::new(),
        }
    }

    /// Remembers the server name seen inside: it is judged again with the rest.
    pub fn saw(&self, name: DomainName) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(name);
    }

    /// Asks to send up to `wanted` bytes to the origin; what is granted counts as sent.
    pub fn take_up(&self, wanted: usize) -> Grant {
        let grant = self.meter.take(wanted as u64, std::time::Instant::now());
        self.up.fetch_add(grant.bytes, Ordering::Relaxed);
        self.touch();
        grant
    }

    /// Counts bytes that came down from the origin.
    pub fn count_down(&self, bytes: usize) {
        self.down.fetch_add(bytes as u64, Ordering::Relaxed);
        self.touch();
    }

    /// Bytes sent to the origin, and bytes that came from it.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed))
    }

    /// The address that was dialled.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The rule whose limits hold now.
    #[must_use]
    pub fn rule(&self) -> Option<RuleRef> {
        self.rule.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the gate ends the flow: nothing moved for `idle`, a reload revoked it, or the gate is
    /// shutting down.
    pub async fn ended(&self, idle: Duration) -> Reason {
        loop {
            let ordered = *self.end();
            match ordered {
                Some(End { at, reason }) if at <= Instant::now() => return reason,
                _ if self.idle_for() >= idle => return Reason::IdleTimeout,
                _ => {}
            }
            let idle_at = self.opened + Duration::from_millis(self.moved.load(Ordering::Relaxed)) + idle;
            let wake = ordered.map_or(idle_at, |end| end.at.min(idle_at));
            tokio::select! {
                () = sleep_until(wake) => {}
                () = self.ordered.notified() => {}
            }
        }
    }

    fn end(&self) -> MutexGuard<'_, Option<End>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges the flow by `rules`, with the order and the checks of a new one.
    fn judge(&self, rules: &Arc<RuleSet>, own: &OwnAddresses, now: Timestamp) -> Result<VettedAddr, Reason> {
        let decision = self.wanted.decide(rules, self.client, self.protocol, now);
        let permit = decision.into_permit().map_err(|denial| denial.reason)?;
        let vetted = permit.vet(self.address.ip(), own, now).map_err(|denial| denial.reason)?;
        if let Some(seen) = self.seen.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            permit.vet_seen_name(seen, now).map_err(|denial| denial.reason)?;
        }
        Ok(vetted)
    }

    fn put_under(&self, rule: Option<&RuleRef>) {
        self.meter.set_rule(rule.map(|rule| &**rule));
        *self.rule.lock().unwrap_or_else(PoisonError::into_inner) = rule.cloned();
        self.end().take_if(|end| end.reason == Reason::Revoked);
        self.ordered.notify_one();
    }

    /// Orders the flow to end. An earlier order stands.
    fn order_end(&self, at: Instant, reason: Reason) {
        let mut end = self.end();
        if end.is_none_or(|end| at < end.at) {
            *end = Some(End { at, reason });
        }
        drop(end);
        self.ordered.notify_one();
    }

    fn touch(&self) {
        let elapsed = self.opened.elapsed().as_millis();
        self.moved.store(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn idle_for(&self) -> Duration {
        self.opened.elapsed().saturating_sub(Duration::from_millis(self.moved.load(Ordering::Relaxed)))
    }
}

/// The open flows of a gate.
#[derive(Debug, Default)]
pub struct Flows {
    open: Mutex<HashMap<u64, Arc<Flow>>>,
    next: AtomicU64,
}

/// What a reload did to the open flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// Ended at once.
    pub closed: usize,
    /// May go on for the time of `on_revoke: drain`.
    pub draining: usize,
    /// No longer allowed and left alone, by `on_revoke: keep`.
    pub kept: usize,
}

impl Flows {
    /// Adds a flow; it is open until the guard is dropped.
    pub fn open(self: &Arc<Self>, flow: Flow, counted: metrics::Open) -> OpenFlow {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let flow = Arc::new(flow);
        self.lock().insert(id, Arc::clone(&flow));
        OpenFlow { flows: Arc::clone(self), id, flow, _counted: counted }
    }

    /// How many are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Decides every open flow again, by the rules that now hold, and ends what they no longer allow as
    /// their `on_revoke` says.
    pub fn decide_again(&self, rules: &Arc<RuleSet>, own: &OwnAddresses, now: Timestamp) -> Revoked {
        let flows: Vec<Arc<Flow>> = self.lock().values().cloned().collect();
        let mut revoked = Revoked::default();
        for flow in flows {
            decide_one_again(&flow, rules, own, now, &mut revoked);
        }
        revoked
    }

    /// Ends every open flow now.
    pub fn end_all(&self, reason: Reason) {
        let now = Instant::now();
        self.lock().values().for_each(|flow| flow.order_end(now, reason));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Flow>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn decide_one_again(
    flow: &Flow,
    rules: &Arc<RuleSet>,
    own: &OwnAddresses,
    now: Timestamp,
    revoked: &mut Revoked,
) {
    match (flow.judge(rules, own, now), rules.settings().on_revoke) {
        (Ok(vetted), _) => flow.put_under(vetted.rule()),
        (Err(_), OnRevoke::Close) => {
            flow.order_end(Instant::now(), Reason::Revoked);
            revoked.closed += 1;
        }
        (Err(_), OnRevoke::Drain(time)) => {
            flow.order_end(Instant::now() + time, Reason::Revoked);
            revoked.draining += 1;
        }
        (Err(_), OnRevoke::Keep) => revoked.kept += 1,
    }
}

/// A flow while it is open: dropping this takes it off the list.
#[derive(Debug)]
pub struct OpenFlow {
    flows: Arc<Flows>,
    id: u64,
    flow: Arc<Flow>,
    _counted: metrics::Open,
}

impl OpenFlow {
    /// Decides this one flow again: for a reload that came between its decision and its opening.
    pub fn decide_again(&self, rules: &Arc<RuleSet>, own: &OwnAddresses, now: Timestamp) {
        decide_one_again(&self.flow, rules, own, now, &mut Revoked::default());
    }
}

impl std::ops::Deref for OpenFlow {
    type Target = Arc<Flow>;

    fn deref(&self) -> &Arc<Flow> {
        &self.flow
    }
}

impl Drop for OpenFlow {
    fn drop(&mut self) {
        self.flows.lock().remove(&self.id);
    }
}
