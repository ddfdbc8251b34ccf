//! Load: what is allowed and what is not, tried again and again.

use std::path::PathBuf;
use std::process::Child;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Machine, site};
use crate::wait_until;

pub(super) const SCRIPT: &str = include_str!("load.py");

/// A program that tries, from several threads, until it is stopped: HTTP to `ml.azure.com` and UDP 5831 to
/// `compute.azureml.example`, which the test's policy allows; TCP 4444, UDP 5831, QUIC and ping to
/// `evil.example` and `neighbour.azure.example`, which nothing may.
#[derive(Debug)]
pub struct Load {
    child: Child,
    output: PathBuf,
}

/// One try.
#[derive(Clone, PartialEq, Debug)]
pub struct Attempt {
    /// When it began, in seconds since 1970.
    pub at: f64,
    /// What was tried: `http`, `udp`, or `forbidden-…`.
    pub kind: String,
    /// Whether an answer came.
    pub worked: bool,
}

impl Machine<'_> {
    /// Starts it.
    #[must_use]
    pub fn load(&self) -> Load {
        let script = self.lab.folder().join("load.py").display().to_string();
        let (evil, neighbour) = (site("evil.example"), site("neighbour.azure.example"));
        let (azure, compute) = (site("ml.azure.com"), site("compute.azureml.example"));
        let arguments =
            [&script, azure.name, azure.v4, compute.v4, evil.v4, evil.v6, neighbour.v4, neighbour.v6];
        let (child, output) = self.background("python3", &arguments);
        Load { child, output }
    }
}

impl Load {
    /// Every attempt so far.
    #[must_use]
    pub fn attempts(&self) -> Vec<Attempt> {
        let text = std::fs::read_to_string(&self.output).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(attempt).collect()
    }

    /// Waits until so many attempts of a kind that began from now on have worked, or have not.
    pub fn wait_for(&self, count: usize, kind: &str, worked: bool) {
        let since = now();
        wait_until(&format!("{count} times {kind}, {worked}"), || {
            let attempts = self.attempts();
            let wanted = |a: &&Attempt| a.at > since && a.kind.starts_with(kind) && a.worked == worked;
            attempts.iter().filter(wanted).count() >= count
        });
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

/// The time as attempts have it.
#[must_use]
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn attempt(line: &str) -> Attempt {
    let words: Vec<&str> = line.split(' ').collect();
    let [at, kind, worked] = words[..] else { panic!("the load said {line:?}") };
    Attempt { at: at.parse().unwrap(), kind: kind.to_owned(), worked: worked == "1" }
}
