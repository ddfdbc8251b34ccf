//! Queries in datagrams: one socket and one thread a core.
//!
//! What can be answered in place is answered in place: a batch comes in, its events are handed over, its
//! replies go out. What has to ask an upstream becomes a task on the same thread.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::batch::{BATCH, Inbox, Outbox, Received, send_one};
use super::service::{Asker, Lookup, Service, Step};
use crate::event::{Answered, Transport};

/// How long to rest after a socket failed in a way that is not about one datagram.
const REST: Duration = Duration::from_millis(50);

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
    let mut events = Vec::with_capacity(BATCH);
    loop {
        let ready = tokio::select! {
            ready = port.socket.readable() => ready,
            () = draining.cancelled() => break,
        };
        if ready.is_err() || port.receive(&mut inbox).is_err() {
            sleep(REST).await;
            continue;
        }
        port.answer(&inbox, &mut outbox, &mut events);
        port.hand_over(&mut events).await;
        port.send(&mut outbox).await;
    }
    port.tasks.close();
    port.tasks.wait().await;
    Ok(())
}

/// One socket and what its queries need.
#[derive(Clone)]
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

    /// Answers a batch, as far as that can be done in place.
    fn answer(&self, inbox: &Inbox, outbox: &mut Outbox, events: &mut Vec<Answered>) {
        let moment = self.service.moment();
        for (received, packet) in inbox.packets() {
            let start = outbox.bytes.len();
            match self.service.take_datagram(packet, self.asker(received), &moment, &mut outbox.bytes) {
                Step::Silence => {}
                Step::Untold => outbox.address(start, received.from, received.to),
                Step::Reply(event) => {
                    outbox.address(start, received.from, received.to);
                    events.push(event);
                }
                Step::Ask(lookup) => {
                    self.tasks.spawn(self.clone().ask(lookup, *received));
                }
            }
        }
    }

    async fn ask(self, lookup: Box<Lookup>, received: Received) {
        let mut reply = Vec::new();
        let event = self.service.ask(*lookup, &mut reply).await;
        self.hand_over(&mut vec![event]).await;
        let send = || send_one(&self.socket, &reply, received.from, received.to);
        // A reply that cannot be sent is lost, as datagrams are.
        _ = self.socket.async_io(Interest::WRITABLE, send).await;
    }

    /// Comes back when the events are taken: before that nothing that they tell of is sent.
    async fn hand_over(&self, events: &mut Vec<Answered>) {
        if let Some(room) = self.service.tell(events) {
            room.await;
        }
        events.clear();
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
