//! A session: one accepted connection, from accept to its last record.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A session's identity in the records. Unique over the gates and restarts of a fleet with overwhelming
/// likelihood: 32 random bits of the process, and a count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SessionId {
    process: u32,
    count: u64,
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:x}", self.process, self.count)
    }
}

/// Hands out session identities.
#[derive(Debug)]
pub struct SessionIds {
    process: u32,
    next: AtomicU64,
}

impl SessionIds {
    /// Identities of this process, told apart from others' by `seed`.
    #[must_use]
    pub fn new(seed: u32) -> Self {
        Self { process: seed, next: AtomicU64::new(1) }
    }

    /// The next identity.
    pub fn next(&self) -> SessionId {
        SessionId { process: self.process, count: self.next.fetch_add(1, Ordering::Relaxed) }
    }
}

/// One accepted connection.
#[derive(Clone, Debug)]
pub struct Session {
    /// Its identity in the records.
    pub id: SessionId,
    /// Who connected; an IPv4-mapped address as its IPv4 self.
    pub client: SocketAddr,
    /// The name of the listener: `proxy`, `tls`, `http`, `tcp`.
    pub listener: Arc<str>,
    /// Where the client's packets were going before they were redirected here; none where it dialled the gate.
    pub original: Option<SocketAddr>,
    /// When it was accepted.
    pub accepted: Instant,
}
