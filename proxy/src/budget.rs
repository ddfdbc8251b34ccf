//! How many connections there may be, in all and of one client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::fast::RandomState;
use outgate_rules::Reason;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Connections beyond the limits that are told so at once. Each takes a descriptor for a second at most.
const COURTESIES: usize = 128;

/// The connections that are open, against their limits.
#[derive(Debug)]
pub struct Budget {
    connections: usize,
    per_client: usize,
    open: Mutex<Open>,
    /// Told when a connection closes: one file descriptor more.
    closed: Notify,
    /// Places for connections that are turned away with an answer.
    courtesies: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    clients: HashMap<IpAddr, usize, RandomState>,
}

impl Budget {
    /// A budget of `connections`, and `per_client` of one client.
    #[must_use]
    pub fn new(connections: usize, per_client: usize) -> Self {
        Self {
            connections,
            per_client,
            open: Mutex::default(),
            closed: Notify::new(),
            courtesies: Arc::new(Semaphore::new(COURTESIES)),
        }
    }

    /// Takes a place for a connection of `client`; dropping it gives it back.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn take(self: &Arc<Self>, client: IpAddr) -> Result<Place, Reason> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.all >= self.connections {
            return Err(Reason::ConnectionLimit);
        }
        let mine = open.clients.entry(client).or_default();
        if *mine >= self.per_client {
            return Err(Reason::ClientConnectionLimit);
        }
        *mine += 1;
        open.all += 1;
        Ok(Place { budget: Arc::clone(self), client })
    }

    /// A place for a connection that is turned away with an answer, while there are some.
    pub fn courtesy(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.courtesies).try_acquire_owned().ok()
    }

    /// Waits until a connection closes.
    pub async fn closed(&self) {
        self.closed.notified().await;
    }
}

/// A connection's place in the budget.
#[derive(Debug)]
pub struct Place {
    budget: Arc<Budget>,
    client: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.budget.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all = open.all.saturating_sub(1);
        if let Some(mine) = open.clients.get_mut(&self.client) {
            *mine = mine.saturating_sub(1);
            if *mine == 0 {
                open.clients.remove(&self.client);
            }
        }
        drop(open);
        self.budget.closed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_back_when_it_is_dropped() {
        let budget = Arc::new(Budget::new(3, 2));
        let (one, two) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = budget.take(one).unwrap();
        let _second = budget.take(one).unwrap();
        assert_eq!(budget.take(one).unwrap_err(), Reason::ClientConnectionLimit);
        let _third = budget.take(two).unwrap();
        assert_eq!(budget.take(two).unwrap_err(), Reason::ConnectionLimit);
        drop(first);
        assert!(budget.take(one).is_ok());
        drop((_second, _third));
        assert!(budget.open.lock().unwrap().clients.is_empty(), "nobody is remembered who is not there");
    }
}
