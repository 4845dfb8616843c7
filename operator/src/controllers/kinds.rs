//! The four kinds: what each observes, plans, and is hindered by.

use std::fmt::Debug;

use graftwork_api::conditions::condition;
use graftwork_api::{Condition, Dataset, LoRAAdapter, ServingEndpoint, TrainingRun};
use graftwork_operator_core::hindered::{self, Hindrance, Podless};
use graftwork_operator_core::plan::Plan;
use graftwork_operator_core::settings::Settings;
use graftwork_operator_core::{adapter, dataset, endpoint, run};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{Api, ListParams};
use kube::core::object::HasStatus;
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{self, ApiError};
use crate::cache::Kind;
use crate::context::Context;
use crate::observe;

/// A Job's controller gives up a while after each event.
const MOST_EVENTS: u32 = 50;

/// A custom resource with its observation and its plan.
pub trait Reconciled:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + HasStatus<Status: Serialize + Clone + Send + Sync>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Which kind it is.
    const KIND: Kind;
    /// The condition by which it is judged.
    const JUDGED: &'static str;
    /// What its plan needs.
    type Observed: Send + Sync;

    /// The conditions in a status.
    fn conditions(status: &mut Self::Status) -> &mut Vec<Condition>;

    /// What keeps the pods of its children from coming to be, as far as the API server shows it.
    fn hindrance(
        &self,
        _context: &Context,
        _observed: &Self::Observed,
        _now: Timestamp,
    ) -> impl Future<Output = Option<Hindrance>> + Send {
        std::future::ready(None)
    }

    /// All reads.
    fn observe(
        context: &Context,
        object: &Self,
        now: Timestamp,
    ) -> impl Future<Output = Result<Self::Observed, ApiError>> + Send;

    /// What is to be done.
    fn plan(
        &self,
        observed: &Self::Observed,
        settings: &Settings,
        now: Timestamp,
    ) -> Plan<Self::Status>;
}

impl Reconciled for Dataset {
    const KIND: Kind = Kind::Dataset;
    const JUDGED: &'static str = condition::READY;
    type Observed = dataset::Observed;

    fn conditions(status: &mut Self::Status) -> &mut Vec<Condition> {
        &mut status.conditions
    }

    async fn observe(
        context: &Context,
        object: &Self,
        _: Timestamp,
    ) -> Result<Self::Observed, ApiError> {
        observe::dataset::observe(context, object).await
    }

    fn plan(
        &self,
        observed: &Self::Observed,
        settings: &Settings,
        now: Timestamp,
    ) -> Plan<Self::Status> {
        dataset::plan(self, observed, settings, now)
    }

    async fn hindrance(
        &self,
        context: &Context,
        observed: &Self::Observed,
        now: Timestamp,
    ) -> Option<Hindrance> {
        let seen = &observed.sightings;
        let mut jobs = observed.jobs.iter();
        let podless = jobs.find_map(|job| hindered::without_pod(job, &observed.pods, seen, now))?;
        no_pod(context, &self.namespace().unwrap_or_default(), podless).await
    }
}

impl Reconciled for TrainingRun {
    const KIND: Kind = Kind::Run;
    const JUDGED: &'static str = condition::SUCCEEDED;
    type Observed = run::Observed;

    fn conditions(status: &mut Self::Status) -> &mut Vec<Condition> {
        &mut status.conditions
    }

    async fn observe(
        context: &Context,
        object: &Self,
        _: Timestamp,
    ) -> Result<Self::Observed, ApiError> {
        observe::run::observe(context, object).await
    }

    fn plan(
        &self,
        observed: &Self::Observed,
        settings: &Settings,
        now: Timestamp,
    ) -> Plan<Self::Status> {
        run::plan(self, observed, settings, now)
    }

    async fn hindrance(
        &self,
        context: &Context,
        observed: &Self::Observed,
        now: Timestamp,
    ) -> Option<Hindrance> {
        let job = observed.job.ours()?;
        let podless = hindered::without_pod(job, &observed.pods, &observed.sightings, now)?;
        if let Some(class) = &self.spec.compute.priority_class_name {
            let classes: Api<PriorityClass> = Api::all(context.client.clone());
            // Where it can't be asked for, the Job's events have to do.
            let found = api::call(classes.get_metadata_opt(class)).await;
            if matches!(found, Ok(None)) {
                return Some(hindered::no_priority_class(podless.job, class));
            }
        }
        no_pod(context, &self.namespace().unwrap_or_default(), podless).await
    }
}

impl Reconciled for LoRAAdapter {
    const KIND: Kind = Kind::Adapter;
    const JUDGED: &'static str = condition::READY;
    type Observed = adapter::Observed;

    fn conditions(status: &mut Self::Status) -> &mut Vec<Condition> {
        &mut status.conditions
    }

    async fn observe(
        context: &Context,
        object: &Self,
        now: Timestamp,
    ) -> Result<Self::Observed, ApiError> {
        observe::adapter::observe(context, object, now).await
    }

    fn plan(
        &self,
        observed: &Self::Observed,
        settings: &Settings,
        now: Timestamp,
    ) -> Plan<Self::Status> {
        adapter::plan(self, observed, settings, now)
    }
}

impl Reconciled for ServingEndpoint {
    const KIND: Kind = Kind::Endpoint;
    const JUDGED: &'static str = condition::READY;
    type Observed = endpoint::Observed;

    fn conditions(status: &mut Self::Status) -> &mut Vec<Condition> {
        &mut status.conditions
    }

    async fn observe(
        context: &Context,
        object: &Self,
        now: Timestamp,
    ) -> Result<Self::Observed, ApiError> {
        observe::endpoint::observe(context, object, now).await
    }

    fn plan(
        &self,
        observed: &Self::Observed,
        settings: &Settings,
        now: Timestamp,
    ) -> Plan<Self::Status> {
        endpoint::plan(self, observed, settings, now)
    }

    async fn hindrance(
        &self,
        _: &Context,
        observed: &Self::Observed,
        _: Timestamp,
    ) -> Option<Hindrance> {
        let deployments = [&observed.engine_deployment, &observed.router_deployment];
        let message = deployments
            .into_iter()
            .filter_map(|deployment| deployment.ours())
            .find_map(hindered::replica_failure)?;
        Some(Hindrance {
            refused: true,
            message,
        })
    }
}

/// Why a Job gets no pod, by the newest event of its controller. Where events can't be read, there is none.
async fn no_pod(context: &Context, namespace: &str, podless: Podless<'_>) -> Option<Hindrance> {
    let events: Api<Event> = Api::namespaced(context.client.clone(), namespace);
    let which = format!(
        "regarding.kind=Job,regarding.uid={},reason=FailedCreate",
        podless.uid
    );
    let which = ListParams::default().fields(&which).limit(MOST_EVENTS);
    let found = api::call(events.list(&which)).await;
    let newest = found.ok().and_then(|found| {
        let time = |event: &Event| {
            event
                .metadata
                .creation_timestamp
                .as_ref()
                .map(|time| time.0)
        };
        found.items.into_iter().max_by_key(time)
    });
    hindered::no_pod(podless, newest.and_then(|event| event.note).as_deref())
}
