//! Origins that answer in bad faith: the client gets 502 or an end, and nothing of it can be taken for another
//! response.

use outgate_tests::origin::{Wire, endless, page, script};
use outgate_tests::policy::{allow, allow_one};
use outgate_tests::{Client, Gate, World, wait_until};

use crate::assert_denied;

const NAME: &str = "hostile.example";

/// Asks a hostile origin once, and reads all that comes until the connection ends or is silent.
fn answer_of(world: &World, bytes: impl Into<Vec<u8>>) -> (Gate, String) {
    let origin = world.http(NAME, script(bytes));
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();
    client.send("GET http://hostile.example/ HTTP/1.1\r\nHost: hostile.example\r\nConnection: close\r\n\r\n");
    let all = String::from_utf8_lossy(&client.rest()).into_owned();
    drop(origin);
    (gate, all)
}

/// Responses that are not HTTP which can be passed on.
const NOT_HTTP: [&str; 12] = [
    "hello there\r\n\r\n",
    "SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/1.1 abc OK\r\n\r\n",
    "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
    "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Le",
];

#[test]
fn a_response_that_is_not_sound_http_becomes_502() {
    for bytes in NOT_HTTP {
        let world = World::new();
        let (gate, answer) = answer_of(&world, bytes);
        assert!(answer.starts_with("HTTP/1.1 502 "), "{bytes:?}: {answer}");
        assert!(answer.to_ascii_lowercase().contains("proxy-status: "), "{bytes:?}: {answer}");
        let reason = gate.close(NAME)["reason"].clone();
        assert!(reason == "origin-response" || reason == "origin-closed", "{bytes:?}: {reason}");
    }
}

#[test]
fn a_head_without_an_end_is_cut_at_its_bound() {
    for (first, again) in
        [("HTTP/1.1 200 OK\r\n", "X: y\r\n"), ("HTTP/1.1 200 OK\r\nX: ", "yyyyyyyy"), ("", "y")]
    {
        let world = World::new();
        let _origin = world.http(NAME, endless(first, again));
        let gate = world.gate(allow_one(NAME, &[80])).start();
        let response = gate.client().get("http://hostile.example/");
        assert_denied(&response, 502, "http_protocol_error", "not well-formed HTTP");
        assert!(gate.memory() < 100 << 20, "{}", gate.memory());
    }
}

#[test]
fn a_flood_of_1xx_ends() {
    let world = World::new();
    let origin = world.http(NAME, endless("", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"));
    let mut gate = world.gate(allow_one(NAME, &[80])).start();

    let response = gate.client().get("http://hostile.example/");

    assert_denied(&response, 502, "http_protocol_error", "not well-formed HTTP");
    assert!(gate.memory() < 100 << 20, "{}", gate.memory());
    wait_until("the origin to be cut off", || origin.ended() == 1);
    assert!(gate.is_alive());
}

#[test]
fn a_response_that_is_too_large_behind_interim_ones_is_not_begun() {
    let world = World::new();
    let interim = "HTTP/1.1 102 Processing\r\n\r\n".repeat(60 * 1024 / 27);
    let large = "y".repeat(10 * 1024);
    let (gate, answer) =
        answer_of(&world, format!("{interim}HTTP/1.1 200 OK\r\nX: {large}\r\nContent-Length: 9999\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert_eq!(gate.close(NAME)["reason"], "origin-response");
}

#[test]
fn interim_responses_stay_here_for_clients_that_take_them_for_the_response() {
    let world = World::new();
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n";
    let (_gate, answer) =
        answer_of(&world, format!("{hints}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage"));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\npage"), "{answer}");
}

#[test]
fn a_second_response_is_not_the_answer_to_the_next_request() {
    let world = World::new();
    let two = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned";
    let _hostile = world.http(NAME, |wire: &mut dyn Wire| {
        let mut request = [0; 4096];
        while wire.read(&mut request).is_ok_and(|count| count > 0) {
            drop(wire.write_all(two.as_bytes()));
        }
    });
    let _good = world.http("good.example", page("good"));
    let gate = world.gate(allow(&[(NAME, &[80]), ("good.example", &[80])])).start();
    let mut client = gate.client();

    assert_eq!(client.get("http://hostile.example/1").text(), "first");
    assert_eq!(next_answer(&mut client, &gate, "http://hostile.example/2"), "first");
    assert_eq!(next_answer(&mut client, &gate, "http://good.example/"), "good");
}

/// The next answer on the same connection, or on a new one where the gate preferred to end it.
fn next_answer(client: &mut Client, gate: &Gate, url: &str) -> String {
    if !client.is_open() {
        *client = gate.client();
    }
    client.get(url).text()
}

#[test]
fn a_chunk_that_lies_is_not_completed_by_the_gate() {
    for bytes in
        ["zz\r\nhello\r\n0\r\n\r\n", "3\r\nhello\r\n0\r\n\r\n", "fffffffffffffffff\r\nhello", "5\r\nhel"]
    {
        let world = World::new();
        let (gate, answer) =
            answer_of(&world, format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{bytes}"));
        assert!(!answer.contains("\r\n0\r\n\r\n"), "{bytes:?} was given an end: {answer}");
        let reason = gate.close(NAME)["reason"].clone();
        assert!(reason == "origin-response" || reason == "origin-closed", "{bytes:?}: {reason}");
    }
}

#[test]
fn a_body_that_ends_early_is_not_completed_by_the_gate() {
    let world = World::new();
    let (gate, answer) = answer_of(&world, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");

    // Whether the half arrives or not: it must not look whole.
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-length: 10") && "half".starts_with(body), "{answer}");
    let close = gate.close(NAME);
    assert_eq!((&close["reason"], &close["ended_by"]), (&"origin-closed".into(), &"origin".into()));
}

#[test]
fn an_origin_that_says_nothing_is_a_502() {
    let world = World::new();
    let (gate, answer) = answer_of(&world, "");

    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(gate.close(NAME)["reason"], "origin-closed");
}

#[test]
fn a_switch_of_protocols_that_nobody_asked_for_is_a_502() {
    let world = World::new();
    let switch =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nraw bytes";
    let (gate, answer) = answer_of(&world, switch);

    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(!answer.contains("raw bytes"), "{answer}");
    assert_eq!(gate.close(NAME)["reason"], "origin-switched");
}

#[test]
fn a_switch_to_another_protocol_than_asked_is_a_502() {
    let world = World::new();
    let _origin = world.http(
        NAME,
        script("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nraw bytes"),
    );
    let gate = world.gate(allow_one(NAME, &[80])).start();

    let response = gate.ask(
        "GET http://hostile.example/ HTTP/1.1\r\nHost: hostile.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );

    assert_eq!(response.status, 502, "{response:?}");
    assert_eq!(gate.close(NAME)["reason"], "origin-switched");
}

#[test]
fn an_origin_that_resets_in_the_middle_is_recorded_and_the_gate_lives() {
    let world = World::new();
    let _origin = world.http(NAME, |wire: &mut dyn Wire| {
        // Unread bytes make the kernel reset the connection when it closes.
        drop(wire.read(&mut [0; 8]));
        drop(wire.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart"));
    });
    let mut gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();

    client.send(
        "GET http://hostile.example/ HTTP/1.1\r\nHost: hostile.example\r\nX-Pad: some more bytes\r\n\r\n",
    );
    client.rest();

    assert_eq!(gate.close(NAME)["ended_by"], "origin");
    assert!(gate.is_alive());
}

#[test]
fn a_header_line_of_the_origin_cannot_split_into_two() {
    let world = World::new();
    let (_gate, answer) =
        answer_of(&world, "HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok");

    assert!(!answer.contains("\rSet-Cookie"), "{answer:?}");
}
