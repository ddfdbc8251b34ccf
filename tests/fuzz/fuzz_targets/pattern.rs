//! What a pattern is shown as is the same pattern, and it never matches outside its literal suffix.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outgate_rules::{DomainName, Pattern};

fuzz_target!(|texts: (&str, &str)| {
    let Ok(pattern) = Pattern::parse(texts.0) else { return };
    let shown = pattern.to_string();
    assert_eq!(Pattern::parse(&shown).as_ref(), Ok(&pattern), "{shown}");
    let suffix = pattern.suffix().clone();
    for name in [texts.1.to_owned(), format!("{}.{suffix}", texts.1), suffix.to_string()] {
        let Ok(name) = DomainName::parse(&name) else { continue };
        if pattern.matches(&name) {
            assert!(name == suffix || name.is_below(&suffix), "{shown} matches {name}");
            assert!(name != suffix || matches!(pattern, Pattern::Exact(_)), "{shown} matches the apex {name}");
        }
    }
});
