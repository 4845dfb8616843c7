//! The rows to score: read, without those that were trained on, as tokens.

use graftwork_artifacts::Store;
use graftwork_artifacts::rows::{self, Row, file_name};
use graftwork_contract::dataset::Split;
use graftwork_contract::run::{Evaluation, MetricKind, RowsUsed, TrainerConfig, Truncation};
use graftwork_model::config::LlamaConfig;
use graftwork_model::tokenizer::TextTokenizer;

use super::evaluate::{SAMPLES, TestRows};
use super::inputs::{read_split, used};
use super::labels::labels;
use super::patience;
use super::seen::rows_trained_on;
use super::tokens::{Fit, examples, question};
use crate::failure::{Failure, causes};

/// Reads the rows of the test split that are scored.
///
/// # Errors
/// [`Failure`] with `BadData`: no rows, rows that can't be used, damaged files.
pub fn read_test(
    store: &Store,
    config: &TrainerConfig,
    tokenizer: &TextTokenizer,
    base: &LlamaConfig,
    length: usize,
) -> Result<(TestRows, RowsUsed), Failure> {
    let mut rows = read_split(store, config, Split::Test)?;
    if let Some(maximum) = config.evaluation.maximum_rows {
        rows.truncate(maximum as usize);
    }
    let file = file_name(Split::Test);
    let metrics = &config.evaluation.metrics;
    let was_seen = rows_trained_on(store, config, &rows)?;
    check(config, &was_seen)?;
    let unseen: Vec<(usize, &Row)> = rows
        .iter()
        .enumerate()
        .zip(&was_seen)
        .filter_map(|(row, was_seen)| (!was_seen).then_some(row))
        .collect();

    let mut test = TestRows {
        groups: read_groups(store, config, rows.len())?,
        excluded: (rows.len() - unseen.len()) as u64,
        ..TestRows::default()
    };
    if metrics.contains(&MetricKind::MeanReward) {
        test.rewards = read_rewards(store, config)?;
    }
    let (mut was_cut, mut dropped) = (vec![false; rows.len()], 0);
    if metrics.iter().any(|metric| !metric.needs_answers()) {
        // Whatever is trained on: runs are compared on the same rows.
        let fit = Fit {
            maximum: length,
            truncation: Truncation::CutStart,
        };
        let scored = examples((&file, &rows), tokenizer, fit)?;
        let rows = scored.rows.into_iter().zip(scored.was_cut);
        for ((row, is_cut), example) in rows.zip(scored.kept) {
            if was_seen.get(row) == Some(&false)
                && let Some(was_cut) = was_cut.get_mut(row)
            {
                *was_cut = is_cut;
                test.rows.push(row);
                test.examples.push(example);
            }
        }
        dropped = (unseen.len() - test.rows.len()) as u64;
    }
    let needs_answers = metrics.iter().any(|metric| metric.needs_answers());
    let wanted = if needs_answers { unseen.len() } else { SAMPLES };
    match room_for_prompts(&config.evaluation, base) {
        Err(failure) if needs_answers => return Err(failure),
        Err(_) => {}
        Ok(room) => {
            for (index, row) in unseen.iter().take(wanted) {
                let question = question(row, (&file, *index), tokenizer, room.min(length))?;
                let is_cut = question.as_ref().is_some_and(|question| question.was_cut);
                if let Some(was_cut) = was_cut.get_mut(*index) {
                    *was_cut |= is_cut && needs_answers;
                }
                test.questions.extend(question);
            }
        }
    }
    if metrics.contains(&MetricKind::ClassificationReport) {
        labels(&test.questions)?;
    }
    let was_cut: Vec<bool> = was_cut
        .into_iter()
        .zip(&was_seen)
        .filter_map(|(was_cut, was_seen)| (!was_seen).then_some(was_cut))
        .collect();
    let used = RowsUsed {
        dropped,
        ..used(&was_cut)
    };
    Ok((test, used))
}

/// That there is something to score, where something is to be measured.
fn check(config: &TrainerConfig, was_seen: &[bool]) -> Result<(), Failure> {
    let dataset = &config.resolved.dataset;
    if was_seen.is_empty() && !config.evaluation.metrics.is_empty() {
        return Err(Failure::bad_data(format!(
            "dataset {} version {} has no rows in its test split, and spec.evaluation.metrics needs some; raise \
             spec.split.testPercent of the Dataset",
            dataset.name, dataset.version
        )));
    }
    if !was_seen.is_empty() && was_seen.iter().all(|was_seen| *was_seen) {
        return Err(Failure::bad_data(format!(
            "dataset {} version {}: all {} rows to score are rows that the adapter or its reference is \
             trained on; the test split needs others",
            dataset.name,
            dataset.version,
            was_seen.len()
        )));
    }
    Ok(())
}

/// Tokens that a prompt may have before what is generated.
///
/// # Errors
/// [`Failure`] with `BadConfig` where there are none.
pub fn room_for_prompts(evaluation: &Evaluation, base: &LlamaConfig) -> Result<usize, Failure> {
    let new_tokens = evaluation.maximum_new_tokens as usize;
    let room = base.max_position_embeddings.saturating_sub(new_tokens);
    if room == 0 {
        return Err(Failure::bad_config(format!(
            "spec.evaluation.maximumNewTokens is {new_tokens}, must be below the base model's context {}",
            base.max_position_embeddings
        )));
    }
    Ok(room)
}

/// The reward of each test row.
///
/// # Errors
/// [`Failure`]: the store's, or `BadData` where the dataset keeps none.
fn read_rewards(store: &Store, config: &TrainerConfig) -> Result<Vec<f64>, Failure> {
    let dataset = &config.resolved.dataset;
    let read = || rows::rewards(store, &dataset.name, &dataset.digest, Split::Test);
    let rewards = patience::read(read).map_err(|error| Failure::unavailable(causes(&error)))?;
    if rewards.is_empty() {
        return Err(Failure::bad_data(format!(
            "dataset {} version {} keeps no rewards, which MeanReward in spec.evaluation.metrics needs: set \
             spec.format.reward of the Dataset",
            dataset.name, dataset.version
        )));
    }
    Ok(rewards)
}

/// The number of each test row's group; empty where there are none.
fn read_groups(store: &Store, config: &TrainerConfig, rows: usize) -> Result<Vec<usize>, Failure> {
    let dataset = &config.resolved.dataset;
    let read = || rows::groups(store, &dataset.name, &dataset.digest, Split::Test);
    let names = patience::read(read).map_err(|error| Failure::unavailable(causes(&error)))?;
    let mut numbers = std::collections::HashMap::new();
    let numbered = names.into_iter().take(rows).map(|name| {
        let next = numbers.len();
        *numbers.entry(name).or_insert(next)
    });
    Ok(numbered.collect())
}
