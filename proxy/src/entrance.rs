//! A listening socket that a runtime waits for, and that gives its connections as they come from the kernel.
//!
//! tokio's own listener tells the runtime of each connection that it accepts. What this one buys: a client that has said
//! all when it comes, and is denied, is never waited for, which spares two system calls and a tenth of the CPU of the
//! denial (bench/README.md).

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::io::Interest;

/// The socket. tokio waits for it as for a stream: to epoll(7) it is readable when a connection has come.
#[derive(Debug)]
pub struct Entrance(tokio::net::TcpStream);

impl Entrance {
    /// For the runtime that calls.
    ///
    /// # Errors
    /// When it cannot wait for the socket.
    pub fn new(socket: TcpListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        tokio::net::TcpStream::from_std(OwnedFd::from(socket).into()).map(Self)
    }

    /// Waits for a connection, and tells where it comes from.
    ///
    /// # Errors
    /// As accept(2).
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let accept = || Ok(acceptfrom_with(self, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?);
        let (connection, from) = self.0.async_io(Interest::READABLE, accept).await?;
        let from = from.and_then(|from| SocketAddr::try_from(from).ok());
        // The kernel names the other end of every connection.
        Ok((connection.into(), from.ok_or(io::ErrorKind::NotConnected)?))
    }
}

impl AsFd for Entrance {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{OFlags, fcntl_getfl};
    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;

    #[tokio::test]
    #[allow(clippy::disallowed_methods)]
    async fn connections_come_one_by_one_with_their_addresses() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let entrance = Entrance::new(socket).unwrap();
        for _ in 0..2 {
            let early: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
            for client in &early {
                let (accepted, from) = entrance.accept().await.unwrap();
                assert_eq!(from, client.local_addr().unwrap());
                assert_eq!(accepted.peer_addr().unwrap(), from);
            }
            let late = tokio::task::spawn_blocking(move || TcpStream::connect(address).unwrap());
            let (accepted, from) = entrance.accept().await.unwrap();
            let late = late.await.unwrap();
            assert_eq!(from, late.local_addr().unwrap());
            assert!(fcntl_getfl(&accepted).unwrap().contains(OFlags::NONBLOCK));
            assert!(fcntl_getfd(&accepted).unwrap().contains(FdFlags::CLOEXEC));
        }
    }
}
