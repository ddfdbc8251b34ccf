//! The resolver against scripted upstreams on loopback.

use std::collections::HashSet;
use std::pin::Pin;
use std::task::Poll;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::testing::{dial_permit, lines, lookup_permit, name, question, record, response};
use crate::upstream::exchange::sockets::Keeper;

const POLICY: &str = "outbound_rules:
  - {name: all, type: fqdn, destination: '*.example'}
  - {name: private, type: fqdn, destination: '*.corp.example', resolves_to: private}
  - {name: text, type: resolve, destination: '*.text.example', record_types: [TXT]}
";
/// Nothing here may take as long; a test that waits this long has failed.
const SOON: Duration = Duration::from_secs(20);

/// How a question came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Via {
    Udp,
    Stream,
}

/// What the upstream was asked: how, from which port, with which id, and what.
#[derive(Clone, Debug)]
struct Asked {
    via: Via,
    port: u16,
    message: Message,
}

struct Scripted {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<Mutex<usize>>,
}

/// What to send back, message by message.
type Script = Arc<dyn Fn(&Asked) -> Vec<Message> + Send + Sync>;

impl Scripted {
    async fn start(script: impl Fn(&Asked) -> Vec<Message> + Send + Sync + 'static) -> Self {
        Self::start_with(Arc::new(script), None).await
    }

    async fn start_with(script: Script, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let (udp, tcp) = bind_both().await;
        let address = tcp.local_addr().unwrap();
        let scripted = Self { address, asked: Arc::default(), connections: Arc::default() };
        tokio::spawn(serve_udp(udp, Arc::clone(&script), Arc::clone(&scripted.asked)));
        let (asked, connections) = (Arc::clone(&scripted.asked), Arc::clone(&scripted.connections));
        tokio::spawn(async move {
            while let Ok((stream, from)) = tcp.accept().await {
                *connections.lock().unwrap() += 1;
                let (script, asked) = (Arc::clone(&script), Arc::clone(&asked));
                match tls.clone() {
                    None => drop(tokio::spawn(serve_stream(stream, from.port(), script, asked))),
                    Some(tls) => drop(tokio::spawn(async move {
                        if let Ok(stream) = tls.accept(stream).await {
                            serve_stream(stream, from.port(), script, asked).await;
                        }
                    })),
                }
            }
        });
        scripted
    }

    fn upstream(&self) -> Upstream {
        self.address.into()
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The names and types asked for, in order.
    fn questions(&self) -> Vec<String> {
        let question = |asked: &Asked| {
            format!("{} {}", asked.message.queries[0].name(), asked.message.queries[0].query_type())
        };
        self.asked().iter().map(question).collect()
    }
}

async fn bind_both() -> (UdpSocket, TcpListener) {
    for _ in 0..64 {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
    panic!("no port is free for both UDP and TCP");
}

async fn serve_udp(socket: UdpSocket, script: Script, log: Arc<Mutex<Vec<Asked>>>) {
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let message = Message::from_vec(&buffer[..length]).unwrap();
        let asked = Asked { via: Via::Udp, port: from.port(), message };
        log.lock().unwrap().push(asked.clone());
        for answer in script(&asked) {
            socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    }
}

async fn serve_stream(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    port: u16,
    script: Script,
    log: Arc<Mutex<Vec<Asked>>>,
) {
    while let Ok(length) = stream.read_u16().await {
        let mut query = vec![0; usize::from(length)];
        stream.read_exact(&mut query).await.unwrap();
        let asked = Asked { via: Via::Stream, port, message: Message::from_vec(&query).unwrap() };
        log.lock().unwrap().push(asked.clone());
        for answer in script(&asked) {
            let answer = answer.to_vec().unwrap();
            stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    }
}

/// An honest answer with these records, whatever was asked.
fn answer(asked: &Asked, code: ResponseCode, lines: &[&str]) -> Message {
    let query = &asked.message.queries[0];
    let asked_name = name(query.name().to_ascii().trim_end_matches('.'));
    let mut message =
        response(&Question { name: asked_name, record_type: query.query_type().into() }, code, lines);
    message.metadata.id = asked.message.metadata.id;
    message.queries = asked.message.queries.clone();
    message
}

fn code(asked: &Asked, code: ResponseCode) -> Vec<Message> {
    vec![answer(asked, code, &[])]
}

/// The address 9.9.9.9 for every name.
fn honest(asked: &Asked) -> Vec<Message> {
    let query = &asked.message.queries[0];
    let owner = query.name().to_ascii();
    let address = format!("{owner} 50 A 9.9.9.9");
    let address6 = format!("{owner} 50 AAAA 2620:fe::fe");
    let nothing = ["--", "example 50 SOA a.example. b.example. 1 2 3 4 5"];
    let lines: &[&str] = match u16::from(query.query_type()) {
        TYPE_A => &[&address],
        TYPE_AAAA => &[&address6],
        _ => &nothing,
    };
    vec![answer(asked, ResponseCode::NoError, lines)]
}

fn forged(asked: &Asked, edit: impl Fn(&mut Message)) -> Message {
    let owner = asked.message.queries[0].name().to_ascii();
    let mut message = answer(asked, ResponseCode::NoError, &[&format!("{owner} 50 A 6.6.6.6")]);
    edit(&mut message);
    message
}

fn settings(upstreams: &[Upstream]) -> ResolverSettings {
    ResolverSettings { upstreams: Upstreams::Listed(upstreams.to_vec()), ..ResolverSettings::default() }
}

fn resolver(upstreams: &[Upstream]) -> Resolver {
    Resolver::new(settings(upstreams)).unwrap()
}

/// An upstream that nobody is.
async fn nobody() -> Upstream {
    bind_both().await.1.local_addr().unwrap().into()
}

async fn ask(resolver: &Resolver, asked: &str, record_type: u16) -> Answer {
    let permit = lookup_permit(POLICY, asked);
    timeout(SOON, resolver.answer(&permit, record_type)).await.unwrap()
}

fn addresses(answer: &Answer) -> Vec<String> {
    answer.records.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn a_name_resolves_to_the_addresses_of_both_families() {
    let upstream = Scripted::start(honest).await;
    let resolver = resolver(&[upstream.upstream()]);
    let mut addresses = resolver.resolve(&dial_permit(POLICY, "a.example")).await.unwrap();
    addresses.sort();
    assert_eq!(addresses, ["9.9.9.9", "2620:fe::fe"].map(|address| address.parse::<IpAddr>().unwrap()));
    let mut questions = upstream.questions();
    questions.sort();
    assert_eq!(questions, ["a.example. A", "a.example. AAAA"]);
}

#[tokio::test]
async fn a_second_question_is_answered_from_the_cache() {
    let upstream = Scripted::start(honest).await;
    let resolver = resolver(&[upstream.upstream()]);
    let permit = lookup_permit(POLICY, "a.example");
    assert!(resolver.cached(&permit, TYPE_A, Instant::now()).is_none());
    assert_eq!(ask(&resolver, "a.example", TYPE_A).await.from, AnsweredBy::Upstream(upstream.address));
    assert_eq!(ask(&resolver, "a.example", TYPE_A).await.from, AnsweredBy::Cache);
    let later = resolver.cached(&permit, TYPE_A, Instant::now() + Duration::from_secs(20)).unwrap();
    assert_eq!((lines(&later.records), later.age), (vec!["a.example 50 A 9.9.9.9".to_owned()], 20));
    assert_eq!(upstream.asked().len(), 1);
}

#[tokio::test]
async fn every_query_has_an_id_and_a_port_of_its_own() {
    for keeps in [false, true] {
        let keeper = keeps.then(Keeper::new);
        let upstream = Scripted::start(honest).await;
        let resolver = resolver(&[upstream.upstream()]);
        for i in 0..16 {
            ask(&resolver, &format!("a{i}.example"), TYPE_A).await;
        }
        let asked = upstream.asked();
        let ports: HashSet<u16> = asked.iter().map(|asked| asked.port).collect();
        let ids: HashSet<u16> = asked.iter().map(|asked| asked.message.metadata.id).collect();
        // One coincidence is likelier than it seems; that half of them coincide is not.
        assert!(ports.len() > 8 && ids.len() > 8, "{ports:?} {ids:?}");
        assert!(keeper.is_none_or(|keeper| !keeper.is_empty()), "a socket is kept for the next");
    }
}

#[tokio::test]
async fn who_asks_the_upstreams_answers_those_who_ask_the_same_meanwhile() {
    let upstream = Scripted::start(honest).await;
    let resolver = resolver(&[upstream.upstream()]);
    let permit = lookup_permit(POLICY, "a.example");
    let here = || resolver.answer_here(&permit, TYPE_A);
    let (one, two, three) = tokio::join!(here(), here(), resolver.answer(&permit, TYPE_A));
    for answer in [one, two, three] {
        assert_eq!(addresses(&answer), ["9.9.9.9"]);
        assert_eq!(answer.from, AnsweredBy::Upstream(upstream.address));
    }
    assert_eq!(upstream.asked().len(), 1);
    assert_eq!(resolver.state().in_flight, 0);
}

#[tokio::test]
async fn who_stops_asking_leaves_nobody_waiting() {
    let upstream = Scripted::start(|_| Vec::new()).await;
    let resolver = resolver(&[upstream.upstream()]);
    let permit = lookup_permit(POLICY, "a.example");
    let mut asks = Box::pin(resolver.answer_here(&permit, TYPE_A));
    assert!(waits_still(&mut asks).await);
    let mut waits = Box::pin(resolver.answer(&permit, TYPE_A));
    assert!(waits_still(&mut waits).await);
    drop(asks);
    let answer = timeout(Duration::from_secs(1), waits).await.unwrap();
    assert_eq!(answer.rcode, Rcode::ServFail);
    assert_eq!(resolver.state().in_flight, 0);
}

/// Whether a future waits when it is looked at once.
async fn waits_still<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context).is_pending())).await
}

#[tokio::test]
async fn forgeries_are_not_looked_at() {
    let upstream = Scripted::start(|asked| {
        let other = Query::query(Name::from_ascii("other.example.").unwrap(), RecordType::A);
        let lies = [
            forged(asked, |message| message.metadata.id ^= 1),
            forged(asked, |message| message.queries = vec![other.clone()]),
            forged(asked, |message| message.queries.clear()),
        ];
        lies.into_iter().chain(honest(asked)).collect()
    })
    .await;
    let resolver = resolver(&[upstream.upstream()]);
    assert_eq!(addresses(&ask(&resolver, "a.example", TYPE_A).await), ["9.9.9.9"]);
}

#[tokio::test]
async fn an_upstream_that_only_lies_is_asked_over_tcp() {
    for lie in
        [|message: &mut Message| message.metadata.id ^= 1, |message: &mut Message| message.queries.clear()]
    {
        let upstream = Scripted::start(move |asked| match asked.via {
            Via::Udp => vec![forged(asked, lie); 4],
            Via::Stream => honest(asked),
        })
        .await;
        let resolver = resolver(&[upstream.upstream()]);
        assert_eq!(addresses(&ask(&resolver, "a.example", TYPE_A).await), ["9.9.9.9"]);
    }
}

#[tokio::test]
async fn lies_over_tcp_are_no_answer_either() {
    let upstream = Scripted::start(|asked| vec![forged(asked, |message| message.metadata.id ^= 1)]).await;
    let over_tcp = Upstream { transport: Transport::Tcp, ..upstream.upstream() };
    let answer = ask(&resolver(&[over_tcp]), "a.example", TYPE_A).await;
    assert_eq!((answer.rcode, answer.from), (Rcode::ServFail, AnsweredBy::Nobody));
}

#[tokio::test]
async fn a_truncated_answer_is_asked_for_over_tcp() {
    let upstream = Scripted::start(|asked| match asked.via {
        Via::Udp => vec![forged(asked, |message| message.metadata.truncation = true)],
        Via::Stream => honest(asked),
    })
    .await;
    let resolver = resolver(&[upstream.upstream()]);
    assert_eq!(addresses(&ask(&resolver, "a.example", TYPE_A).await), ["9.9.9.9"]);
    assert_eq!(upstream.asked().iter().map(|asked| asked.via).collect::<Vec<_>>(), [Via::Udp, Via::Stream]);
}

#[tokio::test]
async fn an_upstream_that_rejects_opt_is_asked_without() {
    let upstream = Scripted::start(|asked| match asked.message.edns {
        Some(_) => code(asked, ResponseCode::FormErr),
        None => honest(asked),
    })
    .await;
    let resolver = resolver(&[upstream.upstream()]);
    assert_eq!(addresses(&ask(&resolver, "a.example", TYPE_A).await), ["9.9.9.9"]);
    assert_eq!(upstream.asked().len(), 2);
}

#[tokio::test]
async fn the_next_upstream_is_asked_where_one_gives_no_answer() {
    let lame = ["--", "example 50 NS ns.example."];
    let scripts: [(&str, Script); 5] = [
        ("SERVFAIL", Arc::new(|asked| code(asked, ResponseCode::ServFail))),
        ("REFUSED", Arc::new(|asked| code(asked, ResponseCode::Refused))),
        ("FORMERR whatever is asked", Arc::new(|asked| code(asked, ResponseCode::FormErr))),
        ("a referral", Arc::new(move |asked| vec![answer(asked, ResponseCode::NoError, &lame)])),
        ("silence", Arc::new(|_| Vec::new())),
    ];
    for (case, script) in scripts {
        let bad = Scripted::start_with(script, None).await;
        let good = Scripted::start(honest).await;
        let answer = ask(&resolver(&[bad.upstream(), good.upstream()]), "a.example", TYPE_A).await;
        assert_eq!(
            (addresses(&answer), answer.from),
            (vec!["9.9.9.9".to_owned()], AnsweredBy::Upstream(good.address)),
            "{case}"
        );
        assert!(!bad.asked().is_empty(), "{case}: asked first");
    }
}

#[tokio::test]
async fn an_upstream_that_died_is_soon_asked_last() {
    let good = Scripted::start(honest).await;
    let dead = nobody().await;
    let resolver = resolver(&[dead.clone(), good.upstream()]);
    for i in 0..4 {
        assert_eq!(addresses(&ask(&resolver, &format!("a{i}.example"), TYPE_A).await), ["9.9.9.9"]);
    }
    let mut upstreams = resolver.state().upstreams;
    upstreams.sort_by_key(|(_, up)| *up);
    assert_eq!(upstreams, [(dead, false), (good.upstream(), true)]);
}

#[tokio::test]
async fn an_upstream_that_is_down_is_no_longer_asked_first() {
    let bad = Scripted::start(|asked| vec![forged(asked, |message| message.metadata.id ^= 1)]).await;
    let good = Scripted::start(honest).await;
    let resolver = resolver(&[Upstream { transport: Transport::Tcp, ..bad.upstream() }, good.upstream()]);
    for i in 0..8 {
        assert_eq!(addresses(&ask(&resolver, &format!("a{i}.example"), TYPE_A).await), ["9.9.9.9"]);
    }
    assert_eq!(bad.asked().len(), 3);
}

#[tokio::test]
async fn why_there_is_no_address_is_told_apart() {
    let upstream = Scripted::start(|asked| match asked.message.queries[0].name().to_ascii().as_str() {
        "missing.example." => code(asked, ResponseCode::NXDomain),
        "bare.example." => code(asked, ResponseCode::NoError),
        "servfail.example." => code(asked, ResponseCode::ServFail),
        _ => Vec::new(),
    })
    .await;
    let resolver = resolver(&[upstream.upstream()]);
    for (name, error) in [
        ("missing.example", ResolveError::NotFound),
        ("bare.example", ResolveError::NoAddress),
        ("servfail.example", ResolveError::Failed),
        ("silent.example", ResolveError::Timeout),
    ] {
        let answer = timeout(SOON, resolver.resolve(&dial_permit(POLICY, name))).await.unwrap();
        assert_eq!(answer, Err(error), "{name}");
    }
}

#[tokio::test]
async fn one_family_is_enough_to_dial() {
    let upstream = Scripted::start(|asked| match u16::from(asked.message.queries[0].query_type()) {
        TYPE_A => honest(asked),
        _ => Vec::new(),
    })
    .await;
    let resolver = resolver(&[upstream.upstream()]);
    let begun = Instant::now();
    assert_eq!(resolver.resolve(&dial_permit(POLICY, "a.example")).await.unwrap().len(), 1);
    assert!(begun.elapsed() < Duration::from_secs(2), "the other family's silence is not waited for");
}

#[tokio::test]
async fn a_failure_is_not_asked_about_again_at_once() {
    let upstream = Scripted::start(|asked| code(asked, ResponseCode::ServFail)).await;
    let resolver = resolver(&[upstream.upstream()]);
    let first = ask(&resolver, "a.example", TYPE_A).await;
    let second = ask(&resolver, "a.example", TYPE_A).await;
    assert_eq!((first.rcode, first.from), (Rcode::ServFail, AnsweredBy::Nobody));
    assert_eq!((second.rcode, second.from), (Rcode::ServFail, AnsweredBy::Cache));
    assert_eq!(upstream.asked().len(), 1);
}

#[tokio::test]
async fn an_expired_answer_is_used_when_all_upstreams_fail() {
    let resolver = resolver(&[nobody().await]);
    let old = Reply { records: Arc::from([record("a.example 50 A 9.9.9.9")]), ttl: 50, ..Reply::no_data() };
    let stored = Instant::now().checked_sub(Duration::from_secs(100)).unwrap();
    resolver.shared.cache.put(&question("a.example", TYPE_A), &old, stored);
    for _ in 0..2 {
        let answer = ask(&resolver, "a.example", TYPE_A).await;
        assert_eq!(
            (lines(&answer.records), answer.from, answer.age),
            (vec!["a.example 30 A 9.9.9.9".to_owned()], AnsweredBy::Stale, 0)
        );
    }
}

#[tokio::test]
async fn an_expired_answer_is_used_when_upstreams_take_their_time() {
    let silent = Scripted::start(|_| Vec::new()).await;
    let resolver = resolver(&[silent.upstream()]);
    let old = Reply { records: Arc::from([record("a.example 50 A 9.9.9.9")]), ttl: 50, ..Reply::no_data() };
    let stored = Instant::now().checked_sub(Duration::from_secs(100)).unwrap();
    resolver.shared.cache.put(&question("a.example", TYPE_A), &old, stored);
    let begun = Instant::now();
    assert_eq!(ask(&resolver, "a.example", TYPE_A).await.from, AnsweredBy::Stale);
    assert!(begun.elapsed() < DEADLINE, "before a client gives up");
}

#[tokio::test]
async fn a_hot_name_is_asked_for_again_before_it_expires() {
    let upstream = Scripted::start(honest).await;
    let resolver = resolver(&[upstream.upstream()]);
    let old = Reply { records: Arc::from([record("a.example 60 A 9.9.9.8")]), ttl: 60, ..Reply::no_data() };
    let stored = Instant::now().checked_sub(Duration::from_secs(55)).unwrap();
    resolver.shared.cache.put(&question("a.example", TYPE_A), &old, stored);
    for _ in 0..8 {
        assert_eq!(addresses(&ask(&resolver, "a.example", TYPE_A).await), ["9.9.9.8"]);
    }
    let renewed = async {
        while addresses(&ask(&resolver, "a.example", TYPE_A).await) != ["9.9.9.9"] {
            tokio::task::yield_now().await;
        }
    };
    // Well before it expires by itself.
    timeout(Duration::from_secs(3), renewed).await.unwrap();
    assert_eq!(upstream.questions(), ["a.example. A"]);
}

#[tokio::test]
async fn many_who_ask_the_same_share_one_query() {
    // Nothing of it may be kept, so that it is not the cache which answers.
    let upstream =
        Scripted::start(|asked| vec![answer(asked, ResponseCode::NoError, &["a.example 0 A 9.9.9.9"])]).await;
    let resolver = resolver(&[upstream.upstream()]);
    let asker = || {
        let resolver = resolver.clone();
        tokio::spawn(async move { ask(&resolver, "a.example", TYPE_A).await })
    };
    // On one thread they all ask before the query that the first one starts has its turn.
    let askers: Vec<_> = (0..32).map(|_| asker()).collect();
    for asker in askers {
        assert_eq!(addresses(&timeout(SOON, asker).await.unwrap().unwrap()), ["9.9.9.9"]);
    }
    assert_eq!(upstream.asked().len(), 1);
    assert_eq!(resolver.state().in_flight, 0);
}

#[tokio::test]
async fn what_another_query_has_brought_since_the_cache_was_asked_is_not_asked_for_again() {
    let upstream = Scripted::start(honest).await;
    let resolver = resolver(&[upstream.upstream()]);
    ask(&resolver, "a.example", TYPE_A).await;
    let asked = question("a.example", TYPE_A);
    for outcome in [resolver.shared.fly(&asked).await, resolver.shared.fly_here(asked.clone()).await] {
        assert!(matches!(outcome, Outcome::Cached(_, 0)));
    }
    assert_eq!(upstream.asked().len(), 1);
    assert_eq!(resolver.state().in_flight, 0);
}

#[tokio::test]
async fn beyond_the_bound_of_queries_the_answer_is_servfail_and_nothing_is_sent() {
    let upstream = Scripted::start(honest).await;
    let resolver = resolver(&[upstream.upstream()]);
    for i in 0..MAX_IN_FLIGHT {
        let mut flights = resolver.shared.flights.lock().unwrap();
        flights.insert(question(&format!("x{i}.example"), TYPE_A), Vec::new());
    }
    assert_eq!(ask(&resolver, "a.example", TYPE_A).await.rcode, Rcode::ServFail);
    let permit = lookup_permit(POLICY, "a.example");
    assert_eq!(resolver.answer_here(&permit, TYPE_A).await.rcode, Rcode::ServFail);
    assert!(upstream.asked().is_empty());
    resolver.shared.flights.lock().unwrap().clear();
    assert_eq!(addresses(&ask(&resolver, "a.example", TYPE_A).await), ["9.9.9.9"], "it is not remembered");
}

#[tokio::test]
async fn a_private_address_is_withheld_unless_the_names_rule_says_so() {
    let upstream = Scripted::start(|asked| {
        let owner = asked.message.queries[0].name().to_ascii();
        let lines = [format!("{owner} 50 A 10.0.0.7"), format!("{owner} 50 A 169.254.169.254")];
        vec![answer(asked, ResponseCode::NoError, &lines.each_ref().map(String::as_str))]
    })
    .await;
    let resolver = resolver(&[upstream.upstream()]);
    for _ in 0..2 {
        let rebound = ask(&resolver, "a.example", TYPE_A).await;
        assert!(rebound.records.is_empty());
        let withheld: Vec<Reason> = rebound.withheld.iter().map(|(_, reason)| *reason).collect();
        assert_eq!(withheld, [Reason::AddressPrivate, Reason::AddressMetadata]);
    }
    let private = ask(&resolver, "db.corp.example", TYPE_A).await;
    assert_eq!((addresses(&private), private.withheld.len()), (vec!["10.0.0.7".to_owned()], 1));
}

#[tokio::test]
async fn what_is_fixed_is_never_asked_for() {
    let upstream = Scripted::start(honest).await;
    let hosts = vec![(name("licence.corp.example"), vec!["10.9.0.7".parse().unwrap()])];
    let resolver = Resolver::new(ResolverSettings { hosts, ..settings(&[upstream.upstream()]) }).unwrap();
    let fixed = ask(&resolver, "licence.corp.example", TYPE_A).await;
    assert_eq!((addresses(&fixed), fixed.from), (vec!["10.9.0.7".to_owned()], AnsweredBy::Fixed));
    for (asked, record_type) in
        [("licence.corp.example", TYPE_HTTPS), ("a.example", 16), ("a.example", 255), ("x.text.example", 252)]
    {
        let answer = ask(&resolver, asked, record_type).await;
        assert_eq!((answer.rcode, answer.from), (Rcode::NoError, AnsweredBy::Fixed), "{asked} {record_type}");
        assert!(answer.records.is_empty(), "{asked} {record_type}");
    }
    let internet = "isolation_mode: allow_internet_outbound\n";
    let permit = lookup_permit(internet, "use-application-dns.net");
    assert_eq!(resolver.cached(&permit, TYPE_A, Instant::now()).unwrap().rcode, Rcode::NxDomain);
    assert!(upstream.asked().is_empty());
    ask(&resolver, "x.text.example", 16).await;
    assert_eq!(upstream.questions(), ["x.text.example. TXT"], "but a type that the rule lists is");
}

#[tokio::test]
async fn a_zones_upstreams_are_asked_for_its_names_and_for_aliases_into_it() {
    let corp = Scripted::start(|asked| {
        let owner = asked.message.queries[0].name().to_ascii();
        vec![answer(asked, ResponseCode::NoError, &[&format!("{owner} 50 A 9.9.9.7")])]
    })
    .await;
    let default = Scripted::start(|asked| {
        let chain = ["a.example 50 CNAME x.inner.example.", "x.inner.example 50 A 6.6.6.6"];
        vec![answer(asked, ResponseCode::NoError, &chain)]
    })
    .await;
    let zones = vec![(name("inner.example"), vec![corp.upstream()])];
    let resolver = Resolver::new(ResolverSettings { zones, ..settings(&[default.upstream()]) }).unwrap();
    assert_eq!(addresses(&ask(&resolver, "b.inner.example", TYPE_A).await), ["9.9.9.7"]);
    assert!(default.asked().is_empty());
    assert_eq!(addresses(&ask(&resolver, "a.example", TYPE_A).await), ["x.inner.example.", "9.9.9.7"]);
    assert_eq!(corp.questions(), ["b.inner.example. A", "x.inner.example. A"]);
}

#[tokio::test]
async fn a_connection_serves_one_question_after_another() {
    let upstream = Scripted::start(honest).await;
    let over_tcp = Upstream { transport: Transport::Tcp, ..upstream.upstream() };
    let resolver = resolver(&[over_tcp]);
    for i in 0..8 {
        assert_eq!(addresses(&ask(&resolver, &format!("a{i}.example"), TYPE_A).await), ["9.9.9.9"]);
    }
    assert_eq!(*upstream.connections.lock().unwrap(), 1);
    assert!(upstream.asked().iter().all(|asked| asked.via == Via::Stream));
}

#[tokio::test]
async fn an_upstream_over_tls_must_prove_its_name() {
    let key = rcgen::generate_simple_self_signed(["dns.example".to_owned()]).unwrap();
    let chain = vec![key.cert.der().clone()];
    let secret = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.clone(), secret)
        .unwrap();
    let upstream = Scripted::start_with(Arc::new(honest), Some(Arc::new(config).into())).await;
    let authorities = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&authorities, key.cert.pem()).unwrap();

    for (claimed, rcode) in
        [("dns.example", Rcode::NoError), ("other.example", Rcode::ServFail), ("127.0.0.1", Rcode::ServFail)]
    {
        let parent: Upstream = format!("tls://{}#{claimed}", upstream.address).parse().unwrap();
        let ca = Some(authorities.path().to_owned());
        let resolver = Resolver::new(ResolverSettings { ca, ..settings(&[parent]) }).unwrap();
        assert_eq!(ask(&resolver, "a.example", TYPE_A).await.rcode, rcode, "{claimed}");
        ask(&resolver, "b.example", TYPE_A).await;
    }
    assert_eq!(upstream.questions(), ["a.example. A", "b.example. A"], "who proves nothing is asked nothing");
}

#[tokio::test]
async fn authorities_that_cannot_be_used_say_so_and_the_systems_do_not_take_their_place() {
    let parent: Upstream = "tls://127.0.0.1#dns.example".parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name)
    };
    for (ca, why) in [
        (folder.path().join("none.pem"), "No such file"),
        (file("empty.pem", ""), "there is no certificate in it"),
        (file("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n"), "cut.pem"),
    ] {
        let settings = ResolverSettings { ca: Some(ca), ..settings(std::slice::from_ref(&parent)) };
        let error = Resolver::new(settings).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test]
async fn with_a_random_letter_case_an_answer_repeats_it_and_the_client_does_not_see_it() {
    let name = "abcdefghijklmnopqrstuvwxyz.example";
    let upstream = Scripted::start(honest).await;
    let settings = ResolverSettings { case_randomization: true, ..settings(&[upstream.upstream()]) };
    let resolver = Resolver::new(settings).unwrap();
    let answer = ask(&resolver, name, TYPE_A).await;
    assert_eq!(addresses(&answer), ["9.9.9.9"]);
    assert_eq!(answer.records[0].name.to_ascii(), format!("{name}."));
    let asked = upstream.asked();
    assert_eq!((asked.len(), asked[0].via), (1, Via::Udp));
    let put = asked[0].message.queries[0].name().to_ascii();
    assert_ne!(put, format!("{name}."), "one in 2^33 is all in lower case");
    assert_eq!(put.to_lowercase(), format!("{name}."));
}

#[tokio::test]
async fn an_answer_in_another_letter_case_is_not_believed_and_the_question_goes_over_tcp() {
    let upstream = Scripted::start(|asked| {
        let mut answers = honest(asked);
        for answer in answers.iter_mut().filter(|_| asked.via == Via::Udp) {
            let query = &mut answer.queries[0];
            query.set_name(query.name().to_lowercase());
            answer.answers = vec![record("abcdefghijklmnopqrstuvwxyz.example 60 A 6.6.6.6")];
        }
        answers
    })
    .await;
    let settings = ResolverSettings { case_randomization: true, ..settings(&[upstream.upstream()]) };
    let resolver = Resolver::new(settings).unwrap();
    let answer = ask(&resolver, "abcdefghijklmnopqrstuvwxyz.example", TYPE_A).await;
    assert_eq!(addresses(&answer), ["9.9.9.9"]);
    assert_eq!(upstream.asked().iter().map(|asked| asked.via).collect::<Vec<_>>(), [Via::Udp, Via::Stream]);
}

#[tokio::test]
async fn a_negative_answer_without_an_soa_is_not_asked_for_by_every_question() {
    let upstream = Scripted::start(|asked| code(asked, ResponseCode::NXDomain)).await;
    let resolver = Resolver::new(settings(&[upstream.upstream()])).unwrap();
    for _ in 0..3 {
        let answer = ask(&resolver, "gone.example", TYPE_A).await;
        assert_eq!((answer.rcode, answer.soa), (Rcode::NxDomain, None));
    }
    assert_eq!(upstream.asked().len(), 1);
}

#[tokio::test]
async fn addresses_that_a_rule_gives_are_asked_of_nobody_and_go_before_hosts() {
    const PINNED: &str = "outbound_rules:
  - name: vault
    type: private_endpoint
    destination:
      service_resource_id: /subscriptions/s/resourceGroups/g/providers/Microsoft.KeyVault/vaults/mlvault
      addresses: [10.1.5.4, 10.1.5.5, 'fd00:1::4']
";
    let asked = "mlvault.vault.azure.net";
    let hosts = vec![(name(asked), vec!["10.9.9.9".parse().unwrap()])];
    let upstream = Scripted::start(honest).await;
    let resolver = Resolver::new(ResolverSettings { hosts, ..settings(&[upstream.upstream()]) }).unwrap();
    let permit = lookup_permit(PINNED, asked);
    for (record_type, told) in
        [(TYPE_A, &["10.1.5.4", "10.1.5.5"][..]), (TYPE_AAAA, &["fd00:1::4"]), (TYPE_HTTPS, &[])]
    {
        let answer = resolver.cached(&permit, record_type, Instant::now()).unwrap();
        assert_eq!(
            (addresses(&answer), answer.from),
            (told.iter().map(|&it| it.to_owned()).collect(), AnsweredBy::Fixed)
        );
        assert_eq!(resolver.answer(&permit, record_type).await.records, answer.records);
    }
    let dialled = resolver.resolve(&dial_permit(PINNED, asked)).await.unwrap();
    assert_eq!(
        dialled.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.1.5.4", "10.1.5.5", "fd00:1::4"]
    );
    assert!(upstream.asked().is_empty());
}

#[tokio::test]
async fn a_gate_does_not_ask_itself_or_nobody() {
    let own = OwnAddresses {
        listeners: vec!["10.0.0.4:53".parse().unwrap(), "0.0.0.0:1053".parse().unwrap()],
        interfaces: vec!["10.0.0.4".parse().unwrap(), "10.1.0.4".parse().unwrap()],
    };
    let set_up = |text: &str| {
        let upstream: Upstream = text.parse().unwrap();
        Resolver::new(ResolverSettings { own: own.clone(), ..settings(&[upstream]) }).is_ok()
    };
    for own in [
        "10.0.0.4",
        "10.0.0.4:1053",
        "127.0.0.1:1053",
        "10.1.0.4:1053",
        "tcp://10.0.0.4",
        "[::ffff:10.0.0.4]:53",
    ] {
        assert!(!set_up(own), "{own}");
    }
    for other in ["10.0.0.5", "10.0.0.4:5353", "127.0.0.1:53", "10.1.0.4:53"] {
        assert!(set_up(other), "{other}");
    }
    assert!(Resolver::new(settings(&[])).is_err());
    let zones = vec![(name("corp.example"), Vec::new())];
    assert!(Resolver::new(ResolverSettings { zones, ..settings(&[nobody().await]) }).is_err());
}

#[test]
fn private_link_zones_are_forwarded_to_azure_unless_they_are_listed_themselves() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let zones = vec![(name("vault.azure.net"), vec!["10.0.0.9".parse().unwrap()])];
    let private_link = Some(PrivateLink { region: Some("westeurope".to_owned()) });
    let default: Upstream = "10.0.0.5".parse().unwrap();
    let resolver = Resolver::new(ResolverSettings { zones, private_link, ..settings(&[default]) }).unwrap();
    for (asked, upstream) in [
        ("mlstore.blob.core.windows.net", "168.63.129.16:53"),
        ("x.privatelink.blob.core.windows.net", "168.63.129.16:53"),
        ("x.westeurope.azmk8s.io", "168.63.129.16:53"),
        ("x.northeurope.azmk8s.io", "10.0.0.5:53"),
        ("x.vault.azure.net", "10.0.0.9:53"),
        ("core.windows.net", "10.0.0.5:53"),
    ] {
        let group = resolver.shared.zones.upstreams_for(&name(asked));
        assert_eq!(group.parents[0].upstream.to_string(), upstream, "{asked}");
    }
}
