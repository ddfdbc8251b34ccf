//! A network of real hosts: two spokes that route everything to a hub, and an internet behind the hub.
//!
//! | place | addresses | what it is |
//! | --- | --- | --- |
//! | training | 10.1.0.4, fd00:1::4 | a machine without proxy settings; its default route is the hub |
//! | scoring | 10.1.2.4, fd00:2::4 | another |
//! | hub | 10.0.0.4, fd00::4 | forwards; where a gate stands |
//! | second hub | 10.0.1.4, fd00:0:0:1::4 | joined to the same spokes; carries nothing until [`Lab::balance`] |
//! | internet | [`SITES`], 10.0.0.1 | real servers: web, names, echo, time; and by request an image registry, a Python index, a Debian archive, git |
//!
//! Each is a network namespace, and all belong to one user namespace, so that a lab takes no root. Its processes
//! are in one process namespace whose first process ends when the test does, however that ends: the kernel then
//! ends the others, and with them the network. Labs do not meet.
//!
//! Without a gate the hub forwards everything, and the internet knows its way back to the spokes: what a gate
//! lets slip arrives, is answered, and is seen by a [`Capture`].

mod capture;
mod load;
mod machine;
mod probe;
mod servers;
mod sites;
mod tproxy;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use serde_json::json;

use crate::gate::{Setup, only_child};
use crate::program::program;
use crate::tls::Authority;

pub use capture::{Capture, Passed};
pub use load::{Attempt, Load, now};
pub use machine::{Machine, Ran};
pub use probe::{Conversation, Datagram, Heard};
pub use servers::Visit;
pub use sites::{LIED_ABOUT, SITES, Site, site};

/// The resolver that the hub's network offers. Nothing but a gate asks it.
pub const RESOLVER: &str = "10.0.0.1";
/// The resolver that every machine of the spokes is set to, out on the internet.
pub const PUBLIC_RESOLVER: &str = "9.9.9.9";
/// Another, which nobody is set to.
pub const OTHER_RESOLVER: &str = "8.8.8.8";

/// What a lab takes: the program, how to see that it runs, and nothing more.
const NEEDS: [(&str, &[&str]); 8] = [
    ("bash", &["--version"]),
    ("ip", &["-V"]),
    ("nft", &["--version"]),
    ("nsenter", &["--version"]),
    ("openssl", &["version"]),
    ("nginx", &["-v"]),
    ("unbound", &["-V"]),
    ("python3", &["--version"]),
];

/// A place in the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The first spoke.
    Training,
    /// The second.
    Scoring,
    /// Where the spokes' default route leads.
    Hub,
    /// Another hub beside it.
    SecondHub,
    /// Everything else.
    Internet,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Scoring => "scoring",
            Self::Hub => "hub",
            Self::SecondHub => "hub2",
            Self::Internet => "internet",
        }
    }
}

/// A running network. It ends when it is dropped, or when the test's process ends in whatever way.
#[derive(Debug)]
pub struct Lab {
    folder: tempfile::TempDir,
    authority: Authority,
    keeper: Child,
    /// The first process of the process namespace.
    first: u32,
    servers: Mutex<Vec<Child>>,
}

impl Lab {
    /// Builds the network and starts what its internet always has. None, and the reason said, where this machine
    /// lacks a program or allows no namespaces.
    ///
    /// # Panics
    /// If something lacks and `CI=true`, or if the network cannot be built although namespaces can be had.
    #[must_use]
    pub fn start() -> Option<Self> {
        for (name, probe) in NEEDS {
            program(name, probe)?;
        }
        program("unshare", &[&NAMESPACES[..], &["true"]].concat())?;
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        lay_out(folder.path(), &authority);
        let (keeper, first) = keep_network(folder.path());
        let lab = Self { folder, authority, keeper, first, servers: Mutex::default() };
        lab.start_capture();
        lab.start_servers();
        Some(lab)
    }

    /// The machine of the training spoke.
    #[must_use]
    pub fn training(&self) -> Machine<'_> {
        self.machine(Place::Training)
    }

    /// The machine of the scoring spoke.
    #[must_use]
    pub fn scoring(&self) -> Machine<'_> {
        self.machine(Place::Scoring)
    }

    /// The machine at any place.
    #[must_use]
    pub fn machine(&self, place: Place) -> Machine<'_> {
        Machine::at(self, place)
    }

    /// A gate in the hub, not yet started: the explicit proxy and admin on loopback, DNS for everyone, asking
    /// [`RESOLVER`].
    #[must_use]
    pub fn gate(&self, policy: impl AsRef<str>) -> Setup {
        self.gate_at(Place::Hub, policy)
    }

    /// [`Lab::gate`] at another place.
    #[must_use]
    pub fn gate_at(&self, place: Place, policy: impl AsRef<str>) -> Setup {
        Setup::new(policy.as_ref())
            .inside(self.entrance(place))
            .set("listen.proxy", json!({"address": "127.0.0.1:3128"}))
            .set("listen.admin", "127.0.0.1:9180")
            .set("listen.dns", "[::]:53")
            .set("dns.upstreams", json!([RESOLVER]))
    }

    /// A gate with the transparent listeners besides, that waits for connections which the test's own rules
    /// redirect ([`Lab::redirect`]).
    #[must_use]
    pub fn transparent_gate(&self, policy: impl AsRef<str>) -> Setup {
        transparent(self.gate(policy))
    }

    /// The appliance: a transparent gate that makes the kernel's rules itself.
    #[must_use]
    pub fn appliance(&self, policy: impl AsRef<str>) -> Setup {
        self.appliance_at(Place::Hub, policy)
    }

    /// [`Lab::appliance`] at another place.
    #[must_use]
    pub fn appliance_at(&self, place: Place, policy: impl AsRef<str>) -> Setup {
        transparent(self.gate_at(place, policy)).set(
            "appliance",
            json!({"clients": ["10.1.0.0/16", "fd00:1::/64", "fd00:2::/64"], "redirection": "tproxy"}),
        )
    }

    /// What the admin listener of the gate at a place says.
    #[must_use]
    pub fn admin(&self, place: Place, path: &str) -> Ran {
        self.machine(place).run("curl", &["-sS", "--max-time", "10", &format!("http://127.0.0.1:9180{path}")])
    }

    /// Splits the spokes' flows between both hubs, by addresses and ports, as a load balancer does.
    pub fn balance(&self) {
        for place in [Place::Training, Place::Scoring] {
            self.machine(place).shell(
                "echo 1 >/proc/sys/net/ipv4/fib_multipath_hash_policy
                 ip route replace default nexthop via 10.0.0.4 dev hub onlink nexthop via 10.0.1.4 dev hub2 onlink",
            );
        }
    }

    /// The certificate authority that every machine trusts.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// skopeo's own options: signatures are not wanted, and not looked for outside the lab.
    fn skopeo_options(&self) -> [String; 2] {
        let registries = self.folder().join("etc/registries.d");
        ["--insecure-policy".to_owned(), format!("--registries.d={}", registries.display())]
    }

    /// The lab's folder, which all places see.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A program's run at a place, inside the lab's namespaces.
    #[must_use]
    pub fn command(&self, place: Place, name: &str) -> Command {
        let entrance = self.entrance(place);
        let (enter, arguments) = entrance.split_first().unwrap();
        let mut command = Command::new(enter);
        command.args(arguments).arg(name).env("HOME", self.folder().join("home")).env("LC_ALL", "C");
        // Programs that bring their own list of authorities; the system's is the lab's already.
        for name in
            ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS"]
        {
            command.env(name, "/etc/ssl/certs/ca-certificates.crt");
        }
        // Where skopeo looks for credentials.
        command.env("XDG_RUNTIME_DIR", self.folder().join("home"));
        for name in
            ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "no_proxy", "NO_PROXY"]
        {
            command.env_remove(name);
        }
        command
    }

    fn entrance(&self, place: Place) -> Vec<OsString> {
        let first = self.first;
        let network = format!("/proc/{first}/root{}/net/{}", self.folder().display(), place.name());
        // The user is root already, and may not say so again where a user namespace forbids groups.
        let fixed = ["nsenter", "--preserve-credentials", "--user", "--mount", "--pid"];
        let target = [format!("--target={first}"), format!("--net={network}"), "--".to_owned()];
        fixed.into_iter().map(OsString::from).chain(target.into_iter().map(OsString::from)).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The first process of the namespace ends at the end of its input, and the kernel ends the others.
        drop(self.keeper.stdin.take());
        drop(self.keeper.wait());
        for server in self.servers.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner) {
            drop(server.wait());
        }
        if std::thread::panicking() {
            eprintln!("--- the lab's servers said:\n{}---", self.server_logs());
        }
    }
}

/// The namespaces of a lab: as `unshare` takes them.
const NAMESPACES: [&str; 8] =
    ["--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

fn transparent(setup: Setup) -> Setup {
    setup.set("listen.tls", "[::]:8443").set("listen.http", "[::]:8080").set("listen.tcp", "[::]:8081")
}

fn lay_out(folder: &Path, authority: &Authority) {
    for name in ["net", "etc", "etc/registries.d", "home", "www", "nginx", "tls", "run"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    std::fs::copy(authority.pem_file(), folder.join("etc/ca.pem")).unwrap();
    let etc = [
        ("etc/resolv.conf", format!("nameserver {PUBLIC_RESOLVER}\noptions timeout:2 attempts:1\n")),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n".to_owned()),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
    ];
    // Without this, skopeo's root looks for signatures in a folder that is another root's.
    let signatures = format!("default-docker:\n  lookaside: file://{}/signatures\n", folder.display());
    std::fs::write(folder.join("etc/registries.d/lab.yaml"), signatures).unwrap();
    for (name, text) in etc {
        std::fs::write(folder.join(name), text).unwrap();
    }
    let addresses = sites::addresses().map(|address| format!("address add {address} dev lo\n"));
    std::fs::write(folder.join("addresses"), addresses.collect::<String>()).unwrap();
    let scripts = [
        ("network.sh", NETWORK),
        ("probe.py", probe::SCRIPT),
        ("load.py", load::SCRIPT),
        ("services.py", servers::SERVICES),
    ];
    for (name, text) in scripts {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

const NETWORK: &str = include_str!("lab/network.sh");

/// Builds the network: the process that keeps it, and the first of the process namespace below it.
fn keep_network(folder: &Path) -> (Child, u32) {
    let errors = std::fs::File::create(folder.join("run/network.log")).unwrap();
    let mut keeper = Command::new("unshare")
        .args(NAMESPACES)
        .arg("bash")
        .arg(folder.join("network.sh"))
        .env("LAB", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let log = || std::fs::read_to_string(folder.join("run/network.log")).unwrap();
    assert_eq!(said, "ready\n", "the network was not built: {}", log());
    let first = only_child(keeper.id());
    (keeper, first)
}

/// Writes a file that servers or machines read.
fn write(path: PathBuf, text: impl AsRef<[u8]>) {
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(text.as_ref()).unwrap();
}
