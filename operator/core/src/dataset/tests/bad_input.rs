//! What is missing or wrong is named, and running children stay untouched.

use super::*;

#[test]
fn what_is_missing_is_named_with_its_field() {
    for (state, expected) in [
        (
            SourceState::Absent,
            "spec.sources[faq].configMapRef.name: ConfigMap \"faq\" does not exist",
        ),
        (
            SourceState::KeyAbsent,
            "spec.sources[faq].configMapRef.key: ConfigMap \"faq\" has no key \"rows.jsonl\"",
        ),
        (
            SourceState::Deleting,
            "spec.sources[faq].configMapRef.name: ConfigMap \"faq\" is being deleted",
        ),
    ] {
        let mut world = World::from_config_map();
        world.observed.sources.insert("faq".to_owned(), state);
        let actions = world.reconcile();
        assert_eq!(world.ready().1, reason::SOURCE_NOT_FOUND);
        assert_eq!(world.ready().2, expected);
        assert!(actions.create.is_empty() && actions.delete.is_empty());
    }
    let mut world = World::from_claim();
    world
        .observed
        .sources
        .insert("bulk".to_owned(), SourceState::NotBound);
    world.reconcile();
    assert_eq!(
        world.ready().2,
        "spec.sources[bulk].uri: PersistentVolumeClaim \"text\" is not bound to a volume"
    );
}

#[test]
fn a_bad_field_is_named_and_nothing_is_touched() {
    for (change, field) in [
        (
            Box::new(|spec: &mut DatasetSpec| spec.split.test_percent = 20)
                as Box<dyn Fn(&mut DatasetSpec)>,
            "spec.split: trainPercent, validationPercent and testPercent sum to 110, not to 100: lower one of them by 10",
        ),
        (
            Box::new(|spec| spec.validation.maximum_invalid_percent = "101".into()),
            "spec.validation.maximumInvalidPercent: \"101\" is not a decimal from 0 to 100",
        ),
        (
            Box::new(|spec| spec.validation.maximum_invalid_percent = "1e2".into()),
            "spec.validation.maximumInvalidPercent: \"1e2\" is not a decimal",
        ),
        (
            Box::new(|spec| spec.format.type_ = FormatType::Other("Images".to_owned())),
            "spec.format.type: \"Images\" is not known",
        ),
        (
            Box::new(|spec| {
                spec.format.reward = true;
                spec.split.group_column = Some("reward".to_owned());
            }),
            "spec.split.groupColumn: \"reward\" is kept as a number",
        ),
        (
            Box::new(|spec| spec.sources[0].uri = Some("pvc://a/b".to_owned())),
            "spec.sources[faq]: exactly one",
        ),
        (
            Box::new(|spec| {
                spec.sources[0].config_map_ref = None;
                spec.sources[0].uri = Some("pvc://a/".to_owned());
            }),
            "spec.sources[faq].uri: \"pvc://a/\" names no file",
        ),
        (
            Box::new(|spec| {
                spec.sources[0].config_map_ref = None;
                spec.sources[0].uri = Some("pvc://a/rows/**".to_owned());
            }),
            "spec.sources[faq].uri: \"pvc://a/rows/**\": a pattern names files",
        ),
        (
            Box::new(|spec| {
                spec.sources[0].config_map_ref = None;
                spec.sources[0].uri = Some("pvc://a/rows/".to_owned());
            }),
            "spec.sources[faq].uri: \"pvc://a/rows/\" is a folder",
        ),
        (
            Box::new(|spec| spec.split.method = SplitMethod::Time),
            "spec.split.column: is needed with method Time",
        ),
        (
            Box::new(|spec| spec.split.column = Some("day".to_owned())),
            "spec.split.column: is needed with method Time",
        ),
        (
            Box::new(|spec| spec.validation.near_duplicates = "Sometimes".into()),
            "spec.validation.nearDuplicates: \"Sometimes\" is not known",
        ),
        (
            Box::new(|spec| {
                let column = "topic".to_owned();
                spec.balance = Some(Balance {
                    column,
                    maximum_upsample: 0,
                });
            }),
            "spec.balance.maximumUpsample: is 0",
        ),
        (
            Box::new(|spec| {
                let columns = [("text".to_owned(), "body".to_owned())];
                spec.sources[0].columns = columns.into();
            }),
            "spec.sources[faq].columns: \"text\" is not kept; columns are prompt, completion",
        ),
        (
            Box::new(|spec| {
                spec.sources[0].config_map_ref = None;
                spec.sources[0].uri = Some("pvc://a/b**/c.csv".to_owned());
            }),
            "spec.sources[faq].uri: \"pvc://a/b**/c.csv\": ** stands for folders",
        ),
    ] {
        let mut world = World::from_config_map();
        world.reconcile();
        change(&mut world.cr.spec);
        let actions = world.reconcile();
        assert_eq!(world.ready().1, reason::INVALID_SPEC);
        assert!(world.ready().2.starts_with(field), "{}", world.ready().2);
        assert!(actions.create.is_empty() && actions.delete.is_empty() && actions.apply.is_empty());
    }
}

#[test]
fn bad_rows_fail_at_once_and_keep_the_last_good_version() {
    let mut world = World::from_config_map();
    world.publish(1);
    world.reconcile();
    world.observed.sources.insert(
        "faq".to_owned(),
        SourceState::Present(Some(Digest::of(b"two"))),
    );
    world.observed.build = Asked::Answered(None);
    world.reconcile();
    let summary = BuildSummary {
        reason: "DataError".to_owned(),
        message: "source faq line 3: prompt is missing; 12.5 % of 8 rows are invalid, more than 0"
            .to_owned(),
        version: None,
        digest: None,
        rows: None,
        rejected: vec![],
    };
    world.end_job(i32::from(ExitCode::BadData.code()), Some(&summary));
    let actions = world.reconcile();
    assert!(actions.create.is_empty());
    assert_eq!(world.ready().1, reason::DATA_ERROR);
    assert_eq!(world.ready().2, summary.message);
    assert_eq!(
        world
            .cr
            .status
            .as_ref()
            .unwrap()
            .latest
            .as_ref()
            .unwrap()
            .version,
        1
    );
    world.observed.pods.clear();
    world.reconcile();
    assert_eq!(
        world.ready().2,
        summary.message,
        "the pod's words outlive it"
    );
}

#[test]
fn the_first_invalid_rows_are_named_by_source_line_and_rule_in_condition_and_event() {
    let row = |line, rule: &str| RejectedRow {
        file: None,
        source: "faq".to_owned(),
        line,
        rule: rule.to_owned(),
    };
    let mut world = World::from_config_map();
    world.reconcile();
    let summary = BuildSummary {
        reason: reason::DATA_ERROR.to_owned(),
        message: "3 of 8 rows are invalid (37.50 %), spec.validation.maximumInvalidPercent allows \
                  1 %: source faq line 3: prompt is missing (2 rows); source faq line 5: is not \
                  JSON (1 row); correct the rows or raise the limit"
            .to_owned(),
        version: None,
        digest: None,
        rows: None,
        rejected: vec![
            row(3, "prompt is missing"),
            row(5, "is not JSON"),
            row(8, "prompt is missing"),
        ],
    };
    world.end_job(i32::from(ExitCode::BadData.code()), Some(&summary));
    let actions = world.reconcile();
    let expected = format!(
        "{}; also source faq line 8: prompt is missing",
        summary.message
    );
    assert_eq!(world.ready().2, expected);
    assert_eq!(actions.events.len(), 1);
    assert_eq!(actions.events[0].note, expected);

    // Within the limit a version is made, and names the rows that it left out.
    let mut world = World::from_config_map();
    world.publish_with(1, vec![row(3, "prompt is missing")]);
    world.reconcile();
    let status = world.cr.status.unwrap();
    assert_eq!(
        status.versions[0].schema_hash,
        Digest::of(b"schema").as_str()
    );
    assert_eq!(status.versions[0].size_bytes, 9);
    let named = &status.versions[0].rejected[0];
    assert_eq!(
        (named.source.as_str(), named.line, named.rule.as_str()),
        ("faq", 3, "prompt is missing")
    );
}
