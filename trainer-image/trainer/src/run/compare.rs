//! What was made and its reference, scored on the same test rows.

use std::cell::RefCell;

use graftwork_contract::paths;
use graftwork_contract::run::Metric;
use graftwork_model::lora::LoadedAdapter;
use graftwork_model::tokenizer::TextTokenizer;
use graftwork_model::transformer::Llama;

use super::benchmark::Benchmark;
use super::evaluate::{self, Evaluator, Sample};
use super::fence::Fence;
use super::inputs::Inputs;
use super::patience;
use super::progress::Stage;
use super::session::Session;
use crate::failure::Failure;

/// A base model with an adapter, or bare.
pub type Model<'a> = (&'a Llama, Option<&'a LoadedAdapter>);

/// Two models that are compared.
pub struct Compared<'a> {
    /// Of both.
    pub tokenizer: &'a TextTokenizer,
    /// What was made.
    pub new: Model<'a>,
    /// What it is compared with.
    pub old: Model<'a>,
}

/// Scores both on the test rows, and asks them the benchmarks.
///
/// # Errors
/// [`Failure`]: stopped on request, fenced off, or a defect.
pub fn score(
    compared: &Compared<'_>,
    inputs: &Inputs,
    session: &Session<'_>,
    fence: &mut Fence<'_>,
) -> Result<Vec<Metric>, Failure> {
    let (config, reporter) = (session.config, session.reporter);
    reporter.enter(Stage::Evaluate);
    reporter.update(|progress| {
        let benchmarks: u64 = inputs.benchmarks.iter().map(Benchmark::work).sum();
        let rows = Evaluator::work(&config.evaluation.metrics, &inputs.test);
        progress.rows_to_evaluate = rows + benchmarks;
    });
    let fence = RefCell::new(fence);
    let on_rows = |rows: u64| {
        if rows > 0 {
            reporter.update(|progress| progress.evaluated_rows += rows);
        }
        if session.stop.is_set() {
            return Err(Failure::checkpointed(
                "stopped on request while scoring; every step is in the last checkpoint",
            ));
        }
        fence.borrow_mut().check_sometimes()
    };
    let [new, old] = [compared.new.0, compared.old.0].map(|model| Evaluator {
        model,
        tokenizer: compared.tokenizer,
        maximum_new_tokens: config.evaluation.maximum_new_tokens as usize,
        on_rows: &on_rows,
    });
    let (new, old) = ((&new, compared.new.1), (&old, compared.old.1));
    let (mut metrics, samples) =
        evaluate::evaluate(&config.evaluation.metrics, &inputs.test, new, old)?;
    keep_samples(session, &samples);
    for benchmark in &inputs.benchmarks {
        metrics.extend(benchmark.evaluate(new, old)?);
    }
    // The name of a label is the text of a row.
    for metric in metrics.iter().filter(|it| !it.names_a_label()) {
        tracing::info!(
            name = metric.name,
            value = metric.value,
            baseline = metric.baseline,
            samples = metric.samples,
            "test rows scored"
        );
    }
    Ok(metrics)
}

/// Leaves the first answers in the run's folder. Nobody depends on them, so a failure is only logged.
fn keep_samples(session: &Session<'_>, samples: &[Sample]) {
    let (store, config, stop) = (session.store, session.config, session.stop);
    if samples.is_empty() {
        return;
    }
    let lines: String = samples
        .iter()
        .map(|sample| sample.line(config.classification))
        .map(|line| format!("{line}\n"))
        .collect();
    let path = paths::run_samples(&config.run, &config.key);
    let written = patience::tried(&patience::PAUSES, &|| stop.is_set(), || {
        store.put_new(&path, lines.as_bytes())
    });
    if let Err(error) = written {
        tracing::warn!(path, %error, "the answers are not kept");
    }
}
