//! What the tests of this crate share: records as text, and permits.

use std::sync::Arc;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record};
use jiff::Timestamp;
use outgate_rules::{
    Destination, DomainName, Host, LookupPermit, Permit, Port, Protocol, Request, RuleSet, policy,
};

use crate::question::Question;

pub(crate) fn name(text: &str) -> DomainName {
    DomainName::parse(text).unwrap()
}

pub(crate) fn question(text: &str, record_type: u16) -> Question {
    Question { name: name(text), record_type }
}

/// A record from a line such as `a.example 60 A 192.0.2.1`.
pub(crate) fn record(line: &str) -> Record {
    let mut words = line.splitn(4, ' ');
    let mut word = || words.next().unwrap_or_else(|| panic!("{line}: too few words"));
    let (owner, ttl, kind, data) = (word(), word(), word(), word());
    let data = RData::try_from_str(kind.parse().unwrap(), data).unwrap_or_else(|e| panic!("{line}: {e}"));
    let owner = Name::from_ascii(format!("{}.", owner.trim_end_matches('.'))).unwrap();
    Record::from_rdata(owner, ttl.parse().unwrap(), data)
}

/// A response to `question`, with answers and, after a line `--`, authorities.
pub(crate) fn response(question: &Question, code: ResponseCode, lines: &[&str]) -> Message {
    let mut message = Message::new(0, MessageType::Response, OpCode::Query);
    message.metadata.response_code = code;
    let asked = Name::from_ascii(format!("{}.", question.name)).unwrap();
    message.add_query(Query::query(asked, question.record_type.into()));
    let mut sections = lines.split(|line| *line == "--");
    message.add_answers(sections.next().into_iter().flatten().map(|line| record(line)));
    message.add_authorities(sections.next().into_iter().flatten().map(|line| record(line)));
    message
}

/// The records as lines, in the form that [`record`] reads.
pub(crate) fn lines(records: &[Record]) -> Vec<String> {
    let line = |record: &Record| {
        let (owner, kind) = (record.name.to_ascii(), record.record_type());
        format!("{} {} {kind} {}", owner.trim_end_matches('.'), record.ttl, record.data)
    };
    records.iter().map(line).collect()
}

pub(crate) fn rules(policy: &str) -> Arc<RuleSet> {
    let source = policy::Source { name: "policy.yaml".to_owned(), bytes: policy.as_bytes().to_vec() };
    let compiled =
        policy::compile(&[source], &mut |_| Err("no such file".to_owned()), None, Timestamp::UNIX_EPOCH);
    Arc::new(compiled.unwrap_or_else(|diagnostics| panic!("{diagnostics}")).rules)
}

/// The permit to look `asked` up under a policy that allows it.
pub(crate) fn lookup_permit(policy: &str, asked: &str) -> LookupPermit {
    let decision = rules(policy).decide_lookup([10, 0, 0, 1].into(), &name(asked), Timestamp::UNIX_EPOCH);
    decision.into_permit().unwrap_or_else(|denial| panic!("{asked}: {}", denial.reason.sentence()))
}

/// The permit to dial `asked` on port 443 under a policy that allows it.
pub(crate) fn dial_permit(policy: &str, asked: &str) -> Permit {
    let destination = Destination { host: Host::Name(name(asked)), port: Port::parse("443").unwrap() };
    let request =
        Request { client: [10, 0, 0, 1].into(), destination: &destination, protocol: Protocol::Tcp };
    rules(policy).decide(&request, Timestamp::UNIX_EPOCH).into_permit().unwrap()
}
