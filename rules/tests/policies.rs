//! One policy file for each mistake and each promise, with what is said of it beside it.
//!
//! `policies/NAME.yaml` (or a folder `policies/NAME/` of several files) is compiled and the outcome compared with
//! `policies/NAME.txt`. `UPDATE_EXPECT=1 cargo test -p outgate-rules --test policies` writes the outcomes anew.
#![allow(clippy::unwrap_used, clippy::panic)] // a test's own helpers may stop it

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use outgate_rules::policy::{Source, compile, run_tests};

#[test]
fn each_policy_is_taken_or_rejected_as_the_file_beside_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policies");
    let mut wrong = Vec::new();
    let cases = cases(&folder);
    assert!(cases.len() > 50, "the folder of policies is there");
    for case in cases {
        let outcome = outcome(&folder, &case);
        let expected = case.with_extension("txt");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&expected, &outcome).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != outcome {
            wrong.push(format!("{} is not what comes out:\n{outcome}", expected.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_rejected_policy_has_a_line_and_a_hint() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policies");
    let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
    for case in cases(&folder) {
        let sources = sources(&folder, &case);
        let mut read = |path: &str| fs::read(folder.join(path)).map_err(|error| error.to_string());
        let Err(diagnostics) = compile(&sources, &mut read, None, now) else { continue };
        for diagnostic in diagnostics.iter() {
            let place =
                diagnostic.place.as_ref().unwrap_or_else(|| panic!("{}: {diagnostic:?}", case.display()));
            assert!(place.line > 0 && place.column > 0, "{}", case.display());
            assert!(diagnostic.hint.is_some(), "{}: {}", case.display(), diagnostic.message);
        }
        assert!(diagnostics.errors() > 0);
    }
}

/// Every policy file and every folder of them, other than `files`, which others refer to.
fn cases(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let policy = |path: &PathBuf| path.is_dir() || path.extension().is_some_and(|ending| ending == "yaml");
    entries.filter(|path| policy(path) && !path.ends_with("files")).collect()
}

fn sources(folder: &Path, case: &Path) -> Vec<Source> {
    let files = if case.is_dir() { cases(case).into_iter().collect() } else { vec![case.to_owned()] };
    let source = |path: PathBuf| Source {
        name: path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned(),
        bytes: fs::read(&path).unwrap(),
    };
    files.into_iter().map(source).collect()
}

fn outcome(folder: &Path, case: &Path) -> String {
    let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
    let mut read = |path: &str| fs::read(folder.join(path)).map_err(|error| error.kind().to_string());
    match compile(&sources(folder, case), &mut read, None, now) {
        Err(diagnostics) => format!("{diagnostics}\n"),
        Ok(compiled) => {
            let mut text = format!("{}\n\ntaken: {}\n", compiled.diagnostics, compiled.summary);
            let rules = Arc::new(compiled.rules);
            for rule in rules.rules().iter().filter(|rule| !rule.place.file.starts_with("preset:")) {
                let terms = &rule.terms;
                text.push_str(&format!(
                    "{}: {}: {:?} {} {}\n",
                    rule.place, rule.name, terms.action, terms.protocol, terms.ports
                ));
            }
            for outcome in run_tests(&rules, &compiled.tests, now) {
                text.push_str(&format!("{outcome}\n"));
            }
            text
        }
    }
}
