//! The file that records are appended to, and its rotation.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::mem;
use std::num::{NonZeroU16, NonZeroU64};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::disk::Disk;
use super::{AuditTarget, OpenError};
use crate::console::Console;

/// Readable by the owner and, for a log shipper, the group.
const MODE: u32 = 0o640;
/// Bytes of records that begin their way to the disk together: some 10,000 records.
const WRITE_BACK: u64 = 4 << 20;
/// The time in which as many have come if that is done: as fast as 80 MB a second. What comes more slowly the system
/// brings there as well by itself, and for less.
const FAST: Duration = Duration::from_millis(50);
/// Bytes at the end that are left alone: a page that is on its way to the disk holds up who writes to it.
const TAIL: u64 = 256 << 10;
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
    file: Arc<File>,
    /// None for standard output.
    target: Option<Target>,
    /// Bytes in the file.
    size: u64,
    /// The size at which to look whether it is to be written back, and when that was looked at before.
    look_at: (u64, Instant),
    /// The size at which it is rotated; none for what is no regular file.
    full_at: Option<u64>,
    disk: Disk,
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

impl Output {
    /// Opens the target. What the disk refuses later is told on `console`.
    pub(super) fn open(target: AuditTarget, console: &Console) -> Result<Self, OpenError> {
        match target {
            AuditTarget::Stdout => open_stdout(console).map_err(|error| OpenError::io(Path::new("-"), error)),
            AuditTarget::File { path, rotate, keep } => {
                let target = Target { path, rotate, keep };
                // Where that cannot be done, the first rotation says so.
                _ = target.end_rotation(&mut Vec::new());
                open_path(target, console)
            }
        }
    }

    fn new(file: File, target: Option<Target>, console: &Console) -> Self {
        Self {
            file: Arc::new(file),
            target,
            size: 0,
            look_at: (WRITE_BACK, Instant::now()),
            full_at: None,
            disk: Disk::new(console.clone()),
            was_slow: false,
            slow_at: None,
        }
    }

    /// Appends, and returns how much was taken, which is at least a byte.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.append(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => return Ok(count),
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
        let count = self.append(bytes)?;
        let ended = Instant::now();
        self.took(ended.saturating_duration_since(begun), ended);
        Ok(count)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = (&*self.file).write(bytes)?;
        self.size += count as u64;
        if self.size >= self.look_at.0 && self.full_at.is_some() {
            self.look();
        }
        Ok(count)
    }

    /// Has what is written begin its way to the disk, if it came fast.
    fn look(&mut self) {
        let (_, before) =
            mem::replace(&mut self.look_at, (self.size.saturating_add(WRITE_BACK), Instant::now()));
        if self.look_at.1.saturating_duration_since(before) < FAST
            && let Some(bytes) = NonZeroU64::new(self.size.saturating_sub(TAIL))
        {
            self.disk.write_back(&self.file, bytes);
        }
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
        let fresh = if renamed_by_others { target.path.clone() } else { target.beside("new") };
        let next = open_regular(&fresh, &target, self.disk.console())?;
        let mut gone = Vec::new();
        if !renamed_by_others
            && let Err(error) = target.make_way(&mut gone).and_then(|()| fs::rename(&fresh, &target.path))
        {
            // It is empty; one that stays is used by the next attempt.
            _ = fs::remove_file(&fresh);
            return Err(OpenError::io(&target.path, error));
        }
        let full = self.go_on_in(next);
        self.disk.set_aside(full, gone);
        Ok(())
    }

    /// Changes to another file, and gives the one until now. The same thread looks after both.
    pub(super) fn go_on_in(&mut self, mut next: Self) -> Arc<File> {
        mem::swap(&mut self.disk, &mut next.disk);
        mem::replace(self, next).file
    }

    /// Rotation has failed: the file may grow by as much again before it is tried once more.
    pub(super) fn postpone_rotation(&mut self) {
        let rotate = self.target.as_ref().map_or(u64::MAX, |target| target.rotate);
        self.full_at = Some(self.size.saturating_add(rotate));
    }

    /// Opens the path anew: another file, or none where it is the one that is open anyway.
    pub(super) fn reopen(&self) -> Result<Option<Self>, OpenError> {
        match &self.target {
            Some(target) if !self.is_at(&target.path) => {
                open_path(target.clone(), self.disk.console()).map(Some)
            }
            Some(_) | None => Ok(None),
        }
    }

    /// Brings the file to the disk, and those before it. What is no regular file has no disk.
    pub(super) fn finish(self) {
        self.disk.finish(self.full_at.map(|_| &*self.file));
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

fn open_stdout(console: &Console) -> io::Result<Output> {
    let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    Ok(Output::new(file, None, console))
}

fn open_path(target: Target, console: &Console) -> Result<Output, OpenError> {
    let path = &target.path;
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return if folder(path).is_dir() {
                open_regular(path, &target, console)
            } else {
                Err(OpenError::NoFolder(path.clone()))
            };
        }
        Err(error) => return Err(OpenError::io(path, error)),
    };
    if found.is_symlink() {
        Err(OpenError::SymbolicLink(path.clone()))
    } else if found.is_file() {
        open_regular(path, &target, console)
    } else if found.is_fifo() || found.is_char_device() {
        open_stream(target, console)
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

fn open_regular(path: &Path, target: &Target, console: &Console) -> Result<Output, OpenError> {
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
    let size = found.len();
    let mut output = Output {
        size,
        look_at: (size.saturating_add(WRITE_BACK), Instant::now()),
        full_at: Some(target.rotate),
        ..Output::new(file, Some(target.clone()), console)
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
fn open_stream(target: Target, console: &Console) -> Result<Output, OpenError> {
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
    Ok(Output::new(file, Some(target), console))
}

impl Target {
    /// Gives the file in use the name `path.1`. If it cannot be renamed, the others keep their names: else each attempt
    /// would cost the oldest.
    fn make_way(&self, gone: &mut Vec<File>) -> io::Result<()> {
        self.end_rotation(gone)?;
        let aside = self.numbered(0);
        fs::rename(&self.path, &aside)?;
        self.shift(gone).inspect_err(|_| _ = fs::rename(&aside, &self.path))
    }

    /// Gives the number 1 to a file that a gate has left without, for it was killed while it rotated.
    fn end_rotation(&self, gone: &mut Vec<File>) -> io::Result<()> {
        if self.numbered(0).exists() { self.shift(gone) } else { Ok(()) }
    }

    /// Every number up to the first that is free becomes the next. What there is no place for any more has no name
    /// then, and is `gone` when it is closed. No file takes the name of another one: ext4 would first begin to write it
    /// to the disk.
    fn shift(&self, gone: &mut Vec<File>) -> io::Result<()> {
        let keep = u32::from(self.keep.get());
        for number in (keep + 1..).take_while(|number| self.numbered(*number).exists()) {
            self.remove(number, gone)?;
        }
        let free = match (1..=keep).find(|number| !self.numbered(*number).exists()) {
            Some(free) => free,
            None => {
                self.remove(keep, gone)?;
                keep
            }
        };
        (0..free).rev().try_for_each(|number| fs::rename(self.numbered(number), self.numbered(number + 1)))
    }

    /// Takes a file's name away.
    fn remove(&self, number: u32, gone: &mut Vec<File>) -> io::Result<()> {
        let path = self.numbered(number);
        // No more than a reference: it need not be readable, nor a file.
        let reference = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        gone.extend(OpenOptions::new().read(true).custom_flags(reference.bits()).open(&path));
        fs::remove_file(path)
    }

    fn numbered(&self, number: u32) -> PathBuf {
        self.beside(&number.to_string())
    }

    /// The path with a suffix.
    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(".");
        name.push(suffix);
        PathBuf::from(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_disk_that_is_slow_twice_in_a_row_or_for_long() {
        let folder = tempfile::TempDir::new().unwrap();
        let (path, rotate, keep) = (folder.path().join("audit.jsonl"), u64::MAX, NonZeroU16::MIN);
        let console = Console::on(io::sink(), false, Duration::ZERO).unwrap();
        let (fast, slow, stalled) = (Duration::ZERO, SLOW * 2, STALLED * 2);
        for (took, prompt) in [
            (&[fast, slow][..], true),
            (&[slow, fast, slow], true),
            (&[slow, slow], false),
            (&[stalled], false),
            (&[slow, slow, fast], true),
        ] {
            let target = AuditTarget::File { path: path.clone(), rotate, keep };
            let mut output = Output::open(target, &console).unwrap();
            took.iter().for_each(|took| output.took(*took, Instant::now()));
            assert_eq!(output.is_prompt(), prompt, "{took:?}");
        }
    }
}
