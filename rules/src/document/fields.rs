//! The fields of a mapping, read one by one: each mistake is reported where it stands, and reading goes on.

use super::diagnostic::{Report, Span, quoted};
use super::suggest;
use super::values::Mistake;
use super::yaml::{Key, Node, Text, Value};

/// A value with its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub span: Span,
}

impl<T> Placed<T> {
    /// A value at its place.
    pub fn new(value: T, span: Span) -> Self {
        Self { value, span }
    }
}

/// The fields of one mapping.
#[derive(Clone, Copy)]
pub struct Fields<'n> {
    entries: &'n [(Key, Node)],
    /// Where the mapping stands.
    pub span: Span,
}

impl<'n> Fields<'n> {
    /// The fields of a value that has to be a mapping; `what` says in an error what was expected.
    pub fn of(report: &mut Report, node: &'n Node, what: &str) -> Option<Self> {
        match &node.value {
            Value::Map(entries) => Some(Self { entries, span: node.span }),
            Value::Invalid => None,
            Value::Null | Value::Text(_) | Value::List(_) => {
                report
                    .error(node.span, format!("expected {what}, found {}", kind(node)))
                    .hint("a mapping is `key: value` on lines of their own, or {key: value}");
                None
            }
        }
    }

    /// Every key with its value, in the order of the document.
    #[must_use]
    pub fn entries(&self) -> &'n [(Key, Node)] {
        self.entries
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'n Node> {
        self.entry(key).map(|(_, node)| node)
    }

    /// Where the key stands, if it does.
    pub fn key(&self, key: &str) -> Option<Span> {
        self.entry(key).map(|(key, _)| key.span)
    }

    fn entry(&self, key: &str) -> Option<&'n (Key, Node)> {
        self.entries.iter().find(|(known, _)| known.text == key)
    }

    /// Reports every key that is not known.
    pub fn only(&self, report: &mut Report, known: &[&'static str]) {
        for (key, _) in self.entries.iter().filter(|(key, _)| !known.contains(&key.text.as_str())) {
            unknown_key(report, key, known);
        }
    }

    /// One string.
    pub fn text(&self, report: &mut Report, key: &str) -> Option<Placed<&'n str>> {
        text(report, self.get(key)?, key)
    }

    /// One string, owned.
    pub fn string(&self, report: &mut Report, key: &str) -> Option<Placed<String>> {
        self.text(report, key).map(|text| Placed::new(text.value.to_owned(), text.span))
    }

    /// A string with commas in it, or a list of such strings; an empty list is a mistake, for nobody can tell
    /// whether its author meant nothing or everything.
    pub fn texts(&self, report: &mut Report, key: &str) -> Option<Vec<Placed<String>>> {
        texts(report, self.get(key)?, key)
    }

    /// One string, read by `parse`.
    pub fn parsed<T>(
        &self,
        report: &mut Report,
        key: &str,
        parse: impl Fn(&str) -> Result<T, Mistake>,
    ) -> Option<Placed<T>> {
        let text = self.text(report, key)?;
        parse_at(report, text.value, text.span, parse)
    }

    /// Strings as by [`Fields::texts`], each read by `parse`.
    pub fn all_parsed<T>(
        &self,
        report: &mut Report,
        key: &str,
        parse: impl Fn(&str) -> Result<T, Mistake>,
    ) -> Option<Vec<Placed<T>>> {
        let texts = self.texts(report, key)?;
        Some(texts.iter().filter_map(|text| parse_at(report, &text.value, text.span, &parse)).collect())
    }

    /// One of a few words.
    pub fn word<T: Copy>(
        &self,
        report: &mut Report,
        key: &str,
        words: &[(&'static str, T)],
    ) -> Option<Placed<T>> {
        self.parsed(report, key, |text| {
            words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
                let known = words.iter().map(|(word, _)| *word);
                Mistake::new(
                    format!("{} is not a value of `{key}`", quoted(text)),
                    suggest::hint(text, known),
                )
            })
        })
    }

    /// The items of a list.
    pub fn list(&self, report: &mut Report, key: &str) -> Option<&'n [Node]> {
        let node = self.get(key)?;
        match &node.value {
            Value::List(items) => Some(items),
            Value::Invalid => None,
            Value::Null | Value::Text(_) | Value::Map(_) => {
                report
                    .error(node.span, format!("`{key}` is a list, found {}", kind(node)))
                    .hint("a list is `- item` on lines of their own, or [item, item]");
                None
            }
        }
    }
}

/// Reports a key that is not known, with the one that was probably meant.
pub fn unknown_key(report: &mut Report, key: &Key, known: &[&'static str]) {
    let hint = suggest::hint(&key.text, known.iter().copied());
    report.error(key.span, format!("unknown key {}", quoted(&key.text))).hint(hint);
}

/// Reads a text; a mistake is reported at its place.
pub fn parse_at<T>(
    report: &mut Report,
    text: &str,
    span: Span,
    parse: impl Fn(&str) -> Result<T, Mistake>,
) -> Option<Placed<T>> {
    match parse(text) {
        Ok(value) => Some(Placed::new(value, span)),
        Err(mistake) => {
            report.error(span, mistake.message).hint_if(mistake.hint);
            None
        }
    }
}

/// What a value is, for people.
pub fn kind(node: &Node) -> &'static str {
    match &node.value {
        Value::Null | Value::Invalid => "nothing",
        Value::Text(_) => "a single value",
        Value::List(_) => "a list",
        Value::Map(_) => "a mapping",
    }
}

fn text<'n>(report: &mut Report, node: &'n Node, key: &str) -> Option<Placed<&'n str>> {
    match &node.value {
        Value::Text(text) => Some(Placed::new(text.text.as_str(), node.span)),
        Value::Invalid => None,
        Value::Null => {
            no_value(report, node.span, key);
            None
        }
        Value::List(_) | Value::Map(_) => {
            report
                .error(node.span, format!("`{key}` is a single value, found {}", kind(node)))
                .hint("give one value; quote it if it has braces or brackets in it");
            None
        }
    }
}

/// Strings of a value that is one string with commas in it or a list of such.
pub fn texts(report: &mut Report, node: &Node, key: &str) -> Option<Vec<Placed<String>>> {
    let mut found = Vec::new();
    match &node.value {
        Value::Text(text) => split(text, node.span, &mut found),
        Value::List(items) if !items.is_empty() => {
            for item in items {
                match &item.value {
                    Value::Text(text) => split(text, item.span, &mut found),
                    Value::Invalid => {}
                    Value::Null => no_value(report, item.span, key),
                    Value::List(_) | Value::Map(_) => {
                        report
                            .error(item.span, format!("`{key}` lists single values, found {}", kind(item)))
                            .hint("quote what has braces, brackets or `: ` in it");
                    }
                }
            }
        }
        Value::List(_) => {
            report
                .error(node.span, format!("`{key}` is an empty list"))
                .hint("leave the key out, or say what it lists");
        }
        Value::Null => no_value(report, node.span, key),
        Value::Map(_) => {
            report
                .error(node.span, format!("`{key}` is a string or a list, found a mapping"))
                .hint("quote what has braces or `: ` in it");
        }
        Value::Invalid => {}
    }
    (!found.is_empty()).then_some(found)
}

fn no_value(report: &mut Report, span: Span, key: &str) {
    report.error(span, format!("`{key}` has no value")).hint("give it one, or leave the key out");
}

/// Splits at commas, other than those inside braces and brackets, which belong to a pattern.
fn split(text: &Text, span: Span, found: &mut Vec<Placed<String>>) {
    let mut depth = 0_i32;
    let mut start = 0;
    for (at, character) in text.text.char_indices().chain([(text.text.len(), ',')]) {
        match character {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            // An open brace at the end is the pattern's mistake, not a reason to lose its text.
            ',' if depth <= 0 || at == text.text.len() => {
                found.push(part(text, span, start, at));
                start = at + 1;
            }
            _ => {}
        }
    }
}

fn part(text: &Text, span: Span, start: usize, end: usize) -> Placed<String> {
    let whole = text.text.get(start..end).unwrap_or_default();
    let trimmed = whole.trim();
    let leading = whole.len() - whole.trim_start().len();
    let span = match text.verbatim_at {
        // A text over several lines keeps the place of its beginning.
        Some(at) if !text.text.contains('\n') => {
            let start = at + (start + leading) as u32;
            Span { start, end: start + trimmed.len() as u32, ..span }
        }
        Some(_) | None => span,
    };
    Placed::new(trimmed.to_owned(), span)
}
