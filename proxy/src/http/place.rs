//! The memory in which one request after the other is answered.
//!
//! hyper wants a future that can be moved, which one that answers a request is not. What it buys over a box for each: no
//! kilobytes that the allocator has to find and to merge again with every request. The figures are in `origin`.

use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

/// Room for one future.
#[derive(Debug)]
pub(super) struct Place<F>(Mutex<Pin<Box<Option<F>>>>);

/// The future that was put there last. It is taken out when this is dropped.
#[derive(Debug)]
pub(super) struct Placed<'p, F>(&'p Place<F>);

impl<F> Place<F> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Box::pin(None)))
    }

    /// Puts a future there, in place of the one that was.
    pub(super) fn put(&self, future: F) -> Placed<'_, F> {
        self.set(Some(future));
        Placed(self)
    }

    fn set(&self, future: Option<F>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut().set(future);
    }
}

impl<F: Future> Future for Placed<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut place = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(future) = place.as_mut().as_pin_mut() else { return Poll::Pending };
        let output = ready!(future.poll(cx));
        place.as_mut().set(None);
        Poll::Ready(output)
    }
}

impl<F> Drop for Placed<'_, F> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}
