//! Over TCP and TLS: framing, deadlines, and the end.

use super::*;
use crate::server::streams;

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
