//! The tunnel's first bytes: what must come before anything passes, and who judges it.

use bytes::BytesMut;
use jiff::Timestamp;
use outgate_rules::{Denial, Permit, Port, Reason};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::client::{Client, read_hello, read_some};
use crate::flow::{Flow, OpenFlow};
use crate::gate::Gate;
use crate::hello::ClientHello;
use crate::path::Dialled;
use crate::relay::{Interlude, Outcome, Pause, relay, send_first};
use crate::trail::{Trail, Waiting};

/// The fatal TLS alert `access_denied` (RFC 8446 §6.2), which a TLS client shows where it would not show HTTP.
pub const ACCESS_DENIED: &[u8] = &[21, 3, 3, 0, 2, 2, 49];
/// The first byte of a TLS record with a handshake message (RFC 8446 §5.1).
pub const TLS_HANDSHAKE: u8 = 22;

/// What must come first from the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FirstBytes {
    /// A hello that names the destination, before anything passes: port 443, and `tls_only`.
    Tls,
    /// A hello that names the destination, or HTTP requests for it: port 80.
    TlsOrHttp,
    /// Anything, from either side; but a hello, if one comes first, must name the destination.
    Any,
}

impl FirstBytes {
    /// What the rules that allow a flow want of it.
    #[must_use]
    pub fn wanted(permit: &Permit) -> Self {
        let terms = permit.tls();
        let by_name = permit.name().is_some();
        match permit.destination().port {
            Port::HTTP if by_name && !terms.tls_only => Self::TlsOrHttp,
            _ if terms.tls_only => Self::Tls,
            Port::HTTPS if by_name && !terms.any_name => Self::Tls,
            _ => Self::Any,
        }
    }
}

/// A tunnel that is open. It is all that a session still holds once there is nothing left to do but to relay: what was
/// needed to get here is gone, or behind a box that goes with the first bytes. (An idle tunnel had 19 KiB.)
#[derive(Debug)]
pub struct Tunnel {
    client: TcpStream,
    origin: TcpStream,
    flow: OpenFlow,
    trail: Trail,
    first: First,
}

/// The first bytes from the client.
#[derive(Debug)]
enum First {
    /// They have been judged, or need not be: they go up.
    Judged(BytesMut),
    /// They are still to be judged.
    Awaited(Box<Awaited>),
}

/// What judges first bytes when they come.
#[derive(Debug)]
struct Awaited {
    permit: Permit,
    wanted: FirstBytes,
    ahead: BytesMut,
}

impl Tunnel {
    /// A tunnel whose first bytes are what they should be.
    #[must_use]
    pub fn judged(
        client: TcpStream,
        origin: TcpStream,
        flow: OpenFlow,
        trail: Trail,
        ahead: BytesMut,
    ) -> Box<Self> {
        Box::new(Self { client, origin, flow, trail, first: First::Judged(ahead) })
    }

    /// Waits for the first bytes that are wanted, where nothing may pass before them. None if they are something else:
    /// then the client has been told and the records are closed.
    pub async fn open(
        gate: &Gate,
        client: Client,
        mut dialled: Box<Dialled>,
        wanted: FirstBytes,
    ) -> Option<Box<Self>> {
        let (client, mut ahead) = client.into_parts();
        // What is only reported must not wait for a hello that may never come.
        if wanted != FirstBytes::Tls || dialled.permit.is_suspended() {
            let Dialled { origin, flow, permit, trail, .. } = *dialled;
            let first = First::Awaited(Box::new(Awaited { permit, wanted, ahead }));
            return Some(Box::new(Self { client, origin, flow, trail, first }));
        }
        let judged = {
            let Dialled { flow, permit, trail, .. } = &mut *dialled;
            Judge { gate, permit, flow, trail }.hello(&client, &mut ahead).await
        };
        let denial = match judged {
            Ok(()) => {
                let Dialled { origin, flow, trail, .. } = *dialled;
                return Some(Self::judged(client, origin, flow, trail, ahead));
            }
            Err(denial) => denial,
        };
        let Dialled { flow, trail, .. } = *dialled;
        Box::pin(async move { end(client, &flow, trail, Outcome::gate(denial)).await }).await;
        None
    }

    /// Relays to the end, and records it.
    pub async fn relay(mut self: Box<Self>, gate: &Gate) {
        let Self { client, origin, flow, trail, first } = &mut *self;
        let first = std::mem::replace(first, First::Judged(BytesMut::new()));
        let beginning = begin(gate, client, origin, flow, trail, first);
        let outcome = relay(client, origin, beginning, flow).await;
        if let Some(waiting) = self.end(outcome) {
            waiting.await;
        }
    }

    /// Closes the connections, and then the records; gives what there is to wait for.
    fn end(self, outcome: Outcome) -> Option<Waiting> {
        let Self { client, origin, flow, trail, .. } = self;
        if is_to_be_told(&flow, &trail, &outcome) {
            return Some(Box::pin(async move { end(client, &flow, trail, outcome).await }));
        }
        drop((client, origin));
        trail.close_now(outcome)
    }
}

/// Sends the first bytes up, now or once they are judged.
fn begin<'t>(
    gate: &'t Gate,
    client: &'t TcpStream,
    origin: &'t TcpStream,
    flow: &'t Flow,
    trail: &'t mut Trail,
    first: First,
) -> Option<Interlude<'t>> {
    match first {
        First::Judged(ahead) => send_first(origin, &ahead, flow),
        First::Awaited(awaited) => Some(Box::pin(async move {
            let ahead = awaited.judge(gate, client, flow, trail).await.map_err(Outcome::gate)?;
            match send_first(origin, &ahead, flow) {
                Some(rest) => rest.await,
                None => Ok(Pause::Empty),
            }
        })),
    }
}

/// Whether this is a TLS client that was refused before anything passed.
fn is_to_be_told(flow: &Flow, trail: &Trail, outcome: &Outcome) -> bool {
    outcome.denial.is_some() && trail.has_hello() && flow.bytes().0 == 0
}

/// Tells a TLS client that was refused before anything passed, and closes the records.
async fn end(client: TcpStream, flow: &Flow, trail: Trail, outcome: Outcome) {
    if is_to_be_told(flow, &trail, &outcome) {
        Client::new(client).close_with_alert(ACCESS_DENIED).await;
    } else {
        drop(client);
    }
    trail.close(outcome).await;
}

impl Awaited {
    /// Judges the first bytes when they come, and gives them.
    async fn judge(
        self: Box<Self>,
        gate: &Gate,
        client: &TcpStream,
        flow: &Flow,
        trail: &mut Trail,
    ) -> Result<BytesMut, Denial> {
        let Self { permit, wanted, mut ahead } = *self;
        let mut judge = Judge { gate, permit: &permit, flow, trail };
        judge.whenever_it_comes(wanted, client, &mut ahead).await?;
        Ok(ahead)
    }
}

/// Judges the first bytes of a tunnel.
struct Judge<'t> {
    gate: &'t Gate,
    permit: &'t Permit,
    flow: &'t Flow,
    trail: &'t mut Trail,
}

impl Judge<'_> {
    /// A hello has to come, and to name the destination.
    async fn hello(&mut self, stream: &TcpStream, ahead: &mut BytesMut) -> Result<(), Denial> {
        match read_hello(stream, ahead, Instant::now() + self.gate.limits.head).await {
            Ok(Some(hello)) => self.name(hello),
            Ok(None) => Err(Reason::NotTls.into()),
            Err(bad) => Err(Reason::from(bad).into()),
        }
    }

    /// The tunnel is open already: what comes from the client is judged when it comes. Where enforcement is
    /// suspended it is only recorded.
    async fn whenever_it_comes(
        &mut self,
        wanted: FirstBytes,
        stream: &TcpStream,
        ahead: &mut BytesMut,
    ) -> Result<(), Denial> {
        if ahead.is_empty() {
            // Whether this fails, the relay will see.
            let _ = read_some(stream, ahead).await;
        }
        let any_name = self.permit.tls().any_name;
        let judged = match self.hello(stream, ahead).await {
            Err(denial) if denial.reason == Reason::NotTls && wanted != FirstBytes::Tls => Ok(()),
            // Where any name will do, so does a hello that cannot be read.
            Err(_) if any_name && !self.trail.has_hello() => Ok(()),
            judged => judged,
        };
        match judged {
            Err(denial) if self.permit.is_suspended() => {
                self.trail.would_deny(Some(denial));
                Ok(())
            }
            judged => judged,
        }
    }

    /// The name in a hello is the destination's. Where that is an address, or any name will do, the rules
    /// judge the name that is seen.
    fn name(&mut self, hello: ClientHello) -> Result<(), Denial> {
        self.trail.saw_hello(&hello);
        let wanted = self.permit.name().filter(|_| !self.permit.tls().any_name);
        match (wanted, hello.sni) {
            (Some(_), None) => Err(Reason::SniMissing.into()),
            (Some(_), Some(sni)) if !self.permit.is_for(&sni) => Err(Reason::SniMismatch.into()),
            (Some(_), Some(_)) | (None, None) => Ok(()),
            (None, Some(sni)) => {
                self.trail.would_deny(self.permit.vet_seen_name(&sni, Timestamp::now())?);
                self.flow.saw(sni);
                Ok(())
            }
        }
    }
}
