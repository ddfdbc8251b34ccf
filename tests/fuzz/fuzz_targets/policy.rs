//! Any bytes are a policy or are rejected with mistakes that can be shown; and an empty set of rules denies.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use outgate_rules::policy::{Source, compile, run_tests};
use outgate_rules::{Destination, Protocol, Request};

fuzz_target!(|bytes: &[u8]| {
    let source = Source { name: "policy.yaml".to_owned(), bytes: bytes.to_vec() };
    let now = jiff::Timestamp::UNIX_EPOCH;
    let mut read = |_: &str| Ok(bytes.to_vec());
    match compile(&[source], &mut read, None, now) {
        Ok(compiled) => {
            let rules = Arc::new(compiled.rules);
            run_tests(&rules, &compiled.tests, now);
            let destination = Destination::parse("not-in.any.policy.example:443").unwrap();
            let request = Request { client: [10, 0, 0, 1].into(), destination: &destination, protocol: Protocol::Tcp };
            let decision = rules.decide(&request, now);
            assert!(!rules.is_empty() || !decision.allows() || decision.reason.code() == "internet-mode");
        }
        Err(diagnostics) => {
            assert!(diagnostics.errors() > 0);
            assert!(!diagnostics.to_string().contains('\u{1b}'));
        }
    }
});
