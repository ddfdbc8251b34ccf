//! What of the user's own surroundings leads round the gate, found before the sandbox is made.
//!
//! A network namespace does not rule sockets in the file system. Behind them stand programs that run outside: a
//! session bus that starts services, a container engine, a terminal multiplexer, an agent with keys.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::plan::Files;

/// Folders of sockets. `/run` has the system's and, below `user`, the user's.
const FOLDERS: [&str; 3] = ["/run", "/var/run", "/tmp/.X11-unix"];
/// What else is found in `/run`, and programs cannot do without.
const KEPT: [&str; 3] = ["/run/current-system", "/run/wrappers", "/run/opengl-driver"];
/// Variables that name sockets. Left in place, they make programs wait for what is not there.
const VARIABLES: [&str; 22] = [
    "CONTAINER_HOST",
    "DBUS_SESSION_BUS_ADDRESS",
    "DBUS_SYSTEM_BUS_ADDRESS",
    "DISPLAY",
    "DOCKER_HOST",
    "GNUPGHOME_SOCKET",
    "GPG_AGENT_INFO",
    "I3SOCK",
    "KITTY_LISTEN_ON",
    "NOTIFY_SOCKET",
    "PIPEWIRE_REMOTE",
    "PULSE_SERVER",
    "SSH_AGENT_PID",
    "SSH_AUTH_SOCK",
    "STY",
    "SWAYSOCK",
    "TMUX",
    "VSCODE_IPC_HOOK_CLI",
    "WAYLAND_DISPLAY",
    "WAYLAND_SOCKET",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
];
/// The flag of a listening socket in `/proc/net/unix`.
const LISTENS: u32 = 1 << 16;
/// The type of a datagram socket there.
const DATAGRAM: u32 = 2;

/// What is hidden and protected in a sandbox whose policy is at `policy`. `allowed` sockets stay in sight.
///
/// # Errors
/// When the system does not say what sockets there are.
pub(super) fn files(allowed: &[PathBuf], policy: &[PathBuf]) -> io::Result<Files> {
    let hidden_folders: Vec<PathBuf> =
        FOLDERS.iter().map(PathBuf::from).filter(|folder| is_real_folder(folder)).collect();
    let is_hidden = |path: &Path| hidden_folders.iter().any(|folder| path.starts_with(folder));
    let kept = KEPT.iter().map(PathBuf::from).chain(resolver_file()).chain(std::env::current_dir()).chain(
        allowed.iter().cloned(),
    );
    let kept = kept.filter(|path| is_hidden(path) && path.exists()).collect();
    let sockets = sockets(&fs::read_to_string("/proc/net/unix")?);
    let hidden_sockets = sockets
        .into_iter()
        .filter(|path| !is_hidden(path) && !allowed.contains(path) && is_socket(path))
        .collect();
    let read_only: Vec<PathBuf> =
        policy.iter().filter_map(|path| path.canonicalize().ok()).filter(|path| !is_hidden(path)).collect();
    let pinned = movable_above(&read_only);
    Ok(Files { hidden_sockets, hidden_folders, kept, read_only, pinned })
}

/// The variables that the command does not get.
#[must_use]
pub(super) fn variables(allowed: &[PathBuf]) -> Vec<String> {
    let names_allowed = |variable: &str| {
        let value = std::env::var(variable).unwrap_or_default();
        allowed.iter().filter_map(|path| path.to_str()).any(|path| value.ends_with(path))
    };
    VARIABLES.iter().filter(|variable| !names_allowed(variable)).map(|name| (*name).to_owned()).collect()
}

/// The paths of sockets that something outside listens or reads at, by the kernel's own list. Abstract ones belong to
/// the network namespace, and are not among them.
fn sockets(list: &str) -> BTreeSet<PathBuf> {
    list.lines().skip(1).filter_map(socket).collect()
}

fn socket(line: &str) -> Option<PathBuf> {
    let mut columns = line.split_ascii_whitespace();
    let flags = u32::from_str_radix(columns.nth(3)?, 16).ok()?;
    let kind = u32::from_str_radix(columns.next()?, 16).ok()?;
    // A path may have spaces in it: it is all that is left behind the state and the inode.
    let inode = columns.nth(1)?;
    let (_, path) = line.split_once(&format!(" {inode} "))?;
    let reachable = flags & LISTENS != 0 || kind == DATAGRAM;
    (reachable && path.starts_with('/')).then(|| PathBuf::from(path))
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

fn is_real_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// What `/etc/resolv.conf` leads to.
fn resolver_file() -> Option<PathBuf> {
    fs::canonicalize("/etc/resolv.conf").ok()
}

/// The folders above `paths` that the user could rename, and with them what is protected; the outer ones first.
fn movable_above(paths: &[PathBuf]) -> Vec<PathBuf> {
    let above = paths.iter().flat_map(|path| path.ancestors().skip(1)).filter(|folder| *folder != Path::new("/"));
    let movable: BTreeSet<PathBuf> = above.filter(|folder| is_movable(folder)).map(Path::to_owned).collect();
    movable.into_iter().collect()
}

/// Whether the user may write to the folder that this one is in. Where that cannot be seen it is so.
fn is_movable(folder: &Path) -> bool {
    let Some(parent) = folder.parent() else { return false };
    let Ok(metadata) = fs::metadata(parent) else { return true };
    let (user, mode) = (rustix::process::geteuid().as_raw(), metadata.permissions().mode());
    user == 0 || metadata.uid() == user || mode & 0o022 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sockets_that_can_be_reached_are_those_with_a_path_and_a_reader() {
        let list = "\
Num       RefCount Protocol Flags    Type St Inode Path
ffff8881: 00000002 00000000 00010000 0001 01 20000 /run/dbus/system_bus_socket
ffff8882: 00000002 00000000 00000000 0002 01 20001 /dev/log
ffff8883: 00000003 00000000 00000000 0001 03 20002 /run/dbus/system_bus_socket
ffff8884: 00000002 00000000 00010000 0001 01 20003 @/tmp/.X11-unix/X0
ffff8885: 00000002 00000000 00010000 0005 01 20004 /home/me/a socket
ffff8886: 00000002 00000000 00010000 0001 01 20005
";
        let found: Vec<PathBuf> = sockets(list).into_iter().collect();
        let wanted = ["/dev/log", "/home/me/a socket", "/run/dbus/system_bus_socket"];
        assert_eq!(found, wanted.map(PathBuf::from));
    }

    #[test]
    fn what_is_above_the_policy_cannot_be_moved_away() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().canonicalize().unwrap().join("config/outgate");
        fs::create_dir_all(&folder).unwrap();
        let pinned = movable_above(&[folder.clone()]);
        assert!(pinned.contains(&folder.parent().unwrap().to_owned()), "{pinned:?}");
        assert!(pinned.windows(2).all(|pair| !pair[0].starts_with(&pair[1])), "outer ones first: {pinned:?}");
    }

    #[test]
    fn an_allowed_socket_keeps_the_variable_that_names_it() {
        assert!(variables(&[]).contains(&"SSH_AUTH_SOCK".to_owned()));
    }
}
