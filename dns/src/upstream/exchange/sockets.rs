//! Sockets for questions in datagrams: a port of its own for each question, and not a socket of its own.
//!
//! When its question is answered, a socket is disconnected (connect(2) with `AF_UNSPEC`). That takes its port and its
//! peer away: it hears nobody, and what comes late finds no port. The next question connects it again, which gives it
//! another random port (RFC 5452 §9.2), once it has proved to be empty: what a forger may have left there for the
//! old port is never an answer to the new question.
//!
//! That spares four of the seven system calls of a question, which make, register, take out and close a socket, for two
//! cheap ones, and the turn of the event loop that a new socket waits to hear that it can send: 5 µs of 24. Only threads
//! that answer datagrams keep sockets, and for as long as they are busy.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, send, socket};
use tokio::net::UdpSocket;

/// Sockets that a thread keeps: as many as it has questions with the upstreams when it is busy.
const KEPT: usize = 256;

/// A socket with a random port of the system's choice, which hears one upstream alone.
pub(super) struct Connected {
    socket: UdpSocket,
    ipv4: bool,
}

impl Connected {
    /// One that hears `upstream`.
    pub(super) fn to(upstream: SocketAddr) -> io::Result<Self> {
        let ipv4 = upstream.is_ipv4();
        let socket = match take(ipv4) {
            Some(socket) => socket,
            None => make(ipv4)?,
        };
        // It is not bound first: the kernel chooses the port in the same way, one call earlier.
        connect(socket.as_raw_fd(), &SockaddrStorage::from(upstream))?;
        Ok(Self { socket, ipv4 })
    }

    pub(super) async fn send(&self, datagram: &[u8]) -> io::Result<()> {
        // A socket that has sent nothing has room. To be told so takes a turn of the event loop.
        match send(self.socket.as_raw_fd(), datagram, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(nix::errno::Errno::EAGAIN) => self.socket.send(datagram).await.map(drop),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where nothing has come; what the upstream's host said of the last datagram.
    pub(super) fn try_receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.try_recv(buffer)
    }

    /// The question is answered: the socket is kept for another, if this thread keeps sockets.
    pub(super) fn done(self) {
        KEPT_HERE.with_borrow_mut(|kept| {
            if let Some(kept) = kept
                && kept.len() < KEPT
                && rustix::net::connect_unspec(&self.socket).is_ok()
            {
                kept.push(self);
            }
        });
    }
}

thread_local! {
    /// Those of this thread, disconnected; none where it keeps none.
    static KEPT_HERE: RefCell<Option<Vec<Connected>>> = const { RefCell::new(None) };
}

/// While there is one, this thread keeps sockets, which are those of the runtime that runs on it.
pub(crate) struct Keeper(());

impl Keeper {
    pub(crate) fn new() -> Self {
        KEPT_HERE.set(Some(Vec::new()));
        Self(())
    }

    /// Whether none is kept.
    pub(crate) fn is_empty(&self) -> bool {
        KEPT_HERE.with_borrow(|kept| kept.as_ref().is_none_or(Vec::is_empty))
    }

    /// Closes those that are kept.
    pub(crate) fn forget(&self) {
        KEPT_HERE.set(Some(Vec::new()));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        KEPT_HERE.set(None);
    }
}

/// The socket that was kept last, if it is for this family. One that is not empty is closed.
fn take(ipv4: bool) -> Option<UdpSocket> {
    KEPT_HERE.with_borrow_mut(|kept| {
        let kept = kept.as_mut()?;
        while let Some(Connected { socket, .. }) = kept.pop_if(|last| last.ipv4 == ipv4) {
            let left = socket.try_recv(&mut [0]);
            if left.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                return Some(socket);
            }
        }
        None
    })
}

fn make(ipv4: bool) -> io::Result<UdpSocket> {
    let family = if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    UdpSocket::from_std(socket(family, SockType::Datagram, flags, None)?.into())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    async fn upstream(address: &str) -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind((address, 0)).await.unwrap();
        let at = socket.local_addr().unwrap();
        (socket, at)
    }

    /// Asks once and hears an answer; gives the port that asked.
    async fn ask(server: &UdpSocket, connected: &Connected) -> SocketAddr {
        connected.send(b"question").await.unwrap();
        let (_, from) = timeout(LONG, server.recv_from(&mut [0; 64])).await.unwrap().unwrap();
        server.send_to(b"answer", from).await.unwrap();
        assert_eq!(heard(connected).await, b"answer");
        from
    }

    async fn heard(connected: &Connected) -> Vec<u8> {
        let mut buffer = [0; 64];
        loop {
            timeout(LONG, connected.readable()).await.unwrap().unwrap();
            match connected.try_receive(&mut buffer) {
                Ok(length) => return buffer[..length].to_vec(),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    #[tokio::test]
    async fn a_socket_that_is_kept_has_another_port_for_each_question() {
        let _keeper = Keeper::new();
        for address in ["127.0.0.1", "::1"] {
            let (server, at) = upstream(address).await;
            let (mut ports, mut sockets) = (HashSet::new(), HashSet::new());
            for _ in 0..64 {
                let connected = Connected::to(at).unwrap();
                sockets.insert(connected.socket.as_raw_fd());
                ports.insert(ask(&server, &connected).await.port());
                connected.done();
            }
            assert_eq!(sockets.len(), 1, "{address}");
            assert!(ports.len() > 60, "{address}: {} ports", ports.len());
        }
    }

    #[tokio::test]
    async fn what_comes_late_or_comes_twice_is_heard_by_no_other_question() {
        let _keeper = Keeper::new();
        let (server, at) = upstream("127.0.0.1").await;
        let first = Connected::to(at).unwrap();
        let from = ask(&server, &first).await;
        for _ in 0..2 {
            server.send_to(b"twice", from).await.unwrap();
        }
        first.done();
        server.send_to(b"late", from).await.unwrap();
        let second = Connected::to(at).unwrap();
        ask(&server, &second).await;
    }

    #[tokio::test]
    async fn a_socket_that_is_kept_hears_the_upstream_of_its_question_alone() {
        let _keeper = Keeper::new();
        let ((one, at_one), (other, at_other)) = (upstream("127.0.0.1").await, upstream("127.0.0.1").await);
        let connected = Connected::to(at_one).unwrap();
        ask(&one, &connected).await;
        connected.done();
        let connected = Connected::to(at_other).unwrap();
        let port = connected.socket.local_addr().unwrap();
        one.send_to(b"forged", port).await.unwrap();
        ask(&other, &connected).await;
    }

    #[tokio::test]
    async fn nothing_is_kept_where_nobody_keeps_and_no_more_than_there_may_be() {
        let (_server, at) = upstream("127.0.0.1").await;
        let kept = || KEPT_HERE.with_borrow(|kept| kept.as_ref().map_or(0, Vec::len));
        Connected::to(at).unwrap().done();
        assert_eq!(kept(), 0);
        let keeper = Keeper::new();
        let all: Vec<Connected> = (0..KEPT + 10).map(|_| Connected::to(at).unwrap()).collect();
        assert!(keeper.is_empty());
        all.into_iter().for_each(Connected::done);
        assert_eq!(kept(), KEPT);
        keeper.forget();
        assert!(keeper.is_empty());
        Connected::to(at).unwrap().done();
        drop(keeper);
        assert_eq!(kept(), 0);
    }
}
