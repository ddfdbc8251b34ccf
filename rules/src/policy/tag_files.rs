//! The service tags of a policy: the files it names, and what a refresh of them may change.

use std::sync::Arc;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::tags::{AbnormalChange, ServiceTags, UnknownTag, abnormal_changes};

use super::references::{Identity, References, resolve};
use crate::document::{Placed, Report, Severity, quoted};

/// The service tags that a policy was compiled with. Handed to the next compilation, they hold back a
/// refresh that changes a tag abnormally.
#[derive(Clone, Debug, Default)]
pub struct Tags {
    in_force: Arc<ServiceTags>,
    /// What the files hold now, where it was held back.
    held_back: Option<Arc<ServiceTags>>,
    changes: Vec<AbnormalChange>,
    digest: Vec<u8>,
}

impl Tags {
    /// The tags in force.
    #[must_use]
    pub fn service_tags(&self) -> &Arc<ServiceTags> {
        &self.in_force
    }

    /// Why the files' present state is held back; empty where it is in force.
    #[must_use]
    pub fn held_back(&self) -> &[AbnormalChange] {
        &self.changes
    }

    /// The prefixes of a tag. One that only the held-back files have is new and changes nothing that is open.
    pub(crate) fn prefixes(&self, name: &str) -> Result<Vec<IpNet>, UnknownTag> {
        let found = self.in_force.find(name).or_else(|unknown| match &self.held_back {
            Some(fresh) => fresh.find(name),
            None => Err(unknown),
        });
        found.map(|tag| tag.prefixes().to_vec())
    }
}

/// Reads the files that the policy names. None where it names none or one of them is not taken.
pub(crate) fn load(
    report: &mut Report,
    references: &mut References<'_>,
    paths: &[Placed<String>],
) -> Option<Tags> {
    let mut all: Option<ServiceTags> = None;
    let mut digest = Sha256::new();
    let mut seen = std::collections::HashSet::new();
    let before = report.errors();
    for path in paths {
        if !seen.insert(resolve(&report.name(path.span.file), &path.value)) {
            continue;
        }
        let Some(bytes) = references.bytes(report, path) else { continue };
        digest.update((bytes.len() as u64).to_be_bytes());
        digest.update(&bytes);
        let parsed = match ServiceTags::parse(&bytes, stem(&path.value)) {
            Ok(tags) => tags,
            Err(error) => {
                let message = format!("{} is not a file of service tags: {error}", quoted(&path.value));
                report
                    .error(path.span, message)
                    .hint("get the file anew; one that is cut short is not taken in part");
                continue;
            }
        };
        match &mut all {
            None => all = Some(parsed),
            Some(all) => {
                if let Err(conflict) = all.extend(parsed) {
                    report.error(path.span, conflict.to_string()).hint("give one of the two files");
                }
            }
        }
    }
    let in_force = all.filter(|_| report.errors() == before)?;
    let digest = digest.finalize().to_vec();
    Some(Tags { in_force: Arc::new(in_force), held_back: None, changes: Vec::new(), digest })
}

/// Keeps the previous tags in force where the new files change one that the policy uses abnormally.
pub(crate) fn hold_back(
    report: &mut Report,
    fresh: Tags,
    previous: Option<&Tags>,
    used: &[String],
    identity: &mut Identity,
) -> Tags {
    let Some(previous) = previous else { return fresh };
    let changes = abnormal_changes(&previous.in_force, &fresh.in_force, used.iter().map(String::as_str));
    if changes.is_empty() {
        return fresh;
    }
    let list = changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    report
        .overall(
            Severity::Warning,
            format!("the refreshed service tags are held back, the old ones hold: {list}"),
        )
        .hint("look at the file; if the change is right, restart the gate to take it");
    identity.add("held", "", &previous.digest);
    let in_force = Arc::clone(&previous.in_force);
    Tags { in_force, held_back: Some(fresh.in_force), changes, digest: previous.digest.clone() }
}

/// The name of a file without its folder and ending.
fn stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}
