//! Who manages which field of an object: what a create of ours made, and what others added where we alone
//! write.
//!
//! An apply takes out what its manager held before and names no longer, and leaves what another manager holds:
//! a container that somebody adds to a Deployment of ours would stay for ever. So those fields are made ours
//! first, as if we had applied them. What the API server fills in and what admission changes belongs to
//! nobody, and stays.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
use serde_json::{Value, json};

use crate::api::FIELD_MANAGER;

/// What is to be written of an object's managed fields before it is applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Handover {
    /// All of them.
    pub fields: Vec<ManagedFieldsEntry>,
    /// Whether something of others is among ours now, which the next apply takes out.
    pub takes_back: bool,
}

/// What is to be written of the managed fields of an object of that kind; none where they are as they should be.
pub fn handover(kind: &str, fields: &[ManagedFieldsEntry]) -> Option<Handover> {
    let applied = as_applied(fields);
    let taken = taken_back(kind, applied.as_deref().unwrap_or(fields));
    let takes_back = taken.is_some();
    Some(Handover {
        fields: taken.or(applied)?,
        takes_back,
    })
}

/// Where nobody but us writes, as paths in a set of fields. Labels and annotations stay everybody's, those of a
/// pod template, too: a rollout is restarted by one.
fn ours_alone(kind: &str) -> &'static [&'static [&'static str]] {
    match kind {
        "Deployment" => &[&["f:spec", "f:template", "f:spec"]],
        "ConfigMap" => &[&["f:data"], &["f:binaryData"]],
        "Service" => &[&["f:spec", "f:selector"]],
        _ => &[],
    }
}

/// The managed fields with what others hold where we alone write as ours; none where they hold nothing there
/// that we don't.
fn taken_back(kind: &str, fields: &[ManagedFieldsEntry]) -> Option<Vec<ManagedFieldsEntry>> {
    let (ours, mut kept): (Vec<_>, Vec<_>) = fields
        .iter()
        .cloned()
        .partition(|entry| is_ours(entry, "Apply"));
    let first = fields.first()?;
    let mut ours = ours.into_iter().next().unwrap_or(ManagedFieldsEntry {
        api_version: first.api_version.clone(),
        fields_type: first.fields_type.clone(),
        manager: Some(FIELD_MANAGER.to_owned()),
        operation: Some("Apply".to_owned()),
        ..ManagedFieldsEntry::default()
    });
    let mut held = ours.fields_v1.take().map_or_else(|| json!({}), |it| it.0);
    let mut takes_back = false;
    for entry in &mut kept {
        let of_subresource = !entry.subresource.as_deref().unwrap_or_default().is_empty();
        if of_subresource || entry.api_version != ours.api_version {
            continue;
        }
        let Some(theirs) = &mut entry.fields_v1 else {
            continue;
        };
        for path in ours_alone(kind) {
            if exceeds(at(&theirs.0, path), at(&held, path))
                && let Some(taken) = take(&mut theirs.0, path)
            {
                unite(&mut held, &below(path, taken));
                takes_back = true;
            }
        }
    }
    kept.retain(|entry| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
        fields.is_none_or(|fields| !is_empty(fields))
    });
    ours.fields_v1 = Some(FieldsV1(held));
    kept.push(ours);
    takes_back.then_some(kept)
}

/// What stands at a path of a set of fields.
fn at<'a>(fields: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter()
        .try_fold(fields, |fields, field| fields.get(*field))
}

/// Whether the first set has a field that the second one lacks.
fn exceeds(theirs: Option<&Value>, ours: Option<&Value>) -> bool {
    let (theirs, ours) = match (theirs, ours) {
        (None, _) => return false,
        (Some(_), None) => return true,
        (Some(theirs), Some(ours)) => (theirs, ours),
    };
    let fields = theirs.as_object().into_iter().flatten();
    fields
        // The object or list itself, whose fields or items follow.
        .filter(|(field, _)| *field != ".")
        .any(|(field, below)| exceeds(Some(below), ours.get(field)))
}

/// Takes what stands at a path out of a set of fields, and what holds nothing else.
fn take(fields: &mut Value, path: &[&str]) -> Option<Value> {
    let (first, rest) = path.split_first()?;
    let fields = fields.as_object_mut()?;
    if rest.is_empty() {
        return fields.remove(*first);
    }
    let next = fields.get_mut(*first)?;
    let taken = take(next, rest)?;
    if is_empty(next) {
        fields.remove(*first);
    }
    Some(taken)
}

/// A set of the fields below a path.
fn below(path: &[&str], fields: Value) -> Value {
    path.iter().rev().fold(fields, |fields, field| {
        Value::Object([((*field).to_owned(), fields)].into_iter().collect())
    })
}

fn is_empty(fields: &Value) -> bool {
    fields.as_object().is_some_and(serde_json::Map::is_empty)
}

/// The managed fields of an object with what a create of ours made as made by an apply; none where
/// nothing is of a create.
///
/// A create is recorded as an Update, and no apply takes out what an Update holds: a field that we
/// send no longer would stay for ever. client-go's `csaupgrade` does the same for kubectl.
fn as_applied(fields: &[ManagedFieldsEntry]) -> Option<Vec<ManagedFieldsEntry>> {
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

    /// Fields of a container of a Deployment's pod template.
    fn container(name: &str, fields: Value) -> Value {
        let key = format!("k:{{\"name\":\"{name}\"}}");
        let containers = Value::Object([(key, fields)].into_iter().collect());
        json!({"f:spec": {"f:template": {"f:spec": {"f:containers": containers}}}})
    }

    fn engine() -> Value {
        let mut fields = container(
            "engine",
            json!({".": {}, "f:name": {}, "f:image": {}, "f:env": {".": {}, "k:{\"name\":\"A\"}": {".": {}, "f:name": {}}}}),
        );
        fields["f:spec"]["f:replicas"] = json!({});
        fields
    }

    #[test]
    fn what_others_add_to_a_pod_template_or_to_data_becomes_ours() {
        let apart = json!({"f:metadata": {"f:annotations": {"f:theirs": {}}}});
        for (kind, ours, theirs) in [
            (
                "Deployment",
                engine(),
                container("agent", json!({".": {}, "f:image": {}, "f:name": {}})),
            ),
            (
                "Deployment",
                engine(),
                container(
                    "engine",
                    json!({"f:env": {"k:{\"name\":\"B\"}": {".": {}, "f:name": {}, "f:value": {}}}}),
                ),
            ),
            (
                "Deployment",
                engine(),
                json!({"f:spec": {"f:template": {"f:spec": {"f:hostNetwork": {}, "f:nodeSelector": {}}}}}),
            ),
            (
                "ConfigMap",
                json!({"f:data": {"f:a": {}}}),
                json!({"f:data": {"f:b": {}}}),
            ),
            (
                "ConfigMap",
                json!({"f:data": {"f:a": {}}}),
                json!({"f:binaryData": {".": {}, "f:b": {}}}),
            ),
            (
                "Service",
                json!({"f:spec": {"f:ports": {}}}),
                json!({"f:spec": {"f:selector": {}}}),
            ),
        ] {
            let mut both = theirs.clone();
            unite(&mut both, &apart);
            let fields = [
                entry(FIELD_MANAGER, "Apply", ours.clone()),
                entry("kubectl", "Update", both),
            ];
            let mut united = ours;
            unite(&mut united, &theirs);
            let expected = vec![
                entry("kubectl", "Update", apart.clone()),
                entry(FIELD_MANAGER, "Apply", united),
            ];
            let handover = handover(kind, &fields).unwrap();
            assert!(handover.takes_back, "{theirs}");
            assert_eq!(handover.fields, expected, "{theirs}");
            assert_eq!(
                super::handover(kind, &handover.fields),
                None,
                "once is enough"
            );
        }
    }

    #[test]
    fn who_held_nothing_else_is_no_manager_any_more() {
        let theirs = entry("kubectl", "Update", json!({"f:data": {"f:b": {}}}));
        let handover = handover("ConfigMap", &[theirs]).unwrap();
        let ours = entry(FIELD_MANAGER, "Apply", json!({"f:data": {"f:b": {}}}));
        assert_eq!(handover.fields, [ours]);
    }

    #[test]
    fn what_others_may_hold_is_left_to_them() {
        let subresource = |name: &str, fields: Value| ManagedFieldsEntry {
            subresource: Some(name.to_owned()),
            ..entry("kube-controller-manager", "Update", fields)
        };
        for theirs in [
            // The same fields with the same values.
            entry("argocd", "Apply", engine()),
            entry(
                "kubectl",
                "Update",
                json!({"f:metadata": {"f:labels": {"f:team": {}}}}),
            ),
            entry(
                "kubectl",
                "Update",
                json!({"f:spec": {"f:strategy": {"f:type": {}}}}),
            ),
            // kubectl rollout restart
            entry(
                "kubectl-rollout",
                "Update",
                json!({"f:spec": {"f:template": {"f:metadata": {"f:annotations": {}}}}}),
            ),
            subresource("status", json!({"f:status": {"f:replicas": {}}})),
            subresource("scale", json!({"f:spec": {"f:replicas": {}}})),
        ] {
            let fields = [entry(FIELD_MANAGER, "Apply", engine()), theirs];
            assert_eq!(handover("Deployment", &fields), None, "{fields:?}");
        }
        let theirs = entry("kubectl", "Update", json!({"f:spec": {"f:template": {}}}));
        assert_eq!(handover("PersistentVolumeClaim", &[theirs]), None);
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
