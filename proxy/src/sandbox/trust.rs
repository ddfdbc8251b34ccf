//! Policies of projects: they count only once their user has said so, and only as they were then.
//!
//! A project comes from somebody else, and its policy would open the network to that somebody's code. What is
//! recorded is the SHA-256 of all its files, with those that it refers to.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Where a project keeps its policy.
pub const PROJECT_POLICY: &str = ".outgate/policy.yaml";

/// The digest of a policy's files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The fingerprint of these files, in whatever order.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn of(files: &[PathBuf]) -> io::Result<Self> {
        let mut files = files.to_vec();
        files.sort();
        files.dedup();
        let mut digest = Sha256::new();
        for file in files {
            let content = fs::read(&file)?;
            let path = file.as_os_str().as_encoded_bytes();
            for part in [path, content.as_slice()] {
                digest.update((part.len() as u64).to_be_bytes());
                digest.update(part);
            }
        }
        Ok(Self(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
    }
}

/// What was trusted.
#[derive(Clone, Debug)]
pub struct Trusted {
    file: PathBuf,
}

impl Trusted {
    /// What this user has trusted: recorded in the user's state folder.
    #[must_use]
    pub fn by_user() -> Option<Self> {
        let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
        Some(Self { file: state.join("outgate/trusted") })
    }

    /// The folder of the record.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("/"))
    }

    /// Whether a policy with this fingerprint was trusted.
    #[must_use]
    pub fn has(&self, fingerprint: &Fingerprint) -> bool {
        let recorded = fs::read_to_string(&self.file).unwrap_or_default();
        recorded.lines().any(|line| line.split(' ').next() == Some(fingerprint.0.as_str()))
    }

    /// Records that it is.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn add(&self, fingerprint: &Fingerprint, policy: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.folder())?;
        let mut file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&self.file)?;
        writeln!(file, "{} {}", fingerprint.0, policy.display().to_string().escape_default())
    }
}

/// The policy of the project that a folder belongs to: its own, or that of the nearest folder above it, up to the
/// user's home.
#[must_use]
pub fn of_project(folder: &Path) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let inside = folder.ancestors().take_while(|above| Some(*above) != home.as_deref());
    inside.map(|above| above.join(PROJECT_POLICY)).find(|policy| policy.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_trusted_as_it_was_and_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy.yaml");
        let list = folder.path().join("names.txt");
        fs::write(&policy, "outbound_rules: []").unwrap();
        fs::write(&list, "pypi.org\n").unwrap();
        let files = [policy.clone(), list.clone()];
        let trusted = Trusted { file: folder.path().join("state/outgate/trusted") };
        let before = Fingerprint::of(&files).unwrap();
        assert!(!trusted.has(&before));
        trusted.add(&before, &policy).unwrap();
        assert!(trusted.has(&Fingerprint::of(&files).unwrap()));
        assert!(trusted.has(&Fingerprint::of(&[list.clone(), policy.clone()]).unwrap()), "in whatever order");

        fs::write(&list, "pypi.org\nevil.example\n").unwrap();
        assert!(!trusted.has(&Fingerprint::of(&files).unwrap()), "what it refers to counts as well");
        fs::write(&list, "evil.org\n").unwrap();
        assert!(!trusted.has(&Fingerprint::of(&files).unwrap()), "as many bytes, and others");
        fs::write(&list, "pypi.org\n").unwrap();
        assert!(trusted.has(&Fingerprint::of(&files).unwrap()));
        let elsewhere = folder.path().join("other.yaml");
        fs::copy(&policy, &elsewhere).unwrap();
        assert!(!trusted.has(&Fingerprint::of(&[elsewhere, list]).unwrap()));
    }
}
