//! What the service manager is told: sd_notify(3), where there is a manager that listens.
//!
//! A gate that nobody started in this way says nothing here, and a manager that cannot be reached stops no gate:
//! what it would have heard is on the terminal and at the admin listener as well.

use sd_notify::NotifyState;

/// Longest status. A datagram takes far more; a person reads one line.
const MAX_STATUS: usize = 200;

/// The gate serves: the units that wait for it may start. Also ends what [`reloading`] began.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(one_line(status))]);
}

/// What is in force now, or why nothing has changed, where no manager asked for it.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(one_line(status))]);
}

/// The policy is being read again. [`ready`] must follow, whatever comes of it, and before this is said again: the gate
/// serves all the while.
pub fn reloading() {
    // The manager asks for the time so that it can tell this reload from an earlier one (systemd 253 and later).
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Status("reloading")]),
    }
}

/// The gate drains: it accepts nothing more, and ends when its flows have.
pub fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(one_line(status))]);
}

fn tell(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}

/// The last line, which is what a reload's words come to. What follows a line end would be another assignment to the
/// manager.
fn one_line(status: &str) -> &str {
    let line = status.trim_end().lines().next_back().unwrap_or("");
    line.get(..line.floor_char_boundary(MAX_STATUS)).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_bounded_line() {
        let long = "ä".repeat(MAX_STATUS);
        for (status, line) in [
            ("", ""),
            ("ready", "ready"),
            ("warning: wide\nenforcing\n", "enforcing"),
            ("\r\nREADY=1\r\n\n", "READY=1"),
            (long.as_str(), &long[..MAX_STATUS]),
        ] {
            assert_eq!(one_line(status), line);
        }
    }

    #[test]
    fn a_gate_without_a_service_manager_says_nothing_and_does_not_fail() {
        ready("enforcing");
        reloading();
        status("enforcing");
        stopping("draining");
    }
}
