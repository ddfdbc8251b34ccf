//! The contents of a set in the one form in which the kernel and people get them: sorted, disjoint, merged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::Verdict;

/// The addresses of `ranges` as the fewest ranges, in order. Ranges of both families keep apart.
#[must_use]
pub fn merged(ranges: &[RangeInclusive<IpAddr>]) -> Vec<RangeInclusive<IpAddr>> {
    let bounds =
        ranges.iter().filter(|range| !range.is_empty()).map(|range| (*range.start(), *range.end(), ()));
    merge(bounds.collect(), address_behind).into_iter().map(|(start, end, ())| start..=end).collect()
}

/// The same ports as the fewest ranges, in order.
#[must_use]
pub fn merged_ports(ranges: &[RangeInclusive<u16>]) -> Vec<RangeInclusive<u16>> {
    let bounds =
        ranges.iter().filter(|range| !range.is_empty()).map(|range| (*range.start(), *range.end(), ()));
    let merged = merge(bounds.collect(), |port| port.checked_add(1));
    merged.into_iter().map(|(start, end, ())| start..=end).collect()
}

/// Disjoint ranges in order, those that touch and have the same verdict as one.
#[must_use]
pub fn merged_verdicts(
    ranges: &[(RangeInclusive<IpAddr>, Verdict)],
) -> Vec<(RangeInclusive<IpAddr>, &Verdict)> {
    let bounds = ranges.iter().map(|(range, verdict)| (*range.start(), *range.end(), verdict));
    let merged = merge(bounds.collect(), address_behind);
    merged.into_iter().map(|(start, end, verdict)| (start..=end, verdict)).collect()
}

/// The address after this one; none after a family's last.
#[must_use]
pub fn address_behind(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_add(1).map(|next| Ipv4Addr::from_bits(next).into()),
        IpAddr::V6(address) => address.to_bits().checked_add(1).map(|next| Ipv6Addr::from_bits(next).into()),
    }
}

/// The length of the prefix that is exactly `range`; none where no prefix is.
#[must_use]
pub fn prefix_length(range: &RangeInclusive<IpAddr>) -> Option<u32> {
    let (first, last, unused) = match (range.start(), range.end()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            (u128::from(first.to_bits()), u128::from(last.to_bits()), 96)
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits(), last.to_bits(), 0),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    let host = first ^ last;
    let is_prefix = first & host == 0 && last & host == host && host & host.wrapping_add(1) == 0;
    is_prefix.then(|| host.leading_zeros() - unused)
}

fn merge<T: Ord + Copy, V: PartialEq>(
    mut ranges: Vec<(T, T, V)>,
    behind: impl Fn(T) -> Option<T>,
) -> Vec<(T, T, V)> {
    ranges.sort_by_key(|(start, end, _)| (*start, *end));
    let mut merged: Vec<(T, T, V)> = Vec::with_capacity(ranges.len());
    for (start, end, value) in ranges {
        match merged.last_mut() {
            Some((_, last, same)) if *same == value && (start <= *last || behind(*last) == Some(start)) => {
                *last = end.max(*last);
            }
            _ => merged.push((start, end, value)),
        }
    }
    merged
}

#[cfg(test)]
mod tests;
