//! dnsperf, and what a server used while it was asked.

use std::fmt;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use outgate_bench::usage::cpu;
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

    const fn file(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Denied => "denied",
            Self::DeniedAgain => "denied-again",
            Self::Missing => "missing",
        }
    }
}

/// Files of questions.
pub(crate) struct Load {
    folder: TempDir,
    cached: Vec<String>,
    seconds: usize,
}

/// What a server did that was kept busy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Busy {
    /// Answers a second.
    pub(crate) rate: f64,
    /// Cores that it used.
    pub(crate) cores: f64,
}

/// What one run of dnsperf has shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Microseconds of processor time for each query that was answered.
    pub(crate) cpu: f64,
    /// Answers a second.
    pub(crate) rate: f64,
    /// Of 100 queries, those without an answer.
    pub(crate) lost: f64,
}

impl Load {
    pub(crate) fn new(names: &[String]) -> Self {
        let folder = TempDir::new().unwrap();
        let (cached, missing) = names.split_at(CACHED.min(names.len() / 2));
        // Of the same length or a little longer, and below nothing that is allowed.
        let denied: Vec<String> = names.iter().map(|name| format!("{name}.denied")).collect();
        let again = denied.get(..CACHED).unwrap_or(&denied);
        for (asked, names) in [
            (Asked::Cached, cached),
            (Asked::Denied, &denied),
            (Asked::DeniedAgain, again),
            (Asked::Missing, missing),
        ] {
            let lines: String = names.iter().map(|name| format!("{name} A\n")).collect();
            fs::write(folder.path().join(asked.file()), lines).unwrap();
        }
        Self { folder, cached: cached.to_vec(), seconds: crate::number("SECONDS", 3) }
    }

    /// Asks for every name that is to be cached.
    pub(crate) fn warm_up(&self, cores: &str) {
        self.dnsperf(Asked::Cached, cores, &["-n", "3", "-q", "50"]);
    }

    pub(crate) fn run(&self, server: &Running, asked: Asked, cores: &str) -> Run {
        let seconds = self.seconds.to_string();
        let until = match asked {
            Asked::Missing => ["-n", "1"],
            Asked::Cached | Asked::Denied | Asked::DeniedAgain => ["-l", seconds.as_str()],
        };
        if asked == Asked::Cached {
            self.warm_up(cores);
        }
        let before = cpu(server.pid());
        let said = self.dnsperf(asked, cores, &[&until[..], &["-q", "200"]].concat());
        let used = cpu(server.pid()) - before;
        let figure = |key: &str| -> f64 {
            let line = said.lines().find(|line| line.trim_start().starts_with(key)).unwrap();
            line.split(':').nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap()
        };
        if server.has_names() {
            check_answers(&said, asked);
        }
        let answered = figure("Queries completed");
        Run {
            cpu: used.as_secs_f64() * 1e6 / answered,
            rate: figure("Queries per second"),
            lost: figure("Queries lost") * 100.0 / figure("Queries sent"),
        }
    }

    /// As many questions for cached names as the server answers, from these cores.
    pub(crate) fn flood(&self, server: &Running, cores: &[usize]) -> Busy {
        let time = Duration::from_secs(self.seconds as u64);
        let (before, begun) = (cpu(server.pid()), Instant::now());
        let rate = flood::rate(&self.cached, cores, time);
        let used = cpu(server.pid()) - before;
        Busy { rate, cores: used.as_secs_f64() / begun.elapsed().as_secs_f64() }
    }

    fn dnsperf(&self, asked: Asked, cores: &str, arguments: &[&str]) -> String {
        let mut command = Command::new("dnsperf");
        command.args(["-s", "127.0.0.1", "-p", &PORT.to_string(), "-c", "16", "-T", "2", "-t", "2", "-W"]);
        command.arg("-d").arg(self.folder.path().join(asked.file())).args(arguments);
        let output = on_cores(&command, cores).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A server that answers otherwise than it should is not measured.
fn check_answers(said: &str, asked: Asked) {
    let codes = said.lines().find_map(|line| line.trim().strip_prefix("Response codes:")).unwrap_or_default();
    let allowed = codes.contains("NOERROR");
    let denied = codes.contains("NXDOMAIN") || codes.contains("REFUSED");
    assert!(
        allowed != denied && denied == matches!(asked, Asked::Denied | Asked::DeniedAgain),
        "{asked:?} gave {codes}"
    );
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} µs a query, {:.0} a second, {:.3} % lost", self.cpu, self.rate, self.lost)
    }
}
