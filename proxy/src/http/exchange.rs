//! One request and its response.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use http::{Method, Version};
use outgate_rules::{Denial, Destination, Host, Intercepted, Port, Protocol, Reason, Seen};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::body::Body;
use super::origin::Origin;
use super::transfer::{Broken, Passed, Transfer};
use crate::answer::Answer;
use crate::client::Client;
use crate::dial::Speaker;
use crate::flow::{Flow, OpenFlow};
use crate::gate::Gate;
use crate::head::{BodyLength, HostField, RequestHead, Target};
use crate::path::{self, Allowed, Connection, Dialled, Vetted, Wanted};
use crate::record::{self, Asked, EndedBy, HttpRequest, Kind};
use crate::relay::Outcome;
use crate::session::Session;
use crate::trail::Trail;

/// What the requests of one connection may ask for.
#[derive(Debug, Clone)]
pub(super) enum Form {
    /// Any destination, in absolute-form.
    Any,
    /// The destination of the CONNECT that they came through, named by Host.
    Inside(Destination),
    /// Whatever Host names, by a client that dialled this address.
    Intercepted(Option<IpAddr>),
}

/// The requests of one connection.
///
/// What a request seldom comes to is boxed where it is awaited: a future is moved with all the room that it may need.
#[derive(Debug)]
pub(super) struct Exchanges {
    gate: Arc<Gate>,
    session: Session,
    form: Form,
    /// What the connection has sent over each rule.
    connection: Connection,
    count: u64,
    /// The origin of the last request, kept for the next.
    kept: Option<Origin>,
}

/// What becomes of the client's connection behind an exchange.
#[derive(Debug)]
pub(super) enum Then {
    /// The next request.
    Next,
    /// These last bytes, and its end.
    Goodbye(Vec<u8>),
    /// Its end in the middle of something, or the client has ended it itself.
    Cut,
    /// It has become a WebSocket.
    Switched(Switched),
}

/// A connection that has become a WebSocket.
#[derive(Debug)]
pub(super) struct Switched {
    pub(super) origin: TcpStream,
    /// The head that tells the client.
    pub(super) head: Vec<u8>,
    /// What the origin has sent behind its own.
    pub(super) first_down: BytesMut,
    pub(super) flow: OpenFlow,
    pub(super) trail: Trail,
}

/// Where a request is about to go.
struct Ready {
    origin: Origin,
    flow: OpenFlow,
    trail: Trail,
    /// Whether the connection has carried requests before, and may have been closed since.
    used: bool,
}

/// What became of a request that was sent.
struct Carried {
    /// The status of its response, if the client has that.
    status: Option<u16>,
    /// Whether the client has something of an answer.
    begun: bool,
    ended: Result<Passed, Broken>,
}

impl Carried {
    fn nothing(why: Broken) -> Self {
        Self { status: None, begun: false, ended: Err(why) }
    }
}

/// A request that goes no further, and what it asked for.
struct Denied {
    denial: Denial,
    subject: Asked,
}

impl Exchanges {
    pub(super) fn new(gate: &Arc<Gate>, session: &Session, form: Form) -> Self {
        Self {
            gate: Arc::clone(gate),
            session: session.clone(),
            form,
            connection: Connection::default(),
            count: 0,
            kept: None,
        }
    }

    /// Answers a request: with the origin's response, or with a denial.
    pub(super) async fn answer(&mut self, client: &mut Client, head: &RequestHead) -> Then {
        self.count += 1;
        // A client that leaves does not end this: a decision that is on record needs its end there, too.
        let ready = match self.decide(head).await {
            Ok((allowed, destination)) => {
                unless_it_leaves(client, self.prepare(allowed, head, destination)).await
            }
            Err(denied) => Some(Err(denied)),
        };
        match ready {
            Some(Ok(ready)) => self.transfer(client, head, ready).await,
            Some(Err(denied)) => Box::pin(self.deny(client, head, denied)).await,
            // Its records close themselves.
            None => Then::Cut,
        }
    }

    /// Leaves the kept connection if anything happens on it.
    pub(super) fn tend(&mut self, cx: &mut Context<'_>) {
        self.kept.take_if(|kept| kept.poll_stirs(cx).is_ready());
    }

    /// Decides on a request.
    async fn decide(&self, head: &RequestHead) -> Result<(Allowed, Destination), Denied> {
        let (destination, wanted) = match self.wanted(head) {
            Ok(wanted) => wanted,
            Err(reason) => {
                let flow = self.flow(head, asked(head));
                Box::pin(path::reject(&self.gate, &flow, reason)).await;
                return Err(Denied { denial: reason.into(), subject: flow.asked });
            }
        };
        let flow = self.flow(head, Asked::Destination(destination.clone()));
        match path::decide(&self.gate, flow, wanted).await {
            Ok(allowed) => Ok((allowed, destination)),
            Err(denial) => Err(Denied { denial, subject: Asked::Destination(destination) }),
        }
    }

    /// Finds a request a connection.
    async fn prepare(
        &mut self,
        allowed: Allowed,
        head: &RequestHead,
        destination: Destination,
    ) -> Result<Ready, Denied> {
        let ready = async {
            let vetted = allowed.vet().await?;
            let ready = self.ready(vetted, head, &destination).await?;
            // A request's line and fields can carry data out as well as its body can.
            match ready.flow.take_up(head.raw.len()).stop {
                Some(reason) => Err(fail(ready.trail, reason).await),
                None => Ok(ready),
            }
        };
        ready.await.map_err(|denial| Denied { denial, subject: Asked::Destination(destination) })
    }

    /// What a request asks for, and what is decided on.
    fn wanted(&self, head: &RequestHead) -> Result<(Destination, Wanted), Reason> {
        let destination = self.destination(head)?;
        let wanted = match self.form {
            Form::Any | Form::Inside(_) => Wanted::Destination(destination.clone()),
            Form::Intercepted(original) => Wanted::Intercepted(intercepted(&destination, original)?),
        };
        Ok((destination, wanted))
    }

    /// What a request asks for, if its form fits the connection it came over.
    fn destination(&self, head: &RequestHead) -> Result<Destination, Reason> {
        match (&self.form, &head.target) {
            (Form::Any | Form::Intercepted(_), Target::Absolute { destination, .. }) => {
                Ok(destination.clone())
            }
            (Form::Any, Target::Origin { .. }) | (_, Target::Authority(_)) => Err(Reason::TargetForm),
            (Form::Inside(inside), Target::Absolute { destination, .. }) if inside == destination => {
                Ok(inside.clone())
            }
            (Form::Inside(inside), Target::Origin { .. })
                if head.host.as_ref().is_some_and(|host| host.names(inside)) =>
            {
                Ok(inside.clone())
            }
            (Form::Inside(_), _) => Err(Reason::HostFieldMismatch),
            (Form::Intercepted(_), Target::Origin { .. }) => match &head.host {
                Some(HostField { host, port }) => Ok(Destination { host: host.clone(), port: *port }),
                None => Err(Reason::HostFieldMissing),
            },
        }
    }

    fn flow(&self, head: &RequestHead, asked: Asked) -> Box<record::Flow> {
        Box::new(record::Flow {
            session: self.session.clone(),
            kind: Kind::Http,
            exchange: Some(self.count),
            asked,
            protocol: Protocol::Tcp,
            request: Some(HttpRequest::new(head.method.as_str(), head.target.path())),
            hello: None,
        })
    }

    /// The connection of the last request, where that leads to the right place and is still there, or a new one.
    async fn ready(
        &mut self,
        vetted: Vetted,
        head: &RequestHead,
        destination: &Destination,
    ) -> Result<Ready, Denial> {
        if let Some(origin) = self.kept.take()
            && let Some(address) = origin.serves(destination, vetted.addresses())
            && is_there(&origin, head).await
        {
            let (flow, _, trail) = vetted.open(&address, Some(&self.connection)).await?;
            return Ok(Ready { origin, flow, trail, used: true });
        }
        Box::pin(self.dial(vetted, destination)).await
    }

    async fn dial(&self, vetted: Vetted, destination: &Destination) -> Result<Ready, Denial> {
        let Dialled { origin, address, flow, trail, .. } =
            vetted.dial(Speaker::Client, Some(&self.connection)).await?;
        let origin = Origin::new(origin, destination.clone(), address);
        Ok(Ready { origin, flow, trail, used: false })
    }

    /// Passes a request on, and its response back. The flow's records are closed when this returns.
    async fn transfer(&mut self, client: &mut Client, head: &RequestHead, ready: Ready) -> Then {
        let Ready { mut origin, flow, mut trail, used } = ready;
        let mut carried = self.carry(client, head, &mut origin, &flow).await;
        if carried.ended == Err(Broken::Unheard) && used && is_replayable(head) {
            carried = Box::pin(self.carry_over_new(client, head, &mut origin, &flow)).await;
        }
        let Carried { status, begun, ended } = carried;
        _ = status.map(|status| trail.saw_status(status));
        match ended {
            Ok(Passed::Whole { origin_stays, client_stays }) => {
                self.kept = origin_stays.then_some(origin);
                close(trail, Outcome::side(EndedBy::Origin));
                if client_stays { Then::Next } else { Then::Goodbye(Vec::new()) }
            }
            Ok(Passed::WebSocket(head)) => {
                trail.saw_status(101);
                let Origin { stream: origin, ahead: first_down, .. } = origin;
                Then::Switched(Switched { origin, head, first_down, flow, trail })
            }
            Err(broken) => Box::pin(self.broke(client, head, trail, broken, begun)).await,
        }
    }

    async fn carry(
        &self,
        client: &mut Client,
        head: &RequestHead,
        origin: &mut Origin,
        flow: &Flow,
    ) -> Carried {
        // A reload may have come while there was no connection.
        if let Some(reason) = flow.has_ended() {
            return Carried::nothing(Broken::Failed(reason));
        }
        let mut transfer = Transfer::begin(client, origin, flow, head, &self.gate.draining);
        let ended = transfer.run().await;
        Carried { status: transfer.status(), begun: transfer.has_begun(), ended }
    }

    /// The kept connection was closed by the origin while the request was on its way: that is no failure of the request
    /// (RFC 9112 §9.3.1), so it gets one more connection to the same address.
    async fn carry_over_new(
        &self,
        client: &mut Client,
        head: &RequestHead,
        origin: &mut Origin,
        flow: &Flow,
    ) -> Carried {
        let dialled = async {
            origin.dial_again(&self.gate, self.session.client.ip()).await?;
            // What leaves again counts again.
            flow.take_up(head.raw.len()).stop.map_or(Ok(()), Err)
        };
        match unless_it_leaves(client, dialled).await {
            Some(Ok(())) => self.carry(client, head, origin, flow).await,
            Some(Err(reason)) => Carried::nothing(Broken::Failed(reason)),
            None => Carried::nothing(Broken::Left),
        }
    }

    /// Closes the records of a transfer that ended before its end. A client that has seen nothing of a response gets an
    /// answer; one that has, an end that does not look like one of the response.
    async fn broke(
        &self,
        client: &mut Client,
        head: &RequestHead,
        trail: Trail,
        broken: Broken,
        begun: bool,
    ) -> Then {
        let reason = match broken {
            Broken::Left => {
                close(trail, Outcome::side(EndedBy::Client));
                return Then::Cut;
            }
            Broken::Unheard => Reason::OriginClosed,
            Broken::Failed(reason) => reason,
        };
        if begun {
            close(trail, Outcome::failed(reason));
            return Then::Cut;
        }
        let denial = fail(trail, reason).await;
        let subject = self.destination(head).map_or_else(|_| asked(head), Asked::Destination);
        // Of a body nobody knows any more where it stands.
        self.tell(client, head, &Denied { denial, subject }, head.body == BodyLength::None).await
    }

    /// Tells a client why its request went nowhere.
    async fn deny(&self, client: &mut Client, head: &RequestHead, denied: Denied) -> Then {
        let is_whole = forget_body(client, head.body);
        self.tell(client, head, &denied, is_whole).await
    }

    /// Sends a denial. The connection may go on where the request `is_whole`.
    async fn tell(&self, client: &Client, head: &RequestHead, denied: &Denied, is_whole: bool) -> Then {
        let Denied { denial, subject } = denied;
        let stays =
            is_whole && !head.close && head.version != Version::HTTP_10 && !self.gate.draining.is_cancelled();
        let answer = Answer::new(denial.clone(), subject).response(stays, head.method != Method::HEAD);
        if !stays {
            return Then::Goodbye(answer);
        }
        match timeout(self.gate.limits.head, client.send(&answer)).await {
            Ok(Ok(())) => Then::Next,
            Ok(Err(_)) | Err(_) => Then::Cut,
        }
    }
}

/// Waits for something, unless the client leaves meanwhile.
async fn unless_it_leaves<T>(client: &mut Client, awaited: impl Future<Output = T>) -> Option<T> {
    let mut awaited = pin!(awaited);
    poll_fn(|cx| {
        if let Poll::Ready(output) = awaited.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        match client.poll_peek(cx) {
            Poll::Ready(Ok([]) | Err(_)) => Poll::Ready(None),
            Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Whether a kept connection can carry this request. The runtime may not have heard yet that the origin has closed it:
/// a request that cannot be sent twice asks the kernel.
async fn is_there(origin: &Origin, head: &RequestHead) -> bool {
    let stirs = poll_fn(|cx| Poll::Ready(origin.poll_stirs(cx).is_ready())).await;
    !stirs && (is_replayable(head) || origin.is_silent())
}

/// Forgets a body that goes nowhere, and says whether all of it has come: what is still to come of it would be read as
/// the next request.
fn forget_body(client: &mut Client, length: BodyLength) -> bool {
    let mut body = Body::of(length);
    let Ok(mine) = body.take(client.ahead(), |_| Ok(())) else { return false };
    client.consume(mine);
    body.is_done()
}

/// What a request that is rejected asked for, as far as it can be told.
fn asked(head: &RequestHead) -> Asked {
    let text = match (&head.target, &head.host) {
        (Target::Authority(destination) | Target::Absolute { destination, .. }, _) => destination.to_string(),
        (Target::Origin { .. }, Some(field)) => field.host.to_string(),
        (Target::Origin { .. }, None) => String::new(),
    };
    Asked::text(text.as_bytes())
}

/// What is seen of a request that was redirected here. The client dialled port 80, so that is the port its Host is
/// for; and an address in Host is the one that it dialled, or nothing that can be judged.
fn intercepted(destination: &Destination, original: Option<IpAddr>) -> Result<Intercepted, Reason> {
    if destination.port != Port::HTTP {
        return Err(Reason::HostFieldMismatch);
    }
    let seen = match &destination.host {
        Host::Name(name) => Seen::Name(name.clone()),
        Host::Address(address) if original == Some(*address) => Seen::Told(Vec::new()),
        Host::Address(_) => Seen::Nothing(Reason::HostFieldMismatch),
    };
    Ok(Intercepted { original, port: Port::HTTP, seen })
}

/// Closes the records of a flow that ends without a response from its origin.
async fn fail(trail: Trail, reason: Reason) -> Denial {
    let denial = trail.denial(reason);
    trail.refuse(denial).await
}

/// Closes the records of a flow. Where the last one has to wait for room, it does so in a task of its own: a client that
/// keeps its connection waits for the record of its next decision.
fn close(trail: Trail, outcome: Outcome) {
    drop(trail.close_now(outcome));
}

/// Whether a request may be sent a second time (RFC 9110 §9.2.2), and can be: it has no body to be read twice.
fn is_replayable(head: &RequestHead) -> bool {
    head.method.is_safe() && head.body == BodyLength::None && !head.websocket
}
