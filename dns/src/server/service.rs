//! The life of one query, whatever way it came.

use std::borrow::Cow;
use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_proto::op::ResponseCode;
use jiff::Timestamp;
use outgate_rules::{
    DomainName, Enforcement, LookupDecision, LookupPermit, PrefixSet, Reason, Revision, RuleRef, RuleSet,
};
use smallvec::SmallVec;
use tokio::sync::Semaphore;

use super::slow::{Errand, Outcome, TYPE_ANY, Task};
use super::{Denied, Foundation, ServerSettings};
use crate::budget::Budget;
use crate::event::{Answered, Asked, AskedName, Observer, Room, Transport};
use crate::ledger::Ledger;
use crate::rate::{Over, Rate};
use crate::reply::each_address;
use crate::resolver::{Answer, AnsweredBy, Resolver};
use crate::respond::{Content, ExtendedError, MAX_STREAM, Response, datagram_limit};
use crate::wire::{CLASS_IN, Fault, Query};
use crate::{TYPE_A, TYPE_AAAA, TYPE_HTTPS, TYPE_SVCB, special};

/// Lookups of all clients that may wait for upstreams: each holds a permit, its query and a task.
const MAX_PENDING: usize = 16_384;
/// Types that are no data: transfers, keys and signatures of messages (RFC 6895 §3.1).
const META_TYPES: std::ops::RangeInclusive<u16> = 128..=254;

/// What all transports share.
#[derive(Debug)]
pub(super) struct Service {
    rules: Arc<ArcSwap<RuleSet>>,
    pub(super) resolver: Resolver,
    pub(super) observer: Arc<dyn Observer>,
    ledger: Arc<Ledger>,
    clients: PrefixSet,
    denied: Denied,
    rate: Rate,
    budget: Budget,
    pending: Arc<Semaphore>,
}

/// Who asks, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    /// The client; an IPv4-mapped address as its IPv4 self.
    pub(super) client: SocketAddr,
    /// The address at which it asks.
    pub(super) local: IpAddr,
    pub(super) transport: Transport,
}

/// The moment at which a batch of queries is looked at.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    pub(super) now: Instant,
    pub(super) time: Timestamp,
    pub(super) rules: Arc<RuleSet>,
    /// Answers until the clock is looked at again, and what it said.
    clock: Cell<(u8, Duration)>,
}

/// Answers of a batch for which the clock is looked at once: one takes half a microsecond, of which a look was a tenth.
const ANSWERS_A_LOOK: u8 = 8;

impl Moment {
    /// A moment at which the clock says this.
    pub(super) fn new(now: Instant, time: Timestamp, rules: Arc<RuleSet>) -> Self {
        Self { now, time, rules, clock: Cell::default() }
    }

    /// When this was, and how long an answer on the spot took from there.
    fn span(&self) -> Span {
        let (left, took) = self.clock.get();
        let (left, took) = match left.checked_sub(1) {
            Some(left) => (left, took),
            None => (ANSWERS_A_LOOK - 1, self.now.elapsed()),
        };
        self.clock.set((left, took));
        Span { begun: self.now, time: self.time, took }
    }
}

/// Datagrams that came from one client together: they are counted together.
#[derive(Debug)]
pub(super) struct Together {
    /// Those that are yet to be looked at.
    left: u32,
    /// Those of them that are counted.
    admitted: u32,
}

impl Together {
    /// So many datagrams.
    pub(super) fn new(datagrams: usize) -> Self {
        Self { left: datagrams.try_into().unwrap_or(u32::MAX), admitted: 0 }
    }

    /// The next one is left out. (It may have been counted with those before it: from port 0 nobody but a forger sends.)
    fn pass(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Counts the next one.
    fn admit(&mut self, rate: &Rate, client: IpAddr, now: Instant) -> Result<(), Over> {
        let admitted = match self.admitted {
            0 => rate.admit_some(self.left.max(1), client, now),
            admitted => Ok(admitted),
        };
        self.pass();
        self.admitted = admitted?.saturating_sub(1);
        Ok(())
    }
}

/// When a query was looked at, and how long its answer took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) begun: Instant,
    pub(super) time: Timestamp,
    pub(super) took: Duration,
}

/// What comes of a packet.
#[derive(Debug)]
// It is taken apart at once; nearly every one is a reply, which a box would only slow down.
#[allow(clippy::large_enum_variant)]
pub(super) enum Step {
    /// No answer.
    Silence,
    /// The reply is written; it may be sent when the event was taken.
    Reply(Answered),
    /// The reply is written, and nothing but a count tells of it.
    Untold,
    /// It is not answered on the spot.
    GoOn(Box<Errand>),
}

/// Why a query is answered as it is.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    reason: Reason,
    rule: Option<RuleRef>,
    enforcement: Enforcement,
    revision: Revision,
}

impl Service {
    pub(super) fn new(settings: &ServerSettings, foundation: Foundation) -> Self {
        let Foundation { rules, resolver, observer, ledger } = foundation;
        Self {
            rules,
            resolver,
            observer,
            ledger,
            clients: settings.clients.clone(),
            denied: settings.denied,
            rate: Rate::new(settings.queries_per_second),
            budget: Budget::new(settings.budget),
            pending: Arc::new(Semaphore::new(MAX_PENDING)),
        }
    }

    /// Now, with the rules that are in force now.
    pub(super) fn moment(&self) -> Moment {
        Moment::new(Instant::now(), Timestamp::now(), self.rules.load_full())
    }

    /// Tells what was answered; with a wait where there is no room for it yet.
    pub(super) fn tell(&self, event: &Answered) -> Option<Room> {
        self.observer.answered(event);
        self.observer.hand_over()
    }

    /// Whether a client is served at all. One that is not hears nothing.
    pub(super) fn serves(&self, client: SocketAddr) -> bool {
        // Nobody can be answered at port 0.
        let serves = client.port() != 0 && self.clients.contains(client.ip());
        if !serves {
            self.observer.dropped(Reason::ClientNotServed);
        }
        serves
    }

    /// How long a client on a stream has to wait until its next query is looked at.
    pub(super) fn delay(&self, client: IpAddr, now: Instant) -> Option<Duration> {
        self.rate.admit(client, now).err().map(|over| over.wait)
    }

    /// What comes of a datagram from a client that is not served or over its rate; none where it is let in. It is the
    /// next of those that came together.
    pub(super) fn turn_away(
        &self,
        packet: &[u8],
        asker: Asker,
        together: &mut Together,
        moment: &Moment,
        out: &mut Vec<u8>,
    ) -> Option<Step> {
        if !self.serves(asker.client) {
            together.pass();
            return Some(Step::Silence);
        }
        let over = together.admit(&self.rate, asker.client.ip(), moment.now).err()?;
        Some(self.over_rate(over, packet, asker, moment, out))
    }

    /// Takes a message, and writes the reply behind what `out` holds if there is one yet.
    pub(super) fn take(&self, packet: &[u8], asker: Asker, moment: &Moment, out: &mut Vec<u8>) -> Step {
        let (head, rcode, reason) = match Query::read(packet) {
            Ok(query) => return Case { service: self, query, asker, moment, out }.decide(),
            Err(Fault::Silence) => {
                self.observer.dropped(Reason::DnsMalformed);
                return Step::Silence;
            }
            Err(Fault::Opcode(head)) => (head, ResponseCode::NotImp, Reason::DnsOpcode),
            Err(Fault::Format(head, _)) => (head, ResponseCode::FormErr, Reason::DnsMalformed),
        };
        // The header alone goes back: what follows it could not be read.
        let content = Content::Nothing;
        let response = Response { head, question: None, edns: None, rcode, content, extended_error: None };
        response.write(limit(asker.transport, None), out);
        let verdict = Verdict::by_gate(reason, moment);
        Step::Reply(verdict.answered(asker, moment.span(), None, rcode))
    }

    /// A client over its limit is told to come over TCP, or nothing.
    fn over_rate(&self, over: Over, packet: &[u8], asker: Asker, moment: &Moment, out: &mut Vec<u8>) -> Step {
        let query = Query::read(packet).ok().filter(|_| over.slip || over.tell);
        let Some(query) = query else {
            self.observer.dropped(Reason::LookupRate);
            return Step::Silence;
        };
        Response::empty(&query, ResponseCode::NoError).write_truncated(out);
        if !over.tell {
            self.observer.dropped(Reason::LookupRate);
        }
        let asked = asked(&query, query.question.name().ok());
        let verdict = Verdict::by_gate(Reason::LookupRate, moment);
        let answered = verdict.answered(asker, moment.span(), Some(asked), ResponseCode::NoError);
        if over.tell { Step::Reply(answered) } else { Step::Untold }
    }

    /// What the resolver's answer comes to for the client: noted as told, and as an event.
    pub(super) fn outcome(
        &self,
        name: &DomainName,
        record_type: u16,
        answer: Answer,
        mut verdict: Verdict,
        asker: Asker,
        span: Span,
    ) -> Outcome {
        let rcode: ResponseCode = u16::from(answer.rcode.number()).into();
        let addresses = self.note(&answer, name, record_type, asker.client.ip(), span.begun);
        let withheld = answer.withheld.first().filter(|_| addresses.is_empty()).map(|(_, reason)| *reason);
        if let Some(reason) = withheld {
            // What is withheld is withheld in report mode too.
            (verdict.reason, verdict.enforcement) = (reason, Enforcement::Enforce);
        }
        let extended_error = match (withheld, answer.from) {
            (Some(reason), _) => {
                Some(ExtendedError { code: ExtendedError::BLOCKED, text: reason.sentence() })
            }
            (None, AnsweredBy::Stale) => Some(ExtendedError { code: ExtendedError::STALE, text: "" }),
            (None, _) => None,
        };
        let asked = Asked { name: AskedName::Host(name.clone()), record_type };
        let Answer { records: answers, soa, age, from, withheld, .. } = answer;
        let event = verdict.answered(asker, span, Some(asked), rcode);
        let event = Answered { addresses, withheld, from: Some(from), ..event };
        Outcome { rcode, answers, soa, age, extended_error, event }
    }

    /// The addresses in an answer, noted as told to the client.
    fn note(
        &self,
        answer: &Answer,
        name: &DomainName,
        record_type: u16,
        client: IpAddr,
        now: Instant,
    ) -> SmallVec<[IpAddr; 4]> {
        let mut addresses = SmallVec::new();
        if !matches!(record_type, TYPE_A | TYPE_AAAA | TYPE_HTTPS | TYPE_SVCB) {
            return addresses;
        }
        for record in answer.records.iter() {
            let ttl = Duration::from_secs(record.ttl.saturating_sub(answer.age).into());
            each_address(&record.data, &mut |address| {
                self.ledger.note(client, address, name, ttl, now);
                addresses.push(address);
            });
        }
        addresses
    }
}

/// One query that could be read, on its way to a reply.
struct Case<'a, 'p> {
    service: &'a Service,
    query: Query<'p>,
    asker: Asker,
    moment: &'a Moment,
    out: &'a mut Vec<u8>,
}

impl Case<'_, '_> {
    fn decide(self) -> Step {
        let by_gate = |reason| Verdict::by_gate(reason, self.moment);
        if self.query.edns.is_some_and(|edns| edns.version != 0) {
            return self.fault(ResponseCode::BADVERS, by_gate(Reason::DnsVersion));
        }
        if self.query.question.class != CLASS_IN {
            return self.fault(ResponseCode::Refused, by_gate(Reason::DnsClass));
        }
        let name = match self.query.question.name() {
            Ok(name) => name,
            // What lies below the root is not nothing.
            Err(error) if self.query.question.is_root() => {
                return self.refuse(None, ResponseCode::NoError, by_gate(error.into()));
            }
            Err(error) => return self.deny(None, by_gate(error.into())),
        };
        if let Some(reply) = special::answer(&name) {
            let rcode: ResponseCode = u16::from(reply.rcode.number()).into();
            return self.refuse(Some(name), rcode, by_gate(Reason::SpecialName));
        }
        let decision = self.moment.rules.decide_lookup(self.asker.client.ip(), &name, self.moment.time);
        let verdict = Verdict::by_rules(&decision);
        match decision.into_permit() {
            Ok(permit) => self.look_up(name, permit, verdict),
            Err(_) => self.deny(Some(name), verdict),
        }
    }

    fn look_up(self, name: DomainName, permit: LookupPermit, verdict: Verdict) -> Step {
        let record_type = self.query.question.record_type;
        if record_type == TYPE_ANY {
            return self.go_on(Task::MinimalAny { name }, verdict);
        }
        if META_TYPES.contains(&record_type) {
            return self.refuse(Some(name), ResponseCode::Refused, verdict.with(Reason::DnsType));
        }
        let served = matches!(record_type, TYPE_A | TYPE_AAAA | TYPE_HTTPS | TYPE_SVCB);
        if !served && !permit.lists_type(record_type) {
            return self.refuse(Some(name), ResponseCode::NoError, verdict.with(Reason::DnsType));
        }
        let (service, now) = (self.service, self.moment.now);
        if let Some(answer) = service.resolver.cached(&permit, record_type, now) {
            return self.answer(&name, record_type, answer, verdict);
        }
        if let Some(parent) = permit.open_below()
            && let Err(reason) = service.budget.spend(self.asker.client.ip(), parent, name.as_str(), now)
        {
            return self.refuse(Some(name), ResponseCode::Refused, verdict.with(reason));
        }
        self.go_on(Task::LookUp { permit, name, record_type }, verdict)
    }

    /// Answers what is known.
    fn answer(self, name: &DomainName, record_type: u16, answer: Answer, verdict: Verdict) -> Step {
        let Self { service, query, asker, moment, .. } = self;
        let outcome = service.outcome(name, record_type, answer, verdict, asker, moment.span());
        outcome.write(&query, limit(asker.transport, Some(&query)), self.out);
        Step::Reply(outcome.event)
    }

    /// Leaves the answer to who has time for it.
    fn go_on(self, task: Task, verdict: Verdict) -> Step {
        let since = (self.moment.now, self.moment.time);
        let Ok(place) = Arc::clone(&self.service.pending).try_acquire_owned() else {
            return self.refuse(None, ResponseCode::ServFail, verdict.with(Reason::LookupsPending));
        };
        Step::GoOn(Box::new(Errand::new(&self.query, task, verdict, self.asker, since, place)))
    }

    /// Denies the name, in the way that is configured.
    fn deny(self, name: Option<DomainName>, verdict: Verdict) -> Step {
        let has_names_below =
            || name.as_ref().is_some_and(|name| self.moment.rules.names_something_below(name));
        let own = match (self.query.question.record_type, self.asker.local) {
            (TYPE_A, local @ IpAddr::V4(_)) | (TYPE_AAAA, local @ IpAddr::V6(_)) => Content::Own(local),
            _ => Content::Nothing,
        };
        let (rcode, content) = match self.service.denied {
            Denied::Refused => (ResponseCode::Refused, Content::Nothing),
            Denied::Gate if name.is_some() => (ResponseCode::NoError, own),
            Denied::NxDomain if has_names_below() => (ResponseCode::NoError, Content::Nothing),
            Denied::NxDomain | Denied::Gate => (ResponseCode::NXDomain, Content::Nothing),
        };
        self.write_with_reason(name, rcode, content, verdict)
    }

    fn refuse(self, name: Option<DomainName>, rcode: ResponseCode, verdict: Verdict) -> Step {
        self.write_with_reason(name, rcode, Content::Nothing, verdict)
    }

    /// Refuses what no server of this kind could answer: the response code says it all.
    fn fault(self, rcode: ResponseCode, verdict: Verdict) -> Step {
        let asked = asked(&self.query, None);
        self.go_on(Task::Fault { asked, rcode }, verdict)
    }

    fn write_with_reason(
        self,
        name: Option<DomainName>,
        rcode: ResponseCode,
        content: Content<'_>,
        verdict: Verdict,
    ) -> Step {
        // Who sent no OPT cannot be told.
        let text = self.query.edns.map(|_| verdict.sentence());
        let extended_error = text.as_deref().map(|text| ExtendedError { code: ExtendedError::BLOCKED, text });
        Response { content, extended_error, ..Response::empty(&self.query, rcode) }
            .write(limit(self.asker.transport, Some(&self.query)), self.out);
        let asked = asked(&self.query, name);
        let addresses = match content {
            Content::Own(address) => SmallVec::from_slice(&[address]),
            Content::Nothing | Content::Records { .. } => SmallVec::new(),
        };
        let answered = verdict.answered(self.asker, self.moment.span(), Some(asked), rcode);
        Step::Reply(Answered { addresses, ..answered })
    }
}

impl Verdict {
    /// The gate's own word, which holds in report mode too.
    fn by_gate(reason: Reason, moment: &Moment) -> Self {
        let revision = moment.rules.settings().revision;
        Self { reason, rule: None, enforcement: Enforcement::Enforce, revision }
    }

    fn by_rules(decision: &LookupDecision) -> Self {
        Self {
            reason: decision.reason,
            rule: decision.rule.clone(),
            enforcement: decision.enforcement,
            revision: decision.revision,
        }
    }

    /// Another reason for a name that the rules allow.
    fn with(self, reason: Reason) -> Self {
        Self { reason, enforcement: Enforcement::Enforce, ..self }
    }

    /// Why, for the client.
    fn sentence(&self) -> Cow<'static, str> {
        match &self.rule {
            None => Cow::Borrowed(self.reason.sentence()),
            Some(rule) => Cow::Owned(format!("{} (rule \"{}\")", self.reason.sentence(), rule.name)),
        }
    }

    pub(super) fn answered(
        self,
        asker: Asker,
        Span { time, took, .. }: Span,
        question: Option<Asked>,
        rcode: ResponseCode,
    ) -> Answered {
        Answered {
            time,
            client: asker.client,
            transport: asker.transport,
            question,
            rcode,
            addresses: SmallVec::new(),
            withheld: Vec::new(),
            from: None,
            took,
            reason: self.reason,
            rule: self.rule,
            enforcement: self.enforcement,
            revision: self.revision,
        }
    }
}

/// The question as a record shows it.
fn asked(query: &Query<'_>, name: Option<DomainName>) -> Asked {
    let name = match name.or_else(|| query.question.name().ok()) {
        Some(name) => AskedName::Host(name),
        None => AskedName::Other(query.question.presentation().into()),
    };
    Asked { name, record_type: query.question.record_type }
}

/// The largest reply that the client takes.
pub(super) fn limit(transport: Transport, query: Option<&Query<'_>>) -> usize {
    match transport {
        Transport::Udp => datagram_limit(query.and_then(|query| query.edns)),
        Transport::Tcp | Transport::Tls => MAX_STREAM,
    }
}
