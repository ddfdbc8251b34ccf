//! The file that records are appended to, and its rotation.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroU16;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{AuditTarget, OpenError};

/// Readable by the owner and, for a log shipper, the group.
const MODE: u32 = 0o640;
/// Full files that are on their way to the disk, at most: one that is written faster than the disk takes it waits.
const SYNCING: usize = 2;
/// How long a pipe that was set non-blocking by somebody else may be full before that counts as a failure.
const POLL_MS: u16 = 1000;
/// A write that takes longer than this has made a session's thread wait: some 1,000 times what memory takes. Once, it
/// may only have lost the core to somebody else in the middle; twice in a row it is the disk.
const SLOW: Duration = Duration::from_millis(5);
/// Nobody loses the core for so long.
const STALLED: Duration = Duration::from_millis(100);
/// How long sessions then leave writing to a thread of its own.
const SLOW_FOR: Duration = Duration::from_secs(1);

/// The open file.
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    /// None for standard output.
    target: Option<Target>,
    /// Bytes in the file.
    size: u64,
    /// The size at which it is rotated; none for what is no regular file.
    full_at: Option<u64>,
    /// Full files on their way to the disk, the oldest first.
    syncing: VecDeque<JoinHandle<io::Result<()>>>,
    /// Whether the last write was slow.
    was_slow: bool,
    /// When it last made a session's thread wait for the disk.
    slow_at: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Target {
    path: PathBuf,
    rotate: u64,
    keep: NonZeroU16,
}

/// What opening the path again has shown.
#[derive(Debug)]
pub(super) enum Reopened {
    /// It is the file that is open anyway.
    Same,
    Other(Output),
}

impl Output {
    pub(super) fn open(target: AuditTarget) -> Result<Self, OpenError> {
        match target {
            AuditTarget::Stdout => open_stdout().map_err(|error| OpenError::io(Path::new("-"), error)),
            AuditTarget::File { path, rotate, keep } => open_path(Target { path, rotate, keep }),
        }
    }

    /// Appends, and returns how much was taken, which is at least a byte.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.size += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut writable = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
                    if poll(&mut writable, PollTimeout::from(POLL_MS))? == 0 {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// As [`Output::write`], once; notes whether that took long.
    pub(super) fn write_promptly(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let begun = Instant::now();
        let count = self.file.write(bytes)?;
        self.size += count as u64;
        let ended = Instant::now();
        self.took(ended.saturating_duration_since(begun), ended);
        Ok(count)
    }

    fn took(&mut self, time: Duration, ended: Instant) {
        let is_slow = time > SLOW;
        self.slow_at = (time > STALLED || (is_slow && self.was_slow)).then_some(ended);
        self.was_slow = is_slow;
    }

    /// Whether a write is over at once, as far as can be known: a regular file goes to memory first. A pipe waits for
    /// its reader.
    pub(super) fn is_prompt(&self) -> bool {
        self.full_at.is_some() && self.slow_at.is_none_or(|at| at.elapsed() > SLOW_FOR)
    }

    /// How many bytes the file has room for before it is full.
    pub(super) fn room(&self) -> u64 {
        self.full_at.map_or(u64::MAX, |full_at| full_at.saturating_sub(self.size))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Renames the full file to `path.1`, the older ones to the next number up, and goes on in a new one.
    /// When that fails the open file stays in use.
    pub(super) fn rotate(&mut self) -> Result<(), OpenError> {
        let Some(target) = self.target.clone() else { return Ok(()) };
        let renamed_by_others = !self.is_at(&target.path);
        // The new file is there before anything is renamed: a disk without room for it changes nothing.
        let fresh = if renamed_by_others { target.path.clone() } else { numbered(&target.path, "new") };
        let mut next = open_regular(&fresh, &target)?;
        let mut gone = Vec::new();
        if !renamed_by_others
            && let Err(error) = shift(&target, &mut gone).and_then(|()| fs::rename(&fresh, &target.path))
        {
            // It is empty; one that stays is used by the next attempt.
            _ = fs::remove_file(&fresh);
            return Err(OpenError::io(&target.path, error));
        }
        next.syncing = std::mem::take(&mut self.syncing);
        let full = std::mem::replace(self, next);
        self.set_aside(full.file, gone);
        Ok(())
    }

    /// Rotation has failed: the file may grow by as much again before it is tried once more.
    pub(super) fn postpone_rotation(&mut self) {
        let rotate = self.target.as_ref().map_or(u64::MAX, |target| target.rotate);
        self.full_at = Some(self.size.saturating_add(rotate));
    }

    /// Opens the path anew.
    pub(super) fn reopen(&self) -> Result<Reopened, OpenError> {
        match &self.target {
            Some(target) if !self.is_at(&target.path) => open_path(target.clone()).map(Reopened::Other),
            Some(_) | None => Ok(Reopened::Same),
        }
    }

    /// Brings the file to the disk, and the one before it. What is no regular file has no disk.
    pub(super) fn sync(mut self) -> io::Result<()> {
        let previous = self.syncing.drain(..).map(wait).fold(Ok(()), Result::and);
        let this = if self.full_at.is_some() { self.file.sync_all() } else { Ok(()) };
        previous.and(this)
    }

    /// Brings a full file to the disk while records go on into the next, and lets go of those that are kept no longer. On
    /// a slow disk the one takes seconds; the other takes until the memory of a file is free, some 20 ms for 100 MB.
    fn set_aside(&mut self, full: File, gone: Vec<File>) {
        while self.syncing.len() >= SYNCING
            && let Some(oldest) = self.syncing.pop_front()
        {
            _ = wait(oldest);
        }
        let aside = move || {
            drop(gone);
            full.sync_all()
        };
        // Without a thread the system itself brings it to the disk, later.
        self.syncing.extend(thread::Builder::new().name("audit-sync".into()).spawn(aside));
    }

    /// Whether the path leads to the open file.
    fn is_at(&self, path: &Path) -> bool {
        let identity = |file: Metadata| (file.dev(), file.ino());
        match (fs::symlink_metadata(path), self.file.metadata()) {
            (Ok(there), Ok(here)) => identity(there) == identity(here),
            (Err(_), _) | (_, Err(_)) => false,
        }
    }
}

fn wait(syncing: JoinHandle<io::Result<()>>) -> io::Result<()> {
    syncing.join().unwrap_or_else(|_| Err(io::Error::other("the thread that syncs ended early")))
}

fn open_stdout() -> io::Result<Output> {
    let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    Ok(Output {
        file,
        target: None,
        size: 0,
        full_at: None,
        syncing: VecDeque::new(),
        was_slow: false,
        slow_at: None,
    })
}

fn open_path(target: Target) -> Result<Output, OpenError> {
    let path = &target.path;
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return if folder(path).is_dir() {
                open_regular(path, &target)
            } else {
                Err(OpenError::NoFolder(path.clone()))
            };
        }
        Err(error) => return Err(OpenError::io(path, error)),
    };
    if found.is_symlink() {
        Err(OpenError::SymbolicLink(path.clone()))
    } else if found.is_file() {
        open_regular(path, &target)
    } else if found.is_fifo() || found.is_char_device() {
        open_stream(target)
    } else {
        Err(OpenError::NotAFile(path.clone()))
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        Some(_) | None => Path::new("."),
    }
}

fn open_regular(path: &Path, target: &Target) -> Result<Output, OpenError> {
    let failed = |error| OpenError::io(path, error);
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(MODE)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)
        .map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(OpenError::NotAFile(path.to_owned()));
    }
    let mut output = Output {
        file,
        target: Some(target.clone()),
        size: found.len(),
        full_at: Some(target.rotate),
        syncing: VecDeque::new(),
        was_slow: false,
        slow_at: None,
    };
    output.end_torn_line().map_err(failed)?;
    Ok(output)
}

impl Output {
    /// A machine that lost power, or a disk that was full, may have left half a record at the end. It gets a
    /// line of its own.
    fn end_torn_line(&mut self) -> io::Result<()> {
        let mut last = *b"\n";
        if let Some(at) = self.size.checked_sub(1) {
            self.file.read_exact_at(&mut last, at)?;
        }
        if last == *b"\n" { Ok(()) } else { self.write(b"\n").map(drop) }
    }
}

/// Opens a FIFO or a character device. A FIFO is opened without waiting for its reader, then written with
/// waiting for room.
fn open_stream(target: Target) -> Result<Output, OpenError> {
    let opened = OpenOptions::new()
        .write(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(&target.path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => {
            return Err(OpenError::NoReader(target.path));
        }
        Err(error) => return Err(OpenError::io(&target.path, error)),
    };
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))
        .map_err(|error| OpenError::io(&target.path, error.into()))?;
    Ok(Output {
        file,
        target: Some(target),
        size: 0,
        full_at: None,
        syncing: VecDeque::new(),
        was_slow: false,
        slow_at: None,
    })
}

/// Makes `path.1` free: every number becomes the next. What there is no place for any more has no name then, and is
/// `gone` when it is closed. No file takes the name of another one: ext4 would first begin to write it to the disk.
fn shift(target: &Target, gone: &mut Vec<File>) -> io::Result<()> {
    let at = |number: u32| numbered(&target.path, &number.to_string());
    let keep = u32::from(target.keep.get());
    for beyond in (keep..).map(at).take_while(|path| path.exists()) {
        // No more than a reference: it need not be readable, nor a file.
        let reference = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        gone.extend(OpenOptions::new().read(true).custom_flags(reference.bits()).open(&beyond));
        fs::remove_file(beyond)?;
    }
    for number in (1..keep).rev() {
        rename_if_there(&at(number), &at(number + 1))?;
    }
    fs::rename(&target.path, at(1))
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn numbered(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_disk_that_is_slow_twice_in_a_row_or_for_long() {
        let folder = tempfile::TempDir::new().unwrap();
        let (path, rotate, keep) = (folder.path().join("audit.jsonl"), u64::MAX, NonZeroU16::MIN);
        let (fast, slow, stalled) = (Duration::ZERO, SLOW * 2, STALLED * 2);
        for (took, prompt) in [
            (&[fast, slow][..], true),
            (&[slow, fast, slow], true),
            (&[slow, slow], false),
            (&[stalled], false),
            (&[slow, slow, fast], true),
        ] {
            let target = AuditTarget::File { path: path.clone(), rotate, keep };
            let mut output = Output::open(target).unwrap();
            took.iter().for_each(|took| output.took(*took, Instant::now()));
            assert_eq!(output.is_prompt(), prompt, "{took:?}");
        }
    }
}
