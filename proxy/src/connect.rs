//! CONNECT: a tunnel to one destination, opened when its first bytes are what the destination wants.

use std::sync::Arc;

use outgate_rules::{Denial, Destination, Protocol, Reason};
use tokio::time::Instant;

use crate::answer::Answer;
use crate::client::Client;
use crate::dial::Speaker;
use crate::gate::Gate;
use crate::head;
use crate::http::{self, After};
use crate::path::{self, Dialled, Vetted, Wanted};
use crate::record::{self, Asked, EndedBy, Kind};
use crate::reject::reject;
use crate::relay::Outcome;
use crate::session::Session;
use crate::tunnel::{FirstBytes, TLS_HANDSHAKE, Tunnel};

/// The whole answer to a CONNECT that goes on (RFC 9110 §9.3.6): no body, no length.
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// Serves a CONNECT until it is a tunnel, or to its end. The client's connection ends with it.
pub fn serve(
    gate: &Arc<Gate>,
    session: &Session,
    client: Client,
    to: Destination,
) -> impl Future<Output = Option<Box<Tunnel>>> + Send {
    let flow = Box::new(record::Flow {
        session: session.clone(),
        kind: Kind::Connect,
        exchange: None,
        asked: Asked::Destination(to.clone()),
        protocol: Protocol::Tcp,
        request: None,
        hello: None,
    });
    let client_has_spoken = !client.ahead().is_empty();
    async move {
        let opening = match open(gate, flow, &to, client_has_spoken).await {
            Ok(opening) => opening,
            Err(denial) => {
                let answer = Answer::new(denial, &to).to_bytes();
                Box::pin(client.close_with(&answer)).await;
                return None;
            }
        };
        let left = Outcome::side(EndedBy::Client);
        match (opening, client.send(ESTABLISHED).await) {
            // Each in memory of its own, which what came before need not have.
            (Opening::Tunnel(dialled, wanted), Ok(())) => {
                return Box::pin(Tunnel::open(gate, client, dialled, wanted)).await;
            }
            (Opening::Undecided(vetted), Ok(())) => {
                return Box::pin(tls_or_http(gate, session, client, vetted, to)).await;
            }
            (Opening::Tunnel(dialled, _), Err(_)) => dialled.trail.close(left).await,
            (Opening::Undecided(vetted), Err(_)) => vetted.close(left).await,
        }
        None
    }
}

/// A CONNECT that goes on.
enum Opening {
    /// As a tunnel.
    Tunnel(Box<Dialled>, FirstBytes),
    /// As a tunnel or as requests.
    Undecided(Vetted),
}

async fn open(
    gate: &Arc<Gate>,
    flow: Box<record::Flow>,
    to: &Destination,
    client_has_spoken: bool,
) -> Result<Opening, Denial> {
    let vetted = path::decide(gate, flow, Wanted::Destination(to.clone())).await?.vet().await?;
    let wanted = FirstBytes::wanted(vetted.permit());
    let first = match wanted {
        // Which of the two it will be, and so what is dialled, tells the client's first byte.
        FirstBytes::TlsOrHttp => return Ok(Opening::Undecided(vetted)),
        FirstBytes::Tls => Speaker::Client,
        FirstBytes::Any if client_has_spoken => Speaker::Client,
        FirstBytes::Any => Speaker::Either,
    };
    Ok(Opening::Tunnel(Box::new(vetted.dial(first, None).await?), wanted))
}

/// On port 80 the client's first byte tells whether a tunnel is wanted or requests are coming, which are
/// decided one by one.
async fn tls_or_http(
    gate: &Arc<Gate>,
    session: &Session,
    mut client: Client,
    vetted: Vetted,
    to: Destination,
) -> Option<Box<Tunnel>> {
    match client.first_byte(Instant::now() + gate.limits.head).await {
        Ok(TLS_HANDSHAKE) => {
            // The client has been told that the tunnel is open: a failure can only close it.
            let dialled = vetted.dial(Speaker::Client, None).await.ok()?;
            return Tunnel::open(gate, client, Box::new(dialled), FirstBytes::Tls).await;
        }
        Ok(_) => {
            let tunnel = Box::pin(requests(gate, session, client, to)).await;
            vetted.close(Outcome::side(EndedBy::Client)).await;
            return tunnel;
        }
        Err(bad) => _ = vetted.refuse(Reason::from(bad).into()).await,
    }
    None
}

/// Serves the requests that come through a CONNECT.
async fn requests(
    gate: &Arc<Gate>,
    session: &Session,
    client: Client,
    to: Destination,
) -> Option<Box<Tunnel>> {
    match http::serve_inside(gate, session, client, to).await {
        After::Closed => {}
        After::Tunnel(tunnel) => return Some(tunnel),
        After::Bad(client, bad) => reject(gate, session, client, bad).await,
        After::Connect(client, head) => {
            reject(gate, session, client, head::bad(Reason::TargetForm, &head.raw)).await;
        }
    }
    None
}
