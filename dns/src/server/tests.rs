#![allow(clippy::disallowed_methods)]

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

#[tokio::test]
async fn a_denied_name_asks_nobody_whatever_the_type() {
    let world = World::new(|_| {}).await;
    let secret = "mfrggzdfmy.evil.example";
    for record_type in [1, 2, 5, 6, 12, 15, 16, 28, 33, 43, 64, 65, 251, 252, 255, 257, 65535] {
        let message = world.ask(secret, record_type).await;
        assert_eq!(code(&message), ResponseCode::NXDomain, "type {record_type}");
        assert_eq!(message.all_sections().count(), 0, "type {record_type}");
        assert_eq!(extended_error(&message), Some((15, "no rule allows it".to_owned())));
    }
    assert_eq!(world.upstream.asked(), 0);
    let event = world.told.last();
    assert_eq!((event.reason, event.rcode, event.from), (Reason::NoRule, ResponseCode::NXDomain, None));
    assert_eq!(event.question.unwrap().name.to_string(), secret);
}

#[tokio::test]
async fn a_denial_names_its_rule_and_is_for_the_client_that_it_is_for() {
    let world = World::new(|_| {}).await;
    let message = world.ask("gist.github.com", 1).await;
    let text = "a rule denies it (rule \"no-gists\")".to_owned();
    assert_eq!(extended_error(&message), Some((15, text)));
    assert_eq!(code(&world.ask("elsewhere.example", 1).await), ResponseCode::NXDomain, "another client's");
    assert_eq!(world.upstream.asked(), 0);
}

#[tokio::test]
async fn who_sends_no_opt_gets_a_denial_of_the_size_of_the_question() {
    let world = World::new(|_| {}).await;
    let client = Client::new().await;
    let query = plain_query("evil.example", 1);
    client.send(&query, world.address).await;
    assert_eq!(client.receive().await.0.len(), query.len());
}

#[tokio::test]
async fn an_allowed_name_is_answered_once_by_the_upstream_and_then_from_the_cache() {
    let world = World::new(|_| {}).await;
    let (client, asked) = (Client::new().await, with_id(plain_query("PyPI.oRg", 1), 0xbeef));
    for from_upstream in [true, false] {
        client.send(&asked, world.address).await;
        let (bytes, _) = client.receive().await;
        assert_eq!(bytes[12..12 + 14], question("PyPI.oRg", 1), "the client's own letter case");
        let message = Message::from_vec(&bytes).unwrap();
        assert_eq!((message.metadata.id, code(&message)), (0xbeef, ResponseCode::NoError));
        assert_eq!(addresses(&message), ["151.101.0.223".parse::<IpAddr>().unwrap()]);
        let event = world.told.last();
        assert_eq!(event.reason, Reason::Rule);
        assert_eq!(&*event.rule.unwrap().name, "pypi");
        assert_eq!(event.addresses.to_vec(), addresses(&message));
        let from =
            if from_upstream { AnsweredBy::Upstream(world.upstream.address) } else { AnsweredBy::Cache };
        assert_eq!(event.from, Some(from));
    }
    assert_eq!(world.upstream.asked(), 1);
}

#[tokio::test]
async fn a_name_above_an_allowed_one_exists() {
    let world = World::new(|_| {}).await;
    for (above, expected) in [
        ("org", ResponseCode::NoError),
        ("files.example", ResponseCode::NoError),
        ("example", ResponseCode::NoError),
        ("github.com", ResponseCode::NoError),
        ("", ResponseCode::NoError),
        ("xample", ResponseCode::NXDomain),
    ] {
        let message = world.ask(above, 1).await;
        assert_eq!(code(&message), expected, "{above:?}");
        assert!(message.answers.is_empty());
    }
    assert_eq!(world.upstream.asked(), 0);
}

#[tokio::test]
async fn a_denial_looks_as_it_is_configured() {
    let refused = World::new(|settings| settings.denied = Denied::Refused).await;
    assert_eq!(code(&refused.ask("evil.example", 1).await), ResponseCode::Refused);
    let gate = World::new(|settings| settings.denied = Denied::Gate).await;
    let message = gate.ask("evil.example", 1).await;
    assert_eq!(addresses(&message), [gate.address.ip()]);
    assert_eq!(extended_error(&message).unwrap().0, 15);
    assert_eq!(gate.told.last().addresses.to_vec(), [gate.address.ip()]);
    let other_family = gate.ask("evil.example", 28).await;
    assert_eq!((code(&other_family), other_family.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(gate.upstream.asked() + refused.upstream.asked(), 0);
}

#[tokio::test]
async fn a_name_that_is_no_host_name_is_denied_with_what_is_wrong() {
    let world = World::new(|_| {}).await;
    let client = Client::new().await;
    for (wire, reason, shown) in [
        (&b"\x03a.b\x04pypi\x03org\0"[..], Reason::HostCharacter, "a\\.b.pypi.org"),
        (b"\x05pypi\0\x03org\0", Reason::HostControlByte, "pypi\\000.org"),
        (b"\x03com\x03127\0", Reason::HostNumeric, "com.127"),
    ] {
        client.send(&packet(RD, [1, 0, 0, 0], &[wire, &[0, 1, 0, 1]]), world.address).await;
        assert_eq!(code(&client.message().await), ResponseCode::NXDomain);
        let event = world.told.last();
        assert_eq!((event.reason, event.question.unwrap().name.to_string().as_str()), (reason, shown));
    }
    assert_eq!(world.upstream.asked(), 0);
}

#[tokio::test]
async fn types_beside_addresses_and_services_are_served_where_a_rule_lists_them() {
    let world = World::new(|_| {}).await;
    let listed = world.ask("mail.example", 16).await;
    assert_eq!(listed.answers[0].record_type(), RecordType::TXT);
    let asked = world.upstream.asked();
    for (name, record_type, expected) in [
        ("pypi.org", 16, ResponseCode::NoError),
        ("mail.example", 33, ResponseCode::NoError),
        ("pypi.org", 252, ResponseCode::Refused),
        ("pypi.org", 250, ResponseCode::Refused),
    ] {
        let message = world.ask(name, record_type).await;
        assert_eq!((code(&message), message.answers.len()), (expected, 0), "{name} {record_type}");
        assert_eq!(world.told.last().reason, Reason::DnsType);
    }
    let any = world.ask("pypi.org", 255).await;
    assert_eq!(
        any.answers.iter().map(|record| record.record_type()).collect::<Vec<_>>(),
        [RecordType::HINFO]
    );
    assert_eq!(world.upstream.asked(), asked);
}

#[tokio::test]
async fn an_answer_is_the_same_whether_it_had_to_be_asked_for_or_not() {
    let table: &[(&str, u16)] = &[
        ("PyPI.org", 1),
        ("pypi.org", 28),
        ("pypi.org", 65),
        ("a.files.example", 1),
        ("gone.files.example", 1),
        ("rebind.files.example", 1),
        ("mail.example", 16),
    ];
    let edns = [None, Some(opt(1232, 0, 0, &[])), Some(opt(512, 0, 0x8000, &[0, 12, 0, 4, 0, 0, 0, 0]))];
    for edns in edns {
        let world = World::new(|_| {}).await;
        for (name, record_type) in table {
            let count = u16::from(edns.is_some());
            let rest: &[&[u8]] = &[&question(name, *record_type), edns.as_deref().unwrap_or_default()];
            let query = packet(RD | 0x0010, [1, 0, 0, count], rest);
            let client = Client::new().await;
            let mut replies = Vec::new();
            for _ in 0..2 {
                client.send(&query, world.address).await;
                replies.push(client.receive().await.0);
            }
            let question = query.get(12..12 + rest[0].len());
            assert!(replies.iter().all(|reply| reply.get(12..12 + rest[0].len()) == question), "{name}");
            let [asked, known] = [&replies[0], &replies[1]].map(|reply| Message::from_vec(reply).unwrap());
            // A second may have passed.
            let untimed = |records: &[hickory_proto::rr::Record]| -> Vec<_> {
                records.iter().map(|record| (record.name.clone(), record.data.clone())).collect()
            };
            assert_eq!(asked.metadata, known.metadata, "{name}");
            assert_eq!(asked.edns, known.edns, "{name}");
            assert_eq!(untimed(&asked.answers), untimed(&known.answers), "{name}");
            assert_eq!(untimed(&asked.authorities), untimed(&known.authorities), "{name}");
        }
    }
}

#[tokio::test]
async fn an_answer_with_private_addresses_is_withheld_unless_the_rule_says_so() {
    let world = World::new(|_| {}).await;
    let message = world.ask("rebind.files.example", 1).await;
    assert!(message.answers.is_empty());
    assert_eq!(extended_error(&message), Some((15, Reason::AddressPrivate.sentence().to_owned())));
    let event = world.told.last();
    assert_eq!((event.reason, event.enforcement), (Reason::AddressPrivate, Enforcement::Enforce));
    assert_eq!(event.withheld.len(), 2);
    let now = std::time::Instant::now();
    assert!(world.ledger.names("127.0.0.1".parse().unwrap(), "10.0.0.1".parse().unwrap(), now).is_empty());
    assert_eq!(addresses(&world.ask("inside.example", 1).await), ["10.7.0.4".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn what_a_client_was_told_is_in_the_ledger() {
    let world = World::new(|_| {}).await;
    world.ask("pypi.org", 28).await;
    let (client, now) = ("127.0.0.1".parse().unwrap(), std::time::Instant::now());
    let told: Vec<DomainName> = world.ledger.names(client, "2a04:4e42::223".parse().unwrap(), now);
    assert_eq!(told, [name("pypi.org")]);
    assert!(world.ledger.names(client, "151.101.0.223".parse().unwrap(), now).is_empty());
}

#[tokio::test]
async fn special_names_are_negative_even_where_a_denial_is_an_address() {
    let world = World::new(|settings| settings.denied = Denied::Gate).await;
    assert_eq!(code(&world.ask("use-application-dns.net", 1).await), ResponseCode::NXDomain);
    assert_eq!(world.ask("_dns.resolver.arpa", 64).await.answers.len(), 0);
    assert_eq!(world.told.last().reason, Reason::SpecialName);
}

#[tokio::test]
async fn a_reload_holds_from_the_next_query_on() {
    let world = World::new(|_| {}).await;
    assert_eq!(world.ask("pypi.org", 1).await.answers.len(), 1);
    world.rules.store(rules("outbound_rules: []"));
    assert_eq!(code(&world.ask("pypi.org", 1).await), ResponseCode::NXDomain);
}

#[tokio::test]
async fn in_report_mode_a_denied_name_is_answered_and_recorded() {
    let world = World::new(|_| {}).await;
    world.rules.store(rules("enforcement: report\noutbound_rules: []"));
    assert_eq!(world.ask("pypi.org", 1).await.answers.len(), 1);
    let event = world.told.last();
    assert_eq!((event.reason, event.enforcement), (Reason::NoRule, Enforcement::Report));
}

#[tokio::test]
async fn a_bad_packet_gets_its_error_or_nothing_and_the_server_lives() {
    let world = World::new(|_| {}).await;
    let asked = question("pypi.org", 1);
    let edns = opt(1232, 0, 0, &[]);
    let class = |class: u16| [&asked[..asked.len() - 2], &class.to_be_bytes()].concat();
    let table: &[(&str, Vec<u8>, Option<ResponseCode>)] = &[
        ("nothing", vec![], None),
        ("a byte", vec![0x12], None),
        ("half a header", vec![0; 11], None),
        ("a response", packet(0x8180, [1, 0, 0, 0], &[&asked]), None),
        ("a response with an opcode", packet(0xa800, [1, 0, 0, 0], &[&asked]), None),
        ("NOTIFY", packet(0x2000, [1, 0, 0, 0], &[&asked]), Some(ResponseCode::NotImp)),
        ("UPDATE", packet(0x2800, [1, 0, 0, 0], &[&asked]), Some(ResponseCode::NotImp)),
        ("no question", packet(RD, [0; 4], &[]), Some(ResponseCode::FormErr)),
        ("two questions", packet(RD, [2, 0, 0, 0], &[&asked, &asked]), Some(ResponseCode::FormErr)),
        ("a loop", packet(RD, [1, 0, 0, 0], &[b"\xc0\x0c\0\x01\0\x01"]), Some(ResponseCode::FormErr)),
        ("trailing bytes", packet(RD, [1, 0, 0, 0], &[&asked, b"!"]), Some(ResponseCode::FormErr)),
        ("two OPTs", packet(RD, [1, 0, 0, 2], &[&asked, &edns, &edns]), Some(ResponseCode::FormErr)),
        ("an answer", packet(RD, [1, 1, 0, 0], &[&asked, &asked]), Some(ResponseCode::FormErr)),
        ("EDNS 1", packet(RD, [1, 0, 0, 1], &[&asked, &opt(1232, 1, 0, &[])]), Some(ResponseCode::BADSIG)),
        ("CHAOS", packet(RD, [1, 0, 0, 0], &[&class(3)]), Some(ResponseCode::Refused)),
        ("class ANY", packet(RD, [1, 0, 0, 0], &[&class(255)]), Some(ResponseCode::Refused)),
        ("too long", packet(RD, [1, 0, 0, 0], &[&asked, &[0; 4000]]), Some(ResponseCode::FormErr)),
    ];
    for (what, bytes, expected) in table {
        let client = Client::new().await;
        client.send(bytes, world.address).await;
        client.send(&with_id(plain_query("evil.example", 1), 0x5a5a), world.address).await;
        let mut replies = vec![client.receive().await.0];
        if expected.is_some() {
            replies.push(client.receive().await.0);
        }
        let of = |id| replies.iter().find(|reply| reply.starts_with(&u16::to_be_bytes(id)));
        assert!(of(0x5a5a).is_some(), "{what}");
        assert_eq!(of(0x1234).is_some(), expected.is_some(), "{what}");
        if let (Some(reply), Some(expected)) = (of(0x1234), expected) {
            let message = Message::from_vec(reply).unwrap();
            assert_eq!(u16::from(code(&message)), u16::from(*expected), "{what}");
            assert!(reply.len() <= bytes.len(), "{what}: {} of {}", reply.len(), bytes.len());
        }
    }
    assert_eq!(world.upstream.asked(), 0);
}

#[tokio::test]
async fn what_does_not_fit_a_datagram_is_whole_over_tcp() {
    let records: Vec<String> = (1..=60).map(|last| format!("pypi.org 60 AAAA 2a04:4e42::{last:x}")).collect();
    let records: Vec<&'static str> = records.into_iter().map(|line| &*line.leak()).collect();
    let world = World::with(Upstream::start(records.leak(), false).await, |_| {});
    let message = world.ask("pypi.org", 28).await;
    assert!(message.metadata.truncation && message.answers.is_empty());
    assert!(message.edns.is_some(), "who sent OPT gets one");
    let mut stream = world.tcp().await;
    send_framed(&mut stream, &plain_query("pypi.org", 28)).await;
    assert_eq!(receive_framed(&mut stream).await.answers.len(), 60);
}

#[tokio::test]
async fn over_its_rate_a_client_is_sent_to_tcp_or_not_answered_and_told_of_once() {
    let world = World::new(|settings| settings.queries_per_second = NonZeroU32::new(5).unwrap()).await;
    let client = Client::new().await;
    for id in 0..11 {
        client.send(&with_id(plain_query("evil.example", 1), id), world.address).await;
    }
    let mut truncated = Vec::new();
    for _ in 0..9 {
        let message = client.message().await;
        if message.metadata.truncation {
            truncated.push(message.metadata.id);
        }
    }
    // Five within the rate; of the six others the first is told of, and every second one is answered.
    assert_eq!(truncated, [5, 6, 8, 10]);
    let told = world.told.answered.lock().unwrap().clone();
    assert_eq!(told.iter().filter(|event| event.reason == Reason::LookupRate).count(), 1);
    assert_eq!(world.told.dropped_for(Reason::LookupRate), 5);
}

#[tokio::test]
async fn below_a_wildcard_a_client_has_a_budget_and_what_is_cached_is_free() {
    let world = World::new(|settings| settings.budget.names_per_minute = 2).await;
    assert_eq!(world.ask("a.files.example", 1).await.answers.len(), 1);
    assert_eq!(world.ask("b.files.example", 1).await.answers.len(), 1);
    let asked = world.upstream.asked();
    let message = world.ask("c.files.example", 1).await;
    assert_eq!(code(&message), ResponseCode::Refused);
    assert_eq!(world.told.last().reason, Reason::LookupNames);
    assert_eq!(world.upstream.asked(), asked);
    assert_eq!(world.ask("a.files.example", 1).await.answers.len(), 1, "from the cache");
    assert_eq!(world.ask("pypi.org", 1).await.answers.len(), 1, "named by a rule");
}

#[tokio::test]
async fn who_is_not_a_client_hears_nothing() {
    let world =
        World::new(|settings| settings.clients = ["127.0.0.9/32".parse().unwrap()].into_iter().collect())
            .await;
    let (stranger, client) = (Client::new().await, UdpSocket::bind("127.0.0.9:0").await.unwrap());
    stranger.send(&plain_query("pypi.org", 1), world.address).await;
    let mut stream = world.tcp().await;
    assert_eq!(soon(stream.read(&mut [0; 1])).await.unwrap_or(0), 0, "a stream is closed");
    client.send_to(&plain_query("pypi.org", 1), world.address).await.unwrap();
    soon(client.recv(&mut [0; 512])).await.unwrap();
    while world.told.dropped_for(Reason::ClientNotServed) < 2 {
        tokio::task::yield_now().await;
    }
    assert!(stranger.0.try_recv(&mut [0; 512]).is_err());
}

#[tokio::test]
async fn a_reply_leaves_from_the_address_that_was_asked() {
    for (bound, asked) in [("0.0.0.0:0", "127.0.0.7"), ("[::]:0", "::1"), ("[::]:0", "::ffff:127.0.0.7")] {
        let world = World::new(|settings| settings.address = bound.parse().unwrap()).await;
        let to = SocketAddr::new(asked.parse().unwrap(), world.address.port());
        let here = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let client = UdpSocket::bind(here).await.unwrap();
        // One is answered in place and one by a task.
        for asking in ["evil.example", "pypi.org"] {
            client.send_to(&plain_query(asking, 1), to).await.unwrap();
            let (_, from) = soon(client.recv_from(&mut [0; 512])).await.unwrap();
            assert_eq!(from, to, "{bound} {asking}");
        }
    }
}

#[tokio::test]
async fn nothing_is_sent_before_its_event_was_taken() {
    let world = World::new(|_| {}).await;
    let (release, full) = watch::channel(true);
    *world.told.full.lock().unwrap() = Some(full);
    let client = Client::new().await;
    client.send(&plain_query("evil.example", 1), world.address).await;
    while world.told.answered.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(timeout(Duration::from_millis(50), client.receive()).await.is_err());
    release.send_replace(false);
    client.message().await;
}

#[tokio::test]
async fn what_upstreams_said_waits_for_its_own_event_and_not_for_one_before() {
    let upstream = Upstream::start(RECORDS, true).await;
    let release = Arc::clone(&upstream.release);
    let world = World::with(upstream, |settings| settings.loops = Some(1));
    let (denied, allowed) = (Client::new().await, Client::new().await);
    allowed.send(&plain_query("pypi.org", 1), world.address).await;
    until(|| world.upstream.asked() == 1).await;
    let (first, full) = watch::channel(true);
    *world.told.full.lock().unwrap() = Some(full);
    denied.send(&plain_query("evil.example", 1), world.address).await;
    until(|| first.receiver_count() == 2).await;
    let (second, full) = watch::channel(true);
    *world.told.full.lock().unwrap() = Some(full);
    release.notify_one();
    until(|| world.told.answered.lock().unwrap().len() == 2).await;
    first.send_replace(false);
    assert_eq!(code(&denied.message().await), ResponseCode::NXDomain);
    until(|| second.receiver_count() == 2).await;
    assert!(timeout(Duration::from_millis(50), allowed.receive()).await.is_err());
    second.send_replace(false);
    assert_eq!(allowed.message().await.answers.len(), 1);
}

async fn until(holds: impl Fn() -> bool) {
    soon(async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn nor_over_a_stream_nor_when_an_upstream_had_to_be_asked() {
    for asking in ["evil.example", "pypi.org"] {
        let world = World::new(|_| {}).await;
        let (release, full) = watch::channel(true);
        *world.told.full.lock().unwrap() = Some(full);
        let (client, mut stream) = (Client::new().await, world.tcp().await);
        client.send(&plain_query(asking, 1), world.address).await;
        send_framed(&mut stream, &plain_query(asking, 1)).await;
        while world.told.answered.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
        let early = timeout(Duration::from_millis(50), client.receive()).await.is_ok();
        let early_over_tcp = timeout(Duration::from_millis(50), stream.readable()).await.is_ok();
        assert!(!early && !early_over_tcp, "{asking}");
        release.send_replace(false);
        client.message().await;
        receive_framed(&mut stream).await;
    }
}

#[tokio::test]
async fn two_servers_do_not_share_a_port() {
    let world = World::new(|_| {}).await;
    let settings = ServerSettings { address: world.address, ..settings() };
    let error = Sockets::bind(settings).unwrap_err();
    assert_eq!(error.error.kind(), io::ErrorKind::AddrInUse);
}

// Streams.

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

#[tokio::test]
async fn a_stream_takes_one_query_after_the_other_however_it_is_cut() {
    let world = World::new(|_| {}).await;
    let mut stream = world.tcp().await;
    stream.set_nodelay(true).unwrap();
    for (id, asking) in [(1, "pypi.org"), (2, "evil.example"), (3, "PYPI.ORG")] {
        for byte in framed(&with_id(plain_query(asking, 1), id)) {
            stream.write_all(&[byte]).await.unwrap();
        }
        let message = receive_framed(&mut stream).await;
        assert_eq!(message.metadata.id, id);
        assert_eq!(message.answers.len(), usize::from(asking != "evil.example"));
        assert_eq!(world.told.last().transport, Transport::Tcp);
    }
}

#[tokio::test]
async fn queries_in_a_row_are_answered_as_they_are_ready() {
    let upstream = Upstream::start(RECORDS, true).await;
    let release = Arc::clone(&upstream.release);
    let world = World::with(upstream, |_| {});
    let mut stream = world.tcp().await;
    let both = [
        framed(&with_id(plain_query("pypi.org", 1), 1)),
        framed(&with_id(plain_query("evil.example", 1), 2)),
    ];
    stream.write_all(&both.concat()).await.unwrap();
    assert_eq!(receive_framed(&mut stream).await.metadata.id, 2, "the one that asks nobody");
    release.notify_one();
    assert_eq!(receive_framed(&mut stream).await.metadata.id, 1);
}

#[tokio::test]
async fn a_stream_without_proper_framing_is_closed_and_asks_nobody() {
    let world = World::new(|_| {}).await;
    let whole = plain_query("pypi.org", 1);
    let table: &[(&str, Vec<u8>)] = &[
        ("a length of zero", vec![0, 0]),
        ("a length below a header", vec![0, 11]),
        ("a length of 65535", [&[0xff, 0xff][..], &whole].concat()),
        ("a response", framed(&packet(0x8180, [1, 0, 0, 0], &[&question("pypi.org", 1)]))),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: pypi.org\r\n\r\n".to_vec()),
        ("TLS", vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
    ];
    for (what, bytes) in table {
        let mut stream = world.tcp().await;
        stream.write_all(bytes).await.unwrap();
        assert!(is_closed(&mut stream).await, "{what}");
    }
    assert_eq!(world.upstream.asked(), 0);
    assert_eq!(world.ask("pypi.org", 1).await.answers.len(), 1);
}

#[tokio::test]
async fn a_malformed_query_over_a_stream_gets_its_error_and_the_stream_goes_on() {
    let world = World::new(|_| {}).await;
    let mut stream = world.tcp().await;
    send_framed(&mut stream, &packet(RD, [2, 0, 0, 0], &[&question("a.example", 1)])).await;
    assert_eq!(code(&receive_framed(&mut stream).await), ResponseCode::FormErr);
    send_framed(&mut stream, &plain_query("evil.example", 1)).await;
    assert_eq!(code(&receive_framed(&mut stream).await), ResponseCode::NXDomain);
}

/// One end of a stream that the server serves, without a socket between: time can be let pass.
async fn stream_of(world: &World) -> tokio::io::DuplexStream {
    let (ours, theirs) = tokio::io::duplex(4096);
    let foundation = Foundation {
        rules: Arc::clone(&world.rules),
        resolver: Resolver::new(ResolverSettings {
            upstreams: Upstreams::Listed(vec![world.upstream.address.into()]),
            ..ResolverSettings::default()
        })
        .unwrap(),
        observer: Arc::clone(&world.told) as Arc<dyn Observer>,
        ledger: Arc::default(),
    };
    let service = Arc::new(Service::new(&settings(), foundation));
    let client = "127.0.0.1:4000".parse().unwrap();
    let asker = service::Asker { client, local: client.ip(), transport: Transport::Tcp };
    tokio::spawn(streams::serve(theirs, service, asker, world.draining.clone()));
    ours
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_silent_or_slow_ends_at_its_deadline() {
    let world = World::new(|_| {}).await;
    let query = framed(&plain_query("evil.example", 1));
    for (what, sent, seconds) in [
        ("silence", &query[..0], 10),
        ("half a length", &query[..1], 5),
        ("half a query", &query[..20], 5),
        ("a query and then silence", &query[..], 10),
        ("a query and half of another", &[&query[..], &query[..20]].concat()[..], 5),
    ] {
        let mut stream = stream_of(&world).await;
        let start = tokio::time::Instant::now();
        stream.write_all(sent).await.unwrap();
        let mut answers = Vec::new();
        stream.read_to_end(&mut answers).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), seconds, "{what}");
        assert_eq!(!answers.is_empty(), sent.len() >= query.len(), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_query_that_comes_byte_by_byte_has_one_deadline_for_all_of_it() {
    let world = World::new(|_| {}).await;
    let mut stream = stream_of(&world).await;
    let start = tokio::time::Instant::now();
    for byte in framed(&plain_query("evil.example", 1)) {
        if stream.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!((5..8).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_its_answers_is_left() {
    let world = World::new(|_| {}).await;
    let mut stream = stream_of(&world).await;
    let query = framed(&plain_query("evil.example", 1));
    let start = tokio::time::Instant::now();
    while stream.write_all(&query).await.is_ok() {}
    assert!(start.elapsed() <= Duration::from_secs(6), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_client_has_so_many_streams_and_no_more() {
    let world = World::new(|_| {}).await;
    let mut streams = Vec::new();
    for _ in 0..streams::MAX_PER_CLIENT {
        let mut stream = world.tcp().await;
        send_framed(&mut stream, &plain_query("evil.example", 1)).await;
        receive_framed(&mut stream).await;
        streams.push(stream);
    }
    assert!(is_closed(&mut world.tcp().await).await);
    assert_eq!(world.told.dropped_for(Reason::ClientConnectionLimit), 1);
}

#[tokio::test]
async fn the_end_waits_for_what_was_asked_and_takes_nothing_new() {
    let upstream = Upstream::start(RECORDS, true).await;
    let release = Arc::clone(&upstream.release);
    let mut world = World::with(upstream, |_| {});
    let (client, mut stream) = (Client::new().await, world.tcp().await);
    client.send(&plain_query("pypi.org", 1), world.address).await;
    while world.upstream.asked() == 0 {
        tokio::task::yield_now().await;
    }
    let both = [framed(&plain_query("evil.example", 1)), framed(&plain_query("pypi.org", 1))];
    stream.write_all(&both.concat()).await.unwrap();
    assert_eq!(code(&receive_framed(&mut stream).await), ResponseCode::NXDomain);
    let mut idle = world.tcp().await;
    send_framed(&mut idle, &plain_query("evil.example", 1)).await;
    receive_framed(&mut idle).await;
    world.draining.cancel();
    assert!(is_closed(&mut idle).await);
    release.notify_one();
    assert_eq!(client.message().await.answers.len(), 1);
    assert_eq!(receive_framed(&mut stream).await.answers.len(), 1);
    soon(world.running.take().unwrap()).await.unwrap();
    assert!(TcpStream::connect(world.address).await.is_err());
}

#[tokio::test]
async fn the_end_waits_for_what_was_asked_over_a_stream_alone() {
    let upstream = Upstream::start(RECORDS, true).await;
    let release = Arc::clone(&upstream.release);
    let mut world = World::with(upstream, |_| {});
    let mut stream = world.tcp().await;
    send_framed(&mut stream, &plain_query("pypi.org", 1)).await;
    until(|| world.upstream.asked() == 1).await;
    world.draining.cancel();
    let mut running = world.running.take().unwrap();
    assert!(timeout(Duration::from_millis(50), &mut running).await.is_err());
    release.notify_one();
    assert_eq!(receive_framed(&mut stream).await.answers.len(), 1);
    soon(running).await.unwrap();
}

#[tokio::test]
async fn streams_are_served_in_the_runtimes_by_turns() {
    let runtimes = ["one", "other"].map(|name| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).thread_name(name).enable_all().build().unwrap()
    });
    let handles = runtimes.iter().map(|runtime| runtime.handle().clone()).collect();
    let world = World::served_in(handles, Upstream::start(RECORDS, false).await, |_| {});
    for _ in 0..4 {
        let mut stream = world.tcp().await;
        send_framed(&mut stream, &plain_query("evil.example", 1)).await;
        receive_framed(&mut stream).await;
    }
    assert_eq!(*world.told.threads.lock().unwrap(), ["one", "other", "one", "other"]);
    runtimes.into_iter().for_each(tokio::runtime::Runtime::shutdown_background);
}

// TLS.

#[tokio::test]
async fn over_tls_the_same_answers_come_and_nothing_in_plain() {
    let folder = tempfile::TempDir::new().unwrap();
    let certified = rcgen::generate_simple_self_signed(["dns.example".to_owned()]).unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&certificate, certified.cert.pem()).unwrap();
    std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
    let identity = Identity::read(&certificate, &key).unwrap();
    let world = World::new(|settings| settings.tls = Some(("127.0.0.1:0".parse().unwrap(), identity))).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let address = world.tls.unwrap();
    let plain = TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect("dns.example".try_into().unwrap(), plain).await.unwrap();
    send_framed(&mut stream, &plain_query("pypi.org", 1)).await;
    assert_eq!(receive_framed(&mut stream).await.answers.len(), 1);
    assert_eq!(world.told.last().transport, Transport::Tls);
    let mut in_plain = TcpStream::connect(address).await.unwrap();
    send_framed(&mut in_plain, &plain_query("pypi.org", 1)).await;
    let mut answer = Vec::new();
    // An alert, or nothing; a reset is as good.
    _ = soon(in_plain.read_to_end(&mut answer)).await;
    assert!(answer.is_empty() || answer[0] == 0x15, "{answer:?}");
}

#[test]
fn a_certificate_that_is_none_says_so() {
    let folder = tempfile::TempDir::new().unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    assert!(Identity::read(&certificate, &key).is_err(), "not there");
    std::fs::write(&certificate, "hello").unwrap();
    let error = Identity::read(&certificate, &key).unwrap_err().to_string();
    assert!(error.ends_with("cert.pem: there is no certificate in it"), "{error}");
}
