//! AdamW with a state that can be saved, and gradients that can be accumulated and clipped.
//!
//! Everything is a plain list of f32 in the parameters' name order. The arithmetic of one element
//! depends on nothing but that element and the step, so the bits are the same for any thread count.

use rayon::prelude::*;

/// Elements that one task works on.
const CHUNK: usize = 1 << 14;

/// Constants of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay: each step shrinks a decayed weight by `rate * weight_decay`.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// First and second moments of every parameter, in name order.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    config: AdamWConfig,
    /// Exponential means of the gradients.
    pub first: Vec<Vec<f32>>,
    /// Exponential means of the squared gradients.
    pub second: Vec<Vec<f32>>,
}

/// One parameter as the optimiser sees it.
#[derive(Debug)]
pub struct Parameter<'a> {
    /// The weights, changed in place.
    pub values: &'a mut [f32],
    /// The loss's gradient.
    pub gradient: &'a [f32],
    /// Whether weight decay applies: to matrices, not to norms.
    pub decayed: bool,
}

impl AdamW {
    /// Zero moments for parameters of these numbers of elements.
    pub fn new(config: AdamWConfig, elements: &[usize]) -> Self {
        let zeros = || elements.iter().map(|count| vec![0.0; *count]).collect();
        Self {
            config,
            first: zeros(),
            second: zeros(),
        }
    }

    /// Moments that were saved.
    pub fn restore(config: AdamWConfig, first: Vec<Vec<f32>>, second: Vec<Vec<f32>>) -> Self {
        Self {
            config,
            first,
            second,
        }
    }

    /// Step number `step` (from 0) with learning rate `rate` and gradients scaled by
    /// `gradient_scale` (from [`clip_scale`]).
    pub fn step(
        &mut self,
        step: u64,
        rate: f64,
        gradient_scale: f32,
        parameters: &mut [Parameter<'_>],
    ) {
        let AdamWConfig {
            beta1,
            beta2,
            epsilon,
            weight_decay,
        } = self.config;
        let updates = (step + 1) as f64;
        let rate_of_step = (rate / (1.0 - beta1.powf(updates))) as f32;
        let correction = (1.0 / (1.0 - beta2.powf(updates))) as f32;
        let (beta1, beta2, epsilon) = (beta1 as f32, beta2 as f32, epsilon as f32);
        let moments = self.first.iter_mut().zip(&mut self.second);
        for (parameter, (first, second)) in parameters.iter_mut().zip(moments) {
            let kept = if parameter.decayed {
                (1.0 - rate * weight_decay) as f32
            } else {
                1.0
            };
            parameter
                .values
                .par_chunks_mut(CHUNK)
                .zip(parameter.gradient.par_chunks(CHUNK))
                .zip(first.par_chunks_mut(CHUNK))
                .zip(second.par_chunks_mut(CHUNK))
                .for_each(|(((values, gradients), first), second)| {
                    let moments = first.iter_mut().zip(second);
                    for ((value, gradient), (m, v)) in values.iter_mut().zip(gradients).zip(moments)
                    {
                        let gradient = gradient * gradient_scale;
                        *m = beta1 * *m + (1.0 - beta1) * gradient;
                        *v = beta2 * *v + (1.0 - beta2) * gradient * gradient;
                        let denominator = (*v * correction).sqrt() + epsilon;
                        *value = kept * *value - rate_of_step * *m / denominator;
                    }
                });
        }
    }
}

/// The 2-norm of all gradients together. Sums run in f64 over fixed chunks in order.
pub fn global_norm(gradients: &[Vec<f32>]) -> f64 {
    let square = |x: &f32| f64::from(*x) * f64::from(*x);
    gradients
        .iter()
        .flat_map(|gradient| {
            gradient
                .par_chunks(CHUNK)
                .map(|chunk| chunk.iter().map(square).sum::<f64>())
                .collect::<Vec<_>>()
        })
        .sum::<f64>()
        .sqrt()
}

/// What gradients of this norm are multiplied with, so that their norm is at most `maximum`
/// (0: no limit).
pub fn clip_scale(norm: f64, maximum: f64) -> f32 {
    if maximum > 0.0 && norm > maximum {
        (maximum / norm) as f32
    } else {
        1.0
    }
}

/// Adds `gradient` to `sum`, element by element.
pub fn accumulate(sum: &mut [f32], gradient: &[f32]) {
    sum.par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .for_each(|(sum, gradient)| {
            for (sum, gradient) in sum.iter_mut().zip(gradient) {
                *sum += gradient;
            }
        });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Algorithm 2 of arXiv:1711.05101, word for word, in f64 and for one number.
    fn reference(mut theta: f64, gradients: &[f64], rate: f64, decay: f64) -> f64 {
        let (mut m, mut v) = (0.0, 0.0);
        for (t, g) in (1_i32..).zip(gradients) {
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            let m_hat = m / (1.0 - 0.9_f64.powi(t));
            let v_hat = v / (1.0 - 0.999_f64.powi(t));
            theta -= rate * (m_hat / (v_hat.sqrt() + 1e-8) + decay * theta);
        }
        theta
    }

    #[test]
    fn steps_are_those_of_the_paper() {
        let gradients = [0.5, -0.25, 0.125, 2.0, 0.0];
        let config = AdamWConfig {
            weight_decay: 0.1,
            ..AdamWConfig::default()
        };
        let mut optimizer = AdamW::new(config, &[1, 1]);
        let (mut decayed, mut plain) = ([1.5_f32], [1.5_f32]);
        for (step, gradient) in gradients.iter().enumerate() {
            let gradient = [*gradient as f32];
            let mut parameters = [
                Parameter {
                    values: &mut decayed,
                    gradient: &gradient,
                    decayed: true,
                },
                Parameter {
                    values: &mut plain,
                    gradient: &gradient,
                    decayed: false,
                },
            ];
            optimizer.step(step as u64, 0.01, 1.0, &mut parameters);
        }
        let with = reference(1.5, &gradients, 0.01, 0.1);
        let without = reference(1.5, &gradients, 0.01, 0.0);
        assert!(
            (f64::from(decayed[0]) - with).abs() < 1e-6,
            "{decayed:?} {with}"
        );
        assert!(
            (f64::from(plain[0]) - without).abs() < 1e-6,
            "{plain:?} {without}"
        );
        assert!((with - without).abs() > 1e-3);
    }

    #[test]
    fn restored_moments_go_on_with_the_same_bits() {
        let gradient: Vec<f32> = (0..40_000).map(|i| (i as f32).sin()).collect();
        let step = |optimizer: &mut AdamW, values: &mut Vec<f32>, n| {
            let parameter = Parameter {
                values,
                gradient: &gradient,
                decayed: true,
            };
            optimizer.step(n, 0.1, 0.5, &mut [parameter]);
        };
        let mut whole = AdamW::new(AdamWConfig::default(), &[gradient.len()]);
        let mut values = vec![1.0; gradient.len()];
        step(&mut whole, &mut values, 0);
        let mut resumed = AdamW::restore(
            AdamWConfig::default(),
            whole.first.clone(),
            whole.second.clone(),
        );
        let mut values_resumed = values.clone();
        step(&mut whole, &mut values, 1);
        step(&mut resumed, &mut values_resumed, 1);
        assert_eq!(values, values_resumed);
        assert_eq!(whole, resumed);
    }

    #[test]
    fn clipping_brings_the_norm_down_to_the_limit_and_never_up() {
        let gradients = vec![vec![3.0], vec![0.0, 4.0]];
        let norm = global_norm(&gradients);
        assert!((norm - 5.0).abs() < 1e-12);
        assert!((clip_scale(norm, 1.0) - 0.2).abs() < 1e-7);
        assert!((clip_scale(norm, 5.0) - 1.0).abs() < f32::EPSILON);
        assert!((clip_scale(norm, 0.0) - 1.0).abs() < f32::EPSILON);
    }
}
