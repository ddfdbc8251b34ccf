//! Waiting for sockets and reading them, with less memory and fewer calls than tokio's `readable` and `try_read`.
//!
//! What it buys: a read that does not fill its buffer is known to have emptied the socket, which spares the call that
//! would find nothing: a short tunnel makes 4 of them and not 8. And for a tunnel that waits both ways nothing is kept
//! but a waker.

use std::future::poll_fn;
use std::io;

use tokio::io::Interest;
use tokio::net::TcpStream;

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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn bytes_that_come_after_a_drained_socket_and_its_end_are_told() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        #[allow(clippy::disallowed_methods)]
        let outside = tokio::task::spawn_blocking(move || std::net::TcpStream::connect(address).unwrap());
        let (stream, mut outside) = (listener.accept().await.unwrap().0, outside.await.unwrap());
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
