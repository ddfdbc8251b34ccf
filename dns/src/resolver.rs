//! The resolver: what is asked is answered from what is fixed, from the cache, or by the upstreams, in this
//! order; and what one client learns of an answer is vetted by its permit.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::rr::Record;
use jiff::Timestamp;
use outgate_rules::{DomainName, LookupPermit, OwnAddresses, Permit, Reason};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::cache::{Cache, CacheSettings, Failure, Found};
use crate::filter::{Chain, MAX_LINKS, Step};
use crate::hosts::{self, Hosts};
use crate::question::Question;
use crate::reply::{Rcode, Reply, each_address, vetted};
use crate::upstream::exchange::Manner;
use crate::upstream::{Transport, Upstream, system, tls};
use crate::zones::Zones;
use crate::{ConfigError, ResolveError, TYPE_A, TYPE_AAAA, TYPE_HTTPS, TYPE_SVCB, private_link, special};

/// Most addresses that one name may contribute: more would only be more to vet and to dial.
const MAX_ADDRESSES: usize = 32;
/// How long a question may be with the upstreams, retries and all links of a chain included: the time after
/// which the stub resolvers of clients give up (resolv.conf(5), `timeout`).
const DEADLINE: Duration = Duration::from_secs(5);
/// How long to wait for upstreams while there is an expired answer (RFC 8767 §5, client response timer).
const PATIENCE: Duration = Duration::from_millis(1800);
/// The TTL of an expired answer (RFC 8767 §4), in seconds.
const STALE_TTL: u32 = 30;
/// How long to wait for addresses of the other family when one family's are there (after RFC 8305 §3, which
/// has 50 ms for a resolver next door).
const OTHER_FAMILY: Duration = Duration::from_millis(200);
/// Questions that may be with the upstreams at a time: each takes a socket and some kilobytes.
const MAX_IN_FLIGHT: usize = 2048;

/// Which upstream resolvers are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstreams {
    /// Those that the system is configured with (`/etc/resolv.conf`).
    System,
    /// These, in this order.
    Listed(Vec<Upstream>),
}

/// How a [`Resolver`] is set up. The default asks the system's resolvers.
#[derive(Clone, Debug)]
pub struct ResolverSettings {
    /// Who is asked for names in no zone.
    pub upstreams: Upstreams,
    /// Who is asked for names in these zones: the longest zone wins, the first of equal ones.
    pub zones: Vec<(DomainName, Vec<Upstream>)>,
    /// Whether Azure's Private Link zones are forwarded to Azure's resolver; `zones` go before them.
    pub private_link: Option<PrivateLink>,
    /// Whether a name that is asked for by a datagram has a random letter case, which the answer must repeat. An
    /// upstream that does not repeat it is asked over TCP.
    pub case_randomization: bool,
    /// A PEM file of certificate authorities: they alone vouch for upstreams over TLS, in place of those that the
    /// system trusts.
    pub ca: Option<PathBuf>,
    /// Names whose addresses are fixed.
    pub hosts: Vec<(DomainName, Vec<IpAddr>)>,
    /// The bounds of the cache.
    pub cache: CacheSettings,
    /// The gate's own addresses, none of which may be an upstream.
    pub own: OwnAddresses,
}

/// `private_link:` in the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrivateLink {
    /// The region whose own zones (AKS, Batch) are forwarded too.
    pub region: Option<String>,
}

impl Default for ResolverSettings {
    fn default() -> Self {
        Self {
            upstreams: Upstreams::System,
            zones: Vec::new(),
            private_link: None,
            case_randomization: false,
            ca: None,
            hosts: Vec::new(),
            cache: CacheSettings::default(),
            own: OwnAddresses::default(),
        }
    }
}

impl From<&Upstreams> for ResolverSettings {
    fn from(upstreams: &Upstreams) -> Self {
        Self { upstreams: upstreams.clone(), ..Self::default() }
    }
}

/// An answer for one client.
#[derive(Clone, Debug)]
pub struct Answer {
    /// How it turned out.
    pub rcode: Rcode,
    /// The chain of aliases in order and what stands at its end, owners in lower case. Empty with
    /// [`Rcode::NoError`] is NODATA, with or without anything withheld.
    pub records: Arc<[Record]>,
    /// Of a negative answer: the SOA that lets the client keep it.
    pub soa: Option<Arc<Record>>,
    /// Seconds to subtract from every TTL; never more than there are.
    pub age: u32,
    /// Where it came from.
    pub from: AnsweredBy,
    /// Addresses that the permit does not let the client learn, and why.
    pub withheld: Vec<(IpAddr, Reason)>,
}

impl Answer {
    /// Visits each address in it, with how long it still holds.
    pub fn each_address(&self, visit: &mut dyn FnMut(IpAddr, Duration)) {
        for record in self.records.iter() {
            let ttl = Duration::from_secs(record.ttl.saturating_sub(self.age).into());
            each_address(&record.data, &mut |address| visit(address, ttl));
        }
    }
}

/// Where an answer came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnsweredBy {
    /// The gate itself: an address that a rule gives, `hosts:`, a special name, a type that is not served.
    Fixed,
    /// The cache, a remembered failure included.
    Cache,
    /// The cache, past its time: no upstream answers (RFC 8767).
    Stale,
    /// An upstream, now.
    Upstream(SocketAddr),
    /// Nobody: no upstream gave an answer.
    Nobody,
}

/// Turns permitted names into records. A clone is the same resolver.
#[derive(Clone)]
pub struct Resolver {
    shared: Arc<Shared>,
}

struct Shared {
    cache: Cache,
    zones: Zones,
    hosts: Hosts,
    /// What is with the upstreams now: one query a question, whoever and how many ask it.
    flights: Mutex<Flights>,
    max_ttl: u32,
    runtime: Handle,
}

/// Who waits for the answer to each question.
type Flights = HashMap<Question, Seats, foldhash::fast::RandomState>;
type Seats = Vec<oneshot::Sender<Outcome>>;

/// What becomes of a question that is to be asked.
enum Entry {
    /// It is with the upstreams already.
    Asked(oneshot::Receiver<Outcome>),
    /// It is on the list, and whoever has this is to ask.
    New(Landing),
    /// Too many are.
    Full,
}

/// How asking the upstreams ended.
#[derive(Clone, Debug)]
enum Outcome {
    Told(Arc<Reply>, SocketAddr),
    /// Another query has brought it, so many seconds ago.
    Cached(Arc<Reply>, u32),
    /// With what may be used in the answer's place.
    Failed(Failure, Option<Arc<Reply>>),
}

/// What is known of a question, and since when.
struct Known {
    reply: Result<Arc<Reply>, Failure>,
    age: u32,
    from: AnsweredBy,
}

impl Resolver {
    /// A resolver whose questions to upstreams run on the runtime that this is called in.
    ///
    /// # Errors
    /// When the system's configuration or the authorities for TLS cannot be read, when there is no upstream or one
    /// is the gate itself, when a region is none, and outside of a runtime.
    pub fn new(settings: impl Into<ResolverSettings>) -> Result<Self, ConfigError> {
        let settings = settings.into();
        let upstreams = match &settings.upstreams {
            Upstreams::System => system::read(Path::new(system::RESOLV_CONF))
                .map_err(|error| ConfigError::new(format!("{}: {error}", system::RESOLV_CONF)))?,
            Upstreams::Listed(upstreams) => upstreams.clone(),
        };
        let mut zones = settings.zones;
        if let Some(private_link) = &settings.private_link {
            zones.extend(private_link_zones(private_link)?);
        }
        check(&upstreams, &zones, &settings.own)?;
        let over_tls = |upstream: &Upstream| matches!(upstream.transport, Transport::Tls(_));
        let any_tls = upstreams.iter().chain(zones.iter().flat_map(|(_, upstreams)| upstreams)).any(over_tls);
        let tls = if any_tls { Some(tls_client(settings.ca.as_deref())?) } else { None };
        let manner = Manner { tls, case_randomization: settings.case_randomization };
        let zones = Zones::new(&upstreams, &zones, &manner);
        Self::with_zones(zones, &settings.hosts, settings.cache)
    }

    pub(crate) fn with_zones(
        zones: Zones,
        hosts: &[(DomainName, Vec<IpAddr>)],
        cache: CacheSettings,
    ) -> Result<Self, ConfigError> {
        let runtime = Handle::try_current().map_err(|error| ConfigError::new(error.to_string()))?;
        let max_ttl = u32::try_from(cache.max_ttl.as_secs()).unwrap_or(u32::MAX);
        let shared = Shared {
            cache: Cache::new(cache),
            zones,
            hosts: Hosts::new(hosts, max_ttl),
            flights: Mutex::default(),
            max_ttl,
            runtime,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The answer, if it can be given at once: fixed, cached, or a failure that is remembered.
    #[must_use]
    pub fn cached(&self, permit: &LookupPermit, record_type: u16, now: Instant) -> Option<Answer> {
        let known = match self.fixed_for(permit, record_type) {
            Some(fixed) => fixed,
            None => self.shared.at_once(permit.name(), record_type, now).ok()?,
        };
        Some(known.for_client(permit, Timestamp::now()))
    }

    /// The answer, after five seconds at the latest. That nobody answers is an answer: SERVFAIL.
    pub async fn answer(&self, permit: &LookupPermit, record_type: u16) -> Answer {
        let known = match self.fixed_for(permit, record_type) {
            Some(fixed) => fixed,
            None => self.shared.know(permit.name(), record_type).await,
        };
        known.for_client(permit, Timestamp::now())
    }

    /// As [`Resolver::answer`], for a caller that stays until the end, whatever becomes of the client: where nobody
    /// asks the question yet it asks the upstreams itself. A task for that, and a channel to it, cost 2.5 µs.
    pub(crate) async fn answer_here(&self, permit: &LookupPermit, record_type: u16) -> Answer {
        let known = match self.fixed_for(permit, record_type) {
            Some(fixed) => fixed,
            None => self.shared.know_here(permit.name(), record_type).await,
        };
        known.for_client(permit, Timestamp::now())
    }

    /// The addresses of the permit's destination: those of its name, or the one that it is for. They are not
    /// vetted; [`Permit::vet`] does that.
    ///
    /// # Errors
    /// Why there are none.
    pub async fn resolve(&self, permit: &Permit) -> Result<Vec<IpAddr>, ResolveError> {
        let name = match (permit.address(), permit.name()) {
            (Some(address), _) => return Ok(vec![address]),
            (None, Some(name)) => name,
            (None, None) => return Ok(Vec::new()),
        };
        if let Some(pinned) = permit.pinned() {
            return Ok(pinned.to_vec());
        }
        let family = |record_type| self.shared.addresses(name, record_type);
        let (one, other) = match self.shared.both_at_once(name) {
            Some((one, other)) => (Some(one), Some(other)),
            // It takes two kilobytes, which a flow to a known name need not carry.
            None => Box::pin(first_and_soon(family(TYPE_A), family(TYPE_AAAA))).await,
        };
        let mut addresses: Vec<IpAddr> =
            [&one, &other].into_iter().flatten().flatten().flatten().copied().collect();
        addresses.truncate(MAX_ADDRESSES);
        if addresses.is_empty() { Err(why_none(one, other)) } else { Ok(addresses) }
    }

    /// Figures for metrics and status.
    #[must_use]
    pub fn state(&self) -> ResolverState {
        let flights = self.shared.flights.lock().unwrap_or_else(PoisonError::into_inner);
        ResolverState {
            cached: self.shared.cache.len(),
            in_flight: flights.len(),
            upstreams: self.shared.zones.health(),
        }
    }

    /// What is answered without asking: types that are not served, addresses that a rule gives, `hosts:`, special
    /// names.
    fn fixed_for(&self, permit: &LookupPermit, record_type: u16) -> Option<Known> {
        if !is_served(permit, record_type) {
            return Some(Known::fixed(Arc::new(Reply::no_data())));
        }
        if let Some(pinned) = permit.pinned() {
            let fixed = hosts::fixed(permit.name(), pinned, record_type, self.shared.max_ttl);
            return Some(Known::fixed(Arc::new(fixed)));
        }
        self.shared.fixed(permit.name(), record_type)
    }
}

/// What a resolver is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverState {
    /// Entries in the cache.
    pub cached: usize,
    /// Questions that are with the upstreams.
    pub in_flight: usize,
    /// The upstreams, and whether each is thought to be up.
    pub upstreams: Vec<(Upstream, bool)>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Resolver").field(&self.state()).finish()
    }
}

impl Shared {
    fn fixed(&self, name: &DomainName, record_type: u16) -> Option<Known> {
        let host = self.hosts.answer(name, record_type).map(Arc::clone);
        host.or_else(|| special::answer(name).map(Arc::new)).map(Known::fixed)
    }

    /// What the cache knows and that needs no question; else what has expired, if anything has. A hot entry
    /// that is about to expire is asked for again beside.
    fn at_once(
        self: &Arc<Self>,
        name: &DomainName,
        record_type: u16,
        now: Instant,
    ) -> Result<Known, Option<Arc<Reply>>> {
        match self.cache.get(name, record_type, now) {
            Found::Fresh { reply, age, prefetch } => {
                if prefetch {
                    drop(self.board(&Question { name: name.clone(), record_type }, Why::Prefetch));
                }
                Ok(Known { reply: Ok(reply), age, from: AnsweredBy::Cache })
            }
            Found::Stale(reply) => Ok(self.stale(&reply)),
            Found::Failed(failure) => Ok(Known { reply: Err(failure), age: 0, from: AnsweredBy::Cache }),
            Found::Expired(reply) => Err(Some(reply)),
            Found::Missing => Err(None),
        }
    }

    async fn know(self: &Arc<Self>, name: &DomainName, record_type: u16) -> Known {
        match self.at_once(name, record_type, Instant::now()) {
            Ok(known) => known,
            Err(expired) => self.find_out(name, record_type, expired).await,
        }
    }

    /// The same, where who asks stays until the end.
    async fn know_here(self: &Arc<Self>, name: &DomainName, record_type: u16) -> Known {
        match self.at_once(name, record_type, Instant::now()) {
            Ok(known) => known,
            Err(None) => self.settle(self.fly_here(Question { name: name.clone(), record_type }).await),
            // Who has something expired does not wait until the end. It is much to carry for those who have not.
            Err(expired) => Box::pin(self.find_out(name, record_type, expired)).await,
        }
    }

    /// Asks, and has patience for as long as there is nothing else to answer.
    async fn find_out(
        self: &Arc<Self>,
        name: &DomainName,
        record_type: u16,
        expired: Option<Arc<Reply>>,
    ) -> Known {
        let question = Question { name: name.clone(), record_type };
        let Some(expired) = expired else {
            return self.settle(self.fly(&question).await);
        };
        match timeout(PATIENCE, self.fly(&question)).await {
            Ok(Outcome::Failed(_, None)) | Err(_) => self.stale(&expired),
            Ok(outcome) => self.settle(outcome),
        }
    }

    fn settle(&self, outcome: Outcome) -> Known {
        match outcome {
            Outcome::Told(reply, upstream) => {
                Known { reply: Ok(reply), age: 0, from: AnsweredBy::Upstream(upstream) }
            }
            Outcome::Cached(reply, age) => Known { reply: Ok(reply), age, from: AnsweredBy::Cache },
            Outcome::Failed(_, Some(stale)) => self.stale(&stale),
            Outcome::Failed(failure, None) => Known { reply: Err(failure), age: 0, from: AnsweredBy::Nobody },
        }
    }

    fn stale(&self, reply: &Reply) -> Known {
        let reply = Arc::new(reply.with_ttl(STALE_TTL.min(self.max_ttl)));
        Known { reply: Ok(reply), age: 0, from: AnsweredBy::Stale }
    }

    async fn addresses(self: &Arc<Self>, name: &DomainName, record_type: u16) -> Family {
        match self.fixed(name, record_type) {
            Some(fixed) => fixed.addresses(),
            None => self.know(name, record_type).await.addresses(),
        }
    }

    /// The addresses of both families, if neither has to be asked for.
    fn both_at_once(self: &Arc<Self>, name: &DomainName) -> Option<(Family, Family)> {
        let now = Instant::now();
        let at_once =
            |record_type| self.fixed(name, record_type).or_else(|| self.at_once(name, record_type, now).ok());
        Some((at_once(TYPE_A)?.addresses(), at_once(TYPE_AAAA)?.addresses()))
    }

    /// Waits for the one query that asks this question, which it starts if there is none.
    async fn fly(self: &Arc<Self>, question: &Question) -> Outcome {
        let Some(flight) = self.board(question, Why::Unknown) else {
            return Outcome::Failed(Failure::Overload, None);
        };
        flight.await.unwrap_or(Outcome::Failed(Failure::Unusable, None))
    }

    /// The same, or is that query.
    async fn fly_here(self: &Arc<Self>, question: Question) -> Outcome {
        match self.enter(question, Vec::new()) {
            Entry::Asked(flight) => flight.await.unwrap_or(Outcome::Failed(Failure::Unusable, None)),
            Entry::New(landing) => landing.fly_unless_known().await,
            Entry::Full => Outcome::Failed(Failure::Overload, None),
        }
    }

    /// The query that asks this question; none where there are too many already.
    fn board(self: &Arc<Self>, question: &Question, why: Why) -> Option<oneshot::Receiver<Outcome>> {
        let (seat, flight) = oneshot::channel();
        match self.enter(question.clone(), vec![seat]) {
            Entry::Asked(flight) => Some(flight),
            Entry::New(landing) => {
                // On the thread that asks, if it has a runtime: to wake another one and be woken by it costs 2 µs.
                let runtime = Handle::try_current().unwrap_or_else(|_| self.runtime.clone());
                match why {
                    Why::Unknown => runtime.spawn(landing.fly_unless_known()),
                    Why::Prefetch => runtime.spawn(landing.fly()),
                };
                Some(flight)
            }
            Entry::Full => None,
        }
    }

    /// Puts a question on the list of those that are with the upstreams, with who waits for it; or joins those who
    /// wait for it already.
    fn enter(self: &Arc<Self>, question: Question, waiting: Seats) -> Entry {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seats) = flights.get_mut(&question) {
            if seats.len() == seats.capacity() {
                // Who came and went takes no room.
                seats.retain(|seat| !seat.is_closed());
            }
            let (seat, flight) = oneshot::channel();
            seats.push(seat);
            return Entry::Asked(flight);
        }
        if flights.len() >= MAX_IN_FLIGHT {
            return Entry::Full;
        }
        flights.insert(question.clone(), waiting);
        Entry::New(Landing { shared: Arc::clone(self), question, landed: false })
    }

    /// What the cache knows of a question, if it need not be asked.
    fn cached(&self, question: &Question) -> Option<Outcome> {
        match self.cache.get(&question.name, question.record_type, Instant::now()) {
            Found::Fresh { reply, age, .. } => Some(Outcome::Cached(reply, age)),
            Found::Stale(_) | Found::Failed(_) | Found::Expired(_) | Found::Missing => None,
        }
    }

    /// Asks the upstreams, along the chain of aliases, and stores what comes of it.
    async fn ask(&self, question: &Question) -> Outcome {
        let told = self.follow(question, Instant::now() + DEADLINE).await;
        let now = Instant::now();
        match told {
            Ok((reply, upstream)) => {
                let reply = Arc::new(reply);
                self.cache.put(question, &reply, now);
                Outcome::Told(reply, upstream)
            }
            Err(failure) => Outcome::Failed(failure, self.cache.fail(question, failure, now)),
        }
    }

    async fn follow(&self, question: &Question, deadline: Instant) -> Result<(Reply, SocketAddr), Failure> {
        let mut chain = Chain::new(question, self.max_ttl).ok_or(Failure::Unusable)?;
        let mut question = question.clone();
        // Each further question follows at least one link, and the chain bounds those.
        for _ in 0..=MAX_LINKS {
            let group = self.zones.upstreams_for(&question.name);
            let knows = |name: &DomainName| Arc::ptr_eq(self.zones.upstreams_for(name), group);
            let step = group.ask(&question, deadline, &|message| chain.read(message, &knows)).await?;
            match step {
                (Step::Done(reply), upstream) => return Ok((reply, upstream)),
                (Step::Follow(longer, next), _) => (chain, question) = (longer, next),
            }
        }
        Err(Failure::Unusable)
    }
}

/// Why a question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// The cache does not know.
    Unknown,
    /// What the cache knows is about to expire.
    Prefetch,
}

/// Takes a question off the list of those that are with the upstreams, however its task ends.
struct Landing {
    shared: Arc<Shared>,
    question: Question,
    landed: bool,
}

impl Landing {
    /// The same as [`Landing::fly`], for what the cache did not know a moment ago: another query may have landed between
    /// that look and the place on the list.
    async fn fly_unless_known(self) -> Outcome {
        match self.shared.cached(&self.question) {
            Some(known) => self.tell(known),
            None => self.fly().await,
        }
    }

    /// Asks, and tells those who wait.
    async fn fly(self) -> Outcome {
        let outcome = self.shared.ask(&self.question).await;
        self.tell(outcome)
    }

    fn tell(self, outcome: Outcome) -> Outcome {
        // It is in the cache now: who asks from here on finds it there.
        for seat in self.land() {
            // Who does not wait any more needs no answer.
            _ = seat.send(outcome.clone());
        }
        outcome
    }

    /// Gives those who wait.
    fn land(mut self) -> Seats {
        self.take_off_list()
    }

    /// Once: the next one on the list is another task's.
    fn take_off_list(&mut self) -> Seats {
        if std::mem::replace(&mut self.landed, true) {
            return Vec::new();
        }
        let mut flights = self.shared.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.remove(&self.question).unwrap_or_default()
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        drop(self.take_off_list());
    }
}

impl Known {
    fn fixed(reply: Arc<Reply>) -> Self {
        Self { reply: Ok(reply), age: 0, from: AnsweredBy::Fixed }
    }

    /// What the permit's client may learn of it.
    fn for_client(self, permit: &LookupPermit, now: Timestamp) -> Answer {
        let (age, from) = (self.age, self.from);
        let Ok(reply) = self.reply else {
            let (rcode, records, withheld) = (Rcode::ServFail, Arc::from([]), Vec::new());
            return Answer { rcode, records, soa: None, age, from, withheld };
        };
        let mut vet = |address| permit.vet(address, now).map_err(|denial| denial.reason);
        let (records, withheld) = vetted(&reply.records, &mut vet);
        Answer { rcode: reply.rcode, records, soa: reply.soa.clone(), age, from, withheld }
    }
}

impl Known {
    fn addresses(self) -> Family {
        let reply = self.reply.map_err(|failure| match failure {
            Failure::Timeout => ResolveError::Timeout,
            Failure::Unusable | Failure::Overload => ResolveError::Failed,
        })?;
        if reply.rcode == Rcode::NxDomain {
            return Err(ResolveError::NotFound);
        }
        let mut addresses = Vec::new();
        reply.each_address(&mut |address| addresses.push(address));
        Ok(addresses)
    }
}

/// The addresses of one family.
type Family = Result<Vec<IpAddr>, ResolveError>;

/// What both come to; where one has addresses, the other has [`OTHER_FAMILY`] to come up with some.
async fn first_and_soon(
    one: impl Future<Output = Family>,
    other: impl Future<Output = Family>,
) -> (Option<Family>, Option<Family>) {
    let (mut one, mut other) = (pin!(one), pin!(other));
    tokio::select! {
        first = &mut one => (Some(first.clone()), second(&first, other).await),
        first = &mut other => (second(&first, one).await, Some(first)),
    }
}

async fn second(first: &Family, other: impl Future<Output = Family>) -> Option<Family> {
    let enough = first.as_ref().is_ok_and(|addresses| !addresses.is_empty());
    if enough { timeout(OTHER_FAMILY, other).await.ok() } else { Some(other.await) }
}

/// Why neither family has an address: a failure says more than that the other family has none.
fn why_none(one: Option<Family>, other: Option<Family>) -> ResolveError {
    let errors: Vec<ResolveError> = [one, other].into_iter().flatten().filter_map(Result::err).collect();
    [ResolveError::NotFound, ResolveError::Timeout, ResolveError::Failed]
        .into_iter()
        .find(|error| errors.contains(error))
        .unwrap_or(ResolveError::NoAddress)
}

/// Whether records of a type are served under this permit. Questions for a transfer, for anything at all and
/// for what only accompanies a message (RFC 6895 §3.1) never are.
fn is_served(permit: &LookupPermit, record_type: u16) -> bool {
    const OPT: u16 = 41;
    match record_type {
        TYPE_A | TYPE_AAAA | TYPE_HTTPS | TYPE_SVCB => true,
        0 | OPT | 128..=255 => false,
        _ => permit.lists_type(record_type),
    }
}

fn tls_client(ca: Option<&Path>) -> Result<TlsConnector, ConfigError> {
    let roots = ca.map_or_else(tls::system_roots, tls::roots_in)?;
    Ok(tls::client(roots)?.into())
}

fn private_link_zones(private_link: &PrivateLink) -> Result<Vec<(DomainName, Vec<Upstream>)>, ConfigError> {
    let azure = Upstream::from(SocketAddr::new(private_link::AZURE_DNS, 53));
    let zones = private_link::zones(private_link.region.as_deref())
        .map_err(|error| ConfigError::new(format!("the region of private_link: {error}")))?;
    Ok(zones.into_iter().map(|zone| (zone, vec![azure.clone()])).collect())
}

fn check(
    default: &[Upstream],
    zones: &[(DomainName, Vec<Upstream>)],
    own: &OwnAddresses,
) -> Result<(), ConfigError> {
    if default.is_empty() {
        return Err(ConfigError::new("no upstream resolver is configured".to_owned()));
    }
    if let Some((zone, _)) = zones.iter().find(|(_, upstreams)| upstreams.is_empty()) {
        return Err(ConfigError::new(format!("the zone {zone} has no upstream resolver")));
    }
    // A resolver that asks itself never answers.
    let mut upstreams = default.iter().chain(zones.iter().flat_map(|(_, upstreams)| upstreams));
    match upstreams.find(|upstream| is_listener(own, upstream.socket)) {
        Some(upstream) => Err(ConfigError::new(format!("{upstream} is the gate itself"))),
        None => Ok(()),
    }
}

/// Whether a listener of the gate is at `socket`. Another program on the gate's host may well be an upstream.
fn is_listener(own: &OwnAddresses, socket: SocketAddr) -> bool {
    let address = socket.ip().to_canonical();
    let local = address.is_loopback() || own.interfaces.contains(&address);
    own.listeners.iter().any(|listener| {
        let at = listener.ip().to_canonical();
        listener.port() == socket.port() && (at == address || (at.is_unspecified() && local))
    })
}

#[cfg(test)]
mod tests;
