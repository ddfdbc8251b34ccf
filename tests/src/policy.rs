//! Policies as tests write them.

use std::fmt::Write;

/// A policy that opens each name on its ports, on loopback addresses, where the origins of tests live. Rule
/// `n` is called `rule-n`, from 1.
#[must_use]
pub fn allow(names: &[(&str, &[u16])]) -> String {
    let mut policy = String::from("outbound_rules:\n");
    for (index, (name, ports)) in names.iter().enumerate() {
        writeln!(
            policy,
            "  - {{name: rule-{}, type: fqdn, destination: \"{name}\", ports: {ports:?}, resolves_to: [127.0.0.0/8]}}",
            index + 1
        )
        .unwrap();
    }
    policy
}

/// [`allow`] for one name.
#[must_use]
pub fn allow_one(name: &str, ports: &[u16]) -> String {
    allow(&[(name, ports)])
}

/// A policy with one rule whose further fields are `more`, as in `max_upload: 100`.
#[must_use]
pub fn allow_with(name: &str, ports: &[u16], more: &str) -> String {
    format!(
        "outbound_rules:\n  - {{name: rule-1, type: fqdn, destination: \"{name}\", ports: {ports:?}, \
         resolves_to: [127.0.0.0/8], {more}}}\n"
    )
}

/// The moment so many seconds from now, as a policy writes it.
#[must_use]
pub fn timestamp_in(seconds: u64) -> String {
    let now = jiff::Timestamp::now();
    (now + std::time::Duration::from_secs(seconds)).to_string()
}

/// A policy that allows nothing, and says so.
pub const NOTHING: &str = "outbound_rules: []\n";
