//! The one path that every flow takes, whatever way it came in:
//!
//! ```text
//! decide → resolve → vet → dial → relay → record
//! ```
//!
//! An adapter names the destination and calls [`decide`]; what it gets is [`Allowed`], the only thing that
//! can be resolved and vetted, and what that gives is the only thing that can be dialled. Each step that says
//! no has written its record before it returns.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use outgate_rules::{
    Decision, Denial, Destination, Enforcement, Permit, Reason, Request, Revision, RuleRef, VettedAddr,
};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::dial;
use crate::flow::{Flow, OpenFlow};
use crate::gate::Gate;
use crate::hello::ClientHello;
use crate::record::{self, Closed, Decided, Verdict};
use crate::relay::Outcome;

/// How long the end of a flow waits for its own record. Beyond it the record is still written, and the sockets
/// are closed meanwhile.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

/// A flow that the rules allow: the proof, and the beginning of its records.
#[derive(Debug)]
pub struct Allowed {
    permit: Permit,
    trail: Trail,
}

/// An allowed flow whose destination has addresses that may be dialled.
#[derive(Debug)]
pub struct Vetted {
    permit: Permit,
    trail: Trail,
    addresses: Vec<VettedAddr>,
}

/// A flow with an open connection to its origin.
#[derive(Debug)]
pub struct Dialled {
    /// The connection.
    pub origin: TcpStream,
    /// The address it leads to.
    pub address: VettedAddr,
    /// The flow, as the gate counts and revokes it.
    pub flow: OpenFlow,
    /// The proof, which judges names that are seen inside.
    pub permit: Permit,
    /// The records.
    pub trail: Trail,
}

/// What the records of one flow say, from its decision to its end. Every trail is [closed](Trail::close).
#[derive(Debug)]
pub struct Trail {
    gate: Arc<Gate>,
    flow: record::Flow,
    reason: Reason,
    rule: Option<RuleRef>,
    /// The rule that would have denied the flow after its decision.
    suspended_by: Option<RuleRef>,
    enforcement: Enforcement,
    revision: Revision,
    decided: Instant,
    dialled: Option<SocketAddr>,
    status: Option<u16>,
}

/// Decides on a flow and records the decision. When this returns, the record has been written.
///
/// # Errors
/// The denial, recorded.
pub async fn decide(
    gate: &Arc<Gate>,
    flow: record::Flow,
    destination: &Destination,
) -> Result<Allowed, Denial> {
    let now = Timestamp::now();
    let request = Request { client: flow.session.client.ip(), destination, protocol: flow.protocol };
    let decision = gate.rules().decide(&request, now);
    let recorded = gate.recorder.decided(&Decided::by_rules(&flow, &decision, now)).await;
    let trail = Trail::new(gate, flow, &decision);
    let permit = decision.into_permit()?;
    match recorded {
        Ok(()) => Ok(Allowed { permit, trail }),
        // The record of the decision may still be written when the disk has room again: it needs its end.
        Err(unavailable) => Err(trail.refuse(Reason::from(unavailable).into()).await),
    }
}

/// Records that something was rejected before there was anything to decide on.
pub async fn reject(gate: &Arc<Gate>, flow: &record::Flow, reason: Reason) {
    let revision = Some(gate.rules().settings().revision);
    // The client is refused whether or not the record could be written; the recorder counts that it was not.
    let _ = gate.recorder.decided(&Decided::by_gate(flow, reason, revision, Timestamp::now())).await;
}

impl Allowed {
    /// Resolves the destination and vets each address. At least one is left.
    ///
    /// # Errors
    /// Why there is none that may be dialled, recorded.
    pub async fn vet(self) -> Result<Vetted, Denial> {
        let Self { permit, trail } = self;
        match addresses(&trail.gate, &permit).await {
            Ok(addresses) => Ok(Vetted { permit, trail, addresses }),
            Err(denial) => Err(trail.refuse(denial).await),
        }
    }
}

async fn addresses(gate: &Gate, permit: &Permit) -> Result<Vec<VettedAddr>, Denial> {
    let asked = Instant::now();
    let answer = timeout(gate.limits.dial, gate.resolver.resolve(permit)).await;
    if permit.name().is_some() {
        gate.recorder.metrics().resolved(asked.elapsed());
    }
    let addresses = match answer {
        Ok(answer) => answer.map_err(Reason::from)?,
        Err(_) => return Err(Reason::ResolverTimeout.into()),
    };
    let (own, now) = (gate.own(), Timestamp::now());
    let mut refused = None;
    let mut vetted = Vec::with_capacity(addresses.len());
    for address in addresses {
        match permit.vet(address, &own, now) {
            Ok(address) => vetted.push(address),
            Err(denial) => _ = refused.get_or_insert(denial),
        }
    }
    match refused {
        Some(denial) if vetted.is_empty() => Err(denial),
        _ => Ok(vetted),
    }
}

impl Vetted {
    /// The addresses that may be dialled.
    #[must_use]
    pub fn addresses(&self) -> &[VettedAddr] {
        &self.addresses
    }

    /// The proof.
    #[must_use]
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// Dials one of the addresses and opens the flow. `connection` counts what the client's connection has
    /// sent over each rule.
    ///
    /// # Errors
    /// Why none of them could be reached, or the upload limit that is used up already; recorded.
    pub async fn dial(mut self, connection: &Connection) -> Result<Dialled, Denial> {
        let started = Instant::now();
        let gate = Arc::clone(&self.trail.gate);
        let addresses = std::mem::take(&mut self.addresses);
        let dialled = dial::dial(addresses, gate.limits.dial).await;
        gate.recorder.metrics().dialed(started.elapsed());
        match dialled {
            Ok((origin, address)) => {
                let (flow, permit, trail) = self.open(&address, connection).await?;
                Ok(Dialled { origin, address, flow, permit, trail })
            }
            Err(reason) => Err(self.refuse(reason.into()).await),
        }
    }

    /// Opens the flow over a connection to `address` that is there already.
    ///
    /// # Errors
    /// The upload limit that is used up already, recorded.
    pub async fn open(
        self,
        address: &VettedAddr,
        connection: &Connection,
    ) -> Result<(OpenFlow, Permit, Trail), Denial> {
        let Self { permit, mut trail, .. } = self;
        let gate = Arc::clone(&trail.gate);
        let client = trail.flow.session.client.ip();
        let rule = address.rule();
        trail.dialled = Some(address.socket());
        trail.rule = rule.cloned().or(trail.rule);
        trail.would_deny(address.suspended().cloned());
        let meter = gate.hours.meter(client, rule.map(|rule| &**rule), connection.sent_over(rule));
        if let Err(reason) = meter.check(std::time::Instant::now()) {
            let denial = trail.denial(reason);
            return Err(trail.refuse(denial).await);
        }
        let flow = Flow::new(client, permit.destination().clone(), trail.flow.protocol, address, meter);
        let flow = gate.flows.open(flow, gate.recorder.metrics().flow_opened());
        // A reload between the decision and this line has not seen the flow: then it is decided again here.
        let rules = gate.rules();
        if rules.settings().revision != trail.revision {
            flow.decide_again(&rules, &gate.own(), Timestamp::now());
        }
        Ok((flow, permit, trail))
    }

    /// Records why the flow ends here, and gives it back.
    pub async fn refuse(self, denial: Denial) -> Denial {
        self.trail.refuse(denial).await
    }

    /// Records that the flow carried nothing itself: its connection is used for something else.
    pub async fn close(self, outcome: Outcome) {
        self.trail.record((0, 0), outcome).await;
    }
}

impl Trail {
    fn new(gate: &Arc<Gate>, flow: record::Flow, decision: &Decision) -> Self {
        Self {
            gate: Arc::clone(gate),
            flow,
            reason: decision.reason,
            rule: decision.rule.clone(),
            suspended_by: None,
            enforcement: decision.enforcement,
            revision: decision.revision,
            decided: Instant::now(),
            dialled: None,
            status: None,
        }
    }

    /// A denial by the rule that holds.
    #[must_use]
    pub fn denial(&self, reason: Reason) -> Denial {
        Denial { reason, rule: self.rule.clone(), nearest: None }
    }

    /// Adds what the client's TLS hello said.
    pub fn saw_hello(&mut self, hello: &ClientHello) {
        let sni = hello.sni.as_ref().map(|name| name.as_str().as_bytes());
        self.flow.hello = Some(record::Hello::new(sni, hello.ech));
    }

    /// Adds a denial that would have been, were enforcement not suspended: the last record tells it.
    pub fn would_deny(&mut self, denial: Option<Denial>) {
        if let Some(Denial { reason, rule, .. }) = denial {
            self.reason = reason;
            self.suspended_by = rule;
        }
    }

    /// Whether a TLS hello was seen.
    #[must_use]
    pub fn has_hello(&self) -> bool {
        self.flow.hello.is_some()
    }

    /// Adds the status of the response that is passed on.
    pub fn saw_status(&mut self, status: u16) {
        self.status = Some(status);
    }

    /// Records the end of a flow that was opened.
    pub async fn close(mut self, flow: &Flow, outcome: Outcome) {
        self.rule = flow.rule().or(self.rule);
        self.record(flow.bytes(), outcome).await;
    }

    /// Records that a flow ended before it was opened, and gives the denial back.
    async fn refuse(self, denial: Denial) -> Denial {
        self.record((0, 0), Outcome::failed(denial.clone())).await;
        denial
    }

    /// Writes the last record. When records have to wait, the client and the origin do not wait with them.
    async fn record(self, bytes: (u64, u64), outcome: Outcome) {
        let tasks = self.gate.tasks.clone();
        let written = tasks.spawn(self.write(Timestamp::now(), bytes, outcome));
        let _ = timeout(PATIENCE, written).await;
    }

    async fn write(self, time: Timestamp, (bytes_up, bytes_down): (u64, u64), outcome: Outcome) {
        let reason = outcome.reason().unwrap_or(self.reason);
        let verdict = match outcome.reason() {
            Some(reason) if is_denial(reason) => Verdict::Deny,
            Some(_) | None => Verdict::of(self.reason),
        };
        let denied_by = outcome.denial.as_ref().and_then(|denial| denial.rule.as_ref());
        let closed = Closed {
            flow: &self.flow,
            time,
            verdict,
            reason,
            rule: denied_by.or(self.suspended_by.as_ref()).or(self.rule.as_ref()),
            enforcement: self.enforcement,
            revision: Some(self.revision),
            dialled: self.dialled,
            bytes_up,
            bytes_down,
            duration: self.decided.elapsed(),
            ended_by: outcome.ended_by,
            status: self.status,
        };
        self.gate.recorder.closed(&closed).await;
    }
}

/// Whether the gate would not let a flow go on, as against one that failed or went silent.
fn is_denial(reason: Reason) -> bool {
    !reason.allows() && reason.status() < 500
}

/// What one connection of a client has sent over each rule: an upload limit is the connection's, however
/// many requests it carries.
#[derive(Debug, Default)]
pub struct Connection {
    sent: std::sync::Mutex<Vec<(RuleKey, Arc<AtomicU64>)>>,
}

/// A rule by its file and name, which survive a reload.
type RuleKey = Option<(Arc<str>, Arc<str>)>;

impl Connection {
    fn sent_over(&self, rule: Option<&RuleRef>) -> Arc<AtomicU64> {
        let key = rule.map(|rule| (Arc::clone(&rule.place.file), Arc::clone(&rule.name)));
        let mut sent = self.sent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, bytes)) = sent.iter().find(|(known, _)| *known == key) {
            return Arc::clone(bytes);
        }
        let bytes = Arc::<AtomicU64>::default();
        sent.push((key, Arc::clone(&bytes)));
        bytes
    }
}
