//! Flows that name nobody: an address decides, or the name for which this very client was told it.

use outgate_tests::lab::{Heard, Lab, Place, site};
use serde_json::json;

use super::{Guarded, POLICY, guarded, with_tags};

/// Asserts that a connection came to nothing, by this reason.
fn refused(hub: &Guarded, heard: &Heard, reason: &str) {
    assert!(heard.bytes.is_empty() && heard.failed.is_none(), "{heard:?}");
    let record = hub.gate.record("a refusal", |r| r["client_port"] == heard.port && r["event"] == "decision");
    assert_eq!((&record["verdict"], &record["reason"]), (&"deny".into(), &reason.into()), "{record}");
}

#[test]
fn an_address_without_a_rule_is_refused_on_every_port_and_in_both_families() {
    let Some(hub) = guarded() else { return };
    let evil = site("evil.example");
    for address in [evil.v4, evil.v6] {
        for port in [22, 25, 4444, 5432] {
            refused(&hub, &hub.lab.training().connect(address, port).end(), "no-rule");
        }
    }
    hub.lab.capture().assert_only(&[]);
}

#[test]
fn a_name_opens_its_ports_to_the_client_that_was_told_its_address() {
    let Some(hub) = guarded() else { return };
    let (database, name) = (site("db.partner.example"), "db.partner.example");
    let (training, scoring) = (hub.lab.training(), hub.lab.scoring());
    refused(&hub, &training.connect(database.v4, 5432).end(), "no-rule");

    assert_eq!(training.dig(&["+short", name]).assert_done().stdout.trim(), database.v4);
    let mut open = training.connect(database.v4, 5432);
    open.wait_for(&format!("{}\n", database.v4));
    assert!(open.echoes("select 1"));
    let record = hub.gate.record("the flow", |r| r["kind"] == "tcp" && r["verdict"] == "allow");
    assert_eq!((&record["original"], &record["rule"]["name"]), (&database.v4.into(), &"database".into()));

    // Neither another port, nor another address of the name, nor another client.
    refused(&hub, &training.connect(database.v4, 22).end(), "no-rule");
    refused(&hub, &training.connect(database.v6, 5432).end(), "no-rule");
    refused(&hub, &scoring.connect(database.v4, 5432).end(), "no-rule");
    hub.lab.capture().assert_only(&[(database.v4, 5432)]);
}

#[test]
fn metadata_services_and_the_gates_own_listeners_are_out_of_reach() {
    let Some(hub) = guarded() else { return };
    let machine = hub.lab.training();
    for address in ["169.254.169.254", "168.63.129.16"] {
        machine.curl(&[&format!("http://{address}/metadata/instance")]).assert_failed();
        let heard = machine.connect(address, 4444).end();
        assert!(heard.bytes.is_empty(), "{heard:?}");
    }
    // The proxy and the admin listener are on the hub's loopback; its own ports are no way out either.
    for (address, port) in [("127.0.0.1", 3128), ("10.0.0.4", 3128), ("10.0.0.4", 9180), ("10.0.0.4", 22)] {
        let heard = machine.connect(address, port).heard();
        assert!(heard.failed.is_some(), "{address}:{port} {heard:?}");
    }
    for port in [8443, 8080, 8081] {
        let hello = hub.lab.authority().hello("evil.example");
        let heard = machine.tell("10.0.0.4", port, hello);
        assert!(!heard.text().contains("evil"), "{port}: {heard:?}");
    }
    hub.lab.capture().assert_only(&[]);
}

/// Another program's rules on the hub, or a router beside it, may send the gate's own connections back to it.
#[test]
fn a_connection_of_the_gate_that_comes_back_to_it_goes_round_no_second_time() {
    let Some(lab) = Lab::start() else { return };
    // The hub's own network is one of clients: nothing but the address itself tells the gate.
    let gate = with_tags(lab.appliance(POLICY)).set("appliance.clients", json!(["10.0.0.0/8"])).start();
    let port = gate.listener("tls").port();
    lab.machine(Place::Hub).nft(&format!(
        "table ip loop {{
            chain output {{
                type nat hook output priority -100
                tcp dport 443 redirect to :{port}
            }}
        }}"
    ));
    lab.training().curl(&["-4", "https://ml.azure.com/whoami"]).assert_failed();
    let looped = gate.reason("proxy-loop");
    assert_eq!(looped["verdict"], "deny");
    assert_eq!(gate.decision("ml.azure.com")["verdict"], "allow", "the way there was allowed");
    let loops = gate.records().iter().filter(|record| record["reason"] == "proxy-loop").count();
    assert_eq!(loops, 1);
}
