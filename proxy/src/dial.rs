//! The one place that opens connections to origins: to vetted addresses, and never to a name.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outgate_rules::{Reason, VettedAddr};
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::original;

/// How long one address may be tried alone before the next joins in (RFC 8305 §5, Connection Attempt Delay).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// How long to wait for a file descriptor before the next try.
const NO_DESCRIPTOR: Duration = Duration::from_millis(100);

/// How an origin is dialled.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// The address that the connection comes from, which is the client's and not ours (`IP_TRANSPARENT`, which takes
    /// CAP_NET_ADMIN); so it goes to addresses of the same family only. None for one of our own.
    pub source: Option<IpAddr>,
    /// Who speaks first over the connection.
    pub first: Speaker,
}

/// Who speaks first over a connection to an origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speaker {
    /// The client, with bytes that are there already or are about to come. The packet that ends the handshake carries
    /// them; without them it is sent 0.2 s later (`TCP_QUICKACK`, tcp(7)). What that buys: a packet, and with it a tenth
    /// of the CPU of a tunnel (bench/README.md).
    Client,
    /// Either side: an origin such as an SSH server waits for the end of the handshake.
    Either,
}

/// Dials the first of `addresses` that answers, all of them together until `deadline` (RFC 8305, with the families
/// interleaved). Out of file descriptors, it waits for one.
///
/// # Errors
/// Why the last one failed, as a reason.
pub async fn dial(
    addresses: Vec<VettedAddr>,
    how: How,
    deadline: Instant,
) -> Result<(TcpStream, VettedAddr), Reason> {
    let addresses = with_family_of(how.source, addresses);
    let (dialled, starved) = match <[VettedAddr; 1]>::try_from(addresses) {
        Ok([only]) => {
            let starved = AtomicBool::new(false);
            let dialled = timeout_at(deadline, attempt(only.socket(), how, &starved)).await;
            (dialled.map(|dialled| dialled.map(|stream| (stream, only))), starved.into_inner())
        }
        // It takes a kilobyte, which a flow to the one address need not carry.
        Err(several) => {
            let starved = Arc::new(AtomicBool::new(false));
            let race = Box::pin(race(interleave(several), how, Arc::clone(&starved)));
            (timeout_at(deadline, race).await, starved.load(Ordering::Relaxed))
        }
    };
    match dialled {
        Ok(Ok(connected)) => Ok(connected),
        Ok(Err(error)) => Err(reason(&error)),
        Err(_) if starved => Err(Reason::OutOfDescriptors),
        Err(_) => Err(Reason::OriginTimeout),
    }
}

async fn race(
    addresses: Vec<VettedAddr>,
    how: How,
    starved: Arc<AtomicBool>,
) -> io::Result<(TcpStream, VettedAddr)> {
    let mut waiting = addresses.into_iter();
    let Some(first) = waiting.next() else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
    // Nearly always the first answers before a second joins in: it needs no task of its own.
    let mut first = pin!(attempt_one(first, how, Arc::clone(&starved)));
    let early = timeout(ATTEMPT_DELAY, first.as_mut()).await;
    let mut others = Box::pin(others(waiting, how, &starved));
    match early {
        Ok(Ok(connected)) => Ok(connected),
        Ok(Err(_)) => others.await,
        Err(_) => tokio::select! {
            connected = first.as_mut() => match connected {
                Ok(connected) => Ok(connected),
                Err(_) => others.await,
            },
            connected = &mut others => match connected {
                Ok(connected) => Ok(connected),
                Err(_) => first.await,
            },
        },
    }
}

/// Tries one after the other, each beside those before it.
async fn others(
    waiting: impl Iterator<Item = VettedAddr>,
    how: How,
    starved: &Arc<AtomicBool>,
) -> io::Result<(TcpStream, VettedAddr)> {
    let mut attempts = JoinSet::new();
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for next in waiting {
        attempts.spawn(attempt_one(next, how, Arc::clone(starved)));
        tokio::select! {
            Some(done) = attempts.join_next() => match flatten(done) {
                Ok(connected) => return Ok(connected),
                Err(error) => failed = error,
            },
            () = sleep(ATTEMPT_DELAY) => {}
        }
    }
    while let Some(done) = attempts.join_next().await {
        match flatten(done) {
            Ok(connected) => return Ok(connected),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// One of several.
async fn attempt_one(
    address: VettedAddr,
    how: How,
    starved: Arc<AtomicBool>,
) -> io::Result<(TcpStream, VettedAddr)> {
    attempt(address.socket(), how, &starved).await.map(|stream| (stream, address))
}

async fn attempt(to: SocketAddr, how: How, starved: &AtomicBool) -> io::Result<TcpStream> {
    loop {
        match connect(to, how).await {
            Err(error) if is_out_of_descriptors(&error) => starved.store(true, Ordering::Relaxed),
            result => return result,
        }
        Box::pin(sleep(NO_DESCRIPTOR)).await;
    }
}

/// `clippy.toml` refuses this call everywhere else.
#[allow(clippy::disallowed_methods)]
async fn connect(to: SocketAddr, how: How) -> io::Result<TcpStream> {
    socket(to, how)?.connect(to).await
}

/// A socket that can be connected.
fn socket(to: SocketAddr, how: How) -> io::Result<TcpSocket> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_nodelay(true)?;
    if how.first == Speaker::Client {
        // Where this fails there is a packet more.
        _ = SockRef::from(&socket).set_tcp_quickack(false);
    }
    if let Some(source) = how.source {
        original::make_transparent(&SockRef::from(&socket), source.is_ipv4())?;
        socket.bind(SocketAddr::new(source, 0))?;
    }
    Ok(socket)
}

/// Whether the process, or the system, has no room for another socket.
#[must_use]
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    use nix::libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    error.raw_os_error().is_some_and(|code| [EMFILE, ENFILE, ENOBUFS, ENOMEM].contains(&code))
}

fn flatten<T>(done: Result<io::Result<T>, tokio::task::JoinError>) -> io::Result<T> {
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// The addresses that can be dialled from `source`.
fn with_family_of(source: Option<IpAddr>, mut addresses: Vec<VettedAddr>) -> Vec<VettedAddr> {
    if let Some(source) = source {
        addresses.retain(|address| address.socket().is_ipv4() == source.is_ipv4());
    }
    addresses
}

/// Alternates the families, beginning with that of the first address.
fn interleave(addresses: Vec<VettedAddr>) -> Vec<VettedAddr> {
    let first_is_v6 = addresses.first().is_some_and(|address| address.socket().is_ipv6());
    if addresses.iter().all(|address| address.socket().is_ipv6() == first_is_v6) {
        return addresses;
    }
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.socket().is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut mixed = Vec::new();
    loop {
        let (one, other) = (first.next(), second.next());
        if one.is_none() && other.is_none() {
            return mixed;
        }
        mixed.extend(one);
        mixed.extend(other);
    }
}

fn reason(error: &io::Error) -> Reason {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        Reason::OriginRefused
    } else if error.kind() == io::ErrorKind::TimedOut {
        Reason::OriginTimeout
    } else {
        Reason::OriginUnreachable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether an origin has heard of a connection before anything is sent over it; it hears of it when something is.
    async fn is_heard_of(first: Speaker) -> bool {
        let origin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = connect(origin.local_addr().unwrap(), How { source: None, first }).await.unwrap();
        origin.set_nonblocking(true).unwrap();
        let before = origin.accept();
        stream.try_write(b"hello").unwrap();
        origin.set_nonblocking(false).unwrap();
        if let Err(error) = &before {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            origin.accept().unwrap();
        }
        before.is_ok()
    }

    #[tokio::test]
    async fn an_origin_hears_of_a_client_that_speaks_first_with_its_first_bytes() {
        // On a machine that stands still for 0.2 s the handshake ends by itself.
        for _ in 0..10 {
            if !is_heard_of(Speaker::Client).await {
                return;
            }
        }
        panic!("the handshake ended without the client's first bytes");
    }

    #[tokio::test]
    async fn an_origin_that_may_speak_first_hears_of_its_client_at_once() {
        // On a machine that is busy the end of the handshake may be under way for a moment.
        for _ in 0..10 {
            if is_heard_of(Speaker::Either).await {
                return;
            }
        }
        panic!("the handshake did not end without the client's first bytes");
    }
}
