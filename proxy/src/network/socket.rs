//! The two netlink sockets on which the kernel tells of packets and of the end of flows.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{setsockopt, sockopt};

use super::{conntrack_events, nflog};
use crate::kernel::netlink::{Bus, Failure, Message, Socket, messages};

/// Bytes of messages that wait in the kernel while the gate is busy: some 20,000 packets.
const QUEUE: usize = 8 << 20;
/// Datagrams that are read before the other socket has its turn.
const TURN: usize = 64;

/// What the kernel tells of.
#[derive(Debug)]
pub(super) struct Kernel(Socket);

/// What came of reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Read {
    /// All that was there, or as much as is read in one turn.
    Taken,
    /// The kernel had more to tell than there was room for.
    Overrun,
}

impl Kernel {
    /// The packets of a log group. The group is this socket's alone.
    ///
    /// # Errors
    /// When the kernel has no NFLOG, another program has the group, or CAP_NET_ADMIN is missing.
    pub(super) fn packets(group: u16) -> Result<Self, Failure> {
        let mut socket = roomy(0)?;
        for request in nflog::subscription(group) {
            socket.request(&request)?;
        }
        impatient(socket)
    }

    /// The ends of flows that conntrack knows.
    ///
    /// # Errors
    /// When the kernel has no conntrack events, or CAP_NET_ADMIN is missing.
    pub(super) fn ends() -> Result<Self, Failure> {
        impatient(roomy(conntrack_events::ENDS)?)
    }

    /// Hands over the messages that wait, without waiting for one.
    ///
    /// # Errors
    /// When the socket is of no use any more.
    pub(super) fn read(&mut self, mut found: impl FnMut(&Message<'_>)) -> io::Result<Read> {
        for _ in 0..TURN {
            match self.0.receive() {
                Ok(datagram) => messages(datagram).for_each(|message| found(&message)),
                Err(Errno::EAGAIN) => break,
                Err(Errno::ENOBUFS) => return Ok(Read::Overrun),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Read::Taken)
    }
}

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A socket with room for much.
fn roomy(groups: u32) -> Result<Socket, Failure> {
    let socket = Socket::listening(Bus::Netfilter, groups)?;
    // Past the system's limit with CAP_NET_ADMIN of the first user namespace, else up to it.
    setsockopt(&socket, sockopt::RcvBufForce, &QUEUE)
        .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &QUEUE))?;
    Ok(socket)
}

/// A socket that is only read when there is something to read.
fn impatient(socket: Socket) -> Result<Kernel, Failure> {
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(Kernel(socket))
}
