//! The listeners of the proxy: connections come in, within a budget, and become sessions.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outgate_rules::{PrefixSet, Reason};
use socket2::SockRef;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use crate::client::{Client, Newcomer, NoHead};
use crate::connect;
use crate::dial::is_out_of_descriptors;
use crate::entrance::Entrance;
use crate::gate::Gate;
use crate::head::Target;
use crate::http::{self, After};
use crate::metrics::ListenerMetrics;
use crate::original;
use crate::reject::{reject, turn_away};
use crate::relay::turn;
use crate::session::Session;
use crate::transparent;
use crate::tunnel::Tunnel;

/// How long to wait for a file descriptor when none of our own is about to become free.
const NO_DESCRIPTOR: Duration = Duration::from_millis(200);

/// Connections that are accepted at once: what is open goes on before more is begun. With 512 clients at twice the peak,
/// a tunnel by SNI takes 90 µs of the processor, and took 128 where all that waited were accepted: fewer are under way,
/// and the caches have room for them.
const AT_ONCE: usize = 8;

/// What a listener expects of the connections that come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// They ask for a destination: CONNECT and HTTP to a proxy.
    Proxy,
    /// They were redirected, and begin with a TLS hello.
    Tls,
    /// They were redirected, and carry HTTP requests.
    Http,
    /// They were redirected, and may be anything.
    Tcp,
}

impl Way {
    /// The listener's name in configuration, records and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Tcp => "tcp",
        }
    }
}

/// A listener, at one socket or at several that share an address.
#[derive(Debug)]
pub struct Listener {
    /// What comes in there.
    way: Way,
    /// Whom it serves.
    clients: PrefixSet,
    /// Counts its sessions.
    metrics: ListenerMetrics,
    /// Whether accepting waits for a file descriptor.
    paused: AtomicBool,
}

impl Listener {
    /// A listener that serves these clients.
    #[must_use]
    pub fn new(gate: &Gate, way: Way, clients: PrefixSet) -> Self {
        Self {
            way,
            clients,
            metrics: gate.recorder.metrics().listener(way.name()),
            paused: AtomicBool::new(false),
        }
    }

    /// Accepts connections at one of its sockets until the gate drains. Each session runs on its own, in the runtime in which it
    /// was accepted.
    pub async fn run(self: Arc<Self>, entrance: Entrance, gate: Arc<Gate>) {
        // What is accepted inherits it (tcp(7)). Small answers must not wait for one another; where this fails they do.
        let _ = SockRef::from(&entrance).set_tcp_nodelay(true);
        let local = original::local_of_all(&entrance);
        let draining = gate.draining.clone();
        let accepting = async {
            let mut accepted: usize = 0;
            loop {
                match entrance.accept().await {
                    Ok((stream, client)) => {
                        accept(&gate, &self, stream, client, local);
                        accepted = accepted.wrapping_add(1);
                        if accepted.is_multiple_of(AT_ONCE) {
                            yield_now().await;
                        }
                    }
                    Err(error) => self.pause(&gate, &error).await,
                }
            }
        };
        draining.run_until_cancelled(accepting).await;
    }

    /// Out of file descriptors, the connection stays in the kernel's queue until there is one. Any other
    /// failure concerns the one connection that is gone.
    async fn pause(&self, gate: &Gate, error: &io::Error) {
        if !is_out_of_descriptors(error) {
            return;
        }
        self.metrics.accept_paused();
        if !self.paused.swap(true, Ordering::Relaxed) {
            gate.recorder.console().notice(format!("{} waits with accepting: {error}", self.way.name()));
        }
        tokio::select! {
            () = gate.budget.closed() => {}
            () = sleep(NO_DESCRIPTOR) => {}
        }
    }

    /// Where the client was going, if that was not the gate itself.
    fn original(
        &self,
        gate: &Gate,
        stream: &TcpStream,
        client: SocketAddr,
        local: Option<SocketAddr>,
    ) -> Option<SocketAddr> {
        match self.way {
            Way::Proxy => None,
            Way::Tls | Way::Http | Way::Tcp => {
                let dialled = original::dialled(stream, client, local).ok();
                dialled.filter(|dialled| !gate.own().contains(*dialled))
            }
        }
    }

    fn accepted(&self, gate: &Gate) {
        if self.paused.swap(false, Ordering::Relaxed) {
            gate.recorder.console().notice(format!("{} accepts again", self.way.name()));
        }
    }
}

fn accept(
    gate: &Arc<Gate>,
    listener: &Arc<Listener>,
    stream: TcpStream,
    client: SocketAddr,
    local: Option<SocketAddr>,
) {
    listener.accepted(gate);
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let original = listener.original(gate, &stream, client, local);
    let place = if !listener.clients.contains(client.ip()) {
        Err(Reason::ClientNotServed)
    } else if original.is_some() && gate.is_router && gate.own().interfaces.contains(&client.ip()) {
        Err(Reason::ProxyLoop)
    } else {
        gate.budget.take(client.ip())
    };
    let session = Session {
        id: gate.ids.next(),
        client,
        listener: listener.way,
        original,
        accepted: std::time::Instant::now(),
    };
    let counted = listener.metrics.session_opened();
    let (place, refused) = match place {
        Ok(place) => (Some(place), None),
        Err(reason) => (None, Some(reason)),
    };
    let opening = open(Arc::clone(gate), listener.way, session, stream, refused);
    let sessions = Arc::clone(gate);
    gate.tasks.spawn(async move {
        if let Some(tunnel) = turn::light(opening).await {
            tunnel.relay(&sessions).await;
        }
        drop((place, counted));
    });
}

/// What comes before a tunnel. It needs ten times the memory, and gives it back.
type Opening = Pin<Box<dyn Future<Output = Option<Box<Tunnel>>> + Send>>;

/// Serves a connection until it is a tunnel, or to its end. Each way takes the memory that it needs itself: a redirected
/// hello half of what a request does.
fn open(gate: Arc<Gate>, way: Way, session: Session, stream: TcpStream, refused: Option<Reason>) -> Opening {
    let client = |stream| Newcomer::new(stream).into_client();
    match (refused, way) {
        (None, Way::Proxy) => Box::pin(async move { requests(&gate, &session, client(stream)?).await }),
        (None, Way::Tls) => {
            Box::pin(async move { transparent::tls(&gate, &session, Newcomer::new(stream)).await })
        }
        (None, Way::Http) => {
            Box::pin(async move { transparent::http(&gate, &session, client(stream)?).await })
        }
        (None, Way::Tcp) => Box::pin(async move { transparent::tcp(&gate, &session, client(stream)?).await }),
        (Some(reason), _) => Box::pin(async move {
            turn_away(&gate, &session, client(stream)?, reason).await;
            None
        }),
    }
}

/// Serves what a client asks for, one head after the other.
async fn requests(gate: &Arc<Gate>, session: &Session, mut client: Client) -> Option<Box<Tunnel>> {
    let deadline = Instant::from_std(session.accepted) + gate.limits.head;
    let mut head = match client.head(deadline).await {
        Ok(head) => head,
        Err(NoHead::Closed) => return None,
        Err(NoHead::Bad(bad)) => {
            Box::pin(reject(gate, session, client, bad)).await;
            return None;
        }
    };
    loop {
        if let Target::Authority(destination) = head.target {
            return Box::pin(connect::serve(gate, session, client, destination)).await;
        }
        match Box::pin(http::serve(gate, session, client, head)).await {
            After::Closed => return None,
            After::Tunnel(tunnel) => return Some(tunnel),
            After::Connect(again, next) => (client, head) = (again, *next),
            After::Bad(client, bad) => {
                Box::pin(reject(gate, session, client, bad)).await;
                return None;
            }
        }
    }
}
