//! One question to one upstream: the only place that sends a packet to a parent resolver.
//!
//! Each datagram has a random id and a source port of its own, and a random letter case where that is asked for,
//! on a socket that hears one address alone (RFC 5452). What does not answer the question is not looked at; after a
//! few such datagrams somebody is guessing, and the question goes over TCP. Nothing here has a deadline: the caller
//! gives one to the whole exchange, and to drop it closes what it opened.

pub(crate) mod sockets;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::health::Health;
use super::{Transport, Upstream};
use crate::question::{Edns, LetterCase, Question};
use sockets::Connected;

/// Datagrams that do not answer the question before it is asked over TCP: more than a late answer or two.
const MAX_FOREIGN: usize = 4;
/// What is read of a datagram: more than was invited, as some servers send more.
const DATAGRAM: usize = 4096;
/// Connections to one upstream at a time; further questions wait for one within their deadline.
const MAX_STREAMS: usize = 64;
/// Connections to one upstream that are kept for later questions.
const MAX_IDLE: usize = 8;
/// How long they are kept: servers close them after about as long (RFC 7766 §6.2.3, RFC 7858 §3.4).
const IDLE: Duration = Duration::from_secs(8);

/// Why an upstream gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// It cannot be reached, or it hung up.
    #[error("the upstream cannot be reached: {0}")]
    Io(#[from] io::Error),
    /// It sent something that is no answer to the question.
    #[error("the upstream sent no answer to the question")]
    NoAnswer,
}

/// How upstreams are spoken to, beside what each says of itself.
#[derive(Clone, Default)]
pub(crate) struct Manner {
    /// For those that are spoken to over TLS.
    pub(crate) tls: Option<TlsConnector>,
    /// Whether a name in a datagram has a random letter case, and its answer must repeat it.
    pub(crate) case_randomization: bool,
}

/// An upstream in use: its connections and its health.
pub(crate) struct Parent {
    pub(crate) upstream: Upstream,
    pub(crate) health: Mutex<Health>,
    manner: Manner,
    idle: Mutex<Vec<(Stream, Instant)>>,
    streams: Semaphore,
}

/// What TCP and TLS have in common.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl Duplex for TcpStream {}
impl Duplex for tokio_rustls::client::TlsStream<TcpStream> {}
type Stream = Box<dyn Duplex>;

impl Parent {
    pub(crate) fn new(upstream: Upstream, manner: Manner) -> Self {
        Self {
            upstream,
            health: Mutex::new(Health::default()),
            manner,
            idle: Mutex::new(Vec::new()),
            streams: Semaphore::new(MAX_STREAMS),
        }
    }

    /// Asks once; a second time without OPT where the upstream calls that a format error.
    pub(crate) async fn ask(&self, question: &Question) -> Result<Message, ExchangeError> {
        let message = self.ask_with(question, Edns::With).await?;
        let code = message.metadata.response_code;
        let rejects_opt =
            [ResponseCode::FormErr, ResponseCode::NotImp, ResponseCode::BADVERS].contains(&code);
        if rejects_opt { self.ask_with(question, Edns::Without).await } else { Ok(message) }
    }

    async fn ask_with(&self, question: &Question, edns: Edns) -> Result<Message, ExchangeError> {
        match &self.upstream.transport {
            Transport::Udp => {
                let case =
                    if self.manner.case_randomization { LetterCase::random() } else { LetterCase::PLAIN };
                match over_udp(self.upstream.socket, question, edns, &case).await? {
                    Some(message) => Ok(message),
                    None => self.over_stream(question, edns).await,
                }
            }
            Transport::Tcp | Transport::Tls(_) => self.over_stream(question, edns).await,
        }
    }

    async fn over_stream(&self, question: &Question, edns: Edns) -> Result<Message, ExchangeError> {
        // The semaphore is never closed.
        let _place = self.streams.acquire().await.map_err(io::Error::other)?;
        while let Some(mut stream) = self.take_idle(Instant::now()) {
            match over_connection(&mut stream, question, edns).await {
                // The server may have closed it meanwhile, which says nothing of the question.
                Err(ExchangeError::Io(_)) => {}
                Err(ExchangeError::NoAnswer) => return Err(ExchangeError::NoAnswer),
                Ok(message) => return Ok(self.keep(stream, message)),
            }
        }
        let mut stream = self.connect().await?;
        let message = over_connection(&mut stream, question, edns).await?;
        Ok(self.keep(stream, message))
    }

    async fn connect(&self) -> io::Result<Stream> {
        let stream = tcp(self.upstream.socket).await?;
        match (&self.upstream.transport, &self.manner.tls) {
            (Transport::Udp | Transport::Tcp, _) => Ok(Box::new(stream)),
            (Transport::Tls(name), Some(tls)) => tls_handshake(tls, name, stream).await,
            (Transport::Tls(_), None) => Err(io::Error::other("TLS is not set up")),
        }
    }

    /// The connection that was used last, if one is still worth a try.
    fn take_idle(&self, now: Instant) -> Option<Stream> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(_, since)| now.saturating_duration_since(*since) < IDLE);
        idle.pop().map(|(stream, _)| stream)
    }

    fn keep(&self, stream: Stream, message: Message) -> Message {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push((stream, Instant::now()));
        }
        message
    }
}

/// Asks by a datagram. None is for a truncated or unreadable answer, for forgeries and for an upstream that does
/// not repeat a random letter case: ask over TCP.
async fn over_udp(
    upstream: SocketAddr,
    question: &Question,
    edns: Edns,
    case: &LetterCase,
) -> Result<Option<Message>, ExchangeError> {
    let socket = Connected::to(upstream)?;
    let id = rand::random::<u16>();
    socket.send(&question.to_wire(id, edns, case)).await?;
    for _ in 0..MAX_FOREIGN {
        match receive(&socket, |datagram| read(datagram, question, id, case)).await? {
            Received::Answer(message) => {
                socket.done();
                return Ok(Some(*message));
            }
            Received::Unusable => return Ok(None),
            Received::Foreign => {}
        }
    }
    Ok(None)
}

/// What a datagram turned out to be.
enum Received {
    Answer(Box<Message>),
    /// It is from the upstream, and not to be used: ask over TCP.
    Unusable,
    /// It does not answer the question.
    Foreign,
}

fn read(datagram: &[u8], question: &Question, id: u16, case: &LetterCase) -> Received {
    match Message::from_vec(datagram) {
        Ok(message) if question.is_answered_by(id, &message) => {
            // Where no case was chosen there is none to repeat.
            let repeated = *case == LetterCase::PLAIN || question.is_repeated_in(case, &message);
            let usable = repeated && !message.metadata.truncation;
            if usable { Received::Answer(Box::new(message)) } else { Received::Unusable }
        }
        // Cut off in the middle of a record, or not to be read at all.
        Err(_) if is_response(datagram, id) => Received::Unusable,
        Ok(_) | Err(_) => Received::Foreign,
    }
}

thread_local! {
    /// Where a thread reads datagrams, one at a time: hundreds of questions may wait for theirs, and a buffer for each
    /// would leave no room in the processor's cache for anything else.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; DATAGRAM].into());
}

/// Waits for a datagram, and reads it.
async fn receive<T>(socket: &Connected, read: impl Fn(&[u8]) -> T) -> io::Result<T> {
    loop {
        socket.readable().await?;
        let received = BUFFER.with_borrow_mut(|buffer| {
            let length = socket.try_receive(buffer)?;
            Ok(read(buffer.get(..length).unwrap_or_default()))
        });
        match received {
            Err(error) if io::Error::kind(&error) == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

/// Whether a datagram is a response with this id, whatever else is in it.
fn is_response(datagram: &[u8], id: u16) -> bool {
    let [high, low] = id.to_be_bytes();
    matches!(datagram, [h, l, flags, ..] if (*h, *l) == (high, low) && flags & 0x80 != 0)
}

/// Asks over a connection that carries one question at a time (RFC 7766 §8).
async fn over_connection(
    stream: &mut Stream,
    question: &Question,
    edns: Edns,
) -> Result<Message, ExchangeError> {
    let id = rand::random::<u16>();
    let query = question.to_wire(id, edns, &LetterCase::PLAIN);
    // In one segment: some servers want length and message together.
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &query].concat()).await?;
    stream.flush().await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    let message = Message::from_vec(&reply).map_err(|_| ExchangeError::NoAnswer)?;
    let usable = question.is_answered_by(id, &message) && !message.metadata.truncation;
    if usable { Ok(message) } else { Err(ExchangeError::NoAnswer) }
}

#[allow(clippy::disallowed_methods, reason = "the one place that connects to an upstream resolver")]
async fn tcp(upstream: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(upstream).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn tls_handshake(
    tls: &TlsConnector,
    name: &ServerName<'static>,
    stream: TcpStream,
) -> io::Result<Stream> {
    Ok(Box::new(tls.connect(name.clone(), stream).await?))
}
