//! The floor: a relay without policy, name or record. What it costs is what the kernel asks of any proxy, so other
//! figures are given as multiples of it. One thread, one edge-triggered registration for each socket, no timer.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

/// Bytes that are moved at a time.
const CHUNK: usize = 64 * 1024;
/// Bytes of a pipe, and of one splice.
const PIPE: usize = 1 << 20;
/// The longest CONNECT head.
const HEAD: usize = 4096;
/// Chunks of one tunnel before others have their turn.
const TURN: usize = 4;
/// Events that are fetched at a time.
const EVENTS: usize = 256;

/// How bytes go from one socket to the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Means {
    /// Through one buffer, by `read` and `write`.
    Copy,
    /// Through a pipe for each direction, by `splice`.
    Splice,
}

/// What comes before the relaying.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening {
    /// A CONNECT head, which is answered and otherwise not looked at.
    Connect,
    /// Nothing: the origin is dialled at once.
    Straight,
}

/// A listener of the floor.
#[derive(Debug)]
pub struct Door {
    /// Where clients come in.
    pub listener: TcpListener,
    /// What they say first.
    pub opening: Opening,
    /// Where everything goes.
    pub origin: SocketAddr,
}

/// Relays until the process is killed.
///
/// # Errors
/// When epoll or a listener fails. A tunnel that fails is closed.
pub fn run(doors: Vec<Door>, means: Means) -> io::Result<()> {
    let mut floor = Floor {
        poll: epoll::create(CreateFlags::CLOEXEC)?,
        doors,
        means,
        tunnels: HashMap::new(),
        next: 0,
        buffer: vec![0; CHUNK],
        unfinished: Vec::new(),
    };
    for (number, door) in floor.doors.iter().enumerate() {
        door.listener.set_nonblocking(true)?;
        epoll::add(&floor.poll, &door.listener, EventData::new_u64(number as u64), EventFlags::IN)?;
    }
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        let unfinished = std::mem::take(&mut floor.unfinished);
        let timeout = if unfinished.is_empty() { None } else { Some(&Timespec { tv_sec: 0, tv_nsec: 0 }) };
        epoll::wait(&floor.poll, rustix::buffer::spare_capacity(&mut events), timeout)?;
        events.iter().for_each(|event: &Event| floor.turn(event.data.u64()));
        unfinished.into_iter().for_each(|key| floor.turn(key));
    }
}

/// The first key of a tunnel; those below are listeners.
const FIRST: u64 = 16;

struct Floor {
    poll: OwnedFd,
    doors: Vec<Door>,
    means: Means,
    tunnels: HashMap<u64, Tunnel>,
    next: u64,
    buffer: Vec<u8>,
    /// Tunnels that had more to do when their turn was over: no event tells of it again.
    unfinished: Vec<u64>,
}

/// One client and its origin.
struct Tunnel {
    client: TcpStream,
    door: usize,
    head: Vec<u8>,
    origin: Option<Linked>,
}

/// A tunnel that has dialled.
struct Linked {
    stream: TcpStream,
    up: Direction,
    down: Direction,
}

/// Bytes on their way in one direction.
#[derive(Default)]
struct Direction {
    /// Read and not yet written.
    rest: Vec<u8>,
    pipe: Option<(OwnedFd, OwnedFd)>,
    in_pipe: usize,
    ended: bool,
    closed: bool,
}

impl Floor {
    fn turn(&mut self, key: u64) {
        if key < FIRST {
            while let Ok((client, _)) = self.doors[key as usize].listener.accept() {
                drop(self.open(client, key as usize));
            }
            return;
        }
        let Some(mut tunnel) = self.tunnels.remove(&key) else { return };
        if let Ok(false) = self.advance(&mut tunnel, key) {
            self.tunnels.insert(key, tunnel);
        }
    }

    fn open(&mut self, client: TcpStream, door: usize) -> io::Result<()> {
        let key = FIRST + self.next;
        self.next += 1;
        client.set_nonblocking(true)?;
        client.set_nodelay(true)?;
        self.watch(&client, key)?;
        let mut tunnel = Tunnel { client, door, head: Vec::new(), origin: None };
        if self.doors[door].opening == Opening::Straight {
            tunnel.origin = Some(self.dial(key, door, Vec::new(), Vec::new())?);
        }
        self.tunnels.insert(key, tunnel);
        Ok(())
    }

    fn watch(&self, socket: impl AsFd, key: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.poll, socket, EventData::new_u64(key), flags)?)
    }

    /// Begins to connect; `up` and `down` are what goes first.
    fn dial(&self, key: u64, door: usize, up: Vec<u8>, down: Vec<u8>) -> io::Result<Linked> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &self.doors[door].origin) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        self.watch(&stream, key)?;
        let direction = |rest| Direction { rest, ..Direction::default() };
        Ok(Linked { stream, up: direction(up), down: direction(down) })
    }

    /// Does all that can be done at once; whether the tunnel is over.
    fn advance(&mut self, tunnel: &mut Tunnel, key: u64) -> io::Result<bool> {
        if tunnel.origin.is_none() && !self.read_head(tunnel, key)? {
            return Ok(false);
        }
        let Some(Linked { stream, up, down }) = &mut tunnel.origin else { return Ok(false) };
        let (means, buffer) = (self.means, &mut self.buffer);
        let more = up.pump(&mut tunnel.client, stream, means, buffer)?;
        if down.pump(stream, &mut tunnel.client, means, buffer)? || more {
            self.unfinished.push(key);
        }
        Ok(up.closed && down.closed)
    }

    /// Whether the head was there, and the origin has been dialled.
    fn read_head(&mut self, tunnel: &mut Tunnel, key: u64) -> io::Result<bool> {
        match tunnel.client.read(&mut self.buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => tunnel.head.extend(&self.buffer[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
        let Some(end) = tunnel.head.windows(4).position(|four| four == b"\r\n\r\n") else {
            return if tunnel.head.len() > HEAD { Err(ErrorKind::InvalidData.into()) } else { Ok(false) };
        };
        let behind = tunnel.head.split_off(end + 4);
        tunnel.origin = Some(self.dial(key, tunnel.door, behind, b"HTTP/1.1 200 OK\r\n\r\n".to_vec())?);
        Ok(false)
    }
}

/// Where a direction stands after its turn.
#[derive(PartialEq, Eq)]
enum Stand {
    /// Nothing more is to be read.
    Drained,
    /// The writing side is full.
    Full,
    /// There is more.
    More,
}

impl Direction {
    /// Whether there is more to do at once.
    fn pump(
        &mut self,
        from: &mut TcpStream,
        to: &mut TcpStream,
        means: Means,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        if self.closed || !self.flush(to)? {
            return Ok(false);
        }
        let stand = match means {
            Means::Copy => self.copy(from, to, buffer)?,
            Means::Splice => self.splice(from, to)?,
        };
        if self.ended && stand == Stand::Drained {
            self.closed = true;
            drop(to.shutdown(Shutdown::Write));
        }
        Ok(stand == Stand::More)
    }

    /// Writes what could not be written before; whether all of it went.
    fn flush(&mut self, to: &mut TcpStream) -> io::Result<bool> {
        while !self.rest.is_empty() {
            match to.write(&self.rest) {
                Ok(written) => drop(self.rest.drain(..written)),
                // Not connected yet.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn copy(&mut self, from: &mut TcpStream, to: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Stand> {
        for _ in 0..TURN {
            let read = match from.read(buffer) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(Stand::Drained);
                }
                Ok(read) => read,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Ok(Stand::Drained);
                }
                Err(error) => return Err(error),
            };
            self.rest.extend(match to.write(&buffer[..read]) {
                Ok(written) => &buffer[written..read],
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    &buffer[..read]
                }
                Err(error) => return Err(error),
            });
            if !self.rest.is_empty() {
                return Ok(Stand::Full);
            }
        }
        Ok(Stand::More)
    }

    fn splice(&mut self, from: &TcpStream, to: &TcpStream) -> io::Result<Stand> {
        if self.pipe.is_none() {
            let pipe = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
            // A user without CAP_SYS_RESOURCE has but so many pages of pipes; a smaller pipe does, too.
            let _ = rustix::pipe::fcntl_setpipe_size(&pipe.0, PIPE);
            self.pipe = Some(pipe);
        }
        let Some((outlet, inlet)) = &self.pipe else { return Ok(Stand::Drained) };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        for _ in 0..TURN {
            if self.in_pipe > 0 {
                match splice(outlet, None, to, None, self.in_pipe, flags) {
                    Ok(moved) => self.in_pipe -= moved,
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOTCONN) => return Ok(Stand::Full),
                    Err(error) => return Err(error.into()),
                }
                continue;
            }
            match splice(from, None, inlet, None, PIPE, flags) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(Stand::Drained);
                }
                Ok(moved) => self.in_pipe = moved,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOTCONN) => return Ok(Stand::Drained),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Stand::More)
    }
}
