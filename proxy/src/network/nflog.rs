//! Packets as NFLOG tells of them (linux/netfilter/nfnetlink_log.h).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::{Logged, Prefix};
use crate::kernel::netlink::{Message, Request};
use crate::record::network::{IpProtocol, Packets};

/// `NFNL_SUBSYS_ULOG`, `NFULNL_MSG_PACKET`.
const PACKET: u16 = 4 << 8;
/// `NFNL_SUBSYS_ULOG`, `NFULNL_MSG_CONFIG`.
const CONFIG: u16 = PACKET | 1;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
const SEQUENCE: u16 = 12;

/// Bytes of each packet that the kernel copies: the headers up to the ports, behind a few of IPv6's extensions.
pub const COPIED: u32 = 96;
/// After this time the kernel has sent what it gathered, with some to spare.
pub(super) const GATHERING: Duration = Duration::from_millis(150);
/// Extension headers of IPv6 that are walked over to find the protocol.
const EXTENSIONS: usize = 8;

/// What has to be asked of the kernel so that it sends the packets of a log group.
pub(super) fn subscription(group: u16) -> [Request; 2] {
    const BIND: u8 = 1;
    const COPY_PACKET: u8 = 2;
    const NUMBERED: u16 = 1;
    /// Room for some hundred packets of one message.
    const BATCH: u32 = 65_536;
    /// Hundredths of a second that a batch waits to be full.
    const WAIT: u32 = 10;
    const { assert!(GATHERING.as_millis() > 10 * WAIT as u128) };
    let [high, low] = group.to_be_bytes();
    let config = || Request::new(CONFIG, 0, &[0, 0, high, low]);
    let [a, b, c, d] = COPIED.to_be_bytes();
    let copied = config()
        .with(2, &[a, b, c, d, COPY_PACKET, 0])
        .with(3, &BATCH.to_be_bytes())
        .with(4, &WAIT.to_be_bytes())
        .with(6, &NUMBERED.to_be_bytes());
    [config().with(1, &[BIND]), copied]
}

/// The packet of a message; none where it is not one of ours.
pub(super) fn logged(message: &Message<'_>) -> Option<Logged> {
    const FIXED: usize = 4;
    let attributes = message.attributes(FIXED);
    if message.kind != PACKET {
        return None;
    }
    Some(Logged {
        prefix: Prefix::parse(attributes.text(PREFIX)?)?,
        packets: packets(attributes.find(PAYLOAD)?)?,
        sequence: attributes.be32(SEQUENCE),
    })
}

/// Who sends what to whom, by a packet's IP header and what follows it.
fn packets(packet: &[u8]) -> Option<Packets> {
    let (source, destination, protocol, rest) = match packet.first()? >> 4 {
        4 => v4(packet)?,
        6 => v6(packet)?,
        _ => return None,
    };
    let (from, to) = ports(protocol, rest).unwrap_or((0, 0));
    Some(Packets {
        client: SocketAddr::new(source, from),
        destination: SocketAddr::new(destination, to),
        protocol: IpProtocol(protocol),
    })
}

type Headers<'p> = (IpAddr, IpAddr, u8, &'p [u8]);

/// RFC 791 §3.1.
fn v4(packet: &[u8]) -> Option<Headers<'_>> {
    let header = packet.first_chunk::<20>()?;
    let [first, _, _, _, _, _, high, low, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    let rest = packet.get(usize::from(first & 0xf) * 4..).unwrap_or_default();
    // A later fragment has no ports.
    let rest = if u16::from_be_bytes([high, low]) & 0x1fff == 0 { rest } else { &[] };
    Some((Ipv4Addr::new(s0, s1, s2, s3).into(), Ipv4Addr::new(d0, d1, d2, d3).into(), protocol, rest))
}

/// RFC 8200 §3 and §4.
fn v6(packet: &[u8]) -> Option<Headers<'_>> {
    let source: [u8; 16] = *packet.get(8..)?.first_chunk()?;
    let destination: [u8; 16] = *packet.get(24..)?.first_chunk()?;
    let mut next = *packet.get(6)?;
    let mut rest = packet.get(40..)?;
    for _ in 0..EXTENSIONS {
        let Some([following, length, high, low]) = rest.first_chunk::<4>() else { break };
        let length = match next {
            // Hop-by-hop, routing and destination options: units of 8 bytes, the first one not counted.
            0 | 43 | 60 => (usize::from(*length) + 1) * 8,
            44 if u16::from_be_bytes([*high, *low]) & 0xfff8 == 0 => 8,
            _ => break,
        };
        (next, rest) = (*following, rest.get(length..).unwrap_or_default());
    }
    Some((Ipv6Addr::from(source).into(), Ipv6Addr::from(destination).into(), next, rest))
}

/// Source and destination port of a protocol that has them where TCP has: TCP, UDP, DCCP, SCTP, UDP-Lite.
fn ports(protocol: u8, rest: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d] = *rest.first_chunk()?;
    let has_ports = matches!(protocol, 6 | 17 | 33 | 132 | 136);
    has_ports.then(|| (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}
