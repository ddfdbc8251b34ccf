//! A map that never outgrows its bound, for what is remembered of clients.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Parts that are locked on their own, so that the cores seldom wait for one another.
const SHARDS: usize = 64;
/// How often a full shard is searched for what is over: a client that fills it must not buy a search with
/// every packet.
const SWEEP: Duration = Duration::from_secs(1);

/// What can be forgotten without loss once its time is over.
pub(crate) trait Passing: Default {
    /// Whether forgetting it changes nothing any more.
    fn is_over(&self, now: Instant) -> bool;
}

/// A map of bounded size. A full shard forgets what is over and, where nothing is, an entry of its own choice.
#[derive(Debug)]
pub(crate) struct Bounded<K, V> {
    shards: Box<[Mutex<Shard<K, V>>]>,
    /// Seeded at random: clients choose the keys.
    hasher: foldhash::fast::RandomState,
    per_shard: usize,
}

#[derive(Debug)]
struct Shard<K, V> {
    entries: HashMap<K, V, foldhash::fast::RandomState>,
    swept: Option<Instant>,
}

impl<K: Copy + Eq + Hash, V: Passing> Bounded<K, V> {
    /// A map of at most about `capacity` entries.
    pub(crate) fn new(capacity: usize) -> Self {
        let shard = || Mutex::new(Shard { entries: HashMap::default(), swept: None });
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            hasher: foldhash::fast::RandomState::default(),
            per_shard: capacity.div_ceil(SHARDS).max(1),
        }
    }

    /// Looks at the entry of a key, which is a new one if there is none. All entries of one `owner` are in one
    /// shard: an owner that fills it takes nothing from most of the others.
    pub(crate) fn with<R>(
        &self,
        owner: impl Hash,
        key: K,
        now: Instant,
        act: impl FnOnce(&mut V) -> R,
    ) -> Option<R> {
        let mut shard = self.shard(owner)?;
        if shard.entries.len() >= self.per_shard && !shard.entries.contains_key(&key) {
            shard.make_room(now);
        }
        Some(act(shard.entries.entry(key).or_default()))
    }

    /// Looks at the entry of a key, if there is one.
    pub(crate) fn get<R>(&self, owner: impl Hash, key: &K, act: impl FnOnce(&V) -> R) -> Option<R> {
        self.shard(owner)?.entries.get(key).map(act)
    }

    /// How many entries there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().entries.len()).sum()
    }

    fn shard(&self, owner: impl Hash) -> Option<MutexGuard<'_, Shard<K, V>>> {
        let at = self.hasher.hash_one(owner) as usize % SHARDS;
        Some(self.shards.get(at)?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<K: Copy + Eq + Hash, V: Passing> Shard<K, V> {
    fn make_room(&mut self, now: Instant) {
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP) {
            let before = self.entries.len();
            self.entries.retain(|_, value| !value.is_over(now));
            self.swept = Some(now);
            if self.entries.len() < before {
                return;
            }
        }
        if let Some(key) = self.entries.keys().next().copied() {
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Until(Option<Instant>);

    impl Passing for Until {
        fn is_over(&self, now: Instant) -> bool {
            self.0.is_none_or(|until| until <= now)
        }
    }

    #[test]
    fn it_never_outgrows_its_bound() {
        let (map, now) = (Bounded::<u32, Until>::new(640), Instant::now());
        for key in 0..10_000 {
            map.with(key, key, now, |entry| entry.0 = Some(now + SWEEP));
        }
        assert!(map.len() <= 640, "{}", map.len());
    }

    #[test]
    fn what_is_over_goes_before_what_is_not() {
        let (map, now) = (Bounded::<u32, Until>::new(64 * 4), Instant::now());
        let later = now + Duration::from_secs(5);
        for (key, until) in [(1, later), (2, now), (3, now), (4, now), (5, later)] {
            map.with("one", key, now, |entry| entry.0 = Some(until));
        }
        let kept = |key: u32| map.get("one", &key, |_| ()).is_some();
        assert!(kept(1) && kept(5) && !kept(2));
    }

    #[test]
    fn an_owner_that_fills_its_shard_leaves_the_others_alone() {
        let (map, now) = (Bounded::<u32, Until>::new(640), Instant::now());
        map.with("quiet", 0, now, |entry| entry.0 = Some(now + SWEEP));
        let loud =
            (0..).find(|owner: &u32| map.hasher.hash_one(owner) % 64 != map.hasher.hash_one("quiet") % 64);
        for key in 1..1000 {
            map.with(loud.unwrap(), key, now, |entry| entry.0 = Some(now + SWEEP));
        }
        assert!(map.get("quiet", &0, |_| ()).is_some());
    }
}
