//! Steps: the same bits however they were cut, and an end where they lead nowhere.

use std::cell::Cell;

use graftwork_contract::run::Schedule;
use graftwork_model::base::BaseModel;
use graftwork_model::fixture::TinyShape;
use graftwork_model::transformer::TrainableLlama;

use super::*;
use crate::order::Length;
use graftwork_model::tokenizer::TokenizedExample as Example;

fn model() -> TrainableLlama {
    TrainableLlama::new(&BaseModel::random(TinyShape::default().config(), 4)).unwrap()
}

/// Examples of different lengths, so that a mean of means would not be the mean.
fn examples() -> Vec<Example> {
    (1..=6_u32)
        .map(|n| Example {
            tokens: (0..3 * n).map(|i| (i * 7 + n) % 50).collect(),
            loss_mask: (0..3 * n).map(|i| i >= n).collect(),
        })
        .collect()
}

fn training<'a>(
    model: &'a TrainableLlama,
    examples: &'a [Example],
    micro_batch: usize,
    steps: u64,
) -> Training<'a, TrainableLlama> {
    let lengths = examples.iter().map(|e| e.tokens.len() as u32).collect();
    let batches = Batches::new(1, lengths, Size::Examples(6), Length::Steps(steps));
    let plan = Plan {
        micro_batch: Size::Examples(micro_batch),
        rate: LearningRate {
            peak: 0.01,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            total_steps: steps,
        },
        optimizer: AdamWConfig::default(),
        maximum_gradient_norm: 1.0,
        seed: 1,
    };
    Training::start(model, examples, batches, plan).unwrap()
}

#[test]
fn accumulated_micro_batches_have_the_gradient_of_the_whole_batch() {
    let (model, examples) = (model(), examples());
    let gradients = |micro_batch: usize| {
        let mut training = training(&model, &examples, micro_batch, 1);
        let batches = training
            .batches
            .micro_batches(0, Size::Examples(micro_batch));
        let packed: Vec<PackedBatch> = batches
            .iter()
            .map(|b| pack::<PackedBatch>(&examples, b))
            .collect();
        let targets = packed.iter().map(PackedBatch::targets).sum();
        for (index, batch) in packed.iter().enumerate() {
            training
                .accumulate_micro_batch(batch, index as u64, targets)
                .unwrap();
        }
        (training.state.gradients, training.state.batch_loss)
    };
    let (whole, whole_loss) = gradients(6);
    let (parts, parts_loss) = gradients(1);
    let norm = global_norm(&whole);
    let difference: Vec<Vec<f32>> = std::iter::zip(&whole, &parts)
        .map(|(a, b)| std::iter::zip(a, b).map(|(a, b)| a - b).collect())
        .collect();
    assert!(norm > 1e-3, "{norm}");
    assert!(
        global_norm(&difference) < 1e-5 * norm,
        "{}",
        global_norm(&difference) / norm
    );
    assert!((whole_loss - parts_loss).abs() < 1e-5);
}

#[test]
fn left_in_the_midst_of_a_batch_it_goes_on_with_the_same_bits() {
    let examples = examples();
    let whole = model();
    let mut uninterrupted = training(&whole, &examples, 2, 3);
    while !uninterrupted.is_finished() {
        uninterrupted.step(|| false).unwrap();
    }

    let first = model();
    let mut interrupted = training(&first, &examples, 2, 3);
    interrupted.step(|| false).unwrap();
    let asked = Cell::new(0);
    let outcome = interrupted
        .step(|| asked.replace(asked.get() + 1) == 2)
        .unwrap();
    assert_eq!(outcome, Outcome::Interrupted);
    assert_eq!(
        (interrupted.state().step, interrupted.state().micro_batch),
        (1, 2)
    );

    let second = model();
    let mut resumed = training(&second, &examples, 2, 3);
    resumed.restore(interrupted.state().clone()).unwrap();
    while !resumed.is_finished() {
        resumed.step(|| false).unwrap();
    }
    assert_eq!(resumed.state(), uninterrupted.state());
}

#[test]
fn training_lowers_the_loss_and_a_foreign_state_is_refused() {
    let (model, examples) = (model(), examples());
    let mut training = training(&model, &examples, 6, 30);
    let mut losses = Vec::new();
    while !training.is_finished() {
        if let Outcome::Stepped { loss, .. } = training.step(|| false).unwrap() {
            losses.push(loss);
        }
    }
    assert!(losses[29] < 0.5 * losses[0], "{losses:?}");
    let mut foreign = training.state().clone();
    foreign.parameters[0].pop();
    assert!(matches!(
        training.restore(foreign),
        Err(TrainError::Shape { .. })
    ));
}

#[test]
fn the_best_validated_values_are_kept_and_come_back() {
    let (model, examples) = (model(), examples());
    let mut training = training(&model, &examples, 6, 4);
    training.write_best().unwrap();
    assert_eq!(
        read_parameters(&model).unwrap(),
        training.state().parameters
    );
    let mut values = Vec::new();
    for loss in [3.0, 2.0, 2.5, 2.0] {
        training.step(|| false).unwrap();
        training.validated(loss);
        values.push(training.state().parameters.clone());
    }
    let validation = training.state().validation.clone().unwrap();
    assert_eq!(
        (validation.best_step, validation.step, validation.worse),
        (2, 4, 2),
        "an equal loss is no better one"
    );
    assert_eq!(validation.best, values[1]);
    assert_eq!(read_parameters(&model).unwrap(), values[3]);
    training.write_best().unwrap();
    assert_eq!(read_parameters(&model).unwrap(), values[1]);
}

#[test]
fn a_loss_that_is_no_number_ends_the_training() {
    let (model, examples) = (model(), examples());
    let mut training = training(&model, &examples, 6, 1);
    let mut state = training.state().clone();
    state.parameters[0].fill(f32::NAN);
    training.restore(state).unwrap();
    let error = training.step(|| false).unwrap_err();
    assert!(
        matches!(error, TrainError::Diverged { step: 1, .. }),
        "{error}"
    );
}

#[test]
fn a_loss_that_explodes_ends_the_training_before_it_changes_anything() {
    let (model, examples) = (model(), examples());
    let mut training = training(&model, &examples, 6, 3);
    let with_losses = |training: &Training<'_, TrainableLlama>, losses: &[f64]| State {
        losses: losses.to_vec(),
        ..training.state().clone()
    };
    // The first loss is about ln 260, above 10 * -1 + 10 and not above what five nats allow.
    for (losses, ends) in [
        (vec![-1.0; 5], true),
        (vec![-1.0; 4], false),
        (vec![5.0; 5], false),
    ] {
        let state = with_losses(&training, &losses);
        let before = state.parameters.clone();
        training.restore(state).unwrap();
        let outcome = training.step(|| false);
        if ends {
            let error = outcome.unwrap_err();
            assert!(
                matches!(error, TrainError::Exploded { step: 1, .. }),
                "{error}"
            );
            assert_eq!(training.state().parameters, before);
            let mut again = training.state().clone();
            (again.micro_batch, again.batch_loss) = (0, 0.0);
            again
                .gradients
                .iter_mut()
                .for_each(|gradient| gradient.fill(0.0));
            training.restore(again).unwrap();
        } else {
            outcome.unwrap();
        }
    }
}

#[test]
fn a_gradient_that_explodes_ends_the_training_before_it_changes_anything() {
    let (model, examples) = (model(), examples());
    let mut training = training(&model, &examples, 6, 1);
    let mut state = training.state().clone();
    let before = state.parameters.clone();
    for gradient in &mut state.gradients {
        gradient.fill(1e7);
    }
    training.restore(state).unwrap();
    let error = training.step(|| false).unwrap_err();
    assert!(
        matches!(error, TrainError::ExplodedGradient { step: 1, .. }),
        "{error}"
    );
    assert_eq!(training.state().parameters, before);
}

#[test]
fn a_value_that_overflows_ends_the_training_in_its_step() {
    let (model, examples) = (model(), examples());
    let mut training = training(&model, &examples, 6, 1);
    // As large as a finite moment can make an update.
    training.plan.rate.peak = f64::from(f32::MAX);
    let mut state = training.state().clone();
    for moment in &mut state.optimizer.first {
        moment.fill(1e10);
    }
    training.restore(state).unwrap();
    let error = training.step(|| false).unwrap_err();
    let what = "a trained value";
    assert!(
        matches!(error, TrainError::Diverged { step: 1, what: it, .. } if it == what),
        "{error}"
    );
}
