//! What a request changes in the logits before a token is drawn: penalties and biases.

use std::collections::{BTreeMap, BTreeSet};

/// Changes to logits. All of it is a function of the tokens so far, so that a sequence that is computed
/// again after it lost its cache goes on with the same ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Adjustments {
    /// Taken once from every token that was generated before; 0 changes nothing (OpenAI).
    pub presence_penalty: f32,
    /// Taken from a generated token for each time; 0 changes nothing (OpenAI).
    pub frequency_penalty: f32,
    /// Divides positive logits of every token of prompt and answer, multiplies negative ones; 1 changes
    /// nothing (Keskar et al. 2019, arXiv:1909.05858, section 4.1).
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for Adjustments {
    fn default() -> Self {
        Self {
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
        }
    }
}

impl Adjustments {
    /// Whether nothing changes.
    pub fn is_neutral(&self) -> bool {
        *self == Self::default()
    }

    /// Changes `logits`, `[vocab_size]`. Tokens outside the vocabulary are passed over.
    ///
    /// The repetition penalty comes first, on the model's own logits, whose sign it reads; a bias comes
    /// last, so that it bans or forces a token whatever the penalties.
    pub fn apply(&self, logits: &mut [f32], prompt: &[u32], generated: &[u32]) {
        if (self.repetition_penalty - 1.0).abs() > 0.0 {
            let seen: BTreeSet<u32> = prompt.iter().chain(generated).copied().collect();
            for id in seen {
                change(logits, id, |logit| {
                    if logit > 0.0 {
                        logit / self.repetition_penalty
                    } else {
                        logit * self.repetition_penalty
                    }
                });
            }
        }
        let mut counts = BTreeMap::<u32, u32>::new();
        for id in generated {
            *counts.entry(*id).or_default() += 1;
        }
        for (id, count) in counts {
            let penalty = self.presence_penalty + self.frequency_penalty * count as f32;
            change(logits, id, |logit| logit - penalty);
        }
        for (id, bias) in &self.logit_bias {
            change(logits, *id, |logit| logit + bias);
        }
    }
}

fn change(logits: &mut [f32], id: u32, how: impl Fn(f32) -> f32) {
    if let Some(logit) = logits.get_mut(id as usize) {
        *logit = how(*logit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits 2, -1, 0, 4, 1 after prompt `[0, 1]` and answer `[3, 3, 4]`.
    fn adjusted(adjustments: &Adjustments) -> Vec<f32> {
        let mut logits = vec![2.0, -1.0, 0.0, 4.0, 1.0];
        adjustments.apply(&mut logits, &[0, 1], &[3, 3, 4]);
        logits
    }

    #[test]
    fn each_rule_changes_the_tokens_that_it_is_about() {
        let neutral = Adjustments::default();
        for (what, adjustments, expected) in [
            ("nothing", neutral.clone(), [2.0, -1.0, 0.0, 4.0, 1.0]),
            (
                "presence: what was generated, once",
                Adjustments {
                    presence_penalty: 0.5,
                    ..neutral.clone()
                },
                [2.0, -1.0, 0.0, 3.5, 0.5],
            ),
            (
                "frequency: what was generated, each time",
                Adjustments {
                    frequency_penalty: 0.5,
                    ..neutral.clone()
                },
                [2.0, -1.0, 0.0, 3.0, 0.5],
            ),
            (
                "repetition: the prompt's tokens too, always downwards",
                Adjustments {
                    repetition_penalty: 2.0,
                    ..neutral.clone()
                },
                [1.0, -2.0, 0.0, 2.0, 0.5],
            ),
            (
                "bias: the named tokens, those outside the vocabulary passed over",
                Adjustments {
                    logit_bias: vec![(2, 1.5), (9, 1.0)],
                    ..neutral.clone()
                },
                [2.0, -1.0, 1.5, 4.0, 1.0],
            ),
            (
                "all of them, in this order",
                Adjustments {
                    presence_penalty: 0.5,
                    frequency_penalty: 0.25,
                    repetition_penalty: 2.0,
                    logit_bias: vec![(3, 100.0)],
                },
                [1.0, -2.0, 0.0, 101.0, -0.25],
            ),
        ] {
            assert_eq!(adjusted(&adjustments), expected.to_vec(), "{what}");
        }
    }

    #[test]
    fn the_default_is_neutral_and_a_bias_is_not() {
        assert!(Adjustments::default().is_neutral());
        let bias = Adjustments {
            logit_bias: vec![(1, 0.0)],
            ..Adjustments::default()
        };
        assert!(!bias.is_neutral());
    }
}
