//! The names that have something below them.

use std::collections::HashSet;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use crate::name::DomainName;

/// Every name below which some pattern names something, by its hash in eight bytes: with a million patterns there
/// may be a million of them.
///
/// The hashes are seeded at random. Where two are the same, which with a million names happens to one look in 10¹³, a
/// name is told apart from none: the client reads that it has no address instead of that it does not exist.
#[derive(Debug, Default)]
pub(super) struct Ancestors {
    /// In order.
    hashes: Vec<u64>,
    hasher: RandomState,
}

impl Ancestors {
    pub(super) fn contains(&self, name: &str) -> bool {
        self.hashes.binary_search(&self.hasher.hash_one(name.as_bytes())).is_ok()
    }
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
        for ancestor in name.and_ancestors().skip(1) {
            // What is there has brought those above it.
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
        Ancestors { hashes, hasher: self.hasher }
    }
}
