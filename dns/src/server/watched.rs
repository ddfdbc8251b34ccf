//! A socket that the runtime watches only while there is little to do.
//!
//! A socket that is watched has somebody in its queue of those that wait, and the kernel goes and looks whether to wake it
//! for every datagram that has left: 5 % of an answer (bench/README.md). While batches are full there is nothing to wait
//! for, so the socket is asked again instead.

use std::net::UdpSocket;
use std::{io, mem};

use tokio::io::Interest;
use tokio::task::yield_now;

use super::batch::{BATCH, Inbox, Outbox};

/// Full batches in a row before the socket is watched no more. To have it watched again costs some microseconds, and
/// one full batch unwatched saves twice that.
const BUSY: u32 = 4;

/// The socket, and the watch over it.
pub(super) struct Watched {
    socket: UdpSocket,
    watch: Watch,
    /// Full batches in a row.
    full: u32,
}

/// The same socket once more, for the runtime. It is kept where it is not watched: out of file descriptors there would be
/// none to watch it by.
enum Watch {
    On(tokio::net::UdpSocket),
    Off(Option<UdpSocket>),
}

impl Watched {
    /// Watches a socket that never blocks.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        let mut watched = Self { socket, watch: Watch::Off(None), full: 0 };
        watched.watch()?;
        Ok(watched)
    }

    /// Waits until there may be something to receive. Others have their turn in any case.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match &self.watch {
            Watch::On(socket) => socket.readable().await,
            Watch::Off(_) => {
                yield_now().await;
                Ok(())
            }
        }
    }

    /// Receives what is there; that may be nothing.
    pub(super) fn receive(&mut self, inbox: &mut Inbox) -> io::Result<()> {
        inbox.clear();
        let received = match &self.watch {
            Watch::Off(_) => inbox.receive(&self.socket),
            Watch::On(socket) => receive_watched(socket, inbox),
        };
        let is_full = matches!(received, Ok(BATCH));
        self.full = if is_full { self.full.saturating_add(1) } else { 0 };
        if self.full >= BUSY {
            self.unwatch();
        }
        match received {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.watch(),
            Err(error) => {
                // The runtime takes it for emptied now.
                self.unwatch();
                Err(error)
            }
        }
    }

    /// Sends what waits to be sent. What cannot be sent is lost, as datagrams are.
    pub(super) async fn send(&mut self, outbox: &mut Outbox) {
        let would_block = outbox.send(&self.socket).is_err();
        if would_block
            && self.watch().is_ok()
            && let Watch::On(socket) = &self.watch
        {
            _ = socket.async_io(Interest::WRITABLE, || outbox.send(socket)).await;
        }
        outbox.clear();
    }

    fn watch(&mut self) -> io::Result<()> {
        if let Watch::Off(kept) = &mut self.watch {
            let socket = kept.take().map_or_else(|| self.socket.try_clone(), Ok)?;
            self.watch = Watch::On(tokio::net::UdpSocket::from_std(socket)?);
        }
        Ok(())
    }

    fn unwatch(&mut self) {
        if let Watch::On(socket) = mem::replace(&mut self.watch, Watch::Off(None)) {
            self.watch = Watch::Off(socket.into_std().ok());
        }
    }
}

/// Receives where there is something, as far as the runtime knows.
fn receive_watched(socket: &tokio::net::UdpSocket, inbox: &mut Inbox) -> io::Result<usize> {
    let mut received = Ok(0);
    // A batch that is not full has emptied the socket: said as "would block", that saves the call that would find it
    // empty. What arrives meanwhile makes it ready again.
    _ = socket.try_io(Interest::READABLE, || {
        received = inbox.receive(socket);
        if matches!(received, Ok(BATCH)) { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    });
    received
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);
    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn is_on(watched: &Watched) -> bool {
        matches!(watched.watch, Watch::On(_))
    }

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
                assert!(is_on(&watched), "{round}");
                timeout(SOON, watched.readable()).await.unwrap().unwrap();
                watched.receive(&mut inbox).unwrap();
                assert_eq!(inbox.runs().flatten().count(), BATCH);
            }
            assert!(!is_on(&watched));
            // One that is not full is no reason yet: who asks once more may hear more.
            ask();
            for left in [1, 0] {
                timeout(SOON, watched.readable()).await.unwrap().unwrap();
                assert!(!is_on(&watched));
                watched.receive(&mut inbox).unwrap();
                assert_eq!(inbox.runs().flatten().count(), left, "nothing is answered twice");
            }
            assert!(is_on(&watched));
            let nothing = timeout(Duration::from_millis(20), watched.readable()).await;
            assert!(nothing.is_err(), "there is nothing to receive");
        }
        ask();
        timeout(SOON, watched.readable()).await.unwrap().unwrap();
    }
}
