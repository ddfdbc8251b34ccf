//! The second stage of a sandbox: the first process of its PID namespace. It makes the file system ready, gives up
//! what it may do, starts the command, and sees all children to their end; when it ends, so does everything inside.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::plan::Plan;
use super::{capabilities, hide, inside, system_calls};

/// What a shell says of a program that is not there, and of one that cannot run.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Runs the command, and comes back with its exit code.
///
/// # Errors
/// When the sandbox could not be closed: then the command has not run.
pub fn run(plan: &Plan, command: &[OsString]) -> anyhow::Result<u8> {
    inside::end_with_parent().context("cannot be bound to the gate's life")?;
    let folder = std::env::current_dir();
    hide::own_proc().context(
        "a sandbox needs a /proc of its own; in a container, run it with --security-opt unmask=ALL (podman) or \
         --security-opt systempaths=unconfined (docker)",
    )?;
    hide::apply(&plan.files)?;
    enter_again(folder)?;
    capabilities::give_up_all().context("cannot give up what the sandbox may do")?;
    system_calls::filter()?;
    // Its memory and its descriptors are not for the command, which is the same user.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let Some((program, arguments)) = command.split_first() else { anyhow::bail!("no command") };
    let mut started = Command::new(program);
    started.args(arguments);
    plan.without.iter().for_each(|variable| _ = started.env_remove(variable));
    match started.spawn() {
        Ok(child) => {
            see_to_the_end(Pid::from_raw(child.id().cast_signed())).context("waiting for the command")
        }
        Err(error) => Ok(not_started(program, &error)),
    }
}

/// Enters the current folder by its path: by the folder itself, which was entered before, relative paths would still
/// lead past every mount that hides or protects something.
fn enter_again(folder: io::Result<PathBuf>) -> io::Result<()> {
    match folder.and_then(std::env::set_current_dir) {
        Ok(()) => Ok(()),
        // It is hidden, or has been removed.
        Err(_) => std::env::set_current_dir("/"),
    }
}

/// Waits for the command. Orphans of it become children of the first process, and are waited for beside it.
fn see_to_the_end(command: Pid) -> io::Result<u8> {
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == command => {
                return Ok(inside::code(ExitStatus::from_raw(code << 8)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => {
                return Ok(inside::code(ExitStatus::from_raw(signal as i32)));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn not_started(program: &OsString, error: &io::Error) -> u8 {
    use std::io::Write;
    let _ = writeln!(io::stderr(), "outgate: {}: {error}", program.display());
    if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
}
