//! Names that a gate resolves by itself, because its clients may have asked another one.
//!
//! Behind a load balancer a client's lookup comes to one gate and its flow to the next. Where a flow says which name it
//! is for, that does no harm. Elsewhere a gate goes by what the client was told, so each of several gates asks for every
//! name that the rules write out, again and again, and takes what it is told as told to all whom the rules let reach
//! the name: for TCP in the [`Ledger`], for UDP in sets in the kernel, one for each [`Group`] of clients.
//!
//! Who may go where is still the rule set's to say, by [`RuleSet::decide_lookup`] for one client of a group. Groups are
//! made so that all their clients are among the same rules' sources, and what holds for one holds for all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use outgate_dns::ledger::{LINGER, Ledger};
use outgate_dns::{TYPE_A, TYPE_AAAA};
use outgate_rules::rule::{Action, RuleId, Sources};
use outgate_rules::{DomainName, PrefixSet, Protocol, RuleSet};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::{MOST_PORTS, opens};
use crate::gate::Gate;
use crate::kernel::plan::{Group, TABLE, WAYS};
use crate::kernel::table::UDP;
use crate::kernel::told::{Element, Flow, Standing, ToldSets, Way};
use crate::kernel::{self, Error};

/// How soon a name is asked for again: after its answer's TTL, within these bounds. Shorter TTLs are those of names
/// whose addresses are dealt out in turn, all of which stay in use far longer; and in a minute a record that was put
/// right should be known.
const AGAIN: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(60)];
/// Names that are asked for at a time.
const AT_ONCE: usize = 64;
/// How long a gate waits for its names before it serves. What is not known by then follows.
const BEFORE_READY: Duration = Duration::from_secs(10);
/// Names that a gate resolves by itself: at the shortest TTL 400 questions a second.
const MOST_NAMES: usize = 1024;
/// Groups of clients, each with two sets in the kernel.
const MOST_GROUPS: usize = 256;
/// Addresses of one name that are in use at a time.
const MOST_ADDRESSES: usize = 256;

/// The names that one of several gates resolves by itself.
#[derive(Debug)]
pub struct Names {
    /// Whose flows come to the gate.
    clients: PrefixSet,
    /// Held while the kernel's sets are filled, so that what earlier rules opened is not added behind a reload's back.
    found: Mutex<Found>,
}

/// What names were found to be.
#[derive(Default, Debug)]
struct Found {
    /// Each address, and up to when it may be used.
    names: BTreeMap<DomainName, HashMap<IpAddr, Instant>>,
    /// The rules that were asked last, and the groups that they make.
    grouped: Option<(Arc<RuleSet>, Arc<[Alike]>)>,
}

/// Clients whom the rules treat alike.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Alike {
    /// One of them, who stands for all.
    client: IpAddr,
    /// Whether a name could open UDP to them.
    datagrams: bool,
    group: Group,
}

/// What is known of a name, and when to ask again.
struct Answered {
    name: DomainName,
    addresses: BTreeMap<IpAddr, Duration>,
    again: Duration,
}

impl Names {
    /// No names yet, for these clients.
    #[must_use]
    pub fn new(clients: PrefixSet) -> Self {
        Self { clients, found: Mutex::default() }
    }

    /// Asks for all names once, and waits for the answers, but not for long.
    pub async fn find_before_ready(&self, gate: &Arc<Gate>) {
        let names = written_out(&gate.rules()).into_iter().cloned().collect();
        let _ = timeout(BEFORE_READY, self.find(gate, names, &mut HashMap::new())).await;
    }

    /// Asks for the names of the rules in force, each again when its answer runs out, and all at once when other rules
    /// are in force. Comes back when nobody is left to say so.
    pub async fn keep(self: Arc<Self>, gate: Arc<Gate>, mut changed: watch::Receiver<()>) {
        let mut due: HashMap<DomainName, Instant> = HashMap::new();
        loop {
            let rules = gate.rules();
            let wanted = written_out(&rules);
            due.retain(|name, _| wanted.contains(name));
            self.forget(&wanted);
            let now = Instant::now();
            let is_due = |name: &&&DomainName| due.get(**name).is_none_or(|again| *again <= now);
            let asked = wanted.iter().filter(is_due).map(|name| (*name).clone()).collect();
            let round = async {
                self.find(&gate, asked, &mut due).await;
                let next = due.values().min().copied().unwrap_or(now + AGAIN[1]);
                sleep_until(next.into()).await;
            };
            tokio::select! {
                () = round => {}
                told = changed.changed() => match told {
                    Ok(()) => due.clear(),
                    Err(_) => return,
                },
            }
        }
    }

    /// The groups of clients to whom names could open UDP, for the kernel's table.
    pub(super) fn groups(&self, rules: &Arc<RuleSet>) -> Vec<Group> {
        let alike = self.lock().alike(rules, &self.clients);
        alike.iter().filter(|alike| alike.datagrams).map(|alike| alike.group.clone()).collect()
    }

    /// Opens in the kernel what these rules let names open.
    pub(super) fn open(&self, rules: &Arc<RuleSet>) -> Result<(), Error> {
        self.lock().open(rules, &self.clients)
    }

    /// Closes what these rules no longer let the name open that is beside it in the kernel. Says how many ways that were.
    /// Where another name opens one of them as well, [`Names::open`] has to follow.
    pub(super) fn close(&self, rules: &Arc<RuleSet>) -> Result<usize, Error> {
        let (mut found, now) = (self.lock(), Timestamp::now());
        let mut closed = 0;
        for alike in found.alike(rules, &self.clients).iter().filter(|alike| alike.datagrams) {
            let (mut sets, standing) = standing(alike)?;
            let keeps = |standing: &Standing<Way>| {
                let name = standing.name.as_ref();
                name.is_some_and(|name| opens(rules, &alike.flow(standing.flow), name, now))
            };
            let revoked: Vec<Way> =
                standing.iter().filter(|standing| !keeps(standing)).map(|standing| standing.flow).collect();
            sets.delete(&revoked)?;
            closed += revoked.len();
        }
        Ok(closed)
    }

    /// Learns from the kernel what a gate before this one found.
    pub(super) fn remember(&self, rules: &Arc<RuleSet>, ledger: &Ledger) -> Result<(), Error> {
        let (mut found, now) = (self.lock(), Instant::now());
        for alike in found.alike(rules, &self.clients).iter().filter(|alike| alike.datagrams) {
            for Standing { flow, name, left } in standing(alike)?.1 {
                if let Some(name) = name {
                    found.note(ledger, &name, flow.address, left, now);
                }
            }
        }
        Ok(())
    }

    /// Asks for names, some at a time, and puts in force what comes of each; `due` says when to ask for it again.
    async fn find(&self, gate: &Arc<Gate>, names: Vec<DomainName>, due: &mut HashMap<DomainName, Instant>) {
        let clients: Arc<[IpAddr]> =
            self.lock().alike(&gate.rules(), &self.clients).iter().map(|alike| alike.client).collect();
        let mut asking = JoinSet::new();
        let mut names = names.into_iter();
        loop {
            while asking.len() < AT_ONCE
                && let Some(name) = names.next()
            {
                asking.spawn(ask(Arc::clone(gate), Arc::clone(&clients), name));
            }
            let Some(answered) = asking.join_next().await else { return };
            if let Ok(answered) = answered {
                due.insert(answered.name.clone(), Instant::now() + answered.again);
                self.take(gate, &answered);
            }
        }
    }

    fn take(&self, gate: &Gate, answered: &Answered) {
        let (mut found, now) = (self.lock(), Instant::now());
        for (address, ttl) in &answered.addresses {
            found.note(&gate.ledger, &answered.name, *address, *ttl + LINGER, now);
        }
        let new = answered.addresses.iter().map(|(address, ttl)| (&answered.name, *address, *ttl + LINGER));
        let new: Vec<_> = new.collect();
        // The rules are those of now: a reload that comes later finds the lock held and judges what stands here.
        let rules = gate.rules();
        let opened = found.alike(&rules, &self.clients).iter().try_for_each(|alike| alike.open(&rules, &new));
        if let Err(error) = opened {
            // Clients will find their way closed: said where a person looks, as no record is of a flow yet.
            gate.recorder.console().notice(format!("{} opens no UDP: {error}", answered.name));
        }
    }

    /// Forgets names that no rule writes out any more, and addresses whose time is over.
    fn forget(&self, wanted: &BTreeSet<&DomainName>) {
        let (mut found, now) = (self.lock(), Instant::now());
        found.names.retain(|name, addresses| {
            addresses.retain(|_, until| *until > now);
            wanted.contains(name) && !addresses.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Found {
    fn alike(&mut self, rules: &Arc<RuleSet>, clients: &PrefixSet) -> Arc<[Alike]> {
        if let Some((of, alike)) = &self.grouped
            && Arc::ptr_eq(of, rules)
        {
            return Arc::clone(alike);
        }
        let made: Arc<[Alike]> = groups(rules, clients).into();
        self.grouped = Some((Arc::clone(rules), Arc::clone(&made)));
        made
    }

    fn note(&mut self, ledger: &Ledger, name: &DomainName, address: IpAddr, lasts: Duration, now: Instant) {
        ledger.note_found(address, name, lasts, now);
        let addresses = self.names.entry(name.clone()).or_default();
        let until = addresses.entry(address).or_insert(now);
        *until = (now + lasts).max(*until);
        if addresses.len() > MOST_ADDRESSES
            && let Some(first) = addresses.iter().min_by_key(|(_, until)| **until).map(|(first, _)| *first)
        {
            addresses.remove(&first);
        }
    }

    fn open(&mut self, rules: &Arc<RuleSet>, clients: &PrefixSet) -> Result<(), Error> {
        let (alike, now) = (self.alike(rules, clients), Instant::now());
        let all = self.names.iter().flat_map(|(name, addresses)| {
            let left = move |until: &Instant| until.saturating_duration_since(now);
            addresses.iter().map(move |(address, until)| (name, *address, left(until)))
        });
        let all: Vec<_> = all.filter(|(_, _, left)| !left.is_zero()).collect();
        alike.iter().try_for_each(|alike| alike.open(rules, &all))
    }
}

impl Alike {
    fn flow(&self, Way { address, protocol, port }: Way) -> Flow {
        Flow { client: self.client, address, protocol, port }
    }

    /// Opens to the group what these addresses of names open to it. Nothing where the kernel has no such group yet, or
    /// no longer: whoever changes that opens everything anew.
    fn open(
        &self,
        rules: &Arc<RuleSet>,
        found: &[(&DomainName, IpAddr, Duration)],
    ) -> Result<(), kernel::Error> {
        let mut lasting: BTreeMap<Duration, Vec<Element<Way>>> = BTreeMap::new();
        for (way, (lasts, name)) in self.ways(rules, found) {
            lasting.entry(lasts).or_default().push(Element { flow: way, name: name.clone() });
        }
        if lasting.is_empty() {
            return Ok(());
        }
        let mut sets = ToldSets::open(TABLE, self.group.sets())?;
        let mut added = lasting.iter().map(|(lasts, elements)| sets.add(elements, *lasts));
        added.find(Result::is_err).map_or(Ok(()), |failed| or_absent(failed, ()))
    }

    /// Every way that they open, with the name that opens it for longest.
    fn ways<'n>(
        &self,
        rules: &Arc<RuleSet>,
        found: &[(&'n DomainName, IpAddr, Duration)],
    ) -> BTreeMap<Way, (Duration, &'n DomainName)> {
        let now = Timestamp::now();
        let mut ways: BTreeMap<Way, (Duration, &DomainName)> = BTreeMap::new();
        for (name, address, lasts) in found.iter().filter(|_| self.datagrams) {
            let Ok(permit) = rules.decide_lookup(self.client, name, now).into_permit() else { continue };
            let ports = permit.opens(*address, Protocol::Udp, now);
            for port in ports.ranges().flatten().take(MOST_PORTS) {
                let way = Way { address: *address, protocol: UDP, port };
                let longest = ways.entry(way).or_insert((*lasts, name));
                *longest = (*lasts, *name).max(*longest);
            }
        }
        ways
    }
}

/// What of the names and groups of these rules is too much for one of several gates.
pub(super) fn too_many(rules: &Arc<RuleSet>, clients: &PrefixSet) -> Option<String> {
    let (names, groups) = (written_out(rules).len(), groups(rules, clients).len());
    if names > MOST_NAMES {
        return Some(format!(
            "{names} names are written out for ports without TLS or HTTP, and each of several gates can resolve \
             {MOST_NAMES} by itself"
        ));
    }
    (groups > MOST_GROUPS).then(|| {
        format!(
            "the sources of the rules split the clients into {groups} groups, and there can be {MOST_GROUPS}"
        )
    })
}

/// The names for whose flows a gate has to know the address.
fn written_out(rules: &RuleSet) -> BTreeSet<&DomainName> {
    rules.beyond_web().names.iter().map(|(name, _)| name).collect()
}

/// Asks for one name, as each of these clients may. One question goes out however many they are.
async fn ask(gate: Arc<Gate>, clients: Arc<[IpAddr]>, name: DomainName) -> Answered {
    let (rules, now) = (gate.rules(), Timestamp::now());
    let mut addresses = BTreeMap::new();
    for client in clients.iter() {
        let Ok(permit) = rules.decide_lookup(*client, &name, now).into_permit() else { continue };
        let (v4, v6) =
            tokio::join!(gate.resolver.answer(&permit, TYPE_A), gate.resolver.answer(&permit, TYPE_AAAA));
        for answer in [v4, v6] {
            answer.each_address(&mut |address, ttl| _ = addresses.insert(address, ttl));
        }
    }
    let [soonest, latest] = AGAIN;
    let again = addresses.values().min().copied().unwrap_or_default().clamp(soonest, latest);
    Answered { name, addresses, again }
}

/// What is open to a group in the kernel; nothing where the kernel knows no such group.
fn standing(alike: &Alike) -> Result<(ToldSets<Way>, Vec<Standing<Way>>), Error> {
    let mut sets = ToldSets::open(TABLE, alike.group.sets())?;
    let standing = or_absent(sets.dump(), Vec::new())?;
    Ok((sets, standing))
}

fn or_absent<T>(result: Result<T, Error>, absent: T) -> Result<T, Error> {
    match result {
        Err(Error::Refused { errno: Errno::ENOENT, .. }) => Ok(absent),
        result => result,
    }
}

/// Splits the clients so that those of each part are among the sources of the same rules, as far as those say something
/// about flows that go by a name's address. Parts that no such rule is for are left out.
fn groups(rules: &Arc<RuleSet>, clients: &PrefixSet) -> Vec<Alike> {
    let beyond = rules.beyond_web();
    let by_name: BTreeSet<RuleId> = beyond.names.iter().map(|(_, id)| *id).collect();
    let sources_of = |id: &RuleId| Some(rules.rule_numbered(id.number())?.terms.sources.clone());
    let weigh = |rule: &&outgate_rules::rule::Rule| {
        rule.terms.action == Action::Deny || rule.terms.protocol.contains(Protocol::Udp)
    };
    let weighed = rules.rules().iter().filter(weigh).map(|rule| rule.terms.sources.clone());
    let allowed: Vec<Sources> = by_name.iter().filter_map(sources_of).collect();
    let datagrams = by_name.iter().filter(|id| beyond.datagrams.contains(id));
    let datagrams: Vec<Sources> = datagrams.filter_map(sources_of).collect();
    let parts = parts(clients, &distinct(weighed.chain(allowed.iter().cloned())));
    let alike = parts.into_iter().filter_map(|ranges| {
        let client = *ranges.first()?.start();
        let is_among = |sources: &Sources| sources.contains(client);
        let datagrams = datagrams.iter().any(is_among);
        let sets = ["v4", "v6"].map(|family| format!("{WAYS}{:016x}-{family}", digest(&ranges)));
        let group = Group { clients: ranges, sets };
        allowed.iter().any(is_among).then_some(Alike { client, datagrams, group })
    });
    alike.collect()
}

/// Sources that leave anybody out, each once.
fn distinct(sources: impl Iterator<Item = Sources>) -> Vec<Arc<PrefixSet>> {
    let mut distinct: Vec<Arc<PrefixSet>> = Vec::new();
    for sources in sources {
        if let Sources::Only { prefixes, .. } = sources
            && !distinct.contains(&prefixes)
        {
            distinct.push(prefixes);
        }
    }
    distinct
}

/// The clients in parts: those of one part are in the same of these sets.
fn parts(clients: &PrefixSet, sets: &[Arc<PrefixSet>]) -> Vec<Vec<RangeInclusive<IpAddr>>> {
    let ends = |range: RangeInclusive<IpAddr>| [Some(*range.start()), after(*range.end())];
    let cuts: BTreeSet<IpAddr> = sets.iter().flat_map(|set| set.ranges().flat_map(ends)).flatten().collect();
    let mut parts: BTreeMap<Vec<usize>, Vec<RangeInclusive<IpAddr>>> = BTreeMap::new();
    for range in clients.ranges() {
        let (mut start, last) = (*range.start(), *range.end());
        loop {
            let next = after(start).filter(|next| *next <= last);
            let end = next.and_then(|next| cuts.range(next..=last).next().copied());
            let among = sets.iter().enumerate().filter(|(_, set)| set.contains(start));
            let part = parts.entry(among.map(|(index, _)| index).collect()).or_default();
            let Some(cut) = end else {
                part.push(start..=last);
                break;
            };
            part.push(start..=before(cut));
            start = cut;
        }
    }
    parts.into_values().collect()
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(address) => address.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

fn before(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits().saturating_sub(1)).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits().saturating_sub(1)).into(),
    }
}

/// FNV-1a of the ranges: the same in every process, for a set's name is found again by the gate's next one.
fn digest(ranges: &[RangeInclusive<IpAddr>]) -> u64 {
    let text = ranges.iter().map(|range| format!("{}-{} ", range.start(), range.end())).collect::<String>();
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |digest, byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
