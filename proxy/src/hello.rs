//! The TLS ClientHello, of which we want one thing: the name that the client asks for.
//!
//! We read what a server would read and stop at the first thing on which two servers could differ. The bytes
//! themselves are the caller's: they are kept, and replayed unchanged to the upstream. A second ClientHello,
//! behind a HelloRetryRequest, is not ours to read: the server holds it to the first (RFC 8446 §4.1.2).
//!
//! The layers, from the outside in: a TCP stream of records (RFC 8446 §5.1), whose contents make a stream of
//! handshake messages (§4), the first of which is the ClientHello (§4.1.2) with its extensions (§4.2), one of
//! which may be `server_name` (RFC 6066 §3).

use std::borrow::Cow;
use std::net::IpAddr;

use outgate_rules::{DomainName, NameError, Reason};

#[cfg(test)]
pub(crate) mod tests;

/// Bytes of the stream, record headers included, in which a hello must end. A buffer of this size holds every
/// hello there is to read: [`Reader::read`] never answers [`Hello::NeedMore`] to so many bytes.
/// Real ones have 0.3 to 2 KB.
pub const MAX_HELLO: usize = 64 * 1024;

/// Records over which a hello may be spread: enough for a post-quantum hello of one byte a record.
pub const MAX_RECORDS: usize = 4096;

/// Extensions in one hello. Clients send fewer than thirty, and IANA has assigned fewer than seventy.
pub const MAX_EXTENSIONS: usize = 64;

/// What the first bytes of a client's stream are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// The beginning of a ClientHello, as far as can be seen.
    NeedMore,
    /// A whole ClientHello.
    Found(ClientHello),
    /// Something that does not begin like a TLS record. An SSLv2 hello, which can hold no name, is among these.
    NotTls,
    /// TLS records that do not lead to a ClientHello we would vouch for. More bytes do not mend it.
    Malformed(HelloError),
}

/// What a ClientHello says about where its sender wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// The name in the `server_name` extension; none if there is no such extension.
    pub sni: Option<DomainName>,
    /// Whether there is an `encrypted_client_hello` extension (RFC 9849). It may be GREASE, and from outside
    /// nobody can tell; either way, [`ClientHello::sni`] is the outer name.
    pub ech: bool,
}

/// Why a stream that begins like TLS has no ClientHello that we take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HelloError {
    /// A record version other than 0x0301, 0x0302 and 0x0303. Servers may ignore the field (RFC 8446 §5.1), so
    /// this is not [`Hello::NotTls`].
    #[error("the TLS record has a version that no client sends")]
    RecordVersion,
    /// A record with nothing in it (RFC 8446 §5.1 forbids it for handshake messages).
    #[error("a TLS record is empty")]
    EmptyRecord,
    /// A record of more than 2^14 bytes.
    #[error("a TLS record is longer than 16384 bytes")]
    RecordTooLong,
    /// A record of another kind before the hello or in the middle of it (RFC 8446 §5.1 forbids the latter). Some
    /// servers skip a warning that comes first, so this is not [`Hello::NotTls`].
    #[error("a TLS record of another kind stands before the end of the ClientHello")]
    OtherRecord,
    /// More than [`MAX_RECORDS`] records.
    #[error("the ClientHello is spread over more than 4096 TLS records")]
    TooManyRecords,
    /// More than [`MAX_HELLO`] bytes, by what the lengths claim.
    #[error("the ClientHello is longer than 64 KiB")]
    TooLong,
    /// Another handshake message comes first.
    #[error("the first TLS handshake message is not a ClientHello")]
    NotClientHello,
    /// The last record of the hello goes on behind it. A client has nothing to say there before the server
    /// has answered, and a hello before new keys must end its record (RFC 8446 §5.1).
    #[error("something follows the ClientHello in the same TLS record")]
    BehindHello,
    /// A `legacy_version` other than 0x0301, 0x0302 and 0x0303 (RFC 8446 §4.1.2).
    #[error("the ClientHello has a version that no client sends")]
    HelloVersion,
    /// A length that points behind the end of what surrounds it, or that the field must not have.
    #[error("a length inside the ClientHello is wrong")]
    Length,
    /// Bytes behind the last field of the hello or of the `server_name` extension.
    #[error("there are bytes behind the last field of the ClientHello or of its server_name")]
    TrailingData,
    /// An extension twice (RFC 8446 §4.2 forbids it); two `server_name` extensions are the case that matters.
    #[error("the ClientHello has an extension twice")]
    DuplicateExtension,
    /// More than [`MAX_EXTENSIONS`] extensions.
    #[error("the ClientHello has more than 64 extensions")]
    TooManyExtensions,
    /// A name that is not a host name.
    #[error("the server_name is of a type other than host_name")]
    NameType,
    /// More than one name (RFC 6066 §3 forbids it).
    #[error("the ClientHello asks for several names")]
    SeveralNames,
    /// No name in the list, or a name of no bytes.
    #[error("the server_name is empty")]
    EmptyName,
    /// A NUL, at which some readers would end the name.
    #[error("the server_name has a NUL in it")]
    Nul,
    /// An IPv4 or IPv6 address (RFC 6066 §3 forbids it).
    #[error("the server_name is an IP address")]
    Address,
    /// A final dot (RFC 6066 §3 forbids it, and servers differ on what it means).
    #[error("the server_name ends in a dot")]
    TrailingDot,
    /// Anything else that is no name.
    #[error("the server_name is not a host name: {0}")]
    Name(NameError),
}

/// What `stream` is, read at once; a caller that reads bit by bit keeps a [`Reader`].
#[must_use]
pub fn parse(stream: &[u8]) -> Hello {
    Reader::default().read(stream)
}

/// Reads one stream as it grows, and looks at no record twice until the hello is complete: the cost is linear
/// however few bytes come at a time.
#[derive(Debug, Clone, Default)]
pub struct Reader {
    /// Bytes of the stream that have been looked at.
    at: usize,
    /// Bytes of the current record that have not.
    left: usize,
    /// Records begun.
    records: usize,
    /// Bytes of the handshake message that have been looked at.
    held: usize,
    /// Type and length of the handshake message, as far as `held` goes.
    head: [u8; HANDSHAKE_HEAD],
}

/// A step that cannot be taken: for want of bytes, or for good.
type Step<T> = Result<T, Hello>;

impl Reader {
    /// What `stream` is: all bytes since the connection began, of which those of earlier calls are unchanged.
    ///
    /// The answer to a stream depends on its bytes alone, not on where the calls cut it. Any answer but
    /// [`Hello::NeedMore`] is final.
    pub fn read(&mut self, stream: &[u8]) -> Hello {
        match self.read_message(stream) {
            Ok(message) => parse_message(&message).map_or_else(Hello::Malformed, Hello::Found),
            Err(hello) => hello,
        }
    }

    /// The first handshake message, once its last byte is there.
    fn read_message<'a>(&mut self, stream: &'a [u8]) -> Step<Cow<'a, [u8]>> {
        while !self.check_message()? {
            let rest = stream.get(self.at..).unwrap_or_default();
            if self.left == 0 {
                self.begin_record(rest)?;
            } else {
                self.walk_record(rest)?;
            }
        }
        let message = match self.records {
            1 => stream.get(RECORD_HEAD..self.at).map(Cow::Borrowed),
            _ => join_records(stream, self.at).map(Cow::Owned),
        };
        message.ok_or(Hello::NeedMore)
    }

    fn begin_record(&mut self, rest: &[u8]) -> Step<()> {
        self.left = self.check_record(rest)?;
        self.at += RECORD_HEAD;
        self.records += 1;
        Ok(())
    }

    /// The length of the record that begins here.
    fn check_record(&self, rest: &[u8]) -> Step<usize> {
        if self.records == 0 {
            check_tls(rest)?;
        }
        if *rest.first().ok_or(Hello::NeedMore)? != HANDSHAKE {
            return Err(HelloError::OtherRecord.into());
        }
        let Some((&[_, major, minor, high, low], _)) = rest.split_first_chunk() else {
            return Err(Hello::NeedMore);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        match length {
            _ if !is_version([major, minor]) => Err(HelloError::RecordVersion.into()),
            0 => Err(HelloError::EmptyRecord.into()),
            1..=MAX_RECORD if self.records == MAX_RECORDS => Err(HelloError::TooManyRecords.into()),
            1..=MAX_RECORD if self.at + RECORD_HEAD + length > MAX_HELLO => Err(HelloError::TooLong.into()),
            1..=MAX_RECORD => Ok(length),
            _ => Err(HelloError::RecordTooLong.into()),
        }
    }

    /// Looks at what has come of the current record: no further than the head of the message while that is
    /// incomplete.
    fn walk_record(&mut self, rest: &[u8]) -> Step<()> {
        let content = rest.get(..self.left).unwrap_or(rest);
        let head = self.head.iter_mut().skip(self.held);
        let in_head = head.zip(content).map(|(to, from)| *to = *from).count();
        let walked = if in_head == 0 { content.len() } else { in_head };
        if walked == 0 {
            return Err(Hello::NeedMore);
        }
        self.at += walked;
        self.left -= walked;
        self.held += walked;
        Ok(())
    }

    /// Whether the message is complete; an error if it is no ClientHello, too long, or not the end of its record.
    fn check_message(&self) -> Result<bool, HelloError> {
        let [kind, length @ ..] = self.head;
        if self.held > 0 && kind != CLIENT_HELLO {
            return Err(HelloError::NotClientHello);
        }
        if self.held < HANDSHAKE_HEAD {
            return Ok(false);
        }
        let [high, middle, low] = length.map(usize::from);
        let size = HANDSHAKE_HEAD + (high << 16 | middle << 8 | low);
        match self.held + self.left {
            _ if RECORD_HEAD + size > MAX_HELLO => Err(HelloError::TooLong),
            begun if begun > size => Err(HelloError::BehindHello),
            _ => Ok(self.held == size),
        }
    }
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
const HOST_NAME: u8 = 0;

/// Kind, version and length of a record.
const RECORD_HEAD: usize = 5;
/// Longest content of a record (RFC 8446 §5.1).
const MAX_RECORD: usize = 1 << 14;
/// Type and length of a handshake message.
const HANDSHAKE_HEAD: usize = 4;
/// Longest `legacy_session_id` (RFC 8446 §4.1.2).
const MAX_SESSION_ID: usize = 32;

impl From<HelloError> for Hello {
    fn from(error: HelloError) -> Self {
        Self::Malformed(error)
    }
}

impl From<HelloError> for Reason {
    fn from(error: HelloError) -> Self {
        match error {
            HelloError::TooLong | HelloError::TooManyRecords => Self::HelloTooLong,
            HelloError::NameType
            | HelloError::SeveralNames
            | HelloError::EmptyName
            | HelloError::Nul
            | HelloError::Address
            | HelloError::TrailingDot
            | HelloError::Name(_) => Self::SniInvalid,
            HelloError::RecordVersion
            | HelloError::EmptyRecord
            | HelloError::RecordTooLong
            | HelloError::OtherRecord
            | HelloError::NotClientHello
            | HelloError::BehindHello
            | HelloError::HelloVersion
            | HelloError::Length
            | HelloError::TrailingData
            | HelloError::DuplicateExtension
            | HelloError::TooManyExtensions => Self::HelloMalformed,
        }
    }
}

/// Tells TLS by its first two bytes: a kind of record and the major version. One byte would not do: protocols
/// that begin with a length begin with any byte.
fn check_tls(stream: &[u8]) -> Step<()> {
    match stream {
        [] | [20..=23] => Err(Hello::NeedMore),
        [20..=23, 3, ..] => Ok(()),
        _ => Err(Hello::NotTls),
    }
}

/// TLS 1.0 to 1.2; TLS 1.3 calls itself 1.2 here.
fn is_version(version: [u8; 2]) -> bool {
    matches!(version, [3, 1..=3])
}

/// A message that is spread over the records up to `end`.
fn join_records(stream: &[u8], end: usize) -> Option<Vec<u8>> {
    let mut rest = stream.get(..end)?;
    // All of `end` has arrived, and it is at most MAX_HELLO: this is not what a peer merely claims.
    let mut message = Vec::with_capacity(end);
    while let Some((&[_, _, _, high, low], behind)) = rest.split_first_chunk() {
        let (content, next) = behind.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
        message.extend_from_slice(content);
        rest = next;
    }
    Some(message)
}

fn parse_message(message: &[u8]) -> Result<ClientHello, HelloError> {
    let mut fields = Fields(message);
    let _head: [u8; HANDSHAKE_HEAD] = fields.array()?;
    if !is_version(fields.array()?) {
        return Err(HelloError::HelloVersion);
    }
    let _random: [u8; 32] = fields.array()?;
    let session_id = fields.vector8()?;
    let cipher_suites = fields.vector16()?;
    let compression_methods = fields.vector8()?;
    let suites_are_pairs = !cipher_suites.is_empty() && cipher_suites.len().is_multiple_of(2);
    if session_id.len() > MAX_SESSION_ID || !suites_are_pairs || compression_methods.is_empty() {
        return Err(HelloError::Length);
    }
    // Before TLS 1.3 the extensions may be left out altogether (RFC 5246 §7.4.1.2).
    let extensions = if fields.is_empty() { &[] } else { fields.vector16()? };
    fields.end()?;
    parse_extensions(extensions)
}

fn parse_extensions(extensions: &[u8]) -> Result<ClientHello, HelloError> {
    let mut hello = ClientHello { sni: None, ech: false };
    let mut seen = Seen::default();
    let mut fields = Fields(extensions);
    while !fields.is_empty() {
        let kind = fields.number16()?;
        let data = fields.vector16()?;
        seen.insert(kind)?;
        match kind {
            SERVER_NAME => hello.sni = Some(parse_server_name(data)?),
            ENCRYPTED_CLIENT_HELLO => hello.ech = true,
            _ => {}
        }
    }
    Ok(hello)
}

/// RFC 6066 §3: a list of names, which in effect has one entry of one type.
fn parse_server_name(data: &[u8]) -> Result<DomainName, HelloError> {
    let mut fields = Fields(data);
    let mut names = Fields(fields.vector16()?);
    fields.end()?;
    if names.is_empty() {
        return Err(HelloError::EmptyName);
    }
    if names.array()? != [HOST_NAME] {
        return Err(HelloError::NameType);
    }
    let name = names.vector16()?;
    if names.is_empty() { parse_name(name) } else { Err(HelloError::SeveralNames) }
}

fn parse_name(name: &[u8]) -> Result<DomainName, HelloError> {
    if name.is_empty() {
        return Err(HelloError::EmptyName);
    }
    if name.contains(&0) {
        return Err(HelloError::Nul);
    }
    let name = str::from_utf8(name).map_err(|_| HelloError::Name(NameError::NotAscii))?;
    if name.ends_with('.') {
        return Err(HelloError::TrailingDot);
    }
    DomainName::parse(name).map_err(|error| match name.parse::<IpAddr>() {
        Ok(_) => HelloError::Address,
        Err(_) => HelloError::Name(error),
    })
}

/// The extension types of one hello.
struct Seen {
    kinds: [u16; MAX_EXTENSIONS],
    count: usize,
}

impl Default for Seen {
    fn default() -> Self {
        Self { kinds: [0; MAX_EXTENSIONS], count: 0 }
    }
}

impl Seen {
    fn insert(&mut self, kind: u16) -> Result<(), HelloError> {
        if self.kinds.iter().take(self.count).any(|seen| *seen == kind) {
            return Err(HelloError::DuplicateExtension);
        }
        *self.kinds.get_mut(self.count).ok_or(HelloError::TooManyExtensions)? = kind;
        self.count += 1;
        Ok(())
    }
}

/// What is still to be read of a structure in the presentation language of TLS (RFC 8446 §3).
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn end(&self) -> Result<(), HelloError> {
        if self.is_empty() { Ok(()) } else { Err(HelloError::TrailingData) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], HelloError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(HelloError::Length)?;
        self.0 = rest;
        Ok(*array)
    }

    fn number16(&mut self) -> Result<u16, HelloError> {
        self.array().map(u16::from_be_bytes)
    }

    /// A vector with a length of one byte before it.
    fn vector8(&mut self) -> Result<&'a [u8], HelloError> {
        let [length] = self.array()?;
        self.bytes(length.into())
    }

    /// A vector with a length of two bytes before it.
    fn vector16(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.number16()?;
        self.bytes(length.into())
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], HelloError> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(HelloError::Length)?;
        self.0 = rest;
        Ok(bytes)
    }
}
