//! One request on its way up and its response on its way down, both at once: an origin may answer before it has the whole
//! request.
//!
//! One state, polled by the session that owns both sockets, and no memory but what a socket does not take at once. What
//! that buys over hyper's two sides, which were joined by channels: 32,000 instructions a request and not 53,000
//! (bench/README.md).

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use memchr::memmem;
use outgate_rules::Reason;
use socket2::SockRef;
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

use super::body::{Body, Framing};
use super::origin::Origin;
use super::request::put_request;
use super::response::{self, Begun, Heard, MAX_HEAD};
use crate::client::Client;
use crate::flow::Flow;
use crate::head::RequestHead;
use crate::readiness::{Outbox, poll_lend};
use crate::upload::Grant;

/// Bytes that are moved before others have their turn.
const STEP: usize = 64 * 1024;

thread_local! {
    /// What is put together to be sent. It belongs to no connection.
    static SPACE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn with_space<T>(put_together: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    SPACE.with_borrow_mut(|space| {
        space.clear();
        put_together(space)
    })
}

/// A request and its response on their way.
pub(super) struct Transfer<'t> {
    client: &'t mut Client,
    origin: &'t mut Origin,
    flow: &'t Flow,
    request: &'t RequestHead,
    /// Cancelled when no further request is wanted.
    draining: &'t CancellationToken,
    up: Up,
    down: Down,
    /// Bytes moved since others had their turn.
    moved: usize,
}

/// The request.
struct Up {
    body: Body,
    framing: Framing,
    outbox: Outbox,
    /// The origin takes no more of it.
    broken: bool,
}

/// The response.
struct Down {
    stage: Stage,
    outbox: Outbox,
    /// Bytes of heads that have come.
    heard: usize,
    /// Whether what was read is the front of a head, of which more has to come.
    more: bool,
}

enum Stage {
    Head,
    Body(Begun),
    WebSocket(Vec<u8>),
}

/// A request and its response have passed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// To their ends.
    Whole {
        /// Whether the origin's connection may carry another request.
        origin_stays: bool,
        /// Whether the client's may.
        client_stays: bool,
    },
    /// The connection becomes a WebSocket; this is the head that tells the client.
    WebSocket(Vec<u8>),
}

/// Why a transfer ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The client has gone away.
    Left,
    /// The origin has closed, or failed, before it said anything.
    Unheard,
    /// Something else.
    Failed(Reason),
}

impl<'t> Transfer<'t> {
    /// Sends the head of a request.
    pub(super) fn begin(
        client: &'t mut Client,
        origin: &'t mut Origin,
        flow: &'t Flow,
        request: &'t RequestHead,
        draining: &'t CancellationToken,
    ) -> Self {
        let mut transfer = Self {
            client,
            origin,
            flow,
            request,
            draining,
            up: Up::of(request),
            down: Down::new(),
            moved: 0,
        };
        with_space(|out| {
            put_request(request, &transfer.origin.host, out);
            transfer.up.outbox.send(&transfer.origin.stream, out);
        });
        if request.expects_continue && !transfer.up.body.is_done() && transfer.client.ahead().is_empty() {
            transfer.down.outbox.send(transfer.client.stream(), b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        transfer
    }

    /// Whether the client has something of an answer, or is about to have the rest of what it has something of.
    pub(super) fn has_begun(&self) -> bool {
        self.status().is_some() || !self.down.outbox.is_empty()
    }

    /// The status of the response, once its head has been passed on.
    pub(super) fn status(&self) -> Option<u16> {
        match &self.down.stage {
            Stage::Body(begun) => Some(begun.status),
            Stage::Head | Stage::WebSocket(_) => None,
        }
    }

    /// Passes both on. A response whose end would be that of its connection is cut off by a reset, so that it does not
    /// look whole.
    pub(super) async fn run(&mut self) -> Result<Passed, Broken> {
        loop {
            match poll_fn(|cx| self.poll(cx)).await {
                Some(Ok(passed)) => return Ok(passed),
                Some(Err(broken)) => {
                    if self.down.ends_with_close() {
                        // Where the socket does not take it, there is no connection any more.
                        _ = SockRef::from(self.client.stream()).set_linger(Some(Duration::ZERO));
                    }
                    return Err(broken);
                }
                None => yield_now().await,
            }
        }
    }

    /// Moves what there is to be moved. None where others have their turn.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Passed, Broken>>> {
        match self.poll_both(cx) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending if self.moved >= STEP => {
                self.moved = 0;
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_both(&mut self, cx: &mut Context<'_>) -> Poll<Result<Passed, Broken>> {
        let up = self.poll_up(cx)?;
        let down = self.poll_down(cx)?;
        if down.is_ready() && (up.is_ready() || self.is_origin_done(cx)) {
            return Poll::Ready(self.passed());
        }
        if let Poll::Ready(reason) = self.flow.poll_ended(cx) {
            return Poll::Ready(Err(Broken::Failed(reason)));
        }
        if up.is_ready() && self.has_left(cx) {
            return Poll::Ready(Err(Broken::Left));
        }
        Poll::Pending
    }

    fn passed(&mut self) -> Result<Passed, Broken> {
        let whole = self.up.body.is_done() && !self.up.broken;
        match &mut self.down.stage {
            Stage::Body(begun) => Ok(Passed::Whole {
                origin_stays: whole && begun.origin_stays && self.origin.ahead.is_empty(),
                client_stays: whole && begun.client_stays,
            }),
            Stage::WebSocket(head) if whole => Ok(Passed::WebSocket(std::mem::take(head))),
            // What is left of a request is not the beginning of something else.
            Stage::Head | Stage::WebSocket(_) => Err(Broken::Failed(Reason::OriginSwitched)),
        }
    }

    /// Whether the client, of which nothing is wanted, has closed. Bytes are its next request, and no end.
    fn has_left(&mut self, cx: &mut Context<'_>) -> bool {
        match self.client.poll_peek(cx) {
            Poll::Ready(peeked) => peeked.map_or(true, <[u8]>::is_empty),
            Poll::Pending => false,
        }
    }

    /// Whether the origin, which has answered, reads no more of the request.
    fn is_origin_done(&self, cx: &mut Context<'_>) -> bool {
        self.origin.poll_stirs(cx).is_ready()
    }

    /// Polls until all of the request is with the origin, or it takes no more.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Self { client, origin, flow, up, down, moved, .. } = self;
        loop {
            if !up.broken {
                // It may have answered before it closed.
                up.broken = ready!(up.outbox.poll_flush(&origin.stream, cx)).is_err();
            }
            if up.broken || up.body.is_done() {
                return Poll::Ready(Ok(()));
            }
            if *moved >= STEP {
                return Poll::Pending;
            }
            let mut passed = Ok(());
            let lent = ready!(client.poll_lend(cx, |bytes| {
                let taken = with_space(|out| up.pass(bytes, origin, flow, out));
                passed = taken.map(drop);
                taken.unwrap_or(bytes.len())
            }));
            passed.map_err(Broken::Failed)?;
            match lent {
                // One that has its answer may well stop (RFC 9112 §9.5): that is no fault of the request.
                Ok(0) | Err(_) if matches!(down.stage, Stage::Body(_)) => {
                    return Poll::Ready(Err(Broken::Left));
                }
                Ok(0) | Err(_) => return Poll::Ready(Err(Broken::Failed(Reason::BodyTruncated))),
                Ok(lent) => *moved += lent,
            }
        }
    }

    /// Polls until all of the response is with the client.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Self { client, origin, flow, request, draining, down, moved, .. } = self;
        let Origin { stream, ahead, .. } = &mut **origin;
        loop {
            if ready!(down.outbox.poll_flush(client.stream(), cx)).is_err() {
                return Poll::Ready(Err(Broken::Left));
            }
            if down.is_done() {
                return Poll::Ready(Ok(()));
            }
            if *moved >= STEP {
                return Poll::Pending;
            }
            let mut passed = Ok(());
            let lent = ready!(poll_lend(stream, ahead, down.more, cx, |bytes| {
                let taken = with_space(|out| {
                    let taken = down.pass(bytes, request, draining, flow, out);
                    down.outbox.send(client.stream(), out);
                    taken
                });
                passed = taken.map(drop);
                taken.unwrap_or(bytes.len())
            }));
            passed.map_err(Broken::Failed)?;
            match lent {
                Ok(0) => down.end(client)?,
                Ok(lent) => *moved += lent,
                Err(_) => return Poll::Ready(Err(down.broken_off())),
            }
        }
    }
}

impl Up {
    fn of(request: &RequestHead) -> Self {
        Self {
            body: Body::of(request.body),
            framing: Framing::of(request.body),
            outbox: Outbox::default(),
            broken: false,
        }
    }

    /// Passes on what there is of the body, as far as the limits grant it, and says how much of it there was.
    fn pass(&mut self, bytes: &[u8], to: &Origin, flow: &Flow, out: &mut Vec<u8>) -> Result<usize, Reason> {
        let framing = self.framing;
        let taken = self.body.take(bytes, |data| {
            let Grant { bytes, stop } = flow.take_up(data.len());
            framing.put(data.get(..bytes as usize).unwrap_or(data), out);
            stop.map_or(Ok(()), Err)
        });
        if taken.is_ok() && self.body.is_done() {
            framing.end(out);
        }
        self.outbox.send(&to.stream, out);
        taken
    }
}

impl Down {
    fn new() -> Self {
        Self { stage: Stage::Head, outbox: Outbox::default(), heard: 0, more: false }
    }

    fn is_done(&self) -> bool {
        match &self.stage {
            Stage::Head => false,
            Stage::Body(begun) => begun.body.is_done(),
            Stage::WebSocket(_) => true,
        }
    }

    /// Whether the client would take the end of the connection for that of the response.
    fn ends_with_close(&self) -> bool {
        matches!(self.stage, Stage::Body(Begun { ends_with_close: true, .. }))
    }

    /// Puts together what the client gets of these bytes, and says how many of them there is no more need of.
    fn pass(
        &mut self,
        bytes: &[u8],
        request: &RequestHead,
        draining: &CancellationToken,
        flow: &Flow,
        out: &mut Vec<u8>,
    ) -> Result<usize, Reason> {
        let mut taken = 0;
        let rest = |taken: usize| bytes.get(taken..).unwrap_or_default();
        while matches!(self.stage, Stage::Head) {
            let Some((length, heard)) = self.head(rest(taken), request, draining, out)? else {
                return Ok(taken);
            };
            taken += length;
            match heard {
                Heard::Interim => {}
                Heard::WebSocket => self.stage = Stage::WebSocket(std::mem::take(out)),
                Heard::Response(begun) => self.stage = Stage::Body(begun),
            }
        }
        if let Stage::Body(Begun { body, framing, .. }) = &mut self.stage
            && !body.is_done()
        {
            let data = |data: &[u8]| {
                flow.count_down(data.len());
                framing.put(data, out);
                Ok(())
            };
            taken += body.take(rest(taken), data).map_err(|_| Reason::OriginResponse)?;
            if body.is_done() {
                framing.end(out);
            }
        }
        Ok(taken)
    }

    /// Reads a head, if it is whole. All that come before the response's body are bounded together: interim responses
    /// are read for as long as there are any.
    fn head(
        &mut self,
        bytes: &[u8],
        request: &RequestHead,
        draining: &CancellationToken,
        out: &mut Vec<u8>,
    ) -> Result<Option<(usize, Heard)>, Reason> {
        let room = MAX_HEAD.saturating_sub(self.heard);
        // What comes byte by byte is not split anew with every byte.
        let read = if self.more && bytes.len() <= room && !has_empty_line(bytes) {
            None
        } else {
            response::read(bytes, room, request, !draining.is_cancelled(), out)?
        };
        self.more = read.is_none();
        self.heard += read.as_ref().map_or(0, |(length, _)| *length);
        Ok(read)
    }

    /// The origin has closed. That ends a body whose length it has not said.
    fn end(&mut self, client: &Client) -> Result<(), Broken> {
        match &mut self.stage {
            Stage::Body(begun) if begun.body.ends_with_stream() => {
                begun.body = Body::Bytes(0);
                with_space(|out| {
                    begun.framing.end(out);
                    self.outbox.send(client.stream(), out);
                });
                Ok(())
            }
            Stage::Body(_) | Stage::Head | Stage::WebSocket(_) => Err(self.broken_off()),
        }
    }

    fn broken_off(&self) -> Broken {
        let unheard = matches!(self.stage, Stage::Head) && self.heard == 0 && !self.more;
        if unheard { Broken::Unheard } else { Broken::Failed(Reason::OriginClosed) }
    }
}

fn has_empty_line(bytes: &[u8]) -> bool {
    memmem::find(bytes, b"\n\r\n").is_some() || memmem::find(bytes, b"\n\n").is_some()
}

#[cfg(test)]
mod tests;
