//! The learning rate's course: a linear warm-up, then a cosine, a straight line or no change.

use graftwork_contract::run::{Hyperparameters, Schedule};

/// The learning rate of every optimiser step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    /// The highest rate, reached at the end of the warm-up.
    pub peak: f64,
    /// The course after the warm-up.
    pub schedule: Schedule,
    /// Steps of the warm-up.
    pub warmup_steps: u64,
    /// All steps, the warm-up's included.
    pub total_steps: u64,
}

impl LearningRate {
    /// The course that a run's hyperparameters ask for.
    pub fn new(hyperparameters: &Hyperparameters, total_steps: u64) -> Self {
        Self {
            peak: hyperparameters.learning_rate,
            schedule: hyperparameters.schedule,
            warmup_steps: hyperparameters.warmup_steps,
            total_steps,
        }
    }

    /// The rate of step `step`, counted from 0. The first step of a warm-up of `w` steps has
    /// `peak / w`, its last one `peak`. Cosine (Loshchilov and Hutter 2017, arXiv:1608.03983,
    /// without restarts) and Linear would reach 0 one step after the last.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let falling_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / falling_steps as f64).min(1.0);
        let share = match self.schedule {
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Schedule::Linear => 1.0 - progress,
            Schedule::Constant => 1.0,
        };
        self.peak * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: Schedule, steps: &[u64]) -> Vec<f64> {
        let course = LearningRate {
            peak: 0.8,
            schedule,
            warmup_steps: 4,
            total_steps: 12,
        };
        steps
            .iter()
            .map(|step| (course.at(*step) * 1e6).round() / 1e6)
            .collect()
    }

    #[test]
    fn every_course_rises_alike_and_falls_as_named() {
        let steps = [0, 1, 3, 4, 6, 8, 11, 12, 99];
        assert_eq!(
            rates(Schedule::Constant, &steps),
            [0.2, 0.4, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]
        );
        assert_eq!(
            rates(Schedule::Linear, &steps),
            [0.2, 0.4, 0.8, 0.8, 0.6, 0.4, 0.1, 0.0, 0.0]
        );
        // 0.4 * (1 + cos(pi * n / 8)) for n = 0, 2, 4, 7, 8.
        assert_eq!(
            rates(Schedule::Cosine, &steps),
            [0.2, 0.4, 0.8, 0.8, 0.682_843, 0.4, 0.030_448, 0.0, 0.0]
        );
    }

    #[test]
    fn a_warm_up_longer_than_the_run_only_rises() {
        let course = LearningRate {
            peak: 1.0,
            schedule: Schedule::Cosine,
            warmup_steps: 10,
            total_steps: 5,
        };
        assert!((course.at(4) - 0.5).abs() < 1e-12);
        assert!(course.at(10).is_finite());
    }
}
