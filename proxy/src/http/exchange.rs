//! One request and its response.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Frame, Incoming};
use outgate_rules::{Denial, Destination, Host, Intercepted, Port, Protocol, Reason, Seen};
use tokio::net::TcpStream;

use super::body::{Download, DownloadError, Next, Stopped, Upload};
use super::fields;
use super::origin::{Origin, Unanswered};
use super::wire::Shared;
use crate::answer::Answer;
use crate::dial::Speaker;
use crate::flow::{Flow, OpenFlow};
use crate::gate::Gate;
use crate::head::{BodyLength, HostField, RequestHead, Target};
use crate::path::{self, Connection, Dialled, Vetted, Wanted};
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
    shared: Arc<Shared>,
    /// What the connection has sent over each rule.
    connection: Connection,
    count: AtomicU64,
    state: Mutex<State>,
}

/// What stays between two requests, or between two looks at a response.
#[derive(Debug, Default)]
struct State {
    /// The origin of the last request, kept for the next.
    kept: Option<Box<Origin>>,
    /// The response that is on its way.
    passing: Option<Passing>,
    /// Whether it has just broken off: what there is of it goes out before the client's connection is cut.
    broke_off: bool,
    switched: Option<Switched>,
}

/// A response on its way to the client.
#[derive(Debug)]
struct Passing {
    /// What is still to come of it; none where only the rest of the request is still on its way up.
    body: Option<Incoming>,
    origin: Box<Origin>,
    flow: OpenFlow,
    trail: Trail,
}

/// Whether there is more to do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tended {
    /// Nothing before somebody else does something.
    Done,
    /// The client's side may go on.
    GoOn,
    /// The gate has ended the flow whose response the client is in the middle of.
    Cut,
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

/// A request that has been sent, and what came back.
struct Answered {
    response: Response<Incoming>,
    origin: Box<Origin>,
    flow: OpenFlow,
    trail: Trail,
}

/// Where a request is about to go.
struct Ready {
    origin: Box<Origin>,
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
            state: Mutex::default(),
        }
    }

    /// Answers a request, whose head the wire has read: with the origin's response, or with a denial.
    pub(super) async fn answer(
        self: Arc<Self>,
        head: Option<RequestHead>,
        request: Request<Incoming>,
    ) -> Result<Response<Download>, Infallible> {
        let Some(head) = head else {
            // hyper has seen a head that the wire has not: nothing is known of it, so nothing goes on.
            return Ok(self.deny(Reason::HeadMalformed.into(), &"the request"));
        };
        let response = self.exchange(head, request).await.unwrap_or_else(|response| response);
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        Ok(if self.shared.is_last() && !switched { closing(response) } else { response })
    }

    /// The connection that this one has become, if it has.
    pub(super) fn take_switched(&self) -> Option<Switched> {
        self.state().switched.take()
    }

    /// Does what there is to do besides the client's side: on the origin's connection, and for the flow.
    pub(super) fn tend(&self, cx: &mut Context<'_>) -> Tended {
        let mut state = self.state();
        if let Some(kept) = &mut state.kept {
            kept.drive_if_woken(cx);
            state.kept.take_if(|kept| kept.is_over());
        }
        if std::mem::take(&mut state.broke_off) {
            return Tended::GoOn;
        }
        let Some(passing) = &mut state.passing else { return Tended::Done };
        let driven = passing.origin.drive_if_woken(cx);
        if let Poll::Ready(reason) = passing.flow.poll_ended(cx) {
            let passing = state.passing.take();
            drop(state);
            if let Some(Passing { trail, .. }) = passing {
                close(trail, Outcome::gate(reason));
            }
            return Tended::Cut;
        }
        if passing.body.is_none() && passing.origin.is_settled() {
            self.passed(&mut state);
        }
        if driven { Tended::GoOn } else { Tended::Done }
    }

    /// Polls for the next frame of the response, and whether more may come. It is the gate's end of the body, so it
    /// closes the records before hyper sees the last of it.
    pub(super) fn poll_down(&self, cx: &mut Context<'_>) -> Poll<Next> {
        let mut state = self.state();
        let Some(passing) = &mut state.passing else {
            return Poll::Ready((Some(Err(DownloadError)), false));
        };
        let frame = match ready!(passing.poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(_)) => {
                state.broke_off = true;
                if let Some(Passing { trail, .. }) = state.passing.take() {
                    close(trail, Outcome::failed(Reason::OriginClosed));
                }
                return Poll::Pending;
            }
            None => {
                self.end_body(&mut state);
                return Poll::Ready((None, false));
            }
        };
        passing.flow.count_down(frame.data_ref().map_or(0, Bytes::len));
        let more = !passing.body.as_ref().is_none_or(Body::is_end_stream);
        if !more {
            self.end_body(&mut state);
        }
        Poll::Ready((Some(Ok(frame)), more))
    }

    /// The client wants no more of the response. Its records close themselves.
    pub(super) fn client_left(&self) {
        let left = self.state().passing.take_if(|passing| passing.body.is_some());
        drop(left);
    }

    /// The response is complete. The request may not be: then the flow goes on until it is.
    fn end_body(&self, state: &mut State) {
        if let Some(passing) = &mut state.passing {
            passing.body = None;
            if passing.origin.is_settled() {
                self.passed(state);
            }
        }
    }

    /// The exchange is over. The next one may use its connection, if that is ready for it.
    fn passed(&self, state: &mut State) {
        if let Some(Passing { origin, flow, trail, .. }) = state.passing.take() {
            state.kept = origin.is_ready().then_some(origin);
            close(trail, Outcome::side(EndedBy::Origin));
            drop(flow);
            self.shared.answered();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange(
        self: &Arc<Self>,
        head: RequestHead,
        request: Request<Incoming>,
    ) -> Result<Response<Download>, Response<Download>> {
        let (destination, wanted) = match self.wanted(&head) {
            Ok(wanted) => wanted,
            Err(reason) => {
                let flow = self.flow(&head, asked(&head));
                Box::pin(path::reject(&self.gate, &flow, reason)).await;
                return Err(self.deny(reason.into(), &flow.asked));
            }
        };
        let flow = self.flow(&head, Asked::Destination(destination.clone()));
        let sent = async {
            let vetted = path::decide(&self.gate, flow, wanted).await?.vet().await?;
            self.send(vetted, &head, request, &destination).await
        };
        let passed = match sent.await {
            Ok(answered) if answered.response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Box::pin(self.switch(&head, answered)).await
            }
            Ok(answered) => self.pass_down(answered).await,
            Err(denial) => Err(denial),
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

    fn flow(&self, head: &RequestHead, asked: Asked) -> record::Flow {
        record::Flow {
            session: self.session.clone(),
            kind: Kind::Http,
            exchange: Some(self.count.fetch_add(1, Ordering::Relaxed) + 1),
            asked,
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
        let (request, stopped) = to_origin(head, request, origin.host(), &flow);
        let sent = match origin.send(request, &flow).await {
            Err(Unanswered::NotSent(request)) if used => {
                Box::pin(self.send_over_new(&mut origin, *request, &flow)).await
            }
            Err(Unanswered::Failed(Reason::OriginClosed)) if used && is_replayable(head) => {
                let again = again(head, origin.host());
                Box::pin(self.send_over_new(&mut origin, again, &flow)).await
            }
            sent => sent,
        };
        match sent {
            Ok(response) => Ok(Answered { response, origin, flow, trail }),
            Err(unanswered) => {
                let stopped = stopped.and_then(|stopped| stopped.get().copied());
                let reason = self.shared.bad_body().or(stopped);
                Err(fail(trail, reason.unwrap_or(unanswered.reason())).await)
            }
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
        origin.send(request, flow).await
    }

    async fn ready(&self, vetted: Vetted, destination: &Destination) -> Result<Ready, Denial> {
        let kept = self.state().kept.take();
        if let Some(origin) = kept
            && let Some(address) = origin.serves(destination, vetted.addresses())
        {
            let (flow, _, trail) = vetted.open(&address, Some(&self.connection)).await?;
            return Ok(Ready { origin, flow, trail, used: true });
        }
        Box::pin(self.dial(vetted, destination)).await
    }

    async fn dial(&self, vetted: Vetted, destination: &Destination) -> Result<Ready, Denial> {
        let Dialled { origin, address, flow, trail, .. } =
            vetted.dial(Speaker::Client, Some(&self.connection)).await?;
        match Origin::new(origin, destination.clone(), address).await {
            Ok(origin) => Ok(Ready { origin, flow, trail, used: false }),
            Err(reason) => Err(fail(trail, reason).await),
        }
    }

    /// Hands the response to the client while its body is still coming.
    async fn pass_down(self: &Arc<Self>, answered: Answered) -> Result<Response<Download>, Denial> {
        let Answered { response, origin, flow, mut trail } = answered;
        if fields::is_ambiguous(response.headers()) {
            return Err(fail(trail, Reason::OriginResponse).await);
        }
        let (mut parts, body) = response.into_parts();
        trail.saw_status(parts.status.as_u16());
        fields::pass_on(&mut parts.headers);
        let is_empty = body.is_end_stream();
        let mut state = self.state();
        let passing = Passing { body: Some(body), origin, flow, trail };
        // A request whose rest has not gone up by the time that the next one is answered never will.
        if let Some(Passing { trail, .. }) = state.passing.replace(passing) {
            close(trail, Outcome::side(EndedBy::Origin));
        }
        if !is_empty {
            return Ok(Response::from_parts(parts, Download::Passing(Arc::clone(self))));
        }
        // hyper may never ask for a body that is none.
        self.end_body(&mut state);
        Ok(Response::from_parts(parts, Download::Passed))
    }

    /// The origin has switched protocols: the connection becomes a tunnel, if the client asked for that.
    async fn switch(&self, head: &RequestHead, answered: Answered) -> Result<Response<Download>, Denial> {
        let Answered { response, origin, flow, mut trail } = answered;
        let agreed = response
            .headers()
            .get(header::UPGRADE)
            .is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
        if !head.websocket || !agreed {
            return Err(fail(trail, Reason::OriginSwitched).await);
        }
        trail.saw_status(response.status().as_u16());
        let (stream, first_down) = match origin.switched().await {
            Ok(switched) => switched,
            Err(reason) => return Err(fail(trail, reason).await),
        };
        let (mut parts, _) = response.into_parts();
        fields::pass_on(&mut parts.headers);
        fields::ask_for_websocket(&mut parts.headers);
        self.state().switched = Some(Switched { origin: stream, first_down, flow, trail });
        Ok(Response::from_parts(parts, Download::Nothing))
    }

    fn deny(&self, denial: Denial, subject: &dyn std::fmt::Display) -> Response<Download> {
        self.shared.answered();
        Answer::new(denial, subject).to_response().map(Download::Own)
    }
}

impl Passing {
    /// Polls for the next frame, and drives the connection only if there is none.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let quiet = &mut Context::from_waker(Waker::noop());
        if let Poll::Ready(frame) = self.origin.muffled(|| Pin::new(&mut *body).poll_frame(quiet)) {
            return Poll::Ready(frame);
        }
        self.origin.drive(cx);
        self.origin.muffled(|| Pin::new(body).poll_frame(quiet))
    }
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
    Box::pin(trail.refuse(denial)).await
}

/// Closes the records of a flow. Where the last one has to wait for room, it does so in a task of its own: a client that
/// keeps its connection waits for the record of its next decision.
fn close(trail: Trail, outcome: Outcome) {
    drop(trail.close_now(outcome));
}

/// The request as the origin gets it, made anew from what was decided on.
fn to_origin(
    head: &RequestHead,
    request: Request<Incoming>,
    host: &HeaderValue,
    flow: &Arc<Flow>,
) -> (Request<Upload>, Option<Stopped>) {
    let (mut parts, body) = request.into_parts();
    parts.uri = uri(head);
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    fields::to_origin(&mut parts.headers, host);
    if head.websocket {
        fields::ask_for_websocket(&mut parts.headers);
    }
    if head.body == BodyLength::None {
        return (Request::from_parts(parts, Upload::nothing()), None);
    }
    let (body, stopped) = Upload::new(body, flow);
    (Request::from_parts(parts, body), Some(stopped))
}

/// A path that was read strictly is a URI; were it not, `/` would be asked for.
fn uri(head: &RequestHead) -> Uri {
    Uri::try_from(head.target.path()).unwrap_or_default()
}

/// Whether a request may be sent a second time (RFC 9110 §9.2.2), and can be: it has no body to be read twice.
fn is_replayable(head: &RequestHead) -> bool {
    head.method.is_safe() && head.body == BodyLength::None && !head.websocket
}

/// A request without a body, once more.
fn again(head: &RequestHead, host: &HeaderValue) -> Request<Upload> {
    let mut again = Request::new(Upload::nothing());
    *again.method_mut() = head.method.clone();
    *again.uri_mut() = uri(head);
    let mut fields: HeaderMap = head.fields();
    fields::to_origin(&mut fields, host);
    *again.headers_mut() = fields;
    again
}

/// The last response of a connection says so.
fn closing(mut response: Response<Download>) -> Response<Download> {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
