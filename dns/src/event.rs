//! What is told of every query that was answered.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use jiff::Timestamp;
use outgate_rules::{DomainName, Enforcement, Reason, Revision, RuleRef};
use smallvec::SmallVec;

use crate::resolver::AnsweredBy;

/// How a query came.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A TCP connection.
    Tcp,
    /// TLS (RFC 7858).
    Tls,
}

impl Transport {
    /// Every transport.
    pub const ALL: &'static [Self] = &[Self::Udp, Self::Tcp, Self::Tls];

    /// The word that records and metrics use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }
}

/// A query has been answered, or refused an answer.
#[derive(Clone, Debug)]
pub struct Answered {
    /// When it came.
    pub time: Timestamp,
    /// Who asked; an IPv4-mapped address as its IPv4 self.
    pub client: SocketAddr,
    /// Over what.
    pub transport: Transport,
    /// What was asked; none where the query could not be read.
    pub question: Option<Asked>,
    /// What was answered.
    pub rcode: ResponseCode,
    /// The addresses in the answer.
    pub addresses: SmallVec<[IpAddr; 4]>,
    /// Addresses that were taken out of the answer, and why.
    pub withheld: Vec<(IpAddr, Reason)>,
    /// Where the answer is from; none where the gate itself had the last word.
    pub from: Option<AnsweredBy>,
    /// From its arrival to its answer.
    pub took: Duration,
    /// Why it was answered like this; the verdict follows from it.
    pub reason: Reason,
    /// The rule that decided, where one did.
    pub rule: Option<RuleRef>,
    /// Whether the verdict holds or is only recorded.
    pub enforcement: Enforcement,
    /// The revision in force.
    pub revision: Revision,
}

/// A question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The name.
    pub name: AskedName,
    /// The type's number.
    pub record_type: u16,
}

/// A name as asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AskedName {
    /// The name of a host.
    Host(DomainName),
    /// Any other name that DNS lets stand, escaped (RFC 1035 §5.1).
    Other(Box<str>),
}

impl fmt::Display for AskedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => name.fmt(f),
            Self::Other(name) => name.fmt(f),
        }
    }
}

/// Over when there is room for further events.
pub type Room = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Who is told what the server does.
pub trait Observer: fmt::Debug + Send + Sync {
    /// Takes events before their answers are sent. Must not block: where there is no room for them it returns
    /// a wait, and nothing is sent before that is over.
    fn answered(&self, events: &[Answered]) -> Option<Room>;

    /// A packet was left unanswered, for this reason, and no event tells of it: such packets cost their sender
    /// nothing, so they are only counted.
    fn dropped(&self, reason: Reason);
}
