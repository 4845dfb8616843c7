//! Scores the new adapter and its reference on the same test rows.

use graftwork_contract::run::{Metric, MetricKind};
use graftwork_model::kv::{KV_BLOCK_TOKENS, KvPool, KvSequence};
use graftwork_model::lora::LoadedAdapter;
use graftwork_model::sampler::argmax;
use graftwork_model::tokenizer::{TextTokenizer, TokenizedExample};
use graftwork_model::transformer::{Llama, LogitRows, ModelError, PackedBatch, SequenceStep};

use crate::failure::{Failure, causes};
use crate::run::statistics::{Scores, metric};
use crate::run::tokens::{Question, first_line};

/// Rows that go through the model together, at most.
const ROWS_TOGETHER: usize = 128;
/// Their tokens together, at most, where there is more than one row: between forward passes a request
/// to stop is heard.
const TOKENS_TOGETHER: usize = 8192;

/// The test rows, as far as they are scored.
#[derive(Debug, Default)]
pub struct TestRows {
    /// With their targets, for the loss.
    pub examples: Vec<TokenizedExample>,
    /// Prompts and right answers, for exact match.
    pub questions: Vec<Question>,
}

/// Scores one base model.
pub struct Evaluator<'a> {
    /// The base model.
    pub model: &'a Llama,
    /// Its tokenizer.
    pub tokenizer: &'a TextTokenizer,
    /// Tokens of an answer at most.
    pub maximum_new_tokens: usize,
    /// Told how many rows are done, and asked whether to go on: after every forward pass.
    pub on_rows: &'a dyn Fn(u64) -> Result<(), Failure>,
}

impl Evaluator<'_> {
    /// Every metric for `adapter`, compared with `reference` (none: the bare base model).
    ///
    /// # Errors
    /// The forward pass's, or what `on_rows` says.
    pub fn evaluate(
        &self,
        metrics: &[MetricKind],
        rows: &TestRows,
        adapter: &LoadedAdapter,
        reference: Option<&LoadedAdapter>,
    ) -> Result<Vec<Metric>, Failure> {
        metrics
            .iter()
            .map(|kind| {
                let score = |adapter| match kind {
                    MetricKind::Loss => self.loss(&rows.examples, adapter),
                    MetricKind::ExactMatch => self.exact_match(&rows.questions, adapter),
                };
                Ok(metric(*kind, &score(Some(adapter))?, &score(reference)?))
            })
            .collect()
    }

    /// Rows times models that [`Self::evaluate`] goes through, for the progress.
    pub fn work(metrics: &[MetricKind], rows: &TestRows) -> u64 {
        let of = |kind: &MetricKind| match kind {
            MetricKind::Loss => rows.examples.len(),
            MetricKind::ExactMatch => rows.questions.len(),
        };
        metrics.iter().map(|kind| 2 * of(kind) as u64).sum()
    }

    /// The summed loss of each row, and its targets.
    ///
    /// # Errors
    /// The forward pass's, or what `on_rows` says.
    pub fn loss(
        &self,
        examples: &[TokenizedExample],
        adapter: Option<&LoadedAdapter>,
    ) -> Result<Scores, Failure> {
        let mut scores = Scores::default();
        for rows in together(examples, |row| row.tokens.len()) {
            let mut batch = PackedBatch::new();
            for row in rows {
                batch.push(&row.tokens, &row.loss_mask);
            }
            let mut sums = vec![(0.0, 0.0); rows.len()];
            for score in self
                .model
                .score(&batch, adapter)
                .map_err(|error| bug(&error))?
            {
                if let Some((sum, tokens)) = sums.get_mut(score.segment) {
                    *sum += f64::from(score.nll);
                    *tokens += 1.0;
                }
            }
            scores.sums.extend(sums.iter().map(|(sum, _)| sum));
            scores.weights.extend(sums.iter().map(|(_, tokens)| tokens));
            (self.on_rows)(rows.len() as u64)?;
        }
        Ok(scores)
    }

    fn exact_match(
        &self,
        questions: &[Question],
        adapter: Option<&LoadedAdapter>,
    ) -> Result<Scores, Failure> {
        // Prompts of like length finish together; the answers do not depend on their company.
        let mut order: Vec<(usize, &Question)> = questions.iter().enumerate().collect();
        order.sort_by_key(|(_, question)| question.prompt.len());
        let mut is_right = vec![0.0; questions.len()];
        for rows in together(&order, |(_, row)| row.prompt.len()) {
            let prompts: Vec<&[u32]> = rows.iter().map(|(_, row)| row.prompt.as_slice()).collect();
            let answers = self.answer(&prompts, adapter)?;
            for ((index, row), answer) in rows.iter().zip(answers) {
                if let Some(slot) = is_right.get_mut(*index).filter(|_| answer == row.answer) {
                    *slot = 1.0;
                }
            }
            (self.on_rows)(rows.len() as u64)?;
        }
        Ok(Scores {
            weights: vec![1.0; is_right.len()],
            sums: is_right,
        })
    }

    /// The first lines of the greedy answers to `prompts`, by the same batched forward pass that
    /// serves.
    ///
    /// # Errors
    /// The forward pass's, or what `on_rows` says.
    pub fn answer(
        &self,
        prompts: &[&[u32]],
        adapter: Option<&LoadedAdapter>,
    ) -> Result<Vec<String>, Failure> {
        let blocks = prompts
            .iter()
            .map(|prompt| (prompt.len() + self.maximum_new_tokens).div_ceil(KV_BLOCK_TOKENS))
            .sum();
        let mut pool = KvPool::new(self.model.config(), blocks);
        let mut answers: Vec<Answer> = prompts
            .iter()
            .map(|prompt| Answer {
                kv: pool.sequence(),
                next: prompt.to_vec(),
                tokens: Vec::new(),
                text: String::new(),
                is_done: prompt.is_empty(),
            })
            .collect();
        for _ in 0..self.maximum_new_tokens {
            let mut running: Vec<&mut Answer> = answers
                .iter_mut()
                .filter(|answer| !answer.is_done)
                .collect();
            if running.is_empty() {
                break;
            }
            let mut steps: Vec<SequenceStep<'_>> = running
                .iter_mut()
                .map(|answer| SequenceStep {
                    tokens: &answer.next,
                    kv: &mut answer.kv,
                    adapter,
                    logits: LogitRows::Last,
                })
                .collect();
            let logits = self
                .model
                .forward_rows(&mut steps, &mut pool)
                .map_err(|error| bug(&error))?;
            for (answer, logits) in running.into_iter().zip(&logits) {
                self.take(answer, argmax(logits.last()))?;
            }
            (self.on_rows)(0)?;
        }
        Ok(answers
            .into_iter()
            .map(|answer| first_line(&answer.text).to_owned())
            .collect())
    }

    /// Adds a token; an answer is done at its end or at the end of its first line.
    fn take(&self, answer: &mut Answer, token: u32) -> Result<(), Failure> {
        if self.model.config().eos_token_ids.contains(&token) || self.tokenizer.eos() == Some(token)
        {
            answer.is_done = true;
            return Ok(());
        }
        answer.tokens.push(token);
        answer.next = vec![token];
        answer.text = self
            .tokenizer
            .decode(&answer.tokens, true)
            .map_err(|error| Failure::bug(causes(&error)))?;
        answer.is_done = answer.text.trim_start().contains('\n')
            || answer.kv.len() + 1 >= self.model.config().max_position_embeddings;
        Ok(())
    }
}

/// Rows in their order, as many at a time as go through the model together.
pub(super) fn together<T>(rows: &[T], tokens: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fitting = rest
            .iter()
            .take(ROWS_TOGETHER)
            .take_while(|row| {
                sum += tokens(row);
                sum <= TOKENS_TOGETHER
            })
            .count();
        let (now, later) = rest.split_at_checked(fitting.max(1))?;
        rest = later;
        Some(now)
    })
}

struct Answer {
    kv: KvSequence,
    next: Vec<u32>,
    tokens: Vec<u32>,
    text: String,
    is_done: bool,
}

fn bug(error: &ModelError) -> Failure {
    Failure::bug(causes(error))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use graftwork_contract::exit::ExitCode;
    use graftwork_model::base::BaseModel;
    use graftwork_model::fixture::{TinyShape, write_tiny_base};

    use super::*;

    #[test]
    fn rows_go_together_up_to_a_number_of_rows_and_of_tokens() {
        let sizes = |lengths: &[usize]| -> Vec<usize> {
            together(lengths, |length| *length)
                .map(<[usize]>::len)
                .collect()
        };
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[1; 300]), [128, 128, 44]);
        assert_eq!(sizes(&[4000, 4000, 4000, 90_000, 1]), [2, 1, 1, 1]);
    }

    #[test]
    fn a_request_to_stop_is_heard_after_every_token_of_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 5).unwrap();
        let base = BaseModel::load(dir.path()).unwrap();
        let tokenizer = TextTokenizer::load(dir.path()).unwrap();
        let model = Llama::new(&base);
        let asked = Cell::new(0);
        let on_rows = |_| {
            asked.set(asked.get() + 1);
            if asked.get() < 3 {
                return Ok(());
            }
            Err(Failure::checkpointed("stopped"))
        };
        let evaluator = Evaluator {
            model: &model,
            tokenizer: &tokenizer,
            maximum_new_tokens: 400,
            on_rows: &on_rows,
        };
        let prompt = tokenizer.encode_prompt("Item 1").unwrap();
        let stopped = evaluator.answer(&[&prompt, &prompt], None).unwrap_err();
        assert_eq!(stopped.code, ExitCode::Checkpointed);
        assert_eq!(asked.get(), 3, "of 400 tokens");
    }
}
