//! The audit file: where the records of [`crate::record`] go, and when one counts as written.
//!
//! A session goes on when `write(2)` has taken the record of its decision: it is in the kernel's hands before the
//! first byte passes, and a killed process loses none. To a regular file that nobody is writing to, the session
//! writes itself, and everything that waits with it. Everything else is for a thread of its own, which takes all
//! records that wait and writes them with one call: pipes, files that take long or nothing, rotation, records that
//! nobody waits for. The queue before the thread is bounded in bytes. When it is full, or the file cannot be written, the gate waits (and denies, for
//! want of a record) or counts what it drops, as configured; the count stands in the file in the lost
//! records' place.

mod disk;
mod file;
mod queue;
mod writer;

use std::io;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outgate_rules::Reason;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::console::Console;
use queue::{Now, Pending, Shared};
use writer::Writer;

pub use queue::{AuditCounts, Lines};

/// Where records go, and what happens when they cannot.
#[derive(Clone, Debug)]
pub struct AuditSettings {
    /// Where records go.
    pub target: AuditTarget,
    /// What happens when they come faster than they can be written.
    pub when_full: WhenFull,
    /// Bytes of records that wait, at most. 4 MiB is about 10,000 records: more than a disk lags behind, and
    /// little beside what as many sessions hold.
    pub queue: u32,
    /// How long a decision waits for its record before it is denied.
    pub deadline: Duration,
}

impl AuditSettings {
    /// Settings for this target with every other value at its default.
    #[must_use]
    pub fn new(target: AuditTarget) -> Self {
        Self { target, when_full: WhenFull::Wait, queue: 4 << 20, deadline: Duration::from_secs(5) }
    }
}

/// Where records go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AuditTarget {
    /// Standard output.
    Stdout,
    /// A regular file, or a FIFO or character device, neither of which is ever rotated. A symbolic link is
    /// refused: rotation would rename the link.
    File {
        /// Its path. The folder must be there.
        path: PathBuf,
        /// The size in bytes that a file does not exceed, unless a single record does.
        rotate: u64,
        /// How many full files are kept, `path.1` being the youngest.
        keep: NonZeroU16,
    },
}

/// What happens to a record that finds the queue full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhenFull {
    /// It waits, and its session with it. The default.
    Wait,
    /// It is dropped and counted, and its session goes on.
    Drop,
}

/// A record could not be written in time; what it would have allowed is denied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the audit file cannot be written")]
pub struct AuditUnavailable;

impl From<AuditUnavailable> for Reason {
    fn from(_: AuditUnavailable) -> Self {
        Self::AuditUnavailable
    }
}

/// The audit file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder that the file should lie in is not there.
    #[error("{}: the folder of the audit file does not exist; create it, owned by the user that outgate runs as", .0.display())]
    NoFolder(PathBuf),
    /// The path is a symbolic link.
    #[error("{}: a symbolic link cannot be rotated; give the path it points to, or `-` for standard output", .0.display())]
    SymbolicLink(PathBuf),
    /// The path is a folder, socket or block device.
    #[error("{}: not a file that records can be appended to", .0.display())]
    NotAFile(PathBuf),
    /// The path is a FIFO that nobody reads.
    #[error("{}: nobody reads this FIFO", .0.display())]
    NoReader(PathBuf),
    /// Anything else.
    #[error("{path}: {1}", path = .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// The system gives no thread to write from.
    #[error("no thread for the audit file: {0}")]
    Thread(#[source] io::Error),
}

impl OpenError {
    fn io(path: &Path, error: io::Error) -> Self {
        Self::Io(path.to_owned(), error)
    }
}

/// The audit file did not take everything before the gate had to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{records} audit records were lost at shutdown")]
pub struct Unflushed {
    /// How many records are lost.
    pub records: u64,
}

/// Records that are queued and that somebody waits for.
#[derive(Debug)]
pub struct Written(oneshot::Receiver<()>);

/// A record that `write(2)` has not taken yet. It is lost, and not counted, unless it goes to [`Audit::end`].
#[derive(Debug)]
#[must_use]
pub struct Unwritten {
    line: Vec<u8>,
    begun: Option<oneshot::Receiver<()>>,
}

/// The open audit file.
#[derive(Debug)]
pub struct Audit {
    shared: Arc<Shared>,
    finished: watch::Receiver<()>,
    console: Console,
    when_full: WhenFull,
    deadline: Duration,
}

impl Audit {
    /// Opens the target and starts the thread that writes. Troubles while it runs are told on `console`.
    ///
    /// # Errors
    /// Says why the target cannot be opened.
    pub fn open(settings: AuditSettings, console: Console) -> Result<Self, OpenError> {
        let AuditSettings { target, when_full, queue, deadline } = settings;
        let output = file::Output::open(target, &console)?;
        let shared = Arc::new(Shared::new(output, queue));
        let (done, finished) = watch::channel(());
        let writer = Writer::new(Arc::clone(&shared), console.clone());
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || {
                writer.run();
                drop(done);
            })
            .map_err(OpenError::Thread)?;
        Ok(Self { shared, finished, console, when_full, deadline })
    }

    /// Writes a record, and comes back when `write(2)` has taken it. Where records may be dropped it also
    /// comes back when this one was, and during an outage it does not wait.
    ///
    /// A record that is still queued when the deadline passes will be written all the same; one that found no
    /// room is counted as dropped.
    ///
    /// # Errors
    /// When records may not be dropped, and this one was not written within the deadline.
    pub async fn write(&self, line: &[u8]) -> Result<(), AuditUnavailable> {
        match self.begin(line) {
            None => Ok(()),
            Some(unwritten) => self.end(unwritten).await,
        }
    }

    /// The part of [`Audit::write`] that needs no wait: gives what is left for [`Audit::end`], which is seldom anything.
    #[must_use = "the record may be unwritten"]
    pub fn begin(&self, line: &[u8]) -> Option<Unwritten> {
        let begun = match self.shared.write_now(line) {
            Now::Written => return None,
            Now::Begun(acknowledged) => Some(acknowledged),
            Now::Busy => None,
        };
        Some(Unwritten { line: line.to_vec(), begun })
    }

    /// Comes back when a record is written that was begun.
    ///
    /// # Errors
    /// As [`Audit::write`].
    pub async fn end(&self, unwritten: Unwritten) -> Result<(), AuditUnavailable> {
        // It takes half a kilobyte, which a session need not carry.
        Box::pin(self.wait(unwritten.line, unwritten.begun)).await
    }

    /// Waits for a record that is begun, or is to be queued.
    async fn wait(
        &self,
        line: Vec<u8>,
        begun: Option<oneshot::Receiver<()>>,
    ) -> Result<(), AuditUnavailable> {
        let wait = async {
            let acknowledged = match begun {
                Some(acknowledged) => acknowledged,
                None => match self.queue(line).await? {
                    Some(acknowledged) => acknowledged,
                    None => return Ok(()),
                },
            };
            acknowledged.await.map_err(|_| AuditUnavailable)
        };
        match (timeout(self.deadline, wait).await, self.when_full) {
            (Ok(written), WhenFull::Wait) => written,
            (Err(_), WhenFull::Wait) => {
                self.stalled();
                Err(AuditUnavailable)
            }
            (Ok(_), WhenFull::Drop) => Ok(()),
            (Err(_), WhenFull::Drop) => {
                self.stalled();
                Ok(())
            }
        }
    }

    /// Queues a record, and gives what tells when it is written; nothing where that is not to be waited for.
    async fn queue(&self, line: Vec<u8>) -> Result<Option<oneshot::Receiver<()>>, AuditUnavailable> {
        let pending = Pending::new(&self.shared, line);
        let (written, acknowledged) = oneshot::channel();
        match self.when_full {
            WhenFull::Wait => pending.queue(Some(written)).await?,
            WhenFull::Drop => pending.try_queue(Some(written))?,
        }
        Ok((self.must_write() || self.is_writable()).then_some(acknowledged))
    }

    /// Hands a record over, and comes back when it is queued or, where records may be dropped, counted as
    /// dropped. Waits for room as long as it takes, until the file is closed: such a wait holds the place of
    /// a session, and those are bounded.
    pub async fn hand_over(&self, line: Vec<u8>) {
        let pending = Pending::new(&self.shared, line);
        // A record that is not queued counts itself as dropped.
        _ = match self.when_full {
            WhenFull::Wait => pending.queue(None).await,
            WhenFull::Drop => pending.try_queue(None),
        };
    }

    /// Hands a record over without waiting, if there is room for it: else [`Audit::hand_over`] has to wait. Says
    /// whether it is queued.
    #[must_use]
    pub fn hand_over_one_now(&self, line: &[u8]) -> bool {
        self.shared.queue_now(line).is_ok()
    }

    /// Hands records over without waiting, all or none of them: then [`Audit::hand_over_all`] has to wait for
    /// room. Says whether they are queued.
    #[must_use]
    pub fn hand_over_now(&self, lines: &Lines) -> bool {
        self.shared.queue_all(lines, None).is_ok()
    }

    /// Hands records over without waiting, all or none of them: then [`Audit::write_all`] has to wait for room.
    /// Where they are queued it gives what is over when `write(2)` has taken them all, unless there is nothing to
    /// wait for: no record, or an outage during which records may be dropped.
    ///
    /// # Errors
    /// When there is no room for all.
    pub fn write_all_now(&self, lines: &Lines) -> Result<Option<Written>, AuditUnavailable> {
        if lines.is_empty() {
            return Ok(None);
        }
        let acknowledged = match self.shared.write_all_now(lines) {
            Now::Written => return Ok(None),
            Now::Begun(acknowledged) => acknowledged,
            Now::Busy => {
                let (written, acknowledged) = oneshot::channel();
                self.shared.queue_all(lines, Some(written))?;
                acknowledged
            }
        };
        let wait = self.when_full == WhenFull::Wait || self.is_writable();
        Ok(wait.then_some(Written(acknowledged)))
    }

    /// Writes records, and comes back when `write(2)` has taken them all: as [`Audit::hand_over`] waits for room,
    /// and then as [`Audit::wait_for`] does.
    pub async fn write_all(&self, lines: &Lines) {
        let mut last = None;
        for line in lines.iter() {
            let pending = Pending::new(&self.shared, line.to_vec());
            let (written, acknowledged) = oneshot::channel();
            let queued = match self.when_full {
                WhenFull::Wait => pending.queue(Some(written)).await,
                WhenFull::Drop => pending.try_queue(Some(written)),
            };
            last = queued.ok().map(|()| Written(acknowledged)).or(last);
        }
        if let Some(last) = last.filter(|_| self.when_full == WhenFull::Wait || self.is_writable()) {
            self.wait_for(last).await;
        }
    }

    /// Waits until records are written: as long as it takes, until the file is closed; where records may be dropped,
    /// until the deadline.
    pub async fn wait_for(&self, written: Written) {
        let Written(mut acknowledged) = written;
        if timeout(self.deadline, &mut acknowledged).await.is_err() {
            self.stalled();
            if self.when_full == WhenFull::Wait {
                let mut finished = self.finished.clone();
                // What was queued when the writer gave up is never acknowledged.
                tokio::select! {
                    _ = acknowledged => {}
                    _ = finished.changed() => {}
                }
            }
        }
    }

    /// Hands records over one by one, as by [`Audit::hand_over`].
    pub async fn hand_over_all(&self, lines: &Lines) {
        for line in lines.iter() {
            self.hand_over(line.to_vec()).await;
        }
    }

    /// Opens the path again, because somebody has renamed the file: SIGUSR1. Returns at once; records queued
    /// from now on go to the new file.
    pub fn reopen(&self) {
        self.shared.ask_to_reopen();
    }

    /// Whether the last attempt to write succeeded.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.shared.is_writable()
    }

    /// Whether nothing may pass without a record.
    #[must_use]
    pub fn must_write(&self) -> bool {
        self.when_full == WhenFull::Wait
    }

    /// What the writer has done so far, and what waits.
    #[must_use]
    pub fn counts(&self) -> AuditCounts {
        self.shared.counts()
    }

    /// Takes no more records, writes what is queued, and brings it to the disk.
    ///
    /// # Errors
    /// When that was not done within `deadline`: says how many records are lost.
    pub async fn flush_and_close(&self, deadline: Duration) -> Result<(), Unflushed> {
        self.shared.close(Instant::now() + deadline);
        let mut finished = self.finished.clone();
        // The channel closes when the thread has ended; nothing is ever sent over it.
        _ = timeout(deadline, finished.changed()).await;
        match self.shared.counts().queued_records {
            0 => Ok(()),
            records => Err(Unflushed { records }),
        }
    }
}

impl Audit {
    /// A write that neither fails nor ends, such as one to a pipe whose reader stands still, is an outage too.
    fn stalled(&self) {
        if self.shared.note_writable(false) {
            self.console.notice(format!("the audit file takes no records for {:?}", self.deadline));
        }
    }
}

impl Drop for Audit {
    /// What is queued is still written, if the file takes it at the first attempt.
    fn drop(&mut self) {
        self.shared.close(Instant::now());
    }
}

#[cfg(test)]
mod tests;
