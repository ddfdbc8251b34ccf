//! Private endpoints whose addresses the policy gives: nobody is asked for them.

use outgate_tests::lookup::{A, AAAA, addresses, code};
use outgate_tests::upstream::address;
use outgate_tests::{Gate, Setup, Upstream};
use serde_json::json;

use hickory_proto::op::ResponseCode;

const NAME: &str = "mlvault.vault.azure.net";

/// The vault, with its address or without, for clients at 127.0.0.1 alone.
fn policy(addresses: &str) -> String {
    format!(
        "sources: {{training: [127.0.0.1/32]}}
outbound_rules:
  - name: vault
    type: private_endpoint
    sources: [training]
    destination:
      service_resource_id: /subscriptions/s/resourceGroups/g/providers/Microsoft.KeyVault/vaults/mlvault
      subresource_target: vault
{addresses}"
    )
}

/// A gate whose upstream says something else of the name.
fn gate(policy: &str) -> (Gate, Upstream) {
    let upstream = Upstream::knowing([address(NAME, 60, "10.7.7.7")]);
    let gate = Setup::new(policy).set("dns.upstreams", [upstream.address().to_string()]).start();
    (gate, upstream)
}

#[test]
fn a_name_whose_rule_gives_its_address_has_that_one_and_no_upstream_hears_of_it() {
    let (gate, upstream) = gate(&policy("      addresses: [10.1.5.4, 10.1.5.5]\n"));
    assert_eq!(addresses(&gate.lookup(NAME, A)), ["10.1.5.4", "10.1.5.5"]);
    let record = gate.decision(NAME);
    assert_eq!(record["answered_by"], "fixed");
    assert_eq!(record["addresses"], json!(["10.1.5.4", "10.1.5.5"]));
    assert_eq!(record["rule"]["name"], "vault");
    let nothing = gate.lookup(NAME, AAAA);
    assert_eq!((code(&nothing), addresses(&nothing)), (ResponseCode::NoError, Vec::new()));
    assert_eq!(upstream.packets(), Vec::<Vec<u8>>::new());
}

#[test]
fn a_name_whose_rule_gives_no_address_is_asked_for() {
    let (gate, upstream) = gate(&policy(""));
    assert_eq!(addresses(&gate.lookup(NAME, A)), ["10.7.7.7"]);
    assert_eq!(upstream.asked(), [NAME]);
}
