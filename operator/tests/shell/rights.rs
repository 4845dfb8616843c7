//! What the chart lets the operator do: what it does, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize as _;
use serde_json::Value;

/// Verbs by resource, `group/resource`; a name in brackets where the rule is for that one alone.
type Rights = BTreeMap<String, BTreeSet<String>>;

/// The objects of the chart's rbac.yaml, with `x` for the chart's name and without labels that Helm writes.
fn objects() -> Vec<Value> {
    let chart = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../charts/graftwork/templates/rbac.yaml"
    );
    let text = std::fs::read_to_string(chart).unwrap();
    let mut plain = String::new();
    for line in text.lines().filter(|line| !line.trim().starts_with("{{")) {
        let mut rest = line;
        while let Some((before, after)) = rest.split_once("{{") {
            plain.push_str(before);
            plain.push('x');
            rest = after.split_once("}}").unwrap().1;
        }
        plain.push_str(rest);
        plain.push('\n');
    }
    serde_yaml_ng::Deserializer::from_str(&plain)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

fn words<'a>(rule: &'a Value, key: &str) -> Vec<&'a str> {
    let list = rule[key].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|word| word.as_str().unwrap()).collect()
}

/// What a role of that kind and name may do.
fn rights(kind: &str, name: &str) -> Rights {
    let objects = objects();
    let role = objects
        .iter()
        .find(|it| it["kind"] == kind && it["metadata"]["name"] == name)
        .unwrap();
    let mut rights = Rights::new();
    for rule in role["rules"].as_array().unwrap() {
        assert!(rule.get("nonResourceURLs").is_none(), "{rule}");
        let names = words(rule, "resourceNames").join(", ");
        for group in words(rule, "apiGroups") {
            for resource in words(rule, "resources") {
                let mut what = format!("{group}/{resource}");
                if !names.is_empty() {
                    what = format!("{what} [{names}]");
                }
                let verbs = words(rule, "verbs").into_iter().map(str::to_owned);
                rights.entry(what).or_default().extend(verbs);
            }
        }
    }
    rights
}

fn table(rows: &[(&str, &str)]) -> Rights {
    rows.iter()
        .map(|(what, verbs)| {
            let verbs = verbs.split(' ').map(str::to_owned).collect();
            ((*what).to_owned(), verbs)
        })
        .collect()
}

/// A verb comes here together with the code that needs it.
#[test]
fn the_operator_may_do_what_it_does_and_nothing_else() {
    let look = "get list watch";
    let everywhere = table(&[
        ("graftwork.dev/datasets", look),
        ("graftwork.dev/trainingruns", look),
        ("graftwork.dev/loraadapters", look),
        ("graftwork.dev/servingendpoints", look),
        ("graftwork.dev/datasets/status", "patch"),
        ("graftwork.dev/trainingruns/status", "patch"),
        ("graftwork.dev/loraadapters/status", "patch"),
        ("graftwork.dev/servingendpoints/status", "patch"),
        ("apps/deployments", "get list watch create patch delete"),
        ("batch/jobs", "get list watch create delete"),
        ("/configmaps", "get list watch create patch delete"),
        ("/services", "get list watch create patch"),
        ("/persistentvolumeclaims", "get list watch create patch"),
        ("/pods", "list watch patch delete"),
        ("/namespaces", "list watch"),
        ("events.k8s.io/events", "create list"),
        ("scheduling.k8s.io/priorityclasses", "get"),
    ]);
    assert_eq!(rights("ClusterRole", "x"), everywhere);
    let at_home = table(&[
        ("coordination.k8s.io/leases", "create"),
        (
            "coordination.k8s.io/leases [graftwork-operator]",
            "get update",
        ),
        ("/secrets", "create"),
        ("/secrets [graftwork-operator-signing-key]", "get update"),
    ]);
    assert_eq!(rights("Role", "x"), at_home);
}

#[test]
fn no_role_of_the_chart_has_a_wildcard_or_hands_out_rights() {
    let objects = objects();
    let roles: Vec<&Value> = objects.iter().filter(|it| it["rules"].is_array()).collect();
    assert_eq!(roles.len(), 5, "the operator's two, and three for people");
    for role in roles {
        let name = role["metadata"]["name"].as_str().unwrap();
        for rule in role["rules"].as_array().unwrap() {
            for key in ["apiGroups", "resources", "verbs"] {
                assert!(!words(rule, key).contains(&"*"), "{name}: {rule}");
            }
            let groups = words(rule, "apiGroups");
            assert!(
                !groups.contains(&"rbac.authorization.k8s.io"),
                "{name}: {rule}"
            );
            for verb in ["bind", "escalate", "impersonate"] {
                assert!(!words(rule, "verbs").contains(&verb), "{name}: {rule}");
            }
        }
    }
    // Each binding gives the operator's account the role that is tested above.
    for binding in objects.iter().filter(|it| it["roleRef"].is_object()) {
        assert_eq!(binding["roleRef"]["name"], "x", "{binding}");
        assert_eq!(binding["subjects"].as_array().unwrap().len(), 1);
        assert_eq!(binding["subjects"][0]["kind"], "ServiceAccount");
    }
}
