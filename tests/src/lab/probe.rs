//! Conversations byte by byte, where a program would be in the way.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex};

use super::Machine;
use crate::{wait_for, wait_until};

pub(super) const SCRIPT: &str = include_str!("probe.py");

/// What came of one datagram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Datagram {
    /// It was answered with this.
    Answer(Vec<u8>),
    /// An ICMP or ICMPv6 message of this type and code came back.
    Icmp(u8, u8),
    /// Nothing came back.
    Silence,
    /// It could not be sent; the system's word for why.
    Failed(String),
}

impl Datagram {
    /// "Communication administratively prohibited", of RFC 1812 or RFC 4443.
    pub const PROHIBITED: [Self; 2] = [Self::Icmp(3, 13), Self::Icmp(1, 1)];

    /// Whether the network said that it does not let this pass.
    #[must_use]
    pub fn is_prohibited(&self) -> bool {
        Self::PROHIBITED.contains(self)
    }
}

/// What was heard on a TCP connection.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Heard {
    /// The system's word for why there was no connection, as in `ECONNREFUSED`.
    pub failed: Option<String>,
    /// The client's port.
    pub port: u16,
    /// Every byte so far.
    pub bytes: Vec<u8>,
    /// How it ended: `closed`, or an error such as `ECONNRESET`. None while it lasts.
    pub ended: Option<String>,
}

impl Heard {
    /// The bytes as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    fn note(&mut self, line: &str) {
        let (event, rest) = line.split_once(' ').unwrap_or((line, ""));
        match event {
            "failed" => self.failed = Some(rest.to_owned()),
            "connected" => self.port = rest.parse().unwrap(),
            "data" => self.bytes.extend(bytes(rest)),
            "ended" => self.ended = Some(rest.to_owned()),
            _ => panic!("a probe said {line:?}"),
        }
    }
}

/// A TCP connection of a machine. It is closed when this is dropped.
#[derive(Debug)]
pub struct Conversation {
    child: Child,
    input: ChildStdin,
    heard: Arc<Mutex<Heard>>,
}

impl Conversation {
    /// Sends bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // Nobody reads where the connection has ended, which is for the test to see.
        let _ = writeln!(self.input, "{}", hexadecimal(bytes.as_ref()));
    }

    /// Says that nothing more will be sent.
    pub fn shut_down(&mut self) {
        let _ = writeln!(self.input, "shutdown");
    }

    /// What has been heard so far.
    #[must_use]
    pub fn heard(&self) -> Heard {
        self.heard.lock().unwrap().clone()
    }

    /// Waits until these bytes have been heard.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        wait_until(&format!("{text:?} in {:?}", self.heard().text()), || self.heard().text().contains(text));
    }

    /// Waits for the end: everything that was heard.
    #[must_use]
    pub fn end(&self) -> Heard {
        wait_for("the end of a connection", || {
            let heard = self.heard();
            (heard.ended.is_some() || heard.failed.is_some()).then_some(heard)
        })
    }

    /// Whether the other side answers still: sends a line and waits for its echo or the end.
    #[must_use]
    pub fn echoes(&mut self, word: &str) -> bool {
        let line = format!("{word}\n");
        self.send(&line);
        wait_for("an echo, or the end", || {
            let heard = self.heard();
            let over = heard.ended.is_some() || heard.failed.is_some();
            (over || heard.text().ends_with(&line)).then_some(!over)
        })
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Machine<'_> {
    /// Connects, and waits for what came of that.
    ///
    /// # Panics
    /// If nothing comes of it.
    #[must_use]
    pub fn connect(&self, address: &str, port: u16) -> Conversation {
        let mut command = self.probe();
        command.args(["tcp", address, &port.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let heard = Arc::<Mutex<Heard>>::default();
        std::thread::spawn({
            let heard = Arc::clone(&heard);
            move || {
                BufReader::new(output)
                    .lines()
                    .map_while(Result::ok)
                    .for_each(|l| heard.lock().unwrap().note(&l));
            }
        });
        let conversation = Conversation { child, input, heard };
        wait_until(&format!("a connection to {address}:{port}"), || {
            let heard = conversation.heard();
            heard.port != 0 || heard.failed.is_some()
        });
        conversation
    }

    /// Connects, sends these bytes, and hears until the other side ends it.
    #[must_use]
    pub fn tell(&self, address: &str, port: u16, bytes: impl AsRef<[u8]>) -> Heard {
        let mut conversation = self.connect(address, port);
        conversation.send(bytes);
        conversation.end()
    }

    /// Sends a datagram and waits a second for what comes of it.
    #[must_use]
    pub fn datagram(&self, address: &str, port: u16, payload: &[u8]) -> Datagram {
        self.datagram_from(0, address, port, payload)
    }

    /// The same from a port of its own choice, so that several belong to one flow.
    #[must_use]
    pub fn datagram_from(&self, source: u16, address: &str, port: u16, payload: &[u8]) -> Datagram {
        self.udp(address, port, payload, &[&source.to_string()])
    }

    /// The same with IPv4 options, as the bytes of a header.
    #[must_use]
    pub fn datagram_with_options(
        &self,
        address: &str,
        port: u16,
        payload: &[u8],
        options: &[u8],
    ) -> Datagram {
        self.udp(address, port, payload, &["0", &hexadecimal(options)])
    }

    /// Asks an NTP server for the time: whether a server's reply came.
    #[must_use]
    pub fn asks_the_time(&self, address: &str) -> Datagram {
        let mut request = [0; 48];
        request[0] = 0x23; // version 4, client
        match self.datagram(address, 123, &request) {
            Datagram::Answer(reply) => {
                assert!(reply.len() == 48 && reply[0] & 7 == 4, "not a server's reply: {reply:?}");
                Datagram::Answer(reply)
            }
            other @ (Datagram::Icmp(..) | Datagram::Silence | Datagram::Failed(_)) => other,
        }
    }

    /// Sends whole IPv4 packets as they are.
    ///
    /// # Panics
    /// If this machine itself refuses to.
    pub fn packets(&self, address: &str, packets: &[Vec<u8>]) {
        let packets: Vec<String> = packets.iter().map(|packet| hexadecimal(packet)).collect();
        let arguments = packets.iter().map(String::as_str).collect::<Vec<_>>();
        let ran =
            self.run("python3", &[&[&*self.script(), "raw", address], &arguments[..]].concat()).assert_done();
        assert!(ran.stdout.starts_with("sent"), "{ran:?}");
    }

    fn udp(&self, address: &str, port: u16, payload: &[u8], more: &[&str]) -> Datagram {
        let (script, port, payload) = (self.script(), port.to_string(), hexadecimal(payload));
        let arguments = [&script, "udp", address, &port, "1", &payload];
        let ran = self.run("python3", &[&arguments, more].concat()).assert_done();
        match ran.stdout.split_whitespace().collect::<Vec<_>>()[..] {
            ["answer"] => Datagram::Answer(Vec::new()),
            ["answer", hex] => Datagram::Answer(bytes(hex)),
            ["icmp", kind, code] => Datagram::Icmp(kind.parse().unwrap(), code.parse().unwrap()),
            ["silence"] => Datagram::Silence,
            _ => Datagram::Failed(ran.words()),
        }
    }

    fn probe(&self) -> std::process::Command {
        let mut command = self.command("python3");
        command.arg(self.script());
        command
    }

    fn script(&self) -> String {
        self.lab.folder().join("probe.py").display().to_string()
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let pairs = hexadecimal.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
