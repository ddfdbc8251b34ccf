//! Patterns over names, as a policy writes them.

use std::fmt;

use crate::name::{DomainName, MAX_LABEL, MAX_NAME, NameError};

/// What a rule's destination says of names.
///
/// A leading `*.` stands for one or more whole labels and never for the name behind it. Any other `*`, `?`,
/// `[a-z]` or `{a,b}` stays inside its label.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Pattern {
    /// `pypi.org`: this name alone.
    Exact(DomainName),
    /// `*.pypi.org`: every name below this one.
    Below(DomainName),
    /// `lib-*.pypi.org`, `*.node-?.pypi.org`.
    InLabel(InLabelPattern),
}

/// A pattern with a wildcard inside a label.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct InLabelPattern {
    text: String,
    /// The labels behind the last one with a wildcard; never empty.
    suffix: DomainName,
}

impl Pattern {
    /// Reads a pattern. Letter case, a final dot and U-labels become canonical as in names.
    ///
    /// # Errors
    /// Says what is wrong; [`PatternError::hint`] says what to write instead.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let error = |kind| PatternError { text: text.to_owned(), kind };
        if text == "*" || text == "*." {
            return Err(error(PatternErrorKind::Everything));
        }
        let (any_depth, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if !rest.contains(['*', '?', '[', '{']) {
            let name = DomainName::parse_unicode(rest).map_err(|name| error(PatternErrorKind::Name(name)))?;
            return Ok(if any_depth { Self::Below(name) } else { Self::Exact(name) });
        }
        InLabelPattern::parse(any_depth, rest).map(Self::InLabel).map_err(error)
    }

    /// Whether the pattern matches `name`. Slow and plain: rule sets use an index, tests compare the two.
    #[must_use]
    pub fn matches(&self, name: &DomainName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Below(parent) => name.is_below(parent),
            Self::InLabel(pattern) => {
                pattern.glob().is_ok_and(|glob| glob.compile_matcher().is_match(as_path(name.as_str())))
            }
        }
    }

    /// The literal name that every match ends in.
    #[must_use]
    pub fn suffix(&self) -> &DomainName {
        match self {
            Self::Exact(name) | Self::Below(name) => name,
            Self::InLabel(pattern) => &pattern.suffix,
        }
    }

    /// The public suffix right under which a wildcard of this pattern stands, if one does: whoever may
    /// register a name there is allowed with it.
    #[must_use]
    pub fn wildcard_under_public_suffix(&self) -> Option<&str> {
        let name = match self {
            Self::Exact(_) => return None,
            Self::Below(name) => name,
            Self::InLabel(pattern) => &pattern.suffix,
        };
        is_public_suffix(name).then_some(name.as_str())
    }

    /// Whether everything that `other` matches, this pattern matches too. Says no where it cannot tell.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Below(parent), Self::Below(other)) => parent == other || other.is_below(parent),
            (Self::Below(parent), Self::InLabel(other)) => {
                other.suffix == *parent || other.suffix.is_below(parent)
            }
            (_, Self::Exact(name)) => self.matches(name),
            (Self::Exact(_) | Self::InLabel(_), _) => self == other,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Below(name) => write!(f, "*.{name}"),
            Self::InLabel(pattern) => f.write_str(&pattern.text),
        }
    }
}

impl InLabelPattern {
    fn parse(any_depth: bool, text: &str) -> Result<Self, PatternErrorKind> {
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let labels = split_labels(&text)?;
        let wild = |label: &&str| label.contains(['*', '?', '[', '{']);
        let last = labels.iter().rposition(wild).unwrap_or(0);
        let literal = labels.get(last + 1..).unwrap_or_default().join(".");
        if literal.is_empty() {
            return Err(PatternErrorKind::TopLevel);
        }
        let suffix = DomainName::parse_unicode(&literal).map_err(PatternErrorKind::Name)?;
        if is_registry_suffix(&suffix) && labels.get(last).is_some_and(|label| *label != "*") {
            return Err(PatternErrorKind::RegistrableName);
        }
        for label in labels.get(..=last).unwrap_or_default() {
            check_glob_label(label)?;
        }
        let head = labels.get(..=last).unwrap_or_default().join(".");
        let text = format!("{}{head}.{suffix}", if any_depth { "*." } else { "" });
        if text.len() > 2 * MAX_NAME {
            return Err(PatternErrorKind::Name(NameError::TooLong));
        }
        let pattern = Self { text, suffix };
        pattern.glob().map_err(|error| PatternErrorKind::Glob(error.kind().to_string()))?;
        Ok(pattern)
    }

    /// The labels behind the last wildcard.
    #[must_use]
    pub fn suffix(&self) -> &DomainName {
        &self.suffix
    }

    /// The pattern as a glob over [`as_path`] of a name.
    pub(crate) fn glob(&self) -> Result<globset::Glob, globset::Error> {
        // `**/` may match nothing in a glob; a label must stand there, so one is asked for by name.
        let path = match self.text.strip_prefix("*.") {
            Some(rest) => format!("*/**/{}", as_path(rest)),
            None => as_path(&self.text),
        };
        globset::GlobBuilder::new(&path).literal_separator(true).backslash_escape(false).build()
    }
}

/// A name with `/` between its labels: globset keeps a wildcard between slashes, not between dots.
pub(crate) fn as_path(name: &str) -> String {
    name.replace('.', "/")
}

/// Splits at dots outside brackets and braces; a dot inside them would leave the label.
fn split_labels(text: &str) -> Result<Vec<&str>, PatternErrorKind> {
    let mut depth = 0_u32;
    for character in text.chars() {
        match character {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            '.' if depth > 0 => return Err(PatternErrorKind::LeavesLabel),
            _ => {}
        }
    }
    Ok(text.split('.').collect())
}

fn check_glob_label(label: &str) -> Result<(), PatternErrorKind> {
    if label.is_empty() {
        return Err(PatternErrorKind::Name(NameError::EmptyLabel));
    }
    if label.contains("**") {
        return Err(PatternErrorKind::DoubleStar);
    }
    if label.len() > 4 * MAX_LABEL {
        return Err(PatternErrorKind::Name(NameError::LabelTooLong));
    }
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_*?[]{},!".contains(&byte);
    if label.bytes().all(known) { Ok(()) } else { Err(PatternErrorKind::Name(NameError::Character)) }
}

/// Whether strangers may register names right under this one (a public suffix, in either section).
fn is_public_suffix(name: &DomainName) -> bool {
    psl::suffix_str(name.as_str()) == Some(name.as_str())
}

/// Whether a registry sells names right under this one (a public suffix of the ICANN section).
fn is_registry_suffix(name: &DomainName) -> bool {
    psl::suffix(name.as_str().as_bytes()).is_some_and(|suffix| {
        suffix.as_bytes() == name.as_str().as_bytes() && suffix.typ() != Some(psl::Type::Private)
    })
}

/// Why a text is not a [`Pattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a pattern: {kind}")]
pub struct PatternError {
    /// The pattern, as written.
    pub text: String,
    /// What is wrong with it.
    pub kind: PatternErrorKind,
}

/// What is wrong with a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternErrorKind {
    /// `*` alone.
    #[error("`*` alone stands for every name")]
    Everything,
    /// `www.contoso.*`
    #[error("a wildcard cannot stand for the top-level domain")]
    TopLevel,
    /// `*contoso.com`
    #[error("this wildcard also matches names that others can register")]
    RegistrableName,
    /// `**.contoso.com`
    #[error("`**` is not a wildcard here")]
    DoubleStar,
    /// `{a.b,c}.contoso.com`
    #[error("brackets and braces cannot hold a dot")]
    LeavesLabel,
    /// Brackets or braces that do not close, and the like.
    #[error("{0}")]
    Glob(String),
    /// The literal part is no name.
    #[error(transparent)]
    Name(NameError),
}

impl PatternError {
    /// What to write instead.
    #[must_use]
    pub fn hint(&self) -> String {
        let bare = self.text.trim_start_matches(['*', '.']);
        match &self.kind {
            PatternErrorKind::Everything => {
                "to let every name pass, say `isolation_mode: allow_internet_outbound`".to_owned()
            }
            PatternErrorKind::TopLevel => {
                let stem = self.text.trim_end_matches(['*', '.']);
                format!("list the names, as in `{stem}.com` and `{stem}.org`")
            }
            PatternErrorKind::RegistrableName | PatternErrorKind::DoubleStar => {
                format!("for the names below, write `*.{bare}`; for the name itself, add `{bare}`")
            }
            PatternErrorKind::LeavesLabel => "write one pattern for each alternative".to_owned(),
            PatternErrorKind::Glob(_) => {
                "a wildcard is `*`, `?`, `[a-z]` or `{a,b}` inside one label".to_owned()
            }
            PatternErrorKind::Name(error) => name_hint(*error, &self.text),
        }
    }
}

/// What a person most likely meant by a text that is not a name.
fn name_hint(error: NameError, text: &str) -> String {
    match error {
        NameError::Character if text.contains("://") => {
            let host = text.split("://").nth(1).unwrap_or(text).split(['/', ':']).next().unwrap_or(text);
            format!("a rule holds names, not URLs: write `{host}`")
        }
        NameError::Character if text.contains('/') => "a rule holds names, not paths".to_owned(),
        NameError::Character if text.contains(':') => "ports go into `ports:`".to_owned(),
        NameError::Character if text.contains(['^', '$', '(', '|', '\\', '+']) => {
            "a pattern is no regular expression: `*.example.org`, `lib-*.example.org`".to_owned()
        }
        NameError::Numeric => "for an address, write a rule of `type: address`".to_owned(),
        NameError::EmptyLabel if text.starts_with('.') => {
            format!("for the names below, write `*{text}`")
        }
        NameError::Empty
        | NameError::TooLong
        | NameError::EmptyLabel
        | NameError::LabelTooLong
        | NameError::Hyphen
        | NameError::ControlByte
        | NameError::NotAscii
        | NameError::PercentEncoded
        | NameError::Bracketed
        | NameError::Character
        | NameError::NotIdna => "a name is labels of letters, digits, `-` and `_` joined by dots".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DomainName {
        DomainName::parse(text).unwrap()
    }

    #[test]
    fn what_a_pattern_matches_and_what_it_does_not() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("pypi.org", &["pypi.org"], &["www.pypi.org", "evilpypi.org", "pypi.org.evil"]),
            ("PyPI.org.", &["pypi.org"], &[]),
            ("*.pypi.org", &["a.pypi.org", "a.b.pypi.org"], &["pypi.org", "evilpypi.org", "apypi.org"]),
            (
                "lib-*.pypi.org",
                &["lib-a.pypi.org"],
                &["lib-a.b.pypi.org", "x.lib-a.pypi.org", "lib-apypi.org"],
            ),
            ("node-?.pypi.org", &["node-1.pypi.org"], &["node-10.pypi.org", "node.pypi.org"]),
            ("node-[0-4].pypi.org", &["node-4.pypi.org"], &["node-5.pypi.org"]),
            ("{a,b}.pypi.org", &["a.pypi.org", "b.pypi.org"], &["c.pypi.org", "a.b.pypi.org"]),
            ("a.*.pypi.org", &["a.b.pypi.org"], &["a.b.c.pypi.org", "a.pypi.org"]),
            ("*.lib-*.pypi.org", &["x.lib-a.pypi.org", "x.y.lib-a.pypi.org"], &["lib-a.pypi.org"]),
            ("*.bücher.example", &["a.xn--bcher-kva.example"], &["xn--bcher-kva.example"]),
        ];
        for (text, yes, no) in table {
            let pattern = Pattern::parse(text).unwrap();
            for asked in *yes {
                assert!(pattern.matches(&name(asked)), "{text} should match {asked}");
            }
            for asked in *no {
                assert!(!pattern.matches(&name(asked)), "{text} should not match {asked}");
            }
        }
    }

    #[test]
    fn a_dead_or_wide_pattern_is_an_error_with_a_hint() {
        let table = [
            ("*", "allow_internet_outbound"),
            ("*contoso.com", "`*.contoso.com`"),
            ("con*.com", "*."),
            ("www.contoso.*", "www.contoso.com"),
            ("*.*", "list the names"),
            ("**.contoso.com", "`*.contoso.com`"),
            (".contoso.com", "`*.contoso.com`"),
            ("contoso..com", "labels"),
            ("{a.b,c}.contoso.com", "one pattern for each"),
            ("[a-.contoso.com", "one pattern for each"),
            ("{a,b.contoso.com", "one pattern for each"),
            ("^.*\\.contoso\\.com$", "regular expression"),
            ("https://contoso.com/x", "write `contoso.com`"),
            ("contoso.com:443", "`ports:`"),
            ("10.0.0.1", "type: address"),
            ("con toso.com", "labels"),
            ("", "labels"),
        ];
        for (text, hint) in table {
            let error = Pattern::parse(text).expect_err(text);
            assert!(error.hint().contains(hint), "{text}: {error}: {}", error.hint());
        }
    }

    #[test]
    fn a_wildcard_right_under_a_public_suffix_is_seen() {
        let under = |text| Pattern::parse(text).unwrap().wildcard_under_public_suffix().map(str::to_owned);
        assert_eq!(under("*.github.io").as_deref(), Some("github.io"));
        assert_eq!(under("*.blob.core.windows.net").as_deref(), Some("blob.core.windows.net"));
        assert_eq!(under("ml*.blob.core.windows.net").as_deref(), Some("blob.core.windows.net"));
        assert_eq!(under("*.org").as_deref(), Some("org"));
        assert_eq!(under("*.pypi.org"), None);
        assert_eq!(under("nvidia.github.io"), None);
    }

    #[test]
    fn covering() {
        let covers = |a, b| Pattern::parse(a).unwrap().covers(&Pattern::parse(b).unwrap());
        assert!(covers("*.pypi.org", "a.pypi.org"));
        assert!(covers("*.pypi.org", "*.a.pypi.org"));
        assert!(covers("*.pypi.org", "lib-*.pypi.org"));
        assert!(!covers("*.pypi.org", "pypi.org"));
        assert!(!covers("lib-*.pypi.org", "*.pypi.org"));
        assert!(covers("lib-*.pypi.org", "lib-a.pypi.org"));
    }
}
