//! `outgate run`: a command whose only way out is what a policy allows, on a machine that is free to go anywhere.
//!
//! The lab's hub forwards everything here: whatever does not get out was held by the sandbox.

mod clients;
mod command;
mod escapes;
mod ordinary;
mod policy;
mod terminal;
mod without_nf_tables;

use std::path::{Path, PathBuf};

use outgate_tests::gate::binary;
use outgate_tests::lab::{Lab, Machine, Ran};

/// What the sandboxes of these tests may reach.
const POLICY: &str = "
outbound_rules:
  - {name: web, type: fqdn, destination: [ml.azure.com, pypi.org, files.pythonhosted.org, github.com, deb.debian.org]}
  - {name: database, type: fqdn, destination: db.partner.example, ports: [5432]}
";

/// A lab, and the words that run a command in a sandbox there.
struct Desk {
    lab: Lab,
    words: Vec<String>,
}

impl Desk {
    /// A sandbox with [`POLICY`]; none where there can be no lab.
    fn new() -> Option<Self> {
        Self::with(&[])
    }

    /// The same with further flags of `outgate run`.
    fn with(flags: &[&str]) -> Option<Self> {
        let lab = Lab::start()?;
        let policy = write(lab.folder(), "policy/policy.yaml", POLICY);
        let named = ["run".to_owned(), "--policy".to_owned(), policy.display().to_string()];
        let flags = flags.iter().map(|flag| (*flag).to_owned());
        let words =
            [binary().display().to_string()].into_iter().chain(named).chain(flags).chain(["--".to_owned()]);
        Some(Self { words: words.collect(), lab })
    }

    /// The machine, with every program in a sandbox of its own.
    fn inside(&self) -> Machine<'_> {
        self.lab.training().through(&self.words)
    }

    /// A shell's line in a sandbox.
    fn sh(&self, line: &str) -> Ran {
        self.inside().run("sh", &["-c", line])
    }
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path
}
