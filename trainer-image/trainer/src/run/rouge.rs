//! ROUGE-L (Lin 2004) as PyPI's `rouge-score` computes it without stemming: F1 of the longest common
//! subsequence of words. A word is a run of `a` to `z` and digits of the lower-cased text; everything
//! else separates. Texts of other scripts have no words and score 0.

/// The score of one answer, from 0 to 1.
pub fn rouge_l(expected: &str, answer: &str) -> f64 {
    let (expected, answer) = (words(expected), words(answer));
    let common = longest_common_subsequence(&expected, &answer) as f64;
    if common == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (common / answer.len() as f64, common / expected.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    lower
        .split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Its length, with one row of the table at a time.
fn longest_common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len()];
    for word in a {
        // The row before: to the left and above, and above.
        let (mut diagonal, mut left) = (0, 0);
        for (cell, other) in row.iter_mut().zip(b) {
            let above: usize = *cell;
            *cell = if word == other {
                diagonal + 1
            } else {
                above.max(left)
            };
            (diagonal, left) = (above, *cell);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[expected, answer, F1]` of 500 pairs, by rouge-score 0.1.2 (parity/rouge.py).
    const RECORDED: &str = include_str!("../../tests/fixtures/rouge_l.json");

    #[test]
    fn every_recorded_pair_scores_as_rouge_score_says() {
        let pairs: Vec<(String, String, f64)> = serde_json::from_str(RECORDED).unwrap();
        assert_eq!(pairs.len(), 500);
        let scored = pairs.iter().filter(|pair| pair.2 > 0.0 && pair.2 < 1.0);
        assert!(scored.count() > 200);
        for (expected, answer, score) in &pairs {
            let got = rouge_l(expected, answer);
            assert!(
                (got - score).abs() < 1e-12,
                "{expected:?} {answer:?}: {got} {score}"
            );
        }
    }

    #[test]
    fn order_counts_and_what_stands_between_does_not() {
        assert!((rouge_l("a b c", "a x b y c") - 0.75).abs() < 1e-12);
        assert!((rouge_l("a b c", "c b a") - 1.0 / 3.0).abs() < 1e-12);
        assert!(rouge_l("", "a").abs() < 1e-12);
        assert!(rouge_l("日本", "日本").abs() < 1e-12);
    }
}
