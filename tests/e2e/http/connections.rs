//! What becomes of the two connections behind a request: which are kept, which are closed, and how.

use std::io::{BufReader, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use outgate_tests::origin::{Reply, Wire, http, page, read_request, script};
use outgate_tests::policy::{NOTHING, allow_one, allow_with};
use outgate_tests::{Client, Gate, World, wait_until};
use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::NAME;

const GET: &str = "GET http://files.example/ HTTP/1.1\r\nHost: files.example\r\n\r\n";
const POST: &str =
    "POST http://files.example/ HTTP/1.1\r\nHost: files.example\r\nContent-Length: 3\r\n\r\nabc";

/// An origin that answers once on each connection, and then closes it as soon as it has heard another request.
fn once(wire: &mut dyn Wire) {
    let mut reader = BufReader::new(wire);
    if read_request(&mut reader).is_some() {
        drop(reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
        read_request(&mut reader);
    }
}

#[test]
fn a_connection_that_the_origin_has_closed_meanwhile_is_replaced_by_a_new_one() {
    for request in [GET, POST] {
        let world = World::new();
        let origin = world.http(NAME, script("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
        let gate = world.gate(allow_one(NAME, &[80])).start();
        let mut client = gate.client();
        for connections in 1..=5 {
            assert_eq!(client.send(request).response().text(), "ok");
            wait_until("the origin's end", || origin.ended() == connections);
        }
        assert_eq!(origin.connections(), 5);
    }
}

#[test]
fn a_request_that_met_the_origins_close_is_repeated_if_that_is_safe() {
    let world = World::new();
    let origin = world.http(NAME, once);
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();

    for _ in 0..3 {
        assert_eq!(client.send(GET).response().text(), "ok");
    }

    assert_eq!((origin.connections(), origin.heard().matches("GET / ").count()), (3, 5));
}

#[test]
fn a_request_that_may_have_changed_something_is_not_repeated() {
    let empty = "POST http://files.example/ HTTP/1.1\r\nHost: files.example\r\nContent-Length: 0\r\n\r\n";
    for (request, stays_open) in [(POST, false), (empty, true)] {
        let world = World::new();
        let origin = world.http(NAME, once);
        let gate = world.gate(allow_one(NAME, &[80])).start();
        let mut client = gate.client();

        assert_eq!(client.send(request).response().text(), "ok");
        let response = client.send(request).response();
        assert_eq!((response.status, response.field("connection").is_none()), (502, stays_open));

        assert_eq!(origin.heard().matches("POST / ").count(), 2);
        assert_eq!(gate.reason("origin-closed")["method"], "POST");
    }
}

#[test]
fn a_response_that_ends_with_its_connection_leaves_the_clients_open() {
    let world = World::new();
    let _origin = world.http(NAME, script("HTTP/1.1 200 OK\r\n\r\nall of it"));
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();

    for _ in 0..2 {
        let response = client.send(GET).response();
        assert_eq!(
            (response.text().as_str(), response.field("transfer-encoding")),
            ("all of it", Some("chunked"))
        );
    }
}

#[test]
fn a_client_of_http_1_0_sees_no_chunks_and_a_broken_response_as_a_reset() {
    let old = "GET http://files.example/ HTTP/1.0\r\nHost: files.example\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    for (end, reset) in [("0\r\n\r\n", false), ("zz\r\n", true), ("", true)] {
        let world = World::new();
        let _origin = world.http(NAME, script(format!("{chunked}{end}")));
        let gate = world.gate(allow_one(NAME, &[80])).start();
        let mut client = gate.client();
        client.send(old);
        assert_eq!(client.ends_with_reset(), reset, "{end:?}");
        if !reset {
            let all = String::from_utf8(client.rest()).unwrap();
            assert!(all.ends_with("\r\n\r\nhello") && all.contains("connection: close"), "{all}");
        }
    }
}

#[test]
fn a_client_of_http_1_0_keeps_its_connection_if_it_asks_for_that() {
    let world = World::new();
    let _origin = world.http(NAME, page("welcome"));
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();

    for _ in 0..3 {
        client.send(
            "GET http://files.example/ HTTP/1.0\r\nHost: files.example\r\nConnection: keep-alive\r\n\r\n",
        );
        let response = client.response();
        assert_eq!((response.text().as_str(), response.field("connection")), ("welcome", Some("keep-alive")));
    }
}

#[test]
fn a_denial_leaves_the_connection_open_where_no_more_of_the_request_is_to_come() {
    let world = World::new();
    let gate = world.gate(NOTHING).start();
    let mut client = gate.client();

    assert_eq!(client.send(POST).response().status, 403);
    client.send("HEAD http://files.example/ HTTP/1.1\r\nHost: files.example\r\n\r\n");
    let head = client.head();
    assert_eq!((head.status, head.field("connection")), (403, None));
    assert_ne!(head.field("content-length"), None);
    assert_eq!(client.send(GET).response().status, 403, "and no body came behind the answer to HEAD");

    client.send(POST.strip_suffix('c').unwrap());
    let response = client.response();
    assert_eq!((response.status, response.field("connection")), (403, Some("close")));
    assert!(client.is_closed());
    assert_eq!(gate.records_until(4, |record| record["event"] == "decision").len(), 4);
}

/// An origin that answers before it has the request, and reads the rest of it.
fn too_much(wire: &mut dyn Wire) {
    drop(wire.read(&mut [0; 4096]));
    drop(wire.write_all(b"HTTP/1.1 413 Too Much\r\nContent-Length: 2\r\n\r\nno"));
    drop(std::io::copy(wire, &mut std::io::sink()));
}

#[test]
fn an_answer_that_comes_before_the_request_is_whole_arrives_and_the_rest_still_goes_up() {
    let world = World::new();
    let origin = world.http(NAME, too_much);
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();

    client.send("POST http://files.example/ HTTP/1.1\r\nHost: files.example\r\nContent-Length: 9\r\n\r\n");
    assert_eq!(client.response().status, 413);
    client.send("the rest.");

    wait_until("the rest at the origin", || origin.heard().ends_with("the rest."));
    assert_eq!(gate.close(NAME)["status"], 413);
}

#[test]
fn a_client_that_keeps_the_rest_of_its_request_once_it_has_the_answer_was_not_denied() {
    let world = World::new();
    let _origin = world.http(NAME, too_much);
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();

    client.send("POST http://files.example/ HTTP/1.1\r\nHost: files.example\r\nContent-Length: 9\r\n\r\n");
    assert_eq!(client.response().status, 413);
    drop(client);

    let close = gate.close(NAME);
    assert_eq!((&close["verdict"], &close["ended_by"]), (&"allow".into(), &"client".into()), "{close}");
}

#[test]
fn a_request_that_is_sent_again_counts_again() {
    let world = World::new();
    let origin = world.http(NAME, once);
    let limit = format!("max_upload: {}", 3 * GET.len() - 1);
    let gate = world.gate(allow_with(NAME, &[80], &limit)).start();
    let mut client = gate.client();

    assert_eq!(client.send(GET).response().text(), "ok");
    assert_eq!(client.send(GET).response().status, 403);

    assert_eq!(origin.heard().matches("GET / ").count(), 2);
    assert_eq!(gate.reason("upload-limit")["bytes_up"], 2 * GET.len() - 1);
}

/// Starts a gate whose sessions are all one core's.
fn on_one_core(start: impl FnOnce() -> Gate) -> Gate {
    let all = sched_getaffinity(None).unwrap();
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).find(|core| all.is_set(*core)).unwrap());
    sched_setaffinity(None, &one).unwrap();
    let gate = start();
    sched_setaffinity(None, &all).unwrap();
    gate
}

#[test]
fn requests_that_come_together_leave_others_their_turn() {
    let world = World::new();
    let gate = on_one_core(|| world.gate(NOTHING).start());
    let mut flood = gate.client();
    let (proxy, going) = (gate.proxy(), AtomicBool::new(true));
    let many = "GET http://flood.example/ HTTP/1.1\r\nHost: flood.example\r\n\r\n".repeat(2000);
    std::thread::scope(|scope| {
        let mut answers = flood.twin();
        scope.spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
        scope.spawn(|| {
            while going.load(Ordering::SeqCst) {
                flood.send_to_whom_it_may_concern(&many);
            }
        });
        wait_until("the flood", || gate.audit_text().lines().count() > 2000);
        for _ in 0..10 {
            assert_eq!(Client::to(proxy).send(GET).response().status, 403);
        }
        going.store(false, Ordering::SeqCst);
        gate.signal(Signal::KILL);
    });
    let text = gate.audit_text();
    let lines: Vec<&str> = text.lines().collect();
    let is_other = |line: &&str| line.contains("files.example");
    let first = lines.iter().position(is_other).unwrap();
    let last = lines.iter().rposition(is_other).unwrap();
    assert!(last - first < 5000, "{} requests of the flood meanwhile", last - first);
}

#[test]
fn a_large_response_reaches_a_client_that_takes_its_time_and_others_do_not_wait() {
    let world = World::new();
    let large = "x".repeat(20_000_000);
    let _origin = world.http(NAME, {
        let large = large.clone();
        http(move |request| Reply::text(if request.target == "/large" { large.clone() } else { "ok".into() }))
    });
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut slow = gate.client();
    slow.send("GET http://files.example/large HTTP/1.1\r\nHost: files.example\r\n\r\n");
    assert_eq!(slow.head().status, 200);

    for _ in 0..20 {
        assert_eq!(gate.client().send(GET).response().text(), "ok");
    }
    assert!(gate.memory() < 100 << 20, "{}", gate.memory());

    assert!(slow.exactly(large.len()) == large.as_bytes());
    assert_eq!(slow.send(GET).response().text(), "ok");
}
