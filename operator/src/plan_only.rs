//! `operator run --plan-only`: prints what would be done about every object, and does nothing.

use std::fmt::Debug;
use std::time::Duration;

use graftwork_api::{Dataset, LoRAAdapter, ServingEndpoint, TrainingRun};
use graftwork_operator_core::plan::Plan;
use graftwork_operator_core::storage;
use kube::api::{Api, ListParams};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use kube::{Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api::{self, ApiError};
use crate::cache::{Caches, Guarded};
use crate::context::Context;
use crate::controllers::{Reconciled, plan_once};
use crate::observe;

/// Deadline for everything that is read before the first plan.
pub const FILL_WITHIN: Duration = Duration::from_secs(30);

/// Why nothing can be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The cluster does not know our kinds.
    #[error(
        "the API server has no CustomResourceDefinition {} with version {}: \
         install the chart, or run: operator crds | kubectl apply --server-side -f -",
        .0.join(", "), graftwork_api::VERSION
    )]
    NoDefinitions(Vec<String>),
    /// Objects can't be listed.
    #[error("{kind} objects can't be listed: {source}")]
    List {
        /// Their kind.
        kind: String,
        /// Why.
        source: ApiError,
    },
    /// Watches that bring nothing.
    #[error(
        "objects of kind {} were not read within {} s: the log says why, which may be that this \
         user may not list and watch them in all namespaces",
        kinds.join(", "), within.as_secs()
    )]
    Unfilled {
        /// Kinds whose caches are empty.
        kinds: Vec<String>,
        /// The time that they had.
        within: Duration,
    },
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Whether the cluster knows the four kinds: a watch of one that it does not know would be begun
/// again for ever.
///
/// # Errors
/// Names the definitions that are missing, or why objects can't be listed.
pub async fn check_definitions(client: &Client) -> Result<(), PlanError> {
    let missing: Vec<String> = [
        missing::<Dataset>(client).await?,
        missing::<TrainingRun>(client).await?,
        missing::<LoRAAdapter>(client).await?,
        missing::<ServingEndpoint>(client).await?,
    ]
    .into_iter()
    .flatten()
    .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(PlanError::NoDefinitions(missing))
    }
}

/// Name of the kind's definition, where there is none.
async fn missing<K>(client: &Client) -> Result<Option<String>, PlanError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    let one = ListParams::default().limit(1);
    match api::call(api.list_metadata(&one)).await {
        Ok(_) => Ok(None),
        Err(error) if error.is_not_found() => {
            Ok(Some(format!("{}.{}", K::plural(&()), K::group(&()))))
        }
        Err(source) => Err(PlanError::List {
            kind: K::kind(&()).into_owned(),
            source,
        }),
    }
}

/// Waits until every cache was filled once.
///
/// # Errors
/// Names the kinds that were not read in time.
pub async fn fill(caches: &Caches, within: Duration) -> Result<(), PlanError> {
    tokio::time::timeout(within, caches.ready())
        .await
        .map_err(|_| PlanError::Unfilled {
            kinds: caches.unfilled(),
            within,
        })
}

/// Plans everything: `emit` is given one line for each object.
///
/// # Errors
/// Those of the API server.
pub async fn plan_all(context: &Context, mut emit: impl FnMut(&Value)) -> Result<(), PlanError> {
    for namespace in context.caches.namespaces.state() {
        let observed = observe::storage::observe(context, &namespace).await?;
        let plan = storage::plan(&observed, &context.settings_in(&observed.namespace));
        emit(&line("Namespace", &namespace.name_any(), "", &plan));
    }
    plan_kind(context, &context.caches.datasets, &mut emit).await?;
    plan_kind(context, &context.caches.runs, &mut emit).await?;
    plan_kind(context, &context.caches.adapters, &mut emit).await?;
    plan_kind(context, &context.caches.endpoints, &mut emit).await
}

async fn plan_kind<K: Reconciled<Status: Debug>>(
    context: &Context,
    store: &Store<Guarded<K>>,
    emit: &mut impl FnMut(&Value),
) -> Result<(), PlanError> {
    for object in store.state() {
        let DeserializeGuard(Ok(object)) = &*object else {
            tracing::warn!("an object can't be read by this version");
            continue;
        };
        let plan = plan_once(context, object).await?;
        let namespace = object.namespace().unwrap_or_default();
        emit(&line(K::KIND.name(), &namespace, &object.name_any(), &plan));
    }
    Ok(())
}

/// Prints a line.
#[expect(clippy::print_stdout, reason = "plans are what this command prints")]
pub fn print(line: &Value) {
    println!("{line}");
}

fn line<S: Serialize>(kind: &str, namespace: &str, name: &str, plan: &Plan<S>) -> Value {
    let mut line = json!({"kind": kind, "namespace": namespace, "name": name});
    if let Some(line) = line.as_object_mut() {
        line.extend(describe(plan));
    }
    line
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
            "calls": actions.calls.iter().map(graftwork_operator_core::plan::Call::method).collect::<Vec<_>>(),
            "status": actions.status,
            "requeueAfterSeconds": actions.requeue_after.map(|it| it.as_secs_f64()),
        }),
    };
    match value {
        Value::Object(map) => map,
        _ => serde_json::Map::new(),
    }
}
