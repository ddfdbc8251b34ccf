//! A socket that the runtime watches only while there is little to do.
//!
//! A socket that is watched has somebody in its queue of those that wait, and the kernel goes and looks whether to wake it
//! for every datagram that has left: 5 % of an answer (bench/README.md). While batches are full there is nothing to wait
//! for, so the socket is asked again instead.

use std::io;
use std::net::UdpSocket;

use tokio::io::Interest;
use tokio::task::yield_now;

use super::batch::{BATCH, Inbox, Outbox};

/// Full batches in a row before the socket is watched no more. To have it watched again costs some microseconds, and
/// one full batch unwatched saves twice that.
const BUSY: u32 = 4;

/// The socket, and the watch over it.
pub(super) struct Watched {
    socket: UdpSocket,
    /// The same socket, as the runtime knows it.
    watch: Option<tokio::net::UdpSocket>,
    /// Full batches in a row.
    full: u32,
}

impl Watched {
    /// Watches a socket that never blocks.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        let mut watched = Self { socket, watch: None, full: 0 };
        watched.watch()?;
        Ok(watched)
    }

    /// Waits until there may be something to receive. Others have their turn in any case.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match &self.watch {
            Some(watch) => watch.readable().await,
            None => {
                yield_now().await;
                Ok(())
            }
        }
    }

    /// Receives what is there; that may be nothing.
    pub(super) fn receive(&mut self, inbox: &mut Inbox) -> io::Result<()> {
        inbox.clear();
        let received = match &self.watch {
            None => inbox.receive(&self.socket),
            Some(watch) => {
                let mut failure = None;
                // A batch that is not full has emptied the socket: said as "would block", that saves the call that
                // would find it empty. What arrives meanwhile makes it ready again.
                let full = watch.try_io(Interest::READABLE, || match inbox.receive(watch) {
                    Ok(BATCH) => Ok(BATCH),
                    Ok(_) => Err(io::ErrorKind::WouldBlock.into()),
                    Err(error) => {
                        failure = Some(error);
                        Err(io::ErrorKind::WouldBlock.into())
                    }
                });
                failure.map_or(Ok(full.unwrap_or(0)), Err)
            }
        };
        match received {
            Ok(BATCH) => {
                self.full = self.full.saturating_add(1);
                if self.full >= BUSY {
                    self.watch = None;
                }
                Ok(())
            }
            Ok(_) => {
                self.full = 0;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.full = 0;
                self.watch()
            }
            Err(error) => Err(error),
        }
    }

    /// Sends what waits to be sent.
    pub(super) async fn send(&mut self, outbox: &mut Outbox) -> io::Result<()> {
        match outbox.send(&self.socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.watch()?;
                let Some(watch) = &self.watch else { return Err(error) };
                watch.async_io(Interest::WRITABLE, || outbox.send(watch)).await
            }
            done => done,
        }
    }

    fn watch(&mut self) -> io::Result<()> {
        if self.watch.is_none() {
            self.watch = Some(tokio::net::UdpSocket::from_std(self.socket.try_clone()?)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);
    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn while_batches_are_full_nobody_watches_and_then_somebody_does_again() {
        let socket = UdpSocket::bind((HERE, 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let client = UdpSocket::bind((HERE, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        let ask = || _ = client.send_to(b"?", address).unwrap();
        let mut inbox = Inbox::new(&socket, HERE).unwrap();
        let mut watched = Watched::new(socket).unwrap();
        for _ in 0..2 {
            for round in 0..BUSY {
                (0..BATCH).for_each(|_| ask());
                assert!(watched.watch.is_some(), "{round}");
                timeout(SOON, watched.readable()).await.unwrap().unwrap();
                watched.receive(&mut inbox).unwrap();
                assert_eq!(inbox.runs().flatten().count(), BATCH);
            }
            assert!(watched.watch.is_none());
            // One that is not full is no reason yet: who asks once more may hear more.
            ask();
            for left in [1, 0] {
                timeout(SOON, watched.readable()).await.unwrap().unwrap();
                assert!(watched.watch.is_none());
                watched.receive(&mut inbox).unwrap();
                assert_eq!(inbox.runs().flatten().count(), left, "nothing is answered twice");
            }
            assert!(watched.watch.is_some());
            let nothing = timeout(Duration::from_millis(20), watched.readable()).await;
            assert!(nothing.is_err(), "there is nothing to receive");
        }
        ask();
        timeout(SOON, watched.readable()).await.unwrap().unwrap();
    }
}
