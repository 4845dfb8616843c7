//! The language that a row is likely in, for people who look at a version. It is a guess by the characters
//! that follow each other (crate `whatlang`), and nothing is decided by it.
//!
//! Of a large version about [`GUESSED_ROWS`] rows are looked at: those whose hash is below a limit, so that they
//! are the same ones everywhere.

use graftwork_artifacts::rows::Row;

use crate::stored::Hash;

/// Rows that are looked at, about.
pub const GUESSED_ROWS: u64 = 2_000;
/// Characters of a row that are looked at.
const CHARACTERS: usize = 400;
/// What a row is in whose language is anybody's guess: too short, or of several.
pub const UNKNOWN: &str = "unknown";

/// Whether a row with this hash is looked at, in a version of so many rows.
pub fn is_looked_at(hash: &Hash, rows: u64) -> bool {
    let first = hash.first_chunk::<8>().copied().unwrap_or_default();
    let place = u128::from(u64::from_be_bytes(first));
    rows <= GUESSED_ROWS || place * u128::from(rows) < u128::from(GUESSED_ROWS) << 64
}

/// The ISO 639-3 code of a row's likely language.
pub fn guess(row: &Row) -> &'static str {
    let mut start = String::new();
    for (_, text) in row.texts() {
        let left = CHARACTERS.saturating_sub(start.chars().count());
        start.extend(text.chars().take(left));
        start.push(' ');
    }
    match whatlang::detect(&start) {
        Some(info) if info.is_reliable() => info.lang().code(),
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guessed(text: &str) -> &'static str {
        guess(&Row::Text {
            text: text.to_owned(),
        })
    }

    #[test]
    fn sentences_are_known_by_their_language_and_numbers_are_not() {
        for (text, code) in [
            (
                "The claim was approved because the receipt shows what was bought, when it was bought and how \
                 much was paid for it. The other one has to wait until somebody has found out where it came from.",
                "eng",
            ),
            (
                "Der Antrag wurde genehmigt, weil der Beleg zeigt, was gekauft wurde und wie viel dafür bezahlt \
                 worden ist. Der andere muss warten, bis jemand herausgefunden hat, woher er überhaupt stammt.",
                "deu",
            ),
            (
                "La demande a été acceptée parce que le reçu montre ce qui a été acheté, quand cela a été acheté et \
                 combien on a payé. L'autre doit attendre que quelqu'un découvre d'où elle vient.",
                "fra",
            ),
            (
                "申請は領収書に日付と金額が記載されているため承認されました。",
                "jpn",
            ),
            ("4711 0815 12:30", UNKNOWN),
            ("", UNKNOWN),
        ] {
            assert_eq!(guessed(text), code, "{text}");
        }
    }

    #[test]
    fn all_rows_of_a_small_version_and_about_as_many_of_a_large_one_are_looked_at() {
        let hash = |n: u64| -> Hash {
            let mut hash = [0xff; 32];
            let spread = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash[..8].copy_from_slice(&spread.to_be_bytes());
            hash
        };
        assert!((0..1000).all(|n| is_looked_at(&hash(n), GUESSED_ROWS)));
        let rows = 1_000_000;
        let looked_at = (0..rows).filter(|n| is_looked_at(&hash(*n), rows)).count();
        assert!((1_900..2_100).contains(&looked_at), "{looked_at}");
    }
}
