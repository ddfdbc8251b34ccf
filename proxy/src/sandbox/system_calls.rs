//! System calls that lead round a network namespace, refused by a filter that the command inherits.
//!
//! The namespace rules IP. It does not rule sockets that reach the machine's host (`AF_VSOCK`) or its radio, the
//! terminal's input queue (`TIOCSTI`: what is put there, the user's shell outside would run), or calls made through
//! a ring (`io_uring`), which no filter sees.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// The families of sockets that a program may have.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// Requests on a terminal that write to its input.
const TERMINAL_INPUT: [u64; 2] = [libc::TIOCSTI, libc::TIOCLINUX];

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilterError {
    /// This processor's system calls are not known to us.
    #[error("no filter of system calls for this processor: {0}")]
    Unknown(seccompiler::BackendError),
    /// The kernel did not take it.
    #[error("the kernel takes no filter of system calls: {0}")]
    Refused(seccompiler::Error),
}

/// Filters this process's system calls, and those of every program it starts.
///
/// # Errors
/// When that cannot be done; then the command must not run.
pub(super) fn filter() -> Result<(), FilterError> {
    let refuse = |errno: i32| SeccompAction::Errno(errno.unsigned_abs());
    for (calls, errno) in [(sockets(), libc::EAFNOSUPPORT), (terminals(), libc::EPERM), (rings(), libc::ENOSYS)] {
        apply_filter(&program(calls.map_err(FilterError::Unknown)?, refuse(errno))?).map_err(FilterError::Refused)?;
    }
    Ok(())
}

type Calls = BTreeMap<i64, Vec<SeccompRule>>;

fn sockets() -> Result<Calls, seccompiler::BackendError> {
    let other = FAMILIES
        .iter()
        .map(|family| argument(0, SeccompCmpOp::Ne, u64::from(family.unsigned_abs())))
        .collect::<Result<Vec<_>, _>>()?;
    Ok([(libc::SYS_socket, vec![SeccompRule::new(other)?])].into_iter().collect())
}

fn terminals() -> Result<Calls, seccompiler::BackendError> {
    let rules = TERMINAL_INPUT
        .iter()
        .map(|request| SeccompRule::new(vec![argument(1, SeccompCmpOp::Eq, *request)?]))
        .collect::<Result<Vec<_>, _>>()?;
    Ok([(libc::SYS_ioctl, rules)].into_iter().collect())
}

fn rings() -> Result<Calls, seccompiler::BackendError> {
    Ok([libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register]
        .map(|call| (call, Vec::new()))
        .into_iter()
        .collect())
}

/// A condition on an argument's lower half, which is all of it that the kernel reads there.
fn argument(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
}

fn program(calls: Calls, refuse: SeccompAction) -> Result<BpfProgram, FilterError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(FilterError::Unknown)?;
    SeccompFilter::new(calls, SeccompAction::Allow, refuse, architecture)
        .and_then(BpfProgram::try_from)
        .map_err(FilterError::Unknown)
}
