//! Azure Private Link: which names are asked of Azure's resolver, in a network where the test is that resolver.

use hickory_proto::op::ResponseCode;
use outgate_tests::alone::{Alone, alone};
use outgate_tests::authority::{NameServer, Software};
use outgate_tests::lookup::{A, addresses, code};
use outgate_tests::{Gate, Setup};
use serde_json::{Value, json};

/// Azure's resolver, the same address in every virtual network.
const AZURE: &str = "168.63.129.16";

/// What Azure's resolver knows inside the virtual network.
const INSIDE: [(&str, &str); 3] = [
    (
        "blob.core.windows.net",
        "mlstore CNAME mlstore.privatelink\nmlstore.privatelink A 10.1.5.4\nother A 20.60.1.1\nstray A 10.1.5.9\n",
    ),
    ("westeurope.azmk8s.io", "aks CNAME aks.privatelink\naks.privatelink A 10.1.5.5\n"),
    ("northeurope.azmk8s.io", "aks A 10.1.5.6\n"),
];

/// What anybody else is told: the public addresses.
const OUTSIDE: [(&str, &str); 4] = [
    ("blob.core.windows.net", "mlstore CNAME store\nstore A 20.60.1.1\nother A 20.60.1.1\n"),
    ("westeurope.azmk8s.io", "aks A 20.61.1.1\n"),
    ("northeurope.azmk8s.io", "aks A 20.62.1.1\n"),
    ("example", "www A 9.9.9.1\n"),
];

const POLICY: &str = "
outbound_rules:
  - name: workspace-storage
    type: private_endpoint
    destination:
      service_resource_id: /subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/mlstore
      subresource_target: blob
  - {name: other, type: fqdn, destination: [other.blob.core.windows.net, stray.blob.core.windows.net], ports: [443]}
  - {name: clusters, type: fqdn, destination: ['*.azmk8s.io'], ports: [443], resolves_to: [10.1.0.0/16, 20.0.0.0/8]}
  - {name: example, type: fqdn, destination: www.example, ports: [443]}
";

/// A gate between Azure's resolver and another.
struct Network {
    gate: Gate,
    azure: NameServer,
    other: NameServer,
    _network: Alone,
}

impl Network {
    fn start<F: Fn()>(this: F, private_link: Value) -> Option<Self> {
        let network = alone(this)?;
        network.own(AZURE);
        let azure = Some(format!("{AZURE}:53").parse().unwrap());
        let azure = NameServer::authority(Software::Bind, &INSIDE, azure)?;
        let other = NameServer::authority(Software::Bind, &OUTSIDE, None)?;
        let gate = Setup::new(POLICY)
            .set("dns.upstreams", [other.address().to_string()])
            .set("dns.private_link", private_link)
            .start();
        Some(Self { gate, azure, other, _network: network })
    }

    fn told(&self, name: &str) -> Vec<String> {
        addresses(&self.gate.lookup(name, A))
    }
}

#[test]
fn the_names_of_private_endpoints_are_asked_of_azure_and_all_others_are_not() {
    let this = the_names_of_private_endpoints_are_asked_of_azure_and_all_others_are_not;
    let Some(network) = Network::start(this, json!(true)) else { return };
    assert_eq!(network.told("mlstore.blob.core.windows.net"), ["10.1.5.4"]);
    assert_eq!(network.told("other.blob.core.windows.net"), ["20.60.1.1"]);
    assert_eq!(network.told("www.example"), ["9.9.9.1"]);
    let record = network.gate.decision("mlstore.blob.core.windows.net");
    assert_eq!(
        (&record["upstream"], &record["rule"]["name"]),
        (&json!("168.63.129.16:53"), &json!("workspace-storage"))
    );
    assert_eq!(network.azure.asked(), ["mlstore.blob.core.windows.net A", "other.blob.core.windows.net A"]);
    assert_eq!(network.other.asked(), ["www.example A"]);
}

#[test]
fn a_private_address_of_a_name_that_is_no_private_endpoint_is_withheld() {
    let this = a_private_address_of_a_name_that_is_no_private_endpoint_is_withheld;
    let Some(network) = Network::start(this, json!(true)) else { return };
    assert_eq!(network.told("stray.blob.core.windows.net"), Vec::<String>::new());
    let withheld = &network.gate.decision("stray.blob.core.windows.net")["withheld"];
    assert_eq!(withheld, &json!({"10.1.5.9": "address-private"}));
    // The link's own name is nobody's to ask for.
    let answer = network.gate.lookup("mlstore.privatelink.blob.core.windows.net", A);
    assert_eq!(code(&answer), ResponseCode::NXDomain);
}

#[test]
fn a_region_has_zones_of_its_own() {
    let Some(network) = Network::start(a_region_has_zones_of_its_own, json!({"region": "westeurope"})) else {
        return;
    };
    assert_eq!(network.told("aks.westeurope.azmk8s.io"), ["10.1.5.5"]);
    assert_eq!(network.told("aks.northeurope.azmk8s.io"), ["20.62.1.1"], "another region");
    assert_eq!(
        network.told("mlstore.blob.core.windows.net"),
        ["10.1.5.4"],
        "beside the zones of all regions"
    );
}

#[test]
fn without_private_link_azure_is_asked_for_nothing_and_public_addresses_of_an_endpoint_are_withheld() {
    let this =
        without_private_link_azure_is_asked_for_nothing_and_public_addresses_of_an_endpoint_are_withheld;
    let Some(network) = Network::start(this, json!(false)) else { return };
    assert_eq!(network.told("mlstore.blob.core.windows.net"), Vec::<String>::new());
    let record = network.gate.decision("mlstore.blob.core.windows.net");
    assert!(record["withheld"].get("20.60.1.1").is_some(), "{record}");
    assert_eq!(network.told("aks.westeurope.azmk8s.io"), ["20.61.1.1"]);
    assert_eq!(network.azure.asked(), Vec::<String>::new());
}

#[test]
fn a_zone_of_ones_own_goes_before_the_same_zone_of_private_link() {
    let this = a_zone_of_ones_own_goes_before_the_same_zone_of_private_link;
    let Some(network) = alone(this) else { return };
    network.own(AZURE);
    let azure = Some(format!("{AZURE}:53").parse().unwrap());
    let (Some(_azure), Some(other)) = (
        NameServer::authority(Software::Knot, &INSIDE, azure),
        NameServer::authority(Software::Knot, &OUTSIDE, None),
    ) else {
        return;
    };
    let upstream = other.address().to_string();
    let gate = Setup::new(POLICY)
        .set("dns.upstreams", [upstream.clone()])
        .set("dns.private_link", json!({"region": "westeurope"}))
        .set("dns.zones", json!({"westeurope.azmk8s.io": [upstream]}))
        .start();
    assert_eq!(addresses(&gate.lookup("aks.westeurope.azmk8s.io", A)), ["20.61.1.1"]);
    assert_eq!(addresses(&gate.lookup("mlstore.blob.core.windows.net", A)), ["10.1.5.4"]);
}
