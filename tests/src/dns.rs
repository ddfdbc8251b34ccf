//! A scripted DNS server: what it answers, and what it was asked.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// One scripted answer to a question about a name.
#[derive(Clone, Debug)]
pub enum Answer {
    /// These addresses; a question gets those of its type.
    Addresses(Vec<IpAddr>),
    /// An alias, and the addresses of what it stands for.
    Alias(String, Vec<IpAddr>),
    /// The name does not exist.
    NxDomain,
    /// The server cannot say.
    ServFail,
    /// No answer at all.
    Silence,
}

/// A DNS server on a loopback port, over UDP and TCP. A name that was not scripted does not exist.
#[derive(Debug)]
pub struct Dns {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What is left to say of a name; the last answer stays.
    script: Mutex<HashMap<String, VecDeque<Answer>>>,
    asked: Mutex<Vec<String>>,
    packets: AtomicUsize,
    stopped: AtomicBool,
}

impl Dns {
    /// Starts a server that knows no name.
    #[must_use]
    pub fn start() -> Self {
        let (udp, tcp) = bind_both();
        let address = udp.local_addr().unwrap();
        let state = Arc::new(State::default());
        std::thread::spawn({
            let state = Arc::clone(&state);
            move || serve_udp(&udp, &state)
        });
        std::thread::spawn({
            let state = Arc::clone(&state);
            move || serve_tcp(&tcp, &state)
        });
        Self { address, state }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on `name` has these addresses.
    pub fn set(&self, name: &str, addresses: &[&str]) {
        self.script(name, [addresses_of(addresses)]);
    }

    /// From now on questions of one type about `name` get these answers in turn, the last again and again.
    pub fn script(&self, name: &str, answers: impl IntoIterator<Item = Answer>) {
        self.state.script.lock().unwrap().insert(name.to_owned(), answers.into_iter().collect());
    }

    /// How many packets and TCP messages have come in, of whatever content.
    #[must_use]
    pub fn packets(&self) -> usize {
        self.state.packets.load(Ordering::SeqCst)
    }

    /// The names asked for, in lower case, in order, once a question.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.state.asked.lock().unwrap().clone()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that waits in accept.
        drop(TcpStream::connect(self.address));
    }
}

/// The answer with these addresses.
#[must_use]
pub fn addresses_of(addresses: &[&str]) -> Answer {
    Answer::Addresses(addresses.iter().map(|address| address.parse().unwrap()).collect())
}

/// One port number of loopback, free for both protocols.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn bind_both() -> (UdpSocket, TcpListener) {
    for _ in 0..64 {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            return (udp, tcp);
        }
    }
    panic!("no port is free for both UDP and TCP");
}

fn serve_udp(socket: &UdpSocket, state: &State) {
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut buffer = [0; 4096];
    while !state.stopped.load(Ordering::SeqCst) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                if let Some(answer) = answer(&buffer[..length], state) {
                    drop(socket.send_to(&answer, from));
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

fn serve_tcp(listener: &TcpListener, state: &State) {
    for stream in listener.incoming() {
        if state.stopped.load(Ordering::SeqCst) {
            return;
        }
        drop(stream.and_then(|stream| answer_over_tcp(stream, state)));
    }
}

fn answer_over_tcp(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut question)?;
        if let Some(answer) = answer(&question, state) {
            stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes())?;
            stream.write_all(&answer)?;
        }
    }
}

fn answer(packet: &[u8], state: &State) -> Option<Vec<u8>> {
    state.packets.fetch_add(1, Ordering::SeqCst);
    let question = Message::from_vec(packet).ok()?;
    let query = question.queries.first()?.clone();
    let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    state.asked.lock().unwrap().push(name.clone());
    let answer = next_answer(state, &name, query.query_type());
    let response = respond(question.metadata.id, query, answer)?;
    Some(response.to_vec().unwrap())
}

/// The questions of type A move the script on: a resolver asks for A and AAAA together, and both belong to
/// one look-up.
fn next_answer(state: &State, name: &str, asked: RecordType) -> Answer {
    let mut script = state.script.lock().unwrap();
    match script.get_mut(name) {
        None => Answer::NxDomain,
        Some(answers) if answers.len() > 1 && asked == RecordType::A => answers.pop_front().unwrap(),
        Some(answers) => answers.front().cloned().unwrap_or(Answer::NxDomain),
    }
}

fn respond(id: u16, query: Query, answer: Answer) -> Option<Message> {
    let mut response = Message::new(id, MessageType::Response, OpCode::Query);
    response.metadata.recursion_desired = true;
    response.metadata.recursion_available = true;
    let (name, asked) = (query.name().clone(), query.query_type());
    response.add_query(query);
    match answer {
        Answer::Silence => return None,
        Answer::NxDomain => response.metadata.response_code = ResponseCode::NXDomain,
        Answer::ServFail => response.metadata.response_code = ResponseCode::ServFail,
        Answer::Addresses(addresses) => _ = response.add_answers(records(&name, asked, &addresses)),
        Answer::Alias(target, addresses) => {
            let target = Name::from_ascii(target).unwrap();
            response.add_answer(Record::from_rdata(name, TTL, RData::CNAME(CNAME(target.clone()))));
            response.add_answers(records(&target, asked, &addresses));
        }
    }
    Some(response)
}

/// Nothing may be kept: each look-up of a test is to be seen.
const TTL: u32 = 0;

fn records(name: &Name, asked: RecordType, addresses: &[IpAddr]) -> Vec<Record> {
    let record = |data| Record::from_rdata(name.clone(), TTL, data);
    let of_type = |address: &IpAddr| match (address, asked) {
        (IpAddr::V4(address), RecordType::A) => Some(record(RData::A(A(*address)))),
        (IpAddr::V6(address), RecordType::AAAA) => Some(record(RData::AAAA(AAAA(*address)))),
        _ => None,
    };
    addresses.iter().filter_map(of_type).collect()
}
