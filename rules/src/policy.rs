//! The policy language: YAML in, a [`RuleSet`] out, and every mistake at once.
//!
//! A policy is one file or several, whose rule sets add up. It is a superset of the `managed_network` block that
//! `az ml workspace create -f` takes, so that a workspace's own rules, or the whole workspace file, load
//! unchanged. The life of a policy: bytes become a tree of values with their places (`yaml`), the tree becomes
//! what was written (`raw`), and that becomes rules (`compile`); then `lint` looks at what these open. What
//! is wrong on the way is collected and the reading goes on.
//!
//! An empty policy denies everything, an unknown key is an error, and so is an empty list where it might mean
//! everything.

mod compile;
mod endpoint;
mod expectation;
mod lint;
mod parameters;
mod raw;
mod references;
mod stores;
mod tag_files;
mod values;

use jiff::Timestamp;

use crate::ruleset::RuleSet;

use crate::document::{Diagnostics, FileId, Report, Severity, decode, parse, plural, quoted, suggestion};
use compile::{Compiler, Loaded, Origin};
use raw::RawPolicy;
use references::References;

pub use expectation::{PolicyTest, TestOutcome, run_tests};
pub use references::{ReadFile, resolve};
pub use tag_files::Tags;

/// One file of a policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// Its path as it is shown to people. What the file refers to is looked for beside it.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// A policy that was taken.
#[derive(Debug)]
pub struct Compiled {
    /// What decides.
    pub rules: RuleSet,
    /// Warnings and notes.
    pub diagnostics: Diagnostics,
    /// The policy's own tests, for [`run_tests`].
    pub tests: Vec<PolicyTest>,
    /// Every file that was read, the sources first: what to watch for changes.
    pub files: Vec<String>,
    /// The service tags it was compiled with; empty where it names no files of them. To be handed to the
    /// compilation of the next reload.
    pub tags: Tags,
    /// How much there is.
    pub summary: Summary,
}

/// How much a policy says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Rules, those of presets included.
    pub rules: usize,
    /// Names and patterns of all rules together.
    pub names: usize,
    /// Prefixes that address and tag rules speak of.
    pub prefixes: usize,
    /// Presets.
    pub presets: usize,
    /// Tests.
    pub tests: usize,
}

impl std::fmt::Display for Summary {
    /// `12 rules, 40 names, 0 prefixes, 2 presets, 3 tests`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts = [
            plural(self.rules, "rule"),
            plural(self.names, "name"),
            match self.prefixes {
                1 => "1 prefix".to_owned(),
                many => format!("{many} prefixes"),
            },
            plural(self.presets, "preset"),
            plural(self.tests, "test"),
        ];
        f.write_str(&counts.join(", "))
    }
}

/// The policy that holds where none is given: the presets for Azure ML and for Python packages.
#[must_use]
pub fn builtin() -> Vec<Source> {
    let text = "presets: [azure-ml, python]\n";
    vec![Source { name: "built-in policy".to_owned(), bytes: text.as_bytes().to_vec() }]
}

/// Compiles a policy. `read` reads the files that it refers to, by the path that [`resolve`] makes. `previous`
/// are the tags of the policy in force, by which an abnormal refresh of their files is held back; none at the
/// start. `now` tells which rules have expired.
///
/// # Errors
/// Every mistake in every file. Then nothing of the policy is to be used: a part of it might open what the
/// rest denies.
pub fn compile<'r>(
    sources: &[Source],
    read: &'r mut ReadFile<'r>,
    previous: Option<&Tags>,
    now: Timestamp,
) -> Result<Compiled, Diagnostics> {
    let mut report = Report::default();
    match compile_into(&mut report, sources, read, previous, now) {
        Some(compiled) if !report.has_errors() => {
            Ok(Compiled { diagnostics: report.into_diagnostics(), ..compiled })
        }
        Some(_) | None => Err(report.into_diagnostics()),
    }
}

fn compile_into<'r>(
    report: &mut Report,
    sources: &[Source],
    read: &'r mut ReadFile<'r>,
    previous: Option<&Tags>,
    now: Timestamp,
) -> Option<Compiled> {
    let mut references = References::new(read);
    let mut files: Vec<Loaded> = Vec::new();
    for source in sources {
        references.files.push(source.name.clone());
        references.identity.add("source", &source.name, &source.bytes);
        files.extend(load(report, source));
    }
    if sources.is_empty() {
        report
            .overall(Severity::Error, "there is no policy file")
            .hint("name a file, or a folder with policy files in it");
    }
    let mut compiler = Compiler::new(report, references);
    compiler.load_presets(&mut files, read_text);
    let mut settings = compiler.settings(&files);
    compiler.load_tags(&files, previous);
    for Loaded { raw, origin } in &files {
        raw.rules.iter().for_each(|rule| compiler.rule(rule, *origin));
    }
    compiler.note_what_is_off();
    compiler.warn_of_unused_parameters();
    let presets = std::mem::take(&mut compiler.presets);
    let counts = std::mem::take(&mut compiler.counts);
    let (builder, lint, references, tags) = compiler.into_parts();
    if report.has_errors() {
        check_tests(report, &files, None);
        return None;
    }
    settings.revision = references.identity.revision();
    let rules = match builder.build(settings) {
        Ok(rules) => rules,
        Err(error) => {
            report
                .overall(Severity::Error, error.to_string())
                .hint("write fewer patterns with wildcards inside a label");
            return None;
        }
    };
    lint.finish(report, &rules, &presets, now);
    let tests = check_tests(report, &files, Some(&rules));
    let summary = Summary {
        rules: rules.len(),
        names: counts.names,
        prefixes: counts.prefixes,
        presets: presets.len(),
        tests: tests.len(),
    };
    Some(Compiled {
        rules,
        diagnostics: Diagnostics::default(),
        tests,
        files: references.files,
        tags,
        summary,
    })
}

fn load(report: &mut Report, source: &Source) -> Option<Loaded> {
    match decode(source.bytes.clone()) {
        Ok(text) => {
            let file = report.add_file(&source.name, text);
            read_text(report, file).map(|raw| Loaded { raw, origin: Origin::Own })
        }
        Err(mistake) => {
            report.file_error(&source.name, mistake.line, mistake.message).hint_if(mistake.hint);
            None
        }
    }
}

fn read_text(report: &mut Report, file: FileId) -> Option<RawPolicy> {
    let root = parse(report, file)?;
    Some(raw::read(report, &root))
}

/// The policy's tests. One that names a rule which does not exist could never pass.
fn check_tests(report: &mut Report, files: &[Loaded], rules: Option<&RuleSet>) -> Vec<PolicyTest> {
    let mut tests = Vec::new();
    let names = rules.map(lint::rule_names);
    for test in files.iter().flat_map(|file| &file.raw.tests) {
        if let (Some(span), Some(rule), Some(names)) = (test.rule, &test.test.rule, &names)
            && !names.contains_key(&**rule)
        {
            let hint = suggestion(rule, names.keys().copied());
            report.error(span, format!("no rule is named {}", quoted(rule))).hint(hint);
        }
        tests.push(test.test.clone());
    }
    tests
}

#[cfg(test)]
mod tests;
