//! Which policy holds, what is told at the end, and what can be learned from a run.

use outgate_tests::gate::binary;
use outgate_tests::lab::{Lab, Ran};

use super::{Desk, write};

fn outgate(lab: &Lab, folder: &str, arguments: &[&str]) -> Ran {
    let binary = binary().display().to_string();
    let line: Vec<String> =
        [&[binary.as_str()][..], arguments].concat().iter().map(|word| format!("'{word}'")).collect();
    let folder = lab.folder().join(folder).display().to_string();
    lab.training().run("sh", &["-c", &format!("cd '{folder}' && {}", line.join(" "))])
}

const FETCH: [&str; 5] = ["curl", "-sS", "--max-time", "10", "https://ml.azure.com/whoami"];

#[test]
fn what_was_denied_is_told_at_the_end_with_the_line_that_would_allow_it() {
    let Some(desk) = Desk::new() else { return };
    let told = desk.sh("curl -sS https://evil.example/; curl -sS http://93.184.216.34:81/").stderr;
    for line in [
        "outgate: denied, each with the line under `outbound_rules:` that would allow it:",
        "- {name: evil-example, type: fqdn, destination: evil.example}",
        "- {name: 93-184-216-34, type: address, destination: {addresses: [\"93.184.216.34\"], protocol: TCP, port_ranges: \"81\"}}",
    ] {
        assert!(told.contains(line), "{line}\n{told}");
    }
    let quiet = Desk::with(&["--quiet"]).unwrap();
    let said = quiet.sh("curl -s https://evil.example/").stderr;
    assert_eq!(said, "");
}

#[test]
fn what_is_learned_lets_the_same_run_through_and_no_more() {
    let Some(lab) = Lab::start() else { return };
    write(&lab.folder().join("work"), "x", "");
    let line = "curl -sS https://ml.azure.com/whoami && dig +short db.partner.example";
    let run =
        |flags: &[&str]| outgate(&lab, "work", &[&["run"][..], flags, &["--", "sh", "-c", line]].concat());
    let learned = run(&["--learn", "learned.yaml"]).assert_done();
    assert!(learned.stderr.contains("learned.yaml"), "{}", learned.stderr);

    let again = run(&["--policy", "learned.yaml"]).assert_done();
    assert_eq!(again.stdout, learned.stdout);
    assert!(!again.stderr.contains("denied"), "{}", again.stderr);
    let other = ["run", "--policy", "learned.yaml", "--", "curl", "-sS", "https://pypi.org/whoami"];
    outgate(&lab, "work", &other).assert_failed();
    outgate(&lab, "work", &["check", "--policy", "learned.yaml"]).assert_done();
}

#[test]
fn a_projects_policy_counts_once_it_is_trusted_and_as_it_was_then() {
    let Some(lab) = Lab::start() else { return };
    let allow = "outbound_rules:\n  - {name: azure, type: fqdn, destination_file: names.txt}\n";
    let project = lab.folder().join("project");
    let policy = write(&project, ".outgate/policy.yaml", allow);
    write(&project, ".outgate/names.txt", "ml.azure.com\n");
    write(&project, "src/main.py", "");
    let run = || outgate(&lab, "project/src", &[&["run", "--"][..], &FETCH].concat());

    let untrusted = run().assert_failed();
    assert!(untrusted.stderr.contains("outgate trust") && untrusted.code == Some(125), "{untrusted:?}");
    outgate(&lab, "project", &["trust"]).assert_done();
    assert!(run().assert_done().stdout.contains("ml.azure.com at "));

    std::fs::write(&policy, format!("{allow}  - {{name: more, type: fqdn, destination: evil.example}}\n"))
        .unwrap();
    assert!(run().assert_failed().stderr.contains("outgate trust"));
    std::fs::write(&policy, allow).unwrap();
    write(&project, ".outgate/names.txt", "ml.azure.com\nevil.example\n");
    assert!(run().assert_failed().stderr.contains("outgate trust"), "what it refers to counts as well");
    // The command itself can say what it likes.
    write(&project, ".outgate/names.txt", "ml.azure.com\n");
    let inside = outgate(
        &lab,
        "project",
        &[
            "run",
            "--",
            "sh",
            "-c",
            "mkdir -p $HOME/.local/state/outgate; echo x >> $HOME/.local/state/outgate/trusted",
        ],
    );
    inside.assert_failed();
}

#[test]
fn the_users_own_policy_holds_where_there_is_no_other() {
    let Some(lab) = Lab::start() else { return };
    write(&lab.folder().join("work"), "x", "");
    let run = || outgate(&lab, "work", &[&["run", "--"][..], &FETCH].concat());
    // The built-in policy is for Azure ML.
    assert!(run().assert_done().stdout.contains("ml.azure.com at "));
    write(&lab.folder().join("home"), ".config/outgate/policy.yaml", "outbound_rules: []\n");
    run().assert_failed();
}

#[test]
fn a_policy_with_a_mistake_runs_nothing() {
    let Some(lab) = Lab::start() else { return };
    write(&lab.folder().join("work"), "bad.yaml", "outbound_rule: []\n");
    let ran = outgate(&lab, "work", &["run", "--policy", "bad.yaml", "--", "touch", "ran"]).assert_failed();
    assert!(ran.code == Some(125) && ran.stderr.contains("unknown key"), "{ran:?}");
    assert!(!lab.folder().join("work/ran").exists());
}

#[test]
fn records_go_where_they_are_wanted() {
    let Some(desk) = Desk::new() else { return };
    let path = desk.lab.folder().join("audit.jsonl").display().to_string();
    let recorded = Desk::with(&["--audit", &path]).unwrap();
    recorded.inside().curl(&["https://ml.azure.com/whoami"]).assert_done();
    let records = std::fs::read_to_string(&path).unwrap();
    let records: Vec<serde_json::Value> =
        records.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let has = |kind: &str, event: &str| records.iter().any(|r| r["kind"] == kind && r["event"] == event);
    assert!(has("dns", "decision") && has("tls", "decision") && has("tls", "close"), "{records:#?}");
}

#[test]
fn where_user_namespaces_are_refused_one_sentence_says_what_to_set() {
    let Some(lab) = Lab::start() else { return };
    write(&lab.folder().join("work"), "x", "");
    lab.training().shell("echo 0 > /proc/sys/user/max_user_namespaces");
    let ran = outgate(&lab, "work", &["run", "--", "touch", "ran"]).assert_failed();
    assert_eq!(ran.code, Some(125));
    assert!(
        ran.stderr.contains("sysctl user.max_user_namespaces") && ran.stderr.contains("--proxy-only"),
        "{ran:?}"
    );
    assert!(!lab.folder().join("work/ran").exists());

    let weak = outgate(&lab, "work", &[&["run", "--proxy-only", "--"][..], &FETCH].concat()).assert_done();
    assert!(
        weak.stdout.contains("ml.azure.com at ") && weak.stderr.contains("goes out as it likes"),
        "{weak:?}"
    );
    let denied = ["run", "--proxy-only", "--", "curl", "-sS", "https://evil.example/whoami"];
    outgate(&lab, "work", &denied).assert_failed();
}
