//! Before the gate, while it changes its mind, while it is down, and after it: nothing denied passes at any moment.

use std::path::Path;

use outgate_tests::gate::binary;
use outgate_tests::lab::{Attempt, Datagram, Lab, Load, Place, Ran, now, site};
use outgate_tests::{Gate, wait_until};
use rustix::process::Signal;

use super::{Guarded, POLICY, guarded, with_tags, without};

/// A connection tracker on the hub, as another program's rules would bring it: what was there before the gate is
/// known to the kernel.
const TRACKING: &str = "
table inet tracking {
    chain forward { type filter hook forward priority filter - 10
        ct state established,related accept
        ct state new counter accept
    }
}";

fn gate_of(lab: &Lab, policy: &str) -> Gate {
    with_tags(lab.appliance(policy)).start()
}

fn outgate(lab: &Lab, gate: &Gate, arguments: &[&str]) -> Ran {
    let config = gate.folder().join("outgate.yaml").display().to_string();
    let program = binary().display().to_string();
    lab.machine(Place::Hub).run(&program, &[arguments, &["--config", &config]].concat())
}

#[test]
fn flows_that_were_open_before_the_gate_started_end() {
    let Some(lab) = Lab::start() else { return };
    lab.machine(Place::Hub).nft(TRACKING);
    let (evil, machine) = (site("evil.example"), lab.training());
    let mut streams = [machine.connect(evil.v4, 4444), machine.connect(evil.v6, 4444)];
    assert!(streams.iter_mut().all(|stream| stream.echoes("before")));
    for address in [evil.v4, evil.v6] {
        assert_eq!(machine.datagram_from(40_000, address, 5831, b"a"), Datagram::Answer(b"a".to_vec()));
    }

    let _gate = gate_of(&lab, POLICY);
    lab.capture().forget();

    assert!(streams.iter_mut().all(|stream| !stream.echoes("after")));
    for address in [evil.v4, evil.v6] {
        let came = machine.datagram_from(40_000, address, 5831, b"a");
        assert!(came.is_prohibited(), "{came:?}");
    }
    lab.capture().assert_only(&[]);
}

#[test]
fn an_allowed_flow_that_was_open_before_the_gate_started_goes_on_as_the_gates() {
    let Some(lab) = Lab::start() else { return };
    lab.machine(Place::Hub).nft(TRACKING);
    let (compute, machine) = (site("compute.azureml.example"), lab.training());
    let is_answered = || {
        let came = machine.datagram_from(40_000, compute.v4, 5831, b"a");
        assert_eq!(came, Datagram::Answer(b"a".to_vec()));
    };
    is_answered();

    let _gate = gate_of(&lab, POLICY);
    lab.capture().forget();
    is_answered();

    let passed = lab.capture().passed();
    let sources: Vec<String> = passed.iter().map(|packet| packet.source.to_string()).collect();
    assert!(!sources.is_empty() && sources.iter().all(|source| source == "10.0.0.4"), "{passed:#?}");
}

#[test]
fn flows_whose_rule_went_away_end_and_others_go_on() {
    let Some(hub) = guarded() else { return };
    let (database, compute, clock) =
        (site("db.partner.example"), site("compute.azureml.example"), site("time.cloudflare.com"));
    let machine = hub.lab.training();
    for name in [database.name, clock.name] {
        machine.dig(&[name]).assert_done();
    }
    let mut stream = machine.connect(database.v4, 5432);
    assert!(stream.echoes("before"));
    let tagged = || machine.datagram_from(40_001, compute.v4, 5831, b"a");
    assert_eq!(tagged(), Datagram::Answer(b"a".to_vec()));
    assert!(matches!(machine.asks_the_time(clock.v4), Datagram::Answer(_)));

    hub.gate.reload_with(&without("compute"));
    hub.lab.capture().forget();
    assert!(tagged().is_prohibited());
    let close =
        hub.gate.record("the end of the tag's flow", |r| r["kind"] == "network" && r["event"] == "close");
    assert_eq!((&close["host"], &close["rule"]["name"]), (&compute.v4.into(), &"compute".into()));
    // A header, a payload, and nothing else in either direction.
    assert_eq!((&close["bytes_up"], &close["bytes_down"]), (&29.into(), &29.into()), "{close}");
    assert!(stream.echoes("still"));
    assert!(matches!(machine.asks_the_time(clock.v4), Datagram::Answer(_)));
    hub.lab.capture().assert_only(&[(database.v4, 5432), (clock.v4, 123)]);

    hub.gate.reload_with(&without("database"));
    assert!(stream.end().ended.is_some());
    assert_eq!(tagged(), Datagram::Answer(b"a".to_vec()));

    hub.gate.reload_with(&without("time"));
    hub.lab.capture().forget();
    let came = machine.asks_the_time(clock.v4);
    assert!(came.is_prohibited(), "{came:?}");
    hub.lab.capture().assert_only(&[]);
}

#[test]
fn a_hundred_reloads_under_load_neither_open_nor_break_anything() {
    let Some(hub) = guarded() else { return };
    let (database, machine) = (site("db.partner.example"), hub.lab.training());
    machine.dig(&[database.name]).assert_done();
    let mut stream = machine.connect(database.v4, 5432);
    let load = machine.load();
    for round in 0..100 {
        let policy =
            format!("{POLICY}  - {{name: round-{round}, type: fqdn, destination: round-{round}.example}}\n");
        reload(&hub.gate, &policy);
        assert!(stream.echoes(&format!("round {round}")), "the database's flow ended in round {round}");
    }
    load.wait_for(10, "http", true);
    load.wait_for(10, "udp", true);
    let attempts = load.attempts();
    let broken: Vec<&Attempt> =
        attempts.iter().filter(|attempt| !attempt.worked && !attempt.kind.starts_with("forbidden")).collect();
    assert!(broken.is_empty(), "{broken:?}");
    nothing_denied_passed(&hub.lab, &load);
}

/// Reloads, and waits for the gate's word rather than its record, which is one among a great many.
fn reload(gate: &Gate, policy: &str) {
    let reloads = || gate.talk().matches("outgate: enforcing revision").count();
    let before = reloads();
    gate.write_policy(policy);
    // At once, where a change of files would first be given time to settle.
    gate.signal(Signal::HUP);
    wait_until("a reload", || reloads() > before);
}

/// Lets a gate end under load, and starts another on what it leaves.
fn ends_and_another_starts(end: impl FnOnce(&mut Gate)) {
    let Some(Guarded { mut gate, lab }) = guarded() else { return };
    let load = lab.training().load();
    load.wait_for(20, "http", true);
    load.wait_for(20, "udp", true);

    let down = now();
    end(&mut gate);
    load.wait_for(3, "http", false);
    load.wait_for(20, "forbidden", false);
    let second = gate_of(&lab, POLICY);
    let up = now();
    load.wait_for(20, "http", true);
    load.wait_for(20, "udp", true);

    // An attempt may have begun just before the end, and have been in the middle of it.
    let in_between = |attempt: &&Attempt| attempt.at > down - 2.5 && attempt.at < up;
    let attempts = load.attempts();
    let broken = attempts.iter().filter(|attempt| !attempt.worked && !attempt.kind.starts_with("forbidden"));
    let elsewhere: Vec<&Attempt> = broken.filter(|attempt| !in_between(attempt)).collect();
    assert!(elsewhere.is_empty(), "down from {down} to {up}: {elsewhere:?}");
    nothing_denied_passed(&lab, &load);
    drop(second);
}

fn nothing_denied_passed(lab: &Lab, load: &Load) {
    let attempts = load.attempts();
    let leaks: Vec<&Attempt> =
        attempts.iter().filter(|a| a.worked && a.kind.starts_with("forbidden")).collect();
    assert!(leaks.is_empty(), "{leaks:?} {:#?}", lab.capture().passed());
    let (azure, compute, database) =
        (site("ml.azure.com"), site("compute.azureml.example"), site("db.partner.example"));
    lab.capture().assert_only(&[(azure.v4, 80), (azure.v6, 80), (compute.v4, 5831), (database.v4, 5432)]);
}

#[test]
fn a_gate_killed_under_load_leaves_the_network_closed_until_the_next() {
    ends_and_another_starts(Gate::kill);
}

#[test]
fn an_upgrade_under_load_leaves_the_network_closed_in_between() {
    ends_and_another_starts(|gate| {
        gate.terminate();
        gate.signal(Signal::TERM);
        assert!(gate.ended().success());
    });
}

#[test]
fn only_down_takes_the_rules_away() {
    let Some(Guarded { mut gate, lab }) = guarded() else { return };
    let evil = site("evil.example");
    let shown = outgate(&lab, &gate, &["appliance", "show"]).assert_done().stdout;
    assert!(shown.contains("table inet outgate") && shown.contains("tproxy"), "{shown}");
    gate.terminate();
    assert!(gate.ended().success());
    let open = site("compute.azureml.example");
    assert!(
        lab.training().datagram(open.v4, 5831, b"a").is_prohibited(),
        "what the policy opens is closed, too"
    );
    assert!(lab.training().datagram(evil.v4, 5831, b"a").is_prohibited());
    assert!(lab.training().connect(evil.v4, 4444).end().bytes.is_empty());
    lab.capture().assert_only(&[]);

    outgate(&lab, &gate, &["appliance", "down"]).assert_done();
    assert_eq!(lab.machine(Place::Hub).shell("nft list tables").trim(), "");
    for family in ["-4", "-6"] {
        let rules = lab.machine(Place::Hub).shell(&format!("ip {family} rule show"));
        assert!(!rules.contains("fwmark"), "{rules}");
    }
    let again = lab.training().datagram(evil.v4, 5831, b"a");
    assert_eq!(again, Datagram::Answer(b"a".to_vec()), "down gives the host back as it was");
}

#[test]
fn up_alone_closes_the_network() {
    let Some(lab) = Lab::start() else { return };
    let folder = lab.folder().join("configuration");
    std::fs::create_dir(&folder).unwrap();
    for (name, text) in [
        ("policy.yaml", POLICY),
        ("tags.json", super::TAGS),
        ("outgate.yaml", "appliance: {clients: [10.1.0.0/16, \"fd00::/16\"]}\npolicy: [policy.yaml]\n"),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
    up(&lab, &folder.join("outgate.yaml")).assert_done();
    let (evil, compute, machine) = (site("evil.example"), site("compute.azureml.example"), lab.training());
    assert!(machine.datagram(evil.v4, 5831, b"a").is_prohibited());
    assert!(machine.connect(evil.v4, 4444).heard().bytes.is_empty());
    machine
        .curl(&[
            "--max-time",
            "3",
            "--resolve",
            &format!("ml.azure.com:443:{}", site("ml.azure.com").v4),
            "https://ml.azure.com/",
        ])
        .assert_failed();
    lab.capture().assert_only(&[(compute.v4, 5831)]);
    up(&lab, &folder.join("outgate.yaml")).assert_done();
}

fn up(lab: &Lab, config: &Path) -> Ran {
    let (program, config) = (binary().display().to_string(), config.display().to_string());
    lab.machine(Place::Hub).run(&program, &["appliance", "up", "--config", &config])
}

#[test]
fn what_is_live_in_the_kernel_outlives_the_gate() {
    let Some(Guarded { mut gate, lab }) = guarded() else { return };
    let (clock, machine) = (site("time.cloudflare.com"), lab.training());
    machine.dig(&[clock.name]).assert_done();
    assert!(matches!(machine.asks_the_time(clock.v4), Datagram::Answer(_)));
    gate.kill();
    assert!(matches!(machine.asks_the_time(clock.v4), Datagram::Answer(_)), "while it is down");
    let second = gate_of(&lab, POLICY);
    // The client does not ask again before its answer's lifetime is over.
    assert!(matches!(machine.asks_the_time(clock.v4), Datagram::Answer(_)), "after the restart");

    second.reload_with(&without("time"));
    wait_until("the end of what was told", || machine.asks_the_time(clock.v4).is_prohibited());
}
