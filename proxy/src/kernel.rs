//! What the kernel does for the gate: a table of its firewall, routes, and what it tells of the flows that it
//! decides.
//!
//! [`table`] is the firewall as typed data. [`apply`] puts it in force by netlink, all of it or none, without the
//! `nft` program; [`text`] shows it. [`told`] fills the sets of flows that a client may open because of what DNS told
//! it, [`routes`] brings redirected packets to this host, and [`conntrack`] reads and cuts the flows that are open.
//!
//! All calls are synchronous, meant for a thread that may block, and work in the network namespace of the thread that
//! makes them. They take `CAP_NET_ADMIN` in the user namespace that owns it, and nothing else.

pub mod conntrack;
pub mod netlink;
pub mod plan;
pub mod routes;
pub mod table;
pub mod text;
pub mod told;

mod apply;
mod encode;
#[cfg(test)]
pub(crate) mod namespace;
#[cfg(test)]
mod tests;

use std::fmt::{self, Display, Formatter};

use nix::errno::Errno;
use thiserror::Error;

pub use apply::Kept;
use encode::{attribute, kind};
use netlink::{ACKNOWLEDGE, Bus, Failure, Socket};
use table::{Flaw, Table};

/// Puts `table` in force in place of what is there under its name, in one step: a packet meets all of the old one or
/// all of the new one. The first time, it makes the table.
///
/// The sets that are [`Kept`] stay with their elements, as long as they are keyed alike; their limits then stay what
/// they were. Counters begin anew.
///
/// One transaction does all of it where the socket can hold that, which takes `CAP_NET_ADMIN` in the first user
/// namespace or a table that fits the system's bound (`net.core.wmem_max`, twice; 100,000 prefixes are 4 MB). Elsewhere sets and chains come in first under names that no rule
/// refers to, and one transaction then turns to them: they carry a `-g1` behind their names, in which the number grows.
///
/// # Errors
/// The table has a flaw, or the kernel refuses a part of it: what was there before is then still in force.
pub fn apply(table: &Table, kept: &Kept) -> Result<(), Error> {
    table.check()?;
    apply::apply(&mut open(Bus::Netfilter)?, table, kept, usize::MAX)
}

/// Takes the table of family `inet` with this name away, with all that is in it. False if there was none.
///
/// # Errors
/// The kernel refuses.
pub fn remove(name: &str) -> Result<bool, Error> {
    let mut request = encode::message(kind::DELETE_TABLE, 0);
    request.push_text(attribute::TABLE, name);
    match open(Bus::Netfilter)?.transact([&request]) {
        Ok(()) => Ok(true),
        Err(Failure::Refused { errno: Errno::ENOENT, .. }) => Ok(false),
        Err(failure) => {
            Err(Error::of(format!("to remove table inet {name}"), failure, &["CONFIG_NF_TABLES"]))
        }
    }
}

/// Whether there is a table of family `inet` with this name.
///
/// # Errors
/// The kernel does not say.
pub fn is_up(name: &str) -> Result<bool, Error> {
    let mut request = encode::message(kind::GET_TABLE, ACKNOWLEDGE);
    request.push_text(attribute::TABLE, name);
    match open(Bus::Netfilter)?.request(&request) {
        Ok(()) => Ok(true),
        Err(Failure::Refused { errno: Errno::ENOENT, .. }) => Ok(false),
        Err(failure) => {
            Err(Error::of(format!("to look for table inet {name}"), failure, &["CONFIG_NF_TABLES"]))
        }
    }
}

fn open(bus: Bus) -> Result<Socket, Error> {
    Socket::open(bus).map_err(|failure| Error::of("a netlink socket".to_owned(), failure, &[]))
}

/// Why the kernel is not as it was asked to be.
#[derive(Debug, Error)]
pub enum Error {
    /// The table does not hold together; the kernel was not asked.
    #[error("the table has a flaw: {0}")]
    Flawed(#[from] Flaw),
    /// The kernel refused.
    #[error("the kernel refused {object}: {}{explanation}", errno.desc())]
    Refused {
        /// What it refused: a chain, a rule, a set, an element, a route.
        object: String,
        /// What it said.
        errno: Errno,
        /// What that means here.
        explanation: Explanation,
    },
    /// The kernel was not heard, or not understood.
    #[error("{object}: {failure}")]
    Unheard {
        /// What was asked for.
        object: String,
        /// What went wrong.
        failure: Failure,
    },
}

impl Error {
    /// `features` are what the kernel must be built with for the object.
    fn of(object: String, failure: Failure, features: &[&str]) -> Self {
        match failure {
            Failure::Refused { errno, .. } => {
                Self::Refused { object, errno, explanation: Explanation::of(errno, features) }
            }
            Failure::Socket(error) => {
                let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
                let explanation = Explanation::of(errno, &["CONFIG_NETFILTER_NETLINK"]);
                Self::Refused { object, errno, explanation }
            }
            Failure::Unanswered | Failure::Restless | Failure::TooLong => Self::Unheard { object, failure },
        }
    }
}

/// What an error of the kernel means for whoever set the gate up; empty where its own words say it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation(Option<String>);

impl Explanation {
    fn of(errno: Errno, features: &[&str]) -> Self {
        const ABSENT: [Errno; 4] =
            [Errno::ENOENT, Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT, Errno::EPROTONOSUPPORT];
        if ABSENT.contains(&errno) && !features.is_empty() {
            return Self(Some(format!("the kernel needs {} for it", features.join(", "))));
        }
        let known = EXPLAINED.iter().find(|(explained, _)| *explained == errno);
        Self(known.map(|(_, explanation)| (*explanation).to_owned()))
    }
}

const NOT_ALLOWED: &str = "it takes CAP_NET_ADMIN, in the user namespace that owns this network namespace";
const TOO_DEEP: &str = "jumps nest deeper than the kernel follows";
const EXPLAINED: [(Errno, &str); 7] = [
    (Errno::EPERM, NOT_ALLOWED),
    (Errno::EACCES, NOT_ALLOWED),
    (Errno::ENFILE, "the set is full"),
    (Errno::ELOOP, "chains jump in a circle"),
    (Errno::EMFILE, TOO_DEEP),
    (Errno::EMLINK, TOO_DEEP),
    (Errno::ENETDOWN, "the interface is down"),
];

impl Display for Explanation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |explanation| write!(f, " ({explanation})"))
    }
}
