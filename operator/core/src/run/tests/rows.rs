//! What a run asks of rows that can't give it, and of modules that its base model does not have.

use graftwork_api::training_run::{EvaluationMetric, ObjectiveType};

use super::*;

/// Changes the Dataset of a run.
fn change(world: &mut World, change: impl FnOnce(&mut Dataset)) {
    let mut changed = dataset();
    change(&mut changed);
    world.observed.dataset = Referenced::There(Box::new(changed));
}

fn wants_rewards(world: &mut World) {
    world.cr.spec.evaluation.metrics = vec![EvaluationMetric::MeanReward];
}

#[test]
fn what_the_rows_can_not_give_is_refused_before_there_is_a_job() {
    for (ask, words) in [
        (
            (|world: &mut World| world.cr.spec.objective.type_ = ObjectiveType::Dpo)
                as fn(&mut World),
            "spec.objective.type: DPO needs rows of format Preference, Dataset \"topics\" has Completion; \
             name such a Dataset, or type SFT, in a new run",
        ),
        (
            wants_rewards,
            "spec.evaluation.metrics: MeanReward needs rewards, Dataset \"topics\" keeps none; set \
             spec.format.reward of the Dataset, or leave the metric out, and start a new run",
        ),
        (
            |world| {
                world.cr.spec.evaluation.metrics =
                    vec![EvaluationMetric::Loss, EvaluationMetric::RougeL];
                change(world, |dataset| {
                    dataset.spec.format.type_ = FormatType::Text;
                });
            },
            "spec.evaluation.metrics: RougeL needs rows with answers, Dataset \"topics\" has format Text; \
             leave it out of a new run, or name a Dataset of another format",
        ),
    ] {
        let mut world = World::new();
        ask(&mut world);
        world.reconcile();
        let invalid = ("False".to_owned(), reason::INVALID_SPEC.to_owned());
        let (truth, why, message) = world.succeeded();
        assert_eq!((truth, why), invalid);
        assert_eq!(message, words);
        assert!(world.is_finished() && world.created.is_empty());
    }
}

#[test]
fn what_the_rows_can_give_is_not_refused() {
    let mut world = World::new();
    wants_rewards(&mut world);
    change(&mut world, |dataset| dataset.spec.format.reward = true);
    world.start();

    let mut world = World::new();
    world.cr.spec.objective.type_ = ObjectiveType::Dpo;
    let preference = |dataset: &mut Dataset| dataset.spec.format.type_ = FormatType::Preference;
    change(&mut world, preference);
    world.start();
}

#[test]
fn of_a_version_that_may_be_of_another_spec_only_the_trainer_can_tell() {
    let mut pinned = World::new();
    pinned.cr.spec.dataset_ref.version = Some(1);
    wants_rewards(&mut pinned);
    let mut unready = pinned.clone();
    change(&mut pinned, |dataset| {
        let versions = &mut dataset.status.as_mut().unwrap().versions;
        versions[1].schema_hash = "with rewards".to_owned();
    });
    pinned.start();

    change(&mut unready, |dataset| {
        let conditions = &mut dataset.status.as_mut().unwrap().conditions;
        conditions[0].status = "False".to_owned();
    });
    unready.start();
}

fn modules(world: &mut World, known: &[&str]) {
    if let Asked::Answered(Ok(base)) = &mut world.observed.base {
        base.target_modules = known.iter().map(|name| (*name).to_owned()).collect();
    }
    let named = ["q_proj", "z_proj"].map(str::to_owned);
    world.cr.spec.method.lora.target_modules = named.to_vec();
}

#[test]
fn a_module_that_the_base_model_does_not_have_is_refused_before_there_is_a_job() {
    let mut world = World::new();
    modules(&mut world, &["q_proj", "k_proj"]);
    world.reconcile();
    let (_, why, message) = world.succeeded();
    assert_eq!(why, reason::INVALID_SPEC);
    assert_eq!(
        message,
        "spec.method.lora.targetModules: \"z_proj\" is no module of the base model that can be adapted; \
         these are: q_proj, k_proj"
    );
    assert!(world.is_finished() && world.created.is_empty());
}

#[test]
fn a_keeper_that_names_no_modules_leaves_them_to_the_trainer() {
    let mut world = World::new();
    modules(&mut world, &[]);
    world.start();
}
