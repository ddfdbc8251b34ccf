//! Why a decision fell as it did, or why the gate ended a session: one closed list for the whole product.

use crate::destination::{DestinationError, HostError};
use crate::name::NameError;
use crate::port::PortError;

/// Declares [`Reason`] as a table, so that a reason cannot lack any of its four faces.
macro_rules! reasons {
    ($( $(#[doc = $doc:literal])+ $variant:ident = $code:literal, $status:literal, $error:ident, $sentence:literal; )+) => {
        /// Why: the same value is the 403's body and its `Proxy-Status`, the DNS extended error, the audit
        /// record's `reason`, the metric's label and what `outgate explain` prints.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        pub enum Reason { $( $(#[doc = $doc])+ $variant, )+ }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )+ ];

            /// The stable code: lower-case words joined by hyphens. It never changes once released.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $( Self::$variant => $code, )+ }
            }

            /// The HTTP status of an answer that carries this reason.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $( Self::$variant => $status, )+ }
            }

            /// The proxy error type (RFC 9209 §2.3).
            #[must_use]
            pub const fn proxy_error(self) -> ProxyError {
                match self { $( Self::$variant => ProxyError::$error, )+ }
            }

            /// The reason in words, without a subject: what `docs/audit.md` prints beside the code.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $( Self::$variant => $sentence, )+ }
            }
        }
    };
}

reasons! {
    /// A rule allows it.
    Rule = "rule", 200, None, "a rule allows it";
    /// `isolation_mode: allow_internet_outbound` and nothing denies it.
    InternetMode = "internet-mode", 200, None, "the mode allows the internet and no rule denies it";

    /// No rule speaks of the destination.
    NoRule = "no-rule", 403, HttpRequestDenied, "no rule allows it";
    /// A rule with `action: deny` matches.
    DenyRule = "deny-rule", 403, HttpRequestDenied, "a rule denies it";
    /// A rule allows the name or address, on other ports.
    PortNotInRule = "port-not-in-rule", 403, HttpRequestDenied, "the rule allows other ports";
    /// A rule allows the destination over another protocol.
    ProtocolNotInRule = "protocol-not-in-rule", 403, HttpRequestDenied, "the rule allows another protocol";
    /// A rule allows the destination to other sources.
    SourceNotInRule = "source-not-in-rule", 403, HttpRequestDenied, "the rule is for other sources";
    /// The rule that allowed it has expired.
    RuleExpired = "rule-expired", 403, HttpRequestDenied, "the rule that allowed it has expired";
    /// The rule lets the name be resolved and opens nothing.
    ResolveOnly = "resolve-only", 403, HttpRequestDenied, "the rule lets the name be resolved and opens no connection";
    /// UDP to port 443, and no rule takes it by address: `allow_internet_outbound` does not open it.
    Quic = "quic", 403, HttpRequestDenied, "no rule takes QUIC to this address, and over TCP the name can be seen";
    /// The listener does not serve this client at all.
    ClientNotServed = "client-not-served", 403, HttpRequestDenied, "this listener does not serve the client's address";

    /// The address is outside the prefixes of the rule.
    AddressNotInRule = "address-not-in-rule", 403, DestinationIpProhibited, "the address is outside the rule's prefixes";
    /// A public address where the rule wants a private one.
    AddressPublic = "address-public", 403, DestinationIpProhibited, "the rule takes private addresses only and this one is public";
    /// RFC 1918, RFC 6598 or RFC 4193 space where the rule does not say so.
    AddressPrivate = "address-private", 403, DestinationIpProhibited, "the address is private and no rule says that it may be";
    /// 127.0.0.0/8 or ::1.
    AddressLoopback = "address-loopback", 403, DestinationIpProhibited, "the address is loopback";
    /// 169.254.0.0/16 or fe80::/10.
    AddressLinkLocal = "address-link-local", 403, DestinationIpProhibited, "the address is link-local";
    /// A cloud's metadata or platform service, such as 169.254.169.254 and 168.63.129.16.
    AddressMetadata = "address-metadata", 403, DestinationIpProhibited, "the address is a cloud's metadata or platform service";
    /// 224.0.0.0/4 or ff00::/8.
    AddressMulticast = "address-multicast", 403, DestinationIpProhibited, "the address is multicast";
    /// 0.0.0.0/8 or ::.
    AddressUnspecified = "address-unspecified", 403, DestinationIpProhibited, "the address is unspecified";
    /// Space that IANA keeps for other purposes than the public internet.
    AddressReserved = "address-reserved", 403, DestinationIpProhibited, "the address is reserved";
    /// The gate itself, or its host.
    AddressOwn = "address-own", 403, DestinationIpProhibited, "the address is the gate's own";

    /// The resolver says that the name does not exist.
    NameNotFound = "name-not-found", 502, DnsError, "the name does not exist";
    /// The name exists and has no address.
    NameWithoutAddress = "name-without-address", 502, DnsError, "the name has no address";
    /// No upstream resolver gave an answer that can be used.
    ResolverFailed = "resolver-failed", 502, DnsError, "no upstream resolver gave a usable answer";
    /// The upstream resolvers did not answer in time.
    ResolverTimeout = "resolver-timeout", 504, DnsTimeout, "the upstream resolvers did not answer in time";
    /// The origin refused the connection.
    OriginRefused = "origin-refused", 502, ConnectionRefused, "the origin refused the connection";
    /// No route to the origin, or its network says so.
    OriginUnreachable = "origin-unreachable", 502, DestinationIpUnroutable, "the origin cannot be reached";
    /// The origin did not answer the dial in time.
    OriginTimeout = "origin-timeout", 504, ConnectionTimeout, "the origin did not answer in time";
    /// The origin closed or failed before its response was complete.
    OriginClosed = "origin-closed", 502, ConnectionTerminated, "the origin closed the connection before its answer was complete";
    /// The origin's response is not HTTP that can be passed on safely.
    OriginResponse = "origin-response", 502, HttpProtocolError, "the origin's answer is not well-formed HTTP";
    /// The origin switched protocols without being asked.
    OriginSwitched = "origin-switched", 502, HttpProtocolError, "the origin switched protocols and nobody had asked";

    /// The gate's own connection was routed back to it.
    ProxyLoop = "proxy-loop", 502, ProxyLoopDetected, "the gate's own connection came back to it";
    /// A connection to a transparent listener that had no other destination than the gate.
    NotRedirected = "not-redirected", 403, HttpRequestDenied, "the connection was made to the gate itself and says nowhere else to go";

    /// A port that wants TLS got something else.
    NotTls = "not-tls", 403, HttpRequestDenied, "the first bytes are not TLS";
    /// A ClientHello without a server name.
    SniMissing = "sni-missing", 403, HttpRequestDenied, "the TLS hello names no server";
    /// The ClientHello's name is not the name asked for.
    SniMismatch = "sni-mismatch", 403, HttpRequestDenied, "the TLS hello names another server than the request";
    /// The ClientHello's name is no host name, or there are several.
    SniInvalid = "sni-invalid", 403, HttpRequestDenied, "the server name in the TLS hello is not one host name";
    /// The address is allowed for other names.
    SniNotInRule = "sni-not-in-rule", 403, HttpRequestDenied, "the rule that opens the address is for other names";
    /// The ClientHello breaks its own format.
    HelloMalformed = "hello-malformed", 403, HttpRequestDenied, "the TLS hello is malformed";
    /// The ClientHello is longer than the gate reads.
    HelloTooLong = "hello-too-long", 403, HttpRequestDenied, "the TLS hello is longer than 64 KiB";
    /// The ClientHello was not complete in time.
    HelloTimeout = "hello-timeout", 408, HttpRequestError, "the TLS hello was not complete in time";

    /// The host is empty.
    HostEmpty = "host-empty", 400, HttpRequestError, "the host is empty";
    /// The host name is longer than 253 bytes.
    HostTooLong = "host-too-long", 400, HttpRequestError, "the host name is longer than 253 bytes";
    /// A label of the host name is empty.
    HostEmptyLabel = "host-empty-label", 400, HttpRequestError, "a label of the host name is empty";
    /// A label of the host name is longer than 63 bytes.
    HostLabelTooLong = "host-label-too-long", 400, HttpRequestError, "a label of the host name is longer than 63 bytes";
    /// A label begins or ends with a hyphen.
    HostHyphen = "host-hyphen", 400, HttpRequestError, "a label of the host name begins or ends with a hyphen";
    /// A control byte in the host.
    HostControlByte = "host-control-byte", 400, HttpRequestError, "the host has a control byte in it";
    /// The host is not ASCII.
    HostNotAscii = "host-not-ascii", 400, HttpRequestError, "the host is not ASCII; ask for the A-label form (xn--)";
    /// The host is percent-encoded.
    HostPercentEncoded = "host-percent-encoded", 400, HttpRequestError, "the host is percent-encoded";
    /// Brackets round something that is not an IPv6 address.
    HostBracketed = "host-bracketed", 400, HttpRequestError, "brackets stand round something that is not an IPv6 address";
    /// A character that no host has.
    HostCharacter = "host-character", 400, HttpRequestError, "the host has a character that no host name has";
    /// A name that some programs read as an IPv4 address: decimal, octal, hex, short forms.
    HostNumeric = "host-numeric", 400, HttpRequestError, "the host is a number, which some programs read as an IPv4 address";
    /// `user@` before the host.
    HostUserInfo = "host-user-info", 400, HttpRequestError, "user info stands before the host";
    /// An IPv6 address with a zone id.
    HostZoneId = "host-zone-id", 400, HttpRequestError, "the IPv6 address has a zone id";
    /// An IPv6 address without brackets.
    HostBareIpv6 = "host-bare-ipv6", 400, HttpRequestError, "the IPv6 address stands without brackets";
    /// No port where one is required.
    PortMissing = "port-missing", 400, HttpRequestError, "the port is missing";
    /// Port 0.
    PortZero = "port-zero", 400, HttpRequestError, "the port is 0";
    /// A port above 65535.
    PortOutOfRange = "port-out-of-range", 400, HttpRequestError, "the port is above 65535";
    /// A port with a leading zero.
    PortLeadingZero = "port-leading-zero", 400, HttpRequestError, "the port has a leading zero";
    /// A port that is not digits.
    PortNotDecimal = "port-not-decimal", 400, HttpRequestError, "the port is not a decimal number";

    /// What the client speaks is not HTTP/1.x.
    NotHttp = "not-http", 400, HttpRequestError, "this is not an HTTP/1 request";
    /// An HTTP version other than 1.0 and 1.1.
    HttpVersion = "http-version", 505, HttpRequestError, "the HTTP version is neither 1.0 nor 1.1";
    /// The request line or a field is malformed.
    HeadMalformed = "head-malformed", 400, HttpRequestError, "the request's head is malformed";
    /// A line ends in LF without CR.
    HeadBareLf = "head-bare-lf", 400, HttpRequestError, "a line of the request's head ends in a bare LF";
    /// A field is folded over two lines.
    HeadFolded = "head-folded", 400, HttpRequestError, "a field of the request's head is folded";
    /// A control byte in the head.
    HeadControlByte = "head-control-byte", 400, HttpRequestError, "the request's head has a control byte in it";
    /// The head is larger than the gate reads.
    HeadTooLarge = "head-too-large", 431, HttpRequestError, "the request's head is too large";
    /// The head was not complete in time.
    HeadTimeout = "head-timeout", 408, HttpRequestError, "the request's head was not complete in time";
    /// The client closed in the middle of a head.
    HeadTruncated = "head-truncated", 400, HttpRequestError, "the request ended inside its head";
    /// A target that is not the form its method requires.
    TargetForm = "target-form", 400, HttpRequestError, "a proxy is asked with an absolute http:// target, or with CONNECT host:port";
    /// `https://` or another scheme in an absolute-form target.
    TargetScheme = "target-scheme", 400, HttpRequestError, "only http:// can be asked for in plain; for https use CONNECT";
    /// No Host field.
    HostFieldMissing = "host-field-missing", 400, HttpRequestError, "the request has no Host field";
    /// More than one Host field.
    HostFieldRepeated = "host-field-repeated", 400, HttpRequestError, "the request has more than one Host field";
    /// The Host field is not the target's host.
    HostFieldMismatch = "host-field-mismatch", 400, HttpRequestError, "the Host field names another host than the request";
    /// Content-Length and Transfer-Encoding together.
    LengthConflict = "length-conflict", 400, HttpRequestError, "the request has both Content-Length and Transfer-Encoding";
    /// A Content-Length that is not one decimal number.
    LengthInvalid = "length-invalid", 400, HttpRequestError, "the Content-Length is not one decimal number";
    /// A Transfer-Encoding other than `chunked`.
    TransferEncoding = "transfer-encoding", 400, HttpRequestError, "the only transfer encoding is one final chunked";
    /// A CONNECT that announces a body.
    ConnectWithBody = "connect-with-body", 400, HttpRequestError, "a CONNECT has no body";
    /// A chunk whose size or end is not what it says.
    ChunkMalformed = "chunk-malformed", 400, HttpRequestError, "a chunk of the request's body is malformed";
    /// The body ended before its announced length.
    BodyTruncated = "body-truncated", 400, HttpRequestError, "the request's body ended early";
    /// An upgrade to something other than a WebSocket.
    UpgradeUnsupported = "upgrade-unsupported", 400, HttpRequestError, "the only upgrade that passes is websocket";

    /// A DNS message breaks its own format.
    DnsMalformed = "dns-malformed", 400, HttpRequestError, "the DNS message is malformed";
    /// A DNS opcode other than QUERY.
    DnsOpcode = "dns-opcode", 400, HttpRequestError, "the DNS message is not a query";
    /// An EDNS version other than 0.
    DnsVersion = "dns-version", 400, HttpRequestError, "the version of EDNS is not 0";
    /// A DNS class other than IN.
    DnsClass = "dns-class", 400, HttpRequestError, "the class asked for is not IN";
    /// A record type that no rule lists.
    DnsType = "dns-type", 403, HttpRequestDenied, "records of this type are not served for the name";
    /// A name that the gate answers itself, whatever the policy says.
    SpecialName = "special-name", 403, HttpRequestDenied, "the gate answers for this name itself";
    /// The client asks faster than its limit.
    LookupRate = "lookup-rate", 429, HttpRequestDenied, "the client's limit of lookups a second is reached";
    /// Too many lookups wait for upstreams.
    LookupsPending = "lookups-pending", 503, ConnectionLimitReached, "too many lookups wait for the upstream resolvers";
    /// Too many different names below one wildcard.
    LookupNames = "lookup-names", 403, HttpRequestDenied, "the client's limit of different names below the wildcard is reached";
    /// A name that is longer than names below a wildcard may be.
    LookupLength = "lookup-length", 403, HttpRequestDenied, "the name is longer than names below the wildcard may be";
    /// The names below one wildcard hold more than they may.
    LookupEntropy = "lookup-entropy", 403, HttpRequestDenied, "the client's names below the wildcard could carry more than they may";

    /// The connection's upload limit is used up.
    UploadLimit = "upload-limit", 403, HttpRequestDenied, "the rule's upload limit for a connection is used up";
    /// The client's hourly upload limit for the rule is used up.
    UploadLimitHourly = "upload-limit-hourly", 403, HttpRequestDenied, "the rule's hourly upload limit for the client is used up";
    /// The gate's connection limit is reached.
    ConnectionLimit = "connection-limit", 503, ConnectionLimitReached, "the gate's connection limit is reached";
    /// The client's connection limit is reached.
    ClientConnectionLimit = "client-connection-limit", 503, ConnectionLimitReached, "the client's connection limit is reached";
    /// Nothing moved in either direction for the idle time.
    IdleTimeout = "idle-timeout", 504, ConnectionReadTimeout, "nothing moved for the idle time";
    /// A reload no longer allows an open flow.
    Revoked = "revoked", 403, HttpRequestDenied, "a reload of the policy no longer allows it";
    /// The gate is shutting down.
    Draining = "draining", 503, ConnectionTerminated, "the gate is shutting down";
    /// The gate has no file descriptor left for a connection to the origin.
    OutOfDescriptors = "out-of-descriptors", 503, ProxyInternalError, "the gate is out of file descriptors";
    /// The record of the decision could not be written.
    AuditUnavailable = "audit-unavailable", 503, ProxyInternalError, "the decision could not be recorded";
}

impl Reason {
    /// Whether this is a reason to let something pass.
    #[must_use]
    pub const fn allows(self) -> bool {
        matches!(self, Self::Rule | Self::InternetMode)
    }
}

/// The proxy error types of RFC 9209 §2.3 that outgate uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyError {
    /// Not an error.
    None,
    /// `dns_timeout`
    DnsTimeout,
    /// `dns_error`
    DnsError,
    /// `destination_ip_prohibited`
    DestinationIpProhibited,
    /// `destination_ip_unroutable`
    DestinationIpUnroutable,
    /// `connection_refused`
    ConnectionRefused,
    /// `connection_terminated`
    ConnectionTerminated,
    /// `connection_timeout`
    ConnectionTimeout,
    /// `connection_read_timeout`
    ConnectionReadTimeout,
    /// `connection_limit_reached`
    ConnectionLimitReached,
    /// `http_request_error`
    HttpRequestError,
    /// `http_request_denied`
    HttpRequestDenied,
    /// `http_protocol_error`
    HttpProtocolError,
    /// `proxy_loop_detected`
    ProxyLoopDetected,
    /// `proxy_internal_error`
    ProxyInternalError,
}

impl ProxyError {
    /// The token that stands behind `error=`.
    #[must_use]
    pub const fn token(self) -> &'static str {
        match self {
            Self::None => "",
            Self::DnsTimeout => "dns_timeout",
            Self::DnsError => "dns_error",
            Self::DestinationIpProhibited => "destination_ip_prohibited",
            Self::ProxyLoopDetected => "proxy_loop_detected",
            Self::DestinationIpUnroutable => "destination_ip_unroutable",
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectionTerminated => "connection_terminated",
            Self::ConnectionTimeout => "connection_timeout",
            Self::ConnectionReadTimeout => "connection_read_timeout",
            Self::ConnectionLimitReached => "connection_limit_reached",
            Self::HttpRequestError => "http_request_error",
            Self::HttpRequestDenied => "http_request_denied",
            Self::HttpProtocolError => "http_protocol_error",
            Self::ProxyInternalError => "proxy_internal_error",
        }
    }
}

impl From<NameError> for Reason {
    fn from(error: NameError) -> Self {
        match error {
            NameError::Empty => Self::HostEmpty,
            NameError::TooLong => Self::HostTooLong,
            NameError::EmptyLabel => Self::HostEmptyLabel,
            NameError::LabelTooLong => Self::HostLabelTooLong,
            NameError::Hyphen => Self::HostHyphen,
            NameError::ControlByte => Self::HostControlByte,
            NameError::NotAscii | NameError::NotIdna => Self::HostNotAscii,
            NameError::PercentEncoded => Self::HostPercentEncoded,
            NameError::Bracketed => Self::HostBracketed,
            NameError::Character => Self::HostCharacter,
            NameError::Numeric => Self::HostNumeric,
        }
    }
}

impl From<HostError> for Reason {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Name(error) => error.into(),
            HostError::UserInfo => Self::HostUserInfo,
            HostError::ZoneId => Self::HostZoneId,
            HostError::BareIpv6 => Self::HostBareIpv6,
            HostError::Bracketed => Self::HostBracketed,
        }
    }
}

impl From<PortError> for Reason {
    fn from(error: PortError) -> Self {
        match error {
            PortError::Missing => Self::PortMissing,
            PortError::NotDecimal => Self::PortNotDecimal,
            PortError::LeadingZero => Self::PortLeadingZero,
            PortError::Zero => Self::PortZero,
            PortError::OutOfRange => Self::PortOutOfRange,
        }
    }
}

impl From<DestinationError> for Reason {
    fn from(error: DestinationError) -> Self {
        match error {
            DestinationError::Host(error) => error.into(),
            DestinationError::Port(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_a_code_of_its_own_and_a_status_that_fits() {
        let mut codes = HashSet::new();
        for reason in Reason::ALL {
            let code = reason.code();
            assert!(codes.insert(code), "{code} stands for two reasons");
            assert!(
                code.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            );
            assert_eq!(reason.allows(), reason.status() == 200, "{code}");
            assert_eq!(reason.allows(), reason.proxy_error() == ProxyError::None, "{code}");
            // The sentence stands in a reason phrase, which many clients show alone.
            assert!(reason.sentence().is_ascii() && reason.sentence().len() <= 90, "{code}");
        }
    }
}
