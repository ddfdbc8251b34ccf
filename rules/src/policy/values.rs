//! The values of single fields: ports, protocols, expiries, and the words that a field takes.

use jiff::civil::{Date, Time};
use jiff::tz::Offset;
use jiff::{Span as Interval, Timestamp};

use crate::document::{Mistake, duration, quoted};
use crate::port::{PortError, PortRangeError, PortSet};
use crate::ranges::parse_prefix;
use crate::rule::{Protocol, Protocols};
use crate::ruleset::OnRevoke;

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
