//! One timer for a whole connection, however many deadlines it has.
//!
//! A timer that is set and taken back with each request costs an allocation and the wheel's lock twice. Deadlines only
//! move on while something happens, so the timer stays where it was first set, rings too early, and is set again: once
//! in two minutes and not with every request.

use std::pin::Pin;
use std::task::Context;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that may ring early.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Whether the time has come. If it has not, the task is woken then, or before.
    pub(super) fn is_due(&mut self, at: Instant, cx: &mut Context<'_>) -> bool {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
        loop {
            if sleep.deadline() > at {
                sleep.as_mut().reset(at);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return false;
            }
            if Instant::now() >= at {
                return true;
            }
            sleep.as_mut().reset(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// How long it takes until the alarm rings for a time that moves on with every ring.
    async fn ring(alarm: &mut Alarm, at: Instant) -> Duration {
        let begun = Instant::now();
        std::future::poll_fn(|cx| match alarm.is_due(at, cx) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        })
        .await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn it_rings_at_the_time_whatever_it_was_set_to_before() {
        let mut alarm = Alarm::default();
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let context = &mut Context::from_waker(std::task::Waker::noop());
        assert!(!alarm.is_due(now + 5 * second, context));
        assert!(!alarm.is_due(now + 9 * second, context), "a later time leaves it alone");
        assert_eq!(ring(&mut alarm, now + 7 * second).await.as_secs(), 7);
        assert_eq!(ring(&mut alarm, now + 9 * second).await.as_secs(), 2);
        assert!(alarm.is_due(now, context), "a time that is over is due at once");
    }
}
