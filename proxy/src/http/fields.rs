//! Which fields cross from one side to the other (RFC 9110 §7.6).

use std::io::Write;

use httparse::Header;
use outgate_rules::{Destination, Port};

use crate::head::Fields;

/// Fields that concern one connection, whether or not Connection names them.
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Fields that say where a message goes and where it ends: each side gets its own, whatever Connection names.
const MADE_ANEW: [&str; 2] = ["content-length", "host"];

/// Appends what does not concern the connection that a message came over, nor is made anew, and Via, which tells that the
/// gate passed the message on (RFC 9110 §7.6.3). `but` is left out as well.
pub(super) fn pass_on(fields: Fields<'_>, but: &str, out: &mut Vec<u8>) {
    // Nearly all messages name none.
    let named: Vec<&[u8]> = fields.options().filter(|option| !is_common(option)).collect();
    for Header { name, value } in fields.0 {
        let is_named = named.iter().any(|option| name.as_bytes().eq_ignore_ascii_case(option));
        if !is_named && !stays_here(name) && !name.eq_ignore_ascii_case(but) {
            put(name, value, out);
        }
    }
    out.extend_from_slice(b"via: 1.1 outgate\r\n");
}

/// Appends a field.
pub(super) fn put(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends how long a body is.
pub(super) fn put_length(length: u64, out: &mut Vec<u8>) {
    // Writing to memory does not fail.
    _ = write!(out, "content-length: {length}\r\n");
}

/// The Host field that names a destination.
pub(super) fn host(destination: &Destination) -> String {
    match destination.port {
        Port::HTTP => format!("host: {}\r\n", destination.host),
        port => format!("host: {}:{port}\r\n", destination.host),
    }
}

/// The fields that ask for a WebSocket, or agree to one, on the next connection.
pub(super) const WEBSOCKET: &[u8] = b"connection: Upgrade\r\nupgrade: websocket\r\n";

fn stays_here(name: &str) -> bool {
    HOP_BY_HOP.iter().chain(&MADE_ANEW).any(|field| name.eq_ignore_ascii_case(field))
}

/// What names no field.
fn is_common(option: &[u8]) -> bool {
    option.eq_ignore_ascii_case(b"keep-alive") || option.eq_ignore_ascii_case(b"close")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed_on(fields: &[(&str, &str)], but: &str) -> String {
        let fields: Vec<Header<'_>> =
            fields.iter().map(|(name, value)| Header { name, value: value.as_bytes() }).collect();
        let mut out = Vec::new();
        pass_on(Fields(&fields), but, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_concerns_one_connection_stays_there() {
        let passed = passed_on(
            &[
                ("Host", "PyPI.org:80"),
                ("Connection", "close, X-Private ,, Host, Content-Length"),
                ("connection", "x-too"),
                ("X-Private", "secret"),
                ("X-Too", "secret"),
                ("Keep-Alive", "timeout=5"),
                ("Proxy-Authorization", "Basic c2VjcmV0"),
                ("Proxy-Authenticate", "Basic"),
                ("Proxy-Connection", "keep-alive"),
                ("TE", "trailers"),
                ("Trailer", "X-Sum"),
                ("Upgrade", "h2c"),
                ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
                ("Transfer-Encoding", "chunked"),
                ("Content-Length", "3"),
                ("Accept", "*/*"),
                ("X-Privately", "mine"),
                ("Expect", "100-continue"),
            ],
            "expect",
        );
        assert_eq!(passed, "Accept: */*\r\nX-Privately: mine\r\nvia: 1.1 outgate\r\n");
    }

    #[test]
    fn the_fields_of_a_message_keep_their_order_their_case_and_their_number() {
        let passed = passed_on(&[("Set-Cookie", "b=2"), ("set-cookie", "a=1"), ("ETag", "\"x\"")], "");
        assert_eq!(passed, "Set-Cookie: b=2\r\nset-cookie: a=1\r\nETag: \"x\"\r\nvia: 1.1 outgate\r\n");
    }

    #[test]
    fn the_host_field_is_made_from_the_destination() {
        for (destination, expected) in [
            ("pypi.org:80", "host: pypi.org\r\n"),
            ("pypi.org:8080", "host: pypi.org:8080\r\n"),
            ("[2001:db8::1]:80", "host: [2001:db8::1]\r\n"),
        ] {
            assert_eq!(host(&Destination::parse(destination).unwrap()), expected);
        }
    }
}
