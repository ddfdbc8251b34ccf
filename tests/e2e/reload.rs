//! Reload: a changed policy takes hold without a restart, a bad one changes nothing, open tunnels are judged
//! again.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use outgate_tests::origin::{Origin, echo, listen_only, page};
use outgate_tests::policy::{NOTHING, allow, allow_one};
use outgate_tests::upstream::{Upstream, address, bytes, reply_from};
use outgate_tests::{Client, Gate, PATIENCE, Setup, World, wait_until};
use rustix::process::Signal;

const NAME: &str = "echo.example";

fn opens_both() -> String {
    allow(&[(NAME, &[7000]), ("other.example", &[7000])])
}

/// A tunnel that is known to work in both directions.
fn working_tunnel(gate: &Gate) -> Client {
    let mut client = gate.tunnel("echo.example:7000");
    assert_eq!(client.send("ping").exactly(4), b"ping");
    client
}

#[test]
fn a_file_renamed_over_the_policy_takes_hold() {
    let world = World::new();
    let gate = world.gate(NOTHING).start();
    assert_eq!(gate.client().connect("echo.example:7000").status, 403);

    let event = gate.reload_with(&allow_one(NAME, &[7000]));

    assert_eq!(
        (&event["result"], &event["trigger"], &event["rules"]),
        (&"applied".into(), &"file".into(), &1.into())
    );
    assert_ne!(event["revision"], event["previous"]);
    assert_eq!(gate.client().connect("echo.example:7000").status, 502);
    assert_eq!(gate.close(NAME)["revision"], event["revision"]);
}

#[test]
fn a_policy_written_in_place_takes_hold() {
    let world = World::new();
    let gate = world.gate(NOTHING).start();
    let path = gate.folder().join("policy.yaml");

    let event = gate.policy_event_after(|| std::fs::write(&path, allow_one(NAME, &[7000])).unwrap());

    assert_eq!(event["result"], "applied");
}

#[test]
fn a_config_map_that_swaps_its_symlink_takes_hold() {
    let world = World::new();
    let setup = world.gate(NOTHING).set("policy", vec!["mounted/policy.yaml"]);
    let mounted = setup.folder().join("mounted");
    let publish = |version: &str, policy: &str| {
        std::fs::create_dir_all(mounted.join(version)).unwrap();
        std::fs::write(mounted.join(version).join("policy.yaml"), policy).unwrap();
        std::os::unix::fs::symlink(version, mounted.join("..data_tmp")).unwrap();
        std::fs::rename(mounted.join("..data_tmp"), mounted.join("..data")).unwrap();
    };
    publish("..v1", NOTHING);
    std::os::unix::fs::symlink("..data/policy.yaml", mounted.join("policy.yaml")).unwrap();
    let gate = setup.start();

    let event = gate.policy_event_after(|| {
        publish("..v2", &allow_one(NAME, &[7000]));
        std::fs::remove_dir_all(mounted.join("..v1")).unwrap();
    });

    assert_eq!(event["result"], "applied");
    assert_eq!(gate.client().connect("echo.example:7000").status, 502);
}

#[test]
fn a_folder_reloads_when_a_file_joins_and_when_one_leaves() {
    let world = World::new();
    let gate = world.gate(NOTHING).file("policy.d/a.yaml", NOTHING).set("policy", vec!["policy.d/"]).start();
    let joins = gate.folder().join("policy.d/b.yaml");

    gate.policy_event_after(|| std::fs::write(&joins, allow_one(NAME, &[7000])).unwrap());
    assert_eq!(gate.client().connect("echo.example:7000").status, 502);
    gate.policy_event_after(|| std::fs::remove_file(&joins).unwrap());
    assert_eq!(gate.client().connect("echo.example:7000").status, 403);
}

#[test]
fn a_changed_list_of_names_takes_hold() {
    let world = World::new();
    let policy =
        "outbound_rules:\n  - {name: mirrors, type: fqdn, destination_file: mirrors.txt, ports: [7000]}\n";
    let gate = world.gate(policy).file("mirrors.txt", "other.example\n").start();
    assert_eq!(gate.client().connect("echo.example:7000").status, 403);

    let list = gate.folder().join("mirrors.txt");
    gate.policy_event_after(|| std::fs::write(list, "other.example\necho.example\n").unwrap());

    assert_eq!(gate.client().connect("echo.example:7000").status, 502);
}

#[test]
fn sighup_reloads() {
    let world = World::new();
    let gate = world.gate(NOTHING).start();

    gate.signal(Signal::HUP);

    let event = gate.record("the signal", |r| r["event"] == "policy" && r["trigger"] == "signal");
    assert_eq!(event["result"], "unchanged");
    gate.write_policy(&allow_one(NAME, &[7000]));
    gate.signal(Signal::HUP);
    wait_until("the new policy", || gate.client().connect("echo.example:7000").status == 502);
}

#[test]
fn nobody_but_its_own_user_can_ask_a_gate_to_reload() {
    let gate = World::new().gate(NOTHING).set("control", "run/control.sock").start();
    let mode = |path: &str| gate.folder().join(path).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("run"), mode("run/control.sock")), (0o700, 0o600));
}

/// A service manager's socket; who hears the gate says what it was told, line by line.
fn service_manager(setup: Setup) -> (Setup, impl Fn() -> Vec<String>) {
    let path = setup.folder().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = move || {
        let mut told = [0; 4096];
        let length = socket.recv(&mut told).unwrap();
        String::from_utf8_lossy(&told[..length]).lines().map(str::to_owned).collect()
    };
    (setup.variable("NOTIFY_SOCKET", path), heard)
}

#[test]
fn the_service_manager_hears_of_one_reload_after_the_other() {
    // Long to read, so that the second signal comes while the first is being answered.
    let names: String = (0..100_000).map(|number| format!("n{number}.example\n")).collect();
    let policy =
        "outbound_rules:\n  - {name: mirrors, type: fqdn, destination_file: mirrors.txt, ports: [7000]}\n";
    let (setup, heard) = service_manager(World::new().gate(policy).file("mirrors.txt", names));
    let gate = setup.start();
    assert_eq!(heard()[0], "READY=1");

    gate.signal(Signal::HUP);
    let first = heard();
    gate.signal(Signal::HUP);

    let told = [first, heard(), heard(), heard()];
    assert_eq!(told.each_ref().map(|lines| &*lines[0]), ["RELOADING=1", "READY=1", "RELOADING=1", "READY=1"]);
    assert!(told[2][1].starts_with("MONOTONIC_USEC=") && told[2][1] > told[0][1], "{told:?}");
    assert!(told[3][1].starts_with("STATUS=unchanged: enforcing revision "), "{told:?}");
}

#[test]
fn the_service_manager_shows_what_is_in_force_whoever_asked_for_it() {
    let (setup, heard) = service_manager(World::new().gate(NOTHING));
    let gate = setup.start();
    assert_eq!(heard()[0], "READY=1");

    let event = gate.reload_with(&allow_one(NAME, &[7000]));

    let revision = event["revision"].as_str().unwrap();
    assert_eq!(heard(), [format!("STATUS=enforcing revision {revision}: 1 rule from 1 file")]);
}

#[test]
fn the_reload_command_says_what_came_of_it() {
    let world = World::new();
    let gate = world.gate(NOTHING).start();

    gate.write_policy(&allow_one(NAME, &[7000]));
    let output = gate.run(["reload", "--config", "outgate.yaml"]);

    assert!(output.status.success(), "{output:?}");
    assert_eq!(gate.client().connect("echo.example:7000").status, 502);

    gate.write_policy("outbound_rules: [{name: x, type: fqdn, destination: '*'}]\n");
    let output = gate.run(["reload", "--config", "outgate.yaml"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains("policy.yaml:1"), "{said}");
}

/// Policies that must not take hold, nor open or close anything.
const BAD: [(&str, &str); 7] = [
    ("an unknown key", "outbound_ruls: []\n"),
    ("a rule without destination", "outbound_rules:\n  - {name: x, type: fqdn}\n"),
    ("a half-written file", "outbound_rules:\n  - {name: x, type: fq"),
    ("a bare star", "outbound_rules:\n  - {name: x, type: fqdn, destination: '*'}\n"),
    ("a bad prefix", "sources: {a: [10.0.0.0/33]}\noutbound_rules: []\n"),
    ("no YAML at all", "\u{1}\u{2}{{{"),
    ("a disabled network", "isolation_mode: disabled\n"),
];

#[test]
fn a_bad_policy_leaves_the_old_one_in_force_and_says_which_line() {
    let world = World::new();
    let _origin = world.origin(NAME, 7000, echo());
    let gate = world.gate(allow_one(NAME, &[7000])).start();

    for (what, policy) in BAD {
        let event = gate.reload_with(policy);
        assert_eq!(event["result"], "rejected", "{what}");
        let error = event["errors"][0].as_str().unwrap_or_default().to_owned();
        assert!(error.contains("policy.yaml:"), "{what}: {event}");
        working_tunnel(&gate);
        assert_eq!(gate.client().connect("other.example:7000").status, 403, "{what}");
    }
    assert!(gate.talk().contains("policy.yaml"), "{}", gate.talk());
}

#[test]
fn a_policy_that_vanishes_leaves_the_old_one_in_force() {
    let world = World::new();
    let _origin = world.origin(NAME, 7000, echo());
    let gate = world.gate(allow_one(NAME, &[7000])).start();

    let event = gate.policy_event_after(|| {
        std::fs::remove_file(gate.folder().join("policy.yaml")).unwrap();
        gate.signal(Signal::HUP);
    });

    assert_eq!(event["result"], "rejected");
    working_tunnel(&gate);
}

#[test]
fn an_open_tunnel_that_is_no_longer_allowed_is_closed() {
    let world = World::new();
    let _origins = (world.origin(NAME, 7000, echo()), world.origin("other.example", 7000, echo()));
    let gate = world.gate(opens_both()).start();
    let mut revoked = working_tunnel(&gate);
    let mut kept = gate.tunnel("other.example:7000");

    let event = gate.reload_with(&allow_one("other.example", &[7000]));

    assert!(revoked.is_closed());
    let close = gate.close(NAME);
    assert_eq!((&close["reason"], &close["ended_by"]), (&"revoked".into(), &"gate".into()));
    assert_eq!(event["revoked"], 1);
    assert_eq!(kept.send("still here").exactly(10), b"still here");
}

#[test]
fn on_revoke_keep_lets_open_tunnels_live_and_opens_no_new_one() {
    let world = World::new();
    let _origin = world.origin(NAME, 7000, echo());
    let gate = world.gate(allow_one(NAME, &[7000])).start();
    let mut client = working_tunnel(&gate);

    let event = gate.reload_with("on_revoke: keep\noutbound_rules: []\n");

    assert_eq!(event["revoked"], 0);
    assert_eq!(client.send("still here").exactly(10), b"still here");
    assert_eq!(gate.client().connect("echo.example:7000").status, 403);
}

#[test]
fn on_revoke_drain_gives_open_tunnels_their_time_and_no_more() {
    let world = World::new();
    let _origin = world.origin(NAME, 7000, echo());
    let gate = world.gate(allow_one(NAME, &[7000])).start();
    let mut client = working_tunnel(&gate);

    let event = gate.reload_with("on_revoke: {drain: 1s}\noutbound_rules: []\n");

    assert_eq!(event["draining"], 1);
    assert_eq!(client.send("last words").exactly(10), b"last words");
    assert!(client.is_closed());
    assert_eq!(gate.close(NAME)["reason"], "revoked");
}

#[test]
fn a_tunnel_whose_port_or_source_is_taken_away_is_closed() {
    let world = World::new();
    let _origin = world.origin(NAME, 7000, echo());
    for narrower in [
        allow_one(NAME, &[7001]),
        format!(
            "sources: {{far: [127.0.0.9/32]}}\n{}",
            allow_one(NAME, &[7000]).replace("ports", "sources: [far], ports")
        ),
        allow_one(NAME, &[7000])
            + "  - {name: never, action: deny, type: fqdn, destination: echo.example, ports: [7000]}\n",
    ] {
        let gate = world.gate(allow_one(NAME, &[7000])).start();
        let mut client = working_tunnel(&gate);
        gate.reload_with(&narrower);
        assert!(client.is_closed(), "{narrower}");
    }
}

#[test]
fn a_tunnel_whose_address_is_taken_away_is_closed() {
    let world = World::new();
    let _origin = world.origin(NAME, 7000, echo());
    let gate = world.gate(allow_one(NAME, &[7000])).start();
    let mut client = working_tunnel(&gate);

    gate.reload_with(&allow_one(NAME, &[7000]).replace("127.0.0.0/8", "127.0.0.1/32"));

    assert!(client.is_closed());
    assert_eq!(gate.close(NAME)["reason"], "revoked");
}

#[test]
fn a_tunnel_to_an_address_is_closed_when_the_name_seen_in_it_is_denied() {
    let world = World::new();
    let origin = world.origin("host.example", 443, listen_only());
    let address = world.address_of("host.example");
    let policy = format!(
        "outbound_rules:\n  - {{name: lan, type: address, destination: {{addresses: [{address}], protocol: TCP, \
         port_ranges: \"443\"}}}}\n"
    );
    let gate = world.gate(&policy).start();
    let mut tunnels = ["good.example", "evil.example"].map(|name| {
        let mut client = gate.tunnel(&format!("{address}:443"));
        client.send(world.authority.hello(name));
        client
    });
    wait_until("two hellos", || {
        let heard = origin.heard();
        heard.contains("good.example") && heard.contains("evil.example")
    });

    let deny = "  - {name: never, action: deny, type: fqdn, destination: evil.example}\n";
    let event = gate.reload_with(&(policy + deny));

    assert_eq!(event["revoked"], 1);
    assert!(tunnels[1].is_closed());
    assert_eq!(gate.reason("revoked")["sni"], "evil.example");
}

/// Begins something, and denies it by a reload while its name is being resolved.
fn revoked_while_resolving(request: &str) -> (Gate, Client, Origin) {
    let world = World::new();
    let origin = world.origin(NAME, 7000, listen_only());
    let (is_asked, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let records = [address(NAME, 60, &world.address_of(NAME).to_string())];
    let upstream = Upstream::start({
        let (is_asked, answers) = (Arc::clone(&is_asked), Arc::clone(&answers));
        move |query| {
            is_asked.store(true, Ordering::SeqCst);
            wait_until("leave to answer", || answers.load(Ordering::SeqCst));
            vec![bytes(&reply_from(&records, query))]
        }
    });
    let upstreams = [upstream.address().to_string()];
    let gate = world.gate(allow_one(NAME, &[7000])).set("dns.upstreams", upstreams).start();
    let mut client = gate.client();
    client.send(request);
    wait_until("the question", || is_asked.load(Ordering::SeqCst));
    gate.reload_with(NOTHING);
    answers.store(true, Ordering::SeqCst);
    (gate, client, origin)
}

#[test]
fn nothing_leaves_over_a_connection_that_was_made_while_a_reload_denied_it() {
    for request in [
        "GET http://echo.example:7000/ HTTP/1.1\r\nHost: echo.example:7000\r\n\r\n",
        "CONNECT echo.example:7000 HTTP/1.1\r\n\r\nearly bytes",
    ] {
        let (gate, mut client, origin) = revoked_while_resolving(request);
        assert_eq!(client.response().status, 403, "{request}");
        assert_eq!(gate.close(NAME)["reason"], "revoked", "{request}");
        wait_until("the origin's end", || origin.ended() == 1);
        assert_eq!(origin.heard(), "", "{request}");
    }
}

#[test]
fn a_rule_that_expires_ends_its_tunnels_as_a_reload_would() {
    let world = World::new();
    let _origin = world.origin(NAME, 7000, echo());
    let gate = world.gate(NOTHING).start();
    let expires = outgate_tests::policy::timestamp_in(5);
    gate.reload_with(&outgate_tests::policy::allow_with(NAME, &[7000], &format!("expires: \"{expires}\"")));
    let mut client = working_tunnel(&gate);

    assert!(client.is_closed());

    let event = gate.record("the expiry", |r| r["event"] == "policy" && r["trigger"] == "expiry");
    assert_eq!(event["revoked"], 1);
    let response = gate.client().connect("echo.example:7000");
    assert_eq!(response.status, 403);
    assert_eq!(gate.reason("rule-expired")["verdict"], "deny");
}

#[test]
fn reloads_under_load_lose_nothing() {
    let world = World::new();
    let origin = world.http("page.example", page("welcome"));
    let _echo = world.origin(NAME, 7000, echo());
    let both = || allow(&[("page.example", &[80]), (NAME, &[7000])]);
    let gate = Arc::new(world.gate(both()).start());
    let mut tunnel = working_tunnel(&gate);
    let going = Arc::new(());
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let (gate, going) = (Arc::clone(&gate), Arc::downgrade(&going));
            std::thread::spawn(move || fetch_while(&gate, &going))
        })
        .collect();

    for round in 0..8 {
        let extra = format!("  - {{name: extra-{round}, type: fqdn, destination: extra{round}.example}}\n");
        assert_eq!(gate.reload_with(&(both() + &extra))["result"], "applied");
        assert_eq!(tunnel.send("ping").exactly(4), b"ping");
    }
    drop(going);
    let fetched: usize = workers.into_iter().map(|worker| worker.join().unwrap()).sum();

    assert!(fetched >= 8, "{fetched}");
    let allowed = gate.records_until(fetched, |r| r["event"] == "close" && r["host"] == "page.example");
    assert_eq!(allowed.len(), fetched);
    assert_eq!(origin.heard().matches("GET /").count(), fetched);
}

/// Fetches over and over, half on new connections, each of which must succeed, while the test has `going`: it has it no
/// longer when it failed, either.
fn fetch_while(gate: &Gate, going: &Weak<()>) -> usize {
    let mut fetched = 0;
    while going.strong_count() > 0 {
        let mut client = gate.client();
        for _ in 0..2 {
            assert_eq!(client.get("http://page.example/").text(), "welcome");
            fetched += 1;
        }
    }
    fetched
}

#[test]
fn a_new_connection_never_sees_a_moment_without_rules() {
    let world = World::new();
    let gate = world.gate(allow_one("a.example", &[443])).start();
    let going = Arc::new(());
    let gate = Arc::new(gate);
    let prober = std::thread::spawn({
        let (gate, going) = (Arc::clone(&gate), Arc::downgrade(&going));
        move || {
            while going.strong_count() > 0 {
                assert_eq!(gate.client().connect("never.example:443").status, 403);
                assert_eq!(gate.client().connect("a.example:443").status, 502);
            }
        }
    });

    for round in 0..6 {
        gate.reload_with(&allow(&[("a.example", &[443]), (&format!("b{round}.example"), &[443])]));
    }
    drop(going);
    prober.join().unwrap();
}
