//! Sets and maps over address prefixes, flattened to sorted ranges: what a look-up needs, and no tree.
//!
//! Both structures take an address at its word: an IPv4 address inside an IPv6 form (IPv4-mapped, NAT64) is
//! an IPv6 address here. Whoever asks unwraps it first.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

/// A set of addresses, built from prefixes.
///
/// Held as sorted ranges that neither touch nor overlap, so that two sets of the same addresses are equal
/// however they were written. Costs 8 bytes a range of IPv4 and 32 of IPv6; a look-up is a binary search.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct PrefixSet {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl PrefixSet {
    /// Whether `address` is in the set. IPv4-mapped addresses are the caller's to unwrap.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.covers(address.into())
    }

    /// Whether every address of `prefix` is in the set.
    #[must_use]
    pub fn covers(&self, prefix: IpNet) -> bool {
        match bounds(prefix) {
            Bounds::V4(start, end) => covers(&self.v4, start, end),
            Bounds::V6(start, end) => covers(&self.v6, start, end),
        }
    }

    /// Whether no address is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The addresses as ranges that neither touch nor overlap, in order, IPv4 first.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<IpAddr>> {
        let v4 = self.v4.iter().map(|&(start, end)| address_v4(start).into()..=address_v4(end).into());
        let v6 = self.v6.iter().map(|&(start, end)| address_v6(start).into()..=address_v6(end).into());
        v4.chain(v6)
    }

    /// The fewest prefixes that make up the set, in order, IPv4 first.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        let split_v4 = |&(start, end): &_| Ipv4Subnets::new(address_v4(start), address_v4(end), 0);
        let split_v6 = |&(start, end): &_| Ipv6Subnets::new(address_v6(start), address_v6(end), 0);
        let (v4, v6) = (self.v4.iter().flat_map(split_v4), self.v6.iter().flat_map(split_v6));
        v4.map(IpNet::V4).chain(v6.map(IpNet::V6))
    }
}

/// Host bits of a prefix are ignored.
impl FromIterator<IpNet> for PrefixSet {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match bounds(prefix) {
                Bounds::V4(start, end) => v4.push((start, end)),
                Bounds::V6(start, end) => v6.push((start, end)),
            }
        }
        Self { v4: merge(v4), v6: merge(v6) }
    }
}

impl fmt::Display for PrefixSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, prefix) in self.prefixes().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{prefix}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for PrefixSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrefixSet({self})")
    }
}

/// What each address belongs to, where one address may be in many prefixes with different values.
///
/// Built once and flattened to disjoint ranges, each with the number of a set of values; equal sets are
/// held once. A large IPv4 map has an index over the upper 16 bits, so that a look-up searches a few ranges.
#[derive(Clone)]
pub struct PrefixMap<T> {
    v4: Segments<u32>,
    /// Where in `v4` each /16 begins and, last, where the last one ends; empty for a small map.
    blocks: Box<[u32]>,
    v6: Segments<u128>,
    sets: ValueSets<T>,
}

/// From this many IPv4 ranges on, the 256 KiB of the index are less than the ranges themselves, and those
/// have outgrown the first-level cache that a plain binary search would want to live in.
const INDEXED_FROM: usize = 1 << 15;

impl<T: Copy + Ord> PrefixMap<T> {
    /// The values of all prefixes that hold `address`: those of the most specific prefix first, and those
    /// of one prefix in ascending order. A value that several of them carry comes once, at its most
    /// specific place. IPv4-mapped addresses are the caller's to unwrap.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> &[T] {
        let set = match address {
            IpAddr::V4(address) => self.v4_set(address.to_bits()),
            IpAddr::V6(address) => self.v6.find(address.to_bits(), 0, self.v6.starts.len()),
        };
        self.sets.get(set)
    }

    /// Whether no address has a value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.starts.is_empty() && self.v6.starts.is_empty()
    }

    /// The addresses at which the values change, in order, IPv4 first.
    pub(crate) fn cuts(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.starts.iter().map(|start| IpAddr::V4(address_v4(*start)));
        v4.chain(self.v6.starts.iter().map(|start| IpAddr::V6(address_v6(*start))))
    }

    fn v4_set(&self, address: u32) -> u32 {
        let block = (address >> 16) as usize;
        match (self.blocks.get(block), self.blocks.get(block + 1)) {
            (Some(&from), Some(&to)) => self.v4.find(address, from as usize, to as usize),
            _ => self.v4.find(address, 0, self.v4.starts.len()),
        }
    }
}

/// Host bits of a prefix are ignored.
impl<T: Copy + Ord> FromIterator<(IpNet, T)> for PrefixMap<T> {
    fn from_iter<I: IntoIterator<Item = (IpNet, T)>>(pairs: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (prefix, value) in pairs {
            match bounds(prefix) {
                Bounds::V4(start, end) => v4.push(Entry { start, end, value }),
                Bounds::V6(start, end) => v6.push(Entry { start, end, value }),
            }
        }
        let mut sets = SetNumbers(BTreeMap::new());
        let (v4, v6) = (flatten(v4, &mut sets), flatten(v6, &mut sets));
        let blocks = if v4.starts.len() < INDEXED_FROM { Box::default() } else { index(&v4) };
        Self { v4, blocks, v6, sets: sets.finish() }
    }
}

impl<T> fmt::Debug for PrefixMap<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrefixMap({} IPv4 and {} IPv6 ranges)", self.v4.starts.len(), self.v6.starts.len())
    }
}

/// Reads a prefix as a policy or a published file writes it: an address, a slash and a length; an address
/// alone is a prefix of one address.
///
/// # Errors
/// Says what is wrong. Host bits are an error and not cut off: either the address or the length is not
/// what its author meant.
pub fn parse_prefix(text: &str) -> Result<IpNet, PrefixError> {
    let (address, length) = text.split_once('/').map_or((text, None), |(a, length)| (a, Some(length)));
    let address: IpAddr = address.parse().map_err(|_| PrefixError::Address)?;
    let Some(length) = length else { return Ok(address.into()) };
    let prefix = IpNet::new(address, parse_length(length)?).map_err(|_| PrefixError::Length)?;
    if prefix.network() == address {
        Ok(prefix)
    } else {
        Err(PrefixError::HostBits { meant: prefix.trunc() })
    }
}

/// Why a text is not a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PrefixError {
    /// What stands before the slash is no IPv4 or IPv6 address in its plain spelling.
    #[error("not an IPv4 or IPv6 address")]
    Address,
    /// What stands behind the slash is no number, or more bits than the address has.
    #[error("the prefix length is not a number from 0 to 32 (IPv4) or 128 (IPv6)")]
    Length,
    /// The address has bits behind the prefix.
    #[error("the address has bits set behind the prefix length; the prefix around it is {meant}")]
    HostBits {
        /// The prefix that holds the address.
        meant: IpNet,
    },
}

fn parse_length(text: &str) -> Result<u8, PrefixError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().map_err(|_| PrefixError::Length) } else { Err(PrefixError::Length) }
}

fn address_v4(bits: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(bits)
}

fn address_v6(bits: u128) -> Ipv6Addr {
    Ipv6Addr::from_bits(bits)
}

/// First and last address of a prefix, as numbers.
enum Bounds {
    V4(u32, u32),
    V6(u128, u128),
}

fn bounds(prefix: IpNet) -> Bounds {
    match prefix {
        IpNet::V4(prefix) => Bounds::V4(prefix.network().to_bits(), prefix.broadcast().to_bits()),
        IpNet::V6(prefix) => Bounds::V6(prefix.network().to_bits(), prefix.broadcast().to_bits()),
    }
}

/// An address as a number: `u32` for IPv4, `u128` for IPv6.
trait Bits: Copy + Ord {
    /// The next address; none behind the last.
    fn next(self) -> Option<Self>;
}

impl Bits for u32 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Bits for u128 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// Whether one of the merged ranges holds `start` to `end`. Two ranges never do together: they would touch.
fn covers<N: Bits>(ranges: &[(N, N)], start: N, end: N) -> bool {
    let behind = ranges.partition_point(|&(first, _)| first <= start);
    let last = behind.checked_sub(1).and_then(|index| ranges.get(index));
    last.is_some_and(|&(_, last)| end <= last)
}

fn merge<N: Bits>(mut ranges: Vec<(N, N)>) -> Box<[(N, N)]> {
    ranges.sort_unstable();
    let mut merged: Vec<(N, N)> = Vec::new();
    for (start, end) in ranges {
        match merged.last_mut() {
            Some((_, last)) if last.next().is_none_or(|next| start <= next) => *last = end.max(*last),
            _ => merged.push((start, end)),
        }
    }
    merged.into_boxed_slice()
}

/// The address space cut into segments: each begins at its start, ends before the next one's, and has the
/// number of a value set. What lies before the first start has no values.
#[derive(Clone)]
struct Segments<N> {
    starts: Box<[N]>,
    sets: Box<[u32]>,
}

impl<N: Bits> Segments<N> {
    /// The set of `address`, whose segment begins before `from` or is one of `from..to`.
    fn find(&self, address: N, from: usize, to: usize) -> u32 {
        let near = self.starts.get(from..to).unwrap_or_default();
        let behind = from + near.partition_point(|&start| start <= address);
        behind.checked_sub(1).and_then(|index| self.sets.get(index)).copied().unwrap_or(NO_VALUES)
    }
}

/// For each of the 65,536 blocks the number of segments that begin before it, and at the end all of them.
fn index(segments: &Segments<u32>) -> Box<[u32]> {
    let begin_before = |first: u32| segments.starts.partition_point(|&start| start < first);
    let positions = (0..=u16::MAX).map(|block| begin_before(u32::from(block) << 16));
    positions.chain([segments.starts.len()]).map(number).collect()
}

struct Entry<N, T> {
    start: N,
    end: N,
    value: T,
}

/// A prefix whose end the sweep has not reached, with what holds inside it.
struct Open<N, T> {
    end: N,
    set: u32,
    values: Vec<T>,
}

/// Walks the prefixes from low to high. Two prefixes are nested or apart, never halfway, so the open ones
/// are a stack with the most specific on top.
fn flatten<N: Bits, T: Copy + Ord>(mut entries: Vec<Entry<N, T>>, sets: &mut SetNumbers<T>) -> Segments<N> {
    entries.sort_unstable_by_key(|entry| (entry.start, std::cmp::Reverse(entry.end), entry.value));
    let mut cuts = Cuts { starts: Vec::new(), sets: Vec::new() };
    let mut open: Vec<Open<N, T>> = Vec::new();
    for prefix in entries.chunk_by(|a, b| a.start == b.start && a.end == b.end) {
        let Some(&Entry { start, end, .. }) = prefix.first() else { continue };
        close_before(Some(start), &mut open, &mut cuts);
        let values = nest(prefix, open.last().map_or(&[], |around| &around.values));
        let set = sets.number(&values);
        cuts.push(start, set);
        open.push(Open { end, set, values });
    }
    close_before(None, &mut open, &mut cuts);
    cuts.finish()
}

/// The values of a prefix, then those around it that it does not repeat.
fn nest<N, T: Copy + Ord>(prefix: &[Entry<N, T>], around: &[T]) -> Vec<T> {
    let mut own: Vec<T> = prefix.iter().map(|entry| entry.value).collect();
    own.dedup();
    let count = own.len();
    for value in around {
        if own.get(..count).is_some_and(|own| own.binary_search(value).is_err()) {
            own.push(*value);
        }
    }
    own
}

/// Ends the open prefixes that end before `start`, or all of them; behind each, the one around it goes on.
fn close_before<N: Bits, T>(start: Option<N>, open: &mut Vec<Open<N, T>>, cuts: &mut Cuts<N>) {
    while let Some(last) = open.pop_if(|last| start.is_none_or(|start| last.end < start)) {
        if let Some(next) = last.end.next() {
            cuts.push(next, open.last().map_or(NO_VALUES, |around| around.set));
        }
    }
}

struct Cuts<N> {
    starts: Vec<N>,
    sets: Vec<u32>,
}

impl<N: Bits> Cuts<N> {
    /// From `start` on the set is `set`. A later word on the same start wins; what changes nothing is left out.
    fn push(&mut self, start: N, set: u32) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.sets.pop();
        }
        if self.sets.last().copied().unwrap_or(NO_VALUES) != set {
            self.starts.push(start);
            self.sets.push(set);
        }
    }

    fn finish(self) -> Segments<N> {
        Segments { starts: self.starts.into_boxed_slice(), sets: self.sets.into_boxed_slice() }
    }
}

/// The number of the empty set.
const NO_VALUES: u32 = 0;

/// Value sets by number, end to end: set `n` ends at `ends[n]`, where the next one begins.
#[derive(Clone)]
struct ValueSets<T> {
    values: Box<[T]>,
    ends: Box<[u32]>,
}

impl<T> ValueSets<T> {
    fn get(&self, set: u32) -> &[T] {
        let end_of = |set: usize| self.ends.get(set).copied().unwrap_or(0) as usize;
        let set = set as usize;
        let start = set.checked_sub(1).map_or(0, end_of);
        self.values.get(start..end_of(set)).unwrap_or_default()
    }
}

/// The number of each set seen so far, beginning behind [`NO_VALUES`].
struct SetNumbers<T>(BTreeMap<Vec<T>, u32>);

impl<T: Copy + Ord> SetNumbers<T> {
    fn number(&mut self, values: &[T]) -> u32 {
        if let Some(&known) = self.0.get(values) {
            return known;
        }
        let new = number(self.0.len() + 1);
        self.0.insert(values.to_vec(), new);
        new
    }

    fn finish(self) -> ValueSets<T> {
        let mut sets: Vec<(u32, Vec<T>)> = self.0.into_iter().map(|(set, number)| (number, set)).collect();
        sets.sort_unstable_by_key(|(number, _)| *number);
        let (mut values, mut ends) = (Vec::new(), vec![0]);
        for (_, set) in sets {
            values.extend(set);
            ends.push(number(values.len()));
        }
        ValueSets { values: values.into_boxed_slice(), ends: ends.into_boxed_slice() }
    }
}

/// A count of ranges or values as held. Input that would need more than 2³² of them has long been refused by
/// the bounds on files; were it not, the map would answer with no values.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        parse_prefix(text).unwrap()
    }

    fn set(texts: &[&str]) -> PrefixSet {
        texts.iter().copied().map(net).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn sets_of_the_same_addresses_are_equal_however_written() {
        let whole = set(&["10.0.0.0/8", "2001:db8::/32"]);
        assert_eq!(
            whole,
            set(&["10.128.0.0/9", "2001:db8::/33", "10.0.0.0/9", "10.1.0.0/16", "2001:db8:8000::/33"])
        );
        assert_eq!(whole.to_string(), "10.0.0.0/8, 2001:db8::/32");
        assert_ne!(whole, set(&["10.0.0.0/9", "2001:db8::/32"]));
    }

    #[test]
    fn the_ends_of_the_address_space_are_addresses_too() {
        let all = set(&["0.0.0.0/0", "::/0"]);
        assert_eq!(all.to_string(), "0.0.0.0/0, ::/0");
        assert_eq!(all, set(&["128.0.0.0/1", "0.0.0.0/1", "8000::/1", "::/1", "::/0"]));
        for text in ["0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            assert!(all.contains(ip(text)), "{text}");
            let one: PrefixSet = [IpNet::from(ip(text))].into_iter().collect();
            assert!(one.contains(ip(text)), "{text}");
            assert_eq!(one.prefixes().collect::<Vec<_>>(), [IpNet::from(ip(text))]);
            let map: PrefixMap<u8> = [(IpNet::from(ip(text)), 7)].into_iter().collect();
            assert_eq!(map.get(ip(text)), [7], "{text}");
        }
        assert_eq!(all.ranges().count(), 2);
        assert!(PrefixSet::default().is_empty() && !PrefixSet::default().contains(ip("0.0.0.0")));
    }

    #[test]
    fn an_ipv4_mapped_address_is_no_ipv4_address_here() {
        assert!(!set(&["10.0.0.0/8"]).contains(ip("::ffff:10.0.0.1")));
        assert!(!set(&["::/0"]).contains(ip("10.0.0.1")));
    }

    #[test]
    fn a_set_covers_a_prefix_only_as_a_whole() {
        let held = set(&["10.0.0.0/9", "10.128.0.0/10"]);
        assert!(held.covers(net("10.64.0.0/10")) && held.covers(net("10.128.0.0/10")));
        assert!(!held.covers(net("10.0.0.0/8")) && !held.covers(net("10.128.0.0/9")));
        assert!(!held.covers(net("0.0.0.0/0")) && !held.covers(net("::/0")));
    }

    #[test]
    fn the_most_specific_prefix_comes_first_and_equal_ones_in_order() {
        let map: PrefixMap<u8> = [
            ("10.0.0.0/8", 1),
            ("10.1.0.0/16", 9),
            ("10.1.0.0/16", 3),
            ("10.1.2.0/24", 1),
            ("10.1.2.0/24", 1),
            ("10.1.255.0/24", 5),
        ]
        .into_iter()
        .map(|(text, value)| (net(text), value))
        .collect();
        assert_eq!(map.get(ip("10.0.0.1")), [1]);
        assert_eq!(map.get(ip("10.1.0.1")), [3, 9, 1]);
        assert_eq!(map.get(ip("10.1.2.255")), [1, 3, 9]);
        assert_eq!(map.get(ip("10.1.255.255")), [5, 3, 9, 1]);
        assert_eq!(map.get(ip("10.2.0.0")), [1]);
        assert_eq!(map.get(ip("11.0.0.0")), [0; 0]);
        assert_eq!(map.get(ip("9.255.255.255")), [0; 0]);
    }

    #[test]
    fn a_large_map_answers_at_the_edges_of_its_blocks() {
        let hosts = (0..INDEXED_FROM as u32).map(|n| (IpNet::from(IpAddr::from(address_v4(n << 15))), n));
        let map: PrefixMap<u32> = hosts.chain([(net("0.0.0.0/0"), u32::MAX)]).collect();
        assert!(!map.blocks.is_empty());
        for n in [0, 1, 2, 255, 1 << 14, INDEXED_FROM as u32 - 1] {
            assert_eq!(map.get(address_v4(n << 15).into()), [n, u32::MAX]);
            assert_eq!(map.get(address_v4((n << 15) + 1).into()), [u32::MAX]);
            assert_eq!(map.get(address_v4(((n + 1) << 15).wrapping_sub(1)).into()), [u32::MAX]);
        }
        assert_eq!(map.get(ip("255.255.255.255")), [u32::MAX]);
    }

    #[test]
    fn only_the_plain_spelling_is_a_prefix() {
        assert_eq!(parse_prefix("10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
        assert_eq!(parse_prefix("2001:DB8::/32").unwrap().to_string(), "2001:db8::/32");
        assert_eq!(parse_prefix("0.0.0.0/0").unwrap().to_string(), "0.0.0.0/0");
        let meant = net("10.1.2.0/24");
        let table = [
            ("", PrefixError::Address),
            ("/8", PrefixError::Address),
            ("10.0.0/8", PrefixError::Address),
            ("010.0.0.0/8", PrefixError::Address),
            ("0x0a.0.0.0/8", PrefixError::Address),
            (" 10.0.0.0/8", PrefixError::Address),
            ("fe80::1%eth0/128", PrefixError::Address),
            ("[::1]/128", PrefixError::Address),
            ("Internet", PrefixError::Address),
            ("10.0.0.0/", PrefixError::Length),
            ("10.0.0.0/33", PrefixError::Length),
            ("::/129", PrefixError::Length),
            ("10.0.0.0/08", PrefixError::Length),
            ("10.0.0.0/+8", PrefixError::Length),
            ("10.0.0.0/8/8", PrefixError::Length),
            ("10.0.0.0/264", PrefixError::Length),
            ("10.0.0.0/255.0.0.0", PrefixError::Length),
            ("10.1.2.3/24", PrefixError::HostBits { meant }),
        ];
        for (text, error) in table {
            assert_eq!(parse_prefix(text), Err(error), "{text:?}");
        }
    }

    /// Prefixes that nest, touch and repeat often: few bits vary, those beside the edge of a block among them.
    fn prefixes() -> impl Strategy<Value = Vec<(IpNet, u8)>> {
        let bits = |high: u32| {
            prop::collection::vec(prop::sample::select(vec![high, high - 15, high - 16, 1, 0]), 0..4)
                .prop_map(|ones| ones.into_iter().fold(0u128, |bits, one| bits | 1 << one))
        };
        let lengths = |longest: u8| {
            let block = longest - 16;
            prop::sample::select(vec![0, 1, block - 1, block, block + 1, longest - 2, longest - 1, longest])
        };
        let v4 = (bits(31), lengths(32))
            .prop_map(|(bits, length)| IpNet::new(address_v4(bits as u32).into(), length).unwrap());
        let v6 = (bits(127), lengths(128))
            .prop_map(|(bits, length)| IpNet::new(address_v6(bits).into(), length).unwrap());
        prop::collection::vec((prop_oneof![v4, v6], 0u8..6), 0..24)
    }

    /// Where a mistake would show: the first and last address of each prefix and the two beside them.
    fn edges(prefixes: &[(IpNet, u8)]) -> Vec<IpAddr> {
        let around = |prefix: &IpNet| match bounds(*prefix) {
            Bounds::V4(start, end) => [start.wrapping_sub(1), start, end, end.wrapping_add(1)]
                .map(|bits| IpAddr::from(address_v4(bits))),
            Bounds::V6(start, end) => [start.wrapping_sub(1), start, end, end.wrapping_add(1)]
                .map(|bits| IpAddr::from(address_v6(bits))),
        };
        prefixes.iter().flat_map(|(prefix, _)| around(prefix)).collect()
    }

    fn naive_values(prefixes: &[(IpNet, u8)], address: IpAddr) -> Vec<u8> {
        let mut holding: Vec<_> = prefixes.iter().filter(|(prefix, _)| prefix.contains(&address)).collect();
        holding.sort_by_key(|(prefix, value)| (std::cmp::Reverse(prefix.prefix_len()), *value));
        let mut values = Vec::new();
        for (_, value) in holding {
            if !values.contains(value) {
                values.push(*value);
            }
        }
        values
    }

    proptest! {
        #[test]
        fn a_map_agrees_with_a_scan_of_its_prefixes(prefixes in prefixes()) {
            let map: PrefixMap<u8> = prefixes.iter().copied().collect();
            let indexed = PrefixMap { blocks: index(&map.v4), ..map.clone() };
            for address in edges(&prefixes) {
                let expected = naive_values(&prefixes, address);
                prop_assert_eq!(map.get(address), &expected, "{}", address);
                prop_assert_eq!(indexed.get(address), &expected, "{} by index", address);
            }
        }

        #[test]
        fn a_set_agrees_with_a_scan_of_its_prefixes(prefixes in prefixes()) {
            let set: PrefixSet = prefixes.iter().map(|(prefix, _)| *prefix).collect();
            for address in edges(&prefixes) {
                let expected = prefixes.iter().any(|(prefix, _)| prefix.contains(&address));
                prop_assert_eq!(set.contains(address), expected, "{}", address);
            }
            prop_assert_eq!(set.prefixes().collect::<PrefixSet>(), set.clone());
            let aggregated = IpNet::aggregate(&prefixes.iter().map(|(prefix, _)| prefix.trunc()).collect());
            prop_assert_eq!(set.prefixes().count(), aggregated.len());
            for prefix in set.prefixes() {
                prop_assert!(set.covers(prefix));
            }
        }
    }
}
