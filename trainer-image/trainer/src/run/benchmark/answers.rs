//! Answers that are generated and compared, as lm-evaluation-harness scores `generate_until` tasks with
//! `exact_match`: greedy, up to the first text of `until`, right where it equals one of the answers.
//! White space at both ends does not count.

/// A question that is answered in free text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompted {
    /// What the model goes on from.
    pub context: String,
    /// What is right.
    pub answers: Vec<String>,
    /// Texts that end an answer, and are no part of it.
    pub until: Vec<String>,
    /// Whether upper and lower case are the same.
    pub ignore_case: bool,
    /// Whether ASCII punctuation is left out.
    pub ignore_punctuation: bool,
}

impl Prompted {
    /// Whether what was generated holds all of the answer.
    pub fn is_answered(&self, generated: &str) -> bool {
        self.until.iter().any(|end| generated.contains(end))
    }

    /// 1 where what was generated is one of the answers, else 0.
    pub fn exact_match(&self, generated: &str) -> f64 {
        let given = self.evened(before_first(generated, &self.until));
        let is_right = self.answers.iter().any(|it| self.evened(it) == given);
        f64::from(u8::from(is_right))
    }

    fn evened(&self, text: &str) -> String {
        let mut text = text.trim().to_owned();
        if self.ignore_case {
            text = text.to_lowercase();
        }
        if self.ignore_punctuation {
            text.retain(|letter| !letter.is_ascii_punctuation());
        }
        text
    }
}

/// What stands before the first of these texts.
fn before_first<'a>(text: &'a str, ends: &[String]) -> &'a str {
    let first = ends.iter().filter_map(|end| text.find(end.as_str())).min();
    first.and_then(|first| text.get(..first)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompted(answers: &[&str], until: &[&str], ignores: bool) -> Prompted {
        let owned = |texts: &[&str]| texts.iter().map(|it| (*it).to_owned()).collect();
        Prompted {
            context: "Capital?".to_owned(),
            answers: owned(answers),
            until: owned(until),
            ignore_case: ignores,
            ignore_punctuation: ignores,
        }
    }

    #[test]
    fn an_answer_is_what_stands_before_the_first_end() {
        for (generated, ends, answer) in [
            (" Paris\nQuestion:", &["\n"][..], " Paris"),
            ("Paris. It is", &["\n", "."], "Paris"),
            ("Paris", &["\n"], "Paris"),
            ("\nParis", &["\n"], ""),
            ("Paris\n\nor", &["or", "\n\n"], "Paris"),
            ("Paris", &[], "Paris"),
        ] {
            let ends: Vec<String> = ends.iter().map(|it| (*it).to_owned()).collect();
            assert_eq!(before_first(generated, &ends), answer, "{generated:?}");
        }
    }

    #[test]
    fn an_answer_is_right_where_it_equals_one_of_the_answers() {
        for (answers, ignores, generated, is_right) in [
            (&["Paris"][..], false, " Paris\nmore", true),
            (&["Paris"], false, "paris", false),
            (&["Paris"], true, "PARIS!", true),
            (&["St. Denis"], true, "st denis", true),
            (&["Lyon", "Paris"], false, "Paris", true),
            (&["Paris"], false, "Paris, France", false),
            (&["Paris"], false, "", false),
        ] {
            let question = prompted(answers, &["\n"], ignores);
            let got = question.exact_match(generated) > 0.5;
            assert_eq!(got, is_right, "{answers:?} {generated:?}");
        }
    }

    #[test]
    fn generation_ends_with_the_first_end_and_not_before() {
        let question = prompted(&["x"], &["\n", "."], false);
        assert!(!question.is_answered("Paris"));
        assert!(question.is_answered("Paris."));
        assert!(question.is_answered("\n"));
    }
}
