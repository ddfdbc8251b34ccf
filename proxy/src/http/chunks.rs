//! Chunked bodies, checked byte by byte while their data is taken out: a chunk that lies about its length, or whose
//! lines two readers could split differently, ends the request (RFC 9112 §7.1).

use outgate_rules::Reason;

/// Longest line of a chunk's size with its extensions, and of a trailer field.
const MAX_LINE: usize = 4096;
/// Most bytes of all trailer fields together.
const MAX_TRAILERS: usize = 16 * 1024;

/// Where in a chunked body the next byte stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChunkScanner {
    state: State,
    /// Bytes of the current line so far.
    line: usize,
    /// Bytes of the trailers so far.
    trailers: usize,
    /// Whether spaces may follow a size.
    padded: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the digits of a size.
    Size { size: u64, digits: u8 },
    /// In spaces behind a size.
    Padding { size: u64 },
    /// In an extension, of which nothing is used.
    Extension { size: u64 },
    /// Before the LF of a size line.
    SizeEnd { size: u64 },
    /// In the data of a chunk.
    Data { left: u64 },
    /// Before the CR behind the data.
    DataCr,
    /// Before the LF behind the data.
    DataLf,
    /// In a trailer line; it is empty so far, or not.
    Trailer { empty: bool },
    /// Before the LF of a trailer line.
    TrailerLf { empty: bool },
    /// Behind the last byte.
    Done,
}

impl ChunkScanner {
    /// What a client sends.
    pub(super) fn new() -> Self {
        Self { state: State::Size { size: 0, digits: 0 }, line: 0, trailers: 0, padded: false }
    }

    /// What an origin sends: some fill a size up with spaces (RFC 9112 §7.1.1, "bad" whitespace).
    pub(super) fn of_origin() -> Self {
        Self { padded: true, ..Self::new() }
    }

    /// Whether the body is complete.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Checks `bytes`, gives what they have of the body's data to `data`, and says how many of them belong to the body.
    ///
    /// # Errors
    /// [`Reason::ChunkMalformed`] at the first byte that does not fit, or what `data` says.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        mut data: impl FnMut(&[u8]) -> Result<(), Reason>,
    ) -> Result<usize, Reason> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at).filter(|_| !self.is_done()) {
            if let State::Data { left } = self.state {
                let here = (bytes.len() - at).min(usize::try_from(left).unwrap_or(usize::MAX));
                data(bytes.get(at..at + here).unwrap_or_default())?;
                at += here;
                self.state = match left - here as u64 {
                    0 => State::DataCr,
                    left => State::Data { left },
                };
                continue;
            }
            self.state = self.next(*byte).ok_or(Reason::ChunkMalformed)?;
            at += 1;
        }
        Ok(at)
    }

    fn next(&mut self, byte: u8) -> Option<State> {
        self.count(byte)?;
        match (self.state, byte) {
            (State::Size { size, digits }, _) if byte.is_ascii_hexdigit() && digits < 15 => {
                let digit = (byte as char).to_digit(16)?;
                Some(State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 })
            }
            (State::Size { digits: 0, .. }, _) => None,
            (State::Size { size, .. } | State::Padding { size } | State::Extension { size }, b'\r') => {
                Some(State::SizeEnd { size })
            }
            (State::Size { size, .. } | State::Padding { size }, b';') => Some(State::Extension { size }),
            (State::Size { size, .. } | State::Padding { size }, b' ' | b'\t') if self.padded => {
                Some(State::Padding { size })
            }
            (State::Extension { .. }, b' '..=b'~' | b'\t') => Some(self.state),
            (State::SizeEnd { size: 0 }, b'\n') => Some(State::Trailer { empty: true }),
            (State::SizeEnd { size }, b'\n') => Some(State::Data { left: size }),
            (State::DataCr, b'\r') => Some(State::DataLf),
            (State::DataLf, b'\n') => Some(State::Size { size: 0, digits: 0 }),
            (State::Trailer { empty }, b'\r') => Some(State::TrailerLf { empty }),
            (State::Trailer { empty: true }, b' ' | b'\t') => None,
            (State::Trailer { .. }, b' '..=b'~' | b'\t' | 0x80..) => Some(State::Trailer { empty: false }),
            (State::TrailerLf { empty: true }, b'\n') => Some(State::Done),
            (State::TrailerLf { empty: false }, b'\n') => Some(State::Trailer { empty: true }),
            _ => None,
        }
    }

    /// Bounds lines and trailers.
    fn count(&mut self, byte: u8) -> Option<()> {
        self.line = if byte == b'\n' { 0 } else { self.line + 1 };
        if matches!(self.state, State::Trailer { .. } | State::TrailerLf { .. }) {
            self.trailers += 1;
        }
        (self.line <= MAX_LINE && self.trailers <= MAX_TRAILERS).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &[u8]) -> Result<(usize, bool), Reason> {
        let mut scanner = ChunkScanner::new();
        let consumed = scanner.take(text, |_| Ok(()))?;
        Ok((consumed, scanner.is_done()))
    }

    #[test]
    fn a_body_ends_with_its_last_chunk() {
        for (text, consumed) in [
            (&b"0\r\n\r\n"[..], 5),
            (b"5\r\nhello\r\n0\r\n\r\nGET ", 15),
            (b"5;name=value\r\nhello\r\n0\r\n\r\n", 26),
            (b"A\r\n0123456789\r\n0\r\nDigest: x\r\n\r\nrest", 31),
            (b"000005\r\nhello\r\n0\r\n\r\n", 20),
        ] {
            assert_eq!(scan(text), Ok((consumed, true)), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn it_makes_no_difference_where_the_bytes_are_cut() {
        let text = b"5;x=y\r\nhello\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n";
        for cut in 0..=text.len() {
            let mut scanner = ChunkScanner::new();
            let mut data = Vec::new();
            let (one, two) = text.split_at(cut);
            for part in [one, two] {
                let taken = scanner.take(part, |piece| {
                    data.extend_from_slice(piece);
                    Ok(())
                });
                assert_eq!(taken, Ok(part.len()), "cut at {cut}");
            }
            assert!(scanner.is_done());
            assert_eq!(data, b"helloabc", "cut at {cut}");
        }
    }

    #[test]
    fn a_chunk_that_lies_ends_the_request() {
        for text in [
            &b"5\r\nhello!\r\n"[..],
            b"5\r\nhell\r\n0\r\n\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5;x\ny\r\nhello\r\n",
            b"5;x\ry\r\nhello\r\n",
            b"5 \r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"+5\r\nhello\r\n",
            b"-5\r\nhello\r\n",
            b"0x5\r\nhello\r\n",
            b"5,5\r\nhello\r\n",
            b"\r\nhello",
            b"g\r\n",
            b"10000000000000000\r\n",
            b"0\r\n folded: x\r\n\r\n",
            b"0\r\nA: b\nB: c\r\n\r\n",
            b"0\r\n\n",
        ] {
            assert_eq!(scan(text), Err(Reason::ChunkMalformed), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn an_origin_may_fill_a_size_up_with_spaces() {
        let text = b"5  \r\nhello\r\n0 ;x\r\n\r\n";
        assert_eq!(ChunkScanner::of_origin().take(text, |_| Ok(())), Ok(text.len()));
        for text in [&b"5 5\r\n"[..], b" 5\r\n", b"5 \nhello"] {
            let taken = ChunkScanner::of_origin().take(text, |_| Ok(()));
            assert_eq!(taken, Err(Reason::ChunkMalformed), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn lines_and_trailers_are_bounded() {
        let long = [b"5;".as_slice(), &[b'a'; MAX_LINE]].concat();
        assert_eq!(scan(&long), Err(Reason::ChunkMalformed));
        let many = [b"0\r\n".as_slice(), &b"A: b\r\n".repeat(MAX_TRAILERS / 6 + 1)].concat();
        assert_eq!(scan(&many), Err(Reason::ChunkMalformed));
    }
}
