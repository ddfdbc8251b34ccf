//! Clients, and what a server used while they asked.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::flood;
use crate::servers::{PORT, Running, on_cores};

/// Names that are asked for again and again.
const CACHED: usize = 1000;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum Asked {
    /// Names that are in the cache.
    Cached,
    /// Names that are not allowed: as many different ones as there are allowed ones.
    Denied,
    /// A few names that are not allowed, again and again, as clients ask for them.
    DeniedAgain,
    /// Names that are allowed, each once.
    Missing,
}

impl Asked {
    pub(crate) const ALL: [Self; 4] = [Self::Cached, Self::DeniedAgain, Self::Denied, Self::Missing];
    /// What a server answers by itself.
    pub(crate) const AT_ONCE: [Self; 3] = [Self::Cached, Self::DeniedAgain, Self::Denied];

    const fn file(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Denied => "denied",
            Self::DeniedAgain => "denied-again",
            Self::Missing => "missing",
        }
    }

    /// A server that answers otherwise than it should is not measured.
    fn check(self, answered: bool, denied: bool) {
        let denials = matches!(self, Self::Denied | Self::DeniedAgain);
        assert!(answered != denied && denied == denials, "{self:?}: answered {answered}, denied {denied}");
    }
}

/// Who asks, as fast as there are answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum Clients {
    /// dnsperf with a thread that asks and one that hears, as it has by default.
    Dnsperf,
    /// dnsperf with two of each. They are sooner done with what a server has answered at once, and sleep until it has
    /// answered more: it is the server that wakes them.
    DnsperfTwice,
    /// Clients that never sleep.
    Busy,
}

impl Clients {
    pub(crate) const ALL: [Self; 3] = [Self::Dnsperf, Self::DnsperfTwice, Self::Busy];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Dnsperf => "dnsperf",
            Self::DnsperfTwice => "dnsperf, two threads",
            Self::Busy => "busy clients",
        }
    }
}

/// Questions.
pub(crate) struct Load {
    folder: TempDir,
    queries: HashMap<Asked, Vec<Vec<u8>>>,
    seconds: usize,
}

/// What one run has shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Microseconds of processor time for each query that was answered.
    pub(crate) cpu: f64,
    /// Answers a second.
    pub(crate) rate: f64,
    /// Cores that the server used.
    pub(crate) cores: f64,
    /// Of 100 queries, those without an answer.
    pub(crate) lost: f64,
}

impl Load {
    pub(crate) fn new(names: &[String]) -> Self {
        let folder = TempDir::new().unwrap();
        let (cached, missing) = names.split_at(CACHED.min(names.len() / 2));
        // Of the same length or a little longer, and below nothing that is allowed.
        let denied: Vec<String> = names.iter().map(|name| format!("{name}.denied")).collect();
        let again = denied.get(..CACHED).unwrap_or(&denied).to_vec();
        let names = HashMap::from([
            (Asked::Cached, cached.to_vec()),
            (Asked::Denied, denied),
            (Asked::DeniedAgain, again),
            (Asked::Missing, missing.to_vec()),
        ]);
        for (asked, names) in &names {
            let lines: String = names.iter().map(|name| format!("{name} A\n")).collect();
            fs::write(folder.path().join(asked.file()), lines).unwrap();
        }
        let queries_for = |names: Vec<String>| names.iter().map(|name| flood::query(name)).collect();
        let queries = names.into_iter().map(|(asked, names)| (asked, queries_for(names))).collect();
        Self { folder, queries, seconds: crate::number("SECONDS", 3) }
    }

    /// Asks for every name that is to be cached.
    pub(crate) fn warm_up(&self, cores: &[usize]) {
        self.dnsperf(Asked::Cached, &list(cores), 1, &["-n", "3", "-q", "50"]);
    }

    /// As many questions as there are answers to, from these cores.
    pub(crate) fn run(&self, server: &Running, asked: Asked, clients: Clients, cores: &[usize]) -> Run {
        match clients {
            Clients::Dnsperf => self.run_dnsperf(server, asked, 1, cores),
            Clients::DnsperfTwice => self.run_dnsperf(server, asked, 2, cores),
            Clients::Busy => self.run_busy(server, asked, cores),
        }
    }

    fn run_dnsperf(&self, server: &Running, asked: Asked, threads: usize, cores: &[usize]) -> Run {
        let seconds = self.seconds.to_string();
        let until = match asked {
            Asked::Missing => ["-n", "1"],
            Asked::Cached | Asked::Denied | Asked::DeniedAgain => ["-l", seconds.as_str()],
        };
        let arguments = [&until[..], &["-q", "200"]].concat();
        let (said, used, cores) = server.usage(|| self.dnsperf(asked, &list(cores), threads, &arguments));
        let figure = |key: &str| -> f64 {
            let line = said.lines().find(|line| line.trim_start().starts_with(key)).unwrap();
            line.split(':').nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap()
        };
        if server.has_names() {
            let codes = said.lines().find_map(|line| line.trim().strip_prefix("Response codes:"));
            let codes = codes.unwrap_or_default();
            let denied = codes.contains("NXDOMAIN") || codes.contains("REFUSED");
            asked.check(codes.contains("NOERROR"), denied);
        }
        let answered = figure("Queries completed");
        Run {
            cpu: used.as_secs_f64() * 1e6 / answered,
            rate: figure("Queries per second"),
            cores,
            lost: figure("Queries lost") * 100.0 / figure("Queries sent"),
        }
    }

    fn run_busy(&self, server: &Running, asked: Asked, cores: &[usize]) -> Run {
        let time = Duration::from_secs(self.seconds as u64);
        let (tally, _, used) = server.usage(|| flood::ask(&self.queries[&asked], cores, time));
        if server.has_names() {
            asked.check(tally.denials < tally.answers, tally.denials > 0);
        }
        let rate = tally.answers as f64 / time.as_secs_f64();
        let sent = tally.answers + tally.lost;
        Run { cpu: used * 1e6 / rate, rate, cores: used, lost: tally.lost as f64 * 100.0 / sent as f64 }
    }

    fn dnsperf(&self, asked: Asked, cores: &str, threads: usize, arguments: &[&str]) -> String {
        let mut command = Command::new("dnsperf");
        command.args(["-s", "127.0.0.1", "-p", &PORT.to_string(), "-c", "16", "-t", "2", "-W"]);
        command.args(["-T", &threads.to_string(), "-d"]).arg(self.folder.path().join(asked.file()));
        let output = on_cores(command.args(arguments), cores).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Cores as taskset(1) takes them.
fn list(cores: &[usize]) -> String {
    cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, rate, cores, lost } = self;
        write!(f, "{cpu:.2} µs a query, {rate:.0} a second, {cores:.2} cores, {lost:.3} % lost")
    }
}
