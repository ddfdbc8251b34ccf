//! Queries in datagrams: one socket and one thread a core.
//!
//! What can be answered in place is answered in place: a batch comes in, its events are handed over, its
//! replies go out. What cannot becomes a task on the same thread (`server/slow.rs`), whose reply goes out with the
//! next batch: one write for the records of all, and one call to send the replies.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::again::{Again, Sent};
use super::batch::{Inbox, Outbox, Received, forbid_fragments};
use super::service::{Asker, Moment, Service, Step, Together};
use super::slow::Way;
use super::watched::Watched;
use crate::event::{Answered, Transport};
use crate::upstream::exchange::sockets::Keeper;

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
    let port = Port { service, bound, finished: Arc::default(), tasks: TaskTracker::new() };
    forbid_fragments(&socket, bound);
    let mut inbox = Inbox::new(&socket, bound)?;
    let mut socket = Watched::new(socket)?;
    let mut outbox = Outbox::new();
    let mut again = Again::new();
    let keeper = Keeper::new();
    let mut idle = pin!(sleep(IDLE));
    loop {
        tokio::select! {
            biased;
            ready = socket.readable() => {
                if ready.is_err() || socket.receive(&mut inbox).is_err() {
                    sleep(REST).await;
                    continue;
                }
                if again.is_empty() {
                    idle.as_mut().reset(Instant::now() + IDLE);
                }
                port.answer(&inbox, &mut outbox, &mut again);
            }
            () = port.finished.wake.notified() => {}
            () = draining.cancelled() => break,
            () = &mut idle, if !(again.is_empty() && keeper.is_empty()) => {
                again.forget();
                keeper.forget();
            }
        }
        port.send_off(&mut outbox, &mut socket).await;
    }
    port.tasks.close();
    let mut ended = pin!(port.tasks.wait());
    loop {
        let all = tokio::select! {
            () = &mut ended => true,
            () = port.finished.wake.notified() => false,
        };
        port.send_off(&mut outbox, &mut socket).await;
        if all {
            return Ok(());
        }
    }
}

/// What the queries of one socket need.
struct Port {
    service: Arc<Service>,
    bound: IpAddr,
    finished: Arc<Finished>,
    tasks: TaskTracker,
}

/// Replies of errands that are done, each with the datagram that it is to. Their events were told on the thread that
/// sends them, which hands them over first.
#[derive(Default)]
struct Finished {
    replies: Mutex<Vec<(Vec<u8>, Received)>>,
    wake: Notify,
}

impl Port {
    /// Answers a batch, as far as that can be done in place. What it tells has yet to be handed over.
    fn answer(&self, inbox: &Inbox, outbox: &mut Outbox, again: &mut Again) {
        let moment = self.service.moment();
        again.begin(&moment);
        for run in inbox.runs() {
            let mut together = Together::new(run.len());
            for received in run {
                self.answer_one(inbox.packet(received), received, &mut together, &moment, outbox, again);
            }
        }
    }

    fn answer_one(
        &self,
        packet: &[u8],
        received: &Received,
        together: &mut Together,
        moment: &Moment,
        outbox: &mut Outbox,
        again: &mut Again,
    ) {
        let (start, asker) = (outbox.bytes.len(), self.asker(received));
        let sent = again.sent(packet, asker);
        let turned_away = self.service.turn_away(packet, asker, together, moment, &mut outbox.bytes);
        let step = match turned_away {
            Some(step) => step,
            None => self.take(packet, asker, sent.as_ref(), moment, &mut outbox.bytes, again),
        };
        match step {
            Step::Silence => {}
            Step::Untold => outbox.address(start, received.from, received.to),
            // Where it is: to move an event takes as long as to write half a record.
            Step::Reply(ref event) => {
                outbox.address(start, received.from, received.to);
                self.service.observer.answered(event);
                if let Some(sent) = sent {
                    again.keep(&sent, outbox.bytes.get(start..).unwrap_or_default(), event);
                }
            }
            Step::GoOn(errand) => {
                let reply = Reply { finished: Arc::clone(&self.finished), to: *received };
                // A task that holds it would be moved, two kilobytes each time, on the way to its place.
                self.tasks.spawn(Box::pin(errand.run(Arc::clone(&self.service), reply)));
            }
        }
    }

    /// Takes one datagram that is let in: what was just answered has its event told already.
    fn take(
        &self,
        packet: &[u8],
        asker: Asker,
        sent: Option<&Sent<'_>>,
        moment: &Moment,
        out: &mut Vec<u8>,
        again: &mut Again,
    ) -> Step {
        if let Some((event, said)) = sent.and_then(|sent| again.give(sent, moment, out)) {
            self.service.observer.answered_again(event, said);
            return Step::Untold;
        }
        self.service.take(packet, asker, moment, out)
    }

    /// Sends all that is answered, once it is on record.
    async fn send_off(&self, outbox: &mut Outbox, socket: &mut Watched) {
        // What is finished from here on has its event handed over the next time.
        for (reply, to) in self.finished.take() {
            let start = outbox.bytes.len();
            outbox.bytes.extend_from_slice(&reply);
            outbox.address(start, to.from, to.to);
        }
        if let Some(room) = self.service.observer.hand_over() {
            room.await;
        }
        if !outbox.is_empty() {
            socket.send(outbox).await;
        }
    }

    fn asker(&self, received: &Received) -> Asker {
        let client = SocketAddr::new(received.from.ip().to_canonical(), received.from.port());
        let local = received.to.unwrap_or(self.bound).to_canonical();
        Asker { client, local, transport: Transport::Udp }
    }
}

impl Finished {
    fn take(&self) -> Vec<(Vec<u8>, Received)> {
        std::mem::take(&mut *self.replies.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The way of the reply to one datagram.
struct Reply {
    finished: Arc<Finished>,
    to: Received,
}

impl Way for Reply {
    const TO_THE_END: bool = true;

    async fn answer(self, service: &Service, event: &Answered, reply: Vec<u8>) {
        service.observer.answered(event);
        let mut replies = self.finished.replies.lock().unwrap_or_else(PoisonError::into_inner);
        replies.push((reply, self.to));
        drop(replies);
        self.finished.wake.notify_one();
    }
}
