//! Listeners that were made in the sandbox's network namespace, on their way to the gate outside of it.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::listener::Way;

/// The most listeners of one sandbox: the kernel passes no more than 253 descriptors at once (`SCM_MAX_FD`).
pub(super) const MOST: usize = 250;
/// Room for the message beside them.
const MESSAGE: usize = 16 * 1024;
/// What the gate answers when it serves them.
const READY: u8 = b'!';

/// The sockets of a sandbox.
#[derive(Debug)]
pub(super) struct Sockets {
    /// Listeners for TCP, each with what comes in there.
    pub(super) tcp: Vec<(Way, TcpListener)>,
    /// DNS over UDP.
    pub(super) lookups: UdpSocket,
    /// DNS over TCP.
    pub(super) lookup_streams: TcpListener,
}

/// What is said of the descriptors: the ways of the listeners that come first. DNS over UDP and TCP are behind them.
#[derive(Serialize, Deserialize)]
struct Manifest {
    ways: Vec<String>,
}

/// Hands the sockets over and waits until the gate serves them.
///
/// # Errors
/// When the gate has gone.
pub(super) fn hand_over(gate: &mut UnixStream, sockets: &Sockets) -> io::Result<()> {
    let ways = sockets.tcp.iter().map(|(way, _)| way.name().to_owned()).collect();
    let message = serde_json::to_vec(&Manifest { ways })?;
    let mut descriptors: Vec<BorrowedFd<'_>> = sockets.tcp.iter().map(|(_, socket)| socket.as_fd()).collect();
    descriptors.extend([sockets.lookups.as_fd(), sockets.lookup_streams.as_fd()]);
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST + 3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if descriptors.len() > MOST || !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("too many listeners for one sandbox"));
    }
    sendmsg(&*gate, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    let mut answer = [0];
    gate.read_exact(&mut answer)
}

/// Takes the sockets that [`hand_over`] sends.
///
/// # Errors
/// When the sandbox has gone, or sends something else.
pub(super) fn take(sandbox: &UnixStream) -> io::Result<Sockets> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST + 3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut message = vec![0; MESSAGE];
    let received =
        recvmsg(sandbox, &mut [IoSliceMut::new(&mut message)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let manifest: Manifest = serde_json::from_slice(message.get(..received.bytes).unwrap_or_default())?;
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    sort_out(manifest, descriptors).ok_or_else(|| io::Error::other("the sandbox handed over something else"))
}

/// Tells the sandbox that its sockets are served.
///
/// # Errors
/// When it has gone.
pub(super) fn acknowledge(sandbox: &mut UnixStream) -> io::Result<()> {
    sandbox.write_all(&[READY])
}

fn sort_out(manifest: Manifest, descriptors: Vec<OwnedFd>) -> Option<Sockets> {
    if descriptors.len() != manifest.ways.len() + 2 {
        return None;
    }
    let mut descriptors = descriptors.into_iter();
    let mut tcp = Vec::new();
    for way in manifest.ways {
        let way = [Way::Tls, Way::Http, Way::Tcp].into_iter().find(|known| known.name() == way)?;
        tcp.push((way, TcpListener::from(descriptors.next()?)));
    }
    let (lookups, lookup_streams) =
        (UdpSocket::from(descriptors.next()?), TcpListener::from(descriptors.next()?));
    Some(Sockets { tcp, lookups, lookup_streams })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_over_is_what_is_taken() {
        let (mut inside, mut outside) = UnixStream::pair().unwrap();
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = Sockets {
            tcp: vec![(Way::Tls, bind()), (Way::Tcp, bind())],
            lookups: UdpSocket::bind("127.0.0.1:0").unwrap(),
            lookup_streams: bind(),
        };
        let addresses = |sockets: &Sockets| {
            let tcp = sockets.tcp.iter().map(|(way, socket)| (*way, socket.local_addr().unwrap()));
            (
                tcp.collect::<Vec<_>>(),
                sockets.lookups.local_addr().unwrap(),
                sockets.lookup_streams.local_addr().unwrap(),
            )
        };
        let sent = addresses(&sockets);
        let sender = std::thread::spawn(move || hand_over(&mut inside, &sockets));
        let taken = take(&outside).unwrap();
        acknowledge(&mut outside).unwrap();
        sender.join().unwrap().unwrap();
        assert_eq!(addresses(&taken), sent);
    }

    #[test]
    fn a_sandbox_that_sends_something_else_is_no_sandbox() {
        for message in [&b"{}"[..], b"{\"ways\":[\"tls\"]}", b"no"] {
            let (mut inside, outside) = UnixStream::pair().unwrap();
            inside.write_all(message).unwrap();
            assert!(take(&outside).is_err());
        }
        let (inside, outside) = UnixStream::pair().unwrap();
        drop(inside);
        assert_eq!(take(&outside).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
