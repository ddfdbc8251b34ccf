//! Programs of others that act as clients.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::PATIENCE;
use crate::gate::Gate;
use crate::tls::Authority;

/// A program that is there.
#[derive(Clone, Debug)]
pub struct Program(String);

impl Program {
    /// A run of it.
    #[must_use]
    pub fn command(&self) -> Command {
        Command::new(&self.0)
    }
}

/// A program that is there, or none: then the test says so and ends. Under `CI=true` a missing program is a
/// failure.
///
/// # Panics
/// If `CI=true` and the program is missing.
#[must_use]
pub fn program(name: &str, probe: &[&str]) -> Option<Program> {
    // A Python that was installed by hand may lack the modules that the system's has.
    for candidate in [name, &format!("/usr/bin/{name}")] {
        if Command::new(candidate).args(probe).output().is_ok_and(|output| output.status.success()) {
            return Some(Program(candidate.to_owned()));
        }
    }
    skip(&format!("{name} {} does not run here", probe.join(" ")));
    None
}

/// Says that a test ends here because of what this machine lacks.
///
/// # Panics
/// If `CI=true`.
pub fn skip(lack: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{lack}, and CI=true allows no skip");
    // Not by the macro, whose words a passing test keeps to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {lack}");
}

/// Sends a program's traffic through the gate, by the environment variables that such programs know, and lets
/// it trust the authority.
pub fn through<'a>(command: &'a mut Command, gate: &Gate, authority: &Authority) -> &'a mut Command {
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env(name, gate.proxy_url());
    }
    for name in [
        "SSL_CERT_FILE",
        "CURL_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "PIP_CERT",
        "GIT_SSL_CAINFO",
        "NODE_EXTRA_CA_CERTS",
    ] {
        command.env(name, authority.pem_file());
    }
    command.env_remove("no_proxy").env_remove("NO_PROXY").env("LC_ALL", "C")
}

/// Runs a program to its end, for which it has three times [`PATIENCE`].
pub fn finish(command: &mut Command) -> Output {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let out = std::thread::spawn(move || read_all(&mut stdout));
    let err = std::thread::spawn(move || read_all(&mut stderr));
    let deadline = std::time::Instant::now() + 3 * PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if std::time::Instant::now() > deadline {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            panic!("{command:?} does not end");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

/// What a program wrote, for messages and comparisons.
#[must_use]
pub fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn read_all(pipe: &mut impl std::io::Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    drop(pipe.read_to_end(&mut bytes));
    bytes
}
