//! A DNS client that sends exactly the bytes it is told to, and the questions that tests ask with it.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};

use crate::PATIENCE;
use crate::gate::Gate;

/// The type of an IPv4 address.
pub const A: u16 = 1;
/// The type of an IPv6 address.
pub const AAAA: u16 = 28;

/// A question's name, type and class, as they stand in a message.
#[must_use]
pub fn question(name: &str, record_type: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&record_type.to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    bytes
}

/// A message of these sections: id, flags, the four counts, and whatever follows.
#[must_use]
pub fn message(id: u16, flags: u16, counts: [u16; 4], sections: &[&[u8]]) -> Vec<u8> {
    let mut bytes: Vec<u8> = [id, flags].into_iter().chain(counts).flat_map(u16::to_be_bytes).collect();
    sections.iter().for_each(|section| bytes.extend_from_slice(section));
    bytes
}

/// A query without OPT.
#[must_use]
pub fn plain_query(id: u16, name: &str, record_type: u16) -> Vec<u8> {
    message(id, 0x0100, [1, 0, 0, 0], &[&question(name, record_type)])
}

/// A query with OPT.
#[must_use]
pub fn query(id: u16, name: &str, record_type: u16) -> Vec<u8> {
    message(id, 0x0100, [1, 0, 0, 1], &[&question(name, record_type), &opt(1232, &[])])
}

/// An OPT record with these options as they stand on the wire.
#[must_use]
pub fn opt(size: u16, options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 41];
    bytes.extend_from_slice(&size.to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&u16::try_from(options.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(options);
    bytes
}

/// A UDP client whose every wait has a deadline.
#[derive(Debug)]
pub struct Datagrams(UdpSocket);

impl Datagrams {
    /// A client of a server.
    #[must_use]
    pub fn to(server: SocketAddr) -> Self {
        Self::from("127.0.0.1", server)
    }

    /// A client at an address of one's own choice.
    #[must_use]
    pub fn from(source: &str, server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((source.parse::<IpAddr>().unwrap(), 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// The port that it sends from.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// Sends one datagram.
    pub fn send(&self, packet: &[u8]) {
        self.0.send(packet).unwrap();
    }

    /// Waits for a datagram.
    ///
    /// # Panics
    /// If none comes.
    #[must_use]
    pub fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; 65_535];
        loop {
            match self.0.recv(&mut buffer) {
                // A call with a deadline is not begun anew after a signal, not even after one that only went on.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => return buffer[..received.expect("an answer")].to_vec(),
            }
        }
    }

    /// A datagram that has come already.
    #[must_use]
    pub fn received(&self) -> Option<Vec<u8>> {
        self.0.set_nonblocking(true).unwrap();
        let mut buffer = [0; 65_535];
        let received = self.0.recv(&mut buffer);
        self.0.set_nonblocking(false).unwrap();
        match received {
            Ok(length) => Some(buffer[..length].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Sends a query and reads its answer.
    #[must_use]
    pub fn ask(&self, query: &[u8]) -> Message {
        self.send(query);
        Message::from_vec(&self.receive()).unwrap()
    }
}

/// Sends messages over one TCP connection, each with its length, and reads as many answers.
#[must_use]
pub fn over_tcp(server: SocketAddr, queries: &[Vec<u8>]) -> Vec<Message> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for query in queries {
        stream.write_all(&framed(query)).unwrap();
    }
    queries.iter().map(|_| read_framed(&mut stream)).collect()
}

/// A message with its length in front, as TCP carries it.
#[must_use]
pub fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}

/// Reads one message with its length in front.
pub fn read_framed(stream: &mut impl Read) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("an answer");
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes).unwrap();
    Message::from_vec(&bytes).unwrap()
}

impl Gate {
    /// Where it answers DNS.
    #[must_use]
    pub fn dns(&self) -> SocketAddr {
        let line = self.said("outgate: dns listens on ").expect("it answers DNS");
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Looks a name up, over UDP and with OPT.
    #[must_use]
    pub fn lookup(&self, name: &str, record_type: u16) -> Message {
        Datagrams::to(self.dns()).ask(&query(0x1234, name, record_type))
    }

    /// Looks a name up, over TCP and with OPT.
    #[must_use]
    pub fn lookup_over_tcp(&self, name: &str, record_type: u16) -> Message {
        over_tcp(self.dns(), &[query(0x1234, name, record_type)]).remove(0)
    }
}

/// The response code.
#[must_use]
pub fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

/// The addresses in the answer section, as text.
#[must_use]
pub fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().filter_map(|record| record.data.ip_addr()).map(|ip| ip.to_string()).collect()
}

/// The extended error's code and text.
#[must_use]
pub fn extended_error(message: &Message) -> Option<(u16, String)> {
    let Some(EdnsOption::Unknown(_, bytes)) = message.edns.as_ref()?.option(EdnsCode::from(15)) else {
        return None;
    };
    let (code, text) = bytes.split_first_chunk::<2>().unwrap();
    Some((u16::from_be_bytes(*code), String::from_utf8(text.to_vec()).unwrap()))
}
