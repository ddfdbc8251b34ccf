//! A network of its own: the process starts itself again in new namespaces, so that nothing it sends can leave.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Says that the process is inside.
const INSIDE: &str = "OUTGATE_BENCH_NAMESPACE";
/// What the clients, the proxies and the origin have their addresses in.
const LOCAL: [&str; 2] = ["10.0.0.0/8", "93.184.216.0/24"];
/// Settings of the new network: ports for many connections, and no closed ones that pile up to be searched.
const SETTINGS: [(&str, &str); 5] = [
    ("net/ipv4/ip_local_port_range", "1024 65535"),
    ("net/ipv4/ip_local_reserved_ports", "3000-3200"),
    ("net/ipv4/tcp_max_tw_buckets", "4096"),
    ("net/core/somaxconn", "16384"),
    ("net/ipv4/tcp_max_syn_backlog", "16384"),
];

/// Whether the process is inside; if not, it is replaced by one that is, with the same arguments.
///
/// # Errors
/// When namespaces cannot be had, or the new network cannot be set up.
pub fn enter(hosts: &str) -> io::Result<()> {
    if std::env::var_os(INSIDE).is_none() {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount"]);
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.arg("--").arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1");
        return Err(command.exec());
    }
    set_up(hosts)
}

fn set_up(hosts: &str) -> io::Result<()> {
    run("ip", &["link", "set", "lo", "up"])?;
    for range in LOCAL {
        run("ip", &["route", "add", "local", range, "dev", "lo"])?;
    }
    for (name, value) in SETTINGS {
        // Not all of them exist in every kernel, or belong to a namespace.
        let _ = std::fs::write(format!("/proc/sys/{name}"), value);
    }
    let file = std::env::temp_dir().join(format!("compare-hosts-{}", std::process::id()));
    std::fs::write(&file, hosts)?;
    run("mount", &["--bind", &file.display().to_string(), "/etc/hosts"])?;
    std::fs::remove_file(file)
}

fn run(program: &str, arguments: &[&str]) -> io::Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program} {}: {said}", arguments.join(" "))))
}
