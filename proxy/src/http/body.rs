//! Where a body ends, and how its data is framed anew for the next side (RFC 9112 §6, §7.1).
//!
//! A body is not passed on as it came: its data is taken out of one framing and put into another, so that chunk
//! extensions, trailers and everything else in which two readers could find different ends stays here.

use std::io::Write;

use outgate_rules::Reason;

use super::chunks::ChunkScanner;
use crate::head::BodyLength;

/// What is still to come of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body {
    /// So many bytes; none where it is complete.
    Bytes(u64),
    /// Chunks.
    Chunks(ChunkScanner),
    /// Everything until the connection closes.
    UntilClose,
}

/// How a body is sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// As it is: its length was said, or the connection closes behind it.
    Plain,
    /// In chunks, of which each is what was there to be read.
    Chunks,
}

impl Body {
    /// The body of a request.
    pub(super) fn of(length: BodyLength) -> Self {
        match length {
            BodyLength::None => Self::Bytes(0),
            BodyLength::Bytes(length) => Self::Bytes(length),
            BodyLength::Chunked => Self::Chunks(ChunkScanner::new()),
        }
    }

    /// The body of a response.
    pub(super) fn chunks_of_origin() -> Self {
        Self::Chunks(ChunkScanner::of_origin())
    }

    /// Whether it is complete.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Bytes(left) => *left == 0,
            Self::Chunks(scanner) => scanner.is_done(),
            Self::UntilClose => false,
        }
    }

    /// Whether the end of its stream completes it.
    pub(super) fn ends_with_stream(&self) -> bool {
        matches!(self, Self::UntilClose)
    }

    /// Gives what `bytes` have of its data to `data`, piece by piece, and says how many of them belong to it.
    ///
    /// # Errors
    /// [`Reason::ChunkMalformed`], or what `data` says.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        mut data: impl FnMut(&[u8]) -> Result<(), Reason>,
    ) -> Result<usize, Reason> {
        let mine = match self {
            Self::Chunks(scanner) => return scanner.take(bytes, data),
            Self::Bytes(left) => {
                let mine = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= mine as u64;
                mine
            }
            Self::UntilClose => bytes.len(),
        };
        if mine > 0 {
            data(bytes.get(..mine).unwrap_or_default())?;
        }
        Ok(mine)
    }
}

impl Framing {
    /// How the body of a request is sent on: an origin is told how long it is, as the client told.
    pub(super) fn of(length: BodyLength) -> Self {
        match length {
            BodyLength::None | BodyLength::Bytes(_) => Self::Plain,
            BodyLength::Chunked => Self::Chunks,
        }
    }

    /// Appends some data.
    pub(super) fn put(self, data: &[u8], out: &mut Vec<u8>) {
        if self == Self::Plain {
            return out.extend_from_slice(data);
        }
        // A chunk of no bytes would be the last.
        if !data.is_empty() {
            // Writing to memory does not fail.
            _ = write!(out, "{:x}\r\n", data.len());
            out.extend_from_slice(data);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Appends the end.
    pub(super) fn end(self, out: &mut Vec<u8>) {
        if self == Self::Chunks {
            out.extend_from_slice(b"0\r\n\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of a body behind some bytes, and those of its data.
    fn take(body: &mut Body, bytes: &[u8]) -> (usize, Vec<u8>) {
        let mut all = Vec::new();
        let mine = body.take(bytes, |data| {
            all.extend_from_slice(data);
            Ok(())
        });
        (mine.unwrap(), all)
    }

    #[test]
    fn a_body_takes_what_is_its_own_and_no_more() {
        let mut body = Body::of(BodyLength::Bytes(7));
        assert_eq!(take(&mut body, b"some"), (4, b"some".to_vec()));
        assert!(!body.is_done());
        assert_eq!(take(&mut body, b"oneGET / HTTP/1.1"), (3, b"one".to_vec()));
        assert!(body.is_done());

        let mut body = Body::of(BodyLength::Chunked);
        assert_eq!(take(&mut body, b"3;x=y\r\nabc\r\n2\r\nd"), (16, b"abcd".to_vec()));
        assert_eq!(take(&mut body, b"e\r\n0\r\nA: b\r\n\r\nGET"), (14, b"e".to_vec()));
        assert!(body.is_done());

        let mut body = Body::UntilClose;
        assert_eq!(take(&mut body, b"all"), (3, b"all".to_vec()));
        assert!(!body.is_done() && body.ends_with_stream());
    }

    #[test]
    fn what_is_framed_anew_is_the_same_data() {
        for size in [1, 9, 10, 15, 16, 17, 255, 4096, 65_536] {
            let data = vec![b'x'; size];
            let mut framed = Vec::new();
            Framing::Chunks.put(&data, &mut framed);
            Framing::Chunks.put(b"", &mut framed);
            Framing::Chunks.put(b"end", &mut framed);
            Framing::Chunks.end(&mut framed);
            let mut body = Body::of(BodyLength::Chunked);
            assert_eq!(take(&mut body, &framed), (framed.len(), [&data[..], b"end"].concat()));
            assert!(body.is_done());
        }
    }

    #[test]
    fn whoever_takes_the_data_can_end_it() {
        for (mut body, bytes) in [
            (Body::Bytes(3), &b"abc"[..]),
            (Body::of(BodyLength::Chunked), b"3\r\nabc\r\n"),
            (Body::UntilClose, b"a"),
        ] {
            assert_eq!(body.take(bytes, |_| Err(Reason::UploadLimit)), Err(Reason::UploadLimit));
        }
    }
}
