//! The signing key and the rights that the chart gives.

use graftwork_operator::keys::load_or_create;
use graftwork_operator::lease::Term;
use graftwork_operator::metrics::Metrics;
use http::Method;
use serde_json::{Value, json};

use crate::fake_api::{Answer, FakeApi};

/// A Secret with that entry `seed`, in base64.
fn secret(seed: Option<&str>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "graftwork-operator-signing-key", "namespace": "ns", "uid": "s", "resourceVersion": "5"},
        "data": seed.map_or_else(|| json!({}), |seed| json!({"seed": seed})),
    })
}

/// A server with that Secret, which answers updates as `update` says, and then has what was written.
fn server(found: Value, update: Option<u16>) -> FakeApi {
    let stored = std::sync::Mutex::new(found);
    FakeApi::new(move |method, path, body| {
        assert!(path.starts_with("secrets"), "{path}");
        let mut stored = stored.lock().unwrap();
        match (method, update) {
            (&Method::GET, _) if stored.is_null() => Answer::Status(404, "NotFound"),
            (&Method::GET, _) => Answer::Object(stored.clone()),
            (_, Some(code)) => Answer::Status(code, "secrets is forbidden"),
            (_, None) => {
                *stored = body.clone();
                Answer::Object(body.clone())
            }
        }
    })
}

#[tokio::test]
async fn an_empty_secret_is_filled_and_the_write_is_counted() {
    for empty in [None, Some("")] {
        let api = server(secret(empty), None);
        let metrics = Metrics::new().unwrap();
        let keys = load_or_create(api.client(), "ns", &Term::forever(), &metrics)
            .await
            .unwrap();
        assert_eq!(keys.public.len(), 1);
        assert_eq!(api.lines(), ["PUT secrets/graftwork-operator-signing-key"]);
        let written = &api.writes()[0].body;
        assert_eq!(written["metadata"]["resourceVersion"], "5");
        let text = metrics.print();
        let line = "graftwork_api_writes_total{kind=\"Secret\",outcome=\"ok\",verb=\"update\"} 1";
        assert!(text.contains(line), "{text}");
    }
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_with_the_remedy() {
    for (found, verb) in [(secret(None), "update"), (Value::Null, "create")] {
        let api = server(found, Some(403));
        let metrics = Metrics::new().unwrap();
        let error = match load_or_create(api.client(), "ns", &Term::forever(), &metrics).await {
            Ok(_) => panic!("there is no key"),
            Err(error) => error.to_string(),
        };
        for part in [
            "ns/graftwork-operator-signing-key",
            verb,
            "403",
            "Role",
            "64",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

#[tokio::test]
async fn a_malformed_secret_is_named_with_the_remedy_and_left_alone() {
    let api = server(secret(Some("Z2FyYmFnZQ==")), None);
    let metrics = Metrics::new().unwrap();
    let error = match load_or_create(api.client(), "ns", &Term::forever(), &metrics).await {
        Ok(_) => panic!("there is no key"),
        Err(error) => error.to_string(),
    };
    for part in [
        "ns/graftwork-operator-signing-key",
        "seed",
        "7 bytes",
        "delete",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(api.lines(), Vec::<String>::new());
}

/// Rules of the chart's Role and ClusterRole, as text between `- apiGroups` lines.
fn rules() -> Vec<String> {
    let chart = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../charts/graftwork/templates/rbac.yaml"
    );
    let text = std::fs::read_to_string(chart).unwrap();
    text.split("  - apiGroups:")
        .skip(1)
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_chart_lets_the_operator_fill_its_own_secret_and_read_no_other() {
    let secrets: Vec<String> = rules()
        .into_iter()
        .filter(|rule| rule.contains("resources: [secrets]"))
        .collect();
    assert_eq!(secrets.len(), 2, "{secrets:?}");
    let named = |rule: &String| rule.contains("resourceNames: [graftwork-operator-signing-key]");
    let own = secrets.iter().find(|rule| named(rule)).unwrap();
    assert!(own.contains("verbs: [get, update]"), "{own}");
    let any = secrets.iter().find(|rule| !named(rule)).unwrap();
    assert!(any.contains("verbs: [create]"), "{any}");
}
