//! Rows of a dataset as tokens: to train on, and to ask.

use graftwork_artifacts::rows::Row;
use graftwork_contract::run::{RowsUsed, Truncation};
use graftwork_model::tokenizer::{
    ChatError, ChatMessage, TextTokenizer, TokenizedExample, TokenizerError,
};
use rayon::prelude::*;

use super::preference::Pair;
use crate::failure::{Failure, causes};

/// What is done about examples that are too long.
#[derive(Debug, Clone, Copy)]
pub struct Fit {
    /// Tokens of an example at most.
    pub maximum: usize,
    /// What becomes of a longer one.
    pub truncation: Truncation,
}

impl Fit {
    /// Whether an example of so many tokens, of row `index` from 0, is used.
    ///
    /// # Errors
    /// [`Failure`] with `BadData` where it ends the run.
    fn takes(self, tokens: usize, (file, index): (&str, usize)) -> Result<bool, Failure> {
        if tokens <= self.maximum {
            return Ok(true);
        }
        match self.truncation {
            Truncation::CutStart | Truncation::CutEnd => Ok(true),
            Truncation::Drop => Ok(false),
            Truncation::Error => Err(Failure::bad_data(format!(
                "{file}: row {} has {tokens} tokens, more than \
                 spec.hyperparameters.maximumSequenceLength {}, and truncation is Error; raise the one, or change the \
                 other, in a new run",
                index + 1,
                self.maximum
            ))),
        }
    }

    /// Takes `excess` tokens away, and what is more than the maximum then. Returns whether anything is left to learn.
    fn cut(self, example: &mut TokenizedExample, excess: usize, bos: Option<u32>) -> bool {
        match self.truncation {
            Truncation::CutStart => shorten(example, excess, self.maximum, bos),
            Truncation::CutEnd | Truncation::Drop | Truncation::Error => {
                example.tokens.truncate(self.maximum);
                example.loss_mask.truncate(self.maximum);
            }
        }
        teaches(example)
    }
}

/// Whether anything of it is learnt: nothing stands before the first token that this could follow from.
fn teaches(example: &TokenizedExample) -> bool {
    example.loss_mask.iter().skip(1).any(|learned| *learned)
}

/// Rows as tokens.
#[derive(Debug)]
pub struct Fitted<T> {
    /// In the order of the rows, without those that were left out; never longer than was asked for.
    pub kept: Vec<T>,
    /// The number of each one's row, from 0.
    pub rows: Vec<usize>,
    /// Whether each of them was longer, and was cut.
    pub was_cut: Vec<bool>,
    /// Rows that were longer, and were left out: as was asked for, or because nothing of what they teach fits.
    pub dropped: u64,
}

impl<T> Fitted<T> {
    /// Of what each row became; none: it was left out.
    fn of(rows: Vec<Option<(T, bool)>>) -> Self {
        let mut fitted = Self {
            kept: Vec::with_capacity(rows.len()),
            rows: Vec::with_capacity(rows.len()),
            was_cut: Vec::with_capacity(rows.len()),
            dropped: 0,
        };
        for (index, row) in rows.into_iter().enumerate() {
            let Some((kept, was_cut)) = row else {
                fitted.dropped += 1;
                continue;
            };
            fitted.kept.push(kept);
            fitted.rows.push(index);
            fitted.was_cut.push(was_cut);
        }
        fitted
    }

    /// How many rows there were, and what became of them.
    pub fn used(&self) -> RowsUsed {
        RowsUsed {
            rows: self.was_cut.len() as u64 + self.dropped,
            cut: self.was_cut.iter().filter(|was_cut| **was_cut).count() as u64,
            dropped: self.dropped,
        }
    }
}

/// A test row: what is asked and what should come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Tokens that the model goes on from.
    pub prompt: Vec<u32>,
    /// The first line of the right answer, trimmed.
    pub answer: String,
    /// All of the right answer.
    pub completion: String,
    /// Number of its row, from 0.
    pub row: usize,
    /// Whether the prompt was longer, and was cut.
    pub was_cut: bool,
}

/// Tokens of each row. `file` is where the rows are from.
///
/// # Errors
/// [`Failure`] with `BadData`, naming file and row: one that the tokenizer or the chat template refuses, or that is
/// too long; or with `BadConfig` where the base model's tokenizer can make no training rows at all.
pub fn examples(
    (file, rows): (&str, &[Row]),
    tokenizer: &TextTokenizer,
    fit: Fit,
) -> Result<Fitted<TokenizedExample>, Failure> {
    let fitted = rows.par_iter().enumerate().map(|(index, row)| {
        let mut example =
            example(row, tokenizer).map_err(|error| refused((file, index), &error))?;
        let tokens = example.tokens.len();
        if !teaches(&example) {
            let why = match row {
                Row::Chat { .. } => {
                    "the base model's chat template marks nothing of it as the assistant's"
                }
                _ => "it has fewer than two tokens",
            };
            let row = index + 1;
            return Err(Failure::bad_data(format!(
                "{file}: row {row} has nothing to learn: {why}"
            )));
        }
        if !fit.takes(tokens, (file, index))? {
            return Ok(None);
        }
        let excess = tokens.saturating_sub(fit.maximum);
        if excess > 0 && !fit.cut(&mut example, excess, tokenizer.bos()) {
            return Ok(None);
        }
        Ok(Some((example, excess > 0)))
    });
    Ok(Fitted::of(fitted.collect::<Result<Vec<_>, Failure>>()?))
}

/// The pairs of rows of format Preference. Both of a pair have the same prompt, cut alike.
///
/// # Errors
/// As [`examples`]; rows of another format.
pub fn pairs(
    (file, rows): (&str, &[Row]),
    tokenizer: &TextTokenizer,
    fit: Fit,
) -> Result<Fitted<Pair>, Failure> {
    let pairs = rows.par_iter().enumerate().map(|(index, row)| {
        let Row::Preference {
            prompt,
            chosen,
            rejected,
        } = row
        else {
            return Err(Failure::bad_data(format!(
                "{file}: row {} is no preference, which objective DPO needs; name a Dataset of format Preference in a \
                 new run",
                index + 1
            )));
        };
        let example = |answer: &str| {
            tokenizer
                .example_completion(prompt, answer)
                .map_err(|error| refused((file, index), &error))
        };
        let mut pair = Pair {
            chosen: example(chosen)?,
            rejected: example(rejected)?,
            reference: 0.0,
        };
        if !fit.takes(longest(&pair), (file, index))? {
            return Ok(None);
        }
        let excess = longest(&pair).saturating_sub(fit.maximum);
        if excess > 0 && !cut_pair(&mut pair, excess, fit, tokenizer.bos()) {
            return Ok(None);
        }
        Ok(Some((pair, excess > 0)))
    });
    Ok(Fitted::of(pairs.collect::<Result<Vec<_>, Failure>>()?))
}

/// Tokens of the longer sequence.
fn longest(pair: &Pair) -> usize {
    pair.chosen.tokens.len().max(pair.rejected.tokens.len())
}

/// Takes `excess` tokens of both. Returns whether anything of both answers is left.
fn cut_pair(pair: &mut Pair, excess: usize, fit: Fit, bos: Option<u32>) -> bool {
    let cut = |example: &mut TokenizedExample| fit.cut(example, excess, bos);
    // Both, whatever the first says.
    [&mut pair.chosen, &mut pair.rejected].map(cut) == [true; 2]
}

fn example(row: &Row, tokenizer: &TextTokenizer) -> Result<TokenizedExample, TokenizerError> {
    match row {
        Row::Text { text } => tokenizer.example_text(text),
        Row::Completion { prompt, completion } => tokenizer.example_completion(prompt, completion),
        // Of two answers the better one is learned.
        Row::Preference { prompt, chosen, .. } => tokenizer.example_completion(prompt, chosen),
        Row::Chat { messages } => tokenizer.example_chat(&chat(messages)),
    }
}

/// What a test row asks: a Completion's or a Preference's prompt, a Chat up to its last answer, or how a Text goes on
/// from its middle, which no metric scores. A text of one word asks nothing, and neither does a conversation that the
/// assistant takes no part in.
///
/// # Errors
/// As [`examples`].
pub fn question(
    row: &Row,
    (file, index): (&str, usize),
    tokenizer: &TextTokenizer,
    maximum: usize,
) -> Result<Option<Question>, Failure> {
    let (prompt, answer) = match row {
        Row::Text { text } => {
            let Some((start, rest)) = halves(text) else {
                return Ok(None);
            };
            (tokenizer.encode_prompt(start), rest)
        }
        Row::Completion { prompt, completion } => (tokenizer.encode_prompt(prompt), &**completion),
        Row::Preference { prompt, chosen, .. } => (tokenizer.encode_prompt(prompt), &**chosen),
        Row::Chat { messages } => {
            let Some(last) = messages.iter().rposition(|m| m.role == "assistant") else {
                return Ok(None);
            };
            let (Some(before), Some(answer)) = (messages.get(..last), messages.get(last)) else {
                return Ok(None);
            };
            (
                tokenizer.encode_chat_prompt(&chat(before)),
                &*answer.content,
            )
        }
    };
    let mut prompt = TokenizedExample {
        tokens: prompt.map_err(|error| refused((file, index), &error))?,
        loss_mask: Vec::new(),
    };
    prompt.loss_mask.resize(prompt.tokens.len(), false);
    let was_cut = cut(&mut prompt, maximum, tokenizer.bos());
    Ok(Some(Question {
        prompt: prompt.tokens,
        answer: first_line(answer).to_owned(),
        completion: answer.to_owned(),
        row: index,
        was_cut,
    }))
}

/// A text up to the first gap between words from its middle on, and behind it; none where there is no such gap.
fn halves(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let middle = text.ceil_char_boundary(text.len() / 2);
    let gap = middle + text.get(middle..)?.find(char::is_whitespace)?;
    text.split_at_checked(gap)
}

/// The first line that has anything on it, trimmed.
pub fn first_line(text: &str) -> &str {
    text.trim_start()
        .lines()
        .next()
        .unwrap_or_default()
        .trim_end()
}

/// Shortens an example to `maximum` tokens: at the start of what comes before the first target
/// (behind the beginning of sequence), and only where that is not enough at the end.
pub fn cut(example: &mut TokenizedExample, maximum: usize, bos: Option<u32>) -> bool {
    let excess = example.tokens.len().saturating_sub(maximum);
    if excess == 0 {
        return false;
    }
    shorten(example, excess, maximum, bos);
    true
}

/// Takes `excess` tokens from the start of the prompt as far as it has them, and what is more than
/// `maximum` then from the end.
fn shorten(example: &mut TokenizedExample, excess: usize, maximum: usize, bos: Option<u32>) {
    let kept = usize::from(bos.is_some() && example.tokens.first().copied() == bos);
    let prompt = example
        .loss_mask
        .iter()
        .position(|target| *target)
        .unwrap_or(example.tokens.len());
    let removed = excess.min(prompt.saturating_sub(kept));
    example.tokens.drain(kept..kept + removed);
    example.loss_mask.drain(kept..kept + removed);
    example.tokens.truncate(maximum);
    example.loss_mask.truncate(maximum);
}

fn chat(messages: &[graftwork_artifacts::rows::Message]) -> Vec<ChatMessage> {
    messages
        .iter()
        .map(|message| ChatMessage::new(message.role.clone(), message.content.clone()))
        .collect()
}

/// The end that a row stands for. What a template says in words of its own may be the row's: it is not
/// repeated, because messages are logged and reach the run's status.
fn refused((file, index): (&str, usize), error: &TokenizerError) -> Failure {
    let rule = match error {
        TokenizerError::Chat(ChatError::None) | TokenizerError::NoEos => {
            return Failure::bad_config(format!("baseModel: {}", causes(error)));
        }
        TokenizerError::Chat(ChatError::Render {
            is_fixed: false, ..
        }) => {
            "the model's chat template refuses the messages, in words that may be theirs".to_owned()
        }
        _ => causes(error),
    };
    Failure::bad_data(format!("{file}: row {}: {rule}", index + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(tokens: &[u32], first_target: usize) -> TokenizedExample {
        TokenizedExample {
            tokens: tokens.to_vec(),
            loss_mask: (0..tokens.len())
                .map(|index| index >= first_target)
                .collect(),
        }
    }

    fn cut_to(mut example: TokenizedExample, maximum: usize) -> (Vec<u32>, Vec<bool>, bool) {
        let was_cut = cut(&mut example, maximum, Some(0));
        (example.tokens, example.loss_mask, was_cut)
    }

    #[test]
    fn a_prompt_loses_its_start_and_keeps_the_beginning_of_sequence() {
        let row = example(&[0, 1, 2, 3, 8, 9], 4);
        assert_eq!(
            cut_to(row.clone(), 6),
            (row.tokens.clone(), row.loss_mask.clone(), false)
        );
        assert_eq!(
            cut_to(row, 4),
            (vec![0, 3, 8, 9], vec![false, false, true, true], true)
        );
    }

    #[test]
    fn a_completion_that_is_too_long_by_itself_loses_its_end() {
        let row = example(&[0, 1, 8, 9, 7], 2);
        assert_eq!(
            cut_to(row, 3),
            (vec![0, 8, 9], vec![false, true, true], true)
        );
        let text = example(&[0, 1, 2, 3], 0);
        assert_eq!(cut_to(text, 3), (vec![0, 1, 2], vec![true; 3], true));
    }

    #[test]
    fn both_answers_of_a_pair_keep_the_same_prompt() {
        let mut pair = Pair {
            chosen: example(&[0, 1, 2, 3, 8], 4),
            rejected: example(&[0, 1, 2, 3, 9, 9, 9], 4),
            reference: 0.0,
        };
        let whole = pair.clone();
        let fit = |maximum| Fit {
            maximum,
            truncation: Truncation::CutStart,
        };
        assert!(cut_pair(&mut pair, 2, fit(5), Some(0)));
        assert_eq!(pair.chosen.tokens, [0, 3, 8]);
        assert_eq!(pair.rejected.tokens, [0, 3, 9, 9, 9]);
        assert!(cut_pair(&mut pair, 3, fit(2), Some(0)));
        assert_eq!(pair.chosen.tokens, [0, 8]);
        assert_eq!(pair.rejected.tokens, [0, 9]);
        assert_eq!(pair.rejected.loss_mask, [false, true]);
        // Of the shorter answer, and then of none, something is left.
        let from_the_end = |maximum| Fit {
            maximum,
            truncation: Truncation::CutEnd,
        };
        assert!(cut_pair(&mut whole.clone(), 2, from_the_end(5), Some(0)));
        assert!(!cut_pair(&mut whole.clone(), 3, from_the_end(4), Some(0)));
    }

    #[test]
    fn a_bad_row_is_named_by_file_number_and_rule_and_without_its_data() {
        let dir = tempfile::tempdir().unwrap();
        let shape = graftwork_model::fixture::TinyShape::default();
        graftwork_model::fixture::write_tiny_base(dir.path(), &shape, 1).unwrap();
        let template = |words: &str| {
            let config = serde_json::json!({
                "bos_token": "<|bos|>",
                "eos_token": "<|eos|>",
                "chat_template": format!(
                    "{{% if messages[0].content == 'secret' %}}{{{{ raise_exception({words}) }}}}{{% endif %}}{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}"
                ),
            });
            let file = dir.path().join("tokenizer_config.json");
            std::fs::write(file, config.to_string()).unwrap();
            TextTokenizer::load(dir.path()).unwrap()
        };
        let row = |content: &str| Row::Chat {
            messages: [("user", content), ("assistant", "yes")]
                .map(|(role, content)| graftwork_artifacts::rows::Message {
                    role: role.to_owned(),
                    content: content.to_owned(),
                })
                .to_vec(),
        };
        let rows = [row("fine"), row("secret")];
        let refuse = |words: &str| {
            let fit = Fit {
                maximum: 64,
                truncation: Truncation::CutStart,
            };
            examples(("train.parquet", &rows), &template(words), fit)
                .unwrap_err()
                .message
        };
        let fixed = refuse("'roles must alternate'");
        assert!(
            fixed.starts_with("train.parquet: row 2: ") && fixed.contains("roles must alternate"),
            "{fixed}"
        );
        let own = refuse("'odd: ' + messages[0].content[:5]");
        assert!(own.starts_with("train.parquet: row 2: "), "{own}");
        assert!(
            own.contains("chat template") && !own.contains("secre"),
            "{own}"
        );

        let Row::Chat { mut messages } = row("fine") else {
            panic!("it is a conversation");
        };
        messages.pop();
        let rows = [row("fine"), Row::Chat { messages }];
        let fit = Fit {
            maximum: 64,
            truncation: Truncation::CutStart,
        };
        let unmarked = examples(("train.parquet", &rows), &template("'no'"), fit);
        let message = unmarked.unwrap_err().message;
        assert!(
            message.starts_with("train.parquet: row 2 has nothing to learn"),
            "{message}"
        );
    }

    #[test]
    fn a_text_is_halved_between_two_words() {
        for (text, expected) in [
            ("one two three", Some(("one two", " three"))),
            (" äää ööö\n", Some(("äää", " ööö"))),
            ("ää öö üü", Some(("ää öö", " üü"))),
            ("word", None),
            ("", None),
        ] {
            assert_eq!(halves(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_too_long_is_cut_left_out_or_refused_as_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let shape = graftwork_model::fixture::TinyShape::default();
        graftwork_model::fixture::write_tiny_base(dir.path(), &shape, 1).unwrap();
        let tokenizer = TextTokenizer::load(dir.path()).unwrap();
        let row = |prompt: &str| Row::Completion {
            prompt: prompt.to_owned(),
            completion: "yes".to_owned(),
        };
        // Tokens are bytes; each row has a beginning and an end besides.
        let rows = [row("abcdef"), row("ab")];
        let fitted = |truncation| {
            let fit = Fit {
                maximum: 8,
                truncation,
            };
            examples(("train.parquet", &rows), &tokenizer, fit)
        };
        let whole = tokenizer.example_completion("abcdef", "yes").unwrap();
        let excess = whole.tokens.len() - 8;
        assert!(excess > 0);

        let start = fitted(Truncation::CutStart).unwrap();
        assert_eq!(start.was_cut, [true, false]);
        assert_eq!(start.kept[0].tokens[1..], whole.tokens[1 + excess..]);
        let end = fitted(Truncation::CutEnd).unwrap();
        assert_eq!(end.kept[0].tokens, whole.tokens[..8]);
        assert_eq!(end.kept[1], start.kept[1]);
        let dropped = fitted(Truncation::Drop).unwrap();
        assert_eq!(dropped.kept, [start.kept[1].clone()]);
        assert_eq!(dropped.rows, [1]);
        assert_eq!(start.rows, [0, 1]);
        let used = |cut, dropped| RowsUsed {
            rows: 2,
            cut,
            dropped,
        };
        assert_eq!(
            [start.used(), end.used(), dropped.used()],
            [used(1, 0), used(1, 0), used(0, 1)]
        );
        let fit = Fit {
            maximum: 6,
            truncation: Truncation::CutEnd,
        };
        let ends_in_its_prompt = examples(("train.parquet", &rows), &tokenizer, fit).unwrap();
        assert_eq!(
            (ends_in_its_prompt.kept.len(), ends_in_its_prompt.used()),
            (1, used(1, 1)),
            "a prompt alone teaches nothing"
        );
        let refused = fitted(Truncation::Error).unwrap_err().message;
        assert!(
            refused.starts_with("train.parquet: row 1 has "),
            "{refused}"
        );
        assert!(refused.contains("maximumSequenceLength 8"), "{refused}");
    }

    #[test]
    fn an_answer_is_its_first_line_trimmed() {
        for (text, line) in [
            (" animal", "animal"),
            ("animal \nand more", "animal"),
            ("\n\n animal\n", "animal"),
            ("", ""),
            (" \n ", ""),
        ] {
            assert_eq!(first_line(text), line, "{text:?}");
        }
    }
}
