//! Plain HTTP/1.1: every request is decided on its own, whatever connection it came over.
//!
//! hyper speaks to the client and to the origin; `wire` lets it see only what was read strictly, and
//! `fields` what may cross from one side to the other.

mod alarm;
mod body;
mod chunks;
mod doorbell;
mod exchange;
mod fields;
mod origin;
mod place;
mod wire;

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outgate_rules::Destination;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use crate::client::{Client, NoHead};
use crate::gate::Gate;
use crate::head::{BadHead, RequestHead};
use crate::record::EndedBy;
use crate::relay::Outcome;
use crate::session::Session;
use crate::tunnel::Tunnel;
use alarm::Alarm;
use doorbell::Doorbell;
use exchange::{Exchanges, Form, Switched, Tended};
use place::Place;
use wire::{Awaited, Shared, Stop, Wire};

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

async fn run(gate: &Arc<Gate>, session: &Session, client: Client, first: RequestHead, form: Form) -> After {
    let wire = Wire::new(client, first);
    let shared = wire.shared();
    let exchanges = Arc::new(Exchanges::new(gate, session, form, Arc::clone(&shared)));
    let place = Place::new();
    // hyper calls the service in the same poll in which it has read the head.
    let service = service_fn(|request| place.put(Arc::clone(&exchanges).answer(shared.take_head(), request)));
    let mut connection = http1::Builder::new()
        // A client that closes while it waits for an answer has gone away, and its request with it.
        .half_close(false)
        .auto_date_header(false)
        // The session has deadlines of its own for heads and for silence.
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(wire), service);
    let mut draining = pin!(gate.draining.cancelled());
    let mut bell = None;
    let mut patience = Patience::new(gate.limits.head);
    let ended = std::future::poll_fn(|cx| {
        if has_rung(&mut bell, cx, |cx| draining.as_mut().poll(cx)) {
            shared.make_last();
        }
        loop {
            if let Poll::Ready(ended) = connection.poll_without_shutdown(cx) {
                return Poll::Ready(ended.map_err(drop));
            }
            match exchanges.tend(cx) {
                Tended::GoOn => continue,
                Tended::Cut => return Poll::Ready(Err(())),
                Tended::Done => {}
            }
            match patience.wait(&shared, cx) {
                Wait::On => return Poll::Pending,
                Wait::NoMore => shared.give_up(),
                Wait::NotEvenForThat => return Poll::Ready(Err(())),
            }
        }
    })
    .await;
    let (client, stop) = connection.into_parts().io.into_inner().into_parts();
    if let Some(switched) = exchanges.take_switched() {
        return become_tunnel(client, switched).await;
    }
    match (stop, ended) {
        (Stop::Connect(head), Ok(())) => After::Connect(client, head),
        (Stop::Bad(bad), Ok(())) => After::Bad(client, bad),
        (Stop::Closed, Ok(())) => {
            client.close_with(&[]).await;
            After::Closed
        }
        // The client failed, or a body of its was bad, which its exchange has recorded.
        (_, Err(_)) => After::Closed,
    }
}

/// Whether what is polled is ready. It is polled at first and when it has rung, and not whenever its session is.
fn has_rung(
    bell: &mut Option<Arc<Doorbell>>,
    cx: &mut Context<'_>,
    poll: impl FnOnce(&mut Context<'_>) -> Poll<()>,
) -> bool {
    if bell.as_ref().is_some_and(|bell| bell.is_of(cx) && !bell.has_rung()) {
        return false;
    }
    let waker = Waker::from(Arc::clone(bell.insert(Doorbell::new(cx))));
    poll(&mut Context::from_waker(&waker)).is_ready()
}

/// How long a client is waited for.
#[derive(Debug)]
struct Patience {
    /// How long a head may take from its first byte.
    head_time: Duration,
    awaited: Awaited,
    until: Instant,
    alarm: Alarm,
}

/// Whether to go on waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    On,
    NoMore,
    /// Nor for hyper to notice: it has something to send, which the client does not take.
    NotEvenForThat,
}

impl Patience {
    fn new(head_time: Duration) -> Self {
        Self { head_time, awaited: Awaited::Nothing, until: Instant::now(), alarm: Alarm::default() }
    }

    fn wait(&mut self, shared: &Shared, cx: &mut Context<'_>) -> Wait {
        if self.awaited == Awaited::End {
            return Wait::NotEvenForThat;
        }
        let awaited = shared.awaited();
        let time = match awaited {
            Awaited::Nothing => return Wait::On,
            Awaited::Request(_) => SILENCE,
            Awaited::RestOfHead(_) => self.head_time,
            Awaited::End => Duration::ZERO,
        };
        if awaited != self.awaited {
            self.awaited = awaited;
            self.until = Instant::now() + time;
        }
        if !self.alarm.is_due(self.until, cx) {
            return Wait::On;
        }
        self.awaited = Awaited::End;
        Wait::NoMore
    }
}

/// Makes a tunnel of a connection that has become a WebSocket.
async fn become_tunnel(mut client: Client, switched: Switched) -> After {
    let Switched { origin, first_down, flow, trail } = switched;
    if client.stream().write_all(&first_down).await.is_err() {
        trail.close(Outcome::side(EndedBy::Client)).await;
        return After::Closed;
    }
    flow.count_down(first_down.len());
    let (stream, ahead) = client.into_parts();
    After::Tunnel(Tunnel::judged(stream, origin, flow, trail, ahead))
}
