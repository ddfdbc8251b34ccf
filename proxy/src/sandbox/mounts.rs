//! What is mounted where: by it, one file may have several paths, and each has to be hidden or protected.

use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The mounts of this process, in the order in which they were made.
#[derive(Debug)]
pub(super) struct Mounts(Vec<Mount>);

#[derive(Debug)]
struct Mount {
    device: String,
    /// What of the file system is mounted.
    root: PathBuf,
    /// Where it is mounted.
    point: PathBuf,
    kind: String,
}

impl Mounts {
    /// The mounts as they are now.
    ///
    /// # Errors
    /// When the system does not say.
    pub(super) fn now() -> io::Result<Self> {
        Ok(Self::from_list(&fs::read("/proc/self/mountinfo")?))
    }

    fn from_list(list: &[u8]) -> Self {
        Self(list.split(|byte| *byte == b'\n').filter_map(mount).collect())
    }

    /// The other paths of what is at `path`, which has no symbolic links in it.
    pub(super) fn other_paths(&self, path: &Path) -> Vec<PathBuf> {
        self.candidates(path).into_iter().filter(|other| is_same(path, other)).collect()
    }

    fn candidates(&self, path: &Path) -> Vec<PathBuf> {
        // Of several mounts at one place, the last one is seen.
        let home = self
            .0
            .iter()
            .filter(|mount| path.starts_with(&mount.point))
            .max_by_key(|m| m.point.as_os_str().len());
        let Some(home) = home else { return Vec::new() };
        let Ok(rest) = path.strip_prefix(&home.point) else { return Vec::new() };
        let within = joined(&home.root, rest);
        let others = self.0.iter().filter(|mount| mount.device == home.device && mount.point != home.point);
        others
            .filter_map(|mount| Some(joined(&mount.point, within.strip_prefix(&mount.root).ok()?)))
            .collect()
    }

    /// Where file systems of these kinds are mounted.
    pub(super) fn of_kinds(&self, kinds: &[&str]) -> impl Iterator<Item = &Path> {
        self.0
            .iter()
            .filter(move |mount| kinds.contains(&mount.kind.as_str()))
            .map(|mount| mount.point.as_path())
    }
}

/// A line of `/proc/self/mountinfo`: see proc_pid_mountinfo(5).
fn mount(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let device = String::from_utf8_lossy(words.nth(2)?).into_owned();
    let (root, point) = (path(words.next()?), path(words.next()?));
    let kind = words.skip_while(|word| *word != b"-").nth(1)?;
    Some(Mount { device, root, point, kind: String::from_utf8_lossy(kind).into_owned() })
}

/// A path in which spaces and the like are written as three octal digits.
fn path(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, behind)) = rest.split_first() {
        let escaped =
            behind.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = behind.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// A path and a further one below it, which may be empty: then without a slash at its end.
fn joined(path: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().as_bytes().is_empty() { path.to_owned() } else { path.join(rest) }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::symlink_metadata(path).map(|found| (found.dev(), found.ino())).ok();
    identity(one).is_some_and(|found| identity(other) == Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[u8] = b"\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /proc rw - proc proc rw
23 21 8:2 /@home /home rw - btrfs /dev/sdb rw
24 21 8:2 / /mnt/whole\\040disk rw - btrfs /dev/sdb rw
25 21 8:1 /srv /exported rw master:1 - ext4 /dev/sda1 rw
26 21 0:33 / /sys ro - sysfs sysfs rw
";

    #[test]
    fn what_is_mounted_twice_has_two_paths() {
        let mounts = Mounts::from_list(LIST);
        for (path, others) in [
            ("/home/me/policy.yaml", vec!["/mnt/whole disk/@home/me/policy.yaml"]),
            ("/srv/a", vec!["/exported/a"]),
            ("/exported", vec!["/srv"]),
            ("/etc/a", vec![]),
            ("/mnt/whole disk/other", vec![]),
        ] {
            let others: Vec<PathBuf> = others.into_iter().map(PathBuf::from).collect();
            assert_eq!(mounts.candidates(Path::new(path)), others, "{path}");
        }
        assert_eq!(
            mounts.of_kinds(&["sysfs", "proc"]).collect::<Vec<_>>(),
            [Path::new("/proc"), Path::new("/sys")]
        );
    }

    #[test]
    fn every_place_that_is_mounted_is_the_same_as_itself() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_same(folder.path(), folder.path()));
        assert!(!is_same(folder.path(), Path::new("/")));
    }
}
