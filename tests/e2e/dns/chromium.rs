//! Chromium with its own resolver, which asks for HTTPS records and does what they say: HTTP/3, and a name that is
//! encrypted where an observer would read it. Behind the gate it does neither.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;

use outgate_tests::alone::alone;
use outgate_tests::authority::{NameServer, Software};
use outgate_tests::lookup::extended_error;
use outgate_tests::origin::{base64, page};
use outgate_tests::policy::allow_one;
use outgate_tests::program::{Program, finish, program, words};
use outgate_tests::{Setup, World};
use serde_json::{Value, json};

const SITE: &str = "site.example";
/// What an observer reads in place of the name.
const COVER: &str = "cover.example";

/// The keys to hide a name with, of the form that RFC 9849 §4 gives them.
fn keys() -> String {
    // The public key of RFC 7748 §6.1: nobody has to be able to decrypt with it.
    let key = [
        0x85, 0x20, 0xf0, 0x09, 0x89, 0x30, 0xa7, 0x54, 0x74, 0x8b, 0x7d, 0xdc, 0xb4, 0x3e, 0xf7, 0x5a, 0x0d,
        0xbf, 0x3a, 0x0d, 0x26, 0x38, 0x1a, 0xf4, 0xeb, 0xa4, 0xa9, 0x8e, 0xaa, 0x9b, 0x4e, 0x6a,
    ];
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
    let suites = [0, 1, 0, 1];
    let contents = [
        &[7, 0, 0x20][..],
        &length(&key),
        &key,
        &length(&suites),
        &suites,
        &[0, u8::try_from(COVER.len()).unwrap()],
        COVER.as_bytes(),
        &[0, 0],
    ]
    .concat();
    let config = [&[0xfe, 0x0d][..], &length(&contents), &contents].concat();
    base64(&[&length(&config)[..], &config].concat())
}

/// A page's text as Chromium sees it, or what it says in its place.
fn visit(chromium: &Program, folder: &Path, url: &str) -> String {
    let mut command = chromium.command();
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]);
    command.args(["--disable-background-networking", "--disable-component-update", "--disable-default-apps"]);
    command.args(["--enable-features=AsyncDns,UseDnsHttpsSvcb", "--ignore-certificate-errors", "--dump-dom"]);
    command.arg(format!("--user-data-dir={}", folder.display())).arg(url);
    command.env("HOME", folder);
    words(&finish(&mut command))
}

/// The site, with HTTPS records that offer all there is, and what came to it.
struct Site {
    world: World,
    dns: NameServer,
    origin: outgate_tests::Origin,
    quic: UdpSocket,
}

impl Site {
    /// Its name server listens on port 53 at `dns`.
    fn start(dns: &str) -> Option<Self> {
        let world = World::new();
        let origin = world.https(SITE, page("welcome"));
        let place = world.address_of(SITE);
        let quic = UdpSocket::bind(SocketAddr::from((place, 443))).unwrap();
        quic.set_nonblocking(true).unwrap();
        let zone = format!(
            "site A {place}\nsite HTTPS 1 . alpn=h3,http/1.1 ech={} ipv4hint={place}\nevil A {place}\nevil HTTPS 1 . alpn=h3\n",
            keys()
        );
        let dns = NameServer::authority(Software::Bind, &[("example", &zone)], Some(dns.parse().unwrap()))?;
        Some(Self { world, dns, origin, quic })
    }

    /// Whether HTTP/3 was tried.
    fn has_heard_quic(&self) -> bool {
        self.quic.recv_from(&mut [0; 2048]).is_ok()
    }
}

#[test]
fn without_the_gate_chromium_hides_the_name_and_tries_http3() {
    // Or the next test would show nothing.
    let Some(chromium) = program("chromium", &["--version"]) else { return };
    let Some(network) = alone(without_the_gate_chromium_hides_the_name_and_tries_http3) else { return };
    let Some(site) = Site::start("127.0.0.1:53") else { return };
    network.resolve_by(site.dns.address().ip());
    let seen = visit(
        &chromium,
        &site.world.authority.pem_file().with_extension("profile"),
        &format!("https://{SITE}/"),
    );
    assert!(site.has_heard_quic(), "{seen}");
    // Nobody here has the keys: it comes again without them.
    let heard = site.origin.heard();
    let (cover, name) = (heard.find(COVER), heard.find(SITE));
    assert!(cover.is_some_and(|cover| name.is_none_or(|name| cover < name)), "{cover:?} {name:?}: {seen}");
}

#[test]
fn behind_the_gate_chromium_shows_the_name_and_tries_no_http3() {
    let Some(chromium) = program("chromium", &["--version"]) else { return };
    let Some(network) = alone(behind_the_gate_chromium_shows_the_name_and_tries_no_http3) else { return };
    network.own("10.53.0.1");
    let Some(site) = Site::start("10.53.0.1:53") else { return };
    let gate = Setup::new(&allow_one(SITE, &[443]))
        .set("dns.upstreams", [site.dns.address().to_string()])
        .set("listen.dns", "127.0.0.1:53")
        .start();
    network.resolve_by(gate.dns().ip());
    let profile = site.world.authority.pem_file().with_extension("profile");

    let seen = visit(&chromium, &profile, &format!("https://{SITE}/"));
    assert!(seen.contains("welcome"), "{seen}\n{}", gate.audit_text());
    let heard = site.origin.heard();
    assert!(heard.contains(SITE) && !heard.contains(COVER) && !site.has_heard_quic(), "{seen}");
    let of_type =
        |host: &str, record_type: &str| gate.record(host, |r| r["host"] == host && r["type"] == record_type);
    assert_eq!(of_type(SITE, "HTTPS")["rcode"], "NOERROR");
    assert!(site.dns.asked().contains(&format!("{SITE} HTTPS")), "{:?}", site.dns.asked());

    let before = site.origin.connections();
    let seen = visit(&chromium, &profile, "https://evil.example/");
    assert!(!seen.contains("welcome"), "{seen}");
    for record_type in ["A", "HTTPS"] {
        let record = of_type("evil.example", record_type);
        assert_eq!((&record["verdict"], &record["rcode"]), (&json!("deny"), &json!("NXDOMAIN")), "{record}");
    }
    assert_eq!((site.origin.connections(), site.has_heard_quic()), (before, false));
    assert_eq!(extended_error(&gate.lookup("evil.example", 65)).unwrap().0, 15);

    // A browser asks its maker's servers too. Nobody upstream has heard of them, nor of any other name.
    let foreign: Vec<_> = site.dns.asked().into_iter().filter(|asked| !asked.starts_with(SITE)).collect();
    assert_eq!(foreign, Vec::<String>::new());
    let denied = |r: &Value| r["kind"] == "dns" && r["host"] != SITE;
    assert!(gate.records().iter().filter(|r| denied(r)).all(|r| r["verdict"] == "deny"));
}
