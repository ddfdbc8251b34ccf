//! The one path that every flow takes, whatever way it came in:
//!
//! ```text
//! decide → resolve → vet → dial → relay → record
//! ```
//!
//! An adapter names the destination and calls [`decide`]; what it gets is [`Allowed`], the only thing that
//! can be resolved and vetted, and what that gives is the only thing that can be dialled. Each step that says
//! no has written its record before it returns.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use outgate_rules::{
    Decision, Denial, Destination, Intercepted, Permit, Protocol, Reason, Request, RuleRef, RuleSet,
    VettedAddr,
};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::dial::{self, How, Speaker};
use crate::flow::{Flow, OpenFlow};
use crate::gate::Gate;
use crate::record::{self, Decided};
use crate::relay::Outcome;
use crate::trail::Trail;

/// What a flow is for, as its adapter found out: what is decided on, and decided on again when the rules change.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// What the client said.
    Destination(Destination),
    /// What is seen of a flow that was redirected here.
    Intercepted(Intercepted),
}

impl Wanted {
    /// What the rules say of it.
    #[must_use]
    pub fn decide(
        &self,
        rules: &Arc<RuleSet>,
        client: IpAddr,
        protocol: Protocol,
        now: Timestamp,
    ) -> Decision {
        match self {
            Self::Destination(destination) => rules.decide(&Request { client, destination, protocol }, now),
            Self::Intercepted(flow) => rules.decide_intercepted(client, flow, now),
        }
    }
}

/// A flow that the rules allow.
#[derive(Debug)]
pub struct Allowed(Box<Admitted>);

/// An allowed flow whose destination has addresses that may be dialled.
#[derive(Debug)]
pub struct Vetted {
    admitted: Box<Admitted>,
    addresses: Vec<VettedAddr>,
}

/// What goes with an allowed flow from step to step: the proof, and the beginning of its records. Each step is a future
/// in the one before it, so what is not behind a box is there, and copied, several times over.
#[derive(Debug)]
struct Admitted {
    wanted: Wanted,
    permit: Permit,
    trail: Trail,
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

/// Decides on a flow and records the decision. When this returns, the record has been written.
///
/// # Errors
/// The denial, recorded.
pub async fn decide(gate: &Arc<Gate>, flow: Box<record::Flow>, wanted: Wanted) -> Result<Allowed, Denial> {
    let now = Timestamp::now();
    let decision = wanted.decide(&gate.rules(), flow.session.client.ip(), flow.protocol, now);
    let recorded = gate.recorder.decided(&Decided::by_rules(&flow, &decision, now)).await;
    let trail = Trail::new(gate, flow, &decision);
    let unavailable = match (decision.into_permit(), recorded) {
        (Ok(permit), Ok(())) => return Ok(Allowed(Box::new(Admitted { wanted, permit, trail }))),
        (Ok(_), Err(unavailable)) => unavailable,
        (Err(denial), _) => {
            trail.end_with_its_decision();
            return Err(denial);
        }
    };
    // The record of the decision may still be written when the disk has room again: it needs its end.
    Err(trail.refuse(Reason::from(unavailable).into()).await)
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
        let Self(admitted) = self;
        match addresses(admitted.trail.gate(), &admitted.permit).await {
            Ok(addresses) => Ok(Vetted { admitted, addresses }),
            Err(denial) => Err(admitted.trail.refuse(denial).await),
        }
    }
}

async fn addresses(gate: &Gate, permit: &Permit) -> Result<Vec<VettedAddr>, Denial> {
    let asked = Instant::now();
    let answer = timeout_at(asked + gate.limits.dial, gate.resolver.resolve(permit)).await;
    if permit.address().is_none() {
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
        &self.admitted.permit
    }

    /// Dials one of the addresses, on which `first` will speak first, and opens the flow. `connection` counts what the
    /// client's connection has sent over each rule, where it carries more than this flow.
    ///
    /// # Errors
    /// Why none of them could be reached, or as [`Vetted::open`]; recorded.
    pub async fn dial(self, first: Speaker, connection: Option<&Connection>) -> Result<Dialled, Denial> {
        let Self { admitted, addresses } = self;
        let gate = admitted.trail.gate();
        let started = Instant::now();
        let how = How { source: gate.source_for(admitted.permit.client()), first };
        let (trail, denial) = {
            let dialled = dial::dial(addresses, how, started + gate.limits.dial).await;
            gate.recorder.metrics().dialed(started.elapsed());
            match dialled {
                Ok((origin, address)) => match admitted.open(&address, connection) {
                    Ok((flow, permit, trail)) => return Ok(Dialled { origin, address, flow, permit, trail }),
                    Err(refused) => refused,
                },
                Err(reason) => (admitted.trail, reason.into()),
            }
        };
        Err(trail.refuse(denial).await)
    }

    /// Opens the flow over a connection to `address` that is there already.
    ///
    /// # Errors
    /// The upload limit that is used up already, or that a reload has denied it since its decision; recorded.
    pub async fn open(
        self,
        address: &VettedAddr,
        connection: Option<&Connection>,
    ) -> Result<(OpenFlow, Permit, Trail), Denial> {
        let (trail, denial) = match self.admitted.open(address, connection) {
            Ok(opened) => return Ok(opened),
            Err(refused) => refused,
        };
        Err(trail.refuse(denial).await)
    }

    /// Records why the flow ends here, and gives it back.
    pub async fn refuse(self, denial: Denial) -> Denial {
        self.admitted.trail.refuse(denial).await
    }

    /// Records that the flow carried nothing itself: its connection is used for something else.
    pub async fn close(self, outcome: Outcome) {
        self.admitted.trail.close(outcome).await;
    }
}

impl Admitted {
    /// Opens the flow; or gives back what there is to record, and why.
    fn open(
        self,
        address: &VettedAddr,
        connection: Option<&Connection>,
    ) -> Result<(OpenFlow, Permit, Trail), (Trail, Denial)> {
        let Self { wanted, permit, mut trail } = self;
        let gate = Arc::clone(trail.gate());
        let rule = address.rule();
        trail.reached(address);
        let meter = gate.hours.meter(
            permit.client(),
            rule.map(|rule| &**rule),
            connection.map(|connection| connection.sent_over(rule)),
        );
        if let Err(reason) = meter.check(std::time::Instant::now) {
            let denial = trail.denial(reason);
            return Err((trail, denial));
        }
        let flow = gate
            .flows
            .open(Flow::new(wanted, &permit, address, meter), gate.recorder.metrics().flow_opened());
        trail.opened(&flow);
        // A reload between the decision and this line has not seen the flow: then it is decided again here.
        let rules = gate.rules();
        if rules.settings().revision != permit.revision() {
            flow.decide_again(&rules, &gate.own(), Timestamp::now());
            if let Some(reason) = flow.has_ended() {
                let denial = trail.denial(reason);
                return Err((trail, denial));
            }
        }
        Ok((flow, permit, trail))
    }
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
