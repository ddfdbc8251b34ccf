//! Options of the appliance: several gates behind one address, the clients' own addresses, the other redirection.

use outgate_tests::gate::run_in;
use outgate_tests::lab::{Datagram, Lab, Place, site};
use outgate_tests::{Gate, wait_until};

use super::{POLICY, with_tags};

/// What opens no wildcard without TLS or HTTP.
fn gate_at(lab: &Lab, place: Place) -> Gate {
    with_tags(lab.appliance_at(place, POLICY)).set("appliance.gates", "several").start()
}

#[test]
fn two_gates_share_the_spokes_flows_by_the_same_policy() {
    let Some(lab) = Lab::start() else { return };
    let gates = [gate_at(&lab, Place::Hub), gate_at(&lab, Place::SecondHub)];
    lab.balance();
    let (azure, compute, evil) =
        (site("ml.azure.com"), site("compute.azureml.example"), site("evil.example"));
    let machine = lab.training();
    for _ in 0..8 {
        let resolve = format!("ml.azure.com:80:{}", azure.v4);
        machine.curl(&["-4", "--resolve", &resolve, "http://ml.azure.com/whoami"]).assert_done();
        assert_eq!(machine.datagram(compute.v4, 5831, b"a"), Datagram::Answer(b"a".to_vec()));
        assert!(machine.datagram(evil.v4, 5831, b"a").is_prohibited());
        assert!(machine.connect(evil.v4, 4444).end().bytes.is_empty());
    }
    for gate in &gates {
        for (kind, verdict) in [("http", "allow"), ("tcp", "deny"), ("network", "allow"), ("network", "deny")]
        {
            let _ = gate.record("both gates at work", |r| r["kind"] == kind && r["verdict"] == verdict);
        }
    }
    lab.capture().assert_only(&[(azure.v4, 80), (azure.v6, 80), (compute.v4, 5831)]);
}

/// What one of them alone cannot know: that a client asked the other.
const NAMES: &str = r#"
sources:
  training: [10.1.0.0/24, "fd00:1::/64"]
outbound_rules:
  - {name: database, type: fqdn, destination: db.partner.example, protocol: TCP, ports: [5432], sources: [training]}
  - {name: time, type: fqdn, destination: time.cloudflare.com, protocol: UDP, ports: [123], sources: [training]}
  - {name: echo, type: fqdn, destination: other.example, protocol: UDP, ports: [5831]}
"#;

/// An NTP client's question (RFC 5905, version 4).
const CLOCK_REQUEST: [u8; 48] = {
    let mut request = [0; 48];
    request[0] = 0x23;
    request
};

/// Two gates with these rules, each with half of the spokes' flows.
fn two_gates(lab: &Lab, policy: &str) -> [Gate; 2] {
    let gates = [Place::Hub, Place::SecondHub]
        .map(|place| lab.appliance_at(place, policy).set("appliance.gates", "several").start());
    lab.balance();
    gates
}

/// Asserts that a datagram was refused, of many: a kernel says so to one client once a second (icmp(7),
/// `icmp_ratelimit`), after a handful at once.
fn refused(came: &Datagram) {
    assert!(came.is_prohibited() || *came == Datagram::Silence, "{came:?}");
}

/// Asserts that both gates recorded such flows, and by which rule.
fn both_recorded(gates: &[Gate], kind: &str, verdict: &str, rule: Option<&str>) {
    for gate in gates {
        let record = gate.record("flows at both gates", |r| {
            r["kind"] == kind
                && r["event"] == "decision"
                && r["verdict"] == verdict
                && r["rule"]["name"].as_str() == rule
        });
        assert_eq!(record["mode"], "enforce");
    }
}

#[test]
fn exact_names_are_known_to_gates_that_nobody_asked_for_them() {
    let Some(lab) = Lab::start() else { return };
    let gates = two_gates(&lab, NAMES);
    let (database, clock) = (site("db.partner.example"), site("time.cloudflare.com"));
    // No lookup of any client came to either of them.
    for round in 0..16 {
        let heard = lab.training().connect(database.v4, 5432).echoes("select 1");
        assert!(heard, "round {round}: the database");
        let came = lab.training().asks_the_time(clock.v4);
        assert!(matches!(came, Datagram::Answer(_)), "round {round}: the time: {came:?}");
    }
    both_recorded(&gates, "tcp", "allow", Some("database"));
    both_recorded(&gates, "network", "allow", Some("time"));
    lab.capture().assert_only(&[(database.v4, 5432), (clock.v4, 123)]);
}

#[test]
fn exact_names_open_their_rules_ports_to_their_rules_sources_alone() {
    let Some(lab) = Lab::start() else { return };
    let gates = two_gates(&lab, NAMES);
    let [database, clock, echo] = ["db.partner.example", "time.cloudflare.com", "other.example"].map(site);
    for _ in 0..8 {
        refused(&lab.scoring().asks_the_time(clock.v4));
        assert!(lab.scoring().connect(database.v4, 5432).end().bytes.is_empty());
        refused(&lab.training().datagram(clock.v4, 5831, b"a"));
        assert!(lab.training().connect(database.v4, 22).end().bytes.is_empty());
        for machine in [lab.training(), lab.scoring()] {
            assert_eq!(machine.datagram(echo.v4, 5831, b"a"), Datagram::Answer(b"a".to_vec()));
        }
    }
    for kind in ["tcp", "network"] {
        both_recorded(&gates, kind, "deny", None);
    }
    lab.capture().assert_only(&[(echo.v4, 5831)]);
}

#[test]
fn a_name_whose_rule_goes_away_is_closed_at_both_gates_and_one_that_comes_is_open() {
    let Some(lab) = Lab::start() else { return };
    let gates = two_gates(&lab, NAMES);
    let [database, clock, echo] = ["db.partner.example", "time.cloudflare.com", "other.example"].map(site);
    let machine = lab.training();
    let mut streams: Vec<_> = (0..8).map(|_| machine.connect(database.v4, 5432)).collect();
    assert!(streams.iter_mut().all(|stream| stream.echoes("before")));
    let from = |port| machine.datagram_from(port, clock.v4, 123, &CLOCK_REQUEST);
    let ports = 40_001..40_009;
    for port in ports.clone() {
        assert!(matches!(from(port), Datagram::Answer(_)));
    }

    let gone = "name: database,";
    let others = "destination: time.cloudflare.com";
    assert!(NAMES.contains(gone) && NAMES.contains(others));
    let policy: String =
        NAMES.lines().filter(|line| !line.contains(gone)).map(|line| format!("{line}\n")).collect();
    let policy = policy.replace(others, "destination: evil.example");
    for gate in &gates {
        gate.reload_with(&policy);
    }
    lab.capture().forget();
    assert!(streams.iter().all(|stream| stream.end().ended.is_some()));
    for port in ports {
        refused(&from(port));
        refused(&machine.asks_the_time(clock.v4));
        assert!(machine.connect(database.v4, 5432).end().bytes.is_empty());
        // The name that came is asked for at once, and nobody has to wait for a minute.
        let evil = site("evil.example");
        wait_until("the new name", || matches!(machine.asks_the_time(evil.v4), Datagram::Answer(_)));
        assert_eq!(machine.datagram(echo.v4, 5831, b"a"), Datagram::Answer(b"a".to_vec()));
    }
    lab.capture().assert_only(&[(site("evil.example").v4, 123), (echo.v4, 5831)]);
}

#[test]
fn what_names_open_by_udp_is_live_over_a_restart_while_no_resolver_answers() {
    let Some(lab) = Lab::start() else { return };
    let (clock, machine) = (site("time.cloudflare.com"), lab.training());
    let gate = || lab.appliance(NAMES).set("appliance.gates", "several");
    let mut first = gate().start();
    assert!(matches!(machine.asks_the_time(clock.v4), Datagram::Answer(_)));
    first.kill();
    assert!(matches!(machine.asks_the_time(clock.v4), Datagram::Answer(_)), "while it is down");
    let next = gate().set("dns.upstreams", serde_json::json!(["10.0.0.99"])).start();
    assert!(matches!(machine.asks_the_time(clock.v4), Datagram::Answer(_)), "after the restart");
    assert!(lab.scoring().asks_the_time(clock.v4).is_prohibited());
    both_recorded(&[next], "network", "allow", Some("time"));
}

#[test]
fn several_gates_refuse_a_wildcard_that_only_one_of_them_could_know() {
    let Some(lab) = Lab::start() else { return };
    let policy =
        "outbound_rules:\n  - {name: any, type: fqdn, destination: \"*.partner.example\", ports: [5432]}\n";
    let setup = lab.appliance(policy).set("appliance.gates", "several");
    let configuration = "appliance: {clients: [10.1.0.0/16], gates: several}\npolicy: [policy.yaml]\n";
    for (gates, valid) in [("several", false), ("one", true)] {
        let text = configuration.replace("several", gates);
        std::fs::write(setup.folder().join("check.yaml"), text).unwrap();
        let checked = run_in(setup.folder(), ["check", "--config", "check.yaml"]);
        let said = String::from_utf8_lossy(&checked.stderr);
        assert_eq!(checked.status.success(), valid, "{gates}: {said}");
        assert!(valid || said.contains("rule \"any\"") && said.contains("there are several"), "{said}");
    }
    let (status, said) = setup.start_in_vain();
    assert!(!status.success() && said.contains("several"), "{said}");
    let gate = lab.appliance(NAMES).set("appliance.gates", "several").start();
    assert_eq!(gate.reload_with(policy)["result"], "rejected");
}

#[test]
fn origins_see_the_clients_where_that_is_wanted() {
    let Some(lab) = Lab::start() else { return };
    let gate = with_tags(lab.appliance(POLICY))
        .set("appliance.transparent_source", true)
        .set("appliance.masquerade", false)
        .start();
    for url in ["https://ml.azure.com/whoami", "http://ml.azure.com/whoami"] {
        let said = lab.training().curl(&["-4", url]).assert_done().stdout;
        assert!(said.ends_with("for 10.1.0.4\n"), "{said}");
    }
    let compute = site("compute.azureml.example");
    assert_eq!(lab.scoring().datagram(compute.v4, 5831, b"a"), Datagram::Answer(b"a".to_vec()));
    let passed = lab.capture().besides(|p| !p.is_to(compute.v4, 5831));
    assert!(lab.capture().passed().iter().any(|p| p.source.to_string() == "10.1.2.4"), "{passed:#?}");
    assert!(gate.said("outgate: ready").is_some());
}

#[test]
fn redirection_by_address_translation_does_the_same() {
    let Some(lab) = Lab::start() else { return };
    let gate = with_tags(lab.appliance(POLICY)).set("appliance.redirection", "redirect").start();
    let (azure, evil, machine) = (site("ml.azure.com"), site("evil.example"), lab.training());
    for family in ["-4", "-6"] {
        for url in ["https://ml.azure.com/whoami", "http://ml.azure.com/whoami"] {
            machine.curl(&[family, url]).assert_done();
        }
    }
    for address in [evil.v4, evil.v6] {
        machine.s_client(address, Some("evil.example")).assert_failed();
        assert!(machine.connect(address, 4444).end().bytes.is_empty());
        let record = gate.record(address, |r| r["original"] == address && r["verdict"] == "deny");
        assert!([443, 4444].map(Into::into).contains(&record["original_port"]), "{record}");
    }
    lab.capture().assert_only(&[(azure.v4, 80), (azure.v4, 443), (azure.v6, 80), (azure.v6, 443)]);
}

#[test]
fn the_listeners_serve_behind_rules_that_somebody_else_made() {
    let Some(lab) = Lab::start() else { return };
    lab.redirect();
    let gate = with_tags(lab.transparent_gate(POLICY)).start();
    let (azure, evil, machine) = (site("ml.azure.com"), site("evil.example"), lab.training());
    for family in ["-4", "-6"] {
        for url in ["https://ml.azure.com/whoami", "http://ml.azure.com/whoami"] {
            machine.curl(&[family, url]).assert_done();
        }
    }
    for address in [evil.v4, evil.v6] {
        assert!(machine.connect(address, 4444).end().bytes.is_empty());
        let _ = gate.record(address, |r| r["original"] == address && r["verdict"] == "deny");
    }
    lab.capture().assert_only(&[(azure.v4, 80), (azure.v4, 443), (azure.v6, 80), (azure.v6, 443)]);
}

/// A kernel that tracks no connection, as behind rules that somebody else made for speed.
const UNTRACKED: &str = "
table inet untracked {
    chain in { type filter hook prerouting priority raw; meta l4proto tcp notrack; }
    chain out { type filter hook output priority raw; meta l4proto tcp notrack; }
}";

#[test]
fn where_the_kernel_tracks_nothing_listeners_at_one_address_and_at_all_know_where_clients_went() {
    let Some(lab) = Lab::start() else { return };
    lab.redirect();
    lab.machine(Place::Hub).nft(UNTRACKED);
    let gate = with_tags(lab.transparent_gate(POLICY)).set("listen.tcp", "10.0.0.4:8081").start();
    let (evil, machine) = (site("evil.example"), lab.training());

    for (listener, port) in [("tcp", 4444), ("tls", 443)] {
        assert!(machine.connect(evil.v4, port).end().bytes.is_empty());
        let record = gate.record("a denial", |r| r["listener"] == listener && r["verdict"] == "deny");
        assert_eq!(
            (&record["original"], &record["original_port"]),
            (&evil.v4.into(), &port.into()),
            "{record}"
        );
    }
}

#[test]
fn the_configuration_shows_its_rules_without_touching_the_kernel() {
    let Some(lab) = Lab::start() else { return };
    let setup = with_tags(lab.appliance(POLICY));
    std::fs::write(
        setup.folder().join("outgate.yaml"),
        "appliance: {clients: [10.1.0.0/16]}\npolicy: [policy.yaml]\n",
    )
    .unwrap();
    let shown = run_in(setup.folder(), ["appliance", "show", "--config", "outgate.yaml"]);
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.status.success() && text.contains("20.61.0.0/24"), "{text}");
    let file = lab.folder().join("shown.nft");
    let ruleset: String = text.split_inclusive('\n').filter(|line| !line.starts_with("ip ")).collect();
    std::fs::write(&file, ruleset).unwrap();
    assert_eq!(lab.machine(Place::Hub).shell("nft list tables").trim(), "");
    lab.machine(Place::Hub).run("nft", &["--check", "--file", &file.display().to_string()]).assert_done();
}
