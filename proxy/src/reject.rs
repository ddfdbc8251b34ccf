//! Rejecting what cannot be decided on: bad input, and connections that have no place.

use std::sync::Arc;

use outgate_rules::{Protocol, Reason};

use crate::answer::Answer;
use crate::client::Client;
use crate::gate::Gate;
use crate::head::BadHead;
use crate::listener::Way;
use crate::path;
use crate::record::{self, Asked, Kind};
use crate::session::Session;
use crate::tunnel::ACCESS_DENIED;

/// Answers a connection that has no place, as long as few of them wait for their answers: many are closed
/// without one, so that they do not take the descriptors that the others have left.
pub async fn turn_away(gate: &Arc<Gate>, session: &Session, client: Client, reason: Reason) {
    let bad = BadHead { kind: kind(session.listener), ..reason.into() };
    match gate.budget.courtesy() {
        Some(_courtesy) => reject(gate, session, client, bad).await,
        None => {
            drop(client);
            path::reject(gate, &rejected(session, bad.asked, bad.kind), bad.reason).await;
        }
    }
}

/// Answers what cannot be decided on, in the words of its listener, and closes.
pub async fn reject(gate: &Arc<Gate>, session: &Session, client: Client, bad: BadHead) {
    let flow = rejected(session, bad.asked, bad.kind);
    path::reject(gate, &flow, bad.reason).await;
    if session.listener == Way::Tls {
        return client.close_with_alert(ACCESS_DENIED).await;
    }
    let subject: &dyn std::fmt::Display = match &flow.asked {
        Asked::Nothing => &"the request",
        asked @ (Asked::Destination(_) | Asked::Text(_)) => asked,
    };
    client.close_with(&Answer::new(bad.reason.into(), subject).to_bytes()).await;
}

/// What a client would have been served as, of which nothing is known but where it came in.
fn kind(listener: Way) -> Kind {
    match listener {
        Way::Proxy | Way::Http => Kind::Http,
        Way::Tls => Kind::Tls,
        Way::Tcp => Kind::Tcp,
    }
}

fn rejected(session: &Session, asked: Asked, kind: Kind) -> record::Flow {
    record::Flow {
        session: session.clone(),
        kind,
        exchange: None,
        asked,
        protocol: Protocol::Tcp,
        request: None,
        hello: None,
    }
}
