//! How long a flow that carries much may keep a core before others have their turn.
//!
//! What it buys: beside one pull a tunnel takes 0.7 ms to open, and took 4 ms (bench/README.md). So a flow moves bytes in
//! steps, each over in some tens of microseconds, and after each of them everybody else goes first who is ready then.
//!
//! Among themselves, flows that carry much take turns of many steps: if they took steps in turn, eight pulls would cost
//! half as much again, each finding its bytes gone from the caches.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::yield_now;

/// Bytes of a step while others have something to do. Eight pulls would cost half as much again with no other.
const SHORT: usize = 64 * 1024;
/// Bytes of a step while nobody has: a tenth of a millisecond.
const LONG: usize = 256 * 1024;
/// Bytes of a turn. Where so many have been moved since somebody else had something to do, nobody has: it takes longer
/// than a client and an origin take to answer.
const TURN: usize = 4 << 20;
/// Bytes moved since somebody else had something to do behind which that was long ago: some tens of milliseconds.
pub(super) const QUIET: usize = 64 << 20;

thread_local! {
    /// Bytes that were moved since somebody else had something to do on this thread.
    static ALONE: Cell<usize> = const { Cell::new(QUIET) };
    /// Whose turn it is on this thread.
    static PLACE: Arc<Semaphore> = Arc::new(Semaphore::new(1));
}

/// Somebody has something to do on this thread that is over soon.
pub fn light_work() {
    ALONE.set(0);
}

/// The same future, each poll of which is [`light_work`].
pub async fn light<F: Future + ?Sized>(mut work: Pin<Box<F>>) -> F::Output {
    poll_fn(|cx| {
        light_work();
        work.as_mut().poll(cx)
    })
    .await
}

/// Bytes of a step, by what others do.
pub(super) fn step() -> usize {
    if ALONE.get() < TURN { SHORT } else { LONG }
}

/// Whether somebody else has had something to do of late.
pub(super) fn in_company() -> bool {
    ALONE.get() < QUIET
}

/// How far a flow that carries much has come in its turn.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// It is this flow's turn.
    place: Option<OwnedSemaphorePermit>,
    in_turn: usize,
    in_step: usize,
}

impl Turn {
    /// Waits until it is this flow's turn, behind those that wait already.
    pub(super) async fn begin(&mut self) {
        if self.place.is_none() {
            self.in_turn = 0;
            // Nobody closes it.
            self.place = PLACE.with(Arc::clone).acquire_owned().await.ok();
        }
    }

    /// So many more bytes were moved. Where that is a step, others go first; where it is a turn, the next flow has its
    /// own.
    pub(super) async fn moved(&mut self, bytes: usize) {
        ALONE.set(ALONE.get().saturating_add(bytes));
        self.in_turn += bytes;
        self.in_step += bytes;
        if self.in_turn >= TURN {
            self.give_up();
        }
        if self.in_step >= step() {
            self.in_step = 0;
            yield_now().await;
        }
    }

    /// This flow waits for something: the next has its turn.
    pub(super) fn give_up(&mut self) {
        self.place = None;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Context;

    use tokio::sync::oneshot;

    use super::*;
    use crate::readiness::tests::pair;
    use crate::readiness::{read, readable};

    #[test]
    fn steps_are_short_from_the_moment_that_somebody_else_has_work_until_nobody_has_had_any_for_a_turn() {
        assert_eq!(step(), LONG);
        light_work();
        assert_eq!(step(), SHORT);
        ALONE.set(TURN - 1);
        assert_eq!(step(), SHORT);
        ALONE.set(TURN);
        assert_eq!(step(), LONG);
    }

    #[tokio::test]
    async fn every_poll_of_light_work_is_seen() {
        let mut polls = 0;
        let work = Box::pin(async {
            for _ in 0..3 {
                assert_eq!(std::mem::replace(&mut polls, 1), 0);
                ALONE.set(TURN);
                yield_now().await;
                assert_eq!(step(), SHORT);
                polls = 0;
            }
        });
        light(work).await;
    }

    #[tokio::test]
    async fn flows_have_their_turns_one_after_the_other() {
        let (mut first, mut second) = (Turn::default(), Turn::default());
        first.begin().await;
        {
            let mut waiting = std::pin::pin!(second.begin());
            let mut is_pending =
                || waiting.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())).is_pending();
            assert!(is_pending());
            first.moved(TURN - 1).await;
            assert!(is_pending(), "a step is not the end of a turn");
            first.moved(1).await;
            assert!(!is_pending());
        }
        let mut waiting = std::pin::pin!(first.begin());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        second.give_up();
        assert!(waiting.as_mut().poll(&mut cx).is_ready(), "who waits for something holds nobody up");
    }

    #[tokio::test]
    async fn who_becomes_ready_while_a_flow_moves_bytes_goes_before_its_next_step() {
        let (stream, mut outside) = pair().await;
        let (waits, is_waiting) = oneshot::channel();
        let served = Arc::new(AtomicBool::new(false));
        let serves = Arc::clone(&served);
        let light = tokio::spawn(async move {
            waits.send(()).unwrap();
            // To be told that it is ready says nothing yet.
            while read(&stream, &mut [0]).is_err() {
                readable(&stream).await.unwrap();
            }
            serves.store(true, Ordering::Relaxed);
        });
        is_waiting.await.unwrap();
        outside.write_all(b"a").unwrap();
        // Not here: the runtime polls a test's own future before all that is ready.
        let heavy = tokio::spawn(async move {
            Turn::default().moved(LONG).await;
            served.load(Ordering::Relaxed)
        });
        assert!(heavy.await.unwrap());
        light.await.unwrap();
    }
}
