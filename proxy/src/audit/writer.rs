//! The thread that writes what sessions do not write themselves, and rotates, reopens and waits.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;

use super::file::Output;
use super::queue::{Batch, Pause, Shared, Task};
use crate::console::Console;
use crate::record::{Dropped, write_line};

/// The first pause after an attempt that failed; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause: a second after the disk has room again, records flow.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    shared: Arc<Shared>,
    console: Console,
}

/// The time to shut down has passed and the file still takes nothing.
struct GaveUp;

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, console: Console) -> Self {
        Self { shared, console }
    }

    /// Writes until the queue is closed and empty, or cannot be emptied in time.
    pub(super) fn run(self) {
        loop {
            let (mut output, task) = self.shared.next_task();
            match task {
                Task::Write(batch) => match self.write(&mut output, batch) {
                    Ok(written) => self.shared.put_back(output, written.cleared()),
                    Err(GaveUp) => return self.shared.give_up(),
                },
                Task::Reopen => {
                    self.reopen(&mut output, &mut Batch::default());
                    self.shared.put_back(output, Batch::default());
                }
                Task::Finish => return output.finish(),
            }
        }
    }

    /// Writes a batch to its end, however often that takes.
    fn write(&self, output: &mut Output, mut batch: Batch) -> Result<Batch, GaveUp> {
        self.tell_of_dropped(&mut batch);
        let mut pause = FIRST_PAUSE;
        while !batch.is_written() {
            match self.write_some(output, &mut batch) {
                Ok(()) => {
                    self.succeeded();
                    pause = FIRST_PAUSE;
                }
                Err(error) => {
                    self.failed(&error);
                    match self.shared.pause(pause) {
                        Pause::Over => pause = LONGEST_PAUSE.min(pause * 2),
                        Pause::Reopen => self.reopen(output, &mut batch),
                        Pause::GiveUp => return Err(GaveUp),
                    }
                }
            }
        }
        Ok(batch)
    }

    /// Writes as many records as the file has room for with one call, and rotates the file where it has none.
    fn write_some(&self, output: &mut Output, batch: &mut Batch) -> std::io::Result<()> {
        let fitting = |output: &Output, batch: &Batch| batch.lines_within(output.room()).len();
        let mut length = fitting(output, batch);
        if length == 0 && !batch.is_mid_line() && !output.is_empty() {
            self.rotate(output);
            length = fitting(output, batch);
        }
        // A record that is begun is ended in the same file, and one that fits into no file has one to itself.
        let bytes = if length == 0 { batch.next_line() } else { batch.lines_within(output.room()) };
        let count = output.write(bytes)?;
        self.shared.writes.fetch_add(1, Ordering::Relaxed);
        self.shared.acknowledge(batch.advance(count));
        Ok(())
    }

    fn rotate(&self, output: &mut Output) {
        match output.rotate() {
            Ok(()) => _ = self.shared.rotations.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                self.console.notice(format!("the audit file grows on, for it cannot be rotated: {error}"));
                output.postpone_rotation();
            }
        }
    }

    /// Opens the path again. A record that is partly written is ended in the old file if that can be, or else
    /// begun anew in the new one.
    fn reopen(&self, output: &mut Output, batch: &mut Batch) {
        match output.reopen() {
            Ok(None) => {}
            Ok(Some(next)) => {
                self.end_line(output, batch);
                // The old file is somebody else's now; it reaches the disk when the system sees fit.
                drop(output.go_on_in(next));
            }
            Err(error) => self.console.notice(format!("the audit file stays as it is: {error}")),
        }
    }

    fn end_line(&self, output: &mut Output, batch: &mut Batch) {
        while batch.is_mid_line() {
            match output.write(batch.rest_of_line()) {
                Ok(count) => self.shared.acknowledge(batch.advance(count)),
                Err(_) => batch.rewind(),
            }
        }
    }

    /// Puts a line where records were lost.
    fn tell_of_dropped(&self, batch: &mut Batch) {
        let records = self.shared.take_untold();
        let mut line = Vec::new();
        if records > 0 && write_line(&Dropped { time: Timestamp::now(), records }, &mut line).is_ok() {
            self.console.notice(format!("{records} audit records were dropped"));
            batch.push(&line, 0, None);
        }
    }

    fn succeeded(&self) {
        if !self.shared.note_writable(true) {
            self.console.notice("the audit file is written again");
        }
    }

    fn failed(&self, error: &std::io::Error) {
        self.shared.write_errors.fetch_add(1, Ordering::Relaxed);
        if self.shared.note_writable(false) {
            self.console.notice(format!("the audit file cannot be written: {error}"));
        }
    }
}
