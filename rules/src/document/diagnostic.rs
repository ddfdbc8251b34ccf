//! Mistakes in a policy, with the place, a caret and a hint: all of them at once, in the look of a compiler.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

/// Diagnostics of one severity that are kept; further ones are counted. A generated policy can have one
/// mistake a line, and nobody reads more.
const KEPT: usize = 1_000;
/// Diagnostics that are rendered unless asked otherwise.
const SHOWN: usize = 50;
/// Longest line that is shown with a caret, in bytes. Minified JSON is YAML, too.
const LONGEST_LINE: usize = 1_024;

/// How grave a diagnostic is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// The policy is not taken.
    Error,
    /// The policy is taken, and opens more or less than its author may think.
    Warning,
    /// Something was left out or read in a way worth knowing.
    Note,
}

impl Severity {
    /// The word that stands before the message.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// One mistake, or one thing worth knowing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    /// How grave it is.
    pub severity: Severity,
    /// Where it is; none where the policy as a whole is meant.
    pub place: Option<DiagnosticPlace>,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// A second place that takes part, and its part: `first given here`.
    pub related: Option<(DiagnosticPlace, &'static str)>,
}

impl Diagnostic {
    /// Adds what to do about it.
    pub fn hint(&mut self, hint: impl Into<String>) -> &mut Self {
        self.hint_if(Some(hint.into()))
    }

    /// Adds what to do about it, if anything is known.
    pub fn hint_if(&mut self, hint: Option<String>) -> &mut Self {
        self.hint = hint.map(bounded);
        self
    }
}

/// A place in a file, and the line that stands there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiagnosticPlace {
    /// The file, as the policy's reader named it; `preset:python` for one that is shipped in the binary.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// The line's text; none where it is too long to be shown.
    excerpt: Option<Box<str>>,
    /// What the caret points at, in bytes of the excerpt.
    marked: Range<usize>,
}

/// What is wrong with a policy, and what is worth knowing about it: errors first, then warnings, then notes,
/// each in the order of the files.
///
/// `Display` renders it in plain ASCII; [`Diagnostics::render`] can colour it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Diagnostics {
    errors: Kept,
    warnings: Kept,
    notes: Kept,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Kept {
    diagnostics: Vec<Diagnostic>,
    /// How many there were, kept or not.
    count: usize,
}

impl Diagnostics {
    /// How many errors there are. With one or more, the policy was not taken.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.errors.count
    }

    /// How many warnings there are.
    #[must_use]
    pub fn warnings(&self) -> usize {
        self.warnings.count
    }

    /// How many notes there are.
    #[must_use]
    pub fn notes(&self) -> usize {
        self.notes.count
    }

    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.errors() + self.warnings() + self.notes() == 0
    }

    /// Those that were kept, at most a thousand of each severity.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        [&self.errors, &self.warnings, &self.notes].into_iter().flat_map(|kept| &kept.diagnostics)
    }

    /// As text for a terminal, with at most `shown` of them; `colour` adds ANSI sequences and nothing else.
    #[must_use]
    pub fn render(&self, colour: bool, shown: usize) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut text = String::new();
        for diagnostic in self.iter().take(shown) {
            text.push_str(&render(&renderer, diagnostic));
            text.push_str("\n\n");
        }
        let all = self.errors() + self.warnings() + self.notes();
        if all > shown.min(self.iter().count()) {
            let more = all - shown.min(self.iter().count());
            text.push_str(&format!("... and {more} more\n\n"));
        }
        text.push_str(&self.summary());
        text
    }

    /// `2 errors, 1 warning`.
    #[must_use]
    pub fn summary(&self) -> String {
        let counts = [(self.errors(), "error"), (self.warnings(), "warning"), (self.notes(), "note")];
        let words: Vec<String> = counts
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| plural(count, word))
            .collect();
        if words.is_empty() { "no errors".to_owned() } else { words.join(", ") }
    }

    pub(crate) fn add(&mut self, diagnostic: Diagnostic) -> &mut Diagnostic {
        let kept = match diagnostic.severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
            Severity::Note => &mut self.notes,
        };
        kept.count += 1;
        // One more than is kept: the last slot takes what nobody will read.
        kept.diagnostics.truncate(KEPT);
        let last = kept.diagnostics.len();
        kept.diagnostics.push(diagnostic);
        #[allow(clippy::indexing_slicing)] // pushed on the line above
        &mut kept.diagnostics[last]
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false, SHOWN))
    }
}

impl std::error::Error for Diagnostics {}

/// `1 error`, `2 errors`, `2 entries`.
pub fn plural(count: usize, word: &str) -> String {
    match (count, word.strip_suffix('y')) {
        (1, _) => format!("1 {word}"),
        (_, Some(stem)) => format!("{count} {stem}ies"),
        (_, None) => format!("{count} {word}s"),
    }
}

/// Text from a policy inside a message: in backticks, without control characters, cut to a readable length.
pub fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    // Quotes are escaped for a string literal, which this is not.
    shown = shown.replace("\\\"", "\"").replace("\\'", "'");
    if text.chars().nth(80).is_some() {
        shown.push_str("...");
    }
    format!("`{shown}`")
}

/// A sentence that may hold text from a policy: without control characters and not longer than anybody reads.
fn bounded(sentence: String) -> String {
    const LONGEST: usize = 400;
    let cut = sentence.chars().nth(LONGEST).is_some();
    if !cut && !sentence.contains(char::is_control) {
        return sentence;
    }
    let plain = sentence.chars().take(LONGEST).map(|c| if c.is_control() { '?' } else { c });
    plain.chain(if cut { "..." } else { "" }.chars()).collect()
}

fn render(renderer: &Renderer, diagnostic: &Diagnostic) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Note => Level::NOTE,
    };
    let mut group = Group::with_title(level.primary_title(diagnostic.message.as_str()));
    if let Some(place) = &diagnostic.place {
        group = show(group, place, AnnotationKind::Primary, "");
    }
    if let Some((place, part)) = &diagnostic.related {
        group = show(group, place, AnnotationKind::Context, part);
    }
    if let Some(hint) = &diagnostic.hint {
        group = group.element(Level::HELP.with_name("hint").message(hint.as_str()));
    }
    renderer.render(&[group])
}

fn show<'d>(group: Group<'d>, place: &'d DiagnosticPlace, kind: AnnotationKind, part: &'d str) -> Group<'d> {
    let Some(excerpt) = &place.excerpt else {
        let origin = Origin::path(&*place.file).line(place.line as usize).char_column(place.column as usize);
        return group.element(origin);
    };
    let mut annotation = kind.span(place.marked.clone());
    if !part.is_empty() {
        annotation = annotation.label(part);
    }
    group.element(
        Snippet::source(&**excerpt).path(&*place.file).line_start(place.line as usize).annotation(annotation),
    )
}

/// A stretch of one file's text. The numbers fit because no file of more than 256 MiB is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The file.
    pub file: FileId,
    /// From 1.
    pub line: u32,
    /// The first byte, counted in the file's text.
    pub start: u32,
    /// The byte behind the last.
    pub end: u32,
}

/// A file's number in its [`Report`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FileId(u32);

/// The texts that are read, and what is found wrong with them.
#[derive(Debug, Default)]
pub struct Report {
    files: Vec<(Arc<str>, Arc<str>)>,
    found: Diagnostics,
}

impl Report {
    /// Takes a file's text in, so that places in it can be shown.
    pub fn add_file(&mut self, name: &str, text: Arc<str>) -> FileId {
        self.files.push((Arc::from(name), text));
        FileId(self.files.len() as u32 - 1)
    }

    /// A file's name.
    #[must_use]
    pub fn name(&self, file: FileId) -> Arc<str> {
        self.files.get(file.0 as usize).map_or_else(|| Arc::from(""), |(name, _)| Arc::clone(name))
    }

    /// A file's text.
    #[must_use]
    pub fn text(&self, file: FileId) -> Arc<str> {
        self.files.get(file.0 as usize).map_or_else(|| Arc::from(""), |(_, text)| Arc::clone(text))
    }

    /// A mistake: the document is not taken.
    pub fn error(&mut self, span: Span, message: impl Into<String>) -> &mut Diagnostic {
        self.at(Severity::Error, Some(span), message.into())
    }

    /// Something that opens more or less than its author may think.
    pub fn warning(&mut self, span: Span, message: impl Into<String>) -> &mut Diagnostic {
        self.at(Severity::Warning, Some(span), message.into())
    }

    /// Something worth knowing.
    pub fn note(&mut self, span: Span, message: impl Into<String>) -> &mut Diagnostic {
        self.at(Severity::Note, Some(span), message.into())
    }

    /// An error that has two places: where it is, and what it contradicts.
    pub fn conflict(
        &mut self,
        span: Span,
        message: impl Into<String>,
        other: Span,
        part: &'static str,
    ) -> &mut Diagnostic {
        self.at_two(Severity::Error, span, message.into(), (other, part))
    }

    /// A warning that has two places.
    pub fn overlap(
        &mut self,
        span: Span,
        message: impl Into<String>,
        other: Span,
        part: &'static str,
    ) -> &mut Diagnostic {
        self.at_two(Severity::Warning, span, message.into(), (other, part))
    }

    /// Something about the policy as a whole.
    pub fn overall(&mut self, severity: Severity, message: impl Into<String>) -> &mut Diagnostic {
        self.at(severity, None, message.into())
    }

    /// Something about a file whose text could not be read.
    pub fn file_error(&mut self, name: &str, line: u32, message: impl Into<String>) -> &mut Diagnostic {
        let place = DiagnosticPlace { file: Arc::from(name), line, column: 1, excerpt: None, marked: 0..0 };
        let diagnostic = self.at(Severity::Error, None, message.into());
        diagnostic.place = Some(place);
        diagnostic
    }

    /// Whether there is a mistake.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.found.errors() > 0
    }

    /// How many mistakes there are.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.found.errors()
    }

    /// What was found, in the order of the files.
    pub fn into_diagnostics(mut self) -> Diagnostics {
        let order: std::collections::HashMap<Arc<str>, usize> =
            self.files.iter().enumerate().map(|(index, (name, _))| (Arc::clone(name), index)).collect();
        for kept in [&mut self.found.errors, &mut self.found.warnings, &mut self.found.notes] {
            kept.diagnostics.truncate(KEPT);
            kept.diagnostics.sort_by_key(|diagnostic| {
                diagnostic
                    .place
                    .as_ref()
                    .map(|place| (order.get(&place.file).copied(), place.line, place.column))
            });
        }
        self.found
    }

    fn at(&mut self, severity: Severity, span: Option<Span>, message: String) -> &mut Diagnostic {
        let place = span.map(|span| self.place(span));
        self.found.add(Diagnostic { severity, place, message: bounded(message), hint: None, related: None })
    }

    fn at_two(
        &mut self,
        severity: Severity,
        span: Span,
        message: String,
        (other, part): (Span, &'static str),
    ) -> &mut Diagnostic {
        let related = Some((self.place(other), part));
        let diagnostic = self.at(severity, Some(span), message);
        diagnostic.related = related;
        diagnostic
    }

    fn place(&self, span: Span) -> DiagnosticPlace {
        let text = self.text(span.file);
        let start = floor_boundary(&text, span.start as usize);
        let line_start = text.get(..start).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
        let rest = text.get(start..).unwrap_or_default();
        let line_end = start + rest.find(['\n', '\r']).unwrap_or(rest.len());
        let line = text.get(line_start..line_end).unwrap_or_default();
        let before = text.get(line_start..start).unwrap_or_default();
        let end = floor_boundary(&text, (span.end as usize).clamp(start, line_end));
        // A caret needs something to stand under; at the end of a line it stands behind it.
        let marked = start - line_start..(end - line_start).max(start - line_start);
        DiagnosticPlace {
            file: self.name(span.file),
            line: span.line,
            column: before.chars().count() as u32 + 1,
            excerpt: (line.len() <= LONGEST_LINE).then(|| line.into()),
            marked,
        }
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}
