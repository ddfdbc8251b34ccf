//! Files that a policy refers to, and the digest of everything that was read.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use crate::ruleset::Revision;

use crate::document::{FileId, Placed, Report, decode, quoted};

/// Reads a file by the path that [`resolve`] made; an error is a sentence for people.
pub type ReadFile<'r> = dyn FnMut(&str) -> Result<Vec<u8>, String> + 'r;

/// The files of a policy beside its sources: each is read once.
pub(crate) struct References<'r> {
    read: &'r mut ReadFile<'r>,
    known: HashMap<String, Option<FileId>>,
    /// Every file of the policy, in the order of reading.
    pub(crate) files: Vec<String>,
    pub(crate) identity: Identity,
}

impl<'r> References<'r> {
    pub(crate) fn new(read: &'r mut ReadFile<'r>) -> Self {
        Self { read, known: HashMap::new(), files: Vec::new(), identity: Identity::default() }
    }

    /// The text of a file that is named in a policy; a mistake is reported where it is named.
    pub(crate) fn text(&mut self, report: &mut Report, path: &Placed<String>) -> Option<FileId> {
        let resolved = resolve(&report.name(path.span.file), &path.value);
        if let Some(known) = self.known.get(&resolved) {
            return *known;
        }
        let file = self.bytes(report, path).and_then(|bytes| match decode(bytes) {
            Ok(text) => Some(report.add_file(&resolved, text)),
            Err(mistake) => {
                report.file_error(&resolved, mistake.line, mistake.message).hint_if(mistake.hint);
                None
            }
        });
        self.known.insert(resolved, file);
        file
    }

    /// The bytes of such a file.
    pub(crate) fn bytes(&mut self, report: &mut Report, path: &Placed<String>) -> Option<Vec<u8>> {
        let resolved = resolve(&report.name(path.span.file), &path.value);
        if !self.files.contains(&resolved) {
            self.files.push(resolved.clone());
        }
        match (self.read)(&resolved) {
            Ok(bytes) => {
                self.identity.add("file", &resolved, &bytes);
                Some(bytes)
            }
            Err(error) => {
                let message = format!("{} cannot be read: {error}", quoted(&resolved));
                report.error(path.span, message).hint("a path is relative to the file that names it");
                None
            }
        }
    }
}

/// The path of a file that is named in another: relative to the folder of the one that names it.
#[must_use]
pub fn resolve(from: &str, path: &str) -> String {
    match from.rsplit_once('/') {
        Some((folder, _)) if !path.starts_with('/') => format!("{folder}/{path}"),
        Some(_) | None => path.to_owned(),
    }
}

/// The digest that a revision is made of: everything that was compiled, each part with its kind, the last part
/// of its path and its length, so that no two policies run together into one.
#[derive(Default)]
pub(crate) struct Identity(Sha256);

impl Identity {
    pub(crate) fn add(&mut self, kind: &str, name: &str, bytes: &[u8]) {
        // The folder is left out: two gates with the same policy have the same revision wherever it lies.
        let name = name.rsplit('/').next().unwrap_or(name);
        for part in [kind.as_bytes(), name.as_bytes(), bytes] {
            self.0.update((part.len() as u64).to_be_bytes());
            self.0.update(part);
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        let digest = self.0.clone().finalize();
        let mut bytes = [0; 6];
        for (byte, digested) in bytes.iter_mut().zip(digest) {
            *byte = digested;
        }
        Revision::new(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_relative_to_the_file_that_names_it() {
        for (from, path, resolved) in [
            ("policy.d/a.yaml", "names.txt", "policy.d/names.txt"),
            ("/etc/outgate/a.yaml", "../names.txt", "/etc/outgate/../names.txt"),
            ("a.yaml", "names.txt", "names.txt"),
            ("policy.d/a.yaml", "/srv/names.txt", "/srv/names.txt"),
        ] {
            assert_eq!(resolve(from, path), resolved);
        }
    }

    #[test]
    fn what_runs_together_is_told_apart() {
        let revision = |parts: &[(&str, &[u8])]| {
            let mut identity = Identity::default();
            parts.iter().for_each(|(name, bytes)| identity.add("source", name, bytes));
            identity.revision()
        };
        assert_eq!(revision(&[("x/a", b"1")]), revision(&[("y/a", b"1")]));
        let all = [
            revision(&[("a", b"12")]),
            revision(&[("a", b"1"), ("a", b"2")]),
            revision(&[("a1", b"2")]),
            revision(&[("a", b"2"), ("a", b"1")]),
            revision(&[]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(all.iter().skip(index + 1).all(|other| other != one), "{index}");
        }
    }
}
