//! YAML as a tree of values, each with its place in the file: the one place that knows the YAML parser.
//!
//! Values keep the text that was written: whether `443`, `no` or `2027-01-31` is a number, a word or a date
//! is for the field that holds it to say, and nothing is repaired on the way (`007` stays `007`). A tree, and
//! not types filled in by a deserializer, because a deserializer stops at the first mistake and a policy's
//! author is told of all of them.

use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError};

use super::diagnostic::{FileId, Report, Span, quoted};

/// Values that one file may hold, those that aliases repeat counted each time. Long lists of names have
/// files of their own; this bounds the memory for a file of 256 MiB.
const MAX_VALUES: usize = 16_000_000;
/// Values that aliases may repeat, all together: what stops an alias bomb.
const MAX_ALIASED: usize = 100_000;
/// How deep values may nest; a policy needs six levels.
const MAX_DEPTH: usize = 32;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where.
    pub span: Span,
    /// What.
    pub value: Value,
}

/// What a value is.
#[derive(Clone, Debug)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// Any other scalar.
    Text(Text),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file; no key comes twice.
    Map(Vec<(Key, Node)>),
    /// Something that was reported already.
    Invalid,
}

/// A scalar's text.
#[derive(Clone, Debug)]
pub struct Text {
    /// As written, quotes and escapes resolved.
    pub text: String,
    /// Where the text itself begins in the file, if it stands there byte for byte.
    pub verbatim_at: Option<u32>,
}

/// A key of a mapping.
#[derive(Clone, Debug)]
pub struct Key {
    /// Where.
    pub span: Span,
    /// Its text.
    pub text: String,
}

/// Reads one file. What is wrong with it is reported; then there may be no tree. An empty file is [`Value::Null`].
pub fn parse(report: &mut Report, file: FileId) -> Option<Node> {
    let text = report.text(file);
    let options = granit_parser::options! {
        disallow_directives: true,
        emit_unresolved_aliases: true,
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut tree = Tree {
        report,
        file,
        text: &text,
        open: Vec::new(),
        root: None,
        anchors: HashMap::new(),
        values: 0,
        aliased: 0,
    };
    for event in Parser::new_from_str_with_options(&text, options) {
        let step = match event {
            Ok((event, span)) => tree.take(&event, &span),
            Err(error) => tree.fail(&error),
        };
        step?;
    }
    let empty = Span { file, line: 1, start: 0, end: 0 };
    Some(tree.root.unwrap_or(Node { span: empty, value: Value::Null }))
}

/// The tree as far as it is read.
struct Tree<'t> {
    report: &'t mut Report,
    file: FileId,
    text: &'t str,
    /// Collections that are not closed yet, the innermost last.
    open: Vec<Open>,
    root: Option<Node>,
    /// Anchored values by the parser's number for them, with their depth and how many values they hold.
    anchors: HashMap<usize, Anchored>,
    values: usize,
    aliased: usize,
}

/// A collection that is not closed yet.
struct Open {
    span: Span,
    anchor: usize,
    /// Values in it, itself included.
    values: usize,
    /// Levels below it.
    depth: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map { entries: Vec<(Key, Node)>, places: HashMap<String, Span>, key: Option<PendingKey> },
}

/// A key whose value has not come yet.
enum PendingKey {
    Usable(Key),
    /// Reported; its value is left out.
    Unusable,
}

struct Anchored {
    node: Node,
    values: usize,
    depth: usize,
}

impl Tree<'_> {
    /// Takes the next event; none when reading has to stop.
    #[allow(clippy::wildcard_enum_match_arm)] // the parser's enum is open, and what is left carries no value
    fn take(&mut self, event: &Event<'_>, at: &granit_parser::Span) -> Option<()> {
        let span = self.span(at);
        if event.tag().is_some() {
            self.report
                .error(span, "a YAML tag has no meaning here")
                .hint("leave out the word that begins with `!`");
        }
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let value = scalar(text, *style, span, self.text);
                self.add(Anchored { node: Node { span, value }, values: 1, depth: 0 }, *anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.open(span, *anchor, Content::List(Vec::new())),
            Event::MappingStart(_, anchor, _) => {
                let content = Content::Map { entries: Vec::new(), places: HashMap::new(), key: None };
                self.open(span, *anchor, content)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Alias(anchor) => self.alias(*anchor, span),
            Event::UnresolvedAlias(name) => self.unresolved_alias(name, span),
            Event::DocumentStart(..) if self.root.is_some() => {
                self.report
                    .error(span, "a second YAML document begins here")
                    .hint("a policy file is one document; put the other one into a file of its own");
                None
            }
            // The start and end of the stream and of its document.
            _ => Some(()),
        }
    }

    fn open(&mut self, span: Span, anchor: usize, content: Content) -> Option<()> {
        self.open.push(Open { span, anchor, values: 1, depth: 0, content });
        self.count(1, span)
    }

    fn close(&mut self, end: Span) -> Option<()> {
        let Some(open) = self.open.pop() else { return Some(()) };
        let (value, first) = match open.content {
            Content::List(items) => {
                let first = items.first().map(|item| item.span);
                (Value::List(items), first)
            }
            Content::Map { entries, .. } => {
                let first = entries.first().map(|(key, _)| key.span);
                (Value::Map(entries), first)
            }
        };
        // The values inside were counted as they came.
        self.values -= open.values;
        let span = whole(open.span, first, end);
        self.add(
            Anchored { node: Node { span, value }, values: open.values, depth: open.depth + 1 },
            open.anchor,
        )
    }

    /// Puts a finished value where it belongs.
    fn add(&mut self, done: Anchored, anchor: usize) -> Option<()> {
        let (span, values, depth) = (done.node.span, done.values, done.depth);
        self.count(values, span)?;
        if self.open.len() + depth > MAX_DEPTH {
            self.report
                .error(span, format!("values nest more than {MAX_DEPTH} levels deep"))
                .hint("a policy nests six levels at most");
            return None;
        }
        let node = if anchor == 0 {
            done.node
        } else {
            let node = done.node.clone();
            self.anchors.insert(anchor, done);
            node
        };
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Some(());
        };
        parent.values += values;
        parent.depth = parent.depth.max(depth);
        match &mut parent.content {
            Content::List(items) => items.push(node),
            Content::Map { entries, places, key } => match key.take() {
                None => *key = Some(usable_key(self.report, node, places)),
                Some(PendingKey::Usable(usable)) => entries.push((usable, node)),
                Some(PendingKey::Unusable) => {}
            },
        }
        Some(())
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Option<()> {
        let Some(anchored) = self.anchors.get(&anchor) else {
            self.report.error(span, "an anchor's own value refers to it").hint("write the value out");
            return self.add(invalid(span), 0);
        };
        // Counted before it is copied.
        self.aliased += anchored.values;
        if self.aliased > MAX_ALIASED {
            self.report
                .error(span, format!("aliases repeat more than {MAX_ALIASED} values"))
                .hint("write them out, or put the names into a `destination_file:`");
            return None;
        }
        let copy = Anchored { node: anchored.node.clone(), values: anchored.values, depth: anchored.depth };
        self.add(copy, 0)
    }

    fn unresolved_alias(&mut self, name: &str, span: Span) -> Option<()> {
        let written = format!("*{name}");
        let error =
            self.report.error(span, format!("{} is a YAML alias without an anchor", quoted(&written)));
        error.hint(format!("quote patterns that start with `*`: \"{written}\""));
        self.add(invalid(span), 0)
    }

    fn count(&mut self, values: usize, span: Span) -> Option<()> {
        self.values += values;
        if self.values <= MAX_VALUES {
            return Some(());
        }
        self.report
            .error(span, format!("the file holds more than {MAX_VALUES} values"))
            .hint("long lists of names go into a `destination_file:`, one name a line");
        None
    }

    fn fail(&mut self, error: &ScanError) -> Option<()> {
        let at = error.marker();
        let start = at.byte_offset().unwrap_or_else(|| offset_of(self.text, at.index()));
        let span = self.clamp(at.line(), start, start + 1);
        let message = format!("this is not YAML: {}", error.kind());
        self.report.error(span, message).hint(syntax_hint(error.kind()));
        None
    }

    fn span(&self, span: &granit_parser::Span) -> Span {
        let bytes = span.byte_range().unwrap_or(0..0);
        self.clamp(span.start.line(), bytes.start, bytes.end)
    }

    fn clamp(&self, line: usize, start: usize, end: usize) -> Span {
        let last = self.text.len();
        let (start, end) = (start.min(last), end.min(last));
        Span { file: self.file, line: line as u32, start: start as u32, end: end.max(start) as u32 }
    }
}

fn scalar(text: &str, style: ScalarStyle, span: Span, source: &str) -> Value {
    let plain = style == ScalarStyle::Plain;
    if plain && matches!(text, "" | "~" | "null" | "Null" | "NULL") {
        return Value::Null;
    }
    let quote = u32::from(!plain);
    let start = (span.start + quote) as usize;
    let stands_there = source.get(start..start + text.len()) == Some(text);
    Value::Text(Text { text: text.to_owned(), verbatim_at: stands_there.then_some(span.start + quote) })
}

/// A key that can be looked up, unless it is none or came before.
fn usable_key(report: &mut Report, node: Node, places: &mut HashMap<String, Span>) -> PendingKey {
    let span = node.span;
    let Value::Text(Text { text, .. }) = node.value else {
        if !matches!(node.value, Value::Invalid) {
            report.error(span, "a key is a word").hint("quote it if it has braces, brackets or a `*` in it");
        }
        return PendingKey::Unusable;
    };
    if let Some(first) = places.get(&text) {
        report
            .conflict(span, format!("the key {} comes twice", quoted(&text)), *first, "first here")
            .hint("leave one of the two out");
        return PendingKey::Unusable;
    }
    places.insert(text.clone(), span);
    PendingKey::Usable(Key { span, text })
}

fn invalid(span: Span) -> Anchored {
    Anchored { node: Node { span, value: Value::Invalid }, values: 1, depth: 0 }
}

/// What of a collection a caret can stand under: all of it on one line, else its first part.
fn whole(open: Span, first: Option<Span>, end: Span) -> Span {
    let first_end = first.map_or(open.end, |first| first.end);
    let end = if end.line == open.line { end.end } else { first_end };
    Span { end: end.max(open.end), ..open }
}

fn offset_of(text: &str, character: usize) -> usize {
    text.char_indices().nth(character).map_or(text.len(), |(at, _)| at)
}

/// What the author most likely did, for the mistakes that policies invite.
#[allow(clippy::wildcard_enum_match_arm)] // the parser's list of errors is long and grows
fn syntax_hint(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::MissingAnchorOrAliasName => "quote patterns that start with `*`: \"*\"",
        ErrorKind::MappingValueNotAllowed => {
            "a value with `: ` in it needs quotes, or braces if it is a mapping: {drain: 60s}"
        }
        ErrorKind::TabInIndentation | ErrorKind::TabInBlockIndentation | ErrorKind::TabNotAllowed => {
            "YAML is indented with spaces"
        }
        ErrorKind::UnclosedQuotedScalar
        | ErrorKind::UnclosedFlowCollection { .. }
        | ErrorKind::UnexpectedEof
        | ErrorKind::UnexpectedEofFlowSequence
        | ErrorKind::UnexpectedEofFlowMapping
        | ErrorKind::UnexpectedEofImplicitFlowMapping
        | ErrorKind::UnexpectedEofBlockSequence
        | ErrorKind::UnexpectedEofBlockMapping => "the file ends before this is closed; was it cut short?",
        ErrorKind::RecursionLimitExceeded => "a policy nests six levels at most",
        _ => "check the indentation, the quotes and the brackets before this place",
    }
}
