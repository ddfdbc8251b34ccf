//! A policy's own tests: what it is expected to say of a request, asked of the object that enforces.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use crate::destination::Destination;
use crate::reason::Reason;
use crate::rule::{Action, Protocol};
use crate::ruleset::{Request, RuleSet};

use crate::document::{Fields, Mistake, Node, Placed, Report, Span, quoted};

/// One entry of `tests:`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyTest {
    /// The file it stands in.
    pub file: Arc<str>,
    /// The line where it begins, from 1.
    pub line: u32,
    /// The client.
    pub from: IpAddr,
    /// What the client asks for.
    pub to: Destination,
    /// Over which protocol; TCP unless said otherwise.
    pub protocol: Protocol,
    /// The verdict that is expected.
    pub expect: Action,
    /// The name of the rule that has to be the one that decides, if the test says so.
    pub rule: Option<Arc<str>>,
}

impl fmt::Display for PolicyTest {
    /// `policy.yaml:40: 10.1.0.4 to pypi.org:443: allow`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, from, to, .. } = self;
        write!(f, "{file}:{line}: {from} to {to}")?;
        if self.protocol != Protocol::Tcp {
            write!(f, " over {}", self.protocol.name())?;
        }
        write!(f, ": {}", word(self.expect))?;
        self.rule.as_ref().map_or(Ok(()), |rule| write!(f, " by rule {}", quoted(rule)))
    }
}

/// How a test went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TestOutcome {
    /// The test.
    pub test: PolicyTest,
    /// The verdict of the rules.
    pub verdict: Action,
    /// Why they say so.
    pub reason: Reason,
    /// The name of the rule that decided, where one did.
    pub rule: Option<Arc<str>>,
}

impl TestOutcome {
    /// Whether the verdict, and the rule where one was named, are as expected.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.verdict == self.test.expect && (self.test.rule.is_none() || self.test.rule == self.rule)
    }
}

impl fmt::Display for TestOutcome {
    /// The test and, where it failed, what came instead.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.test)?;
        if self.passed() {
            return f.write_str(": passed");
        }
        write!(f, ": failed: got {}: {}", word(self.verdict), self.reason.sentence())?;
        self.rule.as_ref().map_or(Ok(()), |rule| write!(f, " (rule {})", quoted(rule)))
    }
}

/// Runs a policy's tests against its rules as they are at `now`. The mode counts, suspended enforcement does
/// not: it is the rules that are tested.
#[must_use]
pub fn run_tests(rules: &Arc<RuleSet>, tests: &[PolicyTest], now: Timestamp) -> Vec<TestOutcome> {
    tests.iter().map(|test| run(rules, test, now)).collect()
}

fn run(rules: &Arc<RuleSet>, test: &PolicyTest, now: Timestamp) -> TestOutcome {
    let request = Request { client: test.from, destination: &test.to, protocol: test.protocol };
    let decision = rules.decide(&request, now);
    TestOutcome {
        test: test.clone(),
        verdict: if decision.allows() { Action::Allow } else { Action::Deny },
        reason: decision.reason,
        rule: decision.rule.as_ref().map(|rule| Arc::clone(&rule.name)),
    }
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    }
}

/// A test as written; whether its rule exists is seen when all files are read.
#[derive(Debug)]
pub(crate) struct RawTest {
    pub(crate) test: PolicyTest,
    pub(crate) rule: Option<Span>,
}

const EXPECT: [(&str, Action); 2] = [("allow", Action::Allow), ("deny", Action::Deny)];

pub(crate) fn read_test(report: &mut Report, node: &Node) -> Option<RawTest> {
    let fields =
        Fields::of(report, node, "a test, as in {from: 10.1.0.4, to: \"pypi.org:443\", expect: allow}")?;
    fields.only(report, &["from", "to", "expect", "rule", "protocol"]);
    for key in ["from", "to", "expect"] {
        if fields.get(key).is_none() {
            report
                .error(fields.span, format!("the test has no `{key}`"))
                .hint("as in {from: 10.1.0.4, to: \"pypi.org:443\", expect: allow}");
        }
    }
    let from = fields.parsed(report, "from", client);
    let to = fields.parsed(report, "to", destination);
    let expect = fields.word(report, "expect", &EXPECT);
    let protocol = fields.parsed(report, "protocol", protocol);
    let rule = fields.string(report, "rule");
    let test = PolicyTest {
        file: report.name(node.span.file),
        line: node.span.line,
        from: from?.value,
        to: to?.value,
        protocol: protocol.map_or(Protocol::Tcp, |protocol| protocol.value),
        expect: expect?.value,
        rule: rule.as_ref().map(|rule| Arc::from(rule.value.as_str())),
    };
    Some(RawTest { test, rule: rule.map(|rule: Placed<String>| rule.span) })
}

fn client(text: &str) -> Result<IpAddr, Mistake> {
    text.parse().map_err(|_| Mistake::new(format!("{} is not an address", quoted(text)), "as in `10.1.0.4`"))
}

fn destination(text: &str) -> Result<Destination, Mistake> {
    Destination::parse(text).map_err(|error| {
        Mistake::new(
            format!("{} is not a destination: {error}", quoted(text)),
            "as in \"pypi.org:443\", \"10.9.0.7:27000\" or \"[2001:db8::1]:443\"",
        )
    })
}

fn protocol(text: &str) -> Result<Protocol, Mistake> {
    use crate::rule::Protocols;
    match super::values::protocol(text)? {
        Protocols::One(protocol) => Ok(protocol),
        Protocols::Any => Err(Mistake::new("a test asks for one protocol", "TCP, UDP or ICMP")),
    }
}
