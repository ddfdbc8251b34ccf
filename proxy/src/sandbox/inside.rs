//! The first stage of a sandbox: makes the namespaces, hands the listeners in them to the gate, and starts the
//! second stage as the first process of the new ones.
//!
//! It is a program of its own, so that nothing is forked that has threads. It stays until the end, since a process
//! cannot enter a PID namespace itself: only its children do.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use outgate_rules::PrefixSet;
use socket2::{Domain, Protocol, Socket, Type};

use super::handover::{Sockets, hand_over};
use super::plan::Plan;
use super::{capabilities, hide, links};
use crate::kernel::plan::{Appliance, Ports, Redirection};
use crate::kernel::{self, Kept};
use crate::listener::Way;

/// What a shell says of a program that was ended by a signal: this and the signal's number.
const BY_SIGNAL: i32 = 128;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Runs a command in a sandbox, and comes back with its exit code.
///
/// # Errors
/// When there can be no sandbox: then the command has not run.
pub fn run(plan: &Plan, arguments: &[OsString], command: &[OsString]) -> anyhow::Result<u8> {
    end_with_parent().context("cannot be bound to the gate's life")?;
    // Whatever the caller had open stays the caller's. The first process must not hold it either: the command would
    // find it below /proc/1.
    close_fds::set_fds_cloexec(3, &[]);
    let mut gate = UnixStream::connect(&plan.handover).context("the gate has gone")?;
    enter_namespaces(plan.user)?;
    hide::separate()?;
    let sockets = open_network(plan)?;
    hand_over(&mut gate, &sockets).context("the gate has gone")?;
    drop((gate, sockets));
    capabilities::keep_for_mounts().context("cannot keep what mounting needs")?;
    let mut first = Command::new("/proc/self/exe")
        .arg("sandbox-first-process")
        .args(arguments)
        .arg("--")
        .args(command)
        .spawn()
        .context("the sandbox's first process cannot start")?;
    // They come from the terminal to all that stands in its foreground, and are for the command to answer. Not before
    // it is started, as it would have them blocked as well.
    [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTSTP].into_iter().collect::<SigSet>().thread_block()?;
    Ok(code(first.wait().context("waiting for the sandbox's first process")?))
}

/// The kernel ends this process when the one that started it ends.
///
/// # Errors
/// When it has ended already.
pub(super) fn end_with_parent() -> io::Result<()> {
    let parent = rustix::process::getppid();
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    if rustix::process::getppid() == parent { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// The exit code that stands for a status.
pub(super) fn code(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| BY_SIGNAL + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn enter_namespaces((user, group): (u32, u32)) -> anyhow::Result<()> {
    let flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID;
    if let Err(error) = unshare(flags) {
        bail!("{}", super::refused::why(error.into()));
    }
    // Where this is refused, the namespace was made and is of no use: so does AppArmor on Ubuntu.
    map_user(user, group).map_err(|error| anyhow::anyhow!("{}", super::refused::why(error)))
}

/// The user is who they are: files keep their owners, and a program that asks gets the same answer.
fn map_user(user: u32, group: u32) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// A network in which every way out ends at a listener of the gate.
fn open_network(plan: &Plan) -> anyhow::Result<Sockets> {
    links::loopback_up().context("the sandbox's loopback")?;
    let sockets = listeners(plan)?;
    match kernel::apply(&kernel::plan::local(&appliance(&sockets)?), &Kept::none()) {
        Ok(()) => {
            links::route_by_loopback().context("the sandbox's routes")?;
            Ok(sockets)
        }
        Err(error) if lacks_nf_tables(&error) => {
            drop(sockets);
            links::make_every_address_local().context("the sandbox's routes")?;
            any_address_listeners(plan)
        }
        Err(error) => Err(error).context("the sandbox's rules"),
    }
}

/// Whether the kernel has no nf_tables, or not the part of them that redirects.
fn lacks_nf_tables(error: &kernel::Error) -> bool {
    let lacking = [Errno::ENOENT, Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT, Errno::EPROTONOSUPPORT];
    matches!(error, kernel::Error::Refused { errno, .. } if lacking.contains(errno))
}

/// Where the kernel redirects to. There is nobody else in the namespace: all that its programs do is a client's.
fn appliance(sockets: &Sockets) -> io::Result<Appliance> {
    let port = |wanted: Way| -> io::Result<Option<u16>> {
        let found = sockets.tcp.iter().find(|(way, _)| *way == wanted);
        found.map(|(_, socket)| Ok(socket.local_addr()?.port())).transpose()
    };
    let ports = Ports {
        tls: port(Way::Tls)?,
        http: port(Way::Http)?,
        tcp: port(Way::Tcp)?,
        dns: Some(sockets.lookups.local_addr()?.port()),
    };
    Ok(Appliance {
        clients: PrefixSet::default(),
        ports,
        redirection: Redirection::Redirect,
        mark: 0,
        route_table: 0,
        log_group: 0,
        masquerade: false,
        own_uid: None,
    })
}

/// Listeners to which the kernel redirects.
fn listeners(plan: &Plan) -> anyhow::Result<Sockets> {
    let mut tcp = Vec::new();
    for way in [Way::Tls, Way::Http, Way::Tcp] {
        tcp.push((way, listen(everywhere(0))?));
    }
    add_published(&mut tcp, plan)?;
    // One port for both, as a client that gets a truncated answer comes again over TCP.
    let lookup_streams = listen(everywhere(0))?;
    let lookups = datagrams(everywhere(lookup_streams.local_addr()?.port()))?;
    Ok(Sockets { tcp, lookups, lookup_streams })
}

/// Where the kernel cannot redirect, every address is this host's own, and each port needs a listener.
fn any_address_listeners(plan: &Plan) -> anyhow::Result<Sockets> {
    let mut tcp = Vec::new();
    for port in
        [443, 80].into_iter().chain(plan.ports.iter().copied().filter(|port| ![80, 443, 53].contains(port)))
    {
        let way = match port {
            443 => Way::Tls,
            80 => Way::Http,
            _ => Way::Tcp,
        };
        tcp.push((way, listen(everywhere(port))?));
    }
    add_published(&mut tcp, plan)?;
    Ok(Sockets { tcp, lookups: datagrams(everywhere(53))?, lookup_streams: listen(everywhere(53))? })
}

/// A published port is a port of the sandbox's own loopback.
fn add_published(tcp: &mut Vec<(Way, TcpListener)>, plan: &Plan) -> anyhow::Result<()> {
    for port in &plan.published {
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), *port);
        tcp.push((Way::Tcp, listen(address).with_context(|| format!("--publish-host {port}"))?));
    }
    Ok(())
}

fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address, Type::STREAM, Protocol::TCP)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn datagrams(address: SocketAddr) -> io::Result<UdpSocket> {
    socket(address, Type::DGRAM, Protocol::UDP).map(UdpSocket::from)
}

/// A socket for both families at an unspecified address; for IPv4 alone where the machine has no IPv6.
fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let bind = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    match bind(address) {
        Err(_) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
        }
        result => result,
    }
}
