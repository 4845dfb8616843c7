//! A keeper that owes an answer: nothing is taken back for a while, and nothing is decided.

use super::*;
use crate::observed::DescribedBase;

const MANUAL: &str = "Manual";

fn served(world: &World) -> Asked<DescribedBase> {
    world.observed.base.clone()
}

/// A change of the leader, or a new keeper: every answer has to be had anew.
fn forget(world: &mut World) {
    world.observed.base = Asked::Unreachable("the keeper is reading the base model".to_owned());
    world.observed.verifications.clear();
    world.observed.import = Asked::NotAsked;
    world.observed.unanswered_since = Some(at(world.now));
}

fn act(world: &World) -> Actions<LoRAAdapterStatus> {
    match world.plan() {
        Plan::Act(actions) => actions,
        Plan::Decide(decision) => panic!("nothing is to be decided: {decision:?}"),
    }
}

/// What the next plan would write, if anything.
fn changes(world: &World) -> Option<LoRAAdapterStatus> {
    act(world)
        .status
        .filter(|next| Some(next) != world.cr.status.as_ref())
}

#[test]
fn ready_and_every_version_stay_as_they_are_while_the_base_model_is_read_anew() {
    let mut world = World::new(&minimum("0.4"));
    world.publish_run("good", 0.5, None);
    world.publish_run("bad", 0.1, None);
    world.settle();
    assert_eq!(world.condition(condition::READY), ("True", reason::READY));
    assert_eq!(
        world.stage(2),
        (VersionStage::Rejected, reason::GATE_FAILED)
    );
    forget(&mut world);
    assert_eq!(changes(&world), None);
    let actions = act(&world);
    assert_eq!(actions.requeue_after, Some(status::SOON));
    assert_eq!(actions.calls, []);
}

#[test]
fn what_is_wrong_with_an_import_stays_said_until_the_keeper_has_looked_again() {
    let mut world = World::new(&json!({}));
    world.cr.spec.import = serde_json::from_value(json!({"uri": "pvc://models/old"})).unwrap();
    world.observed.import = Asked::Answered(Err(Problem {
        reason: reason::FILE_TYPE_REFUSED.to_owned(),
        message: "adapter.bin is pickled Python".to_owned(),
    }));
    world.settle();
    let refused = ("False", reason::FILE_TYPE_REFUSED);
    assert_eq!(world.condition(condition::READY), refused);
    forget(&mut world);
    world.settle();
    assert_eq!(world.condition(condition::READY), refused, "no base model");
    world.observed.base = World::new(&json!({})).observed.base;
    world.settle();
    assert_eq!(world.condition(condition::READY), refused, "no answer yet");
}

#[test]
fn a_keeper_that_owes_an_answer_for_two_minutes_makes_ready_unknown() {
    for what in ["ledger", "base"] {
        let mut world = World::new(&json!({}));
        world.settle();
        forget(&mut world);
        if what == "ledger" {
            world.observed.ledger = Asked::Unreachable("no pod is ready".to_owned());
        }
        let ready = |world: &World| {
            let status = act(world).status?;
            let found = crate::conditions::find(&status.conditions, condition::READY)?;
            Some((found.status.clone(), found.reason.clone()))
        };
        world.now += 119;
        let before = ready(&world);
        assert!(
            before.is_none_or(|(status, _)| status == "True"),
            "{what} after 119 s"
        );
        world.now += 1;
        let unknown = ("Unknown".to_owned(), reason::STORAGE_UNAVAILABLE.to_owned());
        assert_eq!(ready(&world), Some(unknown), "{what} after 120 s");
    }
}

#[test]
fn another_spec_is_not_called_ready_on_the_word_of_the_old_one() {
    let mut world = World::new(&json!({}));
    world.settle();
    forget(&mut world);
    world.cr.metadata.generation = Some(2);
    let status = act(&world).status.unwrap();
    let ready = crate::conditions::find(&status.conditions, condition::READY).unwrap();
    assert_eq!(ready.status, "Unknown");
}

#[test]
fn an_approval_waits_until_the_base_model_is_known() {
    let mut world = World::new(&json!({}));
    let base = served(&world);
    world.publish_run("one", 0.5, None);
    forget(&mut world);
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Candidate, reason::GATE_PENDING)
    );
    assert_eq!(world.status().approved, None);
    let approved = "adapters/topics/versions/1/approved.json";
    assert!(!world.records.contains_key(approved));
    world.observed.base = base;
    world.settle();
    assert!(world.records.contains_key(approved));
    assert_eq!(world.status().approved, Some(1));
}

#[test]
fn a_persons_approval_is_answered_when_the_base_model_is_known() {
    let mut gate = minimum("0.4");
    gate["approval"] = json!(MANUAL);
    let mut world = World::new(&gate);
    let base = served(&world);
    world.publish_run("one", 0.5, None);
    world.settle();
    forget(&mut world);
    let command = serde_json::from_value(json!({
        "id": "1", "verb": "Approve", "digest": digest("one"), "user": "ann", "reason": "good",
    }))
    .unwrap();
    let status = world.cr.status.as_mut().unwrap();
    status.commands.insert("version/1".to_owned(), command);
    world.settle();
    assert_eq!(world.status().answers.get("version/1"), None);
    assert_eq!(
        world.stage(1),
        (VersionStage::Candidate, reason::AWAITING_APPROVAL)
    );
    world.observed.base = base;
    world.settle();
    assert_eq!(
        world.status().answers["version/1"].outcome,
        AnswerOutcome::Done
    );
}

#[test]
fn a_version_that_waits_for_a_base_model_says_what_is_wrong_with_that() {
    let mut world = World::new(&json!({}));
    world.publish_run("one", 0.5, None);
    forget(&mut world);
    world.observed.base = Asked::Answered(Err(Problem {
        reason: reason::BASE_MODEL_UNSUPPORTED.to_owned(),
        message: "config.json: model_type \"mamba\" is not supported".to_owned(),
    }));
    world.settle();
    assert_eq!(
        world.stage(1),
        (VersionStage::Candidate, reason::GATE_PENDING)
    );
    assert_eq!(
        world.version(1).message.as_deref(),
        Some(
            "the base model that it has to fit: config.json: model_type \"mamba\" is not supported"
        )
    );
}

#[test]
fn what_was_approved_is_eligible_again_only_when_the_base_model_is_known_to_fit() {
    let mut world = World::new(&json!({}));
    world.publish_run("one", 0.5, None);
    world.settle();
    // A new cluster from Git: the store has the approval, status has nothing.
    world.cr.status = None;
    let base = served(&world);
    forget(&mut world);
    world.settle();
    assert_eq!(world.status().approved, None);
    assert_eq!(
        world.stage(1),
        (VersionStage::Candidate, reason::GATE_PENDING)
    );
    world.observed.base = base;
    world.settle();
    assert_eq!(world.status().approved, Some(1));
    assert_eq!(
        world.stage(1),
        (VersionStage::Approved, reason::GATE_PASSED)
    );
}

#[test]
fn a_withdrawn_version_stays_withdrawn_while_the_base_model_is_read_anew() {
    let mut world = World::new(&json!({}));
    world.publish_run("one", 0.5, None);
    world.settle();
    let Asked::Answered(Ok(base)) = &mut world.observed.base else {
        unreachable!()
    };
    base.digest = digest("other base");
    world.settle();
    let withdrawn = (VersionStage::Rejected, reason::BASE_MODEL_MISMATCH);
    assert_eq!(world.stage(1), withdrawn);
    forget(&mut world);
    world.settle();
    assert_eq!(world.stage(1), withdrawn);
    assert_eq!(world.status().approved, None);
}

#[test]
fn files_are_not_rejected_for_good_while_the_base_model_is_not_known() {
    let mut world = World::new(&json!({}));
    let base = served(&world);
    world.publish_run("one", 0.5, None);
    forget(&mut world);
    world.observed.verifications.insert(
        digest("one").to_string(),
        Asked::Answered(Err(Problem {
            reason: reason::ADAPTER_INCOMPATIBLE.to_owned(),
            message: "rank 8 is above the hidden size".to_owned(),
        })),
    );
    world.settle();
    let rejected = "adapters/topics/versions/1/rejected.json";
    assert!(!world.records.contains_key(rejected));
    world.observed.base = base;
    world.settle();
    assert!(world.records.contains_key(rejected));
}
