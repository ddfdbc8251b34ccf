//! Queries in datagrams: one socket and one thread a core.
//!
//! What can be answered in place is answered in place: a batch comes in, its events are handed over, its
//! replies go out. What cannot becomes a task on the same thread (`server/slow.rs`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::rr::Record;
use hickory_server::net::NetError;
use hickory_server::server::{ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponse;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::again::Again;
use super::batch::{BATCH, Inbox, Outbox, Received, send_one};
use super::service::{Asker, Moment, Service, Step};
use super::slow::encode;
use crate::event::Transport;

/// How long to rest after a socket failed in a way that is not about one datagram.
const REST: Duration = Duration::from_millis(50);
/// How long what was just answered is kept when it is of no more use.
const IDLE: Duration = Duration::from_secs(2);

/// Starts a thread that serves `socket` until `draining` is cancelled and what was asked before is answered.
/// The channel closes when it has ended.
pub(super) fn start(
    socket: std::net::UdpSocket,
    service: Arc<Service>,
    draining: CancellationToken,
) -> oneshot::Receiver<()> {
    let (end, ended) = oneshot::channel();
    let serve = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        // Without a runtime there is nothing to serve with; the other threads' sockets get its queries.
        if let Ok(runtime) = runtime {
            runtime.block_on(run(socket, service, draining)).ok();
        }
        drop(end);
    };
    // A thread that the system refuses drops its end of the channel.
    drop(std::thread::Builder::new().name("dns".to_owned()).spawn(serve));
    ended
}

async fn run(
    socket: std::net::UdpSocket,
    service: Arc<Service>,
    draining: CancellationToken,
) -> io::Result<()> {
    let bound = socket.local_addr()?.ip();
    let port =
        Port { socket: Arc::new(UdpSocket::from_std(socket)?), service, bound, tasks: TaskTracker::new() };
    let mut inbox = Inbox::new(&port.socket, bound)?;
    let mut outbox = Outbox::new();
    let mut again = Again::new();
    let mut idle = pin!(sleep(IDLE));
    loop {
        let ready = tokio::select! {
            biased;
            ready = port.socket.readable() => ready,
            () = draining.cancelled() => break,
            () = &mut idle, if !again.is_empty() => {
                again.forget();
                continue;
            }
        };
        if ready.is_err() || port.receive(&mut inbox).is_err() {
            sleep(REST).await;
            continue;
        }
        if again.is_empty() {
            idle.as_mut().reset(Instant::now() + IDLE);
        }
        port.answer(&inbox, &mut outbox, &mut again);
        if let Some(room) = port.service.observer.hand_over() {
            room.await;
        }
        port.send(&mut outbox).await;
    }
    port.tasks.close();
    port.tasks.wait().await;
    Ok(())
}

/// One socket and what its queries need.
struct Port {
    socket: Arc<UdpSocket>,
    service: Arc<Service>,
    bound: IpAddr,
    tasks: TaskTracker,
}

impl Port {
    /// Receives what is there; that may be nothing.
    fn receive(&self, inbox: &mut Inbox) -> io::Result<()> {
        let mut failure = None;
        // A batch that is not full has emptied the socket: said as "would block", that saves the call that
        // would find it empty. What arrives meanwhile makes it ready again.
        let received = self.socket.try_io(Interest::READABLE, || match inbox.receive(&self.socket) {
            Ok(BATCH) => Ok(()),
            Ok(_) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => {
                failure = (error.kind() != io::ErrorKind::WouldBlock).then_some(error);
                Err(io::ErrorKind::WouldBlock.into())
            }
        });
        match (received, failure) {
            (_, Some(error)) => Err(error),
            (Ok(()) | Err(_), None) => Ok(()),
        }
    }

    /// Answers a batch, as far as that can be done in place. What it tells has yet to be handed over.
    fn answer(&self, inbox: &Inbox, outbox: &mut Outbox, again: &mut Again) {
        let moment = self.service.moment();
        again.begin(&moment);
        for (received, packet) in inbox.packets() {
            let start = outbox.bytes.len();
            match self.take(packet, self.asker(received), &moment, &mut outbox.bytes, again) {
                Step::Silence => {}
                Step::Untold => outbox.address(start, received.from, received.to),
                Step::Reply(event) => {
                    outbox.address(start, received.from, received.to);
                    self.service.observer.answered(&event);
                    let reply = outbox.bytes.get(start..).unwrap_or_default();
                    again.keep(packet, self.asker(received), reply, event);
                }
                Step::GoOn(errand) => {
                    let reply =
                        Reply { socket: Arc::clone(&self.socket), to: *received, limit: errand.limit() };
                    self.tasks.spawn(errand.run(Arc::clone(&self.service), reply));
                }
            }
        }
    }

    /// Takes one datagram: what was just answered has its event told already.
    fn take(
        &self,
        packet: &[u8],
        asker: Asker,
        moment: &Moment,
        out: &mut Vec<u8>,
        again: &mut Again,
    ) -> Step {
        if let Some(step) = self.service.turn_away(packet, asker, moment, out) {
            return step;
        }
        if let Some(event) = again.give(packet, asker, moment, out) {
            self.service.observer.answered(event);
            return Step::Untold;
        }
        self.service.take(packet, asker, moment, out)
    }

    async fn send(&self, outbox: &mut Outbox) {
        if outbox.is_empty() {
            return;
        }
        // Replies that cannot be sent are lost, as datagrams are.
        _ = self.socket.async_io(Interest::WRITABLE, || outbox.send(&self.socket)).await;
    }

    fn asker(&self, received: &Received) -> Asker {
        let client = SocketAddr::new(received.from.ip().to_canonical(), received.from.port());
        let local = received.to.unwrap_or(self.bound).to_canonical();
        Asker { client, local, transport: Transport::Udp }
    }
}

/// Where the reply to one datagram goes.
#[derive(Clone)]
struct Reply {
    socket: Arc<UdpSocket>,
    to: Received,
    limit: usize,
}

#[async_trait]
impl ResponseHandler for Reply {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let (info, bytes) = encode(response, self.limit)?;
        let send = || send_one(&self.socket, &bytes, self.to.from, self.to.to);
        // A reply that cannot be sent is lost, as datagrams are.
        _ = self.socket.async_io(Interest::WRITABLE, send).await;
        Ok(info)
    }
}
