//! Did you mean …?

/// The candidate that somebody who wrote `written` most likely meant: at most two letters wrong, missing, too many
/// or swapped, and never more than a third of them.
pub fn nearest<'c>(written: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let written = fold(written);
    // A word of sixty letters is no misspelt key, and distances cost the product of both lengths.
    if written.len() > 60 {
        return None;
    }
    let bound = (written.len() / 3).clamp(1, 2);
    let near = |candidate: &'c str| {
        let folded = fold(candidate);
        let far = folded.len().abs_diff(written.len()) > bound;
        let distance = if far { usize::MAX } else { distance(&written, &folded) };
        (distance <= bound).then_some((distance, candidate))
    };
    candidates
        .into_iter()
        .filter_map(near)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A hint: what was likely meant, or else what there is.
pub fn hint<'c>(written: &str, candidates: impl IntoIterator<Item = &'c str> + Clone) -> String {
    match nearest(written, candidates.clone()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => {
            let known: Vec<&str> = candidates.into_iter().take(20).collect();
            if known.is_empty() {
                "there are none".to_owned()
            } else {
                format!("known are: {}", known.join(", "))
            }
        }
    }
}

fn fold(text: &str) -> Vec<char> {
    text.chars().take(61).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

/// Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours.
#[allow(clippy::indexing_slicing)] // every index is below the lengths that the rows were made with
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let substitute = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substitute.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let keys = ["outbound_rules", "sources", "ports", "presets"];
        for (written, meant) in [
            ("outbond_rules", Some("outbound_rules")),
            ("outbound-rules", Some("outbound_rules")),
            ("Sources", Some("sources")),
            ("port", Some("ports")),
            ("prots", Some("ports")),
            ("destination", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, keys), meant, "{written}");
        }
    }
}
