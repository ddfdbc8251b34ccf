//! A question, and the message that asks an upstream for it.

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name};
use outgate_rules::DomainName;

/// The largest datagram that an upstream is invited to send: what crosses every path unfragmented (DNS flag
/// day 2020, RFC 9715 §3.1).
const UDP_PAYLOAD: u16 = 1232;

/// What is asked: records of one type, in class IN.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Question {
    /// Of which name.
    pub name: DomainName,
    /// Of which type (the IANA registry's number).
    pub record_type: u16,
}

/// Whether a query carries an OPT record (RFC 6891).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Edns {
    With,
    /// For an upstream that calls OPT a format error.
    Without,
}

/// The letter case of a name that is asked for: one more thing that a forged answer has to guess
/// (draft-vixie-dnsext-dns0x20). A bit for each octet of the longest name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LetterCase([u8; 32]);

impl LetterCase {
    /// All in lower case.
    pub(crate) const PLAIN: Self = Self([0; 32]);

    pub(crate) fn random() -> Self {
        Self(rand::random())
    }

    /// The letters of a name in this case, without the dots.
    fn of<'n>(&'n self, name: &'n DomainName) -> impl Iterator<Item = u8> + 'n {
        let letters = name.as_str().bytes().filter(|byte| *byte != b'.');
        letters.zip(self.bits()).map(|(byte, upper)| if upper { byte.to_ascii_uppercase() } else { byte })
    }

    fn bits(&self) -> impl Iterator<Item = bool> {
        self.0.iter().flat_map(|octet| (0..8).map(move |bit| octet >> bit & 1 == 1))
    }
}

impl Question {
    /// The message that asks this: a header, the question, OPT. Nothing that a client sent but name and type
    /// can be in it.
    pub(crate) fn to_wire(&self, id: u16, edns: Edns, case: &LetterCase) -> Vec<u8> {
        let with_opt = edns == Edns::With;
        let mut wire = Vec::with_capacity(12 + self.name.as_str().len() + 6 + 11);
        wire.extend(id.to_be_bytes());
        // QUERY with recursion desired; one question, nothing else but perhaps OPT.
        wire.extend([0x01, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(with_opt)]);
        let mut letters = case.of(&self.name);
        for label in labels(&self.name) {
            wire.push(u8::try_from(label.len()).unwrap_or(0));
            if *case == LetterCase::PLAIN {
                wire.extend_from_slice(label);
            } else {
                wire.extend(letters.by_ref().take(label.len()));
            }
        }
        wire.push(0);
        wire.extend(self.record_type.to_be_bytes());
        wire.extend([0, 1]);
        if with_opt {
            let [high, low] = UDP_PAYLOAD.to_be_bytes();
            wire.extend([0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]);
        }
        wire
    }

    /// Whether a message answers this question as asked with `id`: its id, and its one question, in any
    /// letter case (RFC 5452 §9.1). An upstream that rejects the format need not repeat the question.
    pub(crate) fn is_answered_by(&self, id: u16, message: &Message) -> bool {
        let head = &message.metadata;
        if head.id != id || head.message_type != MessageType::Response || head.op_code != OpCode::Query {
            return false;
        }
        match message.queries.as_slice() {
            [] => matches_rejection(head.response_code),
            [query] => {
                query.query_class() == DNSClass::IN
                    && u16::from(query.query_type()) == self.record_type
                    && is_name(query.name(), &self.name)
            }
            _ => false,
        }
    }

    /// Whether a message that answers this question repeats the letter case in which it was asked. One that
    /// repeats no question has nothing to tell but that it was not understood.
    pub(crate) fn is_repeated_in(&self, case: &LetterCase, message: &Message) -> bool {
        message
            .queries
            .iter()
            .all(|query| query.name().iter().flat_map(|label| label.iter().copied()).eq(case.of(&self.name)))
    }
}

fn matches_rejection(code: ResponseCode) -> bool {
    code == ResponseCode::FormErr || code == ResponseCode::NotImp
}

/// Whether two forms of a name are the same name.
fn is_name(wire: &Name, name: &DomainName) -> bool {
    let mut labels = labels(name);
    wire.iter().all(|label| labels.next().is_some_and(|own| own.eq_ignore_ascii_case(label)))
        && labels.next().is_none()
}

/// Not by [`DomainName::labels`]: its search is made for long texts.
fn labels(name: &DomainName) -> impl Iterator<Item = &[u8]> {
    name.as_str().as_bytes().split(|byte| *byte == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use hickory_proto::rr::RecordType;

    fn question(name: &str) -> Question {
        Question { name: DomainName::parse(name).unwrap(), record_type: 1 }
    }

    #[test]
    fn a_query_is_these_bytes_and_no_others() {
        let wire = question("Ab.example").to_wire(0x1234, Edns::With, &LetterCase::PLAIN);
        let mut expected = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 1];
        expected.extend(b"\x02ab\x07example\x00\x00\x01\x00\x01");
        expected.extend(b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00");
        assert_eq!(wire, expected);

        let plain = question("Ab.example").to_wire(0x1234, Edns::Without, &LetterCase::PLAIN);
        assert_eq!(plain[11], 0, "no additional record");
        assert_eq!(plain.len(), expected.len() - 11);
    }

    #[test]
    fn the_longest_name_is_asked_as_hickory_reads_it() {
        let label = "a".repeat(63);
        let name = format!("{label}.{label}.{label}.{}", "b".repeat(61));
        let message =
            Message::from_vec(&question(&name).to_wire(7, Edns::With, &LetterCase([0xff; 32]))).unwrap();
        assert_eq!(message.queries[0].name().to_ascii(), format!("{}.", name.to_uppercase()));
        assert_eq!(message.edns.as_ref().map(|edns| edns.max_payload()), Some(1232));
    }

    #[test]
    fn a_letter_case_is_repeated_letter_by_letter_or_not_at_all() {
        let asked = question("a-b1.example");
        // Bits for `a-b1` and `example`.
        let mut bits = [0; 32];
        bits[..2].copy_from_slice(&[0b0101_0101, 0b0000_0101]);
        let case = LetterCase(bits);
        let message = Message::from_vec(&asked.to_wire(7, Edns::With, &case)).unwrap();
        assert_eq!(message.queries[0].name().to_ascii(), "A-B1.ExAmPlE.");
        for (name, repeated) in [
            ("A-B1.ExAmPlE.", true),
            ("A-B1.ExAmPle.", false),
            ("a-b1.example.", false),
            ("A-B1.ExAmPl.", false),
        ] {
            let mut message = Message::new(7, MessageType::Response, OpCode::Query);
            message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
            assert_eq!(asked.is_repeated_in(&case, &message), repeated, "{name}");
        }
        let random: std::collections::HashSet<[u8; 32]> = (0..32).map(|_| LetterCase::random().0).collect();
        assert_eq!(random.len(), 32);
    }

    #[test]
    fn only_the_same_id_and_the_same_one_question_answer() {
        let asked = question("a.example");
        let reply = |edit: &dyn Fn(&mut Message)| {
            let mut message = Message::new(7, MessageType::Response, OpCode::Query);
            message.add_query(Query::query(Name::from_ascii("a.example.").unwrap(), RecordType::A));
            edit(&mut message);
            asked.is_answered_by(7, &message)
        };
        let named = |name: &str| Query::query(Name::from_ascii(name).unwrap(), RecordType::A);
        assert!(reply(&|_| ()));
        assert!(reply(&|m| m.queries = vec![named("A.Example.")]), "letter case may differ");
        assert!(reply(&|m| {
            m.queries.clear();
            m.metadata.response_code = ResponseCode::FormErr;
        }));
        assert!(!reply(&|m| m.metadata.id = 8), "another id");
        assert!(!reply(&|m| m.metadata.message_type = MessageType::Query), "not a response");
        assert!(!reply(&|m| m.metadata.op_code = OpCode::Notify), "another opcode");
        assert!(!reply(&|m| m.queries.clear()), "no question");
        assert!(!reply(&|m| m.queries = vec![named("b.example.")]), "another name");
        assert!(!reply(&|m| m.queries = vec![named("example.")]), "an ancestor");
        assert!(!reply(&|m| m.queries = vec![named("x.a.example.")]), "a descendant");
        assert!(!reply(&|m| m.queries = vec![named("a.example."), named("a.example.")]), "twice");
        assert!(!reply(&|m| _ = m.queries[0].set_query_type(RecordType::AAAA)), "another type");
        assert!(!reply(&|m| _ = m.queries[0].set_query_class(DNSClass::CH)), "another class");
    }
}
