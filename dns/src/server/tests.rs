#![allow(clippy::disallowed_methods)]

mod answers;
mod datagrams;
mod streams;

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, Query as Asking, ResponseCode};
use hickory_proto::rr::RecordType;
use outgate_rules::{DomainName, Enforcement, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::*;
use crate::event::{Answered, Room};
use crate::resolver::{AnsweredBy, ResolverSettings, Upstreams};
use crate::testing::{name, question as question_for, response, rules};
use crate::wire::tests::{opt, packet, question};

/// Far longer than anything here takes: a test that reaches it has failed.
const LONG: Duration = Duration::from_secs(20);
const RD: u16 = 0x0100;
const POLICY: &str = "
sources: {training: [127.0.0.0/8]}
outbound_rules:
  - {name: pypi, type: fqdn, destination: 'pypi.org'}
  - {name: files, type: fqdn, destination: '*.files.example'}
  - {name: inside, type: fqdn, destination: inside.example, resolves_to: private}
  - {name: mail, type: resolve, destination: mail.example, record_types: [TXT, MX]}
  - {name: other, type: fqdn, destination: elsewhere.example, sources: [10.9.0.0/16]}
  - {name: no-gists, action: deny, type: fqdn, destination: gist.github.com, protocol: any, ports: '*'}
";

/// What the server told.
#[derive(Debug, Default)]
struct Told {
    answered: Mutex<Vec<Answered>>,
    /// By which threads it was told.
    threads: Mutex<Vec<String>>,
    dropped: Mutex<HashMap<Reason, usize>>,
    /// While this is set there is no room for events.
    full: Mutex<Option<watch::Receiver<bool>>>,
}

impl Observer for Told {
    fn answered(&self, event: &Answered) {
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        self.threads.lock().unwrap().push(thread);
        self.answered.lock().unwrap().push(event.clone());
    }

    fn hand_over(&self) -> Option<Room> {
        let full = self.full.lock().unwrap().clone();
        full.map(|mut full| Box::pin(async move { _ = full.wait_for(|full| !full).await }) as Room)
    }

    fn dropped(&self, reason: Reason) {
        *self.dropped.lock().unwrap().entry(reason).or_default() += 1;
    }
}

impl Told {
    fn last(&self) -> Answered {
        self.answered.lock().unwrap().last().cloned().expect("nothing was told")
    }

    fn dropped_for(&self, reason: Reason) -> usize {
        self.dropped.lock().unwrap().get(&reason).copied().unwrap_or_default()
    }
}

/// An upstream that answers from a table, and counts.
struct Upstream {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    /// Answers wait for this where it is told to hold.
    release: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Upstream {
    async fn start(records: &'static [&'static str], hold: bool) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (asked, release) = (Arc::<AtomicUsize>::default(), Arc::<Notify>::default());
        let (count, released) = (Arc::clone(&asked), Arc::clone(&release));
        let task = tokio::spawn(async move {
            let mut buffer = [0; 2048];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let asking = Message::from_vec(&buffer[..length]).unwrap();
                if hold {
                    released.notified().await;
                }
                let reply = reply_from(records, &asking);
                socket.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
            }
        });
        Self { address, asked, release, task }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The records of the asked name and type; NXDOMAIN for a name without any.
fn reply_from(records: &[&str], asking: &Message) -> Message {
    let query: &Asking = asking.queries.first().unwrap();
    let asked = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let of_name: Vec<&str> =
        records.iter().copied().filter(|line| line.starts_with(&format!("{asked} "))).collect();
    let kind = query.query_type().to_string();
    let of_type: Vec<&str> =
        of_name.iter().copied().filter(|line| line.split(' ').nth(2) == Some(kind.as_str())).collect();
    let code = if of_name.is_empty() { ResponseCode::NXDomain } else { ResponseCode::NoError };
    let mut reply = response(&question_for(&asked, query.query_type().into()), code, &of_type);
    reply.metadata.id = asking.metadata.id;
    reply.queries = asking.queries.clone();
    reply
}

const RECORDS: &[&str] = &[
    "pypi.org 60 A 151.101.0.223",
    "pypi.org 60 AAAA 2a04:4e42::223",
    "inside.example 60 A 10.7.0.4",
    "rebind.files.example 60 A 10.0.0.1",
    "rebind.files.example 60 A 127.0.0.1",
    "a.files.example 60 A 9.9.9.9",
    "b.files.example 60 A 9.9.9.10",
    "mail.example 60 TXT hello",
    "mail.example 60 A 9.9.9.9",
];

/// A server with an upstream, and who asks it.
struct World {
    address: SocketAddr,
    tls: Option<SocketAddr>,
    upstream: Upstream,
    told: Arc<Told>,
    rules: Arc<ArcSwap<RuleSet>>,
    ledger: Arc<Ledger>,
    draining: CancellationToken,
    running: Option<JoinHandle<()>>,
}

fn settings() -> ServerSettings {
    ServerSettings {
        address: "127.0.0.1:0".parse().unwrap(),
        tls: None,
        clients: ["127.0.0.0/8", "::1/128"].iter().map(|prefix| prefix.parse().unwrap()).collect(),
        denied: Denied::NxDomain,
        queries_per_second: NonZeroU32::new(10_000).unwrap(),
        budget: BudgetSettings::default(),
        loops: Some(2),
    }
}

impl World {
    async fn new(change: impl FnOnce(&mut ServerSettings)) -> Self {
        Self::with(Upstream::start(RECORDS, false).await, change)
    }

    fn with(upstream: Upstream, change: impl FnOnce(&mut ServerSettings)) -> Self {
        Self::served_in(Vec::new(), upstream, change)
    }

    fn served_in(
        runtimes: Vec<Handle>,
        upstream: Upstream,
        change: impl FnOnce(&mut ServerSettings),
    ) -> Self {
        let mut settings = settings();
        change(&mut settings);
        let upstreams = Upstreams::Listed(vec![upstream.address.into()]);
        let resolver = Resolver::new(ResolverSettings { upstreams, ..ResolverSettings::default() }).unwrap();
        let (told, ledger) = (Arc::<Told>::default(), Arc::<Ledger>::default());
        let rules = Arc::new(ArcSwap::new(rules(POLICY)));
        let foundation = Foundation {
            rules: Arc::clone(&rules),
            resolver,
            observer: Arc::clone(&told) as Arc<dyn Observer>,
            ledger: Arc::clone(&ledger),
        };
        let server = Sockets::bind(settings).unwrap().serve(foundation);
        let (address, tls) = (server.address().unwrap(), server.tls_address().unwrap());
        let draining = CancellationToken::new();
        let running = Some(tokio::spawn(server.run(draining.clone(), runtimes)));
        Self { address, tls, upstream, told, rules, ledger, draining, running }
    }

    /// Asks with OPT over UDP.
    async fn ask(&self, name: &str, record_type: u16) -> Message {
        let client = Client::new().await;
        client.send(&edns_query(name, record_type), self.address).await;
        client.message().await
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.draining.cancel();
    }
}

struct Client(UdpSocket);

impl Client {
    async fn new() -> Self {
        Self(UdpSocket::bind("127.0.0.1:0").await.unwrap())
    }

    async fn send(&self, packet: &[u8], to: SocketAddr) {
        self.0.send_to(packet, to).await.unwrap();
    }

    async fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 4096];
        let (length, from) = soon(self.0.recv_from(&mut buffer)).await.unwrap();
        (buffer[..length].to_vec(), from)
    }

    async fn message(&self) -> Message {
        Message::from_vec(&self.receive().await.0).unwrap()
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(LONG, what).await.expect("it did not come")
}

fn plain_query(name: &str, record_type: u16) -> Vec<u8> {
    packet(RD, [1, 0, 0, 0], &[&question(name, record_type)])
}

fn edns_query(name: &str, record_type: u16) -> Vec<u8> {
    packet(RD, [1, 0, 0, 1], &[&question(name, record_type), &opt(1232, 0, 0, &[])])
}

fn with_id(mut packet: Vec<u8>, id: u16) -> Vec<u8> {
    packet[..2].copy_from_slice(&id.to_be_bytes());
    packet
}

/// The code and the text of the extended error.
fn extended_error(message: &Message) -> Option<(u16, String)> {
    use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
    let option = message.edns.as_ref()?.option(EdnsCode::from(15))?;
    let EdnsOption::Unknown(_, bytes) = option else { panic!("{option:?}") };
    let (code, text) = bytes.split_first_chunk::<2>().unwrap();
    Some((u16::from_be_bytes(*code), String::from_utf8(text.to_vec()).unwrap()))
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

async fn until(holds: impl Fn() -> bool) {
    soon(async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn send_framed(stream: &mut (impl AsyncWriteExt + Unpin), message: &[u8]) {
    stream.write_all(&framed(message)).await.unwrap();
    stream.flush().await.unwrap();
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}

async fn receive_framed(stream: &mut (impl AsyncReadExt + Unpin)) -> Message {
    let length = soon(stream.read_u16()).await.unwrap();
    let mut message = vec![0; length.into()];
    soon(stream.read_exact(&mut message)).await.unwrap();
    Message::from_vec(&message).unwrap()
}

async fn is_closed(stream: &mut (impl AsyncReadExt + Unpin)) -> bool {
    // A reset closes, too.
    soon(stream.read(&mut [0; 1])).await.unwrap_or(0) == 0
}
