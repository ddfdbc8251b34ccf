//! The command line: exit code, stdout and stderr, kept as snapshots.

use std::fmt::Write;
use std::path::Path;
use std::process::Output;

use outgate_tests::gate::run_in;
use outgate_tests::origin::echo;
use outgate_tests::policy::{NOTHING, allow_one};
use outgate_tests::{World, wait_until};

const POLICY: &str = "\
sources:
  training: [10.1.0.0/24]
outbound_rules:
  - name: pypi
    type: fqdn
    destination: [pypi.org, \"*.pythonhosted.org\"]
    ports: [443]
    sources: [training]
  - name: github
    type: fqdn
    destination: \"*.github.com\"
  - name: no-gists
    action: deny
    type: fqdn
    destination: gist.github.com
tests:
  - {from: 10.1.0.4, to: \"pypi.org:443\", expect: allow, rule: pypi}
  - {from: 10.1.2.4, to: \"pypi.org:443\", expect: deny}
";

/// Nobody listens on port 1.
const CONFIG: &str = "listen: {admin: \"127.0.0.1:1\"}\npolicy: [policy.yaml]\ncontrol: control.sock\n";

/// A folder with a policy and a configuration that uses it.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("policy.yaml"), POLICY).unwrap();
    std::fs::write(folder.path().join("outgate.yaml"), CONFIG).unwrap();
    folder
}

/// A run as a snapshot keeps it.
fn transcript(folder: &Path, line: &str) -> String {
    let output = run_in(folder, line.split(' '));
    format!("$ outgate {line}\n{}", shown(&output, folder))
}

fn shown(output: &Output, folder: &Path) -> String {
    let mut text = String::new();
    for (what, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        if !bytes.is_empty() {
            write!(text, "--- {what}\n{}", String::from_utf8_lossy(bytes)).unwrap();
        }
    }
    write!(text, "--- exit {}", output.status.code().unwrap()).unwrap();
    text.replace(folder.to_str().unwrap(), "FOLDER")
}

macro_rules! snapshots {
    ($($name:ident: $line:expr;)+) => { $(
        #[test]
        fn $name() {
            let folder = folder();
            insta::assert_snapshot!(transcript(folder.path(), $line));
        }
    )+ };
}

snapshots! {
    explain_of_an_allowed_name: "explain pypi.org:443 --from 10.1.0.4 --config outgate.yaml";
    explain_of_another_port: "explain pypi.org:8443 --from 10.1.0.4 --config outgate.yaml";
    explain_of_another_source: "explain pypi.org:443 --from 10.1.2.4 --config outgate.yaml";
    explain_of_a_denied_name: "explain evil.example:443 --from 10.1.0.4 --config outgate.yaml";
    explain_of_a_rule_that_lost: "explain gist.github.com:443 --from 10.1.0.4 --config outgate.yaml";
    explain_of_bad_input: "explain [pypi.org]:443 --from 10.1.0.4 --config outgate.yaml";
    explain_without_a_port: "explain pypi.org --from 10.1.0.4 --config outgate.yaml";
    explain_from_no_address: "explain pypi.org:443 --from nowhere --config outgate.yaml";
    check_of_a_good_configuration: "check --config outgate.yaml";
    test_runs_the_policys_own_tests: "test --config outgate.yaml";
    reload_without_a_gate: "reload --config outgate.yaml";
    status_without_a_gate: "status --config outgate.yaml";
    an_unknown_command: "frobnicate";
    help: "--help";
    help_of_serve: "serve --help";
}

#[test]
fn a_failing_policy_test_says_what_was_expected() {
    let folder = folder();
    let wrong = POLICY.replace("expect: deny", "expect: allow");
    std::fs::write(folder.path().join("policy.yaml"), wrong).unwrap();
    insta::assert_snapshot!(transcript(folder.path(), "test --config outgate.yaml"));
}

#[test]
fn check_shows_every_mistake_with_its_line_and_a_hint() {
    let folder = folder();
    let wrong = "outbound_rules:\n  - {name: a, type: fqdn, destination: '*contoso.com'}\n  - name: b\n    type: fqdn\n    \
                 destinatoin: pypi.org\nisolation_mode: disabled\n";
    std::fs::write(folder.path().join("policy.yaml"), wrong).unwrap();
    insta::assert_snapshot!(transcript(folder.path(), "check --config outgate.yaml"));
}

#[test]
fn explain_and_the_gate_agree() {
    let world = World::new();
    let gate = world.gate(POLICY).start();
    for (target, verdict) in [
        ("api.github.com:443", 0),
        ("gist.github.com:443", 1),
        ("pypi.org:443", 1),
        ("evil.example:443", 1),
        ("[x]:443", 2),
    ] {
        let explained = gate.run(["explain", target, "--from", "127.0.0.1", "--config", "outgate.yaml"]);
        assert_eq!(explained.status.code(), Some(verdict), "{target}: {explained:?}");
        let status = gate.client().connect(target).status;
        assert_eq!(status, [502, 403, 400][usize::try_from(verdict).unwrap()], "{target}");
    }
}

#[test]
fn status_says_what_a_running_gate_enforces() {
    let world = World::new();
    let _origin = world.origin("echo.example", 7000, echo());
    let gate = world.gate(allow_one("echo.example", &[7000])).start();
    let _open = gate.tunnel("echo.example:7000");

    let output = gate.run(["status", "--admin", &gate.admin().to_string()]);

    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let revision = gate.record("the start", |r| r["event"] == "policy")["revision"].clone();
    assert!(said.contains(revision.as_str().unwrap()), "{said}");
}

#[test]
fn serve_prints_what_it_listens_on_and_enforces_and_shows_denials() {
    let world = World::new();
    let gate = world.gate(NOTHING).start();

    gate.client().connect("evil.example:443");

    gate.wait_for_talk("outgate: denied 127.0.0.1 -> evil.example:443: no rule allows it");
    let talk = gate.talk();
    for line in [
        "outgate: proxy listens on 127.0.0.1:",
        "outgate: admin listens on 127.0.0.1:",
        "outgate: enforcing revision ",
    ] {
        assert!(talk.lines().any(|said| said.starts_with(line)), "{line:?} is not in\n{talk}");
    }
    assert_eq!(gate.stdout(), "");
}

#[test]
fn without_any_configuration_the_built_in_policy_holds() {
    let folder = tempfile::tempdir().unwrap();
    let allowed = run_in(folder.path(), ["explain", "pypi.org:443", "--from", "10.1.0.4"]);
    let denied = run_in(folder.path(), ["explain", "example.com:443", "--from", "10.1.0.4"]);

    assert_eq!((allowed.status.code(), denied.status.code()), (Some(0), Some(1)), "{allowed:?} {denied:?}");
    assert!(String::from_utf8_lossy(&allowed.stdout).contains("preset:python"), "{allowed:?}");
}

#[test]
fn flags_override_the_configuration() {
    let world = World::new();
    let gate = world
        .gate(NOTHING)
        .file("other.yaml", allow_one("echo.example", &[7000]))
        .set("listen.proxy.address", "127.0.0.1:1")
        .flag("--proxy")
        .flag("127.0.0.1:0")
        .start();

    assert_eq!(gate.client().connect("echo.example:7000").status, 403);
    let path = gate.folder().join("other.yaml");
    let explained =
        gate.run(["explain", "echo.example:7000", "--from", "10.0.0.1", "--policy", path.to_str().unwrap()]);
    assert_eq!(explained.status.code(), Some(0), "{explained:?}");
}

#[test]
fn a_listener_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (status, said) =
        World::new().gate(NOTHING).set("listen.proxy.address", address.clone()).start_in_vain();

    assert!(!status.success() && said.contains(&address), "{said}");
}

/// The sockets of one gate share their address with each other, and with nobody else of the same user.
#[test]
fn a_second_gate_does_not_share_the_address_of_the_first() {
    let world = World::new();
    let first = world.gate(NOTHING).start();
    let address = first.proxy().to_string();
    let (status, said) = world.gate(NOTHING).set("listen.proxy.address", address.clone()).start_in_vain();

    assert!(!status.success() && said.contains(&address), "{said}");
}

#[test]
fn a_gate_leaves_its_socket_behind_for_nobody() {
    let world = World::new();
    let mut gate = world.gate(NOTHING).start();
    assert!(gate.folder().join("control.sock").exists());

    gate.terminate();

    assert!(gate.ended().success());
    wait_until("the socket to go", || !gate.folder().join("control.sock").exists());
}
