//! DNS of clients, whomever they ask: the gate answers, and no question of theirs gets past it.

use outgate_tests::lab::{OTHER_RESOLVER, PUBLIC_RESOLVER, site};

use super::guarded;

#[test]
fn a_question_to_any_server_is_answered_by_the_gate() {
    let Some(hub) = guarded() else { return };
    let machine = hub.lab.training();
    let azure = site("ml.azure.com");
    // 10.99.0.1 is no server at all.
    for server in [PUBLIC_RESOLVER, OTHER_RESOLVER, site("dns.google").v6, "10.0.0.4", "10.99.0.1"] {
        for transport in ["+notcp", "+tcp"] {
            let ask = |name| machine.dig(&[transport, &format!("@{server}"), name]).assert_done().stdout;
            let said = ask("ml.azure.com");
            assert!(
                said.contains("status: NOERROR") && said.contains(azure.v4),
                "{server} {transport}: {said}"
            );
            let said = ask("evil.example");
            assert!(
                said.contains("status: NXDOMAIN") && said.contains("EDE: 15"),
                "{server} {transport}: {said}"
            );
        }
    }
    let asked = hub.lab.asked();
    assert!(asked.iter().all(|(client, name)| client == "10.0.0.4" && name == "ml.azure.com"), "{asked:?}");
    hub.lab.capture().assert_only(&[]);
}

#[test]
fn dns_inside_tls_or_https_or_on_another_port_reaches_nobody() {
    let Some(hub) = guarded() else { return };
    let machine = hub.lab.training();
    for server in [PUBLIC_RESOLVER, site("dns.google").v6] {
        for how in [&["+tls"][..], &["+https"], &["+tcp", "-p", "5353"], &["-p", "5353"]] {
            let ran = machine.dig(&[&[&*format!("@{server}"), "ml.azure.com"], how].concat());
            assert!(!ran.stdout.contains("status:"), "{server} {how:?}: {ran:?}");
        }
    }
    assert!(hub.lab.asked().is_empty(), "{:?}", hub.lab.asked());
    hub.lab.capture().assert_only(&[]);
}

#[test]
fn names_that_lead_to_inner_addresses_are_not_told() {
    let Some(hub) = guarded() else { return };
    for (name, _) in outgate_tests::lab::LIED_ABOUT {
        let said = hub.lab.training().dig(&["+short", name]).assert_done().stdout;
        assert_eq!(said.trim(), "", "{name}");
    }
}
