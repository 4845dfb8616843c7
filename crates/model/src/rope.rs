//! The angles of the rotary position embedding (Su et al. 2021), stretched or not.

use serde_json::{Value, json};

/// How Llama 3.1 stretches the rotary embedding for longer sequences (Grattafiori et al. 2024):
/// slow components are slowed down by `factor`, fast ones are left, those between are blended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3Rope {
    /// What slow components are divided by.
    pub factor: f64,
    /// Components that turn fewer times than this within the original context are slow.
    pub low_freq_factor: f64,
    /// Components that turn more times than this within the original context are fast; above
    /// `low_freq_factor`.
    pub high_freq_factor: f64,
    /// The context before it was stretched, in tokens.
    pub original_positions: usize,
}

impl Llama3Rope {
    /// The value of `rope_scaling` in `config.json`.
    pub fn to_json(&self) -> Value {
        json!({
            "rope_type": "llama3",
            "factor": self.factor,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
            "original_max_position_embeddings": self.original_positions,
        })
    }

    /// One component's stretched frequency, in radians per token.
    fn stretched(&self, frequency: f64) -> f64 {
        let turns = self.original_positions as f64 * frequency / std::f64::consts::TAU;
        if turns > self.high_freq_factor {
            frequency
        } else if turns < self.low_freq_factor {
            frequency / self.factor
        } else {
            let width = self.high_freq_factor - self.low_freq_factor;
            let share = (turns - self.low_freq_factor) / width;
            (1.0 - share) * frequency / self.factor + share * frequency
        }
    }
}

/// The frequency of each component in radians per token, `theta^(-2i / head_dim)` before it is
/// stretched; in f64 so that far positions keep their angles.
pub(crate) fn frequencies(head_dim: usize, theta: f32, scaling: Option<Llama3Rope>) -> Vec<f64> {
    (0..head_dim / 2)
        .map(|i| {
            let exponent = -2.0 * i as f64 / head_dim as f64;
            let frequency = f64::from(theta).powf(exponent);
            scaling.map_or(frequency, |rope| rope.stretched(frequency))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `_compute_llama3_parameters` of transformers 5.23 for Llama 3.1 8B, in f64.
    #[test]
    fn llama_3_1_is_stretched_as_transformers_does() {
        let scaling = Llama3Rope {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_positions: 8192,
        };
        let frequencies = frequencies(128, 500_000.0, Some(scaling));
        assert_eq!(frequencies.len(), 64);
        for (index, expected) in EXPECTED {
            let error = (frequencies[index] - expected).abs() / expected;
            assert!(error < 1e-12, "{index}: {}", frequencies[index]);
        }
    }

    const EXPECTED: [(usize, f64); 8] = [
        (0, 1.0),
        (1, 0.814_617_233_856_544_7),
        (20, 0.016_560_440_080_994_446),
        (28, 0.003_211_445_994_752_591_3),
        (29, 0.002_166_570_763_503_359),
        (32, 0.000_524_846_160_992_954_7),
        (35, 9.556_212_353_964_683e-5),
        (63, 3.068_925_988_914_511e-7),
    ];
}
