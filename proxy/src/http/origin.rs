//! Connections to HTTP origins. Each belongs to one client connection, so that nothing an origin sends can
//! reach another client.

use std::net::IpAddr;
use std::task::{Context, Poll};

use bytes::BytesMut;
use outgate_rules::{Destination, Reason, VettedAddr};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::fields;
use crate::dial::{How, Speaker, dial};
use crate::gate::Gate;
use crate::readiness::{is_silent, poll_stirs};

/// A connection to an origin, for one request after the other.
#[derive(Debug)]
pub(super) struct Origin {
    destination: Destination,
    address: VettedAddr,
    /// The field that names it, as a line.
    pub(super) host: String,
    pub(super) stream: TcpStream,
    /// What was read of it and not yet taken.
    pub(super) ahead: BytesMut,
}

impl Origin {
    /// A connection that was just dialled.
    pub(super) fn new(stream: TcpStream, destination: Destination, address: VettedAddr) -> Self {
        let host = fields::host(&destination);
        Self { destination, address, host, stream, ahead: BytesMut::new() }
    }

    /// The address, if a request for `destination` may go over this connection: it leads to one of those that were
    /// vetted for the request.
    pub(super) fn serves(&self, destination: &Destination, vetted: &[VettedAddr]) -> Option<VettedAddr> {
        if self.destination != *destination {
            return None;
        }
        vetted.iter().find(|address| address.socket() == self.address.socket()).cloned()
    }

    /// Polls for anything that happens where nothing should: what an origin says unasked is no answer, and an origin
    /// that has closed gives none.
    pub(super) fn poll_stirs(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ahead.is_empty() { poll_stirs(&self.stream, cx) } else { Poll::Ready(()) }
    }

    /// Asks the kernel whether anything has happened, of which the runtime may not have heard yet.
    pub(super) fn is_silent(&self) -> bool {
        self.ahead.is_empty() && is_silent(&self.stream)
    }

    /// Takes the place of a connection that the origin has closed.
    pub(super) async fn dial_again(&mut self, gate: &Gate, client: IpAddr) -> Result<(), Reason> {
        let how = How { source: gate.source_for(client), first: Speaker::Client };
        (self.stream, self.address) =
            dial(vec![self.address.clone()], how, Instant::now() + gate.limits.dial).await?;
        self.ahead.clear();
        Ok(())
    }
}
