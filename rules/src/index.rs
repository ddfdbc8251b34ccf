//! The index from names to the rules that speak of them: as fast with a million names as with a hundred.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::hash::RandomState;

use globset::{GlobSet, GlobSetBuilder};

use crate::name::DomainName;
use crate::pattern::{InLabelPattern, Pattern, as_path};
use crate::rule::RuleId;

mod ancestors;
mod table;

use ancestors::{Ancestors, AncestorsBuilder};
use table::{NameTable, NameTableBuilder};

/// Names and suffixes are hashed and looked up label by label; only patterns with a wildcard inside a label
/// need globs, and those lie in buckets by the literal suffix behind the wildcard.
#[derive(Debug, Default)]
pub(crate) struct NameIndex {
    /// Names that rules have for themselves.
    exact: NameTable,
    /// Names that rules have for those below them. A table of its own: a name's ancestors are looked for among
    /// these alone, and in most policies they are few.
    below: NameTable,
    ancestors: Ancestors,
    /// Seeded at random: who asks picks the names that are hashed.
    buckets: HashMap<Box<str>, Bucket, RandomState>,
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
        self.exact.find(name.as_str(), &mut found);
        for parent in name.and_ancestors().skip(1) {
            self.below.find(parent, &mut found);
        }
        if !self.buckets.is_empty() {
            self.find_globs(name, &mut found);
        }
    }

    /// Whether some pattern names something below `name`.
    pub(crate) fn names_something_below(&self, name: &DomainName) -> bool {
        // Its top-level domain is in a cache, and itself is not.
        self.ancestors.contains(name.top_level()) && self.ancestors.contains(name.as_str())
    }

    /// Whether no pattern has the top-level domain of `name` in common with it, so that none takes it. Most of what
    /// clients look up in vain is of that kind: names with a search domain behind them.
    ///
    /// It spares a look into the tables of names, which are in no cache, and takes one into a line that is.
    pub(crate) fn is_foreign(&self, name: &DomainName) -> bool {
        let top = name.top_level();
        top.len() < name.as_str().len() && !self.ancestors.contains(top)
    }

    /// The name below which a wildcard of one of these rules takes `name`; none where one of them names
    /// `name` itself, or none takes it.
    pub(crate) fn wildcard_above<'n>(&self, name: &'n DomainName, rules: &[RuleId]) -> Option<&'n str> {
        let mut names_it = false;
        self.exact.find(name.as_str(), &mut |rule| names_it |= rules.contains(&rule));
        if names_it {
            return None;
        }
        let path = as_path(name.as_str());
        name.and_ancestors().enumerate().find_map(|(depth, text)| {
            let mut takes_it = false;
            if depth > 0 {
                self.below.find(text, &mut |rule| takes_it |= rules.contains(&rule));
            }
            if let Some(bucket) = self.buckets.get(text) {
                let mut matching = bucket.globs.matches(path.as_str()).into_iter();
                takes_it |=
                    matching.any(|index| bucket.rules.get(index).is_some_and(|rule| rules.contains(rule)));
            }
            takes_it.then_some(text)
        })
    }

    /// Calls `found` with the text of every pattern whose literal part is `parent` or lies below it. Slow:
    /// for `explain` alone.
    pub(crate) fn find_below(&self, parent: &DomainName, mut found: impl FnMut(RuleId, String)) {
        let near = |text: &str| text == parent.as_str() || is_below(text, parent.as_str());
        self.exact.for_each(|text, rule| {
            if near(text) {
                found(rule, text.to_owned());
            }
        });
        self.below.for_each(|text, rule| {
            if near(text) {
                found(rule, format!("*.{text}"));
            }
        });
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
}

fn is_below(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
}

/// Collects patterns into a [`NameIndex`].
#[derive(Debug, Default)]
pub(crate) struct NameIndexBuilder {
    exact: NameTableBuilder,
    below: NameTableBuilder,
    ancestors: AncestorsBuilder,
    globs: BTreeMap<Box<str>, Vec<(InLabelPattern, RuleId)>>,
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
    /// Makes room for this many further names. Long lists are lists of names, hardly ever of patterns.
    pub(crate) fn reserve(&mut self, names: usize) {
        self.exact.reserve(names);
    }

    /// Adds one pattern of a rule.
    pub(crate) fn add(&mut self, pattern: &Pattern, rule: RuleId) -> Result<(), IndexError> {
        match pattern {
            Pattern::Exact(name) => {
                self.ancestors.add_above(name);
                self.exact.add(name, rule)
            }
            Pattern::Below(name) => {
                self.ancestors.add(name);
                self.below.add(name, rule)
            }
            Pattern::InLabel(pattern) => {
                let suffix = pattern.suffix();
                self.ancestors.add(suffix);
                self.globs.entry(suffix.as_str().into()).or_default().push((pattern.clone(), rule));
                Ok(())
            }
        }
    }

    /// The finished index. `by_name` orders rules that match equally well.
    pub(crate) fn build(
        self,
        by_name: impl Fn(&RuleId, &RuleId) -> Ordering,
    ) -> Result<NameIndex, IndexError> {
        let (exact, below) = (self.exact.build(&by_name)?, self.below.build(&by_name)?);
        let mut buckets = HashMap::with_capacity_and_hasher(self.globs.len(), RandomState::new());
        for (suffix, mut patterns) in self.globs {
            patterns.sort_by(|(_, a), (_, b)| by_name(a, b));
            let bucket = Bucket::new(&patterns).map_err(|error| IndexError::Globs {
                suffix: suffix.to_string(),
                error: error.to_string(),
            })?;
            buckets.insert(suffix, bucket);
        }
        Ok(NameIndex { exact, below, ancestors: self.ancestors.build(), buckets })
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
