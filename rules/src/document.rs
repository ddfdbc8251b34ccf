//! Documents that people write in YAML: read as a tree of values with their places, field by field, so that
//! every mistake is told at once with line, caret and hint. Policies are read this way, and the gate's own
//! configuration.

mod diagnostic;
mod fields;
mod suggest;
mod text;
mod values;
mod yaml;

pub use diagnostic::{
    Diagnostic, DiagnosticPlace, Diagnostics, FileId, Report, Severity, Span, plural, quoted,
};
pub use fields::{Fields, Placed, kind, parse_at, texts, unknown_key};
pub use suggest::{hint as suggestion, nearest};
pub use text::{MAX_FILE, NotText, decode};
pub use values::{Mistake, duration, prefix, size};
pub use yaml::{Key, Node, Text, Value, parse};
