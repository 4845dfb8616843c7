//! All types at once, without overlaps.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::detect;
use crate::fold::fold;
use crate::kind::Kind;

/// Where something stands. It does not hold what stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// First byte, at a character's boundary.
    pub start: usize,
    /// One past the last byte, at a character's boundary.
    pub end: usize,
}

/// Personal data in `text`, in order and without overlaps. Of two that overlap the one whose type
/// comes first in [`Kind`] stays, of one type the longer one. Unicode's other forms of letters, digits
/// and signs (NFKC) count as the usual ones.
pub fn find(text: &str) -> Vec<Finding> {
    let mut found = detect_all(text);
    if let Some(folded) = fold(text) {
        // Beside what was found in the text as it is: a form may join what stood apart.
        found.extend(detect_all(&folded.text).into_iter().map(|it| Finding {
            kind: it.kind,
            start: folded.start(it.start),
            end: folded.end(it.end),
        }));
    }
    without_overlaps(found)
}

fn detect_all(text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    for (kind, detect) in detect::ALL {
        let spans = detect(text);
        found.extend(
            spans
                .into_iter()
                .map(|(start, end)| Finding { kind, start, end }),
        );
    }
    found
}

fn without_overlaps(mut found: Vec<Finding>) -> Vec<Finding> {
    found.sort_by_key(|it| (it.kind, Reverse(it.end - it.start), it.start));
    let mut kept: BTreeMap<usize, Finding> = BTreeMap::new();
    for finding in found {
        // Of those that begin before this one's end, the last one reaches furthest.
        let last = kept.range(..finding.end).next_back();
        if last.is_none_or(|(_, known)| known.end <= finding.start) {
            kept.insert(finding.start, finding);
        }
    }
    kept.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_that_overlap_the_first_type_stays() {
        let at = |kind, start, end| Finding { kind, start, end };
        let found = vec![
            at(Kind::Phone, 0, 10),
            at(Kind::Email, 5, 20),
            at(Kind::Phone, 20, 30),
            at(Kind::Phone, 22, 28),
        ];
        assert_eq!(
            without_overlaps(found),
            [at(Kind::Email, 5, 20), at(Kind::Phone, 20, 30)]
        );
    }
}
