//! A reader of tables that is as simple as the kernel's is not walks packets through ours.

#![allow(clippy::wildcard_enum_match_arm, clippy::disallowed_methods)] // a test stands outside, and looks at few of many

use std::sync::Arc;

use jiff::Timestamp;
use outgate_rules::network::NetworkVerdict;
use outgate_rules::policy::{Source, compile};
use outgate_rules::{Port, RuleSet};

use super::*;

const POLICY: &str = "sources: {training: [10.1.0.0/24, 'fd00:1::/64']}
outbound_rules:
  - {name: tag, type: address, destination: {addresses: [52.1.0.0/16, '2603:1::/32'], protocol: UDP, port_ranges: '443,5831'}}
  - {name: ban, type: address, action: deny, destination: {addresses: [52.1.9.0/24], port_ranges: '*'}}
  - {name: mine, type: address, sources: [training], destination: {addresses: [52.2.0.0/16], protocol: '*', port_ranges: '1-1000'}}
  - {name: ping, type: address, destination: {addresses: [52.3.0.0/16], protocol: ICMP}}
  - {name: bulk, type: address, offload: kernel, destination: {addresses: [52.4.0.0/16], protocol: TCP, port_ranges: '2049'}}
  - {name: narrow, type: address, destination: {addresses: [52.4.7.0/24], protocol: TCP, port_ranges: '*'}}
  - {name: tunnel, type: address, destination: {addresses: [52.5.0.1], protocol: '*', port_ranges: '*'}}
";

pub(super) fn rules(text: &str) -> Arc<RuleSet> {
    let source = Source { name: "policy.yaml".to_owned(), bytes: text.as_bytes().to_vec() };
    let compiled = compile(&[source], &mut |_| Err("no such file".to_owned()), None, Timestamp::UNIX_EPOCH);
    Arc::new(compiled.unwrap_or_else(|diagnostics| panic!("{diagnostics}")).rules)
}

fn plan(text: &str) -> NetworkPlan {
    rules(text).network_plan(Timestamp::UNIX_EPOCH)
}

pub(super) fn appliance() -> Appliance {
    let clients = ["10.0.0.0/8", "fd00::/16"].iter().map(|prefix| prefix.parse().unwrap()).collect();
    Appliance {
        clients,
        ports: Ports { tls: Some(8443), http: Some(8080), tcp: Some(8000), dns: Some(5353) },
        redirection: Redirection::Tproxy,
        mark: 0x67,
        route_table: 103,
        log_group: 7,
        masquerade: true,
        own_uid: None,
    }
}

#[derive(Clone, Debug)]
struct Packet {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    port: u16,
    flow_mark: u32,
    replies: bool,
    state: CtState,
    user: u32,
    /// Whether the destination is this host.
    local: bool,
    /// Whether the flow is in the set of what clients were told.
    told: bool,
    /// Whether the flow is where names lead that the gate itself resolves.
    way: bool,
    source_routed: bool,
}

fn packet(source: &str, destination: &str, protocol: u8, port: u16) -> Packet {
    Packet {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol,
        port,
        flow_mark: 0,
        replies: false,
        state: CtState::New,
        user: 1000,
        local: false,
        told: false,
        way: false,
        source_routed: false,
    }
}

/// How a packet's way through one hook ended.
#[derive(Clone, PartialEq, Eq, Debug)]
enum End {
    Accept,
    Drop,
    Reject,
    Redirect(u16),
    Masquerade,
    Tproxy(u16),
}

struct Reader<'t> {
    table: &'t Table,
    packet: Packet,
    /// The beginnings of what was logged: `og:d:3`.
    logs: Vec<String>,
    tproxied: Option<u16>,
    /// Whether the gate's sockets are there.
    listening: bool,
}

/// A rule did not end the packet's way, ended it, or sends it elsewhere.
enum Step {
    Next,
    NextRule,
    Return,
    End(End),
}

impl Reader<'_> {
    fn chain(&mut self, name: &str) -> Step {
        let chain = self.table.chains.iter().find(|chain| chain.name == name).unwrap();
        for rule in &chain.rules {
            match self.rule(rule) {
                Step::Next | Step::NextRule => {}
                Step::Return => break,
                end @ Step::End(_) => return end,
            }
        }
        match chain.hook.map(|hook| hook.policy) {
            None => Step::Next,
            Some(Policy::Accept) => Step::End(End::Accept),
            Some(Policy::Drop) => Step::End(End::Drop),
        }
    }

    fn rule(&mut self, rule: &Rule) -> Step {
        for expression in &rule.expressions {
            match expression {
                Expr::Is(one) if !self.is(one) => return Step::Next,
                Expr::IsNot(one) if self.is(one) => return Step::Next,
                Expr::Is(_) | Expr::IsNot(_) => {}
                Expr::Dispatch { address, map } => {
                    if let Some(verdict) = self.dispatch(*address, map) {
                        return self.verdict(&verdict);
                    }
                }
                Expr::Do(statement) => match self.does(statement) {
                    Step::Next => {}
                    other => return other,
                },
                Expr::Verdict(verdict) => return self.verdict(verdict),
            }
        }
        Step::Next
    }

    fn verdict(&mut self, verdict: &Verdict) -> Step {
        match verdict {
            Verdict::Accept => Step::End(self.tproxied.map_or(End::Accept, End::Tproxy)),
            Verdict::Drop => Step::End(End::Drop),
            Verdict::Return => Step::Return,
            Verdict::Jump(chain) => self.chain(chain),
            Verdict::Goto(chain) => match self.chain(chain) {
                Step::Next => Step::Return,
                other => other,
            },
        }
    }

    fn does(&mut self, statement: &Statement) -> Step {
        match statement {
            Statement::Count | Statement::SetMark(_) | Statement::Notrack => Step::Next,
            Statement::Log(log) => {
                assert_eq!(log.group, 7);
                assert!(Prefix::parse(&log.prefix).is_some(), "{}", log.prefix);
                self.logs.push(log.prefix.rsplit_once(':').unwrap().0.to_owned());
                Step::Next
            }
            Statement::SetCtMark(mark) => {
                self.packet.flow_mark = *mark;
                Step::Next
            }
            // Where no socket is found the rule ends.
            Statement::Tproxy(_) if !self.listening => Step::NextRule,
            Statement::Tproxy(TproxyTo::Port(port) | TproxyTo::Address(_, port)) => {
                self.tproxied = Some(*port);
                Step::Next
            }
            Statement::Redirect(port) => Step::End(End::Redirect(*port)),
            Statement::Masquerade => Step::End(End::Masquerade),
            Statement::Reject(_) => Step::End(End::Reject),
        }
    }

    fn is(&self, one: &Match) -> bool {
        let packet = &self.packet;
        let marked = |mark: Mark| packet.flow_mark & mark.mask == mark.value;
        match one {
            Match::Nfproto(family) => Family::of(packet.source) == *family,
            Match::Protocol(numbers) => numbers.contains(&packet.protocol),
            Match::SocketUser(user) => packet.user == *user,
            Match::Address(field, addresses) => {
                let address = match field {
                    Field::Source => packet.source,
                    Field::Destination => packet.destination,
                };
                match addresses {
                    Addresses::Ranges(ranges) => ranges.iter().any(|range| range.contains(&address)),
                    Addresses::In(set) => match &self.set(set).contents {
                        Contents::Addresses(_, ranges) => ranges.iter().any(|range| range.contains(&address)),
                        other => panic!("{other:?}"),
                    },
                }
            }
            Match::DestinationPort(ports) => ports.iter().any(|range| range.contains(&packet.port)),
            Match::IcmpType(..) => false,
            Match::CtState(states) => states.contains(&packet.state),
            Match::CtDirection(direction) => packet.replies == (*direction == CtDirection::Reply),
            Match::CtMark(mark) => marked(*mark),
            Match::LocalDestination => packet.local,
            Match::Ipv4Option(number) => packet.source_routed && packet.source.is_ipv4() && *number == 131,
            Match::RoutingHeader => packet.source_routed && packet.source.is_ipv6(),
            // No packet here is an answer to a connection that the gate made with a client's address.
            Match::TransparentSocket => false,
            Match::Told(_) => packet.told,
            Match::Way(_) => packet.way,
            Match::InputInterface(_)
            | Match::OutputInterface(_)
            | Match::Mark(_)
            | Match::DestinationPortIn(_)
            | Match::SourcePort(_) => panic!("{one:?} is not in our tables"),
        }
    }

    fn dispatch(&self, field: Field, map: &str) -> Option<Verdict> {
        let address = match field {
            Field::Source => self.packet.source,
            Field::Destination => self.packet.destination,
        };
        let Contents::Dispatch(_, verdicts) = &self.set(map).contents else { panic!("{map} is no map") };
        let found = verdicts.iter().find(|(range, _)| range.contains(&address));
        found.map(|(_, verdict)| verdict.clone())
    }

    fn set(&self, name: &str) -> &Set {
        self.table.sets.iter().find(|set| set.name == name).unwrap()
    }
}

/// Walks a packet through one hook: how it ended, what was logged, and the flow's mark.
fn walk(table: &Table, hook: &str, packet: &Packet) -> (End, Vec<String>, u32) {
    walk_with(table, hook, packet, true)
}

fn walk_with(table: &Table, hook: &str, packet: &Packet, listening: bool) -> (End, Vec<String>, u32) {
    let mut reader = Reader { table, packet: packet.clone(), logs: Vec::new(), tproxied: None, listening };
    let Step::End(end) = reader.chain(hook) else { panic!("a hook has a policy") };
    (end, reader.logs, reader.packet.flow_mark)
}

fn forwarded(table: &Table, packet: &Packet) -> (End, Vec<String>) {
    let (end, logs, _) = walk(table, "forward", packet);
    (end, logs)
}

pub(super) fn checked(table: Table) -> Table {
    table.check().unwrap_or_else(|flaw| panic!("{flaw}"));
    table
}

const EVERY_MODE: [&str; 4] = [
    "",
    "isolation_mode: allow_internet_outbound\n",
    "enforcement: report\n",
    "isolation_mode: allow_internet_outbound\nenforcement: report\n",
];

#[test]
fn the_table_forwards_what_the_plan_passes_and_tells_of_all_of_it() {
    for mode in EVERY_MODE {
        let plan = plan(&format!("{mode}{POLICY}"));
        let table = checked(hub(&plan, &appliance()));
        for client in ["10.1.0.4", "10.2.0.4", "fd00:1::4", "fd00:2::4"] {
            for address in [
                "52.1.0.1",
                "52.1.9.1",
                "52.2.0.1",
                "52.3.0.1",
                "52.4.0.1",
                "52.4.7.1",
                "52.5.0.1",
                "9.9.9.9",
                "10.9.0.1",
                "169.254.169.254",
                "168.63.129.16",
                "2603:1::1",
                "2606:4700::1",
                "fd00::9",
                "64:ff9b::3401:1",
                "64:ff9b::909:909",
                "2002:3401:1::1",
            ] {
                if client.contains(':') != address.contains(':') {
                    continue;
                }
                for (number, protocol) in [(UDP, RuleProtocol::Udp), (ICMP, RuleProtocol::Icmp)] {
                    for port in [443, 5831, 1000, 1001] {
                        let packet = packet(client, address, number, port);
                        let (end, logs) = forwarded(&table, &packet);
                        let says = plan.verdict(packet.source, packet.destination, protocol, Port::new(port));
                        let passes = matches!(says, NetworkVerdict::Pass(_));
                        assert_eq!(end == End::Accept, passes, "{mode}{packet:?} {says:?} {end:?} {logs:?}");
                        assert_eq!(logs.len(), 1, "{packet:?} {logs:?}");
                        let by = match says {
                            NetworkVerdict::Pass(rule) | NetworkVerdict::Refuse(rule) => rule,
                            NetworkVerdict::Gate => None,
                        };
                        let number = by.map_or_else(|| "-".to_owned(), |rule| rule.number().to_string());
                        assert!(logs[0].ends_with(&format!(":{number}")), "{packet:?} {logs:?} {says:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn other_protocols_pass_by_rules_for_every_protocol_alone() {
    const GRE: u8 = 47;
    const SCTP: u8 = 132;
    let table = checked(hub(&plan(POLICY), &appliance()));
    for (address, protocol, port, passes) in [
        ("52.5.0.1", GRE, 0, true),
        ("52.2.0.1", GRE, 0, true),
        ("52.2.0.1", SCTP, 1000, true),
        ("52.2.0.1", SCTP, 1001, false),
        ("52.1.0.1", GRE, 0, false),
        ("52.1.0.1", SCTP, 5831, false),
        ("52.3.0.1", GRE, 0, false),
        ("9.9.9.9", GRE, 0, false),
    ] {
        let (end, logs) = forwarded(&table, &packet("10.1.0.4", address, protocol, port));
        assert_eq!(end == End::Accept, passes, "{address} {protocol} {port} {logs:?}");
    }
    let internet = checked(hub(&plan(EVERY_MODE[1]), &appliance()));
    assert_eq!(forwarded(&internet, &packet("10.1.0.4", "9.9.9.9", GRE, 0)).0, End::Accept);
    assert_eq!(forwarded(&internet, &packet("10.1.0.4", "10.9.9.9", GRE, 0)).0, End::Reject);
}

#[test]
fn quic_without_a_rule_is_refused_by_its_own_name() {
    for (mode, end, letter) in [
        (EVERY_MODE[0], End::Reject, "og:q:-"),
        (EVERY_MODE[1], End::Reject, "og:q:-"),
        (EVERY_MODE[2], End::Accept, "og:w:-"),
    ] {
        let table = checked(hub(&plan(&format!("{mode}{POLICY}")), &appliance()));
        let quic = packet("10.1.0.4", "9.9.9.9", UDP, 443);
        assert_eq!(forwarded(&table, &quic), (end, vec![letter.to_owned()]), "{mode}");
        let listed = packet("10.1.0.4", "52.1.0.1", UDP, 443);
        assert_eq!(forwarded(&table, &listed).0, End::Accept, "{mode}");
    }
}

#[test]
fn only_the_first_packet_of_a_flow_is_told_of_and_every_refused_one() {
    let table = checked(hub(&plan(POLICY), &appliance()));
    let first = packet("10.1.0.4", "52.1.0.1", UDP, 5831);
    let (end, logs, mark) = walk(&table, "forward", &first);
    assert_eq!((end, logs), (End::Accept, vec!["og:a:0".to_owned()]));
    let next = Packet { flow_mark: mark, ..first };
    assert_eq!(walk(&table, "forward", &next), (End::Accept, vec![], mark::PASSED));
    let refused = Packet { flow_mark: mark, ..packet("10.1.0.4", "52.1.0.1", UDP, 5832) };
    assert_eq!(forwarded(&table, &refused), (End::Reject, vec!["og:d:-".to_owned()]), "a mark opens nothing");
}

#[test]
fn a_group_goes_by_udp_where_its_names_lead_and_nobody_else_does() {
    let clients = vec!["10.1.0.0".parse().unwrap()..="10.1.0.255".parse().unwrap()];
    let group = Group { clients, sets: ["ways-1-v4", "ways-1-v6"].map(str::to_owned) };
    let table = checked(hub_of_several(&plan(POLICY), &[group], &appliance()));
    let way = Packet { way: true, ..packet("10.1.0.4", "9.9.9.9", UDP, 123) };
    let (end, logs, mark) = walk(&table, "forward", &way);
    assert_eq!((end, logs, mark), (End::Accept, vec!["og:t:-".to_owned()], mark::BY_NAME));
    let refused = [
        Packet { way: false, ..way.clone() },
        Packet { source: "10.1.1.4".parse().unwrap(), ..way.clone() },
        Packet { protocol: TCP, ..way.clone() },
        Packet { destination: "52.1.9.9".parse().unwrap(), ..way },
    ];
    for packet in refused {
        assert_eq!(forwarded(&table, &packet).0, End::Reject, "{packet:?}");
    }
}

#[test]
fn what_a_name_opened_goes_on_by_its_mark_but_not_past_a_deny_rule() {
    let table = checked(hub(&plan(POLICY), &appliance()));
    let told = Packet { told: true, ..packet("10.1.0.4", "9.9.9.9", UDP, 123) };
    let (end, logs, mark) = walk(&table, "forward", &told);
    assert_eq!((end, logs, mark), (End::Accept, vec!["og:t:-".to_owned()], mark::BY_NAME));
    let later = Packet { told: false, flow_mark: mark, ..told.clone() };
    assert_eq!(forwarded(&table, &later), (End::Accept, vec![]));
    assert_eq!(forwarded(&table, &Packet { told: false, ..told.clone() }).0, End::Reject);
    let banned = Packet { destination: "52.1.9.9".parse().unwrap(), flow_mark: mark, ..told.clone() };
    assert_eq!(forwarded(&table, &banned), (End::Reject, vec!["og:d:1".to_owned()]));
    assert_eq!(forwarded(&table, &Packet { protocol: TCP, ..told }).0, End::Reject, "TCP is the gate's");
}

#[test]
fn what_comes_back_passes_and_nothing_else_goes_to_clients() {
    let table = checked(hub(&plan(POLICY), &appliance()));
    let back =
        Packet { replies: true, state: CtState::Established, ..packet("52.1.0.1", "10.1.0.4", UDP, 40000) };
    assert_eq!(forwarded(&table, &back), (End::Accept, vec![]));
    let error = Packet { state: CtState::Related, protocol: ICMP, ..back.clone() };
    assert_eq!(forwarded(&table, &error).0, End::Accept);
    let unasked = Packet { replies: false, state: CtState::New, ..back.clone() };
    assert_eq!(forwarded(&table, &unasked), (End::Drop, vec!["og:c:-".to_owned()]));
    let from_client = Packet { state: CtState::Related, ..packet("10.1.0.4", "9.9.9.9", ICMP, 0) };
    assert_eq!(forwarded(&table, &from_client).0, End::Reject, "an error of a client may carry anything");
    let odd = Packet { state: CtState::Invalid, ..packet("10.1.0.4", "52.1.0.1", UDP, 5831) };
    assert_eq!(forwarded(&table, &odd).0, End::Drop);
}

#[test]
fn tcp_goes_to_the_gate_but_for_what_is_offloaded() {
    let table = checked(hub(&plan(POLICY), &appliance()));
    for (address, port, end) in [
        ("9.9.9.9", 443, End::Tproxy(8443)),
        ("9.9.9.9", 80, End::Tproxy(8080)),
        ("9.9.9.9", 22, End::Tproxy(8000)),
        ("9.9.9.9", 53, End::Accept),
        ("52.4.0.1", 2049, End::Accept),
        ("52.4.0.1", 2048, End::Tproxy(8000)),
        ("52.4.7.1", 2049, End::Tproxy(8000)),
        ("52.2.0.1", 443, End::Tproxy(8443)),
        ("52.5.0.1", 443, End::Tproxy(8443)),
        ("169.254.169.254", 80, End::Tproxy(8080)),
    ] {
        let packet = packet("10.1.0.4", address, TCP, port);
        let (found, _, mark) = walk(&table, "arriving", &packet);
        assert_eq!(found, end, "{address} {port}");
        assert_eq!(mark == mark::INTERCEPTED, matches!(end, End::Tproxy(_)), "{address} {port}");
        let passes = end == End::Accept && port != 53;
        assert_eq!(
            forwarded(&table, &packet).0 == End::Accept,
            passes,
            "{address} {port}: what escapes is refused"
        );
    }
    let ours = Packet { flow_mark: mark::INTERCEPTED, ..packet("10.1.0.4", "52.4.0.1", TCP, 2049) };
    assert_eq!(walk(&table, "arriving", &ours).0, End::Tproxy(8000), "a flow that is the gate's stays so");
    let v6 = packet("fd00:1::4", "2606:4700::1", TCP, 443);
    assert_eq!(walk(&table, "arriving", &v6).0, End::Tproxy(8443));
    for pass in [
        Packet { local: true, ..packet("10.1.0.4", "10.0.0.4", TCP, 3128) },
        packet("203.0.113.5", "9.9.9.9", TCP, 443),
        packet("10.1.0.4", "9.9.9.9", UDP, 443),
        Packet { replies: true, ..packet("10.1.0.4", "9.9.9.9", TCP, 443) },
    ] {
        assert_eq!(walk(&table, "arriving", &pass).0, End::Accept, "{pass:?}");
    }
}

#[test]
fn without_a_listener_tcp_is_refused_and_not_forwarded() {
    let tcp = packet("10.1.0.4", "9.9.9.9", TCP, 443);
    let table = checked(hub(&plan(POLICY), &appliance()));
    let (end, logs, _) = walk_with(&table, "arriving", &tcp, false);
    assert_eq!((end, logs), (End::Reject, vec!["og:d:-".to_owned()]));
    let none = Appliance { ports: Ports::default(), ..appliance() };
    for redirection in [Redirection::Tproxy, Redirection::Redirect] {
        let table = checked(hub(&plan(POLICY), &Appliance { redirection, ..none.clone() }));
        let ends = [
            walk(&table, "arriving", &tcp).0,
            walk(&table, "redirecting", &tcp).0,
            forwarded(&table, &tcp).0,
        ];
        assert!(ends.contains(&End::Reject), "{redirection:?} {ends:?}");
    }
    let only_tcp = Appliance { ports: Ports { tcp: Some(8000), ..Ports::default() }, ..appliance() };
    let table = checked(hub(&plan(POLICY), &only_tcp));
    assert_eq!(walk(&table, "arriving", &tcp).0, End::Tproxy(8000));
}

#[test]
fn by_redirection_too() {
    let table = checked(hub(&plan(POLICY), &Appliance { redirection: Redirection::Redirect, ..appliance() }));
    for (address, port, end) in [
        ("9.9.9.9", 443, End::Redirect(8443)),
        ("9.9.9.9", 80, End::Redirect(8080)),
        ("9.9.9.9", 22, End::Redirect(8000)),
        ("9.9.9.9", 53, End::Redirect(5353)),
        ("52.4.0.1", 2049, End::Accept),
        ("52.4.7.1", 2049, End::Redirect(8000)),
    ] {
        let packet = packet("10.1.0.4", address, TCP, port);
        assert_eq!(walk(&table, "arriving", &packet).0, End::Accept);
        assert_eq!(walk(&table, "redirecting", &packet).0, end, "{address} {port}");
    }
    let own = Packet { local: true, ..packet("10.1.0.4", "10.0.0.4", TCP, 3128) };
    assert_eq!(walk(&table, "redirecting", &own).0, End::Accept);
}

#[test]
fn whoever_asks_a_dns_server_asks_ours() {
    let table = checked(hub(&plan(POLICY), &appliance()));
    for (client, server, protocol, end) in [
        ("10.1.0.4", "9.9.9.9", UDP, End::Redirect(5353)),
        ("10.1.0.4", "9.9.9.9", TCP, End::Redirect(5353)),
        ("fd00:1::4", "2606:4700::1", UDP, End::Redirect(5353)),
        ("203.0.113.5", "9.9.9.9", UDP, End::Accept),
    ] {
        assert_eq!(walk(&table, "redirecting", &packet(client, server, protocol, 53)).0, end, "{client}");
    }
    let own = Packet { local: true, ..packet("10.1.0.4", "10.0.0.4", UDP, 53) };
    assert_eq!(walk(&table, "redirecting", &own).0, End::Redirect(5353));
    let on_53 = Appliance { ports: Ports { dns: Some(53), ..appliance().ports }, ..appliance() };
    assert_eq!(
        walk(&checked(hub(&plan(POLICY), &on_53)), "redirecting", &own).0,
        End::Accept,
        "it is there already"
    );
}

#[test]
fn source_routes_lead_nowhere() {
    let table = checked(hub(&plan(POLICY), &appliance()));
    for routed in [packet("10.1.0.4", "52.1.0.1", UDP, 5831), packet("fd00:1::4", "2603:1::1", UDP, 5831)] {
        let routed = Packet { source_routed: true, ..routed };
        let (end, logs, _) = walk(&table, "arriving", &routed);
        assert_eq!((end, logs), (End::Drop, vec!["og:d:-".to_owned()]));
    }
}

#[test]
fn what_was_forwarded_is_masqueraded_and_what_the_gate_sends_is_not() {
    let table = checked(hub(&plan(POLICY), &appliance()));
    let of = |flow_mark| Packet { flow_mark, ..packet("10.1.0.4", "52.1.0.1", UDP, 5831) };
    for (mark, end) in [
        (mark::PASSED, End::Masquerade),
        (mark::BY_NAME, End::Masquerade),
        (mark::INTERCEPTED, End::Accept),
        (0, End::Accept),
    ] {
        assert_eq!(walk(&table, "leaving", &of(mark)).0, end, "{mark:x}");
    }
    let plain = checked(hub(&plan(POLICY), &Appliance { masquerade: false, ..appliance() }));
    assert!(!plain.chains.iter().any(|chain| chain.name == "leaving"));
}

#[test]
fn a_closed_gateway_forwards_nothing_and_keeps_what_was_told() {
    let table = checked(closed(&appliance()));
    for one in [
        packet("10.1.0.4", "52.1.0.1", UDP, 5831),
        packet("10.1.0.4", "9.9.9.9", TCP, 443),
        packet("fd00:1::4", "2603:1::1", UDP, 5831),
        Packet { told: true, flow_mark: mark::BY_NAME, ..packet("10.1.0.4", "9.9.9.9", UDP, 123) },
    ] {
        assert_eq!(forwarded(&table, &one).0, End::Reject, "{one:?}");
    }
    let back =
        Packet { replies: true, state: CtState::Established, ..packet("52.1.0.1", "10.1.0.4", UDP, 40000) };
    assert_eq!(forwarded(&table, &back).0, End::Drop);
    let told = |table: &Table| -> Vec<Set> {
        table.sets.iter().filter(|set| matches!(set.contents, Contents::Told(..))).cloned().collect()
    };
    assert_eq!(told(&table), told(&hub(&plan(POLICY), &appliance())));
    assert_eq!(told(&table).len(), 2);
}

#[test]
fn a_sidecars_programs_reach_the_gate_and_themselves() {
    let table = checked(local(&Appliance { own_uid: Some(900), ..appliance() }));
    let of = |destination: &str, protocol, port| packet("10.1.0.4", destination, protocol, port);
    for (packet, redirected) in [
        (of("9.9.9.9", TCP, 443), End::Redirect(8443)),
        (of("9.9.9.9", TCP, 80), End::Redirect(8080)),
        (of("9.9.9.9", TCP, 22), End::Redirect(8000)),
        (of("9.9.9.9", UDP, 53), End::Redirect(5353)),
        (of("127.0.0.53", UDP, 53), End::Redirect(5353)),
        (of("9.9.9.9", TCP, 53), End::Redirect(5353)),
        (of("127.0.0.1", TCP, 443), End::Accept),
        (of("9.9.9.9", UDP, 443), End::Accept),
        (Packet { user: 900, ..of("9.9.9.9", TCP, 443) }, End::Accept),
        (Packet { user: 900, ..of("9.9.9.9", UDP, 53) }, End::Accept),
    ] {
        assert_eq!(walk(&table, "redirect", &packet).0, redirected, "{packet:?}");
    }
    for (packet, end, log) in [
        (of("127.0.0.1", TCP, 8443), End::Accept, None),
        (of("9.9.9.9", TCP, 443), End::Reject, Some("og:d:-")),
        (of("9.9.9.9", UDP, 443), End::Reject, Some("og:q:-")),
        (of("9.9.9.9", ICMP, 0), End::Reject, Some("og:d:-")),
        (of("169.254.169.254", TCP, 80), End::Reject, Some("og:d:-")),
        (Packet { user: 900, ..of("9.9.9.9", TCP, 443) }, End::Accept, None),
        (
            Packet { replies: true, state: CtState::Established, ..of("9.9.9.9", TCP, 4000) },
            End::Accept,
            None,
        ),
    ] {
        let logs: Vec<String> = log.into_iter().map(str::to_owned).collect();
        let (found, logged, _) = walk(&table, "output", &packet);
        assert_eq!((found, logged), (end, logs), "{packet:?}");
    }
    let sandbox = checked(local(&appliance()));
    let root = Packet { user: 0, ..of("9.9.9.9", TCP, 443) };
    assert_eq!(
        walk(&sandbox, "redirect", &root).0,
        End::Redirect(8443),
        "nobody is free where the gate is outside"
    );
}

#[test]
fn a_gateway_without_clients_forwards_nothing() {
    let nobody = Appliance { clients: PrefixSet::default(), ..appliance() };
    let table = checked(hub(&plan(EVERY_MODE[1]), &nobody));
    assert_eq!(forwarded(&table, &packet("10.1.0.4", "9.9.9.9", UDP, 99)).0, End::Drop);
    checked(closed(&nobody));
}

#[test]
fn rules_are_named_beside_what_they_do() {
    let table = hub(&plan(POLICY), &appliance());
    let comment = |chain: &str| {
        let chain = table.chains.iter().find(|found| found.name == chain).unwrap();
        chain.rules[0].comment.clone().unwrap()
    };
    assert_eq!(comment("allow-0"), "tag (policy.yaml:3)");
    assert_eq!(comment("deny-1"), "ban (policy.yaml:4)");
}
