//! Clients that are never behind: they ask as much as a server answers, and look for answers without sleeping.
//!
//! dnsperf asks from two cores what one core of a fast server answers, and what two cores could do is not seen by it. And
//! its threads sleep whenever a batch of answers is dealt with: on loopback it is the server that pays for waking them, on a
//! network it never is.

use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::ops::AddAssign;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::servers::PORT;

/// Sockets of each core: so many that the kernel deals them out evenly to a server's own.
const SOCKETS: usize = 32;
/// Queries without an answer on each.
const WINDOW: usize = 32;
/// After so long without an answer they are lost.
const LOST: Duration = Duration::from_millis(50);
/// Before answers are counted.
const WARM: Duration = Duration::from_millis(500);

/// What was answered, and what never was.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Tally {
    pub(crate) answers: u64,
    /// Of the answers, those that say that there is no such name, or that it is refused.
    pub(crate) denials: u64,
    /// Queries of clients that heard nothing for so long that they asked others.
    pub(crate) lost: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.answers += other.answers;
        self.denials += other.denials;
        self.lost += other.lost;
    }
}

/// Asks these queries, again and again, from these cores: each begins as far from the others as there is room for.
pub(crate) fn ask(queries: &[Vec<u8>], cores: &[usize], time: Duration) -> Tally {
    thread::scope(|scope| {
        let apart = queries.len() / cores.len();
        let ask = |(number, core): (usize, &usize)| {
            let (core, first) = (*core, number * apart);
            scope.spawn(move || ask_from(queries, first, core, time))
        };
        let threads: Vec<_> = cores.iter().enumerate().map(ask).collect();
        let mut all = Tally::default();
        threads.into_iter().for_each(|thread| all += thread.join().unwrap());
        all
    })
}

/// A question for the address of a name. All have one id: each socket is one client's, which waits for nothing else.
pub(crate) fn query(name: &str) -> Vec<u8> {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// What one core gets answered.
fn ask_from(queries: &[Vec<u8>], first: usize, core: usize, time: Duration) -> Tally {
    let mut cpus = CpuSet::new();
    cpus.set(core);
    sched_setaffinity(None, &cpus).unwrap();
    let mut queries = queries.iter().cycle().skip(first);
    let mut clients: Vec<Client> = (0..SOCKETS).map(|_| Client::new()).collect();
    let begin = Instant::now() + WARM;
    let mut all = Tally::default();
    loop {
        let now = Instant::now();
        if now >= begin + time {
            return all;
        }
        for client in &mut clients {
            let turn = client.turn(&mut queries, now);
            if now >= begin {
                all += turn;
            }
        }
    }
}

/// Whether an answer is NXDOMAIN or REFUSED (RFC 1035 §4.1.1).
fn is_denial(answer: &[u8]) -> bool {
    matches!(answer[3] & 0x0F, 3 | 5)
}

struct Client {
    socket: UdpSocket,
    buffers: Vec<[u8; 512]>,
    receiving: MultiHeaders<SockaddrStorage>,
    sending: MultiHeaders<SockaddrStorage>,
    outstanding: usize,
    heard: Instant,
}

impl Client {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        // To the server of this run.
        #[allow(clippy::disallowed_methods)]
        socket.connect(("127.0.0.1", PORT)).unwrap();
        Self {
            socket,
            buffers: vec![[0; 512]; WINDOW],
            receiving: MultiHeaders::preallocate(WINDOW, None),
            sending: MultiHeaders::preallocate(WINDOW, None),
            outstanding: 0,
            heard: Instant::now(),
        }
    }

    /// Takes the answers that are there, and asks for as many.
    fn turn<'q>(&mut self, queries: &mut impl Iterator<Item = &'q Vec<u8>>, now: Instant) -> Tally {
        let socket = self.socket.as_raw_fd();
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            self.buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let answers = recvmmsg(socket, &mut self.receiving, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)
            .map_or(0, Iterator::count);
        let denials = self.buffers.iter().take(answers).filter(|answer| is_denial(&answer[..])).count();
        let mut lost = 0;
        self.outstanding = self.outstanding.saturating_sub(answers);
        if answers > 0 {
            self.heard = now;
        } else if now - self.heard > LOST {
            lost = std::mem::take(&mut self.outstanding);
            self.heard = now;
        }
        let next: Vec<[IoSlice<'_>; 1]> =
            queries.take(WINDOW - self.outstanding).map(|query| [IoSlice::new(query)]).collect();
        if !next.is_empty() {
            let to = vec![None; next.len()];
            let sent = sendmmsg(socket, &mut self.sending, &next, to, [], MsgFlags::MSG_DONTWAIT);
            self.outstanding += sent.map_or(0, Iterator::count);
        }
        Tally { answers: answers as u64, denials: denials as u64, lost: lost as u64 }
    }
}
