//! What a client asks for: a name or an address, and a port.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::name::{DomainName, NameError};
use crate::port::{Port, PortError};

/// A name or an address.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Host {
    /// A name, to be resolved by us.
    Name(DomainName),
    /// An address, as the client wrote it or as the kernel tells it.
    Address(IpAddr),
}

impl Host {
    /// Reads a host as it stands in a URI (RFC 3986 §3.2.2): a name, a dotted quad of plain decimals, or an
    /// IPv6 address in brackets. No zone id, no user info, no other spelling of an address.
    ///
    /// # Errors
    /// Says the first thing that keeps `text` from being a host.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return parse_bracketed(inner);
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        if text.contains('@') {
            return Err(HostError::UserInfo);
        }
        if text.contains(':') && text.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte)) {
            return Err(HostError::BareIpv6);
        }
        DomainName::parse(text).map(Self::Name).map_err(HostError::Name)
    }

    /// The name, if it is one.
    #[must_use]
    pub fn name(&self) -> Option<&DomainName> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }

    /// The address, if it is one.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Name(_) => None,
            Self::Address(address) => Some(*address),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// Why a text is not a [`Host`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HostError {
    /// Neither an address nor a name.
    #[error(transparent)]
    Name(NameError),
    /// `user@host`.
    #[error("user info has no place before a host")]
    UserInfo,
    /// `[fe80::1%eth0]`: a zone means something on one machine only (RFC 9844).
    #[error("an IPv6 address with a zone id means nothing here")]
    ZoneId,
    /// An IPv6 address without brackets: where would its port begin?
    #[error("an IPv6 address stands in brackets")]
    BareIpv6,
    /// Brackets round what is not an IPv6 address.
    #[error("brackets stand round something that is not an IPv6 address")]
    Bracketed,
}

fn parse_bracketed(inner: &str) -> Result<Host, HostError> {
    if let Ok(address) = inner.parse::<Ipv6Addr>() {
        return Ok(Host::Address(address.into()));
    }
    let zone = inner.split_once('%').is_some_and(|(address, _)| address.parse::<Ipv6Addr>().is_ok());
    Err(if zone { HostError::ZoneId } else { HostError::Bracketed })
}

/// A name or address and a port: what a client wants to reach, as asked.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Destination {
    /// Where.
    pub host: Host,
    /// On which port.
    pub port: Port,
}

impl Destination {
    /// A destination given as an address.
    #[must_use]
    pub fn address(address: IpAddr, port: Port) -> Self {
        Self { host: Host::Address(address), port }
    }

    /// A destination given as a name.
    #[must_use]
    pub fn name(name: DomainName, port: Port) -> Self {
        Self { host: Host::Name(name), port }
    }

    /// Reads `host:port` as in the target of a CONNECT (RFC 9110 §7.2, authority-form): both are required.
    ///
    /// # Errors
    /// Says whether it was the host or the port, and why.
    pub fn parse(text: &str) -> Result<Self, DestinationError> {
        let (host, port) = split_port(text);
        let host = Host::parse(host)?;
        let port = Port::parse(port.ok_or(PortError::Missing)?)?;
        Ok(Self { host, port })
    }

    /// Reads the authority of a URI or a Host field, whose port may be left out: then it is `default`.
    /// A colon with nothing behind it is not the same and is refused.
    ///
    /// # Errors
    /// As [`Destination::parse`].
    pub fn parse_with_default(text: &str, default: Port) -> Result<Self, DestinationError> {
        let (host, port) = split_port(text);
        let host = Host::parse(host)?;
        let port = port.map_or(Ok(default), Port::parse)?;
        Ok(Self { host, port })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl From<SocketAddr> for Host {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address.ip())
    }
}

/// Why a text is not a [`Destination`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DestinationError {
    /// The part before the port.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The port.
    #[error(transparent)]
    Port(#[from] PortError),
}

/// Cuts at the colon behind the host: the only one outside brackets. Text with more of them is a bare IPv6
/// address or has two ports; it has no port of its own and goes whole to the host's parser, to be refused.
fn split_port(text: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) =
        text.starts_with('[').then(|| text.rfind(']').map(|end| text.split_at(end + 1))).flatten()
    {
        return match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => (text, None),
        };
    }
    let host_begins = text.rfind('@').unwrap_or(0);
    match text.match_indices(':').filter(|(at, _)| *at >= host_begins).count() {
        1 => text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_forms() {
        for (text, shown) in [
            ("pypi.org:443", "pypi.org:443"),
            ("PyPI.org.:443", "pypi.org:443"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[2001:DB8::1]:443", "[2001:db8::1]:443"),
            ("[::ffff:10.0.0.1]:443", "[::ffff:10.0.0.1]:443"),
        ] {
            assert_eq!(Destination::parse(text).unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn every_odd_spelling_is_refused_for_its_own_reason() {
        use DestinationError::{Host as H, Port as P};
        let name = |error| H(HostError::Name(error));
        let table = [
            ("pypi.org", P(PortError::Missing)),
            ("pypi.org:", P(PortError::Missing)),
            ("pypi.org:0", P(PortError::Zero)),
            ("pypi.org:65536", P(PortError::OutOfRange)),
            ("pypi.org:007", P(PortError::LeadingZero)),
            ("pypi.org:443x", P(PortError::NotDecimal)),
            ("pypi.org:+443", P(PortError::NotDecimal)),
            (":443", name(NameError::Empty)),
            ("[pypi.org]:443", H(HostError::Bracketed)),
            ("[[pypi.org]]:443", H(HostError::Bracketed)),
            ("[[::1]]:443", H(HostError::Bracketed)),
            ("[10.0.0.1]:443", H(HostError::Bracketed)),
            ("[fe80::1%eth0]:443", H(HostError::ZoneId)),
            ("[fe80::1%25eth0]:443", H(HostError::ZoneId)),
            ("::1", H(HostError::BareIpv6)),
            ("::1:443", H(HostError::BareIpv6)),
            ("fe80::1", H(HostError::BareIpv6)),
            ("pypi.org:443:80", name(NameError::Character)),
            ("user@pypi.org:443", H(HostError::UserInfo)),
            ("user:pass@pypi.org:443", H(HostError::UserInfo)),
            ("pypi.org%00.evil.org:443", name(NameError::PercentEncoded)),
            ("pypi.org\0.evil.org:443", name(NameError::ControlByte)),
            ("pypi..org:443", name(NameError::EmptyLabel)),
            ("pypi.org#@evil.org:443", H(HostError::UserInfo)),
            ("evil.org/pypi.org:443", name(NameError::Character)),
            ("2130706433:443", name(NameError::Numeric)),
            ("0x7f000001:443", name(NameError::Numeric)),
            ("0177.0.0.1:443", name(NameError::Numeric)),
            ("127.1:443", name(NameError::Numeric)),
            ("127.0.0.1.:443", name(NameError::Numeric)),
            ("127.0.0.256:443", name(NameError::Numeric)),
            ("bücher.example:443", name(NameError::NotAscii)),
            ("", name(NameError::Empty)),
        ];
        for (text, error) in table {
            assert_eq!(Destination::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_default_port_is_for_a_port_left_out_alone() {
        let parse = |text| Destination::parse_with_default(text, Port::HTTP);
        assert_eq!(parse("pypi.org").unwrap().port, Port::HTTP);
        assert_eq!(parse("[2001:db8::1]").unwrap().port, Port::HTTP);
        assert_eq!(parse("pypi.org:8080").unwrap().port.number(), 8080);
        assert_eq!(parse("pypi.org:"), Err(DestinationError::Port(PortError::Missing)));
    }
}
