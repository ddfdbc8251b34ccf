//! The command line: data on stdout, talk on stderr, and an exit code that a script can trust.

mod appliance;
mod check;
mod explain;
mod run;
mod status;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use outgate_rules::{Destination, Protocol};

use crate::audit::AuditSettings;
use crate::config::{Config, DnsListen, audit_target, socket_address};
use crate::{control, serve};

/// What a command comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Allowed, valid, passed, done.
    Yes,
    /// Denied, failed, not taken.
    No,
    /// The input was bad, or there was nobody to ask.
    Bad,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Yes => Self::SUCCESS,
            Exit::No => Self::from(1),
            Exit::Bad => Self::from(2),
        }
    }
}

/// An outbound firewall that lets approved names out and nothing else.
#[derive(Parser, Debug)]
#[command(name = "outgate", bin_name = "outgate", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the gate
    Serve(Serve),
    /// Say what is wrong with a policy and a configuration, and what they open
    Check(Files),
    /// Say whether a destination is allowed, by which rule, and if not, what the nearest rules lack
    ///
    /// Exits with 0 if it is allowed, 1 if it is denied, and 2 on bad input.
    Explain(Explain),
    /// Run the policy's own tests
    Test(Files),
    /// Have the running gate read its policy again
    Reload(Reload),
    /// Show what the running gate enforces
    Status(Status),
    /// The kernel's part of a gate that other hosts have as their router
    #[command(subcommand)]
    Appliance(appliance::Command),
    /// Run a command whose only way out is what the policy allows
    Run(run::Run),
    /// Let `outgate run` use a project's policy, as it is now
    Trust(run::Trust),
    #[command(hide = true)]
    SandboxInside(run::Stage),
    #[command(hide = true)]
    SandboxFirstProcess(run::Stage),
}

/// The files that a command reads.
#[derive(Args, Debug, Clone)]
struct Files {
    /// The gate's configuration [default: /etc/outgate/outgate.yaml, if it exists]
    #[arg(long, env = "OUTGATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// A policy's file or folder, in place of the configuration's; may be given more than once
    #[arg(long, env = "OUTGATE_POLICY", value_name = "PATH", value_delimiter = ':')]
    policy: Vec<PathBuf>,
}

#[derive(Args, Debug)]
struct Serve {
    #[command(flatten)]
    files: Files,
    /// Where the proxy listens
    #[arg(long, env = "OUTGATE_PROXY", value_name = "ADDRESS:PORT", value_parser = parse_address)]
    proxy: Option<SocketAddr>,
    /// Where DNS is answered
    #[arg(long, env = "OUTGATE_DNS", value_name = "ADDRESS:PORT", value_parser = parse_address)]
    dns: Option<SocketAddr>,
    /// Where health, metrics and status are told
    #[arg(long, env = "OUTGATE_ADMIN", value_name = "ADDRESS:PORT", value_parser = parse_address)]
    admin: Option<SocketAddr>,
    /// The socket of `outgate reload`
    #[arg(long, env = "OUTGATE_CONTROL", value_name = "PATH")]
    control: Option<PathBuf>,
    /// The audit file, or - for standard output
    #[arg(long, env = "OUTGATE_AUDIT", value_name = "PATH")]
    audit: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Explain {
    /// A name or address with its port, as in pypi.org:443
    #[arg(value_name = "DESTINATION")]
    destination: String,
    /// The client's address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    from: String,
    /// TCP, UDP or ICMP
    #[arg(long, default_value = "TCP", ignore_case = true, value_parser = parse_protocol)]
    protocol: Protocol,
    #[command(flatten)]
    files: Files,
}

#[derive(Args, Debug)]
struct Reload {
    /// The gate's configuration, which names its control socket
    #[arg(long, env = "OUTGATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The gate's control socket
    #[arg(long, env = "OUTGATE_CONTROL", value_name = "PATH")]
    control: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Status {
    /// The gate's configuration, which names its admin listener
    #[arg(long, env = "OUTGATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The gate's admin listener
    #[arg(long, env = "OUTGATE_ADMIN", value_name = "ADDRESS:PORT", value_parser = parse_address)]
    admin: Option<SocketAddr>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    // clap exits with 2 on bad usage, and with 0 on --help and --version.
    let exit = match Cli::parse().command {
        Command::Serve(serve) => run_serve(serve),
        Command::Check(files) => check::check(&files),
        Command::Explain(explain) => explain::explain(&explain),
        Command::Test(files) => check::test(&files),
        Command::Reload(reload) => run_reload(&reload),
        Command::Status(status) => status::status(&status),
        Command::Appliance(command) => appliance::run(&command),
        Command::Run(run) => return run::run(run),
        Command::Trust(trust) => return run::trust(&trust),
        Command::SandboxInside(stage) => return run::inside(&stage),
        Command::SandboxFirstProcess(stage) => return run::first_process(&stage),
    };
    exit.into()
}

impl Files {
    /// The configuration, with the flags in place of its keys. What is wrong with it is told.
    fn config(&self) -> Result<Config, Exit> {
        let mut config = Config::read(self.config.as_deref()).map_err(|diagnostics| {
            say(&diagnostics);
            Exit::Bad
        })?;
        if !self.policy.is_empty() {
            config.policy.clone_from(&self.policy);
        }
        Ok(config)
    }
}

fn run_serve(serve: Serve) -> Exit {
    let mut config = match serve.files.config() {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    config.proxy.address = serve.proxy.unwrap_or(config.proxy.address);
    if let Some(address) = serve.dns {
        config.dns = Some(DnsListen { address, ..config.dns.unwrap_or_default() });
    }
    config.admin = serve.admin.unwrap_or(config.admin);
    config.control = serve.control.unwrap_or(config.control);
    if let Some(path) = &serve.audit {
        config.audit = AuditSettings { target: audit_target(path), ..config.audit };
    }
    match block_on(serve::serve(config)) {
        Ok(Ok(())) => Exit::Yes,
        Ok(Err(error)) => {
            say(&format_args!("outgate: {error:#}"));
            Exit::No
        }
        Err(exit) => exit,
    }
}

fn run_reload(reload: &Reload) -> Exit {
    let path = match (&reload.control, Config::read(reload.config.as_deref())) {
        (Some(path), _) => path.clone(),
        (None, Ok(config)) => config.control,
        (None, Err(diagnostics)) => {
            say(&diagnostics);
            return Exit::Bad;
        }
    };
    match block_on(control::reload(&path)) {
        Ok(Ok((true, text))) => {
            show(&text.trim_end());
            Exit::Yes
        }
        Ok(Ok((false, text))) => {
            say(&text.trim_end());
            Exit::No
        }
        Ok(Err(error)) => {
            say(&format_args!("outgate: no gate answers on {}: {error}", path.display()));
            Exit::Bad
        }
        Err(exit) => exit,
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Exit> {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => Ok(runtime.block_on(future)),
        Err(error) => {
            say(&format_args!("outgate: the runtime cannot start: {error}"));
            Err(Exit::Bad)
        }
    }
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    socket_address(text).map_err(|mistake| match mistake.hint {
        Some(hint) => format!("{}: {hint}", mistake.message),
        None => mistake.message,
    })
}

fn parse_protocol(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_uppercase().as_str() {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "ICMP" => Ok(Protocol::Icmp),
        _ => Err("TCP, UDP or ICMP".to_owned()),
    }
}

/// Data, to stdout. A reader that has gone wants no more.
fn show(text: &dyn std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Talk, to stderr.
fn say(text: &dyn std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A destination and a client, parsed by the types that the gate uses.
fn parse_request(destination: &str, from: &str) -> Result<(Destination, IpAddr), String> {
    let to = Destination::parse(destination).map_err(|error| format!("{destination:?}: {error}"))?;
    let client: IpAddr = from.parse().map_err(|_| format!("{from:?} is not a client's address"))?;
    Ok((to, client.to_canonical()))
}
