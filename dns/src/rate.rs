//! How many queries a client may ask a second.
//!
//! A generic cell rate algorithm: each client has one moment in time, which every query moves on by a fixed
//! step, and may run ahead of the clock by one second's worth of steps and no more.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::bounded::{Bounded, Passing};

/// Clients that are remembered at a time. A forgotten one begins anew, so a flood of forged addresses lets
/// through more, and locks nobody out.
const CLIENTS: usize = 65_536;
/// How far a client may run ahead.
const BURST: Duration = Duration::from_secs(1);
/// A client at its limit is put on record once in this time; every refusal is counted.
const TELL: Duration = Duration::from_secs(60);

/// Counts the queries of clients. An IPv6 client is its /64: it has all of those addresses (RFC 6177).
#[derive(Debug)]
pub struct Rate {
    step: Duration,
    clients: Bounded<IpAddr, Client>,
}

#[derive(Debug, Default)]
struct Client {
    /// Up to when the client's queries so far fill its time.
    filled: Option<Instant>,
    refused: u32,
    told: Option<Instant>,
}

impl Passing for Client {
    fn is_over(&self, now: Instant) -> bool {
        self.filled.is_none_or(|filled| filled <= now)
            && self.told.is_none_or(|told| now.saturating_duration_since(told) > TELL)
    }
}

/// A client is at its limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Over {
    /// When it may ask again.
    pub wait: Duration,
    /// Whether this refusal is answered: every second one, so that a client whose address was forged by
    /// somebody else still hears that it should come over TCP.
    pub slip: bool,
    /// Whether this refusal is put on record.
    pub tell: bool,
}

impl Rate {
    /// Lets each client ask so many queries a second, and as many at once.
    #[must_use]
    pub fn new(per_second: NonZeroU32) -> Self {
        Self { step: BURST / per_second.get(), clients: Bounded::new(CLIENTS) }
    }

    /// Counts one query.
    ///
    /// # Errors
    /// When the client is at its limit; then the query is not counted.
    pub fn admit(&self, client: IpAddr, now: Instant) -> Result<(), Over> {
        self.admit_some(1, client, now).map(drop)
    }

    /// Counts queries that came together, one or more, as far as the client may ask them, and says how many that are:
    /// with one look at what is remembered of the client, which other cores look at, too.
    ///
    /// # Errors
    /// When the client is at its limit; then none is counted, and one is refused.
    pub fn admit_some(&self, queries: u32, client: IpAddr, now: Instant) -> Result<u32, Over> {
        let client = counted(client);
        let admit = |client: &mut Client| client.admit(queries, self.step, now);
        self.clients.with(client, client, now, admit).unwrap_or(Ok(queries))
    }
}

impl Client {
    fn admit(&mut self, queries: u32, step: Duration, now: Instant) -> Result<u32, Over> {
        let mut filled = self.filled.map_or(now, |filled| filled.max(now));
        let ahead = |filled: Instant| (filled + step).saturating_duration_since(now);
        let mut admitted = 0;
        while admitted < queries && ahead(filled) <= BURST {
            filled += step;
            admitted += 1;
        }
        if admitted > 0 {
            self.filled = Some(filled);
            return Ok(admitted);
        }
        self.refused = self.refused.wrapping_add(1);
        let tell = self.told.is_none_or(|told| now.saturating_duration_since(told) >= TELL);
        if tell {
            self.told = Some(now);
        }
        Err(Over { wait: ahead(filled).saturating_sub(BURST), slip: self.refused.is_multiple_of(2), tell })
    }
}

/// The address by which a client is counted.
pub(crate) fn counted(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 4));

    fn rate(per_second: u32) -> Rate {
        Rate::new(NonZeroU32::new(per_second).unwrap())
    }

    fn admitted(rate: &Rate, client: IpAddr, queries: usize, now: Instant) -> usize {
        (0..queries).filter(|_| rate.admit(client, now).is_ok()).count()
    }

    #[test]
    fn a_second_holds_so_many_queries_and_the_next_as_many_again() {
        let (rate, start) = (rate(100), Instant::now());
        assert_eq!(admitted(&rate, CLIENT, 1000, start), 100);
        assert_eq!(admitted(&rate, CLIENT, 1000, start + BURST / 2), 50);
        assert_eq!(admitted(&rate, CLIENT, 1000, start + 10 * BURST), 100, "no more is saved up");
    }

    #[test]
    fn queries_that_came_together_are_counted_as_one_by_one() {
        let (rate, start) = (rate(100), Instant::now());
        assert_eq!(rate.admit_some(64, CLIENT, start), Ok(64));
        assert_eq!(rate.admit_some(64, CLIENT, start), Ok(36));
        assert_eq!(rate.admit_some(64, CLIENT, start).unwrap_err().wait, BURST / 100);
        assert_eq!(rate.admit_some(64, CLIENT, start + BURST / 10), Ok(10));
    }

    #[test]
    fn one_clients_flood_is_not_anothers() {
        let (rate, start) = (rate(10), Instant::now());
        admitted(&rate, CLIENT, 1000, start);
        assert_eq!(admitted(&rate, "10.1.0.5".parse().unwrap(), 10, start), 10);
    }

    #[test]
    fn an_ipv6_client_has_one_limit_for_its_network() {
        let (rate, start) = (rate(10), Instant::now());
        let clients = (0..100).map(|host| format!("fd00:2::{host:x}").parse().unwrap());
        assert_eq!(clients.filter(|client| rate.admit(*client, start).is_ok()).count(), 10);
        assert!(rate.admit("fd00:2:0:1::1".parse().unwrap(), start).is_ok());
    }

    #[test]
    fn every_second_refusal_is_answered_and_one_a_minute_recorded() {
        let (rate, start) = (rate(1), Instant::now());
        rate.admit(CLIENT, start).unwrap();
        let over: Vec<Over> = (0..6).map(|_| rate.admit(CLIENT, start).unwrap_err()).collect();
        assert_eq!(over.iter().filter(|over| over.slip).count(), 3);
        assert_eq!(over.iter().filter(|over| over.tell).count(), 1);
        assert_eq!(over[0].wait, BURST);
        let later = start + TELL;
        rate.admit(CLIENT, later).unwrap();
        assert!(rate.admit(CLIENT, later).unwrap_err().tell);
    }
}
