//! What has been learned from upstreams: bounded, and pure; the time is an argument.
//!
//! An entry is about a name and a type, never about a client: what a client may see of it is decided when it
//! is answered, so a new revision of the policy needs nothing flushed.
//!
//! An entry is *fresh* for its TTL, then *expired* but kept for a while in case that all upstreams fail (RFC
//! 8767). A failure is remembered for [`FAILURE`] (RFC 9520), beside what is still kept of the question.

mod packed;

use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use outgate_rules::DomainName;

use crate::question::Question;
use crate::reply::Reply;
use packed::Packed;

/// How long a failure is remembered: long enough that an outage does not multiply questions, short enough
/// that its end is seen (RFC 9520 §3.2 allows 1 s to 5 min).
pub const FAILURE: Duration = Duration::from_secs(5);
/// Times that an entry must have been used for its question to be asked again before it expires.
const HOT: u8 = 3;
/// The part of its life at the end of which a hot entry is asked for again: a tenth.
const PREFETCH_PART: u32 = 10;
/// Locks that many cores share a large cache by.
const SHARDS: usize = 64;
/// Below this many entries there is one shard: dividing a small cache would make its bound arbitrary.
const UNDIVIDED: usize = 4096;
/// Bounds of a [`Cache`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheSettings {
    /// Most entries.
    pub entries: usize,
    /// Most bytes that they may take together. A usual entry takes about 90.
    pub memory: usize,
    /// Longest time that an answer is fresh: after a change of the policy, a client may go by an old answer for
    /// as long.
    pub max_ttl: Duration,
    /// How long an expired answer is kept for the case that all upstreams fail.
    pub stale: Duration,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            entries: 100_000,
            memory: 100 << 20,
            max_ttl: Duration::from_secs(60),
            stale: Duration::from_secs(3600),
        }
    }
}

/// Why there was no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Failure {
    /// No upstream answered in time.
    Timeout,
    /// None could be reached, or none gave an answer.
    Unusable,
    /// Too many questions are waiting for upstreams already.
    Overload,
}

/// What the cache knows of a question.
#[derive(Clone, PartialEq, Debug)]
pub enum Found {
    /// An answer that holds.
    Fresh {
        /// The answer, as it was stored.
        reply: Arc<Reply>,
        /// Whole seconds since then.
        age: u32,
        /// Whether to ask again, now and without waiting: it is hot and about to expire. Said once.
        prefetch: bool,
    },
    /// An answer that does not hold any more. To be used only if no upstream answers.
    Expired(Arc<Reply>),
    /// The same, and upstreams failed a moment ago: to be used, and not asked for.
    Stale(Arc<Reply>),
    /// Upstreams failed a moment ago and nothing is left: not to be asked for.
    Failed(Failure),
    /// Nothing.
    Missing,
}

/// Answers and failures by name and type.
#[derive(Debug)]
pub struct Cache {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    settings: CacheSettings,
    /// When it was made: times are counted from here.
    since: Instant,
}

/// Entries in slots, found by a table of indices, evicted by a clock: a hand goes round and takes the first
/// entry that was not used since it last came by.
#[derive(Debug)]
struct Shard {
    table: HashTable<u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    hand: usize,
    /// The sum of what the entries take.
    bytes: usize,
    most_entries: usize,
    most_bytes: usize,
    hasher: RandomState,
}

/// One entry, or none where it was given up. A million of them must not take much: what is known is in
/// [`Packed`], and times are tenths of a second.
#[derive(Debug, Default)]
struct Slot {
    packed: Packed,
    stored: Tenths,
    failed_until: Tenths,
    failure: Option<Failure>,
    used: bool,
    hits: u8,
    /// Whether the question is being asked again.
    prefetched: bool,
}

/// Tenths of a second since the cache was made, rounded down: they last for six years.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
struct Tenths(i32);

impl Cache {
    /// An empty cache.
    #[must_use]
    pub fn new(settings: CacheSettings) -> Self {
        let number = if settings.entries < UNDIVIDED { 1 } else { SHARDS };
        let hasher = RandomState::default();
        let shard = || {
            let (entries, bytes) = (settings.entries / number, settings.memory / number);
            Mutex::new(Shard::new(entries, bytes, hasher.clone()))
        };
        let shards = (0..number).map(|_| shard()).collect();
        Self { shards, hasher, settings, since: Instant::now() }
    }

    /// What is known of `name` and `record_type` at `now`.
    #[must_use]
    pub fn get(&self, name: &DomainName, record_type: u16, now: Instant) -> Found {
        let (hash, now) = (hash(&self.hasher, name.as_str(), record_type), self.tenths(now));
        self.with_shard(hash, |shard| match shard.find(hash, name, record_type) {
            Some(slot) => slot.look(now, self.settings.stale),
            None => Found::Missing,
        })
        .unwrap_or(Found::Missing)
    }

    /// Stores an answer; one that holds for no time takes the place of an older one all the same.
    pub fn put(&self, question: &Question, reply: &Reply, now: Instant) {
        let hash = hash(&self.hasher, question.name.as_str(), question.record_type);
        let packed = Packed::new(question, reply).filter(|_| reply.ttl > 0);
        let stored = self.tenths(now);
        self.with_shard(hash, |shard| {
            shard.remove(hash, question);
            if let Some(packed) = packed {
                shard.insert(hash, Slot { packed, stored, ..Slot::default() });
            }
        });
    }

    /// Notes that no upstream answered a question, and gives what may be used in the answer's place.
    #[must_use]
    pub fn fail(&self, question: &Question, failure: Failure, now: Instant) -> Option<Arc<Reply>> {
        let hash = hash(&self.hasher, question.name.as_str(), question.record_type);
        let (now, failed_until, failure) = (self.tenths(now), self.tenths(now + FAILURE), Some(failure));
        self.with_shard(hash, |shard| {
            let Some(slot) = shard.find(hash, &question.name, question.record_type) else {
                let packed = Packed::bare(question);
                shard.insert(hash, Slot { packed, failed_until, failure, ..Slot::default() });
                return None;
            };
            (slot.failed_until, slot.failure, slot.prefetched) = (failed_until, failure, false);
            slot.kept(now, self.settings.stale)
        })
        .flatten()
    }

    /// The number of entries, failures included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sum(|shard| shard.table.len())
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// About how many bytes of memory the entries take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.sum(|shard| shard.bytes)
    }

    fn sum(&self, of: impl Fn(&Shard) -> usize) -> usize {
        self.shards.iter().map(|shard| of(&shard.lock().unwrap_or_else(PoisonError::into_inner))).sum()
    }

    fn tenths(&self, now: Instant) -> Tenths {
        let since = |one: Instant, other: Instant| one.saturating_duration_since(other).as_millis();
        // One of the two is nothing.
        let tenths = |length: u128| i32::try_from(length).unwrap_or(i32::MAX);
        Tenths(tenths(since(now, self.since) / 100) - tenths(since(self.since, now).div_ceil(100)))
    }

    fn with_shard<T>(&self, hash: u64, act: impl FnOnce(&mut Shard) -> T) -> Option<T> {
        // The table goes by the hash's other bits.
        let index = (hash >> 32) as usize % self.shards.len().max(1);
        let shard = self.shards.get(index)?;
        Some(act(&mut shard.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Shard {
    fn new(most_entries: usize, most_bytes: usize, hasher: RandomState) -> Self {
        let (table, slots, free) = (HashTable::new(), Vec::new(), Vec::new());
        Self { table, slots, free, hand: 0, bytes: 0, most_entries, most_bytes, hasher }
    }

    fn find(&mut self, hash: u64, name: &DomainName, record_type: u16) -> Option<&mut Slot> {
        let slots = &self.slots;
        let index = *self.table.find(hash, |index| is(slots, *index, name, record_type))?;
        self.slots.get_mut(index as usize)
    }

    fn insert(&mut self, hash: u64, slot: Slot) {
        let size = size(&slot.packed);
        if size > self.most_bytes || self.most_entries == 0 {
            return;
        }
        while self.bytes + size > self.most_bytes || self.table.len() >= self.most_entries {
            self.evict();
        }
        self.bytes += size;
        let index = self.place(slot);
        let (slots, hasher) = (&self.slots, &self.hasher);
        let rehash = |index: &u32| slots.get(*index as usize).map_or(0, |slot| slot.hash(hasher));
        self.table.insert_unique(hash, index, rehash);
    }

    /// Puts an entry into a slot, and says which.
    fn place(&mut self, slot: Slot) -> u32 {
        if let Some(index) = self.free.pop()
            && let Some(place) = self.slots.get_mut(index as usize)
        {
            *place = slot;
            return index;
        }
        if self.slots.len() == self.slots.capacity() {
            // By an eighth: to double it would leave half of a large cache's memory unused.
            self.slots.reserve_exact((self.slots.len() / 8).max(16));
        }
        self.slots.push(slot);
        u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
    }

    fn remove(&mut self, hash: u64, question: &Question) {
        let slots = &self.slots;
        let same = |index: &u32| is(slots, *index, &question.name, question.record_type);
        if let Ok(entry) = self.table.find_entry(hash, same) {
            let (index, _) = entry.remove();
            self.give_back(index);
        }
    }

    /// Takes the first entry that was not used since the hand last came by. There is at least one entry.
    fn evict(&mut self) {
        // Two rounds: the first may only find entries in use.
        for _ in 0..=self.slots.len() * 2 {
            let index = self.hand;
            self.hand = (self.hand + 1) % self.slots.len().max(1);
            let Some(slot) = self.slots.get_mut(index) else { continue };
            if slot.packed.key().is_none() || std::mem::take(&mut slot.used) {
                continue;
            }
            let (hash, index) = (slot.hash(&self.hasher), u32::try_from(index).unwrap_or(u32::MAX));
            if let Ok(entry) = self.table.find_entry(hash, |other| *other == index) {
                entry.remove();
            }
            return self.give_back(index);
        }
    }

    fn give_back(&mut self, index: u32) {
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        self.bytes -= size(&slot.packed);
        *slot = Slot::default();
        self.free.push(index);
    }
}

impl Slot {
    fn look(&mut self, now: Tenths, stale: Duration) -> Found {
        self.used = true;
        if let Some(ttl) = self.packed.ttl().filter(|ttl| now < self.stored.and(*ttl))
            && let Some(reply) = self.packed.reply()
        {
            self.hits = self.hits.saturating_add(1);
            let soon = now >= self.stored.and(ttl - ttl / PREFETCH_PART);
            let prefetch = self.hits > HOT && !self.prefetched && soon;
            self.prefetched |= prefetch;
            return Found::Fresh { reply: Arc::new(reply), age: self.stored.seconds_until(now), prefetch };
        }
        let failed = self.failure.filter(|_| now < self.failed_until);
        match (failed, self.kept(now, stale)) {
            (Some(_), Some(reply)) => Found::Stale(reply),
            (None, Some(reply)) => Found::Expired(reply),
            (Some(failure), None) => Found::Failed(failure),
            (None, None) => Found::Missing,
        }
    }

    /// What is kept, if it may still be used at all.
    fn kept(&self, now: Tenths, stale: Duration) -> Option<Arc<Reply>> {
        let stale = u32::try_from(stale.as_secs()).unwrap_or(u32::MAX);
        let end = self.stored.and(self.packed.ttl()?.saturating_add(stale));
        if now < end { self.packed.reply().map(Arc::new) } else { None }
    }

    fn hash(&self, hasher: &RandomState) -> u64 {
        self.packed.key().map_or(0, |(name, record_type)| hash(hasher, name, record_type))
    }
}

impl Tenths {
    fn and(self, seconds: u32) -> Self {
        Self(self.0.saturating_add(i32::try_from(seconds.saturating_mul(10)).unwrap_or(i32::MAX)))
    }

    fn seconds_until(self, now: Self) -> u32 {
        u32::try_from(now.0.saturating_sub(self.0) / 10).unwrap_or(0)
    }
}

fn hash(hasher: &RandomState, name: &str, record_type: u16) -> u64 {
    hasher.hash_one((name, record_type))
}

fn is(slots: &[Slot], index: u32, name: &DomainName, record_type: u16) -> bool {
    slots.get(index as usize).is_some_and(|slot| slot.packed.is_about(name, record_type))
}

/// About what an entry takes of memory: its slot, its part of the table (whose places are at least half in use,
/// five bytes each), and its bytes as the allocator hands them out.
fn size(packed: &Packed) -> usize {
    const TABLE: usize = 12;
    const SMALLEST: usize = 32;
    let allocated = (packed.len() + size_of::<usize>()).next_multiple_of(16).max(SMALLEST);
    size_of::<Slot>() + TABLE + allocated
}

#[cfg(test)]
mod scenarios;
