//! One request and its response.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use outgate_rules::{Denial, Destination, Host, Intercepted, Port, Protocol, Reason, Seen};
use tokio::net::TcpStream;

use super::body::{DownloadError, Stopped, Upload, download, relay_down};
use super::fields;
use super::origin::{Origin, Unanswered};
use super::wire::Shared;
use crate::answer::Answer;
use crate::flow::{Flow, OpenFlow};
use crate::gate::Gate;
use crate::head::{BodyLength, HostField, RequestHead, Target};
use crate::path::{self, Connection, Dialled, Vetted, Wanted};
use crate::record::{self, Asked, HttpRequest, Kind};
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
#[derive(Debug)]
pub(super) struct Exchanges {
    gate: Arc<Gate>,
    session: Session,
    form: Form,
    shared: Arc<Shared>,
    /// What the connection has sent over each rule.
    connection: Connection,
    count: AtomicU64,
    /// The origin of the last request, kept for the next.
    origin: Mutex<Option<Origin>>,
    switched: Mutex<Option<Switched>>,
}

/// A connection that has become a WebSocket.
#[derive(Debug)]
pub(super) struct Switched {
    pub(super) origin: TcpStream,
    /// What the origin has sent already.
    pub(super) first_down: Bytes,
    pub(super) flow: OpenFlow,
    pub(super) trail: Trail,
}

type ClientBody = BoxBody<Bytes, DownloadError>;

/// A request that has been sent, and what came back.
struct Answered {
    response: Response<Incoming>,
    origin: Origin,
    flow: OpenFlow,
    trail: Trail,
}

/// Where a request is about to go.
struct Ready {
    origin: Origin,
    flow: OpenFlow,
    trail: Trail,
    /// Whether the connection has carried requests before, and may have been closed since.
    used: bool,
}

impl Exchanges {
    pub(super) fn new(gate: &Arc<Gate>, session: &Session, form: Form, shared: Arc<Shared>) -> Self {
        Self {
            gate: Arc::clone(gate),
            session: session.clone(),
            form,
            shared,
            connection: Connection::default(),
            count: AtomicU64::new(0),
            origin: Mutex::new(None),
            switched: Mutex::new(None),
        }
    }

    /// Answers a request: with the origin's response, or with a denial.
    pub(super) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<ClientBody>, Infallible> {
        let Some(head) = self.shared.take_head() else {
            // hyper has seen a head that the wire has not: nothing is known of it, so nothing goes on.
            return Ok(self.deny(Reason::HeadMalformed.into(), &"the request"));
        };
        let response = self.exchange(head, request).await.unwrap_or_else(|response| response);
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        Ok(if self.gate.draining.is_cancelled() && !switched { closing(response) } else { response })
    }

    /// The connection that this one has become, if it has.
    pub(super) fn take_switched(&self) -> Option<Switched> {
        self.switched.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn exchange(
        self: &Arc<Self>,
        head: RequestHead,
        request: Request<Incoming>,
    ) -> Result<Response<ClientBody>, Response<ClientBody>> {
        let mut flow = self.flow(&head);
        let (destination, wanted) = match self.wanted(&head) {
            Ok(wanted) => wanted,
            Err(reason) => {
                path::reject(&self.gate, &flow, reason).await;
                return Err(self.deny(reason.into(), &flow.asked));
            }
        };
        flow.asked = Asked::Destination(destination.clone());
        let sent = async {
            let vetted = path::decide(&self.gate, flow, wanted).await?.vet().await?;
            self.send(vetted, &head, request, &destination).await
        };
        let answered = sent.await.map_err(|denial| self.deny(denial, &destination))?;
        let passed = if answered.response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.switch(&head, answered).await
        } else {
            self.pass_down(answered).await
        };
        passed.map_err(|denial| self.deny(denial, &destination))
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

    fn flow(&self, head: &RequestHead) -> record::Flow {
        let asked = match (&head.target, &head.host) {
            (Target::Authority(destination) | Target::Absolute { destination, .. }, _) => {
                destination.to_string()
            }
            (Target::Origin { .. }, Some(field)) => field.host.to_string(),
            (Target::Origin { .. }, None) => String::new(),
        };
        record::Flow {
            session: self.session.clone(),
            kind: Kind::Http,
            exchange: Some(self.count.fetch_add(1, Ordering::Relaxed) + 1),
            asked: Asked::text(asked.as_bytes()),
            protocol: Protocol::Tcp,
            request: Some(HttpRequest::new(head.method.as_str(), head.target.path())),
            hello: None,
        }
    }

    /// Sends a request over the connection of the last one, where that leads to the right place, or over a new
    /// one. The flow's records are closed unless there is a response.
    async fn send(
        &self,
        vetted: Vetted,
        head: &RequestHead,
        request: Request<Incoming>,
        destination: &Destination,
    ) -> Result<Answered, Denial> {
        let Ready { mut origin, flow, trail, used } = self.ready(vetted, destination).await?;
        // A request's line and fields can carry data out as well as its body can.
        if let Some(reason) = flow.take_up(head.raw.len()).stop {
            return Err(fail(trail, reason).await);
        }
        let (request, stopped) = to_origin(head, request, destination, &flow);
        let copy = (used && is_replayable(head)).then(|| copy(&request, &flow));
        let sent = match (self.send_once(&mut origin, request, &flow).await, copy) {
            (Err(Unanswered::NotSent(request)), _) if used => {
                self.send_over_new(&mut origin, *request, &flow).await
            }
            (Err(Unanswered::Failed(Reason::OriginClosed)), Some(request)) => {
                self.send_over_new(&mut origin, request, &flow).await
            }
            (sent, _) => sent,
        };
        match sent {
            Ok(response) => Ok(Answered { response, origin, flow, trail }),
            Err(unanswered) => {
                let reason = self.shared.bad_body().or_else(|| stopped.get().copied());
                Err(fail(trail, reason.unwrap_or(unanswered.reason())).await)
            }
        }
    }

    async fn send_once(
        &self,
        origin: &mut Origin,
        request: Request<Upload>,
        flow: &Flow,
    ) -> Result<Response<Incoming>, Unanswered> {
        tokio::select! {
            sent = origin.send(request) => sent,
            reason = flow.ended() => Err(Unanswered::Failed(reason)),
        }
    }

    /// The kept connection was closed by the origin while the request was on its way: that is no failure of
    /// the request (RFC 9112 §9.3.1), so it gets one more connection to the same address.
    async fn send_over_new(
        &self,
        origin: &mut Origin,
        request: Request<Upload>,
        flow: &Flow,
    ) -> Result<Response<Incoming>, Unanswered> {
        origin.dial_again(&self.gate, self.session.client.ip()).await.map_err(Unanswered::Failed)?;
        self.send_once(origin, request, flow).await
    }

    async fn ready(&self, vetted: Vetted, destination: &Destination) -> Result<Ready, Denial> {
        let kept = self.origin.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(origin) = kept
            && let Some(address) = origin.serves(destination, vetted.addresses())
        {
            let (flow, _, trail) = vetted.open(&address, &self.connection).await?;
            return Ok(Ready { origin, flow, trail, used: true });
        }
        let Dialled { origin, address, flow, trail, .. } = vetted.dial(&self.connection).await?;
        match Origin::new(origin, destination.clone(), address).await {
            Ok(origin) => Ok(Ready { origin, flow, trail, used: false }),
            Err(reason) => Err(fail(trail, reason).await),
        }
    }

    /// Hands the response to the client while its body is still coming.
    async fn pass_down(self: &Arc<Self>, answered: Answered) -> Result<Response<ClientBody>, Denial> {
        let Answered { response, mut origin, flow, mut trail } = answered;
        if fields::is_ambiguous(response.headers()) {
            return Err(fail(trail, Reason::OriginResponse).await);
        }
        let (mut parts, body) = response.into_parts();
        trail.saw_status(parts.status.as_u16());
        fields::pass_on(&mut parts.headers);
        let (mut to, from) = download();
        let exchanges = Arc::clone(self);
        self.gate.tasks.spawn(async move {
            let outcome = relay_down(body, &mut to, &flow).await;
            if outcome.denial.is_some() {
                to.abort(DownloadError);
            } else if origin.is_ready().await {
                exchanges.keep(origin);
            }
            trail.close(outcome).await;
            exchanges.shared.answered();
        });
        Ok(Response::from_parts(parts, from.boxed()))
    }

    fn keep(&self, origin: Origin) {
        *self.origin.lock().unwrap_or_else(PoisonError::into_inner) = Some(origin);
    }

    /// The origin has switched protocols: the connection becomes a tunnel, if the client asked for that.
    async fn switch(&self, head: &RequestHead, answered: Answered) -> Result<Response<ClientBody>, Denial> {
        let Answered { mut response, origin, flow, mut trail } = answered;
        let agreed = response
            .headers()
            .get(header::UPGRADE)
            .is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
        if !head.websocket || !agreed {
            return Err(fail(trail, Reason::OriginSwitched).await);
        }
        trail.saw_status(response.status().as_u16());
        let (stream, first_down) = match origin.switched(&mut response).await {
            Ok(switched) => switched,
            Err(_) => return Err(fail(trail, Reason::OriginClosed).await),
        };
        let (mut parts, _) = response.into_parts();
        fields::pass_on(&mut parts.headers);
        fields::ask_for_websocket(&mut parts.headers);
        *self.switched.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Switched { origin: stream, first_down, flow, trail });
        Ok(Response::from_parts(parts, Empty::new().map_err(|never| match never {}).boxed()))
    }

    fn deny(&self, denial: Denial, subject: &dyn std::fmt::Display) -> Response<ClientBody> {
        self.shared.answered();
        let response = Answer::new(denial, subject).to_response();
        response.map(|body| body.map_err(|never| match never {}).boxed())
    }
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

/// The request as the origin gets it, made anew from what was decided on.
fn to_origin(
    head: &RequestHead,
    request: Request<Incoming>,
    destination: &Destination,
    flow: &Arc<Flow>,
) -> (Request<Upload>, Stopped) {
    let (mut parts, body) = request.into_parts();
    // A path that was read strictly is a URI; were it not, `/` would be asked for.
    parts.uri = Uri::try_from(head.target.path()).unwrap_or_default();
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    fields::to_origin(&mut parts.headers, destination);
    if head.websocket {
        fields::ask_for_websocket(&mut parts.headers);
    }
    let body = (head.body != BodyLength::None).then_some(body);
    let (body, stopped) = Upload::new(body, Arc::clone(flow));
    (Request::from_parts(parts, body), stopped)
}

/// Whether a request may be sent a second time (RFC 9110 §9.2.2), and can be: it has no body to be read twice.
fn is_replayable(head: &RequestHead) -> bool {
    head.method.is_safe() && head.body == BodyLength::None && !head.websocket
}

/// A request without a body, once more.
fn copy(request: &Request<Upload>, flow: &Arc<Flow>) -> Request<Upload> {
    let mut copy = Request::new(Upload::new(None, Arc::clone(flow)).0);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// The last response of a connection says so.
fn closing(mut response: Response<ClientBody>) -> Response<ClientBody> {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
