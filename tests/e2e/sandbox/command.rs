//! The command is the user's: its streams, its exit code, its signals, its children.

use std::io::Write;
use std::process::Stdio;

use outgate_tests::{PATIENCE, wait_until};

use super::{Desk, write};

#[test]
fn it_keeps_its_exit_code_and_the_word_of_a_signal() {
    let Some(desk) = Desk::new() else { return };
    for (line, code) in
        [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
    {
        assert_eq!(desk.sh(line).code, Some(code), "{line}");
    }
    assert_eq!(desk.inside().run("no-such-program", &[]).code, Some(127));
    let file = write(desk.lab.folder(), "no-program", "text");
    assert_eq!(desk.inside().run(&file.display().to_string(), &[]).code, Some(126));
}

#[test]
fn it_keeps_its_streams_its_folder_its_user_and_its_arguments() {
    let Some(desk) = Desk::new() else { return };
    let mut command = desk.inside().command("sh");
    command.args(["-c", "cat; echo to-stderr >&2; pwd; id -u; printf '%s|' \"$@\"", "sh", "a b", "", "*"]);
    command
        .current_dir(desk.lab.folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"from-stdin\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("from-stdin\n") && said.ends_with("a b||*|"), "{said}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("to-stderr"));
}

#[test]
fn its_files_are_the_users_own() {
    let Some(desk) = Desk::new() else { return };
    let file = desk.lab.folder().join("made-inside");
    desk.sh(&format!("echo hello > {}", file.display())).assert_done();
    assert_eq!(std::fs::read_to_string(file).unwrap(), "hello\n");
}

#[test]
fn its_children_end_with_it() {
    let Some(desk) = Desk::new() else { return };
    let file = desk.lab.folder().join("still-alive");
    let line = format!(
        "(trap '' HUP; while true; do date > {}; sleep 0.05; done) & sleep 0.3; exit 0",
        file.display()
    );
    desk.sh(&line).assert_done();
    std::fs::remove_file(&file).unwrap();
    // The machine's list of processes has nothing of it any more.
    let left = desk.lab.training().shell("ps -e -o args= | grep still-alive | grep -v grep || true");
    assert_eq!(left.trim(), "");
    assert!(!file.exists());
}

#[test]
fn what_ends_the_gate_ends_the_command() {
    let Some(desk) = Desk::new() else { return };
    let mark = desk.lab.folder().join("began");
    let mut command = desk.inside().command("sh");
    command.args(["-c", &format!("touch {}; sleep 1000.25", mark.display())]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the command", || mark.exists());
    let gate = desk.lab.training().shell("pgrep -f 'outgate run .*1000.25' | head -1");
    desk.lab.training().shell(&format!("kill -KILL {}", gate.trim()));
    child.wait().unwrap();
    wait_until("the end of all that it began", || {
        desk.lab.training().shell("pgrep -f '^sleep 1000.25' || true").trim().is_empty()
    });
}

#[test]
fn a_signal_to_the_gate_is_passed_on_and_one_from_the_terminal_comes_by_itself() {
    let Some(desk) = Desk::new() else { return };
    for (signal, word) in [("TERM", "asked to end"), ("HUP", "hung up")] {
        let mark = desk.lab.folder().join(format!("ready-{signal}"));
        let line = format!(
            "trap 'echo {word}; exit 7' {signal}; touch {}; while true; do sleep 0.05; done",
            mark.display()
        );
        let mut command = desk.inside().command("sh");
        command.args(["-c", &line]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        wait_until("the command", || mark.exists());
        let gate = desk.lab.training().shell(&format!("pgrep -of 'outgate run .*ready-{signal}'"));
        desk.lab.training().shell(&format!("kill -{signal} {}", gate.trim()));
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), word);
        assert_eq!(output.status.code(), Some(7));
    }
}

#[test]
fn an_interrupt_of_the_foreground_is_the_commands_to_answer() {
    let Some(desk) = Desk::new() else { return };
    let folder = desk.lab.folder().display();
    let words: Vec<String> = desk.words.iter().map(|word| format!("'{word}'")).collect();
    let inner =
        format!("trap \"echo interrupted; exit 9\" INT; touch {folder}/ready; while :; do sleep 0.05; done");
    // Job control gives the job a group of its own, which is signalled as a terminal does it.
    let line = format!(
        "set -m; {} sh -c '{inner}' > {folder}/said & job=$!; until [ -e {folder}/ready ]; do sleep 0.02; done; \
         kill -INT -- -$job; wait $job; echo code $?; cat {folder}/said",
        words.join(" ")
    );
    let said = desk.lab.training().run("bash", &["-c", &line]).assert_done().stdout;
    assert_eq!(said, "code 9\ninterrupted\n");
}

#[test]
fn it_starts_soon() {
    let Some(desk) = Desk::with(&["--quiet"]) else { return };
    let began = std::time::Instant::now();
    desk.inside().run("true", &[]).assert_done();
    assert!(began.elapsed() < PATIENCE, "bench/README.md has the figure; this only sees that nothing waits");
}
