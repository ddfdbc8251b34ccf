//! What is known of a question, whoever asks it; and the part of it that one client may learn.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::rdata::HTTPS;
use hickory_proto::rr::rdata::svcb::{IpHint, Mandatory, SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::{Name, RData, Record};
use hickory_proto::serialize::binary::BinDecodable as _;
use outgate_rules::{DomainName, Reason};

/// How an answer turned out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Rcode {
    /// NOERROR; without records of the asked type it is NODATA.
    NoError,
    /// NXDOMAIN: the name at the end of the chain does not exist.
    NxDomain,
    /// SERVFAIL: it could not be found out.
    ServFail,
}

impl Rcode {
    /// The number on the wire (RFC 1035 §4.1.1).
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::NoError => 0,
            Self::ServFail => 2,
            Self::NxDomain => 3,
        }
    }
}

/// What is known of a question.
#[derive(Clone, PartialEq, Debug)]
pub struct Reply {
    /// NOERROR or NXDOMAIN.
    pub rcode: Rcode,
    /// The chain of aliases in order and what stands at its end. Every owner is in lower case and every TTL
    /// is [`Reply::ttl`].
    pub records: Arc<[Record]>,
    /// Of a negative answer: the SOA that lets a client keep it (RFC 2308 §3).
    pub soa: Option<Arc<Record>>,
    /// Seconds that all of this holds.
    pub ttl: u32,
}

impl Reply {
    /// A name that does not exist, by our own word.
    #[must_use]
    pub fn no_such_name() -> Self {
        Self { rcode: Rcode::NxDomain, ..Self::no_data() }
    }

    /// A name without records of the asked type, by our own word.
    #[must_use]
    pub fn no_data() -> Self {
        Self { rcode: Rcode::NoError, records: Arc::from([]), soa: None, ttl: 0 }
    }

    /// The same, for another time.
    #[must_use]
    pub fn with_ttl(&self, ttl: u32) -> Self {
        Self {
            rcode: self.rcode,
            records: self.records.iter().map(|record| with_ttl(record.clone(), ttl)).collect(),
            soa: self.soa.as_deref().map(|soa| Arc::new(with_ttl(soa.clone(), ttl))),
            ttl,
        }
    }

    /// The addresses in it, hints of services included, each as it stands.
    pub(crate) fn each_address(&self, visit: &mut dyn FnMut(IpAddr)) {
        self.records.iter().for_each(|record| each_address(&record.data, visit));
    }
}

/// The records without the addresses that `vet` refuses, and those addresses with the reason. Where nothing
/// of the asked type is left, the aliases go too.
pub fn vetted(
    records: &Arc<[Record]>,
    vet: &mut dyn FnMut(IpAddr) -> Result<(), Reason>,
) -> (Arc<[Record]>, Vec<(IpAddr, Reason)>) {
    let mut withheld = Vec::new();
    for record in records.iter() {
        each_address(&record.data, &mut |address| {
            if let Err(reason) = vet(address) {
                withheld.push((address, reason));
            }
        });
    }
    if withheld.is_empty() {
        return (Arc::clone(records), withheld);
    }
    let refused = |address: IpAddr| withheld.iter().any(|(withheld, _)| *withheld == address);
    let kept: Vec<Record> = records.iter().filter_map(|record| without(record, &refused)).collect();
    let bare = kept.iter().all(|record| matches!(record.data, RData::CNAME(_)));
    (if bare { Arc::from([]) } else { kept.into() }, withheld)
}

pub(crate) fn each_address(data: &RData, visit: &mut dyn FnMut(IpAddr)) {
    if let RData::A(address) = data {
        visit(address.0.into());
    } else if let RData::AAAA(address) = data {
        visit(address.0.into());
    } else if let Some(service) = service(data) {
        for (_, value) in &service.svc_params {
            if let SvcParamValue::Ipv4Hint(IpHint(hints)) = value {
                hints.iter().for_each(|hint| visit(hint.0.into()));
            } else if let SvcParamValue::Ipv6Hint(IpHint(hints)) = value {
                hints.iter().for_each(|hint| visit(hint.0.into()));
            }
        }
    }
}

/// The record without refused addresses; none where nothing is left of it.
fn without(record: &Record, refused: &dyn Fn(IpAddr) -> bool) -> Option<Record> {
    let mut record = record.clone();
    if let RData::A(address) = &record.data {
        return (!refused(address.0.into())).then_some(record);
    }
    if let RData::AAAA(address) = &record.data {
        return (!refused(address.0.into())).then_some(record);
    }
    if let RData::HTTPS(HTTPS(service)) | RData::SVCB(service) = &mut record.data {
        for (_, value) in &mut service.svc_params {
            if let SvcParamValue::Ipv4Hint(IpHint(hints)) = value {
                hints.retain(|hint| !refused(hint.0.into()));
            } else if let SvcParamValue::Ipv6Hint(IpHint(hints)) = value {
                hints.retain(|hint| !refused(hint.0.into()));
            }
        }
        drop_empty_params(&mut service.svc_params);
    }
    Some(record)
}

/// Takes out lists that have become empty, and from `mandatory` what is no longer there (RFC 9460 §8: a
/// listed key must be present).
pub(crate) fn drop_empty_params(params: &mut Vec<(SvcParamKey, SvcParamValue)>) {
    params.retain(|(_, value)| !is_empty(value));
    let present: Vec<SvcParamKey> = params.iter().map(|(key, _)| *key).collect();
    for (_, value) in params.iter_mut() {
        if let SvcParamValue::Mandatory(Mandatory(keys)) = value {
            keys.retain(|key| present.contains(key));
        }
    }
    params.retain(|(_, value)| !is_empty(value));
}

fn is_empty(value: &SvcParamValue) -> bool {
    if let SvcParamValue::Mandatory(Mandatory(keys)) = value {
        return keys.is_empty();
    }
    if let SvcParamValue::Alpn(alpn) = value {
        return alpn.0.is_empty();
    }
    if let SvcParamValue::Ipv4Hint(IpHint(hints)) = value {
        return hints.is_empty();
    }
    matches!(value, SvcParamValue::Ipv6Hint(IpHint(hints)) if hints.is_empty())
}

fn service(data: &RData) -> Option<&SVCB> {
    if let RData::HTTPS(HTTPS(service)) | RData::SVCB(service) = data { Some(service) } else { None }
}

pub(crate) fn with_ttl(mut record: Record, ttl: u32) -> Record {
    record.ttl = ttl;
    record
}

/// A name as hickory writes it; none only if hickory's idea of a name were narrower than ours.
pub(crate) fn wire_name(name: &DomainName) -> Option<Name> {
    wire_name_of(name.as_str())
}

/// As [`wire_name`], of the text of one. It goes by way of the wire: hickory's own way from labels takes ten times as
/// long.
pub(crate) fn wire_name_of(name: &str) -> Option<Name> {
    let mut wire = [0; 256];
    let mut length = 0;
    for label in name.as_bytes().split(|byte| *byte == b'.') {
        let (first, rest) = wire.get_mut(length..=length + label.len())?.split_first_mut()?;
        *first = u8::try_from(label.len()).ok()?;
        rest.copy_from_slice(label);
        length += 1 + label.len();
    }
    Name::from_bytes(wire.get(..=length)?).ok()
}
