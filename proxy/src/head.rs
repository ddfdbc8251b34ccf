//! Request heads, read strictly: what two readers could take for two things is rejected here, before any
//! other code sees it.
//!
//! What goes on to an origin is made anew from what was understood here, so that nothing else reads these bytes.

use bytes::{Bytes, BytesMut};
use http::{Method, Version};
use httparse::Header;
use outgate_rules::{Destination, Host, Port, Reason};

use crate::record::{Asked, Kind};

/// Most bytes of one head. Cookies and tokens fit; a head without an end stops here.
pub const MAX_HEAD: usize = 32 * 1024;
/// Most fields of one head.
pub const MAX_FIELDS: usize = 100;

/// A request's head in types.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// The head's bytes, up to and with the empty line.
    pub raw: Bytes,
    /// The method.
    pub method: Method,
    /// What is asked for.
    pub target: Target,
    /// The Host field: a host, and a port if one was given.
    pub host: Option<HostField>,
    /// How the body behind the head ends.
    pub body: BodyLength,
    /// Whether the client asks to switch to a WebSocket.
    pub websocket: bool,
    /// Whether the client wants its connection closed behind the response (RFC 9112 §9.3).
    pub close: bool,
    /// Whether the client waits for an interim response before it sends the body (RFC 9110 §10.1.1).
    pub expects_continue: bool,
    /// HTTP/1.1, or 1.0, which knows neither chunks nor interim responses.
    pub version: Version,
}

/// The target of a request, by its form (RFC 9112 §3.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `CONNECT pypi.org:443`
    Authority(Destination),
    /// `GET http://pypi.org/simple/`
    Absolute {
        /// The authority, port 80 where none was given.
        destination: Destination,
        /// Path and query; `/` where there was none.
        path: String,
    },
    /// `GET /simple/`
    Origin {
        /// Path and query.
        path: String,
    },
}

/// A Host field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostField {
    /// Its host.
    pub host: Host,
    /// Its port; 80 where none was given.
    pub port: Port,
}

/// How the body behind a head ends (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// With the head.
    None,
    /// After this many bytes.
    Bytes(u64),
    /// With the last chunk.
    Chunked,
}

/// Why a head is rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadHead {
    /// Why.
    pub reason: Reason,
    /// What was asked for, as far as it could be read: for the record.
    pub asked: Asked,
    /// By which of the two adapters, as far as that could be read.
    pub kind: Kind,
}

impl From<Reason> for BadHead {
    fn from(reason: Reason) -> Self {
        Self { reason, asked: Asked::Nothing, kind: Kind::Http }
    }
}

/// Finds the end of a head in bytes that arrive bit by bit, and looks at each byte once.
#[derive(Debug, Default)]
pub struct HeadScanner {
    scanned: usize,
    line_start: usize,
    lines: usize,
}

impl HeadScanner {
    /// Looks for the end of a head at the front of `buffer`, which has only grown since the last call.
    ///
    /// # Errors
    /// As soon as the bytes cannot be the beginning of an acceptable head.
    pub fn scan(&mut self, buffer: &[u8]) -> Result<Option<usize>, BadHead> {
        if buffer.len() == self.scanned {
            return Ok(None);
        }
        if self.lines == 0 {
            check_first_byte(buffer)?;
        }
        while let Some(found) = buffer.get(self.scanned..).and_then(|rest| memchr::memchr(b'\n', rest)) {
            let end = self.scanned + found;
            self.scanned = end + 1;
            let line = buffer.get(self.line_start..end).unwrap_or_default();
            let Some(line) = line.strip_suffix(b"\r") else { return Err(bad(Reason::HeadBareLf, buffer)) };
            self.line_start = end + 1;
            self.lines += 1;
            if line.is_empty() {
                return within_limit(end + 1, buffer).map(|()| Some(end + 1));
            }
            self.check_line(line).map_err(|reason| bad(reason, buffer))?;
        }
        self.scanned = buffer.len();
        within_limit(buffer.len(), buffer).map(|()| None)
    }

    fn check_line(&self, line: &[u8]) -> Result<(), Reason> {
        match self.lines {
            1 => check_request_line(line),
            lines if lines > MAX_FIELDS + 1 => Err(Reason::HeadTooLarge),
            _ if line.starts_with(b" ") || line.starts_with(b"\t") => Err(Reason::HeadFolded),
            _ if has_control(line) => Err(Reason::HeadControlByte),
            _ => Ok(()),
        }
    }
}

impl RequestHead {
    /// Takes a complete head off the front of `buffer`, if one is there.
    ///
    /// # Errors
    /// Why the head is rejected.
    pub fn take(scanner: &mut HeadScanner, buffer: &mut BytesMut) -> Result<Option<Self>, BadHead> {
        let Some(end) = scanner.scan(buffer)? else { return Ok(None) };
        *scanner = HeadScanner::default();
        let raw = buffer.split_to(end).freeze();
        Self::parse(raw.clone()).map(Some).inspect_err(|_| put_back(&raw, buffer))
    }

    /// Lends the fields of the head.
    pub(crate) fn with_fields<T>(&self, lent: impl FnOnce(Fields<'_>) -> T) -> T {
        let mut space = [httparse::EMPTY_HEADER; MAX_FIELDS];
        // They were read once before, when the head was accepted.
        lent(fields(&self.raw, &mut space).unwrap_or(Fields(&[])))
    }

    fn parse(raw: Bytes) -> Result<Self, BadHead> {
        let reject = |reason| bad(reason, &raw);
        let line_end = memchr::memchr(b'\r', &raw).unwrap_or(raw.len());
        let line = raw.get(..line_end).unwrap_or_default();
        let (method, target) = split_request_line(line).ok_or_else(|| reject(Reason::NotHttp))?;
        let method = Method::from_bytes(method).map_err(|_| reject(Reason::HeadMalformed))?;
        let target = Target::parse(&method, &String::from_utf8_lossy(target)).map_err(reject)?;
        let version = if line.ends_with(b"1.0") { Version::HTTP_10 } else { Version::HTTP_11 };
        let mut space = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let fields = fields(&raw, &mut space).ok_or_else(|| reject(Reason::HeadMalformed))?;
        let host = fields.host().map_err(reject)?;
        check_host(&target, host.as_ref()).map_err(reject)?;
        let body = fields.body_length(&method, version).map_err(reject)?;
        // An older version knows no upgrade (RFC 9110 §7.8): there it is a field like those of other connections.
        let websocket = fields.websocket().map_err(reject)? && version != Version::HTTP_10;
        let close = !fields.is_persistent(version);
        let expects_continue = version == Version::HTTP_11 && fields.expects_continue();
        Ok(Self { method, target, host, body, websocket, close, expects_continue, version, raw })
    }
}

/// The fields of a whole head.
fn fields<'h>(head: &'h [u8], space: &'h mut [Header<'h>]) -> Option<Fields<'h>> {
    let line_end = memchr::memchr(b'\r', head)?;
    match httparse::parse_headers(head.get(line_end + 2..)?, space) {
        Ok(httparse::Status::Complete((_, fields))) => Some(Fields(fields)),
        Ok(httparse::Status::Partial) | Err(_) => None,
    }
}

/// What is no head may still be passed on as it came, where it goes to an address that is open to anything.
fn put_back(raw: &[u8], buffer: &mut BytesMut) {
    let behind = std::mem::replace(buffer, BytesMut::from(raw));
    buffer.unsplit(behind);
}

impl Target {
    fn parse(method: &Method, target: &str) -> Result<Self, Reason> {
        if *method == Method::CONNECT {
            return Ok(Self::Authority(Destination::parse(target)?));
        }
        if has_control(target.as_bytes()) {
            return Err(Reason::HeadControlByte);
        }
        if target.starts_with('/') {
            return path(target).map(|path| Self::Origin { path });
        }
        let (scheme, rest) = target.split_once("://").ok_or(Reason::TargetForm)?;
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(Reason::TargetScheme);
        }
        let end = rest.bytes().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        let destination = Destination::parse_with_default(authority, Port::HTTP)?;
        let path = if rest.starts_with('/') { path(rest) } else { path(&format!("/{rest}")) }?;
        Ok(Self::Absolute { destination, path })
    }
}

impl Target {
    /// Path and query; nothing for a CONNECT.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::Authority(_) => "",
            Self::Absolute { path, .. } | Self::Origin { path } => path,
        }
    }
}

impl HostField {
    /// Whether the field names this destination: the same host, and the same port where it gives one or
    /// the protocol's default.
    #[must_use]
    pub fn names(&self, destination: &Destination) -> bool {
        self.host == destination.host && self.port == destination.port
    }
}

/// The fields of one head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'h>(pub(crate) &'h [Header<'h>]);

impl<'h> Fields<'h> {
    /// The values of a field, one for each line.
    pub(crate) fn all(self, name: &'static str) -> impl Iterator<Item = &'h [u8]> {
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// The options of Connection (RFC 9110 §7.6.1).
    pub(crate) fn options(self) -> impl Iterator<Item = &'h [u8]> {
        self.all("connection").flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
    }

    /// Whether the connection may carry another message behind this one (RFC 9112 §9.3).
    pub(crate) fn is_persistent(self, version: Version) -> bool {
        let has = |option: &[u8]| self.options().any(|given| given.eq_ignore_ascii_case(option));
        !has(b"close") && (version != Version::HTTP_10 || has(b"keep-alive"))
    }

    fn expects_continue(self) -> bool {
        self.all("expect").any(|value| value.eq_ignore_ascii_case(b"100-continue"))
    }

    fn host(self) -> Result<Option<HostField>, Reason> {
        let mut hosts = self.all("host");
        let Some(value) = hosts.next() else { return Ok(None) };
        if hosts.next().is_some() {
            return Err(Reason::HostFieldRepeated);
        }
        let text = String::from_utf8_lossy(value);
        let Destination { host, port } = Destination::parse_with_default(text.trim(), Port::HTTP)?;
        Ok(Some(HostField { host, port }))
    }

    /// How the body ends. Chunks of HTTP/1.0, which knows none, may have been taken for something else on their way here
    /// (RFC 9112 §6.1).
    fn body_length(self, method: &Method, version: Version) -> Result<BodyLength, Reason> {
        let mut encodings = self.all("transfer-encoding");
        let mut lengths = self.all("content-length");
        let body = match (encodings.next(), lengths.next()) {
            (Some(_), Some(_)) => return Err(Reason::LengthConflict),
            (Some(_), None) if version == Version::HTTP_10 => return Err(Reason::TransferEncoding),
            (Some(_), None) if encodings.next().is_some() => return Err(Reason::TransferEncoding),
            (Some(encoding), None) if encoding.eq_ignore_ascii_case(b"chunked") => BodyLength::Chunked,
            (Some(_), None) => return Err(Reason::TransferEncoding),
            (None, Some(_)) if lengths.next().is_some() => return Err(Reason::LengthInvalid),
            (None, Some(length)) => match decimal(length).ok_or(Reason::LengthInvalid)? {
                0 => BodyLength::None,
                length => BodyLength::Bytes(length),
            },
            (None, None) => BodyLength::None,
        };
        if *method == Method::CONNECT && body != BodyLength::None {
            return Err(Reason::ConnectWithBody);
        }
        Ok(body)
    }

    /// An upgrade is asked for by the Upgrade field together with the option in Connection (RFC 9110 §7.8). An offer
    /// of HTTP/2 is declined by not answering it, as that section allows: some clients make one with every request.
    fn websocket(self) -> Result<bool, Reason> {
        let mut upgrades = self.all("upgrade");
        match (upgrades.next(), upgrades.next()) {
            (None, _) => Ok(false),
            (Some(value), None) if value.eq_ignore_ascii_case(b"websocket") => Ok(true),
            (Some(value), None) if value.eq_ignore_ascii_case(b"h2c") => Ok(false),
            (Some(_), _) => Err(Reason::UpgradeUnsupported),
        }
    }
}

/// A path and query of visible ASCII, as RFC 3986 has it; a fragment is never sent.
fn path(text: &str) -> Result<String, Reason> {
    if text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        Ok(text.to_owned())
    } else {
        Err(Reason::HeadMalformed)
    }
}

/// A request for a resource has one Host field, and it agrees with the target (RFC 9112 §3.2). What a CONNECT
/// says there goes nowhere: some clients leave it out, and some name the proxy.
fn check_host(target: &Target, host: Option<&HostField>) -> Result<(), Reason> {
    match (target, host) {
        (Target::Authority(_), _) => Ok(()),
        (Target::Absolute { .. } | Target::Origin { .. }, None) => Err(Reason::HostFieldMissing),
        (Target::Absolute { destination, .. }, Some(field)) if !field.names(destination) => {
            Err(Reason::HostFieldMismatch)
        }
        (Target::Absolute { .. } | Target::Origin { .. }, Some(_)) => Ok(()),
    }
}

/// What is certainly not HTTP is told from its first byte: TLS, SOCKS, an empty line, a PROXY v2 header.
fn check_first_byte(buffer: &[u8]) -> Result<(), BadHead> {
    match buffer.first() {
        Some(byte) if !byte.is_ascii_alphabetic() => Err(Reason::NotHttp.into()),
        Some(_) | None => Ok(()),
    }
}

fn check_request_line(line: &[u8]) -> Result<(), Reason> {
    if split_request_line(line).is_none() {
        return Err(Reason::NotHttp);
    }
    match line.rsplit(|byte| *byte == b' ').next() {
        Some(b"HTTP/1.1" | b"HTTP/1.0") => Ok(()),
        _ => Err(Reason::HttpVersion),
    }
}

/// The method and the target of `METHOD SP target SP HTTP/x.y`, with single spaces.
fn split_request_line(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    let whole = parts.next().is_none() && version.starts_with(b"HTTP/") && !target.is_empty();
    whole.then_some((method, target))
}

/// Looks at all of the bytes: the processor takes 32 at a time of what has no early end.
fn has_control(bytes: &[u8]) -> bool {
    bytes.iter().fold(false, |found, byte| found | is_control(*byte))
}

fn is_control(byte: u8) -> bool {
    (byte < 0x20 && byte != b'\t') || byte == 0x7f
}

/// A number of decimal digits and nothing else.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if digits { std::str::from_utf8(text).ok()?.parse().ok() } else { None }
}

fn within_limit(length: usize, buffer: &[u8]) -> Result<(), BadHead> {
    if length > MAX_HEAD { Err(bad(Reason::HeadTooLarge, buffer)) } else { Ok(()) }
}

/// A rejection, with the target as far as it can be read.
pub(crate) fn bad(reason: Reason, head: &[u8]) -> BadHead {
    let line = head.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let kind = if words.next() == Some(b"CONNECT") { Kind::Connect } else { Kind::Http };
    BadHead { reason, asked: Asked::text(words.next().unwrap_or_default()), kind }
}

#[cfg(test)]
mod tests;
