//! CONNECT: a tunnel to one destination, opened when its first bytes are what the destination wants.

use std::future::ready;
use std::sync::Arc;

use bytes::BytesMut;
use jiff::Timestamp;
use outgate_rules::{Denial, Destination, Permit, Port, Protocol, Reason};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::answer::Answer;
use crate::client::{Client, read_hello, read_some};
use crate::flow::Flow;
use crate::gate::Gate;
use crate::head;
use crate::hello::ClientHello;
use crate::http::{self, After};
use crate::path::{self, Connection, Dialled, Vetted};
use crate::record::{self, Asked, EndedBy, Kind};
use crate::reject::reject;
use crate::relay::{Outcome, relay};
use crate::session::Session;
use crate::trail::Trail;

/// The whole answer to a CONNECT that goes on (RFC 9110 §9.3.6): no body, no length.
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";
/// The fatal TLS alert `access_denied` (RFC 8446 §6.2), which a TLS client shows where it would not show HTTP.
const ACCESS_DENIED: &[u8] = &[21, 3, 3, 0, 2, 2, 49];
/// The first byte of a TLS record with a handshake message (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 22;

/// Serves a CONNECT to its end. The client's connection ends with it.
pub async fn serve(gate: &Arc<Gate>, session: &Session, client: Client, to: Destination) {
    let flow = record::Flow {
        session: session.clone(),
        kind: Kind::Connect,
        exchange: None,
        asked: Asked::Destination(to.clone()),
        protocol: Protocol::Tcp,
        request: None,
        hello: None,
    };
    let dialled = async {
        let vetted = path::decide(gate, flow, &to).await?.vet().await?;
        match FirstBytes::wanted(vetted.permit()) {
            // Which of the two it will be, and so what is dialled, tells the client's first byte.
            FirstBytes::TlsOrHttp => Ok(Opening::Undecided(vetted)),
            wanted @ (FirstBytes::Tls | FirstBytes::Any) => {
                vetted.dial(&Connection::default()).await.map(|dialled| Opening::Tunnel(dialled, wanted))
            }
        }
    };
    match dialled.await {
        Ok(opening) => opening.serve(gate, session, client, to).await,
        Err(denial) => client.close_with(&Answer::new(denial, &to).to_bytes()).await,
    }
}

/// A CONNECT that goes on.
enum Opening {
    /// As a tunnel.
    Tunnel(Dialled, FirstBytes),
    /// As a tunnel or as requests.
    Undecided(Vetted),
}

impl Opening {
    async fn serve(self, gate: &Arc<Gate>, session: &Session, mut client: Client, to: Destination) {
        let told = client.stream().write_all(ESTABLISHED).await;
        match (self, told) {
            (Self::Tunnel(dialled, wanted), Ok(())) => tunnel(gate, client, dialled, wanted).await,
            (Self::Tunnel(Dialled { trail, .. }, _), Err(_)) => {
                trail.close(Outcome::side(EndedBy::Client)).await;
            }
            (Self::Undecided(vetted), Ok(())) => tls_or_http(gate, session, client, vetted, to).await,
            (Self::Undecided(vetted), Err(_)) => vetted.close(Outcome::side(EndedBy::Client)).await,
        }
    }
}

/// What must come first from the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FirstBytes {
    /// A hello that names the destination, before anything passes: port 443, and `tls_only`.
    Tls,
    /// A hello that names the destination, or HTTP requests for it: port 80.
    TlsOrHttp,
    /// Anything, from either side; but a hello, if one comes first, must name the destination.
    Any,
}

impl FirstBytes {
    fn wanted(permit: &Permit) -> Self {
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

/// On port 80 the client's first byte tells whether a tunnel is wanted or requests are coming, which are
/// decided one by one.
async fn tls_or_http(
    gate: &Arc<Gate>,
    session: &Session,
    mut client: Client,
    vetted: Vetted,
    to: Destination,
) {
    match client.first_byte(Instant::now() + gate.limits.head).await {
        Ok(TLS_HANDSHAKE) => {
            // The client has been told that the tunnel is open: a failure can only close it.
            if let Ok(dialled) = vetted.dial(&Connection::default()).await {
                tunnel(gate, client, dialled, FirstBytes::Tls).await;
            }
        }
        Ok(_) => {
            match http::serve_inside(gate, session, client, to).await {
                After::Closed => {}
                After::Bad(client, bad) => reject(gate, session, client, bad).await,
                After::Connect(client, head) => {
                    reject(gate, session, client, head::bad(Reason::TargetForm, &head.raw)).await;
                }
            }
            vetted.close(Outcome::side(EndedBy::Client)).await;
        }
        Err(bad) => _ = vetted.refuse(Reason::from(bad).into()).await,
    }
}

/// Relays what comes behind the first bytes that are wanted.
async fn tunnel(gate: &Arc<Gate>, client: Client, dialled: Dialled, wanted: FirstBytes) {
    let Dialled { origin, flow, permit, mut trail, .. } = dialled;
    let (stream, mut ahead) = client.into_parts();
    let idle = gate.limits.idle;
    let mut opening = Judge { gate, permit: &permit, flow: &flow, trail: &mut trail };
    // What is only reported must not wait for a hello that may never come.
    let outcome = if wanted == FirstBytes::Tls && !permit.is_suspended() {
        match opening.hello(&stream, &mut ahead).await {
            Ok(()) => relay(&stream, &origin, ready(Ok(ahead)), &flow, idle).await,
            Err(denial) => Outcome::gate(denial),
        }
    } else {
        let opening = async {
            opening.whenever_it_comes(wanted, &stream, &mut ahead).await?;
            Ok(ahead)
        };
        relay(&stream, &origin, opening, &flow, idle).await
    };
    if outcome.denial.is_some() && trail.has_hello() && flow.bytes().0 == 0 {
        Client::new(stream).close_with(ACCESS_DENIED).await;
    }
    trail.close(outcome).await;
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
            (Some(name), Some(sni)) if *name != sni => Err(Reason::SniMismatch.into()),
            (Some(_), Some(_)) | (None, None) => Ok(()),
            (None, Some(sni)) => {
                self.trail.would_deny(self.permit.vet_seen_name(&sni, Timestamp::now())?);
                self.flow.saw(sni);
                Ok(())
            }
        }
    }
}
