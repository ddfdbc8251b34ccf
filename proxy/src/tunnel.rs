//! The tunnel's first bytes: what must come before anything passes, and who judges it.

use std::future::ready;

use bytes::BytesMut;
use jiff::Timestamp;
use outgate_rules::{Denial, Permit, Port, Reason};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::client::{Client, read_hello, read_some};
use crate::flow::Flow;
use crate::gate::Gate;
use crate::hello::ClientHello;
use crate::path::Dialled;
use crate::relay::{Outcome, relay};
use crate::trail::Trail;

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

/// Relays what comes behind the first bytes that are wanted.
pub async fn tunnel(gate: &Gate, client: Client, dialled: Dialled, wanted: FirstBytes) {
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
