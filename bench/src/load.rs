//! Clients: plain blocking threads, each with one connection at a time and a deadline on every wait.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;
use rustix::process::nice;
use socket2::{Domain, Socket, Type};

use crate::origin::{ANSWER, ECHO, PULLING, RESPONSE, SINK, SOURCE};

/// How long one wait of a client may take: far above what a proxy needs, so that one that hangs is a failure and
/// not a stand-still.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long clients that begin at fixed times take to get ready.
pub const BEFORE: Duration = Duration::from_millis(50);
/// Bytes of a ClientHello, as most libraries pad it.
const HELLO: usize = 517;
/// Bytes that bulk clients move at a time.
const CHUNK: usize = 256 * 1024;
/// Bytes of a message that goes to and fro.
const PING: usize = 64;

/// How a client says where it wants to go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Way {
    /// By CONNECT to port 443, and a ClientHello behind it.
    Connect,
    /// By a ClientHello alone.
    Sni,
    /// By requests in absolute form, on a connection that is kept.
    Http,
}

impl Way {
    /// Its name in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "CONNECT",
            Self::Sni => "SNI",
            Self::Http => "HTTP",
        }
    }
}

/// Where clients go, and what they ask for.
#[derive(Clone, Debug)]
pub struct Load {
    /// How.
    pub way: Way,
    /// The proxy.
    pub proxy: SocketAddr,
    /// Names that are allowed.
    pub allowed: Arc<[Asked]>,
    /// Names that are not.
    pub denied: Arc<[Asked]>,
    /// How many of a thousand go to a denied name.
    pub denied_share: u64,
}

/// What a client says for one name.
#[derive(Clone, Debug)]
pub struct Asked {
    /// A CONNECT head.
    pub connect: Vec<u8>,
    /// A ClientHello.
    pub hello: Vec<u8>,
    /// An absolute-form request.
    pub request: Vec<u8>,
}

impl Asked {
    /// What is said for this name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            connect: format!("CONNECT {name}:443 HTTP/1.1\r\nHost: {name}:443\r\nUser-Agent: load\r\n\r\n").into(),
            hello: hello(name),
            request: format!("GET http://{name}/simple/ HTTP/1.1\r\nHost: {name}\r\nUser-Agent: load\r\nAccept: */*\r\n\r\n")
                .into(),
        }
    }
}

/// What came of a time under load.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Operations that went as they should.
    pub operations: u64,
    /// Operations that did not.
    pub failures: u64,
    /// How long it took.
    pub time: Duration,
}

/// What came of operations that began at fixed times.
#[derive(Clone, Debug, Default)]
pub struct Timed {
    /// How long those took that went as they should, sorted.
    pub times: Vec<Duration>,
    /// How many did not.
    pub failures: u64,
    /// How many were done between the times that were given.
    pub in_time: u64,
}

impl Load {
    /// Opens and closes tunnels, or sends requests, with so many clients at once, each beginning the next when it is
    /// done. `measure` is told when the load is on, waits for as long as it likes, and the load ends.
    pub fn closed_loop<T>(&self, clients: usize, measure: impl FnOnce(&dyn Fn() -> Done) -> T) -> T {
        let (operations, failures, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let started = Instant::now();
        thread::scope(|scope| {
            for number in 0..clients {
                let (operations, failures, over) = (&operations, &failures, &over);
                scope.spawn(move || {
                    let mut client = Client::new(self, number);
                    while !over.load(Ordering::Relaxed) {
                        let counter = if client.operation().is_ok() { operations } else { failures };
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let result = measure(&|| Done {
                operations: operations.load(Ordering::Relaxed),
                failures: failures.load(Ordering::Relaxed),
                time: started.elapsed(),
            });
            over.store(true, Ordering::Relaxed);
            result
        })
    }

    /// Operations that begin at fixed times, `rate` a second, however long those before take. Each is measured from
    /// the time at which it should have begun, so that a proxy that stands still cannot hide what it did to those
    /// that had to wait. At most `clients` are under way.
    #[must_use]
    pub fn fixed_rate(&self, rate: u64, clients: usize, time: Duration) -> Timed {
        self.fixed_rate_after(rate, clients, Duration::ZERO, time)
    }

    /// The same, in which operations that are done before `warm` is over do not count as done in time: at first there
    /// are as many under way as there are clients, and none of them is done.
    #[must_use]
    pub fn fixed_rate_after(&self, rate: u64, clients: usize, warm: Duration, time: Duration) -> Timed {
        let time = warm + time;
        let (next, failures, in_time) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let (total, begin) = (rate * time.as_millis() as u64 / 1000, Instant::now() + BEFORE);
        let mut times: Vec<Duration> = thread::scope(|scope| {
            let handles: Vec<_> = (0..clients)
                .map(|number| {
                    let (next, failures, in_time) = (&next, &failures, &in_time);
                    scope.spawn(move || {
                        let (mut client, mut times) = (Client::new(self, number), Vec::new());
                        loop {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            if number >= total {
                                return times;
                            }
                            let due = begin + Duration::from_nanos(number * 1_000_000_000 / rate);
                            if begin.elapsed() > time {
                                // Its turn came too late to be of use; at an overload that is its fate.
                                return times;
                            }
                            wait_for(due);
                            match client.operation() {
                                Ok(()) => {
                                    times.push(due.elapsed());
                                    let counts = (warm..=time).contains(&begin.elapsed());
                                    in_time.fetch_add(u64::from(counts), Ordering::Relaxed);
                                }
                                Err(_) => drop(failures.fetch_add(1, Ordering::Relaxed)),
                            }
                        }
                    })
                })
                .collect();
            handles.into_iter().flat_map(|handle| handle.join().unwrap()).collect()
        });
        times.sort_unstable();
        Timed { times, failures: failures.into_inner(), in_time: in_time.into_inner() }
    }

    /// Bytes from the origin, through so many tunnels at once, while `measure` runs; it is given the count so far.
    pub fn down<T>(&self, tunnels: usize, measure: impl FnOnce(&dyn Fn() -> u64) -> T) -> io::Result<T> {
        let (moved, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let tunnels: Vec<TcpStream> =
            (0..tunnels).map(|number| self.tunnel(number)).collect::<io::Result<_>>()?;
        Ok(thread::scope(|scope| {
            for mut stream in tunnels {
                let (moved, over) = (&moved, &over);
                scope.spawn(move || -> io::Result<()> {
                    // The cores of the load are few: it is the proxy that is to be fair, not they.
                    let _ = nice(PULLING);
                    let mut buffer = vec![0_u8; CHUNK];
                    stream.write_all(&[SOURCE])?;
                    while !over.load(Ordering::Relaxed) {
                        // Thrown away by the kernel: the client's core is not to be what is measured.
                        let (_, read) = rustix::net::recv(&stream, &mut *buffer, RecvFlags::TRUNC)?;
                        moved.fetch_add(read as u64, Ordering::Relaxed);
                    }
                    Ok(())
                });
            }
            let result = measure(&|| moved.load(Ordering::Relaxed));
            over.store(true, Ordering::Relaxed);
            result
        }))
    }

    /// Bytes to the origin, which counts them, through so many tunnels at once, while `measure` runs.
    pub fn up<T>(&self, tunnels: usize, measure: impl FnOnce() -> T) -> io::Result<T> {
        let over = AtomicBool::new(false);
        let tunnels: Vec<TcpStream> =
            (0..tunnels).map(|number| self.tunnel(number)).collect::<io::Result<_>>()?;
        Ok(thread::scope(|scope| {
            for mut stream in tunnels {
                let over = &over;
                scope.spawn(move || -> io::Result<()> {
                    let buffer = vec![0_u8; CHUNK];
                    stream.write_all(&[SINK])?;
                    // The origin takes what is in one read with the command for the command.
                    thread::sleep(Duration::from_millis(50));
                    while !over.load(Ordering::Relaxed) {
                        stream.write_all(&buffer)?;
                    }
                    Ok(())
                });
            }
            let result = measure();
            over.store(true, Ordering::Relaxed);
            result
        }))
    }

    /// Messages to and fro on so many tunnels at once: how long each took, sorted. `measure` is called when all
    /// tunnels are open, and told how many there were so far.
    pub fn ping_pong<T>(
        &self,
        tunnels: usize,
        measure: impl FnOnce(&dyn Fn() -> u64) -> T,
    ) -> io::Result<(T, Vec<Duration>)> {
        let (count, over, start) = (AtomicU64::new(0), AtomicBool::new(false), Barrier::new(tunnels + 1));
        let streams: Vec<TcpStream> =
            (0..tunnels).map(|number| self.tunnel(number)).collect::<io::Result<_>>()?;
        let (result, mut times) = thread::scope(|scope| {
            let handles: Vec<_> = streams
                .into_iter()
                .map(|mut stream| {
                    let (count, over, start) = (&count, &over, &start);
                    scope.spawn(move || -> io::Result<Vec<Duration>> {
                        let (mut message, mut times) = ([ECHO; PING], Vec::new());
                        stream.write_all(&[ECHO])?;
                        thread::sleep(Duration::from_millis(50));
                        start.wait();
                        while !over.load(Ordering::Relaxed) {
                            let sent = Instant::now();
                            stream.write_all(&message)?;
                            stream.read_exact(&mut message)?;
                            times.push(sent.elapsed());
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(times)
                    })
                })
                .collect();
            start.wait();
            let result = measure(&|| count.load(Ordering::Relaxed));
            over.store(true, Ordering::Relaxed);
            let times: Vec<io::Result<Vec<Duration>>> =
                handles.into_iter().map(|handle| handle.join().unwrap()).collect();
            (result, times.into_iter().collect::<io::Result<Vec<_>>>().map(|times| times.concat()))
        });
        times.iter_mut().for_each(|times| times.sort_unstable());
        Ok((result, times?))
    }

    /// So many open tunnels. Each client address has a few hundred of them, as in a network.
    pub fn idle(&self, tunnels: usize) -> io::Result<Vec<TcpStream>> {
        (0..tunnels).map(|number| self.tunnel(number)).collect()
    }

    /// A tunnel to an allowed name whose hello has been answered.
    pub fn tunnel(&self, number: usize) -> io::Result<TcpStream> {
        Client::new(self, number).open(&self.allowed[number % self.allowed.len()])
    }
}

/// One client: its address, its place in the list of names, and its connection where that is kept.
struct Client<'a> {
    load: &'a Load,
    source: SocketAddr,
    number: usize,
    turn: u64,
    kept: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl<'a> Client<'a> {
    fn new(load: &'a Load, number: usize) -> Self {
        let [_, _, high, low] = (number as u32 % 60_000).to_be_bytes();
        let source = SocketAddr::from((Ipv4Addr::new(10, 1, high, low), 0));
        // Each begins elsewhere in the list of names, a stride apart.
        Self { load, source, number, turn: number as u64 * 7919, kept: None, buffer: vec![0; 4096] }
    }

    /// Opens and closes a tunnel, or sends a request; an error if the outcome is not what the name deserves.
    fn operation(&mut self) -> io::Result<()> {
        let turn = self.turn;
        self.turn += 1;
        let denied = turn * 7919 % 1000 < self.load.denied_share;
        let names = if denied { &self.load.denied } else { &self.load.allowed };
        // A connection that is kept is for one name, as that of a client without a proxy.
        let name = if self.load.way == Way::Http { self.number } else { turn as usize };
        let asked = &names[name % names.len()];
        match (self.load.way, denied) {
            (Way::Http, false) => self.request(asked),
            (Way::Http | Way::Connect, true) => self.denied_request(asked),
            (Way::Sni, true) => self.denied_hello(asked),
            (Way::Connect | Way::Sni, false) => self.open(asked).and_then(close),
        }
    }

    fn open(&mut self, asked: &Asked) -> io::Result<TcpStream> {
        let mut stream = self.dial()?;
        if self.load.way == Way::Connect {
            stream.write_all(&asked.connect)?;
            let head = self.read_head(&mut stream)?;
            if status(head) != Some(b"200") {
                return Err(ErrorKind::PermissionDenied.into());
            }
        }
        stream.write_all(&asked.hello)?;
        stream.read_exact(&mut [0; ANSWER.len()])?;
        Ok(stream)
    }

    fn dial(&self) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_tcp_nodelay(true)?;
        socket.bind(&self.source.into())?;
        socket.connect(&self.load.proxy.into())?;
        Ok(socket.into())
    }

    /// Reads to the end of a head, and no byte behind it: nobody sends one before the client does.
    fn read_head(&mut self, stream: &mut TcpStream) -> io::Result<&[u8]> {
        let mut at = 0;
        loop {
            let read = stream.read(&mut self.buffer[at..])?;
            at += read;
            if self.buffer[..at].windows(4).any(|four| four == b"\r\n\r\n") {
                return Ok(&self.buffer[..at]);
            }
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// On the connection that is kept; on another where the proxy has closed it.
    fn request(&mut self, asked: &Asked) -> io::Result<()> {
        if let Some(stream) = self.kept.take()
            && self.request_on(stream, asked).is_ok()
        {
            return Ok(());
        }
        let stream = self.dial()?;
        self.request_on(stream, asked)
    }

    fn request_on(&mut self, mut stream: TcpStream, asked: &Asked) -> io::Result<()> {
        stream.write_all(&asked.request)?;
        let (mut at, body) = (0, &RESPONSE[RESPONSE.len() - 100..]);
        while !self.buffer[..at].ends_with(body) {
            let read = stream.read(&mut self.buffer[at..])?;
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            at += read;
        }
        if status(&self.buffer[..at]) != Some(b"200") {
            return Err(ErrorKind::PermissionDenied.into());
        }
        self.kept = Some(stream);
        Ok(())
    }

    /// A connection for one request that is answered with 403; to its end, which a peer may leave to the client.
    fn denied_request(&mut self, asked: &Asked) -> io::Result<()> {
        let mut stream = self.dial()?;
        let request = if self.load.way == Way::Connect { &asked.connect } else { &asked.request };
        stream.write_all(request)?;
        let head = self.read_head(&mut stream)?;
        // smokescreen says 407.
        if !matches!(status(head), Some(b"403" | b"407" | b"404")) {
            return Err(ErrorKind::InvalidData.into());
        }
        close(stream)
    }

    /// A hello that is answered by an alert or the end, and by no origin.
    fn denied_hello(&mut self, asked: &Asked) -> io::Result<()> {
        let mut stream = self.dial()?;
        stream.write_all(&asked.hello)?;
        match stream.read(&mut self.buffer) {
            Ok(0) => Ok(()),
            Ok(_) if self.buffer[0] == 21 => close(stream),
            Ok(_) => Err(ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Closes in order: the sending side first, then waits for the other one's end.
fn close(mut stream: TcpStream) -> io::Result<()> {
    match stream.shutdown(Shutdown::Write) {
        // It has gone already.
        Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(()),
        result => result?,
    }
    let mut rest = [0; 1024];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn status(head: &[u8]) -> Option<&[u8]> {
    head.get(9..12)
}

/// A ClientHello for this name, padded (RFC 7685) to [`HELLO`] bytes.
fn hello(name: &str) -> Vec<u8> {
    fn length(bytes: &[u8]) -> [u8; 2] {
        (bytes.len() as u16).to_be_bytes()
    }
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &length(body), body].concat();
    let host = [&[0], &length(name.as_bytes())[..], name.as_bytes()].concat();
    let extensions = [
        extension(0, &[&length(&host)[..], &host].concat()),
        extension(10, &[0, 2, 0, 0x1d]), // supported_groups: x25519
        extension(13, &[0, 2, 4, 3]),    // signature_algorithms
        extension(16, b"\0\x0c\x02h2\x08http/1.1"),
        extension(43, &[2, 3, 4]), // supported_versions: TLS 1.3
        extension(51, &[&[0, 0x24, 0, 0x1d, 0, 0x20][..], &[7; 32]].concat()), // key_share: x25519
    ]
    .concat();
    // TLS 1.2's version, a random, a session, three suites, null compression.
    let fixed = [&[3, 3][..], &[7; 32], &[32], &[9; 32], &[0, 6, 0x13, 1, 0x13, 2, 0x13, 3, 1, 0]].concat();
    // Behind these: five bytes of record, four of handshake, two of length, four of the padding's own.
    let padding = HELLO.saturating_sub(fixed.len() + extensions.len() + 15);
    let extensions = [extensions, extension(21, &vec![0; padding])].concat();
    let body = [&fixed[..], &length(&extensions), &extensions].concat();
    let message = [&[1, 0][..], &length(&body), &body].concat();
    [&[22, 3, 1], &length(&message)[..], &message].concat()
}

/// Sleeps most of the time and spins the rest: a timer of the kernel is up to 60 µs late.
fn wait_for(due: Instant) {
    const SPIN: Duration = Duration::from_micros(100);
    if let Some(sleep) = due.checked_duration_since(Instant::now()).and_then(|left| left.checked_sub(SPIN)) {
        thread::sleep(sleep);
    }
    while Instant::now() < due {
        thread::yield_now();
    }
}
