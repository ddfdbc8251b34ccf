//! What of the user's own surroundings leads round the gate, found before the sandbox is made.
//!
//! A network namespace does not rule sockets in the file system. Behind them stand programs that run outside: a
//! session bus that starts services, a container engine, a terminal multiplexer, an agent with keys.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, FileType};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use super::mounts::Mounts;
use super::plan::Files;

/// Folders of sockets, and of memory that programs share. `/run` has the system's and, below `user`, the user's.
const FOLDERS: [&str; 4] = ["/run", "/var/run", "/tmp/.X11-unix", "/dev/shm"];
/// Devices by which a virtual machine reaches the programs of its host.
const DEVICES: [&str; 2] = ["/dev/vhost-vsock", "/dev/vsock"];
/// Folders in whose folders programs put sockets, whether or not the kernel's list has them by these names: ssh
/// renames those of its masters, and another network namespace has a list of its own.
const OF_SOCKETS: [&str; 2] = ["/tmp", "/var/tmp"];
/// Parts of the kernel's own files that user 0 can write, and with it have programs started outside.
const KERNEL_SETTINGS: [&str; 5] = ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"];
/// File systems that are such parts.
const KERNEL_FILES: [&str; 13] = [
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "efivarfs",
    "proc",
    "pstore",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];
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
/// Links on the way to one file, as many as the kernel follows.
const MOST_LINKS: usize = 40;
/// The flag of a listening socket in `/proc/net/unix`.
const LISTENS: u32 = 1 << 16;
/// The type of a datagram socket there.
const DATAGRAM: u32 = 2;

/// What is hidden and protected in a sandbox whose policy is at `policy`. `allowed` sockets stay in sight.
///
/// # Errors
/// When the system does not say what sockets there are, or the policy is where it cannot be protected.
pub(super) fn files(allowed: &[PathBuf], policy: &[PathBuf]) -> io::Result<Files> {
    let mounts = Mounts::now()?;
    let everywhere = |paths: Vec<PathBuf>| -> Vec<PathBuf> {
        let others: Vec<PathBuf> = paths.iter().flat_map(|path| mounts.other_paths(path)).collect();
        paths.into_iter().chain(others).collect()
    };
    let allowed = allowed.iter().map(|path| allowed_socket(path)).collect::<io::Result<Vec<_>>>()?;
    let hidden_folders =
        everywhere(FOLDERS.iter().map(PathBuf::from).filter(|folder| is_real_folder(folder)).collect());
    let sockets = everywhere(sockets_in_sight()?.into_iter().collect());
    let kept = kept(&hidden_folders, &allowed, &sockets);
    let is_in = |path: &Path, folders: &[PathBuf]| folders.iter().any(|folder| path.starts_with(folder));
    let in_sight = |path: &Path| !is_in(path, &hidden_folders) || is_in(path, &kept);
    let sockets = sockets.into_iter().filter(|path| !allowed.contains(path) && in_sight(path));
    let devices = DEVICES.iter().map(PathBuf::from).filter(|device| device.exists());
    let hidden_sockets = sockets.chain(devices).collect();
    let read_only = everywhere(policy.iter().filter_map(|path| path.canonicalize().ok()).collect());
    if let Some(link) = policy
        .iter()
        .flat_map(|path| links(path))
        .find(|link| is_movable(link) && !read_only.iter().any(|folder| link.starts_with(folder)))
    {
        let link = link.display();
        return Err(io::Error::other(format!(
            "{link} is a symbolic link that the command could replace: name what it leads to"
        )));
    }
    let pinned = movable_above(&read_only);
    Ok(Files {
        hidden_sockets,
        hidden_folders,
        kept,
        read_only,
        pinned,
        kernel_settings: kernel_settings(&mounts),
    })
}

/// A socket by its own path.
fn allowed_socket(path: &Path) -> io::Result<PathBuf> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("--allow-socket {}: {error}", path.display()))
    };
    let path = path.canonicalize().map_err(named)?;
    if is_socket(&path) { Ok(path) } else { Err(named(io::Error::other("it is no socket"))) }
}

/// What stays of the hidden folders: what programs cannot do without, what is allowed, and the current folder, unless
/// that is one of sockets.
fn kept(hidden: &[PathBuf], allowed: &[PathBuf], sockets: &[PathBuf]) -> Vec<PathBuf> {
    let current = std::env::current_dir().ok();
    let current = current.filter(|folder| !sockets.iter().any(|socket| socket.starts_with(folder)));
    let all =
        KEPT.iter().map(PathBuf::from).chain(resolver_file()).chain(current).chain(allowed.iter().cloned());
    let is_below_hidden =
        |path: &Path| hidden.iter().any(|folder| path != folder && path.starts_with(folder));
    all.filter(|path| is_below_hidden(path) && path.exists()).collect()
}

/// For user 0, who needs no capability to write them.
fn kernel_settings(mounts: &Mounts) -> Vec<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    let mounted = mounts.of_kinds(&KERNEL_FILES).filter(|point| !point.starts_with("/proc"));
    KERNEL_SETTINGS
        .iter()
        .map(Path::new)
        .filter(|path| path.exists())
        .chain(mounted)
        .map(Path::to_owned)
        .collect()
}

/// The symbolic links on the way to what `path` names.
fn links(path: &Path) -> Vec<PathBuf> {
    let Ok(path) = std::path::absolute(path) else { return Vec::new() };
    let mut ahead: Vec<OsString> = backwards(&path);
    let (mut at, mut links) = (PathBuf::from("/"), Vec::new());
    while let Some(next) = ahead.pop() {
        if next == ".." {
            at.pop();
            continue;
        }
        let here = at.join(&next);
        match fs::read_link(&here) {
            Ok(target) if links.len() < MOST_LINKS => {
                ahead.extend(backwards(&target));
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                links.push(here);
            }
            Ok(_) | Err(_) => at = here,
        }
    }
    links
}

/// A path's parts below the root, the last one first.
fn backwards(path: &Path) -> Vec<OsString> {
    let parts = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    parts.rev().map(|part| part.as_os_str().to_owned()).collect()
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

/// Every socket that a program may be listening at: those of the kernel's list, and whatever else is a socket beside
/// them and where programs are known to put theirs.
fn sockets_in_sight() -> io::Result<BTreeSet<PathBuf>> {
    let listed = sockets(&String::from_utf8_lossy(&fs::read("/proc/net/unix")?));
    let beside = listed.iter().filter_map(|path| path.parent()).map(Path::to_owned);
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let own = home
        .iter()
        .flat_map(|home| folders(home))
        .filter(|folder| is_hidden_name(folder))
        .chain(home.clone());
    let temporary = OF_SOCKETS.iter().map(PathBuf::from).chain(std::env::var_os("TMPDIR").map(PathBuf::from));
    let temporary = temporary.flat_map(|folder| folders(&folder).into_iter().chain([folder]));
    let searched: BTreeSet<PathBuf> =
        beside.chain(own).chain(temporary).filter(|folder| folder.is_absolute()).collect();
    let mut found: BTreeSet<PathBuf> =
        searched.iter().flat_map(|folder| entries(folder, FileType::is_socket)).collect();
    found.extend(listed.into_iter().filter(|path| is_socket(path)));
    // One socket may be listed by several paths, of which some have symbolic links in them.
    Ok(found.into_iter().filter_map(|path| path.canonicalize().ok()).collect())
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    entries(folder, FileType::is_dir)
}

/// What is in a folder of one kind; nothing where the folder cannot be read.
fn entries(folder: &Path, kind: impl Fn(&FileType) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|found| kind(&found)))
        .map(|entry| entry.path())
        .collect()
}

fn is_hidden_name(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
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
    let above =
        paths.iter().flat_map(|path| path.ancestors().skip(1)).filter(|folder| *folder != Path::new("/"));
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
        let pinned = movable_above(std::slice::from_ref(&folder));
        assert!(pinned.contains(&folder.parent().unwrap().to_owned()), "{pinned:?}");
        assert!(pinned.windows(2).all(|pair| !pair[0].starts_with(&pair[1])), "outer ones first: {pinned:?}");
    }

    #[test]
    fn links_on_the_way_to_the_policy_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        fs::create_dir_all(folder.join("real/policy.d")).unwrap();
        fs::write(folder.join("real/policy.d/a.yaml"), "").unwrap();
        std::os::unix::fs::symlink("real", folder.join("link")).unwrap();
        std::os::unix::fs::symlink(folder.join("link/policy.d/a.yaml"), folder.join("real/a.yaml")).unwrap();
        for (path, wanted) in [
            ("real/policy.d/a.yaml", &[][..]),
            ("real/../real/policy.d/a.yaml", &[]),
            ("link/policy.d/a.yaml", &["link"]),
            ("link/../real/a.yaml", &["link", "real/a.yaml", "link"]),
        ] {
            let wanted: Vec<PathBuf> = wanted.iter().map(|name| folder.join(name)).collect();
            assert_eq!(links(&folder.join(path)), wanted, "{path}");
        }
        let refused = files(&[], &[folder.join("link/policy.d/a.yaml")]).unwrap_err().to_string();
        assert!(refused.contains("symbolic link"), "{refused}");
    }

    #[test]
    fn what_is_allowed_must_be_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        assert!(files(&[folder.path().to_owned()], &[]).is_err());
        let path = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(files(&[], &[]).unwrap().hidden_sockets.contains(&path.canonicalize().unwrap()));
        let found = files(std::slice::from_ref(&path), &[]).unwrap();
        assert!(!found.hidden_sockets.contains(&path.canonicalize().unwrap()));
    }

    #[test]
    fn an_allowed_socket_keeps_the_variable_that_names_it() {
        assert!(variables(&[]).contains(&"SSH_AUTH_SOCK".to_owned()));
    }
}
