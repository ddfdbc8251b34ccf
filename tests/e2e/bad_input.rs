//! What is no request: each kind has its own reason and a clear answer, and nothing goes out.

use outgate_tests::hello::Bent;
use outgate_tests::origin::{listen_only, page};
use outgate_tests::policy::{allow, allow_one};
use outgate_tests::{Client, World};

/// Authorities that only look like one. The policy allows every name they could be mistaken for.
fn odd_authorities() -> Vec<(&'static str, String)> {
    let label_64 = format!("{}.example:443", "a".repeat(64));
    let name_254 = format!("aa.{}example:443", "a.".repeat(122));
    assert_eq!(name_254.len(), 254 + ":443".len());
    let fixed = [
        ("host-bracketed", "[pypi.example]:443"),
        ("host-bracketed", "[[pypi.example]]:443"),
        ("host-bracketed", "[127.0.0.1]:443"),
        ("host-bracketed", "[[::1]]:443"),
        ("host-percent-encoded", "pypi%2eexample:443"),
        ("host-percent-encoded", "pypi.example%00.evil.example:443"),
        ("host-user-info", "user@pypi.example:443"),
        ("host-user-info", "user:pass@pypi.example:443"),
        ("host-zone-id", "[fe80::1%25eth0]:443"),
        ("host-zone-id", "[fe80::1%eth0]:443"),
        ("host-bare-ipv6", "::1:443"),
        ("host-numeric", "2130706433:443"),
        ("host-numeric", "0177.0.0.1:443"),
        ("host-numeric", "0x7f.0.0.1:443"),
        ("host-numeric", "0x7f000001:443"),
        ("host-numeric", "127.1:443"),
        ("host-numeric", "127.0.0.1.:443"),
        ("host-numeric", "127.0.0.256:443"),
        ("port-zero", "pypi.example:0"),
        ("port-out-of-range", "pypi.example:65536"),
        ("port-out-of-range", "pypi.example:4294967739"),
        ("port-out-of-range", "pypi.example:18446744073709552059"),
        ("port-leading-zero", "pypi.example:007"),
        ("port-leading-zero", "pypi.example:0443"),
        ("port-not-decimal", "pypi.example:+443"),
        ("port-not-decimal", "pypi.example:-443"),
        ("port-not-decimal", "pypi.example:0x1bb"),
        ("port-not-decimal", "pypi.example:443x"),
        ("port-missing", "pypi.example"),
        ("port-missing", "pypi.example:"),
        ("host-empty", ":443"),
        ("host-empty-label", "pypi..example:443"),
        ("host-empty-label", ".pypi.example:443"),
        ("host-empty-label", "pypi.example..:443"),
        ("host-hyphen", "-pypi.example:443"),
        ("host-character", "pypi.example:443:80"),
        ("host-character", "pypi.example/x:443"),
        ("host-character", "pypi.example?x:443"),
        ("host-character", "pypi.example#x:443"),
        ("host-character", "pypi.example\\x:443"),
        ("host-character", "*.example:443"),
    ];
    let mut table: Vec<_> = fixed.map(|(reason, text)| (reason, text.to_owned())).into();
    table.push(("host-label-too-long", label_64));
    table.push(("host-too-long", name_254));
    table
}

#[test]
fn each_odd_authority_has_its_own_reason_and_goes_nowhere() {
    let world = World::new();
    let origin = world.origin("pypi.example", 443, listen_only());
    let gate = world.gate(allow_one("*.example", &[443])).start();

    for (reason, authority) in odd_authorities() {
        let mut client = gate.client();
        client.send(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"));
        let response = client.response();
        assert_eq!(response.status, 400, "{authority}: {}", response.text());
        assert!(client.is_closed(), "{authority}");
        let record = gate.denial(&client);
        assert_eq!(record["reason"], reason, "{authority}");
        assert!(record["asked"].as_str().is_some_and(|asked| asked.len() <= 256), "{record}");
        assert!(record.get("host").is_none_or(serde_json::Value::is_null), "{record}");
    }
    assert_eq!((origin.connections(), world.dns.packets()), (0, 0));
}

#[test]
fn odd_hosts_in_urls_are_judged_alike() {
    let world = World::new();
    let origin = world.http("pypi.example", page("reached"));
    let gate = world.gate(allow_one("*.example", &[80])).start();

    for (reason, authority) in odd_authorities() {
        let (host, port) = authority.rsplit_once(':').unwrap_or((&authority, ""));
        // A URL may leave its port out; and what follows the host is then its path or query.
        if reason == "port-missing" || host.contains(['/', '?', '#', '\\']) {
            continue;
        }
        let authority = if port == "443" { format!("{host}:80") } else { authority.clone() };
        let mut client = gate.client();
        client.send(format!("GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n"));
        assert_eq!(client.response().status, 400, "{authority}");
        assert_eq!(gate.denial(&client)["reason"], reason, "{authority}");
    }
    assert_eq!((origin.connections(), world.dns.packets()), (0, 0));
}

#[test]
fn control_bytes_and_other_alphabets_have_their_reasons() {
    let world = World::new();
    let gate = world.gate(allow_one("*.example", &[443])).start();

    for (reasons, authority) in [
        (&["host-control-byte", "head-control-byte"][..], &b"pypi.example\0.evil.example:443"[..]),
        (&["host-control-byte", "head-control-byte"], b"pypi.exa\x7fmple:443"),
        (&["host-control-byte", "head-control-byte", "head-malformed"], b"pypi\tevil.example:443"),
        (&["host-not-ascii"], "b\u{fc}cher.example:443".as_bytes()),
        (&["host-not-ascii"], "pypi\u{3002}example:443".as_bytes()),
        (&["host-not-ascii"], "p\u{443}pi.example:443".as_bytes()),
        (&["port-not-decimal", "host-not-ascii"], "pypi.example:\u{664}\u{664}\u{663}".as_bytes()),
        (&["host-not-ascii"], b"\xff\xfe.example:443"),
    ] {
        let mut client = gate.client();
        client.send([b"CONNECT ", authority, b" HTTP/1.1\r\nHost: pypi.example:443\r\n\r\n"].concat());
        assert_eq!(client.response().status, 400, "{authority:?}");
        let record = gate.denial(&client);
        assert!(reasons.contains(&record["reason"].as_str().unwrap()), "{authority:?}: {record}");
    }
    assert_eq!(world.dns.packets(), 0);
}

#[test]
fn letter_case_and_one_final_dot_change_nothing() {
    let world = World::new();
    let _origin = world.origin("pypi.example", 7000, listen_only());
    let gate = world.gate(allow_one("PyPI.example", &[7000])).start();

    for same in ["pypi.example", "PYPI.EXAMPLE", "pYpI.eXample.", "pypi.example."] {
        assert_eq!(gate.client().connect(&format!("{same}:7000")).status, 200, "{same}");
    }
    for other in ["evil.example", "EVIL.EXAMPLE."] {
        assert_eq!(gate.client().connect(&format!("{other}:7000")).status, 403, "{other}");
    }
    let hosts = gate.records_until(6, |r| r["event"] == "decision");
    assert!(hosts.iter().all(|r| r["host"] == "pypi.example" || r["host"] == "evil.example"), "{hosts:?}");
    assert!(world.dns.asked().iter().all(|name| name == "pypi.example"), "{:?}", world.dns.asked());
}

#[test]
fn the_longest_label_and_the_longest_name_are_served() {
    let world = World::new();
    let label_63 = format!("{}.example", "a".repeat(63));
    let name_253 =
        format!("{}.{}.{}.{}.example", "a".repeat(61), "b".repeat(61), "c".repeat(61), "d".repeat(59));
    assert_eq!(name_253.len(), 253);
    for name in [&label_63, &name_253] {
        let _origin = world.origin(name, 7000, listen_only());
        let gate = world.gate(allow_one(name, &[7000])).start();
        assert_eq!(gate.client().connect(&format!("{name}:7000")).status, 200, "{name}");
    }
}

/// Heads that are malformed as heads.
const BAD_HEADS: [(&str, &[u8]); 16] = [
    ("head-bare-lf", b"CONNECT pypi.example:443 HTTP/1.1\nHost: pypi.example:443\n\n"),
    ("head-bare-lf", b"GET http://pypi.example/ HTTP/1.1\r\nHost: pypi.example\n\r\n"),
    ("head-folded", b"GET http://pypi.example/ HTTP/1.1\r\nHost: pypi.example\r\nX: a\r\n b\r\n\r\n"),
    ("head-folded", b"GET http://pypi.example/ HTTP/1.1\r\nHost:\r\n\tpypi.example\r\n\r\n"),
    ("head-control-byte", b"GET http://pypi.example/ HTTP/1.1\r\nHost: pypi.example\r\nX: a\0b\r\n\r\n"),
    ("head-control-byte", b"GET http://pypi.example/ HTTP/1.1\r\nHost: pypi.example\r\nX: a\rb\r\n\r\n"),
    ("head-malformed", b"GET http://pypi.example/ HTTP/1.1\r\nHost: pypi.example\r\nno colon\r\n\r\n"),
    ("head-malformed", b"GET http://pypi.example/ HTTP/1.1\r\nHost: pypi.example\r\n: no name\r\n\r\n"),
    ("head-malformed", b"GET http://pypi.example/ HTTP/1.1\r\nHost: pypi.example\r\nX y: z\r\n\r\n"),
    ("head-malformed", b"GET  http://pypi.example/ HTTP/1.1\r\nHost: pypi.example\r\n\r\n"),
    ("head-malformed", b"GET http://pypi.example/ x HTTP/1.1\r\nHost: pypi.example\r\n\r\n"),
    ("head-malformed", b"G@T http://pypi.example/ HTTP/1.1\r\nHost: pypi.example\r\n\r\n"),
    ("http-version", b"GET http://pypi.example/ HTTP/1.2\r\nHost: pypi.example\r\n\r\n"),
    ("http-version", b"GET http://pypi.example/ HTTP/3.0\r\nHost: pypi.example\r\n\r\n"),
    ("host-field-repeated", b"CONNECT pypi.example:443 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    (
        "connect-with-body",
        b"CONNECT pypi.example:443 HTTP/1.1\r\nHost: pypi.example:443\r\nContent-Length: 5\r\n\r\nhello",
    ),
];

#[test]
fn each_malformed_head_has_its_own_reason_and_closes() {
    let world = World::new();
    let origin = world.http("pypi.example", page("reached"));
    let gate = world.gate(allow_one("pypi.example", &[80, 443])).start();

    for (reason, head) in BAD_HEADS {
        let shown = String::from_utf8_lossy(head);
        let mut client = gate.client();
        client.send(head);
        let response = client.response();
        assert!(matches!(response.status, 400 | 505), "{shown:?}: {}", response.status);
        assert!(client.is_closed(), "{shown:?}");
        let seen = gate.denial(&client);
        // "This is not HTTP" is as true of a broken request line.
        let not_http = reason.starts_with("head-malformed") && seen["reason"] == "not-http";
        assert!(seen["reason"] == reason || not_http, "{shown:?}: {seen}");
    }
    assert_eq!((origin.connections(), world.dns.packets()), (0, 0));
}

#[test]
fn a_connect_with_transfer_encoding_is_refused() {
    let world = World::new();
    let gate = world.gate(allow_one("pypi.example", &[443])).start();
    let head = "CONNECT pypi.example:443 HTTP/1.1\r\nHost: pypi.example:443\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";

    assert_eq!(gate.ask(head).status, 400);
    assert_eq!(gate.reason("connect-with-body")["verdict"], "deny");
    assert_eq!(world.dns.packets(), 0);
}

#[test]
fn other_protocols_are_turned_away() {
    let world = World::new();
    let gate = world.gate(allow_one("pypi.example", &[80, 443])).set("limits.head", "1s").start();
    let get = b"GET http://pypi.example/ HTTP/1.1\r\nHost: pypi.example\r\n\r\n";
    let speeches: [(&str, Vec<u8>); 8] = [
        ("SOCKS4", b"\x04\x01\x01\xbb\x00\x00\x00\x01me\0pypi.example\0".to_vec()),
        ("SOCKS5", b"\x05\x01\x00".to_vec()),
        ("PROXY v1", [b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", &get[..]].concat()),
        (
            "PROXY v2",
            [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x02\0\x01\0\x02", &get[..]].concat(),
        ),
        ("TLS", Bent::naming(&[b"pypi.example"]).bytes()),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
        ("HTTP/0.9", b"GET http://pypi.example/\r\n\r\n".to_vec()),
    ];

    for (what, bytes) in speeches {
        let mut client = gate.client();
        client.send_to_whom_it_may_concern(&bytes);
        let answer = String::from_utf8_lossy(&client.rest()).into_owned();
        assert!(!answer.contains("HTTP/1.1 200"), "{what}: {answer}");
        assert_eq!(gate.denial(&client)["verdict"], "deny", "{what}");
    }
    assert_eq!(world.dns.packets(), 0);
}

#[test]
fn a_head_that_never_ends_is_cut_at_its_bound() {
    let world = World::new();
    let gate = world.gate(allow_one("pypi.example", &[443])).start();

    for endless in ["X: y\r\n", "X-a-very-long-field-name-without-an-end"] {
        let mut client = gate.client();
        client.send("CONNECT pypi.example:443 HTTP/1.1\r\nHost: pypi.example:443\r\n");
        for _ in 0..(1 << 20) / endless.len() {
            client.send_to_whom_it_may_concern(endless);
        }
        assert_eq!(gate.denial(&client)["reason"], "head-too-large");
    }
    assert_eq!(world.dns.packets(), 0);
}

#[test]
fn a_head_that_stops_is_recorded() {
    let world = World::new();
    let gate = world.gate(allow_one("pypi.example", &[443])).start();
    let mut client = gate.client();

    client.send("CONNECT pypi.example:443 HTTP/1.1\r\nHost: pypi").finish_sending();

    client.rest();
    assert_eq!(gate.denial(&client)["reason"], "head-truncated");
}

#[test]
fn fixed_seed_mutations_of_heads_neither_kill_the_gate_nor_get_out() {
    let world = World::new();
    let allowed = world.http("pypi.example", page("welcome"));
    let denied = world.http("evil.example", page("reached"));
    let mut gate = world
        .gate(allow_one("pypi.example", &[80]))
        .set("limits.head", "1s")
        .set("limits.per_client", 4000)
        .start();
    let seeds: [&[u8]; 4] = [
        b"CONNECT evil.example:80 HTTP/1.1\r\nHost: evil.example:80\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: pypi.example\r\nConnection: close\r\n\r\n",
        b"POST http://pypi.example/ HTTP/1.1\r\nHost: pypi.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"GET http://pypi.example/ HTTP/1.1\r\nHost: pypi.example\r\nContent-Length: 3\r\n\r\nabc",
    ];

    let mut random = Random(20_261_121);
    for round in 0..1500 {
        let mut client = gate.client();
        client.send_to_whom_it_may_concern(random.mutate(seeds[round % seeds.len()]));
        finish(client);
    }

    assert!(gate.is_alive());
    assert_eq!(gate.client().get("http://pypi.example/").text(), "welcome");
    assert_eq!(denied.connections(), 0);
    assert!(!world.dns.asked().iter().any(|name| name == "evil.example"), "{:?}", world.dns.asked());
    assert!(allowed.connections() > 0);
}

#[test]
fn fixed_seed_mutations_of_hellos_neither_kill_the_gate_nor_get_out() {
    let world = World::new();
    let origin = world.origin("pypi.example", 443, listen_only());
    let mut gate = world.gate(allow(&[("pypi.example", &[443])])).set("limits.head", "1s").start();
    let hello = world.authority.hello("evil.example");

    let mut random = Random(7);
    for _ in 0..600 {
        let mut client = gate.tunnel("pypi.example:443");
        client.send_to_whom_it_may_concern(random.mutate(&hello));
        finish(client);
    }

    assert!(gate.is_alive());
    assert!(!origin.heard().contains("evil.example"), "a hello for another name reached the origin");
}

/// Ends a connection without waiting for an answer that a half-mutated request may never get.
fn finish(mut client: Client) {
    client.finish_sending();
}

/// A small generator of reproducible randomness (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    /// Flips, inserts, removes or repeats a few bytes.
    fn mutate(&mut self, seed: &[u8]) -> Vec<u8> {
        const SPICE: &[u8] = b"\r\n\0:;, %@/[]\x7f\xff09azAZ.-_\t";
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes.insert(at, SPICE[self.below(SPICE.len())]),
                2 if bytes.len() > 1 => _ = bytes.remove(at),
                3 => bytes[at] = SPICE[self.below(SPICE.len())],
                _ => {
                    let end = (at + 1 + self.below(16)).min(bytes.len());
                    let again = bytes[at..end].to_vec();
                    bytes.splice(at..at, again);
                }
            }
        }
        bytes
    }
}
