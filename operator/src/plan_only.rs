//! `operator run --plan-only`: prints what would be done about every object, and does nothing.

use std::fmt::Debug;

use graftwork_operator_core::plan::Plan;
use graftwork_operator_core::storage;
use kube::ResourceExt as _;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::ApiError;
use crate::cache::Guarded;
use crate::context::Context;
use crate::controllers::{Reconciled, plan_once};
use crate::observe;

/// Prints one line of JSON for each object.
///
/// # Errors
/// Those of the API server.
pub async fn print_all(context: &Context) -> Result<(), ApiError> {
    for namespace in context.caches.namespaces.state() {
        let observed = observe::storage::observe(context, &namespace).await?;
        let plan = storage::plan(&observed, &context.settings);
        print("Namespace", &namespace.name_any(), "", &plan);
    }
    print_kind(context, &context.caches.datasets).await?;
    print_kind(context, &context.caches.runs).await?;
    print_kind(context, &context.caches.adapters).await?;
    print_kind(context, &context.caches.endpoints).await
}

async fn print_kind<K: Reconciled<Status: Debug>>(
    context: &Context,
    store: &Store<Guarded<K>>,
) -> Result<(), ApiError> {
    for object in store.state() {
        let DeserializeGuard(Ok(object)) = &*object else {
            tracing::warn!("an object can't be read by this version");
            continue;
        };
        let plan = plan_once(context, object).await?;
        let namespace = object.namespace().unwrap_or_default();
        print(K::KIND.name(), &namespace, &object.name_any(), &plan);
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "plans are what this command prints")]
fn print<S: Serialize>(kind: &str, namespace: &str, name: &str, plan: &Plan<S>) {
    let mut line = json!({"kind": kind, "namespace": namespace, "name": name});
    if let Some(line) = line.as_object_mut() {
        line.extend(describe(plan));
    }
    println!("{line}");
}

fn describe<S: Serialize>(plan: &Plan<S>) -> serde_json::Map<String, Value> {
    let value = match plan {
        Plan::Decide(decision) => json!({"decide": decision.status}),
        Plan::Act(actions) => json!({
            "apply": actions.apply.iter().map(|child| json!({
                "kind": child.kind().name(), "name": child.name(),
            })).collect::<Vec<_>>(),
            "create": actions.create.iter().map(|job| job.metadata.name.clone()).collect::<Vec<_>>(),
            "delete": actions.delete.iter().map(|delete| json!({
                "kind": delete.kind.name(), "name": delete.name,
            })).collect::<Vec<_>>(),
            "calls": actions.calls.iter().map(|call| call.method()).collect::<Vec<_>>(),
            "status": actions.status,
            "requeueAfterSeconds": actions.requeue_after.map(|it| it.as_secs_f64()),
        }),
    };
    match value {
        Value::Object(map) => map,
        _ => serde_json::Map::new(),
    }
}
