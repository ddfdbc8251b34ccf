//! Values that more than one kind of document has: prefixes, sizes, durations.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::address::judged;
use crate::ranges::{PrefixError, parse_prefix};

use super::diagnostic::quoted;

/// What is wrong with a value, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl Mistake {
    /// A mistake with its remedy.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()) }
    }
}

/// A prefix, or an address as a prefix of one. What stands for an IPv4 address inside IPv6 is not taken: every
/// address is judged by the IPv4 address inside, so such a prefix would never match.
///
/// # Errors
/// What it is not, and what to write.
pub fn prefix(text: &str) -> Result<IpNet, Mistake> {
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
    let (IpAddr::V4(first), IpAddr::V4(last)) = (first, last) else { return None };
    // Teredo holds its address inverted, so that the ends change places.
    let (first, last) = (first.min(last), first.max(last));
    let length = (first.to_bits() ^ last.to_bits()).leading_zeros();
    Ipv4Net::new(first, length as u8).ok().map(|net| net.trunc())
}

/// Bytes: `10MB`, `1GiB`, `4096`.
///
/// # Errors
/// What it is not, and what to write.
pub fn size(text: &str) -> Result<u64, Mistake> {
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
            Err(Mistake::new("a size of 0 bytes limits everything away", "give a size, or leave the key out"))
        }
        (Some(number), Some(factor)) if let Some(bytes) = number.checked_mul(factor) => Ok(bytes),
        _ => Err(Mistake::new(
            format!("{} is not a size", quoted(text)),
            "as in `10MB`, `1GiB` or `4096` bytes",
        )),
    }
}

/// `60s`, `5m`, `1h`.
///
/// # Errors
/// What it is not, and what to write.
pub fn duration(text: &str) -> Result<Duration, Mistake> {
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
}
