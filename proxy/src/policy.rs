//! The policy's files: found, read, and handed to the compiler.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use outgate_rules::document::{Diagnostics, MAX_FILE, Report};
use outgate_rules::policy::{self, Compiled, Source, Tags};

/// Endings of the files in a folder that are rule sets.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// Where a policy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFiles {
    /// Files and folders; none for the built-in policy.
    paths: Vec<PathBuf>,
    /// A rule set that is in no file.
    beside: Option<(String, String)>,
}

/// A file's or folder's state, by which a poll tells that something changed.
pub type Stamp = (PathBuf, Option<(SystemTime, u64)>);

impl PolicyFiles {
    /// The policy in these files and folders; the built-in one where there are none.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, beside: None }
    }

    /// The same with a rule set beside it that is in no file: `name` stands for the file in records.
    #[must_use]
    pub fn and(self, name: &str, text: String) -> Self {
        Self { beside: Some((name.to_owned(), text)), ..self }
    }

    /// Reads and compiles the policy. Blocks on files.
    ///
    /// # Errors
    /// Every mistake in every file.
    pub fn load(&self, previous: Option<&Tags>, now: Timestamp) -> Result<Compiled, Diagnostics> {
        let mut report = Report::default();
        let mut sources = if self.paths.is_empty() { policy::builtin().to_vec() } else { Vec::new() };
        let beside = self.beside.iter();
        sources.extend(beside.map(|(name, text)| Source { name: name.clone(), bytes: text.clone().into() }));
        for path in &self.paths {
            self.add(path, &mut sources, &mut report);
        }
        if report.has_errors() {
            return Err(report.into_diagnostics());
        }
        policy::compile(&sources, &mut read_reference, previous, now)
    }

    /// The folders whose changes may change the policy: those of its files and of what these refer to, and the
    /// policy's own folders.
    #[must_use]
    pub fn folders(&self, files: &[String]) -> Vec<PathBuf> {
        let parent = |path: &Path| match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            Some(_) | None => PathBuf::from("."),
        };
        let named = self.paths.iter().map(|path| if path.is_dir() { path.clone() } else { parent(path) });
        let read = files.iter().map(|file| parent(Path::new(file)));
        let mut folders: Vec<PathBuf> = named.chain(read).filter(|folder| folder.is_dir()).collect();
        folders.sort();
        folders.dedup();
        folders
    }

    /// What can be seen of the files from outside. Where two stamps differ, the policy is read again.
    #[must_use]
    pub fn stamps(&self, files: &[String]) -> Vec<Stamp> {
        let listed = self.paths.iter().filter_map(|path| list(path).ok()).flatten();
        let mut paths: Vec<PathBuf> = listed.chain(files.iter().map(PathBuf::from)).collect();
        paths.sort();
        paths.dedup();
        paths.into_iter().map(|path| (path.clone(), stamp(&path))).collect()
    }

    fn add(&self, path: &Path, sources: &mut Vec<Source>, report: &mut Report) {
        let files = match list(path) {
            Ok(files) => files,
            Err(error) => {
                report
                    .file_error(&path.display().to_string(), 1, format!("the policy cannot be read: {error}"))
                    .hint_if(None);
                return;
            }
        };
        if files.is_empty() {
            report
                .file_error(&path.display().to_string(), 1, "the folder has no policy file")
                .hint_if(Some("put a file that ends in .yaml, .yml or .json there".to_owned()));
        }
        for file in files {
            let name = file.display().to_string();
            match read_bounded(&file) {
                Ok(bytes) => sources.push(Source { name, bytes }),
                Err(error) => _ = report.file_error(&name, 1, format!("the policy cannot be read: {error}")),
            }
        }
    }
}

/// The rule sets at a path: the file itself, or a folder's files in the order of their names. Hidden names are
/// left out: they are editors' and, in a ConfigMap's folder, where it keeps what it swaps.
fn list(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !std::fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let file = entry?.path();
        let hidden = file.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let rule_set = file.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known));
        if rule_set && !hidden && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn read_reference(path: &str) -> Result<Vec<u8>, String> {
    read_bounded(Path::new(path)).map_err(|error| error.to_string())
}

/// Reads a regular file of at most [`MAX_FILE`] bytes: a pipe or a device might never end.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if metadata.len() > MAX_FILE as u64 {
        return Err(io::Error::other(format!("it is larger than {} MiB", MAX_FILE >> 20)));
    }
    std::fs::read(path)
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
