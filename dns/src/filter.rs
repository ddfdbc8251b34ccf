//! What is kept of an upstream's message: the chain from the asked name and what stands at its end. All else
//! is dropped, and what would lead a client past the gate is taken out.
//!
//! Nothing here depends on the client: addresses are vetted for each client when it is answered.

use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::svcb::{Alpn, SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{CNAME, HTTPS};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use outgate_rules::DomainName;

use crate::question::Question;
use crate::reply::{Rcode, Reply, drop_empty_params, wire_name, with_ttl};

/// Most aliases between a name and its records. Real chains have up to six; unbound follows 11 as well.
pub const MAX_LINKS: usize = 11;
/// Most records of one type that are kept: far above what the largest services publish, and a bound on what
/// one answer can take of the cache.
pub const MAX_RECORDS: usize = 128;

/// Seconds that a negative answer without an SOA is kept. Clients get nothing that lets them keep it (RFC 2308
/// §5); but a zone that is broken is not asked anew by every question, as with a failure (RFC 9520).
pub const WITHOUT_SOA: u32 = 5;

/// Why a message is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unusable {
    /// SERVFAIL, REFUSED and the like.
    #[error("the upstream answered with an error")]
    Rcode,
    /// It names other servers: it does not resolve.
    #[error("the upstream referred to other servers")]
    Referral,
    /// An alias that stands for itself, over one or several links.
    #[error("the aliases go in a circle")]
    Loop,
    /// More than [`MAX_LINKS`].
    #[error("the chain of aliases is too long")]
    TooManyLinks,
    /// One name with two aliases (RFC 2181 §10.1).
    #[error("a name has several aliases")]
    Ambiguous,
    /// A chain that ends in something that cannot be asked for.
    #[error("an alias stands for something that is no host name")]
    NotAName,
}

/// As much of a chain of aliases as is known, from the asked name on.
#[derive(Clone, Debug)]
pub struct Chain {
    record_type: RecordType,
    /// The name that is looked for now: the asked one, or the target of the last link.
    at: Name,
    links: Vec<Record>,
    ttl: u32,
}

/// What one message has told.
#[derive(Clone, Debug)]
pub enum Step {
    /// All there is to know.
    Done(Reply),
    /// Aliases, to a name that is to be asked for next.
    Follow(Chain, Question),
}

impl Chain {
    /// The chain before anything is known. Nothing is kept for longer than `max_ttl` seconds.
    #[must_use]
    pub fn new(question: &Question, max_ttl: u32) -> Option<Self> {
        let at = wire_name(&question.name)?;
        Some(Self { record_type: question.record_type.into(), at, links: Vec::new(), ttl: max_ttl })
    }

    /// Reads the answer to the question for this chain's end. `knows` says whether the upstream that sent it
    /// is the one to ask for a name; where it is not, what it says of that name is not believed.
    ///
    /// # Errors
    /// Why the message is no answer.
    pub fn read(&self, message: &Message, knows: &dyn Fn(&DomainName) -> bool) -> Result<Step, Unusable> {
        let code = message.metadata.response_code;
        if code != ResponseCode::NoError && code != ResponseCode::NXDomain {
            return Err(Unusable::Rcode);
        }
        let mut chain = self.clone();
        loop {
            if code == ResponseCode::NoError
                && let Some(records) = chain.records_in(message)
            {
                return Ok(Step::Done(chain.end(Rcode::NoError, records, None)));
            }
            let Some(link) = chain.link_in(message)? else { break };
            chain.follow(link)?;
            if let Some(name) = chain.name().filter(|name| !knows(name)) {
                return Ok(chain.ask_for(name));
            }
        }
        let grown = chain.links.len() > self.links.len();
        chain.without_records(message, grown)
    }

    /// The records of the asked type at the chain's end, if there are any; none may be left of them.
    fn records_in(&mut self, message: &Message) -> Option<Vec<Record>> {
        let mut found = false;
        let mut records: Vec<Record> = Vec::new();
        for record in message.answers.iter().filter(|record| is_at(record, &self.at, self.record_type)) {
            found = true;
            self.ttl = self.ttl.min(ttl(record));
            let Some(data) = cleaned(&self.at, &record.data) else { continue };
            let known = records.iter().any(|record| record.data == data);
            if !known && records.len() < MAX_RECORDS {
                records.push(Record::from_rdata(self.at.clone(), 0, data));
            }
        }
        found.then_some(records)
    }

    /// The alias at the chain's end, if there is one.
    fn link_in<'m>(&self, message: &'m Message) -> Result<Option<&'m Record>, Unusable> {
        let mut links = message.answers.iter().filter(|record| is_at(record, &self.at, RecordType::CNAME));
        let first = links.next();
        // The same link twice is still one alias.
        match first {
            Some(first) if links.any(|other| other.data != first.data) => Err(Unusable::Ambiguous),
            first => Ok(first),
        }
    }

    fn follow(&mut self, link: &Record) -> Result<(), Unusable> {
        let RData::CNAME(target) = &link.data else { return Ok(()) };
        if self.links.len() == MAX_LINKS {
            return Err(Unusable::TooManyLinks);
        }
        let target = target.0.to_lowercase();
        if self.links.iter().any(|link| link.name == target) {
            return Err(Unusable::Loop);
        }
        self.ttl = self.ttl.min(ttl(link));
        let data = RData::CNAME(CNAME(target.clone()));
        self.links.push(Record::from_rdata(std::mem::replace(&mut self.at, target), 0, data));
        Ok(())
    }

    /// A message whose chain ends without records: NXDOMAIN, NODATA, or an upstream that leaves the rest of
    /// the way to us.
    fn without_records(mut self, message: &Message, grown: bool) -> Result<Step, Unusable> {
        let soa = message.authorities.iter().find(|record| {
            record.dns_class == DNSClass::IN
                && matches!(record.data, RData::SOA(_))
                && record.name.zone_of(&self.at)
        });
        let missing = message.metadata.response_code == ResponseCode::NXDomain;
        if soa.is_none() && !missing {
            if grown {
                let name = self.name().ok_or(Unusable::NotAName)?;
                return Ok(self.ask_for(name));
            }
            if message.authorities.iter().any(|record| matches!(record.data, RData::NS(_))) {
                return Err(Unusable::Referral);
            }
        }
        self.ttl = self.ttl.min(soa.map_or(WITHOUT_SOA, negative_ttl));
        let rcode = if missing { Rcode::NxDomain } else { Rcode::NoError };
        Ok(Step::Done(self.end(rcode, Vec::new(), soa)))
    }

    fn ask_for(self, name: DomainName) -> Step {
        let question = Question { name, record_type: self.record_type.into() };
        Step::Follow(self, question)
    }

    fn name(&self) -> Option<DomainName> {
        DomainName::parse(&self.at.to_ascii()).ok()
    }

    fn end(self, rcode: Rcode, records: Vec<Record>, soa: Option<&Record>) -> Reply {
        let ttl = self.ttl;
        let in_order = self.links.into_iter().chain(records);
        Reply {
            rcode,
            records: in_order.map(|record| with_ttl(record, ttl)).collect(),
            soa: soa.map(|soa| Arc::new(Record::from_rdata(soa.name.to_lowercase(), ttl, soa.data.clone()))),
            ttl,
        }
    }
}

fn is_at(record: &Record, name: &Name, record_type: RecordType) -> bool {
    record.dns_class == DNSClass::IN
        && record.record_type() == record_type
        && !matches!(record.data, RData::Update0(_))
        && record.name == *name
}

/// A TTL with its highest bit set is zero (RFC 2181 §8).
fn ttl(record: &Record) -> u32 {
    if i32::try_from(record.ttl).is_ok() { record.ttl } else { 0 }
}

/// How long a negative answer with this SOA holds (RFC 2308 §5).
fn negative_ttl(soa: &Record) -> u32 {
    if let RData::SOA(data) = &soa.data { ttl(soa).min(data.minimum) } else { 0 }
}

/// The data as a client may have it; none where it may not.
fn cleaned(owner: &Name, data: &RData) -> Option<RData> {
    if let RData::HTTPS(HTTPS(service)) = data {
        // A client that is sent to another name would ask for that, and it is not thereby resolvable. Without
        // the record it goes to the asked name's own addresses, where the same origin answers.
        let own = service.target_name.is_root() || service.target_name == *owner;
        return own.then(|| cleaned_service(service)).flatten().map(|service| RData::HTTPS(HTTPS(service)));
    }
    if let RData::SVCB(service) = data {
        return cleaned_service(service).map(RData::SVCB);
    }
    Some(data.clone())
}

/// A service binding (RFC 9460) without the keys for a hidden server name and without HTTP/3: the gate reads
/// the one and refuses the other, so that a client would only lose time. None for AliasMode, which is a CNAME
/// by other means, and where no protocol is left.
fn cleaned_service(service: &SVCB) -> Option<SVCB> {
    if service.svc_priority == 0 {
        return None;
    }
    let mut params = service.svc_params.clone();
    params.retain(|(key, _)| *key != SvcParamKey::EchConfigList);
    for (_, value) in &mut params {
        if let SvcParamValue::Alpn(Alpn(protocols)) = value {
            protocols.retain(|protocol| protocol != "h3" && !protocol.starts_with("h3-"));
        }
    }
    drop_empty_params(&mut params);
    let has = |key: SvcParamKey| params.iter().any(|(present, _)| *present == key);
    if has(SvcParamKey::NoDefaultAlpn) && !has(SvcParamKey::Alpn) {
        return None;
    }
    Some(SVCB::new(service.svc_priority, service.target_name.to_lowercase(), params))
}

#[cfg(test)]
mod tests;
