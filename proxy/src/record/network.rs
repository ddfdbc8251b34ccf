//! The records of what the kernel decides by itself. It sees packets where the rest of the gate sees connections:
//! the first of a kind is on record, and the next record of that kind tells how many there were since.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;
use outgate_rules::{DomainName, Enforcement, Protocol, Reason, Revision, RuleRef};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{Kind, Shown, Verdict, begin, judgement, optional};

/// An IP protocol's number (IANA, "Assigned Internet Protocol Numbers").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IpProtocol(pub u8);

impl IpProtocol {
    /// The protocol as rules speak of it; none for the others, which only a rule for every protocol takes.
    #[must_use]
    pub fn of_rules(self) -> Option<Protocol> {
        match self.0 {
            1 | 58 => Some(Protocol::Icmp),
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            _ => None,
        }
    }
}

/// As a record writes it: `UDP`; the number of a protocol that rules have no word for.
impl fmt::Display for IpProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.of_rules() {
            Some(protocol) => f.write_str(protocol.name()),
            None => self.0.fmt(f),
        }
    }
}

/// A flow as the kernel knows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Packets {
    /// Who sends; port 0 for a protocol without ports.
    pub(crate) client: SocketAddr,
    /// Where to; port 0 for a protocol without ports.
    pub(crate) destination: SocketAddr,
    /// Over which protocol.
    pub(crate) protocol: IpProtocol,
}

impl fmt::Display for Packets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.destination.port() {
            0 => write!(f, "{} over {}", self.destination.ip(), self.protocol),
            _ => write!(f, "{} over {}", self.destination, self.protocol),
        }
    }
}

/// The kernel has passed or refused packets.
#[derive(Clone, Debug)]
pub(crate) struct Forwarded {
    /// When the last of them came.
    pub(crate) time: Timestamp,
    /// The last of them.
    pub(crate) packets: Packets,
    /// The name that the client was told the address for, where that let them pass.
    pub(crate) name: Option<DomainName>,
    /// Why; the verdict follows from it.
    pub(crate) reason: Reason,
    /// The rule that decided, where one did.
    pub(crate) rule: Option<RuleRef>,
    /// Whether the verdict held or is only recorded.
    pub(crate) enforcement: Enforcement,
    /// The revision that decided.
    pub(crate) revision: Option<Revision>,
    /// How many there were since the last record of the same client, destination, port and protocol. Of a flow
    /// that passes, only the first packet is counted.
    pub(crate) count: u64,
}

impl Forwarded {
    /// The verdict.
    pub(crate) fn verdict(&self) -> Verdict {
        Verdict::of(self.reason)
    }

    /// What a person at a terminal reads of a denial.
    pub(crate) fn denial(&self) -> Option<String> {
        let denied = match (self.verdict(), self.enforcement) {
            (Verdict::Allow, _) => return None,
            (Verdict::Deny, Enforcement::Enforce) => "denied",
            (Verdict::Deny, Enforcement::Report) => "would deny",
        };
        let (client, why) = (self.packets.client.ip(), self.reason.sentence());
        Some(format!("{denied} {client} -> {}: {why}", self.packets))
    }
}

/// A flow that the kernel passed is over.
#[derive(Clone, Debug)]
pub(crate) struct ForwardedClosed {
    /// What was decided when it began, or would be decided now if that is no longer known.
    pub(crate) decided: Forwarded,
    /// Bytes of its packets from the client, headers of IP among them; none where the kernel does not count
    /// (`net.netfilter.nf_conntrack_acct`).
    pub(crate) bytes_up: Option<u64>,
    /// Bytes to the client, likewise.
    pub(crate) bytes_down: Option<u64>,
    /// From its first packet; none where that was not seen.
    pub(crate) duration: Option<Duration>,
}

/// The kernel decided more than could be told of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Untold {
    /// When it was noticed.
    pub(crate) time: Timestamp,
    /// How many packets or flows there is no record of, at least.
    pub(crate) records: u64,
}

impl Serialize for Forwarded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut record = begin(serializer, self.time, "decision", Kind::Network.name())?;
        flow(&mut record, self)?;
        record.serialize_entry("packets", &self.count)?;
        record.end()
    }
}

impl Serialize for ForwardedClosed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut record = begin(serializer, self.decided.time, "close", Kind::Network.name())?;
        flow(&mut record, &self.decided)?;
        endpoint(&mut record, ["address", "address_port"], self.decided.packets.destination)?;
        optional(&mut record, "bytes_up", self.bytes_up)?;
        optional(&mut record, "bytes_down", self.bytes_down)?;
        let duration = self.duration.map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        optional(&mut record, "duration_ms", duration)?;
        record.end()
    }
}

impl Serialize for Untold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut record = begin(serializer, self.time, "dropped", Kind::Network.name())?;
        record.serialize_entry("records", &self.records)?;
        record.end()
    }
}

fn flow<M: SerializeMap>(record: &mut M, event: &Forwarded) -> Result<(), M::Error> {
    let Packets { client, destination, protocol } = event.packets;
    record.serialize_entry("listener", "kernel")?;
    endpoint(record, ["client", "client_port"], client)?;
    match &event.name {
        Some(name) => {
            endpoint(record, ["original", "original_port"], destination)?;
            record.serialize_entry("host", name.as_str())?;
        }
        None => record.serialize_entry::<_, IpAddr>("host", &destination.ip())?,
    }
    optional(record, "port", Some(destination.port()).filter(|port| *port != 0))?;
    record.serialize_entry("protocol", &Shown(protocol))?;
    judgement(record, event.verdict(), event.reason, event.rule.as_ref(), event.enforcement, event.revision)
}

fn endpoint<M: SerializeMap>(
    record: &mut M,
    keys: [&'static str; 2],
    socket: SocketAddr,
) -> Result<(), M::Error> {
    let [address, port] = keys;
    record.serialize_entry(address, &socket.ip())?;
    optional(record, port, Some(socket.port()).filter(|port| *port != 0))
}
