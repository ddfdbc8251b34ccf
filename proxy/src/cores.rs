//! The threads that serve: one a core, each with a runtime and listening sockets of its own.
//!
//! A connection stays in the thread that accepted it: its tasks, timers and sockets are looked at by no other, and nothing
//! on another core is woken for them. What that buys: 11 % of the CPU of a tunnel, and 6 % of a request's, beside a
//! runtime that moves tasks between its threads (bench/README.md). The kernel deals connections out among the sockets by a
//! hash of their addresses (`SO_REUSEPORT`, socket(7)).

use std::io;
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::time::interval;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::entrance::Entrance;

/// Each takes three descriptors, and one for every listener.
const MOST: usize = 64;
/// Sooner than the deadlines of a flow, which are seconds.
const TICK: Duration = Duration::from_secs(1);

/// The threads, until this is dropped: then what runs in them ends.
#[derive(Debug)]
pub struct Cores {
    runtimes: Vec<Handle>,
    _end: DropGuard,
}

impl Cores {
    /// As many as this process may use cores, up to a bound.
    ///
    /// # Errors
    /// When the system gives no thread, or nothing to wait with.
    pub fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MOST);
        let end = CancellationToken::new();
        let runtimes = (0..count).map(|_| start_one(end.clone())).collect::<io::Result<_>>()?;
        Ok(Self { runtimes, _end: end.drop_guard() })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.runtimes.len()
    }

    /// The runtime of each.
    pub fn each(&self) -> impl Iterator<Item = &Handle> {
        self.runtimes.iter()
    }
}

/// An entrance whose connections come in at this core.
///
/// # Errors
/// When its runtime cannot wait for the socket.
pub fn entrance_at(core: &Handle, socket: TcpListener) -> io::Result<Entrance> {
    let _inside = core.enter();
    Entrance::new(socket)
}

fn start_one(end: CancellationToken) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name("core".into())
        .spawn(move || runtime.block_on(end.run_until_cancelled(tick())))?;
    Ok(handle)
}

/// A timer that is sooner than others are set: setting one that is the next to go off makes the runtime tell itself by a
/// system call, one tunnel in four.
async fn tick() {
    let mut ticks = interval(TICK);
    loop {
        ticks.tick().await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::future::pending;

    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn each_core_has_a_thread_of_its_own() {
        let cores = Cores::start().unwrap();
        let mut threads = HashSet::new();
        for core in cores.each() {
            threads.insert(core.spawn(async { thread::current().id() }).await.unwrap());
        }
        assert_eq!(threads.len(), thread::available_parallelism().unwrap().get().min(MOST));
        assert_eq!(threads.len(), cores.count());
    }

    #[tokio::test]
    async fn what_runs_in_the_threads_ends_with_them() {
        let cores = Cores::start().unwrap();
        let start = |core: &Handle| {
            let (runs, ended) = oneshot::channel::<()>();
            core.spawn(async move {
                pending::<()>().await;
                drop(runs);
            });
            ended
        };
        let all: Vec<_> = cores.each().map(start).collect();
        drop(cores);
        for ended in all {
            assert!(timeout(Duration::from_secs(20), ended).await.unwrap().is_err());
        }
    }
}
