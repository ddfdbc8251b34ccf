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

impl Question {
    /// The message that asks this: a header, the question, OPT. Nothing that a client sent but name and type
    /// can be in it.
    pub(crate) fn to_wire(&self, id: u16, edns: Edns) -> Vec<u8> {
        let with_opt = edns == Edns::With;
        let mut wire = Vec::with_capacity(12 + self.name.as_str().len() + 6 + 11);
        wire.extend(id.to_be_bytes());
        // QUERY with recursion desired; one question, nothing else but perhaps OPT.
        wire.extend([0x01, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(with_opt)]);
        for label in self.name.labels() {
            wire.push(u8::try_from(label.len()).unwrap_or(0));
            wire.extend(label.as_bytes());
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
}

fn matches_rejection(code: ResponseCode) -> bool {
    code == ResponseCode::FormErr || code == ResponseCode::NotImp
}

/// Whether two forms of a name are the same name.
fn is_name(wire: &Name, name: &DomainName) -> bool {
    let mut labels = name.labels();
    wire.iter().all(|label| labels.next().is_some_and(|own| own.as_bytes().eq_ignore_ascii_case(label)))
        && labels.next().is_none()
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
        let wire = question("Ab.example").to_wire(0x1234, Edns::With);
        let mut expected = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 1];
        expected.extend(b"\x02ab\x07example\x00\x00\x01\x00\x01");
        expected.extend(b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00");
        assert_eq!(wire, expected);

        let plain = question("Ab.example").to_wire(0x1234, Edns::Without);
        assert_eq!(plain[11], 0, "no additional record");
        assert_eq!(plain.len(), expected.len() - 11);
    }

    #[test]
    fn the_longest_name_is_asked_as_hickory_reads_it() {
        let label = "a".repeat(63);
        let name = format!("{label}.{label}.{label}.{}", "b".repeat(61));
        let message = Message::from_vec(&question(&name).to_wire(7, Edns::With)).unwrap();
        assert_eq!(message.queries[0].name().to_ascii(), format!("{name}."));
        assert_eq!(message.edns.as_ref().map(|edns| edns.max_payload()), Some(1232));
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
