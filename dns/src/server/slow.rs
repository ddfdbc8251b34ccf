//! What is not answered on the spot: hickory-server's part.
//!
//! A query that waits for upstreams, and one that is seldom seen, becomes an [`Errand`]: what was decided of it,
//! and what is left to do. It goes on as a hickory-server `Request`, made of what was understood of the packet
//! and nothing else, to a [`RequestHandler`] that holds the errand. The answer is built by hickory-server's
//! `MessageResponseBuilder` and leaves by the [`ResponseHandler`] of the transport that the query came by.
//! Nothing is decided here: without the permit that an errand carries there is nobody to ask.

use std::iter;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use hickory_proto::op::{Edns, Header, HeaderCounts, Metadata, ResponseCode};
use hickory_proto::rr::rdata::HINFO;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{RData, Record};
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::NetError;
use hickory_server::net::runtime::{Time, TokioTime};
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::{MessageResponse, MessageResponseBuilder};
use jiff::Timestamp;
use outgate_rules::{DomainName, LookupPermit, Reason};
use tokio::sync::OwnedSemaphorePermit;

use super::service::{Asker, Service, Verdict, limit};
use crate::event::{Answered, Asked, AskedName, Transport};
use crate::reply::{wire_name, with_ttl};
use crate::respond::{ExtendedError, MAX_DATAGRAM};
use crate::wire::Query;

/// A question for every type (RFC 8482).
pub(super) const TYPE_ANY: u16 = 255;
/// Seconds that the answer to ANY may be kept.
const MINIMAL_ANY_TTL: u32 = 60;

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

    /// Bytes that the client takes.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Does what is left to do, and answers by `reply`.
    pub(super) async fn run(mut self, service: Arc<Service>, reply: impl ResponseHandler) {
        let packet = std::mem::take(&mut self.packet);
        match Request::from_bytes(packet, self.asker.client, protocol(self.asker.transport)) {
            Ok(request) => {
                Handler { service, errand: self }.handle_request::<_, TokioTime>(&request, reply).await;
            }
            // What one reader understands the other does too; if it should not, nothing is known to answer.
            Err(_) => service.observer.dropped(Reason::DnsMalformed),
        }
    }

    async fn outcome(&self, service: &Service) -> Outcome {
        let verdict = self.verdict.clone();
        match &self.task {
            Task::LookUp { permit, name, record_type } => {
                let answer = service.resolver.answer(permit, *record_type).await;
                service.outcome(name, *record_type, answer, verdict, self.asker, self.since)
            }
            Task::MinimalAny { name } => {
                let asked = Asked { name: AskedName::Host(name.clone()), record_type: TYPE_ANY };
                let event = verdict.answered(self.asker, self.since, Some(asked), ResponseCode::NoError);
                Outcome { answers: minimal_any(name), ..Outcome::empty(event) }
            }
            Task::Fault { asked, rcode } => {
                Outcome::empty(verdict.answered(self.asker, self.since, Some(asked.clone()), *rcode))
            }
        }
    }
}

impl Outcome {
    fn empty(event: Answered) -> Self {
        let rcode = event.rcode;
        Self { rcode, answers: Arc::from([]), soa: None, age: 0, extended_error: None, event }
    }
}

/// One errand, as hickory-server hands requests on.
struct Handler {
    service: Arc<Service>,
    errand: Errand,
}

#[async_trait]
impl RequestHandler for Handler {
    /// Comes back when the reply has left, or cannot. Before that its event was taken.
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut reply: R,
    ) -> ResponseInfo {
        let outcome = self.errand.outcome(&self.service).await;
        let Outcome { rcode, answers, soa, age, extended_error, event } = outcome;
        if let Some(room) = self.service.tell(&event) {
            room.await;
        }
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.recursion_available = true;
        metadata.response_code = rcode;
        let answers = aged(answers, age);
        let soa = soa.map(|soa| with_ttl((*soa).clone(), soa.ttl.saturating_sub(age)));
        let edns = request.edns.as_ref().map(|theirs| own_edns(theirs, extended_error));
        let builder = || MessageResponseBuilder::new(&request.queries, edns.as_ref());
        let whole = builder().build(metadata, answers.iter(), iter::empty(), soa.iter(), iter::empty());
        if let Ok(info) = reply.send_response(whole).await {
            return info;
        }
        // It does not fit: the client is to ask over TCP. Where the transport has failed, this fails too.
        metadata.truncation = true;
        let sent = reply.send_response(builder().build_no_records(metadata)).await;
        sent.unwrap_or_else(|_| Header { metadata, counts: HeaderCounts::default() }.into())
    }
}

/// The response as bytes.
///
/// # Errors
/// When it takes more than `limit` bytes.
pub(super) fn encode<'a>(
    response: MessageResponse<
        '_,
        'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
    >,
    limit: usize,
) -> Result<(ResponseInfo, Vec<u8>), NetError> {
    let to_be_truncated = response.metadata().truncation;
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(u16::try_from(limit).unwrap_or(u16::MAX));
    let info = response.destructive_emit(&mut encoder)?;
    if info.truncation && !to_be_truncated {
        return Err(NetError::Message("the response does not fit"));
    }
    Ok((info, bytes))
}

fn minimal_any(name: &DomainName) -> Arc<[Record]> {
    let data = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
    wire_name(name).map(|owner| Record::from_rdata(owner, MINIMAL_ANY_TTL, data)).into_iter().collect()
}

/// The records as of now: what an answer holds is shared with whom else it was given to.
fn aged(records: Arc<[Record]>, age: u32) -> Arc<[Record]> {
    if age == 0 {
        return records;
    }
    records.iter().map(|record| with_ttl(record.clone(), record.ttl.saturating_sub(age))).collect()
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
