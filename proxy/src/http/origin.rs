//! Connections to HTTP origins. Each belongs to one client connection, so that nothing an origin sends can
//! reach another client.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use outgate_rules::{Destination, Reason, VettedAddr};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::body::Upload;
use crate::dial::dial;
use crate::gate::Gate;

/// Most bytes of an origin's head: double what a client may send, as cookies come from origins.
const MAX_HEAD: usize = 64 * 1024;
/// Most fields of an origin's head.
const MAX_FIELDS: usize = 200;

/// Most interim responses (1xx) to one request. An origin that sends more says nothing by them.
const MAX_INTERIM: usize = 16;

/// A connection to an origin, for one request after the other.
#[derive(Debug)]
pub(super) struct Origin {
    destination: Destination,
    address: VettedAddr,
    send: SendRequest<Upload>,
    /// Drives the connection, for as long as it is kept.
    _driver: AbortOnDropHandle<()>,
}

/// A request that was not answered.
pub(super) enum Unanswered {
    /// The connection had closed before the request was sent: here it is again.
    NotSent(Box<Request<Upload>>),
    /// It was sent, or part of it.
    Failed(Reason),
}

impl Unanswered {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::NotSent(_) => Reason::OriginClosed,
            Self::Failed(reason) => *reason,
        }
    }
}

impl Origin {
    /// Speaks HTTP over a connection that was just dialled.
    pub(super) async fn new(
        stream: TcpStream,
        destination: Destination,
        address: VettedAddr,
    ) -> Result<Self, Reason> {
        let (send, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_FIELDS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Reason::OriginClosed)?;
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            // How it ends is seen by whoever waits for an answer.
            let _ = connection.with_upgrades().await;
        }));
        Ok(Self { destination, address, send, _driver: driver })
    }

    /// Whether a request for `destination` may go over this connection: it leads to one of the addresses that
    /// were vetted for the request, and the origin has not closed it.
    pub(super) fn serves(&self, destination: &Destination, vetted: &[VettedAddr]) -> Option<VettedAddr> {
        if self.send.is_closed() || self.destination != *destination {
            return None;
        }
        vetted.iter().find(|address| address.socket() == self.address.socket()).cloned()
    }

    /// Sends a request and waits for the head of its response.
    pub(super) async fn send(
        &mut self,
        mut request: Request<Upload>,
    ) -> Result<Response<Incoming>, Unanswered> {
        if self.send.ready().await.is_err() {
            return Err(Unanswered::NotSent(Box::new(request)));
        }
        let flooded = count_interim(&mut request);
        tokio::select! {
            sent = self.send.try_send_request(request) => sent.map_err(|mut error| match error.take_message() {
                Some(request) => Unanswered::NotSent(Box::new(request)),
                None => Unanswered::Failed(reason(error.error())),
            }),
            () = flooded.notified() => Err(Unanswered::Failed(Reason::OriginResponse)),
        }
    }

    /// Takes the place of a connection that the origin has closed.
    pub(super) async fn dial_again(&mut self, gate: &Gate, client: IpAddr) -> Result<(), Reason> {
        let address = vec![self.address.clone()];
        let (stream, address) = dial(address, gate.source_for(client), gate.limits.dial).await?;
        *self = Self::new(stream, self.destination.clone(), address).await?;
        Ok(())
    }

    /// The socket, once the connection has switched protocols, and the bytes that came behind the switch.
    pub(super) async fn switched(self, response: &mut Response<Incoming>) -> io::Result<(TcpStream, Bytes)> {
        let upgraded = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
        let parts = upgraded
            .downcast::<TokioIo<TcpStream>>()
            .map_err(|_| io::Error::other("the connection is not the one that was dialled"))?;
        Ok((parts.io.into_inner(), parts.read_buf))
    }

    /// Whether another request may follow, now that a response has been read to its end.
    pub(super) async fn is_ready(&mut self) -> bool {
        self.send.ready().await.is_ok()
    }
}

/// Counts the interim responses to a request, and tells when there are too many.
fn count_interim(request: &mut Request<Upload>) -> Arc<Notify> {
    let flooded = Arc::new(Notify::new());
    let (tell, seen) = (Arc::clone(&flooded), AtomicUsize::new(0));
    hyper::ext::on_informational(request, move |_| {
        if seen.fetch_add(1, Ordering::Relaxed) == MAX_INTERIM {
            tell.notify_one();
        }
    });
    flooded
}

fn reason(error: &hyper::Error) -> Reason {
    if error.is_parse() { Reason::OriginResponse } else { Reason::OriginClosed }
}
