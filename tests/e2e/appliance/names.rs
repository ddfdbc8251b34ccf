//! What names a flow is what it says, and where it goes is where that name is: the address that a client chose
//! decides nothing for a name.

use outgate_tests::hello::{Bent, in_records};
use outgate_tests::lab::{Heard, Lab, site};

use super::{Guarded, guarded, with_tags};

/// The fatal TLS alert `access_denied`.
const ACCESS_DENIED: &[u8] = &[21, 3, 3, 0, 2, 2, 49];
/// A record of a handshake, with which a server's answer to a hello begins.
const HANDSHAKE: u8 = 22;

/// What comes of these bytes on a TLS connection to an address that no rule opens.
fn told_to_evil(hub: &Guarded, bytes: impl AsRef<[u8]>) -> Heard {
    hub.lab.training().tell(site("evil.example").v4, 443, bytes)
}

fn nothing_went_to_evil(hub: &Guarded) {
    let evil = site("evil.example");
    for address in [evil.v4, evil.v6] {
        let to_evil = hub.lab.capture().besides(|packets| packets.destination.to_string() != address);
        assert!(to_evil.is_empty(), "{to_evil:?}");
    }
}

#[test]
fn an_allowed_server_name_sent_to_a_chosen_address_reaches_the_real_site() {
    let Some(hub) = guarded() else { return };
    let (pypi, evil) = (site("pypi.org"), site("evil.example"));
    for address in [evil.v4, evil.v6] {
        let shown = hub.lab.training().s_client(address, Some("pypi.org")).assert_done().stdout;
        assert!(shown.contains("Verification: OK"), "{shown}");

        let resolve = format!("pypi.org:443:{address}");
        let said =
            hub.lab.training().curl(&["--resolve", &resolve, "https://pypi.org/whoami"]).assert_done().stdout;
        let real = [pypi.v4, pypi.v6].map(|real| format!("pypi.org at {real} "));
        assert!(real.iter().any(|real| said.starts_with(real)), "{said}");
    }
    let decision = hub.gate.record("the flow", |r| r["kind"] == "tls" && r["event"] == "decision");
    assert_eq!((&decision["host"], &decision["original"]), (&"pypi.org".into(), &evil.v4.into()));
    nothing_went_to_evil(&hub);
}

#[test]
fn an_allowed_host_sent_to_a_chosen_address_reaches_the_real_site() {
    let Some(hub) = guarded() else { return };
    let resolve = format!("ml.azure.com:80:{}", site("evil.example").v4);
    let said =
        hub.lab.training().curl(&["--resolve", &resolve, "http://ml.azure.com/whoami"]).assert_done().stdout;
    assert!(said.starts_with("ml.azure.com at "), "{said}");
    nothing_went_to_evil(&hub);
}

#[test]
fn a_denied_server_name_sent_to_an_allowed_sites_address_goes_nowhere() {
    let Some(hub) = guarded() else { return };
    let hello = hub.lab.authority().hello("evil.example");
    let heard = hub.lab.training().tell(site("pypi.org").v4, 443, hello);
    assert_eq!((heard.bytes.as_slice(), heard.ended.as_deref()), (ACCESS_DENIED, Some("closed")));
    assert_eq!(hub.gate.decision("evil.example")["reason"], "no-rule");
    hub.lab.capture().assert_only(&[]);
}

#[test]
fn what_names_no_one_host_goes_nowhere_each_for_its_reason() {
    let Some(hub) = guarded() else { return };
    let two = Bent {
        server_names: [&Bent::naming(&[b"pypi.org"]), &Bent::naming(&[b"evil.example"])]
            .map(|one| one.server_names[0].clone())
            .to_vec(),
        ..Bent::default()
    };
    let hello = hub.lab.authority().hello("pypi.org");
    let cases: [(&str, &str, Vec<u8>); 8] = [
        ("a hello without a name", "sni-missing", Bent::default().bytes()),
        ("two names in one list", "sni-invalid", Bent::naming(&[b"pypi.org", b"evil.example"]).bytes()),
        ("two lists", "hello-malformed", two.bytes()),
        ("an address as a name", "sni-invalid", Bent::naming(&[b"93.184.216.34"]).bytes()),
        ("a NUL in the name", "sni-invalid", Bent::naming(&[b"pypi.org\0.evil.example"]).bytes()),
        ("half a hello", "hello-timeout", hello[..hello.len() / 2].to_vec()),
        ("HTTP", "not-tls", b"GET / HTTP/1.1\r\nHost: pypi.org\r\n\r\n".to_vec()),
        ("SSH", "not-tls", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
    ];
    for (what, reason, bytes) in cases {
        let heard = told_to_evil(&hub, bytes);
        assert!(heard.bytes.is_empty() || heard.bytes == ACCESS_DENIED, "{what}: {heard:?}");
        let record = hub.gate.record(what, |r| r["client_port"] == heard.port && r["event"] == "decision");
        assert_eq!((&record["verdict"], &record["reason"]), (&"deny".into(), &reason.into()), "{what}");
        assert_eq!(record["original"], site("evil.example").v4, "{what}");
    }
    hub.lab.capture().assert_only(&[]);
}

#[test]
fn a_cut_hello_is_read_whole_and_judged_as_one() {
    let Some(hub) = guarded() else { return };
    let evil = site("evil.example").v4;
    for (name, begins) in [("pypi.org", HANDSHAKE), ("evil.example", ACCESS_DENIED[0])] {
        let hello = in_records(&hub.lab.authority().hello(name), 3);
        let mut conversation = hub.lab.training().connect(evil, 443);
        for piece in hello.chunks(7) {
            conversation.send(piece);
        }
        outgate_tests::wait_until("an answer", || !conversation.heard().bytes.is_empty());
        assert_eq!(conversation.heard().bytes[0], begins, "{name}");
    }
    nothing_went_to_evil(&hub);
}

#[test]
fn the_outer_name_of_an_encrypted_hello_decides() {
    let Some(hub) = guarded() else { return };
    for (name, verdict) in [("pypi.org", "allow"), ("evil.example", "deny")] {
        let hello = Bent { ech: true, ..Bent::naming(&[name.as_bytes()]) };
        let heard = told_to_evil(&hub, hello.bytes());
        let record = hub.gate.record(name, |r| r["client_port"] == heard.port && r["event"] == "decision");
        assert_eq!((&record["verdict"], &record["ech"]), (&verdict.into(), &true.into()), "{record}");
    }
    nothing_went_to_evil(&hub);
}

#[test]
fn a_name_whose_addresses_may_not_be_reached_leads_nowhere() {
    let Some(hub) = guarded() else { return };
    let machine = hub.lab.training();
    for (name, reason) in [
        ("metadata.rebound.example", "address-metadata"),
        ("platform.rebound.example", "address-metadata"),
        ("private.rebound.example", "address-private"),
        ("loopback.rebound.example", "address-loopback"),
    ] {
        let resolve = format!("{name}:80:{}", site("evil.example").v4);
        let url = format!("http://{name}/");
        machine.curl(&["--resolve", &resolve, &url]).assert_failed();
        let record =
            hub.gate.record(name, |r| r["host"] == name && r["kind"] == "http" && r["event"] == "close");
        assert_eq!(record["reason"], reason, "{record}");
    }
    hub.lab.capture().assert_only(&[]);
}

#[test]
fn what_a_rule_for_an_address_takes_is_what_it_says_of_names_and_of_tls() {
    let Some(lab) = Lab::start() else { return };
    let (open, bound) = (site("evil.example").v4, site("ml.azure.com").v4);
    let rule = |name: &str, address: &str, port: u16, more: &str| {
        format!(
            "  - {{name: {name}, type: address, destination: {{addresses: [{address}], protocol: TCP, \
             port_ranges: \"{port}\"}}{more}}}\n"
        )
    };
    let rules = [
        rule("open", open, 80, ""),
        rule("tls", open, 443, ", tls_only: true"),
        rule("bound", bound, 80, ", names: [other.example]"),
    ];
    let gate = with_tags(lab.appliance(format!("outbound_rules:\n{}", rules.concat()))).start();
    let machine = lab.training();
    let reason = |rule: &str| gate.record(rule, |r| r["rule"]["name"] == rule && r["verdict"] == "deny");

    let resolve = format!("any.example:80:{open}");
    machine.curl(&["--resolve", &resolve, "http://any.example/whoami"]).assert_done();
    assert!(machine.tell(open, 443, "SSH-2.0-x\r\n").bytes.is_empty());
    assert_eq!(gate.reason("not-tls")["verdict"], "deny");
    // A Host that is the address itself is none of the rule's names.
    machine.curl(&[&format!("http://{bound}/whoami")]).assert_failed();
    assert_eq!(reason("bound")["reason"], "sni-not-in-rule");
    lab.capture().assert_only(&[(open, 80)]);
}
