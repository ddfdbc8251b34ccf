//! Records of what the kernel decides by itself: what it passes, what it refuses, and how much went by.
//!
//! The kernel's rules ([`kernel::plan`](crate::kernel::plan)) tell of the first packet of a flow that passes and of
//! each packet that is refused, by NFLOG, with a [`Prefix`] that says what was done and by which rule. When a flow
//! is over conntrack tells its bytes. A thread reads both, makes records of them and hands them to the [`Recorder`].
//! The kernel waits for nobody: where the thread falls behind, messages are lost, and a record says how many.

use std::fmt;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outgate_rules::Revision;
use tokio::runtime::Handle;

use crate::kernel::netlink::Failure;
use crate::record::network::Packets;
use crate::recorder::Recorder;
use judge::Judge;
use socket::{Kernel, Read};
use watch::Watch;

mod conntrack_events;
mod judge;
pub mod mark;
pub mod nflog;
mod socket;
mod watch;

pub use judge::{NamesTold, RulesInForce};
pub(crate) use watch::Event;

/// How often packets that were only counted are looked through.
const SWEEP: Duration = Duration::from_secs(1);

/// What the kernel's rules write before a packet that they tell of: `og:a:12:5a98edc37e0a`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    /// What was done.
    pub told: Told,
    /// The rule that made the kernel do so, by its number.
    pub rule: Option<u32>,
    /// The revision that the number is of.
    pub revision: Revision,
}

impl Prefix {
    /// Reads a prefix; none where the packet was told of by somebody else's rule.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let [og, told, rule, revision] = text.split(':').collect::<Vec<_>>().try_into().ok()?;
        let told = Told::ALL.into_iter().find(|known| known.letter() == told)?;
        let rule = match rule {
            "-" => None,
            number => Some(number.parse().ok()?),
        };
        (og == "og").then_some(Self { told, rule, revision: Revision::parse(revision)? })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "og:{}:", self.told.letter())?;
        match self.rule {
            Some(number) => write!(f, "{number}")?,
            None => f.write_str("-")?,
        }
        write!(f, ":{}", self.revision)
    }
}

/// What the kernel did with a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// It passed by a rule, or by the mode.
    Passed,
    /// It passed because the client was told its address for a name.
    PassedByName,
    /// It passed because verdicts are suspended.
    WouldRefuse,
    /// It was refused by a rule, or for lack of one.
    Refused,
    /// It was refused for being QUIC.
    RefusedQuic,
    /// It was refused for coming from nobody's client.
    NotServed,
}

impl Told {
    /// Every one.
    pub const ALL: [Self; 6] = [
        Self::Passed,
        Self::PassedByName,
        Self::WouldRefuse,
        Self::Refused,
        Self::RefusedQuic,
        Self::NotServed,
    ];

    /// Whether the packet went on.
    #[must_use]
    pub fn passes(self) -> bool {
        match self {
            Self::Passed | Self::PassedByName | Self::WouldRefuse => true,
            Self::Refused | Self::RefusedQuic | Self::NotServed => false,
        }
    }

    fn letter(self) -> &'static str {
        match self {
            Self::Passed => "a",
            Self::PassedByName => "t",
            Self::WouldRefuse => "w",
            Self::Refused => "d",
            Self::RefusedQuic => "q",
            Self::NotServed => "c",
        }
    }
}

/// A packet that the kernel told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Logged {
    pub(crate) prefix: Prefix,
    pub(crate) packets: Packets,
    /// The message's number among those of its group.
    pub(crate) sequence: Option<u32>,
}

/// A flow that the kernel passed and that is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ended {
    pub(crate) packets: Packets,
    /// Whether it passed by what the client was told.
    pub(crate) by_name: bool,
    pub(crate) bytes_up: Option<u64>,
    pub(crate) bytes_down: Option<u64>,
}

/// Why the kernel does not tell what it does.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The log group cannot be had.
    #[error("cannot listen to NFLOG group {group}: {error}")]
    Packets {
        /// The group.
        group: u16,
        /// What the kernel said: EBUSY where another program listens to the group.
        error: Failure,
    },
    /// Nobody tells of the end of flows.
    #[error("cannot listen to conntrack's events: {0}")]
    Ends(Failure),
    /// The system has no thread or no pipe for it.
    #[error("cannot start to listen to the kernel: {0}")]
    Thread(io::Error),
}

/// Listens to the kernel until it is stopped or dropped.
#[derive(Debug)]
pub struct Listening {
    /// Closed, it stops the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Listening {
    /// Begins to listen, in the network namespace of the calling thread. `runtime` is where the recorder's tasks run.
    ///
    /// # Errors
    /// When the kernel does not let it; CAP_NET_ADMIN is needed.
    pub fn start(
        group: u16,
        rules: RulesInForce,
        names: NamesTold,
        recorder: Arc<Recorder>,
        runtime: Handle,
    ) -> Result<Self, ListenError> {
        let packets = Kernel::packets(group).map_err(|error| ListenError::Packets { group, error })?;
        let ends = Kernel::ends().map_err(ListenError::Ends)?;
        let (stopped, stop) = io::pipe().map_err(ListenError::Thread)?;
        let watch = Watch::new(Judge::new(rules, names));
        let listener = Listener { packets, ends, stopped, watch, recorder, runtime };
        let thread = std::thread::Builder::new().name("network".into()).spawn(|| listener.run());
        Ok(Self { stop: Some(stop), thread: Some(thread.map_err(ListenError::Thread)?) })
    }

    /// Stops, and comes back when the last records are handed over. Blocks for as long as the audit file does.
    pub fn stop(mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing more to hand over.
            _ = thread.join();
        }
    }
}

/// The thread's own.
struct Listener {
    packets: Kernel,
    ends: Kernel,
    stopped: PipeReader,
    watch: Watch,
    recorder: Arc<Recorder>,
    runtime: Handle,
}

impl Listener {
    /// Reads what the kernel tells, until it is stopped or a socket fails, and then what it still holds.
    fn run(mut self) {
        let mut swept = Instant::now();
        let mut last = None;
        loop {
            let mut events = Vec::new();
            match self.wait(last).and_then(|stopped| self.read(&mut events).map(|()| stopped)) {
                Ok(stopped) if stopped && last.is_none() => last = Some(Instant::now() + nflog::GATHERING),
                Ok(_) => {}
                Err(error) => {
                    self.recorder.console().notice(format!("the kernel's records end here: {error}"));
                    last = Some(Instant::now());
                }
            }
            let now = Instant::now();
            events.extend(self.watch.closed(now, Timestamp::now()));
            let over = last.is_some_and(|last| last <= now);
            if over {
                events.extend(self.watch.finish(Timestamp::now()));
            } else if now.duration_since(swept) >= SWEEP {
                swept = now;
                events.extend(self.watch.sweep(now, Timestamp::now()));
            }
            self.recorder.network(&events, &self.runtime);
            if over {
                return;
            }
        }
    }

    /// Waits for a message, or until it is time to sweep or to end; tells whether it is to stop.
    fn wait(&self, last: Option<Instant>) -> io::Result<bool> {
        let wanted = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut polled = [self.packets.as_fd(), self.ends.as_fd(), self.stopped.as_fd()].map(wanted);
        // A pipe that was closed stays so: nothing is left to be heard of it.
        let count = if last.is_some() { 2 } else { 3 };
        let usual = if self.watch.is_waiting() { nflog::GATHERING } else { SWEEP };
        let patience = last.map_or(usual, |last| last.saturating_duration_since(Instant::now()));
        // Rounded up, lest the last milliseconds are spent in turning round.
        let timeout = PollTimeout::try_from(patience + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
        match poll(polled.get_mut(..count).unwrap_or_default(), timeout) {
            Ok(_) | Err(Errno::EINTR) => {
                Ok(polled.last().is_some_and(|stopped| stopped.any().unwrap_or(false)))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn read(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let Self { packets, ends, watch, .. } = self;
        let (now, time) = (Instant::now(), Timestamp::now());
        // Lost packets are known by the number of the next one.
        packets.read(|message| {
            let logged = nflog::logged(message);
            events.extend(logged.and_then(|logged| watch.packet(&logged, now, time)));
        })?;
        let read = ends.read(|message| {
            if let Some(ended) = conntrack_events::ended(message) {
                watch.ended(ended, now);
            }
        })?;
        if read == Read::Overrun {
            watch.overrun();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
