//! From SIGHUP to the first decision by the new rules, and the memory of the gate: the real binary with a long
//! `destination_file`.
//!
//! `OUTGATE_BIN=target/release/outgate cargo run --release -p outgate-bench --bin reload [NAMES [ROUNDS]]`
// What a benchmark prints is its purpose; and it stops with the sentence of the place that noticed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

use std::thread::sleep;
use std::time::{Duration, Instant};

use outgate_bench::{LISTED, name_file};
use outgate_tests::{Gate, World};
use rustix::process::Signal;

/// How long a gate waits after a change of a file before it looks.
const SETTLE: Duration = Duration::from_millis(200);

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>().unwrap());
    let names = arguments.next().unwrap_or(100_000);
    let rounds = arguments.next().unwrap_or(21);
    let world = World::new();
    let list = name_file(names - 1);
    let started = Instant::now();
    let gate = world.gate(LISTED).file("names.txt", with(&list, "round-0.example")).start();
    println!("{names} names: ready {:?} after the start", started.elapsed());
    println!("memory after the start: {}", memory(&gate));
    let mut times: Vec<Duration> = (1..=rounds).map(|round| reload(&gate, &list, round)).collect();
    times.sort();
    println!("memory after {rounds} reloads: {}", memory(&gate));
    let [first, .., last] = times.as_slice() else { panic!("at least two rounds") };
    println!("SIGHUP to the first decision: median {:?}, {first:?} to {last:?}", times[rounds / 2]);
}

/// Puts a new name into the list, tells the gate, and asks until the name is allowed. It does not resolve: what
/// counts is that the answer is no longer the policy's.
fn reload(gate: &Gate, list: &str, round: usize) -> Duration {
    let name = format!("round-{round}.example");
    let target = format!("{name}:443");
    let (new, old) = (gate.folder().join("new"), gate.folder().join("names.txt"));
    std::fs::write(&new, with(list, &name)).unwrap();
    assert_eq!(gate.client().connect(&target).status, 403);
    std::fs::rename(new, old).unwrap();
    let told = Instant::now();
    gate.signal(Signal::HUP);
    while gate.client().connect(&target).status == 403 {}
    let time = told.elapsed();
    // The gate watches the file, too: what it does for that is not to fall into the next round.
    sleep(2 * SETTLE);
    time
}

fn with(list: &str, name: &str) -> String {
    format!("{list}{name}\n")
}

/// Resident and proportional memory of the gate.
fn memory(gate: &Gate) -> String {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", gate.pid())).unwrap();
    let of = |key| {
        let line = rollup.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
    };
    format!("Rss {} MiB, Pss {} MiB", of("Rss:"), of("Pss:"))
}
