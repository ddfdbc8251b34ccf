//! The names that have something below them.

use std::collections::HashSet;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use crate::name::DomainName;

/// Every name below which some pattern names something, by its hash in eight bytes: with a million patterns there
/// may be a million of them.
///
/// The hashes are seeded at random. Where two are the same, which with a million names happens to one look in 10¹³, a
/// name is told apart from none: the client reads that it has no address instead of that it does not exist. No
/// top-level domain of a pattern is ever missing, for lookups are decided by that.
#[derive(Debug, Default)]
pub(super) struct Ancestors {
    /// In order.
    hashes: Vec<u64>,
    /// Where each bucket of the hashes starts, and where the last one ends.
    starts: Vec<Start>,
    hasher: RandomState,
}

/// How many hashes share a bucket, in the mean: a line of the processor's cache.
const BUCKET: usize = 8;

/// Where a bucket starts. Every lookup looks here, and a search by halves took 0.2 µs among 100,000.
#[derive(Debug, Clone, Copy, Default)]
struct Start {
    hash: u32,
    /// One bit of 64 for each hash: seven of eight names that have nothing below them are known for that from here
    /// alone.
    present: u64,
}

impl Ancestors {
    pub(super) fn contains(&self, name: &str) -> bool {
        let hash = self.hasher.hash_one(name.as_bytes());
        let bucket = bucket(hash, self.starts.len().saturating_sub(1));
        let Some([start, end]) = self.starts.get(bucket..).and_then(<[Start]>::first_chunk) else {
            return false;
        };
        start.present & present(hash) != 0
            && self
                .hashes
                .get(start.hash as usize..end.hash as usize)
                .is_some_and(|hashes| hashes.contains(&hash))
    }
}

/// The bit of [`Start::present`]: from the low end of the hash, whose high end chose the bucket.
fn present(hash: u64) -> u64 {
    1 << (hash & 63)
}

/// The bucket of a hash: a greater hash is never in an earlier bucket.
fn bucket(hash: u64, buckets: usize) -> usize {
    ((u128::from(hash) * buckets as u128) >> 64) as usize
}

/// Collects [`Ancestors`].
#[derive(Debug, Default)]
pub(super) struct AncestorsBuilder {
    hashes: HashSet<u64, RandomState>,
    hasher: RandomState,
}

impl AncestorsBuilder {
    /// Adds what lies above `name`.
    pub(super) fn add_above(&mut self, name: &DomainName) {
        let top = name.top_level();
        if top.len() < name.as_str().len() {
            self.hashes.insert(self.hasher.hash_one(top.as_bytes()));
        }
        for ancestor in name.and_ancestors().skip(1).filter(|ancestor| ancestor.len() > top.len()) {
            // What is there has brought those above it, or has the same hash by chance.
            if !self.hashes.insert(self.hasher.hash_one(ancestor.as_bytes())) {
                return;
            }
        }
    }

    /// Adds `name` and what lies above it.
    pub(super) fn add(&mut self, name: &DomainName) {
        self.hashes.insert(self.hasher.hash_one(name.as_str().as_bytes()));
        self.add_above(name);
    }

    pub(super) fn build(self) -> Ancestors {
        let mut hashes: Vec<u64> = self.hashes.into_iter().collect();
        hashes.sort_unstable();
        let buckets = hashes.len().div_ceil(BUCKET);
        let mut starts: Vec<Start> = Vec::with_capacity(buckets + 1);
        for (at, hash) in hashes.iter().enumerate() {
            // The names lie in an arena that is addressed by 32 bits, and each has two bytes or more.
            let next = Start { hash: at as u32, present: 0 };
            starts.resize(starts.len().max(bucket(*hash, buckets) + 1), next);
            starts.last_mut().into_iter().for_each(|start| start.present |= present(*hash));
        }
        starts.resize(buckets + 1, Start { hash: hashes.len() as u32, present: 0 });
        Ancestors { hashes, starts, hasher: self.hasher }
    }
}
