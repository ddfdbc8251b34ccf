//! Plain HTTP in absolute form: every request judged, and nothing passed on but what was asked.

mod connections;

use outgate_tests::origin::{Reply, echo, http, listen_only, page, script, websocket};
use outgate_tests::policy::{NOTHING, allow, allow_one};
use outgate_tests::{World, wait_until};

use crate::assert_denied;

const NAME: &str = "files.example";

#[test]
fn an_allowed_request_is_passed_on_in_origin_form_with_one_host() {
    let world = World::new();
    let origin = world.http(NAME, page("welcome"));
    let gate = world.gate(allow_one(NAME, &[80])).start();

    let response = gate.client().get("http://files.example/a/b?c=d");

    assert_eq!((response.status, response.text().as_str()), (200, "welcome"));
    let heard = origin.heard().to_ascii_lowercase();
    assert!(heard.starts_with("get /a/b?c=d http/1.1\r\n"), "{heard}");
    assert_eq!(heard.matches("\r\nhost: files.example\r\n").count(), 1, "{heard}");
    let close = gate.close(NAME);
    assert_eq!(
        (&close["kind"], &close["method"], &close["path"]),
        (&"http".into(), &"GET".into(), &"/a/b".into())
    );
    assert_eq!(close["status"], 200);
    assert!(!gate.audit_text().contains("c=d"), "a query string in the log");
}

#[test]
fn a_denied_request_says_why_and_asks_no_dns() {
    let world = World::new();
    let gate = world.gate(NOTHING).start();

    let response = gate.client().get("http://evil.example/");

    assert_denied(&response, 403, "http_request_denied", "no rule allows it");
    assert_eq!(world.dns.packets(), 0);
    let decision = gate.decision("evil.example");
    assert_eq!((&decision["verdict"], &decision["reason"]), (&"deny".into(), &"no-rule".into()));
}

#[test]
fn hop_by_hop_fields_and_credentials_stay_here() {
    let world = World::new();
    let origin = world.http(NAME, page("welcome"));
    let gate = world.gate(allow_one(NAME, &[80])).start();

    let response = gate.ask(
        "GET http://files.example/ HTTP/1.1\r\nHost: files.example\r\nProxy-Authorization: Basic c2VjcmV0\r\n\
         Proxy-Connection: keep-alive\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive, X-Private, Host, Content-Length\r\n\
         X-Private: mine\r\nTE: trailers\r\nX-Public: yours\r\n\r\n",
    );

    assert_eq!(response.status, 200);
    let heard = origin.heard().to_ascii_lowercase();
    for gone in
        ["proxy-authorization", "c2vjcmv0", "proxy-connection", "keep-alive: ", "x-private", "\r\nte:"]
    {
        assert!(!heard.contains(gone), "{gone} in {heard}");
    }
    assert!(heard.contains("x-public: yours") && heard.contains("host: files.example"), "{heard}");
    assert!(!gate.audit_text().contains("c2VjcmV0"));
}

#[test]
fn hop_by_hop_fields_of_the_origin_stay_here_too() {
    let world = World::new();
    let reply = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Private\r\nX-Private: mine\r\nKeep-Alive: timeout=9\r\n\
                 Proxy-Authenticate: Basic\r\nX-Public: yours\r\n\r\nok";
    let _origin = world.http(NAME, script(reply));
    let gate = world.gate(allow_one(NAME, &[80])).start();

    let response = gate.client().get("http://files.example/");

    assert_eq!(response.field("x-public"), Some("yours"));
    for gone in ["x-private", "keep-alive", "proxy-authenticate"] {
        assert_eq!(response.field(gone), None, "{gone}");
    }
}

#[test]
fn every_request_of_a_kept_connection_is_judged_and_recorded() {
    let world = World::new();
    let _origin = world.http(NAME, page("welcome"));
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();

    assert_eq!(client.get("http://files.example/1").status, 200);
    assert_eq!(client.get("http://files.example/2").status, 200);
    assert_eq!(client.get("http://evil.example/3").status, 403);

    let decisions = gate.records_until(3, |r| r["event"] == "decision");
    let seen: Vec<_> =
        decisions.iter().map(|r| (r["exchange"].as_u64().unwrap(), r["verdict"].as_str().unwrap())).collect();
    assert_eq!(seen, [(1, "allow"), (2, "allow"), (3, "deny")]);
    assert!(decisions.iter().all(|r| r["session"] == decisions[0]["session"]));
}

#[test]
fn pipelined_requests_are_answered_in_order_each_by_its_own_verdict() {
    let world = World::new();
    let origin = world.http(NAME, http(|request| Reply::text(request.target.clone())));
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();
    let get = |host: &str, path: &str| format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n\r\n");

    client.send([get(NAME, "/1"), get(NAME, "/2"), get("evil.example", "/3")].concat());

    assert_eq!(client.response().text(), "/1");
    assert_eq!(client.response().text(), "/2");
    assert_eq!(client.response().status, 403);
    assert!(!origin.heard().contains("/3"));
}

#[test]
fn a_kept_connection_is_judged_by_the_new_policy_after_a_reload() {
    let world = World::new();
    let origin = world.http(NAME, page("welcome"));
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();
    assert_eq!(client.get("http://files.example/before").status, 200);

    gate.reload_with(NOTHING);

    let mut again = gate.client();
    assert_eq!(again.get("http://files.example/after").status, 403);
    client.send_to_whom_it_may_concern(
        "GET http://files.example/after HTTP/1.1\r\nHost: files.example\r\n\r\n",
    );
    let rest = String::from_utf8_lossy(&client.until_end_or(b"\r\n\r\n")).into_owned();
    assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 403"), "{rest}");
    assert!(!origin.heard().contains("/after"));
}

#[test]
fn connections_to_an_origin_are_kept_for_the_same_client() {
    let world = World::new();
    let origin = world.http(NAME, page("welcome"));
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();

    for _ in 0..10 {
        assert_eq!(client.get("http://files.example/").text(), "welcome");
    }

    assert_eq!(origin.connections(), 1);
}

/// Requests whose host could be read in two ways.
const TWO_HOSTS: [(&str, &str); 9] = [
    ("host-field-mismatch", "GET http://files.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
    ("host-field-mismatch", "GET http://files.example/ HTTP/1.1\r\nHost: files.example:8080\r\n\r\n"),
    (
        "host-field-repeated",
        "GET http://files.example/ HTTP/1.1\r\nHost: files.example\r\nHost: evil.example\r\n\r\n",
    ),
    (
        "host-field-repeated",
        "GET http://files.example/ HTTP/1.1\r\nHost: files.example\r\nhOST: files.example\r\n\r\n",
    ),
    ("host-field-missing", "GET http://files.example/ HTTP/1.1\r\nX: y\r\n\r\n"),
    (
        "head-folded",
        "GET http://files.example/ HTTP/1.1\r\nHost: files.example\r\nX: y\r\n Host: evil.example\r\n\r\n",
    ),
    ("head-bare-lf", "GET http://files.example/ HTTP/1.1\r\nHost: files.example\nX: y\r\n\r\n"),
    ("head-malformed", "GET http://files.example/ HTTP/1.1\r\nHost : files.example\r\n\r\n"),
    ("host-user-info", "GET http://evil.example@files.example/ HTTP/1.1\r\nHost: files.example\r\n\r\n"),
];

#[test]
fn a_request_that_names_two_hosts_goes_nowhere() {
    let world = World::new();
    let origin = world.http(NAME, page("welcome"));
    let gate = world.gate(allow_one("*.example", &[80])).start();

    for (reason, head) in TWO_HOSTS {
        let mut client = gate.client();
        let response = client.send(head).response();
        assert_eq!(response.status, 400, "{head:?}: {}", response.text());
        assert_eq!(gate.denial(&client)["reason"], reason, "{head:?}");
    }
    assert_eq!((origin.connections(), world.dns.packets()), (0, 0));
}

/// Bodies whose end two readers could see in different places.
const TWO_ENDS: [(&str, &str); 17] = [
    ("length-conflict", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("length-conflict", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"),
    ("length-invalid", "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"),
    ("length-invalid", "Content-Length: 4, 4\r\n\r\nabcd"),
    ("length-invalid", "Content-Length: +4\r\n\r\nabcd"),
    ("length-invalid", "Content-Length: -1\r\n\r\nabcd"),
    ("length-invalid", "Content-Length: 0x4\r\n\r\nabcd"),
    ("length-invalid", "Content-Length: 4 4\r\n\r\nabcd"),
    ("length-invalid", "Content-Length: 99999999999999999999\r\n\r\nabcd"),
    ("length-invalid", "Content-Length:\r\n\r\nabcd"),
    ("transfer-encoding", "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("transfer-encoding", "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("transfer-encoding", "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    ("transfer-encoding", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("transfer-encoding", "Transfer-Encoding: \u{b}chunked\r\n\r\n0\r\n\r\n"),
    ("head-malformed", "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    ("head-folded", "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
];

#[test]
fn a_body_with_two_ends_goes_nowhere() {
    let world = World::new();
    let origin = world.http(NAME, page("welcome"));
    let gate = world.gate(allow_one(NAME, &[80])).start();

    for (reason, rest) in TWO_ENDS {
        let mut client = gate.client();
        client.send(format!("POST http://files.example/ HTTP/1.1\r\nHost: files.example\r\n{rest}"));
        client.send_to_whom_it_may_concern(
            "GET http://files.example/smuggled HTTP/1.1\r\nHost: files.example\r\n\r\n",
        );
        let response = client.response();
        assert_eq!(response.status, 400, "{rest:?}: {}", response.text());
        assert!(client.is_closed(), "{rest:?}");
        let seen = gate.denial(&client);
        let control = rest.contains('\u{b}') && seen["reason"] == "head-control-byte";
        assert!(seen["reason"] == reason || control, "{rest:?}: {seen}");
    }
    assert_eq!(origin.heard(), "");
}

/// Chunks that are not what they say. The head is good, so the origin may see that, and never more.
const BAD_CHUNKS: [&str; 10] = [
    "5\nhello\r\n0\r\n\r\n",
    "5;a=b\nhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "-5\r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "5 5\r\nhello\r\n0\r\n\r\n",
    "3\r\nhello\r\n0\r\n\r\n",
    "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "\r\nhello\r\n0\r\n\r\n",
    "zz\r\nhello\r\n0\r\n\r\n",
];

#[test]
fn a_chunk_that_lies_ends_the_request_and_smuggles_nothing() {
    let world = World::new();
    let origin = world.http(NAME, page("welcome"));
    let gate = world.gate(allow_one(NAME, &[80])).start();

    for chunk in BAD_CHUNKS {
        let mut client = gate.client();
        client.send(format!(
            "POST http://files.example/ HTTP/1.1\r\nHost: files.example\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"
        ));
        client.send_to_whom_it_may_concern(
            "GET http://files.example/smuggled HTTP/1.1\r\nHost: files.example\r\n\r\n",
        );
        let rest = String::from_utf8_lossy(&client.rest()).into_owned();
        assert!(!rest.contains("HTTP/1.1 200"), "{chunk:?}: {rest}");
        assert_eq!(gate.denial(&client)["reason"], "chunk-malformed", "{chunk:?}");
    }
    assert!(!origin.heard().contains("smuggled"), "{}", origin.heard());
}

#[test]
fn a_body_arrives_whole_however_it_is_framed() {
    let world = World::new();
    let _origin = world.http(NAME, http(|request| Reply::text(request.body.clone())));
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();
    let post = "POST http://files.example/ HTTP/1.1\r\nHost: files.example\r\n";

    client.send(format!("{post}Content-Length: 5\r\n\r\nhello"));
    assert_eq!(client.response().text(), "hello");
    client.send(format!(
        "{post}Transfer-Encoding: chunked\r\n\r\n5;x=\"y\"\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: t\r\n\r\n"
    ));
    assert_eq!(client.response().text(), "hello world");
    let large = "x".repeat(3_000_000);
    client.send(format!("{post}Content-Length: {}\r\n\r\n{large}", large.len()));
    assert!(client.response().text() == large);
}

#[test]
fn a_body_that_ends_early_is_not_completed_by_the_gate() {
    let world = World::new();
    let origin = world.http(NAME, http(|request| Reply::text(format!("got {}", request.body.len()))));
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();

    client
        .send("POST http://files.example/ HTTP/1.1\r\nHost: files.example\r\nContent-Length: 10\r\n\r\nhalf");
    client.finish_sending();

    let rest = String::from_utf8_lossy(&client.rest()).into_owned();
    assert!(!rest.contains("200"), "{rest}");
    assert_eq!(gate.reason("body-truncated")["host"], NAME);
    wait_until("the origin's end", || origin.ended() == origin.connections());
}

#[test]
fn expect_100_continue_is_answered_before_the_body() {
    let world = World::new();
    let _origin = world.http(NAME, http(|request| Reply::text(request.body.clone())));
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();

    client.send(
        "POST http://files.example/ HTTP/1.1\r\nHost: files.example\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    );
    assert_eq!(client.head().status, 100);
    client.send("hello");
    assert_eq!(client.response().text(), "hello");
}

#[test]
fn responses_without_a_body_do_not_wait_for_one() {
    let world = World::new();
    let _origin = world.http(
        NAME,
        http(|request| match request.target.as_str() {
            "/304" => Reply::status(304),
            "/204" => Reply::status(204),
            _ => Reply::text("body"),
        }),
    );
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();

    client.send("HEAD http://files.example/ HTTP/1.1\r\nHost: files.example\r\n\r\n");
    assert_eq!(client.head().field("content-length"), Some("4"));
    assert_eq!(client.get("http://files.example/204").status, 204);
    assert_eq!(client.get("http://files.example/304").status, 304);
    assert_eq!(client.get("http://files.example/").text(), "body");
}

#[test]
fn a_client_that_goes_away_before_the_answer_leaves_both_records() {
    let world = World::new();
    let origin = world.origin("slow.example", 80, listen_only());
    let gate = world.gate(allow_one("slow.example", &[80])).start();

    let mut client = gate.client();
    client.send("GET http://slow.example/ HTTP/1.1\r\nHost: slow.example\r\n\r\n");
    wait_until("the request at the origin", || !origin.heard().is_empty());
    client.reset();

    let close = gate.close("slow.example");
    assert_eq!((&close["ended_by"], &close["verdict"]), (&"client".into(), &"allow".into()), "{close}");
}

#[test]
fn an_http_1_0_client_is_served_and_its_connection_closed() {
    let world = World::new();
    let _origin = world.http(NAME, page("welcome"));
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();

    client.send("GET http://files.example/ HTTP/1.0\r\nHost: files.example\r\n\r\n");

    let all = String::from_utf8_lossy(&client.rest()).into_owned();
    assert!(all.contains("200") && all.ends_with("welcome"), "{all}");
}

#[test]
fn a_websocket_passes_and_its_bytes_are_counted() {
    let world = World::new();
    let _origin = world.http("ws.example", websocket());
    let gate = world.gate(allow_one("ws.example", &[80])).start();
    let mut client = gate.client();

    client.send(
        "GET http://ws.example/chat HTTP/1.1\r\nHost: ws.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    let switched = client.head();
    assert_eq!(switched.status, 101);
    assert_eq!(switched.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    client.send([0x81, 0x85, 0, 0, 0, 0]).send("hello");
    assert_eq!(client.exactly(7), b"\x81\x05hello");
    drop(client);

    let close = gate.close("ws.example");
    assert!(close["bytes_up"].as_u64() >= Some(11) && close["bytes_down"].as_u64() >= Some(7), "{close}");
}

#[test]
fn no_upgrade_but_websocket_passes() {
    let world = World::new();
    let origin = world.http(NAME, page("welcome"));
    let gate = world.gate(allow_one(NAME, &[80])).start();

    for upgrade in ["TLS/1.0", "websocket, h2c", "h2", "foo"] {
        let response = gate.ask(format!(
            "GET http://files.example/ HTTP/1.1\r\nHost: files.example\r\nConnection: Upgrade, HTTP2-Settings\r\n\
             Upgrade: {upgrade}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        ));
        assert_eq!(response.status, 400, "{upgrade}: {}", response.text());
    }
    assert_eq!(gate.reason("upgrade-unsupported")["verdict"], "deny");
    assert_eq!(origin.heard(), "");
}

/// What Java's client offers with every request.
const OFFER_OF_HTTP_2: &str = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n";

#[test]
fn an_offer_of_http_2_stays_here_and_the_request_goes_on() {
    let world = World::new();
    let origin = world.http(NAME, page("welcome"));
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();

    for _ in 0..2 {
        client.send(format!(
            "GET http://files.example/ HTTP/1.1\r\nHost: files.example\r\n{OFFER_OF_HTTP_2}\r\n"
        ));
        let response = client.response();
        assert_eq!((response.status, response.text()), (200, "welcome".into()));
        assert_eq!((response.field("upgrade"), response.field("connection")), (None, None));
    }
    let heard = origin.heard().to_ascii_lowercase();
    for field in ["upgrade", "http2-settings", "connection"] {
        assert!(!heard.contains(&format!("\r\n{field}:")), "{field}: {heard}");
    }
}

#[test]
fn an_origin_that_takes_an_offer_of_http_2_is_a_502() {
    let world = World::new();
    let switch =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let _origin = world.http(NAME, script(switch));
    let gate = world.gate(allow_one(NAME, &[80])).start();

    let response = gate
        .ask(format!("GET http://files.example/ HTTP/1.1\r\nHost: files.example\r\n{OFFER_OF_HTTP_2}\r\n"));

    assert_eq!(response.status, 502, "{response:?}");
    assert_eq!(gate.close(NAME)["reason"], "origin-switched");
}

#[test]
fn a_target_must_be_absolute_and_plain() {
    let world = World::new();
    let gate = world.gate(allow_one("*.example", &[80, 443])).start();

    for (reason, target) in [
        ("target-form", "/index.html"),
        ("target-form", "*"),
        ("target-form", "files.example:80"),
        ("target-scheme", "https://files.example/"),
        ("target-scheme", "ftp://files.example/"),
        ("target-scheme", "file:///etc/passwd"),
    ] {
        let mut client = gate.client();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: files.example\r\n\r\n"));
        assert_eq!(client.response().status, 400, "{target}");
        assert_eq!(gate.denial(&client)["reason"], reason, "{target}");
    }
    assert_eq!(world.dns.packets(), 0);
}

#[test]
fn the_port_of_the_url_is_the_port_that_is_judged_and_dialled() {
    let world = World::new();
    let _origin = world.origin(NAME, 8080, page("eighty-eighty"));
    let gate = world.gate(allow(&[(NAME, &[8080])])).start();

    assert_eq!(gate.client().get("http://files.example:8080/").text(), "eighty-eighty");
    let response = gate.client().get("http://files.example/");
    assert_denied(&response, 403, "http_request_denied", "the rule allows other ports");
    assert_eq!(gate.reason("port-not-in-rule")["port"], 80);
}

#[test]
fn a_url_whose_host_two_readers_see_differently_goes_nowhere() {
    let world = World::new();
    let gate = world.gate(allow_one("*.example", &[80])).start();

    for url in [
        "http://files.example\\@evil.example/",
        "http://files.example#@evil.example/",
        "http://evil.example\\.files.example/",
        "http://files.example%2f@evil.example/",
        "http://files.example:80@evil.example/",
        "http://files.example:80:80/",
        "http:///files.example/",
        "http:/files.example/",
        "http:files.example/",
        "http://",
        "http://[files.example]/",
        "//files.example/",
    ] {
        let mut client = gate.client();
        client.send(format!("GET {url} HTTP/1.1\r\nHost: files.example\r\n\r\n"));
        assert_eq!(client.response().status, 400, "{url}");
    }
    assert_eq!(world.dns.packets(), 0, "{:?}", world.dns.asked());
}

#[test]
fn a_name_in_capitals_and_with_a_dot_leaves_in_its_plain_form() {
    let world = World::new();
    let origin = world.http(NAME, page("welcome"));
    let gate = world.gate(allow_one(NAME, &[80])).start();

    let response = gate.ask("GET http://FILES.example./ HTTP/1.1\r\nHost: files.EXAMPLE\r\n\r\n");

    assert_eq!(response.status, 200, "{}", response.text());
    let heard = origin.heard();
    assert!(heard.to_ascii_lowercase().contains("\r\nhost: files.example\r\n"), "{heard}");
    assert!(heard.contains("files.example"), "{heard}");
}

#[test]
fn one_connection_may_ask_for_one_host_after_another() {
    let world = World::new();
    let _origins = (world.http(NAME, page("files")), world.http("pages.example", page("pages")));
    let gate = world.gate(allow(&[(NAME, &[80]), ("pages.example", &[80])])).start();
    let mut client = gate.client();

    for _ in 0..3 {
        assert_eq!(client.get("http://files.example/").text(), "files");
        assert_eq!(client.get("http://pages.example/").text(), "pages");
    }
}

#[test]
fn what_is_sent_behind_a_body_is_a_request_of_its_own() {
    let world = World::new();
    let origin = world.http(NAME, page("files"));
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();

    client.send(
        "POST http://files.example/ HTTP/1.1\r\nHost: files.example\r\nContent-Length: 3\r\n\r\nabc\
         GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n\
         GET http://files.example/last HTTP/1.1\r\nHost: files.example\r\n\r\n",
    );

    let statuses = [client.response().status, client.response().status, client.response().status];
    assert_eq!(statuses, [200, 403, 200]);
    assert_eq!(gate.decision("evil.example")["reason"], "no-rule");
    assert!(!origin.heard().contains("evil"), "{}", origin.heard());
}

#[test]
fn a_kept_connection_to_an_origin_is_left_when_its_address_is_no_longer_taken() {
    let world = World::new();
    let _origins = (world.http("one.example", page("one")), world.http("two.example", page("two")));
    let [one, two] = ["one.example", "two.example"].map(|name| world.address_of(name).to_string());
    world.dns.set(NAME, &[&one, &two]);
    let takes = |address: &str| allow_one(NAME, &[80]).replace("127.0.0.0/8", address);
    let gate = world.gate(takes(&one)).start();
    let mut client = gate.client();
    assert_eq!(client.get("http://files.example/").text(), "one");

    gate.reload_with(&takes(&two));

    assert_eq!(client.get("http://files.example/").text(), "two");
}

#[test]
fn a_connect_may_follow_plain_requests_on_the_same_connection() {
    let world = World::new();
    let _origins = (world.http(NAME, page("files")), world.origin("echo.example", 7000, echo()));
    let gate = world.gate(allow(&[(NAME, &[80]), ("echo.example", &[7000])])).start();
    let mut client = gate.client();

    assert_eq!(client.get("http://files.example/").text(), "files");
    assert_eq!(client.connect("echo.example:7000").status, 200);
    assert_eq!(client.send("ping").exactly(4), b"ping");
}

#[test]
fn connection_close_is_honoured() {
    let world = World::new();
    let _origin = world.http(NAME, page("welcome"));
    let gate = world.gate(allow_one(NAME, &[80])).start();
    let mut client = gate.client();

    client.send("GET http://files.example/ HTTP/1.1\r\nHost: files.example\r\nConnection: close\r\n\r\n");

    assert_eq!(client.response().text(), "welcome");
    assert!(client.is_closed());
}

#[test]
fn what_a_request_claims_of_its_way_changes_nothing() {
    let world = World::new();
    let origin = world.http(NAME, page("welcome"));
    let policy = "sources: {trusted: [10.9.9.9/32]}\noutbound_rules:\n  - {name: inner, type: fqdn, \
                  destination: files.example, sources: [trusted], resolves_to: [127.0.0.0/8]}\n";
    let gate = world.gate(policy).start();

    let response = gate.ask(
        "GET http://files.example/ HTTP/1.1\r\nHost: files.example\r\nX-Forwarded-For: 10.9.9.9\r\n\
         Forwarded: for=10.9.9.9\r\nX-Forwarded-Host: files.example\r\nX-Real-IP: 10.9.9.9\r\n\r\n",
    );

    assert_eq!(response.status, 403);
    assert_eq!(gate.decision(NAME)["client"], "127.0.0.1");
    assert_eq!(origin.connections(), 0);
}
