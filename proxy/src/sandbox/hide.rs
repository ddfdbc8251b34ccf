//! The sandbox's view of the file system: the user's own, but for what leads round the gate.
//!
//! Runs in a mount namespace of its own, before the command does. A mount that fails is an error: what cannot be
//! hidden must not be left in sight.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_remount,
};

use super::plan::Files;

/// A place that could not be made ready, and why.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {error}", path.display())]
pub(super) struct MountError {
    what: &'static str,
    path: PathBuf,
    error: io::Error,
}

/// Keeps every later mount from reaching the namespace outside.
///
/// # Errors
/// Without CAP_SYS_ADMIN in the mount namespace.
pub(super) fn separate() -> Result<(), MountError> {
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", flags).map_err(|error| failed("cannot separate", Path::new("/"), error))
}

/// Mounts a `/proc` that shows the sandbox's own processes and no others: through those of the user's one could read
/// their memory and enter their namespaces.
///
/// # Errors
/// Where parts of the present `/proc` are covered, as container engines do: the kernel wants it whole.
pub(super) fn own_proc() -> Result<(), MountError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None)
        .map_err(|error| failed("cannot mount", Path::new("/proc"), error))
}

/// Hides and protects what `files` says.
///
/// # Errors
/// The first place where that failed.
pub(super) fn apply(files: &Files) -> Result<(), MountError> {
    for folder in &files.pinned {
        pin(folder)?;
    }
    for path in &files.read_only {
        protect(path)?;
    }
    for socket in &files.hidden_sockets {
        cover(socket)?;
    }
    for folder in &files.hidden_folders {
        empty(folder, &files.kept)?;
    }
    for settings in &files.kernel_settings {
        keep_as_it_is(settings)?;
    }
    own_queues()
}

/// Binds a folder on itself: what is a mount point cannot be renamed or removed.
fn pin(folder: &Path) -> Result<(), MountError> {
    or_out_of_reach(mount_bind_recursive(folder, folder)).map_err(|error| failed("cannot pin", folder, error))
}

/// Lets a file or folder be read and not written.
fn protect(path: &Path) -> Result<(), MountError> {
    let fail = |error| failed("cannot protect", path, error);
    let result = mount_bind_recursive(path, path).and_then(|()| remount_read_only(path));
    or_out_of_reach(result).map_err(fail)
}

/// Lets the kernel's settings be read only. Their files belong to user 0, whom the kernel asks for no capability.
fn keep_as_it_is(settings: &Path) -> Result<(), MountError> {
    let result = match remount_read_only(settings) {
        // It is a folder and no mount.
        Err(rustix::io::Errno::INVAL) => return protect(settings),
        result => result,
    };
    or_out_of_reach(result).map_err(|error| failed("cannot protect", settings, error))
}

/// Message queues belong to the IPC namespace, but for those that can be seen in the file system.
fn own_queues() -> Result<(), MountError> {
    let folder = Path::new("/dev/mqueue");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    or_out_of_reach(mount("mqueue", folder, "mqueue", flags, None))
        .map_err(|error| failed("cannot hide", folder, error))
}

/// What this user cannot reach, the command cannot either.
fn or_out_of_reach(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::ACCESS | rustix::io::Errno::NOTDIR) => Ok(()),
        result => result,
    }
}

/// The flags that the mount has stay: a namespace of an ordinary user may not take any of them away.
fn remount_read_only(path: &Path) -> rustix::io::Result<()> {
    let present = rustix::fs::statvfs(path)?.f_flag;
    let kept = [
        (rustix::fs::StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (rustix::fs::StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (rustix::fs::StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (rustix::fs::StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (rustix::fs::StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (rustix::fs::StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let kept = kept.into_iter().filter(|(has, _)| present.contains(*has));
    let flags = kept.fold(MountFlags::BIND | MountFlags::RDONLY, |flags, (_, flag)| flags | flag);
    mount_remount(path, flags, c"")
}

/// Covers a socket, or a device, by a file that nobody listens at.
fn cover(socket: &Path) -> Result<(), MountError> {
    or_out_of_reach(mount_bind("/dev/null", socket)).map_err(|error| failed("cannot hide", socket, error))
}

/// Covers a folder by an empty one, in which only what is kept is found.
fn empty(folder: &Path, kept: &[PathBuf]) -> Result<(), MountError> {
    let fail = |error| failed("cannot hide", folder, error);
    let kept: Vec<(PathBuf, Kept)> = kept
        .iter()
        .filter(|path| path.starts_with(folder))
        .filter_map(|path| Some((path.clone(), Kept::open(path).ok()?)))
        .collect();
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    // Shared memory is there to be used, as much of it as outside.
    let options = if folder.ends_with("shm") { c"mode=1777" } else { c"mode=0755,size=16m" };
    mount("tmpfs", folder, "tmpfs", flags, Some(options)).map_err(fail)?;
    for (path, kept) in kept {
        kept.show_at(&path).map_err(|error| MountError { what: "cannot keep", path, error })?;
    }
    Ok(())
}

/// Something in a folder that is about to be covered, held open so that it can be shown again.
enum Kept {
    Folder(fs::File),
    File(fs::File),
}

impl Kept {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let opened = fs::File::from(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?);
        Ok(if opened.metadata()?.is_dir() { Self::Folder(opened) } else { Self::File(opened) })
    }

    fn show_at(&self, path: &Path) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        let (Self::Folder(opened) | Self::File(opened)) = self;
        match self {
            Self::Folder(_) => fs::create_dir_all(path)?,
            Self::File(_) => {
                fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
                fs::File::create(path)?;
            }
        }
        let source = format!("/proc/self/fd/{}", opened.as_raw_fd());
        Ok(mount_bind_recursive(source, path)?)
    }
}

fn failed(what: &'static str, path: &Path, error: rustix::io::Errno) -> MountError {
    MountError { what, path: path.to_owned(), error: error.into() }
}
