//! What a process and those below it use: processor time and memory, as /proc tells.

use std::fs::read_to_string;
use std::time::Duration;

/// Ticks of a second in /proc/PID/stat: USER_HZ is 100 on every architecture that Linux runs on here.
const TICK: Duration = Duration::from_millis(10);

/// Processor time of a process, of those below it, and of those that were below it and have ended.
///
/// The kernel scales the ticks to the time that the scheduler measured, so that the sum is good to a tick.
#[must_use]
pub fn cpu(root: u32) -> Duration {
    let ticks: u32 = tree(root).iter().filter_map(|pid| ticks(*pid)).sum();
    TICK * ticks
}

fn ticks(pid: u32) -> Option<u32> {
    let fields = stat(pid)?;
    // utime, stime, cutime, cstime: fields 14 to 17 of proc(5), counted from the one behind the name.
    fields.get(11..15)?.iter().map(|field| field.parse::<u32>().ok()).sum()
}

/// The fields of /proc/PID/stat behind the name, which may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind) = text.rsplit_once(") ")?;
    Some(behind.split_whitespace().map(str::to_owned).collect())
}

/// A process and those below it.
#[must_use]
pub fn tree(root: u32) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> =
        pids.filter_map(|pid| Some((pid, stat(pid)?.get(1)?.parse().ok()?))).collect();
    let mut tree = vec![root];
    let mut at = 0;
    while let Some(parent) = tree.get(at).copied() {
        tree.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    tree
}

/// Proportional memory of a process and those below it, in bytes.
#[must_use]
pub fn memory(root: u32) -> u64 {
    tree(root).iter().filter_map(|pid| field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")).sum()
}

/// Memory of the kernel's own objects that it cannot drop, in bytes: of the whole machine.
#[must_use]
pub fn kernel_memory() -> u64 {
    field("/proc/meminfo", "SUnreclaim:").unwrap_or(0)
}

/// A field of a file of lines like `Key: 12 kB`, in bytes.
fn field(path: &str, key: &str) -> Option<u64> {
    let text = read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
