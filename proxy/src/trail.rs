//! What the records of one flow say, from its decision to its end.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use outgate_rules::{Decision, Denial, Enforcement, Reason, Revision, RuleRef, VettedAddr};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::flow::Flow;
use crate::gate::Gate;
use crate::hello::ClientHello;
use crate::record::{self, Closed, EndedBy, Verdict};
use crate::recorder::Unqueued;
use crate::relay::Outcome;

/// How long the end of a flow waits for its own record. Beyond it the record is still written, and the sockets
/// are closed meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is still to be done before something is over.
pub type Waiting = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The records of one flow. A trail that is dropped before it was closed belongs to a client that went away in
/// the middle of a request, and closes itself.
#[derive(Debug)]
pub struct Trail {
    gate: Arc<Gate>,
    /// What the last record will say; none once it has been handed over.
    end: Option<Box<End>>,
}

/// What the last record will say, as far as it is known.
#[derive(Debug)]
struct End {
    flow: Box<record::Flow>,
    reason: Reason,
    rule: Option<RuleRef>,
    /// The rule that would have denied the flow after its decision.
    suspended_by: Option<RuleRef>,
    enforcement: Enforcement,
    revision: Revision,
    decided: Instant,
    reached: Reached,
    status: Option<u16>,
}

/// How far a flow has come.
#[derive(Debug)]
enum Reached {
    Nowhere,
    /// An address that was dialled.
    Address(SocketAddr),
    /// It is open, and counts its bytes.
    Flow(Arc<Flow>),
}

impl Reached {
    fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Nowhere => None,
            Self::Address(address) => Some(*address),
            Self::Flow(flow) => Some(flow.address()),
        }
    }

    fn flow(&self) -> Option<&Flow> {
        match self {
            Self::Flow(flow) => Some(flow),
            Self::Nowhere | Self::Address(_) => None,
        }
    }
}

impl Trail {
    /// The trail of a flow that was decided on.
    #[must_use]
    pub fn new(gate: &Arc<Gate>, flow: Box<record::Flow>, decision: &Decision) -> Self {
        let end = End {
            flow,
            reason: decision.reason,
            rule: decision.rule.clone(),
            suspended_by: None,
            enforcement: decision.enforcement,
            revision: decision.revision,
            decided: Instant::now(),
            reached: Reached::Nowhere,
            status: None,
        };
        Self { gate: Arc::clone(gate), end: Some(Box::new(end)) }
    }

    /// The gate that the flow goes through.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// A denial by the rule that holds.
    #[must_use]
    pub fn denial(&self, reason: Reason) -> Denial {
        let rule = self.end.as_ref().and_then(|end| end.rule.clone());
        Denial { reason, rule, nearest: None }
    }

    /// Adds the address that was dialled, and the rule that admitted it.
    pub fn reached(&mut self, address: &VettedAddr) {
        if let Some(end) = &mut self.end {
            end.reached = Reached::Address(address.socket());
            end.rule = address.rule().cloned().or(end.rule.take());
        }
        self.would_deny(address.suspended().cloned());
    }

    /// Adds the flow, which counts its bytes and knows the rule whose limits hold.
    pub fn opened(&mut self, flow: &Arc<Flow>) {
        if let Some(end) = &mut self.end {
            end.reached = Reached::Flow(Arc::clone(flow));
        }
    }

    /// Adds what the client's TLS hello said.
    pub fn saw_hello(&mut self, hello: &ClientHello) {
        if let Some(end) = &mut self.end {
            end.flow.hello = Some(record::Hello::of(hello));
        }
    }

    /// Whether a TLS hello was seen.
    #[must_use]
    pub fn has_hello(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end.flow.hello.is_some())
    }

    /// Adds a denial that would have been, were enforcement not suspended.
    pub fn would_deny(&mut self, denial: Option<Denial>) {
        if let (Some(end), Some(Denial { reason, rule, .. })) = (&mut self.end, denial) {
            end.reason = reason;
            end.suspended_by = rule;
        }
    }

    /// Adds the status of the response that is passed on.
    pub fn saw_status(&mut self, status: u16) {
        if let Some(end) = &mut self.end {
            end.status = Some(status);
        }
    }

    /// Records how the flow ended. When records have to wait, the client and the origin do not wait with them.
    pub async fn close(self, outcome: Outcome) {
        if let Some(waiting) = self.close_now(outcome) {
            waiting.await;
        }
    }

    /// Records how the flow ended, and gives what there is to wait for: nearly always nothing.
    #[must_use]
    pub fn close_now(mut self, outcome: Outcome) -> Option<Waiting> {
        let waiting = self.end(outcome)?;
        Some(Box::pin(async move { _ = timeout(PATIENCE, waiting).await }))
    }

    /// Hands the last record over. Where there is no room for it, a task of its own waits for some.
    fn end(&mut self, outcome: Outcome) -> Option<JoinHandle<()>> {
        let unqueued = self.end.take()?.tell(&self.gate, outcome)?;
        // Without a runtime the process is ending, and nobody writes records any more.
        let runtime = Handle::try_current().ok()?;
        let gate = Arc::clone(&self.gate);
        let waiting = async move { gate.recorder.hand_over(unqueued).await };
        Some(self.gate.tasks.spawn_on(waiting, &runtime))
    }

    /// Records that the flow goes no further, and gives the denial back. The record is handed over by the call.
    pub fn refuse(self, denial: Denial) -> impl Future<Output = Denial> + Send {
        let waiting = self.close_now(Outcome::failed(denial.clone()));
        async move {
            if let Some(waiting) = waiting {
                waiting.await;
            }
            denial
        }
    }

    /// A denied flow has one record, that of its decision.
    pub fn end_with_its_decision(mut self) {
        self.end = None;
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        self.end(Outcome::side(EndedBy::Client));
    }
}

impl End {
    fn tell(&self, gate: &Gate, outcome: Outcome) -> Option<Unqueued> {
        let (bytes_up, bytes_down) = self.reached.flow().map_or((0, 0), Flow::bytes);
        let held = self.reached.flow().and_then(Flow::rule);
        let denied_by = outcome.denial.as_ref().and_then(|denial| denial.rule.as_ref());
        let closed = Closed {
            flow: &self.flow,
            time: Timestamp::now(),
            verdict: match outcome.reason() {
                Some(reason) if is_denial(reason) => Verdict::Deny,
                Some(_) | None => Verdict::of(self.reason),
            },
            reason: outcome.reason().unwrap_or(self.reason),
            rule: denied_by.or(self.suspended_by.as_ref()).or(held.as_ref()).or(self.rule.as_ref()),
            enforcement: self.enforcement,
            revision: Some(self.revision),
            dialled: self.reached.address(),
            bytes_up,
            bytes_down,
            duration: self.decided.elapsed(),
            ended_by: outcome.ended_by,
            status: self.status,
        };
        gate.recorder.closed(&closed)
    }
}

/// Whether the gate would not let a flow go on, as against one that failed or went silent.
fn is_denial(reason: Reason) -> bool {
    !reason.allows() && reason.status() < 500
}
