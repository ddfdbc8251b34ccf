//! The index from names to the rules that speak of them: as fast with a million names as with a hundred.

use std::hash::{BuildHasher, RandomState};

use globset::{GlobSet, GlobSetBuilder};
use hashbrown::HashTable;

use crate::name::DomainName;
use crate::pattern::{InLabelPattern, Pattern, as_path};
use crate::rule::RuleId;

/// Names and suffixes are hashed and looked up label by label; only patterns with a wildcard inside a label
/// need globs, and those lie in buckets by the literal suffix behind the wildcard.
///
/// All texts lie in one arena and an entry is 16 bytes: a million names take about 55 MB.
#[derive(Debug, Default)]
pub(crate) struct NameIndex {
    texts: String,
    entries: HashTable<Entry>,
    /// Seeded at random: who asks picks the names that are hashed.
    hasher: foldhash::fast::RandomState,
    /// Rules that share one name, each list in the order of the rules' names.
    lists: Vec<Vec<RuleId>>,
    buckets: std::collections::HashMap<Box<str>, Bucket, RandomState>,
}

/// One text, and the rules for the name itself and for the names below it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: u32,
    length: u8,
    exact: Rules,
    below: Rules,
}

/// No rule, one rule, or a list of them, in four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rules(u32);

impl Rules {
    const NONE: Self = Self(u32::MAX);
    const LIST: u32 = 1 << 31;

    fn list(self) -> Option<usize> {
        (self != Self::NONE && self.0 & Self::LIST != 0).then_some((self.0 & !Self::LIST) as usize)
    }

    fn one(self) -> Option<RuleId> {
        (self.0 & Self::LIST == 0).then_some(RuleId(self.0))
    }
}

/// The in-label patterns that end in one literal suffix.
#[derive(Debug)]
struct Bucket {
    globs: GlobSet,
    /// The rule of each glob, by the glob's index.
    rules: Vec<RuleId>,
}

impl NameIndex {
    /// Calls `found` with every rule that has a pattern for `name`, the most specific first: the name
    /// itself, then suffixes from long to short, then in-label patterns.
    pub(crate) fn find(&self, name: &DomainName, mut found: impl FnMut(RuleId)) {
        for (depth, text) in name.and_ancestors().enumerate() {
            if let Some(entry) = self.entry(text) {
                self.each(if depth == 0 { entry.exact } else { entry.below }, &mut found);
            }
        }
        if !self.buckets.is_empty() {
            self.find_globs(name, &mut found);
        }
    }

    /// Calls `found` with the text of every pattern whose literal part is `parent` or lies below it. Slow:
    /// for `explain` alone.
    pub(crate) fn find_below(&self, parent: &DomainName, mut found: impl FnMut(RuleId, String)) {
        for entry in &self.entries {
            let text = self.text(entry);
            if text != parent.as_str() && !is_below(text, parent.as_str()) {
                continue;
            }
            self.each(entry.exact, &mut |rule| found(rule, text.to_owned()));
            self.each(entry.below, &mut |rule| found(rule, format!("*.{text}")));
        }
    }

    fn find_globs(&self, name: &DomainName, found: &mut impl FnMut(RuleId)) {
        let mut path = None;
        for suffix in name.and_ancestors() {
            let Some(bucket) = self.buckets.get(suffix) else { continue };
            let path = path.get_or_insert_with(|| as_path(name.as_str()));
            for index in bucket.globs.matches(path.as_str()) {
                if let Some(rule) = bucket.rules.get(index) {
                    found(*rule);
                }
            }
        }
    }

    fn entry(&self, text: &str) -> Option<&Entry> {
        self.entries.find(self.hasher.hash_one(text), |entry| self.text(entry) == text)
    }

    fn text(&self, entry: &Entry) -> &str {
        text_of(&self.texts, entry)
    }

    fn each(&self, rules: Rules, found: &mut impl FnMut(RuleId)) {
        if let Some(rule) = rules.one() {
            found(rule);
        } else if let Some(list) = rules.list().and_then(|list| self.lists.get(list)) {
            list.iter().copied().for_each(found);
        }
    }
}

fn text_of<'t>(texts: &'t str, entry: &Entry) -> &'t str {
    let start = entry.offset as usize;
    texts.get(start..start + usize::from(entry.length)).unwrap_or_default()
}

fn is_below(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
}

/// Collects patterns into a [`NameIndex`].
#[derive(Debug, Default)]
pub(crate) struct NameIndexBuilder {
    texts: String,
    entries: HashTable<Entry>,
    hasher: foldhash::fast::RandomState,
    lists: Vec<Vec<RuleId>>,
    globs: std::collections::BTreeMap<Box<str>, Vec<(InLabelPattern, RuleId)>>,
}

/// Why a set of patterns cannot be indexed. Nothing is left out of an index: a deny rule might be it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Offsets into the arena are 32 bits.
    #[error("the policy's names take more than 4 GiB")]
    TooManyNames,
    /// The patterns behind one suffix are too large together.
    #[error("the patterns that end in `{suffix}` cannot be compiled: {error}")]
    Globs {
        /// What they end in.
        suffix: String,
        /// What the glob compiler says.
        error: String,
    },
}

impl NameIndexBuilder {
    /// Makes room for this many further names.
    pub(crate) fn reserve(&mut self, names: usize) {
        let (texts, hasher) = (&self.texts, &self.hasher);
        self.entries.reserve(names, |entry| hasher.hash_one(text_of(texts, entry)));
    }

    /// Adds one pattern of a rule.
    pub(crate) fn add(&mut self, pattern: &Pattern, rule: RuleId) -> Result<(), IndexError> {
        match pattern {
            Pattern::Exact(name) => self.add_name(name, rule, |entry| &mut entry.exact),
            Pattern::Below(name) => self.add_name(name, rule, |entry| &mut entry.below),
            Pattern::InLabel(pattern) => {
                let suffix = pattern.suffix().as_str().into();
                self.globs.entry(suffix).or_default().push((pattern.clone(), rule));
                Ok(())
            }
        }
    }

    /// The finished index. `by_name` orders rules that match equally well.
    pub(crate) fn build(
        mut self,
        by_name: impl Fn(&RuleId, &RuleId) -> std::cmp::Ordering,
    ) -> Result<NameIndex, IndexError> {
        for list in &mut self.lists {
            list.sort_by(&by_name);
            list.dedup();
        }
        let (texts, hasher) = (&self.texts, &self.hasher);
        self.entries.shrink_to_fit(|entry| hasher.hash_one(text_of(texts, entry)));
        self.texts.shrink_to_fit();
        let mut buckets =
            std::collections::HashMap::with_capacity_and_hasher(self.globs.len(), RandomState::new());
        for (suffix, mut patterns) in self.globs {
            patterns.sort_by(|(_, a), (_, b)| by_name(a, b));
            let bucket = Bucket::new(&patterns).map_err(|error| IndexError::Globs {
                suffix: suffix.to_string(),
                error: error.to_string(),
            })?;
            buckets.insert(suffix, bucket);
        }
        Ok(NameIndex {
            texts: self.texts,
            entries: self.entries,
            hasher: self.hasher,
            lists: self.lists,
            buckets,
        })
    }

    fn add_name(
        &mut self,
        name: &DomainName,
        rule: RuleId,
        slot: impl Fn(&mut Entry) -> &mut Rules,
    ) -> Result<(), IndexError> {
        let hash = self.hasher.hash_one(name.as_str());
        let texts = &mut self.texts;
        if let Some(entry) = self.entries.find_mut(hash, |entry| text_of(texts, entry) == name.as_str()) {
            push(&mut self.lists, slot(entry), rule);
            return Ok(());
        }
        let offset = u32::try_from(texts.len()).map_err(|_| IndexError::TooManyNames)?;
        let length = u8::try_from(name.as_str().len()).map_err(|_| IndexError::TooManyNames)?;
        let mut entry = Entry { offset, length, exact: Rules::NONE, below: Rules::NONE };
        *slot(&mut entry) = Rules(rule.0);
        texts.push_str(name.as_str());
        let (texts, hasher) = (&self.texts, &self.hasher);
        self.entries.insert_unique(hash, entry, |entry| hasher.hash_one(text_of(texts, entry)));
        Ok(())
    }
}

/// Adds `rule` to the rules in `slot`: a single one stays in place, more become a list.
fn push(lists: &mut Vec<Vec<RuleId>>, slot: &mut Rules, rule: RuleId) {
    if let Some(list) = slot.list().and_then(|list| lists.get_mut(list)) {
        list.push(rule);
        return;
    }
    match slot.one() {
        None => *slot = Rules(rule.0),
        Some(first) if first == rule => {}
        Some(first) => {
            // Lists are fewer than names, and those are bounded by the arena's 32-bit offsets.
            *slot = Rules(Rules::LIST | lists.len() as u32);
            lists.push(vec![first, rule]);
        }
    }
}

impl Bucket {
    fn new(patterns: &[(InLabelPattern, RuleId)]) -> Result<Self, globset::Error> {
        let mut builder = GlobSetBuilder::new();
        for (pattern, _) in patterns {
            builder.add(pattern.glob()?);
        }
        Ok(Self { globs: builder.build()?, rules: patterns.iter().map(|(_, rule)| *rule).collect() })
    }
}
