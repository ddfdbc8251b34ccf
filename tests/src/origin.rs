//! Origins: servers that do as scripted, and remember every byte that reached them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha1::{Digest, Sha1};

/// A server on one address and port.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    journal: Arc<Journal>,
    stopped: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Journal {
    connections: AtomicUsize,
    ended: AtomicUsize,
    received: Mutex<Vec<u8>>,
}

/// One accepted connection, or the inside of its TLS.
pub trait Wire: Read + Write {
    /// Sends nothing more.
    fn finish_sending(&mut self);
}

/// What an origin does with a connection. When it returns, the connection closes.
pub trait Serve: Fn(&mut dyn Wire) + Send + Sync + 'static {}
impl<F: Fn(&mut dyn Wire) + Send + Sync + 'static> Serve for F {}

impl Origin {
    /// Serves on `listener`, a thread a connection.
    #[must_use]
    pub fn start(listener: TcpListener, serve: impl Serve) -> Self {
        let address = listener.local_addr().unwrap();
        let (journal, stopped) = (Arc::new(Journal::default()), Arc::new(AtomicBool::new(false)));
        std::thread::spawn({
            let (journal, stopped) = (Arc::clone(&journal), Arc::clone(&stopped));
            move || accept(&listener, &journal, &stopped, &Arc::new(serve))
        });
        Self { address, journal, stopped }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.journal.connections.load(Ordering::SeqCst)
    }

    /// How many connections it is done with.
    #[must_use]
    pub fn ended(&self) -> usize {
        self.journal.ended.load(Ordering::SeqCst)
    }

    /// Every byte that it has read off the wire, over all connections.
    #[must_use]
    pub fn received(&self) -> Vec<u8> {
        self.journal.received.lock().unwrap().clone()
    }

    /// [`Origin::received`] as text.
    #[must_use]
    pub fn heard(&self) -> String {
        String::from_utf8_lossy(&self.received()).into_owned()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that waits in accept.
        drop(TcpStream::connect(self.address));
    }
}

fn accept<S: Serve>(listener: &TcpListener, journal: &Arc<Journal>, stopped: &AtomicBool, serve: &Arc<S>) {
    for stream in listener.incoming().map_while(Result::ok) {
        if stopped.load(Ordering::SeqCst) {
            return;
        }
        journal.connections.fetch_add(1, Ordering::SeqCst);
        stream.set_nodelay(true).unwrap();
        let (journal, serve) = (Arc::clone(journal), Arc::clone(serve));
        std::thread::spawn(move || {
            let mut wire = Plain { stream, journal: Arc::clone(&journal) };
            serve(&mut wire);
            drop(wire);
            journal.ended.fetch_add(1, Ordering::SeqCst);
        });
    }
}

/// A TCP connection that writes down what it reads.
struct Plain {
    stream: TcpStream,
    journal: Arc<Journal>,
}

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.journal.received.lock().unwrap().extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

impl Write for Plain {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

impl Wire for Plain {
    fn finish_sending(&mut self) {
        drop(self.stream.shutdown(Shutdown::Write));
    }
}

impl Wire for StreamOwned<ServerConnection, &mut dyn Wire> {
    fn finish_sending(&mut self) {
        self.conn.send_close_notify();
        drop(self.flush());
        self.sock.finish_sending();
    }
}

/// Speaks TLS and lets `inner` speak inside it.
pub fn tls(config: Arc<ServerConfig>, inner: impl Serve) -> impl Serve {
    move |wire: &mut dyn Wire| {
        let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = StreamOwned::new(connection, wire);
        inner(&mut stream);
        stream.conn.send_close_notify();
        drop(stream.flush());
    }
}

/// Sends back what it is sent; at the client's end says `bye` and ends, too.
pub fn echo() -> impl Serve {
    |wire: &mut dyn Wire| {
        let mut buffer = [0; 16_384];
        while let Ok(count @ 1..) = wire.read(&mut buffer) {
            if wire.write_all(&buffer[..count]).and_then(|()| wire.flush()).is_err() {
                return;
            }
        }
        drop(wire.write_all(b"bye"));
        wire.finish_sending();
    }
}

/// Speaks first, then echoes.
pub fn greet(greeting: &'static str) -> impl Serve {
    let echo = echo();
    move |wire: &mut dyn Wire| {
        drop(wire.write_all(greeting.as_bytes()));
        echo(wire);
    }
}

/// Says something and ends its half at once; then listens to the end.
pub fn say_and_finish(words: &'static str) -> impl Serve {
    move |wire: &mut dyn Wire| {
        drop(wire.write_all(words.as_bytes()));
        wire.finish_sending();
        drop(std::io::copy(wire, &mut std::io::sink()));
    }
}

/// Reads and says nothing.
pub fn listen_only() -> impl Serve {
    |wire: &mut dyn Wire| drop(std::io::copy(wire, &mut std::io::sink()))
}

/// Answers every request head with these bytes, whatever they are, and closes.
pub fn script(bytes: impl Into<Vec<u8>>) -> impl Serve {
    let bytes = bytes.into();
    move |wire: &mut dyn Wire| {
        if read_request(&mut BufReader::new(&mut *wire)).is_some() {
            drop(wire.write_all(&bytes));
        }
    }
}

/// Answers a request head with an endless stream: `first`, then `again` for as long as somebody reads.
pub fn endless(first: &'static str, again: &'static str) -> impl Serve {
    let again = again.repeat(1 + 4096 / again.len());
    move |wire: &mut dyn Wire| {
        if read_request(&mut BufReader::new(&mut *wire)).is_some() {
            drop(wire.write_all(first.as_bytes()));
            while wire.write_all(again.as_bytes()).is_ok() {}
        }
    }
}

/// A request as an HTTP origin reads it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The target as it stands in the request line.
    pub target: String,
    /// The fields in order, names in lower case.
    pub fields: Vec<(String, String)>,
    /// The body, without its framing.
    pub body: Vec<u8>,
}

impl Request {
    /// The value of the first field with this lower-case name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }
}

/// A response to give.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Further fields, as lines ending in CR LF.
    pub fields: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// 200 with this text.
    #[must_use]
    pub fn text(text: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, fields: "Content-Type: text/plain\r\n".into(), body: text.into() }
    }

    /// 200 with this page.
    #[must_use]
    pub fn html(text: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, fields: "Content-Type: text/html\r\n".into(), body: text.into() }
    }

    /// A status without a body.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self { status, fields: String::new(), body: Vec::new() }
    }
}

/// An HTTP/1.1 server that keeps connections.
pub fn http(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> impl Serve {
    move |wire: &mut dyn Wire| {
        let mut reader = BufReader::new(wire);
        while let Some(request) = read_request(&mut reader) {
            let Reply { status, fields, body } = answer(&request);
            let length = body.len();
            let head = format!("HTTP/1.1 {status} Fine\r\nContent-Length: {length}\r\n{fields}\r\n");
            let body = if request.method == "HEAD" { Vec::new() } else { body };
            let wire = reader.get_mut();
            if wire.write_all(&[head.as_bytes(), &body].concat()).and_then(|()| wire.flush()).is_err() {
                return;
            }
        }
    }
}

/// An HTTP server that answers everything with this text.
pub fn page(text: &'static str) -> impl Serve {
    http(move |_| Reply::text(text))
}

/// A WebSocket server that echoes text frames of up to 125 bytes.
pub fn websocket() -> impl Serve {
    |wire: &mut dyn Wire| {
        let mut reader = BufReader::new(wire);
        let Some(request) = read_request(&mut reader) else { return };
        let accept = websocket_accept(request.field("sec-websocket-key").unwrap_or_default());
        let wire = reader.into_inner();
        let switch = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        drop(wire.write_all(switch.as_bytes()));
        while let Some((opcode, payload)) = read_frame(wire) {
            let frame = [&[0x80 | opcode, u8::try_from(payload.len()).unwrap()], &payload[..]].concat();
            if wire.write_all(&frame).and_then(|()| wire.flush()).is_err() || opcode == 8 {
                return;
            }
        }
    }
}

/// A masked frame of a client, short form alone.
fn read_frame(wire: &mut dyn Wire) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 6];
    wire.read_exact(&mut head).ok()?;
    let mut payload = vec![0; usize::from(head[1] & 0x7f)];
    wire.read_exact(&mut payload).ok()?;
    payload.iter_mut().zip(head[2..].iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Some((head[0] & 0x0f, payload))
}

/// RFC 6455 §4.2.2.
fn websocket_accept(key: &str) -> String {
    base64(&Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11")))
}

/// Base64 (RFC 4648 §4).
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | usize::from(*group.get(at).unwrap_or(&0)));
        for at in 0..4 {
            let sextet = ALPHABET[bits >> (18 - 6 * at) & 63];
            text.push(if at <= group.len() { char::from(sextet) } else { '=' });
        }
    }
    text
}

/// Reads one request; none at the end of the connection.
pub fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let line = read_line(reader)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut fields = Vec::new();
    loop {
        let line = read_line(reader)?;
        let Some((name, value)) = line.split_once(':') else { break };
        fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut request = Request { method, target, fields, body: Vec::new() };
    request.body = read_body(reader, &request)?;
    Some(request)
}

fn read_body(reader: &mut impl BufRead, request: &Request) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if request.field("transfer-encoding").is_some() {
        loop {
            let size = usize::from_str_radix(read_line(reader)?.split(';').next()?, 16).ok()?;
            let at = body.len();
            body.resize(at + size, 0);
            reader.read_exact(&mut body[at..]).ok()?;
            read_line(reader)?;
            if size == 0 {
                return Some(body);
            }
        }
    }
    body.resize(request.field("content-length").map_or(Some(0), |length| length.parse().ok())?, 0);
    reader.read_exact(&mut body).ok()?;
    Some(body)
}

fn read_line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).ok().filter(|count| *count > 0)?;
    Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
}
