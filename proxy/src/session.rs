//! A session: one accepted connection, from accept to its last record.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::listener::Way;

/// A session's identity in the records. Unique over the gates and restarts of a fleet with overwhelming
/// likelihood: 32 random bits of the process, and a count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SessionId {
    process: u32,
    count: u64,
}

/// As `{process:08x}-{count:x}`.
impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, start) = self.digits();
        f.write_str(str::from_utf8(text.get(start..).unwrap_or_default()).unwrap_or_default())
    }
}

impl SessionId {
    /// Appends it, as it is displayed. Each record has one, and the formatter took 400 instructions.
    pub fn put(self, line: &mut Vec<u8>) {
        let (text, start) = self.digits();
        line.extend_from_slice(text.get(start..).unwrap_or_default());
    }

    /// Eight digits, the hyphen, and sixteen at most; and where they begin.
    fn digits(self) -> ([u8; 25], usize) {
        let mut text = [b'-'; 25];
        let start = put_hex(self.count, 1, &mut text, 25);
        let start = put_hex(self.process.into(), 8, &mut text, start.saturating_sub(1));
        (text, start)
    }
}

/// Puts a number's digits before `end`, at least so many, and says where they begin.
fn put_hex(mut number: u64, least: usize, text: &mut [u8], end: usize) -> usize {
    let mut start = end;
    while number > 0 || end - start < least {
        let Some(digit) = start.checked_sub(1).and_then(|at| text.get_mut(at)) else { break };
        *digit = b"0123456789abcdef".get((number & 15) as usize).copied().unwrap_or(b'0');
        number >>= 4;
        start -= 1;
    }
    start
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
    /// By which listener.
    pub listener: Way,
    /// Where the client's packets were going before they were redirected here; none where it dialled the gate.
    pub original: Option<SocketAddr>,
    /// When it was accepted.
    pub accepted: Instant,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_worded_as_the_formatter_words_it() {
        for process in [0, 1, 0xabc, u32::MAX] {
            for count in [0, 1, 15, 16, 0xdead_beef, u64::MAX] {
                let id = SessionId { process, count };
                assert_eq!(id.to_string(), format!("{process:08x}-{count:x}"));
            }
        }
    }
}
