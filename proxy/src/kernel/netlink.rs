//! Netlink (RFC 3549): requests written, replies read, and the socket between.
//!
//! A message is a header, a fixed part that depends on its kind, and attributes: a length, a kind and bytes, the
//! bytes of some being attributes again. Requests are built by [`Request`]; what the kernel sends is read
//! through [`messages`] and [`Attributes`], which take any bytes: what does not hold together ends the reading.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, connect, getsockopt, recv,
    send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use thiserror::Error;

/// The request wants an answer even if nothing went wrong (`NLM_F_ACK`).
pub const ACKNOWLEDGE: u16 = 0x4;
/// All of its kind are asked for (`NLM_F_DUMP`).
pub const DUMP: u16 = 0x300;
/// What is there is replaced (`NLM_F_REPLACE`).
pub const REPLACE: u16 = 0x100;
/// An error if it is there (`NLM_F_EXCL`).
pub const EXCLUSIVE: u16 = 0x200;
/// Made if it is not there (`NLM_F_CREATE`).
pub const CREATE: u16 = 0x400;
/// Put behind what is there (`NLM_F_APPEND`).
pub const APPEND: u16 = 0x800;

const REQUEST: u16 = 0x1;
const DUMP_INTERRUPTED: u16 = 0x10;
const NESTED: u16 = 0x8000;
/// The two high bits of an attribute's kind say how it is written, not what it is.
const KIND_MASK: u16 = 0x3fff;
const HEADER: usize = 16;

const NOOP: u16 = 1;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const OVERRUN: u16 = 4;

/// The kernel works while `send` runs, so an answer waits when it returns; this is for a machine that swaps.
const PATIENCE: Duration = Duration::from_secs(10);
/// An error repeats the request that it is about, which an attribute's length bounds to 64 KiB; a dump comes in
/// pieces of 32 KiB at most.
const RECEIVE_BYTES: usize = 128 << 10;
/// A dump that another change runs into is begun again, this often.
const DUMP_ATTEMPTS: usize = 10;

/// Which part of the kernel a socket talks to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bus {
    /// Addresses, routes and rules (`NETLINK_ROUTE`).
    Route,
    /// nf_tables, NFLOG and conntrack (`NETLINK_NETFILTER`).
    Netfilter,
}

/// Why the kernel did not do as asked.
#[derive(Debug, Error)]
pub enum Failure {
    /// It said no. The place counts the requests of a batch from 0; none is the batch as a whole.
    #[error("{}", errno.desc())]
    Refused {
        /// What it said.
        errno: Errno,
        /// Which request of a batch it is about.
        place: Option<usize>,
    },
    /// It said nothing, or nothing that can be read.
    #[error("the kernel's answer did not come or cannot be read")]
    Unanswered,
    /// What was asked for changed each time it was read.
    #[error("it changes too fast to be read")]
    Restless,
    /// A request was built that no message can hold.
    #[error("the request is too long for a message")]
    TooLong,
    /// The socket.
    #[error("a netlink socket: {0}")]
    Socket(#[from] io::Error),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Socket(errno.into())
    }
}

/// A socket to the kernel, in the network namespace of the thread that opened it. Nobody but the kernel can send
/// to it.
#[derive(Debug)]
pub struct Socket {
    descriptor: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket for requests.
    ///
    /// # Errors
    /// The kernel has no such bus, or the process no file descriptor left.
    pub fn open(bus: Bus) -> Result<Self, Failure> {
        Self::listening(bus, 0)
    }

    /// A socket that also gets what is sent to these multicast groups: bit `n - 1` for group `n`.
    ///
    /// # Errors
    /// As [`Socket::open`], and `EPERM` without `CAP_NET_ADMIN`.
    pub fn listening(bus: Bus, groups: u32) -> Result<Self, Failure> {
        let protocol = match bus {
            Bus::Route => SockProtocol::NetlinkRoute,
            Bus::Netfilter => SockProtocol::NetlinkNetFilter,
        };
        let descriptor = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(descriptor.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        // Connected to the kernel's address, a socket hears no other process.
        connect(descriptor.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let patience = TimeVal::milliseconds(i64::try_from(PATIENCE.as_millis()).unwrap_or(i64::MAX));
        setsockopt(&descriptor, sockopt::ReceiveTimeout, &patience)?;
        Ok(Self { descriptor, sequence: 0, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Makes room for a message of `bytes`, as far as it is allowed to, and says how many fit now. Past the
    /// system's bound (`net.core.wmem_max`) that takes `CAP_NET_ADMIN` in the first user namespace.
    ///
    /// # Errors
    /// The socket does not say its size.
    pub fn room_for(&self, bytes: usize) -> Result<usize, Failure> {
        // The kernel doubles what is asked for, counts its own book-keeping in, and spares 32 bytes.
        let wanted = bytes + 64;
        if getsockopt(&self.descriptor, sockopt::SndBuf)? < wanted
            && setsockopt(&self.descriptor, sockopt::SndBufForce, &wanted).is_err()
        {
            setsockopt(&self.descriptor, sockopt::SndBuf, &wanted)?;
        }
        Ok(getsockopt(&self.descriptor, sockopt::SndBuf)?.saturating_sub(64))
    }

    /// Sends one request and waits until the kernel has done it.
    ///
    /// # Errors
    /// It refuses, or does not answer.
    pub fn request(&mut self, request: &Request) -> Result<(), Failure> {
        let sequence = self.next_sequence();
        let mut message = Vec::with_capacity(request.bytes.len());
        request.write_to(&mut message, ACKNOWLEDGE, sequence)?;
        self.send(&message)?;
        self.acknowledged(sequence, sequence)
    }

    /// Sends requests that the kernel does all or none of, and waits until it has.
    ///
    /// # Errors
    /// It refuses one (and has done none), or does not answer.
    pub fn transact<'a>(&mut self, requests: impl IntoIterator<Item = &'a Request>) -> Result<(), Failure> {
        let begin = self.next_sequence();
        let mut batch = Vec::new();
        Request::batch(BATCH_BEGIN).write_to(&mut batch, 0, begin)?;
        let mut last = begin;
        let mut requests = requests.into_iter().peekable();
        while let Some(request) = requests.next() {
            last = self.next_sequence();
            // The answers come in order: where the last has one, every refusal stands before it.
            let flags = if requests.peek().is_none() { ACKNOWLEDGE } else { 0 };
            request.write_to(&mut batch, flags, last)?;
        }
        if last == begin {
            return Ok(());
        }
        Request::batch(BATCH_END).write_to(&mut batch, 0, self.next_sequence())?;
        self.send(&batch)?;
        self.acknowledged(begin, last)
    }

    /// Asks for all of a kind, and reads each message by `read`; what that does not take is left out.
    ///
    /// # Errors
    /// The kernel refuses, does not answer, or changes what is read each time.
    pub fn dump<T>(
        &mut self,
        request: &Request,
        mut read: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Failure> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(found) = self.dump_once(request, &mut read)? {
                return Ok(found);
            }
        }
        Err(Failure::Restless)
    }

    /// Reads what comes next, a datagram of messages for [`messages`].
    ///
    /// # Errors
    /// `EAGAIN` when nothing came in ten seconds (at once on a socket that was made non-blocking), `ENOBUFS` when
    /// the kernel had more to say than the socket could hold.
    pub fn receive(&mut self) -> Result<&[u8], Errno> {
        let length = loop {
            match recv(self.descriptor.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                received => break received?,
            }
        };
        Ok(self.buffer.get(..length).unwrap_or_default())
    }

    /// None where a change came in between.
    fn dump_once<T>(
        &mut self,
        request: &Request,
        read: &mut impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Failure> {
        let sequence = self.next_sequence();
        let mut message = Vec::new();
        request.write_to(&mut message, DUMP, sequence)?;
        self.send(&message)?;
        let (mut found, mut whole) = (Vec::new(), true);
        loop {
            let mut done = None;
            for message in messages(self.heard()?).filter(|message| message.sequence == sequence) {
                whole &= message.flags & DUMP_INTERRUPTED == 0;
                match message.kind {
                    NOOP => {}
                    OVERRUN => return Err(Failure::Unanswered),
                    ERROR | DONE => done = Some(message.verdict()),
                    _ => found.extend(read(&message)),
                }
            }
            match done {
                None => {}
                Some(Err(Errno::EINTR)) => return Ok(None),
                Some(Err(errno)) => return Err(Failure::Refused { errno, place: None }),
                Some(Ok(())) => return Ok(whole.then_some(found)),
            }
        }
    }

    /// Waits for the answer to the request `last`, or for a refusal of one since `first`.
    fn acknowledged(&mut self, first: u32, last: u32) -> Result<(), Failure> {
        loop {
            let datagram = match self.heard() {
                // Each refusal repeats its request. Where not all have room, the first are there, which is what counts.
                Err(Failure::Socket(error)) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    continue;
                }
                heard => heard?,
            };
            for message in messages(datagram) {
                let place = message.sequence.wrapping_sub(first);
                if message.kind != ERROR || place > last.wrapping_sub(first) {
                    continue;
                }
                match message.verdict() {
                    Err(errno) => {
                        // Place 0 is the head of a batch: the whole was refused at its end.
                        let place = usize::try_from(place).ok().and_then(|place| place.checked_sub(1));
                        return Err(Failure::Refused { errno, place });
                    }
                    Ok(()) if message.sequence == last => return Ok(()),
                    Ok(()) => {}
                }
            }
        }
    }

    fn heard(&mut self) -> Result<&[u8], Failure> {
        match self.receive() {
            Ok([]) | Err(Errno::EAGAIN) => Err(Failure::Unanswered),
            Ok(datagram) => Ok(datagram),
            Err(errno) => Err(errno.into()),
        }
    }

    fn send(&self, message: &[u8]) -> Result<(), Failure> {
        loop {
            match send(self.descriptor.as_raw_fd(), message, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Err(Errno::EMSGSIZE) => return Err(Failure::TooLong),
                sent => return Ok(sent.map(|_| ())?),
            }
        }
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM_NFTABLES: u8 = 10;

/// A request in the making.
#[derive(Clone, Debug)]
pub struct Request {
    bytes: Vec<u8>,
    too_long: bool,
}

impl Request {
    /// A request of this kind with its fixed part, no attributes yet.
    #[must_use]
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST).to_ne_bytes());
        bytes.extend([0; 8]);
        let mut request = Self { bytes, too_long: false };
        request.append(fixed);
        request
    }

    /// A request to a part of netfilter, for one family of addresses (`nfgenmsg`).
    #[must_use]
    pub fn netfilter(subsystem: u8, kind: u8, flags: u16, family: u8) -> Self {
        Self::new(u16::from_be_bytes([subsystem, kind]), flags, &[family, 0, 0, 0])
    }

    /// The same with one more attribute.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    /// The same with one more attribute that `inside` fills.
    #[must_use]
    pub fn with_nested(mut self, kind: u16, inside: impl FnOnce(&mut Self)) -> Self {
        self.nest(kind, inside);
        self
    }

    /// Adds an attribute.
    pub fn push(&mut self, kind: u16, value: &[u8]) {
        let length = self.attribute_length(value.len());
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.append(value);
    }

    /// Adds an attribute whose value is text, with the NUL that the kernel wants behind it.
    pub fn push_text(&mut self, kind: u16, text: &str) {
        let length = self.attribute_length(text.len() + 1);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(text.as_bytes());
        self.append(&[0]);
    }

    /// Adds an attribute whose value is a number in network order.
    pub fn push_be32(&mut self, kind: u16, value: u32) {
        self.push(kind, &value.to_be_bytes());
    }

    /// Adds an attribute of attributes, that `inside` fills.
    pub fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        inside(self);
        let length = self.attribute_length(self.bytes.len() - start - 4);
        if let Some(place) = self.bytes.get_mut(start..start + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Bytes of the message as it stands.
    #[must_use]
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    fn batch(kind: u16) -> Self {
        Self::new(kind, 0, &[0, 0, 0, SUBSYSTEM_NFTABLES])
    }

    /// A value that is too long is remembered, so that the message is never sent.
    fn attribute_length(&mut self, value: usize) -> u16 {
        u16::try_from(value + 4).unwrap_or_else(|_| {
            self.too_long = true;
            u16::MAX
        })
    }

    fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn write_to(&self, out: &mut Vec<u8>, flags: u16, sequence: u32) -> Result<(), Failure> {
        let length =
            u32::try_from(self.bytes.len()).ok().filter(|_| !self.too_long).ok_or(Failure::TooLong)?;
        let (head, body) = self.bytes.split_first_chunk::<HEADER>().ok_or(Failure::TooLong)?;
        let [_, _, _, _, kind_low, kind_high, flags_low, flags_high, ..] = *head;
        let flags = flags | u16::from_ne_bytes([flags_low, flags_high]);
        out.extend(length.to_ne_bytes());
        out.extend([kind_low, kind_high]);
        out.extend(flags.to_ne_bytes());
        out.extend(sequence.to_ne_bytes());
        out.extend([0; 4]);
        out.extend(body);
        Ok(())
    }
}

/// A message that came in.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its kind; in netfilter, the high byte is the subsystem.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// The number of the request that it answers; 0 where it answers none.
    pub sequence: u32,
    /// Its fixed part and its attributes.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind a fixed part of this many bytes.
    #[must_use]
    pub fn attributes(&self, fixed: usize) -> Attributes<'a> {
        Attributes(self.body.get(fixed.next_multiple_of(4)..).unwrap_or_default())
    }

    /// What an error or the end of a dump says. One that cannot be read is an error.
    fn verdict(&self) -> Result<(), Errno> {
        match self.body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
            Some(0) => Ok(()),
            Some(code) => Err(Errno::from_raw(code.saturating_neg())),
            None if self.kind == DONE => Ok(()),
            None => Err(Errno::EBADMSG),
        }
    }
}

/// The messages of one datagram. The first that is cut short or contradicts itself ends them.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let (head, _) = rest.split_first_chunk::<HEADER>()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *head;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let body = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            body,
        })
    })
}

/// Attributes, as they stand in a message or in another attribute.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// Each kind and value. The first that is cut short or contradicts itself ends them.
    pub fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (head, _) = rest.split_first_chunk::<4>()?;
            let [l0, l1, k0, k1] = *head;
            let length = usize::from(u16::from_ne_bytes([l0, l1]));
            let value = rest.get(4..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((u16::from_ne_bytes([k0, k1]) & KIND_MASK, value))
        })
    }

    /// The value of the first of this kind.
    #[must_use]
    pub fn find(self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// The attributes inside the first of this kind; none if there is none.
    #[must_use]
    pub fn inside(self, kind: u16) -> Attributes<'a> {
        Attributes(self.find(kind).unwrap_or_default())
    }

    /// The first of this kind as exactly `N` bytes.
    #[must_use]
    pub fn bytes<const N: usize>(self, kind: u16) -> Option<[u8; N]> {
        self.find(kind)?.try_into().ok()
    }

    /// The first of this kind as a number of 16 bits in network order.
    #[must_use]
    pub fn be16(self, kind: u16) -> Option<u16> {
        self.bytes(kind).map(u16::from_be_bytes)
    }

    /// The first of this kind as a number of 32 bits in network order.
    #[must_use]
    pub fn be32(self, kind: u16) -> Option<u32> {
        self.bytes(kind).map(u32::from_be_bytes)
    }

    /// The first of this kind as a number of 64 bits in network order.
    #[must_use]
    pub fn be64(self, kind: u16) -> Option<u64> {
        self.bytes(kind).map(u64::from_be_bytes)
    }

    /// The first of this kind as text, to its NUL; none if it is not UTF-8.
    #[must_use]
    pub fn text(self, kind: u16) -> Option<&'a str> {
        let value = self.find(kind)?;
        let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
        std::str::from_utf8(value.get(..end)?).ok()
    }
}

#[cfg(test)]
mod tests;
