//! The record of a lookup. A lookup is decided and over at once: it has one record.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use outgate_dns::AnsweredBy;
use outgate_dns::event::{Answered, AskedName};
use outgate_rules::{Enforcement, Reason};
use serde::ser::{Serialize, Serializer};

use super::{MAX_ASKED, RuleEntry, SCHEMA, Verdict, cut, write_value};

/// A lookup of a client, as it is put on record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lookup<'a>(pub(crate) &'a Answered);

impl Lookup<'_> {
    /// The verdict.
    pub(crate) fn verdict(&self) -> Verdict {
        Verdict::of(self.0.reason)
    }

    /// Who gave the answer, in the word that records and metrics use.
    pub(crate) fn answered_by(&self) -> &'static str {
        match self.0.from {
            Some(AnsweredBy::Fixed) => "fixed",
            Some(AnsweredBy::Cache) => "cache",
            Some(AnsweredBy::Stale) => "stale",
            Some(AnsweredBy::Upstream(_)) => "upstream",
            Some(AnsweredBy::Nobody) => "nobody",
            None => "gate",
        }
    }

    /// What a person at a terminal reads of a denial.
    pub(crate) fn denial(&self) -> Option<String> {
        let event = self.0;
        let denied = match (self.verdict(), event.enforcement) {
            (Verdict::Allow, _) => return None,
            (Verdict::Deny, Enforcement::Enforce) => "denied",
            (Verdict::Deny, Enforcement::Report) => "would deny",
        };
        let (client, why) = (event.client.ip(), event.reason.sentence());
        Some(match &event.question {
            Some(asked) => format!("{denied} {client} -> {} {}: {why}", asked.name, asked.type_name()),
            None => format!("{denied} {client} -> a lookup: {why}"),
        })
    }

    fn upstream(&self) -> Option<SocketAddr> {
        match self.0.from {
            Some(AnsweredBy::Upstream(upstream)) => Some(upstream),
            Some(AnsweredBy::Fixed | AnsweredBy::Cache | AnsweredBy::Stale | AnsweredBy::Nobody) | None => {
                None
            }
        }
    }
}

impl Lookup<'_> {
    /// Appends the record: one line of ASCII with its line feed. There may be some 100,000 a second, so it is
    /// put together here and not by a serializer; what others wrote goes through the one that the other records
    /// go through.
    ///
    /// # Errors
    /// None that a vector can cause; the signature is the writer's.
    pub(crate) fn write_line(&self, line: &mut Vec<u8>) -> io::Result<()> {
        let event = self.0;
        write!(line, r#"{{"v":{SCHEMA},"time":"{:.6}","event":"decision","kind":"dns""#, event.time)?;
        let (ip, port, transport) = (event.client.ip(), event.client.port(), event.transport.name());
        write!(line, r#","listener":"dns","client":"{ip}","client_port":{port},"transport":"{transport}""#)?;
        if let Some(asked) = &event.question {
            match &asked.name {
                // A name's letters need no escape.
                AskedName::Host(name) => write!(line, r#","host":"{name}""#)?,
                AskedName::Other(name) => text(line, "asked", cut(name, MAX_ASKED))?,
            }
            write!(line, r#","type":"{}""#, asked.type_name())?;
        }
        let (verdict, mode) = (self.verdict().name(), event.enforcement.name());
        write!(line, r#","verdict":"{verdict}","mode":"{mode}","reason":"{}""#, event.reason.code())?;
        if let Some(rule) = &event.rule {
            line.extend_from_slice(br#","rule":"#);
            write_value(&RuleEntry(rule), line)?;
        }
        write!(line, r#","revision":"{}","rcode":"{}","addresses":["#, event.revision, event.rcode_name())?;
        for (index, address) in event.addresses.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(line, r#"{comma}"{address}""#)?;
        }
        line.push(b']');
        if !event.withheld.is_empty() {
            line.extend_from_slice(br#","withheld":"#);
            write_value(&Withheld(&event.withheld), line)?;
        }
        write!(line, r#","answered_by":"{}""#, self.answered_by())?;
        if let Some(upstream) = self.upstream() {
            write!(line, r#","upstream":"{upstream}""#)?;
        }
        writeln!(line, r#","duration_us":{}}}"#, event.took.as_micros())
    }
}

/// A field whose text somebody else wrote.
fn text(line: &mut Vec<u8>, key: &str, text: &str) -> io::Result<()> {
    write!(line, r#","{key}":"#)?;
    write_value(text, line)
}

/// Addresses that were taken out of an answer: each with the reason.
struct Withheld<'a>(&'a [(IpAddr, Reason)]);

impl Serialize for Withheld<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let entries = self.0.iter().map(|(address, reason)| (address, reason.code()));
        serializer.collect_map(entries)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use outgate_dns::event::{Asked, Transport};
    use outgate_rules::{DomainName, Revision};

    use super::*;
    use crate::record::tests::time;

    pub(crate) fn answered(reason: Reason) -> Answered {
        let name = AskedName::Host(DomainName::parse("pypi.org").unwrap());
        Answered {
            time: time(),
            client: "10.1.0.4:40000".parse().unwrap(),
            transport: Transport::Udp,
            question: Some(Asked { name, record_type: 1 }),
            rcode: 0.into(),
            addresses: ["151.101.0.223".parse().unwrap()].into_iter().collect(),
            withheld: Vec::new(),
            from: Some(AnsweredBy::Upstream("10.0.0.5:53".parse().unwrap())),
            took: Duration::from_micros(1500),
            reason,
            rule: None,
            enforcement: Enforcement::Enforce,
            revision: Revision::new([1; 6]),
        }
    }

    fn record(event: &Answered) -> String {
        let mut line = Vec::new();
        Lookup(event).write_line(&mut line).unwrap();
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_lookup_is_one_record_with_question_answer_and_where_it_came_from() {
        let record = record(&answered(Reason::InternetMode));
        let (_, rest) = record.split_once(r#""event""#).unwrap();
        assert_eq!(
            rest,
            concat!(
                r#":"decision","kind":"dns","listener":"dns","client":"10.1.0.4","client_port":40000,"#,
                r#""transport":"udp","host":"pypi.org","type":"A","verdict":"allow","mode":"enforce","#,
                r#""reason":"internet-mode","revision":"010101010101","rcode":"NOERROR","#,
                r#""addresses":["151.101.0.223"],"answered_by":"upstream","upstream":"10.0.0.5:53","#,
                r#""duration_us":1500}"#,
                "\n"
            )
        );
    }

    #[test]
    fn what_was_withheld_and_what_is_no_host_name_is_on_record_in_ascii() {
        let name = AskedName::Other("a\\.b\u{202e}.example".into());
        let event = Answered {
            question: Some(Asked { name, record_type: 65280 }),
            rcode: 3.into(),
            addresses: smallvec::SmallVec::new(),
            withheld: vec![("10.0.0.1".parse().unwrap(), Reason::AddressPrivate)],
            from: None,
            ..answered(Reason::AddressPrivate)
        };
        let record = record(&event);
        assert!(record.is_ascii());
        assert!(serde_json::from_str::<serde_json::Value>(&record).unwrap().is_object());
        for part in [
            r#""asked":"a\\.b\u202e.example","type":"TYPE65280""#,
            r#""rcode":"NXDOMAIN","addresses":[],"withheld":{"10.0.0.1":"address-private"},"answered_by":"gate""#,
        ] {
            assert!(record.contains(part), "{record}");
        }
    }

    #[test]
    fn a_denied_lookup_is_one_line_on_the_terminal_and_an_allowed_one_none() {
        assert_eq!(Lookup(&answered(Reason::Rule)).denial(), None);
        let denied = answered(Reason::NoRule);
        let told = Lookup(&denied).denial().unwrap();
        assert_eq!(told, "denied 10.1.0.4 -> pypi.org A: no rule allows it");
    }
}
