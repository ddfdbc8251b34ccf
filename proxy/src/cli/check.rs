//! `outgate check` and `outgate test`.

use std::sync::Arc;

use jiff::Timestamp;
use outgate_rules::policy::{Compiled, run_tests};

use super::{Exit, Files, say, show};
use crate::appliance::unkept;
use crate::config::Config;
use crate::policy::PolicyFiles;

/// Compiles the policy as the gate would. What is wrong with it is told.
pub(super) fn compile(files: &Files) -> Result<(Config, Compiled), Exit> {
    let config = files.config()?;
    match PolicyFiles::new(config.policy.clone()).load(None, Timestamp::now()) {
        Ok(compiled) => Ok((config, compiled)),
        Err(diagnostics) => {
            say(&diagnostics);
            Err(Exit::Bad)
        }
    }
}

/// Says what is wrong with the policy and the configuration, and how much they hold.
pub(super) fn check(files: &Files) -> Exit {
    let (config, compiled) = match compile(files) {
        Ok(compiled) => compiled,
        Err(_) => return Exit::No,
    };
    if !compiled.diagnostics.is_empty() {
        say(&format_args!("{}\n", compiled.diagnostics));
    }
    let (revision, summary) = (compiled.rules.settings().revision, compiled.summary);
    let rules = Arc::new(compiled.rules);
    let unkept = config.appliance.map(|appliance| unkept(&appliance, &rules)).unwrap_or_default();
    if !unkept.is_empty() {
        unkept.iter().for_each(|why| say(&format_args!("error: {why}")));
        return Exit::No;
    }
    show(&format_args!("valid: revision {revision}: {summary}"));
    Exit::Yes
}

/// Runs the policy's own tests.
pub(super) fn test(files: &Files) -> Exit {
    let compiled = match compile(files) {
        Ok((_, compiled)) => compiled,
        Err(exit) => return exit,
    };
    let outcomes = run_tests(&Arc::new(compiled.rules), &compiled.tests, Timestamp::now());
    let failed = outcomes.iter().filter(|outcome| !outcome.passed()).count();
    for outcome in &outcomes {
        show(outcome);
    }
    show(&format_args!("{} passed, {failed} failed", outcomes.len() - failed));
    if failed == 0 { Exit::Yes } else { Exit::No }
}
