//! CONNECT: tunnels, and what their first bytes must be.

use std::io::{Read, Write};

use outgate_tests::hello::{Bent, in_records};
use outgate_tests::origin::{echo, greet, listen_only, page, say_and_finish};
use outgate_tests::policy::{NOTHING, allow, allow_one, allow_with};
use outgate_tests::{Client, World, wait_until};

use crate::assert_denied;

const NAME: &str = "pypi.example";

#[test]
fn an_allowed_name_is_reached_and_both_records_say_how() {
    let world = World::new();
    let _origin = world.https(NAME, page("welcome"));
    let gate = world.gate(allow_one(NAME, &[443])).start();

    let mut inside = world.authority.client(NAME, gate.tunnel("pypi.example:443"));
    inside.write_all(b"GET / HTTP/1.1\r\nHost: pypi.example\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    inside.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    drop(inside);

    let (decision, close) = (gate.decision(NAME), gate.close(NAME));
    assert_eq!(decision["verdict"], "allow");
    assert_eq!(decision["kind"], "connect");
    assert_eq!(decision["rule"]["name"], "rule-1");
    assert_eq!(close["session"], decision["session"]);
    assert_eq!(close["address"], world.address_of(NAME).to_string());
    assert_eq!(close["address_port"], 443);
    assert_eq!(close["sni"], NAME);
    assert_eq!(close["ended_by"], "client");
    assert!(close["bytes_up"].as_u64() > Some(300) && close["bytes_down"].as_u64() > Some(300), "{close}");
}

#[test]
fn a_denied_connect_says_why_closes_and_asks_no_dns() {
    let world = World::new();
    let gate = world.gate(NOTHING).start();
    let mut client = gate.client();

    let response = client.connect("evil.example:443");

    assert_denied(&response, 403, "http_request_denied", "evil.example:443: no rule allows it");
    assert!(response.phrase.contains("no rule allows it"), "{:?}", response.phrase);
    assert!(client.is_closed());
    assert_eq!(gate.decision("evil.example")["reason"], "no-rule");
    gate.wait_for_talk("outgate: denied 127.0.0.1 -> evil.example:443: no rule allows it");
    assert_eq!(world.dns.packets(), 0);
}

#[test]
fn what_follows_a_denied_connect_is_never_read_as_a_request() {
    let world = World::new();
    let origin = world.http("good.example", page("reached"));
    let gate = world.gate(allow_one("good.example", &[80])).start();
    let mut client = gate.client();

    client.send(
        "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n\
         GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
    );

    assert_eq!(client.response().status, 403);
    assert!(client.is_closed());
    assert_eq!(origin.connections(), 0);
}

/// The first bytes that a tunnel to port 443 may have: nothing but one hello for the name itself.
fn wrong_first_bytes(world: &World) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let two_extensions = Bent {
        server_names: vec![Bent::naming(&[NAME.as_bytes()]).server_names[0].clone(); 2],
        ..Bent::default()
    };
    vec![
        ("another name", "sni-mismatch", world.authority.hello("evil.example")),
        ("a name below", "sni-mismatch", world.authority.hello("evil.pypi.example")),
        ("no name", "sni-missing", Bent::default().bytes()),
        ("two names", "sni-invalid", Bent::naming(&[NAME.as_bytes(), b"evil.example"]).bytes()),
        ("an address", "sni-invalid", Bent::naming(&[b"127.0.0.1"]).bytes()),
        ("a NUL in the name", "sni-invalid", Bent::naming(&[b"pypi.example\0.evil.example"]).bytes()),
        ("a port in the name", "sni-invalid", Bent::naming(&[b"pypi.example:443"]).bytes()),
        ("a path in the name", "sni-invalid", Bent::naming(&[b"pypi.example/x"]).bytes()),
        ("HTTP", "not-tls", b"GET / HTTP/1.1\r\nHost: pypi.example\r\n\r\n".to_vec()),
        ("SSH", "not-tls", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()),
        ("an SSLv2 hello", "not-tls", [&[0x80, 0x2e, 1, 0, 2][..], &[0; 43]].concat()),
        ("an empty name", "", Bent::naming(&[b""]).bytes()),
        ("two server_name extensions", "", two_extensions.bytes()),
        ("more than 64 KiB", "", Bent { padding: 65_480, ..Bent::naming(&[NAME.as_bytes()]) }.bytes()),
    ]
}

#[test]
fn a_tunnel_to_443_begins_with_one_hello_for_its_name_or_ends() {
    let world = World::new();
    let origin = world.origin(NAME, 443, listen_only());
    let gate = world.gate(allow_one(NAME, &[443])).start();

    for (count, (what, reason, bytes)) in wrong_first_bytes(&world).into_iter().enumerate() {
        let mut client = gate.tunnel("pypi.example:443");
        client.send_to_whom_it_may_concern(&bytes);
        client.rest();
        let closes = gate.records_until(count + 1, |r| r["event"] == "close");
        let close = closes.iter().find(|r| r["client_port"] == client.port()).expect(what);
        assert_eq!(close["verdict"], "deny", "{what}");
        let seen = close["reason"].as_str().unwrap();
        let acceptable = ["hello-malformed", "sni-invalid", "hello-too-long"];
        assert!(seen == reason || (reason.is_empty() && acceptable.contains(&seen)), "{what}: {seen}");
        assert_eq!(origin.heard(), "", "{what} reached the origin");
    }
}

#[test]
fn a_wrong_hello_sent_together_with_the_connect_is_refused_as_well() {
    let world = World::new();
    let origin = world.origin(NAME, 443, listen_only());
    let gate = world.gate(allow_one(NAME, &[443])).start();
    let mut client = gate.client();

    let head = b"CONNECT pypi.example:443 HTTP/1.1\r\nHost: pypi.example:443\r\n\r\n";
    client.send([&head[..], &world.authority.hello("evil.example")].concat());

    client.rest();
    assert_eq!(gate.close(NAME)["reason"], "sni-mismatch");
    assert_eq!(origin.heard(), "");
}

#[test]
fn a_hello_sent_together_with_the_connect_is_kept() {
    let world = World::new();
    let origin = world.origin(NAME, 443, listen_only());
    let gate = world.gate(allow_one(NAME, &[443])).start();
    let mut client = gate.client();
    let hello = world.authority.hello(NAME);

    let head = b"CONNECT pypi.example:443 HTTP/1.1\r\nHost: pypi.example:443\r\n\r\n";
    client.send([&head[..], &hello].concat());

    assert_eq!(client.tunnel_response().status, 200);
    wait_until("the whole hello at the origin", || origin.received() == hello);
}

#[test]
fn a_hello_cut_at_every_byte_is_put_together_again() {
    let world = World::new();
    let origin = world.origin(NAME, 443, listen_only());
    let gate = world.gate(allow_one(NAME, &[443])).start();
    let hello = world.authority.hello(NAME);

    gate.tunnel("pypi.example:443").send_byte_by_byte(&hello);
    wait_until("the hello at the origin", || origin.received() == hello);

    let denied = world.authority.hello("evil.example");
    let mut client = gate.tunnel("pypi.example:443");
    for byte in &denied {
        client.send_to_whom_it_may_concern([*byte]);
    }
    client.rest();
    assert_eq!(gate.reason("sni-mismatch")["verdict"], "deny");
    assert_eq!(origin.received(), hello);
}

#[test]
fn a_hello_spread_over_records_of_one_byte_is_put_together_again() {
    let world = World::new();
    let origin = world.origin(NAME, 443, listen_only());
    let gate = world.gate(allow_one(NAME, &[443])).start();

    let spread = in_records(&world.authority.hello(NAME), 1);
    gate.tunnel("pypi.example:443").send(&spread);
    wait_until("the records as they were sent", || origin.received() == spread);

    let mut client = gate.tunnel("pypi.example:443");
    client.send_to_whom_it_may_concern(in_records(&world.authority.hello("evil.example"), 1)).rest();
    assert_eq!(gate.reason("sni-mismatch")["verdict"], "deny");
    assert_eq!(origin.received(), spread);
}

#[test]
fn a_hello_that_dawdles_is_cut_at_the_deadline() {
    let world = World::new();
    let origin = world.origin(NAME, 443, listen_only());
    let gate = world.gate(allow_one(NAME, &[443])).set("limits.head", "1s").start();
    let mut client = gate.tunnel("pypi.example:443");

    client.send(&world.authority.hello(NAME)[..100]);

    assert!(client.is_closed());
    assert_eq!(gate.close(NAME)["reason"], "hello-timeout");
    assert_eq!(origin.heard(), "");
}

#[test]
fn on_other_ports_the_server_may_speak_first() {
    let world = World::new();
    let _origin = world.origin("mail.example", 2525, greet("220 mail.example\r\n"));
    let gate = world.gate(allow_one("mail.example", &[2525])).start();
    let mut client = gate.tunnel("mail.example:2525");

    assert_eq!(client.until(b"\r\n"), b"220 mail.example\r\n");
    client.send("EHLO me\r\n");
    assert_eq!(client.until(b"\r\n"), b"EHLO me\r\n");
}

#[test]
fn bytes_behind_the_head_reach_the_origin_first_and_once() {
    let world = World::new();
    let origin = world.origin("db.example", 5432, listen_only());
    let gate = world.gate(allow_one("db.example", &[5432])).start();
    let mut client = gate.client();

    client.send("CONNECT db.example:5432 HTTP/1.1\r\nHost: db.example:5432\r\n\r\nfirst, ");
    assert_eq!(client.tunnel_response().status, 200);
    client.send("then this").finish_sending();

    wait_until("all of it", || origin.ended() == 1);
    assert_eq!(origin.heard(), "first, then this");
}

#[test]
fn on_other_ports_a_hello_must_match_and_anything_else_passes() {
    let world = World::new();
    let origin = world.origin("db.example", 5432, listen_only());
    let gate = world.gate(allow_one("db.example", &[5432])).start();

    gate.tunnel("db.example:5432").send("not a hello");
    wait_until("the bytes at the origin", || origin.heard() == "not a hello");

    let mut client = gate.tunnel("db.example:5432");
    client.send_to_whom_it_may_concern(world.authority.hello("evil.example")).rest();
    assert_eq!(gate.reason("sni-mismatch")["verdict"], "deny");
    let mut client = gate.tunnel("db.example:5432");
    client.send_to_whom_it_may_concern(Bent::naming(&[b"db.example", b"evil.example"]).records(1000)).rest();
    assert_eq!(gate.reason("sni-invalid")["verdict"], "deny");
    assert_eq!(origin.heard(), "not a hello");
}

#[test]
fn on_other_ports_a_wrong_hello_cut_byte_by_byte_reaches_nobody() {
    let world = World::new();
    let origin = world.origin("db.example", 5432, listen_only());
    let gate = world.gate(allow_one("db.example", &[5432])).start();
    let mut client = gate.tunnel("db.example:5432");

    for byte in world.authority.hello("evil.example") {
        client.send_to_whom_it_may_concern([byte]);
    }

    client.rest();
    assert_eq!(gate.reason("sni-mismatch")["verdict"], "deny");
    assert!(!origin.heard().contains("evil.example"), "the origin heard the name");
}

#[test]
fn tls_only_wants_a_hello_on_every_port() {
    let world = World::new();
    let origin = world.origin("db.example", 5432, listen_only());
    let gate = world.gate(allow_with("db.example", &[5432], "tls_only: true")).start();

    let mut client = gate.tunnel("db.example:5432");
    client.send_to_whom_it_may_concern("in the clear").rest();

    assert_eq!(gate.close("db.example")["reason"], "not-tls");
    assert_eq!(origin.heard(), "");
}

#[test]
fn sni_any_lets_a_hello_name_another() {
    let world = World::new();
    let origin = world.origin(NAME, 443, listen_only());
    let gate = world.gate(allow_with(NAME, &[443], "sni: any")).start();
    let hello = world.authority.hello("inner.example");

    gate.tunnel("pypi.example:443").send(&hello);

    wait_until("the hello at the origin", || origin.received() == hello);
}

#[test]
fn where_the_internet_is_allowed_a_hello_may_name_any_server_but_a_denied_one() {
    let world = World::new();
    let origin = world.origin(NAME, 443, listen_only());
    let policy = allow_one(NAME, &[443])
        + "  - {name: never, action: deny, type: fqdn, destination: evil.example}\n"
        + "isolation_mode: allow_internet_outbound\n";
    let gate = world.gate(policy).start();

    let denied = world.authority.hello("evil.example");
    gate.tunnel("pypi.example:443").send_to_whom_it_may_concern(&denied).rest();
    assert_eq!(gate.close(NAME)["reason"], "deny-rule");
    assert_eq!(origin.heard(), "");

    let hello = world.authority.hello("inner.example");
    let _tunnel = gate.tunnel("pypi.example:443").send(&hello);
    wait_until("the hello at the origin", || origin.received() == hello);
}

#[test]
fn what_is_only_reported_passes_with_another_name_and_is_recorded() {
    let world = World::new();
    let origin = world.origin(NAME, 443, listen_only());
    let gate = world.gate(allow_one(NAME, &[443]) + "enforcement: report\n").start();
    let hello = world.authority.hello("inner.example");

    let mut tunnel = gate.tunnel("pypi.example:443");
    tunnel.send(&hello);
    wait_until("the hello at the origin", || origin.received() == hello);
    drop(tunnel);

    let close = gate.close(NAME);
    assert_eq!((&close["verdict"], &close["mode"]), (&"deny".into(), &"report".into()), "{close}");
    assert_eq!((&close["reason"], &close["ended_by"]), (&"sni-mismatch".into(), &"client".into()), "{close}");
}

#[test]
fn what_is_only_reported_need_not_be_tls_and_may_let_the_server_speak_first() {
    let world = World::new();
    let _origin = world.origin(NAME, 443, greet("220 ready\r\n"));
    let gate = world.gate(allow_one(NAME, &[443]) + "enforcement: report\n").start();

    let mut tunnel = gate.tunnel("pypi.example:443");
    assert_eq!(tunnel.until(b"\r\n"), b"220 ready\r\n");
    tunnel.send("QUIT\r\n");
    assert_eq!(tunnel.until(b"\r\n"), b"QUIT\r\n");
    drop(tunnel);

    let close = gate.close(NAME);
    assert_eq!((&close["reason"], &close["mode"]), (&"not-tls".into(), &"report".into()), "{close}");
    assert!(close["bytes_up"].as_u64() > Some(0), "{close}");
}

#[test]
fn an_encrypted_hello_is_judged_by_its_outer_name_and_recorded() {
    let world = World::new();
    let origin = world.origin(NAME, 443, listen_only());
    let gate = world.gate(allow_one(NAME, &[443])).start();

    let outer = |name: &str| Bent { ech: true, ..Bent::naming(&[name.as_bytes()]) }.bytes();
    gate.tunnel("pypi.example:443").send_to_whom_it_may_concern(outer("evil.example")).rest();
    let close = gate.close(NAME);
    assert_eq!((&close["reason"], &close["ech"]), (&"sni-mismatch".into(), &true.into()), "{close}");
    assert_eq!(origin.heard(), "");

    let _tunnel = gate.tunnel("pypi.example:443").send(outer(NAME));
    wait_until("the hello at the origin", || origin.received() == outer(NAME));
}

#[test]
fn a_tunnel_to_80_carries_http_that_is_judged_request_by_request() {
    let world = World::new();
    let origin = world.http(NAME, page("welcome"));
    let gate = world.gate(allow(&[(NAME, &[80]), ("other.example", &[80])])).start();
    let mut client = gate.tunnel("pypi.example:80");

    client.send("GET /a HTTP/1.1\r\nHost: pypi.example\r\n\r\n");
    assert_eq!(client.response().text(), "welcome");
    client.send("GET /b HTTP/1.1\r\nHost: other.example\r\n\r\n");
    assert_eq!(client.response().status, 400);

    assert_eq!(gate.reason("host-field-mismatch")["verdict"], "deny");
    assert!(!origin.heard().contains("/b"), "{}", origin.heard());
}

#[test]
fn a_request_in_a_tunnel_to_80_cannot_ask_for_another_host_by_its_url() {
    let world = World::new();
    let origin = world.http(NAME, page("welcome"));
    let gate = world.gate(allow(&[(NAME, &[80]), ("other.example", &[80])])).start();
    let mut client = gate.tunnel("pypi.example:80");

    client.send("GET http://other.example/c HTTP/1.1\r\nHost: other.example\r\n\r\n");

    assert_eq!(client.response().status, 400);
    assert_eq!(gate.reason("host-field-mismatch")["verdict"], "deny");
    assert_eq!(origin.connections(), 0);
}

#[test]
fn a_tunnel_to_80_may_carry_tls_for_its_name_and_nothing_else() {
    let world = World::new();
    let origin = world.http(NAME, listen_only());
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let hello = world.authority.hello(NAME);

    gate.tunnel("pypi.example:80").send(&hello);
    wait_until("the hello at the origin", || origin.received() == hello);

    let mut client = gate.tunnel("pypi.example:80");
    client.send_to_whom_it_may_concern(world.authority.hello("evil.example")).rest();
    let mut client = gate.tunnel("pypi.example:80");
    client.send_to_whom_it_may_concern("SSH-2.0-x\r\n\r\n").rest();
    assert_eq!(gate.denial(&client)["reason"], "not-http");
    assert_eq!(gate.reason("sni-mismatch")["verdict"], "deny");
    assert_eq!(origin.received(), hello);
}

#[test]
fn either_side_may_finish_first_and_the_other_goes_on() {
    let world = World::new();
    let _echo = world.origin("echo.example", 7000, echo());
    let talker = world.origin("talker.example", 7000, say_and_finish("that is all"));
    let gate = world.gate(allow(&[("echo.example", &[7000]), ("talker.example", &[7000])])).start();

    let mut client = gate.tunnel("echo.example:7000");
    client.send("last words").finish_sending();
    assert_eq!(client.rest(), b"last wordsbye");

    let mut client = gate.tunnel("talker.example:7000");
    assert_eq!(client.exactly(11), b"that is all");
    client.send("and yet I speak");
    wait_until("words after the origin's end", || talker.heard() == "and yet I speak");
}

#[test]
fn ten_megabytes_go_both_ways_unchanged_and_are_counted() {
    let world = World::new();
    let _origin = world.origin("echo.example", 7000, echo());
    let gate = world.gate(allow_one("echo.example", &[7000])).start();
    let sent: Vec<u8> = (0..10_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut client = gate.tunnel("echo.example:7000");

    let mut writer = client.twin();
    let writing = std::thread::spawn({
        let sent = sent.clone();
        move || writer.send(&sent).finish_sending().port()
    });
    let mut received = client.rest();
    writing.join().unwrap();

    assert_eq!(received.split_off(sent.len()), b"bye");
    assert!(received == sent, "the bytes came back changed");
    let close = gate.close("echo.example");
    assert_eq!(
        (close["bytes_up"].as_u64(), close["bytes_down"].as_u64()),
        (Some(10_000_000), Some(10_000_003))
    );
}

#[test]
fn the_close_record_says_which_side_ended_it() {
    let world = World::new();
    let _origin = world.origin("brief.example", 7000, |wire: &mut dyn outgate_tests::origin::Wire| {
        drop(wire.write_all(b"bye"));
    });
    let _echo = world.origin("echo.example", 7000, echo());
    let gate = world.gate(allow(&[("brief.example", &[7000]), ("echo.example", &[7000])])).start();

    let mut client = gate.tunnel("brief.example:7000");
    assert_eq!(client.rest(), b"bye");
    drop(client);
    assert_eq!(gate.close("brief.example")["ended_by"], "origin");

    drop(gate.tunnel("echo.example:7000"));
    assert_eq!(gate.close("echo.example")["ended_by"], "client");
}

#[test]
fn a_tunnel_in_which_nothing_moves_ends_at_the_idle_time() {
    let world = World::new();
    let _origin = world.origin("echo.example", 7000, echo());
    let gate = world.gate(allow_one("echo.example", &[7000])).set("limits.idle", "1s").start();
    let mut client = gate.tunnel("echo.example:7000");

    client.rest();

    let close = gate.close("echo.example");
    assert_eq!((&close["reason"], &close["ended_by"]), (&"idle-timeout".into(), &"gate".into()));
}

#[test]
fn a_dial_that_fails_says_so_and_is_recorded() {
    let world = World::new();
    world.dns.set("down.example", &[&world.address_of("down.example").to_string()]);
    let gate = world.gate(allow_one("down.example", &[7000])).start();

    let response = gate.client().connect("down.example:7000");

    assert_denied(&response, 502, "connection_refused", "the origin refused the connection");
    assert_eq!(gate.close("down.example")["reason"], "origin-refused");
}

#[test]
fn tunnels_are_told_apart_in_the_records() {
    let world = World::new();
    let _origin = world.origin("echo.example", 7000, echo());
    let gate = world.gate(allow_one("echo.example", &[7000])).start();

    let tunnels: Vec<Client> = (0..20).map(|_| gate.tunnel("echo.example:7000")).collect();
    let ports: Vec<u16> = tunnels.iter().map(Client::port).collect();
    drop(tunnels);

    let closes = gate.records_until(20, |r| r["event"] == "close");
    let sessions: std::collections::HashSet<_> = closes.iter().map(|r| r["session"].to_string()).collect();
    assert_eq!(sessions.len(), 20);
    assert!(ports.iter().all(|port| closes.iter().any(|r| r["client_port"] == *port)));
}

#[test]
fn an_origin_that_may_speak_first_hears_of_its_client_at_once() {
    let world = World::new();
    let gate = world.gate(allow_one(NAME, &[7000])).start();
    let address = world.address_of(NAME);
    world.dns.set(NAME, &[&address.to_string()]);
    let origin = std::net::TcpListener::bind((address, 7000)).unwrap();
    origin.set_nonblocking(true).unwrap();

    // On a machine that is busy it may take a moment.
    let heard_at_once = (0..10).any(|_| {
        let _client = gate.tunnel("pypi.example:7000");
        let heard = origin.accept().is_ok();
        if !heard {
            wait_until("the origin to hear of it", || origin.accept().is_ok());
        }
        heard
    });

    assert!(heard_at_once);
}
