//! `outgate run`: a command whose only way out is a gate of its own.
//!
//! The gate stays outside and dials; its listeners stand inside, in a network namespace with nothing else in it, and
//! take whatever the command connects to. What comes in there is an intercepted flow like any other: there is no
//! second path. The stages inside are [`inside`] and [`first_process`], in programs of their own.

pub mod first_process;
pub mod inside;
pub mod plan;
pub mod trust;

mod capabilities;
mod handover;
mod hide;
mod links;
mod mounts;
mod refused;
mod surroundings;
mod system_calls;

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::pin::pin;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use outgate_dns::server::{ServerSettings, Sockets as Lookups};
use outgate_dns::{Resolver, ResolverSettings};
use outgate_rules::{OwnAddresses, Reason, RuleSet};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use crate::audit::{Audit, AuditSettings, AuditTarget};
use crate::config::{DnsAnswers, default_clients};
use crate::console::Console;
use crate::entrance::Entrance;
use crate::gate::{Gate, Limits};
use crate::listener::{Listener, Way};
use crate::metrics::Metrics;
use crate::own;
use crate::recorder::Recorder;
use crate::tally::Tally;
use handover::Sockets;
use plan::Plan;

/// How long the sandbox may take to be made: some milliseconds, on a machine that has time.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether the command has ended, beside the signal that tells it.
const LOOK: Duration = Duration::from_millis(500);
/// How often it is looked whether the command has stopped, after a signal that asks for it, and for how long: by then
/// it has decided to go on.
const LOOK_AT_STOP: Duration = Duration::from_millis(5);
const DECISION: Duration = Duration::from_secs(2);
/// How long flows may take to end behind the command, and records to be written.
const GOODBYE: Duration = Duration::from_secs(2);

/// What to run, and under what.
#[derive(Debug)]
pub struct Run {
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// The rules.
    pub rules: Arc<RuleSet>,
    /// The rules' files and folders, and what the gate writes: the command can read them and not write.
    pub protected: Vec<PathBuf>,
    /// Where records go, if anywhere.
    pub audit: Option<PathBuf>,
    /// Whether nothing but errors is said.
    pub quiet: bool,
    /// Ports of this machine that the command reaches at its own loopback.
    pub published: Vec<u16>,
    /// Sockets that stay in sight.
    pub allowed_sockets: Vec<PathBuf>,
    /// What was wanted is counted here.
    pub tally: Arc<Tally>,
}

/// Runs the command, and comes back with its exit code.
///
/// # Errors
/// When there can be no sandbox: then the command has not run.
pub async fn run(run: Run) -> anyhow::Result<u8> {
    let folder = tempfile::Builder::new().prefix("outgate-").tempdir().context("a folder for the sandbox")?;
    // First, as the file of records is made by it, which is then protected.
    let gate = gate(&run)?;
    let plan = plan_of(&run, folder.path().join("handover"))?;
    let handover = UnixListener::bind(&plan.handover).context("the sandbox's socket")?;
    let mut signals = Signals::new().context("signals")?;
    let mut child = spawn(&plan, &run.command)?;
    let (sockets, mut inside) = match taken(handover, &mut child).await? {
        Ok(taken) => taken,
        // It has said itself why there is no sandbox.
        Err(code) => return Ok(code),
    };
    serve(&gate, sockets)?;
    handover::acknowledge(&mut inside).context("the sandbox has gone")?;
    drop(folder);
    let code = signals.until_end(&mut child, command_inside).await?;
    finish(&gate).await;
    Ok(code)
}

/// Runs the command without a sandbox: it is asked, by its environment, to use the gate as its proxy.
///
/// # Errors
/// When there is no gate, or no command.
pub async fn run_by_proxy(run: Run) -> anyhow::Result<u8> {
    let gate = gate(&run)?;
    if !run.quiet {
        let notice = "--proxy-only asks the command to use the gate and cannot make it: a program that does not \
                      look at HTTPS_PROXY goes out as it likes";
        gate.recorder.console().notice(notice);
    }
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("the proxy")?;
    let address = socket.local_addr()?;
    let mut own = (*gate.own()).clone();
    own.listeners.push(address);
    gate.set_own(own);
    listen(&gate, Way::Proxy, socket)?;
    let mut signals = Signals::new().context("signals")?;
    let Some((program, arguments)) = run.command.split_first() else { bail!("no command") };
    let mut command = Command::new(program);
    command.args(arguments);
    ask_to_use(&mut command, &format!("http://{address}"));
    let mut child = command.spawn().with_context(|| program.display().to_string())?;
    let code = signals.until_end(&mut child, |command| Held::open(command.id())).await?;
    finish(&gate).await;
    Ok(code)
}

/// The variables that programs look at for a proxy, in both spellings, as some look at one and some at the other.
fn ask_to_use(command: &mut Command, proxy: &str) {
    for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env(variable, proxy).env(variable.to_ascii_lowercase(), proxy);
    }
    command.env_remove("NO_PROXY").env_remove("no_proxy");
}

fn plan_of(run: &Run, handover: PathBuf) -> anyhow::Result<Plan> {
    let records = run.audit.iter().filter(|path| path.is_file());
    let protected: Vec<PathBuf> = run.protected.iter().chain(records).cloned().collect();
    let files = surroundings::files(&run.allowed_sockets, &protected)?;
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Ok(Plan {
        handover,
        user: (user, group),
        published: run.published.clone(),
        ports: ports_named(&run.rules),
        files,
        without: surroundings::variables(&run.allowed_sockets),
    })
}

/// The gate of this one run: everything as in a gate that serves, but for its listeners.
fn gate(run: &Run) -> anyhow::Result<Arc<Gate>> {
    let own = OwnAddresses { listeners: Vec::new(), interfaces: own::interfaces() };
    let resolver = Resolver::new(ResolverSettings { own: own.clone(), ..ResolverSettings::default() })?;
    let console = Console::stderr(!run.quiet).context("the console")?;
    let target = AuditTarget::File {
        path: run.audit.clone().unwrap_or_else(|| PathBuf::from("/dev/null")),
        rotate: u64::MAX,
        keep: NonZeroU16::MIN,
    };
    let audit = Audit::open(AuditSettings::new(target), console.clone()).context("the audit file")?;
    let recorder = Recorder::new(Metrics::new(), console, audit).with_tally(Arc::clone(&run.tally));
    let gate = Arc::new(Gate::new(resolver, recorder, Limits::default()));
    gate.set_own(own);
    gate.set_rules(Arc::clone(&run.rules));
    tokio::spawn(Arc::clone(&gate).keep_up());
    Ok(gate)
}

fn spawn(plan: &Plan, command: &[OsString]) -> anyhow::Result<Child> {
    let arguments = plan.to_arguments().context("a path is not UTF-8")?;
    Command::new("/proc/self/exe")
        .arg("sandbox-inside")
        .args(arguments)
        .arg("--")
        .args(command)
        .spawn()
        .context("the sandbox cannot start")
}

/// The sandbox's sockets; or its exit code, where it ended without any.
async fn taken(
    listener: UnixListener,
    child: &mut Child,
) -> anyhow::Result<Result<(Sockets, UnixStream), u8>> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let pid = child.id();
    let mut taking = pin!(take_from(&listener, pid));
    let deadline = Instant::now() + PATIENCE;
    loop {
        match timeout(LOOK.min(Duration::from_millis(20)), &mut taking).await {
            Ok(Ok(taken)) => return Ok(Ok(taken)),
            // It has gone, and its exit code comes in a moment.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(Err(inside::code(child.wait()?)));
            }
            Ok(Err(error)) => return Err(error).context("the sandbox's listeners"),
            Err(_) => {}
        }
        if let Some(status) = child.try_wait()? {
            return Ok(Err(inside::code(status)));
        }
        if Instant::now() > deadline {
            // What is left of it ends with us.
            _ = child.kill();
            bail!("the sandbox was not made within {} s", PATIENCE.as_secs());
        }
    }
}

/// Takes the sockets from the first stage, and from nobody else who can reach the socket's folder.
async fn take_from(listener: &tokio::net::UnixListener, pid: u32) -> io::Result<(Sockets, UnixStream)> {
    loop {
        let (stream, _) = listener.accept().await?;
        let stream = stream.into_std()?;
        let peer = rustix::net::sockopt::socket_peercred(&stream)?;
        if u32::try_from(peer.pid.as_raw_nonzero().get()) == Ok(pid) {
            let stream = tokio::net::UnixStream::from_std(stream)?;
            stream.readable().await?;
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            return Ok((handover::take(&stream)?, stream));
        }
    }
}

/// Serves the sandbox's sockets, until the gate drains.
fn serve(gate: &Arc<Gate>, sockets: Sockets) -> anyhow::Result<()> {
    for (way, socket) in sockets.tcp {
        listen(gate, way, socket)?;
    }
    let answers = DnsAnswers::default();
    let settings = ServerSettings {
        address: SocketAddr::from(([0, 0, 0, 0], 53)),
        tls: None,
        clients: default_clients(),
        denied: answers.denied,
        queries_per_second: answers.queries_per_second,
        budget: answers.budget,
        loops: None,
    };
    let lookups = Lookups::given(settings, vec![sockets.lookups], sockets.lookup_streams)?;
    gate.tasks.spawn(lookups.serve(gate.foundation()).run(gate.draining.clone(), Vec::new()));
    Ok(())
}

fn listen(gate: &Arc<Gate>, way: Way, socket: TcpListener) -> io::Result<()> {
    let listener = Arc::new(Listener::new(gate, way, default_clients()));
    tokio::spawn(listener.run(Entrance::new(socket)?, Arc::clone(gate)));
    Ok(())
}

/// The records of what is still open, before the gate goes.
async fn finish(gate: &Arc<Gate>) {
    gate.draining.cancel();
    gate.tasks.close();
    gate.flows.end_all(Reason::Draining);
    _ = timeout(GOODBYE, gate.tasks.wait()).await;
    if let Err(lost) = gate.recorder.flush_and_close(GOODBYE).await {
        gate.recorder.console().notice(lost.to_string());
    }
    gate.recorder.console().flush(GOODBYE);
}

/// What the gate does with signals while the command runs. Those that the caller had it ignore stay ignored, by the
/// command as well: so does `nohup`.
struct Signals {
    child: tokio::signal::unix::Signal,
    interrupt: Option<tokio::signal::unix::Signal>,
    quit: Option<tokio::signal::unix::Signal>,
    terminate: Option<tokio::signal::unix::Signal>,
    hangup: Option<tokio::signal::unix::Signal>,
    /// The terminal's ^Z.
    stop: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let ignored = ignored()?;
        let unless_ignored = |kind: SignalKind| {
            let is_ignored = ignored >> (kind.as_raw_value() - 1) & 1 == 1;
            (!is_ignored).then(|| signal(kind)).transpose()
        };
        Ok(Self {
            child: signal(SignalKind::child())?,
            interrupt: unless_ignored(SignalKind::interrupt())?,
            quit: unless_ignored(SignalKind::quit())?,
            terminate: unless_ignored(SignalKind::terminate())?,
            hangup: unless_ignored(SignalKind::hangup())?,
            stop: unless_ignored(SignalKind::from_raw(Signal::TSTP.as_raw()))?,
        })
    }

    /// Waits for the command's end. What the terminal sends, it sends to the command as well; what somebody sends to
    /// the gate alone is passed on.
    ///
    /// ^Z stops the gate behind the command, never before it: the shell that sees the gate stopped reads the terminal
    /// again, and a command that still ran would take what is typed there.
    async fn until_end(
        &mut self,
        child: &mut Child,
        command: impl Fn(&Child) -> Option<Held>,
    ) -> anyhow::Result<u8> {
        let pass_on = |child: &Child, signal| {
            if let Some(command) = command(child) {
                command.send(signal);
            }
        };
        let mut decision = None;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(inside::code(status));
            }
            decision = decision.filter(|end| Instant::now() < *end);
            if decision.is_some() && command(child).is_some_and(|command| command.is_stopped()) {
                decision = None;
                rustix::process::kill_process(rustix::process::getpid(), Signal::STOP)?;
                // Somebody has let the gate go on.
                pass_on(child, Signal::CONT);
            }
            tokio::select! {
                _ = self.child.recv() => {}
                () = received(&mut self.interrupt) => {}
                () = received(&mut self.quit) => {}
                () = received(&mut self.terminate) => pass_on(child, Signal::TERM),
                () = received(&mut self.hangup) => pass_on(child, Signal::HUP),
                () = received(&mut self.stop) => decision = Some(Instant::now() + DECISION),
                () = sleep(if decision.is_some() { LOOK_AT_STOP } else { LOOK }) => {}
            }
        }
    }
}

/// Never for a signal that is ignored.
async fn received(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => std::future::pending().await,
    }
}

/// The signals that this process ignores, one a bit.
fn ignored() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .ok_or_else(|| io::Error::other("/proc/self/status does not say what is ignored"))
}

/// A process held by its descriptor, so that no later one of the same number is meant.
struct Held {
    pid: u32,
    descriptor: OwnedFd,
}

impl Held {
    fn open(pid: u32) -> Option<Self> {
        let number = rustix::process::Pid::from_raw(pid.cast_signed())?;
        let descriptor = rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty()).ok()?;
        Some(Self { pid, descriptor })
    }

    fn send(&self, signal: Signal) {
        // It may have ended in this moment.
        _ = rustix::process::pidfd_send_signal(&self.descriptor, signal);
    }

    /// Whether it is stopped, as by ^Z: the state in proc_pid_stat(5), behind the name in parentheses.
    fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    }
}

/// The command: the child of the first process, which is the child of the first stage.
fn command_inside(stage: &Child) -> Option<Held> {
    let first = children(stage.id()).first().copied()?;
    let command = children(first).first().copied().and_then(Held::open)?;
    // It was a child when it was held.
    children(first).contains(&command.pid).then_some(command)
}

fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The ports that rules name one by one, as many as one sandbox can have listeners for.
fn ports_named(rules: &RuleSet) -> Vec<u16> {
    let ranges = rules.rules().iter().flat_map(|rule| rule.terms.ports.ranges());
    let single = ranges.filter(|range| range.start() == range.end()).map(|range| *range.start());
    let mut ports: Vec<u16> = single.collect();
    ports.sort_unstable();
    ports.dedup();
    ports.truncate(handover::MOST / 2);
    ports
}
