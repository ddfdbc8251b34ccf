//! Name servers of others: BIND, Knot and NSD with zones of the test's own, and unbound that resolves with them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use rustix::process::{Pid, Signal, kill_process};

use crate::dns::bind_both;
use crate::lookup::{code, framed, query};
use crate::program::program;
use crate::{PATIENCE, freeze, wait_for};

/// A name server in a process of its own, which is ended when the test is over.
#[derive(Debug)]
pub struct NameServer {
    address: SocketAddr,
    child: Child,
    folder: Arc<tempfile::TempDir>,
}

/// Whose name server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Software {
    /// BIND, which also says what it is asked: [`NameServer::asked`].
    Bind,
    /// Knot DNS.
    Knot,
    /// NSD.
    Nsd,
}

/// The name of a zone, and its records behind SOA and NS as in a zone file.
pub type Zone<'z> = (&'z str, &'z str);

impl NameServer {
    /// Knot as the authority for `example`, with these records. None where there is no Knot.
    #[must_use]
    pub fn knot(records: &str) -> Option<Self> {
        Self::authority(Software::Knot, &[("example", records)], None)
    }

    /// An authority for these zones, on a free port of loopback or at an address of one's own choice. None where
    /// there is no such software.
    #[must_use]
    pub fn authority(software: Software, zones: &[Zone<'_>], address: Option<SocketAddr>) -> Option<Self> {
        let (name, probe) = match software {
            Software::Bind => ("named", "-v"),
            Software::Knot => ("knotd", "--version"),
            Software::Nsd => ("nsd", "-v"),
        };
        let program = program(name, &[probe])?;
        let folder = tempfile::tempdir().unwrap();
        for (zone, records) in zones {
            std::fs::write(folder.path().join(format!("{zone}.zone")), zone_file(zone, records)).unwrap();
        }
        let known = format!("ns.{}", zones[0].0);
        let names: Vec<&str> = zones.iter().map(|(name, _)| *name).collect();
        Some(Self::start(folder, &known, address, |folder, address| {
            let mut command = program.command();
            let (arguments, configuration): (&[&str], String) = match software {
                Software::Bind => (&["-g", "-c"], bind_configuration(folder, address, &names)),
                Software::Knot => (&["-c"], knot_configuration(folder, address, &names)),
                Software::Nsd => (&["-d", "-c"], nsd_configuration(folder, address, &names)),
            };
            command.args(arguments).arg(written(folder, &configuration));
            command
        }))
    }

    /// Unbound, which asks `authority` for what is in `example`. None where there is no unbound.
    #[must_use]
    pub fn unbound(authority: &Self) -> Option<Self> {
        let unbound = program("unbound", &["-V"])?;
        let upstream = format!("{}@{}", authority.address.ip(), authority.address.port());
        Some(Self::start(tempfile::tempdir().unwrap(), "ns.example", None, |folder, address| {
            let configuration = format!(
                "server:\n  interface: {}@{}\n  directory: \"\"\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  \
                 use-syslog: no\n  do-daemonize: no\n  do-not-query-localhost: no\n  do-ip6: no\n  module-config: \
                 \"iterator\"\nremote-control:\n  control-enable: no\nstub-zone:\n  name: \"example.\"\n  stub-addr: \
                 {upstream}\n",
                address.ip(),
                address.port()
            );
            let mut command = unbound.command();
            command.arg("-d").arg("-c").arg(written(folder, &configuration));
            command
        }))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What BIND has been asked so far, as in `a.example A`, but for what the harness asks to see that it is up.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        let log = self.log();
        let asked = log.lines().filter_map(|line| {
            let mut words = line.split_once("): query: ")?.1.split(' ');
            let (name, _class, record_type) = (words.next()?, words.next()?, words.next()?);
            (!name.starts_with("ns.")).then(|| format!("{} {record_type}", name.to_ascii_lowercase()))
        });
        asked.collect()
    }

    /// What it has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Makes it silent: what comes in waits in its sockets.
    pub fn freeze(&self) {
        freeze(Pid::from_child(&self.child));
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    /// Starts a server, on another port if somebody took the first meanwhile, and waits until it knows a name.
    fn start(
        folder: tempfile::TempDir,
        name: &str,
        address: Option<SocketAddr>,
        command: impl Fn(&Path, SocketAddr) -> Command,
    ) -> Self {
        let folder = Arc::new(folder);
        for _ in 0..8 {
            // It is free the moment that it is let go of.
            let address = address.unwrap_or_else(|| bind_both().0.local_addr().unwrap());
            let mut command = command(folder.path(), address);
            let log = std::fs::File::create(folder.path().join("log")).unwrap();
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            let mut server = Self { address, child: command.spawn().unwrap(), folder: Arc::clone(&folder) };
            let answers =
                wait_for("a name server to answer or to end", || match server.child.try_wait().unwrap() {
                    Some(_) => Some(false),
                    None => knows(address, name).then_some(true),
                });
            if answers {
                return server;
            }
        }
        panic!("no name server: {}", std::fs::read_to_string(folder.path().join("log")).unwrap());
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        // A frozen one hears nothing else; and NSD has children, which end with it only if it is asked.
        let pid = Pid::from_child(&self.child);
        let _ = kill_process(pid, Signal::CONT).and_then(|()| kill_process(pid, Signal::TERM));
        let since = Instant::now();
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && since.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(3));
        }
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("--- {} said:\n{}---", self.address, self.log());
        }
    }
}

fn zone_file(name: &str, records: &str) -> String {
    format!(
        "$ORIGIN {name}.\n$TTL 300\n@ SOA ns root 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\n{records}\n"
    )
}

fn written(folder: &Path, configuration: &str) -> PathBuf {
    let path = folder.join("configuration");
    std::fs::write(&path, configuration).unwrap();
    path
}

fn bind_configuration(folder: &Path, address: SocketAddr, zones: &[&str]) -> String {
    let (path, ip, port) = (folder.display(), address.ip(), address.port());
    let mut configuration = format!(
        "options {{ directory \"{path}\"; listen-on port {port} {{ {ip}; }}; listen-on-v6 {{ none; }}; pid-file none; \
         session-keyfile none; recursion no; allow-query {{ any; }}; querylog yes; dnssec-validation no; \
         max-records-per-type 0; }};\n\
         controls {{ }};\n"
    );
    for zone in zones {
        configuration.push_str(&format!("zone \"{zone}\" {{ type primary; file \"{zone}.zone\"; }};\n"));
    }
    configuration
}

fn knot_configuration(folder: &Path, address: SocketAddr, zones: &[&str]) -> String {
    let (path, ip, port) = (folder.display(), address.ip(), address.port());
    let mut configuration = format!(
        "server:\n  rundir: \"{path}\"\n  listen: {ip}@{port}\ndatabase:\n  storage: \"{path}\"\nzone:\n"
    );
    for zone in zones {
        configuration.push_str(&format!(
            "  - domain: {zone}\n    file: \"{path}/{zone}.zone\"\n    journal-content: none\n"
        ));
    }
    configuration
}

fn nsd_configuration(folder: &Path, address: SocketAddr, zones: &[&str]) -> String {
    let (path, ip, port) = (folder.display(), address.ip(), address.port());
    let mut configuration = format!(
        "server:\n  ip-address: {ip}@{port}\n  username: \"\"\n  chroot: \"\"\n  zonesdir: \"{path}\"\n  database: \
         \"\"\n  pidfile: \"\"\n  xfrdfile: \"\"\n  xfrdir: \"{path}\"\n  zonelistfile: \"{path}/zones\"\n  \
         server-count: 1\nremote-control:\n  control-enable: no\n"
    );
    for zone in zones {
        configuration.push_str(&format!("zone:\n  name: {zone}\n  zonefile: {zone}.zone\n"));
    }
    configuration
}

/// Whether a server answers over TCP, where a refusal is seen at once.
fn knows(server: SocketAddr, name: &str) -> bool {
    let ask = || -> std::io::Result<Message> {
        let mut stream = std::net::TcpStream::connect(server)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        std::io::Write::write_all(&mut stream, &framed(&query(1, name, 1)))?;
        let mut length = [0; 2];
        std::io::Read::read_exact(&mut stream, &mut length)?;
        let mut bytes = vec![0; u16::from_be_bytes(length).into()];
        std::io::Read::read_exact(&mut stream, &mut bytes)?;
        Message::from_vec(&bytes).map_err(std::io::Error::other)
    };
    ask().is_ok_and(|answer| code(&answer) == ResponseCode::NoError && !answer.answers.is_empty())
}
