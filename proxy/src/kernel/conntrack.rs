//! Conntrack's flows: which are open, and cutting those that no longer may be.
//!
//! Numbers are those of `linux/netfilter/nfnetlink_conntrack.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;

use super::netlink::{Attributes, Bus, Failure, Message, Request};
use super::table::{Family, Mark};
use super::{Error, open};

const CONNTRACK: u8 = 1;
const GET: u8 = 1;
const DELETE: u8 = 2;
const FIXED: usize = 4;

const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const MARK: u16 = 8;
const ID: u16 = 12;
const ZONE: u16 = 18;
const COUNTERS_ORIGINAL: u16 = 9;
const COUNTERS_REPLY: u16 = 10;
const FEATURE: &str = "CONFIG_NF_CT_NETLINK";

/// The ends of a flow, as packets that go one way have them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Direction {
    /// Where they come from.
    pub source: IpAddr,
    /// Where they go.
    pub destination: IpAddr,
    /// The source's port; 0 in a protocol without ports.
    pub source_port: u16,
    /// The destination's port; 0 in a protocol without ports.
    pub destination_port: u16,
}

/// A flow that conntrack knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flow {
    /// The protocol's number in an IP header.
    pub protocol: u8,
    /// As its first packet came, before any translation.
    pub original: Direction,
    /// As answers come, before they are translated back.
    pub reply: Direction,
    /// Its mark; 0 if it has none.
    pub mark: u32,
    /// Bytes from whoever began it, IP headers included; none where `net.netfilter.nf_conntrack_acct` is off.
    pub bytes_up: Option<u64>,
    /// Bytes to whoever began it.
    pub bytes_down: Option<u64>,
    /// What names it when it is cut: its attributes as the kernel gave them, and its number, which another flow
    /// between the same ends hardly has.
    key: Vec<(u16, Vec<u8>)>,
}

/// Which flows are meant: those that are as each part says which is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Who began it.
    pub client: Option<IpAddr>,
    /// Where its first packet was to go.
    pub destination: Option<IpAddr>,
    /// The protocol's number.
    pub protocol: Option<u8>,
    /// The port where its first packet was to go.
    pub port: Option<u16>,
    /// Its mark, as far as the mask has bits.
    pub mark: Option<Mark>,
}

impl Filter {
    /// Whether `flow` is meant.
    #[must_use]
    pub fn takes(&self, flow: &Flow) -> bool {
        fn is<T: PartialEq>(wanted: Option<T>, found: T) -> bool {
            wanted.is_none_or(|wanted| wanted == found)
        }
        is(self.client, flow.original.source)
            && is(self.destination, flow.original.destination)
            && is(self.protocol, flow.protocol)
            && is(self.port, flow.original.destination_port)
            && self.mark.is_none_or(|mark| flow.mark & mark.mask == mark.value)
    }
}

/// The flows that are open, of both families.
///
/// # Errors
/// The kernel refuses, or has no conntrack.
pub fn dump(filter: &Filter) -> Result<Vec<Flow>, Error> {
    let mut socket = open(Bus::Netfilter)?;
    let mut flows = Vec::new();
    for family in [Family::V4, Family::V6] {
        let request = Request::netfilter(CONNTRACK, GET, 0, number(family));
        let found = socket.dump(&request, |message| Flow::read(message).filter(|flow| filter.takes(flow)));
        flows.extend(
            found
                .map_err(|failure| Error::of("to list conntrack's flows".to_owned(), failure, &[FEATURE]))?,
        );
    }
    Ok(flows)
}

/// Cuts these flows: their next packet begins a new one, which is judged as such. Says how many were still open.
///
/// # Errors
/// The kernel refuses one; those before it are cut.
pub fn delete(flows: &[Flow]) -> Result<usize, Error> {
    let mut socket = open(Bus::Netfilter)?;
    let mut cut = 0;
    for flow in flows {
        let mut request = Request::netfilter(CONNTRACK, DELETE, 0, number(Family::of(flow.original.source)));
        flow.key.iter().for_each(|(kind, value)| request.push(*kind, value));
        match socket.request(&request) {
            Ok(()) => cut += 1,
            Err(Failure::Refused { errno: Errno::ENOENT, .. }) => {}
            Err(failure) => return Err(Error::of("to cut a flow".to_owned(), failure, &[FEATURE])),
        }
    }
    Ok(cut)
}

impl Flow {
    /// The flow that a message of conntrack's is about: one of a dump, or of an event. None where it cannot be read.
    #[must_use]
    pub fn read(message: &Message<'_>) -> Option<Self> {
        let attributes = message.attributes(FIXED);
        let (original, protocol) = direction(attributes.inside(ORIGINAL))?;
        let (reply, _) = direction(attributes.inside(REPLY))?;
        let bytes = |counters: u16| attributes.inside(counters).be64(2);
        Some(Self {
            protocol,
            original,
            reply,
            mark: attributes.be32(MARK).unwrap_or(0),
            bytes_up: bytes(COUNTERS_ORIGINAL),
            bytes_down: bytes(COUNTERS_REPLY),
            key: key(attributes),
        })
    }
}

fn key(attributes: Attributes<'_>) -> Vec<(u16, Vec<u8>)> {
    const NESTED: u16 = 0x8000;
    let part = |kind, flag| attributes.find(kind).map(|value| (kind | flag, value.to_vec()));
    [part(ORIGINAL, NESTED), part(ID, 0), part(ZONE, 0)].into_iter().flatten().collect()
}

fn direction(tuple: Attributes<'_>) -> Option<(Direction, u8)> {
    const ADDRESSES: u16 = 1;
    const PROTOCOL: u16 = 2;
    let (addresses, protocol) = (tuple.inside(ADDRESSES), tuple.inside(PROTOCOL));
    let v4 = |kind| addresses.bytes(kind).map(|octets: [u8; 4]| IpAddr::from(Ipv4Addr::from(octets)));
    let v6 = |kind| addresses.bytes(kind).map(|octets: [u8; 16]| IpAddr::from(Ipv6Addr::from(octets)));
    let direction = Direction {
        source: v4(1).or_else(|| v6(3))?,
        destination: v4(2).or_else(|| v6(4))?,
        source_port: protocol.be16(2).unwrap_or(0),
        destination_port: protocol.be16(3).unwrap_or(0),
    };
    let [number] = protocol.bytes(1)?;
    Some((direction, number))
}

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

#[cfg(test)]
mod tests;
