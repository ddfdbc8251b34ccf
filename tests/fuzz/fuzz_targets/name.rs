//! A name has one spelling, within its limits, which no other type of host shares.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use outgate_rules::DomainName;
use outgate_rules::name::{MAX_LABEL, MAX_NAME};

fuzz_target!(|text: &str| {
    if let Ok(name) = DomainName::parse(text) {
        assert!(text.trim_end_matches('.').eq_ignore_ascii_case(name.as_str()));
        assert_canonical(&name);
    }
    if let Ok(name) = DomainName::parse_unicode(text) {
        assert_canonical(&name);
        assert_eq!(DomainName::parse_unicode(name.as_str()).as_ref(), Ok(&name));
    }
});

fn assert_canonical(name: &DomainName) {
    let text = name.as_str();
    assert_eq!(DomainName::parse(text).as_ref(), Ok(name));
    assert_eq!(DomainName::parse(&format!("{text}.")).as_ref(), Ok(name));
    assert_eq!(DomainName::parse(&text.to_ascii_uppercase()).as_ref(), Ok(name));
    assert!(text.len() <= MAX_NAME);
    assert!(text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.')));
    assert!(name.labels().all(|label| (1..=MAX_LABEL).contains(&label.len())));
    assert!(text.parse::<IpAddr>().is_err());
    assert_eq!(name.and_ancestors().count(), name.labels().count());
}
