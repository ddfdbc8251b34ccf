//! Many datagrams in one system call, each way (recvmmsg(2), sendmmsg(2)).
//!
//! On a socket that is bound to no address in particular, each reply leaves from the address that its query
//! came to: a client takes no answer from another one.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrStorage, recvmmsg,
    sendmmsg, setsockopt, sockopt,
};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};

/// Datagrams in one call. More would only wait for one another.
pub(super) const BATCH: usize = 64;
/// Largest query that is read: a longest name, OPT and several times the padding that clients use (RFC 8467). With a
/// cache line more than two kilobytes, the buffers' beginnings do not all compete for the same places of the cache.
const MAX_QUERY: usize = 2048 + 64;

/// Sees to it that what leaves by `socket` is never cut into fragments, which could be exchanged on the way (RFC 9715
/// §3.1), whatever a router is said to have said: no reply is larger than what every path takes. That spares the
/// kernel the number by which fragments are put together, too, 3 % of an answer.
pub(super) fn forbid_fragments(socket: &impl AsFd, bound: IpAddr) {
    // A socket for IPv6 may speak IPv4. Where a system knows no such thing, there is nothing to forbid.
    _ = set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE);
    if bound.is_ipv6() {
        _ = set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::PROBE);
    }
}

/// A datagram that came in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    pub(super) from: SocketAddr,
    /// The address that it came to, where the socket's own does not say.
    pub(super) to: Option<IpAddr>,
    slot: usize,
    length: usize,
}

/// Receives, in buffers of its own.
pub(super) struct Inbox {
    buffers: Vec<u8>,
    headers: MultiHeaders<SockaddrStorage>,
    received: Vec<Received>,
    /// Whether the socket says where datagrams came to.
    says_where: bool,
}

impl Inbox {
    /// An inbox for `socket`, which is told to say where datagrams came to if it is bound to no address in
    /// particular.
    pub(super) fn new(socket: &impl AsFd, bound: IpAddr) -> io::Result<Self> {
        let says_where = bound.is_unspecified();
        if says_where {
            match bound {
                IpAddr::V4(_) => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
                IpAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
            }
        }
        let control = says_where.then(|| cmsg_space!(in6_pktinfo));
        Ok(Self {
            says_where,
            buffers: vec![0; BATCH * MAX_QUERY],
            headers: MultiHeaders::preallocate(BATCH, control),
            received: Vec::with_capacity(BATCH),
        })
    }

    /// Receives what is there, without waiting, and says how many datagrams that is.
    pub(super) fn receive(&mut self, socket: &impl AsRawFd) -> io::Result<usize> {
        self.clear();
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            self.buffers.chunks_exact_mut(MAX_QUERY).map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        let messages = recvmmsg(socket.as_raw_fd(), &mut self.headers, slices.iter_mut(), flags, None)?;
        for (slot, message) in messages.enumerate() {
            let Some(from) = message.address.as_ref().and_then(socket_address) else { continue };
            let whole = !message.flags.contains(MsgFlags::MSG_TRUNC);
            let to = if self.says_where { came_to(&message) } else { None };
            // Of a datagram that was cut nothing but the beginning of its header counts.
            let length = if whole { message.bytes } else { crate::wire::HEADER };
            self.received.push(Received { from, to, slot, length });
        }
        Ok(self.received.len())
    }

    /// Forgets what was received.
    pub(super) fn clear(&mut self) {
        self.received.clear();
    }

    /// What was received last: what came from one address together.
    pub(super) fn runs(&self) -> impl Iterator<Item = &[Received]> {
        self.received.chunk_by(|one, next| one.from.ip() == next.from.ip())
    }

    /// The datagram itself.
    pub(super) fn packet(&self, received: &Received) -> &[u8] {
        let start = received.slot * MAX_QUERY;
        self.buffers.get(start..start + received.length).unwrap_or_default()
    }
}

/// Replies that wait to be sent.
pub(super) struct Outbox {
    /// All replies, one behind the other: who writes one appends it here.
    pub(super) bytes: Vec<u8>,
    replies: Vec<(Range<usize>, SocketAddr, Option<IpAddr>)>,
    plain: MultiHeaders<SockaddrStorage>,
    from_v4: MultiHeaders<SockaddrStorage>,
    from_v6: MultiHeaders<SockaddrStorage>,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            replies: Vec::with_capacity(BATCH),
            plain: MultiHeaders::preallocate(BATCH, None),
            from_v4: MultiHeaders::preallocate(BATCH, Some(cmsg_space!(in_pktinfo))),
            from_v6: MultiHeaders::preallocate(BATCH, Some(cmsg_space!(in6_pktinfo))),
        }
    }

    /// Addresses what was appended since `start`: to `to`, from `from` where that is known.
    pub(super) fn address(&mut self, start: usize, to: SocketAddr, from: Option<IpAddr>) {
        self.replies.push((start..self.bytes.len(), to, from));
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Sends what waits, as far as the socket takes it without waiting. What cannot be sent at all is lost, as
    /// datagrams are.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where something still waits.
    pub(super) fn send(&mut self, socket: &impl AsRawFd) -> io::Result<()> {
        let mut sent = 0;
        while let Some((_, _, from)) = self.replies.get(sent) {
            let from = *from;
            let run = self.replies.iter().skip(sent).take_while(|(_, _, other)| *other == from);
            let length = run.take(BATCH).count();
            match self.send_run(socket, sent..sent + length, from) {
                Ok(count) => sent += count.max(1),
                Err(Errno::EAGAIN) => {
                    self.replies.drain(..sent);
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Err(Errno::EINTR) => {}
                // This one cannot be sent; the next may.
                Err(_) => sent += 1,
            }
        }
        self.clear();
        Ok(())
    }

    /// Gives up what waits.
    pub(super) fn clear(&mut self) {
        self.replies.clear();
        self.bytes.clear();
    }

    /// Sends replies of one run, which leave from one address, and says how many.
    fn send_run(
        &mut self,
        socket: &impl AsRawFd,
        run: Range<usize>,
        from: Option<IpAddr>,
    ) -> nix::Result<usize> {
        let run = self.replies.get(run).unwrap_or_default();
        let slices: Vec<[IoSlice<'_>; 1]> = run
            .iter()
            .map(|(range, ..)| [IoSlice::new(self.bytes.get(range.clone()).unwrap_or_default())])
            .collect();
        let to: Vec<Option<SockaddrStorage>> = run.iter().map(|(_, to, _)| Some((*to).into())).collect();
        let (socket, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        let sent = match from {
            None => sendmmsg(socket, &mut self.plain, &slices, to, [], flags)?.count(),
            Some(IpAddr::V4(address)) => {
                let info = packet_info_v4(address);
                let control = [ControlMessage::Ipv4PacketInfo(&info)];
                sendmmsg(socket, &mut self.from_v4, &slices, to, control, flags)?.count()
            }
            Some(IpAddr::V6(address)) => {
                let info = packet_info_v6(address);
                let control = [ControlMessage::Ipv6PacketInfo(&info)];
                sendmmsg(socket, &mut self.from_v6, &slices, to, control, flags)?.count()
            }
        };
        Ok(sent)
    }
}

fn packet_info_v4(address: Ipv4Addr) -> in_pktinfo {
    let in_addr = in_addr { s_addr: u32::from_ne_bytes(address.octets()) };
    in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: in_addr, ipi_addr: in_addr }
}

fn packet_info_v6(address: Ipv6Addr) -> in6_pktinfo {
    in6_pktinfo { ipi6_addr: in6_addr { s6_addr: address.octets() }, ipi6_ifindex: 0 }
}

fn came_to(message: &RecvMsg<'_, '_, SockaddrStorage>) -> Option<IpAddr> {
    message.cmsgs().ok()?.find_map(|message| {
        if let ControlMessageOwned::Ipv4PacketInfo(info) = message {
            return Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()));
        }
        if let ControlMessageOwned::Ipv6PacketInfo(info) = message {
            return Some(IpAddr::from(info.ipi6_addr.s6_addr));
        }
        None
    })
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::from(*v4)));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6(SocketAddrV6::from(*v6))))
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt::{ip_mtu_discover, ipv6_mtu_discover};

    use super::*;

    #[test]
    fn what_leaves_by_a_socket_is_not_cut_whatever_family_it_is_of() {
        for bound in ["127.0.0.1", "::1"] {
            let bound: IpAddr = bound.parse().unwrap();
            let socket = std::net::UdpSocket::bind((bound, 0)).unwrap();
            forbid_fragments(&socket, bound);
            assert_eq!(ip_mtu_discover(&socket), Ok(Ipv4PathMtuDiscovery::PROBE), "{bound}");
            if bound.is_ipv6() {
                assert_eq!(ipv6_mtu_discover(&socket), Ok(Ipv6PathMtuDiscovery::PROBE));
            }
        }
    }
}
