//! What is told of every query that was answered.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
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
    /// From its arrival to its answer; of what is answered in a batch, that of one in eight.
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

impl Answered {
    /// The response code's mnemonic, as in the IANA registry.
    #[must_use]
    pub fn rcode_name(&self) -> &'static str {
        match u16::from(self.rcode) {
            0 => "NOERROR",
            1 => "FORMERR",
            2 => "SERVFAIL",
            3 => "NXDOMAIN",
            4 => "NOTIMP",
            5 => "REFUSED",
            16 => "BADVERS",
            // The server gives no others.
            _ => "OTHER",
        }
    }
}

/// A question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The name.
    pub name: AskedName,
    /// The type's number.
    pub record_type: u16,
}

impl Asked {
    /// The type's mnemonic, or `TYPE123` (RFC 3597 §5).
    #[must_use]
    pub fn type_name(&self) -> Cow<'static, str> {
        let record_type = RecordType::from(self.record_type);
        if let RecordType::Unknown(number) = record_type {
            return Cow::Owned(format!("TYPE{number}"));
        }
        Cow::Borrowed(record_type.into())
    }
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

/// Over when what was handed over is on record.
pub type Room = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What an observer keeps of an event for when it is told the same again. Empty at first; nobody else looks at it.
pub type Said = Vec<u8>;

/// Who is told what the server does.
pub trait Observer: fmt::Debug + Send + Sync {
    /// Takes an event before its answer is sent. Must not block. The same thread calls [`Observer::hand_over`] soon,
    /// and waits for nothing before that.
    fn answered(&self, event: &Answered);

    /// As [`Observer::answered`], for an event that was told before and has only another time, port of the client and
    /// duration. `said` is what this method left there the last time.
    fn answered_again(&self, event: &Answered, said: &mut Said) {
        _ = said;
        self.answered(event);
    }

    /// The answers of all events that this thread has told are about to be sent. Must not block: until they are on
    /// record it returns a wait, and nothing is sent before that is over.
    fn hand_over(&self) -> Option<Room>;

    /// A packet was left unanswered, for this reason, and no event tells of it: such packets cost their sender
    /// nothing, so they are only counted.
    fn dropped(&self, reason: Reason);
}
