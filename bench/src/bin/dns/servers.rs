//! The servers, each started on the same port with a configuration from `bench/peers/dns`.

use std::fmt::Write as _;
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use outgate_bench::usage::cpu;
use outgate_bench::{LISTED, name_file};
use tempfile::TempDir;

use crate::flood::query;

/// Where every server listens, and where the authority does: nobody else is in this namespace.
pub(crate) const PORT: u16 = 5300;
const AUTHORITY_PORT: u16 = 5400;
/// How long a server may take until it answers.
const START: Duration = Duration::from_secs(60);
/// How long to wait for one answer.
const ANSWER: Duration = Duration::from_millis(100);

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    /// recvmmsg(2) and sendmmsg(2).
    Reflector,
    /// A call for each datagram.
    ReflectorUnbatched,
    Outgate,
    Unbound,
    Dnsdist,
    Dnsmasq,
    /// With a line in a file for each reply.
    UnboundLogging,
    /// With a line in a file for each query.
    DnsdistLogging,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Reflector,
        Self::ReflectorUnbatched,
        Self::Outgate,
        Self::Unbound,
        Self::Dnsdist,
        Self::Dnsmasq,
        Self::UnboundLogging,
        Self::DnsdistLogging,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Reflector => "reflector",
            Self::ReflectorUnbatched => "reflector-unbatched",
            Self::Outgate => "outgate",
            Self::Unbound => "unbound",
            Self::Dnsdist => "dnsdist",
            Self::Dnsmasq => "dnsmasq",
            Self::UnboundLogging => "unbound-logging",
            Self::DnsdistLogging => "dnsdist-logging",
        }
    }

    /// Whether it is one of those that outgate is compared with; a peer that logs or one that does not.
    pub(crate) fn is_peer(self, logs: bool) -> bool {
        self.has_names() && self != Self::Outgate && self.logs() == logs
    }

    fn logs(self) -> bool {
        matches!(self, Self::UnboundLogging | Self::DnsdistLogging)
    }

    /// The lines of its configuration that make it log.
    fn log_lines(self) -> &'static str {
        match self {
            Self::UnboundLogging => "logfile: \"{folder}/replies.log\"\n    log-replies: yes",
            // In text, appended, through a buffer.
            Self::DnsdistLogging => {
                "addAction(AllRule(), LogAction(\"{folder}/queries.log\", false, true, true))"
            }
            Self::Reflector
            | Self::ReflectorUnbatched
            | Self::Outgate
            | Self::Unbound
            | Self::Dnsdist
            | Self::Dnsmasq => "",
        }
    }

    /// Whether it knows names, and answers some of them otherwise than others.
    pub(crate) fn has_names(self) -> bool {
        !matches!(self, Self::Reflector | Self::ReflectorUnbatched)
    }

    /// Whether it uses two cores.
    pub(crate) fn scales(self) -> bool {
        !matches!(self, Self::Dnsmasq | Self::ReflectorUnbatched)
    }

    fn configuration(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Reflector | Self::ReflectorUnbatched => None,
            Self::Outgate => Some(("outgate.yaml", include_str!("../../../peers/dns/outgate.yaml"))),
            Self::Unbound | Self::UnboundLogging => {
                Some(("unbound.conf", include_str!("../../../peers/dns/unbound.conf")))
            }
            Self::Dnsdist | Self::DnsdistLogging => {
                Some(("dnsdist.lua", include_str!("../../../peers/dns/dnsdist.lua")))
            }
            Self::Dnsmasq => Some(("dnsmasq.conf", include_str!("../../../peers/dns/dnsmasq.conf"))),
        }
    }

    fn command(self, configuration: &str, threads: usize) -> Command {
        let words: Vec<String> = match self {
            Self::Reflector | Self::ReflectorUnbatched => {
                let batch = if self == Self::Reflector { "64" } else { "1" };
                let own = std::env::current_exe().unwrap().display().to_string();
                vec![own, "reflect".into(), PORT.to_string(), batch.into(), threads.to_string()]
            }
            Self::Outgate => {
                let outgate = outgate().display().to_string();
                vec![outgate, "serve".into(), "--config".into(), configuration.into()]
            }
            Self::Unbound | Self::UnboundLogging => {
                vec!["unbound".into(), "-d".into(), "-c".into(), configuration.into()]
            }
            Self::Dnsdist | Self::DnsdistLogging => {
                vec!["dnsdist".into(), "--supervised".into(), "-C".into(), configuration.into()]
            }
            Self::Dnsmasq => vec!["dnsmasq".into(), "-k".into(), "-C".into(), configuration.into()],
        };
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }
}

/// How outgate keeps its records.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Records {
    /// The file and a full one before it, as on a gate that has run for long: what it writes has the memory of what it
    /// has deleted.
    Rotated,
    /// All in one file: two busy cores write 300 MB a second, and the disk takes half of that.
    InOneFile,
}

impl Records {
    fn settings(self) -> &'static str {
        match self {
            Self::Rotated => "keep: 1",
            Self::InOneFile => "rotate: 8GiB",
        }
    }
}

/// A folder with the allowed names in every server's own words.
pub(crate) struct Place {
    folder: TempDir,
    pub(crate) names: Vec<String>,
}

impl Place {
    pub(crate) fn new(names: usize) -> Self {
        let folder = TempDir::new().unwrap();
        let text = name_file(names);
        let names: Vec<String> = text.lines().map(str::to_owned).collect();
        let place = Self { folder, names };
        place.write(Path::new("names.txt"), &text);
        place.write(Path::new("policy.yaml"), LISTED);
        place.write(Path::new("root.zone"), include_str!("../../../peers/dns/root.zone"));
        place
    }

    fn write(&self, name: &Path, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// The names as lines of the configuration of those that do not take a plain list.
    fn write_lines(&self, line: impl Fn(&mut String, &str)) {
        let mut text = String::new();
        self.names.iter().for_each(|name| line(&mut text, name));
        self.write(Path::new("names.conf"), &text);
    }

    fn write_names(&self, kind: Kind) {
        match kind {
            Kind::Unbound | Kind::UnboundLogging => self.write_lines(|text, name| {
                writeln!(text, "local-zone: \"{name}.\" transparent").unwrap();
            }),
            Kind::Dnsmasq => self.write_lines(|text, name| {
                writeln!(text, "server=/{name}/127.0.0.1#{AUTHORITY_PORT}").unwrap();
            }),
            Kind::Reflector
            | Kind::ReflectorUnbatched
            | Kind::Outgate
            | Kind::Dnsdist
            | Kind::DnsdistLogging => {}
        }
    }

    fn configure(&self, file: &str, text: &str, threads: usize) -> String {
        let text = text
            .replace("{folder}", &self.folder.path().display().to_string())
            .replace("{port}", &PORT.to_string())
            .replace("{upstream}", &AUTHORITY_PORT.to_string())
            .replace("{threads}", &threads.to_string());
        self.write(Path::new(file), &text);
        self.folder.path().join(file).display().to_string()
    }

    /// A process in this folder, on these cores. What it says is in `FILE.out` there.
    fn run(&self, command: Command, cores: &str, name: &str) -> Child {
        let out = fs::File::create(self.folder.path().join(name).with_extension("out")).unwrap();
        on_cores(&command, cores)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap()
    }
}

/// The same command on these cores alone.
pub(crate) fn on_cores(command: &Command, cores: &str) -> Command {
    let mut pinned = Command::new("taskset");
    pinned.args(["-c", cores]).arg(command.get_program()).args(command.get_args());
    pinned
}

/// The authority that every server asks.
pub(crate) struct Authority(Child);

impl Authority {
    pub(crate) fn start(place: &Place, cores: &str) -> Self {
        let configuration = place.configure("knot.conf", include_str!("../../../peers/dns/knot.conf"), 1);
        let mut command = Command::new("knotd");
        command.args(["-c", &configuration]);
        let authority = Self(place.run(command, cores, "knot"));
        assert!(answers_soon(AUTHORITY_PORT, &place.names[0], START), "knot does not answer");
        // Knot gives its threads cores by itself, the first one that of the servers.
        let process = authority.0.id().to_string();
        let pinned = Command::new("taskset").args(["-a", "-p", "-c", cores, &process]).output().unwrap();
        assert!(pinned.status.success(), "{}", String::from_utf8_lossy(&pinned.stderr));
        authority
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

/// A server that runs.
pub(crate) struct Running {
    process: Child,
    kind: Kind,
    folder: PathBuf,
    name: String,
}

impl Running {
    pub(crate) fn start(kind: Kind, place: &Place, cores: &str, threads: usize, records: Records) -> Self {
        place.write_names(kind);
        let configuration = kind.configuration().map(|(file, text)| {
            let text = text.replace("{log}", kind.log_lines()).replace("{records}", records.settings());
            place.configure(file, &text, threads)
        });
        let command = kind.command(configuration.as_deref().unwrap_or_default(), threads);
        let folder = place.folder.path().to_owned();
        // Not beside the policy: a gate looks at what happens in that folder.
        let audit = folder.join("audit");
        if audit.exists() {
            fs::remove_dir_all(&audit).unwrap();
        }
        fs::create_dir(&audit).unwrap();
        let process = place.run(command, cores, kind.name());
        Self { process, kind, folder, name: place.names[0].clone() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn is_ready_soon(&self) -> bool {
        answers_soon(PORT, &self.name, START)
    }

    pub(crate) fn wait_until_ready(&self) {
        if !self.is_ready_soon() {
            let said = fs::read_to_string(self.folder.join(self.kind.name()).with_extension("out"));
            panic!("{} does not answer; it says: {}", self.kind.name(), said.unwrap_or_default());
        }
    }

    /// What comes of an action, the processor time that the server took meanwhile, and the cores that this is.
    pub(crate) fn usage<R>(&self, action: impl FnOnce() -> R) -> (R, Duration, f64) {
        let (before, begun) = (cpu(self.pid()), Instant::now());
        let result = action();
        let used = cpu(self.pid()) - before;
        (result, used, used.as_secs_f64() / begun.elapsed().as_secs_f64())
    }

    /// Whether it is one whose answers are looked at.
    pub(crate) fn has_names(&self) -> bool {
        self.kind.has_names()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

fn end(process: &mut Child) {
    // The next one takes its port.
    process.kill().unwrap();
    process.wait().unwrap();
}

/// Asks for the address of a name until there is an answer.
fn answers_soon(port: u16, name: &str, patience: Duration) -> bool {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(ANSWER)).unwrap();
    let query = query(name);
    let until = Instant::now() + patience;
    while Instant::now() < until {
        let sent = socket.send_to(&query, ("127.0.0.1", port));
        if sent.is_ok() && socket.recv(&mut [0; 512]).is_ok() {
            return true;
        }
        std::thread::sleep(ANSWER / 10);
    }
    false
}

/// The binary that is measured.
fn outgate() -> PathBuf {
    let beside = || std::env::current_exe().unwrap().with_file_name("outgate");
    let path = std::env::var_os("OUTGATE_BIN").map_or_else(beside, PathBuf::from);
    fs::canonicalize(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; build it with cargo build --release -p outgate", path.display())
    })
}

/// Stops with a sentence where a program is missing.
pub(crate) fn check_programs(kinds: &[Kind]) {
    let is_peer = |kind: &&Kind| kind.is_peer(false) || kind.is_peer(true);
    let peers = kinds.iter().filter(is_peer).map(|kind| kind.name().trim_end_matches("-logging"));
    let there = |program: &str| {
        let output = Command::new("sh").args(["-c", "command -v \"$0\"", program]).output().unwrap();
        output.status.success()
    };
    let missing: Vec<&str> =
        ["dnsperf", "knotd", "taskset", "ip"].into_iter().chain(peers).filter(|name| !there(name)).collect();
    if !missing.is_empty() {
        panic!(
            "{} missing; apt-get install dnsperf knot unbound dnsdist dnsmasq-base iproute2 util-linux",
            missing.join(", ")
        );
    }
    if kinds.contains(&Kind::Outgate) {
        outgate();
    }
}
