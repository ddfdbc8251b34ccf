//! Outgate from the outside: the real binary between real clients and scripted origins.
//!
//! One module a story. docs/threat-model.md names these tests, row by row.

// What stands outside the gate dials as it likes, and fails by panicking.
#![allow(clippy::disallowed_methods)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod addresses;
mod appliance;
mod audit;
mod bad_input;
mod cli;
mod clients;
mod connect;
mod dns;
mod hostile_origin;
mod http;
mod limits;
mod names;
mod packaging;
mod policy_files;
mod reload;
mod sandbox;
mod transparent;

use outgate_tests::Response;

/// Asserts that a response is a denial that explains itself: the status, the sentence as phrase and body, and
/// `Proxy-Status` with the proxy error type.
fn assert_denied(response: &Response, status: u16, error: &str, sentence: &str) {
    assert_eq!(response.status, status, "{response:?}");
    let proxy_status = response.field("proxy-status").unwrap_or_default();
    assert!(proxy_status.contains(&format!("error={error}")), "{proxy_status:?} lacks {error}");
    assert!(response.text().contains(sentence), "{:?} lacks {sentence:?}", response.text());
    assert!(response.phrase.is_ascii() && response.phrase.len() <= 120, "{:?}", response.phrase);
}
