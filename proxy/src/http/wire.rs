//! What hyper reads of a client: whole heads that [`crate::head`] has accepted, one at a time, and the exact
//! bytes of their bodies.
//!
//! hyper is the second reader of every byte. What the first reader does not take never reaches it: to hyper
//! the client then simply closes, and the session goes on from [`Stop`].

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::Method;
use outgate_rules::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::chunks::ChunkScanner;
use crate::client::{Client, NoHead};
use crate::head::{BadHead, BodyLength, RequestHead};

/// A client as hyper sees it.
pub(super) struct Wire {
    client: Client,
    phase: Phase,
    shared: Arc<Shared>,
}

/// What the wire reads next.
enum Phase {
    /// The rest of an accepted head, and then its body.
    Release(Bytes, BodyLength),
    /// This many bytes of a body.
    Bytes(u64),
    /// A chunked body.
    Chunks(ChunkScanner),
    /// The next head.
    Head,
    /// Nothing more.
    Stopped,
}

/// What the wire, the service that answers its requests, and the session that polls both tell each other.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The head that hyper has been given and the service has not yet taken.
    head: Option<RequestHead>,
    /// How many heads the service has taken.
    taken: u64,
    /// Whether a request is being answered: a silent client is then only waiting.
    busy: bool,
    /// Whether the wire waits for the rest of a head.
    begun: bool,
    /// Whether no further request is wanted.
    last: bool,
    /// Whether what the wire waits for is no longer waited for.
    rung: bool,
    stop: Option<Stop>,
    /// What was wrong with the body of the current request.
    bad_body: Option<Reason>,
}

/// What a session waits for, of a client whose connection stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// Nothing: it is the client that waits.
    Nothing,
    /// The next request, behind so many.
    Request(u64),
    /// The rest of the head behind so many.
    RestOfHead(u64),
    /// The end.
    End,
}

/// Why the wire told hyper that the client has closed.
#[derive(Debug)]
pub(super) enum Stop {
    /// It has, or there was nothing more to wait for.
    Closed,
    /// A CONNECT came, which is not hyper's.
    Connect(Box<RequestHead>),
    /// Something came that is no head.
    Bad(BadHead),
}

impl Wire {
    /// A client whose first head has been read.
    pub(super) fn new(client: Client, first: RequestHead) -> Self {
        let mut wire = Self { client, phase: Phase::Head, shared: Arc::default() };
        wire.accept(first);
        wire
    }

    /// The state shared with the service.
    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// The client again, and why the wire stopped.
    pub(super) fn into_parts(self) -> (Client, Stop) {
        let stop = self.shared.lock().stop.take().unwrap_or(Stop::Closed);
        (self.client, stop)
    }

    /// Gives hyper a head that has been accepted; a CONNECT is not for hyper.
    fn accept(&mut self, head: RequestHead) {
        if head.method == Method::CONNECT {
            return self.stop(Stop::Connect(Box::new(head)));
        }
        self.phase = Phase::Release(head.raw.clone(), head.body);
        let mut state = self.shared.lock();
        state.begun = false;
        state.head = Some(head);
    }

    fn stop(&mut self, stop: Stop) {
        self.phase = Phase::Stopped;
        self.shared.lock().stop = Some(stop);
    }

    fn poll_next_head(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        {
            let state = self.shared.lock();
            if state.head.is_some() {
                // One at a time: the service takes each head before hyper sees the next.
                return Poll::Pending;
            }
            if state.last && !state.busy && self.client.ahead().is_empty() {
                drop(state);
                self.stop(Stop::Closed);
                return Poll::Ready(());
            }
        }
        match self.client.poll_head(cx) {
            Poll::Ready(Ok(head)) => self.accept(head),
            Poll::Ready(Err(NoHead::Closed)) => self.stop(Stop::Closed),
            Poll::Ready(Err(NoHead::Bad(bad))) => self.stop(Stop::Bad(bad)),
            Poll::Pending => {
                let rung = ready!(self.wait());
                self.stop(rung);
            }
        }
        Poll::Ready(())
    }

    /// Waits, unless there was an end to that.
    fn wait(&mut self) -> Poll<Stop> {
        let begun = !self.client.ahead().is_empty();
        let mut state = self.shared.lock();
        state.begun = begun;
        match (state.rung, begun) {
            (false, _) => Poll::Pending,
            (true, false) => Poll::Ready(Stop::Closed),
            (true, true) => {
                Poll::Ready(Stop::Bad(crate::head::bad(Reason::HeadTimeout, self.client.ahead())))
            }
        }
    }

    /// Passes on what there is of a body, as far as it belongs to it.
    fn poll_body(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let bytes = ready!(self.client.poll_peek(cx))?;
        if bytes.is_empty() {
            return self.bad_body(Reason::BodyTruncated);
        }
        let bytes = bytes.get(..bytes.len().min(buffer.remaining())).unwrap_or_default();
        let mine = match &mut self.phase {
            Phase::Bytes(left) => {
                let mine = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= mine as u64;
                Ok(mine)
            }
            Phase::Chunks(scanner) => scanner.advance(bytes),
            Phase::Release(..) | Phase::Head | Phase::Stopped => Ok(0),
        };
        match mine {
            Ok(mine) => {
                buffer.put_slice(bytes.get(..mine).unwrap_or_default());
                self.client.consume(mine);
                Poll::Ready(Ok(()))
            }
            Err(reason) => self.bad_body(reason),
        }
    }

    /// To hyper the client has failed; the service says why.
    fn bad_body(&mut self, reason: Reason) -> Poll<io::Result<()>> {
        self.phase = Phase::Stopped;
        self.shared.lock().bad_body = Some(reason);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, reason.sentence())))
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = &mut *self;
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            match &mut wire.phase {
                Phase::Stopped => return Poll::Ready(Ok(())),
                Phase::Head => ready!(wire.poll_next_head(cx)),
                Phase::Release(head, body) if head.is_empty() => wire.phase = Phase::of(*body),
                Phase::Release(head, _) => {
                    let count = head.len().min(buffer.remaining());
                    buffer.put_slice(head.get(..count).unwrap_or_default());
                    head.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Phase::Bytes(0) => wire.phase = Phase::Head,
                Phase::Bytes(_) => return wire.poll_body(cx, buffer),
                Phase::Chunks(scanner) if scanner.is_done() => wire.phase = Phase::Head,
                Phase::Chunks(_) => return wire.poll_body(cx, buffer),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.client).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let to = Pin::new(&mut self.client);
        match slices {
            // The kernel has less to do for one.
            [only] => to.poll_write(cx, only),
            _ => to.poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.client.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_shutdown(cx)
    }
}

impl Phase {
    fn of(body: BodyLength) -> Self {
        match body {
            BodyLength::None => Self::Head,
            BodyLength::Bytes(length) => Self::Bytes(length),
            BodyLength::Chunked => Self::Chunks(ChunkScanner::new()),
        }
    }
}

impl Shared {
    /// Takes the head of the request that hyper has just handed to the service.
    pub(super) fn take_head(&self) -> Option<RequestHead> {
        let mut state = self.lock();
        state.busy = true;
        state.taken += 1;
        state.head.take()
    }

    /// The request has been answered to its end.
    pub(super) fn answered(&self) {
        self.lock().busy = false;
    }

    /// No further request is wanted: the client is told that the connection closes when it next falls silent.
    pub(super) fn make_last(&self) {
        self.lock().last = true;
    }

    /// Whether no further request is wanted.
    pub(super) fn is_last(&self) -> bool {
        self.lock().last
    }

    /// What there is to be waited for, once hyper has nothing more to do.
    pub(super) fn awaited(&self) -> Awaited {
        let state = self.lock();
        match (state.begun, state.busy, state.last) {
            (true, _, _) => Awaited::RestOfHead(state.taken),
            (false, true, _) => Awaited::Nothing,
            (false, false, true) => Awaited::End,
            (false, false, false) => Awaited::Request(state.taken),
        }
    }

    /// What the wire waits for is no longer waited for: to hyper the client closes.
    pub(super) fn give_up(&self) {
        self.lock().rung = true;
    }

    /// What was wrong with the body of the current request.
    pub(super) fn bad_body(&self) -> Option<Reason> {
        self.lock().bad_body
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
