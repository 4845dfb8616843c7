//! Sources that are queries: what a build is told, what is mounted, and what is said when one fails.

use graftwork_api::dataset::{ConnectionSecretReference, PostgresSource};
use graftwork_contract::dataset::{BuildConfig, DatabaseKind, Query};
use graftwork_contract::pod;
use k8s_openapi::api::core::v1::{SecretVolumeSource, VolumeMount};

use super::*;

fn source(key: Option<&str>) -> Source {
    Source {
        name: "decisions".to_owned(),
        postgres: Some(PostgresSource {
            secret_ref: ConnectionSecretReference {
                name: "warehouse".to_owned(),
                key: key.map(str::to_owned),
            },
            query: "SELECT prompt, completion FROM decisions".to_owned(),
        }),
        ..Source::default()
    }
}

fn world(key: Option<&str>) -> World {
    World::new(vec![source(key)])
}

pub(super) fn config(actions: &Actions<DatasetStatus>) -> BuildConfig {
    let Child::ConfigMap(map) = &actions.apply[0] else {
        unreachable!("a build has a configuration")
    };
    serde_json::from_str(&map.data.as_ref().unwrap()["config.json"]).unwrap()
}

/// The Secrets of the build's pod, each with its mount.
pub(super) fn secrets(actions: &Actions<DatasetStatus>) -> Vec<(SecretVolumeSource, VolumeMount)> {
    let job = actions.create[0].spec.as_ref().unwrap();
    let pod = job.template.spec.as_ref().unwrap();
    let mounts = pod.containers[0].volume_mounts.as_ref().unwrap();
    let volumes = pod.volumes.iter().flatten();
    volumes
        .filter_map(|volume| {
            let mount = mounts.iter().find(|it| it.name == volume.name).unwrap();
            Some((volume.secret.clone()?, mount.clone()))
        })
        .collect()
}

#[test]
fn a_build_is_told_the_query_and_its_limits() {
    let mut world = world(Some("url"));
    let told = config(&world.reconcile());
    let source = &told.sources[0];
    assert_eq!(source.uri, "secret://warehouse/url");
    assert_eq!(source.path, "/var/lib/graftwork/secrets/decisions");
    let asked = Query {
        database: DatabaseKind::Postgres,
        text: "SELECT prompt, completion FROM decisions".to_owned(),
        timeout_seconds: 3600,
        maximum_rows: 10_000_000,
    };
    assert_eq!(source.query, Some(asked));
    assert!(told.allowed_hosts.is_empty());

    let mut limited = world.clone();
    limited.cr.spec.sources[0].timeout_seconds = Some(60);
    limited.cr.spec.sources[0].maximum_rows = Some(7);
    let told = config(&limited.reconcile());
    let asked = told.sources[0].query.as_ref().unwrap();
    assert_eq!((asked.timeout_seconds, asked.maximum_rows), (60, 7));
    assert_ne!(limited.fingerprint(), world.fingerprint());
}

#[test]
fn hosts_that_the_chart_allows_are_told_to_the_build() {
    let world = world(None);
    let mut settings = settings();
    settings.data_sources.allow = vec!["warehouse.databases.svc".to_owned()];
    let Plan::Act(actions) = plan(&world.cr, &world.observed, &settings, at(0)) else {
        unreachable!("a Dataset decides nothing")
    };
    let told = config(&actions);
    assert_eq!(told.allowed_hosts, ["warehouse.databases.svc"]);
}

#[test]
fn the_login_is_mounted_as_files_and_no_pod_hangs_without_it() {
    for (key, expected) in [
        (Some("url"), vec!["url uri", "ca.crt ca.crt"]),
        (
            None,
            vec![
                "host host",
                "port port",
                "dbname dbname",
                "user user",
                "username username",
                "password password",
                "sslmode sslmode",
                "ca.crt ca.crt",
            ],
        ),
    ] {
        let actions = world(key).reconcile();
        let mounted = secrets(&actions);
        assert_eq!(mounted.len(), 1);
        let (secret, mount) = &mounted[0];
        assert_eq!(secret.secret_name.as_deref(), Some("warehouse"));
        assert_eq!(secret.optional, Some(true));
        let items = secret.items.iter().flatten();
        let items: Vec<String> = items.map(|it| format!("{} {}", it.key, it.path)).collect();
        assert_eq!(items, expected);
        assert_eq!(mount.mount_path, format!("{}/decisions", pod::SECRETS_DIR));
        assert_eq!(mount.read_only, Some(true));
        // What is in the Secret is in no environment.
        let job = actions.create[0].spec.as_ref().unwrap();
        let container = &job.template.spec.as_ref().unwrap().containers[0];
        let variables = container.env.iter().flatten();
        assert!(
            variables
                .filter_map(|it| it.value_from.as_ref())
                .all(|it| it.secret_key_ref.is_none())
        );
        assert!(container.env_from.is_none());
    }
}

#[test]
fn another_query_secret_or_word_to_look_again_is_another_build() {
    let first = world(Some("url"));
    let mut known = vec![first.fingerprint()];
    let changes: [fn(&mut Dataset); 4] = [
        |cr| {
            cr.spec.sources[0]
                .postgres
                .as_mut()
                .unwrap()
                .query
                .push(' ');
        },
        |cr| cr.spec.sources[0].postgres.as_mut().unwrap().secret_ref.key = None,
        |cr| {
            let source = cr.spec.sources[0].postgres.as_mut().unwrap();
            source.secret_ref.name = "other".to_owned();
        },
        |cr| {
            let annotations = cr.metadata.annotations.get_or_insert_default();
            annotations.insert("graftwork.dev/refresh".to_owned(), "now".to_owned());
        },
    ];
    for change in changes {
        let mut world = first.clone();
        change(&mut world.cr);
        let fingerprint = world.fingerprint();
        assert!(!known.contains(&fingerprint));
        known.push(fingerprint);
    }
}

#[test]
fn limits_without_a_query_and_two_places_are_refused_with_the_field() {
    let file = Source {
        uri: Some("pvc://text/rows.jsonl".to_owned()),
        ..source(None)
    };
    let limited = Source {
        postgres: None,
        maximum_rows: Some(1),
        ..file.clone()
    };
    let zero = |timeout, rows| Source {
        timeout_seconds: timeout,
        maximum_rows: rows,
        ..source(None)
    };
    for (source, words) in [
        (file, "spec.sources[decisions]: exactly one of"),
        (limited, "spec.sources[decisions]: timeoutSeconds and"),
        (
            zero(Some(0), None),
            "spec.sources[decisions].timeoutSeconds: is 0",
        ),
        (
            zero(None, Some(0)),
            "spec.sources[decisions].maximumRows: is 0",
        ),
    ] {
        let mut world = World::new(vec![source]);
        let actions = world.reconcile();
        assert!(actions.create.is_empty());
        let conditions = actions.status.unwrap().conditions;
        let ready = conditions::find(&conditions, condition::READY).unwrap();
        assert_eq!(ready.reason, reason::INVALID_SPEC);
        assert!(ready.message.starts_with(words), "{}", ready.message);
    }
}

#[test]
fn a_database_that_is_away_is_asked_again_and_one_that_refuses_is_not() {
    for (why, code, again) in [
        (reason::SOURCE_UNAVAILABLE, ExitCode::Unavailable, true),
        (reason::SOURCE_NOT_FOUND, ExitCode::BadData, true),
        (reason::SOURCE_DENIED, ExitCode::BadConfig, false),
        (reason::QUERY_FAILED, ExitCode::BadConfig, false),
    ] {
        let mut world = world(Some("url"));
        world.reconcile();
        let summary = BuildSummary {
            reason: why.to_owned(),
            message: "source decisions: what is wrong".to_owned(),
            version: None,
            digest: None,
            rows: None,
            rejected: vec![],
        };
        world.end_job(i32::from(code.code()), Some(&summary));
        let said = world.reconcile().status.unwrap().conditions;
        let ready = conditions::find(&said, condition::READY).unwrap();
        assert!(
            ready.message.contains("source decisions: what is wrong"),
            "{}",
            ready.message
        );
        assert_eq!(ready.reason, why);
        let truth = if why == reason::SOURCE_UNAVAILABLE {
            "Unknown"
        } else {
            "False"
        };
        assert_eq!(ready.status, truth, "{why}");
        world.seconds += 3600;
        assert_eq!(world.reconcile().create.len() == 1, again, "{why}");
    }
}
