//! TCP and UDP ports.

use std::fmt;
use std::num::NonZeroU16;
use std::ops::RangeInclusive;

/// A TCP or UDP port, 1 to 65535.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(NonZeroU16);

impl Port {
    /// HTTP, 80.
    pub const HTTP: Self = Self(NonZeroU16::new(80).unwrap());
    /// HTTPS, 443.
    pub const HTTPS: Self = Self(NonZeroU16::new(443).unwrap());

    /// The port with this number; none for 0.
    #[must_use]
    pub fn new(number: u16) -> Option<Self> {
        NonZeroU16::new(number).map(Self)
    }

    /// Reads decimal digits without sign, space or leading zero.
    ///
    /// # Errors
    /// Says what is wrong; a number never wraps and nothing is ever taken for a default.
    pub fn parse(text: &str) -> Result<Self, PortError> {
        if text.is_empty() {
            return Err(PortError::Missing);
        }
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(PortError::NotDecimal);
        }
        if text.len() > 1 && text.starts_with('0') {
            return Err(PortError::LeadingZero);
        }
        let number: u16 = text.parse().map_err(|_| PortError::OutOfRange)?;
        Self::new(number).ok_or(PortError::Zero)
    }

    /// The number.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port({})", self.0)
    }
}

/// Why a text is not a [`Port`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PortError {
    /// There is none.
    #[error("the port is missing")]
    Missing,
    /// Something other than the digits 0 to 9.
    #[error("the port is not a decimal number")]
    NotDecimal,
    /// `007`: some readers take it for octal.
    #[error("the port has a leading zero")]
    LeadingZero,
    /// 0.
    #[error("the port is 0")]
    Zero,
    /// More than 65535.
    #[error("the port is above 65535")]
    OutOfRange,
}

/// A set of ports, as sorted ranges that neither touch nor overlap.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct PortSet(Vec<RangeInclusive<u16>>);

impl PortSet {
    /// Every port.
    #[must_use]
    pub fn all() -> Self {
        Self(vec![1..=u16::MAX])
    }

    /// 80 and 443: what an FQDN rule means where it names no ports, as in Azure ML.
    #[must_use]
    pub fn web() -> Self {
        [Port::HTTP, Port::HTTPS].into_iter().map(|port| port..=port).collect()
    }

    /// Whether `port` is in the set.
    #[must_use]
    pub fn contains(&self, port: Port) -> bool {
        self.0.iter().any(|range| range.contains(&port.number()))
    }

    /// Whether the set is every port.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::all()
    }

    /// Whether no port is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many ports are in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(ExactSizeIterator::len).sum()
    }

    /// The ports of this set that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        other.0.iter().fold(self.clone(), |left, out| {
            Self(left.0.iter().flat_map(|range| cut_out(range, out)).collect())
        })
    }

    /// Whether every port of `other` is in this set.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|inner| {
            self.0.iter().any(|outer| outer.start() <= inner.start() && inner.end() <= outer.end())
        })
    }

    /// Reads `80, 443, 8080-8089`, as Azure writes `port_ranges`; `*` is every port.
    ///
    /// # Errors
    /// Says what is wrong with the first part that is no port and no range.
    pub fn parse(text: &str) -> Result<Self, PortRangeError> {
        if text.trim() == "*" {
            return Ok(Self::all());
        }
        text.split(',').map(|part| parse_range(part.trim())).collect()
    }

    /// The ranges, sorted.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u16>> {
        self.0.iter().cloned()
    }
}

/// What is left of a range below and above another one.
fn cut_out(
    range: &RangeInclusive<u16>,
    out: &RangeInclusive<u16>,
) -> impl Iterator<Item = RangeInclusive<u16>> {
    let below = out.start().checked_sub(1).map(|end| *range.start()..=end.min(*range.end()));
    let above = out.end().checked_add(1).map(|start| start.max(*range.start())..=*range.end());
    below.into_iter().chain(above).filter(|left| !left.is_empty())
}

/// Sorts ranges and joins those that touch or overlap.
fn merge(ranges: impl Iterator<Item = RangeInclusive<u16>>) -> PortSet {
    let mut ranges: Vec<_> = ranges.map(RangeInclusive::into_inner).collect();
    ranges.sort_unstable();
    let mut merged: Vec<RangeInclusive<u16>> = Vec::with_capacity(ranges.len());
    for (start, end) in ranges {
        match merged.last_mut() {
            Some(last) if start <= last.end().saturating_add(1) => {
                *last = *last.start()..=end.max(*last.end());
            }
            _ => merged.push(start..=end),
        }
    }
    PortSet(merged)
}

impl FromIterator<RangeInclusive<Port>> for PortSet {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<Port>>>(ranges: I) -> Self {
        merge(ranges.into_iter().map(|range| range.start().number()..=range.end().number()))
    }
}

/// All of them together.
impl<'p> FromIterator<&'p PortSet> for PortSet {
    fn from_iter<I: IntoIterator<Item = &'p PortSet>>(sets: I) -> Self {
        merge(sets.into_iter().flat_map(PortSet::ranges))
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_all() {
            return f.write_str("*");
        }
        for (index, range) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            if range.start() == range.end() {
                write!(f, "{}", range.start())?;
            } else {
                write!(f, "{}-{}", range.start(), range.end())?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortSet({self})")
    }
}

/// Why a text is not a [`PortSet`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortRangeError {
    /// A part is no port.
    #[error("`{text}`: {error}")]
    Port {
        /// The part, as written.
        text: String,
        /// What is wrong with it.
        error: PortError,
    },
    /// A range whose end lies before its start.
    #[error("`{text}`: the range ends before it starts")]
    Backwards {
        /// The range, as written.
        text: String,
    },
}

fn parse_range(text: &str) -> Result<RangeInclusive<Port>, PortRangeError> {
    let port = |part: &str| {
        Port::parse(part.trim()).map_err(|error| PortRangeError::Port { text: text.to_owned(), error })
    };
    let (start, end) = text.split_once('-').map_or((text, text), |(start, end)| (start, end));
    let range = port(start)?..=port(end)?;
    if range.is_empty() { Err(PortRangeError::Backwards { text: text.to_owned() }) } else { Ok(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_decimal_is_a_port() {
        assert_eq!(Port::parse("443").unwrap(), Port::HTTPS);
        assert_eq!(Port::parse("65535").unwrap().number(), 65535);
        let table = [
            ("", PortError::Missing),
            ("0", PortError::Zero),
            ("007", PortError::LeadingZero),
            ("00", PortError::LeadingZero),
            ("65536", PortError::OutOfRange),
            ("4294967739", PortError::OutOfRange),
            ("18446744073709552059", PortError::OutOfRange),
            ("+443", PortError::NotDecimal),
            ("-1", PortError::NotDecimal),
            (" 443", PortError::NotDecimal),
            ("443 ", PortError::NotDecimal),
            ("４４３", PortError::NotDecimal),
            ("0x1bb", PortError::NotDecimal),
            ("https", PortError::NotDecimal),
        ];
        for (text, error) in table {
            assert_eq!(Port::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn ranges_merge_and_print_as_written() {
        let set = PortSet::parse("443, 80,8080-8085, 8084-8089,8090").unwrap();
        assert_eq!(set.to_string(), "80, 443, 8080-8090");
        assert!(set.contains(Port::new(8087).unwrap()));
        assert!(!set.contains(Port::new(81).unwrap()));
        assert!(PortSet::parse("*").unwrap().is_all());
        assert!(PortSet::parse("1-65535").unwrap().is_all());
        assert!(set.covers(&PortSet::web()));
        assert!(!PortSet::web().covers(&set));
    }

    #[test]
    fn ports_are_taken_out_of_a_set() {
        let without = |all: &str, out: &str| {
            PortSet::parse(all).unwrap().without(&PortSet::parse(out).unwrap()).to_string()
        };
        assert_eq!(without("80,443,5432", "80,443"), "5432");
        assert_eq!(without("*", "80, 443"), "1-79, 81-442, 444-65535");
        assert_eq!(without("10-20", "1-12,15,19-30"), "13-14, 16-18");
        assert_eq!(without("1,65535", "2-65534"), "1, 65535");
        let none = PortSet::web().without(&PortSet::all());
        assert!(none.is_empty());
        assert_eq!(PortSet::all().len(), 65535);
    }

    #[test]
    fn a_bad_range_names_its_part() {
        assert_eq!(PortSet::parse("80,90-70"), Err(PortRangeError::Backwards { text: "90-70".to_owned() }));
        assert!(matches!(PortSet::parse("80,"), Err(PortRangeError::Port { error: PortError::Missing, .. })));
        assert!(matches!(PortSet::parse("80-"), Err(PortRangeError::Port { error: PortError::Missing, .. })));
    }
}
