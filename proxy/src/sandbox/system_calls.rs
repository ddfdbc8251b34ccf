//! System calls that lead round a network namespace, refused by a filter that the command inherits.
//!
//! The namespace rules IP. It does not rule sockets that reach the machine's host (`AF_VSOCK`) or its radio, the
//! terminal's input queue (`TIOCSTI`: what is put there, the user's shell outside would run), keys (for some, the
//! kernel starts a program outside that looks a name up), or calls made through a ring (`io_uring`), which no filter
//! sees.

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

/// Calls that no command needs: rings, and keys, whose kinds the kernel may ask a program outside for.
const NEVER: [i64; 6] = [
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];
/// The bit of a call's second number on x86-64, and `ioctl` among those that have another one there.
const X32: i64 = 0x4000_0000;
const X32_IOCTL: i64 = 514;

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
    let filters =
        [(sockets(), libc::EAFNOSUPPORT), (terminals(), libc::EPERM), (Ok(whole(&NEVER)), libc::ENOSYS)];
    for (calls, errno) in filters {
        let calls = in_every_spelling(calls.map_err(FilterError::Unknown)?);
        apply_filter(&program(calls, refuse(errno))?).map_err(FilterError::Refused)?;
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

/// Calls that are refused whatever is asked of them.
fn whole(calls: &[i64]) -> Calls {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

/// On x86-64 each call has a second number (the x32 ABI), by which some kernels take it as well.
fn in_every_spelling(calls: Calls) -> Calls {
    if cfg!(not(target_arch = "x86_64")) {
        return calls;
    }
    let second = |call: i64| if call == libc::SYS_ioctl { vec![call, X32_IOCTL] } else { vec![call] };
    let x32: Calls = calls
        .iter()
        .flat_map(|(call, rules)| second(*call).into_iter().map(|call| (call | X32, rules.clone())))
        .collect();
    calls.into_iter().chain(x32).collect()
}

/// A condition on an argument's lower half, which is all of it that the kernel reads there.
fn argument(
    index: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
}

fn program(calls: Calls, refuse: SeccompAction) -> Result<BpfProgram, FilterError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(FilterError::Unknown)?;
    SeccompFilter::new(calls, SeccompAction::Allow, refuse, architecture)
        .and_then(BpfProgram::try_from)
        .map_err(FilterError::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_refused_by_each_of_its_numbers() {
        let calls = in_every_spelling(whole(&[libc::SYS_keyctl, libc::SYS_ioctl]));
        let mut numbers = vec![libc::SYS_keyctl, libc::SYS_ioctl];
        if cfg!(target_arch = "x86_64") {
            numbers.extend([libc::SYS_keyctl, libc::SYS_ioctl, X32_IOCTL].map(|call| call | X32));
        }
        numbers.sort_unstable();
        assert_eq!(calls.into_keys().collect::<Vec<_>>(), numbers);
    }
}
