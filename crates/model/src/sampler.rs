//! From logits to a token. Randomness is a function of (seed, choice, position) alone, so that a
//! request's text depends neither on its batch nor on when it ran.

use crate::random::Stream;

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
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
        }
    }
}

impl SamplingParams {
    /// Always the most probable token.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
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
        )
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
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let temperature = f64::from(params.temperature);
    let mut candidates: Vec<(u32, f64)> = (0_u32..)
        .zip(logits)
        .map(|(id, logit)| (id, (f64::from(logit - max) / temperature).exp()))
        .filter(|(_, weight)| *weight > 0.0)
        .collect();
    if params.top_k > 0 || params.top_p < 1.0 {
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if params.top_k > 0 {
            candidates.truncate(params.top_k as usize);
        }
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let limit = f64::from(params.top_p) * total;
        let mut sum = 0.0;
        let kept = candidates.iter().position(|(_, weight)| {
            sum += weight;
            sum >= limit
        });
        candidates.truncate(kept.map_or(candidates.len(), |last| last + 1));
    }
    let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
    let mut left = key.uniform() * total;
    for (id, weight) in &candidates {
        left -= weight;
        if left < 0.0 {
            return Ok(*id);
        }
    }
    candidates
        .last()
        .map(|(id, _)| *id)
        .ok_or(SamplerError::NoLogits)
}

/// The most probable token, the lowest id among equals. 0 for no logits; NaN never wins.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, logit) in (0_u32..).zip(logits) {
        if *logit > best.1 {
            best = (id, *logit);
        }
    }
    best.0
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
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -1.0];

    fn key(position: u32) -> SampleKey {
        SampleKey {
            seed: 9,
            choice: 0,
            position,
        }
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        assert_eq!(sample(&LOGITS, &SamplingParams::GREEDY, key(0)), Ok(1));
        let all = SamplingParams {
            top_k: 1,
            ..SamplingParams::default()
        };
        assert_eq!(sample(&LOGITS, &all, key(0)), Ok(1));
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let draws = 20_000;
        let mut counts = [0.0; 5];
        for position in 0..draws {
            counts[sample(&LOGITS, &SamplingParams::default(), key(position)).unwrap() as usize] +=
                1.0;
        }
        let expected = log_probs(&LOGITS, &[0, 1, 2, 3, 4]);
        for (count, expected) in counts.iter().zip(expected) {
            let share: f32 = count / draws as f32;
            assert!((share - expected.exp()).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn limits_keep_only_the_most_probable() {
        for params in [
            SamplingParams {
                top_k: 2,
                ..SamplingParams::default()
            },
            SamplingParams {
                top_p: 0.7,
                ..SamplingParams::default()
            },
        ] {
            let drawn: std::collections::BTreeSet<u32> = (0..500)
                .map(|position| sample(&LOGITS, &params, key(position)).unwrap())
                .collect();
            assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [1, 3], "{params:?}");
        }
    }

    #[test]
    fn a_draw_depends_on_its_key_alone() {
        let params = SamplingParams::default();
        let draw = |seed, choice, position| {
            sample(
                &[0.0; 1000],
                &params,
                SampleKey {
                    seed,
                    choice,
                    position,
                },
            )
            .unwrap()
        };
        assert_eq!(draw(1, 0, 5), draw(1, 0, 5));
        assert_ne!(draw(1, 0, 5), draw(2, 0, 5));
        assert_ne!(draw(1, 0, 5), draw(1, 1, 5));
        assert_ne!(draw(1, 0, 5), draw(1, 0, 6));
    }

    #[test]
    fn refusals_name_the_parameter() {
        let params = SamplingParams {
            top_p: 0.0,
            ..SamplingParams::default()
        };
        let text = sample(&LOGITS, &params, key(0)).unwrap_err().to_string();
        assert_eq!(text, "top_p is 0, must be above 0 and at most 1");
        assert_eq!(
            sample(&[f32::NAN], &SamplingParams::GREEDY, key(0)),
            Err(SamplerError::NoLogits)
        );
    }

    #[test]
    fn top_log_probs_are_sorted() {
        let top = top_log_probs(&LOGITS, 3);
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 2]);
        assert_eq!(top_log_probs(&LOGITS, 99).len(), 5);
    }
}
