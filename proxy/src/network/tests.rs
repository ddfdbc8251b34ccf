use std::net::SocketAddr;
use std::sync::Mutex;

use outgate_rules::policy::{Source, compile};
use outgate_rules::{DomainName, Reason, RuleSet};

use super::*;
use crate::kernel::netlink::{Message, messages};
use crate::record::network::IpProtocol;
use crate::record::{Forwarded, Verdict, write_line};

const POLICY: &str = "sources: {training: [10.1.0.0/24]}
outbound_rules:
  - {name: tag, type: address, destination: {addresses: [52.1.0.0/16], protocol: UDP, port_ranges: '5831'}}
  - {name: ban, type: address, action: deny, destination: {addresses: [52.1.9.0/24], port_ranges: '*'}}
  - {name: time, type: fqdn, destination: time.example.org, protocol: UDP, ports: [123]}
  - {name: mine, type: address, sources: [training], destination: {addresses: [52.2.0.0/16], protocol: UDP, port_ranges: '*'}}
";

fn time() -> Timestamp {
    "2026-11-21T01:02:03Z".parse().unwrap()
}

fn rules(text: &str) -> Arc<RuleSet> {
    let source = Source { name: "policy.yaml".to_owned(), bytes: text.as_bytes().to_vec() };
    let compiled = compile(&[source], &mut |_| Err("no such file".to_owned()), None, time());
    Arc::new(compiled.unwrap_or_else(|diagnostics| panic!("{diagnostics}")).rules)
}

fn judge(rules: &Arc<RuleSet>) -> Judge {
    let rules = Arc::clone(rules);
    let name = DomainName::parse("time.example.org").unwrap();
    Judge::new(Box::new(move || Arc::clone(&rules)), Box::new(move |_, _| vec![name.clone()]))
}

fn packets(client: &str, destination: &str, protocol: u8) -> Packets {
    let socket = |text: &str| text.parse::<SocketAddr>().unwrap();
    Packets { client: socket(client), destination: socket(destination), protocol: IpProtocol(protocol) }
}

fn logged(rules: &RuleSet, told: Told, rule: Option<u32>, packets: Packets) -> Logged {
    Logged { prefix: Prefix { told, rule, revision: rules.settings().revision }, packets, sequence: None }
}

fn said(event: &Forwarded) -> String {
    let rule = event.rule.as_ref().map_or("-", |rule| &rule.name);
    format!("{} {} {rule}", event.enforcement.name(), event.reason.code())
}

#[test]
fn a_prefix_is_read_as_it_is_written_and_nothing_else_is() {
    for told in Told::ALL {
        for rule in [None, Some(0), Some(1_000_000)] {
            let prefix = Prefix { told, rule, revision: Revision::new([0, 1, 2, 0xfd, 0xfe, 0xff]) };
            let text = prefix.to_string();
            assert!(text.len() <= 60, "{text}");
            assert_eq!(Prefix::parse(&text), Some(prefix));
        }
    }
    for other in [
        "",
        "og",
        "og:a",
        "og:a:1",
        "og:a:1:0102",
        "og:z:1:000102fdfeff",
        "og:a::000102fdfeff",
        "og:a:x:000102fdfeff",
        "og:a:-1:000102fdfeff",
        "og:a:4294967296:000102fdfeff",
        "xx:a:1:000102fdfeff",
        "og:a:1:000102FDFEFF",
        "og:a:1:000102fdfeff:",
        "og:a:1:+00102fdfeff",
        "\u{2028}",
    ] {
        assert_eq!(Prefix::parse(other), None, "{other}");
    }
}

#[test]
fn a_packet_has_the_reason_that_a_connection_would_have() {
    let rules = rules(POLICY);
    let mut judge = judge(&rules);
    let mut of = |told, rule, client: &str, destination: &str, protocol| {
        said(&judge.logged(&logged(&rules, told, rule, packets(client, destination, protocol)), time()))
    };
    let client = "10.1.0.4:1000";
    for (told, rule, destination, protocol, expected) in [
        (Told::Passed, Some(0), "52.1.0.1:5831", 17, "enforce rule tag"),
        (Told::Refused, Some(1), "52.1.9.1:5831", 17, "enforce deny-rule ban"),
        (Told::Refused, None, "52.1.0.1:5832", 17, "enforce port-not-in-rule -"),
        (Told::Refused, None, "52.1.0.1:0", 1, "enforce protocol-not-in-rule -"),
        (Told::Refused, None, "9.9.9.9:99", 17, "enforce no-rule -"),
        (Told::Refused, None, "9.9.9.9:0", 47, "enforce no-rule -"),
        (Told::RefusedQuic, None, "9.9.9.9:443", 17, "enforce quic -"),
        (Told::PassedByName, None, "9.9.9.9:123", 17, "enforce rule time"),
        (Told::NotServed, None, "52.1.0.1:5831", 17, "enforce client-not-served -"),
        (Told::Passed, Some(99), "52.1.0.1:5831", 17, "enforce rule tag"),
    ] {
        assert_eq!(of(told, rule, client, destination, protocol), expected, "{destination}");
    }
    assert_eq!(of(Told::Refused, None, "10.2.0.4:1000", "52.2.0.1:7", 17), "enforce source-not-in-rule -");
}

#[test]
fn a_denial_that_is_suspended_is_told_as_one() {
    let rules = rules(&format!("enforcement: report\n{POLICY}"));
    let mut judge = judge(&rules);
    let mut of = |told, rule, destination: &str| {
        said(&judge.logged(&logged(&rules, told, rule, packets("10.1.0.4:1000", destination, 17)), time()))
    };
    assert_eq!(of(Told::Passed, Some(0), "52.1.9.1:5831"), "report deny-rule ban");
    assert_eq!(of(Told::Passed, Some(0), "52.1.0.1:5831"), "report rule tag");
    assert_eq!(of(Told::WouldRefuse, None, "9.9.9.9:99"), "report no-rule -");
    assert_eq!(of(Told::Refused, None, "10.9.9.9:99"), "enforce address-private -");
    let internet = self::rules("isolation_mode: allow_internet_outbound\nenforcement: report\n");
    let mut judge = self::judge(&internet);
    let mut of = |told, destination: &str| {
        said(&judge.logged(&logged(&internet, told, None, packets("10.1.0.4:1000", destination, 17)), time()))
    };
    assert_eq!(of(Told::WouldRefuse, "9.9.9.9:443"), "report quic -");
    assert_eq!(of(Told::WouldRefuse, "9.9.9.9:99"), "report internet-mode -");
    assert_eq!(of(Told::Refused, "127.0.0.1:99"), "enforce address-loopback -");
}

#[test]
fn a_message_of_the_last_revision_is_judged_by_it() {
    let (old, new) = (rules(POLICY), rules("outbound_rules: []\n"));
    let in_force = Arc::new(Mutex::new(Arc::clone(&old)));
    let shared = Arc::clone(&in_force);
    let mut judge =
        Judge::new(Box::new(move || Arc::clone(&shared.lock().unwrap())), Box::new(|_, _| Vec::new()));
    *in_force.lock().unwrap() = Arc::clone(&new);
    let late = logged(&old, Told::Passed, Some(0), packets("10.1.0.4:1", "52.1.0.1:5831", 17));
    let early = logged(&new, Told::Refused, None, packets("10.1.0.4:1", "52.1.0.1:5831", 17));
    assert_eq!(said(&judge.logged(&early, time())), "enforce no-rule -");
    let event = judge.logged(&late, time());
    assert_eq!(said(&event), "enforce rule tag");
    assert_eq!(event.revision, Some(old.settings().revision));
}

fn watch(rules: &Arc<RuleSet>) -> Watch {
    Watch::new(judge(rules))
}

fn counts(events: impl IntoIterator<Item = Event>) -> Vec<u64> {
    let count = |event| match event {
        Event::Forwarded(event) => event.count,
        Event::Closed(_) => panic!("a close"),
        Event::Untold(untold) => 1_000_000 + untold.records,
    };
    events.into_iter().map(count).collect()
}

#[test]
fn the_first_packet_is_told_at_once_and_the_rest_ten_seconds_later_in_one() {
    let rules = rules(POLICY);
    let mut watch = watch(&rules);
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let refused = |port: u16| {
        logged(&rules, Told::Refused, None, packets(&format!("10.1.0.4:{port}"), "9.9.9.9:99", 17))
    };
    assert_eq!(counts(watch.packet(&refused(1), at(0), time())), [1]);
    for port in 2..50 {
        assert_eq!(counts(watch.packet(&refused(port), at(1), time())), [0_u64; 0]);
    }
    assert_eq!(counts(watch.sweep(at(9), time())), [0_u64; 0]);
    assert_eq!(counts(watch.sweep(at(10), time())), [48]);
    assert_eq!(counts(watch.packet(&refused(1), at(11), time())), [0_u64; 0], "within the next window");
    assert_eq!(counts(watch.packet(&refused(1), at(25), time())), [2], "the successor takes what waited");
    assert_eq!(counts(watch.sweep(at(40), time())), [0_u64; 0], "nothing came any more");
    assert_eq!(counts(watch.packet(&refused(1), at(41), time())), [1], "as if for the first time");
    assert_eq!(counts(watch.packet(&refused(1), at(42), time())), [0_u64; 0]);
    assert_eq!(counts(watch.finish(time())), [1], "and nothing is left behind");
}

#[test]
fn clients_destinations_ports_protocols_and_verdicts_are_counted_apart() {
    let rules = rules(POLICY);
    let mut watch = watch(&rules);
    let now = Instant::now();
    for (told, client, destination, protocol) in [
        (Told::Refused, "10.1.0.4:1", "9.9.9.9:99", 17),
        (Told::Refused, "10.1.0.5:1", "9.9.9.9:99", 17),
        (Told::Refused, "10.1.0.4:1", "9.9.9.8:99", 17),
        (Told::Refused, "10.1.0.4:1", "9.9.9.9:98", 17),
        (Told::Refused, "10.1.0.4:1", "9.9.9.9:99", 6),
        (Told::Passed, "10.1.0.4:1", "9.9.9.9:99", 17),
    ] {
        let logged = logged(&rules, told, None, packets(client, destination, protocol));
        assert_eq!(counts(watch.packet(&logged, now, time())), [1], "{destination} {protocol}");
    }
}

#[test]
fn what_is_lost_is_counted_by_the_numbers_that_are_missing() {
    let rules = rules(POLICY);
    let mut watch = watch(&rules);
    let now = Instant::now();
    let mut number = |sequence: u32, port: u16| {
        let packets = packets("10.1.0.4:1", &format!("9.9.9.9:{port}"), 17);
        let logged = Logged { sequence: Some(sequence), ..logged(&rules, Told::Refused, None, packets) };
        _ = watch.packet(&logged, now, time());
        counts(watch.sweep(now, time()))
    };
    assert_eq!(number(100, 1), [0_u64; 0], "nobody knows what was before");
    assert_eq!(number(101, 2), [0_u64; 0]);
    assert_eq!(number(105, 3), [1_000_003]);
    assert_eq!(number(0, 4), [0_u64; 0], "a counter that began anew");
    assert_eq!(number(u32::MAX, 5), [0_u64; 0], "and one that goes back");
    assert_eq!(number(1, 6), [1_000_001], "over the end of the numbers");
}

#[test]
fn no_number_of_destinations_outgrows_the_bounds() {
    let rules = rules(POLICY);
    let mut watch = watch(&rules);
    let now = Instant::now();
    let told: usize = (0..70_000_u32)
        .filter_map(|number| {
            let address = std::net::Ipv4Addr::from_bits(0x0900_0000 + number);
            let packets = packets("10.1.0.4:1", &format!("{address}:99"), 17);
            watch.packet(&logged(&rules, Told::Refused, None, packets), now, time())
        })
        .count();
    assert_eq!(told, 65_536);
    assert_eq!(counts(watch.sweep(now, time())), [1_000_000 + 70_000 - 65_536]);
}

#[test]
fn an_ended_flow_has_its_rule_its_bytes_and_its_time() {
    let rules = rules(POLICY);
    let mut watch = watch(&rules);
    let (start, flow) = (Instant::now(), packets("10.1.0.4:1000", "52.1.0.1:5831", 17));
    _ = watch.packet(&logged(&rules, Told::Passed, Some(0), flow), start, time());
    let ended = Ended { packets: flow, by_name: false, bytes_up: Some(120), bytes_down: Some(4000) };
    let at = start + Duration::from_millis(1500);
    let mut close = |ended: Ended| {
        watch.ended(ended, at);
        assert!(watch.closed(at, time()).is_empty() && watch.is_waiting(), "its beginning may still come");
        let closed = watch.closed(at + nflog::GATHERING, time());
        let [Event::Closed(closed)] = closed.as_slice() else { panic!("{closed:?}") };
        let mut line = Vec::new();
        write_line(closed, &mut line).unwrap();
        String::from_utf8(line).unwrap()
    };
    let revision = rules.settings().revision;
    assert_eq!(
        close(ended),
        format!(
            concat!(
                r#"{{"v":1,"time":"2026-11-21T01:02:03.000000Z","event":"close","kind":"network","listener":"kernel","#,
                r#""client":"10.1.0.4","client_port":1000,"host":"52.1.0.1","port":5831,"protocol":"UDP","verdict":"allow","#,
                r#""mode":"enforce","reason":"rule","rule":{{"name":"tag","file":"policy.yaml","line":3}},"revision":"{}","#,
                r#""address":"52.1.0.1","address_port":5831,"bytes_up":120,"bytes_down":4000,"duration_ms":1500}}"#,
                "\n"
            ),
            revision
        )
    );
    let again = close(Ended { bytes_up: None, ..ended });
    assert!(
        !again.contains("duration_ms") && !again.contains("bytes_up"),
        "its beginning is forgotten: {again}"
    );
    assert!(again.contains(r#""reason":"rule""#), "{again}");
}

#[test]
fn the_records_of_packets_say_what_is_known_of_them() {
    let rules = rules(POLICY);
    let mut judge = judge(&rules);
    let mut line = |told, rule, packets| {
        let mut line = Vec::new();
        write_line(&judge.logged(&logged(&rules, told, rule, packets), time()), &mut line).unwrap();
        let line = String::from_utf8(line).unwrap();
        let (_, rest) = line.trim_end().split_once(r#""listener":"kernel","#).unwrap();
        rest.replace(&rules.settings().revision.to_string(), "R")
    };
    for (told, packets, expected) in [
        (
            Told::Refused,
            packets("10.1.0.4:0", "9.9.9.9:0", 47),
            r#""client":"10.1.0.4","host":"9.9.9.9","protocol":"47","verdict":"deny","mode":"enforce","reason":"no-rule","revision":"R","packets":1}"#,
        ),
        (
            Told::PassedByName,
            packets("10.1.0.4:123", "9.9.9.9:123", 17),
            r#""client":"10.1.0.4","client_port":123,"original":"9.9.9.9","original_port":123,"host":"time.example.org","port":123,"protocol":"UDP","verdict":"allow","mode":"enforce","reason":"rule","rule":{"name":"time","file":"policy.yaml","line":5},"revision":"R","packets":1}"#,
        ),
        (
            Told::Refused,
            packets("[fd00::4]:0", "[2606:4700::1]:0", 58),
            r#""client":"fd00::4","host":"2606:4700::1","protocol":"ICMP","verdict":"deny","mode":"enforce","reason":"no-rule","revision":"R","packets":1}"#,
        ),
    ] {
        assert_eq!(line(told, None, packets), expected);
    }
    let denied = judge
        .logged(&logged(&rules, Told::RefusedQuic, None, packets("10.1.0.4:1", "9.9.9.9:443", 17)), time());
    assert_eq!(denied.verdict(), Verdict::Deny);
    assert_eq!(
        denied.denial().unwrap(),
        format!("denied 10.1.0.4 -> 9.9.9.9:443 over UDP: {}", Reason::Quic.sentence())
    );
}

/// An IPv4 packet of a protocol, with what follows its header.
fn v4(protocol: u8, fragment: u16, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0];
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 1, 0, 4, 9, 9, 9, 9]);
    packet.extend(rest);
    packet
}

fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
    packet.extend("fd00::4".parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend("2606:4700::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend(rest);
    packet
}

/// A message as it comes in: a request is written likewise.
fn bytes_of(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend(kind.to_ne_bytes());
    message.extend([0; 14]);
    attributes.iter().for_each(|(kind, value)| message.extend(attribute(*kind, value)));
    let length = (message.len() as u32).to_ne_bytes();
    message.splice(..4, length);
    message
}

/// An attribute with a value, or with others inside.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The message by which NFLOG tells of a packet.
fn message(prefix: &str, packet: &[u8], sequence: u32) -> Vec<u8> {
    let prefix = [prefix.as_bytes(), &[0]].concat();
    bytes_of(4 << 8, &[(1, &[8, 0, 2, 0]), (10, &prefix), (9, packet), (12, &sequence.to_be_bytes())])
}

fn read(bytes: &[u8]) -> Option<Logged> {
    messages(bytes).find_map(|message: Message<'_>| nflog::logged(&message))
}

#[test]
fn packets_are_read_behind_options_and_extensions() {
    const PORTS: &[u8] = &[0x03, 0xe8, 0x16, 0xc7, 0, 8, 0, 0];
    let options = {
        let mut packet = v4(17, 0, &[]);
        packet[0] = 0x46;
        packet.extend([148, 4, 0, 0]);
        packet.extend(PORTS);
        packet
    };
    let extension = |next: u8, length: u8| {
        let mut bytes = vec![next, length];
        bytes.resize(usize::from(length + 1) * 8, 0);
        bytes
    };
    for (packet, client, destination, protocol) in [
        (v4(17, 0, PORTS), "10.1.0.4:1000", "9.9.9.9:5831", 17),
        (options, "10.1.0.4:1000", "9.9.9.9:5831", 17),
        (v4(17, 0x2001, PORTS), "10.1.0.4:0", "9.9.9.9:0", 17),
        (v4(17, 0, &PORTS[..3]), "10.1.0.4:0", "9.9.9.9:0", 17),
        (v4(1, 0, PORTS), "10.1.0.4:0", "9.9.9.9:0", 1),
        (v4(132, 0, PORTS), "10.1.0.4:1000", "9.9.9.9:5831", 132),
        (v6(17, PORTS), "[fd00::4]:1000", "[2606:4700::1]:5831", 17),
        (
            v6(0, &[&extension(60, 0), &extension(6, 1), PORTS].concat()),
            "[fd00::4]:1000",
            "[2606:4700::1]:5831",
            6,
        ),
        (v6(44, &[&[17, 0, 0, 1, 0, 0, 0, 0], PORTS].concat()), "[fd00::4]:1000", "[2606:4700::1]:5831", 17),
        (v6(44, &[&[17, 0, 0, 8, 0, 0, 0, 0], PORTS].concat()), "[fd00::4]:0", "[2606:4700::1]:0", 44),
        (v6(58, PORTS), "[fd00::4]:0", "[2606:4700::1]:0", 58),
    ] {
        let bytes = message("og:d:-:000102030405", &packet, 7);
        let logged = read(&bytes).unwrap();
        assert_eq!(logged.packets, packets(client, destination, protocol));
        assert_eq!((logged.prefix.told, logged.sequence), (Told::Refused, Some(7)));
    }
}

#[test]
fn what_is_cut_or_not_ours_is_left_alone() {
    let whole = message("og:d:-:000102030405", &v4(17, 0, &[0; 8]), 7);
    for end in 0..whole.len() {
        assert_eq!(read(&whole[..end]), None, "cut at {end}");
    }
    assert_eq!(read(&message("nft: ", &v4(17, 0, &[0; 8]), 7)), None, "another's rule");
    assert_eq!(read(&message("og:d:-:000102030405", &[0x25; 40], 7)), None, "no IP");
    assert_eq!(read(&message("og:d:-:000102030405", &v4(17, 0, &[])[..19], 7)), None);
    assert_eq!(read(&message("og:d:-:000102030405", &[], 7)), None);
}

#[test]
fn no_byte_of_a_message_can_stop_the_reading() {
    // Every byte of a message is set to every value.
    let whole = message("og:d:12:000102030405", &v6(0, &[17, 0, 0, 0, 0, 0, 0, 0, 3, 232, 22, 199]), 7);
    for at in 0..whole.len() {
        for byte in 0..=u8::MAX {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            _ = read(&bytes);
            _ = messages(&bytes).filter_map(|message| conntrack_events::ended(&message)).count();
        }
    }
}

#[test]
fn only_flows_that_our_rules_marked_are_ended_by_us() {
    let addresses = [attribute(1, &[10, 1, 0, 4]), attribute(2, &[9, 9, 9, 9])].concat();
    let protocol =
        [attribute(1, &[17]), attribute(2, &1000_u16.to_be_bytes()), attribute(3, &5831_u16.to_be_bytes())]
            .concat();
    let tuple = [attribute(1, &addresses), attribute(2, &protocol)].concat();
    let counters =
        |bytes: u64| [attribute(1, &1_u64.to_be_bytes()), attribute(2, &bytes.to_be_bytes())].concat();
    let (up, down) = (counters(120), counters(4000));
    let ended = |mark: u32| {
        let mark = mark.to_be_bytes();
        let bytes = bytes_of(1 << 8 | 2, &[(1, &tuple), (2, &tuple), (8, &mark), (9, &up), (10, &down)]);
        messages(&bytes).find_map(|message| conntrack_events::ended(&message))
    };
    let expected = Ended {
        packets: packets("10.1.0.4:1000", "9.9.9.9:5831", 17),
        by_name: false,
        bytes_up: Some(120),
        bytes_down: Some(4000),
    };
    assert_eq!(ended(mark::PASSED), Some(expected));
    assert_eq!(ended(mark::BY_NAME), Some(Ended { by_name: true, ..expected }));
    assert_eq!(ended(mark::INTERCEPTED), None);
    assert_eq!(ended(0), None);
}
