//! Outgate's resolver: a permit in, addresses out.
//!
//! A permit is proof that the rules let the name be asked for, so a name that was denied cannot cause a
//! query: there is no other way in.
//!
//! The life of a question is in [`resolver`]. What decides is pure and takes the time as an argument: [`filter`]
//! (what of an upstream's message is kept), [`cache`], [`special`], [`hosts`] and [`upstream::health`]; packets
//! are sent in one place, `upstream/exchange`.
#![forbid(unsafe_code)]

mod bounded;
pub mod budget;
pub mod cache;
pub mod event;
pub mod filter;
pub mod hosts;
pub mod ledger;
pub mod private_link;
pub mod question;
pub mod rate;
pub mod reply;
pub mod resolver;
pub mod respond;
pub mod server;
pub mod special;
#[cfg(test)]
mod testing;
pub mod upstream;
pub mod wire;
mod zones;

pub use cache::CacheSettings;
pub use question::Question;
pub use reply::{Rcode, Reply};
pub use resolver::{Answer, AnsweredBy, PrivateLink, Resolver, ResolverSettings, ResolverState, Upstreams};
pub use upstream::{Transport, Upstream, UpstreamError};

use outgate_rules::Reason;

/// An IPv4 address (RFC 1035 §3.4.1).
pub const TYPE_A: u16 = 1;
/// An IPv6 address (RFC 3596 §2.1).
pub const TYPE_AAAA: u16 = 28;
/// A service and how to reach it (RFC 9460).
pub const TYPE_SVCB: u16 = 64;
/// The same for `https` origins (RFC 9460 §9).
pub const TYPE_HTTPS: u16 = 65;

/// Why a name has no addresses to offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// NXDOMAIN.
    #[error("the name does not exist")]
    NotFound,
    /// The name exists, without A or AAAA records.
    #[error("the name has no address")]
    NoAddress,
    /// No upstream answered in time.
    #[error("the upstream resolvers did not answer in time")]
    Timeout,
    /// SERVFAIL, REFUSED, or an answer that is none.
    #[error("no upstream resolver gave a usable answer")]
    Failed,
}

impl From<ResolveError> for Reason {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::NotFound => Self::NameNotFound,
            ResolveError::NoAddress => Self::NameWithoutAddress,
            ResolveError::Timeout => Self::ResolverTimeout,
            ResolveError::Failed => Self::ResolverFailed,
        }
    }
}

/// The resolver cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the upstream resolvers: {0}")]
pub struct ConfigError(String);

impl ConfigError {
    pub(crate) fn new(why: String) -> Self {
        Self(why)
    }
}
