//! Seconds per generated token, of the adapter and of its reference in turn, one sequence at a time. What
//! other work does to the machine shows in the spread of the rounds: a round is one observation, and a
//! difference that is smaller than the spread can't be told from none.

use graftwork_contract::run::{LATENCY_P50, LATENCY_P95, Metric};
use graftwork_model::kv::KV_BLOCK_TOKENS;
use graftwork_model::lora::LoadedAdapter;
use graftwork_model::sampler::argmax;
use graftwork_model::transformer::{LogitRows, SequenceStep};

use super::evaluate::{Contender, Evaluator};
use super::statistics::{Scores, metric};
use super::tokens::Question;
use crate::clock;
use crate::failure::{Failure, causes};

/// Rounds that count, each with both models; one before them warms up.
const ROUNDS: usize = 5;
/// Prompts of a round.
const PROMPTS: usize = 8;
/// Tokens behind each prompt that are timed.
const TOKENS: usize = 16;

/// `latency_p50` and `latency_p95`, in seconds per token; nothing without questions.
///
/// # Errors
/// The forward pass's, or what `on_rows` says.
pub fn measure(
    questions: &[Question],
    new: Contender<'_>,
    old: Contender<'_>,
) -> Result<Vec<Metric>, Failure> {
    let asked: Vec<&[u32]> = questions
        .iter()
        .map(|question| question.prompt.as_slice())
        .filter(|prompt| !prompt.is_empty())
        .take(PROMPTS)
        .collect();
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let (mut of_new, mut of_old) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let mut contenders = [(new, &mut of_new), (old, &mut of_old)];
        // Who comes second meets a warmer machine, or a slower one.
        if round % 2 == 1 {
            contenders.reverse();
        }
        for ((evaluator, adapter), rounds) in contenders {
            let seconds = time(evaluator, &asked, adapter)?;
            if round > 0 {
                rounds.push(seconds);
            }
        }
    }
    Ok(report(of_new, of_old))
}

/// The metrics of rounds of both models, each of which holds the seconds of each token.
fn report(new: Vec<Vec<f64>>, old: Vec<Vec<f64>>) -> Vec<Metric> {
    let tokens: usize = new.iter().map(Vec::len).sum();
    let sorted = |mut rounds: Vec<Vec<f64>>| {
        rounds
            .iter_mut()
            .for_each(|round| round.sort_by(f64::total_cmp));
        rounds
    };
    let (new, old) = (sorted(new), sorted(old));
    let metrics = [(LATENCY_P50, 0.50), (LATENCY_P95, 0.95)].map(|(name, share)| {
        let scores = |rounds: &[Vec<f64>]| {
            Scores::of_rows(rounds.iter().map(|round| at(round, share)).collect())
        };
        let rounds = metric(name, &[scores(&new)], &[scores(&old)], &[]);
        Metric {
            samples: tokens as u64,
            groups: Some(new.len() as u64),
            ..rounds
        }
    });
    metrics.into()
}

/// The smallest value that so large a share of the sorted values does not exceed; 0 of none.
fn at(sorted: &[f64], share: f64) -> f64 {
    let place = (share * sorted.len() as f64).ceil() as usize;
    sorted
        .get(place.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

/// Seconds of each token behind each prompt. The prompt's own pass, which gives the first one, is not
/// among them, and an end of sequence ends nothing: both models make as many tokens.
fn time(
    evaluator: &Evaluator<'_>,
    prompts: &[&[u32]],
    adapter: Option<&LoadedAdapter>,
) -> Result<Vec<f64>, Failure> {
    let tokens = TOKENS.min(evaluator.maximum_new_tokens);
    let mut seconds = Vec::with_capacity(prompts.len() * tokens);
    for prompt in prompts {
        let blocks = (prompt.len() + tokens).div_ceil(KV_BLOCK_TOKENS);
        let pool = evaluator.model.kv_pool(blocks);
        let mut pool = pool.map_err(|error| Failure::bug(causes(&error)))?;
        let mut kv = pool.sequence();
        let mut next = prompt.to_vec();
        for pass in 0..=tokens {
            let start = clock::monotonic();
            let mut steps = [SequenceStep {
                tokens: &next,
                kv: &mut kv,
                adapter,
                logits: LogitRows::Last,
            }];
            let logits = evaluator
                .model
                .forward_rows(&mut steps, &mut pool)
                .map_err(|error| Failure::bug(causes(&error)))?;
            let token = logits.first().map(|logits| argmax(logits.last()));
            if pass > 0 {
                seconds.push(clock::seconds_since(start));
            }
            next = token.into_iter().collect();
            (evaluator.on_rows)(0)?;
        }
    }
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use graftwork_model::base::BaseModel;
    use graftwork_model::fixture::{TinyShape, random_adapter, write_tiny_base};
    use graftwork_model::lora::{LoraConfig, Module};
    use graftwork_model::targets::Targets;
    use graftwork_model::tokenizer::TextTokenizer;
    use graftwork_model::transformer::Llama;

    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        for (share, expected) in [(0.0, 1.0), (0.5, 10.0), (0.95, 19.0), (1.0, 20.0)] {
            assert!((at(&values, share) - expected).abs() < 1e-12, "{share}");
        }
        assert!(at(&[], 0.95).abs() < 1e-12);
    }

    #[test]
    fn a_round_is_one_observation_and_the_rounds_spread_is_the_error() {
        // Medians 3 and 5 against 2 and 2: differences 1 and 3, of standard error 1.
        let new = vec![vec![9.0, 3.0, 1.0], vec![5.0, 4.0, 8.0]];
        let old = vec![vec![2.0, 1.0, 7.0], vec![2.0, 9.0, 1.0]];
        let metrics = report(new, old);
        let names: Vec<&str> = metrics.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["latency_p50", "latency_p95"]);
        let median = &metrics[0];
        assert!((median.value - 4.0).abs() < 1e-12);
        assert!((median.baseline - 2.0).abs() < 1e-12);
        assert!((median.difference - 2.0).abs() < 1e-12);
        assert!((median.difference_standard_error - 1.0).abs() < 1e-12);
        assert_eq!((median.samples, median.groups), (6, Some(2)));
        // The largest of three: 9 and 8 against 7 and 9.
        assert!((metrics[1].difference - 0.5).abs() < 1e-12);
    }

    fn question(tokenizer: &TextTokenizer, row: usize) -> Question {
        Question {
            prompt: tokenizer.encode_prompt("Item 1").unwrap(),
            answer: String::new(),
            completion: String::new(),
            row,
            was_cut: false,
        }
    }

    fn tiny() -> (Llama, TextTokenizer) {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 5).unwrap();
        let model = Llama::new(&BaseModel::load(dir.path()).unwrap());
        (model, TextTokenizer::load(dir.path()).unwrap())
    }

    #[test]
    fn the_two_come_first_in_turn() {
        let (model, tokenizer) = tiny();
        let order = RefCell::new(String::new());
        let note = |name: char| {
            let mut order = order.borrow_mut();
            if !order.ends_with(name) {
                order.push(name);
            }
            Ok(())
        };
        let (of_new, of_old) = (|_: u64| note('n'), |_: u64| note('o'));
        let evaluator = |on_rows| Evaluator {
            model: &model,
            tokenizer: &tokenizer,
            maximum_new_tokens: 1,
            on_rows,
        };
        let (new, old) = (evaluator(&of_new), evaluator(&of_old));
        measure(&[question(&tokenizer, 0)], (&new, None), (&old, None)).unwrap();
        // no on no on no on
        assert_eq!(*order.borrow(), "nononon");
    }

    #[test]
    fn every_token_of_every_round_is_timed() {
        let (model, tokenizer) = tiny();
        let lora = LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            targets: Targets::of(&[Module::QProj]),
            use_rslora: false,
        };
        let adapter = random_adapter(model.config(), &lora, 3);
        let adapter = LoadedAdapter::new(&adapter, model.config()).unwrap();
        let evaluator = Evaluator {
            model: &model,
            tokenizer: &tokenizer,
            maximum_new_tokens: 3,
            on_rows: &|_| Ok(()),
        };
        let questions: Vec<Question> = (0..20).map(|row| question(&tokenizer, row)).collect();
        let metrics =
            measure(&questions, (&evaluator, Some(&adapter)), (&evaluator, None)).unwrap();
        assert_eq!(metrics.len(), 2);
        for metric in metrics {
            let counted = (metric.samples, metric.independent());
            assert_eq!(counted, ((ROUNDS * PROMPTS * 3) as u64, ROUNDS as u64));
            assert!(metric.value > 0.0 && metric.baseline > 0.0, "{metric:?}");
        }
        let nothing = measure(&[], (&evaluator, Some(&adapter)), (&evaluator, None));
        assert_eq!(nothing, Ok(Vec::new()));
    }
}
