//! How a run ends well.

use graftwork_contract::dataset::Classification;
use graftwork_contract::run::TrainerConfig;

use super::*;

#[test]
fn a_run_completes_with_metrics_and_stops_writing() {
    let mut world = World::new();
    world.start();
    world.publish_result();
    world.end_pod(0, |_| {});
    world.reconcile();
    assert_eq!(world.succeeded().0, "True");
    assert_eq!(world.succeeded().1, reason::COMPLETED);
    let status = world.cr.status.clone().unwrap();
    assert_eq!(status.metrics[0].value.as_str(), "0.8125");
    assert_eq!(
        status.metrics[0].baseline.as_ref().unwrap().as_str(),
        "0.25"
    );
    assert_eq!(status.result.unwrap().size_bytes, 9);
    assert_eq!(status.progress.unwrap().percent, 100);
    assert!(world.is_finished());
    let writes = world.writes;
    world.seconds += 1000;
    world.reconcile();
    assert_eq!(world.writes, writes);
}

/// A run on this Dataset that has ended well with the report of a label: what status shows, and the
/// classification that the trainer was told.
fn reported(classification: Option<&str>) -> (Vec<String>, Option<Classification>) {
    let mut world = World::new();
    let Referenced::There(dataset) = &mut world.observed.dataset else {
        unreachable!("a World has a Dataset")
    };
    dataset.spec.classification = classification.map(Into::into);
    let told = (0..40).find_map(|_| {
        let actions = world.reconcile();
        world.seconds += 10;
        match actions.apply.first() {
            Some(Child::ConfigMap(map)) => Some(map.data.clone().unwrap()),
            _ => None,
        }
    });
    let told: TrainerConfig = serde_json::from_str(&told.unwrap()["config.json"]).unwrap();
    world.start_pod();
    world.publish_result();
    let record = world.store.last_mut().unwrap();
    let mut result: RunResult = record.read().unwrap();
    let mut label = result.metrics[0].clone();
    label.name = "label/Ann Smith/f1".to_owned();
    result.metrics.push(label);
    result.classification = told.classification;
    record.content = Some(serde_json::to_vec(&result).unwrap());
    world.end_pod(0, |_| {});
    world.reconcile();
    let metrics = world.cr.status.unwrap().metrics.into_iter();
    (metrics.map(|it| it.name).collect(), told.classification)
}

#[test]
fn a_trainer_is_told_how_far_rows_may_go_and_status_shows_no_text_of_restricted_ones() {
    let (shown, told) = reported(Some("Restricted"));
    assert_eq!(told, Some(Classification::Restricted));
    assert_eq!(shown, ["exact_match"]);
    let (shown, told) = reported(Some("Internal"));
    assert_eq!(told, Some(Classification::Internal));
    assert_eq!(shown, ["exact_match", "label/Ann Smith/f1"]);
    assert_eq!(reported(None).1, None);
    let unknown = reported(Some("TopSecret")).1;
    assert_eq!(unknown, Some(Classification::Restricted), "the strictest");
}

#[test]
fn rows_that_were_cut_are_counted_in_the_condition_and_the_event() {
    let mut world = World::new();
    world.train_rows.cut = 12;
    world.start();
    world.publish_result();
    world.end_pod(0, |_| {});
    world.reconcile();
    let (_, _, message) = world.succeeded();
    let words = "; 12 of 2000 train rows were cut, because they are longer than \
                 spec.hyperparameters.maximumSequenceLength 512";
    assert!(message.ends_with(words), "{message}");
    assert_eq!(world.events.last().unwrap().note, message);

    let mut dropped = World::new();
    dropped.train_rows.dropped = 7;
    dropped.start();
    dropped.publish_result();
    dropped.end_pod(0, |_| {});
    dropped.reconcile();
    let (_, _, message) = dropped.succeeded();
    let words = "; 7 of 2000 train rows were left out, because they are longer than ";
    assert!(message.contains(words), "{message}");

    let mut whole = World::new();
    whole.start();
    whole.publish_result();
    whole.end_pod(0, |_| {});
    whole.reconcile();
    assert!(!whole.succeeded().2.contains("longer than"));
}

#[test]
fn a_result_of_a_trainer_that_did_not_count_cut_rows_is_read() {
    let mut world = World::new();
    world.start();
    world.publish_result();
    let record = world.store.last_mut().unwrap();
    let mut result: serde_json::Value = record.read().unwrap();
    let fields = result.as_object_mut().unwrap();
    assert!(fields.remove("trainRows").is_some() && fields.remove("testRows").is_some());
    record.content = Some(serde_json::to_vec(&result).unwrap());
    world.end_pod(0, |_| {});
    world.reconcile();
    assert_eq!(world.succeeded().1, reason::COMPLETED);
}

#[test]
fn a_stored_result_completes_a_run_without_training() {
    let mut world = World::new();
    world.start();
    world.publish_result();
    let mut again = World::new();
    again.store = world.store;
    again.observed.dataset = Referenced::Absent;
    again.reconcile();
    assert_eq!(again.succeeded().1, reason::COMPLETED);
    assert!(again.created.is_empty());
    assert_eq!(
        again.cr.status.unwrap().resolved.unwrap().dataset.version,
        2
    );
}

/// Reconciles until a trainer's configuration is written, and returns it with the classification that it tells.
fn configured(world: &mut World) -> (Box<ConfigMap>, Option<Classification>) {
    let written = (0..40).find_map(|_| {
        let actions = world.reconcile();
        world.seconds += 10;
        actions.apply.into_iter().find_map(|child| match child {
            Child::ConfigMap(map) => Some(map),
            _ => None,
        })
    });
    let map = written.unwrap();
    let text = &map.data.as_ref().unwrap()["config.json"];
    let told: TrainerConfig = serde_json::from_str(text).unwrap();
    (map, told.classification)
}

#[test]
fn rows_of_a_dataset_that_is_deleted_between_two_attempts_go_no_further_than_before() {
    for (keeps_configuration, said, expected) in [
        (true, Some("Internal"), Some(Classification::Internal)),
        (true, Some("Restricted"), Some(Classification::Restricted)),
        (true, None, None),
        (false, None, Some(Classification::Restricted)),
    ] {
        let mut world = World::new();
        let Referenced::There(dataset) = &mut world.observed.dataset else {
            unreachable!("a World has a Dataset")
        };
        dataset.spec.classification = said.map(Into::into);
        let (map, _) = configured(&mut world);
        if keeps_configuration {
            world.observed.configuration = Found::Ours(map);
        }
        world.start_pod();
        world.end_pod(137, |pod| {
            pod.disrupted = Some("TerminationByKubelet".to_owned());
        });
        world.observed.dataset = Referenced::Absent;
        let (_, told) = configured(&mut world);
        assert_eq!(told, expected, "{said:?}");
        assert_eq!(world.created.len(), 2);
    }
}
