//! Which fields cross from one side to the other (RFC 9110 §7.6).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use outgate_rules::{Destination, Port};

/// Fields that concern one connection, whether or not Connection names them.
const HOP_BY_HOP: [HeaderName; 10] = [
    header::CONNECTION,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Fields that Connection cannot name away: they say where the message goes and where it ends.
const KEPT: [HeaderName; 2] = [header::HOST, header::CONTENT_LENGTH];

/// The pseudonym by which the gate tells that it passed a message on (RFC 9110 §7.6.3).
const VIA: HeaderValue = HeaderValue::from_static("1.1 outgate");

/// Takes out what concerns the connection it came over, and adds Via.
pub(super) fn pass_on(fields: &mut HeaderMap) {
    let named: Vec<HeaderName> = fields
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| !KEPT.contains(name))
        .collect();
    // Looking a name up costs a hash, and most messages have none of these or one.
    let found: Vec<HeaderName> =
        fields.keys().filter(|name| HOP_BY_HOP.contains(name) || named.contains(name)).cloned().collect();
    for name in found {
        fields.remove(name);
    }
    fields.append(header::VIA, VIA);
}

/// Prepares a request's fields for the origin: one Host, made from what was decided on.
pub(super) fn to_origin(fields: &mut HeaderMap, host: &HeaderValue) {
    pass_on(fields);
    // The gate sends the body in any case, so there is nothing to expect.
    fields.remove(header::EXPECT);
    fields.insert(header::HOST, host.clone());
}

/// The Host field that names a destination.
pub(super) fn host(destination: &Destination) -> HeaderValue {
    let host = match destination.port {
        Port::HTTP => destination.host.to_string(),
        port => format!("{}:{port}", destination.host),
    };
    // A name or an address in text is always a value.
    HeaderValue::try_from(host).unwrap_or(HeaderValue::from_static(""))
}

/// Adds the fields that ask for a WebSocket, or agree to one, on the next connection.
pub(super) fn ask_for_websocket(fields: &mut HeaderMap) {
    fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// Whether a response says in two ways where it ends, so that two readers could choose differently (RFC 9112
/// §6.3), or has a transfer coding that would be lost with the field.
pub(super) fn is_ambiguous(fields: &HeaderMap) -> bool {
    let mut codings = fields.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => false,
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            fields.contains_key(header::CONTENT_LENGTH)
        }
        (Some(_), _) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(&str, &str)]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in lines {
            fields.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        fields
    }

    #[test]
    fn what_concerns_one_connection_stays_there() {
        let mut sent = fields(&[
            ("Host", "PyPI.org:80"),
            ("Connection", "close, X-Private, Host, Content-Length"),
            ("X-Private", "secret"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Authorization", "Basic c2VjcmV0"),
            ("Proxy-Connection", "keep-alive"),
            ("TE", "trailers"),
            ("Upgrade", "h2c"),
            ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
            ("Transfer-Encoding", "chunked"),
            ("Content-Length", "3"),
            ("Accept", "*/*"),
            ("Expect", "100-continue"),
        ]);
        to_origin(&mut sent, &host(&Destination::parse("pypi.org:80").unwrap()));
        let expected = fields(&[
            ("Host", "pypi.org"),
            ("Content-Length", "3"),
            ("Accept", "*/*"),
            ("Via", "1.1 outgate"),
        ]);
        assert_eq!(sent, expected);
    }

    #[test]
    fn the_host_field_is_made_from_the_destination() {
        for (destination, expected) in [
            ("pypi.org:80", "pypi.org"),
            ("pypi.org:8080", "pypi.org:8080"),
            ("[2001:db8::1]:80", "[2001:db8::1]"),
        ] {
            let mut sent = fields(&[("Host", "evil.org"), ("Host", "evil.net")]);
            to_origin(&mut sent, &host(&Destination::parse(destination).unwrap()));
            assert_eq!(sent.get_all(header::HOST).iter().collect::<Vec<_>>(), [expected]);
        }
    }
}
