//! Open flows: what a reload has to decide again, and what a shutdown has to wait for.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use foldhash::fast::RandomState;
use jiff::Timestamp;
use outgate_rules::{
    DomainName, OnRevoke, OwnAddresses, Permit, Protocol, Reason, RuleRef, RuleSet, VettedAddr,
};
use tokio::time::{Instant, MissedTickBehavior, interval};

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
    judged: Mutex<Judged>,
    /// Counts and limits what goes up.
    pub meter: Meter,
    down: AtomicU64,
    /// What had moved, both ways, when the flow was last looked at, and how often it was seen standing still since.
    moved: AtomicU64,
    still: AtomicU32,
    order: Mutex<Order>,
}

/// What is known of a flow beside what was wanted.
#[derive(Debug, Default)]
struct Judged {
    /// The rule whose limits hold now; a reload may put another in its place.
    rule: Option<RuleRef>,
    /// The server name seen inside a flow to an address.
    seen: Option<DomainName>,
}

/// The gate's word on how a flow ends, and who has to hear it.
#[derive(Debug, Default)]
struct Order {
    end: Option<End>,
    /// The task that relays.
    waiting: Option<Waker>,
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
            judged: Mutex::new(Judged { rule: address.rule().cloned(), seen: None }),
            meter,
            down: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            still: AtomicU32::new(0),
            order: Mutex::default(),
        }
    }

    /// Remembers the server name seen inside: it is judged again with the rest.
    pub fn saw(&self, name: DomainName) {
        self.judged().seen = Some(name);
    }

    /// Asks to send up to `wanted` bytes to the origin; what is granted counts as sent.
    pub fn take_up(&self, wanted: usize) -> Grant {
        self.meter.take(wanted as u64, std::time::Instant::now)
    }

    /// Counts bytes that came down from the origin.
    pub fn count_down(&self, bytes: usize) {
        self.down.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes sent to the origin, and bytes that came from it.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.meter.sent(), self.down.load(Ordering::Relaxed))
    }

    /// The address that was dialled.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The rule whose limits hold now.
    #[must_use]
    pub fn rule(&self) -> Option<RuleRef> {
        self.judged().rule.clone()
    }

    /// Waits until the gate ends the flow: nothing moved for the idle time, a reload revoked it, or the gate is
    /// shutting down. One task at a time may wait.
    pub async fn ended(&self) -> Reason {
        poll_fn(|cx| self.poll_ended(cx)).await
    }

    /// Polls for what [`Flow::ended`] waits for.
    pub fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<Reason> {
        let mut order = self.order();
        if let Some(reason) = order.due() {
            return Poll::Ready(reason);
        }
        match &mut order.waiting {
            Some(waiting) => waiting.clone_from(cx.waker()),
            None => order.waiting = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Why the gate has ended the flow, if it has.
    #[must_use]
    pub fn has_ended(&self) -> Option<Reason> {
        self.order().due()
    }

    fn judged(&self) -> MutexGuard<'_, Judged> {
        self.judged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether bytes have moved since the last look, `every` so long, and whether an order is due.
    fn look(&self, now: Instant, every: Duration, idle: Duration) {
        let (up, down) = self.bytes();
        let moved = up.wrapping_add(down);
        if self.moved.swap(moved, Ordering::Relaxed) != moved {
            self.still.store(0, Ordering::Relaxed);
        } else if every.saturating_mul(self.still.fetch_add(1, Ordering::Relaxed)) >= idle {
            self.order_end(now, Reason::IdleTimeout);
        }
        let mut order = self.order();
        if order.end.is_some_and(|end| end.at <= now) {
            order.tell();
        }
    }

    /// Judges the flow by `rules`, with the order and the checks of a new one.
    fn judge(&self, rules: &Arc<RuleSet>, own: &OwnAddresses, now: Timestamp) -> Result<VettedAddr, Reason> {
        let decision = self.wanted.decide(rules, self.client, self.protocol, now);
        let permit = decision.into_permit().map_err(|denial| denial.reason)?;
        let vetted = permit.vet(self.address.ip(), own, now).map_err(|denial| denial.reason)?;
        if let Some(seen) = &self.judged().seen {
            permit.vet_seen_name(seen, now).map_err(|denial| denial.reason)?;
        }
        Ok(vetted)
    }

    fn put_under(&self, rule: Option<&RuleRef>) {
        self.meter.set_rule(self.client, rule.map(|rule| &**rule));
        self.judged().rule = rule.cloned();
        self.order().end.take_if(|end| end.reason == Reason::Revoked);
    }

    /// Orders the flow to end. An earlier order stands.
    fn order_end(&self, at: Instant, reason: Reason) {
        let mut order = self.order();
        if order.end.is_none_or(|end| at < end.at) {
            order.end = Some(End { at, reason });
        }
        order.tell();
    }
}

impl Order {
    fn due(&self) -> Option<Reason> {
        self.end.filter(|end| end.at <= Instant::now()).map(|end| end.reason)
    }

    fn tell(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }
}

/// How many locks share the open flows: sessions on several cores seldom want the same.
const SHARDS: usize = 16;
/// The longest time between two looks at whether a flow stands still: how much later than its time one may end.
const LOOK: Duration = Duration::from_secs(1);
/// The shortest.
const OFTEN: Duration = Duration::from_millis(20);

/// The open flows of a gate.
#[derive(Debug, Default)]
pub struct Flows {
    open: [Mutex<Shard>; SHARDS],
    next: AtomicU64,
}

type Shard = HashMap<u64, Arc<Flow>, RandomState>;

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
        if let Some(mut shard) = self.shard(id) {
            shard.insert(id, Arc::clone(&flow));
        }
        OpenFlow { flows: Arc::clone(self), id, flow, _counted: counted }
    }

    /// How many are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards().map(|shard| shard.len()).sum()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Decides every open flow again, by the rules that now hold, and ends what they no longer allow as
    /// their `on_revoke` says.
    pub fn decide_again(&self, rules: &Arc<RuleSet>, own: &OwnAddresses, now: Timestamp) -> Revoked {
        let mut revoked = Revoked::default();
        for flow in self.all() {
            decide_one_again(&flow, rules, own, now, &mut revoked);
        }
        revoked
    }

    /// Ends every open flow now.
    pub fn end_all(&self, reason: Reason) {
        let now = Instant::now();
        self.all().for_each(|flow| flow.order_end(now, reason));
    }

    /// Ends flows that stand still for `idle`, and those whose time has come; up to a second late. Never comes back.
    ///
    /// What it buys: a flow needs no timer of its own, which was a tenth of its memory, and no clock with every byte.
    pub async fn keep_time(&self, idle: Duration) -> ! {
        let every = (idle / 8).clamp(OFTEN, LOOK);
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = ticks.tick().await;
            self.all().for_each(|flow| flow.look(now, every, idle));
        }
    }

    /// The open flows, one shard after the other, with no lock held while one is looked at.
    fn all(&self) -> impl Iterator<Item = Arc<Flow>> {
        self.shards().flat_map(|shard| shard.values().cloned().collect::<Vec<_>>())
    }

    fn shards(&self) -> impl Iterator<Item = MutexGuard<'_, Shard>> {
        self.open.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The shard that a flow is in. There always is one.
    fn shard(&self, id: u64) -> Option<MutexGuard<'_, Shard>> {
        let shard = self.open.get(id as usize % SHARDS)?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
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
        if let Some(mut shard) = self.flows.shard(self.id) {
            shard.remove(&self.id);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use outgate_rules::Request;
    use outgate_rules::policy::{Source, compile};

    use super::*;
    use crate::upload::Hours;

    /// A flow that its rule does not limit.
    pub(crate) fn flow() -> Flow {
        flow_to().0
    }

    /// The same, and where it goes.
    pub(crate) fn flow_to() -> (Flow, VettedAddr) {
        let text =
            "outbound_rules:\n  - {name: one, type: fqdn, destination: pypi.org, resolves_to: [public]}\n";
        let source = Source { name: "policy.yaml".to_owned(), bytes: text.into() };
        let compiled =
            compile(&[source], &mut |_| Err("no such file".to_owned()), None, Timestamp::UNIX_EPOCH);
        let rules = Arc::new(compiled.unwrap_or_else(|mistakes| panic!("{mistakes}")).rules);
        let destination = outgate_rules::Destination::parse("pypi.org:443").unwrap();
        let request =
            Request { client: [10, 0, 0, 1].into(), destination: &destination, protocol: Protocol::Tcp };
        let permit = rules.decide(&request, Timestamp::UNIX_EPOCH).into_permit().unwrap();
        let address =
            permit.vet([151, 101, 0, 223].into(), &OwnAddresses::default(), Timestamp::UNIX_EPOCH).unwrap();
        let meter = Arc::new(Hours::new(std::time::Instant::now())).meter(permit.client(), None, None);
        (Flow::new(Wanted::Destination(destination), &permit, &address, meter), address)
    }
}
