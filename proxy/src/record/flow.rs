//! The records of flows, put together here and not by a serializer.
//!
//! What it buys: by `serde_json` the two records of a tunnel took 20,900 instructions. What a record has in common with
//! the one before is put into words once. What others wrote goes through the serializer wherever it needs an escape.

use std::cell::RefCell;
use std::io::{self, Write};
use std::time::Duration;

use jiff::Timestamp;
use outgate_rules::{Enforcement, Host, Reason, Revision, RuleRef};

use super::dns::{RuleKey, Worded, put, put_address, put_number};
use super::{Asked, Closed, Decided, Excerpt, Flow, RuleEntry, SCHEMA, Verdict, write_value};
use crate::session::Session;

thread_local! {
    static PEN: RefCell<Pen> = RefCell::default();
}

impl Decided<'_> {
    /// Appends the record: one line of ASCII with its line feed.
    ///
    /// # Errors
    /// None that a vector can cause; the signature is the serializer's.
    pub fn write_line(&self, line: &mut Vec<u8>) -> io::Result<()> {
        let judgement = Judgement {
            verdict: self.verdict(),
            enforcement: self.enforcement,
            reason: self.reason,
            rule: self.rule,
            revision: self.revision,
        };
        PEN.with_borrow_mut(|pen| pen.common(self.time, "decision", self.flow, &judgement, line))?;
        put(line, ["}\n"]);
        Ok(())
    }
}

impl Closed<'_> {
    /// Appends the record: one line of ASCII with its line feed.
    ///
    /// # Errors
    /// None that a vector can cause; the signature is the serializer's.
    pub fn write_line(&self, line: &mut Vec<u8>) -> io::Result<()> {
        let judgement = Judgement {
            verdict: self.verdict,
            enforcement: self.enforcement,
            reason: self.reason,
            rule: self.rule,
            revision: self.revision,
        };
        PEN.with_borrow_mut(|pen| pen.common(self.time, "close", self.flow, &judgement, line))?;
        if let Some(dialled) = self.dialled {
            put(line, [r#","address":""#]);
            put_address(dialled.ip(), line)?;
            number(r#"","address_port":"#, dialled.port().into(), line);
        }
        number(r#","bytes_up":"#, self.bytes_up, line);
        number(r#","bytes_down":"#, self.bytes_down, line);
        number(r#","duration_ms":"#, milliseconds(self.duration), line);
        put(line, [r#","ended_by":""#, self.ended_by.name(), "\""]);
        if let Some(status) = self.status {
            number(r#","status":"#, status.into(), line);
        }
        put(line, ["}\n"]);
        Ok(())
    }
}

/// The verdict and where it came from.
struct Judgement<'a> {
    verdict: Verdict,
    enforcement: Enforcement,
    reason: Reason,
    rule: Option<&'a RuleRef>,
    revision: Option<Revision>,
}

/// What was put into words last.
#[derive(Debug, Default)]
struct Pen {
    /// By the second.
    time: Worded<i64>,
    judgement: Worded<(Judged, Option<RuleKey>)>,
    rule: Worded<RuleKey>,
}

/// What of a judgement is told by its value.
type Judged = (Verdict, Enforcement, Reason, Option<Revision>);

impl Pen {
    fn common(
        &mut self,
        time: Timestamp,
        event: &str,
        flow: &Flow,
        judgement: &Judgement<'_>,
        line: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.time(time, line)?;
        put(line, [r#","event":""#, event, r#"","kind":""#, flow.kind.name(), r#"","session":""#]);
        identity(flow, line)?;
        self.judgement(judgement, line)
    }

    fn time(&mut self, time: Timestamp, line: &mut Vec<u8>) -> io::Result<()> {
        let second = time.as_second();
        if time.subsec_nanosecond() < 0 {
            // Before 1970.
            return write!(line, r#"{{"v":{SCHEMA},"time":"{time:.6}""#);
        }
        self.time.put(
            line,
            |key| *key == second,
            || second,
            |text| {
                write!(text, r#"{{"v":{SCHEMA},"time":"{time:.0}"#)?;
                // Its `Z` comes behind the fraction.
                text.pop();
                Ok(())
            },
        )?;
        let mut digits = *b".000000Z\"";
        let mut rest = time.subsec_microsecond();
        for digit in digits.iter_mut().skip(1).take(6).rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        line.extend_from_slice(&digits);
        Ok(())
    }

    fn judgement(&mut self, judgement: &Judgement<'_>, line: &mut Vec<u8>) -> io::Result<()> {
        let Judgement { verdict, enforcement, reason, rule, revision } = *judgement;
        let judged = (verdict, enforcement, reason, revision);
        let same = |(last, key): &(Judged, Option<RuleKey>)| {
            *last == judged && RuleKey::is_of_any(key.as_ref(), rule)
        };
        let word = |text: &mut Vec<u8>| {
            put(text, [r#","verdict":""#, verdict.name(), r#"","mode":""#, enforcement.name()]);
            put(text, [r#"","reason":""#, reason.code(), "\""]);
            if let Some(rule) = rule {
                let word = |text: &mut Vec<u8>| {
                    text.extend_from_slice(br#","rule":"#);
                    write_value(&RuleEntry(rule), text)
                };
                self.rule.put(text, |key| key.is_of(rule), || RuleKey::of(rule), word)?;
            }
            revision.map_or(Ok(()), |revision| write!(text, r#","revision":"{revision}""#))
        };
        self.judgement.put(line, same, || (judged, rule.map(RuleKey::of)), word)
    }
}

/// What identifies a flow, from the session's identity on.
fn identity(flow: &Flow, line: &mut Vec<u8>) -> io::Result<()> {
    let Session { id, client, listener, original, .. } = &flow.session;
    id.put(line);
    put(line, ["\""]);
    if let Some(exchange) = flow.exchange {
        number(r#","exchange":"#, exchange, line);
    }
    put(line, [r#","listener":""#, listener.name(), r#"","client":""#]);
    put_address(client.ip(), line)?;
    number(r#"","client_port":"#, client.port().into(), line);
    if let Some(original) = original {
        put(line, [r#","original":""#]);
        put_address(original.ip(), line)?;
        number(r#"","original_port":"#, original.port().into(), line);
    }
    match &flow.asked {
        Asked::Destination(destination) => {
            host(&destination.host, line)?;
            number(r#"","port":"#, destination.port.number().into(), line);
        }
        Asked::Text(asked) => text(r#","asked":"#, asked.as_str(), line)?,
        Asked::Nothing => {}
    }
    put(line, [r#","protocol":""#, flow.protocol.name(), "\""]);
    if let Some(request) = &flow.request {
        text(r#","method":"#, request.method.as_str(), line)?;
        text(r#","path":"#, request.path.as_str(), line)?;
    }
    if let Some(hello) = &flow.hello {
        if let Some(sni) = hello.sni.as_ref().map(Excerpt::as_str) {
            text(r#","sni":"#, sni, line)?;
        }
        if hello.ech {
            put(line, [r#","ech":true"#]);
        }
    }
    Ok(())
}

/// The host as programs compare it, without its closing quote: an IPv6 address without its brackets, as in the
/// record's other fields. A name's letters need no escape.
fn host(host: &Host, line: &mut Vec<u8>) -> io::Result<()> {
    put(line, [r#","host":""#]);
    match host {
        Host::Name(name) => put(line, [name.as_str()]),
        Host::Address(address) => put_address(*address, line)?,
    }
    Ok(())
}

/// A field of text that others may have written.
fn text(key: &str, value: &str, line: &mut Vec<u8>) -> io::Result<()> {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    // All of it: without a way out there is no branch for each byte.
    if value.bytes().fold(true, |plain, byte| plain & is_plain(byte)) {
        put(line, [key, "\"", value, "\""]);
        return Ok(());
    }
    put(line, [key]);
    write_value(value, line)
}

fn number(key: &str, value: u64, line: &mut Vec<u8>) {
    put(line, [key]);
    put_number(value, line);
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_worded_as_the_clock_words_it() {
        let mut pen = Pen::default();
        for nanosecond in [0, 999, 1_000, 120_000_000, 999_999_999] {
            for second in [-1, 0, 1, 1_795_225_323, 253_402_207_199] {
                let time = Timestamp::new(second, nanosecond).unwrap();
                for _ in 0..2 {
                    let mut line = Vec::new();
                    pen.time(time, &mut line).unwrap();
                    let wanted = format!(r#"{{"v":1,"time":"{time:.6}""#);
                    assert_eq!(String::from_utf8(line).unwrap(), wanted);
                }
            }
        }
    }
}
