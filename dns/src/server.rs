//! The server: clients' questions in, answers out, over UDP, TCP and TLS.
//!
//! One query lives like this, whatever way it came (`server/service.rs`):
//!
//! ```text
//! client served? → rate → read → special name? → decide → type served? → cached? → reply
//!                                                                           └→ budget → errand → resolve → reply
//! ```
//!
//! A name that is denied has caused nothing but its reply. Datagrams come in on one socket a core
//! (`server/datagrams.rs`), each with a thread of its own that answers on the spot what can be answered so, in
//! batches. Streams (`server/streams.rs`) are served on the runtime that the server is started in. What has to
//! ask an upstream, and what is seldom seen, becomes a task (`server/slow.rs`).

mod again;
mod batch;
mod datagrams;
mod service;
mod slow;
mod streams;
#[cfg(test)]
mod tests;
mod tls;
mod watched;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use outgate_rules::{PrefixSet, RuleSet};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::BudgetSettings;
use crate::event::{Observer, Transport};
use crate::ledger::Ledger;
use crate::resolver::Resolver;
use service::Service;
pub use tls::{Identity, IdentityError};

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 1024;
/// Most threads for datagrams: one core answers some 200,000 a second.
const MAX_LOOPS: usize = 16;
/// What a datagram socket is asked to hold while its thread is busy; the kernel may give less.
const SOCKET_BUFFER: usize = 4 << 20;
/// How long lookups may go on after the end was announced; the resolver gives up after five seconds.
const GOODBYE: Duration = Duration::from_secs(6);
/// Ports that are tried where the system picks one: TCP's need not be free for UDP.
const PORT_TRIES: usize = 64;

/// How a [`Server`] is set up.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Where it listens, over UDP and TCP.
    pub address: SocketAddr,
    /// Where it listens for TLS, and who it is there.
    pub tls: Option<(SocketAddr, Identity)>,
    /// Whom it serves. Others get no answer.
    pub clients: PrefixSet,
    /// What a denied name looks like.
    pub denied: Denied,
    /// Queries that a client may ask a second, and at once.
    pub queries_per_second: NonZeroU32,
    /// What a client may say below a wildcard.
    pub budget: BudgetSettings,
    /// Threads that serve datagrams; none for one a core.
    pub loops: Option<usize>,
}

/// `dns.denied`: what a denied name looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Denied {
    /// NXDOMAIN; NODATA for a name above one that the policy speaks of (RFC 8020).
    #[default]
    NxDomain,
    /// REFUSED.
    Refused,
    /// The address at which the client asked: a browser goes there and can be told why.
    Gate,
}

/// The sockets of a server, bound and not yet served.
#[derive(Debug)]
pub struct Sockets {
    settings: ServerSettings,
    datagrams: Vec<std::net::UdpSocket>,
    stream: tokio::net::TcpListener,
    tls: Option<(tokio::net::TcpListener, Identity)>,
}

/// A server that is about to run.
#[derive(Debug)]
pub struct Server {
    service: Arc<Service>,
    sockets: Sockets,
}

/// What the server stands on.
#[derive(Clone, Debug)]
pub struct Foundation {
    /// The rules in force.
    pub rules: Arc<ArcSwap<RuleSet>>,
    /// Who knows the answers.
    pub resolver: Resolver,
    /// Who is told.
    pub observer: Arc<dyn Observer>,
    /// What clients are told is noted here.
    pub ledger: Arc<Ledger>,
}

impl Sockets {
    /// Binds the sockets. Must be called inside a runtime.
    ///
    /// # Errors
    /// The address that cannot be bound, and why.
    pub fn bind(settings: ServerSettings) -> Result<Self, BindError> {
        let (stream, datagrams) = bind_both(settings.address, loops(&settings))
            .map_err(|error| BindError { address: settings.address, error })?;
        let tls = match &settings.tls {
            None => None,
            Some((address, identity)) => {
                let listener = listen(*address).map_err(|error| BindError { address: *address, error })?;
                Some((listener, identity.clone()))
            }
        };
        Ok(Self { settings, datagrams, stream, tls })
    }

    /// Sockets that are bound already, perhaps in another network namespace; `settings.address` is not looked at.
    ///
    /// # Errors
    /// When they cannot be waited on.
    pub fn given(
        settings: ServerSettings,
        datagrams: Vec<std::net::UdpSocket>,
        stream: std::net::TcpListener,
    ) -> io::Result<Self> {
        for socket in &datagrams {
            socket.set_nonblocking(true)?;
        }
        stream.set_nonblocking(true)?;
        Ok(Self { settings, datagrams, stream: tokio::net::TcpListener::from_std(stream)?, tls: None })
    }

    /// A server at these sockets.
    #[must_use]
    pub fn serve(self, foundation: Foundation) -> Server {
        Server { service: Arc::new(Service::new(&self.settings, foundation)), sockets: self }
    }
}

impl Server {
    /// The address that is bound for UDP and TCP.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.sockets.stream.local_addr()
    }

    /// The address that is bound for TLS, if any.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn tls_address(&self) -> io::Result<Option<SocketAddr>> {
        self.sockets.tls.as_ref().map(|(listener, _)| listener.local_addr()).transpose()
    }

    /// Serves until `draining` is cancelled, then answers what was asked before and comes back. Connections are served
    /// in these runtimes by turns; in the one that calls, where there are none. Datagrams have threads of their own.
    pub async fn run(self, draining: CancellationToken, runtimes: Vec<Handle>) {
        let Self { service, sockets } = self;
        let streams = TaskTracker::new();
        let start = |socket| datagrams::start(socket, Arc::clone(&service), draining.clone());
        let threads: Vec<oneshot::Receiver<()>> = sockets.datagrams.into_iter().map(start).collect();
        let runtimes = streams::Runtimes::new(runtimes);
        let plain =
            streams::Listener::new(sockets.stream, Transport::Tcp, None, &service, &streams, &runtimes);
        let tls = sockets.tls.map(|(listener, identity)| {
            streams::Listener::new(listener, Transport::Tls, Some(identity), &service, &streams, &runtimes)
        });
        let over_tls = async {
            if let Some(tls) = tls {
                tls.run(&draining).await;
            }
        };
        tokio::join!(plain.run(&draining), over_tls);
        streams.close();
        let ended = async {
            streams.wait().await;
            for thread in threads {
                // A thread that has ended without a word has ended.
                _ = thread.await;
            }
        };
        _ = timeout(GOODBYE, ended).await;
    }
}

/// An address cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("the resolver cannot listen on {address}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub error: io::Error,
}

fn loops(settings: &ServerSettings) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    settings.loops.unwrap_or_else(cores).clamp(1, MAX_LOOPS)
}

/// The TCP listener, and so many datagram sockets that share one port with it. The listener comes first: it
/// shares its port with no other process, so a second gate on the same address is told so.
fn bind_both(
    address: SocketAddr,
    loops: usize,
) -> io::Result<(tokio::net::TcpListener, Vec<std::net::UdpSocket>)> {
    let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        let stream = listen(address)?;
        let address = stream.local_addr()?;
        match (0..loops).map(|_| datagram_socket(address)).collect::<io::Result<Vec<_>>>() {
            Ok(datagrams) => return Ok((stream, datagrams)),
            Err(error) if tries == 0 => return Err(error),
            Err(_) => {}
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    tokio::net::TcpListener::from_std(socket.into())
}

fn datagram_socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    // Where the system gives less, a flood is dropped sooner.
    _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    socket.bind(&address.into())?;
    Ok(socket.into())
}
