//! What a destination is shown as is read as the same destination, and as no other.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outgate_rules::{Destination, Host, Port};

fuzz_target!(|text: &str| {
    if let Ok(destination) = Destination::parse(text) {
        let shown = destination.to_string();
        assert_eq!(Destination::parse(&shown).as_ref(), Ok(&destination));
        assert_eq!(Host::parse(&destination.host.to_string()).as_ref(), Ok(&destination.host));
        assert!(shown.bytes().all(|byte| byte.is_ascii_graphic()));
        // A port that was written is never replaced.
        assert_eq!(Destination::parse_with_default(text, Port::HTTP).as_ref(), Ok(&destination));
    }
    if let Ok(destination) = Destination::parse_with_default(text, Port::HTTP) {
        let shown = destination.to_string();
        assert_eq!(Destination::parse(&shown).as_ref(), Ok(&destination));
    }
});
