//! Scores the new adapter and its reference on the same test rows.

use graftwork_contract::dataset::Classification;
use graftwork_contract::run::{Metric, MetricKind};
use graftwork_model::kv::{KV_BLOCK_TOKENS, KvSequence};
use graftwork_model::lora::LoadedAdapter;
use graftwork_model::sampler::argmax;
use graftwork_model::tokenizer::{TextTokenizer, TokenizedExample};
use graftwork_model::transformer::{Llama, LogitRows, ModelError, PackedBatch, SequenceStep};
use serde::Serialize;

use crate::failure::{Failure, causes};
use crate::run::rouge::rouge_l;
use crate::run::statistics::{Scores, metric, perplexity};
use crate::run::tokens::{Question, first_line};
use crate::run::{labels, latency};

/// Rows that go through the model together, at most.
const ROWS_TOGETHER: usize = 128;
/// Their tokens together, at most, where there is more than one row: between forward passes a request
/// to stop is heard.
const TOKENS_TOGETHER: usize = 8192;

/// Answers that are kept for people to read. Where no metric needs answers, so many are generated for
/// this alone.
pub const SAMPLES: usize = 25;

/// Whether the answer to the prompt of this number, as far as it is generated, is all that is wanted.
pub type IsDone<'a> = &'a dyn Fn(usize, &str) -> bool;

/// The test rows, as far as they are scored.
#[derive(Debug, Default)]
pub struct TestRows {
    /// With their targets, for what is teacher forced.
    pub examples: Vec<TokenizedExample>,
    /// The number of each example's row, from 0.
    pub rows: Vec<usize>,
    /// Prompts and right answers, for what is generated.
    pub questions: Vec<Question>,
    /// The number of each row's group; empty: every row is one.
    pub groups: Vec<usize>,
    /// The reward of each row; empty where nothing looks at them.
    pub rewards: Vec<f64>,
    /// Rows that are left out, because one of the models was trained on them.
    pub excluded: u64,
}

impl TestRows {
    /// The groups of the rows that a metric looks at.
    fn groups_of(&self, kind: MetricKind) -> Vec<usize> {
        let group = |row: &usize| self.groups.get(*row).copied();
        if kind.needs_answers() {
            let rows = self.questions.iter().map(|it| &it.row);
            rows.filter_map(group).collect()
        } else {
            self.rows.iter().filter_map(group).collect()
        }
    }
}

/// A generated answer, for people to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Number of the test row, from 1.
    pub row: usize,
    /// What was asked, as the model saw it without special tokens.
    pub prompt: String,
    /// What the dataset says.
    pub expected: String,
    /// What the new adapter says.
    pub answer: String,
    /// What its reference says.
    pub reference_answer: String,
}

impl Sample {
    /// As a line of JSON. Each line says by itself how far it may go.
    pub fn line(&self, classification: Option<Classification>) -> String {
        let mut value = serde_json::json!(self);
        if let (Some(classification), Some(fields)) = (classification, value.as_object_mut()) {
            fields.insert("classification".to_owned(), classification.name().into());
        }
        value.to_string()
    }
}

/// What one model makes of the test rows.
#[derive(Debug, Default)]
struct Scored {
    /// Of each example: summed loss, targets that were the most probable tokens, targets.
    losses: Vec<f64>,
    hits: Vec<f64>,
    targets: Vec<f64>,
    /// The answer to each question.
    answers: Vec<String>,
}

impl Scored {
    /// What is summed over targets.
    fn per_target(&self, sums: &[f64]) -> Scores {
        Scores {
            sums: sums.to_vec(),
            weights: self.targets.clone(),
        }
    }

    /// What each answer scores.
    fn per_answer(&self, questions: &[Question], score: impl Fn(&Question, &str) -> f64) -> Scores {
        let answers = questions.iter().zip(&self.answers);
        Scores::of_rows(answers.map(|(question, it)| score(question, it)).collect())
    }
}

/// 1 where the answer's first line is the right one's.
fn exact_match(question: &Question, answer: &str) -> f64 {
    f64::from(u8::from(first_line(answer) == question.answer))
}

/// The metrics of this kind, of the new adapter and of its reference.
fn measured(kind: MetricKind, rows: &TestRows, new: &Scored, old: &Scored) -> Vec<Metric> {
    let (questions, groups) = (&rows.questions, rows.groups_of(kind));
    let one = |score: &dyn Fn(&Scored) -> Scores| {
        vec![metric(kind.name(), &[score(new)], &[score(old)], &groups)]
    };
    let mut metrics = match kind {
        MetricKind::Loss => one(&|it| it.per_target(&it.losses)),
        MetricKind::Perplexity => {
            let [new, old] = [new, old].map(|it| it.per_target(&it.losses));
            vec![perplexity(kind.name(), &new, &old, &groups)]
        }
        MetricKind::TokenAccuracy => one(&|it| it.per_target(&it.hits)),
        MetricKind::ExactMatch => one(&|it| it.per_answer(questions, exact_match)),
        MetricKind::MeanReward => one(&|it| {
            it.per_answer(questions, |question, answer| {
                let reward = rows.rewards.get(question.row).copied();
                exact_match(question, answer) * reward.unwrap_or_default()
            })
        }),
        MetricKind::RougeL => one(&|it| {
            it.per_answer(questions, |question, answer| {
                rouge_l(&question.completion, answer)
            })
        }),
        MetricKind::ClassificationReport => {
            labels::report(questions, &new.answers, &old.answers, &groups)
        }
        // Answers that are generated together tell nothing about it.
        MetricKind::Latency => Vec::new(),
    };
    for metric in &mut metrics {
        metric.excluded = rows.excluded;
    }
    metrics
}

/// What is scored: a base model with an adapter, or bare.
pub type Contender<'a> = (&'a Evaluator<'a>, Option<&'a LoadedAdapter>);

/// Every metric of `new`, compared with `old`, and the first answers of both.
///
/// # Errors
/// The forward pass's, or what `on_rows` says.
pub fn evaluate(
    metrics: &[MetricKind],
    rows: &TestRows,
    new: Contender<'_>,
    old: Contender<'_>,
) -> Result<(Vec<Metric>, Vec<Sample>), Failure> {
    let scored_new = new.0.scored(metrics, rows, new.1)?;
    let scored_old = old.0.scored(metrics, rows, old.1)?;
    let mut measurements: Vec<Metric> = metrics
        .iter()
        .flat_map(|kind| measured(*kind, rows, &scored_new, &scored_old))
        .collect();
    if metrics.contains(&MetricKind::Latency) {
        measurements.extend(latency::measure(&rows.questions, new, old)?);
    }
    let answers = rows.questions.iter().zip(&scored_new.answers);
    let samples = answers
        .zip(&scored_old.answers)
        .take(SAMPLES)
        .map(|((question, answer), reference_answer)| {
            let prompt = new.0.tokenizer.decode(&question.prompt, true);
            Ok(Sample {
                row: question.row + 1,
                prompt: prompt.map_err(|error| Failure::bug(causes(&error)))?,
                expected: question.completion.clone(),
                answer: answer.clone(),
                reference_answer: reference_answer.clone(),
            })
        })
        .collect::<Result<_, Failure>>()?;
    Ok((measurements, samples))
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
    /// Rows times models that [`evaluate`] goes through, for the progress.
    pub fn work(metrics: &[MetricKind], rows: &TestRows) -> u64 {
        let targets = metrics.iter().any(|kind| !kind.needs_answers());
        let examples = if targets { rows.examples.len() } else { 0 };
        2 * (examples + rows.questions.len()) as u64
    }

    /// Goes through the rows once for all metrics.
    fn scored(
        &self,
        metrics: &[MetricKind],
        rows: &TestRows,
        adapter: Option<&LoadedAdapter>,
    ) -> Result<Scored, Failure> {
        let mut scored = Scored::default();
        if metrics.iter().any(|kind| !kind.needs_answers()) {
            self.score_targets(&rows.examples, adapter, &mut scored)?;
        }
        if !rows.questions.is_empty() {
            let prompts: Vec<&[u32]> = rows
                .questions
                .iter()
                .map(|it| it.prompt.as_slice())
                .collect();
            // Where nothing looks at more than the first line, an answer ends with it.
            let whole = metrics.contains(&MetricKind::RougeL);
            let is_done = |_: usize, text: &str| !whole && text.trim_start().contains('\n');
            scored.answers = self.answers(&prompts, adapter, &is_done)?;
        }
        Ok(scored)
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
        let mut scored = Scored::default();
        self.score_targets(examples, adapter, &mut scored)?;
        Ok(scored.per_target(&scored.losses))
    }

    fn score_targets(
        &self,
        examples: &[TokenizedExample],
        adapter: Option<&LoadedAdapter>,
        scored: &mut Scored,
    ) -> Result<(), Failure> {
        for rows in together(examples, |row| row.tokens.len()) {
            let mut batch = PackedBatch::new();
            for row in rows {
                batch.push(&row.tokens, &row.loss_mask);
            }
            let mut sums = vec![[0.0; 3]; rows.len()];
            for score in self
                .model
                .score(&batch, adapter)
                .map_err(|error| bug(&error))?
            {
                if let Some([loss, hits, targets]) = sums.get_mut(score.segment) {
                    *loss += f64::from(score.nll);
                    *hits += f64::from(u8::from(score.argmax == score.target));
                    *targets += 1.0;
                }
            }
            scored.losses.extend(sums.iter().map(|[loss, ..]| loss));
            scored.hits.extend(sums.iter().map(|[_, hits, _]| hits));
            scored
                .targets
                .extend(sums.iter().map(|[.., targets]| targets));
            (self.on_rows)(rows.len() as u64)?;
        }
        Ok(())
    }

    /// The greedy answers to `prompts`, in their order.
    ///
    /// # Errors
    /// The forward pass's, or what `on_rows` says.
    pub fn answers(
        &self,
        prompts: &[&[u32]],
        adapter: Option<&LoadedAdapter>,
        is_done: IsDone<'_>,
    ) -> Result<Vec<String>, Failure> {
        // Prompts of like length finish together; the answers do not depend on their company.
        let mut order: Vec<(usize, &[u32])> = prompts.iter().copied().enumerate().collect();
        order.sort_by_key(|(_, prompt)| prompt.len());
        let mut answers = vec![String::new(); prompts.len()];
        for rows in together(&order, |(_, prompt)| prompt.len()) {
            for ((index, _), answer) in rows.iter().zip(self.answer(rows, adapter, is_done)?) {
                if let Some(slot) = answers.get_mut(*index) {
                    *slot = answer;
                }
            }
            (self.on_rows)(rows.len() as u64)?;
        }
        Ok(answers)
    }

    /// The greedy answers to numbered prompts, by the same batched forward pass that serves.
    fn answer(
        &self,
        prompts: &[(usize, &[u32])],
        adapter: Option<&LoadedAdapter>,
        is_done: IsDone<'_>,
    ) -> Result<Vec<String>, Failure> {
        let blocks = prompts
            .iter()
            .map(|(_, prompt)| (prompt.len() + self.maximum_new_tokens).div_ceil(KV_BLOCK_TOKENS))
            .sum();
        let pool = self.model.kv_pool(blocks);
        let mut pool = pool.map_err(|error| bug(&error))?;
        let mut answers: Vec<Answer> = prompts
            .iter()
            .map(|(number, prompt)| Answer {
                number: *number,
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
                self.take(answer, argmax(logits.last()), is_done)?;
            }
            (self.on_rows)(0)?;
        }
        Ok(answers.into_iter().map(|answer| answer.text).collect())
    }

    /// Adds a token; an answer is done at its end, or where no more of it is wanted.
    fn take(&self, answer: &mut Answer, token: u32, is_done: IsDone<'_>) -> Result<(), Failure> {
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
        answer.is_done = is_done(answer.number, &answer.text)
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
    /// Of its prompt.
    number: usize,
    kv: KvSequence,
    next: Vec<u32>,
    tokens: Vec<u32>,
    text: String,
    is_done: bool,
}

fn bug(error: &ModelError) -> Failure {
    Failure::from(error)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use graftwork_contract::exit::ExitCode;
    use graftwork_model::base::BaseModel;
    use graftwork_model::config::LlamaConfig;
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
        let stopped = evaluator
            .answers(&[&prompt, &prompt], None, &|_, _| false)
            .unwrap_err();
        assert_eq!(stopped.code, ExitCode::Checkpointed);
        assert_eq!(asked.get(), 3, "of 400 tokens");
    }

    #[test]
    fn an_answer_ends_at_each_end_that_the_model_has() {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 5).unwrap();
        let base = BaseModel::load(dir.path()).unwrap();
        let tokenizer = TextTokenizer::load(dir.path()).unwrap();
        let prompt = tokenizer.encode_prompt("Item 1").unwrap();
        // Passes of an answer of four tokens at most, by a model with these end tokens.
        let passes = |ends: Vec<u32>| {
            let config = LlamaConfig {
                eos_token_ids: ends,
                ..base.config().clone()
            };
            let base = BaseModel::from_tensors(config, base.tensors().clone()).unwrap();
            let model = Llama::new(&base);
            let asked = Cell::new(0_u32);
            let on_rows = |rows: u64| {
                asked.set(asked.get() + u32::from(rows == 0));
                Ok(())
            };
            let evaluator = Evaluator {
                model: &model,
                tokenizer: &tokenizer,
                maximum_new_tokens: 4,
                on_rows: &on_rows,
            };
            evaluator.answers(&[&prompt], None, &|_, _| false).unwrap();
            asked.get()
        };
        assert_eq!(passes((0..base.config().vocab_size as u32).collect()), 1);
        assert!(passes(tokenizer.eos().into_iter().collect()) > 1);
    }
}
