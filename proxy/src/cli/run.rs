//! `outgate run`, `outgate trust`, and the two stages of a sandbox, which nobody calls by hand.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use jiff::Timestamp;
use outgate_rules::policy::{self, Compiled, Source};

use super::{block_on, say};
use crate::policy::PolicyFiles;
use crate::sandbox::plan::Plan;
use crate::sandbox::trust::{Fingerprint, PROJECT_POLICY, Trusted, of_project};
use crate::sandbox::{self, first_process, inside};
use crate::tally::Tally;

/// The exit code where the command has not run, as in `env` and `chroot`.
const NOT_RUN: u8 = 125;
/// Where a user's policy is, below the home folder.
const USER_POLICY: &str = ".config/outgate/policy.yaml";

#[derive(Args, Debug)]
pub(super) struct Run {
    /// A policy's file or folder; may be given more than once [default: the project's, if trusted; the user's; the
    /// built-in one]
    #[arg(long, value_name = "PATH")]
    policy: Vec<PathBuf>,
    /// Deny nothing, and write the least policy that would have let this run through
    #[arg(long, value_name = "FILE", conflicts_with = "policy")]
    learn: Option<PathBuf>,
    /// Where records go
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// Say nothing but errors
    #[arg(long)]
    quiet: bool,
    /// A port of this machine that the command may reach, at the same port of its own loopback
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    publish_host: Vec<u16>,
    /// A socket that the command may use: whoever listens there acts outside of the sandbox
    #[arg(long, value_name = "PATH")]
    allow_socket: Vec<PathBuf>,
    /// No sandbox: only environment variables that ask the command to use the gate as its proxy
    ///
    /// A program that does not look at them is not held by anything.
    #[arg(long, conflicts_with_all = ["publish_host", "allow_socket"])]
    proxy_only: bool,
    /// What to run
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Args, Debug)]
pub(super) struct Trust {
    /// The project's folder
    #[arg(default_value = ".")]
    folder: PathBuf,
}

#[derive(Args, Debug)]
pub(super) struct Stage {
    plan: Vec<OsString>,
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// Runs a command in a sandbox.
pub(super) fn run(run: Run) -> ExitCode {
    let tally = Arc::<Tally>::default();
    // Before the command runs, which could make it a link to something else.
    let mut learned = match run.learn.as_deref().map(open_to_learn).transpose() {
        Ok(learned) => learned,
        Err(message) => {
            say(&format_args!("outgate: {message}"));
            return ExitCode::from(NOT_RUN);
        }
    };
    let code = match prepare(&run, &tally) {
        Ok(prepared) if run.proxy_only => block_on(sandbox::run_by_proxy(prepared)),
        Ok(prepared) => block_on(sandbox::run(prepared)),
        Err(message) => {
            say(&format_args!("outgate: {message}"));
            return ExitCode::from(NOT_RUN);
        }
    };
    let code = match code {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            say(&format_args!("outgate: {error:#}"));
            NOT_RUN
        }
        Err(_) => NOT_RUN,
    };
    match learned.as_mut() {
        Some((path, file)) => write_learned(path, file, &tally, run.quiet),
        None if run.quiet => {}
        None => tell(&tally),
    }
    ExitCode::from(code)
}

/// What was denied.
fn tell(tally: &Tally) {
    if let Some(denials) = tally.denials() {
        say(&format_args!(
            "outgate: denied, each with the line under `outbound_rules:` that would allow it:\n{denials}"
        ));
    }
}

fn open_to_learn(path: &Path) -> Result<(PathBuf, File), String> {
    let file = File::options().write(true).create(true).truncate(false).open(path);
    file.map(|file| (path.to_owned(), file)).map_err(|error| format!("{}: {error}", path.display()))
}

/// Writes what was learned, and says where.
fn write_learned(path: &Path, file: &mut File, tally: &Tally, quiet: bool) {
    let policy = tally.policy();
    match file.set_len(0).and_then(|()| file.write_all(policy.as_bytes())) {
        Ok(()) if quiet => {}
        Ok(()) => say(&format_args!("outgate: the policy of this run is in {}", path.display())),
        Err(error) => say(&format_args!("outgate: {}: {error}", path.display())),
    }
}

fn prepare(run: &Run, tally: &Arc<Tally>) -> Result<sandbox::Run, String> {
    let (compiled, protected) = rules(run)?;
    if !run.quiet {
        for socket in &run.allow_socket {
            say(&format_args!(
                "outgate: the command may use {}: what listens there acts outside of the sandbox, for it",
                socket.display()
            ));
        }
    }
    Ok(sandbox::Run {
        command: run.command.clone(),
        rules: Arc::new(compiled.rules),
        protected,
        audit: run.audit.clone(),
        quiet: run.quiet,
        published: run.publish_host.clone(),
        allowed_sockets: run.allow_socket.clone(),
        tally: Arc::clone(tally),
    })
}

/// The rules of a run, and what of their files has to be kept from the command.
fn rules(run: &Run) -> Result<(Compiled, Vec<PathBuf>), String> {
    let published = published(&run.publish_host);
    if run.learn.is_some() {
        let text = format!("enforcement: report\n{published}");
        let source = Source { name: "command line".to_owned(), bytes: text.into_bytes() };
        let read = &mut |path: &str| Err(format!("{path} is not read"));
        let compiled = policy::compile(&[source], read, None, Timestamp::now());
        let learned: Vec<PathBuf> = run.learn.iter().filter(|path| path.is_file()).cloned().collect();
        return Ok((compiled.map_err(|mistakes| mistakes.to_string())?, protected(&learned)));
    }
    let paths = policy_paths(run)?;
    let mut files = PolicyFiles::new(paths.clone());
    if !published.is_empty() {
        files = files.and("command line", published);
    }
    let compiled = files.load(None, Timestamp::now()).map_err(|mistakes| mistakes.to_string())?;
    let read = compiled.files.iter().map(PathBuf::from).filter(|file| file.exists());
    let all: Vec<PathBuf> = paths.into_iter().chain(read).collect();
    Ok((compiled, protected(&all)))
}

/// The policy that was named; else the project's, which must have been trusted; else the user's.
fn policy_paths(run: &Run) -> Result<Vec<PathBuf>, String> {
    if !run.policy.is_empty() {
        return Ok(run.policy.clone());
    }
    let here = std::env::current_dir().map_err(|error| format!("the current folder: {error}"))?;
    if let Some(project) = of_project(&here) {
        return if is_trusted(&project)? { Ok(vec![project]) } else { Err(untrusted(&project)) };
    }
    let user = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(USER_POLICY));
    Ok(user.filter(|policy| policy.is_file()).into_iter().collect())
}

fn is_trusted(policy: &Path) -> Result<bool, String> {
    let Some(trusted) = Trusted::by_user() else { return Ok(false) };
    Ok(trusted.has(&fingerprint(policy)?))
}

fn untrusted(policy: &Path) -> String {
    let folder = policy.parent().and_then(Path::parent).unwrap_or(Path::new("."));
    format!(
        "{} comes with this project and has not been trusted as it is now: read it, then run `outgate trust {}`, or \
         name a policy with --policy",
        policy.display(),
        folder.display()
    )
}

/// The fingerprint of a policy with all that it refers to.
fn fingerprint(policy: &Path) -> Result<Fingerprint, String> {
    let files = PolicyFiles::new(vec![policy.to_owned()]);
    let compiled = files.load(None, Timestamp::now()).map_err(|mistakes| mistakes.to_string())?;
    let read: Vec<PathBuf> = compiled.files.iter().map(PathBuf::from).filter(|file| file.exists()).collect();
    Fingerprint::of(&read).map_err(|error| format!("{}: {error}", policy.display()))
}

/// What a sandbox may not write: the policy, the user's own and the record of what was trusted, with their folders.
/// These are made where they are missing, lest the command make them.
fn protected(policy: &[PathBuf]) -> Vec<PathBuf> {
    let own = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(USER_POLICY));
    let trusted = Trusted::by_user().map(|trusted| trusted.folder().to_owned());
    let folders: Vec<PathBuf> =
        own.as_deref().and_then(Path::parent).map(Path::to_owned).into_iter().chain(trusted).collect();
    for folder in &folders {
        // Where the user cannot make it, the command cannot either.
        _ = std::fs::create_dir_all(folder);
    }
    let mut all: Vec<PathBuf> = policy.iter().cloned().chain(folders).chain(own).collect();
    all.retain(|path| path.exists());
    all.sort();
    all.dedup();
    all
}

/// The rules that `--publish-host` adds.
fn published(ports: &[u16]) -> String {
    if ports.is_empty() {
        return String::new();
    }
    let rules = ports.iter().map(|port| {
        format!(
            "  - {{name: publish-host-{port}, type: address, destination: {{addresses: [127.0.0.1], protocol: TCP, \
             port_ranges: \"{port}\"}}}}\n"
        )
    });
    format!("outbound_rules:\n{}", rules.collect::<String>())
}

/// Records that a project's policy may be used.
pub(super) fn trust(trust: &Trust) -> ExitCode {
    match record_trust(&trust.folder) {
        Ok(policy) => {
            say(&format_args!("outgate: {} is trusted as it is now", policy.display()));
            ExitCode::SUCCESS
        }
        Err(message) => {
            say(&format_args!("outgate: {message}"));
            ExitCode::FAILURE
        }
    }
}

fn record_trust(folder: &Path) -> Result<PathBuf, String> {
    let folder = folder.canonicalize().map_err(|error| format!("{}: {error}", folder.display()))?;
    let policy = folder.join(PROJECT_POLICY);
    if !policy.is_file() {
        return Err(format!("{} is not there", policy.display()));
    }
    let trusted = Trusted::by_user().ok_or("there is no home folder to record it in")?;
    let fingerprint = fingerprint(&policy)?;
    trusted.add(&fingerprint, &policy).map_err(|error| format!("{}: {error}", trusted.folder().display()))?;
    Ok(policy)
}

/// The first stage of a sandbox.
pub(super) fn inside(stage: &Stage) -> ExitCode {
    ended(plan(stage).and_then(|plan| inside::run(&plan, &stage.plan, &stage.command)))
}

/// The second stage of a sandbox.
pub(super) fn first_process(stage: &Stage) -> ExitCode {
    ended(plan(stage).and_then(|plan| first_process::run(&plan, &stage.command)))
}

fn plan(stage: &Stage) -> anyhow::Result<Plan> {
    Plan::from_arguments(&stage.plan)
        .map_err(|_| anyhow::anyhow!("this is a part of `outgate run`, not a command"))
}

fn ended(code: anyhow::Result<u8>) -> ExitCode {
    match code {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&format_args!("outgate: {error:#}"));
            ExitCode::from(NOT_RUN)
        }
    }
}
