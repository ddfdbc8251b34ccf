//! What is made of the packets and the ended flows that the kernel tells of: one record where there are thousands
//! of packets, and none of them forgotten.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::judge::Judge;
use super::nflog::GATHERING;
use super::{Ended, Logged};
use crate::record::network::{IpProtocol, Packets};
use crate::record::{Forwarded, ForwardedClosed, Untold};

/// For how long packets of one kind are only counted after one was put on record.
const WINDOW: Duration = Duration::from_secs(10);
/// Kinds of packets that are counted apart. A kind takes about 300 bytes; a client that scans a network fills it, and
/// what is beyond is counted all the same.
const KINDS: usize = 65_536;
/// Flows whose beginning is remembered until they end, about 300 bytes each. Of those beyond, the record of their end
/// has no duration.
const FLOWS: usize = 262_144;
/// When there are too many, flows as old as this make room: the ends of some were perhaps not told.
const LONG: Duration = Duration::from_secs(3600);

/// Ends that wait at a time, about 100 bytes each.
const ENDED: usize = 65_536;

/// Turns what the kernel tells into events.
#[derive(Debug)]
pub(crate) struct Watch {
    judge: Judge,
    windows: HashMap<Kind, Window>,
    open: HashMap<Packets, Opened>,
    /// Ends that wait for their beginnings, the first come first.
    ended: VecDeque<(Instant, Ended)>,
    /// The number that the next message of the kernel has.
    next: Option<u32>,
    /// Packets that there is no record of.
    untold: u64,
}

/// Packets that one record stands for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Kind {
    client: IpAddr,
    destination: SocketAddr,
    protocol: IpProtocol,
    passes: bool,
}

#[derive(Debug)]
struct Window {
    until: Instant,
    /// The last packet since the last record, and how many there were.
    waiting: Option<Forwarded>,
}

#[derive(Debug)]
struct Opened {
    decided: Forwarded,
    at: Instant,
}

/// What is to be put on record.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Forwarded(Forwarded),
    Closed(ForwardedClosed),
    Untold(Untold),
}

impl Watch {
    pub(crate) fn new(judge: Judge) -> Self {
        Self {
            judge,
            windows: HashMap::new(),
            open: HashMap::new(),
            ended: VecDeque::new(),
            next: None,
            untold: 0,
        }
    }

    /// The kernel told of a packet. The first of its kind is an event at once.
    pub(crate) fn packet(&mut self, logged: &Logged, now: Instant, time: Timestamp) -> Option<Event> {
        self.follow(logged.sequence);
        let event = self.judge.logged(logged, time);
        if logged.prefix.told.passes() {
            self.opened(&event, now);
        }
        let Packets { client, destination, protocol } = logged.packets;
        let kind = Kind { client: client.ip(), destination, protocol, passes: logged.prefix.told.passes() };
        if let Some(window) = self.windows.get_mut(&kind) {
            return window.count(event, now).map(Event::Forwarded);
        }
        if self.windows.len() >= KINDS {
            self.untold += 1;
            return None;
        }
        self.windows.insert(kind, Window { until: now + WINDOW, waiting: None });
        Some(Event::Forwarded(event))
    }

    /// The kernel told of the end of a flow that it had passed. It tells of packets in batches and of ends at once, so
    /// the end of a short flow may come before its beginning: it waits for as long as the kernel gathers.
    pub(crate) fn ended(&mut self, ended: Ended, now: Instant) {
        if self.ended.len() < ENDED {
            self.ended.push_back((now, ended));
        } else {
            self.overrun();
        }
    }

    /// The ends that have waited.
    pub(crate) fn closed(&mut self, now: Instant, time: Timestamp) -> Vec<Event> {
        let mut closed = Vec::new();
        while let Some((at, ended)) = self.ended.pop_front_if(|(at, _)| now.duration_since(*at) >= GATHERING)
        {
            closed.push(self.close(&ended, at, time));
        }
        closed
    }

    /// Whether an end waits.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.ended.is_empty()
    }

    fn close(&mut self, ended: &Ended, at: Instant, time: Timestamp) -> Event {
        let opened = self.open.remove(&ended.packets);
        let duration = opened.as_ref().map(|opened| at.saturating_duration_since(opened.at));
        let decided = match opened {
            Some(opened) => opened.decided,
            None => self.judge.unseen(ended.packets, ended.by_name, time),
        };
        Event::Closed(ForwardedClosed {
            decided: Forwarded { time, ..decided },
            bytes_up: ended.bytes_up,
            bytes_down: ended.bytes_down,
            duration,
        })
    }

    /// The kernel had to leave messages out, and nobody knows how many: at least one.
    pub(crate) fn overrun(&mut self) {
        self.untold = self.untold.saturating_add(1);
    }

    /// What has waited long enough, and what could not be told. To be called every second or so.
    pub(crate) fn sweep(&mut self, now: Instant, time: Timestamp) -> Vec<Event> {
        self.judge.refresh();
        let mut events = Vec::new();
        self.windows.retain(|_, window| {
            if now < window.until {
                return true;
            }
            window.until = now + WINDOW;
            let waiting = window.waiting.take();
            let goes_on = waiting.is_some();
            events.extend(waiting.map(Event::Forwarded));
            goes_on
        });
        events.extend(self.untold(time));
        if self.open.len() >= FLOWS {
            self.open.retain(|_, flow| now.saturating_duration_since(flow.at) < LONG);
        }
        events
    }

    /// Everything that waits, at the end.
    pub(crate) fn finish(&mut self, time: Timestamp) -> Vec<Event> {
        let mut events: Vec<Event> =
            self.windows.drain().filter_map(|(_, window)| window.waiting).map(Event::Forwarded).collect();
        for (at, ended) in std::mem::take(&mut self.ended) {
            events.push(self.close(&ended, at, time));
        }
        events.extend(self.untold(time));
        events
    }

    fn untold(&mut self, time: Timestamp) -> Option<Event> {
        let records = std::mem::take(&mut self.untold);
        (records > 0).then_some(Event::Untold(Untold { time, records }))
    }

    /// Numbers that are left out are messages that were lost.
    fn follow(&mut self, sequence: Option<u32>) {
        let Some(sequence) = sequence else { return };
        // A number from the past is a counter that began anew.
        let lost = self.next.map_or(0, |next| sequence.wrapping_sub(next));
        if lost < u32::MAX / 2 {
            self.untold = self.untold.saturating_add(lost.into());
        }
        self.next = Some(sequence.wrapping_add(1));
    }

    fn opened(&mut self, event: &Forwarded, now: Instant) {
        if self.open.len() < FLOWS || self.open.contains_key(&event.packets) {
            self.open.insert(event.packets, Opened { decided: event.clone(), at: now });
        }
    }
}

impl Window {
    /// Counts a packet; once the window is over it takes those that wait with it.
    fn count(&mut self, event: Forwarded, now: Instant) -> Option<Forwarded> {
        let before = self.waiting.take().map_or(0, |waiting| waiting.count);
        let event = Forwarded { count: before + 1, ..event };
        if now < self.until {
            self.waiting = Some(event);
            return None;
        }
        self.until = now + WINDOW;
        Some(event)
    }
}
