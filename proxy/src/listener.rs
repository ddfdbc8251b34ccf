//! The explicit proxy's listener: connections come in, within a budget, and become sessions.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outgate_rules::{PrefixSet, Reason};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

use crate::budget::Place;
use crate::client::{Client, NoHead};
use crate::connect;
use crate::dial::is_out_of_descriptors;
use crate::gate::Gate;
use crate::head::Target;
use crate::http::{self, After};
use crate::metrics::{ListenerMetrics, Open};
use crate::reject::{reject, turn_away};
use crate::session::Session;

/// How long to wait for a file descriptor when none of our own is about to become free.
const NO_DESCRIPTOR: Duration = Duration::from_millis(200);

/// A listener that is bound.
#[derive(Debug)]
pub struct Listener {
    /// Its name in the records.
    pub name: Arc<str>,
    /// The socket.
    pub socket: TcpListener,
    /// Whom it serves.
    pub clients: PrefixSet,
    /// Counts its sessions.
    pub metrics: ListenerMetrics,
    /// Whether accepting waits for a file descriptor.
    pub paused: AtomicBool,
}

impl Listener {
    /// Accepts connections until the gate drains. Each session runs on its own.
    pub async fn run(self, gate: Arc<Gate>) {
        let listener = Arc::new(self);
        loop {
            let accepted = tokio::select! {
                accepted = listener.socket.accept() => accepted,
                () = gate.draining.cancelled() => return,
            };
            match accepted {
                Ok((stream, client)) => accept(&gate, &listener, stream, client),
                Err(error) => listener.pause(&gate, &error).await,
            }
        }
    }

    /// Out of file descriptors, the connection stays in the kernel's queue until there is one. Any other
    /// failure concerns the one connection that is gone.
    async fn pause(&self, gate: &Gate, error: &io::Error) {
        if !is_out_of_descriptors(error) {
            return;
        }
        self.metrics.accept_paused();
        if !self.paused.swap(true, Ordering::Relaxed) {
            gate.recorder.console().notice(format!("{} waits with accepting: {error}", self.name));
        }
        tokio::select! {
            () = gate.budget.closed() => {}
            () = sleep(NO_DESCRIPTOR) => {}
        }
    }

    fn accepted(&self, gate: &Gate) {
        if self.paused.swap(false, Ordering::Relaxed) {
            gate.recorder.console().notice(format!("{} accepts again", self.name));
        }
    }
}

fn accept(gate: &Arc<Gate>, listener: &Arc<Listener>, stream: TcpStream, client: SocketAddr) {
    listener.accepted(gate);
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let place = if listener.clients.contains(client.ip()) {
        gate.budget.take(client.ip())
    } else {
        Err(Reason::ClientNotServed)
    };
    // Small answers must not wait for one another; where this fails they do.
    let _ = stream.set_nodelay(true);
    let session = Session {
        id: gate.ids.next(),
        client,
        listener: Arc::clone(&listener.name),
        accepted: std::time::Instant::now(),
    };
    gate.tasks.spawn(serve(Arc::clone(gate), session, stream, place, listener.metrics.session_opened()));
}

async fn serve(
    gate: Arc<Gate>,
    session: Session,
    stream: TcpStream,
    place: Result<Place, Reason>,
    _counted: Open,
) {
    let client = Client::new(stream);
    match place {
        Ok(_place) => requests(&gate, &session, client).await,
        Err(reason) => turn_away(&gate, &session, client, reason.into()).await,
    }
}

/// Serves what a client asks for, one head after the other.
async fn requests(gate: &Arc<Gate>, session: &Session, mut client: Client) {
    let deadline = Instant::from_std(session.accepted) + gate.limits.head;
    let mut head = match client.head(deadline).await {
        Ok(head) => head,
        Err(NoHead::Closed) => return,
        Err(NoHead::Bad(bad)) => return reject(gate, session, client, bad).await,
    };
    loop {
        if let Target::Authority(destination) = head.target {
            return connect::serve(gate, session, client, destination).await;
        }
        match http::serve(gate, session, client, head).await {
            After::Closed => return,
            After::Connect(again, next) => (client, head) = (again, *next),
            After::Bad(client, bad) => return reject(gate, session, client, bad).await,
        }
    }
}
