//! What is put on record: the events, and the JSON of their records as docs/audit.md describes it.
//!
//! A record is one line of ASCII, whatever bytes a client sent: the text fields are bounded here, and what
//! is not printable ASCII is escaped. No record has credentials or a query string in it.

pub(crate) mod dns;
mod flow;
pub(crate) mod network;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use outgate_rules::{Decision, Denial, Destination, Enforcement, Protocol, Reason, Revision, RuleRef};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::ser::Formatter;

use crate::hello::ClientHello;
use crate::session::Session;
pub(crate) use dns::Lookup;
pub use network::IpProtocol;
pub(crate) use network::{Forwarded, ForwardedClosed, Untold};

/// The version of the records' schema: `"v"`. It grows when a field changes its meaning or goes.
const SCHEMA: u8 = 1;
/// Longest text of bad input that a record repeats, in bytes. Enough for the longest name.
const MAX_ASKED: usize = 256;
/// Longest path that a record repeats, in bytes.
const MAX_PATH: usize = 2048;
/// Longest method that a record repeats, in bytes. The longest registered one has 17.
const MAX_METHOD: usize = 32;
/// The most messages of a rejected policy that a record repeats.
const MAX_ERRORS: usize = 10;
/// Longest message of a rejected policy that a record repeats, in bytes.
const MAX_ERROR: usize = 512;

/// What kind of traffic a record is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A tunnel asked for with CONNECT.
    Connect,
    /// One HTTP request.
    Http,
    /// A transparent flow judged by its TLS hello.
    Tls,
    /// A transparent flow judged by its original destination.
    Tcp,
    /// What the kernel passes or refuses by itself.
    Network,
    /// A lookup.
    Dns,
}

impl Kind {
    /// Every kind.
    pub const ALL: &'static [Self] =
        &[Self::Connect, Self::Http, Self::Tls, Self::Tcp, Self::Network, Self::Dns];

    /// The word that records and metrics use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
            Self::Network => "network",
            Self::Dns => "dns",
        }
    }
}

/// Whether something may pass, or passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may not.
    Deny,
}

impl Verdict {
    /// The verdict that a decision for this reason has.
    #[must_use]
    pub const fn of(reason: Reason) -> Self {
        if reason.allows() { Self::Allow } else { Self::Deny }
    }

    /// The word that records and metrics use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// Which side ended a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndedBy {
    /// The client closed or failed.
    Client,
    /// The origin closed or failed.
    Origin,
    /// The gate ended it, for the record's reason.
    Gate,
}

impl EndedBy {
    /// Every side.
    pub const ALL: &'static [Self] = &[Self::Client, Self::Origin, Self::Gate];

    /// The word that records and metrics use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Origin => "origin",
            Self::Gate => "gate",
        }
    }
}

/// What made the gate read its policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// The gate started.
    Start,
    /// A file changed.
    File,
    /// SIGHUP.
    Signal,
    /// `outgate reload`.
    Command,
    /// A rule expired.
    Expiry,
}

impl Trigger {
    /// The word that records use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::File => "file",
            Self::Signal => "signal",
            Self::Command => "command",
            Self::Expiry => "expiry",
        }
    }
}

/// What came of reading the policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReloadResult {
    /// A new revision is in force.
    Applied,
    /// What was read is what is in force.
    Unchanged,
    /// What was read has mistakes; what was in force still is.
    Rejected,
}

impl ReloadResult {
    /// Every result.
    pub const ALL: &'static [Self] = &[Self::Applied, Self::Unchanged, Self::Rejected];

    /// The word that records and metrics use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Rejected => "rejected",
        }
    }
}

/// A flow or request of a session, as both of its records identify it.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The session it belongs to.
    pub session: Session,
    /// What kind it is.
    pub kind: Kind,
    /// Which request of its session it is, from 1; only for [`Kind::Http`].
    pub exchange: Option<u64>,
    /// What the client asked for.
    pub asked: Asked,
    /// The protocol of the flow.
    pub protocol: Protocol,
    /// What an HTTP request says beside its destination.
    pub request: Option<HttpRequest>,
    /// What the client's TLS hello said, where one has been read.
    pub hello: Option<Hello>,
}

/// What a client asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// A destination.
    Destination(Destination),
    /// Something that is none, and why it was rejected says the record's reason.
    Text(Excerpt),
    /// Nothing: the session was refused before the client spoke, or it never did.
    Nothing,
}

impl Asked {
    /// Bad input: a target or a host, bounded to 256 bytes. A query string is cut off, and what stands before
    /// the last `@` is replaced by `***`: it may be a password. Where one cannot be told from the other
    /// nothing is left but `***`.
    #[must_use]
    pub fn text(input: &[u8]) -> Self {
        let text = String::from_utf8_lossy(input);
        let end = text.find(['?', '#']).unwrap_or(text.len());
        let shown = match text.rfind('@') {
            None => text.get(..end).unwrap_or_default().to_owned(),
            Some(at) => format!("***{}", text.get(at..end).unwrap_or_default()),
        };
        Self::Text(Excerpt::new(&shown, MAX_ASKED))
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Destination(destination) => destination.fmt(f),
            Self::Text(text) => text.fmt(f),
            Self::Nothing => f.write_str("(nothing asked)"),
        }
    }
}

/// The parts of an HTTP request that its records repeat.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpRequest {
    method: Excerpt,
    path: Excerpt,
}

impl HttpRequest {
    /// The request line's method and the path of its target. What follows a `?` or `#` is cut off.
    #[must_use]
    pub fn new(method: &str, path: &str) -> Self {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        Self { method: Excerpt::new(method, MAX_METHOD), path: Excerpt::new(path, MAX_PATH) }
    }
}

/// What a TLS hello said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    sni: Option<Excerpt>,
    ech: bool,
}

impl Hello {
    /// What a hello said that was read.
    #[must_use]
    pub fn of(hello: &ClientHello) -> Self {
        let sni = hello.sni.as_ref().map(|name| Excerpt::new(name.as_str(), MAX_ASKED));
        Self { sni, ech: hello.ech }
    }

    /// The server name as sent, which need not be a host name, and whether an Encrypted Client Hello was
    /// offered, real or GREASE.
    #[must_use]
    pub fn new(sni: Option<&[u8]>, ech: bool) -> Self {
        let sni = sni.map(|name| Excerpt::new(&String::from_utf8_lossy(name), MAX_ASKED));
        Self { sni, ech }
    }
}

/// Text that somebody else wrote, cut to a bound.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Excerpt(Box<str>);

impl Excerpt {
    fn new(text: &str, max: usize) -> Self {
        Self(Box::from(cut(text, max)))
    }

    /// The text as sent: it may have control characters in it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// As a person reads it in a terminal: what is not printable ASCII is escaped.
impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_default().fmt(f)
    }
}

/// The longest beginning of at most `max` bytes that does not cut a character.
fn cut(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or_default()
}

/// A decision has fallen on a flow.
#[derive(Clone, Copy, Debug)]
pub struct Decided<'a> {
    /// The flow.
    pub flow: &'a Flow,
    /// When.
    pub time: Timestamp,
    /// Why; the verdict follows from it.
    pub reason: Reason,
    /// The rule that decided, where one did.
    pub rule: Option<&'a RuleRef>,
    /// On a denial for lack of a rule, the allow rule that came nearest. A person is told; no record has it.
    pub nearest: Option<&'a RuleRef>,
    /// Whether the verdict holds or is only recorded.
    pub enforcement: Enforcement,
    /// The revision in force; none where there is none yet.
    pub revision: Option<Revision>,
}

impl<'a> Decided<'a> {
    /// The rules have decided.
    #[must_use]
    pub fn by_rules(flow: &'a Flow, decision: &'a Decision, time: Timestamp) -> Self {
        Self {
            flow,
            time,
            reason: decision.reason,
            rule: decision.rule.as_ref(),
            nearest: decision.nearest.as_ref(),
            enforcement: decision.enforcement,
            revision: Some(decision.revision),
        }
    }

    /// The gate has rejected bad input, or is at a limit: that holds in report mode too.
    #[must_use]
    pub fn by_gate(flow: &'a Flow, reason: Reason, revision: Option<Revision>, time: Timestamp) -> Self {
        let enforcement = Enforcement::Enforce;
        Self { flow, time, reason, rule: None, nearest: None, enforcement, revision }
    }

    /// The verdict.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        Verdict::of(self.reason)
    }

    /// What a person at a terminal reads of a denial: `denied 10.1.0.4 -> evil.example:443: no rule allows
    /// it`. Nothing of what is allowed.
    #[must_use]
    pub fn denial(&self) -> Option<String> {
        let denied = match (self.verdict(), self.enforcement) {
            (Verdict::Allow, _) => return None,
            (Verdict::Deny, Enforcement::Enforce) => "denied",
            (Verdict::Deny, Enforcement::Report) => "would deny",
        };
        let denial = Denial { reason: self.reason, rule: self.rule.cloned(), nearest: self.nearest.cloned() };
        Some(told(denied, self.flow, &denial))
    }
}

/// A flow that was allowed is over.
#[derive(Clone, Copy, Debug)]
pub struct Closed<'a> {
    /// The flow.
    pub flow: &'a Flow,
    /// When.
    pub time: Timestamp,
    /// [`Verdict::Deny`] if the gate itself refused it after the decision: for its addresses, its server
    /// name, an upload limit, a revocation.
    pub verdict: Verdict,
    /// The decision's reason, or the one that the flow ended for.
    pub reason: Reason,
    /// The rule that admitted the address dialled, or that the gate refused it by.
    pub rule: Option<&'a RuleRef>,
    /// Whether the rules' verdicts hold or are only recorded.
    pub enforcement: Enforcement,
    /// The revision that decided.
    pub revision: Option<Revision>,
    /// The address that was dialled, if it came to that.
    pub dialled: Option<SocketAddr>,
    /// Bytes from the client to the origin: of the tunnel, or of the request with its head.
    pub bytes_up: u64,
    /// Bytes from the origin to the client: of the tunnel, or of the response's body.
    pub bytes_down: u64,
    /// From the decision to the end.
    pub duration: Duration,
    /// Who ended it.
    pub ended_by: EndedBy,
    /// The status of the response that was passed on, if one was.
    pub status: Option<u16>,
}

impl Closed<'_> {
    /// Whether the gate refused the flow after its decision. Where enforcement is suspended, what would have been was
    /// told when it was decided.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        self.verdict == Verdict::Deny
            && (self.enforcement == Enforcement::Enforce || self.ended_by == EndedBy::Gate)
    }

    /// What a person at a terminal reads of a refusal.
    #[must_use]
    pub fn denial(&self) -> Option<String> {
        let denial = || Denial { reason: self.reason, rule: self.rule.cloned(), nearest: None };
        self.is_refusal().then(|| told("denied", self.flow, &denial()))
    }
}

fn told(denied: &str, flow: &Flow, denial: &Denial) -> String {
    format!("{denied} {} -> {}", flow.session.client.ip(), denial.sentence(&flow.asked))
}

/// The policy was read, at start or again.
#[derive(Clone, Copy, Debug)]
pub struct PolicyRead<'a> {
    /// When.
    pub time: Timestamp,
    /// What made the gate read it.
    pub trigger: Trigger,
    /// What came of it.
    pub result: ReloadResult,
    /// The revision in force after it.
    pub revision: Option<Revision>,
    /// The revision in force before it.
    pub previous: Option<Revision>,
    /// The number of rules in force after it.
    pub rules: usize,
    /// What is wrong with a rejected policy. The record has the first ten messages, cut to 512 bytes each.
    pub errors: &'a [String],
    /// Open flows that were closed because they are no longer allowed.
    pub revoked: usize,
    /// Open flows that are no longer allowed and may go on for a while.
    pub draining: usize,
}

/// Records were lost; this stands in their place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropped {
    /// When it was told.
    pub(crate) time: Timestamp,
    /// How many.
    pub(crate) records: u64,
}

/// Appends the record of an event: one line of ASCII with its line feed.
///
/// # Errors
/// None that an event of this file can cause; the signature is the serializer's.
pub(crate) fn write_line(event: &impl Serialize, line: &mut Vec<u8>) -> serde_json::Result<()> {
    event.serialize(&mut serde_json::Serializer::with_formatter(&mut *line, Ascii))?;
    line.push(b'\n');
    Ok(())
}

/// Appends one value of a record that is put together by hand.
fn write_value<V: Serialize + ?Sized>(value: &V, line: &mut Vec<u8>) -> io::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(line, Ascii)).map_err(io::Error::from)
}

impl Serialize for PolicyRead<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let errors: Vec<&str> =
            self.errors.iter().take(MAX_ERRORS).map(|error| cut(error, MAX_ERROR)).collect();
        let mut record = begin(serializer, self.time, "policy", "policy")?;
        record.serialize_entry("trigger", self.trigger.name())?;
        record.serialize_entry("result", self.result.name())?;
        optional(&mut record, "revision", self.revision.map(Shown))?;
        optional(&mut record, "previous", self.previous.map(Shown))?;
        record.serialize_entry("rules", &self.rules)?;
        record.serialize_entry("errors", &errors)?;
        record.serialize_entry("revoked", &self.revoked)?;
        record.serialize_entry("draining", &self.draining)?;
        record.end()
    }
}

impl Serialize for Dropped {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut record = begin(serializer, self.time, "dropped", "audit")?;
        record.serialize_entry("records", &self.records)?;
        record.end()
    }
}

/// What every record begins with.
fn begin<S: Serializer>(
    serializer: S,
    time: Timestamp,
    event: &str,
    kind: &str,
) -> Result<S::SerializeMap, S::Error> {
    let mut record = serializer.serialize_map(None)?;
    record.serialize_entry("v", &SCHEMA)?;
    record.serialize_entry("time", &Shown(format_args!("{time:.6}")))?;
    record.serialize_entry("event", event)?;
    record.serialize_entry("kind", kind)?;
    Ok(record)
}

/// The verdict and where it came from.
fn judgement<M: SerializeMap>(
    record: &mut M,
    verdict: Verdict,
    reason: Reason,
    rule: Option<&RuleRef>,
    enforcement: Enforcement,
    revision: Option<Revision>,
) -> Result<(), M::Error> {
    record.serialize_entry("verdict", verdict.name())?;
    record.serialize_entry("mode", enforcement.name())?;
    record.serialize_entry("reason", reason.code())?;
    optional(record, "rule", rule.map(RuleEntry))?;
    optional(record, "revision", revision.map(Shown))
}

/// A field that is left out where there is nothing to say.
fn optional<M: SerializeMap>(
    record: &mut M,
    key: &'static str,
    value: Option<impl Serialize>,
) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| record.serialize_entry(key, &value))
}

/// A rule as a record names it.
struct RuleEntry<'a>(&'a RuleRef);

impl Serialize for RuleEntry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut rule = serializer.serialize_map(None)?;
        rule.serialize_entry("name", &*self.0.name)?;
        rule.serialize_entry("file", &*self.0.place.file)?;
        rule.serialize_entry("line", &self.0.place.line)?;
        rule.end()
    }
}

/// A value as its own text.
struct Shown<T>(T);

impl<T: fmt::Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// JSON in ASCII alone (RFC 8259 §7): U+2028, U+0085 and DEL end a line or steer a terminal in some readers,
/// and JSON by itself lets them stand.
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return writer.write_all(text.as_bytes());
        }
        text.chars().try_for_each(|character| write_character(writer, character))
    }
}

fn write_character<W: ?Sized + io::Write>(writer: &mut W, character: char) -> io::Result<()> {
    if matches!(character, ' '..='~') {
        return write!(writer, "{character}");
    }
    character.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}"))
}

#[cfg(test)]
pub(crate) mod tests;
