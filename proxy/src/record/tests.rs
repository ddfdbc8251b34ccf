use std::sync::Arc;
use std::time::Instant;

use outgate_rules::reason::Reason;
use outgate_rules::{Pattern, Port, Request, RuleSet, RuleSetBuilder};

use super::*;
use crate::listener::Way;
use crate::session::SessionIds;

#[test]
fn a_decision_by_a_rule() {
    let decision = decide("pypi.org:443");
    let flow = connect("pypi.org:443");
    assert_eq!(
        told(&Decided::by_rules(&flow, &decision, time())),
        r#"{"v":1,"time":"2026-11-21T01:02:03.120000Z","event":"decision","kind":"connect","session":"1a2b3c4d-1","listener":"proxy","client":"10.1.0.4","client_port":51234,"host":"pypi.org","port":443,"protocol":"TCP","verdict":"allow","mode":"enforce","reason":"rule","rule":{"name":"pypi","file":"policy.yaml","line":12},"revision":"000000000000"}"#
    );
}

#[test]
fn a_denied_request() {
    let decision = decide("evil.example:80");
    let mut flow = connect("evil.example:80");
    flow.kind = Kind::Http;
    flow.exchange = Some(2);
    flow.request = Some(HttpRequest::new("GET", "/simple/?token=secret"));
    let decided = Decided::by_rules(&flow, &decision, time());
    assert_eq!(
        told(&decided),
        r#"{"v":1,"time":"2026-11-21T01:02:03.120000Z","event":"decision","kind":"http","session":"1a2b3c4d-1","exchange":2,"listener":"proxy","client":"10.1.0.4","client_port":51234,"host":"evil.example","port":80,"protocol":"TCP","method":"GET","path":"/simple/","verdict":"deny","mode":"enforce","reason":"no-rule","revision":"000000000000"}"#
    );
    assert_eq!(decided.denial().unwrap(), "denied 10.1.0.4 -> evil.example:80: no rule allows it");
}

#[test]
fn a_denial_that_is_only_recorded_says_so() {
    let decision = decide("evil.example:80");
    let flow = connect("evil.example:80");
    let decided = Decided { enforcement: Enforcement::Report, ..Decided::by_rules(&flow, &decision, time()) };
    assert!(told(&decided).contains(r#""verdict":"deny","mode":"report""#));
    assert_eq!(decided.denial().unwrap(), "would deny 10.1.0.4 -> evil.example:80: no rule allows it");
}

#[test]
fn bad_input_without_a_policy() {
    let flow = Flow { asked: Asked::text(b"user:pass@pypi.org:443"), ..connect("pypi.org:443") };
    assert_eq!(
        told(&Decided::by_gate(&flow, Reason::HostUserInfo, None, time())),
        r#"{"v":1,"time":"2026-11-21T01:02:03.120000Z","event":"decision","kind":"connect","session":"1a2b3c4d-1","listener":"proxy","client":"10.1.0.4","client_port":51234,"asked":"***@pypi.org:443","protocol":"TCP","verdict":"deny","mode":"enforce","reason":"host-user-info"}"#
    );
}

#[test]
fn a_flow_that_is_over() {
    let flow = Flow { hello: Some(Hello::new(Some(b"pypi.org"), true)), ..connect("[2001:db8::1]:443") };
    let decision = decide("pypi.org:443");
    let closed = Closed {
        flow: &flow,
        time: time(),
        verdict: Verdict::Allow,
        reason: Reason::Rule,
        rule: decision.rule.as_ref(),
        enforcement: Enforcement::Enforce,
        revision: Some(decision.revision),
        dialled: Some("[2001:db8::1]:443".parse().unwrap()),
        bytes_up: 12,
        bytes_down: 34,
        duration: Duration::from_micros(56_789),
        ended_by: EndedBy::Client,
        status: Some(200),
    };
    assert_eq!(
        told(&closed),
        r#"{"v":1,"time":"2026-11-21T01:02:03.120000Z","event":"close","kind":"connect","session":"1a2b3c4d-1","listener":"proxy","client":"10.1.0.4","client_port":51234,"host":"2001:db8::1","port":443,"protocol":"TCP","sni":"pypi.org","ech":true,"verdict":"allow","mode":"enforce","reason":"rule","rule":{"name":"pypi","file":"policy.yaml","line":12},"revision":"000000000000","address":"2001:db8::1","address_port":443,"bytes_up":12,"bytes_down":34,"duration_ms":56,"ended_by":"client","status":200}"#
    );
    assert_eq!(closed.denial(), None);
    let refused = Closed { verdict: Verdict::Deny, reason: Reason::AddressLoopback, ..closed };
    assert_eq!(
        refused.denial().unwrap(),
        r#"denied 10.1.0.4 -> [2001:db8::1]:443: the address is loopback (rule "pypi", policy.yaml:12)"#
    );
}

#[test]
fn a_rejected_policy() {
    let errors = vec!["é".repeat(600), "b".into()];
    let read = PolicyRead {
        time: time(),
        trigger: Trigger::File,
        result: ReloadResult::Rejected,
        revision: Some(Revision::new([0x1a; 6])),
        previous: Some(Revision::new([0x1a; 6])),
        rules: 12,
        errors: &errors,
        revoked: 0,
        draining: 3,
    };
    let text = line(&read);
    assert!(text.starts_with(r#"{"v":1,"time":"2026-11-21T01:02:03.120000Z","event":"policy","kind":"policy","trigger":"file","result":"rejected","revision":"1a1a1a1a1a1a","previous":"1a1a1a1a1a1a","rules":12,"errors":["#));
    assert!(text.ends_with(r#","b"],"revoked":0,"draining":3}"#));
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["errors"][0].as_str().unwrap(), "é".repeat(256), "cut between two characters");
    let many = vec![String::from("x"); 1000];
    let value: serde_json::Value =
        serde_json::from_str(&line(&PolicyRead { errors: &many, ..read })).unwrap();
    assert_eq!(value["errors"].as_array().unwrap().len(), 10);
}

#[test]
fn lost_records() {
    assert_eq!(
        line(&Dropped { time: time(), records: 7 }),
        r#"{"v":1,"time":"2026-11-21T01:02:03.120000Z","event":"dropped","kind":"audit","records":7}"#
    );
}

#[test]
fn hostile_text_stays_inside_its_field_of_its_line() {
    let all_bytes: Vec<u8> = (0..=255).filter(|byte| !b"@?#".contains(byte)).collect();
    let table: &[&[u8]] = &[
        b"evil\n{\"v\":1,\"verdict\":\"allow\"}",
        b"evil\r\nevil",
        b"evil\",\"verdict\":\"allow",
        b"evil\\",
        b"evil\0evil",
        b"\x1b[2Jevil\x7f",
        "evil\u{2028}\u{2029}\u{85}\u{202e}evil\u{1f600}".as_bytes(),
        b"\xff\xfe evil",
        &all_bytes,
    ];
    for input in table {
        let text = String::from_utf8_lossy(input);
        let flow = Flow {
            kind: Kind::Http,
            asked: Asked::text(input),
            request: Some(HttpRequest::new(&text, &text)),
            hello: Some(Hello::new(Some(input), false)),
            ..connect("pypi.org:443")
        };
        let line = told(&Decided::by_gate(&flow, Reason::HostCharacter, None, time()));
        assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        let bounded = |max| cut(&text, max).to_owned();
        assert_eq!(value["asked"].as_str().unwrap(), bounded(MAX_ASKED), "read back as sent");
        assert_eq!(value["sni"].as_str().unwrap(), bounded(MAX_ASKED));
        assert_eq!(value["verdict"], "deny");
        assert!(flow.asked.to_string().bytes().all(|byte| matches!(byte, b' '..=b'~')), "in a terminal");
    }
}

#[test]
fn text_is_bounded_and_without_secrets() {
    for (input, shown) in [
        ("pypi.org:443", "pypi.org:443"),
        ("pypi.org?q=secret", "pypi.org"),
        ("pypi.org#secret", "pypi.org"),
        ("user:secret@pypi.org:443", "***@pypi.org:443"),
        ("http://user:se/cr@et@pypi.org/?secret", "***@pypi.org/"),
        ("http://user:se?cret@pypi.org", "***"),
        ("http://pypi.org/?q=a@secret", "***"),
        ("", ""),
    ] {
        let asked = Asked::text(input.as_bytes());
        assert_eq!(asked.to_string(), shown, "{input}");
    }
    let late = format!("{}:secret@pypi.org", "x".repeat(1000));
    assert_eq!(Asked::text(late.as_bytes()).to_string(), "***@pypi.org", "masked before it is cut");
    let long = "é".repeat(60_000);
    let flow = Flow {
        asked: Asked::text(long.as_bytes()),
        request: Some(HttpRequest::new(&long, &long)),
        hello: Some(Hello::new(Some(long.as_bytes()), true)),
        ..connect("pypi.org:443")
    };
    let line = told(&Decided::by_gate(&flow, Reason::HostTooLong, None, time()));
    assert!(line.len() < 16 * 1024, "{} bytes", line.len());
}

#[test]
fn every_reason_has_its_verdict_and_its_code_in_the_record() {
    let flow = connect("pypi.org:443");
    for reason in Reason::ALL {
        let line = told(&Decided::by_gate(&flow, *reason, None, time()));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["reason"], reason.code());
        assert_eq!(value["verdict"], if reason.allows() { "allow" } else { "deny" }, "{line}");
    }
}

trait Told {
    fn write(&self, line: &mut Vec<u8>) -> std::io::Result<()>;
}

impl Told for Decided<'_> {
    fn write(&self, line: &mut Vec<u8>) -> std::io::Result<()> {
        self.write_line(line)
    }
}

impl Told for Closed<'_> {
    fn write(&self, line: &mut Vec<u8>) -> std::io::Result<()> {
        self.write_line(line)
    }
}

fn told(event: &impl Told) -> String {
    let mut line = Vec::new();
    event.write(&mut line).unwrap();
    one_line(line)
}

fn line(event: &impl Serialize) -> String {
    let mut line = Vec::new();
    write_line(event, &mut line).unwrap();
    one_line(line)
}

fn one_line(line: Vec<u8>) -> String {
    let text = String::from_utf8(line).unwrap();
    assert_eq!(text.matches('\n').count(), 1);
    text.strip_suffix('\n').unwrap().to_owned()
}

pub(crate) fn time() -> Timestamp {
    "2026-11-21T01:02:03.12Z".parse().unwrap()
}

pub(crate) fn connect(target: &str) -> Flow {
    Flow {
        session: Session {
            id: SessionIds::new(0x1a2b_3c4d).next(),
            client: "10.1.0.4:51234".parse().unwrap(),
            listener: Way::Proxy,
            original: None,
            accepted: Instant::now(),
        },
        kind: Kind::Connect,
        exchange: None,
        asked: Asked::Destination(Destination::parse(target).unwrap()),
        protocol: Protocol::Tcp,
        request: None,
        hello: None,
    }
}

/// What a policy with the one rule `pypi` says.
pub(crate) fn decide(target: &str) -> Decision {
    let destination = Destination::parse(target).unwrap();
    let client = "10.1.0.4".parse().unwrap();
    let request = Request { client, destination: &destination, protocol: Protocol::Tcp };
    pypi_only().decide(&request, time())
}

fn pypi_only() -> Arc<RuleSet> {
    use outgate_rules::rule::{Action, Opens, Place, Protocols, Reach, Rule, SniCheck, Sources, Terms};
    let terms = Terms {
        action: Action::Allow,
        opens: Opens::Flows,
        sources: Sources::Everyone,
        protocol: Protocols::One(Protocol::Tcp),
        ports: [Port::HTTPS..=Port::HTTPS].into_iter().collect(),
        reach: Reach::Public,
        sni: SniCheck::Match,
        tls_only: false,
        offload: false,
        bound_to_names: false,
        expires: None,
        max_upload: None,
        max_upload_per_hour: None,
        record_types: Vec::new(),
    };
    let place = Place { file: "policy.yaml".into(), line: 12, text: "pypi.org".into() };
    let mut builder = RuleSetBuilder::default();
    let rule = builder.add(Rule { name: "pypi".into(), place, terms: Arc::new(terms) });
    builder.add_name(rule, &Pattern::parse("pypi.org").unwrap()).unwrap();
    Arc::new(builder.build(outgate_rules::Settings::default()).unwrap())
}
