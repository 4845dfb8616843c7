//! What another analyser found in a text, beside our own findings.

use crate::find::Finding;

/// Where something stands that another analyser found. It does not hold what stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Other<'a> {
    /// The name of its type in manifests and status, such as `person`.
    pub name: &'a str,
    /// The word that stands in masked text, such as `PERSON`.
    pub placeholder: &'a str,
    /// First byte, at a character's boundary.
    pub start: usize,
    /// One past the last byte, at a character's boundary.
    pub end: usize,
}

/// The parts of what others found that hold letters or digits and that neither a finding nor an earlier one
/// of them covers, in order and without overlaps. Nothing that was found is left uncovered.
pub fn beside<'a>(text: &str, found: &[Finding], others: &[Other<'a>]) -> Vec<Other<'a>> {
    let mut covered: Vec<(usize, usize)> = found.iter().map(|it| (it.start, it.end)).collect();
    let mut parts = Vec::new();
    for other in others {
        covered.sort_unstable();
        let mut start = other.start;
        let mut gaps = Vec::new();
        for (from, to) in &covered {
            if *from >= other.end {
                break;
            }
            gaps.push((start, *from));
            start = start.max(*to);
        }
        gaps.push((start, other.end));
        for (start, end) in gaps {
            let part = text.get(start..end).unwrap_or_default();
            if part.chars().any(char::is_alphanumeric) {
                covered.push((start, end));
                parts.push(Other {
                    start,
                    end,
                    ..*other
                });
            }
        }
    }
    parts.sort_unstable_by_key(|part| part.start);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    fn at(name: &str, start: usize, end: usize) -> Other<'_> {
        Other {
            name,
            placeholder: "X",
            start,
            end,
        }
    }

    #[test]
    fn what_is_covered_already_is_cut_away_and_the_rest_stays() {
        let text = "abcdefghij klmnop";
        let found = [Finding {
            kind: Kind::Email,
            start: 3,
            end: 6,
        }];
        let others = [
            at("a", 0, 8),
            at("b", 7, 10),
            at("c", 3, 5),
            at("d", 10, 11),
        ];
        assert_eq!(
            beside(text, &found, &others),
            [at("a", 0, 3), at("a", 6, 8), at("b", 8, 10)]
        );
    }

    #[test]
    fn offsets_within_a_character_find_nothing() {
        assert!(beside("\u{e9}a", &[], &[at("a", 1, 3)]).is_empty());
    }
}
