//! Programs of others: Knot and unbound upstream; dig, kdig, Node, dnspython and the C library as clients.

use std::net::SocketAddr;
use std::process::Command;

use outgate_tests::authority::NameServer;
use outgate_tests::program::{Program, finish, program, skip, words};
use outgate_tests::{Gate, Setup, World};
use serde_json::json;

const NAMES: [&str; 7] = ["www", "many", "private", "rebind", "h2", "chain", "text"];

/// A zone with what resolvers stumble over.
fn zone() -> String {
    let mut zone = String::from(
        "www A 9.9.9.1\nwww AAAA 2620:fe::9\nprivate A 10.7.0.4\nrebind A 127.0.0.1\nhidden A 9.9.9.66\n\
         h2 HTTPS 1 . alpn=h2,h3 ech=AEX+DQBBtQAgACA= ipv4hint=9.9.9.2,10.0.0.1\nh2 A 9.9.9.2\n\
         chain CNAME c1\nc1 CNAME c2\nc2 CNAME c3\nc3 A 9.9.9.3\nendless CNAME endless\ntext TXT \"hello\"\n",
    );
    for number in 1..=100 {
        zone.push_str(&format!("many A 9.9.8.{number}\n"));
    }
    zone
}

fn policy() -> String {
    let mut policy = String::from("outbound_rules:\n");
    for name in NAMES {
        let more = match name {
            "private" => ", resolves_to: private",
            "text" => ", record_types: [TXT]",
            _ => "",
        };
        policy.push_str(&format!(
            "  - {{name: {name}, type: fqdn, destination: {name}.example, ports: [443]{more}}}\n"
        ));
    }
    policy
}

/// A gate in front of unbound in front of Knot.
struct Servers {
    gate: Gate,
    _upstreams: [NameServer; 2],
}

impl Servers {
    fn start(change: impl FnOnce(Setup) -> Setup) -> Option<Self> {
        let knot = NameServer::knot(&zone())?;
        let unbound = NameServer::unbound(&knot)?;
        let setup = Setup::new(&policy()).set("dns.upstreams", [unbound.address().to_string()]);
        Some(Self { gate: change(setup).start(), _upstreams: [knot, unbound] })
    }

    /// What dig or kdig says of a name, in the order of the alphabet, without its remarks.
    fn dig(&self, dig: &Program, arguments: &[&str]) -> Vec<String> {
        let dns = self.gate.dns();
        let mut command = dig.command();
        command.arg(format!("@{}", dns.ip())).args(["-p", &dns.port().to_string(), "+short"]).args(arguments);
        let output = finish(&mut command);
        assert!(output.status.success(), "{arguments:?}: {}", words(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines: Vec<_> = text.lines().filter(|line| is_answer(line)).map(str::to_owned).collect();
        lines.sort();
        lines
    }
}

fn is_answer(line: &str) -> bool {
    !line.is_empty() && !line.starts_with(";;")
}

fn assert_answers(servers: &Servers, dig: &Program, way: &[&str]) {
    let answer = |arguments: &[&str]| servers.dig(dig, &[way, arguments].concat());
    assert_eq!(answer(&["www.example", "A"]), ["9.9.9.1"]);
    assert_eq!(answer(&["www.example", "AAAA"]), ["2620:fe::9"]);
    assert_eq!(answer(&["chain.example", "A"]), ["9.9.9.3", "c1.example.", "c2.example.", "c3.example."]);
    let many = answer(&["many.example", "A"]);
    assert_eq!(many.len(), 100, "{many:?}");
    assert_eq!(answer(&["private.example", "A"]), ["10.7.0.4"]);
    assert_eq!(answer(&["text.example", "TXT"]), ["\"hello\""]);
    for nothing in [
        ["rebind.example", "A"],
        ["hidden.example", "A"],
        ["c3.example", "A"],
        ["www.example", "TXT"],
        ["example", "NS"],
    ] {
        assert_eq!(answer(&nothing), Vec::<String>::new(), "{nothing:?}");
    }
    let https = answer(&["h2.example", "HTTPS"]);
    assert_eq!(https.len(), 1, "{https:?}");
    assert!(https[0].contains("h2") && https[0].contains("9.9.9.2"), "{https:?}");
    for gone in ["h3", "ech", "10.0.0.1"] {
        assert!(!https[0].contains(gone), "{https:?}");
    }
}

#[test]
fn dig_resolves_over_udp_and_tcp_through_unbound_and_knot() {
    let (Some(dig), Some(servers)) = (program("dig", &["-v"]), Servers::start(|setup| setup)) else { return };
    for way in
        [&[][..], &["+tcp"], &["+noedns"], &["+bufsize=512"], &["+nocookie"], &["+subnet=203.0.113.0/24"]]
    {
        assert_answers(&servers, &dig, way);
    }
    // What does not fit is cut off, and the client comes again over TCP.
    let tcp = |r: &serde_json::Value| r["host"] == "many.example" && r["transport"] == "tcp";
    let _ = servers.gate.record("the second try", tcp);
    assert_eq!(servers.gate.decision("rebind.example")["withheld"], json!({"127.0.0.1": "address-loopback"}));
}

#[test]
fn dig_shows_why_a_name_is_denied() {
    let (Some(dig), Some(servers)) = (program("dig", &["-v"]), Servers::start(|setup| setup)) else { return };
    let dns = servers.gate.dns();
    let mut command = dig.command();
    command.arg(format!("@{}", dns.ip())).args(["-p", &dns.port().to_string(), "hidden.example", "MX"]);
    let said = words(&finish(&mut command));
    assert!(said.contains("status: NXDOMAIN"), "{said}");
    assert!(said.contains("EDE: 15 (Blocked): (no rule allows it)"), "{said}");
}

#[test]
fn kdig_resolves_over_udp_tcp_and_tls() {
    let Some(kdig) = program("kdig", &["--version"]) else { return };
    let certified = rcgen::generate_simple_self_signed(["dns.gate.example".to_owned()]).unwrap();
    let tls = json!({"address": "127.0.0.1:0", "certificate": "dns.pem", "key": "dns.key"});
    let servers = Servers::start(|setup| {
        setup
            .file("dns.pem", certified.cert.pem())
            .file("dns.key", certified.signing_key.serialize_pem())
            .set("listen.dns", json!({"address": "127.0.0.1:0", "tls": tls}))
    });
    let Some(servers) = servers else { return };
    for way in [&[][..], &["+tcp"], &["+tcp", "+keepopen"]] {
        assert_answers(&servers, &kdig, way);
    }
    let line = servers.gate.said("outgate: dns-tls listens on ").unwrap();
    let secure: SocketAddr = line.rsplit(' ').next().unwrap().parse().unwrap();
    let ask = |hostname: &str| {
        let mut command = kdig.command();
        command.arg(format!("@{}", secure.ip())).args(["-p", &secure.port().to_string(), "+tls", "+short"]);
        command.arg(format!("+tls-ca={}", servers.gate.folder().join("dns.pem").display()));
        command.arg(format!("+tls-hostname={hostname}")).args(["+retry=0", "many.example", "A"]);
        let output = finish(&mut command);
        String::from_utf8(output.stdout).unwrap().lines().filter(|line| line.starts_with("9.9.8.")).count()
    };
    assert_eq!((ask("dns.gate.example"), ask("another.example")), (100, 0));
    let _ = servers.gate.record("a lookup over TLS", |r| r["transport"] == "tls");
}

#[test]
fn node_resolves_and_hears_of_denials() {
    let (Some(node), Some(servers)) = (program("node", &["--version"]), Servers::start(|setup| setup)) else {
        return;
    };
    let script = format!(
        "const resolver = new (require('dns').promises.Resolver)(); resolver.setServers(['{}']);
         const ask = async (name, type) => {{ try {{ console.log(name, JSON.stringify((await resolver.resolve(name, type)))) }}
                                              catch (error) {{ console.log(name, error.code) }} }};
         (async () => {{ await ask('www.example', 'A'); await ask('www.example', 'AAAA'); await ask('chain.example', 'A');
                         await ask('hidden.example', 'A'); await ask('rebind.example', 'A');
                         console.log((await resolver.resolve4('many.example')).length) }})()",
        servers.gate.dns()
    );
    let output = finish(node.command().args(["-e", &script]));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).lines().collect::<Vec<_>>(),
        [
            "www.example [\"9.9.9.1\"]",
            "www.example [\"2620:fe::9\"]",
            "chain.example [\"9.9.9.3\"]",
            "hidden.example ENOTFOUND",
            "rebind.example ENODATA",
            "100"
        ],
        "{}",
        words(&output)
    );
}

#[test]
fn dnspython_resolves_and_hears_of_denials() {
    let (Some(python), Some(servers)) =
        (program("python3", &["-c", "import dns"]), Servers::start(|setup| setup))
    else {
        return;
    };
    let dns = servers.gate.dns();
    let script = format!(
        "import dns.resolver\nresolver = dns.resolver.Resolver(configure=False)\n\
         resolver.nameservers, resolver.port = ['{}'], {}\nresolver.use_edns(0, 0, 1232)\n\
         for name, kind in [('www.example', 'A'), ('chain.example', 'A'), ('text.example', 'TXT'), ('hidden.example', 'A'), ('rebind.example', 'A')]:\n\
         \x20   try: print(name, [str(record) for record in resolver.resolve(name, kind)])\n\
         \x20   except Exception as error: print(name, type(error).__name__)\n\
         print(len(resolver.resolve('many.example', 'A')))\n",
        dns.ip(),
        dns.port()
    );
    let output = finish(python.command().args(["-c", &script]));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).lines().collect::<Vec<_>>(),
        [
            "www.example ['9.9.9.1']",
            "chain.example ['9.9.9.3']",
            "text.example ['\"hello\"']",
            "hidden.example NXDOMAIN",
            "rebind.example NoAnswer",
            "100"
        ],
        "{}",
        words(&output)
    );
}

#[test]
fn the_c_library_resolves_with_a_resolv_conf_that_names_the_gate() {
    let mount = ["-m", "sh", "-c", "mount --bind /etc/resolv.conf /etc/resolv.conf"];
    if !Command::new("unshare").args(mount).output().is_ok_and(|output| output.status.success()) {
        return skip("a mount namespace of one's own cannot be made here");
    }
    let Some(python) = program("python3", &["--version"]) else { return };
    // resolv.conf has no ports.
    let world = World::new();
    let place = world.address_of("gate.example");
    let Some(servers) = Servers::start(|setup| {
        setup
            .file("resolv.conf", format!("nameserver {place}\noptions timeout:5\n"))
            .set("listen.dns", format!("{place}:53"))
    }) else {
        return;
    };
    // Python's getaddrinfo is the C library's, and asks for both families even where there is but loopback.
    let script = "import socket, sys\n\
                  for name in sys.argv[1:]:\n\
                  \x20   try: print(name, sorted({a[4][0] for a in socket.getaddrinfo(name, 443)})[:3])\n\
                  \x20   except socket.gaierror: print(name, 'nothing')\n";
    let mut unshare = Command::new("unshare");
    unshare.args(["-m", "sh", "-c", "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\""]);
    unshare.arg(servers.gate.folder().join("resolv.conf")).arg(python.command().get_program());
    unshare.args(["-c", script]);
    let names = ["www", "chain", "many", "private", "hidden", "rebind"];
    let output = finish(unshare.args(names.map(|name| format!("{name}.example"))));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).lines().collect::<Vec<_>>(),
        [
            "www.example ['2620:fe::9', '9.9.9.1']",
            "chain.example ['9.9.9.3']",
            "many.example ['9.9.8.1', '9.9.8.10', '9.9.8.100']",
            "private.example ['10.7.0.4']",
            "hidden.example nothing",
            "rebind.example nothing"
        ],
        "{}",
        words(&output)
    );
}
