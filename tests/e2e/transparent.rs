//! The transparent listeners, for clients that were sent there by DNS: what names a flow is what they send first.

use std::io::{Read, Write};
use std::net::SocketAddr;

use outgate_tests::hello::{Bent, in_records};
use outgate_tests::origin::{Reply, echo, http, page};
use outgate_tests::policy::{NOTHING, allow, allow_one};
use outgate_tests::{Client, Gate, World};

/// The fatal TLS alert `access_denied`.
const ACCESS_DENIED: &[u8] = &[21, 3, 3, 0, 2, 2, 49];
const NAME: &str = "pypi.example";

fn start(world: &World, policy: impl AsRef<str>) -> Gate {
    let gate = world.gate(policy);
    gate.set("listen.tls", "127.0.0.1:0")
        .set("listen.http", "127.0.0.1:0")
        .set("listen.tcp", "127.0.0.1:0")
        .start()
}

fn to(gate: &Gate, listener: &str) -> Client {
    let address: SocketAddr = gate.listener(listener);
    Client::to(address)
}

#[test]
fn an_allowed_server_name_is_reached_and_both_records_say_how() {
    let world = World::new();
    let _origin = world.https(NAME, page("welcome"));
    let gate = start(&world, allow_one(NAME, &[443]));

    let mut inside = world.authority.client(NAME, to(&gate, "tls"));
    inside.write_all(b"GET / HTTP/1.1\r\nHost: pypi.example\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    inside.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    drop(inside);

    let (decision, close) = (gate.decision(NAME), gate.close(NAME));
    assert_eq!((&decision["kind"], &decision["listener"]), (&"tls".into(), &"tls".into()));
    assert_eq!((&decision["verdict"], &decision["sni"]), (&"allow".into(), &NAME.into()));
    assert_eq!(decision["port"], 443);
    assert_eq!(close["session"], decision["session"]);
    assert_eq!(close["address"], world.address_of(NAME).to_string());
    assert!(close["bytes_up"].as_u64() > Some(300) && close["bytes_down"].as_u64() > Some(300), "{close}");
}

#[test]
fn what_is_passed_on_is_every_byte_that_came_however_it_was_cut() {
    let world = World::new();
    let hello = in_records(&world.authority.hello(NAME), 7);
    let origin = world.origin(NAME, 443, echo());
    let gate = start(&world, allow_one(NAME, &[443]));

    let mut client = to(&gate, "tls");
    client.send_byte_by_byte(&hello);

    assert_eq!(client.exactly(hello.len()), hello);
    assert_eq!(origin.received(), hello);
}

#[test]
fn a_denied_server_name_gets_an_alert_and_causes_no_packet() {
    let world = World::new();
    let gate = start(&world, NOTHING);
    let mut client = to(&gate, "tls");

    client.send(world.authority.hello("evil.example"));

    assert_eq!(client.rest(), ACCESS_DENIED);
    let decision = gate.decision("evil.example");
    assert_eq!((&decision["reason"], &decision["sni"]), (&"no-rule".into(), &"evil.example".into()));
    assert_eq!(world.dns.packets(), 0);
}

/// A client whose connection and whose first bytes are there before the gate looks.
fn with_first_bytes(gate: &Gate, bytes: &[u8]) -> Client {
    gate.behind_its_back(|| {
        let mut client = to(gate, "tls");
        client.send(bytes);
        client
    })
}

#[test]
fn a_denied_hello_that_came_with_its_connection_gets_an_alert_and_a_record() {
    let world = World::new();
    let gate = start(&world, NOTHING);

    let mut client = with_first_bytes(&gate, &world.authority.hello("evil.example"));

    assert_eq!(client.rest(), ACCESS_DENIED);
    let denial = gate.denial(&client);
    assert_eq!((&denial["reason"], &denial["sni"]), (&"no-rule".into(), &"evil.example".into()));
    assert_eq!(world.dns.packets(), 0);
}

#[test]
fn of_an_allowed_hello_that_came_with_its_connection_every_byte_is_passed_on() {
    let world = World::new();
    let origin = world.origin(NAME, 443, echo());
    let gate = start(&world, allow_one(NAME, &[443]));
    let bytes = [&world.authority.hello(NAME)[..], b"and more"].concat();

    let mut client = with_first_bytes(&gate, &bytes);

    assert_eq!(client.exactly(bytes.len()), bytes);
    assert_eq!(origin.received(), bytes);
    assert_eq!(gate.decision(NAME)["verdict"], "allow");
}

#[test]
fn an_allowed_hello_from_a_client_that_the_listener_does_not_serve_goes_nowhere() {
    let world = World::new();
    let origin = world.origin(NAME, 443, echo());
    let listener = serde_json::json!({"address": "127.0.0.1:0", "clients": ["127.0.0.2/32"]});
    let gate = world.gate(allow_one(NAME, &[443])).set("listen.tls", listener).start();

    let mut client = with_first_bytes(&gate, &world.authority.hello(NAME));

    let denial = gate.denial(&client);
    assert_eq!((&denial["reason"], &denial["kind"]), (&"client-not-served".into(), &"tls".into()));
    assert_eq!(client.rest(), ACCESS_DENIED);
    assert!(origin.received().is_empty());
    assert_eq!(world.dns.packets(), 0);
}

#[test]
fn what_shows_no_name_goes_nowhere_each_for_its_reason() {
    let world = World::new();
    let gate = start(&world, allow_one(NAME, &[443]));
    let many = Bent::naming(&[NAME.as_bytes(), b"evil.example"]);
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("sni-missing", Bent::default().bytes()),
        ("sni-invalid", many.bytes()),
        ("not-tls", b"GET / HTTP/1.1\r\nHost: pypi.example\r\n\r\n".to_vec()),
        ("not-tls", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
    ];
    for (reason, bytes) in table {
        let mut client = to(&gate, "tls");
        client.send_to_whom_it_may_concern(&bytes).finish_sending();
        let alert: &[u8] = if bytes[0] == 22 { ACCESS_DENIED } else { &[] };
        assert_eq!(client.rest(), alert, "{reason}");
        assert_eq!(gate.denial(&client)["reason"], reason);
    }
    assert_eq!(world.dns.packets(), 0);
}

#[test]
fn a_hello_that_does_not_end_in_time_is_denied_from_the_accept_on() {
    let world = World::new();
    let gate = world.gate(allow_one(NAME, &[443])).set("listen.tls", "127.0.0.1:0").set("limits.head", "1s");
    let gate = gate.start();
    let mut client = to(&gate, "tls");
    let hello = world.authority.hello(NAME);

    client.send(&hello[..hello.len() - 1]);

    assert_eq!(client.rest(), ACCESS_DENIED);
    assert_eq!(gate.denial(&client)["reason"], "hello-timeout");
}

#[test]
fn each_request_of_a_connection_is_for_the_host_that_it_names() {
    let world = World::new();
    let _one = world.http("one.example", page("one"));
    let _two =
        world.http("two.example", http(|request| Reply::text(request.field("host").unwrap_or("none"))));
    let gate = start(&world, allow(&[("one.example", &[80]), ("two.example", &[80])]));
    let mut client = to(&gate, "http");

    client.send("GET /a HTTP/1.1\r\nHost: one.example\r\n\r\n");
    assert!(client.response().text().contains("one"));
    client.send("GET /b HTTP/1.1\r\nHost: two.example\r\n\r\n");
    assert_eq!(client.response().text(), "two.example");
    client.send("GET /c HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    let denied = client.response();
    crate::assert_denied(&denied, 403, "http_request_denied", "evil.example:80: no rule allows it");

    let decision = gate.decision("two.example");
    assert_eq!((&decision["kind"], &decision["exchange"]), (&"http".into(), &2.into()));
}

#[test]
fn a_host_that_is_for_another_port_or_no_host_is_rejected() {
    let world = World::new();
    let gate = start(&world, allow_one("one.example", &[80, 8080]));
    let table = [
        ("Host: one.example:8080\r\n", "host-field-mismatch"),
        ("Host: 0x7f.1\r\n", "host-numeric"),
        ("", "host-field-missing"),
        ("Host: one.example\r\nHost: two.example\r\n", "host-field-repeated"),
    ];
    for (host, reason) in table {
        let mut client = to(&gate, "http");
        client.send(format!("GET / HTTP/1.1\r\n{host}\r\n"));
        assert_eq!(client.response().status, 400, "{host:?}");
        assert_eq!(gate.denial(&client)["reason"], reason, "{host:?}");
    }
    assert_eq!(world.dns.packets(), 0);
}

#[test]
fn a_connect_is_no_request_for_a_server() {
    let world = World::new();
    let gate = start(&world, allow_one(NAME, &[443]));
    let mut client = to(&gate, "http");

    let response = client.connect("pypi.example:443");

    assert_eq!(response.status, 400);
    assert_eq!(gate.denial(&client)["reason"], "target-form");
    assert!(client.is_closed());
}

#[test]
fn a_connection_that_was_not_redirected_has_nowhere_to_go() {
    let world = World::new();
    let gate = start(&world, allow_one(NAME, &[443]));
    let mut client = to(&gate, "tcp");
    client.send_to_whom_it_may_concern(world.authority.hello(NAME));
    client.rest();
    assert_eq!(gate.denial(&client)["reason"], "not-redirected");
}

#[test]
fn a_reload_revokes_what_came_by_its_server_name() {
    let world = World::new();
    let _origin = world.origin(NAME, 443, echo());
    let gate = start(&world, allow_one(NAME, &[443]));
    let mut client = to(&gate, "tls");
    let hello = world.authority.hello(NAME);
    client.send(&hello);
    assert_eq!(client.exactly(hello.len()), hello);

    let event = gate.reload_with(NOTHING);

    assert_eq!(event["revoked"], 1);
    assert!(client.is_closed());
    assert_eq!(gate.close(NAME)["reason"], "revoked");
}
