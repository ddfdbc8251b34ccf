//! DNS: what a client learns of names, what an upstream learns of clients, and what is put on record.

mod answers;
mod authorities;
mod cache;
mod chromium;
mod denied;
mod failing;
mod ipv6;
mod limits;
mod malformed;
mod packets;
mod pinned;
mod private_link;
mod programs;
mod services;
mod upstream_tls;
mod upstreams;

use outgate_tests::lookup::A;
use outgate_tests::{Gate, Setup, Upstream};

/// An allowed name that no test asks for but by [`assert_only_asked`].
const LAST: &str = "last.example";

/// A policy that lets these names resolve, to public addresses.
fn resolving(names: &[&str]) -> String {
    let mut policy =
        format!("outbound_rules:\n  - {{name: last, type: fqdn, destination: {LAST}, ports: [443]}}\n");
    for (index, name) in names.iter().enumerate() {
        let rule = format!("{{name: rule-{}, type: fqdn, destination: \"{name}\", ports: [443]}}", index + 1);
        policy.push_str(&format!("  - {rule}\n"));
    }
    policy
}

/// A gate, not yet started, that asks one upstream.
fn asking(upstream: &Upstream, policy: impl AsRef<str>) -> Setup {
    Setup::new(policy.as_ref()).set("dns.upstreams", [upstream.address().to_string()])
}

/// Asserts that the upstream has been asked for these names and no others. A question that goes through on the
/// same way is the proof that no other is still under way.
fn assert_only_asked(gate: &Gate, upstream: &Upstream, names: &[&str]) {
    let _ = gate.lookup(LAST, A);
    let mut asked = upstream.asked();
    assert_eq!(asked.pop().as_deref(), Some(LAST), "{asked:?}");
    assert_eq!(asked, names);
}
