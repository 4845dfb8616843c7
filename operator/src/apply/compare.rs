//! Whether a live object already says all that a desired one says.

use graftwork_api::amount;
use serde_json::Value;

/// Whether every field of `desired` stands in `live` with the same value. Lists of objects are
/// compared as sets, quantities by their amount. More may stand there: what the API server fills in can't be told
/// from what others add by its looks, but by its manager (see `managed_fields`).
pub fn covers(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => desired.iter().all(|(key, value)| {
            live.get(key).is_some_and(|known| covers(known, value)) || is_nothing(value)
        }),
        (Value::Array(live), Value::Array(desired)) => {
            if desired.iter().any(Value::is_object) {
                desired
                    .iter()
                    .all(|wanted| live.iter().any(|known| covers(known, wanted)))
            } else {
                live == desired
            }
        }
        (Value::String(live), Value::String(desired)) => {
            live == desired
                || matches!((amount::value(live), amount::value(desired)), (Some(a), Some(b)) if (a - b).abs() <= a.abs() * 1e-12)
        }
        _ => live == desired,
    }
}

/// What the API server does not keep.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_and_additions_of_others_do_not_matter() {
        let live = json!({
            "metadata": {"name": "x", "uid": "1", "labels": {"a": "b", "theirs": "c"}},
            "spec": {
                "containers": [
                    {"name": "sidecar", "image": "s"},
                    {"name": "main", "image": "i", "terminationMessagePath": "/dev/x"}
                ],
                "args": ["a", "b"],
                "resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}}
            }
        });
        let desired = json!({
            "metadata": {"name": "x", "labels": {"a": "b"}, "annotations": {}},
            "spec": {
                "containers": [{"name": "main", "image": "i"}],
                "args": ["a", "b"],
                "resources": {"limits": {"cpu": "1.5", "memory": "1024Mi"}}
            }
        });
        assert!(covers(&live, &desired));
    }

    #[test]
    fn a_changed_field_is_seen() {
        let live = json!({"spec": {"args": ["a", "b"], "replicas": 1, "image": "x"}});
        for desired in [
            json!({"spec": {"args": ["b", "a"]}}),
            json!({"spec": {"replicas": 2}}),
            json!({"spec": {"image": "y"}}),
            json!({"spec": {"paused": true}}),
        ] {
            assert!(!covers(&live, &desired), "{desired}");
        }
    }

    #[test]
    fn quantities_are_compared_by_amount() {
        for (a, b, equal) in [
            ("1", "1000m", true),
            ("0.5", "500m", true),
            ("1Gi", "1024Mi", true),
            ("1G", "1Gi", false),
            ("v1", "v01", false),
        ] {
            assert_eq!(covers(&json!(a), &json!(b)), equal, "{a} {b}");
        }
    }
}
