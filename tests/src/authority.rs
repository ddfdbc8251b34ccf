//! Name servers of others: Knot with a zone of the test's own, and unbound that resolves with it.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use hickory_proto::op::{Message, ResponseCode};

use crate::dns::bind_both;
use crate::lookup::{code, framed, query};
use crate::program::program;
use crate::wait_for;

/// A name server in a process of its own, which is killed when the test is over.
#[derive(Debug)]
pub struct NameServer {
    address: SocketAddr,
    child: Child,
    _folder: tempfile::TempDir,
}

impl NameServer {
    /// Knot as the authority for `example`, of which this is the zone file behind SOA and NS. None where there
    /// is no Knot.
    #[must_use]
    pub fn knot(zone: &str) -> Option<Self> {
        let knot = program("knotd", &["--version"])?;
        let folder = tempfile::tempdir().unwrap();
        let zone = format!(
            "$ORIGIN example.\n$TTL 300\n@ SOA ns root 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\n{zone}\n"
        );
        std::fs::write(folder.path().join("example.zone"), zone).unwrap();
        Some(Self::start(folder, "ns.example", |folder, address| {
            let path = folder.display();
            let config = format!(
                "server:\n  rundir: \"{path}\"\n  listen: {}@{}\ndatabase:\n  storage: \"{path}\"\nzone:\n  - domain: \
                 example\n    file: \"{path}/example.zone\"\n    journal-content: none\n",
                address.ip(),
                address.port()
            );
            std::fs::write(folder.join("knot.conf"), config).unwrap();
            let mut command = knot.command();
            command.arg("-c").arg(folder.join("knot.conf"));
            command
        }))
    }

    /// Unbound, which asks `authority` for what is in `example`. None where there is no unbound.
    #[must_use]
    pub fn unbound(authority: &Self) -> Option<Self> {
        let unbound = program("unbound", &["-V"])?;
        let upstream = format!("{}@{}", authority.address.ip(), authority.address.port());
        Some(Self::start(tempfile::tempdir().unwrap(), "ns.example", |folder, address| {
            let config = format!(
                "server:\n  interface: {}@{}\n  directory: \"\"\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  \
                 use-syslog: no\n  do-daemonize: no\n  do-not-query-localhost: no\n  do-ip6: no\n  module-config: \
                 \"iterator\"\nremote-control:\n  control-enable: no\nstub-zone:\n  name: \"example.\"\n  stub-addr: \
                 {upstream}\n",
                address.ip(),
                address.port()
            );
            std::fs::write(folder.join("unbound.conf"), config).unwrap();
            let mut command = unbound.command();
            command.arg("-d").arg("-c").arg(folder.join("unbound.conf"));
            command
        }))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts a server, on another port if somebody took the first meanwhile, and waits until it knows a name.
    fn start(
        folder: tempfile::TempDir,
        name: &str,
        command: impl Fn(&std::path::Path, SocketAddr) -> Command,
    ) -> Self {
        for _ in 0..8 {
            // It is free the moment that it is let go of.
            let address = bind_both().0.local_addr().unwrap();
            let mut command = command(folder.path(), address);
            let log = std::fs::File::create(folder.path().join("log")).unwrap();
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            let mut child = command.spawn().unwrap();
            let answers = wait_for("a name server to answer or to end", || match child.try_wait().unwrap() {
                Some(_) => Some(false),
                None => knows(address, name).then_some(true),
            });
            if answers {
                return Self { address, child, _folder: folder };
            }
        }
        panic!("no name server: {}", std::fs::read_to_string(folder.path().join("log")).unwrap());
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Whether a server answers over TCP, where a refusal is seen at once.
fn knows(server: SocketAddr, name: &str) -> bool {
    let ask = || -> std::io::Result<Message> {
        let mut stream = std::net::TcpStream::connect(server)?;
        stream.set_read_timeout(Some(crate::PATIENCE))?;
        std::io::Write::write_all(&mut stream, &framed(&query(1, name, 1)))?;
        let mut length = [0; 2];
        std::io::Read::read_exact(&mut stream, &mut length)?;
        let mut bytes = vec![0; u16::from_be_bytes(length).into()];
        std::io::Read::read_exact(&mut stream, &mut bytes)?;
        Message::from_vec(&bytes).map_err(std::io::Error::other)
    };
    ask().is_ok_and(|answer| code(&answer) == ResponseCode::NoError && !answer.answers.is_empty())
}
