//! What a run is made from: pinned, waited for, or refused.

use graftwork_api::serving_endpoint::BaseQuantization;
use graftwork_api::training_run::{
    Benchmark, EarlyStopping, MethodType, ModelOutput, ObjectiveType, Quantization, Subject,
    Truncation,
};
use graftwork_contract::run::{Precision, TrainerConfig};

use super::*;
use crate::observed::Problem;
use crate::plan::EventKind;
use crate::run::inputs as pins;

#[test]
fn inputs_are_pinned_in_status_then_in_the_store_then_an_attempt_is_counted_then_made() {
    let mut world = World::new();
    let Plan::Decide(decision) = world.plan() else {
        panic!("the pin is a decision")
    };
    let resolved = decision.status.resolved.clone().unwrap();
    assert_eq!(resolved.dataset.version, 2);
    assert_eq!(resolved.reference.as_deref(), Some("base"));
    assert_eq!(resolved.image, "registry/trainer:1");
    world.cr.status = Some(decision.status);
    let Plan::Act(actions) = world.plan() else {
        panic!("the pin is stored before anything else is decided")
    };
    assert_eq!(actions.calls.len(), 1);
    assert!(actions.create.is_empty());
    world.act(&actions);
    let Plan::Decide(decision) = world.plan() else {
        panic!("the attempt is counted before its Job is made")
    };
    assert_eq!(decision.status.attempts.unwrap().started, 1);
    world.cr.status = Some(decision.status);
    let actions = world.reconcile();
    assert_eq!(world.created, ["nightly-1"]);
    let Child::ConfigMap(map) = &actions.apply[0] else {
        panic!("the trainer has a configuration")
    };
    let config: TrainerConfig =
        serde_json::from_str(&map.data.as_ref().unwrap()["config.json"]).unwrap();
    assert_eq!(
        config.resolved.base.path,
        "/var/lib/graftwork/claims/models/tiny"
    );
    assert_eq!(config.hyperparameters.epochs, 1);
    assert!(
        world.reconcile().create.is_empty(),
        "one Job for one attempt"
    );
}

#[test]
fn what_the_base_is_quantised_to_is_pinned_and_names_another_run() {
    let configured = |quantization: Option<Quantization>| {
        let mut world = World::new();
        world.cr.spec.method.type_ = match quantization {
            Some(_) => MethodType::QLoRA,
            None => MethodType::LoRA,
        };
        world.cr.spec.method.quantization = quantization;
        let valid = validate(&world.cr.spec).unwrap();
        let base = Digest::of(b"base");
        let resolved = pins::resolve(&world.cr, &valid, base.clone(), &world.observed).unwrap();
        let key = pins::key(&valid, &world.cr, &base).unwrap();
        (serde_json::to_value(resolved.base).unwrap(), key)
    };
    let (plain, plain_key) = configured(None);
    let (quantised, quantised_key) = configured(Some(Quantization::Q4K));
    assert_eq!(plain.get("quantization"), None, "as before there was any");
    assert_eq!(quantised["quantization"], "Q4_K");
    assert_eq!(plain["digest"], quantised["digest"]);
    assert_ne!(plain_key, quantised_key);
}

fn benchmark(name: &str, uri: &str) -> Benchmark {
    Benchmark {
        name: name.to_owned(),
        uri: uri.to_owned(),
    }
}

#[test]
fn a_precision_to_score_in_is_what_endpoints_call_it_or_what_is_trained_on_and_names_another_run() {
    let mut world = World::new();
    let base = Digest::of(b"base");
    let mut keys = Vec::new();
    let known = [
        Precision::AsStored,
        Precision::Bf16,
        Precision::Q8_0,
        Precision::Q4_0,
        Precision::Q4K,
    ];
    assert_eq!(known.len(), BaseQuantization::KNOWN.len());
    for precision in known {
        world.cr.spec.evaluation.precision = Some(BaseQuantization::from(precision.name()));
        let valid = validate(&world.cr.spec).unwrap();
        assert_eq!(valid.evaluation.precision, precision);
        let json = serde_json::to_value(&valid.evaluation).unwrap();
        assert_eq!(json["precision"], precision.name());
        let key = pins::key(&valid, &world.cr, &base).unwrap();
        assert!(!keys.contains(&key), "{precision:?}");
        keys.push(key);
    }
    world.cr.spec.evaluation.precision = None;
    for (trained_on, precision) in [
        (None, Precision::AsStored),
        (Some(Quantization::Q4K), Precision::Q4K),
    ] {
        if trained_on.is_some() {
            world.cr.spec.method.type_ = MethodType::QLoRA;
        }
        world.cr.spec.method.quantization = trained_on;
        let valid = validate(&world.cr.spec).unwrap();
        assert_eq!(valid.evaluation.precision, precision);
    }
}

#[test]
fn benchmarks_are_mounted_and_name_another_run() {
    let mut world = World::new();
    let base = Digest::of(b"base");
    let key = |world: &World| {
        let valid = validate(&world.cr.spec).unwrap();
        pins::key(&valid, &world.cr, &base).unwrap()
    };
    let without = key(&world);
    world.cr.spec.evaluation.benchmarks = vec![
        benchmark("critical", "pvc://benchmarks/critical.jsonl"),
        benchmark("arc", "pvc://models/arc/easy.jsonl"),
    ];
    world.claim("benchmarks", ClaimState::Bound);
    world.claim("models", ClaimState::Bound);
    assert_ne!(key(&world), without);
    let valid = validate(&world.cr.spec).unwrap();
    assert_eq!(
        valid.evaluation.benchmarks[0].path,
        "/var/lib/graftwork/claims/benchmarks/critical.jsonl"
    );
    let claims: Vec<&str> = valid.benchmark_claims.iter().map(String::as_str).collect();
    assert_eq!(claims, ["benchmarks", "models"]);

    let mut made = None;
    for _ in 0..6 {
        match world.plan() {
            Plan::Decide(decision) => world.cr.status = Some(decision.status),
            Plan::Act(actions) => {
                made = actions.create.first().cloned().or(made);
                world.act(&actions);
            }
        }
    }
    let pod = made.unwrap().spec.unwrap().template.spec.unwrap();
    let mounts = pod.containers[0].volume_mounts.iter().flatten();
    let paths: Vec<&str> = mounts.map(|mount| mount.mount_path.as_str()).collect();
    for path in ["models", "benchmarks"] {
        let path = format!("/var/lib/graftwork/claims/{path}");
        assert!(paths.contains(&path.as_str()), "{paths:?}");
    }
}

#[test]
fn benchmarks_that_cannot_work_are_named() {
    for (benchmarks, field) in [
        (vec![benchmark("a", "s3://x/a.jsonl")], "uri"),
        (vec![benchmark("a", "pvc://benchmarks")], "uri"),
        (vec![benchmark("a", "pvc://benchmarks/../a")], "uri"),
        (vec![benchmark("a/b", "pvc://benchmarks/a")], "name"),
        (
            vec![benchmark("a", "pvc://x/a"), benchmark("a", "pvc://x/b")],
            "name",
        ),
    ] {
        let mut world = World::new();
        world.cr.spec.evaluation.benchmarks = benchmarks;
        let invalid = validate(&world.cr.spec).unwrap_err();
        assert_eq!(invalid.field, format!("spec.evaluation.benchmarks.{field}"));
    }
}

fn output(uri: &str) -> ModelOutput {
    ModelOutput {
        uri: uri.to_owned(),
    }
}

fn full(spec: &mut TrainingRunSpec, uri: &str) {
    spec.method.type_ = MethodType::Full;
    spec.method.output = Some(output(uri));
}

#[test]
fn a_model_is_written_to_its_claim_and_names_another_run() {
    let mut world = World::new();
    let base = Digest::of(b"base");
    let key = |world: &World| {
        let valid = validate(&world.cr.spec).unwrap();
        pins::key(&valid, &world.cr, &base).unwrap()
    };
    let without = key(&world);
    full(&mut world.cr.spec, "pvc://made/by/topics");
    // It gets its volume with the first pod that writes to it.
    world.claim("made", ClaimState::NotBound);
    assert_ne!(key(&world), without);
    let mut made = None;
    let mut configured = None;
    for _ in 0..6 {
        match world.plan() {
            Plan::Decide(decision) => world.cr.status = Some(decision.status),
            Plan::Act(actions) => {
                made = actions.create.first().cloned().or(made);
                for child in &actions.apply {
                    if let Child::ConfigMap(map) = child {
                        configured = map.data.clone();
                    }
                }
                world.act(&actions);
            }
        }
    }
    let text = configured.unwrap();
    let config: TrainerConfig = serde_json::from_str(&text["config.json"]).unwrap();
    let output = config.output.unwrap();
    assert_eq!(output.uri, "pvc://made/by/topics");
    let place = format!("{}/{}", output.root, output.folder);
    assert_eq!(place, "/var/lib/graftwork/outputs/made/by/topics");
    let pod = made.unwrap().spec.unwrap().template.spec.unwrap();
    let mounts = pod.containers[0].volume_mounts.iter().flatten();
    let written: Vec<&str> = mounts
        .filter(|mount| mount.read_only != Some(true))
        .map(|mount| mount.mount_path.as_str())
        .collect();
    assert!(written.contains(&output.root.as_str()), "{written:?}");
}

fn subject() -> Subject {
    Subject {
        adapter_ref: ObjectReference::new("topics"),
        version: 4,
    }
}

#[test]
fn what_is_scored_and_not_trained_is_waited_for_and_names_another_run() {
    let mut world = World::new();
    world.cr.spec.method.type_ = MethodType::Evaluate;
    world.cr.spec.method.subject = Some(subject());
    world.reconcile();
    let (_, why, message) = world.succeeded();
    assert_eq!(why, reason::WAITING_FOR_ADAPTER);
    assert_eq!(
        message,
        "spec.method.subject.adapterRef.name: LoRAAdapter \"topics\" does not exist"
    );
    let valid = validate(&world.cr.spec).unwrap();
    assert!(valid.evaluate_only);
    let base = Digest::of(b"base");
    let four = pins::key(&valid, &world.cr, &base);
    world.cr.spec.method.subject = Some(Subject {
        version: 5,
        ..subject()
    });
    assert_ne!(pins::key(&valid, &world.cr, &base), four);
}

#[test]
fn an_objective_is_configured_and_names_another_run() {
    let mut world = World::new();
    let base = Digest::of(b"base");
    let key = |world: &World| {
        let valid = validate(&world.cr.spec).unwrap();
        pins::key(&valid, &world.cr, &base).unwrap()
    };
    let plain = key(&world);
    world.cr.spec.objective.type_ = ObjectiveType::Dpo;
    let unsaid = key(&world);
    assert_ne!(unsaid, plain);
    world.cr.spec.objective.beta = Some("0.1".into());
    assert_eq!(
        key(&world),
        unsaid,
        "0.1 is what is meant where nothing is said"
    );
    world.cr.spec.objective.beta = Some("0.2".into());
    assert_ne!(key(&world), unsaid);
    let objective = validate(&world.cr.spec).unwrap().objective;
    let written = serde_json::to_value(objective).unwrap();
    assert_eq!(written, serde_json::json!({"type": "DPO", "beta": 0.2}));
}

#[test]
fn a_stored_pin_wins_over_what_the_references_mean_now() {
    let mut world = World::new();
    world.start();
    let mut again = World::new();
    again.store = world.store;
    let mut newer = dataset();
    newer.status.as_mut().unwrap().latest = Some(LatestVersion {
        version: 3,
        digest: Digest::of(b"rows 3").to_string(),
        rows: 1,
    });
    again.observed.dataset = Referenced::There(Box::new(newer));
    again.start();
    assert_eq!(
        again.cr.status.unwrap().resolved.unwrap().dataset.version,
        2
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn what_is_waited_for_is_named_and_no_run_that_can_go_on_has_failed() {
    let mut going = dataset();
    going.status.as_mut().unwrap().conditions[0].status = "Unknown".to_owned();
    let mut untrainable = dataset();
    untrainable.status.as_mut().unwrap().versions[0].rows.train = 0;
    for (change, stalled, why, words) in [
        (
            Box::new(|world: &mut World| world.observed.dataset = Referenced::Absent)
                as Box<dyn Fn(&mut World)>,
            false,
            reason::WAITING_FOR_DATASET,
            "spec.datasetRef.name: Dataset \"topics\" does not exist",
        ),
        (
            Box::new(|world| world.observed.dataset = Referenced::Deleting),
            false,
            reason::WAITING_FOR_DATASET,
            "spec.datasetRef.name: Dataset \"topics\" is being deleted",
        ),
        (
            Box::new(move |world| {
                world.observed.dataset = Referenced::There(Box::new(going.clone()));
            }),
            false,
            reason::WAITING_FOR_DATASET,
            "spec.datasetRef.name: Dataset \"topics\" is not ready: Ready: ",
        ),
        (
            Box::new(move |world| {
                world.observed.dataset = Referenced::There(Box::new(untrainable.clone()));
            }),
            false,
            reason::WAITING_FOR_DATASET,
            "spec.datasetRef.name: Dataset \"topics\" has no rows in the train split of version 2: give it more rows, \
             or another spec.split",
        ),
        (
            Box::new(|world| world.cr.spec.dataset_ref.version = Some(9)),
            false,
            reason::WAITING_FOR_DATASET,
            "spec.datasetRef.version: Dataset \"topics\" has no version 9 yet",
        ),
        (
            Box::new(|world| world.cr.spec.adapter_ref = Some(ObjectReference::new("x"))),
            false,
            reason::WAITING_FOR_ADAPTER,
            "spec.adapterRef.name: LoRAAdapter \"x\" does not exist",
        ),
        (
            Box::new(|world| world.observed.base_claim = ClaimState::Absent),
            true,
            reason::BASE_MODEL_NOT_FOUND,
            "spec.baseModel.uri: PersistentVolumeClaim \"models\" does not exist; create it, then the run goes on by itself",
        ),
        (
            Box::new(|world| {
                world.observed.base = Asked::Answered(Err(Problem {
                    reason: "BaseModelUnsupported".to_owned(),
                    message: "config.json: architecture \"GPT2\"".to_owned(),
                }));
            }),
            true,
            reason::BASE_MODEL_UNSUPPORTED,
            "spec.baseModel.uri: config.json: architecture \"GPT2\"",
        ),
        (
            Box::new(|world| world.cr.spec.compute.profile = "huge".to_owned()),
            true,
            reason::COMPUTE_PROFILE_NOT_FOUND,
            "spec.compute.profile: compute profile \"huge\" is unknown; this installation has: default, nvidia-l40s",
        ),
        (
            Box::new(|world| {
                world.cr.spec.compute.spot = Some(graftwork_api::training_run::Spot {
                    enabled: true,
                    ..Default::default()
                });
            }),
            true,
            reason::COMPUTE_PROFILE_NOT_FOUND,
            "spec.compute.spot: compute profile \"default\" has no spot nodes in this installation; set \
             computeProfiles.default.spot in the chart's values, or leave spot out in a new run",
        ),
        (
            Box::new(|world| world.observed.job = Found::Foreign),
            true,
            reason::OBJECT_NOT_OURS,
            "Job \"nightly-1\" exists and does not belong to this run",
        ),
        (
            Box::new(|world| {
                world.observed.storage =
                    Some(StorageProblem::NotOurs("Deployment taken".to_owned()));
            }),
            true,
            reason::OBJECT_NOT_OURS,
            "Deployment taken",
        ),
    ] {
        let mut world = World::new();
        change(&mut world);
        assert_waits(world, stalled, why, words);
    }
}

fn assert_waits(mut world: World, stalled: bool, why: &str, words: &str) {
    for _ in 0..4 {
        world.reconcile();
    }
    assert_eq!(
        world.succeeded(),
        ("Unknown".to_owned(), why.to_owned(), words.to_owned())
    );
    let status = world.cr.status.clone().unwrap();
    let is_stalled = conditions::is_true(&status.conditions, condition::STALLED);
    assert_eq!(is_stalled, stalled, "{why}");
    let kind = if stalled {
        EventKind::Warning
    } else {
        EventKind::Normal
    };
    let told = world.events.last().map(|event| event.kind);
    assert_eq!(told, Some(kind), "{why}: {:?}", world.events);
    assert!(world.created.is_empty() && !world.is_finished(), "{why}");
}

#[test]
fn a_run_that_leaves_out_its_micro_batch_takes_what_divides_its_batch() {
    for (batch, micro) in [(32, 8), (8, 8), (4, 4), (12, 6), (7, 7), (11, 1), (1, 1)] {
        let mut spec = World::new().cr.spec;
        spec.hyperparameters.batch_size = batch;
        let valid = validate(&spec).unwrap().hyperparameters;
        assert_eq!((valid.batch_size, valid.micro_batch_size), (batch, micro));
    }
}

#[test]
fn a_trainer_is_told_whether_the_spec_names_a_warm_up() {
    for given in [None, Some(10)] {
        let mut world = World::new();
        world.cr.spec.hyperparameters.warmup_steps = given;
        let told = (0..40).find_map(|_| {
            let actions = world.reconcile();
            world.seconds += 10;
            match actions.apply.first() {
                Some(Child::ConfigMap(map)) => Some(map.data.clone().unwrap()),
                _ => None,
            }
        });
        let told: TrainerConfig = serde_json::from_str(&told.unwrap()["config.json"]).unwrap();
        assert_eq!(told.warmup_is_named, given.is_some());
        assert_eq!(told.hyperparameters.warmup_steps, 10);
    }
}

#[test]
fn a_run_that_leaves_out_its_warm_up_takes_ten_steps_or_all_that_it_has() {
    for (given, most, steps) in [
        (None, None, 10),
        (None, Some(400), 10),
        (None, Some(5), 5),
        (Some(0), Some(5), 0),
        (Some(5), Some(5), 5),
        (Some(300), None, 300),
    ] {
        let mut spec = World::new().cr.spec;
        spec.hyperparameters.warmup_steps = given;
        spec.hyperparameters.maximum_steps = most;
        let valid = validate(&spec).unwrap().hyperparameters;
        assert_eq!(valid.warmup_steps, steps, "{given:?} of {most:?}");
    }
    let too_long = |spec: &mut TrainingRunSpec| {
        spec.hyperparameters.warmup_steps = Some(9);
        spec.hyperparameters.maximum_steps = Some(8);
    };
    ends_invalid(
        &too_long,
        "spec.hyperparameters.warmupSteps: 9 is above maximumSteps 8",
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn a_field_that_can_not_work_ends_the_run() {
    for (change, words) in [
        (
            Box::new(|spec: &mut TrainingRunSpec| spec.method.lora.rank = 0)
                as Box<dyn Fn(&mut TrainingRunSpec)>,
            "spec.method.lora.rank: 0 is too small",
        ),
        (
            Box::new(|spec| spec.method.type_ = MethodType::QLoRA),
            "spec.method.quantization: type QLoRA needs one of Q8_0, Q4_0, Q4_K",
        ),
        (
            Box::new(|spec| spec.method.quantization = Some(Quantization::Q4K)),
            "spec.method.quantization: Q4_K belongs to type QLoRA, the type is LoRA",
        ),
        (
            Box::new(|spec| spec.method.type_ = MethodType::Other("Prefix".to_owned())),
            "spec.method.type: \"Prefix\" is not known to this version; it knows LoRA, QLoRA, Full, Evaluate",
        ),
        (
            Box::new(|spec| spec.method.type_ = MethodType::Evaluate),
            "spec.method.subject: type Evaluate needs one",
        ),
        (
            Box::new(|spec| spec.method.subject = Some(subject())),
            "spec.method.subject: it belongs to type Evaluate",
        ),
        (
            Box::new(|spec| {
                spec.method.type_ = MethodType::Evaluate;
                spec.method.subject = Some(subject());
                spec.adapter_ref = Some(ObjectReference::new("topics"));
            }),
            "spec.adapterRef: it does not go with method type Evaluate",
        ),
        (
            Box::new(|spec| spec.objective.beta = Some("0.1".into())),
            "spec.objective.beta: it belongs to type DPO, the type is SFT",
        ),
        (
            Box::new(|spec| {
                spec.objective.type_ = ObjectiveType::Dpo;
                spec.method.lora.dropout = "0.05".into();
            }),
            "spec.method.lora.dropout: \"0.05\" does not go with objective DPO",
        ),
        (
            Box::new(|spec| {
                spec.objective.type_ = ObjectiveType::Dpo;
                spec.objective.beta = Some("0".into());
            }),
            "spec.objective.beta: \"0\" is not a number above 0",
        ),
        (
            Box::new(|spec| spec.method.lora.rank = 400),
            "spec.method.lora.rank: 400 is above the base model's hidden size 192",
        ),
        (
            Box::new(|spec| spec.hyperparameters.maximum_sequence_length = 4096),
            "spec.hyperparameters.maximumSequenceLength: 4096 is above the base model's 512",
        ),
        (
            Box::new(|spec| {
                spec.hyperparameters.early_stopping = Some(EarlyStopping { patience: 3 });
            }),
            "spec.hyperparameters.earlyStopping: it needs spec.hyperparameters.validateEverySteps",
        ),
        (
            Box::new(|spec| {
                spec.hyperparameters.truncation = Some(Truncation::Other("Fold".to_owned()));
            }),
            "spec.hyperparameters.truncation: \"Fold\" is not known to this version",
        ),
        (
            Box::new(|spec| {
                spec.evaluation.precision = Some(BaseQuantization::Other("NF4".to_owned()));
            }),
            "spec.evaluation.precision: \"NF4\" is not known to this version; it knows None, BF16, Q8_0, Q4_0, Q4_K",
        ),
        (
            Box::new(|spec| spec.checkpoint.keep_best = true),
            "spec.checkpoint.keepBest: it needs spec.hyperparameters.validateEverySteps",
        ),
        (
            Box::new(|spec| {
                spec.hyperparameters.batch_size = 12;
                spec.hyperparameters.micro_batch_size = Some(8);
            }),
            "spec.hyperparameters.batchSize: 12 is not a multiple of microBatchSize 8",
        ),
        (
            Box::new(|spec| spec.hyperparameters.micro_batch_size = Some(64)),
            "spec.hyperparameters.microBatchSize: 64 is above batchSize 32",
        ),
        (
            Box::new(|spec| spec.hyperparameters.learning_rate = "nan".into()),
            "spec.hyperparameters.learningRate: \"nan\" is not a number above 0 and at most 1",
        ),
        (
            Box::new(|spec| spec.base_model.uri = "s3://x/y".to_owned()),
            "spec.baseModel.uri: scheme \"s3\" is not supported",
        ),
    ] {
        ends_invalid(&*change, words);
    }
}

/// A run of such a spec ends before it begins, with a message that starts so.
fn ends_invalid(change: &dyn Fn(&mut TrainingRunSpec), words: &str) {
    let mut world = World::new();
    change(&mut world.cr.spec);
    world.reconcile();
    let (truth, why, message) = world.succeeded();
    assert_eq!(
        (truth.as_str(), why.as_str()),
        ("False", reason::INVALID_SPEC)
    );
    assert!(message.starts_with(words), "{message}");
    assert!(world.is_finished() && world.created.is_empty());
}

#[test]
fn a_whole_model_that_can_not_be_trained_or_written_ends_the_run() {
    for (change, words) in [
        (
            Box::new(|spec: &mut TrainingRunSpec| spec.method.type_ = MethodType::Full)
                as Box<dyn Fn(&mut TrainingRunSpec)>,
            "spec.method.output: type Full needs one",
        ),
        (
            Box::new(|spec| spec.method.output = Some(output("pvc://models/topics"))),
            "spec.method.output: it belongs to type Full",
        ),
        (
            Box::new(|spec| full(spec, "pvc://models")),
            "spec.method.output.uri: \"pvc://models/\" names no folder",
        ),
        (
            Box::new(|spec| full(spec, "pvc://graftwork-store/models")),
            "spec.method.output.uri: claim graftwork-store is the artifact store's",
        ),
        (
            Box::new(|spec| {
                full(spec, "pvc://models/topics");
                spec.method.quantization = Some(Quantization::Q4K);
            }),
            "spec.method.quantization: Q4_K belongs to type QLoRA, the type is Full",
        ),
        (
            Box::new(|spec| {
                full(spec, "pvc://models/topics");
                spec.adapter_ref = Some(ObjectReference::new("topics"));
            }),
            "spec.adapterRef: it does not go with method type Full",
        ),
        (
            Box::new(|spec| {
                full(spec, "pvc://models/topics");
                spec.objective.type_ = ObjectiveType::Dpo;
            }),
            "spec.objective.type: it does not go with method type Full",
        ),
    ] {
        ends_invalid(&*change, words);
    }
}
