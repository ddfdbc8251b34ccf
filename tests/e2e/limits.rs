//! Limits: what a hostile or unlucky client can use up, and that the gate goes on.

use std::time::{Duration, Instant};

use outgate_tests::origin::{Reply, echo, http, listen_only, page};
use outgate_tests::policy::{NOTHING, allow, allow_one, allow_with};
use outgate_tests::{Client, World, wait_until};

use crate::assert_denied;

const NAME: &str = "echo.example";

#[test]
fn a_byte_a_second_does_not_hold_a_connection_beyond_the_deadline() {
    let world = World::new();
    let gate = world.gate(NOTHING).set("limits.head", "1s").start();
    let mut slow = gate.client();
    let begun = Instant::now();

    let mut dripping = slow.twin();
    let dripper = std::thread::spawn(move || {
        for _ in 0..200 {
            dripping.send_to_whom_it_may_concern("G");
            std::thread::park_timeout(Duration::from_millis(50));
        }
    });
    let answer = String::from_utf8_lossy(&slow.rest()).into_owned();

    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(gate.denial(&slow)["reason"], "head-timeout");
    dripper.join().unwrap();
}

#[test]
fn a_connection_that_says_nothing_is_closed_at_the_deadline() {
    let world = World::new();
    let gate = world.gate(NOTHING).set("limits.head", "1s").start();

    gate.client().rest();
}

#[test]
fn a_thousand_idle_connections_do_not_keep_others_out() {
    let world = World::new();
    let _origin = world.http("page.example", page("welcome"));
    let gate = world.gate(allow_one("page.example", &[80])).set("limits.head", "1m").start();

    let before = gate.open_files();
    let idle: Vec<Client> = (0..1000).map(|_| gate.client()).collect();
    assert_eq!(gate.client().get("http://page.example/").text(), "welcome");

    assert!(gate.memory() < 200 << 20, "{} bytes", gate.memory());
    drop(idle);
    wait_until("the descriptors to come back", || gate.open_files() < before + 50);
}

#[test]
fn one_client_cannot_take_more_than_its_share() {
    let world = World::new();
    let _origin = world.origin(NAME, 7000, echo());
    let gate = world.gate(allow_one(NAME, &[7000])).set("limits.per_client", 3).start();
    let held: Vec<Client> = (0..3).map(|_| gate.tunnel("echo.example:7000")).collect();

    let response = gate.client().connect_or_read("echo.example:7000");

    assert_denied(&response, 503, "connection_limit_reached", "the client's connection limit");
    assert_eq!(gate.client_at("127.0.0.2").connect("echo.example:7000").status, 200);
    assert_eq!(gate.reason("client-connection-limit")["client"], "127.0.0.1");
    drop(held);
    wait_until("room again", || gate.client().connect_or_read("echo.example:7000").status == 200);
}

#[test]
fn beyond_the_gates_own_limit_clients_are_told_so() {
    let world = World::new();
    let _origin = world.origin(NAME, 7000, echo());
    let gate = world.gate(allow_one(NAME, &[7000])).set("limits.connections", 3).start();
    let held: Vec<Client> = (0..3).map(|_| gate.tunnel("echo.example:7000")).collect();

    let response = gate.client().connect_or_read("echo.example:7000");

    assert_denied(&response, 503, "connection_limit_reached", "the gate's connection limit");
    drop(held);
    wait_until("room again", || gate.client().connect_or_read("echo.example:7000").status == 200);
}

#[test]
fn a_client_that_the_listener_does_not_serve_gets_nothing() {
    let world = World::new();
    let gate = world.gate(allow_one(NAME, &[7000])).set("listen.proxy.clients", vec!["127.0.0.2/32"]).start();

    let response = gate.client().connect_or_read("echo.example:7000");

    assert_denied(&response, 403, "http_request_denied", "does not serve the client's address");
    assert_eq!(gate.reason("client-not-served")["client"], "127.0.0.1");
    assert_eq!(gate.client_at("127.0.0.2").connect("echo.example:7000").status, 502);
}

#[test]
fn out_of_descriptors_the_gate_waits_says_so_and_recovers() {
    let world = World::new();
    let _origin = world.http("page.example", page("welcome"));
    // A thread that serves has some of its own.
    let cores = std::thread::available_parallelism().unwrap().get();
    let limit = u32::try_from(64 + 8 * cores).unwrap();
    let gate = world.gate(allow_one("page.example", &[80])).set("limits.head", "1m").open_files(limit);
    let mut gate = gate.start();

    let held: Vec<Client> = (0..limit + 36).map(|_| gate.client()).collect();
    gate.wait_for_talk("Too many open files");
    drop(held);

    wait_until("the gate to serve again", || gate.client().get("http://page.example/").status == 200);
    assert!(gate.is_alive());
}

#[test]
fn a_tunnels_upload_limit_is_exact() {
    let world = World::new();
    let origin = world.origin(NAME, 7000, listen_only());
    let gate = world.gate(allow_with(NAME, &[7000], "max_upload: 1000")).start();

    let mut client = gate.tunnel("echo.example:7000");
    client.send([b'x'; 1000]);
    wait_until("the thousand bytes", || origin.received().len() == 1000);
    assert!(client.is_open());
    client.send_to_whom_it_may_concern("y");

    client.rest();
    let close = gate.close(NAME);
    assert_eq!((&close["reason"], &close["verdict"]), (&"upload-limit".into(), &"deny".into()));
    assert_eq!(close["bytes_up"], 1000);
    assert_eq!(origin.received(), [b'x'; 1000]);
}

#[test]
fn a_flood_beyond_the_upload_limit_stops_at_it() {
    let world = World::new();
    let origin = world.origin(NAME, 7000, listen_only());
    let gate = world.gate(allow_with(NAME, &[7000], "max_upload: 100KB")).start();

    let mut client = gate.tunnel("echo.example:7000");
    client.send_to_whom_it_may_concern(vec![b'x'; 1_000_000]);

    client.rest();
    let sent = gate.close(NAME)["bytes_up"].as_u64().unwrap();
    assert!(sent <= 102_400, "{sent}");
    assert!(origin.received().len() as u64 <= sent);
}

#[test]
fn a_request_body_meets_the_upload_limit_too() {
    let world = World::new();
    let origin = world.http("page.example", http(|request| Reply::text(format!("{}", request.body.len()))));
    let gate = world.gate(allow_with("page.example", &[80], "max_upload: 1000")).start();
    let mut client = gate.client();

    client.send("POST http://page.example/ HTTP/1.1\r\nHost: page.example\r\nContent-Length: 5000\r\n\r\n");
    client.send_to_whom_it_may_concern([b'x'; 5000]);

    let answer = String::from_utf8_lossy(&client.until_end_or(b"\r\n\r\n")).into_owned();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert_eq!(gate.reason("upload-limit")["host"], "page.example");
    assert!(origin.received().len() <= 1000, "{}", origin.received().len());
}

#[test]
fn the_requests_of_one_connection_have_one_upload_limit() {
    let world = World::new();
    let origin = world.http("page.example", http(|request| Reply::text(format!("{}", request.body.len()))));
    let gate = world.gate(allow_with("page.example", &[80], "max_upload: 1000")).start();
    let (mut client, mut other) = (gate.client(), gate.client());
    let request = format!(
        "POST http://page.example/ HTTP/1.1\r\nHost: page.example\r\nContent-Length: 700\r\n\r\n{}",
        "x".repeat(700)
    );

    assert_eq!(client.send(&request).response().text(), "700");
    assert_eq!(client.send(&request).response().status, 403);

    assert_eq!(gate.reason("upload-limit")["host"], "page.example");
    assert_eq!(other.send(&request).response().text(), "700", "another connection has its own");
    assert!(origin.received().iter().filter(|byte| **byte == b'x').count() < 2000);
}

#[test]
fn a_requests_head_meets_the_upload_limit_too() {
    let world = World::new();
    let origin = world.http("page.example", page("welcome"));
    let gate = world.gate(allow_with("page.example", &[80], "max_upload: 1000")).start();
    let mut client = gate.client();

    let response = client.get(&format!("http://page.example/{}", "a".repeat(2000)));

    assert_eq!((response.status, gate.close("page.example")["reason"].as_str()), (403, Some("upload-limit")));
    assert!(!origin.heard().contains("aaa"), "{}", origin.heard());
}

#[test]
fn a_chunked_body_that_a_limit_cuts_off_does_not_look_whole_to_the_origin() {
    let world = World::new();
    let origin = world.http("page.example", http(|request| Reply::text(format!("{}", request.body.len()))));
    let gate = world.gate(allow_with("page.example", &[80], "max_upload: 1000")).start();
    let mut client = gate.client();

    client.send(
        "POST http://page.example/ HTTP/1.1\r\nHost: page.example\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    client.send_to_whom_it_may_concern(format!("7d0\r\n{}\r\n0\r\n\r\n", "x".repeat(2000)));

    let answer = String::from_utf8_lossy(&client.until_end_or(b"\r\n\r\n")).into_owned();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    wait_until("the origin to be cut off", || origin.ended() == 1);
    assert!(!origin.heard().ends_with("0\r\n\r\n"), "{}", origin.heard());
}

#[test]
fn the_hourly_upload_limit_counts_a_clients_connections_together() {
    let world = World::new();
    let origin = world.origin(NAME, 7000, listen_only());
    let gate = world.gate(allow_with(NAME, &[7000], "max_upload_per_hour: 1000")).start();

    gate.tunnel("echo.example:7000").send([b'a'; 600]);
    wait_until("the first 600", || origin.received().len() == 600);
    let mut second = gate.tunnel("echo.example:7000");
    second.send_to_whom_it_may_concern([b'b'; 600]);
    second.rest();

    assert_eq!(gate.reason("upload-limit-hourly")["client"], "127.0.0.1");
    assert!(origin.received().len() <= 1000);
    let mut other = gate.client_at("127.0.0.2");
    assert_eq!(other.connect("echo.example:7000").status, 200);
    other.send([b'c'; 600]);
    wait_until("another client's 600", || origin.heard().matches('c').count() == 600);
}

#[test]
fn a_lowered_upload_limit_holds_for_open_tunnels() {
    let world = World::new();
    let origin = world.origin(NAME, 7000, listen_only());
    let gate = world.gate(allow_with(NAME, &[7000], "max_upload: 1MB")).start();
    let mut client = gate.tunnel("echo.example:7000");
    client.send([b'x'; 500]);
    wait_until("the first bytes", || origin.received().len() == 500);

    gate.reload_with(&allow_with(NAME, &[7000], "max_upload: 1000"));
    client.send_to_whom_it_may_concern([b'y'; 1000]);

    client.rest();
    assert_eq!(gate.close(NAME)["reason"], "upload-limit");
    assert!(origin.received().len() <= 1000);
}

#[test]
fn a_client_that_does_not_read_makes_the_origin_wait() {
    let world = World::new();
    let _origin = world.origin("flood.example", 7000, |wire: &mut dyn outgate_tests::origin::Wire| {
        let block = [b'x'; 65_536];
        while wire.write_all(&block).is_ok() {}
    });
    let _page = world.http("page.example", page("welcome"));
    let gate = world.gate(allow(&[("flood.example", &[7000]), ("page.example", &[80])])).start();
    let before = gate.memory();

    let stuck: Vec<Client> = (0..20).map(|_| gate.tunnel("flood.example:7000")).collect();
    for _ in 0..20 {
        assert_eq!(gate.client().get("http://page.example/").text(), "welcome");
    }

    assert!(gate.memory() < before + (64 << 20), "{before} then {}", gate.memory());
    drop(stuck);
    let _ = gate.records_until(20, |r| r["event"] == "close" && r["host"] == "flood.example");
}

#[test]
fn descriptors_do_not_leak() {
    let world = World::new();
    let _origins = (world.http("page.example", page("welcome")), world.origin(NAME, 7000, echo()));
    let gate = world.gate(allow(&[("page.example", &[80]), (NAME, &[7000])])).start();
    let round = || {
        gate.client().get("http://page.example/");
        drop(gate.tunnel("echo.example:7000"));
        gate.client().connect("evil.example:443");
        gate.client().connect("missing.page.example:80");
        gate.ask("nonsense\r\n\r\n");
    };

    let before = gate.open_files();
    (0..60).for_each(|_| round());

    wait_until("the descriptors to come back", || gate.open_files() < before + 20);
}

/// One for each core, among which the kernel deals connections out.
#[test]
fn a_gate_listens_with_as_many_sockets_as_it_may_use_cores() {
    let gate = World::new().gate(NOTHING).start();
    let at = format!(" 0100007F:{:04X} 00000000:0000 0A ", gate.proxy().port());

    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();

    let count = sockets.lines().filter(|line| line.contains(&at)).count();
    assert_eq!(count, std::thread::available_parallelism().unwrap().get().min(64), "{sockets}");
}

#[test]
fn sigterm_drains_and_then_closes_with_records() {
    let world = World::new();
    let _origin = world.origin(NAME, 7000, echo());
    let mut gate = world.gate(allow_one(NAME, &[7000])).set("limits.drain", "1s").start();
    let mut client = gate.tunnel("echo.example:7000");
    client.send("ping");
    client.exactly(4);

    gate.terminate();

    client.send("still");
    assert_eq!(client.exactly(5), b"still");
    wait_until("no new connections", || std::net::TcpStream::connect(gate.proxy()).is_err());
    assert!(client.is_closed());
    assert!(gate.ended().success());
    let close = gate.close(NAME);
    assert_eq!((&close["reason"], &close["ended_by"]), (&"draining".into(), &"gate".into()));
}

#[test]
fn a_gate_without_tunnels_ends_at_once_on_sigterm() {
    let world = World::new();
    let mut gate = world.gate(NOTHING).set("limits.drain", "1h").start();

    gate.terminate();

    assert!(gate.ended().success());
}

#[test]
fn a_second_sigterm_ends_it_at_once() {
    let world = World::new();
    let _origin = world.origin(NAME, 7000, echo());
    let mut gate = world.gate(allow_one(NAME, &[7000])).set("limits.drain", "1h").start();
    let mut client = gate.tunnel("echo.example:7000");

    gate.terminate();
    wait_until("no new connections", || std::net::TcpStream::connect(gate.proxy()).is_err());
    gate.terminate();

    gate.ended();
    assert!(client.is_closed());
}

#[test]
fn while_draining_the_gate_is_healthy_and_not_ready() {
    let world = World::new();
    let _origin = world.origin(NAME, 7000, echo());
    let gate = world.gate(allow_one(NAME, &[7000])).set("limits.drain", "1h").start();
    let _open = gate.tunnel("echo.example:7000");

    gate.terminate();

    wait_until("not ready", || gate.admin_get("/readyz").status == 503);
    assert_eq!(gate.admin_get("/healthz").status, 200);
}
