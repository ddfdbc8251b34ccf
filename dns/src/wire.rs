//! What a client's packet asks, read strictly: one question, and at most one OPT record behind it.
//!
//! Nothing here follows a pointer, allocates, or reads a byte twice, so the work is bounded by the packet's
//! length. What is not such a query is answered with an error that repeats nothing but the header, or not at
//! all: a message that calls itself a response is never answered, so that two servers cannot talk to each
//! other for ever.

use outgate_rules::name::MAX_LABEL;
use outgate_rules::{DomainName, NameError};

/// Bytes of a header (RFC 1035 §4.1.1).
pub const HEADER: usize = 12;
/// Longest name on the wire, with its root label (RFC 1035 §2.3.4).
const MAX_WIRE_NAME: usize = 255;
/// Type and class behind a question's name.
const QUESTION_TAIL: usize = 4;
/// The only class there is (RFC 1035 §3.2.4).
pub const CLASS_IN: u16 = 1;
const TYPE_OPT: u16 = 41;
/// Bytes of an OPT record without options.
const OPT: usize = 11;

/// Bits of the header's second word.
mod flag {
    pub(super) const RESPONSE: u16 = 0x8000;
    pub(super) const OPCODE: u16 = 0x7800;
    pub(super) const RECURSION_DESIRED: u16 = 0x0100;
    pub(super) const CHECKING_DISABLED: u16 = 0x0010;
    /// In an OPT record's TTL (RFC 3225 §3).
    pub(super) const DNSSEC_OK: u16 = 0x8000;
    /// Those that an answer repeats.
    pub(super) const COPIED: u16 = OPCODE | RECURSION_DESIRED | CHECKING_DISABLED;
}

/// What an answer repeats of a query's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// The query's id.
    pub id: u16,
    /// Its opcode, RD and CD, where they stand in the header (RFC 1035 §4.1.1, RFC 4035 §3.2.2).
    pub flags: u16,
}

impl Head {
    /// Whether recursion is desired.
    #[must_use]
    pub fn recursion_desired(self) -> bool {
        self.flags & flag::RECURSION_DESIRED != 0
    }
}

/// A query with one question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Query<'p> {
    /// What the answer repeats.
    pub head: Head,
    /// The question as sent, letter case and all: name, type, class.
    pub question: Question<'p>,
    /// What the OPT record says, if there is one.
    pub edns: Option<Edns>,
}

/// A question as sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question<'p> {
    bytes: &'p [u8],
    /// The type asked for.
    pub record_type: u16,
    /// The class.
    pub class: u16,
}

/// What an OPT record says (RFC 6891 §6.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edns {
    /// Bytes that the client takes in a datagram, as sent.
    pub size: u16,
    /// The version; only 0 exists.
    pub version: u8,
    /// DO: the client takes DNSSEC records (RFC 3225).
    pub dnssec_ok: bool,
}

/// Why a packet is not a query that can be decided on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Shorter than a header, or a response: no answer at all.
    Silence,
    /// An opcode other than QUERY.
    Opcode(Head),
    /// It breaks the format.
    Format(Head, Malformed),
}

/// What breaks the format of a query.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Malformed {
    /// No question, or several (RFC 9619).
    QuestionCount,
    /// Records where a query has none.
    RecordsInQuery,
    /// The packet ends too early.
    CutShort,
    /// A compression pointer or an extended label in the question.
    LabelKind,
    /// A name of more than 255 octets.
    NameTooLong,
    /// A record behind the question that is not OPT: signatures and their like have nothing to say here.
    NotOpt,
    /// An OPT record whose owner is not the root.
    OptName,
    /// More than one OPT record.
    SeveralOpts,
    /// Options that do not fill the OPT record exactly.
    Options,
    /// Bytes behind the message.
    TrailingBytes,
    /// A question for OPT, which is no type of data (RFC 6891 §6.1.1).
    OptAsked,
}

impl<'p> Query<'p> {
    /// Reads a packet.
    ///
    /// # Errors
    /// Says how it is to be answered instead.
    pub fn read(packet: &'p [u8]) -> Result<Self, Fault> {
        let mut rest = Cursor(packet);
        let words = rest.words::<6>().ok_or(Fault::Silence)?;
        let [id, flags, questions, answers, authorities, additionals] = words;
        if flags & flag::RESPONSE != 0 {
            return Err(Fault::Silence);
        }
        let head = Head { id, flags: flags & flag::COPIED };
        if flags & flag::OPCODE != 0 {
            return Err(Fault::Opcode(head));
        }
        let malformed = |what| Fault::Format(head, what);
        if questions != 1 {
            return Err(malformed(Malformed::QuestionCount));
        }
        if answers != 0 || authorities != 0 {
            return Err(malformed(Malformed::RecordsInQuery));
        }
        let question = rest.question().map_err(malformed)?;
        let edns = rest.additionals(additionals).map_err(malformed)?;
        if !rest.0.is_empty() {
            return Err(malformed(Malformed::TrailingBytes));
        }
        Ok(Self { head, question, edns })
    }

    /// The query as a packet that says what was understood of it and nothing else: no options, no padding, no
    /// bits without a meaning here.
    #[must_use]
    pub fn to_packet(&self) -> Vec<u8> {
        let Self { head, question, edns } = self;
        let mut packet = Vec::with_capacity(HEADER + question.bytes.len() + OPT);
        let counts = [1, 0, 0, u16::from(edns.is_some())];
        packet.extend([head.id, head.flags].into_iter().chain(counts).flat_map(u16::to_be_bytes));
        packet.extend_from_slice(question.bytes);
        if let Some(Edns { size, version, dnssec_ok }) = *edns {
            let flags = if dnssec_ok { flag::DNSSEC_OK } else { 0 };
            packet.push(0);
            packet.extend([TYPE_OPT, size, version.into(), flags, 0].into_iter().flat_map(u16::to_be_bytes));
        }
        packet
    }
}

impl<'p> Question<'p> {
    /// The question as sent: name, type and class.
    #[must_use]
    pub fn bytes(&self) -> &'p [u8] {
        self.bytes
    }

    /// The name in canonical form.
    ///
    /// # Errors
    /// Why it is not the name of a host: DNS itself lets a label hold any byte (RFC 2181 §11).
    pub fn name(&self) -> Result<DomainName, NameError> {
        DomainName::of_wire(self.wire_name()).map_or_else(|| self.name_by_text(), Ok)
    }

    fn wire_name(&self) -> &'p [u8] {
        self.bytes.split_last_chunk::<QUESTION_TAIL>().map_or(&[], |(name, _)| name)
    }

    fn name_by_text(&self) -> Result<DomainName, NameError> {
        let mut text = [0; MAX_WIRE_NAME];
        let mut length = 0;
        for label in self.labels() {
            if label.iter().any(is_dot) {
                // In text the dot would end the label.
                return Err(NameError::Character);
            }
            let end = length + label.len();
            text.get_mut(length..end).ok_or(NameError::TooLong)?.copy_from_slice(label);
            *text.get_mut(end).ok_or(NameError::TooLong)? = b'.';
            length = end + 1;
        }
        let text = text.get(..length).unwrap_or_default();
        match std::str::from_utf8(text) {
            Ok(text) => DomainName::parse(text),
            Err(_) => Err(NameError::NotAscii),
        }
    }

    /// Whether the question is about the name with these labels, in any letter case.
    #[must_use]
    pub fn is_about<'l>(&self, labels: impl Iterator<Item = &'l [u8]>) -> bool {
        let (mut ours, mut theirs) = (self.labels(), labels);
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (Some(one), Some(other)) if one.eq_ignore_ascii_case(other) => {}
                (Some(_) | None, Some(_) | None) => return false,
            }
        }
    }

    /// Whether the question is about the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.bytes.first() == Some(&0)
    }

    /// The name as a record shows it: printable ASCII but for the escapes `\.` and `\ddd` (RFC 1035 §5.1).
    #[must_use]
    pub fn presentation(&self) -> String {
        let mut text = String::new();
        for label in self.labels() {
            if !text.is_empty() {
                text.push('.');
            }
            for byte in label {
                match byte {
                    b'.' | b'\\' => text.extend(['\\', char::from(*byte)]),
                    b'!'..=b'~' => text.push(char::from(*byte)),
                    0..=b' ' | 0x7f.. => text.push_str(&format!("\\{byte:03}")),
                }
            }
        }
        if text.is_empty() { ".".to_owned() } else { text }
    }

    fn labels(&self) -> impl Iterator<Item = &'p [u8]> {
        let mut rest = Cursor(self.wire_name());
        std::iter::from_fn(move || {
            let length = rest.byte()?;
            rest.take(length.into()).filter(|label| !label.is_empty())
        })
    }
}

/// Looked for byte by byte: the search of `contains` is made for long texts.
fn is_dot(byte: &u8) -> bool {
    *byte == b'.'
}

/// The bytes that have not been read yet.
struct Cursor<'p>(&'p [u8]);

impl<'p> Cursor<'p> {
    fn question(&mut self) -> Result<Question<'p>, Malformed> {
        let from = self.0;
        let name = self.name()?;
        let [record_type, class] = self.words().ok_or(Malformed::CutShort)?;
        if record_type == TYPE_OPT {
            return Err(Malformed::OptAsked);
        }
        let bytes = from.get(..name + QUESTION_TAIL).ok_or(Malformed::CutShort)?;
        Ok(Question { bytes, record_type, class })
    }

    /// Skips a name without compression, and says how long it is.
    fn name(&mut self) -> Result<usize, Malformed> {
        let mut length = 0;
        loop {
            let label = usize::from(self.byte().ok_or(Malformed::CutShort)?);
            if label > MAX_LABEL {
                return Err(Malformed::LabelKind);
            }
            self.take(label).ok_or(Malformed::CutShort)?;
            length += 1 + label;
            if length > MAX_WIRE_NAME {
                return Err(Malformed::NameTooLong);
            }
            if label == 0 {
                return Ok(length);
            }
        }
    }

    fn additionals(&mut self, count: u16) -> Result<Option<Edns>, Malformed> {
        match count {
            0 => Ok(None),
            1 => self.opt().map(Some),
            // Whatever the others are, one of them is not wanted: a second OPT, or not an OPT at all.
            _ => {
                self.opt()?;
                self.opt()?;
                Err(Malformed::SeveralOpts)
            }
        }
    }

    fn opt(&mut self) -> Result<Edns, Malformed> {
        let name = self.name()?;
        let [record_type, size, high, low, length] = self.words().ok_or(Malformed::CutShort)?;
        if record_type != TYPE_OPT {
            return Err(Malformed::NotOpt);
        }
        if name != 1 {
            return Err(Malformed::OptName);
        }
        let mut options = Cursor(self.take(length.into()).ok_or(Malformed::CutShort)?);
        while !options.0.is_empty() {
            let [_code, length] = options.words().ok_or(Malformed::Options)?;
            options.take(length.into()).ok_or(Malformed::Options)?;
        }
        let [_extended_rcode, version] = high.to_be_bytes();
        Ok(Edns { size, version, dnssec_ok: low & flag::DNSSEC_OK != 0 })
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, length: usize) -> Option<&'p [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// So many words in network byte order, or none of them.
    fn words<const N: usize>(&mut self) -> Option<[u16; N]> {
        let (pairs, _) = self.take(2 * N)?.as_chunks::<2>();
        let mut words = [0; N];
        for (word, pair) in words.iter_mut().zip(pairs) {
            *word = u16::from_be_bytes(*pair);
        }
        Some(words)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A header with these counts, and what follows it.
    pub(crate) fn packet(flags: u16, counts: [u16; 4], rest: &[&[u8]]) -> Vec<u8> {
        let words = [0x1234, flags, counts[0], counts[1], counts[2], counts[3]];
        let mut packet: Vec<u8> = words.into_iter().flat_map(u16::to_be_bytes).collect();
        rest.iter().for_each(|part| packet.extend_from_slice(part));
        packet
    }

    /// A question for a name in text.
    pub(crate) fn question(name: &str, record_type: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        for label in name.split('.').filter(|label| !label.is_empty()) {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend_from_slice(&record_type.to_be_bytes());
        bytes.extend_from_slice(&CLASS_IN.to_be_bytes());
        bytes
    }

    /// An OPT record.
    pub(crate) fn opt(size: u16, version: u8, flags: u16, options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 41];
        bytes.extend_from_slice(&size.to_be_bytes());
        bytes.extend_from_slice(&[0, version]);
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&u16::try_from(options.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(options);
        bytes
    }

    const RD: u16 = 0x0100;

    #[test]
    fn a_query_as_dig_sends_it_is_read_whole() {
        let cookie = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
        let bytes =
            packet(0x0120, [1, 0, 0, 1], &[&question("PyPI.org", 28), &opt(1232, 0, 0x8000, &cookie)]);
        let query = Query::read(&bytes).unwrap();
        assert_eq!(query.head, Head { id: 0x1234, flags: RD });
        assert_eq!((query.question.record_type, query.question.class), (28, CLASS_IN));
        assert_eq!(query.question.bytes(), question("PyPI.org", 28));
        assert_eq!(query.question.name().unwrap().as_str(), "pypi.org");
        assert_eq!(query.question.presentation(), "PyPI.org");
        assert_eq!(query.edns, Some(Edns { size: 1232, version: 0, dnssec_ok: true }));
    }

    #[test]
    fn what_is_not_a_query_is_not_answered() {
        let whole = packet(RD, [1, 0, 0, 0], &[&question("a.example", 1)]);
        for cut in 0..HEADER {
            assert_eq!(Query::read(&whole[..cut]), Err(Fault::Silence), "{cut} bytes");
        }
        for flags in [0x8000, 0x8180, 0xffff, 0xa800] {
            let response = packet(flags, [1, 0, 0, 0], &[&question("a.example", 1)]);
            assert_eq!(Query::read(&response), Err(Fault::Silence), "{flags:#06x}");
        }
    }

    #[test]
    fn other_opcodes_are_not_implemented() {
        for opcode in 1..16 {
            let bytes = packet(opcode << 11 | RD, [1, 0, 0, 0], &[&question("a.example", 1)]);
            let head = Head { id: 0x1234, flags: opcode << 11 | RD };
            assert_eq!(Query::read(&bytes), Err(Fault::Opcode(head)), "opcode {opcode}");
        }
    }

    #[test]
    fn each_way_to_break_the_format_is_told_apart() {
        let asked = question("a.example", 1);
        let edns = opt(1232, 0, 0, &[]);
        let long_name: Vec<u8> =
            std::iter::repeat_n([&[49][..], &[b'a'; 49]].concat(), 6).flatten().collect();
        let a_record = [&question("a.example", 1)[..], &[0, 0, 0, 60, 0, 4, 9, 9, 9, 9]].concat();
        let named_opt = [&[1, b'a'][..], &edns].concat();
        let tsig = [&[0][..], &250_u16.to_be_bytes(), &[0, 255, 0, 0, 0, 0, 0, 0]].concat();
        type Line<'a> = (&'a str, [u16; 4], &'a [&'a [u8]], Malformed);
        let table: &[Line<'_>] = &[
            ("no question", [0, 0, 0, 0], &[], Malformed::QuestionCount),
            ("two questions", [2, 0, 0, 0], &[&asked, &asked], Malformed::QuestionCount),
            ("65535 questions", [65535, 0, 0, 0], &[&asked], Malformed::QuestionCount),
            ("an answer", [1, 1, 0, 0], &[&asked, &a_record], Malformed::RecordsInQuery),
            ("an authority", [1, 0, 1, 0], &[&asked, &a_record], Malformed::RecordsInQuery),
            ("a question that is not there", [1, 0, 0, 0], &[], Malformed::CutShort),
            ("a name without an end", [1, 0, 0, 0], &[b"\x01a"], Malformed::CutShort),
            ("a label that is cut", [1, 0, 0, 0], &[b"\x05ab"], Malformed::CutShort),
            ("no class", [1, 0, 0, 0], &[&asked[..asked.len() - 2]], Malformed::CutShort),
            ("a pointer to itself", [1, 0, 0, 0], &[b"\xc0\x0c\0\x01\0\x01"], Malformed::LabelKind),
            ("a pointer behind a label", [1, 0, 0, 0], &[b"\x01a\xc0\x0c\0\x01\0\x01"], Malformed::LabelKind),
            ("an extended label", [1, 0, 0, 0], &[b"\x41\x08abcdefgh\0\0\x01\0\x01"], Malformed::LabelKind),
            ("a reserved label", [1, 0, 0, 0], &[b"\x80a\0\0\x01\0\x01"], Malformed::LabelKind),
            ("a name of 301 octets", [1, 0, 0, 0], &[&long_name, &[0, 0, 1, 0, 1]], Malformed::NameTooLong),
            ("a question for OPT", [1, 0, 0, 0], &[&question("", 41)], Malformed::OptAsked),
            ("no OPT though counted", [1, 0, 0, 1], &[&asked], Malformed::CutShort),
            ("an OPT that is cut", [1, 0, 0, 1], &[&asked, &edns[..10]], Malformed::CutShort),
            ("an OPT with a name", [1, 0, 0, 1], &[&asked, &named_opt], Malformed::OptName),
            ("an OPT with a pointer", [1, 0, 0, 1], &[&asked, b"\xc0\x0c", &edns[1..]], Malformed::LabelKind),
            ("an A record", [1, 0, 0, 1], &[&asked, &a_record], Malformed::NotOpt),
            ("a TSIG", [1, 0, 0, 1], &[&asked, &tsig], Malformed::NotOpt),
            ("two OPTs", [1, 0, 0, 2], &[&asked, &edns, &edns], Malformed::SeveralOpts),
            ("an OPT and a TSIG", [1, 0, 0, 2], &[&asked, &edns, &tsig], Malformed::NotOpt),
            (
                "an option that is cut",
                [1, 0, 0, 1],
                &[&asked, &opt(1232, 0, 0, &[0, 10, 0])],
                Malformed::Options,
            ),
            (
                "an option too long",
                [1, 0, 0, 1],
                &[&asked, &opt(1232, 0, 0, &[0, 10, 0, 9, 1])],
                Malformed::Options,
            ),
            ("bytes behind the question", [1, 0, 0, 0], &[&asked, b"x"], Malformed::TrailingBytes),
            ("an OPT that is not counted", [1, 0, 0, 0], &[&asked, &edns], Malformed::TrailingBytes),
            ("bytes behind the OPT", [1, 0, 0, 1], &[&asked, &edns, b"\0"], Malformed::TrailingBytes),
        ];
        for (what, counts, rest, malformed) in table {
            let head = Head { id: 0x1234, flags: RD };
            let bytes = packet(RD, *counts, rest);
            assert_eq!(Query::read(&bytes), Err(Fault::Format(head, *malformed)), "{what}");
        }
    }

    #[test]
    fn a_query_cut_anywhere_is_no_query() {
        let whole =
            packet(RD, [1, 0, 0, 1], &[&question("a.example", 1), &opt(4096, 0, 0, &[0, 12, 0, 2, 0, 0])]);
        assert!(Query::read(&whole).is_ok());
        for cut in 0..whole.len() {
            assert!(Query::read(&whole[..cut]).is_err(), "{cut} bytes");
        }
    }

    #[test]
    fn what_goes_on_is_what_was_understood_and_nothing_else() {
        let asked = question("wWw.Example.ORG", 65);
        let padding = [&[0, 12, 0, 200][..], &[7; 200]].concat();
        for edns in [None, Some(opt(1400, 0, 0x8000, &padding)), Some(opt(0, 1, 0x7fff, &[0, 8, 0, 1, 9]))] {
            // With AD and the bit that is for nothing.
            let count = u16::from(edns.is_some());
            let whole = packet(RD | 0x0070, [1, 0, 0, count], &[&asked, &edns.unwrap_or_default()]);
            let query = Query::read(&whole).unwrap();
            let bare = query.to_packet();
            assert_eq!(Query::read(&bare), Ok(query));
            assert_eq!(bare.len(), HEADER + asked.len() + usize::from(count) * OPT);
            assert_eq!(bare[2..4], (RD | 0x0010).to_be_bytes());
            assert_eq!(bare.last(), if count == 1 { Some(&0) } else { asked.last() });
        }
    }

    #[test]
    fn the_longest_name_is_a_name() {
        let label = [&[63][..], &[b'a'; 63]].concat();
        let last = [&[61][..], &[b'b'; 61]].concat();
        let name = [&label[..], &label, &label, &last, &[0, 0, 1, 0, 1]].concat();
        let bytes = packet(RD, [1, 0, 0, 0], &[&name]);
        let query = Query::read(&bytes).unwrap();
        assert_eq!(query.question.bytes().len(), MAX_WIRE_NAME + QUESTION_TAIL);
        assert_eq!(query.question.name().unwrap().as_str().len(), 253);
    }

    #[test]
    fn what_is_no_host_name_says_why_and_is_shown_escaped() {
        let table: &[(&[u8], NameError, &str)] = &[
            (b"\0", NameError::Empty, "."),
            (b"\x03a.b\x03com\0", NameError::Character, "a\\.b.com"),
            (b"\x03a\0b\x03com\0", NameError::ControlByte, "a\\000b.com"),
            (b"\x03a b\x03com\0", NameError::Character, "a\\032b.com"),
            (b"\x02\xc3\xbc\x03com\0", NameError::NotAscii, "\\195\\188.com"),
            (b"\x01\xff\x03com\0", NameError::NotAscii, "\\255.com"),
            (b"\x01*\x03com\0", NameError::Character, "*.com"),
            (b"\x02-a\x03com\0", NameError::Hyphen, "-a.com"),
            (b"\x03com\x03123\0", NameError::Numeric, "com.123"),
            (b"\x02\\a\x03com\0", NameError::Character, "\\\\a.com"),
        ];
        for (name, error, shown) in table {
            let bytes = packet(RD, [1, 0, 0, 0], &[name, &[0, 1, 0, 1]]);
            let question = Query::read(&bytes).unwrap().question;
            assert_eq!(question.name(), Err(*error), "{shown}");
            assert_eq!(question.presentation(), *shown);
        }
    }
}
