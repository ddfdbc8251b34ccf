//! `outgate appliance`: the kernel's part of a gateway, put there, taken away, or shown.

use std::sync::Arc;

use clap::{Args, Subcommand};

use super::check::compile;
use super::{Exit, Files, say, show};
use crate::appliance::{self, Appliance, ports_of};
use crate::config::Config;
use crate::kernel;

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Put the kernel's rules and routes in place; `serve` with `appliance:` in its configuration does so itself
    Up(Target),
    /// Take them away: the network is then open as far as the host forwards
    Down(Target),
    /// Print what `up` would put in place, and change nothing
    Show(Target),
}

#[derive(Args, Debug)]
pub(super) struct Target {
    /// Redirect what this host's own programs do, all but those of the gate's user, as beside an application in a pod
    #[arg(long)]
    sidecar: bool,
    /// The gate's user, by number
    #[arg(long, env = "OUTGATE_UID", default_value_t = SIDECAR_USER, requires = "sidecar", value_name = "UID")]
    uid: u32,
    #[command(flatten)]
    files: Files,
}

/// The user of the container image.
const SIDECAR_USER: u32 = 65532;

/// Does what was asked of the kernel.
pub(super) fn run(command: &Command) -> Exit {
    let (Command::Up(target) | Command::Down(target) | Command::Show(target)) = command;
    let (config, compiled) = match compile(&target.files) {
        Ok(compiled) => compiled,
        Err(exit) => return exit,
    };
    let rules = Arc::new(compiled.rules);
    let gateway = gateway(target, &config);
    match command {
        Command::Show(_) => {
            show(&gateway.show(&rules).trim_end());
            Exit::Yes
        }
        Command::Up(_) => up(&gateway, target, &rules),
        Command::Down(_) => done(gateway.down(), |was_up| match was_up {
            true => "the kernel's rules and routes are gone",
            false => "there was nothing to take away",
        }),
    }
}

/// The gateway of the configuration; one with every default where it describes none.
fn gateway(target: &Target, config: &Config) -> Appliance {
    let settings = config.appliance.clone().unwrap_or_default();
    let ports = if config.appliance.is_some() { ports_of(config) } else { ports_of(&Config::of_appliance()) };
    if target.sidecar {
        Appliance::beside(&settings, ports, target.uid)
    } else {
        Appliance::new(&settings, ports)
    }
}

fn up(gateway: &Appliance, target: &Target, rules: &Arc<outgate_rules::RuleSet>) -> Exit {
    let (needed, weak) = if target.sidecar { (Vec::new(), Vec::new()) } else { appliance::settings() };
    // Forwarding may be off as yet, which is the safe order: the rules first.
    weak.iter().chain(&needed).for_each(|setting| say(&appliance::unfit(setting)));
    done(gateway.enforce(rules), |()| "the kernel's rules and routes are in place")
}

fn done<T>(result: Result<T, kernel::Error>, words: impl FnOnce(T) -> &'static str) -> Exit {
    match result {
        Ok(value) => {
            show(&words(value));
            Exit::Yes
        }
        Err(error) => {
            say(&format_args!("outgate: {error}"));
            Exit::No
        }
    }
}
