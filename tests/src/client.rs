//! A client that sends exactly the bytes it is told to.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::PATIENCE;

/// A TCP connection whose every read has a deadline.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    /// Read from the stream and not yet asked for.
    ahead: Vec<u8>,
}

/// An HTTP response as it came.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The reason phrase.
    pub phrase: String,
    /// The fields in order, names in lower case.
    pub fields: Vec<(String, String)>,
    /// The body, without its framing.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of the first field with this lower-case name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    /// Connects.
    #[must_use]
    pub fn to(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect_timeout(&address, PATIENCE).expect("connects"))
    }

    /// Connects from an address of one's own choice.
    #[must_use]
    pub fn from(source: IpAddr, address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
        socket.connect(&address.into()).expect("connects");
        Self::over(socket.into())
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, ahead: Vec::new() }
    }

    /// The port that it connected from.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.stream.local_addr().unwrap().port()
    }

    /// Sends bytes, all at once as far as the kernel goes along.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).expect("the gate takes what it is sent");
        self
    }

    /// Sends bytes to a gate that may have closed already.
    pub fn send_to_whom_it_may_concern(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        drop(self.stream.write_all(bytes.as_ref()));
        self
    }

    /// Sends bytes as one segment each.
    pub fn send_byte_by_byte(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        for byte in bytes.as_ref() {
            self.send([*byte]);
        }
        self
    }

    /// Sends nothing more.
    pub fn finish_sending(&mut self) -> &mut Self {
        self.stream.shutdown(Shutdown::Write).unwrap();
        self
    }

    /// Goes away without a word: the other side sees a reset.
    ///
    /// # Panics
    /// If the socket does not take the option.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Asks for a tunnel.
    pub fn connect(&mut self, target: &str) -> Response {
        self.send(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"));
        self.tunnel_response()
    }

    /// Asks for a tunnel where the gate may answer before it is asked, and close.
    pub fn connect_or_read(&mut self, target: &str) -> Response {
        self.send_to_whom_it_may_concern(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"));
        self.tunnel_response()
    }

    /// Asks for a page in absolute form, and keeps the connection.
    pub fn get(&mut self, url: &str) -> Response {
        let host = url.split('/').nth(2).unwrap();
        self.send(format!("GET {url} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        self.response()
    }

    /// Reads the answer to a CONNECT: where it is a 2xx, what follows the head is the tunnel's.
    pub fn tunnel_response(&mut self) -> Response {
        let mut response = self.head();
        if !(200..300).contains(&response.status) {
            response.body = self.body(&response);
        }
        response
    }

    /// Reads one response with its body.
    pub fn response(&mut self) -> Response {
        let mut response = self.head();
        response.body = self.body(&response);
        response
    }

    /// Reads a response's head.
    pub fn head(&mut self) -> Response {
        let text = String::from_utf8_lossy(&self.until(b"\r\n\r\n")).into_owned();
        let mut lines = text.split("\r\n");
        let mut first = lines.next().unwrap().splitn(3, ' ');
        assert!(first.next().unwrap().starts_with("HTTP/1."), "not HTTP: {text:?}");
        let status = first.next().unwrap().parse().unwrap();
        let phrase = first.next().unwrap_or_default().to_owned();
        let fields = lines.filter_map(|line| line.split_once(':'));
        let fields =
            fields.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        Response { status, phrase, fields, body: Vec::new() }
    }

    fn body(&mut self, head: &Response) -> Vec<u8> {
        if head.status == 204 || head.status == 304 || head.status < 200 {
            return Vec::new();
        }
        if head.field("transfer-encoding").is_some() {
            return self.chunks();
        }
        match head.field("content-length") {
            Some(length) => self.exactly(length.parse().unwrap()),
            None => self.rest(),
        }
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let line = self.until(b"\r\n");
            let line = String::from_utf8_lossy(&line);
            let size = usize::from_str_radix(line.trim().split(';').next().unwrap(), 16).unwrap();
            if size == 0 {
                while self.until(b"\r\n") != b"\r\n" {}
                return body;
            }
            body.extend(self.exactly(size));
            assert_eq!(self.exactly(2), b"\r\n");
        }
    }

    /// Reads so many bytes.
    pub fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.ahead.len() < count {
            assert!(self.fill() > 0, "closed after {:?}", String::from_utf8_lossy(&self.ahead));
        }
        self.ahead.drain(..count).collect()
    }

    /// Reads up to and with `end`.
    pub fn until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.ahead.windows(end.len()).position(|window| window == end) {
                return self.ahead.drain(..at + end.len()).collect();
            }
            assert!(self.fill() > 0, "closed after {:?}", String::from_utf8_lossy(&self.ahead));
        }
    }

    /// Reads to the end, which a reset is, too.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() > 0 {}
        std::mem::take(&mut self.ahead)
    }

    /// Reads to the end, and says whether that is a reset. What was read stays for [`Client::rest`].
    ///
    /// # Panics
    /// If nothing comes for too long.
    pub fn ends_with_reset(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => self.ahead.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return true,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Reads up to and with `end`, or to the end of the connection.
    pub fn until_end_or(&mut self, end: &[u8]) -> Vec<u8> {
        while !self.ahead.windows(end.len()).any(|window| window == end) && self.fill() > 0 {}
        std::mem::take(&mut self.ahead)
    }

    /// A second handle on the same connection, to send from another thread.
    #[must_use]
    pub fn twin(&self) -> Self {
        Self { stream: self.stream.try_clone().unwrap(), ahead: Vec::new() }
    }

    /// Whether the other side closes or has closed, saying nothing more.
    pub fn is_closed(&mut self) -> bool {
        self.rest().is_empty()
    }

    /// Whether nothing comes and the connection stays open, for as long as a look takes.
    #[must_use]
    pub fn is_open(&mut self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).unwrap();
        matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Changes how long a read may take.
    pub fn patience(&mut self, patience: Duration) {
        self.stream.set_read_timeout(Some(patience)).unwrap();
    }

    fn fill(&mut self) -> usize {
        let mut buffer = [0; 16_384];
        match self.stream.read(&mut buffer) {
            Ok(count) => {
                self.ahead.extend_from_slice(&buffer[..count]);
                count
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("{error}; so far {:?}", String::from_utf8_lossy(&self.ahead)),
        }
    }
}

impl Read for Client {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.ahead.is_empty() {
            return self.stream.read(buffer);
        }
        let count = buffer.len().min(self.ahead.len());
        buffer[..count].copy_from_slice(&self.ahead[..count]);
        self.ahead.drain(..count);
        Ok(count)
    }
}

impl Write for Client {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}
