//! Who manages which field of an object that a create made.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::{Value, json};

use crate::api::FIELD_MANAGER;

/// The managed fields of an object with what a create of ours made as made by an apply; none where
/// nothing is of a create.
///
/// A create is recorded as an Update, and no apply takes out what an Update holds: a field that we
/// send no longer would stay for ever. client-go's `csaupgrade` does the same for kubectl.
pub fn as_applied(fields: &[ManagedFieldsEntry]) -> Option<Vec<ManagedFieldsEntry>> {
    let (created, mut kept): (Vec<_>, Vec<_>) = fields
        .iter()
        .cloned()
        .partition(|entry| is_ours(entry, "Update"));
    if created.is_empty() {
        return None;
    }
    for mut entry in created {
        match kept.iter_mut().find(|known| is_ours(known, "Apply")) {
            None => {
                entry.operation = Some("Apply".to_owned());
                kept.push(entry);
            }
            // As `csaupgrade` does: fields of another version can't be united with these.
            Some(known) if known.api_version != entry.api_version => {}
            Some(known) => {
                if let (Some(into), Some(of_create)) = (&mut known.fields_v1, &entry.fields_v1) {
                    unite(&mut into.0, &of_create.0);
                }
            }
        }
    }
    Some(kept)
}

fn is_ours(entry: &ManagedFieldsEntry, operation: &str) -> bool {
    entry.manager.as_deref() == Some(FIELD_MANAGER)
        && entry.operation.as_deref() == Some(operation)
        && entry.subresource.as_deref().unwrap_or_default().is_empty()
}

/// A set of fields is a tree of objects; its leaves are empty ones.
fn unite(into: &mut Value, other: &Value) {
    if let (Value::Object(into), Value::Object(other)) = (into, other) {
        for (field, below) in other {
            unite(
                into.entry(field.clone()).or_insert_with(|| json!({})),
                below,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::FieldsV1;

    use super::*;

    fn entry(manager: &str, operation: &str, fields: Value) -> ManagedFieldsEntry {
        ManagedFieldsEntry {
            api_version: Some("v1".to_owned()),
            fields_type: Some("FieldsV1".to_owned()),
            fields_v1: Some(FieldsV1(fields)),
            manager: Some(manager.to_owned()),
            operation: Some(operation.to_owned()),
            ..ManagedFieldsEntry::default()
        }
    }

    #[test]
    fn fields_of_a_create_become_those_of_an_apply_and_others_keep_theirs() {
        let created = entry(FIELD_MANAGER, "Update", json!({"f:data": {"f:a": {}}}));
        let theirs = entry("kubectl", "Update", json!({"f:data": {"f:b": {}}}));
        let applied = entry(FIELD_MANAGER, "Apply", json!({"f:data": {"f:a": {}}}));
        assert_eq!(
            as_applied(&[created, theirs.clone()]),
            Some(vec![theirs, applied])
        );
    }

    #[test]
    fn fields_of_a_create_and_of_an_apply_are_united() {
        let spec = |fields: Value| json!({"f:spec": fields});
        let created = spec(json!({"f:type": {}, "f:ports": {".": {}, "k:{\"port\":80}": {}}}));
        let applied = spec(json!({"f:selector": {}, "f:ports": {"k:{\"port\":81}": {}}}));
        let both = spec(json!({
            "f:selector": {},
            "f:type": {},
            "f:ports": {".": {}, "k:{\"port\":80}": {}, "k:{\"port\":81}": {}},
        }));
        let fields = [
            entry(FIELD_MANAGER, "Apply", applied),
            entry(FIELD_MANAGER, "Update", created),
        ];
        let united = vec![entry(FIELD_MANAGER, "Apply", both)];
        assert_eq!(as_applied(&fields), Some(united));
    }

    #[test]
    fn without_a_create_of_ours_there_is_nothing_to_do() {
        let mut status = entry(FIELD_MANAGER, "Update", json!({"f:status": {}}));
        status.subresource = Some("status".to_owned());
        for known in [
            status,
            entry(FIELD_MANAGER, "Apply", json!({})),
            entry("kubectl", "Update", json!({})),
        ] {
            assert_eq!(as_applied(std::slice::from_ref(&known)), None, "{known:?}");
        }
        assert_eq!(as_applied(&[]), None);
    }
}
