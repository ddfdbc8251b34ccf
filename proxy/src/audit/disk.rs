//! What is done with files of records beside the writing of them, by a thread that holds up nobody.
//!
//! What is written goes to the disk bit by bit and out of memory. It buys three things: a loss of power takes the last
//! megabytes and not the last half minute, a full file is on the disk soon after it is full, and the memory that records
//! are written to is the memory they were written to a moment ago. Where memory that was not used for long is slow to
//! get, as on a virtual machine whose host takes it back, a record costs a third of what it did (bench/README.md).

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::console::Console;

/// Jobs that wait, at most: one of each kind, and one full file more. A disk that takes longer than files take to fill
/// holds up the writing of records then.
const WAITING: usize = 2;

/// The thread, once there is something for it to do.
#[derive(Debug)]
pub(super) struct Disk {
    console: Console,
    thread: Option<Aside>,
}

#[derive(Debug)]
struct Aside {
    jobs: SyncSender<Job>,
    /// Whether a [`Job::WriteBack`] waits: the next one takes its bytes along.
    writes_back: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
enum Job {
    /// So many bytes of it.
    WriteBack(Arc<File>, u64),
    SetAside(Full),
}

/// A file that gets no more records.
#[derive(Debug)]
struct Full {
    file: Arc<File>,
    /// Files that have no name any more. To close them is to free their memory, some 20 ms for 100 MB.
    gone: Vec<File>,
}

impl Disk {
    /// Failures are told on `console`.
    pub(super) fn new(console: Console) -> Self {
        Self { console, thread: None }
    }

    /// Has these first bytes of a file begin their way to the disk, and lets go of the memory of those that are there.
    /// Never waits.
    pub(super) fn write_back(&mut self, file: &Arc<File>, bytes: u64) {
        let Some(aside) = self.thread() else { return };
        if !aside.writes_back.swap(true, Ordering::AcqRel)
            && aside.jobs.try_send(Job::WriteBack(Arc::clone(file), bytes)).is_err()
        {
            aside.writes_back.store(false, Ordering::Release);
        }
    }

    /// Brings a full file to the disk, and lets go of those that are kept no longer. Waits where the disk is behind by
    /// two files.
    pub(super) fn set_aside(&mut self, file: Arc<File>, gone: Vec<File>) {
        // Without a thread the system itself brings it to the disk, later.
        if let Some(aside) = self.thread() {
            _ = aside.jobs.send(Job::SetAside(Full { file, gone }));
        }
    }

    /// Brings the last file to the disk, if it has one, after those before it.
    pub(super) fn finish(self, last: Option<&File>) {
        if let Some(Aside { jobs, thread, .. }) = self.thread {
            drop(jobs);
            // It has told of its failures, and one that panicked has, too.
            _ = thread.join();
        }
        if let Some(last) = last {
            sync(last, &self.console);
        }
    }

    pub(super) fn console(&self) -> &Console {
        &self.console
    }

    fn thread(&mut self) -> Option<&Aside> {
        if self.thread.is_none() {
            self.thread = Aside::start(self.console.clone()).ok();
        }
        self.thread.as_ref()
    }
}

impl Aside {
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
            Job::WriteBack(file, bytes) => {
                asked.store(false, Ordering::Release);
                let_go(&file, bytes);
            }
            Job::SetAside(Full { file, gone }) => {
                drop(gone);
                sync(&file, console);
                let_go(&file, 0);
            }
        }
    }
}

/// Of so many bytes, or of all with 0, begins to write what is in memory alone, and forgets what is on the disk, too:
/// `posix_fadvise(2)` does both.
fn let_go(file: &File, bytes: u64) {
    let length = i64::try_from(bytes).unwrap_or(0);
    // Advice may be refused: then the system does both when it sees fit.
    _ = posix_fadvise(file, 0, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

fn sync(file: &File, console: &Console) {
    if let Err(error) = file.sync_all() {
        console.notice(format!("the audit file could not be brought to the disk: {error}"));
    }
}
