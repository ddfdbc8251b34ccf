//! The origin: what is behind every proxy that is measured. It answers a ClientHello with some bytes and then does
//! what the next byte says; and it answers HTTP requests on a connection that it keeps.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::net::RecvFlags;
use rustix::process::nice;

/// The answer to a ClientHello.
pub const ANSWER: [u8; 128] = [22; 128];
/// The answer to an HTTP request.
pub const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\n\
0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";
/// Behind a hello: send back what comes.
pub const ECHO: u8 = b'E';
/// Behind a hello: count what comes.
pub const SINK: u8 = b'S';
/// Behind a hello: send until the other side has enough.
pub const SOURCE: u8 = b'D';

/// How far threads that move bulk step back behind those that open tunnels.
pub const PULLING: i32 = 10;

const CHUNK: usize = 256 * 1024;
const EVENTS: usize = 256;
const BACKLOG: i32 = 8192;

/// A running origin. It ends with the process.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    sunk: Arc<AtomicU64>,
}

impl Origin {
    /// Listens on both addresses with so many threads, each with sockets of its own.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub fn start(tls: SocketAddr, http: SocketAddr, threads: usize) -> io::Result<Self> {
        let origin = Self::default();
        for _ in 0..threads {
            let listeners = [listen(tls)?, listen(http)?];
            let sunk = Arc::clone(&origin.sunk);
            thread::spawn(move || Worker::new(listeners, sunk).and_then(|mut worker| worker.run()));
        }
        Ok(origin)
    }

    /// Bytes that have arrived behind [`SINK`].
    #[must_use]
    pub fn sunk(&self) -> u64 {
        self.sunk.load(Ordering::Relaxed)
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

struct Worker {
    poll: OwnedFd,
    listeners: [TcpListener; 2],
    connections: HashMap<u64, Connection>,
    next: u64,
    buffer: Vec<u8>,
    sunk: Arc<AtomicU64>,
}

struct Connection {
    stream: TcpStream,
    stage: Stage,
}

/// What a connection is about.
enum Stage {
    /// So many bytes of the hello's record are to come; `None` before its header.
    Hello(Option<usize>),
    Told,
    Echo,
    Sink,
    Source,
    /// The end of a head that has not come whole.
    Http(Vec<u8>),
}

impl Worker {
    fn new(listeners: [TcpListener; 2], sunk: Arc<AtomicU64>) -> io::Result<Self> {
        let poll = epoll::create(CreateFlags::CLOEXEC)?;
        for (number, listener) in listeners.iter().enumerate() {
            epoll::add(&poll, listener, EventData::new_u64(number as u64), EventFlags::IN)?;
        }
        Ok(Self { poll, listeners, connections: HashMap::new(), next: 2, buffer: vec![0; CHUNK], sunk })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), None)?;
            for event in &events {
                let event: &Event = event;
                self.turn(event.data.u64())?;
            }
        }
    }

    fn turn(&mut self, key: u64) -> io::Result<()> {
        if let Some(listener) = self.listeners.get(key as usize) {
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                epoll::add(&self.poll, &stream, EventData::new_u64(self.next), EventFlags::IN)?;
                let stage = if key == 0 { Stage::Hello(None) } else { Stage::Http(Vec::new()) };
                self.connections.insert(self.next, Connection { stream, stage });
                self.next += 1;
            }
            return Ok(());
        }
        let Some(mut connection) = self.connections.remove(&key) else { return Ok(()) };
        if let Ok(true) = connection.advance(&mut self.buffer, &self.sunk) {
            if matches!(connection.stage, Stage::Source) {
                epoll::delete(&self.poll, &connection.stream)?;
                thread::spawn(move || source(connection.stream));
            } else {
                self.connections.insert(key, connection);
            }
        }
        Ok(())
    }
}

impl Connection {
    /// One turn; whether there will be another.
    fn advance(&mut self, buffer: &mut [u8], sunk: &AtomicU64) -> io::Result<bool> {
        match self.turn(buffer, sunk) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
            result => result,
        }
    }

    fn turn(&mut self, buffer: &mut [u8], sunk: &AtomicU64) -> io::Result<bool> {
        match &mut self.stage {
            Stage::Sink => {
                let (_, read) = rustix::net::recv(&self.stream, &mut *buffer, RecvFlags::TRUNC)?;
                sunk.fetch_add(read as u64, Ordering::Relaxed);
                return Ok(read > 0);
            }
            Stage::Hello(_) | Stage::Told | Stage::Echo | Stage::Source | Stage::Http(_) => {}
        }
        let read = self.stream.read(buffer)?;
        if read == 0 {
            return Ok(false);
        }
        self.take(&buffer[..read])?;
        Ok(true)
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stage {
            Stage::Hello(to_come) => {
                let to_come = to_come.get_or_insert_with(|| record(bytes));
                *to_come = to_come.saturating_sub(bytes.len());
                if *to_come == 0 {
                    self.stream.write_all(&ANSWER)?;
                    self.stage = Stage::Told;
                }
            }
            Stage::Told => match bytes[0] {
                SINK => self.stage = Stage::Sink,
                SOURCE => self.stage = Stage::Source,
                _ => self.stage = Stage::Echo,
            },
            Stage::Echo => self.stream.write_all(bytes)?,
            Stage::Http(before) => {
                before.extend(bytes);
                let requests = before.windows(4).filter(|four| four == b"\r\n\r\n").count();
                for _ in 0..requests {
                    self.stream.write_all(RESPONSE)?;
                }
                let whole = before.windows(4).rposition(|four| four == b"\r\n\r\n").map_or(0, |at| at + 4);
                drop(before.drain(..whole));
            }
            Stage::Sink | Stage::Source => {}
        }
        Ok(())
    }
}

/// Sends until the other side has enough, in a thread of its own: who opens a tunnel meanwhile does not wait for the
/// origin, and the scheduler prefers those who answer and are done.
fn source(mut stream: TcpStream) -> io::Result<()> {
    let _ = nice(PULLING);
    stream.set_nonblocking(false)?;
    let bytes = vec![0; CHUNK];
    loop {
        stream.write_all(&bytes)?;
    }
}

/// The length of a record by its header. The generator writes it at once, so the header is there.
fn record(bytes: &[u8]) -> usize {
    match bytes {
        [22, _, _, high, low, ..] => 5 + usize::from(u16::from_be_bytes([*high, *low])),
        _ => bytes.len(),
    }
}
