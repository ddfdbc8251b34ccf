//! A real gate in a process of its own.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::client::{Client, Response};
use crate::{freeze, wait_for, wait_until};

/// A gate that is about to start: its configuration and its policy, as files in a folder of their own.
#[derive(Debug)]
pub struct Setup {
    folder: tempfile::TempDir,
    config: Value,
    flags: Vec<String>,
    open_files: Option<u32>,
    inside: Vec<OsString>,
    variables: Vec<(String, OsString)>,
}

impl Setup {
    /// A gate with this policy in `policy.yaml`, and defaults elsewhere.
    #[must_use]
    pub fn new(policy: &str) -> Self {
        let setup = Self {
            folder: tempfile::tempdir().unwrap(),
            config: json!({
                "listen": {"proxy": {"address": "127.0.0.1:0"}, "dns": "127.0.0.1:0", "admin": "127.0.0.1:0"},
                "control": "control.sock",
                "policy": ["policy.yaml"],
                "audit": {"path": "audit/audit.jsonl"},
            }),
            flags: Vec::new(),
            open_files: None,
            inside: Vec::new(),
            variables: Vec::new(),
        };
        std::fs::create_dir(setup.folder.path().join("audit")).unwrap();
        setup.file("policy.yaml", policy)
    }

    /// Puts a file beside the configuration.
    #[must_use]
    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        self
    }

    /// Sets a key of the configuration, as in `limits.head`.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        let mut at = &mut self.config;
        for part in key.split('.') {
            at = &mut at[part];
        }
        *at = value.into();
        self
    }

    /// Adds a flag to `outgate serve`.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// Lets the gate have so many open files.
    #[must_use]
    pub fn open_files(mut self, limit: u32) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// Runs it by a command that takes a command, and that runs it as its only child: `nsenter`. What connects to
    /// the gate from here ([`Gate::client`], [`Gate::admin_get`] and what is made of them) is then out of reach.
    #[must_use]
    pub fn inside(mut self, command: impl IntoIterator<Item = OsString>) -> Self {
        self.inside = command.into_iter().collect();
        self
    }

    /// Runs it by one more command, which replaces itself by the gate: `setpriv`.
    #[must_use]
    pub fn by(mut self, words: &[&str]) -> Self {
        self.inside.extend(words.iter().map(OsString::from));
        self
    }

    /// The folder of the configuration.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// With what it said, if it exits instead.
    #[must_use]
    pub fn start(self) -> Gate {
        let mut gate = self.spawn();
        wait_until("the gate to be ready or to end", || {
            gate.said("outgate: ready").is_some() || gate.child.try_wait().unwrap().is_some()
        });
        assert!(gate.said("outgate: ready").is_some(), "the gate did not start:\n{}", gate.talk());
        let (proxy, admin) = (gate.listener("proxy"), gate.listener("admin"));
        (gate.proxy, gate.admin) = (proxy, admin);
        if gate.is_inside {
            gate.pid = only_child(gate.child.id());
        }
        gate
    }

    /// Starts it where it must not become ready: how it ended, and what it said on stderr.
    #[must_use]
    pub fn start_in_vain(self) -> (ExitStatus, String) {
        let mut gate = self.spawn();
        let status = gate.ended();
        wait_until("the gate's last words", || {
            gate.reader.as_ref().is_some_and(|reader| reader.is_finished())
        });
        assert!(gate.said("outgate: ready").is_none(), "it became ready:\n{}", gate.talk());
        (status, gate.talk())
    }

    fn spawn(self) -> Gate {
        std::fs::write(self.folder.path().join("outgate.yaml"), self.config.to_string()).unwrap();
        let is_inside = !self.inside.is_empty();
        let mut command = match (self.inside.split_first(), self.open_files) {
            (None, None) => Command::new(binary()),
            (Some((enter, arguments)), _) => {
                let mut enter = Command::new(enter);
                enter.args(arguments).arg(binary());
                enter
            }
            (None, Some(limit)) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(format!("ulimit -n {limit} && exec \"$0\" \"$@\"")).arg(binary());
                shell
            }
        };
        command.args(["serve", "--config"]).arg(self.folder.path().join("outgate.yaml")).args(&self.flags);
        let mut child = command
            .envs(self.variables)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(self.folder.path().join("stdout")).unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let reader = std::thread::spawn({
            let (lines, stderr) = (Arc::clone(&lines), BufReader::new(child.stderr.take().unwrap()));
            move || stderr.lines().map_while(Result::ok).for_each(|line| lines.lock().unwrap().push(line))
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let pid = child.id();
        Gate {
            folder: self.folder,
            child,
            pid,
            is_inside,
            lines,
            reader: Some(reader),
            proxy: nowhere,
            admin: nowhere,
        }
    }
}

/// A running gate. It is killed when the test is over.
#[derive(Debug)]
pub struct Gate {
    folder: tempfile::TempDir,
    child: Child,
    /// The gate's own, where `child` is what it runs inside.
    pid: u32,
    is_inside: bool,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<std::thread::JoinHandle<()>>,
    proxy: SocketAddr,
    admin: SocketAddr,
}

impl Gate {
    /// Where one of its listeners is, by the name in the configuration.
    #[must_use]
    pub fn listener(&self, name: &str) -> SocketAddr {
        let line = self.said(&format!("outgate: {name} listens on ")).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Where the proxy listens.
    #[must_use]
    pub fn proxy(&self) -> SocketAddr {
        self.proxy
    }

    /// The proxy's address as clients take it from their environment.
    #[must_use]
    pub fn proxy_url(&self) -> String {
        format!("http://{}", self.proxy)
    }

    /// Where the admin listener is.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The folder of its configuration.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A new client.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::to(self.proxy)
    }

    /// A new client at an address of its own.
    #[must_use]
    pub fn client_at(&self, source: &str) -> Client {
        Client::from(source.parse::<IpAddr>().unwrap(), self.proxy)
    }

    /// A new client in a tunnel that the gate has agreed to.
    #[must_use]
    pub fn tunnel(&self, target: &str) -> Client {
        let mut client = self.client();
        let response = client.connect(target);
        assert_eq!(response.status, 200, "{target}: {} {}", response.phrase, response.text());
        client
    }

    /// Sends one head of the client's own making, on a new connection, and reads the answer.
    pub fn ask(&self, head: impl AsRef<[u8]>) -> Response {
        let mut client = self.client();
        client.send(head);
        client.response()
    }

    /// Asks the admin listener.
    #[must_use]
    pub fn admin_get(&self, path: &str) -> Response {
        let mut client = Client::to(self.admin);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin));
        client.response()
    }

    /// The value of a metric: the sum of the samples whose line begins with `name` and has `label` in it.
    #[must_use]
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.admin_get("/metrics").text();
        let samples = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    // What it says.

    /// The first line of its stderr that begins like this.
    #[must_use]
    pub fn said(&self, beginning: &str) -> Option<String> {
        self.lines.lock().unwrap().iter().find(|line| line.starts_with(beginning)).cloned()
    }

    /// All of its stderr so far.
    #[must_use]
    pub fn talk(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// All of its stdout so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stdout")).unwrap()
    }

    /// Waits until its stderr has this in it.
    pub fn wait_for_talk(&self, words: &str) {
        wait_until(&format!("{words:?} in the gate's talk"), || self.talk().contains(words));
    }

    // What it records.

    /// The audit file.
    #[must_use]
    pub fn audit_path(&self) -> PathBuf {
        self.folder.path().join("audit/audit.jsonl")
    }

    /// The text of every audit file there is, the older first; without a last line that has no end yet.
    #[must_use]
    pub fn audit_text(&self) -> String {
        let mut files: Vec<PathBuf> = std::fs::read_dir(self.folder.path().join("audit"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort_by_key(|path| (path.metadata().and_then(|data| data.modified()).ok(), path.clone()));
        let mut text: String = files.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect();
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        text
    }

    /// Every audit record so far.
    #[must_use]
    pub fn records(&self) -> Vec<Value> {
        self.audit_text().lines().map(parse).collect()
    }

    /// What came of each reading of the policy, but for those that found nothing new. No other record is parsed: under
    /// load there are so many that reading them all again and again would take the test longer than the gate.
    fn policy_events(&self) -> Vec<Value> {
        let text = self.audit_text();
        let events = text.lines().filter(|line| line.contains(r#""event":"policy""#)).map(parse);
        events.filter(|record| record["result"] != "unchanged").collect()
    }

    /// Waits for the first record that is asked for.
    #[must_use]
    pub fn record(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(&format!("a record of {what}"), || self.records().into_iter().find(|record| wanted(record)))
    }

    /// Waits for the decision about a host.
    #[must_use]
    pub fn decision(&self, host: &str) -> Value {
        self.record(&format!("the decision about {host}"), |r| r["event"] == "decision" && r["host"] == host)
    }

    /// Waits for the closing record of a flow to a host.
    #[must_use]
    pub fn close(&self, host: &str) -> Value {
        self.record(&format!("the end of a flow to {host}"), |r| r["event"] == "close" && r["host"] == host)
    }

    /// Waits for the record that denies something to this client's connection.
    #[must_use]
    pub fn denial(&self, client: &Client) -> Value {
        let port = client.port();
        self.record("a denial", |r| r["client_port"] == port && r["verdict"] == "deny")
    }

    /// Waits for the first record with this reason.
    #[must_use]
    pub fn reason(&self, reason: &str) -> Value {
        self.record(&format!("reason {reason}"), |r| r["reason"] == reason)
    }

    /// Waits until there are so many records that are asked for, and returns them.
    #[must_use]
    pub fn records_until(&self, count: usize, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        wait_for(&format!("{count} records"), || {
            let mut records = self.records();
            records.retain(&wanted);
            (records.len() >= count).then_some(records)
        })
    }

    // What it is told.

    /// Replaces the policy as an editor does, by renaming a new file over the old one.
    pub fn write_policy(&self, policy: &str) {
        let (new, old) =
            (self.folder.path().join(".policy.yaml.new"), self.folder.path().join("policy.yaml"));
        std::fs::write(&new, policy).unwrap();
        std::fs::rename(new, old).unwrap();
    }

    /// Replaces the policy, and waits for the record of what came of it.
    pub fn reload_with(&self, policy: &str) -> Value {
        self.policy_event_after(|| self.write_policy(policy))
    }

    /// Does something that makes the gate look at its policy, and waits for the record of what came of it.
    pub fn policy_event_after(&self, act: impl FnOnce()) -> Value {
        let before = self.policy_events().len();
        act();
        wait_for("a policy that was read", || self.policy_events().into_iter().nth(before))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid.cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Does something while it stands still, and lets it go on: what comes in meanwhile is there when it looks.
    pub fn behind_its_back<T>(&self, act: impl FnOnce() -> T) -> T {
        freeze(Pid::from_raw(self.pid.cast_signed()).unwrap());
        let done = act();
        self.signal(Signal::CONT);
        done
    }

    /// Asks it to end in good order.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Kills it between two instructions.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }

    /// Waits until it has ended.
    pub fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait_for("the gate to end", || child.try_wait().unwrap())
    }

    /// Whether it runs and serves: a process that answers.
    #[must_use]
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none() && self.admin_get("/healthz").status == 200
    }

    /// How many files it has open.
    #[must_use]
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Its resident memory in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
    }

    /// Runs another command of the binary in the gate's folder.
    #[must_use]
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        run_in(self.folder(), arguments)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if self.is_inside && self.child.try_wait().is_ok_and(|status| status.is_none()) {
            // What it runs inside ends with it.
            let _ = Pid::from_raw(self.pid.cast_signed()).map(|pid| kill_process(pid, Signal::KILL));
        } else {
            drop(self.child.kill());
        }
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("--- the gate said:\n{}\n--- and recorded:\n{}---", self.talk(), self.audit_text());
        }
    }
}

/// The one process that another has started.
pub(crate) fn only_child(parent: u32) -> u32 {
    let children = format!("/proc/{parent}/task/{parent}/children");
    wait_for("a child process", || std::fs::read_to_string(&children).ok()?.trim().parse().ok())
}

/// Runs the binary in a folder, to its end.
#[must_use]
pub fn run_in<S: AsRef<OsStr>>(folder: &Path, arguments: impl IntoIterator<Item = S>) -> Output {
    Command::new(binary()).args(arguments).current_dir(folder).stdin(Stdio::null()).output().unwrap()
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))
}

/// The binary under test: `OUTGATE_BIN`, or the one that was built beside the test.
///
/// # Panics
/// With the command that builds it, if it is not there.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("OUTGATE_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().unwrap();
    let binary = test.ancestors().nth(2).unwrap().join("outgate");
    assert!(binary.is_file(), "{} is not there: build it with `cargo build -p outgate`", binary.display());
    binary
}
