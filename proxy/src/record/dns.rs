//! The record of a lookup. A lookup is decided and over at once: it has one record.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use outgate_dns::AnsweredBy;
use outgate_dns::event::{Answered, Asked, AskedName, Transport};
use outgate_rules::{Enforcement, Reason, Revision, RuleRef};
use serde::ser::{Serialize, Serializer};

use super::{MAX_ASKED, RuleEntry, SCHEMA, Verdict, cut, write_value};

/// A lookup of a client, as it is put on record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lookup<'a>(pub(crate) &'a Answered);

/// What lookups are counted by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LookupLabels {
    pub(crate) reason: Reason,
    pub(crate) transport: Transport,
    pub(crate) answered_by: &'static str,
}

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

    /// How it is counted.
    pub(crate) fn labels(&self) -> LookupLabels {
        let Answered { reason, transport, .. } = *self.0;
        LookupLabels { reason, transport, answered_by: self.answered_by() }
    }

    /// How long upstreams took, if they were asked.
    pub(crate) fn resolved_in(&self) -> Option<Duration> {
        match self.0.from {
            Some(AnsweredBy::Upstream(_) | AnsweredBy::Nobody) => Some(self.0.took),
            Some(AnsweredBy::Fixed | AnsweredBy::Cache | AnsweredBy::Stale) | None => None,
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

/// Bytes of what a usual record has behind the client's port.
const USUAL_REST: usize = 384;

/// Writes the records of lookups. There may be some 100,000 a second, so a record is put together here and not by a
/// serializer, and what it has in common with the one before is put into words once: a record takes 740 instructions,
/// 410 where the same is answered again, and took 0.4 µs by `write!`. What others wrote goes through the serializer
/// that the other records go through.
#[derive(Debug, Default)]
pub(crate) struct Pen {
    time: Worded<Timestamp>,
    client: Worded<IpAddr>,
    judgement: Worded<Judgement>,
    upstream: Worded<SocketAddr>,
}

impl Pen {
    /// Appends the record: one line of ASCII with its line feed.
    ///
    /// # Errors
    /// None that a vector can cause; the signature is the serializer's.
    pub(crate) fn write_line(&mut self, lookup: &Lookup<'_>, line: &mut Vec<u8>) -> io::Result<()> {
        self.begin(lookup.0, line);
        self.rest(lookup, line)?;
        end(lookup.0, line);
        Ok(())
    }

    /// As [`Pen::write_line`], of an event that differs in time, port and duration alone from the one that `said` was
    /// left by. That is empty at first.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn write_line_again(
        &mut self,
        lookup: &Lookup<'_>,
        said: &mut Vec<u8>,
        line: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.begin(lookup.0, line);
        if said.is_empty() {
            said.reserve(USUAL_REST);
            self.rest(lookup, said)?;
        }
        line.extend_from_slice(said);
        end(lookup.0, line);
        Ok(())
    }

    /// What no other time, port or duration changes.
    fn rest(&mut self, lookup: &Lookup<'_>, line: &mut Vec<u8>) -> io::Result<()> {
        let event = lookup.0;
        put(line, [r#","transport":""#, event.transport.name(), "\""]);
        if let Some(asked) = &event.question {
            question(asked, line)?;
        }
        let same = |key: &Judgement| key.is_of(event);
        self.judgement.put(line, same, || Judgement::of(event), |text| judgement(lookup, text))?;
        for (index, address) in event.addresses.iter().enumerate() {
            put(line, [if index == 0 { "\"" } else { ",\"" }]);
            put_address(*address, line)?;
            line.push(b'"');
        }
        line.push(b']');
        if !event.withheld.is_empty() {
            line.extend_from_slice(br#","withheld":"#);
            write_value(&Withheld(&event.withheld), line)?;
        }
        put(line, [r#","answered_by":""#, lookup.answered_by(), "\""]);
        if let Some(upstream) = lookup.upstream() {
            let word = |text: &mut Vec<u8>| write!(text, r#","upstream":"{upstream}""#);
            self.upstream.put(line, |key| *key == upstream, || upstream, word)?;
        }
        put(line, [r#","duration_us":"#]);
        Ok(())
    }

    fn begin(&mut self, event: &Answered, line: &mut Vec<u8>) {
        let (time, client) = (event.time, event.client.ip());
        // A vector takes everything.
        _ = self.time.put(
            line,
            |key| *key == time,
            || time,
            |text| write!(text, r#"{{"v":{SCHEMA},"time":"{time:.6}","event":"decision","kind":"dns","#),
        );
        _ = self.client.put(
            line,
            |key| *key == client,
            || client,
            |text| write!(text, r#""listener":"dns","client":"{client}","client_port":"#),
        );
        put_number(event.client.port().into(), line);
    }
}

fn end(event: &Answered, line: &mut Vec<u8>) {
    put_number(u64::try_from(event.took.as_micros()).unwrap_or(u64::MAX), line);
    put(line, ["}\n"]);
}

/// What was decided, and the response code: most lookups have it in common with the one before.
#[derive(Debug)]
struct Judgement {
    reason: Reason,
    enforcement: Enforcement,
    rule: Option<RuleKey>,
    revision: Revision,
    rcode: &'static str,
}

impl Judgement {
    fn of(event: &Answered) -> Self {
        let Answered { reason, enforcement, revision, .. } = *event;
        let rule = event.rule.as_ref().map(RuleKey::of);
        Self { reason, enforcement, rule, revision, rcode: event.rcode_name() }
    }

    fn is_of(&self, event: &Answered) -> bool {
        RuleKey::is_of_any(self.rule.as_ref(), event.rule.as_ref())
            && (self.reason, self.enforcement) == (event.reason, event.enforcement)
            && (self.revision, self.rcode) == (event.revision, event.rcode_name())
    }
}

fn judgement(lookup: &Lookup<'_>, text: &mut Vec<u8>) -> io::Result<()> {
    let event = lookup.0;
    put(text, [r#","verdict":""#, lookup.verdict().name(), r#"","mode":""#, event.enforcement.name()]);
    put(text, [r#"","reason":""#, event.reason.code(), "\""]);
    if let Some(rule) = &event.rule {
        text.extend_from_slice(br#","rule":"#);
        write_value(&RuleEntry(rule), text)?;
    }
    write!(text, r#","revision":"{}","rcode":"{}","addresses":["#, event.revision, event.rcode_name())
}

/// The text that was written last in one place of the line, and what it was about.
#[derive(Debug)]
pub(super) struct Worded<K> {
    about: Option<K>,
    text: Vec<u8>,
}

impl<K> Default for Worded<K> {
    fn default() -> Self {
        Self { about: None, text: Vec::new() }
    }
}

impl<K> Worded<K> {
    /// Appends the text about what `key` gives, which `word` makes where the last one was about something else.
    pub(super) fn put(
        &mut self,
        line: &mut Vec<u8>,
        same: impl FnOnce(&K) -> bool,
        key: impl FnOnce() -> K,
        word: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        if !self.about.as_ref().is_some_and(same) {
            self.about = None;
            self.text.clear();
            word(&mut self.text)?;
            self.about = Some(key());
        }
        line.extend_from_slice(&self.text);
        Ok(())
    }
}

/// What tells rules apart without keeping a rule set alive.
#[derive(Debug)]
pub(super) struct RuleKey {
    name: Arc<str>,
    file: Arc<str>,
    line: u32,
}

impl RuleKey {
    pub(super) fn of(rule: &RuleRef) -> Self {
        Self { name: Arc::clone(&rule.name), file: Arc::clone(&rule.place.file), line: rule.place.line }
    }

    /// Whether both are there and of one rule, or neither is there.
    pub(super) fn is_of_any(key: Option<&Self>, rule: Option<&RuleRef>) -> bool {
        match (key, rule) {
            (Some(key), Some(rule)) => key.is_of(rule),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    pub(super) fn is_of(&self, rule: &RuleRef) -> bool {
        self.line == rule.place.line
            && Arc::ptr_eq(&self.name, &rule.name)
            && Arc::ptr_eq(&self.file, &rule.place.file)
    }
}

fn question(asked: &Asked, line: &mut Vec<u8>) -> io::Result<()> {
    match &asked.name {
        // A name's letters need no escape.
        AskedName::Host(name) => put(line, [r#","host":""#, name.as_str(), "\""]),
        AskedName::Other(name) => {
            put(line, [r#","asked":"#]);
            write_value(cut(name, MAX_ASKED), line)?;
        }
    }
    put(line, [r#","type":""#, &asked.type_name(), "\""]);
    Ok(())
}

pub(super) fn put<const N: usize>(line: &mut Vec<u8>, texts: [&str; N]) {
    texts.iter().for_each(|text| line.extend_from_slice(text.as_bytes()));
}

pub(super) fn put_address(address: IpAddr, line: &mut Vec<u8>) -> io::Result<()> {
    let IpAddr::V4(address) = address else { return write!(line, "{address}") };
    let mut text = [0; 16];
    let mut end = 0;
    for octet in address.octets() {
        let Some(Octet { digits, length }) = OCTETS.get(usize::from(octet)) else { continue };
        // Four bytes at once, of which the next octet covers what is not this one's.
        text.get_mut(end..).and_then(<[u8]>::first_chunk_mut).into_iter().for_each(|to| *to = *digits);
        end += usize::from(*length);
    }
    line.extend_from_slice(text.get(..end.saturating_sub(1)).unwrap_or_default());
    Ok(())
}

/// An octet's digits with a dot behind them, and how many bytes those are.
#[derive(Clone, Copy)]
struct Octet {
    digits: [u8; 4],
    length: u8,
}

// The compiler sees whether an index is in range.
#[allow(clippy::indexing_slicing)]
static OCTETS: [Octet; 256] = {
    let mut octets = [Octet { digits: [b'.'; 4], length: 0 }; 256];
    let mut octet = 0;
    while octet < octets.len() {
        let number = octet as u8;
        let (hundreds, tens, ones) = (b'0' + number / 100, b'0' + number / 10 % 10, b'0' + number % 10);
        octets[octet] = match number {
            0..=9 => Octet { digits: [ones, b'.', 0, 0], length: 2 },
            10..=99 => Octet { digits: [tens, ones, b'.', 0], length: 3 },
            100..=255 => Octet { digits: [hundreds, tens, ones, b'.'], length: 4 },
        };
        octet += 1;
    }
    octets
};

pub(super) fn put_number(mut number: u64, line: &mut Vec<u8>) {
    // The longest number has 20 digits; the last comes first.
    let mut digits = [0; 20];
    let mut start = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        start = at;
        if number == 0 {
            break;
        }
    }
    line.extend_from_slice(digits.get(start..).unwrap_or_default());
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
    use outgate_rules::DomainName;

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
        Pen::default().write_line(&Lookup(event), &mut line).unwrap();
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
    fn what_a_pen_wrote_before_is_never_in_another_record() {
        let rules = |name: &str| {
            let text = format!("outbound_rules: [{{name: {name}, type: fqdn, destination: a.example}}]");
            let source =
                outgate_rules::policy::Source { name: "p.yaml".to_owned(), bytes: text.into_bytes() };
            let none = &mut |_: &str| Err("no such file".to_owned());
            Arc::new(outgate_rules::policy::compile(&[source], none, None, time()).unwrap().rules)
        };
        let decided = |name: &str| {
            let asked = DomainName::parse("a.example").unwrap();
            rules(name).decide_lookup([10, 1, 0, 4].into(), &asked, time()).rule
        };
        let (one, other) = (decided("one"), decided("other"));
        let events = [
            answered(Reason::NoRule),
            Answered { rule: one.clone(), ..answered(Reason::Rule) },
            Answered { rule: other, ..answered(Reason::Rule) },
            Answered { rule: one, client: "[fd00::9]:7".parse().unwrap(), ..answered(Reason::Rule) },
            Answered { time: Timestamp::UNIX_EPOCH, ..answered(Reason::Rule) },
            Answered { revision: Revision::new([2; 6]), ..answered(Reason::Rule) },
        ];
        let mut pen = Pen::default();
        for event in events.iter().chain(events.iter().rev()) {
            let mut line = Vec::new();
            pen.write_line(&Lookup(event), &mut line).unwrap();
            assert_eq!(String::from_utf8(line).unwrap(), record(event));
        }
    }

    #[test]
    fn a_record_that_is_written_again_is_the_same_but_for_time_port_and_duration() {
        let other_time = Answered {
            time: Timestamp::UNIX_EPOCH,
            client: "10.1.0.4:9".parse().unwrap(),
            took: Duration::ZERO,
            ..answered(Reason::Rule)
        };
        let (mut pen, mut said) = (Pen::default(), Vec::new());
        for event in [&answered(Reason::Rule), &other_time, &answered(Reason::Rule)] {
            let mut line = Vec::new();
            pen.write_line_again(&Lookup(event), &mut said, &mut line).unwrap();
            assert_eq!(String::from_utf8(line).unwrap(), record(event));
        }
    }

    #[test]
    fn numbers_and_addresses_are_written_as_display_writes_them() {
        let written = |put: &dyn Fn(&mut Vec<u8>)| {
            let mut line = b"7".to_vec();
            put(&mut line);
            String::from_utf8(line).unwrap()
        };
        for number in [0, 7, 10, 65_535, u64::MAX] {
            assert_eq!(written(&|line| put_number(number, line)), format!("7{number}"));
        }
        for address in ["0.0.0.0", "10.0.200.255", "2001:db8::1", "::ffff:1.2.3.4"] {
            let put = |line: &mut Vec<u8>| put_address(address.parse().unwrap(), line).unwrap();
            assert_eq!(written(&put), format!("7{address}"));
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
