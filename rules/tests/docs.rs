//! The documentation says what the code says: reasons, tests and examples are looked up, not trusted.
//!
//! `UPDATE_EXPECT=1 cargo test -p outgate-rules --test docs` writes the table of reasons, and what is said of the
//! policies on the policy page, anew.
#![allow(clippy::unwrap_used, clippy::panic)] // a test's own helpers may stop it

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use outgate_rules::Reason;
use outgate_rules::policy::{Source, compile};

/// The head of the table of reasons.
const REASONS: &str = "| code | status | proxy error | sentence |\n| --- | --- | --- | --- |\n";

/// A fenced block of a page: the words behind its fence, and its text.
type Block = (String, String);

#[test]
fn every_reason_is_in_the_page_on_records_as_clients_get_it() {
    let page = read("docs/audit.md");
    let (before, behind) = page.split_once(REASONS).unwrap();
    let (_, after) = behind.split_once("\n\n").unwrap();
    let expected = format!("{before}{REASONS}{}\n\n{after}", rows_of_reasons());
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(root().join("docs/audit.md"), expected).unwrap();
        return;
    }
    for row in rows_of_reasons().lines() {
        assert!(page.lines().any(|line| line == row), "docs/audit.md lacks this row:\n{row}");
    }
    assert!(page == expected, "the table of reasons in docs/audit.md has another order, or more rows");
}

fn rows_of_reasons() -> String {
    let error = |reason: &Reason| match reason.proxy_error().token() {
        "" => String::new(),
        token => format!("`{token}`"),
    };
    let row = |reason: &Reason| {
        format!("| `{}` | {} | {} | {} |", reason.code(), reason.status(), error(reason), reason.sentence())
    };
    Reason::ALL.iter().map(row).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let page = read("docs/threat-model.md");
    let cited: Vec<&str> = page.split('`').skip(1).step_by(2).filter(|text| is_test(text)).collect();
    assert!(cited.len() > 80, "the page names its tests");
    for (file, test) in cited.iter().filter_map(|cited| cited.split_once("::")) {
        let source = read(&format!("tests/e2e/{file}.rs"));
        assert!(source.contains(&format!("fn {test}()")), "tests/e2e/{file}.rs has no test {test}");
    }
}

#[test]
fn every_row_of_the_threat_model_names_a_test_or_says_why_not() {
    let page = read("docs/threat-model.md");
    let rows = page.lines().filter(|line| line.split('|').nth(1).is_some_and(is_row)).collect::<Vec<_>>();
    assert_eq!(rows.len(), 8 + 5 + 8 + 8 + 8 + 5);
    for row in rows {
        let says_why = ["Not yet", "Not visible", "that you trust", "has `ech`"];
        assert!(row.contains("::") || says_why.iter().any(|why| row.contains(why)), "{row}");
    }
}

#[test]
fn every_policy_on_the_policy_page_compiles_or_says_what_is_shown() {
    let mut page = read("docs/policy.md");
    let blocks = blocks(&page);
    let mut seen = 0;
    for (index, (words, text)) in
        blocks.iter().enumerate().filter(|(_, (words, _))| words.starts_with("yaml"))
    {
        let (taken, said) = check(text);
        assert_eq!(taken, words == "yaml", "{text}\n{said}");
        match blocks.get(index + 1) {
            Some((words, shown)) if words == "text" && std::env::var_os("UPDATE_EXPECT").is_some() => {
                page = page.replace(shown.trim_end(), said.trim_end());
            }
            Some((words, shown)) if words == "text" => {
                assert_eq!(said.trim_end(), shown.trim_end(), "{text}")
            }
            _ => assert!(taken && !said.contains("warning"), "{text}\n{said}"),
        }
        seen += 1;
    }
    assert!(seen > 30, "the page has its examples");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(root().join("docs/policy.md"), page).unwrap();
    }
}

#[test]
fn the_sample_policy_compiles_without_a_warning_and_passes_its_tests() {
    let folder = root().join("packaging/examples/policy.d");
    let files: BTreeSet<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();
    let source = |path: &PathBuf| Source { name: path.display().to_string(), bytes: fs::read(path).unwrap() };
    let sources: Vec<Source> = files.iter().map(source).collect();
    let mut read = |path: &str| fs::read(path).map_err(|error| error.to_string());
    let now = now();
    let compiled = compile(&sources, &mut read, None, now).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(!compiled.diagnostics.to_string().contains("warning"), "{}", compiled.diagnostics);
    let outcomes =
        outgate_rules::policy::run_tests(&std::sync::Arc::new(compiled.rules), &compiled.tests, now);
    assert!(outcomes.len() > 5);
    for outcome in outcomes {
        assert!(outcome.passed(), "{outcome}");
    }
}

/// Compiles a policy of the page as `policy.yaml`: whether it was taken, and what was said of it.
fn check(text: &str) -> (bool, String) {
    let sources = [Source { name: "policy.yaml".to_owned(), bytes: text.as_bytes().to_vec() }];
    let files = root().join("rules/tests/policies/files");
    let mut read = |path: &str| {
        let name = match path {
            "ServiceTags_Public.json" => "ServiceTags_Small.json",
            "missing.txt" => return Err("No such file or directory (os error 2)".to_owned()),
            other => other,
        };
        fs::read(files.join(name)).map_err(|error| error.to_string())
    };
    match compile(&sources, &mut read, None, now()) {
        Ok(compiled) => (true, compiled.diagnostics.to_string()),
        Err(diagnostics) => (false, diagnostics.to_string()),
    }
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for line in page.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(words), None) => open = Some((words.to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some((_, text))) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

/// `names::a_wildcard_takes_whole_labels`, `dns/denied::report_mode_answers_and_records_what_would_have_been`
fn is_test(text: &str) -> bool {
    let word =
        |part: &str| part.bytes().all(|byte| byte.is_ascii_lowercase() || b"_0123456789".contains(&byte));
    text.split_once("::")
        .is_some_and(|(file, test)| file != "file" && file.split('/').all(word) && word(test))
}

/// The number of a row, as in ` N1 `.
fn is_row(cell: &str) -> bool {
    let mut bytes = cell.trim().bytes();
    bytes.next().is_some_and(|byte| b"NATHDO".contains(&byte))
        && bytes.all(|byte| byte.is_ascii_digit())
        && cell.trim().len() > 1
}

fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}
