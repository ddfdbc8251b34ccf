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
        let mut put = |at: usize, digits: [u8; 8]| {
            text.get_mut(at..).and_then(<[u8]>::first_chunk_mut).into_iter().for_each(|to| *to = digits);
        };
        put(17, hex(self.count as u32));
        put(9, hex((self.count >> 32) as u32));
        // What comes before the count takes the place of its leading zeros.
        let start = (self.count.leading_zeros() / 4).min(15) as usize;
        put(start + 1, *b"--------");
        put(start, hex(self.process));
        (text, start)
    }
}

/// The digits of a number, all at once: a byte each, and those above nine are letters.
fn hex(number: u32) -> [u8; 8] {
    let spread = u64::from(number);
    let spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
    let spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
    let digits = (spread | spread << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let letters = (digits + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
    (digits + 0x3030_3030_3030_3030 + letters * u64::from(b'a' - b'9' - 1)).to_be_bytes()
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
