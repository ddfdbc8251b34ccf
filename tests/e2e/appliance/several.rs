//! Options of the appliance: several gates behind one address, the clients' own addresses, the other redirection.

use outgate_tests::Gate;
use outgate_tests::gate::run_in;
use outgate_tests::lab::{Datagram, Lab, Place, site};

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

#[test]
fn an_exact_name_is_known_to_the_gate_that_was_not_asked_for_it() {
    let Some(lab) = Lab::start() else { return };
    let _gates = [gate_at(&lab, Place::Hub), gate_at(&lab, Place::SecondHub)];
    let (database, clock, machine) =
        (site("db.partner.example"), site("time.cloudflare.com"), lab.training());
    for name in [database.name, clock.name] {
        machine.dig(&[name]).assert_done();
    }
    lab.balance();
    for round in 0..8 {
        let heard = machine.connect(database.v4, 5432).echoes("select 1");
        assert!(heard, "round {round}: the database");
        let came = machine.asks_the_time(clock.v4);
        assert!(matches!(came, Datagram::Answer(_)), "round {round}: the time: {came:?}");
    }
}

#[test]
fn several_gates_refuse_a_wildcard_that_only_one_of_them_could_know() {
    let Some(lab) = Lab::start() else { return };
    let policy =
        "outbound_rules:\n  - {name: any, type: fqdn, destination: \"*.partner.example\", ports: [5432]}\n";
    let setup = lab.appliance(policy).set("appliance.gates", "several");
    let (status, said) = setup.start_in_vain();
    assert!(!status.success() && said.contains("several"), "{said}");
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
