//! Sources on the network: what a build is told, what is mounted, and which URIs are refused.

use graftwork_api::ObjectReference;
use graftwork_contract::remote::Remote;

use super::postgres::{config, secrets};
use super::*;

fn source(uri: &str, secret: Option<&str>) -> Source {
    Source {
        name: "faq".to_owned(),
        uri: Some(uri.to_owned()),
        secret_ref: secret.map(ObjectReference::new),
        ..Source::default()
    }
}

fn world(uri: &str, secret: Option<&str>) -> World {
    World::new(vec![source(uri, secret)])
}

#[test]
fn a_build_is_told_the_uri_and_gets_the_keys_that_its_kind_of_store_has() {
    for (uri, keys) in [
        (
            "s3://corpus/faq/*.jsonl",
            &[
                "AWS_ACCESS_KEY_ID",
                "AWS_SECRET_ACCESS_KEY",
                "AWS_SESSION_TOKEN",
                "AWS_REGION",
                "AWS_ENDPOINT_URL",
                "AWS_S3_ADDRESSING_STYLE",
                "ca.crt",
            ][..],
        ),
        (
            "gs://corpus/faq.csv",
            &["GOOGLE_SERVICE_ACCOUNT_KEY", "ca.crt"][..],
        ),
        (
            "az://corpus/**/faq.parquet",
            &[
                "AZURE_STORAGE_ACCOUNT",
                "AZURE_STORAGE_KEY",
                "AZURE_STORAGE_SAS_TOKEN",
                "AZURE_CLIENT_ID",
                "AZURE_CLIENT_SECRET",
                "AZURE_TENANT_ID",
                "AZURE_STORAGE_BLOB_ENDPOINT",
                "ca.crt",
            ][..],
        ),
        (
            "hf://org/faq@main/data/*.parquet",
            &["HF_TOKEN", "ca.crt"][..],
        ),
        (
            "https://data.example.com/faq.jsonl.gz",
            &["username", "password", "token", "ca.crt"][..],
        ),
    ] {
        let actions = world(uri, Some("corpus")).reconcile();
        let told = config(&actions);
        let source = &told.sources[0];
        assert_eq!(source.uri, uri);
        assert_eq!(source.path, "/var/lib/graftwork/secrets/faq");
        let secret = Some("corpus".to_owned());
        assert_eq!(source.remote, Some(Remote { secret }));
        let mounted = secrets(&actions);
        let [(secret, mount)] = &mounted[..] else {
            unreachable!("one Secret")
        };
        assert_eq!(secret.secret_name.as_deref(), Some("corpus"));
        assert_eq!(secret.optional, Some(true));
        let items = secret.items.iter().flatten();
        let items: Vec<&str> = items.map(|it| it.key.as_str()).collect();
        assert_eq!(items, keys, "{uri}");
        assert_eq!(mount.mount_path, source.path);

        let actions = world(uri, None).reconcile();
        assert!(secrets(&actions).is_empty());
        let told = config(&actions);
        assert_eq!(told.sources[0].remote, Some(Remote::default()));
    }
}

#[test]
fn a_build_from_azure_carries_the_label_by_which_its_pod_gets_an_identity() {
    for (uri, expected) in [
        ("az://corpus/a.jsonl", Some("true")),
        ("s3://corpus/a.jsonl", None),
    ] {
        let actions = world(uri, None).reconcile();
        let template = &actions.create[0].spec.as_ref().unwrap().template;
        let labels = template.metadata.as_ref().unwrap().labels.as_ref().unwrap();
        let label = labels.get("azure.workload.identity/use");
        assert_eq!(label.map(String::as_str), expected, "{uri}");
    }
}

#[test]
fn a_mirror_of_the_hub_is_told_to_the_build_and_makes_no_other_one() {
    let world = world("hf://org/faq@main/a.jsonl", None);
    let mut settings = settings();
    settings.data_sources.hub_endpoint = Some("https://hub.example.com".to_owned());
    let Plan::Act(actions) = plan(&world.cr, &world.observed, &settings, at(0)) else {
        unreachable!("a Dataset decides nothing")
    };
    let told = config(&actions);
    assert_eq!(
        told.hub_endpoint.as_deref(),
        Some("https://hub.example.com")
    );
    assert_eq!(told.fingerprint, world.fingerprint());
}

#[test]
fn another_uri_or_secret_is_another_build() {
    let first = world("s3://corpus/a.jsonl", Some("corpus")).fingerprint();
    for other in [
        world("s3://corpus/b.jsonl", Some("corpus")),
        world("s3://corpus/a.jsonl", Some("other")),
        world("s3://corpus/a.jsonl", None),
        world("gs://corpus/a.jsonl", Some("corpus")),
    ] {
        assert_ne!(other.fingerprint(), first);
    }
}

#[test]
fn what_can_not_be_read_is_refused_with_the_field_and_none_of_its_secrets() {
    for (source, words) in [
        (
            source("s3://AKIA:hidden-4711@corpus/a.jsonl", None),
            ".uri: has credentials; name a Secret in secretRef",
        ),
        (
            source("https://data.example.com/a.jsonl?sig=hidden-4711", None),
            ".uri: has a query or a fragment",
        ),
        (
            source("ftp://data.example.com/a.jsonl", None),
            ".uri: has another scheme",
        ),
        (source("s3://corpus/../a.jsonl", None), ".uri: has a path"),
        (source("s3://corpus", None), ".uri: has a path"),
        (
            source("s3://corpus/**", None),
            ".uri: \"s3://corpus/**\": a pattern names files",
        ),
        (
            source("https://data.example.com/*.jsonl", None),
            ".uri: \"https://data.example.com/*.jsonl\": a web server has no lists",
        ),
        (
            source("hf://org/faq/a.jsonl", None),
            ".uri: is not hf://ORG/NAME@REVISION/PATH",
        ),
        (
            source("hf://org/faq@main", None),
            ".uri: \"hf://org/faq@main\" names no file",
        ),
        (
            source("pvc://text/a.jsonl", Some("corpus")),
            ".secretRef: belongs to a uri on the network",
        ),
    ] {
        let actions = World::new(vec![source]).reconcile();
        assert!(actions.create.is_empty());
        let conditions = actions.status.unwrap().conditions;
        let ready = conditions::find(&conditions, condition::READY).unwrap();
        assert_eq!(ready.reason, reason::INVALID_SPEC);
        let expected = format!("spec.sources[faq]{words}");
        assert!(ready.message.starts_with(&expected), "{}", ready.message);
        assert!(!ready.message.contains("hidden-4711"), "{}", ready.message);
    }
}
