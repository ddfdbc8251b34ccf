//! Service tags: address prefixes by name, as the clouds publish them.
//!
//! | file | names of its tags |
//! | --- | --- |
//! | Microsoft, `ServiceTags_*.json` | as published: `Storage.WestEurope`, `AzureCloud.westeurope` |
//! | AWS, `ip-ranges.json` | `AWS.<service>` and `AWS.<service>.<region>`: `AWS.S3.eu-west-1` |
//! | Google, `cloud.json` and `goog.json` | `GoogleCloud` and `GoogleCloud.<scope>`; `Google` |
//! | GitHub, `api.github.com/meta` | `GitHub.<list>`: `GitHub.web` |
//! | a plain list, one prefix a line, `#` before a comment | the caller's: the file's name without its ending |
//!
//! A tag is found by its whole name, in any letter case. A dot does not always stand before a region
//! (`AzureFrontDoor.Frontend`), and what `properties.region` says in Microsoft's file often differs from the
//! name (`Storage.FranceCentral` is in `centralfrance`), so nothing is derived from either.

mod format;
mod suggest;

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;

use crate::ranges::{PrefixError, PrefixMap, PrefixSet};

/// Longest input that is read, in bytes. The largest published file has 4 MB.
pub const MAX_INPUT: usize = 64 << 20;
/// Longest name of a tag, in bytes. The longest published one has 47.
pub const MAX_TAG_NAME: usize = 128;

/// The service tags of one or more published files.
#[derive(Clone, Debug, Default)]
pub struct ServiceTags {
    publications: Vec<Publication>,
    /// Sorted by name, whatever its letter case.
    tags: Vec<ServiceTag>,
    by_address: OnceLock<PrefixMap<u32>>,
}

impl ServiceTags {
    /// Reads a published file; what it holds says which format it is. A byte-order mark is skipped.
    /// `stem` names the one tag of a plain list and plays no part otherwise.
    ///
    /// # Errors
    /// A file is taken whole or not at all: an unknown format, a prefix that is none, a tag that comes
    /// twice, no tag at all, or more than [`MAX_INPUT`] bytes.
    pub fn parse(bytes: &[u8], stem: &str) -> Result<Self, TagsError> {
        if bytes.len() > MAX_INPUT {
            return Err(TagsError::TooLarge { bytes: bytes.len() });
        }
        let (publication, tags) = format::read(bytes, stem)?;
        if tags.is_empty() {
            return Err(TagsError::Empty);
        }
        let mut read = Self { publications: vec![publication], tags, by_address: OnceLock::new() };
        read.sort();
        match read.twice() {
            Some(tag) => Err(TagsError::Twice { tag: tag.to_owned() }),
            None => Ok(read),
        }
    }

    /// Adds the tags of another file.
    ///
    /// # Errors
    /// When both have a tag of one name, be it of two versions of one file or of two clouds (all of Azure's
    /// clouds have a `Storage`): merged they would open more than either, and if the later one won, the order
    /// of files would decide what is open. Then nothing was added.
    pub fn extend(&mut self, other: Self) -> Result<(), TagConflict> {
        if let Some((first, second)) = other.tags.iter().find_map(|tag| Some((self.get(tag.name())?, tag))) {
            let (tag, first, second) = (first.name.to_string(), first.cloud.clone(), second.cloud.clone());
            return Err(TagConflict { tag, first, second });
        }
        self.publications.extend(other.publications);
        self.tags.extend(other.tags);
        self.by_address = OnceLock::new();
        self.sort();
        Ok(())
    }

    /// The tag of this name, in any letter case.
    ///
    /// # Errors
    /// Says what to write instead, where that can be told.
    pub fn find(&self, name: &str) -> Result<&ServiceTag, UnknownTag> {
        if let Some(tag) = self.get(name) {
            return Ok(tag);
        }
        if let Some(pseudo) = PseudoTag::find(name) {
            return Err(UnknownTag::Pseudo(pseudo));
        }
        Err(UnknownTag::Unknown { name: name.to_owned(), meant: self.suggest(name).map(str::to_owned) })
    }

    /// The name that somebody who wrote `name` may have meant: letters left out or wrong, a region's words in
    /// another order (`uswest`), the other of its two names (`francecentral`, `centralfrance`), a missing
    /// `Azure`.
    #[must_use]
    pub fn suggest(&self, name: &str) -> Option<&str> {
        self.by_other_region_name(name).or_else(|| suggest::nearest(name, self.names()))
    }

    /// The tags that hold `address`: those by the most specific prefix first, then by name. The first call
    /// builds the map for it. IPv4-mapped addresses are the caller's to unwrap.
    pub fn containing(&self, address: IpAddr) -> impl Iterator<Item = &ServiceTag> {
        let map = self.by_address.get_or_init(|| self.map_addresses());
        map.get(address).iter().filter_map(|&number| self.tags.get(number as usize))
    }

    /// All tags, by name.
    #[must_use]
    pub fn tags(&self) -> &[ServiceTag] {
        &self.tags
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tags.iter().map(ServiceTag::name)
    }

    /// The files that the tags are from, in the order they were added.
    #[must_use]
    pub fn publications(&self) -> &[Publication] {
        &self.publications
    }

    fn get(&self, name: &str) -> Option<&ServiceTag> {
        let index = self.tags.binary_search_by(|tag| compare_names(&tag.name, name)).ok()?;
        self.tags.get(index)
    }

    /// Microsoft's file itself says which two names one region has.
    fn by_other_region_name(&self, name: &str) -> Option<&str> {
        let (service, asked) = name.split_once('.')?;
        let other_name = |tag: &'_ ServiceTag| {
            let (in_name, in_properties) = (tag.name.split_once('.')?.1, tag.region.as_deref()?);
            let other = if in_name.eq_ignore_ascii_case(asked) { in_properties } else { in_name };
            let same = in_name.eq_ignore_ascii_case(asked) || in_properties.eq_ignore_ascii_case(asked);
            same.then(|| format!("{service}.{other}"))
        };
        let mut candidates = self.tags.iter().filter_map(other_name);
        candidates.find_map(|name| self.get(&name)).map(ServiceTag::name)
    }

    fn sort(&mut self) {
        self.tags.sort_by(|a, b| compare_names(&a.name, &b.name));
    }

    fn twice(&self) -> Option<&str> {
        let pair = self.tags.array_windows().find(|[a, b]| compare_names(&a.name, &b.name).is_eq());
        pair.map(|[tag, _]| tag.name())
    }

    fn map_addresses(&self) -> PrefixMap<u32> {
        let of_tag = |(number, tag): (u32, &ServiceTag)| {
            tag.prefixes.iter().map(move |&prefix| (prefix, number)).collect::<Vec<_>>()
        };
        (0u32..).zip(&self.tags).flat_map(of_tag).collect()
    }
}

/// The same name whatever its letter case; an order for the rest.
fn compare_names(a: &str, b: &str) -> Ordering {
    let folded_b = b.bytes().map(|byte| byte.to_ascii_lowercase());
    a.bytes().map(|byte| byte.to_ascii_lowercase()).cmp(folded_b)
}

/// A name and the address prefixes that a cloud publishes under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTag {
    name: Box<str>,
    cloud: Cloud,
    region: Option<Box<str>>,
    prefixes: Box<[IpNet]>,
}

impl ServiceTag {
    /// The name, spelled as in the file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Who published it.
    #[must_use]
    pub fn cloud(&self) -> &Cloud {
        &self.cloud
    }

    /// What Microsoft's file says for the region, which is often not what the name says.
    #[must_use]
    pub fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// The prefixes, sorted and each once; otherwise as published, so one may lie within another.
    #[must_use]
    pub fn prefixes(&self) -> &[IpNet] {
        &self.prefixes
    }

    /// The prefixes as a set to look addresses up in.
    #[must_use]
    pub fn set(&self) -> PrefixSet {
        self.prefixes.iter().copied().collect()
    }
}

/// A published file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Who published it.
    pub cloud: Cloud,
    /// Its number, which grows from one to the next: Microsoft's `changeNumber`, AWS's and Google's
    /// `syncToken`. GitHub's document and a plain list have none.
    pub change_number: Option<u64>,
}

/// Who publishes a tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Cloud {
    /// Microsoft, for one of its clouds: `Public`, `AzureGovernment`, `China`, ….
    Azure(Arc<str>),
    /// Amazon Web Services.
    Aws,
    /// Google.
    Google,
    /// GitHub.
    GitHub,
    /// Whoever wrote a plain list.
    List,
}

impl fmt::Display for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Azure(cloud) => write!(f, "Azure {cloud}"),
            Self::Aws => f.write_str("AWS"),
            Self::Google => f.write_str("Google"),
            Self::GitHub => f.write_str("GitHub"),
            Self::List => f.write_str("a plain list"),
        }
    }
}

/// Why a file is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TagsError {
    /// More than [`MAX_INPUT`] bytes.
    #[error("the file has {bytes} bytes; more than {MAX_INPUT} are not read")]
    TooLarge {
        /// The length of the input.
        bytes: usize,
    },
    /// Not a single tag, or a plain list without a prefix: likely a download that failed.
    #[error("the file holds no service tags")]
    Empty,
    /// Not UTF-8.
    #[error("the file is not UTF-8 text")]
    NotText,
    /// JSON of another shape than the format has, or cut short.
    #[error("line {line}, column {column}: {message}")]
    Json {
        /// The line, from 1.
        line: usize,
        /// The column, in bytes from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// JSON, but no format known here.
    #[error("not a format known here: Azure's, AWS's and Google's ranges, GitHub's meta, or a plain list")]
    UnknownFormat,
    /// The name of a tag or a cloud that cannot stand in a policy.
    #[error(
        "`{}` cannot be the name of a tag or a cloud: up to {MAX_TAG_NAME} ASCII letters, digits, `.`, `-`, `_`",
        name.escape_debug()
    )]
    Name {
        /// The name.
        name: String,
    },
    /// A tag that comes twice in one file.
    #[error("the tag `{tag}` comes twice")]
    Twice {
        /// Its name.
        tag: String,
    },
    /// A prefix that is none.
    #[error("the tag `{tag}`: `{}`: {error}", text.escape_debug())]
    Prefix {
        /// The name of the tag.
        tag: String,
        /// The prefix, as written.
        text: String,
        /// What is wrong with it.
        error: PrefixError,
    },
    /// A line of a plain list that is no prefix.
    #[error("line {line}: `{}`: {error}", text.escape_debug())]
    Line {
        /// The line, from 1.
        line: usize,
        /// The line's text without its comment.
        text: String,
        /// What is wrong with it.
        error: PrefixError,
    },
}

/// Two files that both have a tag of one name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the tag `{tag}` is in two files, one from {first} and one from {second}: give one of them")]
pub struct TagConflict {
    /// Its name.
    pub tag: String,
    /// Who published the one that was there.
    pub first: Cloud,
    /// Who published the one to be added.
    pub second: Cloud,
}

/// Why a name is not a tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownTag {
    /// A tag that Azure knows and no file has.
    #[error("`{}` is a tag that no published file has: {}", .0.name, .0.hint)]
    Pseudo(PseudoTag),
    /// No file has it.
    #[error("no service tag is named `{}`{}", name.escape_debug(), Question(meant.as_deref()))]
    Unknown {
        /// The name, as asked for.
        name: String,
        /// The nearest name there is.
        meant: Option<String>,
    },
}

struct Question<'a>(Option<&'a str>);

impl fmt::Display for Question<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |meant| write!(f, "; did you mean `{meant}`?"))
    }
}

/// A tag that Azure's own rules know but its file does not have: it stands for no fixed addresses, or for
/// those of the platform itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PseudoTag {
    /// Its name.
    pub name: &'static str,
    /// What to write instead.
    pub hint: &'static str,
}

impl PseudoTag {
    /// The pseudo tag of this name, in any letter case.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        PSEUDO_TAGS.iter().copied().find(|tag| tag.name.eq_ignore_ascii_case(name))
    }
}

/// Microsoft, "Virtual network service tags": those without a place in the file.
const PSEUDO_TAGS: &[PseudoTag] = &[
    PseudoTag {
        name: "Internet",
        hint: "name the destinations, or say `isolation_mode: allow_internet_outbound`",
    },
    PseudoTag {
        name: "VirtualNetwork",
        hint: "write a rule of type `private_endpoint`, or of type `address` with your networks' prefixes",
    },
    PseudoTag {
        name: "AzureLoadBalancer",
        hint: "write a rule of type `address` with 168.63.129.16/32, where health probes come from",
    },
    PseudoTag {
        name: "AzurePlatformDNS",
        hint: "make 168.63.129.16 an upstream of the gate's resolver, so that clients need not reach it",
    },
    PseudoTag {
        name: "AzurePlatformIMDS",
        hint: "write a rule of type `address` with 169.254.169.254/32, if clients may have the machine's identity",
    },
    PseudoTag {
        name: "AzurePlatformLKM",
        hint: "write a rule of type `fqdn` with azkms.core.windows.net and port 1688",
    },
];

/// From this many addresses on, before or after, a tag's change is judged; below, doubling is a matter of a
/// few hosts. IPv6 is counted in /64s, the size of a subnet.
pub const JUDGED_FROM: u128 = 256;

/// The tags among `names` that changed from `old` to `new` more than an ordinary publication changes them: by
/// count of addresses to less than half or to more than three times, or gone altogether. IPv4 and IPv6 are
/// judged apart, for one would drown in the other. A tag that is new has nothing to be compared with.
///
/// Whoever refreshes a file asks this for the tags that the policy uses, and keeps the old one on any answer.
#[must_use]
pub fn abnormal_changes<'a>(
    old: &ServiceTags,
    new: &ServiceTags,
    names: impl IntoIterator<Item = &'a str>,
) -> Vec<AbnormalChange> {
    let of_tag = |name| match (old.get(name), new.get(name)) {
        (Some(old), Some(new)) => compare(old, new),
        (Some(old), None) => vec![AbnormalChange::Gone { tag: old.name.to_string() }],
        (None, _) => Vec::new(),
    };
    names.into_iter().flat_map(of_tag).collect()
}

/// A change of a tag that is to be looked at before it is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AbnormalChange {
    /// The new file does not have the tag.
    #[error("the tag `{tag}` is gone")]
    Gone {
        /// Its name.
        tag: String,
    },
    /// It has far fewer or far more addresses.
    #[error("the tag `{tag}` went from {before} to {after} {family}")]
    Size {
        /// Its name.
        tag: String,
        /// Which addresses.
        family: Family,
        /// How many there were.
        before: u128,
        /// How many there are in the new file.
        after: u128,
    },
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 addresses.
    V4,
    /// IPv6 subnets of 64 bits, each counted that is held in part.
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4 addresses",
            Self::V6 => "IPv6 /64s",
        })
    }
}

fn compare(old: &ServiceTag, new: &ServiceTag) -> Vec<AbnormalChange> {
    let (old_set, new_set) = (old.set(), new.set());
    let of_family = |family| {
        let (before, after) = (count(&old_set, family), count(&new_set, family));
        let large = before.max(after) >= JUDGED_FROM;
        let abnormal = after * 2 < before || after > before * 3;
        (large && abnormal).then(|| AbnormalChange::Size { tag: old.name.to_string(), family, before, after })
    };
    [Family::V4, Family::V6].into_iter().filter_map(of_family).collect()
}

/// At most 2⁶⁴, so that three times as many can be reckoned with.
fn count(set: &PrefixSet, family: Family) -> u128 {
    let of_range = |range: std::ops::RangeInclusive<IpAddr>| match (range.start(), range.end(), family) {
        (IpAddr::V4(start), IpAddr::V4(end), Family::V4) => u128::from(end.to_bits() - start.to_bits()) + 1,
        (IpAddr::V6(start), IpAddr::V6(end), Family::V6) => {
            (end.to_bits() >> 64) - (start.to_bits() >> 64) + 1
        }
        _ => 0,
    };
    set.ranges().map(of_range).sum()
}

#[cfg(test)]
mod tests;
