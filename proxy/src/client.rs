//! The client's side of a session: its stream, and the bytes of it that were read ahead.

use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use outgate_rules::Reason;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::head::{BadHead, HeadScanner, MAX_HEAD, RequestHead};
use crate::hello::{self, ClientHello, Hello, HelloError};
use crate::readiness::{Outbox, is_silent, leave_behind, poll_lend, read, readable, send_last, with_buffer};

/// How much is read at a time while a head or a hello is incomplete.
const READ: usize = 8192;
/// How long, and for how many bytes, a client that was refused is listened to, so that the refusal reaches
/// it before a reset does (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 * 1024;

/// A connection that was just accepted, with what came along: a client that speaks first has often spoken by then. The
/// runtime hears of it when it has to be waited for; one that has said all and is denied is never waited for. What that
/// buys: two system calls and the runtime's part in them, a tenth of a denied hello (bench/README.md).
#[derive(Debug)]
pub struct Newcomer {
    socket: std::net::TcpStream,
    ahead: BytesMut,
}

impl Newcomer {
    /// The connection, and what the client has said by now.
    #[must_use]
    pub fn new(socket: std::net::TcpStream) -> Self {
        let mut ahead = BytesMut::new();
        // An end or a failure comes again.
        _ = keep(&mut ahead, |buffer| Ok(rustix::io::read(&socket, buffer)?));
        Self { socket, ahead }
    }

    /// The hello that the client began with, if all of it is here.
    #[must_use]
    pub fn hello(&self) -> Option<ClientHello> {
        match hello::Reader::default().read(&self.ahead) {
            Hello::Found(hello) => Some(hello),
            Hello::NotTls | Hello::Malformed(_) | Hello::NeedMore => None,
        }
    }

    /// A client that can be waited for. None where the runtime cannot wait for another, as the system has no room for it:
    /// then it is closed.
    #[must_use]
    pub fn into_client(self) -> Option<Client> {
        let Self { socket, ahead } = self;
        Some(Client { ahead, ..Client::new(TcpStream::from_std(socket).ok()?) })
    }

    /// As [`Client::close_with_alert`].
    pub async fn close_with_alert(self, alert: &[u8]) {
        let left = unsaid(&self.socket, alert);
        if let Some(left) = left
            && let Some(client) = self.into_client()
        {
            Box::pin(client.close_with(left)).await;
        }
    }
}

/// A client's stream. Bytes in `ahead` were read from it and come before what it still holds.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    ahead: BytesMut,
    scanner: HeadScanner,
}

/// Why no head came.
#[derive(Debug)]
pub enum NoHead {
    /// The client closed, or failed, between two heads.
    Closed,
    /// What came is no head.
    Bad(BadHead),
}

impl Client {
    /// The client's side of a connection that was just accepted.
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, ahead: BytesMut::new(), scanner: HeadScanner::default() }
    }

    /// Waits for a whole head, until `deadline`.
    ///
    /// # Errors
    /// When there will be none.
    pub async fn head(&mut self, deadline: Instant) -> Result<RequestHead, NoHead> {
        match timeout_at(deadline, std::future::poll_fn(|cx| self.poll_head(cx))).await {
            Ok(head) => head,
            Err(_) if self.ahead.is_empty() => Err(NoHead::Bad(Reason::HeadTimeout.into())),
            Err(_) => Err(NoHead::Bad(crate::head::bad(Reason::HeadTimeout, &self.ahead))),
        }
    }

    /// Polls for a whole head. Bytes behind it stay ahead.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<RequestHead, NoHead>> {
        loop {
            match RequestHead::take(&mut self.scanner, &mut self.ahead) {
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Ok(None) => {}
                Err(bad) => return Poll::Ready(Err(NoHead::Bad(bad))),
            }
            match ready!(self.poll_ahead(cx, MAX_HEAD + 1)) {
                Ok(0) if !self.ahead.is_empty() => {
                    return Poll::Ready(Err(NoHead::Bad(crate::head::bad(
                        Reason::HeadTruncated,
                        &self.ahead,
                    ))));
                }
                Ok(0) | Err(_) => return Poll::Ready(Err(NoHead::Closed)),
                Ok(_) => {}
            }
        }
    }

    /// Waits for the client's first byte, until `deadline`; it stays ahead.
    ///
    /// # Errors
    /// When the client says nothing.
    pub async fn first_byte(&mut self, deadline: Instant) -> Result<u8, BadHello> {
        let peek = std::future::poll_fn(|cx| {
            self.poll_peek(cx).map(|read| read.map(|bytes| bytes.first().copied()))
        });
        match timeout_at(deadline, peek).await {
            Ok(Ok(Some(byte))) => Ok(byte),
            Ok(Ok(None) | Err(_)) => Err(BadHello::Truncated),
            Err(_) => Err(BadHello::Timeout),
        }
    }

    /// The stream, and the bytes that were read ahead of it.
    #[must_use]
    pub fn into_parts(self) -> (TcpStream, BytesMut) {
        (self.stream, self.ahead)
    }

    /// Polls for some bytes, and leaves them ahead until they are consumed; none at the end of the stream.
    pub fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        if self.ahead.is_empty() {
            ready!(self.poll_ahead(cx, READ))?;
        }
        Poll::Ready(Ok(&self.ahead))
    }

    /// Polls for some bytes and lends them, as [`poll_lend`].
    ///
    /// # Errors
    /// What the socket says.
    pub fn poll_lend(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnMut(&[u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        poll_lend(&self.stream, &mut self.ahead, false, cx, take)
    }

    /// Forgets the first `count` bytes ahead.
    pub fn consume(&mut self, count: usize) {
        self.ahead.advance(count.min(self.ahead.len()));
    }

    /// The bytes that were read ahead.
    #[must_use]
    pub fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    /// The stream itself, behind the bytes that were read ahead.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends an answer.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn send(&self, answer: &[u8]) -> io::Result<()> {
        let mut outbox = Outbox::default();
        outbox.send(&self.stream, answer);
        std::future::poll_fn(|cx| outbox.poll_flush(&self.stream, cx)).await
    }

    /// Sends a last answer and closes in an orderly way: what the client still sends is read and forgotten
    /// for a moment, so that the answer is not overtaken by a reset.
    pub async fn close_with(self, answer: &[u8]) {
        let goodbye = async {
            send_last(&self.stream, answer).await?;
            let mut left = LINGER_BYTES;
            while left > 0 {
                readable(&self.stream).await?;
                match with_buffer(|buffer| read(&self.stream, buffer)) {
                    Ok(0) => break,
                    Ok(read) => left = left.saturating_sub(read),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            io::Result::Ok(())
        };
        // The session is over either way.
        let _ = timeout(LINGER, goodbye).await;
    }

    /// Sends a TLS alert and closes. A client that has said no more than its hello waits for what it is told, and need
    /// not be listened to: that spares a turn of the event loop, a tenth of a denial.
    pub async fn close_with_alert(self, alert: &[u8]) {
        if let Some(left) = unsaid(&self.stream, alert) {
            Box::pin(self.close_with(left)).await;
        }
    }

    /// Reads more bytes ahead, to at most `bound` in all; 0 at the end of the stream.
    fn poll_ahead(&mut self, cx: &mut Context<'_>, bound: usize) -> Poll<io::Result<usize>> {
        let room = bound.saturating_sub(self.ahead.len()).min(READ);
        if room == 0 {
            return Poll::Ready(Ok(0));
        }
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let within = |buffer: &mut [u8]| read(&self.stream, buffer.get_mut(..room).unwrap_or_default());
            match keep(&mut self.ahead, within) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

/// Leaves an alert behind, to go with the end of the stream. What is still to be said to a client that has to be listened
/// to, or could not be told; None where the stream can be closed.
fn unsaid(to: impl AsFd, alert: &[u8]) -> Option<&[u8]> {
    let left = if leave_behind(&to, alert) { &[] } else { alert };
    (!left.is_empty() || !is_silent(&to)).then_some(left)
}

/// Waits for a whole ClientHello at the front of what a client sends, and leaves it in `ahead`. None if the
/// client's first bytes are something else, or if it closes before it has said anything.
///
/// # Errors
/// Why what looked like a hello is none.
pub async fn read_hello(
    stream: &TcpStream,
    ahead: &mut BytesMut,
    deadline: Instant,
) -> Result<Option<ClientHello>, BadHello> {
    let mut reader = hello::Reader::default();
    loop {
        match reader.read(ahead) {
            Hello::Found(found) => return Ok(Some(found)),
            Hello::NotTls => return Ok(None),
            Hello::Malformed(error) => return Err(BadHello::Malformed(error)),
            // The reader never asks for more than MAX_HELLO, and one read is READ at most.
            Hello::NeedMore => {}
        }
        match timeout_at(deadline, read_some(stream, ahead)).await {
            Err(_) => return Err(BadHello::Timeout),
            Ok(Ok(0) | Err(_)) if ahead.is_empty() => return Ok(None),
            Ok(Ok(0) | Err(_)) => return Err(BadHello::Truncated),
            Ok(Ok(_)) => {}
        }
    }
}

/// Reads what there is, once there is some; 0 at the end of the stream.
///
/// # Errors
/// What the socket says.
pub async fn read_some(stream: &TcpStream, ahead: &mut BytesMut) -> io::Result<usize> {
    loop {
        readable(stream).await?;
        match read_into(stream, ahead) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

fn read_into(from: &TcpStream, ahead: &mut BytesMut) -> io::Result<usize> {
    keep(ahead, |buffer| read(from, buffer))
}

/// Appends what was read into the thread's buffer.
fn keep(ahead: &mut BytesMut, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
    with_buffer(|buffer| {
        let buffer = buffer.get_mut(..READ).unwrap_or_default();
        let count = read(buffer)?;
        ahead.extend_from_slice(buffer.get(..count).unwrap_or_default());
        Ok(count)
    })
}

/// Why a client's first bytes are no hello that can be judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadHello {
    /// They break the format.
    Malformed(HelloError),
    /// They did not come in time.
    Timeout,
    /// The client closed in the middle.
    Truncated,
}

impl From<BadHello> for Reason {
    fn from(bad: BadHello) -> Self {
        match bad {
            BadHello::Malformed(error) => error.into(),
            BadHello::Timeout => Self::HelloTimeout,
            BadHello::Truncated => Self::HelloMalformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::hello::tests::Sketch;

    /// The gate's end of a connection of which no runtime has heard, and the other.
    #[allow(clippy::disallowed_methods)]
    fn pair() -> (std::net::TcpStream, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let outside = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (inside, _) = listener.accept().unwrap();
        inside.set_nonblocking(true).unwrap();
        (inside, outside)
    }

    fn deadline() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test]
    async fn a_hello_that_came_along_is_there_whole_or_not_at_all_and_no_byte_of_it_is_lost() {
        let hello = Sketch::asking_for(b"pypi.org").stream();
        for cut in [0, 1, 5, hello.len() - 1, hello.len()] {
            let (inside, mut outside) = pair();
            let (early, late) = hello.split_at(cut);
            outside.write_all(early).unwrap();
            let newcomer = Newcomer::new(inside);
            assert_eq!(newcomer.hello().is_some(), late.is_empty(), "{cut} bytes");
            outside.write_all(late).unwrap();
            let (stream, mut ahead) = newcomer.into_client().unwrap().into_parts();
            let found = read_hello(&stream, &mut ahead, deadline()).await.unwrap().unwrap();
            assert_eq!(found.sni.unwrap().as_str(), "pypi.org", "{cut} bytes");
            assert_eq!(ahead, hello, "{cut} bytes");
        }
    }

    #[tokio::test]
    async fn a_newcomer_that_is_turned_away_is_told_and_sees_the_end() {
        // The second says more than is read of it: closing at once would be a reset, which takes the alert away.
        for said in [5, 3 * READ] {
            let (inside, mut outside) = pair();
            outside.write_all(&vec![b'a'; said]).unwrap();
            let listening = std::thread::spawn(move || {
                let mut told = Vec::new();
                outside.read_to_end(&mut told).map(|_| told)
            });
            Newcomer::new(inside).close_with_alert(b"alert").await;
            assert_eq!(listening.join().unwrap().unwrap(), b"alert", "{said} bytes");
        }
    }
}
