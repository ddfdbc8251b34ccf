//! Plain HTTP/1.1: every request is decided on its own, whatever connection it came over.
//!
//! Nothing is passed on as it came. Heads are read strictly and made anew (`request`, `response`), and bodies are taken
//! out of their framing and put into a new one (`body`), so that the next reader has nothing to understand in two ways.

mod alarm;
mod body;
mod chunks;
mod exchange;
mod fields;
mod origin;
mod request;
mod response;
mod transfer;

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Method;
use outgate_rules::{Destination, Reason};
use tokio::task::yield_now;
use tokio::time::Instant;

use crate::client::{Client, NoHead};
use crate::gate::Gate;
use crate::head::{self, BadHead, RequestHead};
use crate::readiness::Outbox;
use crate::record::EndedBy;
use crate::relay::Outcome;
use crate::session::Session;
use crate::tunnel::Tunnel;
use alarm::Alarm;
use exchange::{Exchanges, Form, Switched, Then};

/// How long a client may stay silent between two requests. Longer than common clients keep a connection
/// (curl: 118 s idle at most, most libraries: 15 to 60 s), so that it is they who close it.
const SILENCE: Duration = Duration::from_secs(120);

/// What remains when the last plain request of a connection has been answered.
#[derive(Debug)]
pub enum After {
    /// Nothing: the connection is over.
    Closed,
    /// The tunnel that the connection has become.
    Tunnel(Box<Tunnel>),
    /// A CONNECT, and the client that sent it.
    Connect(Client, Box<RequestHead>),
    /// Something that is no request, and the client that sent it.
    Bad(Client, BadHead),
}

/// Serves the requests of a client from the `first` on, each for any destination (absolute-form).
pub async fn serve(gate: &Arc<Gate>, session: &Session, client: Client, first: RequestHead) -> After {
    run(gate, session, client, first, Form::Any).await
}

/// Serves the requests that a client sends through a CONNECT to port 80: all of them for `to`.
pub async fn serve_inside(gate: &Arc<Gate>, session: &Session, mut client: Client, to: Destination) -> After {
    match client.head(Instant::now() + gate.limits.head).await {
        Ok(first) => run(gate, session, client, first, Form::Inside(to)).await,
        Err(NoHead::Closed) => After::Closed,
        Err(NoHead::Bad(bad)) => After::Bad(client, bad),
    }
}

/// Serves the requests of a client that dialled `original`, or was sent here by DNS, from the `first` on: each for
/// the host that it names.
pub async fn serve_intercepted(
    gate: &Arc<Gate>,
    session: &Session,
    client: Client,
    first: RequestHead,
    original: Option<IpAddr>,
) -> After {
    run(gate, session, client, first, Form::Intercepted(original)).await
}

async fn run(
    gate: &Arc<Gate>,
    session: &Session,
    mut client: Client,
    first: RequestHead,
    form: Form,
) -> After {
    let mut exchanges = Exchanges::new(gate, session, form);
    let mut draining = pin!(gate.draining.cancelled());
    let mut patience = Patience::new(gate.limits.head);
    let mut head = first;
    loop {
        if head.method == Method::CONNECT {
            return After::Connect(client, Box::new(head));
        }
        match exchanges.answer(&mut client, &head).await {
            // Requests that have come together may all be answered without a wait, and others have their turn between.
            Then::Next if !client.ahead().is_empty() => yield_now().await,
            Then::Next => {}
            Then::Goodbye(last) => {
                client.close_with(&last).await;
                return After::Closed;
            }
            Then::Cut => return After::Closed,
            Then::Switched(switched) => return Box::pin(become_tunnel(client, switched)).await,
        }
        patience.begin();
        let next = poll_fn(|cx| {
            if client.ahead().is_empty() && draining.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(NoHead::Closed));
            }
            exchanges.tend(cx);
            if let Poll::Ready(next) = client.poll_head(cx) {
                return Poll::Ready(next);
            }
            patience.poll(&client, cx).map(Err)
        });
        match next.await {
            Ok(next) => head = next,
            Err(NoHead::Bad(bad)) => return After::Bad(client, bad),
            Err(NoHead::Closed) => {
                client.close_with(&[]).await;
                return After::Closed;
            }
        }
    }
}

/// How long a client is waited for between two requests, and in the middle of a head.
#[derive(Debug)]
struct Patience {
    /// How long a head may take from its first byte.
    head_time: Duration,
    /// Whether the head has begun.
    begun: bool,
    until: Instant,
    alarm: Alarm,
}

impl Patience {
    fn new(head_time: Duration) -> Self {
        Self { head_time, begun: false, until: Instant::now(), alarm: Alarm::default() }
    }

    /// The next request is waited for from now on.
    fn begin(&mut self) {
        self.begun = false;
        self.until = Instant::now() + SILENCE;
    }

    /// Polls for the end of it, while nothing comes of the client.
    fn poll(&mut self, client: &Client, cx: &mut Context<'_>) -> Poll<NoHead> {
        if !self.begun && !client.ahead().is_empty() {
            self.begun = true;
            self.until = Instant::now() + self.head_time;
        }
        match (self.alarm.is_due(self.until, cx), self.begun) {
            (false, _) => Poll::Pending,
            (true, true) => Poll::Ready(NoHead::Bad(head::bad(Reason::HeadTimeout, client.ahead()))),
            (true, false) => Poll::Ready(NoHead::Closed),
        }
    }
}

/// Makes a tunnel of a connection that has become a WebSocket.
async fn become_tunnel(client: Client, switched: Switched) -> After {
    let Switched { origin, head, first_down, flow, trail } = switched;
    let mut outbox = Outbox::default();
    outbox.send(client.stream(), &head);
    outbox.send(client.stream(), &first_down);
    flow.count_down(first_down.len());
    let taken = poll_fn(|cx| match outbox.poll_flush(client.stream(), cx) {
        Poll::Ready(taken) => Poll::Ready(taken.map_err(|_| Outcome::side(EndedBy::Client))),
        Poll::Pending => flow.poll_ended(cx).map(|reason| Err(Outcome::gate(reason))),
    });
    if let Err(outcome) = taken.await {
        trail.close(outcome).await;
        return After::Closed;
    }
    let (stream, ahead) = client.into_parts();
    After::Tunnel(Tunnel::judged(stream, origin, flow, trail, ahead))
}
