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
    /// Sockets and devices that lead round the gate: each is covered by an empty file.
    pub hidden_sockets: Vec<PathBuf>,
    /// Folders of sockets: each is covered by an empty folder.
    pub hidden_folders: Vec<PathBuf>,
    /// What stays visible in a hidden folder.
    pub kept: Vec<PathBuf>,
    /// What can be read and not written: the policy.
    pub read_only: Vec<PathBuf>,
    /// Folders above those: they cannot be renamed.
    pub pinned: Vec<PathBuf>,
    /// The kernel's own files: they can be read and not written.
    pub kernel_settings: Vec<PathBuf>,
}

/// The most bytes of one argument: the kernel takes 128 KiB (`MAX_ARG_STRLEN`).
const ARGUMENT: usize = 100 * 1024;

impl Plan {
    /// The plan as arguments.
    ///
    /// # Errors
    /// When a path is not UTF-8.
    pub fn to_arguments(&self) -> serde_json::Result<Vec<OsString>> {
        let text = serde_json::to_string(self)?;
        let mut rest = text.as_str();
        let mut arguments = Vec::new();
        while !rest.is_empty() {
            let (first, behind) = rest.split_at(rest.floor_char_boundary(ARGUMENT));
            arguments.push(first.into());
            rest = behind;
        }
        Ok(arguments)
    }

    /// The plan that [`Plan::to_arguments`] made.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_arguments(arguments: &[OsString]) -> serde_json::Result<Self> {
        let text: Vec<&str> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
        serde_json::from_str(&text.concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_plan_is_several_arguments() {
        let hidden_sockets =
            (0..20_000).map(|number| PathBuf::from(format!("/tmp/\u{fc}/{number}"))).collect();
        let plan = Plan { files: Files { hidden_sockets, ..Files::default() }, ..Plan::default() };
        let arguments = plan.to_arguments().unwrap();
        assert!(arguments.len() > 1 && arguments.iter().all(|argument| argument.len() <= ARGUMENT));
        assert_eq!(Plan::from_arguments(&arguments).unwrap().files.hidden_sockets, plan.files.hidden_sockets);
    }
}
