//! What a person reads on stderr while the gate runs: notices, and denials as they happen.
//!
//! A thread of its own writes, so that a terminal that stands still (Ctrl-S, a full pipe) holds up no
//! session; a flood of denials is cut to a few lines a second and a count of the rest.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

/// Denials shown in a second: as many as a person can follow.
const DENIALS_PER_WINDOW: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);
/// Lines that wait for a slow terminal; what is beyond them is counted.
const QUEUE: usize = 256;

/// A handle to the console; its clones write to the same place.
#[derive(Clone, Debug)]
pub struct Console {
    lines: SyncSender<Line>,
    /// Whether denials are shown.
    denials: bool,
    /// Denials of the running window that were queued: beyond those that it shows none need be worded.
    queued: Arc<AtomicU32>,
    /// Denials that were not queued.
    unqueued: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Line {
    Notice(String),
    Denial(String),
    Flush(SyncSender<()>),
}

impl Console {
    /// The console on stderr, which shows denials or leaves them out.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn stderr(denials: bool) -> std::io::Result<Self> {
        Self::on(std::io::stderr(), denials, WINDOW)
    }

    /// A console that writes to `out` and bounds denials within each `window`.
    pub(crate) fn on(
        out: impl Write + Send + 'static,
        denials: bool,
        window: Duration,
    ) -> std::io::Result<Self> {
        let (lines, queued) = mpsc::sync_channel(QUEUE);
        let (waiting, unqueued) = (Arc::<AtomicU32>::default(), Arc::<AtomicU64>::default());
        let counts = (Arc::clone(&waiting), Arc::clone(&unqueued));
        let printer = Printer { out, shown: 0, more: 0, queued: counts.0, unqueued: counts.1 };
        thread::Builder::new().name("console".into()).spawn(move || print(&queued, printer, window))?;
        Ok(Self { lines, denials, queued: waiting, unqueued })
    }

    /// Says something once. It is lost if a full queue of lines waits for the terminal.
    pub fn notice(&self, text: impl Into<String>) {
        _ = self.lines.try_send(Line::Notice(text.into()));
    }

    /// Shows a denial, or counts it where there are too many: that is neither put into words nor wakes the thread,
    /// which would be 15 % of the CPU of a denied CONNECT. Nothing if `text` tells none after all.
    pub fn denied(&self, text: impl FnOnce() -> Option<String>) {
        if !self.denials {
            return;
        }
        if self.queued.load(Ordering::Relaxed) >= DENIALS_PER_WINDOW {
            self.unqueued.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let Some(denial) = text() else { return };
        self.queued.fetch_add(1, Ordering::Relaxed);
        if self.lines.try_send(Line::Denial(denial)).is_err() {
            self.unqueued.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything said so far is written, at most until `deadline` has passed. Blocks.
    pub fn flush(&self, deadline: Duration) {
        let end = Instant::now() + deadline;
        let (done, flushed) = mpsc::sync_channel(1);
        let mut flush = Line::Flush(done);
        while let Err(TrySendError::Full(unsent)) = self.lines.try_send(flush) {
            if Instant::now() >= end {
                return;
            }
            flush = unsent;
            thread::sleep(Duration::from_millis(1));
        }
        _ = flushed.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}

/// Prints lines until the last handle is gone. A window begins with a line and ends with the count of the
/// denials that it did not show.
fn print(lines: &Receiver<Line>, mut printer: Printer<impl Write>, window: Duration) {
    while let Ok(first) = lines.recv() {
        let end = Instant::now() + window;
        printer.shown = 0;
        printer.line(first);
        while let Ok(line) = lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            printer.line(line);
        }
        printer.count_of_more();
        printer.queued.store(0, Ordering::Relaxed);
    }
}

struct Printer<W> {
    out: W,
    /// Denials shown in this window.
    shown: u32,
    /// Denials not shown in this window.
    more: u64,
    queued: Arc<AtomicU32>,
    unqueued: Arc<AtomicU64>,
}

impl<W: Write> Printer<W> {
    fn line(&mut self, line: Line) {
        match line {
            Line::Notice(text) => self.say(&text),
            Line::Denial(_) if self.shown >= DENIALS_PER_WINDOW => self.more += 1,
            Line::Denial(text) => {
                self.shown += 1;
                self.say(&text);
            }
            Line::Flush(done) => {
                self.count_of_more();
                _ = done.try_send(());
            }
        }
    }

    fn count_of_more(&mut self) {
        let more = std::mem::take(&mut self.more) + self.unqueued.swap(0, Ordering::Relaxed);
        if more > 0 {
            self.say(&format!("… and {more} more denied"));
        }
    }

    /// A console that cannot be written to is nobody's loss: the records have it all.
    fn say(&mut self, text: &str) {
        _ = self.out.write_all(format!("outgate: {text}\n").as_bytes());
        _ = self.out.flush();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    /// Memory that keeps what was said.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Heard(Arc<Mutex<Vec<u8>>>);

    impl Heard {
        /// A console whose words are heard here.
        pub(crate) fn console(&self) -> Console {
            Console::on(self.clone(), true, LONG).unwrap()
        }

        pub(crate) fn text(&self, console: &Console) -> String {
            console.flush(LONG);
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Heard {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_flood_of_denials_is_some_lines_and_a_count() {
        let heard = Heard::default();
        let console = heard.console();
        for number in 0..1000 {
            console.denied(|| Some(format!("denied {number}")));
        }
        let text = heard.text(&console);
        let shown = text.lines().filter(|line| line.starts_with("outgate: denied ")).count();
        assert_eq!(shown, DENIALS_PER_WINDOW as usize);
        let more: usize = text
            .lines()
            .filter_map(|line| line.strip_prefix("outgate: … and ")?.strip_suffix(" more denied"))
            .map(|count| count.parse::<usize>().unwrap())
            .sum();
        assert_eq!(shown + more, 1000);
    }

    #[test]
    fn a_terminal_that_stands_still_holds_up_nobody() {
        let (reader, writer) = io::pipe().unwrap();
        let console = Console::on(writer, true, LONG).unwrap();
        let line = "x".repeat(100_000);
        for _ in 0..2 * QUEUE {
            console.denied(|| Some(line.clone()));
            console.notice("a notice");
        }
        drop(reader);
    }

    #[test]
    fn denials_can_be_left_out_and_notices_cannot() {
        let heard = Heard::default();
        let console = Console::on(heard.clone(), false, LONG).unwrap();
        console.denied(|| Some("denied x".into()));
        console.notice("ready");
        assert_eq!(heard.text(&console), "outgate: ready\n");
    }
}
