//! The hub appliance: clients that know nothing of a gate, in a network of real hosts.

mod addresses;
mod clients;
mod datagrams;
mod dns;
mod lifetime;
mod names;
mod open_network;
mod privileges;
mod several;

use outgate_tests::lab::Lab;
use outgate_tests::{Gate, Setup};

/// What the stories open: a Python index to the training spoke alone, some of the web to both, a service tag's UDP,
/// a database and the time by name.
const POLICY: &str = r#"
service_tags: [tags.json]
sources:
  training: [10.1.0.0/24, "fd00:1::/64"]
outbound_rules:
  - {name: pypi, type: fqdn, destination: [pypi.org, "*.pythonhosted.org"], ports: [443], sources: [training]}
  - {name: web, type: fqdn, destination: [ml.azure.com, mcr.microsoft.com, github.com, deb.debian.org]}
  - {name: compute, type: service_tag, destination: {service_tag: AzureMachineLearning, protocol: UDP, port_ranges: "5831"}}
  - {name: database, type: fqdn, destination: db.partner.example, protocol: TCP, ports: [5432]}
  - {name: time, type: fqdn, destination: time.cloudflare.com, protocol: UDP, ports: [123]}
  - {name: rebound, type: fqdn, destination: "*.rebound.example"}
"#;

/// The file that the policy names: one tag, with the addresses of `compute.azureml.example` and their networks.
const TAGS: &str = r#"{"changeNumber": 1, "cloud": "Public", "values": [{
  "name": "AzureMachineLearning", "id": "AzureMachineLearning",
  "properties": {"changeNumber": 1, "region": "", "platform": "Azure", "systemService": "AzureMachineLearning",
    "addressPrefixes": ["20.61.0.0/24", "2603:1020:5::/64"], "networkFeatures": []}}]}"#;

/// A lab with a gate in its hub.
struct Guarded {
    gate: Gate,
    lab: Lab,
}

/// The lab with the appliance in its hub. None where there can be no lab.
fn guarded() -> Option<Guarded> {
    let lab = Lab::start()?;
    let gate = with_tags(lab.appliance(POLICY)).start();
    Some(Guarded { gate, lab })
}

/// What every gate of these stories has.
fn with_tags(setup: Setup) -> Setup {
    setup.file("tags.json", TAGS).set("limits.head", "1s")
}

/// The policy without the rule of this name.
fn without(rule: &str) -> String {
    let wanted = format!("name: {rule},");
    assert!(POLICY.contains(&wanted), "no rule {rule}");
    POLICY.lines().filter(|line| !line.contains(&wanted)).fold(String::new(), |all, line| all + line + "\n")
}
