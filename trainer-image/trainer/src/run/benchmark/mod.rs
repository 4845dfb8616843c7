//! Benchmarks: files of questions that the adapter and its reference are asked beside the test rows.

mod answers;
mod choices;
mod lines;

use std::path::Path;

use graftwork_contract::Digest;
use graftwork_contract::run::{BENCHMARK_PREFIX, Evaluation, Metric};
use graftwork_model::config::LlamaConfig;
use graftwork_model::lora::LoadedAdapter;
use graftwork_model::tokenizer::{TextTokenizer, TokenizedExample};

use super::evaluate::{Contender, Evaluator};
use super::statistics::{Scores, metric};
use super::test_rows::room_for_prompts;
use super::tokens::cut;
use crate::failure::{Failure, causes};
use answers::Prompted;
use choices::{Choice, Length, accuracy};
use lines::{Questions, parse};

/// Bytes of a file at most.
const MOST_BYTES: u64 = 256 << 20;

/// A file of questions, as tokens.
#[derive(Debug)]
pub struct Benchmark {
    name: String,
    asked: Asked,
    /// The number of each question's group; empty: every question is one.
    groups: Vec<usize>,
}

/// Questions with what the model is given for them.
#[derive(Debug)]
enum Asked {
    /// With each choice behind the context.
    Choices(Vec<(Choice, Vec<TokenizedExample>)>),
    /// With the prompt.
    Prompted(Vec<(Prompted, Vec<u32>)>),
}

/// Reads the benchmarks that a run names.
///
/// # Errors
/// [`Failure`] with `BadConfig`: no file. With `BadData`: lines that can't be asked, by number and rule.
/// With `Unavailable`: the volume does not give the file.
pub fn read(
    evaluation: &Evaluation,
    tokenizer: &TextTokenizer,
    base: &LlamaConfig,
) -> Result<Vec<Benchmark>, Failure> {
    let benchmarks = evaluation.benchmarks.iter().map(|given| {
        let named = format!("benchmark {}", given.name);
        let text = read_file(&named, &given.uri, Path::new(&given.path))?;
        let (questions, groups) = parse(&named, &text)?;
        let (asked, cut) = tokens(&named, questions, evaluation, tokenizer, base)?;
        tracing::info!(
            name = given.name,
            digest = %Digest::of(text.as_bytes()),
            questions = asked.len(),
            cut,
            "benchmark read"
        );
        Ok(Benchmark {
            name: given.name.clone(),
            asked,
            groups,
        })
    });
    benchmarks.collect()
}

fn read_file(named: &str, uri: &str, path: &Path) -> Result<String, Failure> {
    let failure = |error: &std::io::Error| {
        let message = format!("{named}: cannot read {uri}: {error}");
        match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::IsADirectory => {
                Failure::bad_config(message)
            }
            std::io::ErrorKind::InvalidData => {
                Failure::bad_data(format!("{named}: {uri} is no UTF-8 text"))
            }
            _ => Failure::unavailable(message),
        }
    };
    let bytes = std::fs::metadata(path)
        .map_err(|error| failure(&error))?
        .len();
    if bytes > MOST_BYTES {
        return Err(Failure::bad_data(format!(
            "{named}: {uri} has {bytes} bytes, must be at most {MOST_BYTES}"
        )));
    }
    std::fs::read_to_string(path).map_err(|error| failure(&error))
}

/// The questions as tokens, and how many of them were cut.
fn tokens(
    named: &str,
    questions: Questions,
    evaluation: &Evaluation,
    tokenizer: &TextTokenizer,
    base: &LlamaConfig,
) -> Result<(Asked, usize), Failure> {
    let refused = |index: usize, why: &str| {
        Failure::bad_data(format!("{named} question {}: {why}", index + 1))
    };
    let mut cuts = 0;
    let asked = match questions {
        Questions::Choices(questions) => {
            let mut asked = Vec::with_capacity(questions.len());
            for (index, question) in questions.into_iter().enumerate() {
                let (examples, was_cut) = question
                    .examples(tokenizer, base.max_position_embeddings)
                    .map_err(|error| refused(index, &causes(&error)))?;
                if examples.iter().any(|it| !it.loss_mask.contains(&true)) {
                    return Err(refused(index, "a choice has no token of its own"));
                }
                cuts += usize::from(was_cut);
                asked.push((question, examples));
            }
            Asked::Choices(asked)
        }
        Questions::Prompted(questions) => {
            let room = room_for_prompts(evaluation, base)?;
            let mut asked = Vec::with_capacity(questions.len());
            for (index, question) in questions.into_iter().enumerate() {
                let tokens = tokenizer
                    .encode_prompt(&question.context)
                    .map_err(|error| refused(index, &causes(&error)))?;
                let mut prompt = TokenizedExample {
                    loss_mask: vec![false; tokens.len()],
                    tokens,
                };
                cuts += usize::from(cut(&mut prompt, room, tokenizer.bos()));
                asked.push((question, prompt.tokens));
            }
            Asked::Prompted(asked)
        }
    };
    Ok((asked, cuts))
}

impl Asked {
    fn len(&self) -> usize {
        match self {
            Self::Choices(questions) => questions.len(),
            Self::Prompted(questions) => questions.len(),
        }
    }
}

impl Benchmark {
    /// Sequences times models that [`Self::evaluate`] goes through, for the progress.
    pub fn work(&self) -> u64 {
        let sequences: usize = match &self.asked {
            Asked::Choices(questions) => questions.iter().map(|(_, choices)| choices.len()).sum(),
            Asked::Prompted(questions) => questions.len(),
        };
        2 * sequences as u64
    }

    /// What `new` scores beside `old`: of choices
    /// `benchmark/<name>` (`acc`), `/acc_norm` and `/acc_bytes`; of answers `benchmark/<name>`
    /// (`exact_match`).
    ///
    /// # Errors
    /// The evaluator's.
    pub fn evaluate(&self, new: Contender<'_>, old: Contender<'_>) -> Result<Vec<Metric>, Failure> {
        let new = self.scores(new.0, new.1)?;
        let old = self.scores(old.0, old.1)?;
        let metrics = new.into_iter().zip(old).map(|((suffix, new), (_, old))| {
            let name = format!("{BENCHMARK_PREFIX}{}{suffix}", self.name);
            metric(&name, &[new], &[old], &self.groups)
        });
        Ok(metrics.collect())
    }

    /// What one model scores, with what a metric's name has behind the benchmark's.
    fn scores(
        &self,
        evaluator: &Evaluator<'_>,
        adapter: Option<&LoadedAdapter>,
    ) -> Result<Vec<(&'static str, Scores)>, Failure> {
        match &self.asked {
            Asked::Choices(questions) => {
                let examples: Vec<TokenizedExample> = questions
                    .iter()
                    .flat_map(|(_, examples)| examples.iter().cloned())
                    .collect();
                let losses = evaluator.loss(&examples, adapter)?;
                let log_likelihoods = losses.sums.iter().map(|loss| -loss).collect::<Vec<_>>();
                let score = |length: Length| {
                    let mut rest = log_likelihoods.as_slice();
                    let rows = questions.iter().map(|(question, examples)| {
                        let (own, others) =
                            rest.split_at_checked(examples.len()).unwrap_or_default();
                        rest = others;
                        accuracy(question, own, length)
                    });
                    Scores::of_rows(rows.collect())
                };
                let all = Length::ALL.into_iter();
                Ok(all
                    .map(|(length, suffix)| (suffix, score(length)))
                    .collect())
            }
            Asked::Prompted(questions) => {
                let prompts: Vec<&[u32]> = questions
                    .iter()
                    .map(|(_, prompt)| prompt.as_slice())
                    .collect();
                let is_done = |number: usize, text: &str| {
                    let question = questions.get(number);
                    question.is_some_and(|(question, _)| question.is_answered(text))
                };
                let generated = evaluator.answers(&prompts, adapter, &is_done)?;
                let rows = questions.iter().zip(&generated);
                let rows = rows.map(|((question, _), text)| question.exact_match(text));
                Ok(vec![("", Scores::of_rows(rows.collect()))])
            }
        }
    }
}

#[cfg(test)]
mod tests;
