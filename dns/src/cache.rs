//! What has been learned from upstreams: bounded, and pure; the time is an argument.
//!
//! An entry is about a name and a type, never about a client: what a client may see of it is decided when it
//! is answered, so a new revision of the policy needs nothing flushed.
//!
//! An entry is *fresh* for its TTL, then *expired* but kept for a while in case that all upstreams fail (RFC
//! 8767). A failure is remembered for [`FAILURE`] (RFC 9520), beside what is still kept of the question.

use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use hickory_proto::rr::{RData, Record};
use hickory_proto::serialize::binary::BinEncodable as _;
use outgate_rules::DomainName;

use crate::question::Question;
use crate::reply::Reply;

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
/// Bytes of records that count as one entry.
const ENTRY: usize = 1024;

/// Bounds of a [`Cache`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheSettings {
    /// Most entries. A large answer counts as several.
    pub entries: usize,
    /// Longest time that an answer is fresh: after a change of the policy, a client may go by an old answer for
    /// as long.
    pub max_ttl: Duration,
    /// How long an expired answer is kept for the case that all upstreams fail.
    pub stale: Duration,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self { entries: 100_000, max_ttl: Duration::from_secs(60), stale: Duration::from_secs(3600) }
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
}

/// Entries in slots, found by a table of indices, evicted by a clock: a hand goes round and takes the first
/// entry that was not used since it last came by.
#[derive(Debug, Default)]
struct Shard {
    table: HashTable<u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    hand: usize,
    /// The sum of the entries' weights, and its bound.
    weight: usize,
    capacity: usize,
}

#[derive(Debug)]
struct Slot {
    key: Question,
    hash: u64,
    weight: usize,
    used: bool,
    hits: u8,
    /// Whether the question is being asked again.
    prefetched: bool,
    kept: Option<Kept>,
    failed: Option<(Failure, Instant)>,
}

#[derive(Debug)]
struct Kept {
    reply: Arc<Reply>,
    stored: Instant,
}

impl Cache {
    /// An empty cache.
    #[must_use]
    pub fn new(settings: CacheSettings) -> Self {
        let number = if settings.entries < UNDIVIDED { 1 } else { SHARDS };
        let shard = || Mutex::new(Shard { capacity: settings.entries / number, ..Shard::default() });
        Self { shards: (0..number).map(|_| shard()).collect(), hasher: RandomState::default(), settings }
    }

    /// What is known of `name` and `record_type` at `now`.
    #[must_use]
    pub fn get(&self, name: &DomainName, record_type: u16, now: Instant) -> Found {
        let hash = self.hash(name, record_type);
        self.with_shard(hash, |shard| match shard.find(hash, name, record_type) {
            Some(slot) => slot.look(now, self.settings.stale),
            None => Found::Missing,
        })
        .unwrap_or(Found::Missing)
    }

    /// Stores an answer; one that holds for no time takes the place of an older one all the same.
    pub fn put(&self, question: &Question, reply: Arc<Reply>, now: Instant) {
        let hash = self.hash(&question.name, question.record_type);
        self.with_shard(hash, |shard| {
            shard.remove(hash, question);
            if reply.ttl > 0 {
                let kept = Some(Kept { reply, stored: now });
                shard.insert(Slot { kept, ..Slot::new(question.clone(), hash) });
            }
        });
    }

    /// Notes that no upstream answered a question, and gives what may be used in the answer's place.
    #[must_use]
    pub fn fail(&self, question: &Question, failure: Failure, now: Instant) -> Option<Arc<Reply>> {
        let hash = self.hash(&question.name, question.record_type);
        self.with_shard(hash, |shard| {
            let until = now + FAILURE;
            let Some(slot) = shard.find(hash, &question.name, question.record_type) else {
                shard.insert(Slot { failed: Some((failure, until)), ..Slot::new(question.clone(), hash) });
                return None;
            };
            slot.failed = Some((failure, until));
            slot.prefetched = false;
            slot.kept(now, self.settings.stale).map(|kept| Arc::clone(&kept.reply))
        })
        .flatten()
    }

    /// The number of entries, failures included.
    #[must_use]
    pub fn len(&self) -> usize {
        let len = |shard: &Mutex<Shard>| shard.lock().unwrap_or_else(PoisonError::into_inner).table.len();
        self.shards.iter().map(len).sum()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn hash(&self, name: &DomainName, record_type: u16) -> u64 {
        self.hasher.hash_one((name.as_str(), record_type))
    }

    fn with_shard<T>(&self, hash: u64, act: impl FnOnce(&mut Shard) -> T) -> Option<T> {
        // The table goes by the hash's other bits.
        let index = (hash >> 32) as usize % self.shards.len().max(1);
        let shard = self.shards.get(index)?;
        Some(act(&mut shard.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Shard {
    fn find(&mut self, hash: u64, name: &DomainName, record_type: u16) -> Option<&mut Slot> {
        let slots = &self.slots;
        let found = self.table.find(hash, |index| is(slots, *index, name, record_type));
        let index = *found?;
        self.slots.get_mut(index as usize)
    }

    fn insert(&mut self, mut slot: Slot) {
        slot.weight = weight(&slot);
        if slot.weight > self.capacity {
            return;
        }
        while self.weight + slot.weight > self.capacity {
            self.evict();
        }
        self.weight += slot.weight;
        let hash = slot.hash;
        let index = match self.free.pop() {
            Some(index) => index,
            None => u32::try_from(self.slots.len()).unwrap_or(u32::MAX),
        };
        match self.slots.get_mut(index as usize) {
            Some(place) => *place = slot,
            None => self.slots.push(slot),
        }
        let slots = &self.slots;
        self.table.insert_unique(hash, index, |index| slots.get(*index as usize).map_or(0, |slot| slot.hash));
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
            if slot.weight == 0 || std::mem::take(&mut slot.used) {
                continue;
            }
            let (hash, index) = (slot.hash, u32::try_from(index).unwrap_or(u32::MAX));
            if let Ok(entry) = self.table.find_entry(hash, |other| *other == index) {
                entry.remove();
            }
            return self.give_back(index);
        }
    }

    fn give_back(&mut self, index: u32) {
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        self.weight -= std::mem::take(&mut slot.weight);
        (slot.kept, slot.failed) = (None, None);
        self.free.push(index);
    }
}

impl Slot {
    fn new(key: Question, hash: u64) -> Self {
        Self { key, hash, weight: 0, used: false, hits: 0, prefetched: false, kept: None, failed: None }
    }

    fn look(&mut self, now: Instant, stale: Duration) -> Found {
        self.used = true;
        if let Some(kept) = &self.kept
            && kept.is_fresh(now)
        {
            self.hits = self.hits.saturating_add(1);
            let prefetch = self.hits > HOT && !self.prefetched && kept.expires_soon(now);
            self.prefetched |= prefetch;
            return Found::Fresh { reply: Arc::clone(&kept.reply), age: kept.age(now), prefetch };
        }
        let failed = self.failed.filter(|(_, until)| now < *until).map(|(failure, _)| failure);
        let kept = self.kept(now, stale).map(|kept| Arc::clone(&kept.reply));
        match (failed, kept) {
            (Some(_), Some(reply)) => Found::Stale(reply),
            (None, Some(reply)) => Found::Expired(reply),
            (Some(failure), None) => Found::Failed(failure),
            (None, None) => Found::Missing,
        }
    }

    /// What is kept, if it may still be used at all.
    fn kept(&self, now: Instant, stale: Duration) -> Option<&Kept> {
        self.kept
            .as_ref()
            .filter(|kept| now.saturating_duration_since(kept.expires()) < stale || kept.is_fresh(now))
    }
}

impl Kept {
    fn expires(&self) -> Instant {
        self.stored + Duration::from_secs(self.reply.ttl.into())
    }

    fn is_fresh(&self, now: Instant) -> bool {
        now < self.expires()
    }

    fn expires_soon(&self, now: Instant) -> bool {
        let life = Duration::from_secs(self.reply.ttl.into());
        self.expires().saturating_duration_since(now) <= life / PREFETCH_PART
    }

    fn age(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.stored).as_secs()).unwrap_or(u32::MAX)
    }
}

fn is(slots: &[Slot], index: u32, name: &DomainName, record_type: u16) -> bool {
    slots
        .get(index as usize)
        .is_some_and(|slot| slot.key.record_type == record_type && slot.key.name == *name)
}

/// The memory of an entry in units of [`ENTRY`], at least one.
fn weight(slot: &Slot) -> usize {
    let records = slot.kept.as_ref().map_or(0, |kept| kept.reply.records.iter().map(size).sum());
    1 + records / ENTRY
}

/// About what a record takes: itself, and what it may hold on the heap.
fn size(record: &Record) -> usize {
    let inline = matches!(record.data, RData::A(_) | RData::AAAA(_) | RData::CNAME(_));
    let outside = if inline { 0 } else { record.to_bytes().map_or(usize::from(u16::MAX), |wire| wire.len()) };
    size_of::<Record>() + outside
}

#[cfg(test)]
mod scenarios;
