//! What is done with files of records beside the writing of them, by a thread that holds up nobody.
//!
//! What comes fast begins its way to the disk bit by bit, and what is there leaves memory. It buys three things: the disk
//! is never behind by much, so a full file is there soon after it is full; records take no more memory from what else the
//! machine keeps there than a file is large; and the memory that they are written to is what they were written to a moment
//! ago. Where memory that was not used for long is slow to get, as on a virtual machine whose host takes it back, a record
//! costs a third of what it did (bench/README.md).

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::console::Console;

/// Jobs that wait for the one that is being done. A third one that may not be left out, a full file, holds up the writing
/// of records: the disk takes longer than files take to fill.
const WAITING: usize = 2;

/// The thread, once there is something for it to do.
#[derive(Debug)]
pub(super) struct Disk {
    console: Console,
    helper: Option<Helper>,
}

#[derive(Debug)]
struct Helper {
    jobs: SyncSender<Job>,
    /// Whether a [`Job::WriteBack`] waits: the next one takes its bytes along.
    writes_back: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
enum Job {
    WriteBack {
        file: Arc<File>,
        /// From its beginning.
        bytes: NonZeroU64,
    },
    SetAside {
        /// It gets no more records.
        full: Arc<File>,
        /// Files that have no name any more. To close them is to free their memory, some 20 ms for 100 MB.
        gone: Vec<File>,
    },
}

impl Disk {
    /// Failures are told on `console`.
    pub(super) fn new(console: Console) -> Self {
        Self { console, helper: None }
    }

    pub(super) fn console(&self) -> &Console {
        &self.console
    }

    /// Has these first bytes of a file begin their way to the disk, and lets go of the memory of those that are there.
    /// Never waits; without a thread nothing is done.
    pub(super) fn write_back(&mut self, file: &Arc<File>, bytes: NonZeroU64) {
        let Ok(helper) = self.helper() else { return };
        if !helper.writes_back.swap(true, Ordering::AcqRel) {
            let job = Job::WriteBack { file: Arc::clone(file), bytes };
            if helper.jobs.try_send(job).is_err() {
                helper.writes_back.store(false, Ordering::Release);
            }
        }
    }

    /// Brings a full file to the disk, and lets go of those that are kept no longer. Waits where the disk is behind.
    pub(super) fn set_aside(&mut self, full: Arc<File>, gone: Vec<File>) {
        match self.helper() {
            // A thread that panicked has told of it.
            Ok(helper) => _ = helper.jobs.send(Job::SetAside { full, gone }),
            Err(error) => {
                self.console
                    .notice(format!("the system itself brings a full audit file to the disk: {error}"));
            }
        }
    }

    /// Brings the last file to the disk, if it has one, after those before it.
    pub(super) fn finish(self, last: Option<&File>) {
        if let Some(Helper { jobs, thread, .. }) = self.helper {
            drop(jobs);
            // It has told of its failures, and one that panicked has, too.
            _ = thread.join();
        }
        if let Some(last) = last {
            sync(last, &self.console);
        }
    }

    fn helper(&mut self) -> io::Result<&Helper> {
        let helper = match self.helper.take() {
            Some(helper) => helper,
            None => Helper::start(self.console.clone())?,
        };
        Ok(self.helper.insert(helper))
    }
}

impl Helper {
    fn start(console: Console) -> io::Result<Self> {
        let (jobs, waiting) = mpsc::sync_channel(WAITING);
        let writes_back = Arc::<AtomicBool>::default();
        let asked = Arc::clone(&writes_back);
        let thread = thread::Builder::new()
            .name("audit-sync".into())
            .spawn(move || work(&waiting, &asked, &console))?;
        Ok(Self { jobs, writes_back, thread })
    }
}

fn work(waiting: &Receiver<Job>, asked: &AtomicBool, console: &Console) {
    for job in waiting {
        match job {
            Job::WriteBack { file, bytes } => {
                asked.store(false, Ordering::Release);
                let_go(&file, Some(bytes));
            }
            Job::SetAside { full, gone } => {
                drop(gone);
                sync(&full, console);
                let_go(&full, None);
            }
        }
    }
}

/// Of the first bytes, or of all, begins to write what is in memory alone, and forgets what is on the disk, too:
/// `posix_fadvise(2)` does both.
fn let_go(file: &File, bytes: Option<NonZeroU64>) {
    // There none stands for all.
    let length = bytes.map_or(0, |bytes| i64::try_from(bytes.get()).unwrap_or(i64::MAX));
    // Advice may be refused: then the system does both when it sees fit.
    _ = posix_fadvise(file, 0, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

fn sync(file: &File, console: &Console) {
    if let Err(error) = file.sync_all() {
        console.notice(format!("the audit file could not be brought to the disk: {error}"));
    }
}
