//! How much a client may say below an allowed wildcard.
//!
//! `*.example.org` lets a client ask for any name below `example.org`, and whoever serves that zone reads what
//! the labels spell. So the different names that a client asks for below one parent are counted by the minute,
//! with their length and what they may hold. Only a lookup that goes to an upstream counts: what is answered
//! from the cache tells nobody anything.
//!
//! The defaults are several times what package managers and model hubs ask for, which is a handful of names
//! below one parent; a tunnel at these limits moves about thirty-four bytes a second.

use std::collections::HashSet;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use outgate_rules::Reason;

use crate::bounded::{Bounded, Passing};
use crate::rate::counted;

/// A window of counting.
const WINDOW: Duration = Duration::from_secs(60);
/// Pairs of client and parent that are counted at a time.
const PAIRS: usize = 16_384;

/// Bounds for one client below one parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BudgetSettings {
    /// Different names a minute.
    pub names_per_minute: usize,
    /// Bytes of a name in front of the parent.
    pub name_bytes: usize,
    /// Bytes that the different names of a minute may hold: their Shannon entropy, byte by byte.
    pub entropy_per_minute: usize,
}

impl Default for BudgetSettings {
    /// 120 names a minute; 120 bytes, which is more than three times a GUID; 2048 bytes of entropy, which is
    /// 120 GUIDs.
    fn default() -> Self {
        Self { names_per_minute: 120, name_bytes: 120, entropy_per_minute: 2048 }
    }
}

/// Counts what clients say below wildcards.
#[derive(Debug)]
pub struct Budget {
    settings: BudgetSettings,
    spent: Bounded<(IpAddr, u64), Spent>,
    hasher: foldhash::fast::RandomState,
}

#[derive(Debug, Default)]
struct Spent {
    since: Option<Instant>,
    names: HashSet<u64>,
    bits: f64,
}

impl Passing for Spent {
    fn is_over(&self, now: Instant) -> bool {
        self.since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW)
    }
}

impl Budget {
    /// A budget of which nothing is spent.
    #[must_use]
    pub fn new(settings: BudgetSettings) -> Self {
        Self { settings, spent: Bounded::new(PAIRS), hasher: foldhash::fast::RandomState::default() }
    }

    /// Counts a lookup that is about to go to an upstream: `name`, which lies below `parent`. A name that was
    /// counted in this minute costs nothing.
    ///
    /// # Errors
    /// Which limit is reached.
    pub fn spend(&self, client: IpAddr, parent: &str, name: &str, now: Instant) -> Result<(), Reason> {
        let said = name.strip_suffix(parent).unwrap_or(name).trim_end_matches('.');
        if said.len() > self.settings.name_bytes {
            return Err(Reason::LookupLength);
        }
        let client = counted(client);
        let (parent, said_hash) = (self.hasher.hash_one(parent), self.hasher.hash_one(said));
        let spend = |spent: &mut Spent| spent.spend(said, said_hash, &self.settings, now);
        self.spent.with(client, (client, parent), now, spend).unwrap_or(Ok(()))
    }
}

impl Spent {
    fn spend(
        &mut self,
        said: &str,
        hash: u64,
        settings: &BudgetSettings,
        now: Instant,
    ) -> Result<(), Reason> {
        if self.is_over(now) {
            *self = Self { since: Some(now), ..Self::default() };
        }
        if self.names.contains(&hash) {
            return Ok(());
        }
        let bits = self.bits + entropy(said);
        if self.names.len() >= settings.names_per_minute {
            return Err(Reason::LookupNames);
        }
        if bits > settings.entropy_per_minute as f64 * 8.0 {
            return Err(Reason::LookupEntropy);
        }
        self.bits = bits;
        self.names.insert(hash);
        Ok(())
    }
}

/// Bits that a text holds if its bytes were drawn as often as they occur in it (Shannon).
fn entropy(text: &str) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in text.bytes() {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
        }
    }
    let length = text.len() as f64;
    let bits = |count: &u32| f64::from(*count) * (length / f64::from(*count)).log2();
    counts.iter().filter(|count| **count > 0).map(bits).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 4));

    fn spend(budget: &Budget, name: &str, now: Instant) -> Result<(), Reason> {
        budget.spend(CLIENT, "example.org", name, now)
    }

    #[test]
    fn different_names_are_counted_by_the_minute_and_the_same_name_once() {
        let budget = Budget::new(BudgetSettings { names_per_minute: 3, ..BudgetSettings::default() });
        let now = Instant::now();
        for name in ["a.example.org", "b.example.org", "a.example.org", "c.example.org", "b.example.org"] {
            assert_eq!(spend(&budget, name, now), Ok(()), "{name}");
        }
        assert_eq!(spend(&budget, "d.example.org", now), Err(Reason::LookupNames));
        assert_eq!(spend(&budget, "a.example.org", now), Ok(()), "what was counted stays free");
        assert_eq!(budget.spend(CLIENT, "example.net", "d.example.net", now), Ok(()), "another parent");
        assert_eq!(
            budget.spend("10.1.0.5".parse().unwrap(), "example.org", "d.example.org", now),
            Ok(()),
            "another client"
        );
        assert_eq!(spend(&budget, "d.example.org", now + WINDOW), Ok(()), "the next minute");
    }

    #[test]
    fn a_network_of_ipv6_addresses_is_one_client() {
        let budget = Budget::new(BudgetSettings { names_per_minute: 1, ..BudgetSettings::default() });
        let now = Instant::now();
        let spend = |client: &str, name| budget.spend(client.parse().unwrap(), "example.org", name, now);
        assert_eq!(spend("fd00:1::1", "a.example.org"), Ok(()));
        assert_eq!(spend("fd00:1::2", "b.example.org"), Err(Reason::LookupNames));
        assert_eq!(spend("fd00:1:0:1::1", "b.example.org"), Ok(()), "another network");
    }

    #[test]
    fn a_name_longer_than_any_real_one_is_refused_at_once() {
        let budget = Budget::new(BudgetSettings::default());
        let label = "a".repeat(60);
        let long = format!("{label}.{label}.example.org");
        assert_eq!(spend(&budget, &long, Instant::now()), Err(Reason::LookupLength));
        assert_eq!(spend(&budget, &format!("{label}.b.example.org"), Instant::now()), Ok(()));
    }

    #[test]
    fn a_tunnel_is_stopped_by_what_its_labels_hold_before_they_are_many() {
        let budget = Budget::new(BudgetSettings::default());
        let now = Instant::now();
        // Base 32, as tunnels use it; a pseudo-random sequence that is the same every time.
        let mut state = 1_u64;
        let mut label = || -> String {
            let mut letter = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                char::from(b"abcdefghijklmnopqrstuvwxyz234567"[(state >> 59) as usize])
            };
            (0..60).map(|_| letter()).collect()
        };
        let names = std::iter::repeat_with(|| format!("{}.example.org", label())).take(120);
        let passed = names.filter(|name| spend(&budget, name, now).is_ok()).count();
        assert!((20..90).contains(&passed), "{passed}");
        assert_eq!(spend(&budget, &format!("{}.example.org", label()), now), Err(Reason::LookupEntropy));
    }

    #[test]
    fn what_package_managers_and_model_hubs_ask_for_is_far_below() {
        let budget = Budget::new(BudgetSettings::default());
        let now = Instant::now();
        for index in 0..40 {
            let shard = format!("cdn-lfs-us-{index}.example.org");
            let guid = format!("{index:08x}-7b1f-4c61-9a0e-5d2f3a4b5c6d.workspace.westeurope.example.org");
            assert_eq!(spend(&budget, &shard, now), Ok(()));
            assert_eq!(
                budget.spend(CLIENT, "ml.example", &guid.replace("example.org", "ml.example"), now),
                Ok(())
            );
        }
    }

    #[test]
    fn entropy_is_what_shannon_says() {
        assert!(entropy("") == 0.0 && entropy("aaaa") == 0.0);
        assert!((entropy("abcd") - 8.0).abs() < 1e-9);
        assert!((entropy("aabb") - 4.0).abs() < 1e-9);
    }
}
