//! The values of single fields: sizes, times, ports, prefixes, and the words that a field takes.

use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::civil::{Date, Time};
use jiff::tz::Offset;
use jiff::{Span as Interval, Timestamp};

use crate::address::judged;
use crate::port::{PortError, PortRangeError, PortSet};
use crate::ranges::{PrefixError, parse_prefix};
use crate::rule::{Protocol, Protocols};
use crate::ruleset::OnRevoke;

use super::diagnostic::quoted;

/// What is wrong with a value, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Mistake {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()) }
    }
}

/// `TCP`, `UDP`, `ICMP`, `*` or `Any`, in any letter case, as Azure writes them.
pub(crate) fn protocol(text: &str) -> Result<Protocols, Mistake> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocols::One(Protocol::Tcp)),
        "udp" => Ok(Protocols::One(Protocol::Udp)),
        "icmp" => Ok(Protocols::One(Protocol::Icmp)),
        "*" | "any" => Ok(Protocols::Any),
        _ => Err(Mistake::new(format!("{} is not a protocol", quoted(text)), "TCP, UDP, ICMP or \"*\"")),
    }
}

/// One part of a list of ports: `443`, `8080-8089` or `*`.
pub(crate) fn ports(text: &str) -> Result<PortSet, Mistake> {
    PortSet::parse(text).map_err(|error| {
        let hint = match &error {
            PortRangeError::Port { error: PortError::Zero, .. } => {
                "ports are 1 to 65535, and `*` is every port"
            }
            PortRangeError::Port { .. } => "a port is a number from 1 to 65535, a range is 8080-8089",
            PortRangeError::Backwards { .. } => "write the smaller port first",
        };
        Mistake::new(error.to_string(), hint)
    })
}

/// A prefix, or an address as a prefix of one. What stands for an IPv4 address inside IPv6 is not taken: every
/// address is judged by the IPv4 address inside, so such a prefix would never match.
pub(crate) fn prefix(text: &str) -> Result<IpNet, Mistake> {
    let prefix = parse_prefix(text).map_err(|error| {
        let hint = match error {
            PrefixError::HostBits { meant } => format!("write `{meant}`, or the address alone"),
            PrefixError::Length => "an IPv4 prefix has up to 32 bits, an IPv6 prefix up to 128".to_owned(),
            PrefixError::Address => "as in `10.1.0.0/24`, `10.1.0.4` or `2001:db8::/32`".to_owned(),
        };
        Mistake::new(format!("{} is not a prefix: {error}", quoted(text)), hint)
    })?;
    match prefix {
        IpNet::V6(outer) if let Some(inner) = embedded_v4(outer) => Err(Mistake::new(
            format!("{} is an IPv4 prefix inside IPv6", quoted(text)),
            format!("addresses are judged by the IPv4 address inside: write `{inner}`"),
        )),
        IpNet::V4(_) | IpNet::V6(_) => Ok(prefix),
    }
}

/// The IPv4 prefix that an IPv6 prefix stands for (IPv4-mapped, NAT64 and the like).
fn embedded_v4(outer: Ipv6Net) -> Option<Ipv4Net> {
    let first = judged(outer.network().into());
    let last = judged(outer.broadcast().into());
    let (std::net::IpAddr::V4(first), std::net::IpAddr::V4(last)) = (first, last) else { return None };
    // Teredo holds its address inverted, so that the ends change places.
    let (first, last) = (first.min(last), first.max(last));
    let length = (first.to_bits() ^ last.to_bits()).leading_zeros();
    Ipv4Net::new(first, length as u8).ok().map(|net| net.trunc())
}

/// Bytes: `10MB`, `1GiB`, `4096`.
pub(crate) fn size(text: &str) -> Result<u64, Mistake> {
    const UNITS: [(&str, u64); 10] = [
        ("", 1),
        ("b", 1),
        ("kb", 1_000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("tb", 1_000_000_000_000),
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("tib", 1 << 40),
    ];
    let (number, unit) = number_and_unit(text);
    let unit = unit.to_ascii_lowercase();
    let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    match (number.parse::<u64>().ok(), factor) {
        (Some(0), Some(_)) => {
            Err(Mistake::new("the limit is 0 bytes", "leave the rule out, or deny the name"))
        }
        (Some(number), Some(factor)) if let Some(bytes) = number.checked_mul(factor) => Ok(bytes),
        _ => Err(Mistake::new(
            format!("{} is not a size", quoted(text)),
            "as in `10MB`, `1GiB` or `4096` bytes",
        )),
    }
}

/// `60s`, `5m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, Mistake> {
    let (number, unit) = number_and_unit(text);
    let factor = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3_600),
        _ => None,
    };
    // A day at most: what drains longer is kept.
    let seconds =
        number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    match seconds {
        Some(seconds) if (1..=86_400).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        Some(_) | None => Err(Mistake::new(
            format!("{} is not a duration", quoted(text)),
            "as in `60s`, `5m` or `1h`, up to `24h`",
        )),
    }
}

fn number_and_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

/// The moment from which a rule no longer holds: `2027-01-31` is the end of that day in UTC, anything else a
/// moment as in RFC 3339.
pub(crate) fn expiry(text: &str) -> Result<Timestamp, Mistake> {
    let mistake = || {
        Mistake::new(
            format!("{} is not a date or a time", quoted(text)),
            "as in `2027-01-31` (the end of that day, UTC) or `2027-01-31T18:00:00Z`",
        )
    };
    let is_date = text.len() == 10 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    if !is_date {
        return text.parse().map_err(|_| mistake());
    }
    let day: Date = text.parse().map_err(|_| mistake())?;
    let next = day.checked_add(Interval::new().days(1)).map_err(|_| mistake())?;
    Offset::UTC.to_timestamp(next.to_datetime(Time::midnight())).map_err(|_| mistake())
}

/// `close`, `keep`, or `drain: 60s` as one string.
pub(crate) fn on_revoke(text: &str) -> Result<OnRevoke, Mistake> {
    match text {
        "close" => Ok(OnRevoke::Close),
        "keep" => Ok(OnRevoke::Keep),
        _ => match text.strip_prefix("drain:") {
            Some(time) => duration(time.trim()).map(OnRevoke::Drain),
            None => Err(Mistake::new(
                format!("{} is not a way to end open tunnels", quoted(text)),
                "close, keep, or {drain: 60s}",
            )),
        },
    }
}

/// A DNS record type by name, or as `TYPE123` (RFC 3597). None for those that every rule's names have.
pub(crate) fn record_type(text: &str) -> Result<Option<u16>, Mistake> {
    const TYPES: [(&str, u16); 18] = [
        ("NS", 2),
        ("CNAME", 5),
        ("SOA", 6),
        ("PTR", 12),
        ("MX", 15),
        ("TXT", 16),
        ("LOC", 29),
        ("SRV", 33),
        ("NAPTR", 35),
        ("DNAME", 39),
        ("DS", 43),
        ("SSHFP", 44),
        ("DNSKEY", 48),
        ("TLSA", 52),
        ("SMIMEA", 53),
        ("OPENPGPKEY", 61),
        ("URI", 256),
        ("CAA", 257),
    ];
    let name = text.to_ascii_uppercase();
    if matches!(name.as_str(), "A" | "AAAA" | "HTTPS" | "SVCB") {
        return Ok(None);
    }
    let numbered = || name.strip_prefix("TYPE").and_then(|number| number.parse::<u16>().ok());
    let number = TYPES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number).or_else(numbered);
    match number {
        Some(1 | 28 | 64 | 65) => Ok(None),
        // OPT, the transfer and meta types, and ANY are no data (RFC 6895 §3.1).
        Some(0 | 41 | 128..=255) | None => Err(Mistake::new(
            format!("{} is not a record type that can be asked for", quoted(text)),
            "as in SRV, TXT, MX, PTR or TYPE123; A, AAAA, HTTPS and SVCB need no mention",
        )),
        Some(number) => Ok(Some(number)),
    }
}

/// The name of a group of sources or of a parameter.
pub(crate) fn identifier(text: &str, what: &str) -> Result<(), Mistake> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let word = text.bytes().all(known) && text.bytes().any(|byte| byte.is_ascii_alphabetic());
    if word && text.len() <= 64 && parse_prefix(text).is_err() {
        return Ok(());
    }
    Err(Mistake::new(
        format!("{} cannot be the name of {what}", quoted(text)),
        "a name is letters, digits, `-`, `_` and `.`, with a letter among them",
    ))
}

/// What a parameter may stand for: part of a name, and nothing that would widen a pattern.
pub(crate) fn parameter_value(text: &str) -> Result<(), Mistake> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !text.is_empty() && text.len() <= 253 && text.bytes().all(known) {
        return Ok(());
    }
    Err(Mistake::new(
        format!("{} cannot be the value of a parameter", quoted(text)),
        "a value is letters, digits, `-`, `_` and `.`: part of a name, without wildcards",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("10MB", 10_000_000), ("1GiB", 1 << 30), ("1 KiB", 1024), ("4096", 4096), ("5b", 5)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MB", "1.5GB", "-1", "0", "0MB", "1XB", "18446744073709551615TB", "1e9", "١MB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        for text in ["", "60", "0s", "25h", "1d", "-1s", "1.5s", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_date_means_the_end_of_that_day() {
        assert_eq!(expiry("2027-01-31").unwrap().to_string(), "2027-02-01T00:00:00Z");
        assert_eq!(expiry("2028-02-29").unwrap().to_string(), "2028-03-01T00:00:00Z");
        assert_eq!(expiry("2027-01-31T18:00:00+02:00").unwrap().to_string(), "2027-01-31T16:00:00Z");
        for text in
            ["", "2027-02-30", "31.01.2027", "2027-1-31", "tomorrow", "2027-01-31T18:00", "9999-12-31"]
        {
            assert!(expiry(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_prefix_of_ipv4_inside_ipv6_names_the_prefix_to_write() {
        for (text, inner) in [
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.7", "10.0.0.7/32"),
            ("64:ff9b::a00:0/104", "10.0.0.0/8"),
            ("2002:a00::/24", "10.0.0.0/8"),
            ("2002::/16", "0.0.0.0/0"),
        ] {
            let hint = prefix(text).unwrap_err().hint.unwrap();
            assert!(hint.contains(&format!("`{inner}`")), "{text}: {hint}");
        }
        for text in ["10.0.0.0/8", "::/0", "2001:db8::/32", "::1", "0.0.0.0/0", "fd00::/8"] {
            assert!(prefix(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn record_types() {
        assert_eq!(record_type("srv"), Ok(Some(33)));
        assert_eq!(record_type("TYPE99"), Ok(Some(99)));
        assert_eq!(record_type("AAAA"), Ok(None));
        assert_eq!(record_type("TYPE65"), Ok(None));
        for text in ["ANY", "AXFR", "TYPE255", "OPT", "TYPE41", "TYPE0", "TYPE65536", "X", ""] {
            assert!(record_type(text).is_err(), "{text}");
        }
    }
}
