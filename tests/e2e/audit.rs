//! The audit record: every decision, before the first byte, in lines that nobody can forge.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use outgate_rules::Reason;
use outgate_tests::hello::Bent;
use outgate_tests::origin::{Reply, echo, http, listen_only, page};
use outgate_tests::policy::{NOTHING, allow, allow_one};
use outgate_tests::program::skip;
use outgate_tests::{Gate, World, wait_until};
use rustix::fs::{CWD, Mode, OFlags, mkfifoat, open};
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn every_record_has_the_fields_that_join_it() {
    let world = World::new();
    let _origins = (world.http("page.example", page("welcome")), world.origin("echo.example", 7000, echo()));
    let gate = world.gate(allow(&[("page.example", &[80]), ("echo.example", &[7000])])).start();
    gate.client().get("http://page.example/");
    drop(gate.tunnel("echo.example:7000"));
    gate.client().connect("evil.example:443");
    gate.client().connect("[evil]:443");

    let _ = gate.records_until(2, |r| r["event"] == "close");
    for record in gate.records() {
        assert_eq!(record["v"], 1, "{record}");
        let time = record["time"].as_str().unwrap();
        assert!(time.len() == 27 && time.ends_with('Z'), "{time}");
        if record["event"] == "policy" {
            continue;
        }
        for field in
            ["kind", "session", "listener", "client", "client_port", "verdict", "mode", "reason", "revision"]
        {
            assert!(!record[field].is_null(), "{field} is missing in {record}");
        }
        assert!(Reason::ALL.iter().any(|reason| record["reason"] == reason.code()), "{record}");
        if record["event"] == "close" {
            for field in
                ["address", "address_port", "bytes_up", "bytes_down", "duration_ms", "ended_by", "rule"]
            {
                assert!(!record[field].is_null(), "{field} is missing in {record}");
            }
        }
    }
}

#[test]
fn a_rule_is_named_with_its_file_and_line() {
    let world = World::new();
    let gate = world.gate(allow(&[("a.example", &[443]), ("b.example", &[443])])).start();

    gate.client().connect("b.example:443");

    let rule = &gate.decision("b.example")["rule"];
    assert_eq!((&rule["name"], &rule["line"]), (&"rule-2".into(), &3.into()));
    assert!(rule["file"].as_str().unwrap().ends_with("policy.yaml"), "{rule}");
}

#[test]
fn the_first_record_says_what_was_enforced_from_the_start() {
    let world = World::new();
    let gate = world.gate(allow_one("a.example", &[443])).start();

    let first = gate.record("the start", |r| r["event"] == "policy");

    assert_eq!(
        (&first["trigger"], &first["result"], &first["rules"]),
        (&"start".into(), &"applied".into(), &1.into())
    );
    let said = gate.said("outgate: enforcing revision ").unwrap();
    assert!(said.contains(first["revision"].as_str().unwrap()), "{said}");
}

#[test]
fn credentials_and_query_strings_are_never_recorded() {
    let world = World::new();
    let _origin = world.http("page.example", page("welcome"));
    let gate = world.gate(allow_one("page.example", &[80])).start();

    gate.ask("GET http://page.example/a?token=sesame HTTP/1.1\r\nHost: page.example\r\nAuthorization: Bearer sesame\r\n\
              Proxy-Authorization: Basic c2VzYW1l\r\nCookie: id=sesame\r\n\r\n");
    gate.ask("GET http://evil.example/a?token=sesame HTTP/1.1\r\nHost: evil.example\r\nProxy-Authorization: Basic c2VzYW1l\r\n\r\n");
    gate.ask("GET http://me:sesame@page.example/ HTTP/1.1\r\nHost: page.example\r\n\r\n");
    gate.ask("CONNECT me:sesame@page.example:443 HTTP/1.1\r\nHost: page.example\r\n\r\n");

    let _ = gate.records_until(4, |r| r["event"] == "decision");
    let _ = gate.close("page.example");
    for text in [gate.audit_text(), gate.talk()] {
        assert!(!text.contains("sesame") && !text.contains("c2VzYW1l"), "{text}");
    }
}

#[test]
fn nobody_can_forge_a_line() {
    let world = World::new();
    let _origin = world.origin("pypi.example", 443, listen_only());
    let gate = world.gate(allow_one("pypi.example", &[443, 80])).start();
    let forged = r#"x"}{"v":1,"event":"decision","host":"forged.example","verdict":"allow"}"#;

    gate.ask(format!("CONNECT {forged} HTTP/1.1\r\nHost: x\r\n\r\n"));
    gate.ask(format!("CONNECT a\u{1b}[2J{forged}:443 HTTP/1.1\r\nHost: x\r\n\r\n"));
    gate.ask(format!("GET http://pypi.example/%0a{forged} HTTP/1.1\r\nHost: {forged}\r\n\r\n"));
    let mut client = gate.tunnel("pypi.example:443");
    let sni = "x\n{\"v\":1,\"host\":\"forged.example\"}";
    client.send_to_whom_it_may_concern(Bent::naming(&[sni.as_bytes()]).bytes()).rest();
    let _ = gate.denial(&client);

    let records = gate.records_until(4, |r| r["event"] == "decision");
    assert!(records.iter().all(|r| r["host"] != "forged.example"), "{records:?}");
    assert!(gate.audit_text().lines().all(|line| line.starts_with("{\"v\":1,") && line.is_ascii()));
    assert!(!gate.talk().contains('\u{1b}'), "an escape sequence on the terminal");
    assert!(!gate.talk().lines().any(|line| line.starts_with('{')));
}

#[test]
fn what_was_asked_is_bounded_in_the_record() {
    let world = World::new();
    let gate = world.gate(NOTHING).start();

    gate.ask(format!("CONNECT [{}]:443 HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(5000)));

    let record = gate.record("the bad authority", |r| !r["asked"].is_null());
    assert!(record["asked"].as_str().unwrap().len() <= 256, "{record}");
}

#[test]
fn the_decision_is_on_file_before_the_origin_hears_a_byte() {
    let world = World::new();
    let audit = Arc::new(std::sync::Mutex::new(None::<std::path::PathBuf>));
    let seen = Arc::clone(&audit);
    let _origin = world.http(
        "page.example",
        http(move |request| {
            let path = seen.lock().unwrap().clone().unwrap();
            let text = std::fs::read_to_string(path).unwrap();
            Reply::text(if text.contains(&format!("\"path\":\"{}\"", request.target)) {
                "on file"
            } else {
                "not yet"
            })
        }),
    );
    let gate = world.gate(allow_one("page.example", &[80])).start();
    *audit.lock().unwrap() = Some(gate.audit_path());

    for number in 0..50 {
        assert_eq!(gate.client().get(&format!("http://page.example/{number}")).text(), "on file");
    }
}

#[test]
fn a_client_that_leaves_while_its_decision_is_written_leaves_both_records() {
    let world = World::new();
    let _origin = world.http("page.example", page("welcome"));
    let setup = world.gate(allow_one("page.example", &[80])).set("audit.path", "records");
    let path = setup.folder().join("records");
    mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
    let mut records = File::from(open(&path, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).unwrap());
    let gate = setup.start();
    while records.write(b"\n").is_ok() {}

    for _ in 0..20 {
        gate.client()
            .send("GET http://page.example/ HTTP/1.1\r\nHost: page.example\r\n\r\n")
            .finish_sending();
    }
    // They are older than this, which waits for no record.
    assert_eq!(gate.admin_get("/healthz").status, 200);

    let mut text = Vec::new();
    wait_until("the end of each", || {
        drop(records.read_to_end(&mut text));
        let count = |event: &str| String::from_utf8_lossy(&text).matches(event).count();
        let (decisions, ends) = (count(r#""event":"decision""#), count(r#""event":"close""#));
        decisions == 20 && ends == 20
    });
}

#[test]
fn after_kill_9_under_load_every_request_that_the_origin_saw_has_its_record() {
    let world = World::new();
    let origin = world.http("page.example", page("welcome"));
    let tunnels = world.origin("echo.example", 7000, echo());
    let mut gate = world.gate(allow(&[("page.example", &[80]), ("echo.example", &[7000])])).start();
    let stop = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let (address, stop) = (gate.proxy(), Arc::clone(&stop));
            std::thread::spawn(move || load(address, worker, &stop))
        })
        .collect();

    wait_until("some load", || origin.heard().matches("GET /").count() > 200 && tunnels.connections() > 50);
    gate.kill();
    stop.store(true, Ordering::SeqCst);
    workers.into_iter().for_each(|worker| drop(worker.join()));

    let records = gate.records();
    let decided: HashSet<&str> =
        records.iter().filter(|r| r["event"] == "decision").filter_map(|r| r["path"].as_str()).collect();
    let heard = origin.heard();
    for path in heard.lines().filter_map(|line| line.strip_prefix("GET ")?.strip_suffix(" HTTP/1.1")) {
        assert!(decided.contains(path), "{path} reached the origin without a record");
    }
    let opened = records.iter().filter(|r| r["event"] == "decision" && r["host"] == "echo.example").count();
    assert!(opened >= tunnels.connections(), "{opened} decisions for {} tunnels", tunnels.connections());
}

/// Requests with paths of their own, and tunnels, until the gate is gone.
fn load(gate: std::net::SocketAddr, worker: usize, stop: &AtomicBool) {
    use std::io::{Read, Write};
    let exchange = |request: &str| -> std::io::Result<usize> {
        let mut stream = std::net::TcpStream::connect(gate)?;
        stream.write_all(request.as_bytes())?;
        stream.read(&mut [0; 1024])
    };
    for number in 0.. {
        let page =
            format!("GET http://page.example/{worker}-{number} HTTP/1.1\r\nHost: page.example\r\n\r\n");
        let tunnel = "CONNECT echo.example:7000 HTTP/1.1\r\nHost: echo.example:7000\r\n\r\nhello";
        if stop.load(Ordering::SeqCst) || exchange(&page).and(exchange(tunnel)).is_err() {
            return;
        }
    }
}

/// Asks for so many different names, which are all denied.
fn deny(gate: &Gate, names: std::ops::Range<usize>) {
    for number in names {
        assert_eq!(gate.client().connect(&format!("n{number}.example:443")).status, 403);
    }
}

fn hosts(records: &[Value]) -> HashSet<String> {
    records.iter().filter_map(|r| r["host"].as_str().map(str::to_owned)).collect()
}

#[test]
fn the_file_rotates_by_size_and_loses_nothing() {
    let world = World::new();
    let gate = world.gate(NOTHING).set("audit.rotate", "8KB").set("audit.keep", 50).start();

    deny(&gate, 0..100);

    let records = gate.records_until(100, |r| r["event"] == "decision");
    assert_eq!(hosts(&records).len(), 100);
    let files: Vec<_> =
        std::fs::read_dir(gate.audit_path().parent().unwrap()).unwrap().map(Result::unwrap).collect();
    assert!(files.len() > 2, "{files:?}");
    assert!(files.iter().all(|file| file.metadata().unwrap().len() < 10_000), "{files:?}");
}

#[test]
fn only_so_many_rotated_files_are_kept() {
    let world = World::new();
    let gate = world.gate(NOTHING).set("audit.rotate", "4KB").set("audit.keep", 2).start();

    deny(&gate, 0..150);

    wait_until("the old files to go", || {
        let files = std::fs::read_dir(gate.audit_path().parent().unwrap()).unwrap().count();
        files == 3 && gate.audit_text().contains("n149.example")
    });
}

/// A file that has an attribute of ext4 and others, for as long.
struct Attribute<'a>(&'a str, PathBuf);

impl<'a> Attribute<'a> {
    fn set(letter: &'a str, path: PathBuf) -> Option<Self> {
        chattr(&format!("+{letter}"), &path).then_some(Self(letter, path))
    }
}

impl Drop for Attribute<'_> {
    fn drop(&mut self) {
        chattr(&format!("-{}", self.0), &self.1);
    }
}

fn chattr(change: &str, path: &Path) -> bool {
    Command::new("chattr").arg(change).arg(path).status().is_ok_and(|status| status.success())
}

#[test]
fn a_file_that_cannot_be_renamed_costs_no_more_than_one() {
    let world = World::new();
    // The file in use, which may only be appended to, and one of the full ones.
    let cases: [(_, _, &[(usize, u32)]); 2] =
        [("a", 0, &[(1, 1), (2, 2), (3, 3), (4, 4)]), ("i", 2, &[(1, 1), (2, 2), (3, 4)])];
    for (attribute, number, kept) in cases {
        let gate = world.gate(NOTHING).set("audit.rotate", "4KB").set("audit.keep", 4).start();
        let file = |number: u32| match number {
            0 => gate.audit_path(),
            _ => gate.audit_path().with_extension(format!("jsonl.{number}")),
        };
        let mut next = 0;
        let mut deny_until = |what: &str, done: &dyn Fn() -> bool| {
            for _ in 0..100 {
                deny(&gate, next..next + 5);
                next += 5;
                if done() {
                    return;
                }
            }
            panic!("{what} did not come");
        };
        deny_until("four full files", &|| file(4).exists());
        let read = |number| std::fs::read(file(number)).unwrap();
        let before = [1, 2, 3, 4].map(read);
        let Some(immovable) = Attribute::set(attribute, file(number)) else {
            return skip("nobody can say here that a file may not be renamed");
        };

        deny_until("failed rotations", &|| gate.talk().matches("cannot be rotated").count() > 2);

        // The place that was made is not made once more.
        for &(old, now) in kept {
            assert!(read(now) == before[old - 1], "{attribute}: {old} is not {now}");
        }
        drop(immovable);
        deny_until("a rotation", &|| read(1) != before[0]);
        assert!(read(2) == before[0], "the youngest has moved up");
    }
}

#[test]
fn sigusr1_reopens_the_file_that_logrotate_moved() {
    let world = World::new();
    let gate = world.gate(NOTHING).start();
    deny(&gate, 0..3);
    let moved = gate.audit_path().with_extension("moved");
    std::fs::rename(gate.audit_path(), &moved).unwrap();

    gate.signal(Signal::USR1);

    wait_until("the new file", || gate.audit_path().exists());
    deny(&gate, 3..6);
    let records = gate.records_until(6, |r| r["event"] == "decision");
    assert_eq!(hosts(&records).len(), 6);
    assert!(std::fs::read_to_string(gate.audit_path()).unwrap().contains("n5.example"));
}

#[test]
fn records_go_to_stdout_where_the_path_is_a_dash() {
    let world = World::new();
    let gate = world.gate(NOTHING).set("audit.path", "-").start();

    deny(&gate, 0..1);

    wait_until("the record", || gate.stdout().contains("n0.example"));
    assert!(
        gate.stdout().lines().all(|line| serde_json::from_str::<Value>(line).is_ok()),
        "{}",
        gate.stdout()
    );
}

#[test]
fn without_a_place_for_its_records_the_gate_does_not_start() {
    let world = World::new();
    let (status, said) = world.gate(NOTHING).set("audit.path", "no/such/folder/audit.jsonl").start_in_vain();

    assert!(!status.success());
    assert!(said.contains("no/such/folder/audit.jsonl"), "{said}");
}

#[test]
fn what_cannot_be_recorded_does_not_pass() {
    let world = World::new();
    let origins = (world.http("page.example", page("welcome")), world.origin("echo.example", 7000, echo()));
    let both = allow(&[("page.example", &[80]), ("echo.example", &[7000])]);
    let mut gate = world.gate(both).set("audit.path", "/dev/full").start();

    assert_eq!(gate.client().connect("echo.example:7000").status, 503);
    assert_eq!(gate.client().get("http://page.example/").status, 503);

    assert_eq!((origins.0.connections(), origins.1.connections()), (0, 0));
    assert_eq!(gate.admin_get("/readyz").status, 503);
    assert!(gate.is_alive());
}

#[test]
fn where_it_may_drop_records_the_gate_serves_on_and_counts_what_it_dropped() {
    let world = World::new();
    let _origin = world.http("page.example", page("welcome"));
    let policy = allow_one("page.example", &[80]);
    let gate = world.gate(policy).set("audit.path", "/dev/full").set("audit.when_full", "drop").start();

    // More than the queue of 4 MiB holds.
    let (mut client, path) = (gate.client(), "x".repeat(2000));
    for _ in 0..2500 {
        assert_eq!(client.get(&format!("http://evil.example/{path}")).status, 403);
    }

    assert_eq!(gate.client().get("http://page.example/").text(), "welcome");
    assert!(gate.metric("outgate_audit_dropped_total", "") >= 1.0);
}

#[test]
fn metrics_count_decisions_and_never_name_hosts() {
    let world = World::new();
    let gate = world.gate(NOTHING).start();

    deny(&gate, 0..5);
    let _ = gate.records_until(5, |r| r["event"] == "decision");

    let metrics = gate.admin_get("/metrics").text();
    assert!(metrics.contains("no-rule"), "{metrics}");
    assert!(!metrics.contains("n0.example"), "{metrics}");
    assert!(gate.metric("outgate_decisions", "no-rule") >= 5.0, "{metrics}");
}

#[test]
fn health_and_readiness_answer_on_the_admin_listener_alone() {
    let world = World::new();
    let gate = world.gate(NOTHING).start();

    assert_eq!(gate.admin_get("/healthz").status, 200);
    assert_eq!(gate.admin_get("/readyz").status, 200);
    assert_eq!(gate.admin_get("/nowhere").status, 404);
    assert_eq!(gate.ask("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").status, 400);
}
