//! What was answered a moment ago, given again.
//!
//! Clients ask the same few questions over and over. The same packet but for its id, from the same client, at the
//! same address of ours, under the same rules and within the same second of the clock, has the same reply but for
//! its id, and the same event but for its time and port. Nothing is decided here and nothing lasts: a rule that
//! expires does so at the end of a second, and a TTL, an entry in the ledger and the time that the cache counts
//! from are wrong by less than one. The rate is asked before.
//!
//! A thread has its own, so there is no lock. In user mode an answer takes 0.25 µs, its record included, instead of
//! 0.5 µs or more.

use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use outgate_rules::{Reason, RuleSet};

use super::service::{Asker, Moment};
use crate::event::{Answered, Said};
use crate::resolver::AnsweredBy;

/// Replies that are kept in one second: what exceeds them is answered in the long way.
const REPLIES: usize = 4096;
/// Times that a reply is given until its packet goes the long way again: the cache is to see which names are used.
const TIMES: u8 = 64;
/// Longest packet that is kept; longer ones are padded, or no queries.
const PACKET: usize = 320;
/// Packets that are remembered for having come once, and the words for it: only what comes twice is kept, or a flood
/// of different names would cost more than without all this. Sixteen bits a packet, of which it sets two: at most one of
/// sixty that have not come is taken for one that has.
const SIGHTINGS: usize = 8192;
const SIGHTING_WORDS: usize = SIGHTINGS * 16 / 64;

/// The replies of this second.
pub(super) struct Again {
    given: HashTable<Given>,
    /// Seeded at random: clients choose the packets.
    hasher: RandomState,
    /// Two bits of a word for each packet that came, by its hash, and how many packets those are.
    sightings: Box<[u64]>,
    sighted: usize,
    second: i64,
    /// How long the last answer of the batch took that went the long way. One that is given again takes so much less
    /// that to look at the clock would be a good part of it.
    took: Duration,
    /// Keeps nothing alive but the address, which no other rules can have meanwhile.
    rules: Weak<RuleSet>,
}

/// A packet without its id, with who sent it where to.
#[derive(Clone, Copy)]
pub(super) struct Sent<'p> {
    id: &'p [u8],
    rest: &'p [u8],
    asker: Asker,
    hash: u64,
}

/// A packet and what came of it.
struct Given {
    hash: u64,
    asker: (IpAddr, IpAddr),
    /// Without the id.
    packet: Box<[u8]>,
    reply: Box<[u8]>,
    event: Answered,
    said: Said,
    /// Times that it may still be given.
    left: u8,
}

impl Again {
    pub(super) fn new() -> Self {
        Self {
            given: HashTable::new(),
            hasher: RandomState::default(),
            sightings: vec![0; SIGHTING_WORDS].into(),
            sighted: 0,
            second: 0,
            took: Duration::ZERO,
            rules: Weak::new(),
        }
    }

    /// Whether nothing is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.given.is_empty()
    }

    /// Forgets everything: events keep the rules alive that decided.
    pub(super) fn forget(&mut self) {
        self.given.clear();
    }

    /// Forgets what does not hold at this moment, at which a batch begins.
    pub(super) fn begin(&mut self, moment: &Moment) {
        self.took = Duration::ZERO;
        let second = moment.time.as_second();
        let same_rules = std::ptr::eq(self.rules.as_ptr(), Arc::as_ptr(&moment.rules));
        if second != self.second || !same_rules {
            self.forget();
            self.second = second;
            self.rules = Arc::downgrade(&moment.rules);
        }
    }

    /// The packet, as it is looked for here; none where it has no id.
    pub(super) fn sent<'p>(&self, packet: &'p [u8], asker: Asker) -> Option<Sent<'p>> {
        let (id, rest) = packet.split_at_checked(2)?;
        Some(Sent { id, rest, asker, hash: self.hasher.hash_one((rest, asker.client.ip())) })
    }

    /// Appends the reply to a packet that was answered in this second, and gives the event to tell, with what was
    /// said of it before.
    pub(super) fn give(
        &mut self,
        sent: &Sent<'_>,
        moment: &Moment,
        out: &mut Vec<u8>,
    ) -> Option<(&Answered, &mut Said)> {
        // What is kept is in no cache while other names are asked for; the sightings are.
        if !self.was_seen(sent.hash) {
            return None;
        }
        let entry = self.given.find_entry(sent.hash, |given| given.is_for(sent)).ok()?;
        if entry.get().left == 0 {
            entry.remove();
            return None;
        }
        let given = entry.into_mut();
        let (_, reply) = given.reply.split_at_checked(2)?;
        out.extend_from_slice(sent.id);
        out.extend_from_slice(reply);
        given.left -= 1;
        (given.event.client, given.event.time, given.event.took) =
            (sent.asker.client, moment.time, self.took);
        Some((&given.event, &mut given.said))
    }

    /// Keeps a reply, if its packet was seen before.
    pub(super) fn keep(&mut self, sent: &Sent<'_>, reply: &[u8], event: &Answered) {
        self.took = event.took;
        let Sent { hash, rest, asker, .. } = *sent;
        if !self.see(hash) || self.given.len() >= REPLIES || rest.len() > PACKET || !holds(event) {
            return;
        }
        let asker = (asker.client.ip(), asker.local);
        let (packet, reply, said) = (rest.into(), reply.into(), Said::new());
        let given = Given { hash, asker, packet, reply, event: event.clone(), said, left: TIMES };
        self.given.insert_unique(hash, given, |given| given.hash);
    }

    /// Whether a packet came before, as far as that is remembered.
    fn was_seen(&self, hash: u64) -> bool {
        let (word, bits) = sighting(hash);
        self.sightings.get(word).is_some_and(|word| word & bits == bits)
    }

    /// Remembers that a packet came; whether it came before.
    fn see(&mut self, hash: u64) -> bool {
        let seen = self.was_seen(hash);
        if !seen {
            let (word, bits) = sighting(hash);
            self.sightings.get_mut(word).into_iter().for_each(|word| *word |= bits);
            self.sighted += 1;
        }
        if self.sighted > SIGHTINGS {
            self.sightings.fill(0);
            self.sighted = 0;
        }
        seen
    }
}

/// The word of the sightings that is a packet's, and its bits there.
fn sighting(hash: u64) -> (usize, u64) {
    ((hash >> 12) as usize % SIGHTING_WORDS, 1 << (hash & 63) | 1 << (hash >> 6 & 63))
}

impl Given {
    fn is_for(&self, sent: &Sent<'_>) -> bool {
        *self.packet == *sent.rest && self.asker == (sent.asker.client.ip(), sent.asker.local)
    }
}

/// Whether the same would be answered in the rest of the second.
fn holds(event: &Answered) -> bool {
    match event.from {
        Some(AnsweredBy::Fixed | AnsweredBy::Cache) => true,
        // An upstream may answer the next.
        Some(AnsweredBy::Stale | AnsweredBy::Upstream(_) | AnsweredBy::Nobody) => false,
        // There may be room for the next, and its client may ask again.
        None => !matches!(event.reason, Reason::LookupsPending | Reason::LookupRate),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use jiff::Timestamp;
    use outgate_rules::{Enforcement, Revision, RuleSetBuilder, Settings};
    use smallvec::SmallVec;

    use super::*;
    use crate::event::Transport;

    const PACKET: &[u8] = b"idthe rest of the packet";

    fn no_rules() -> Arc<RuleSet> {
        Arc::new(RuleSetBuilder::default().build(Settings::default()).unwrap())
    }

    fn asker(client: &str) -> Asker {
        let local = IpAddr::from([10, 0, 0, 4]);
        Asker { client: client.parse().unwrap(), local, transport: Transport::Udp }
    }

    fn moment(rules: &Arc<RuleSet>, milliseconds: i64) -> Moment {
        let time = Timestamp::from_millisecond(milliseconds).unwrap();
        Moment::new(Instant::now(), time, Arc::clone(rules))
    }

    fn event(reason: Reason) -> Answered {
        Answered {
            time: Timestamp::UNIX_EPOCH,
            client: "10.1.0.4:7".parse().unwrap(),
            transport: Transport::Udp,
            question: None,
            rcode: 3.into(),
            addresses: SmallVec::new(),
            withheld: Vec::new(),
            from: None,
            took: Duration::ZERO,
            reason,
            rule: None,
            enforcement: Enforcement::Enforce,
            revision: Revision::new([1; 6]),
        }
    }

    fn keep(again: &mut Again, packet: &[u8], reason: Reason) {
        let sent = again.sent(packet, asker("10.1.0.4:7")).unwrap();
        again.keep(&sent, b"idreply", &event(reason));
    }

    /// Whether a reply is given.
    fn gives(again: &mut Again, packet: &[u8], asker: Asker, now: &Moment) -> bool {
        let sent = again.sent(packet, asker);
        sent.is_some_and(|sent| again.give(&sent, now, &mut Vec::new()).is_some())
    }

    /// Keeps a reply to what came twice at 1.2 s.
    fn kept(rules: &Arc<RuleSet>, reason: Reason) -> Again {
        let mut again = Again::new();
        again.begin(&moment(rules, 1200));
        for _ in 0..2 {
            keep(&mut again, PACKET, reason);
        }
        again
    }

    #[test]
    fn the_same_packet_has_the_same_reply_with_its_own_id_and_event() {
        let rules = no_rules();
        let (mut again, now) = (kept(&rules, Reason::NoRule), moment(&rules, 1999));
        again.begin(&now);
        let mut out = b"before".to_vec();
        let sent = again.sent(b"NOthe rest of the packet", asker("10.1.0.4:9")).unwrap();
        let (told, _) = again.give(&sent, &now, &mut out).unwrap();
        assert_eq!((told.client.port(), told.time, told.reason), (9, now.time, Reason::NoRule));
        assert_eq!(out, b"beforeNOreply");
    }

    #[test]
    fn nothing_else_is_given_again() {
        let rules = no_rules();
        let given = |again: &mut Again, packet: &[u8], asker: Asker, now: &Moment| {
            again.begin(now);
            gives(again, packet, asker, now)
        };
        let (same, in_time) = (asker("10.1.0.4:7"), moment(&rules, 1999));
        assert!(given(&mut kept(&rules, Reason::NoRule), PACKET, same, &in_time));
        let elsewhere = Asker { local: IpAddr::from([10, 0, 0, 5]), ..same };
        let other_rules = no_rules();
        for (what, packet, asker, now) in [
            ("another packet", &b"idthe Rest of the packet"[..], same, &in_time),
            ("no packet", b"i", same, &in_time),
            ("another client", PACKET, asker("10.1.0.5:7"), &in_time),
            ("another address of ours", PACKET, elsewhere, &in_time),
            ("the next second", PACKET, same, &moment(&rules, 2000)),
            ("other rules", PACKET, same, &moment(&other_rules, 1999)),
        ] {
            assert!(!given(&mut kept(&rules, Reason::NoRule), packet, asker, now), "{what}");
        }
        for passing in [Reason::LookupsPending, Reason::LookupRate] {
            assert!(!given(&mut kept(&rules, passing), PACKET, same, &in_time), "{passing:?}");
        }
    }

    #[test]
    fn a_packet_goes_the_long_way_again_now_and_then() {
        let rules = no_rules();
        let (mut again, now) = (kept(&rules, Reason::NoRule), moment(&rules, 1200));
        let mut given = || gives(&mut again, PACKET, asker("10.1.0.4:7"), &now);
        assert_eq!((0..1000).take_while(|_| given()).count(), usize::from(TIMES));
        keep(&mut again, PACKET, Reason::NoRule);
        assert!(gives(&mut again, PACKET, asker("10.1.0.4:7"), &now));
        assert_eq!(again.given.len(), 1);
    }

    #[test]
    fn what_comes_once_is_not_kept_and_a_flood_is_bounded() {
        let rules = no_rules();
        let mut again = Again::new();
        again.begin(&moment(&rules, 0));
        let mut keep = |number: u32| keep(&mut again, &number.to_be_bytes().repeat(2), Reason::NoRule);
        (0..100_000).for_each(&mut keep);
        (0..100_000).for_each(|number| (0..2).for_each(|_| keep(number)));
        assert!(again.given.len() <= REPLIES, "{}", again.given.len());
        again.forget();
        assert!(again.is_empty());
    }
}
