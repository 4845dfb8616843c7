//! Status: written as the difference to what was read, with the `resourceVersion` that was read,
//! and not at all where nothing but times would change.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// What counts as a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// Everything: a decision may be about a time.
    Exactly,
    /// Not times: what is observed does not change because it was looked at again.
    ApartFromTimes,
}

/// The merge patch from `old` to `new`: what is gone becomes null, unknown fields of the live object
/// stay. None where there is no difference.
pub fn patch(old: &Value, new: &Value, compare: Compare) -> Option<Value> {
    let equal = match compare {
        Compare::Exactly => old == new,
        Compare::ApartFromTimes => same(old, new),
    };
    (!equal).then(|| difference(old, new))
}

fn difference(old: &Value, new: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return new.clone();
    };
    let mut patch = Map::new();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in new {
        match old.get(key) {
            Some(known) if known == value => {}
            Some(known @ Value::Object(_)) if value.is_object() => {
                patch.insert(key.clone(), difference(known, value));
            }
            _ => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(patch)
}

/// Whether two values are equal apart from times.
pub fn same(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            old.len() == new.len()
                && old
                    .iter()
                    .all(|(key, value)| new.get(key).is_some_and(|other| same(value, other)))
        }
        (Value::Array(old), Value::Array(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|(old, new)| same(old, new))
        }
        (Value::String(old), Value::String(new)) => old == new || (is_time(old) && is_time(new)),
        _ => old == new,
    }
}

fn is_time(text: &str) -> bool {
    // RFC 3339 in UTC, as the API server prints it: nothing shorter is worth parsing.
    text.len() >= 20 && text.ends_with('Z') && text.parse::<Timestamp>().is_ok()
}

/// The body of the patch of a status subresource.
pub fn body(resource_version: &str, uid: &str, status: &Value) -> Value {
    json!({
        "metadata": {"resourceVersion": resource_version, "uid": uid},
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_where_only_times_differ() {
        let old = json!({"conditions": [{"type": "Ready", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let new = json!({"conditions": [{"type": "Ready", "lastTransitionTime": "2026-01-01T00:00:09.5Z"}]});
        assert_eq!(patch(&old, &new, Compare::ApartFromTimes), None);
        assert!(patch(&old, &new, Compare::Exactly).is_some());
        let other = json!({"conditions": [{"type": "Ready", "lastTransitionTime": "soon"}]});
        assert!(patch(&old, &other, Compare::ApartFromTimes).is_some());
    }

    #[test]
    fn a_patch_holds_the_difference_only() {
        let old = json!({"a": 1, "b": {"c": 1, "d": 2}, "list": [1], "gone": true});
        let new = json!({"a": 1, "b": {"c": 1, "d": 3}, "list": [2], "new": "x"});
        assert_eq!(
            patch(&old, &new, Compare::ApartFromTimes),
            Some(json!({"b": {"d": 3}, "list": [2], "gone": null, "new": "x"}))
        );
        assert_eq!(
            patch(&Value::Null, &json!({"a": 1}), Compare::ApartFromTimes),
            Some(json!({"a": 1})),
            "the first status is whole"
        );
    }

    proptest::proptest! {
        #[test]
        fn a_patch_leads_from_old_to_new(
            old in value(), new in value(),
        ) {
            let mut merged = old.clone();
            merge(&mut merged, &difference(&old, &new));
            proptest::prop_assert_eq!(merged, new);
        }
    }

    fn value() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            any::<u8>().prop_map(|number| json!(number)),
            "[a-c]{0,2}".prop_map(|text| json!(text)),
        ];
        let tree = leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        });
        prop::collection::btree_map("[a-d]", tree, 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    /// RFC 7386.
    fn merge(target: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = json!({});
        }
        for (key, value) in patch {
            let target = target.as_object_mut().unwrap();
            if value.is_null() {
                target.remove(key);
            } else {
                merge(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }
}
