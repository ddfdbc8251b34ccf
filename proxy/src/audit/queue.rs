//! What sessions and the writing thread share: the file, the records that wait, and what became of the others.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{hint, mem};

use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

use super::AuditUnavailable;
use super::file::Output;

/// What the writer has done so far, and what waits.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct AuditCounts {
    /// Records that wait or are being written.
    pub queued_records: u64,
    /// Their bytes.
    pub queued_bytes: u64,
    /// Records that `write(2)` has taken.
    pub written: u64,
    /// Records that were lost: for want of room, or at shutdown.
    pub dropped: u64,
    /// Attempts to write that failed.
    pub write_errors: u64,
    /// Calls of `write(2)` that took something.
    pub writes: u64,
    /// Files that were full.
    pub rotations: u64,
}

/// The queue and the counts.
#[derive(Debug)]
pub(super) struct Shared {
    queue: Mutex<Queue>,
    /// Wakes the writer.
    wake: Condvar,
    /// Bytes that the queue has room for. A record's bytes are given back when they are written.
    room: Semaphore,
    capacity: u32,
    writable: AtomicBool,
    queued_records: AtomicU64,
    written: AtomicU64,
    dropped: AtomicU64,
    /// Those of the dropped that no line of the file tells of yet.
    untold: AtomicU64,
    pub(super) write_errors: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) rotations: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    batch: Batch,
    /// The file, while nobody writes to it.
    output: Option<Output>,
    /// It is a session that writes to it.
    session_writes: bool,
    /// What a session could not write to its end; it comes before all that waits.
    unfinished: Option<Batch>,
    /// Memory for the next batch.
    spare: Batch,
    reopen: bool,
    /// Set when no more records are taken: until then what is queued may be tried.
    closing: Option<Instant>,
    writer: Waiting,
    /// A session waits for one of the records in the batch.
    awaited: bool,
}

/// What the writer waits for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Waiting {
    /// Nothing: it is at work.
    #[default]
    No,
    /// A record.
    Record,
    /// More records, to write them with one call; not for long.
    More,
}

/// How long records that nobody waits for may wait for others: on a busy gate a session that writes its own takes them
/// along before that, and the writing thread costs nothing.
const LINGER: Duration = Duration::from_millis(20);
/// Bytes of records that are written without waiting for more.
const ENOUGH: usize = 256 << 10;

/// What the writer has to do next.
#[derive(Debug)]
pub(super) enum Task {
    Write(Batch),
    Reopen,
    /// Everything is written and nothing more will come.
    Finish,
}

/// What became of a record that was to be written at once.
#[derive(Debug)]
pub(super) enum Now {
    /// `write(2)` has taken it.
    Written,
    /// The file has not taken it, or not all of it: the writing thread goes on, and tells when it is done.
    Begun(oneshot::Receiver<()>),
    /// Somebody else is writing, or the file may make one wait: it is to be queued.
    Busy,
}

/// How long records that came together look for the session that is writing to be done. A write to memory takes less; to
/// queue them and be woken takes more. Two busy cores answer 15 % more lookups for it.
const LOOK: Duration = Duration::from_micros(100);
/// Turns of the processor between two looks.
const PAUSE: usize = 50;

/// Batches that a session writes before it leaves those that came in meanwhile to the writing thread.
const TURNS: usize = 4;

/// What ended the writer's pause.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// Time; or nothing in particular.
    Over,
    Reopen,
    /// The time to shut down has passed.
    GiveUp,
}

impl Shared {
    pub(super) fn new(output: Output, capacity: u32) -> Self {
        Self {
            queue: Mutex::new(Queue { output: Some(output), ..Queue::default() }),
            wake: Condvar::new(),
            room: Semaphore::new(capacity as usize),
            capacity,
            writable: AtomicBool::new(true),
            queued_records: AtomicU64::new(0),
            written: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            untold: AtomicU64::new(0),
            write_errors: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            rotations: AtomicU64::new(0),
        }
    }

    pub(super) fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    /// Notes whether the last attempt to write succeeded, and tells what was noted before.
    pub(super) fn note_writable(&self, writable: bool) -> bool {
        self.writable.swap(writable, Ordering::Relaxed)
    }

    pub(super) fn counts(&self) -> AuditCounts {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        AuditCounts {
            queued_records: load(&self.queued_records),
            queued_bytes: u64::from(self.capacity).saturating_sub(self.room.available_permits() as u64),
            written: load(&self.written),
            dropped: load(&self.dropped),
            write_errors: load(&self.write_errors),
            writes: load(&self.writes),
            rotations: load(&self.rotations),
        }
    }

    pub(super) fn ask_to_reopen(&self) {
        self.lock().reopen = true;
        self.wake.notify_one();
    }

    /// Takes no more records; what is queued may be tried until `deadline`.
    pub(super) fn close(&self, deadline: Instant) {
        let mut queue = self.lock();
        queue.closing = Some(queue.closing.map_or(deadline, |earlier| earlier.min(deadline)));
        drop(queue);
        self.room.close();
        self.wake.notify_one();
    }

    /// Waits for the writer's next task, and takes the file with it. A batch is everything that is queued; it may be
    /// nothing, where the file has yet to be told of dropped records.
    pub(super) fn next_task(&self) -> (Output, Task) {
        let mut queue = self.lock();
        loop {
            if self.has_records(&queue) && queue.output.is_some() && !queue.is_urgent() {
                queue = self.linger(queue);
            }
            if let Some(output) = queue.output.take() {
                match self.task(&mut queue) {
                    Some(task) => return (output, task),
                    None => queue.output = Some(output),
                }
            }
            queue.writer = Waiting::Record;
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.writer = Waiting::No;
        }
    }

    fn task(&self, queue: &mut Queue) -> Option<Task> {
        if let Some(unfinished) = queue.unfinished.take() {
            return Some(Task::Write(unfinished));
        }
        if mem::take(&mut queue.reopen) {
            return Some(Task::Reopen);
        }
        if self.has_records(queue) {
            return Some(Task::Write(queue.take_batch()));
        }
        queue.closing.map(|_| Task::Finish)
    }

    fn has_records(&self, queue: &Queue) -> bool {
        queue.unfinished.is_some() || !queue.batch.is_written() || self.untold.load(Ordering::Relaxed) > 0
    }

    /// The writer has done its task.
    pub(super) fn put_back(&self, output: Output, spare: Batch) {
        let mut queue = self.lock();
        queue.output = Some(output);
        queue.spare = spare;
    }

    /// Writes a record, and what waits before it, in the thread that calls. What that buys: waking the writing thread
    /// for a record and going on when it is done was 21 % of the CPU of a tunnel on a busy core (bench/README.md).
    /// Only a regular file is written so, which takes what it is given in microseconds; one that once took longer has
    /// the writing thread for a while.
    pub(super) fn write_now(&self, line: &[u8]) -> Now {
        let held = self.held(line);
        let Ok(room) = self.room.try_acquire_many(held) else { return Now::Busy };
        self.write_now_with(self.lock(), room, line, 1, |batch| batch.push(line, held, None))
    }

    /// As [`Shared::write_now`], of one record or more.
    pub(super) fn write_all_now(&self, lines: &Lines) -> Now {
        let Ok(held) = u32::try_from(lines.bytes.len()) else { return Now::Busy };
        let Ok(room) = self.room.try_acquire_many(held) else { return Now::Busy };
        let (queue, records) = (self.lock_between_sessions(), lines.ends.len());
        self.write_now_with(queue, room, &lines.bytes, records, |batch| batch.append(lines, None))
    }

    /// Locks the queue at a time when no session is writing, if that comes soon.
    fn lock_between_sessions(&self) -> MutexGuard<'_, Queue> {
        let mut queue = self.lock();
        if queue.session_writes {
            let begun = Instant::now();
            while queue.session_writes && begun.elapsed() < LOOK {
                drop(queue);
                (0..PAUSE).for_each(|_| hint::spin_loop());
                queue = self.lock();
            }
        }
        queue
    }

    fn write_now_with(
        &self,
        mut queue: MutexGuard<'_, Queue>,
        room: SemaphorePermit<'_>,
        bytes: &[u8],
        records: usize,
        push: impl FnOnce(&mut Batch),
    ) -> Now {
        if !self.may_write_now(&queue, bytes.len()) {
            return Now::Busy;
        }
        let Some(mut output) = queue.output.take() else { return Now::Busy };
        queue.session_writes = true;
        let held = room.num_permits();
        room.forget();
        self.queued_records.fetch_add(records as u64, Ordering::Relaxed);
        let mut batch = if queue.batch.is_written() {
            drop(queue);
            self.write_alone(&mut output, bytes, held, records, push)
        } else {
            push(&mut queue.batch);
            let mut batch = queue.take_batch();
            drop(queue);
            self.write_once(&mut output, &mut batch);
            batch
        };
        let now = if batch.is_written() { Now::Written } else { Now::Begun(batch.tell_of_last()) };
        self.write_on(output, batch);
        now
    }

    /// Writes records that nothing waits before from where they are, and gives what is left of them as a batch.
    fn write_alone(
        &self,
        output: &mut Output,
        bytes: &[u8],
        held: usize,
        records: usize,
        push: impl FnOnce(&mut Batch),
    ) -> Batch {
        let taken = output.write_promptly(bytes);
        self.writes.fetch_add(u64::from(taken.is_ok()), Ordering::Relaxed);
        let mut batch = Batch::default();
        match taken {
            Ok(count) if count == bytes.len() => {
                self.queued_records.fetch_sub(records as u64, Ordering::Relaxed);
                self.written.fetch_add(records as u64, Ordering::Relaxed);
                self.room.add_permits(held);
            }
            taken => {
                push(&mut batch);
                self.acknowledge(batch.advance(taken.unwrap_or(0)));
            }
        }
        batch
    }

    /// Writes what sessions have begun to wait for meanwhile. Then gives the file back, and leaves to the writing thread
    /// what there is still to do.
    fn write_on(&self, mut output: Output, mut batch: Batch) {
        let mut queue = self.lock();
        for _ in 1..TURNS {
            if !batch.is_written() || !queue.awaited || !self.may_write_on(&queue, &output) {
                break;
            }
            queue.keep(batch);
            batch = queue.take_batch();
            drop(queue);
            self.write_once(&mut output, &mut batch);
            queue = self.lock();
        }
        queue.output = Some(output);
        queue.session_writes = false;
        if batch.is_written() {
            queue.keep(batch);
        } else {
            queue.unfinished = Some(batch);
        }
        if (self.has_records(&queue) || queue.is_urgent()) && queue.wants_to_know() {
            self.wake.notify_one();
        }
    }

    fn may_write_now(&self, queue: &Queue, length: usize) -> bool {
        let fits = |output: &Output| (queue.batch.bytes.len() + length) as u64 <= output.room();
        self.is_writable()
            && self.untold.load(Ordering::Relaxed) == 0
            && !queue.is_held_up()
            && queue.output.as_ref().is_some_and(|output| output.is_prompt() && fits(output))
    }

    fn may_write_on(&self, queue: &Queue, output: &Output) -> bool {
        !queue.is_held_up() && output.is_prompt() && queue.batch.bytes.len() as u64 <= output.room()
    }

    /// One attempt. Whatever it does not write, the writing thread tries again, and tells of the failure.
    fn write_once(&self, output: &mut Output, batch: &mut Batch) {
        if let Ok(count) = output.write_promptly(batch.lines_within(u64::MAX)) {
            self.writes.fetch_add(1, Ordering::Relaxed);
            self.acknowledge(batch.advance(count));
        }
    }

    /// The room that a record takes in the queue. One longer than the whole queue takes all of it.
    fn held(&self, line: &[u8]) -> u32 {
        u32::try_from(line.len()).unwrap_or(u32::MAX).clamp(1, self.capacity)
    }

    /// Lets further records come in, unless there is reason to write at once.
    fn linger<'q>(&'q self, mut queue: MutexGuard<'q, Queue>) -> MutexGuard<'q, Queue> {
        queue.writer = Waiting::More;
        let may_wait = |queue: &mut Queue| !queue.is_urgent();
        let (mut queue, _) =
            self.wake.wait_timeout_while(queue, LINGER, may_wait).unwrap_or_else(PoisonError::into_inner);
        queue.writer = Waiting::No;
        queue
    }

    /// Lets an unwritable file rest. Ends early when there is something new to try.
    pub(super) fn pause(&self, length: Duration) -> Pause {
        let queue = self.lock();
        let rested =
            |queue: &mut Queue| !queue.reopen && queue.closing.is_none_or(|end| Instant::now() < end);
        let length =
            queue.closing.map_or(length, |end| length.min(end.saturating_duration_since(Instant::now())));
        let (mut queue, _) =
            self.wake.wait_timeout_while(queue, length, rested).unwrap_or_else(PoisonError::into_inner);
        if mem::take(&mut queue.reopen) {
            return Pause::Reopen;
        }
        match queue.closing {
            Some(end) if end <= Instant::now() => Pause::GiveUp,
            Some(_) | None => Pause::Over,
        }
    }

    /// The number of dropped records that the file has no line about yet. The caller writes that line.
    pub(super) fn take_untold(&self) -> u64 {
        self.untold.swap(0, Ordering::Relaxed)
    }

    /// Gives back the room of records that are written, and lets their sessions go on.
    pub(super) fn acknowledge(&self, lines: impl Iterator<Item = Line>) {
        let (mut room, mut records, mut held) = (0, 0, 0);
        for line in lines {
            room += line.held as usize;
            records += 1;
            held += u64::from(line.held > 0);
            if let Some(written) = line.written {
                // Nobody waits any more: the record is written all the same.
                _ = written.send(());
            }
        }
        self.queued_records.fetch_sub(held, Ordering::Relaxed);
        self.written.fetch_add(records, Ordering::Relaxed);
        self.room.add_permits(room);
    }

    /// Records that were queued and will not be written.
    pub(super) fn give_up(&self) {
        self.dropped.fetch_add(self.queued_records.load(Ordering::Relaxed), Ordering::Relaxed);
        // Whoever waits for one of them learns that nobody writes any more.
        let mut queue = self.lock();
        let lost = (mem::take(&mut queue.batch), queue.unfinished.take());
        drop(queue);
        drop(lost);
    }

    fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.untold.fetch_add(1, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A record on its way into the queue. One that never gets there, be it because its session was cancelled, is
/// counted as dropped.
#[derive(Debug)]
pub(super) struct Pending<'a> {
    shared: &'a Shared,
    line: Vec<u8>,
    queued: bool,
}

impl<'a> Pending<'a> {
    pub(super) fn new(shared: &'a Shared, line: Vec<u8>) -> Self {
        Self { shared, line, queued: false }
    }

    /// Waits for room.
    pub(super) async fn queue(self, written: Option<oneshot::Sender<()>>) -> Result<(), AuditUnavailable> {
        let room = self.shared.room.acquire_many(self.held()).await.map_err(|_| AuditUnavailable)?;
        self.push(room, written)
    }

    /// Takes room that is there, or none.
    pub(super) fn try_queue(self, written: Option<oneshot::Sender<()>>) -> Result<(), AuditUnavailable> {
        let room = self.shared.room.try_acquire_many(self.held()).map_err(|_| AuditUnavailable)?;
        self.push(room, written)
    }

    fn held(&self) -> u32 {
        self.shared.held(&self.line)
    }

    fn push(
        mut self,
        room: SemaphorePermit<'a>,
        written: Option<oneshot::Sender<()>>,
    ) -> Result<(), AuditUnavailable> {
        let mut queue = self.shared.lock();
        if queue.closing.is_some() {
            return Err(AuditUnavailable);
        }
        queue.awaited |= written.is_some();
        queue.batch.push(&self.line, self.held(), written);
        self.shared.queued_records.fetch_add(1, Ordering::Relaxed);
        if queue.wants_to_know() {
            self.shared.wake.notify_one();
        }
        drop(queue);
        room.forget();
        self.queued = true;
        Ok(())
    }
}

/// Records that are handed over together.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Lines {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Lines {
    /// Adds the record that `write` appends to what is there.
    ///
    /// # Errors
    /// Those of `write`; what it appended is gone then.
    pub fn add<E>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let start = self.bytes.len();
        match write(&mut self.bytes) {
            Ok(()) => self.ends.push(self.bytes.len()),
            Err(error) => {
                self.bytes.truncate(start);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Forgets the records and keeps the room.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// Each record.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(start, end)| self.bytes.get(*start..*end).unwrap_or_default())
    }
}

impl Queue {
    /// Whether what is queued is to be written without waiting for more.
    fn is_urgent(&self) -> bool {
        self.awaited
            || self.reopen
            || self.unfinished.is_some()
            || self.closing.is_some()
            || self.batch.bytes.len() >= ENOUGH
    }

    /// Whether something other than a record is to be done first, by the writing thread.
    fn is_held_up(&self) -> bool {
        self.reopen || self.unfinished.is_some() || self.closing.is_some()
    }

    /// Keeps the memory of a batch that is written for another.
    fn keep(&mut self, batch: Batch) {
        if batch.bytes.capacity() > self.spare.bytes.capacity() {
            self.spare = batch.cleared();
        }
    }

    /// Everything that is queued.
    fn take_batch(&mut self) -> Batch {
        self.awaited = false;
        mem::replace(&mut self.batch, mem::take(&mut self.spare))
    }

    /// Whether the writer is to be woken for what was queued just now. It is told once, and not while a session
    /// writes, which looks at the queue again when it is done.
    fn wants_to_know(&mut self) -> bool {
        if self.output.is_none() {
            return false;
        }
        let wants = match self.writer {
            Waiting::No => false,
            Waiting::Record => true,
            Waiting::More => self.is_urgent(),
        };
        if wants {
            self.writer = Waiting::No;
        }
        wants
    }
}

impl Shared {
    /// Queues a record that nobody waits for, if there is room.
    pub(super) fn queue_now(&self, line: &[u8]) -> Result<(), AuditUnavailable> {
        let held = self.held(line);
        let room = self.room.try_acquire_many(held).map_err(|_| AuditUnavailable)?;
        let mut queue = self.lock();
        if queue.closing.is_some() {
            return Err(AuditUnavailable);
        }
        queue.batch.push(line, held, None);
        self.queued_records.fetch_add(1, Ordering::Relaxed);
        if queue.wants_to_know() {
            self.wake.notify_one();
        }
        drop(queue);
        room.forget();
        Ok(())
    }

    /// Queues all records at once, with one lock and one waking, if there is room for all. `written` is told when
    /// the last of them is written.
    pub(super) fn queue_all(
        &self,
        lines: &Lines,
        written: Option<oneshot::Sender<()>>,
    ) -> Result<(), AuditUnavailable> {
        let total = u32::try_from(lines.bytes.len()).map_err(|_| AuditUnavailable)?;
        let room = self.room.try_acquire_many(total).map_err(|_| AuditUnavailable)?;
        let mut queue = self.lock();
        if queue.closing.is_some() {
            return Err(AuditUnavailable);
        }
        queue.awaited |= written.is_some();
        queue.batch.append(lines, written);
        self.queued_records.fetch_add(lines.ends.len() as u64, Ordering::Relaxed);
        if queue.wants_to_know() {
            self.wake.notify_one();
        }
        drop(queue);
        room.forget();
        Ok(())
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.queued {
            self.shared.count_dropped();
        }
    }
}

/// Records that are written together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// The records that are not wholly written, in order.
    lines: VecDeque<Line>,
    /// Where the first of them begins.
    line_start: usize,
    /// How much is written.
    written: usize,
}

/// A record in a batch.
#[derive(Debug)]
pub(super) struct Line {
    end: usize,
    /// The room it holds in the queue; none for a line of the writer's own.
    held: u32,
    written: Option<oneshot::Sender<()>>,
}

impl Batch {
    pub(super) fn push(&mut self, line: &[u8], held: u32, written: Option<oneshot::Sender<()>>) {
        self.bytes.extend_from_slice(line);
        self.lines.push_back(Line { end: self.bytes.len(), held, written });
    }

    /// Adds records; `written` is told when the last of them is written.
    fn append(&mut self, lines: &Lines, written: Option<oneshot::Sender<()>>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&lines.bytes);
        let starts = std::iter::once(&0).chain(&lines.ends);
        // A length that is part of all, which fits.
        let line =
            |(from, to): (&usize, &usize)| Line { end: start + to, held: (to - from) as u32, written: None };
        self.lines.extend(starts.zip(&lines.ends).map(line));
        if let Some(last) = self.lines.back_mut().filter(|_| written.is_some()) {
            last.written = written;
        }
    }

    pub(super) fn is_written(&self) -> bool {
        self.lines.is_empty()
    }

    /// Tells when the last record is written.
    fn tell_of_last(&mut self) -> oneshot::Receiver<()> {
        let (written, told) = oneshot::channel();
        if let Some(last) = self.lines.back_mut() {
            last.written = Some(written);
        }
        told
    }

    /// Whether a record is partly written, so that nothing else may come before its rest.
    pub(super) fn is_mid_line(&self) -> bool {
        self.written > self.line_start
    }

    /// What is left to write of the record that is partly written.
    pub(super) fn rest_of_line(&self) -> &[u8] {
        match self.lines.front() {
            Some(line) if self.is_mid_line() => self.bytes.get(self.written..line.end).unwrap_or_default(),
            Some(_) | None => &[],
        }
    }

    /// The whole records that fit into `room` bytes. None may fit.
    pub(super) fn lines_within(&self, room: u64) -> &[u8] {
        let fitting = self.lines.partition_point(|line| (line.end - self.written) as u64 <= room);
        let end = fitting
            .checked_sub(1)
            .and_then(|last| self.lines.get(last))
            .map_or(self.written, |line| line.end);
        self.bytes.get(self.written..end).unwrap_or_default()
    }

    /// The next record alone, or what is left of it.
    pub(super) fn next_line(&self) -> &[u8] {
        let end = self.lines.front().map_or(self.written, |line| line.end);
        self.bytes.get(self.written..end).unwrap_or_default()
    }

    /// Notes that `count` more bytes are written, and gives up the records that are whole now.
    pub(super) fn advance(&mut self, count: usize) -> impl Iterator<Item = Line> {
        self.written += count;
        let whole = self.lines.partition_point(|line| line.end <= self.written);
        if let Some(last) = whole.checked_sub(1).and_then(|last| self.lines.get(last)) {
            self.line_start = last.end;
        }
        self.lines.drain(..whole)
    }

    /// Begins the record that is partly written once more, for another file.
    pub(super) fn rewind(&mut self) {
        self.written = self.line_start;
    }

    /// Empty, with its memory kept unless that has grown large.
    pub(super) fn cleared(mut self) -> Self {
        const KEPT: usize = 1 << 20;
        const KEPT_LINES: usize = 1 << 12;
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        self.lines.clear();
        self.lines.shrink_to(KEPT_LINES);
        Self { bytes: self.bytes, lines: self.lines, ..Self::default() }
    }
}
