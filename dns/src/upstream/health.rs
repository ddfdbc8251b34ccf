//! Which upstream is thought to be down. Pure; the time is an argument.

use std::time::{Duration, Instant};

/// Failures in a row after which an upstream counts as down: one lost packet is none, and a name whose own
/// servers are silent is not the upstream's fault.
const DOWN_AFTER: u32 = 3;
/// How often an upstream that is down is tried.
pub const PROBE: Duration = Duration::from_secs(5);

/// What is remembered of an upstream's conduct.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Health {
    failures: u32,
    probe_at: Option<Instant>,
}

impl Health {
    /// It answered, whatever it said.
    pub fn answered(&mut self) {
        *self = Self::default();
    }

    /// It did not answer in time, or could not be reached.
    pub fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= DOWN_AFTER {
            self.probe_at = Some(now + PROBE);
        }
    }

    /// Whether others are to be asked first.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.probe_at.is_some()
    }

    /// Whether it is time to try one that is down. Whoever is told so tries it: the next is told later.
    pub fn take_probe(&mut self, now: Instant) -> bool {
        let due = self.probe_at.is_some_and(|at| at <= now);
        if due {
            self.probe_at = Some(now + PROBE);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_down_after_three_failures_in_a_row_and_up_with_one_answer() {
        let now = Instant::now();
        let mut health = Health::default();
        health.failed(now);
        health.failed(now);
        health.answered();
        health.failed(now);
        health.failed(now);
        assert!(!health.is_down(), "an answer came in between");
        health.failed(now);
        assert!(health.is_down());
        health.answered();
        assert!(!health.is_down());
    }

    #[test]
    fn an_upstream_that_is_down_is_probed_by_one_question_at_a_time() {
        let now = Instant::now();
        let mut health = Health::default();
        assert!(!health.take_probe(now), "nothing to find out of one that is up");
        (0..3).for_each(|_| health.failed(now));
        assert!(!health.take_probe(now + PROBE / 2));
        assert!(health.take_probe(now + PROBE));
        assert!(!health.take_probe(now + PROBE), "another question has taken it");
        assert!(health.take_probe(now + PROBE * 2));
    }
}
