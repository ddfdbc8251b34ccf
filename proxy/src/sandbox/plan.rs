//! What the gate tells the two stages of a sandbox, on their command line.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// All that the stages need to know. The command itself follows as arguments of its own, in whatever bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The socket over which the first stage hands its listeners to the gate.
    pub handover: PathBuf,
    /// The user and group, who stay the same inside.
    pub user: (u32, u32),
    /// Ports on the developer's own machine that can be reached from inside.
    pub published: Vec<u16>,
    /// Ports that a listener is needed for where the kernel cannot redirect.
    pub ports: Vec<u16>,
    /// What is hidden and what is protected.
    pub files: Files,
    /// Environment variables that the command does not get.
    pub without: Vec<String>,
}

/// What of the file system is not as it is outside.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Files {
    /// Sockets that lead round the gate: each is covered by an empty file.
    pub hidden_sockets: Vec<PathBuf>,
    /// Folders of sockets: each is covered by an empty folder.
    pub hidden_folders: Vec<PathBuf>,
    /// What stays visible in a hidden folder.
    pub kept: Vec<PathBuf>,
    /// What can be read and not written: the policy.
    pub read_only: Vec<PathBuf>,
    /// Folders above those: they cannot be renamed.
    pub pinned: Vec<PathBuf>,
}

impl Plan {
    /// The plan as one argument.
    ///
    /// # Errors
    /// When a path is not UTF-8.
    pub fn to_argument(&self) -> serde_json::Result<OsString> {
        serde_json::to_string(self).map(OsString::from)
    }

    /// The plan that [`Plan::to_argument`] made.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_argument(argument: &str) -> serde_json::Result<Self> {
        serde_json::from_str(argument)
    }
}
