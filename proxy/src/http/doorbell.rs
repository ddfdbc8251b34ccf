//! The waker by which an origin's connection wakes the session that drives it.
//!
//! hyper joins a connection and those who use it by channels, and each message wakes the other side: where both are
//! one task, it would wake itself, and be polled once more for nothing. What it buys: a session is polled twice a
//! request, when the request comes and when the response does. The figures are in `origin`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

/// Wakes a session, unless the session itself rings.
#[derive(Debug)]
pub(super) struct Doorbell {
    session: Waker,
    /// Whether it has rung since the connection was driven.
    rung: AtomicBool,
    /// Whether the session is doing something that rings, and will drive the connection behind it.
    muffled: AtomicBool,
}

impl Doorbell {
    /// A doorbell for the session of `cx`, which has not rung.
    pub(super) fn new(cx: &Context<'_>) -> Arc<Self> {
        let session = cx.waker().clone();
        Arc::new(Self { session, rung: AtomicBool::new(false), muffled: AtomicBool::new(false) })
    }

    /// Whether it wakes the task of `cx`.
    pub(super) fn is_of(&self, cx: &Context<'_>) -> bool {
        self.session.will_wake(cx.waker())
    }

    /// Whether it has rung since it was last asked.
    pub(super) fn has_rung(&self) -> bool {
        self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::Acquire)
    }

    /// Does something that would ring. Rings of others that come meanwhile are lost as well: the connection has to be
    /// driven before the session next waits for it.
    pub(super) fn muffled<T>(&self, act: impl FnOnce() -> T) -> T {
        self.muffled.store(true, Ordering::SeqCst);
        let done = act();
        self.muffled.store(false, Ordering::SeqCst);
        done
    }
}

impl Wake for Doorbell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.muffled.load(Ordering::SeqCst) {
            self.rung.store(true, Ordering::Release);
            self.session.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts how often it was woken.
    #[derive(Debug, Default)]
    struct Woken(std::sync::atomic::AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_the_session_does_itself_does_not_wake_it() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let bell = Doorbell::new(&Context::from_waker(&waker));
        let ringer = Waker::from(Arc::clone(&bell));

        bell.muffled(|| ringer.wake_by_ref());
        assert!(!bell.has_rung());
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);

        ringer.wake_by_ref();
        assert!(bell.has_rung() && !bell.has_rung(), "a ring is told once");
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    }
}
