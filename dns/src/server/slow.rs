//! What is not answered on the spot.
//!
//! A query that waits for upstreams, and one that is seldom seen, becomes an [`Errand`]: what was decided of it, and
//! what is left to do. It ends with a reply, which leaves by the [`Way`] that the query came by. Nothing is decided
//! here: without the permit that an errand carries there is nobody to ask.
//!
//! What upstreams said is written as what the cache says is. What is seldom seen is hickory-server's part: a
//! `Request`, made of what was understood of the packet and nothing else, gets the response that its
//! `MessageResponseBuilder` builds.

use std::iter;
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::{Edns, Metadata, ResponseCode};
use hickory_proto::rr::rdata::HINFO;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{RData, Record};
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::Request;
use hickory_server::zone_handler::{MessageResponse, MessageResponseBuilder};
use jiff::Timestamp;
use outgate_rules::{DomainName, LookupPermit, Reason};
use tokio::sync::OwnedSemaphorePermit;

use super::service::{Asker, Service, Span, Verdict, limit};
use crate::event::{Answered, Asked, AskedName, Transport};
use crate::reply::wire_name;
use crate::respond::{Content, ExtendedError, MAX_DATAGRAM, Response};
use crate::wire::Query;

/// A question for every type (RFC 8482).
pub(super) const TYPE_ANY: u16 = 255;
/// Bytes of most replies.
const USUAL_REPLY: usize = 512;
/// Seconds that the answer to ANY may be kept.
const MINIMAL_ANY_TTL: u32 = 60;

/// How an errand's reply gets to who asked.
pub(super) trait Way: Send + 'static {
    /// Whether an errand goes on to its end, whatever becomes of the client.
    const TO_THE_END: bool;

    /// Tells of the answer, and sees to it that the reply is sent once that is on record. What cannot be sent is lost.
    fn answer(self, service: &Service, event: &Answered, reply: Vec<u8>) -> impl Future<Output = ()> + Send;
}

/// A query that was decided on, with what is left to do.
#[derive(Debug)]
pub(super) struct Errand {
    packet: Vec<u8>,
    limit: usize,
    task: Task,
    verdict: Verdict,
    asker: Asker,
    since: (Instant, Timestamp),
    _place: OwnedSemaphorePermit,
}

/// What is left to do.
#[derive(Debug)]
pub(super) enum Task {
    /// The upstreams are to be asked.
    LookUp { permit: LookupPermit, name: DomainName, record_type: u16 },
    /// ANY: one record stands for all (RFC 8482 §4.2).
    MinimalAny { name: DomainName },
    /// The response code says it all.
    Fault { asked: Asked, rcode: ResponseCode },
}

/// What an errand came to.
pub(super) struct Outcome {
    pub(super) rcode: ResponseCode,
    pub(super) answers: Arc<[Record]>,
    pub(super) soa: Option<Arc<Record>>,
    /// Seconds that have passed of the records' TTLs.
    pub(super) age: u32,
    pub(super) extended_error: Option<ExtendedError<'static>>,
    pub(super) event: Answered,
}

impl Errand {
    pub(super) fn new(
        query: &Query<'_>,
        task: Task,
        verdict: Verdict,
        asker: Asker,
        since: (Instant, Timestamp),
        place: OwnedSemaphorePermit,
    ) -> Self {
        let limit = limit(asker.transport, Some(query));
        Self { packet: query.to_packet(), limit, task, verdict, asker, since, _place: place }
    }

    /// Does what is left to do, and answers by `way`.
    pub(super) async fn run<W: Way>(self: Box<Self>, service: Arc<Service>, way: W) {
        let outcome = self.outcome::<W>(&service).await;
        let reply = match self.task {
            Task::LookUp { .. } => self.write(&outcome),
            Task::MinimalAny { .. } | Task::Fault { .. } => self.build(&outcome),
        };
        match reply {
            Some(reply) => way.answer(&service, &outcome.event, reply).await,
            // What one reader understands the other does too; if it should not, nothing is known to answer.
            None => service.observer.dropped(Reason::DnsMalformed),
        }
    }

    async fn outcome<W: Way>(&self, service: &Service) -> Outcome {
        let verdict = self.verdict.clone();
        match &self.task {
            Task::LookUp { permit, name, record_type } => {
                let answer = if W::TO_THE_END {
                    service.resolver.answer_here(permit, *record_type).await
                } else {
                    service.resolver.answer(permit, *record_type).await
                };
                service.outcome(name, *record_type, answer, verdict, self.asker, self.span())
            }
            Task::MinimalAny { name } => {
                let asked = Asked { name: AskedName::Host(name.clone()), record_type: TYPE_ANY };
                let event = verdict.answered(self.asker, self.span(), Some(asked), ResponseCode::NoError);
                Outcome { answers: minimal_any(name), ..Outcome::empty(event) }
            }
            Task::Fault { asked, rcode } => {
                Outcome::empty(verdict.answered(self.asker, self.span(), Some(asked.clone()), *rcode))
            }
        }
    }
}

impl Errand {
    fn span(&self) -> Span {
        let (begun, time) = self.since;
        Span { begun, time, took: begun.elapsed() }
    }

    /// The reply as this crate writes it.
    fn write(&self, outcome: &Outcome) -> Option<Vec<u8>> {
        let query = Query::read(&self.packet).ok()?;
        let mut reply = Vec::with_capacity(USUAL_REPLY);
        outcome.write(&query, self.limit, &mut reply);
        Some(reply)
    }

    /// The reply as hickory-server builds it.
    fn build(&self, outcome: &Outcome) -> Option<Vec<u8>> {
        let Outcome { rcode, answers, extended_error, .. } = outcome;
        let client = self.asker.client;
        let request =
            Request::from_bytes(self.packet.clone(), client, protocol(self.asker.transport)).ok()?;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.recursion_available = true;
        metadata.response_code = *rcode;
        let edns = request.edns.as_ref().map(|theirs| own_edns(theirs, *extended_error));
        let builder = || MessageResponseBuilder::new(&request.queries, edns.as_ref());
        let whole = builder().build(metadata, answers.iter(), iter::empty(), iter::empty(), iter::empty());
        encode(whole, self.limit).or_else(|| {
            // It does not fit: the client is to ask over TCP.
            metadata.truncation = true;
            encode(builder().build_no_records(metadata), self.limit)
        })
    }
}

impl Outcome {
    fn empty(event: Answered) -> Self {
        let rcode = event.rcode;
        Self { rcode, answers: Arc::from([]), soa: None, age: 0, extended_error: None, event }
    }

    /// Appends the reply to `query`, in at most `limit` bytes.
    pub(super) fn write(&self, query: &Query<'_>, limit: usize, out: &mut Vec<u8>) {
        let Self { rcode, answers, soa, age, extended_error, .. } = self;
        let content = Content::Records { answers, soa: soa.as_deref(), age: *age };
        let response = Response::empty(query, *rcode);
        Response { content, extended_error: *extended_error, ..response }.write(limit, out);
    }
}

/// The response as bytes; none where it takes more than `limit` of them.
fn encode<'a>(
    response: MessageResponse<
        '_,
        'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
    >,
    limit: usize,
) -> Option<Vec<u8>> {
    let to_be_truncated = response.metadata().truncation;
    let mut bytes = Vec::with_capacity(USUAL_REPLY);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(u16::try_from(limit).unwrap_or(u16::MAX));
    let info = response.destructive_emit(&mut encoder).ok()?;
    (to_be_truncated || !info.truncation).then_some(bytes)
}

fn minimal_any(name: &DomainName) -> Arc<[Record]> {
    let data = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
    wire_name(name).map(|owner| Record::from_rdata(owner, MINIMAL_ANY_TTL, data)).into_iter().collect()
}

/// Our OPT record, for a client that sent one.
fn own_edns(theirs: &Edns, error: Option<ExtendedError<'_>>) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_DATAGRAM).set_dnssec_ok(theirs.flags().dnssec_ok);
    if let Some(error) = error {
        let (code, data) = error.option();
        edns.options_mut().insert(EdnsOption::Unknown(code, data));
    }
    edns
}

/// hickory-server is told whether a response may be cut; TLS ends before it.
fn protocol(transport: Transport) -> Protocol {
    match transport {
        Transport::Udp => Protocol::Udp,
        Transport::Tcp | Transport::Tls => Protocol::Tcp,
    }
}
