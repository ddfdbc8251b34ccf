//! A hash table of names that is built once, and laid out for a processor's caches.

use std::cmp::Ordering;
use std::hash::BuildHasher;

use smallvec::SmallVec;

use super::IndexError;
use crate::name::{DomainName, MAX_NAME};
use crate::rule::RuleId;

/// How many names share a bucket, in the mean.
const BUCKET: usize = 8;

/// Names, each with the rules that have it.
///
/// The names lie in one arena in the order of their hashes, and a bucket is a run of them. Before a look reads
/// the arena it reads tables of four bytes a name, which for a million names a cache still holds: a name that
/// is not there costs no trip to main memory, and one that is there costs one.
#[derive(Debug, Default)]
pub(super) struct NameTable {
    /// Where each bucket starts, and where the last one ends.
    starts: Vec<Start>,
    heads: Vec<Head>,
    /// A record is four bytes for the rules and then the name.
    records: Vec<u8>,
    /// Seeded at random: who asks picks the names that are hashed.
    hasher: foldhash::fast::RandomState,
    lengths: Lengths,
    /// Rules that share one name, each list in the order of the rules' names.
    lists: Vec<Vec<RuleId>>,
}

/// Where a bucket starts.
#[derive(Debug, Clone, Copy)]
struct Start {
    head: u32,
    record: u32,
    /// One bit of 64 for each name, by its hash: seven of eight names that are not there are known for that from
    /// here alone.
    present: u64,
}

/// What tells most names apart without reading them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    tag: u8,
    length: u8,
}

impl NameTable {
    /// Calls `found` with every rule that has this name.
    pub(super) fn find(&self, name: &str, found: &mut impl FnMut(RuleId)) {
        if self.lengths.contains(name.len())
            && let Some(rules) = self.rules(name.as_bytes())
        {
            self.each(rules, found);
        }
    }

    /// Calls `found` with every name and each of its rules, in no order.
    pub(super) fn for_each(&self, mut found: impl FnMut(&str, RuleId)) {
        let mut records = self.records.as_slice();
        for head in &self.heads {
            let Some((record, rest)) = records.split_at_checked(head.record_length()) else { return };
            records = rest;
            if let Some((rules, name)) = read(record)
                && let Ok(name) = str::from_utf8(name)
            {
                self.each(rules, &mut |rule| found(name, rule));
            }
        }
    }

    fn rules(&self, name: &[u8]) -> Option<Rules> {
        let hash = self.hasher.hash_one(name);
        let bucket = bucket(hash, self.starts.len().saturating_sub(1));
        let [start, end] = self.starts.get(bucket..)?.first_chunk()?;
        if start.present & present(hash) == 0 {
            return None;
        }
        let wanted = Head { tag: tag(hash), length: u8::try_from(name.len()).ok()? };
        let mut record = start.record as usize;
        for head in self.heads.get(start.head as usize..end.head as usize)? {
            if *head == wanted
                && let Some((rules, _)) = read(self.records.get(record..record + head.record_length())?)
                    .filter(|(_, it)| *it == name)
            {
                return Some(rules);
            }
            record += head.record_length();
        }
        None
    }

    fn each(&self, rules: Rules, found: &mut impl FnMut(RuleId)) {
        if let Some(rule) = rules.one() {
            found(rule);
        } else if let Some(list) = rules.list().and_then(|list| self.lists.get(list)) {
            list.iter().copied().for_each(found);
        }
    }
}

impl Head {
    fn record_length(self) -> usize {
        size_of::<Rules>() + usize::from(self.length)
    }
}

fn read(record: &[u8]) -> Option<(Rules, &[u8])> {
    record.split_first_chunk().map(|(rules, name)| (Rules(u32::from_le_bytes(*rules)), name))
}

/// The bucket of a hash: a greater hash is never in an earlier bucket.
fn bucket(hash: u64, buckets: usize) -> usize {
    ((u128::from(hash) * buckets as u128) >> 64) as usize
}

/// The bit of [`Start::present`]; like the tag from the low end of the hash, whose high end chose the bucket.
fn present(hash: u64) -> u64 {
    1 << (hash & 63)
}

fn tag(hash: u64) -> u8 {
    (hash >> 6) as u8
}

/// Collects names into a [`NameTable`].
#[derive(Debug, Default)]
pub(super) struct NameTableBuilder {
    names: Vec<Named>,
    /// Each with its length in front.
    texts: Vec<u8>,
    hasher: foldhash::fast::RandomState,
}

/// One name of one rule.
#[derive(Debug, Clone, Copy)]
struct Named {
    hash: u64,
    text: u32,
    rule: RuleId,
}

impl NameTableBuilder {
    /// Makes room for this many further names.
    pub(super) fn reserve(&mut self, names: usize) {
        self.names.reserve(names);
    }

    /// Adds a name of a rule.
    pub(super) fn add(&mut self, name: &DomainName, rule: RuleId) -> Result<(), IndexError> {
        let text = u32::try_from(self.texts.len()).map_err(|_| IndexError::TooManyNames)?;
        let name = name.as_str().as_bytes();
        self.texts.push(u8::try_from(name.len()).map_err(|_| IndexError::TooManyNames)?);
        self.texts.extend_from_slice(name);
        self.names.push(Named { hash: self.hasher.hash_one(name), text, rule });
        Ok(())
    }

    /// The finished table. `by_name` orders the rules that share a name.
    pub(super) fn build(
        mut self,
        by_name: &impl Fn(&RuleId, &RuleId) -> Ordering,
    ) -> Result<NameTable, IndexError> {
        let texts = self.texts;
        let text = |named: &Named| text_at(&texts, named.text);
        self.names.sort_unstable_by(|a, b| a.hash.cmp(&b.hash).then_with(|| text(a).cmp(text(b))));
        let same = |a: &Named, b: &Named| a.hash == b.hash && text(a) == text(b);
        let buckets = self.names.len().div_ceil(BUCKET);
        let mut table = NameTable { hasher: self.hasher, ..NameTable::default() };
        table.starts.reserve_exact(buckets + 1);
        table.heads.reserve_exact(self.names.len());
        table.records.reserve_exact(texts.len() + self.names.len() * (size_of::<Rules>() - 1));
        for sharing in self.names.chunk_by(same) {
            let Some(first) = sharing.first() else { continue };
            table.start_buckets(bucket(first.hash, buckets))?;
            let mut rules: SmallVec<[RuleId; 1]> = sharing.iter().map(|named| named.rule).collect();
            rules.sort_by(by_name);
            rules.dedup();
            table.push(first.hash, text(first), &rules)?;
        }
        table.start_buckets(buckets)?;
        table.heads.shrink_to_fit();
        table.records.shrink_to_fit();
        Ok(table)
    }
}

fn text_at(texts: &[u8], at: u32) -> &[u8] {
    let text = texts.get(at as usize..).and_then(<[u8]>::split_first);
    text.and_then(|(length, rest)| rest.get(..usize::from(*length))).unwrap_or_default()
}

impl NameTable {
    /// Starts the buckets up to this one here.
    fn start_buckets(&mut self, last: usize) -> Result<(), IndexError> {
        let head = u32::try_from(self.heads.len()).map_err(|_| IndexError::TooManyNames)?;
        let record = u32::try_from(self.records.len()).map_err(|_| IndexError::TooManyNames)?;
        self.starts.resize(self.starts.len().max(last + 1), Start { head, record, present: 0 });
        Ok(())
    }

    /// Adds a name, whose hash is not less than those before.
    fn push(&mut self, hash: u64, name: &[u8], rules: &[RuleId]) -> Result<(), IndexError> {
        let length = u8::try_from(name.len()).map_err(|_| IndexError::TooManyNames)?;
        let rules = match rules {
            [rule] => Rules(rule.0),
            _ => {
                self.lists.push(rules.to_vec());
                // Lists are fewer than names, and those are bounded by the arena's 32-bit offsets.
                Rules(Rules::LIST | (self.lists.len() - 1) as u32)
            }
        };
        self.records.extend_from_slice(&rules.0.to_le_bytes());
        self.records.extend_from_slice(name);
        self.heads.push(Head { tag: tag(hash), length });
        if let Some(start) = self.starts.last_mut() {
            start.present |= present(hash);
        }
        self.lengths.add(name.len());
        Ok(())
    }
}

/// One rule, or the number of a list of them, in four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rules(u32);

impl Rules {
    const LIST: u32 = 1 << 31;

    fn list(self) -> Option<usize> {
        (self.0 & Self::LIST != 0).then_some((self.0 & !Self::LIST) as usize)
    }

    fn one(self) -> Option<RuleId> {
        (self.0 & Self::LIST == 0).then_some(RuleId(self.0))
    }
}

/// The lengths that names have. A look for a name of another length is spared: the last labels of a name are
/// shorter than anything that is listed.
#[derive(Debug, Default)]
struct Lengths([u64; MAX_NAME / 64 + 1]);

impl Lengths {
    fn contains(&self, length: usize) -> bool {
        self.0.get(length / 64).is_some_and(|word| word >> (length % 64) & 1 == 1)
    }

    fn add(&mut self, length: usize) {
        if let Some(word) = self.0.get_mut(length / 64) {
            *word |= 1 << (length % 64);
        }
    }
}
