//! Why this machine lets an ordinary user have no namespaces, and what to set so that it does.

use std::fs;
use std::io;

/// One sentence for the cause that can be seen, with what to set.
#[must_use]
pub(super) fn why(error: io::Error) -> String {
    let cause = CAUSES.iter().find(|cause| read(cause.setting).is_some_and(|value| value == cause.value));
    let hint = match cause {
        Some(cause) => cause.hint.to_owned(),
        None if in_container() => "the container engine's seccomp profile refuses it: run the container with \
                                   --security-opt seccomp=unconfined, or with a profile that allows unshare, mount \
                                   and clone with namespaces"
            .to_owned(),
        None => "a security module or seccomp profile refuses it".to_owned(),
    };
    format!(
        "this machine does not let you have a user namespace ({error}): {hint}; or use --proxy-only, which a \
             program can ignore"
    )
}

/// A setting that forbids user namespaces.
struct Cause {
    setting: &'static str,
    value: &'static str,
    hint: &'static str,
}

const CAUSES: [Cause; 3] = [
    Cause {
        setting: "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        value: "1",
        hint: "AppArmor restricts them; install outgate's AppArmor profile (it is in the Debian package), or: sudo \
               sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    },
    Cause {
        setting: "/proc/sys/kernel/unprivileged_userns_clone",
        value: "0",
        hint: "sudo sysctl kernel.unprivileged_userns_clone=1",
    },
    Cause {
        setting: "/proc/sys/user/max_user_namespaces",
        value: "0",
        hint: "sudo sysctl user.max_user_namespaces=10000",
    },
];

fn read(setting: &str) -> Option<String> {
    Some(fs::read_to_string(setting).ok()?.trim().to_owned())
}

/// Whether this runs in a container, as its engine tells.
fn in_container() -> bool {
    ["/.dockerenv", "/run/.containerenv"].iter().any(|mark| fs::exists(mark).unwrap_or(false))
}
