//! Clients that are never behind: they ask as much as a server answers, and look for answers without sleeping.
//!
//! dnsperf asks from two cores what one core of a fast server answers, and what two cores could do is not seen by it. Nor
//! does a server pay for waking these clients.

use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
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

/// Answers a second to questions for the addresses of these names, asked from these cores.
pub(crate) fn rate(names: &[String], cores: &[usize], time: Duration) -> f64 {
    let queries: Vec<Vec<u8>> = names.iter().map(|name| query(name)).collect();
    let answers: u64 = thread::scope(|scope| {
        let ask = |core| {
            let queries = &queries;
            scope.spawn(move || ask(queries, core, time))
        };
        let threads: Vec<_> = cores.iter().map(|core| ask(*core)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    answers as f64 / time.as_secs_f64()
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
fn ask(queries: &[Vec<u8>], core: usize, time: Duration) -> u64 {
    let mut cpus = CpuSet::new();
    cpus.set(core);
    sched_setaffinity(None, &cpus).unwrap();
    let mut queries = queries.iter().cycle().skip(core * SOCKETS * WINDOW);
    let mut clients: Vec<Client> = (0..SOCKETS).map(|_| Client::new()).collect();
    let begin = Instant::now() + WARM;
    let mut answers = 0;
    loop {
        let now = Instant::now();
        if now >= begin + time {
            return answers;
        }
        for client in &mut clients {
            let answered = client.turn(&mut queries, now);
            answers += if now >= begin { answered } else { 0 };
        }
    }
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
    fn turn<'q>(&mut self, queries: &mut impl Iterator<Item = &'q Vec<u8>>, now: Instant) -> u64 {
        let socket = self.socket.as_raw_fd();
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            self.buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let answered = recvmmsg(socket, &mut self.receiving, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)
            .map_or(0, Iterator::count);
        if answered > 0 {
            self.heard = now;
        } else if now - self.heard > LOST {
            (self.outstanding, self.heard) = (0, now);
        }
        self.outstanding = self.outstanding.saturating_sub(answered);
        let next: Vec<[IoSlice<'_>; 1]> =
            queries.take(WINDOW - self.outstanding).map(|query| [IoSlice::new(query)]).collect();
        if !next.is_empty() {
            let to = vec![None; next.len()];
            let sent = sendmmsg(socket, &mut self.sending, &next, to, [], MsgFlags::MSG_DONTWAIT);
            self.outstanding += sent.map_or(0, Iterator::count);
        }
        answered as u64
    }
}
