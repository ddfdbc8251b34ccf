//! The name that somebody may have meant.

/// The nearest of `names`, if one is near.
pub(super) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if wanted.len() > super::MAX_TAG_NAME {
        return None;
    }
    let wanted = Words::of(wanted);
    let scored = names.filter_map(|name| Some((wanted.distance(&Words::of(name))?, name)));
    scored.min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// A name in two parts, of which the second is often a region; lower-case letters and digits alone.
struct Words {
    service: String,
    region: String,
}

impl Words {
    fn of(name: &str) -> Self {
        let name = name.strip_prefix("AWS.").unwrap_or(name);
        let (service, region) = name.split_once('.').unwrap_or((name, ""));
        let service = plain(service);
        let without_owner = ["azure", "microsoft"].into_iter().find_map(|owner| service.strip_prefix(owner));
        let service = without_owner.unwrap_or(&service).to_owned();
        Self { service, region: plain(region) }
    }

    /// How far apart two names are; none if too far to be a slip.
    fn distance(&self, other: &Self) -> Option<usize> {
        let service = within(edits(&self.service, &other.service), &self.service)?;
        Some(service * 2 + region_distance(&self.region, &other.region)?)
    }
}

fn plain(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect()
}

/// Regions are often named by the same words in another order (`uswest2`).
fn region_distance(wanted: &str, known: &str) -> Option<usize> {
    if wanted == known {
        return Some(0);
    }
    if wanted.is_empty() != known.is_empty() {
        return None;
    }
    if sorted(wanted) == sorted(known) {
        return Some(1);
    }
    within(edits(wanted, known), wanted).map(|edits| edits + 1)
}

/// One slip in four letters is still a slip.
fn within(edits: usize, text: &str) -> Option<usize> {
    (edits <= 1.max(text.len() / 4)).then_some(edits)
}

fn sorted(text: &str) -> Vec<u8> {
    let mut letters = text.as_bytes().to_vec();
    letters.sort_unstable();
    letters
}

/// The number of letters to insert, delete or replace (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (line, letter) in (1..).zip(a.bytes()) {
        let mut left = line;
        let mut diagonal = line - 1;
        for (cell, other) in row.iter_mut().skip(1).zip(b.bytes()) {
            let here = (*cell + 1).min(left + 1).min(diagonal + usize::from(letter != other));
            diagonal = std::mem::replace(cell, here);
            left = here;
        }
        if let Some(first) = row.first_mut() {
            *first = line;
        }
    }
    row.last().copied().unwrap_or_default()
}
