//! What the cache keeps of an answer: some forty bytes where records take hundreds.
//!
//! The bytes are written and read here and nowhere else: type, name, and of an answer the TTL, the response code
//! and the records. An address or an alias at the end of the chain so far is a byte and its data; every other
//! record is as on the wire, uncompressed.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record};
use hickory_proto::serialize::binary::{BinDecodable as _, BinEncodable, BinEncoder, NameEncoding};
use outgate_rules::DomainName;

use crate::question::Question;
use crate::reply::{Rcode, Reply, wire_name, wire_name_of};

/// How a record is kept.
mod kind {
    // At the end of the chain so far, with the TTL of all.
    pub(super) const A: u8 = 1;
    pub(super) const AAAA: u8 = 2;
    pub(super) const ALIAS: u8 = 3;
    /// A length of two bytes, then the record.
    pub(super) const WHOLE: u8 = 4;
}

/// In the byte of the response code: there is an SOA behind the records.
const WITH_SOA: u8 = 0x80;

/// A question, and what is known of its answer.
#[derive(Debug, Default)]
pub(super) struct Packed(Box<[u8]>);

impl Packed {
    /// A question of which nothing is known.
    pub(super) fn bare(question: &Question) -> Self {
        Self(head(question).into())
    }

    /// A question and its answer; none where a record cannot be written down.
    pub(super) fn new(question: &Question, reply: &Reply) -> Option<Self> {
        let mut bytes = head(question);
        let soa = if reply.soa.is_some() { WITH_SOA } else { 0 };
        bytes.extend(reply.ttl.to_be_bytes());
        bytes.extend([reply.rcode.number() | soa, u8::try_from(reply.records.len()).ok()?]);
        let mut at = wire_name(&question.name)?;
        for record in reply.records.iter().chain(reply.soa.as_deref()) {
            pack(record, reply.ttl, &mut at, &mut bytes)?;
        }
        Some(Self(bytes.into()))
    }

    /// Whether it is about this question.
    pub(super) fn is_about(&self, name: &DomainName, record_type: u16) -> bool {
        self.key() == Some((name.as_str(), record_type))
    }

    /// Name and type; none where nothing is kept.
    pub(super) fn key(&self) -> Option<(&str, u16)> {
        Reader(&self.0).key()
    }

    /// Seconds that the answer holds; none where there is no answer.
    pub(super) fn ttl(&self) -> Option<u32> {
        let mut rest = Reader(&self.0);
        rest.key()?;
        rest.array().map(u32::from_be_bytes)
    }

    /// The answer, if there is one.
    pub(super) fn reply(&self) -> Option<Reply> {
        let mut rest = Reader(&self.0);
        let (name, _) = rest.key()?;
        let ttl = u32::from_be_bytes(rest.array()?);
        let [code, count] = rest.array()?;
        let mut at = wire_name_of(name)?;
        let records: Option<Vec<Record>> = (0..count).map(|_| rest.record(ttl, &mut at)).collect();
        let soa = if code & WITH_SOA == 0 { None } else { Some(Arc::new(rest.record(ttl, &mut at)?)) };
        let rcode =
            if code & !WITH_SOA == Rcode::NxDomain.number() { Rcode::NxDomain } else { Rcode::NoError };
        Some(Reply { rcode, records: records?.into(), soa, ttl })
    }

    /// Bytes that it takes.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

fn head(question: &Question) -> Vec<u8> {
    let name = question.name.as_str();
    // A name has at most 253 letters.
    let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
    let mut bytes = Vec::with_capacity(name.len() + 16);
    bytes.extend(question.record_type.to_be_bytes());
    bytes.push(length);
    bytes.extend_from_slice(name.as_bytes());
    bytes
}

/// Appends a record. `at` is the end of the chain so far.
fn pack(record: &Record, ttl: u32, at: &mut Name, bytes: &mut Vec<u8>) -> Option<()> {
    let usual = record.name == *at && record.ttl == ttl && record.dns_class == DNSClass::IN;
    if let (true, RData::A(address)) = (usual, &record.data) {
        bytes.push(kind::A);
        bytes.extend(address.octets());
    } else if let (true, RData::AAAA(address)) = (usual, &record.data) {
        bytes.push(kind::AAAA);
        bytes.extend(address.octets());
    } else if let (true, RData::CNAME(target)) = (usual, &record.data) {
        let wire = uncompressed(&target.0)?;
        bytes.extend([kind::ALIAS, u8::try_from(wire.len()).ok()?]);
        bytes.extend(wire);
        *at = target.0.clone();
    } else {
        let wire = uncompressed(record)?;
        bytes.push(kind::WHOLE);
        bytes.extend(u16::try_from(wire.len()).ok()?.to_be_bytes());
        bytes.extend(wire);
    }
    Some(())
}

fn uncompressed(what: &impl BinEncodable) -> Option<Vec<u8>> {
    let mut wire = Vec::new();
    let mut encoder = BinEncoder::new(&mut wire);
    encoder.set_name_encoding(NameEncoding::Uncompressed);
    what.emit(&mut encoder).ok()?;
    Some(wire)
}

/// The bytes that have not been read yet.
struct Reader<'p>(&'p [u8]);

impl<'p> Reader<'p> {
    fn key(&mut self) -> Option<(&'p str, u16)> {
        let record_type = u16::from_be_bytes(self.array()?);
        let [length] = self.array()?;
        Some((std::str::from_utf8(self.take(length.into())?).ok()?, record_type))
    }

    fn record(&mut self, ttl: u32, at: &mut Name) -> Option<Record> {
        let [kind] = self.array()?;
        let data = match kind {
            kind::A => RData::A(A(Ipv4Addr::from(self.array::<4>()?))),
            kind::AAAA => RData::AAAA(AAAA(Ipv6Addr::from(self.array::<16>()?))),
            kind::ALIAS => {
                let [length] = self.array()?;
                let target = Name::from_bytes(self.take(length.into())?).ok()?;
                let owner = std::mem::replace(at, target.clone());
                return Some(Record::from_rdata(owner, ttl, RData::CNAME(CNAME(target))));
            }
            _ => {
                let length = u16::from_be_bytes(self.array()?);
                return Record::from_bytes(self.take(length.into())?).ok();
            }
        };
        Some(Record::from_rdata(at.clone(), ttl, data))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn take(&mut self, length: usize) -> Option<&'p [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{question, record};

    #[test]
    fn what_is_packed_comes_out_as_it_went_in() {
        let longest = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
        let soa = "example 30 SOA ns.example. root.example. 1 2 3 4 30";
        let table: &[(&str, u32, &[&str], Option<&str>)] = &[
            ("a.example", 30, &[], None),
            ("a.example", 30, &[], Some(soa)),
            ("a.example", 0, &[], Some("example 300 SOA ns.example. root.example. 1 2 3 4 30")),
            ("a.example", 60, &["a.example 60 A 9.9.9.9", "a.example 60 A 9.9.9.10"], None),
            ("a.example", 60, &["a.example 60 AAAA 2620:fe::fe"], None),
            (
                "a.example",
                60,
                &[
                    "a.example 60 CNAME b.example.",
                    "b.example 60 CNAME _c.d.example.",
                    "_c.d.example 60 A 9.9.9.9",
                ],
                None,
            ),
            ("a.example", 60, &["a.example 60 CNAME b.example."], Some(soa)),
            ("a.example", 60, &["a.example 60 TXT hello", "a.example 60 MX 10\u{20}mail.example."], None),
            ("a.example", 60, &["elsewhere.example 60 A 9.9.9.9", "a.example 59 A 9.9.9.9"], None),
            (&longest, u32::MAX, &[&format!("{longest} {} A 9.9.9.9", u32::MAX)], None),
        ];
        for (name, ttl, records, soa) in table {
            for rcode in [Rcode::NoError, Rcode::NxDomain] {
                let asked = question(name, 65);
                let records = records.iter().map(|line| record(line)).collect();
                let reply = Reply { rcode, records, soa: soa.map(|line| Arc::new(record(line))), ttl: *ttl };
                let packed = Packed::new(&asked, &reply).unwrap();
                assert!(packed.is_about(&asked.name, 65) && !packed.is_about(&asked.name, 1));
                assert_eq!((packed.ttl(), packed.reply()), (Some(*ttl), Some(reply)));
            }
        }
    }

    #[test]
    fn services_come_out_as_they_went_in() {
        use hickory_proto::rr::rdata::HTTPS;
        use hickory_proto::rr::rdata::svcb::{Alpn, IpHint, SVCB, SvcParamKey, SvcParamValue};
        let params = vec![
            (SvcParamKey::Alpn, SvcParamValue::Alpn(Alpn(vec!["h2".to_owned()]))),
            (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(vec![A::new(9, 9, 9, 9)]))),
        ];
        let service = RData::HTTPS(HTTPS(SVCB::new(1, Name::root(), params)));
        let owner = Name::from_ascii("a.example.").unwrap();
        let records = Arc::from([Record::from_rdata(owner, 60, service)]);
        let reply = Reply { records, ttl: 60, ..Reply::no_data() };
        assert_eq!(Packed::new(&question("a.example", 65), &reply).unwrap().reply(), Some(reply));
    }

    #[test]
    fn a_question_of_which_nothing_is_known_has_no_answer() {
        let asked = question("a.example", 1);
        let bare = Packed::bare(&asked);
        assert!(bare.is_about(&asked.name, 1));
        assert_eq!((bare.ttl(), bare.reply()), (None, None));
        assert_eq!(Packed::default().key(), None);
    }

    #[test]
    fn bytes_cut_anywhere_are_no_answer() {
        let asked = question("a.example", 1);
        let records = Arc::from([record("a.example 60 CNAME b.example."), record("b.example 60 A 9.9.9.9")]);
        let reply = Reply { records, ttl: 60, ..Reply::no_data() };
        let whole = Packed::new(&asked, &reply).unwrap();
        for cut in 0..whole.len() {
            assert_eq!(Packed(whole.0[..cut].into()).reply(), None, "{cut} bytes");
        }
    }
}
