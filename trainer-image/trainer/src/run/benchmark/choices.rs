//! Multiple choice by log-likelihood, as lm-evaluation-harness scores its `multiple_choice` tasks: the
//! answer is the continuation with the highest log-likelihood (`acc`), per character of the choice
//! (`acc_norm`) or per byte of it (`acc_bytes`); the delimiter before it does not count.

use graftwork_model::tokenizer::{TextTokenizer, TokenizedExample, TokenizerError};

use crate::run::tokens::cut;

/// A question with several answers, one of them right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What the model goes on from.
    pub context: String,
    /// What it may go on with.
    pub choices: Vec<String>,
    /// The right one, from 0.
    pub answer: usize,
    /// What stands between the two.
    pub delimiter: String,
}

impl Choice {
    /// Each choice behind the context, at most `maximum` tokens of both, with the choice's as targets;
    /// and whether one was cut.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn examples(
        &self,
        tokenizer: &TextTokenizer,
        maximum: usize,
    ) -> Result<(Vec<TokenizedExample>, bool), TokenizerError> {
        let mut was_cut = false;
        let examples = self.choices.iter().map(|choice| {
            let mut example = pair(tokenizer, &self.context, &self.delimiter, choice)?;
            was_cut |= cut(&mut example, maximum, tokenizer.bos());
            Ok(example)
        });
        Ok((examples.collect::<Result<_, TokenizerError>>()?, was_cut))
    }
}

/// Context and continuation as tokens. They are cut into tokens together, and white space at the end of
/// the context belongs to the continuation: a word's first token often begins with it.
fn pair(
    tokenizer: &TextTokenizer,
    context: &str,
    delimiter: &str,
    choice: &str,
) -> Result<TokenizedExample, TokenizerError> {
    let tokens = tokenizer.encode_prompt(&format!("{context}{delimiter}{choice}"))?;
    let given = tokenizer.encode_prompt(context.trim_end())?.len();
    let loss_mask = (0..tokens.len()).map(|index| index >= given).collect();
    Ok(TokenizedExample { tokens, loss_mask })
}

/// What a choice's log-likelihood is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Nothing.
    One,
    /// Unicode characters.
    Characters,
    /// Bytes of UTF-8.
    Bytes,
}

impl Length {
    /// All, with what a benchmark's name has behind it.
    pub const ALL: [(Self, &'static str); 3] = [
        (Self::One, ""),
        (Self::Characters, "/acc_norm"),
        (Self::Bytes, "/acc_bytes"),
    ];

    fn of(self, choice: &str) -> f64 {
        match self {
            Self::One => 1.0,
            Self::Characters => choice.chars().count() as f64,
            Self::Bytes => choice.len() as f64,
        }
    }
}

/// 1 where the right choice has the highest log-likelihood, else 0.
pub fn accuracy(question: &Choice, log_likelihoods: &[f64], length: Length) -> f64 {
    let values = question.choices.iter().zip(log_likelihoods);
    let values = values.map(|(choice, value)| value / length.of(choice));
    f64::from(u8::from(first_highest(values) == Some(question.answer)))
}

/// The first of the highest, as numpy's argmax.
fn first_highest(values: impl Iterator<Item = f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (index, value) in values.enumerate() {
        if best.is_none_or(|(_, highest)| value > highest) {
            best = Some((index, value));
        }
    }
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use graftwork_model::fixture::{TinyShape, write_tiny_base};

    use super::*;

    fn question(choices: &[&str], answer: usize) -> Choice {
        Choice {
            context: "Sky?".to_owned(),
            choices: choices.iter().map(|it| (*it).to_owned()).collect(),
            answer,
            delimiter: " ".to_owned(),
        }
    }

    #[test]
    fn the_highest_log_likelihood_wins_whole_per_character_or_per_byte() {
        // Characters 2, 4, 5; bytes 2, 8, 5. Per character -3, -2, -2.2; per byte -3, -1, -2.2.
        let choices = ["no", "éééé", "maybe"];
        let values = [-6.0, -8.0, -11.0];
        for (answer, expected) in [(0, [1.0, 0.0, 0.0]), (1, [0.0, 1.0, 1.0]), (2, [0.0; 3])] {
            let question = question(&choices, answer);
            for ((length, name), expected) in Length::ALL.into_iter().zip(expected) {
                let got = accuracy(&question, &values, length);
                assert!((got - expected).abs() < 1e-12, "{answer} {name}");
            }
        }
        // -12 / 4 against -11 / 5, and -12 / 8: characters and bytes disagree.
        let values = [-99.0, -12.0, -11.0];
        let by = |length| accuracy(&question(&choices, 1), &values, length);
        assert!(by(Length::Characters) < 0.5 && by(Length::Bytes) > 0.5);
    }

    #[test]
    fn of_equal_ones_the_first_wins() {
        let first = question(&["aa", "bb"], 0);
        assert!(accuracy(&first, &[-1.0, -1.0], Length::One) > 0.5);
        let second = question(&["aa", "bb"], 1);
        assert!(accuracy(&second, &[-1.0, -1.0], Length::One) < 0.5);
    }

    #[test]
    fn the_choice_is_the_target_and_the_contexts_last_space_with_it() {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
        let tokenizer = TextTokenizer::load(dir.path()).unwrap();
        let targets = |question: &Choice, maximum: usize| {
            let (examples, was_cut) = question.examples(&tokenizer, maximum).unwrap();
            let texts: Vec<String> = examples
                .iter()
                .map(|example| {
                    let targets = example.tokens.iter().zip(&example.loss_mask);
                    let targets: Vec<u32> = targets
                        .filter_map(|(token, target)| target.then_some(*token))
                        .collect();
                    tokenizer.decode(&targets, true).unwrap()
                })
                .collect();
            (texts, was_cut)
        };
        let mut asked = question(&["red", "blue"], 1);
        let both = |first: &str, second: &str| vec![first.to_owned(), second.to_owned()];
        assert_eq!(targets(&asked, 99), (both(" red", " blue"), false));
        // Five tokens of " blue" and the beginning of sequence: the context goes first.
        assert_eq!(targets(&asked, 6), (both(" red", " blue"), true));
        asked.context = "Sky? ".to_owned();
        asked.delimiter = String::new();
        assert_eq!(targets(&asked, 99), (both(" red", " blue"), false));
    }
}
