//! Domain names, in the one form that everything after this file compares, resolves, dials and logs.

use std::fmt;
use std::sync::Arc;

/// Longest name in text form without the final dot (RFC 1035 §2.3.4: 255 octets on the wire).
pub const MAX_NAME: usize = 253;
/// Longest label (RFC 1035 §2.3.4).
pub const MAX_LABEL: usize = 63;

/// A fully qualified host name: lower-case A-labels of letters, digits, hyphens and underscores, without
/// the final dot (RFC 952, RFC 1123 §2.1; the underscore as in RFC 8552).
///
/// Letter case and one final dot are made canonical. Everything else that is not such a name is rejected,
/// never repaired: two readers of a repaired name may disagree about what it was.
///
/// The last label is neither all digits nor a `0x` number, so that no name can be read as an IPv4 address
/// (WHATWG URL, "ends in a number").
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainName(Arc<str>);

impl DomainName {
    /// Reads a name as it stands in a request, a ClientHello or a DNS question.
    ///
    /// # Errors
    /// Says the first thing that keeps `text` from being a name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        match check(name)? {
            Case::Lower => Ok(Self(Arc::from(name))),
            Case::Mixed => Ok(Self(Arc::from(name.to_ascii_lowercase()))),
        }
    }

    /// Reads a name as it stands in a DNS message, without compression and with the root's label at the end (RFC 1035
    /// §3.1): in half the time what [`DomainName::parse`] reads of its text. None where it is no name, or where a label
    /// holds a dot, which text cannot tell from one between labels.
    #[must_use]
    pub fn of_wire(wire: &[u8]) -> Option<Self> {
        // As text it begins with the first label, and a dot stands in place of each other length but the root's.
        let labels = wire.get(1..)?;
        let mut text = [b'a'; MAX_NAME.next_multiple_of(CHUNK)];
        let end = labels.len().checked_sub(1).filter(|end| (1..=MAX_NAME).contains(end))?;
        text.get_mut(..end)?.copy_from_slice(labels.get(..end)?);
        let (mut start, mut dots) = (0, 0);
        let mut length = wire.first().copied()?;
        let last = loop {
            let next = start + usize::from(length);
            let label = labels.get(start..next)?;
            check_label(label).ok()?;
            length = labels.get(next).copied()?;
            if length == 0 {
                break label;
            }
            *text.get_mut(next)? = b'.';
            (start, dots) = (next + 1, dots + 1);
        };
        let chunks = text.get_mut(..end.next_multiple_of(CHUNK))?.as_chunks_mut().0;
        // A root's label that is not the last is a zero in the text, which no name holds.
        if lower_case(chunks) != Some(dots) || ends_in_number(last) {
            return None;
        }
        Some(Self(Arc::from(str::from_utf8(text.get(..end)?).ok()?)))
    }

    /// Reads a name that a person wrote in a policy: as [`DomainName::parse`], but U-labels become A-labels
    /// (RFC 5891, by UTS 46 without transitional processing).
    ///
    /// # Errors
    /// As [`DomainName::parse`]; [`NameError::NotIdna`] where a U-label has no A-label.
    pub fn parse_unicode(text: &str) -> Result<Self, NameError> {
        if text.is_ascii() {
            return Self::parse(text);
        }
        let ascii = idna::domain_to_ascii_strict(text).map_err(|_| NameError::NotIdna)?;
        Self::parse(&ascii)
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The labels from left to right.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }

    /// The name and then each of its ancestors, the top-level domain last.
    pub fn and_ancestors(&self) -> impl Iterator<Item = &str> {
        // Not by `split_once`: its search is made for long texts, and took a quarter of a decision's time.
        let below_dot = |name: &str| name.bytes().position(|byte| byte == b'.').map(|dot| dot + 1);
        std::iter::successors(Some(self.as_str()), move |name| name.get(below_dot(name)?..))
    }

    /// The last label.
    #[must_use]
    pub fn top_level(&self) -> &str {
        let dot = self.0.bytes().rposition(|byte| byte == b'.');
        dot.and_then(|dot| self.0.get(dot + 1..)).unwrap_or(&self.0)
    }

    /// Whether this name lies below `parent` by at least one label.
    #[must_use]
    pub fn is_below(&self, parent: &Self) -> bool {
        self.0.strip_suffix(parent.as_str()).is_some_and(|rest| rest.ends_with('.'))
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DomainName({})", self.0)
    }
}

/// Why a text is not a [`DomainName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NameError {
    /// Nothing, or nothing but a dot.
    #[error("the name is empty")]
    Empty,
    /// More than [`MAX_NAME`] bytes.
    #[error("the name is longer than 253 bytes")]
    TooLong,
    /// Two dots in a row, or a dot in front.
    #[error("a label of the name is empty")]
    EmptyLabel,
    /// A label of more than [`MAX_LABEL`] bytes.
    #[error("a label of the name is longer than 63 bytes")]
    LabelTooLong,
    /// A label that begins or ends with a hyphen.
    #[error("a label of the name begins or ends with a hyphen")]
    Hyphen,
    /// A byte below 0x20, or DEL.
    #[error("the name has a control byte in it")]
    ControlByte,
    /// A byte of 0x80 or above: a client sends A-labels.
    #[error("the name is not ASCII; a client sends the A-label form (xn--…)")]
    NotAscii,
    /// A `%`: percent-encoding has no place in a name.
    #[error("the name is percent-encoded")]
    PercentEncoded,
    /// A `[` or `]`: brackets are for IPv6 addresses alone.
    #[error("brackets stand round something that is not an IPv6 address")]
    Bracketed,
    /// Any other byte that no name has.
    #[error("the name has a character that no host name has")]
    Character,
    /// A last label of digits or `0x…`: some readers take it for an IPv4 address.
    #[error("the name ends in a number, which some programs read as an IPv4 address")]
    Numeric,
    /// A U-label that IDNA does not allow.
    #[error("the name is not a valid internationalized name")]
    NotIdna,
}

/// The letters of a name.
enum Case {
    /// All in lower case.
    Lower,
    /// Some in upper case.
    Mixed,
}

/// Reads each byte once.
fn check(name: &str) -> Result<Case, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    let (mut seen, mut labels, mut start) = (0, Ok(()), 0);
    for (at, byte) in name.bytes().enumerate() {
        let kind = kind::of(byte);
        seen |= kind;
        if kind == kind::DOT {
            labels = labels.and_then(|()| check_label(name.as_bytes().get(start..at).unwrap_or_default()));
            start = at + 1;
        }
    }
    // The alphabet first: what a hostile byte was is a better answer than how long the name was.
    if seen & kind::FOREIGN != 0
        && let Some(error) = name.bytes().find_map(foreign)
    {
        return Err(error);
    }
    if name.len() > MAX_NAME {
        return Err(NameError::TooLong);
    }
    labels?;
    let last = name.as_bytes().get(start..).unwrap_or_default();
    check_label(last)?;
    if ends_in_number(last) {
        return Err(NameError::Numeric);
    }
    Ok(if seen & kind::UPPER == 0 { Case::Lower } else { Case::Mixed })
}

/// What a byte is in a name; bits, so that all bytes' kinds can be put together.
mod kind {
    /// A lower-case letter, a digit, `-` or `_`.
    pub(super) const PLAIN: u8 = 1;
    pub(super) const UPPER: u8 = 2;
    pub(super) const DOT: u8 = 4;
    /// What no name has.
    pub(super) const FOREIGN: u8 = 8;

    pub(super) fn of(byte: u8) -> u8 {
        OF.get(usize::from(byte)).copied().unwrap_or(FOREIGN)
    }

    #[allow(clippy::indexing_slicing, reason = "the compiler does it")]
    static OF: [u8; 256] = {
        let mut kinds = [FOREIGN; 256];
        let mut byte = 0;
        while byte < kinds.len() {
            kinds[byte] = match byte as u8 {
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => PLAIN,
                b'A'..=b'Z' => UPPER,
                b'.' => DOT,
                _ => FOREIGN,
            };
            byte += 1;
        }
        kinds
    };
}

fn check_label(label: &[u8]) -> Result<(), NameError> {
    match label.len() {
        0 => Err(NameError::EmptyLabel),
        1..=MAX_LABEL if label.starts_with(b"-") || label.ends_with(b"-") => Err(NameError::Hyphen),
        1..=MAX_LABEL => Ok(()),
        _ => Err(NameError::LabelTooLong),
    }
}

/// Bytes that are looked at together: the compiler makes one instruction of what is done with each.
const CHUNK: usize = 16;

/// Brings text to lower case, and says how many dots there are in it. None where no name has one of its bytes.
fn lower_case(text: &mut [[u8; CHUNK]]) -> Option<usize> {
    let (mut foreign, mut dots) = ([0; CHUNK], 0);
    for chunk in text {
        let mut dot = [0; CHUNK];
        for ((byte, foreign), dot) in chunk.iter_mut().zip(&mut foreign).zip(&mut dot) {
            *byte |= u8::from(byte.is_ascii_uppercase()) << 5;
            *dot = u8::from(*byte == b'.');
            let is_plain =
                byte.is_ascii_lowercase() | byte.is_ascii_digit() | (*byte == b'-') | (*byte == b'_');
            *foreign |= u8::from(!is_plain) ^ *dot;
        }
        dots += usize::from(dot.iter().sum::<u8>());
    }
    (foreign == [0; CHUNK]).then_some(dots)
}

/// What is wrong with a byte that no name has.
fn foreign(byte: u8) -> Option<NameError> {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => None,
        b'%' => Some(NameError::PercentEncoded),
        b'[' | b']' => Some(NameError::Bracketed),
        0..=0x1f | 0x7f => Some(NameError::ControlByte),
        0x80.. => Some(NameError::NotAscii),
        0x20..=0x7e => Some(NameError::Character),
    }
}

fn ends_in_number(label: &[u8]) -> bool {
    let digits = label.iter().all(u8::is_ascii_digit);
    let hex = label
        .strip_prefix(b"0x")
        .or_else(|| label.strip_prefix(b"0X"))
        .is_some_and(|rest| rest.iter().all(u8::is_ascii_hexdigit));
    digits || hex
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn case_and_one_final_dot_are_canonical() {
        for text in ["pypi.org", "PyPI.org", "pypi.org.", "PYPI.ORG."] {
            assert_eq!(DomainName::parse(text).unwrap().as_str(), "pypi.org", "{text}");
        }
    }

    #[test]
    fn what_is_not_a_name_says_why() {
        let long_label = format!("{}.org", "a".repeat(64));
        let long_name = format!("{}org", "a.".repeat(126));
        assert_eq!(long_name.len(), 255);
        let table: &[(&str, NameError)] = &[
            ("", NameError::Empty),
            (".", NameError::Empty),
            ("pypi.org..", NameError::EmptyLabel),
            (".pypi.org", NameError::EmptyLabel),
            ("pypi..org", NameError::EmptyLabel),
            ("[pypi.org]", NameError::Bracketed),
            ("[[pypi.org]]", NameError::Bracketed),
            ("a%00b", NameError::PercentEncoded),
            ("fe80::1%eth0", NameError::Character),
            ("a\0b.org", NameError::ControlByte),
            ("a\r\nb.org", NameError::ControlByte),
            ("a b.org", NameError::Character),
            ("user@pypi.org", NameError::Character),
            ("pypi.org/x", NameError::Character),
            ("pypi.org\\x", NameError::Character),
            ("*.pypi.org", NameError::Character),
            ("pypi。org", NameError::NotAscii),
            ("рypi.org", NameError::NotAscii),
            ("-a.org", NameError::Hyphen),
            ("a-.org", NameError::Hyphen),
            ("2130706433", NameError::Numeric),
            ("0x7f.1", NameError::Numeric),
            ("0x7f000001", NameError::Numeric),
            ("127.0.0.0x1", NameError::Numeric),
            ("1.2.3", NameError::Numeric),
            (&long_label, NameError::LabelTooLong),
            (&long_name, NameError::TooLong),
        ];
        for (text, error) in table {
            assert_eq!(DomainName::parse(text), Err(*error), "{text:?}");
        }
    }

    #[test]
    fn the_limits_themselves_are_names() {
        let label = "a".repeat(MAX_LABEL);
        let name = format!("{label}.{label}.{label}.{}", "b".repeat(61));
        assert_eq!(name.len(), MAX_NAME);
        assert!(DomainName::parse(&name).is_ok());
        assert!(DomainName::parse("_dmarc.pypi.org").is_ok());
        assert!(DomainName::parse("localhost").is_ok());
        assert!(DomainName::parse("1.2.3.com").is_ok());
    }

    #[test]
    fn u_labels_are_for_policies() {
        assert_eq!(DomainName::parse_unicode("Bücher.example").unwrap().as_str(), "xn--bcher-kva.example");
        assert_eq!(DomainName::parse("bücher.example"), Err(NameError::NotAscii));
    }

    #[test]
    fn below_is_by_whole_labels() {
        let name = |text| DomainName::parse(text).unwrap();
        assert!(name("a.pypi.org").is_below(&name("pypi.org")));
        assert!(name("a.b.pypi.org").is_below(&name("pypi.org")));
        assert!(!name("pypi.org").is_below(&name("pypi.org")));
        assert!(!name("evilpypi.org").is_below(&name("pypi.org")));
    }

    #[test]
    fn what_is_no_name_on_the_wire_is_none() {
        let longest =
            [vec![[&[49][..], &[b'a'; 49]].concat(); 5].concat(), vec![3, b'c', b'o', b'm', 0]].concat();
        assert_eq!((longest.len(), DomainName::of_wire(&longest).unwrap().as_str().len()), (255, MAX_NAME));
        let too_long = [vec![4, b'd', b'e', b'e', b'p'], longest].concat();
        let label = |length: u8| [vec![length], vec![b'a'; length.into()], vec![0]].concat();
        assert!(DomainName::of_wire(&label(63)).is_some());
        let none: [&[u8]; 10] = [
            b"",
            b"\0",
            b"\x04pypi",
            b"\x04pypi\x03or",
            b"\x04pypi\x03org",
            b"\x04pypi\x03org\0\0",
            b"\x04pypi\0\x03org\0",
            b"\x04pypi\xc0\x0c",
            &label(64),
            &too_long,
        ];
        for wire in none {
            assert_eq!(DomainName::of_wire(wire), None, "{wire:?}");
        }
    }

    /// What labels hold: mostly what names do.
    fn labels() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let byte = prop_oneof![
            20 => prop::sample::select(b"abcxyzABCXYZ0123456789-_".to_vec()),
            1 => prop::sample::select(b".%[] \\*\0\x7f\x80\xff".to_vec()),
        ];
        let label = prop_oneof![8 => vec(byte.clone(), 0..12), 1 => vec(byte, 60..66)];
        vec(label, 0..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn on_the_wire_it_is_the_name_that_its_text_is(labels in labels()) {
            let length = |label: &Vec<u8>| u8::try_from(label.len()).unwrap();
            let label = |label| [&[length(label)], label.as_slice()].concat();
            let wire = [labels.iter().flat_map(label).collect(), vec![0]].concat();
            let by_labels = DomainName::of_wire(&wire);
            let holds_dot = labels.iter().any(|label| label.contains(&b'.'));
            let text = String::from_utf8(labels.join(&b'.'));
            let by_text = text.ok().filter(|_| !holds_dot).and_then(|text| DomainName::parse(&text).ok());
            // A last label of nothing is the root's, which ends a name on the wire; there is none among labels.
            let ends = labels.last().is_some_and(Vec::is_empty);
            prop_assert_eq!(by_labels, by_text.filter(|_| !ends));
        }
    }
}
