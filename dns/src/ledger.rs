//! Which names a client was told which addresses for.
//!
//! A transparent flow has an address and no name. The ledger gives it back the names whose answers this very
//! client was given, and for which rules may open the flow. Where clients ask one gate and send their flows through
//! another, each gate finds the names of its rules out by itself, and the ledger gives back those as well.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outgate_rules::DomainName;

use crate::bounded::{Bounded, Passing};

/// How long a client may use an answer past its TTL: programs keep addresses for longer than they should.
pub const LINGER: Duration = Duration::from_secs(15 * 60);
/// Pairs of client and address that are known at a time. A pair takes about 100 bytes.
const PAIRS: usize = 262_144;
/// Names of one address that one client is known to have asked for; many sites share the addresses of a CDN.
const NAMES: usize = 8;
/// Addresses of names that the gate found out by itself, and names of one address: a policy writes each of them out.
const FOUND: usize = 65_536;
const FOUND_NAMES: usize = 64;

/// What clients were told.
#[derive(Debug)]
pub struct Ledger {
    told: Bounded<(IpAddr, IpAddr), Told>,
    found: Bounded<IpAddr, Told>,
    opener: Option<Arc<dyn Opener>>,
}

/// Opens the way for flows that the kernel decides on, by what their clients were told.
pub trait Opener: fmt::Debug + Send + Sync {
    /// A client is about to be told `address` for `name`, and may use it for so long. When this returns, its first
    /// packet may come. Must not block for longer than a system call.
    fn open(&self, client: IpAddr, address: IpAddr, name: &DomainName, lasts: Duration);
}

/// The names, and up to when each answer may be used.
#[derive(Debug, Default)]
struct Told(Vec<(DomainName, Instant)>);

impl Passing for Told {
    fn is_over(&self, now: Instant) -> bool {
        self.0.iter().all(|(_, until)| *until <= now)
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self { told: Bounded::new(PAIRS), found: Bounded::new(FOUND), opener: None }
    }
}

impl Ledger {
    /// A ledger beside which `opener` opens the way.
    #[must_use]
    pub fn with_opener(opener: Arc<dyn Opener>) -> Self {
        Self { opener: Some(opener), ..Self::default() }
    }

    /// Notes that `client` was told `address` for `name`, with a TTL.
    pub fn note(&self, client: IpAddr, address: IpAddr, name: &DomainName, ttl: Duration, now: Instant) {
        let until = now + ttl + LINGER;
        self.told.with(client, (client, address), now, |told| told.note(name, until, NAMES));
        if let Some(opener) = &self.opener {
            opener.open(client, address, name, ttl + LINGER);
        }
    }

    /// Notes that a gate before this one told `client` `address` for `name`, for which it may be used for so long still.
    /// The way that was opened then stands, and runs out by itself.
    pub fn note_standing(
        &self,
        client: IpAddr,
        address: IpAddr,
        name: &DomainName,
        left: Duration,
        now: Instant,
    ) {
        self.told.with(client, (client, address), now, |told| told.note(name, now + left, NAMES));
    }

    /// Notes that the gate itself was told `address` for `name`, and that who may reach the name may use it for so
    /// long.
    pub fn note_found(&self, address: IpAddr, name: &DomainName, lasts: Duration, now: Instant) {
        self.found.with(address, address, now, |found| found.note(name, now + lasts, FOUND_NAMES));
    }

    /// The names that `client` was told `address` for and may still use it for, the latest answer first; and behind
    /// them those that the gate itself was told it for, for the rules to say whether they are this client's.
    #[must_use]
    pub fn names(&self, client: IpAddr, address: IpAddr, now: Instant) -> Vec<DomainName> {
        let mut names = self.told.get(client, &(client, address), |told| told.names(now)).unwrap_or_default();
        let found = self.found.get(address, &address, |found| found.names(now)).unwrap_or_default();
        names.extend(found);
        names
    }
}

impl Told {
    fn note(&mut self, name: &DomainName, until: Instant, most: usize) {
        if let Some((_, known)) = self.0.iter_mut().find(|(known, _)| known == name) {
            *known = until.max(*known);
            return;
        }
        if self.0.len() >= most
            && let Some(first) = (0..self.0.len()).min_by_key(|at| self.0.get(*at).map(|(_, until)| *until))
        {
            self.0.swap_remove(first);
        }
        self.0.push((name.clone(), until));
    }

    fn names(&self, now: Instant) -> Vec<DomainName> {
        let mut names: Vec<_> = self.0.iter().filter(|(_, until)| *until > now).collect();
        names.sort_by_key(|(_, until)| std::cmp::Reverse(*until));
        names.into_iter().map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 4));
    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(9, 9, 9, 9));
    const TTL: Duration = Duration::from_secs(60);

    fn name(text: &str) -> DomainName {
        DomainName::parse(text).unwrap()
    }

    #[test]
    fn an_answer_can_be_used_for_its_ttl_and_a_quarter_of_an_hour() {
        let (ledger, now) = (Ledger::default(), Instant::now());
        ledger.note(CLIENT, ADDRESS, &name("a.example"), TTL, now);
        let known = |after: Duration| ledger.names(CLIENT, ADDRESS, now + after);
        assert_eq!(known(Duration::ZERO), [name("a.example")]);
        assert_eq!(known(TTL + LINGER - Duration::from_millis(1)), [name("a.example")]);
        assert_eq!(known(TTL + LINGER), []);
    }

    #[test]
    fn what_an_earlier_gate_told_can_be_used_for_as_long_as_it_was_then_and_opens_nothing_anew() {
        #[derive(Debug)]
        struct Never;
        impl Opener for Never {
            fn open(&self, client: IpAddr, address: IpAddr, name: &DomainName, lasts: Duration) {
                panic!("{client} {address} {name} {lasts:?}")
            }
        }
        let (ledger, now) = (Ledger::with_opener(Arc::new(Never)), Instant::now());
        ledger.note_standing(CLIENT, ADDRESS, &name("a.example"), TTL, now);
        assert_eq!(ledger.names(CLIENT, ADDRESS, now), [name("a.example")]);
        assert_eq!(ledger.names("10.1.0.5".parse().unwrap(), ADDRESS, now), []);
        assert_eq!(ledger.names(CLIENT, ADDRESS, now + TTL), []);
    }

    #[test]
    fn it_is_the_answer_of_this_client_alone() {
        let (ledger, now) = (Ledger::default(), Instant::now());
        ledger.note(CLIENT, ADDRESS, &name("a.example"), TTL, now);
        assert_eq!(ledger.names("10.1.0.5".parse().unwrap(), ADDRESS, now), []);
        assert_eq!(ledger.names(CLIENT, "9.9.9.10".parse().unwrap(), now), []);
    }

    #[test]
    fn what_the_gate_found_out_by_itself_is_known_to_every_client_behind_what_it_was_told() {
        let (ledger, now) = (Ledger::default(), Instant::now());
        ledger.note_found(ADDRESS, &name("found.example"), TTL, now);
        ledger.note(CLIENT, ADDRESS, &name("told.example"), TTL, now);
        let other = "10.1.0.5".parse().unwrap();
        assert_eq!(ledger.names(CLIENT, ADDRESS, now), [name("told.example"), name("found.example")]);
        assert_eq!(ledger.names(other, ADDRESS, now), [name("found.example")]);
        assert_eq!(ledger.names(other, ADDRESS, now + TTL), [], "no longer than was said");
        assert_eq!(ledger.names(other, "9.9.9.10".parse().unwrap(), now), []);
    }

    #[test]
    fn an_address_of_many_names_keeps_the_latest() {
        let (ledger, now) = (Ledger::default(), Instant::now());
        for index in 0..20 {
            let at = now + Duration::from_secs(index);
            ledger.note(CLIENT, ADDRESS, &name(&format!("n{index}.example")), TTL, at);
        }
        ledger.note(CLIENT, ADDRESS, &name("n12.example"), TTL, now + Duration::from_secs(30));
        let names = ledger.names(CLIENT, ADDRESS, now);
        assert_eq!(names.len(), NAMES);
        assert_eq!(names[..2], [name("n12.example"), name("n19.example")]);
    }

    #[test]
    fn a_later_answer_with_a_shorter_ttl_takes_nothing_away() {
        let (ledger, now) = (Ledger::default(), Instant::now());
        ledger.note(CLIENT, ADDRESS, &name("a.example"), TTL, now);
        ledger.note(CLIENT, ADDRESS, &name("a.example"), Duration::ZERO, now);
        assert_eq!(ledger.names(CLIENT, ADDRESS, now + TTL + LINGER / 2), [name("a.example")]);
    }
}
