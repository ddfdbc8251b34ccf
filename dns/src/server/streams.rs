//! Queries over TCP and TLS (RFC 7766, RFC 7858): a length of two bytes, then a message.
//!
//! A client may send its next query before the answer to the last; answers go out as they are ready. Each
//! wait has a deadline, each connection a bounded number of queries in progress, and each client a bounded
//! number of connections.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outgate_rules::Reason;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Identity;
use super::service::{Asker, Service, Step};
use super::slow::Way;
use crate::event::{Answered, Transport};

/// Connections of all clients together; each takes a descriptor and a few kilobytes.
const MAX_CONNECTIONS: usize = 4096;
/// Connections of one client.
pub(super) const MAX_PER_CLIENT: usize = 64;
/// Queries of one connection that are in progress: then it is not read from.
const MAX_IN_PROGRESS: usize = 32;
/// Largest query: a longest name, OPT and several times the padding that clients use (RFC 8467).
const MAX_QUERY: usize = 2048;
/// How long a connection may be silent between queries (RFC 7766 §6.2.3 wants seconds).
const IDLE: Duration = Duration::from_secs(10);
/// How long a query may take from its first byte to its last, and a handshake.
const WHOLE: Duration = Duration::from_secs(5);
/// How long a client may take to accept a reply.
const WRITE: Duration = Duration::from_secs(5);
/// How long to wait when the system has no descriptor for a connection.
const NO_DESCRIPTOR: Duration = Duration::from_millis(200);

/// A listener for connections.
pub(super) struct Listener {
    socket: TcpListener,
    transport: Transport,
    identity: Option<Identity>,
    service: Arc<Service>,
    places: Places,
    tasks: TaskTracker,
    runtimes: Arc<Runtimes>,
}

/// The runtimes that connections are served in, one after the other: a handshake keeps a core busy.
pub(super) struct Runtimes {
    handles: Vec<Handle>,
    next: AtomicUsize,
}

impl Runtimes {
    /// At least the one that calls.
    pub(super) fn new(mut handles: Vec<Handle>) -> Arc<Self> {
        if handles.is_empty() {
            handles.push(Handle::current());
        }
        Arc::new(Self { handles, next: AtomicUsize::new(0) })
    }

    fn next(&self) -> Option<&Handle> {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        count.checked_rem(self.handles.len()).and_then(|turn| self.handles.get(turn))
    }
}

impl Listener {
    pub(super) fn new(
        socket: TcpListener,
        transport: Transport,
        identity: Option<Identity>,
        service: &Arc<Service>,
        tasks: &TaskTracker,
        runtimes: &Arc<Runtimes>,
    ) -> Self {
        let (service, tasks, runtimes) = (Arc::clone(service), tasks.clone(), Arc::clone(runtimes));
        Self { socket, transport, identity, service, places: Places::new(), tasks, runtimes }
    }

    /// Accepts connections until `draining` is cancelled.
    pub(super) async fn run(self, draining: &CancellationToken) {
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                () = draining.cancelled() => return,
            };
            match accepted {
                Ok((stream, client)) => self.accept(stream, client, draining),
                // It concerns one connection that is gone, or the system has nothing to give for a while.
                Err(_) => sleep(NO_DESCRIPTOR).await,
            }
        }
    }

    fn accept(&self, stream: TcpStream, client: SocketAddr, draining: &CancellationToken) {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        if !self.service.serves(client) {
            return;
        }
        let (Ok(local), Some(place)) = (stream.local_addr(), self.places.take(client.ip())) else {
            return self.service.observer.dropped(Reason::ClientConnectionLimit);
        };
        // A reply must not wait for the next; where this fails it does.
        _ = stream.set_nodelay(true);
        let asker = Asker { client, local: local.ip().to_canonical(), transport: self.transport };
        let (service, draining) = (Arc::clone(&self.service), draining.clone());
        let acceptor = self.identity.as_ref().map(|identity| TlsAcceptor::from(identity.config()));
        let (Ok(stream), Some(runtime)) = (stream.into_std(), self.runtimes.next()) else { return };
        let serving = async move {
            let _place = place;
            let Ok(stream) = TcpStream::from_std(stream) else { return };
            // Either side may end a connection at any time, and a client that breaks the framing has.
            _ = match acceptor {
                None => serve(stream, service, asker, draining).await,
                Some(acceptor) => match timeout(WHOLE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => serve(stream, service, asker, draining).await,
                    Ok(Err(error)) => Err(error),
                    Err(_) => Ok(()),
                },
            };
        };
        self.tasks.spawn_on(serving, runtime);
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: Arc<Service>,
    asker: Asker,
    draining: CancellationToken,
) -> io::Result<()> {
    let mut connection = Connection::new(stream, service, asker);
    let mut deadline = Instant::now() + IDLE;
    loop {
        while connection.errands.len() < MAX_IN_PROGRESS
            && let Some(message) = connection.next_message()?
        {
            connection.take(message).await?;
            deadline = Instant::now() + if connection.read.is_empty() { IDLE } else { WHOLE };
        }
        let full = connection.errands.len() >= MAX_IN_PROGRESS;
        if draining.is_cancelled() && connection.errands.is_empty() {
            return connection.finish().await;
        }
        let was_empty = connection.read.is_empty();
        let Connection { stream, read, errands, .. } = &mut connection;
        tokio::select! {
            Some(ended) = errands.join_next() => {
                ended.map_err(io::Error::other)?;
                connection.send_ready().await?;
                if connection.read.is_empty() {
                    deadline = Instant::now() + IDLE;
                }
            }
            bytes = timeout_at(deadline, stream.read_buf(read)), if !full => match bytes {
                Ok(Ok(0)) => return connection.finish().await,
                Ok(bytes) => {
                    bytes?;
                    if was_empty {
                        deadline = Instant::now() + WHOLE;
                    }
                }
                Err(_) => return connection.finish().await,
            },
            () = draining.cancelled(), if errands.is_empty() => {}
        }
    }
}

/// A connection, what was read of it, and its queries in progress.
struct Connection<S> {
    stream: S,
    service: Arc<Service>,
    asker: Asker,
    read: Vec<u8>,
    errands: JoinSet<()>,
    /// What the errands answer: there is room for all that may be in progress.
    reply: Reply,
    ready: mpsc::Receiver<Vec<u8>>,
}

/// The way of replies to the one who writes to the connection.
#[derive(Clone)]
struct Reply(mpsc::Sender<Vec<u8>>);

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn new(stream: S, service: Arc<Service>, asker: Asker) -> Self {
        let (reply, ready) = mpsc::channel(MAX_IN_PROGRESS);
        let (read, errands) = (Vec::new(), JoinSet::new());
        Self { stream, service, asker, read, errands, reply: Reply(reply), ready }
    }

    /// The next whole message.
    ///
    /// # Errors
    /// When there will be none: its length is none of a query.
    fn next_message(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some((length, rest)) = self.read.split_first_chunk::<2>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*length));
        if !(crate::wire::HEADER..=MAX_QUERY).contains(&length) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let message = rest.get(..length).map(<[u8]>::to_vec);
        if message.is_some() {
            self.read.drain(..2 + length);
        }
        Ok(message)
    }

    /// Answers a message, or begins to.
    async fn take(&mut self, message: Vec<u8>) -> io::Result<()> {
        while let Some(delay) = self.service.delay(self.asker.client.ip(), std::time::Instant::now()) {
            sleep(delay).await;
        }
        let mut reply = Vec::new();
        match self.service.take(&message, self.asker, &self.service.moment(), &mut reply) {
            // Who sends what is no query over a stream has nothing to say there.
            Step::Silence | Step::Untold => Err(io::ErrorKind::InvalidData.into()),
            Step::Reply(event) => self.reply(&reply, event).await,
            Step::GoOn(errand) => {
                self.errands.spawn(errand.run(Arc::clone(&self.service), self.reply.clone()));
                Ok(())
            }
        }
    }

    /// Sends a reply, once its event is taken.
    async fn reply(&mut self, reply: &[u8], event: Answered) -> io::Result<()> {
        if let Some(room) = self.service.tell(&event) {
            room.await;
        }
        self.send(reply).await
    }

    /// Sends what errands have answered. One that has ended has answered before.
    async fn send_ready(&mut self) -> io::Result<()> {
        while let Ok(reply) = self.ready.try_recv() {
            self.send(&reply).await?;
        }
        Ok(())
    }

    async fn send(&mut self, reply: &[u8]) -> io::Result<()> {
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let whole = [&length.to_be_bytes(), reply].concat();
        timeout(WRITE, async {
            self.stream.write_all(&whole).await?;
            self.stream.flush().await
        })
        .await?
    }

    /// Answers what is in progress; then the connection is over.
    async fn finish(mut self) -> io::Result<()> {
        while let Some(ended) = self.errands.join_next().await {
            ended.map_err(io::Error::other)?;
            self.send_ready().await?;
        }
        timeout(WRITE, self.stream.shutdown()).await?
    }
}

impl Way for Reply {
    const TO_THE_END: bool = false;

    async fn answer(self, service: &Service, event: &Answered, reply: Vec<u8>) {
        if let Some(room) = service.tell(event) {
            room.await;
        }
        // Without a connection there is nobody to tell.
        _ = self.0.send(reply).await;
    }
}

/// How many connections there are, and of whom.
struct Places {
    all: Arc<Semaphore>,
    clients: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A connection's place, given back when it is dropped.
struct Place {
    _of_all: OwnedSemaphorePermit,
    clients: Arc<Mutex<HashMap<IpAddr, usize>>>,
    client: IpAddr,
}

impl Places {
    fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(MAX_CONNECTIONS)), clients: Arc::default() }
    }

    fn take(&self, client: IpAddr) -> Option<Place> {
        let of_all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(client).or_default();
        if *count >= MAX_PER_CLIENT {
            return None;
        }
        *count += 1;
        Some(Place { _of_all: of_all, clients: Arc::clone(&self.clients), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.client);
            }
        }
    }
}
