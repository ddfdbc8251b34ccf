//! The upstream resolvers: where they are, and how they are spoken to.

pub(crate) mod exchange;
pub(crate) mod group;
pub mod health;
pub mod system;
pub(crate) mod tls;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use rustls::pki_types::ServerName;

/// The port of DNS over UDP and TCP (RFC 1035 §4.2).
const PORT: u16 = 53;
/// The port of DNS over TLS (RFC 7858 §3.1).
const TLS_PORT: u16 = 853;

/// One upstream resolver: `10.0.0.5`, `10.0.0.6:5353`, `tcp://10.0.0.7`, `tls://10.0.0.6#dns.example`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Upstream {
    /// Where it listens.
    pub socket: SocketAddr,
    /// How it is spoken to.
    pub transport: Transport,
}

/// How an upstream is spoken to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    /// UDP, and TCP where an answer was truncated.
    Udp,
    /// TCP alone.
    Tcp,
    /// TLS (RFC 7858), with a certificate for this name or address that the system trusts.
    Tls(ServerName<'static>),
}

impl From<SocketAddr> for Upstream {
    fn from(socket: SocketAddr) -> Self {
        Self { socket, transport: Transport::Udp }
    }
}

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        match text.split_once("://") {
            None => Ok(socket(text, PORT)?.into()),
            Some(("udp", rest)) => Ok(socket(rest, PORT)?.into()),
            Some(("tcp", rest)) => Ok(Self { socket: socket(rest, PORT)?, transport: Transport::Tcp }),
            Some(("tls", rest)) => over_tls(rest),
            Some(_) => Err(UpstreamError::Scheme),
        }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.transport {
            Transport::Udp => self.socket.fmt(f),
            Transport::Tcp => write!(f, "tcp://{}", self.socket),
            Transport::Tls(name) => write!(f, "tls://{}#{}", self.socket, name.to_str()),
        }
    }
}

/// Why a text is no upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Not an address: upstreams are not found by name, for who would resolve it?
    #[error("not an address, with or without a port")]
    Address,
    /// A port of 0, or an address that stands for none.
    #[error("not an address that can be asked")]
    Unspecified,
    /// Something else than `udp`, `tcp` and `tls` before `://`.
    #[error("the scheme is none of udp, tcp and tls")]
    Scheme,
    /// What follows `#` is no name of a server.
    #[error("what follows # is not the name of a server")]
    ServerName,
}

fn over_tls(text: &str) -> Result<Upstream, UpstreamError> {
    let (address, name) = text.split_once('#').map_or((text, None), |(address, name)| (address, Some(name)));
    let socket = socket(address, TLS_PORT)?;
    let name = match name {
        Some(name) => ServerName::try_from(name.to_owned()).map_err(|_| UpstreamError::ServerName)?,
        None => ServerName::IpAddress(socket.ip().into()),
    };
    Ok(Upstream { socket, transport: Transport::Tls(name) })
}

fn socket(text: &str, port: u16) -> Result<SocketAddr, UpstreamError> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let plain = bare.parse::<IpAddr>().map(|address| SocketAddr::new(address, port));
    let socket: SocketAddr = plain.or_else(|_| text.parse()).map_err(|_| UpstreamError::Address)?;
    let usable = socket.port() != 0 && !socket.ip().is_unspecified() && !socket.ip().is_multicast();
    if usable { Ok(socket) } else { Err(UpstreamError::Unspecified) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_written_in_these_ways() {
        for (text, shown) in [
            ("10.0.0.5", "10.0.0.5:53"),
            ("10.0.0.6:5353", "10.0.0.6:5353"),
            ("udp://10.0.0.6", "10.0.0.6:53"),
            ("2001:db8::5", "[2001:db8::5]:53"),
            ("[2001:db8::5]:5353", "[2001:db8::5]:5353"),
            ("tcp://10.0.0.7", "tcp://10.0.0.7:53"),
            ("tls://10.0.0.6#dns.example", "tls://10.0.0.6:853#dns.example"),
            ("tls://[2001:db8::5]:8853#dns.example", "tls://[2001:db8::5]:8853#dns.example"),
            ("tls://10.0.0.6", "tls://10.0.0.6:853#10.0.0.6"),
        ] {
            let upstream: Upstream = text.parse().unwrap();
            assert_eq!(upstream.to_string(), shown);
            assert_eq!(shown.parse(), Ok(upstream), "{shown}");
        }
    }

    #[test]
    fn what_is_no_upstream_says_why() {
        for (text, error) in [
            ("", UpstreamError::Address),
            ("dns.example", UpstreamError::Address),
            ("10.0.0.5:", UpstreamError::Address),
            ("10.0.0.5:70000", UpstreamError::Address),
            ("10.0.0.5#dns.example", UpstreamError::Address),
            ("tcp://", UpstreamError::Address),
            ("10.0.0.5:0", UpstreamError::Unspecified),
            ("0.0.0.0", UpstreamError::Unspecified),
            ("tcp://[::]:53", UpstreamError::Unspecified),
            ("224.0.0.251", UpstreamError::Unspecified),
            ("https://10.0.0.5", UpstreamError::Scheme),
            ("TLS://10.0.0.5", UpstreamError::Scheme),
            ("tls://10.0.0.5#", UpstreamError::ServerName),
            ("tls://10.0.0.5#a b", UpstreamError::ServerName),
        ] {
            assert_eq!(text.parse::<Upstream>(), Err(error), "{text:?}");
        }
    }
}
