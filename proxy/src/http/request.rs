//! Requests' heads, made anew for the origin.

use super::fields::{self, pass_on, put_length};
use crate::head::{BodyLength, RequestHead};

/// Appends a request's head as the origin gets it, made anew from what was decided on.
pub(super) fn put_request(request: &RequestHead, host: &str, out: &mut Vec<u8>) {
    for part in [request.method.as_str(), " ", request.target.path(), " HTTP/1.1\r\n", host] {
        out.extend_from_slice(part.as_bytes());
    }
    request.with_fields(|fields| {
        // The gate sends the body in any case, so there is nothing to expect.
        pass_on(fields, "expect", out);
        match request.body {
            BodyLength::None if fields.all("content-length").next().is_some() => put_length(0, out),
            BodyLength::None => {}
            BodyLength::Bytes(length) => put_length(length, out),
            BodyLength::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        }
    });
    if request.websocket {
        out.extend_from_slice(fields::WEBSOCKET);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::head::HeadScanner;

    /// A head, as a client sends it.
    pub(in crate::http) fn head(text: &str) -> RequestHead {
        RequestHead::take(&mut HeadScanner::default(), &mut BytesMut::from(text)).unwrap().unwrap()
    }

    #[test]
    fn an_origin_gets_what_was_decided_on_and_one_length() {
        for (sent, expected) in [
            (
                "GET http://pypi.org/a?b=c HTTP/1.1\r\nHost: PYPI.org:80\r\nAccept: */*\r\n\r\n",
                "GET /a?b=c HTTP/1.1\r\nH\r\nAccept: */*\r\nvia: 1.1 outgate\r\n\r\n",
            ),
            (
                "GET / HTTP/1.0\r\nHost: pypi.org\r\nConnection: x\r\nX: y\r\n\r\n",
                "GET / HTTP/1.1\r\nH\r\nvia: 1.1 outgate\r\n\r\n",
            ),
            (
                "POST http://pypi.org HTTP/1.1\r\nHost: pypi.org\r\nContent-Length: 007\r\nExpect: 100-continue\r\n\r\n",
                "POST / HTTP/1.1\r\nH\r\nvia: 1.1 outgate\r\ncontent-length: 7\r\n\r\n",
            ),
            (
                "PUT / HTTP/1.1\r\nHost: pypi.org\r\nContent-Length: 0\r\n\r\n",
                "PUT / HTTP/1.1\r\nH\r\nvia: 1.1 outgate\r\ncontent-length: 0\r\n\r\n",
            ),
            (
                "PUT / HTTP/1.1\r\nHost: pypi.org\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n",
                "PUT / HTTP/1.1\r\nH\r\nvia: 1.1 outgate\r\ntransfer-encoding: chunked\r\n\r\n",
            ),
            (
                "GET / HTTP/1.1\r\nHost: pypi.org\r\nConnection: upgrade, X\r\nUpgrade: websocket\r\nX: y\r\n\r\n",
                "GET / HTTP/1.1\r\nH\r\nvia: 1.1 outgate\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n",
            ),
        ] {
            let mut out = Vec::new();
            put_request(&head(sent), "H\r\n", &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
