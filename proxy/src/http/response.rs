//! Responses' heads: read from an origin, which may be hostile, and made anew for the client.

use std::io::Write;
use std::mem::MaybeUninit;

use http::{Method, Version};
use httparse::{ParserConfig, Response, Status};
use outgate_rules::Reason;

use super::body::{Body, Framing};
use super::fields::{self, pass_on, put_length};
use crate::head::{Fields, RequestHead, decimal};

/// Most bytes of an origin's head, and of the interim responses before it: double what a client may send, as cookies
/// come from origins.
pub(super) const MAX_HEAD: usize = 64 * 1024;
/// Most fields of an origin's head.
const MAX_FIELDS: usize = 200;

/// What an origin's head comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// An interim response, which goes no further. RFC 9110 §15.2 would have a proxy pass it on; but there are clients, as
    /// Python's http.client, that take any but 100 for the response, and what comes then for the answer to their next
    /// request, which may have been for another origin (RFC 8297 §3).
    Interim,
    /// The connection becomes a WebSocket, as was asked; the client's head has been written.
    WebSocket,
    /// The response; the client's head has been written.
    Response(Begun),
}

/// A response whose head has been passed on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Begun {
    /// Its status.
    pub(super) status: u16,
    /// How its body comes.
    pub(super) body: Body,
    /// How its body goes on.
    pub(super) framing: Framing,
    /// Whether the client would take the end of its connection for that of the body.
    pub(super) ends_with_close: bool,
    /// Whether the origin's connection may carry another request.
    pub(super) origin_stays: bool,
    /// Whether the client's may.
    pub(super) client_stays: bool,
}

/// Reads a head of up to `room` bytes at the front of `bytes`, and appends to `out` the one that the client gets in its
/// place: it is told that the connection closes if it `may_stay` no longer. None if the head is not whole; else its
/// length.
///
/// # Errors
/// Why it is no response that can be passed on. Nothing is appended then.
pub(super) fn read(
    bytes: &[u8],
    room: usize,
    request: &RequestHead,
    may_stay: bool,
    out: &mut Vec<u8>,
) -> Result<Option<(usize, Heard)>, Reason> {
    let mut space = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut response = Response::new(&mut []);
    let parsed = ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, &mut space);
    let length = match parsed {
        Ok(Status::Complete(length)) if length <= room => length,
        Ok(Status::Partial) if bytes.len() <= room => return Ok(None),
        Ok(Status::Complete(_) | Status::Partial) | Err(_) => return Err(Reason::OriginResponse),
    };
    let head = ResponseHead {
        status: response.code.unwrap_or_default(),
        phrase: response.reason.unwrap_or_default(),
        version: if response.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 },
        fields: Fields(response.headers),
    };
    let heard = match head.status {
        101 if head.is_agreement(request) => head.switch(out),
        101 => return Err(Reason::OriginSwitched),
        100..=199 => Heard::Interim,
        200.. => Heard::Response(head.begin(request, may_stay, out)?),
        _ => return Err(Reason::OriginResponse),
    };
    Ok(Some((length, heard)))
}

/// An origin's head, split.
struct ResponseHead<'h> {
    status: u16,
    phrase: &'h str,
    version: Version,
    fields: Fields<'h>,
}

impl ResponseHead<'_> {
    fn begin(&self, request: &RequestHead, may_stay: bool, out: &mut Vec<u8>) -> Result<Begun, Reason> {
        let said = self.said()?;
        let is_head = request.method == Method::HEAD;
        let old_client = request.version == Version::HTTP_10;
        let body = if is_head || matches!(self.status, 204 | 304) { Body::Bytes(0) } else { said.body() };
        let by_length = matches!(body, Body::Bytes(_));
        let client_stays = may_stay && !request.close && (by_length || !old_client);
        let framing = if by_length || old_client { Framing::Plain } else { Framing::Chunks };

        self.put_line(out);
        pass_on(self.fields, "", out);
        match (&said, framing) {
            (_, Framing::Chunks) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            // Where there can be no body, a length would be one that two readers take for two things (RFC 9110 §8.6).
            (Said::Bytes(length), Framing::Plain) if self.status != 204 => put_length(*length, out),
            (Said::Bytes(_) | Said::Chunks | Said::UntilClose, Framing::Plain) => {}
        }
        match (client_stays, old_client) {
            (false, _) => out.extend_from_slice(b"connection: close\r\n"),
            (true, true) => out.extend_from_slice(b"connection: keep-alive\r\n"),
            (true, false) => {}
        }
        out.extend_from_slice(b"\r\n");

        let origin_stays = !body.ends_with_stream()
            && self.version == Version::HTTP_11
            && self.fields.is_persistent(self.version);
        let ends_with_close = old_client && !by_length;
        Ok(Begun { status: self.status, body, framing, ends_with_close, origin_stays, client_stays })
    }

    /// What the fields say of the body. What two readers could understand in two ways is no response (RFC 9112 §6.3),
    /// nor is one with a coding that would be lost with the field.
    fn said(&self) -> Result<Said, Reason> {
        let mut codings = self.fields.all("transfer-encoding");
        let mut lengths = self.fields.all("content-length");
        match (codings.next(), lengths.next()) {
            (None, None) => Ok(Said::UntilClose),
            (None, Some(length)) if lengths.all(|again| again == length) => {
                decimal(length).map(Said::Bytes).ok_or(Reason::OriginResponse)
            }
            (Some(coding), None)
                if coding.eq_ignore_ascii_case(b"chunked")
                    && codings.next().is_none()
                    && self.version == Version::HTTP_11 =>
            {
                Ok(Said::Chunks)
            }
            (Some(_), _) | (None, Some(_)) => Err(Reason::OriginResponse),
        }
    }

    /// Whether the client has asked for a WebSocket, and the origin agrees.
    fn is_agreement(&self, request: &RequestHead) -> bool {
        let mut upgrades = self.fields.all("upgrade");
        request.websocket && upgrades.next().is_some_and(|to| to.eq_ignore_ascii_case(b"websocket"))
    }

    fn switch(&self, out: &mut Vec<u8>) -> Heard {
        self.put_line(out);
        pass_on(self.fields, "", out);
        out.extend_from_slice(fields::WEBSOCKET);
        out.extend_from_slice(b"\r\n");
        Heard::WebSocket
    }

    fn put_line(&self, out: &mut Vec<u8>) {
        // Writing to memory does not fail.
        _ = write!(out, "HTTP/1.1 {} {}\r\n", self.status, self.phrase);
    }
}

/// What a head says of its body, whether or not there can be one.
enum Said {
    Bytes(u64),
    Chunks,
    UntilClose,
}

impl Said {
    fn body(&self) -> Body {
        match self {
            Self::Bytes(length) => Body::Bytes(*length),
            Self::Chunks => Body::chunks_of_origin(),
            Self::UntilClose => Body::UntilClose,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::tests::head;
    use super::*;

    /// What a client gets of a head, and what is known of its body then.
    fn read_for(request: &str, response: &str) -> Result<(String, Begun), Reason> {
        let request = head(&request.replace("HOST", "\r\nHost: a.b\r\n\r\n"));
        let mut out = Vec::new();
        match read(response.as_bytes(), MAX_HEAD, &request, true, &mut out)? {
            Some((length, Heard::Response(begun))) => {
                assert_eq!(length, response.len());
                Ok((String::from_utf8(out).unwrap(), begun))
            }
            other => panic!("{response:?}: {other:?}"),
        }
    }

    const GET: &str = "GET / HTTP/1.1HOST";

    #[test]
    fn a_client_gets_one_length_or_one_coding_whatever_the_origin_said() {
        let chunks = "transfer-encoding: chunked\r\n";
        for (request, status, fields, expected) in [
            (GET, 200, "Content-Length: 05\r\n", "content-length: 5\r\n"),
            (GET, 200, "Content-Length: 5\r\ncontent-length: 5\r\n", "content-length: 5\r\n"),
            (GET, 200, "Transfer-Encoding: Chunked\r\n", chunks),
            (GET, 200, "", chunks),
            (GET, 204, "Content-Length: 5\r\n", ""),
            (GET, 304, "Content-Length: 5\r\n", "content-length: 5\r\n"),
            (GET, 304, "Transfer-Encoding: chunked\r\n", ""),
            ("HEAD / HTTP/1.1HOST", 200, "Content-Length: 5\r\n", "content-length: 5\r\n"),
            ("HEAD / HTTP/1.1HOST", 200, "", ""),
            ("GET / HTTP/1.0HOST", 200, "Transfer-Encoding: chunked\r\n", "connection: close\r\n"),
            (
                "GET / HTTP/1.0HOST",
                200,
                "Content-Length: 5\r\n",
                "content-length: 5\r\nconnection: close\r\n",
            ),
        ] {
            let response = format!("HTTP/1.1 {status} Fine\r\n{fields}ETag: x\r\n\r\n");
            let (out, _) = read_for(request, &response).unwrap();
            let expected = format!("HTTP/1.1 {status} Fine\r\nETag: x\r\nvia: 1.1 outgate\r\n{expected}\r\n");
            assert_eq!(out, expected, "{request} {response}");
        }
    }

    #[test]
    fn a_client_of_http_1_0_that_asks_for_it_keeps_its_connection_where_a_length_is_said() {
        let asks = "GET / HTTP/1.0\r\nHost: a.b\r\nConnection: keep-alive\r\n\r\n";
        for (fields, stays) in [("Content-Length: 5\r\n", true), ("", false)] {
            let (out, begun) = read_for(asks, &format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).unwrap();
            assert_eq!((begun.client_stays, begun.ends_with_close), (stays, !stays));
            assert_eq!(out.contains("connection: keep-alive"), stays, "{out}");
            assert_eq!(begun.framing, Framing::Plain);
        }
    }

    #[test]
    fn a_connection_is_kept_where_both_sides_say_so() {
        for (request, response, origin_stays, client_stays) in [
            (GET, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, true),
            (GET, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n", false, true),
            (GET, "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", false, true),
            (GET, "HTTP/1.1 200 OK\r\n\r\n", false, true),
            (GET, "HTTP/1.1 304 Same\r\n\r\n", true, true),
            ("GET / HTTP/1.0HOST", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, false),
        ] {
            let (_, begun) = read_for(request, response).unwrap();
            assert_eq!(
                (begun.origin_stays, begun.client_stays),
                (origin_stays, client_stays),
                "{response:?}"
            );
        }
    }

    #[test]
    fn what_two_readers_could_end_in_two_places_is_no_response() {
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: identity\r\n",
        ] {
            for request in [GET, "HEAD / HTTP/1.1HOST"] {
                let read = read_for(request, &format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
                assert_eq!(read, Err(Reason::OriginResponse), "{fields:?}");
            }
        }
        let old = "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(read_for(GET, old), Err(Reason::OriginResponse));
        assert_eq!(read_for(GET, "HTTP/1.1 099 Low\r\n\r\n"), Err(Reason::OriginResponse));
    }

    #[test]
    fn a_head_is_bounded_by_its_bytes_and_its_fields() {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(read_for(GET, &many), Err(Reason::OriginResponse));
        let request = head("GET / HTTP/1.1\r\nHost: a.b\r\n\r\n");
        let whole = "HTTP/1.1 200 OK\r\nX: yyy\r\n\r\n";
        for bytes in [whole, &whole[..whole.len() - 1]] {
            let mut out = Vec::new();
            let read = |room, out: &mut _| read(bytes.as_bytes(), room, &request, true, out);
            assert_eq!(read(bytes.len() - 1, &mut out), Err(Reason::OriginResponse), "{bytes:?}");
            assert_eq!(out, b"", "{bytes:?}");
            assert!(read(bytes.len(), &mut out).is_ok(), "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_a_client_gets_is_one_head_of_one_meaning(
            line in "HTTP/1\\.[01] (200|204|304|404)( [ -~]{0,9})?",
            fields in proptest::collection::vec(("[A-Za-z-]{1,12}|Connection|Content-Length|Transfer-Encoding", "[ -~]{0,12}|chunked|[0-9]{1,3}"), 0..6),
        ) {
            let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let response = format!("{line}\r\n{fields}\r\n");
            let mut out = Vec::new();
            let request = head("GET / HTTP/1.1\r\nHost: a.b\r\n\r\n");
            if let Ok(Some((_, Heard::Response(begun)))) = read(response.as_bytes(), MAX_HEAD, &request, true, &mut out) {
                let mut space = [httparse::EMPTY_HEADER; MAX_FIELDS];
                let mut again = Response::new(&mut space);
                proptest::prop_assert_eq!(again.parse(&out), Ok(Status::Complete(out.len())));
                proptest::prop_assert_eq!(again.code, Some(begun.status));
                let fields = Fields(again.headers);
                let (codings, lengths) = (fields.all("transfer-encoding").count(), fields.all("content-length").count());
                proptest::prop_assert_eq!(codings, usize::from(begun.framing == Framing::Chunks));
                proptest::prop_assert!(codings + lengths <= 1);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..512)) {
            let request = head("GET / HTTP/1.1\r\nHost: a.b\r\n\r\n");
            let _ = read(&bytes, MAX_HEAD, &request, true, &mut Vec::new());
        }
    }
}
