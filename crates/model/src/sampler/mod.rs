//! From logits to a token. Randomness is a function of (seed, choice, position) alone, so that a
//! request's text depends neither on its batch nor on when it ran.

mod adjust;

pub use adjust::Adjustments;

use crate::kernel::largest;
use crate::random::Stream;

/// A nucleus is first looked for among so many of the best candidates, then among eight times as many.
const NUCLEUS_START: usize = 64;

/// Why no token could be drawn.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SamplerError {
    /// A parameter is out of range.
    #[error("{field} is {value}, must be {range}")]
    Parameter {
        /// The parameter.
        field: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        range: &'static str,
    },
    /// The logits are empty or hold no finite value.
    #[error("the model gave no finite logit")]
    NoLogits,
}

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the most probable token; otherwise logits are divided by it. At most 2 as in OpenAI.
    pub temperature: f32,
    /// Only the smallest set of tokens whose probabilities reach this sum is drawn from.
    pub top_p: f32,
    /// Only so many most probable tokens are drawn from; 0 is no limit.
    pub top_k: u32,
    /// Only tokens with at least this share of the most probable one's probability are drawn from; 0 is no limit
    /// (Nguyen et al. 2024, arXiv:2407.01082).
    pub min_p: f32,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
        }
    }
}

impl SamplingParams {
    /// Always the most probable token.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
    };

    /// # Errors
    /// A parameter out of range, by name.
    pub fn validate(&self) -> Result<(), SamplerError> {
        let check = |field, value, ok: bool, range| {
            if ok {
                Ok(())
            } else {
                Err(SamplerError::Parameter {
                    field,
                    value,
                    range,
                })
            }
        };
        let temperature = self.temperature;
        check(
            "temperature",
            temperature,
            (0.0..=2.0).contains(&temperature),
            "from 0 to 2",
        )?;
        let top_p = self.top_p;
        check(
            "top_p",
            top_p,
            top_p > 0.0 && top_p <= 1.0,
            "above 0 and at most 1",
        )?;
        let min_p = self.min_p;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p), "from 0 to 1")
    }
}

/// What one draw's randomness depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleKey {
    /// The request's seed.
    pub seed: u64,
    /// Which of the request's choices.
    pub choice: u32,
    /// Position of the drawn token in its sequence.
    pub position: u32,
}

impl SampleKey {
    /// Uniform in `[0, 1)`.
    fn uniform(self) -> f64 {
        Stream::new(self.seed, &[u64::from(self.choice)]).uniform(u64::from(self.position))
    }
}

/// Draws a token.
///
/// # Errors
/// A parameter out of range, or no finite logit.
pub fn sample(
    logits: &[f32],
    params: &SamplingParams,
    key: SampleKey,
) -> Result<u32, SamplerError> {
    params.validate()?;
    if !logits.iter().any(|logit| logit.is_finite()) {
        return Err(SamplerError::NoLogits);
    }
    if params.temperature == 0.0 || params.top_k == 1 {
        return Ok(argmax(logits));
    }
    draw(&candidates(logits, params), key.uniform()).ok_or(SamplerError::NoLogits)
}

/// Tokens that may be drawn, with their weights: the best one's is 1. In order of id, or best first where something
/// limits them.
///
/// The rules follow each other: temperature, `min_p`, `top_k`, and `top_p` over what they left.
fn candidates(logits: &[f32], params: &SamplingParams) -> Vec<(u32, f64)> {
    let max = f64::from(largest(logits));
    let temperature = f64::from(params.temperature);
    let least = f64::from(params.min_p);
    let mut candidates: Vec<(u32, f64)> = (0_u32..)
        .zip(logits)
        .map(|(id, logit)| (id, ((f64::from(*logit) - max) / temperature).exp()))
        .filter(|(_, weight)| *weight > 0.0 && *weight >= least)
        .collect();
    let top_k = params.top_k as usize;
    if top_k > 0 && top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k, better);
        candidates.truncate(top_k);
    }
    if params.top_p < 1.0 {
        keep_nucleus(&mut candidates, f64::from(params.top_p));
    } else if top_k > 0 {
        candidates.sort_unstable_by(better);
    }
    candidates
}

/// The more probable first, equal ones by id: a total order, so that no sort has a choice.
fn better(a: &(u32, f64), b: &(u32, f64)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Cuts to the smallest set of best candidates whose weights reach `share` of all, best first.
///
/// A nucleus is small as a rule and the vocabulary large: only as much is sorted as it needs.
fn keep_nucleus(candidates: &mut Vec<(u32, f64)>, share: f64) {
    let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
    let limit = share * total;
    let mut size = NUCLEUS_START;
    loop {
        if size < candidates.len() {
            candidates.select_nth_unstable_by(size, better);
        }
        let size_now = size.min(candidates.len());
        if let Some(best) = candidates.get_mut(..size_now) {
            best.sort_unstable_by(better);
        }
        let mut sum = 0.0;
        let last = candidates.iter().take(size_now).position(|(_, weight)| {
            sum += weight;
            sum >= limit
        });
        if let Some(last) = last {
            candidates.truncate(last + 1);
            return;
        }
        // Sums in another order may stay a last bit below the limit: then everything is kept.
        if size_now == candidates.len() {
            return;
        }
        size *= 8;
    }
}

/// The candidate at `uniform` in `[0, 1)` of all weights, one after the other.
fn draw(candidates: &[(u32, f64)], uniform: f64) -> Option<u32> {
    let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
    let mut left = uniform * total;
    for (id, weight) in candidates {
        left -= weight;
        if left < 0.0 {
            return Some(*id);
        }
    }
    candidates.last().map(|(id, _)| *id)
}

/// The most probable token, the lowest id among equals. 0 for no logits; NaN never wins.
pub fn argmax(logits: &[f32]) -> u32 {
    let best = largest(logits);
    let mut ids = (0_u32..).zip(logits);
    let first = ids.find(|(_, logit)| **logit >= best && best > f32::NEG_INFINITY);
    first.map_or(0, |(id, _)| id)
}

/// Natural logarithms of the probabilities of these tokens at temperature 1; `-inf` for an id
/// outside the vocabulary.
pub fn log_probs(logits: &[f32], ids: &[u32]) -> Vec<f32> {
    let log_sum = crate::kernel::log_sum_exp(logits);
    ids.iter()
        .map(|id| {
            logits
                .get(*id as usize)
                .map_or(f32::NEG_INFINITY, |logit| logit - log_sum)
        })
        .collect()
}

/// The `count` most probable tokens with the logarithms of their probabilities at temperature 1,
/// best first, equal ones by id.
pub fn top_log_probs(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let log_sum = crate::kernel::log_sum_exp(logits);
    let mut all: Vec<(u32, f32)> = (0_u32..)
        .zip(logits)
        .map(|(id, logit)| (id, logit - log_sum))
        .collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count < all.len() {
        all.select_nth_unstable_by(count, order);
        all.truncate(count);
    }
    all.sort_by(order);
    all
}

#[cfg(test)]
mod tests;
