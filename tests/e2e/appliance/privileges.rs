//! What the gate may do on its host, and what it does not need.

use outgate_tests::lab::{Datagram, Lab, site};

use super::{POLICY, with_tags};

/// CAP_NET_BIND_SERVICE and CAP_NET_ADMIN, as `/proc` writes them.
const TWO: &str = "CapEff:\t0000000000001400";

#[test]
fn two_capabilities_are_all_that_it_needs() {
    let Some(lab) = Lab::start() else { return };
    let only = "-all,+net_admin,+net_bind_service";
    let setup = with_tags(lab.appliance(POLICY)).by(&[
        "setpriv",
        "--no-new-privs",
        &format!("--bounding-set={only}"),
        &format!("--inh-caps={only}"),
    ]);
    let gate = setup.start();
    let status = std::fs::read_to_string(format!("/proc/{}/status", gate.pid())).unwrap();
    assert!(status.contains(TWO), "{status}");

    let (machine, compute, clock) =
        (lab.training(), site("compute.azureml.example"), site("time.cloudflare.com"));
    machine.curl(&["https://ml.azure.com/whoami"]).assert_done();
    machine.curl(&["https://evil.example/whoami"]).assert_failed();
    assert_eq!(machine.datagram(compute.v4, 5831, b"a"), Datagram::Answer(b"a".to_vec()));
    machine.dig(&[clock.name]).assert_done();
    assert!(matches!(machine.asks_the_time(clock.v4), Datagram::Answer(_)));
    gate.reload_with(&super::without("compute"));
    assert!(machine.datagram(compute.v4, 5831, b"a").is_prohibited());
}
