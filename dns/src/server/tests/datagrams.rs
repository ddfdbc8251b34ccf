//! Bad packets, bounds, and the order of reply and event.

use super::*;

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
async fn what_came_with_anothers_is_counted_as_ones_own() {
    let world = World::new(|settings| settings.queries_per_second = NonZeroU32::new(5).unwrap()).await;
    let mut clients = Vec::new();
    for address in ["127.0.0.1:0", "127.0.0.2:0"] {
        clients.push(Client(UdpSocket::bind(address).await.unwrap()));
    }
    for id in 0..24 {
        // By turns, six and six: with more than both may ask.
        let client = &clients[usize::from(id) / 6 % 2];
        client.send(&with_id(plain_query("evil.example", 1), id), world.address).await;
    }
    for client in &clients {
        let mut whole = 0;
        while whole < 5 {
            whole += usize::from(!client.message().await.metadata.truncation);
        }
    }
    let told = world.told.answered.lock().unwrap().clone();
    assert_eq!(told.iter().filter(|event| event.reason == Reason::NoRule).count(), 10);
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
