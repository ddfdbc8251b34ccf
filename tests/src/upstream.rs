//! An upstream resolver that says whatever a test wants it to, truth or lie, and keeps every packet.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::dns::bind_both;

/// A server on a loopback port, over UDP and TCP. Its port is closed when it is dropped.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    state: Arc<State>,
    listening: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    packets: Mutex<Vec<Vec<u8>>>,
    /// Where the datagrams among them came from.
    ports: Mutex<Vec<u16>>,
    stopped: AtomicBool,
}

impl Upstream {
    /// Starts a server that answers each query with these messages. They are made in a thread of their own, so
    /// that they may take their time.
    #[must_use]
    pub fn start(answer: impl Fn(&Message) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        let (udp, tcp) = bind_both();
        let address = udp.local_addr().unwrap();
        let (state, answer) = (Arc::<State>::default(), Arc::new(answer));
        let datagrams = std::thread::spawn({
            let (state, answer) = (Arc::clone(&state), Arc::clone(&answer));
            move || serve_udp(udp, &state, &answer)
        });
        let streams = std::thread::spawn({
            let state = Arc::clone(&state);
            move || serve_tcp(&tcp, &state, &answer)
        });
        Self { address, state, listening: vec![datagrams, streams] }
    }

    /// Starts a server that knows these records.
    #[must_use]
    pub fn knowing(records: impl IntoIterator<Item = Record>) -> Self {
        let records: Vec<Record> = records.into_iter().collect();
        Self::start(move |query| vec![bytes(&reply_from(&records, query))])
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every message that has come in, as it came.
    #[must_use]
    pub fn packets(&self) -> Vec<Vec<u8>> {
        self.state.packets.lock().unwrap().clone()
    }

    /// The ports that datagrams came from, in order.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        self.state.ports.lock().unwrap().clone()
    }

    /// The names asked for, in lower case and in order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        let name = |packet: &Vec<u8>| Message::from_vec(packet).ok().map(|query| asked_name(&query));
        self.packets().iter().map(|packet| name(packet).unwrap_or_default()).collect()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that waits in accept.
        drop(TcpStream::connect(self.address));
        self.listening.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// An address record.
#[must_use]
pub fn address(owner: &str, ttl: u32, address: &str) -> Record {
    let data = match address.parse().unwrap() {
        std::net::IpAddr::V4(address) => RData::A(A(address)),
        std::net::IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(name(owner), ttl, data)
}

/// An alias.
#[must_use]
pub fn alias(owner: &str, ttl: u32, target: &str) -> Record {
    Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
}

/// An answer to a query that holds nothing yet.
#[must_use]
pub fn reply(query: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_desired = true;
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.add_queries(query.queries.clone());
    reply
}

/// What a server that knows these records answers: the aliases from the asked name on and what stands at their
/// end. A name that owns nothing does not exist. What is negative may be kept for a minute.
#[must_use]
pub fn reply_from(records: &[Record], query: &Message) -> Message {
    let Some(asked) = query.queries.first() else { return reply(query, ResponseCode::FormErr) };
    let mut at = asked.name().to_lowercase();
    let exists = records.iter().any(|record| record.name == at);
    let mut reply = reply(query, if exists { ResponseCode::NoError } else { ResponseCode::NXDomain });
    loop {
        let of_type = |record: &&Record| record.name == at && record.record_type() == asked.query_type();
        reply.add_answers(records.iter().filter(of_type).cloned());
        let link = records.iter().find(|record| record.name == at && is_alias(record));
        let Some(Record { data: RData::CNAME(target), .. }) = link else {
            let is_negative = !reply.answers.iter().any(|record| record.name == at);
            reply.add_authorities(is_negative.then(|| start_of_zone(&at)));
            return reply;
        };
        reply.add_answers(link.cloned());
        at = target.0.to_lowercase();
    }
}

/// The name that a query asks for, in lower case and without its last dot.
#[must_use]
pub fn asked_name(query: &Message) -> String {
    let name = query.queries.first().map(|query| query.name().to_ascii()).unwrap_or_default();
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// A message as bytes.
#[must_use]
pub fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap()
}

fn is_alias(record: &Record) -> bool {
    record.record_type() == RecordType::CNAME
}

/// The start of the zone that the last label names.
fn start_of_zone(of: &Name) -> Record {
    let data = SOA::new(name("ns.example"), name("root.example"), 1, 3600, 600, 86_400, 60);
    Record::from_rdata(of.trim_to(1), 60, RData::SOA(data))
}

fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

fn serve_udp<F>(socket: UdpSocket, state: &State, answer: &Arc<F>)
where
    F: Fn(&Message) -> Vec<Vec<u8>> + Send + Sync + 'static,
{
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut buffer = [0; 4096];
    while !state.stopped.load(Ordering::SeqCst) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        state.ports.lock().unwrap().push(from.port());
        state.packets.lock().unwrap().push(buffer[..length].to_vec());
        let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
        let (socket, answer) = (socket.try_clone().unwrap(), Arc::clone(answer));
        std::thread::spawn(move || {
            for datagram in answer(&query) {
                drop(socket.send_to(&datagram, from));
            }
        });
    }
}

fn serve_tcp<F>(listener: &TcpListener, state: &Arc<State>, answer: &Arc<F>)
where
    F: Fn(&Message) -> Vec<Vec<u8>> + Send + Sync + 'static,
{
    for stream in listener.incoming() {
        if state.stopped.load(Ordering::SeqCst) {
            return;
        }
        let (state, answer) = (Arc::clone(state), Arc::clone(answer));
        std::thread::spawn(move || stream.and_then(|stream| answer_stream(stream, &state, &*answer)));
    }
}

fn answer_stream(
    mut stream: TcpStream,
    state: &State,
    answer: &dyn Fn(&Message) -> Vec<Vec<u8>>,
) -> std::io::Result<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut packet = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut packet)?;
        if state.stopped.load(Ordering::SeqCst) {
            return Ok(());
        }
        state.packets.lock().unwrap().push(packet.clone());
        let query = Message::from_vec(&packet).map_err(std::io::Error::other)?;
        for message in answer(&query) {
            stream.write_all(&crate::lookup::framed(&message))?;
        }
    }
}
