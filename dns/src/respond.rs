//! Replies as bytes: all but those to what is seldom seen, which hickory-server builds (`server/slow.rs`).
//!
//! A reply repeats the client's question bit for bit, so that a client that mixes letter case as a defence
//! gets its own back. It is never larger than the client takes: what does not fit goes out empty with TC set,
//! and the client asks again over TCP (RFC 2181 §9).

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder, NameEncoding};

use crate::wire::{CLASS_IN, Edns, HEADER, Head, Query, Question};

/// Largest reply in a datagram, whatever a client says: it crosses every path without fragments (DNS Flag Day
/// 2020).
pub const MAX_DATAGRAM: u16 = 1232;
/// What a client without EDNS takes in a datagram (RFC 1035 §4.2.1).
const PLAIN_DATAGRAM: u16 = 512;
/// Largest reply over a stream: its length is two bytes (RFC 1035 §4.2.2).
pub const MAX_STREAM: usize = 65_535;

/// Seconds that an address of the gate itself may be kept: a policy that begins to allow the name is to be
/// noticed soon.
const OWN_TTL: u32 = 5;
/// A pointer to the question's name, which stands right behind the header.
const TO_QUESTION: u16 = 0xc000 | HEADER as u16;
/// Pointers have 14 bits (RFC 1035 §4.1.4).
const MAX_POINTER: usize = 0x3fff;

/// Longest text of an extended error: a denial stays small, so that nobody is worth flooding with it.
const MAX_TEXT: usize = 160;

const RESPONSE: u16 = 0x8000;
const TRUNCATED: u16 = 0x0200;
const RECURSION_AVAILABLE: u16 = 0x0080;
const DNSSEC_OK: u16 = 0x8000;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const OPTION_EXTENDED_ERROR: u16 = 15;

/// A reply before it is bytes.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// What it repeats of the query's header.
    pub head: Head,
    /// The question as asked; none where the query could not be read.
    pub question: Option<Question<'a>>,
    /// What the query's OPT record said. Without one the reply has none either.
    pub edns: Option<Edns>,
    /// The response code.
    pub rcode: ResponseCode,
    /// What it tells.
    pub content: Content<'a>,
    /// What else there is to say, to a client that sent OPT.
    pub extended_error: Option<ExtendedError<'a>>,
}

/// An extended DNS error (RFC 8914).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtendedError<'a> {
    /// Its code.
    pub code: u16,
    /// In words, UTF-8.
    pub text: &'a str,
}

impl<'a> ExtendedError<'a> {
    /// "Stale Answer": the upstreams are silent, and this is what they last said (§4.4).
    pub const STALE: u16 = 3;
    /// "Blocked": by the policy of who runs the server (§4.16).
    pub const BLOCKED: u16 = 15;

    /// The number and the data of the option that carries it.
    #[must_use]
    pub fn option(&self) -> (u16, Vec<u8>) {
        (OPTION_EXTENDED_ERROR, [&self.code.to_be_bytes(), self.short_text().as_bytes()].concat())
    }

    fn short_text(&self) -> &'a str {
        self.text.get(..self.text.floor_char_boundary(MAX_TEXT)).unwrap_or_default()
    }
}

/// What a reply tells.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// Nothing beside the response code.
    Nothing,
    /// Records that a resolver gave.
    Records {
        /// The answer section: a chain from the question's name on.
        answers: &'a [Record],
        /// The zone's SOA, for how long a negative answer may be kept (RFC 2308 §5).
        soa: Option<&'a Record>,
        /// Seconds that have passed of the records' TTLs.
        age: u32,
    },
    /// An address of the gate itself, in place of what was denied.
    Own(IpAddr),
}

/// How many bytes a client takes in a datagram.
#[must_use]
pub fn datagram_limit(edns: Option<Edns>) -> usize {
    edns.map_or(PLAIN_DATAGRAM, |edns| edns.size.clamp(PLAIN_DATAGRAM, MAX_DATAGRAM)).into()
}

impl<'a> Response<'a> {
    /// A reply to a query that tells nothing.
    #[must_use]
    pub fn empty(query: &Query<'a>, rcode: ResponseCode) -> Self {
        let Query { head, question, edns } = *query;
        let content = Content::Nothing;
        Self { head, question: Some(question), edns, rcode, content, extended_error: None }
    }

    /// Appends the reply with nothing in it but TC: the client is to ask over TCP.
    pub fn write_truncated(&self, out: &mut Vec<u8>) {
        let bare = Response { content: Content::Nothing, extended_error: None, ..*self };
        Writer { start: out.len(), out, known: None }.response(&bare, TRUNCATED);
    }

    /// Appends the reply, in at most `limit` bytes. Where it does not fit the words go first, then the
    /// records.
    pub fn write(&self, limit: usize, out: &mut Vec<u8>) {
        let start = out.len();
        let without_words = Response { extended_error: None, ..*self };
        let without_records = Response { content: Content::Nothing, ..without_words };
        for (response, flags) in [(self, 0), (&without_words, 0), (&without_records, TRUNCATED)] {
            out.truncate(start);
            Writer { out, start, known: None }.response(response, flags);
            if out.len() - start <= limit {
                return;
            }
        }
    }
}

/// Writes one message behind whatever `out` holds already.
struct Writer<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
    /// The last name that was written in full, and where in the message: the next record's owner is likely it.
    known: Option<(Name, u16)>,
}

impl Writer<'_> {
    fn response(&mut self, response: &Response<'_>, flags: u16) {
        let rcode = u16::from(response.rcode);
        let flags = RESPONSE | RECURSION_AVAILABLE | response.head.flags | flags | rcode & 0x000f;
        let (answers, authorities) = response.content.counts();
        let counts = [
            u16::from(response.question.is_some()),
            answers,
            authorities,
            u16::from(response.edns.is_some()),
        ];
        self.words(&[response.head.id, flags]);
        self.words(&counts);
        if let Some(question) = &response.question {
            self.out.extend_from_slice(question.bytes());
        }
        match response.content {
            Content::Nothing => {}
            Content::Records { answers, soa, age } => {
                for record in answers.iter().chain(soa) {
                    self.record(record, age, response.question.as_ref());
                }
            }
            Content::Own(address) => self.own(address),
        }
        if let Some(edns) = response.edns {
            self.opt(edns, rcode, response.extended_error);
        }
    }

    fn record(&mut self, record: &Record, age: u32, question: Option<&Question<'_>>) {
        self.owner(&record.name, question);
        self.words(&[record.record_type().into(), record.dns_class.into()]);
        self.out.extend_from_slice(&record.ttl.saturating_sub(age).to_be_bytes());
        let length_at = self.out.len();
        self.words(&[0]);
        self.data(&record.data);
        let length = u16::try_from(self.out.len() - length_at - 2).unwrap_or_default();
        if let Some(bytes) = self.out.get_mut(length_at..length_at + 2) {
            bytes.copy_from_slice(&length.to_be_bytes());
        }
    }

    /// A record's owner: a pointer, if it is the name asked for or the one that the last alias led to.
    fn owner(&mut self, name: &Name, question: Option<&Question<'_>>) {
        if question.is_some_and(|question| question.is_about(name.iter())) {
            return self.words(&[TO_QUESTION]);
        }
        match &self.known {
            Some((known, at)) if known == name => {
                let pointer = 0xc000 | at;
                self.words(&[pointer]);
            }
            Some(_) | None => self.name(name),
        }
    }

    fn data(&mut self, data: &RData) {
        // What nearly every answer is made of is written here; hickory writes the rest, without compression:
        // the newer types forbid it (RFC 3597 §4), and a pointer would count from the wrong place.
        if let RData::A(address) = data {
            self.out.extend_from_slice(&address.octets());
        } else if let RData::AAAA(address) = data {
            self.out.extend_from_slice(&address.octets());
        } else if let RData::CNAME(target) = data {
            self.name(&target.0);
        } else {
            let mut bytes = Vec::new();
            let mut encoder = BinEncoder::new(&mut bytes);
            encoder.set_name_encoding(NameEncoding::Uncompressed);
            if data.emit(&mut encoder).is_ok() {
                self.out.extend_from_slice(&bytes);
            }
        }
    }

    /// A name in full, which later owners may point to.
    fn name(&mut self, name: &Name) {
        let at = self.out.len() - self.start;
        for label in name.iter() {
            self.out.push(u8::try_from(label.len()).unwrap_or_default());
            self.out.extend_from_slice(label);
        }
        self.out.push(0);
        self.known = u16::try_from(at).ok().filter(|_| at <= MAX_POINTER).map(|at| (name.clone(), at));
    }

    fn own(&mut self, address: IpAddr) {
        let record_type = if address.is_ipv4() { TYPE_A } else { TYPE_AAAA };
        self.words(&[TO_QUESTION, record_type, CLASS_IN]);
        self.out.extend_from_slice(&OWN_TTL.to_be_bytes());
        match address {
            IpAddr::V4(address) => {
                self.words(&[4]);
                self.out.extend_from_slice(&address.octets());
            }
            IpAddr::V6(address) => {
                self.words(&[16]);
                self.out.extend_from_slice(&address.octets());
            }
        }
    }

    fn opt(&mut self, edns: Edns, rcode: u16, error: Option<ExtendedError<'_>>) {
        let [_, rcode_high] = (rcode >> 4).to_be_bytes();
        let flags = if edns.dnssec_ok { DNSSEC_OK } else { 0 };
        self.out.push(0);
        self.words(&[TYPE_OPT, MAX_DATAGRAM, u16::from_be_bytes([rcode_high, 0]), flags]);
        let Some(error) = error else { return self.words(&[0]) };
        let text = error.short_text();
        let length = u16::try_from(text.len()).unwrap_or_default();
        self.words(&[length + 6, OPTION_EXTENDED_ERROR, length + 2, error.code]);
        self.out.extend_from_slice(text.as_bytes());
    }

    fn words(&mut self, words: &[u16]) {
        words.iter().for_each(|word| self.out.extend_from_slice(&word.to_be_bytes()));
    }
}

impl Content<'_> {
    /// Records in the answer and in the authority section.
    fn counts(&self) -> (u16, u16) {
        match self {
            Self::Nothing => (0, 0),
            // As many as fit one message, which an upstream sent.
            Self::Records { answers, soa, .. } => {
                (u16::try_from(answers.len()).unwrap_or(u16::MAX), u16::from(soa.is_some()))
            }
            Self::Own(_) => (1, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use hickory_proto::op::Message;
    use hickory_proto::rr::rdata::{A, AAAA, CNAME, SOA, TXT};

    use super::*;
    use crate::wire::tests::{opt, packet, question};

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn record(owner: &str, ttl: u32, data: RData) -> Record {
        Record::from_rdata(name(owner), ttl, data)
    }

    fn addresses(owner: &str, count: u8) -> Vec<Record> {
        (0..count).map(|last| record(owner, 60, RData::A(A(Ipv4Addr::new(9, 9, 9, last))))).collect()
    }

    fn asked(size: Option<u16>) -> Vec<u8> {
        let opt = size.map(|size| opt(size, 0, 0, &[]));
        packet(
            0x0110,
            [1, 0, 0, u16::from(opt.is_some())],
            &[&question("wWw.Example.ORG", 1), &opt.unwrap_or_default()],
        )
    }

    fn response<'a>(query: &Query<'a>, content: Content<'a>) -> Response<'a> {
        Response { content, ..Response::empty(query, ResponseCode::NoError) }
    }

    fn bytes(reply: &Response<'_>, limit: usize) -> Vec<u8> {
        // Behind something else, as in a batch: pointers must count from the message's own start.
        let mut out = b"something else".to_vec();
        reply.write(limit, &mut out);
        out.split_off(b"something else".len())
    }

    #[test]
    fn a_reply_repeats_the_question_with_its_letter_case_and_the_bits_that_are_copied() {
        let packet = asked(None);
        let query = Query::read(&packet).unwrap();
        let bytes = bytes(&response(&query, Content::Nothing), 512);
        assert_eq!(bytes[12..], question("wWw.Example.ORG", 1));
        let message = Message::from_vec(&bytes).unwrap();
        let meta = &message.metadata;
        assert_eq!(meta.id, 0x1234);
        assert!(meta.recursion_desired && meta.recursion_available && meta.checking_disabled);
        assert!(!meta.authoritative && !meta.truncation && !meta.authentic_data);
        assert!(message.edns.is_none(), "who sent no OPT gets none");
    }

    #[test]
    fn a_chain_is_written_as_hickory_reads_it() {
        let alias = |from: &str, to: &str| record(from, 300, RData::CNAME(CNAME(name(to))));
        let chain = [
            alias("www.example.org.", "edge.example.net."),
            alias("edge.example.net.", "a.b.example.net."),
            record("a.b.example.net.", 30, RData::A(A(Ipv4Addr::new(9, 9, 9, 9)))),
            record("a.b.example.net.", 90, RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))),
            record("elsewhere.example.", 40, RData::TXT(TXT::new(vec!["text".to_owned()]))),
        ];
        let soa = SOA::new(name("ns.example.org."), name("root.example.org."), 1, 2, 3, 4, 5);
        let soa = record("example.org.", 3600, RData::SOA(soa));
        let packet = asked(Some(1232));
        let query = Query::read(&packet).unwrap();
        let content = Content::Records { answers: &chain, soa: Some(&soa), age: 35 };
        let bytes = bytes(&response(&query, content), 1232);
        let message = Message::from_vec(&bytes).unwrap();
        let told = |record: &Record| (record.name.clone(), record.ttl, record.data.clone());
        let aged =
            |record: &Record| (record.name.clone(), record.ttl.saturating_sub(35), record.data.clone());
        let answers: Vec<_> = message.answers.iter().map(told).collect();
        assert_eq!(answers, chain.iter().map(aged).collect::<Vec<_>>());
        assert_eq!(told(&message.authorities[0]), aged(&soa));
        assert_eq!(answers[2].1, 0, "a TTL that has passed is 0");
        let uncompressed = 2 * "edge.example.net".len() + 2 * "a.b.example.net".len();
        assert!(bytes.len() < 12 + 21 + 5 * 10 + uncompressed + 200, "{} bytes", bytes.len());
    }

    #[test]
    fn an_answer_is_never_larger_than_the_client_takes() {
        let many = addresses("www.example.org.", 70);
        let content = Content::Records { answers: &many, soa: None, age: 0 };
        for (size, limit, whole) in
            [(None, 512, false), (Some(0), 512, false), (Some(513), 513, false), (Some(65535), 1232, true)]
        {
            let packet = asked(size);
            let query = Query::read(&packet).unwrap();
            assert_eq!(datagram_limit(query.edns), limit);
            let bytes = bytes(&response(&query, content), limit);
            assert!(bytes.len() <= limit);
            let message = Message::from_vec(&bytes).unwrap();
            assert_eq!(message.metadata.truncation, !whole, "{size:?}");
            assert_eq!(message.answers.len(), if whole { 70 } else { 0 }, "{size:?}");
            assert_eq!(message.edns.is_some(), size.is_some());
        }
    }

    #[test]
    fn over_a_stream_everything_fits() {
        let many = addresses("www.example.org.", 255);
        let packet = asked(None);
        let query = Query::read(&packet).unwrap();
        let content = Content::Records { answers: &many, soa: None, age: 0 };
        let message = Message::from_vec(&bytes(&response(&query, content), MAX_STREAM)).unwrap();
        assert_eq!(message.answers.len(), 255);
    }

    #[test]
    fn a_denial_says_why_in_the_extended_error_to_who_sent_opt() {
        for (size, said) in [(None, false), (Some(1232), true)] {
            let packet = asked(size);
            let query = Query::read(&packet).unwrap();
            let denied = Response {
                rcode: ResponseCode::NXDomain,
                extended_error: Some(ExtendedError {
                    code: ExtendedError::BLOCKED,
                    text: "no rule allows it",
                }),
                ..response(&query, Content::Nothing)
            };
            let bytes = bytes(&denied, datagram_limit(query.edns));
            let message = Message::from_vec(&bytes).unwrap();
            assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
            let text = b"\0\x0f\0\x13\0\x0fno rule allows it";
            assert_eq!(bytes.windows(text.len()).any(|window| window == text), said);
        }
    }

    #[test]
    fn the_words_go_before_the_answer_does() {
        let packet = asked(Some(512));
        let query = Query::read(&packet).unwrap();
        let text = "ü".repeat(600);
        let answer = addresses("www.example.org.", 25);
        let content = Content::Records { answers: &answer, soa: None, age: 0 };
        let stale = ExtendedError { code: ExtendedError::STALE, text: &text };
        let both = Response { extended_error: Some(stale), ..response(&query, content) };
        assert_eq!(bytes(&both, 1232).len(), bytes(&both, 512).len() + 6 + MAX_TEXT);
        let message = Message::from_vec(&bytes(&both, 512)).unwrap();
        assert_eq!((message.answers.len(), message.metadata.truncation), (25, false));
    }

    #[test]
    fn a_version_of_edns_that_is_not_served_is_told_with_all_twelve_bits() {
        let packet = asked(Some(1232));
        let query = Query::read(&packet).unwrap();
        let told = Response { rcode: ResponseCode::BADVERS, ..response(&query, Content::Nothing) };
        let message = Message::from_vec(&bytes(&told, 512)).unwrap();
        // BADSIG of a TSIG has the same number.
        assert_eq!(u16::from(message.metadata.response_code), 16);
        assert_eq!(message.edns.unwrap().version(), 0);
    }

    #[test]
    fn a_denied_name_may_get_the_gate() {
        let packet = asked(None);
        let query = Query::read(&packet).unwrap();
        for address in ["192.0.2.1", "2001:db8::1"] {
            let address: IpAddr = address.parse().unwrap();
            let bytes = bytes(&response(&query, Content::Own(address)), 512);
            let message = Message::from_vec(&bytes).unwrap();
            assert_eq!(message.answers[0].data.ip_addr(), Some(address));
            assert_eq!(message.answers[0].name, name("www.example.org."));
        }
    }
}
