//! Flows that were redirected here: the client dialled an address and knows nothing of the gate.
//!
//! What the flow is for is read from what the client sends: the server name of a TLS hello, the Host of a request.
//! Where there is nothing to read, it is the address that was dialled, or a name for which this very client was told
//! that address. [`outgate_rules::RuleSet::decide_intercepted`] says which of them decides.

use std::sync::Arc;
use std::time::Instant as Time;

use bytes::BytesMut;
use outgate_rules::{Denial, Destination, Intercepted, Port, Protocol, Reason, Seen};
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::Instant;

use crate::answer::Answer;
use crate::client::{BadHello, Client, Newcomer, NoHead, read_hello};
use crate::dial::Speaker;
use crate::gate::Gate;
use crate::head::{self, BadHead};
use crate::hello::ClientHello;
use crate::http::{self, After};
use crate::path::{self, Dialled, Vetted, Wanted};
use crate::record::{self, Asked, Kind};
use crate::reject::reject;
use crate::session::Session;
use crate::tunnel::{ACCESS_DENIED, FirstBytes, TLS_HANDSHAKE, Tunnel};

/// Serves a flow that should begin with a TLS hello, which may have come along with the connection.
pub async fn tls(gate: &Arc<Gate>, session: &Session, newcomer: Newcomer) -> Option<Box<Tunnel>> {
    let Some(hello) = newcomer.hello() else {
        // It takes two kilobytes, which a flow whose hello is there need not carry.
        return Box::pin(hello_of(gate, session, newcomer.into_client()?, Port::HTTPS)).await;
    };
    if let Ok(dialled) = dial(gate, session, Port::HTTPS, Ok(Some(hello))).await {
        let (stream, ahead) = newcomer.into_client()?.into_parts();
        return Some(pass(stream, ahead, dialled));
    }
    // Others who are there already are decided on first, and all of them are told in a row: to wake clients one
    // after the other costs less than each by itself, a tenth of a denial (bench/README.md).
    yield_now().await;
    newcomer.close_with_alert(ACCESS_DENIED).await;
    None
}

/// Waits for the TLS hello that a flow should begin with, and serves it. `port` is the one that it is for where the
/// client dialled the gate.
async fn hello_of(gate: &Arc<Gate>, session: &Session, client: Client, port: Port) -> Option<Box<Tunnel>> {
    let (stream, mut ahead) = client.into_parts();
    let hello = read_hello(&stream, &mut ahead, deadline(gate, session)).await;
    if ahead.is_empty() && session.original.is_none() {
        // A probe: it went nowhere and wanted nothing.
        return None;
    }
    match dial(gate, session, port, hello).await {
        Ok(dialled) => Some(pass(stream, ahead, dialled)),
        Err(_) => {
            turn_away(stream, &ahead).await;
            None
        }
    }
}

/// The way to an origin of a flow that began with this hello.
fn dial<'g>(
    gate: &'g Arc<Gate>,
    session: &Session,
    port: Port,
    hello: Result<Option<ClientHello>, BadHello>,
) -> impl Future<Output = Result<Dialled, Denial>> + Send + use<'g> {
    let wanted = intercepted(session, port, seen(&hello));
    let hello = hello.ok().flatten();
    let flow = flow(session, Kind::Tls, &wanted, hello.as_ref());
    let has_hello = hello.is_some();
    async move {
        let vetted = path::decide(gate, flow, Wanted::Intercepted(wanted)).await?.vet().await?;
        if wants_hello(&vetted) && !has_hello {
            return Err(vetted.refuse(Reason::NotTls.into()).await);
        }
        vetted.dial(Speaker::Client, None).await
    }
}

/// Serves a flow to port 80: requests, each decided on its own; or TLS, as some clients speak it there.
pub async fn http(gate: &Arc<Gate>, session: &Session, mut client: Client) -> Option<Box<Tunnel>> {
    let deadline = deadline(gate, session);
    match client.first_byte(deadline).await {
        Ok(TLS_HANDSHAKE) => return hello_of(gate, session, client, Port::HTTP).await,
        Ok(_) => {}
        Err(_) if session.original.is_none() => return None,
        Err(bad) => return not_http(gate, session, client, Reason::from(bad).into()).await,
    }
    let first = match client.head(deadline).await {
        Ok(first) => first,
        Err(NoHead::Closed) => return None,
        Err(NoHead::Bad(bad)) => return not_http(gate, session, client, bad).await,
    };
    let original = session.original.map(|original| original.ip());
    match Box::pin(http::serve_intercepted(gate, session, client, first, original)).await {
        After::Closed => {}
        After::Tunnel(tunnel) => return Some(tunnel),
        After::Bad(client, bad) => reject(gate, session, client, bad).await,
        After::Connect(client, head) => {
            reject(gate, session, client, head::bad(Reason::TargetForm, &head.raw)).await;
        }
    }
    None
}

/// Serves a flow to any other port, whose first bytes may come from either side.
pub async fn tcp(gate: &Arc<Gate>, session: &Session, client: Client) -> Option<Box<Tunnel>> {
    let Some(original) = session.original else {
        reject(gate, session, client, Reason::NotRedirected.into()).await;
        return None;
    };
    let told = gate.ledger.names(session.client.ip(), original.ip(), Time::now());
    let port = Port::new(original.port())?;
    let wanted = intercepted(session, port, Seen::Told(told));
    let flow = flow(session, Kind::Tcp, &wanted, None);
    let dialled = async {
        let vetted = path::decide(gate, flow, Wanted::Intercepted(wanted)).await?.vet().await?;
        vetted.dial(Speaker::Either, None).await
    };
    let dialled = dialled.await.ok()?;
    let wanted = FirstBytes::wanted(&dialled.permit);
    Tunnel::open(gate, client, Box::new(dialled), wanted).await
}

/// What was sent to port 80 is no request. It may still go where a rule opens the address to anything.
async fn not_http(gate: &Arc<Gate>, session: &Session, client: Client, bad: BadHead) -> Option<Box<Tunnel>> {
    if session.original.is_none() {
        reject(gate, session, client, bad).await;
        return None;
    }
    let wanted = intercepted(session, Port::HTTP, Seen::Nothing(bad.reason));
    let flow = flow(session, Kind::Http, &wanted, None);
    let asked = flow.asked.clone();
    let dialled = async {
        let vetted = path::decide(gate, flow, Wanted::Intercepted(wanted)).await?.vet().await?;
        if wants_hello(&vetted) {
            return Err(vetted.refuse(Reason::NotTls.into()).await);
        }
        vetted.dial(Speaker::Either, None).await
    };
    match dialled.await {
        Ok(dialled) => {
            let (stream, ahead) = client.into_parts();
            Some(pass(stream, ahead, dialled))
        }
        Err(denial) => {
            client.close_with(&Answer::new(denial, &asked).to_bytes()).await;
            None
        }
    }
}

/// A flow whose first bytes have been judged.
fn pass(client: TcpStream, ahead: BytesMut, dialled: Dialled) -> Box<Tunnel> {
    let Dialled { origin, flow, trail, .. } = dialled;
    Tunnel::judged(client, origin, flow, trail, ahead)
}

/// Whether a rule says `tls_only`, which wants a hello whatever else opens the address.
fn wants_hello(vetted: &Vetted) -> bool {
    vetted.permit().tls().tls_only && !vetted.permit().is_suspended()
}

/// A client that began with TLS is told in TLS.
async fn turn_away(stream: TcpStream, ahead: &[u8]) {
    let client = Client::new(stream);
    if ahead.first() == Some(&TLS_HANDSHAKE) {
        client.close_with_alert(ACCESS_DENIED).await;
    } else {
        Box::pin(client.close_with(&[])).await;
    }
}

/// The first bytes have to be complete by then, counted from the accept.
fn deadline(gate: &Gate, session: &Session) -> Instant {
    Instant::from_std(session.accepted) + gate.limits.head
}

fn seen(hello: &Result<Option<ClientHello>, BadHello>) -> Seen {
    match hello {
        Ok(Some(ClientHello { sni: Some(name), .. })) => Seen::Name(name.clone()),
        Ok(Some(ClientHello { sni: None, .. })) => Seen::Nothing(Reason::SniMissing),
        Ok(None) => Seen::Nothing(Reason::NotTls),
        Err(bad) => Seen::Nothing(Reason::from(*bad)),
    }
}

fn intercepted(session: &Session, port: Port, seen: Seen) -> Intercepted {
    let original = session.original;
    let port = original.and_then(|original| Port::new(original.port())).unwrap_or(port);
    Intercepted { original: original.map(|original| original.ip()), port, seen }
}

fn flow(
    session: &Session,
    kind: Kind,
    wanted: &Intercepted,
    hello: Option<&ClientHello>,
) -> Box<record::Flow> {
    let asked = match (&wanted.seen, wanted.original) {
        (Seen::Name(name), _) => Asked::Destination(Destination::name(name.clone(), wanted.port)),
        (Seen::Told(_) | Seen::Nothing(_), Some(address)) => {
            Asked::Destination(Destination::address(address, wanted.port))
        }
        (Seen::Told(_) | Seen::Nothing(_), None) => Asked::Nothing,
    };
    Box::new(record::Flow {
        session: session.clone(),
        kind,
        exchange: None,
        asked,
        protocol: Protocol::Tcp,
        request: None,
        hello: hello.map(record::Hello::of),
    })
}
