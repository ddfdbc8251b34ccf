//! Waiting for sockets and reading them, with less memory and fewer calls than tokio's `readable` and `try_read`.
//!
//! What it buys: a read that does not fill its buffer is known to have emptied the socket, which spares the call that
//! would find nothing: a short tunnel makes 4 of them and not 8. And for a tunnel that waits both ways nothing is kept
//! but a waker.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use rustix::net::{RecvFlags, SendFlags};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes of a thread's buffer.
const BUFFER: usize = 64 * 1024;

thread_local! {
    static SPACE: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// Lends the thread's buffer, into which sockets are read: it belongs to no connection, and nobody has to clear it.
pub fn with_buffer<T>(lent: impl FnOnce(&mut [u8]) -> T) -> T {
    SPACE.with_borrow_mut(|space| lent(space))
}

/// Waits until there is something to be read. One task at a time may wait for it.
///
/// # Errors
/// When the runtime is shutting down.
pub async fn readable(from: &TcpStream) -> io::Result<()> {
    poll_fn(|cx| from.poll_read_ready(cx)).await
}

/// Waits until there is room for something to be written. One task at a time may wait for it.
///
/// # Errors
/// When the runtime is shutting down.
pub async fn writable(to: &TcpStream) -> io::Result<()> {
    poll_fn(|cx| to.poll_write_ready(cx)).await
}

/// Reads what is there; 0 at the end of the stream. The next [`readable`] waits if that was all.
///
/// # Errors
/// What the socket says; [`io::ErrorKind::WouldBlock`] where nothing is there.
pub fn read(from: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = None;
    let more = from.try_io(Interest::READABLE, || {
        let count = rustix::io::read(from, &mut *buffer)?;
        got = Some(count);
        // The readiness is that of an edge: it comes again with the next byte, and with the end.
        let drained = count > 0 && count < buffer.len();
        if drained { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match (got, more) {
        (Some(count), _) => Ok(count),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// Polls for bytes of a stream, of which some may have been read `ahead`, and lends them to `take`, which says how many
/// it took: the rest is ahead then. `more` asks for more than is ahead already. Says how many were lent; none at the end
/// of the stream.
///
/// # Errors
/// What the socket says.
pub fn poll_lend(
    from: &TcpStream,
    ahead: &mut BytesMut,
    more: bool,
    cx: &mut Context<'_>,
    mut take: impl FnMut(&[u8]) -> usize,
) -> Poll<io::Result<usize>> {
    if !more && !ahead.is_empty() {
        let lent = ahead.len();
        ahead.advance(take(ahead).min(lent));
        return Poll::Ready(Ok(lent));
    }
    loop {
        ready!(from.poll_read_ready(cx))?;
        let mut lend = |bytes: &[u8]| match bytes {
            [] => 0,
            bytes if ahead.is_empty() => {
                ahead.extend_from_slice(bytes.get(take(bytes)..).unwrap_or_default());
                bytes.len()
            }
            bytes => {
                ahead.extend_from_slice(bytes);
                let lent = ahead.len();
                ahead.advance(take(ahead).min(lent));
                lent
            }
        };
        let lent = with_buffer(|buffer| {
            let count = read(from, buffer)?;
            Ok(lend(buffer.get(..count).unwrap_or_default()))
        });
        match lent {
            Err(error) if io::Error::kind(&error) == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
    }
}

/// Polls for anything that a stream does: bytes, its end, its failure.
pub fn poll_stirs(from: &TcpStream, cx: &mut Context<'_>) -> Poll<()> {
    loop {
        if ready!(from.poll_read_ready(cx)).is_err() {
            return Poll::Ready(());
        }
        let look = || if is_silent(from) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) };
        if from.try_io(Interest::READABLE, look).is_ok() {
            return Poll::Ready(());
        }
    }
}

/// Bytes on their way to a socket: what it has not taken yet. Nearly always none, and then without an allocation.
#[derive(Debug, Default)]
pub struct Outbox {
    left: BytesMut,
    /// The socket takes no more.
    broken: bool,
}

impl Outbox {
    /// Sends bytes behind those that are left, as far as the socket takes them. A failure is told by
    /// [`Outbox::poll_flush`].
    pub fn send(&mut self, to: &TcpStream, bytes: &[u8]) {
        let mut sent = 0;
        if self.left.is_empty() && !bytes.is_empty() {
            // The runtime may not have heard yet that there is room.
            match rustix::net::send(to, bytes, SendFlags::NOSIGNAL).map_err(io::Error::from) {
                Ok(count) => sent = count,
                Err(error) => self.broken |= error.kind() != io::ErrorKind::WouldBlock,
            }
        }
        self.left.extend_from_slice(bytes.get(sent..).unwrap_or_default());
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Polls until nothing is left.
    ///
    /// # Errors
    /// What the socket says.
    pub fn poll_flush(&mut self, to: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        while !self.left.is_empty() {
            ready!(to.poll_write_ready(cx))?;
            let left = &self.left;
            match to.try_io(Interest::WRITABLE, || Ok(rustix::net::send(to, left, SendFlags::NOSIGNAL)?)) {
                Ok(sent) => self.left.advance(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        // What was left was much, and who waits for nothing needs no room for it.
        self.left = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

/// Whether nothing is there to be read, not even the end of the stream.
pub fn is_silent(from: impl AsFd) -> bool {
    let mut byte = [0];
    let peeked = rustix::net::recv(from, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    peeked.is_err_and(|error| io::Error::from(error).kind() == io::ErrorKind::WouldBlock)
}

/// Hands all of a few last bytes to the kernel, which keeps them until the end of the stream goes with them. Says whether
/// it took them.
pub fn leave_behind(to: impl AsFd, bytes: &[u8]) -> bool {
    rustix::net::send(to, bytes, SendFlags::MORE | SendFlags::NOSIGNAL) == Ok(bytes.len())
}

/// Sends the last bytes: they leave with the end of the stream, in one packet where that has room for them. That spares
/// the client a wake-up, and the gate what waking costs.
///
/// # Errors
/// What the socket says.
pub async fn send_last(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    let send =
        |bytes: &[u8]| io::Result::Ok(rustix::net::send(to, bytes, SendFlags::MORE | SendFlags::NOSIGNAL)?);
    let mut sent = send(bytes);
    loop {
        match sent {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => writable(to).await?,
            Err(error) => return Err(error),
        }
        if bytes.is_empty() {
            break;
        }
        sent = to.try_io(Interest::WRITABLE, || send(bytes));
    }
    SockRef::from(to).shutdown(Shutdown::Write)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// The gate's end of a connection, and the other.
    pub(crate) async fn pair() -> (TcpStream, std::net::TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        #[allow(clippy::disallowed_methods)]
        let outside = tokio::task::spawn_blocking(move || std::net::TcpStream::connect(address).unwrap());
        (listener.accept().await.unwrap().0, outside.await.unwrap())
    }

    #[tokio::test]
    async fn last_bytes_arrive_whole_and_before_the_end() {
        let large = vec![7; 8 << 20];
        for bytes in [&b""[..], b"alert", &large] {
            let (stream, mut outside) = pair().await;
            let receiving = tokio::task::spawn_blocking(move || {
                let mut received = Vec::new();
                outside.read_to_end(&mut received).map(|_| received)
            });
            send_last(&stream, bytes).await.unwrap();
            assert_eq!(receiving.await.unwrap().unwrap(), bytes);
        }
    }

    #[tokio::test]
    async fn bytes_left_behind_arrive_before_the_end() {
        let (stream, mut outside) = pair().await;
        assert!(is_silent(&stream));
        assert!(leave_behind(&stream, b"alert"));
        drop(stream);
        let mut received = Vec::new();
        outside.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"alert");
    }

    #[tokio::test]
    async fn neither_bytes_nor_an_end_are_silence() {
        let (stream, mut outside) = pair().await;
        outside.write_all(b"a").unwrap();
        assert!(!is_silent(&stream));
        assert_eq!(rustix::io::read(&stream, &mut [0][..]).unwrap(), 1);
        assert!(is_silent(&stream));
        drop(outside);
        assert!(!is_silent(&stream));
    }

    #[tokio::test]
    async fn bytes_that_come_after_a_drained_socket_and_its_end_are_told() {
        let (stream, mut outside) = pair().await;
        let mut buffer = [0; 4];
        for sent in [&b"ab"[..], b"abcd", b"abc"] {
            outside.write_all(sent).unwrap();
            readable(&stream).await.unwrap();
            assert_eq!(read(&stream, &mut buffer).unwrap(), sent.len());
            assert_eq!(read(&stream, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        outside.write_all(b"a").unwrap();
        drop(outside);
        for left in [1, 0] {
            readable(&stream).await.unwrap();
            assert_eq!(read(&stream, &mut buffer).unwrap(), left);
        }
    }
}
