//! Children of an endpoint: configuration, Services, engines, routers.

use std::collections::BTreeMap;

use graftwork_api::{ServingEndpoint, labels};
use graftwork_contract::endpoint::{EngineConfig, RouterConfig, RouterModel};
use graftwork_contract::{Digest, digest, pod};
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::{
    HTTPGetAction, PodTemplateSpec, Probe, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::decide::Context;
use super::fleet::{Fleet, fallback, stand_ins};
use super::observed::{Names, Observed, children_names};
use super::validate::Valid;
use super::{KIND, ServedBase};
use crate::bucket;
use crate::plan::Child;
use crate::settings::Settings;
use crate::workload::{Owner, Placement, Recipe, StoreAccess, build_configuration, build_pod};

/// Bytes of answers that a router keeps where the spec asks for it: thousands of them, and small beside a router's
/// memory for request bodies.
const RESPONSE_CACHE_BYTES: u64 = 32 << 20;

/// Hash of everything that decides an engine, but for an image that the installation chose: an
/// upgrade of the operator by itself restarts no engine.
pub const REVISION_ANNOTATION: &str = "graftwork.dev/revision";
/// The image that the revision is pinned to. What the pod template says may be somebody's edit.
pub const IMAGE_ANNOTATION: &str = "graftwork.dev/image";

/// Everything that children are built from.
pub struct Builder<'a> {
    cr: &'a ServingEndpoint,
    valid: &'a Valid<'a>,
    observed: &'a Observed,
    fleet: &'a Fleet<'a>,
    base: &'a ServedBase,
    settings: &'a Settings,
    owner: Owner,
    names: Names,
}

impl<'a> Builder<'a> {
    /// A builder of the children of the endpoint that `context` is about.
    pub fn new(context: Context<'a>, base: &'a ServedBase, settings: &'a Settings) -> Self {
        let Context {
            cr,
            valid,
            observed,
            fleet,
            ..
        } = context;
        Self {
            cr,
            valid,
            observed,
            fleet,
            base,
            settings,
            owner: Owner::new(KIND, &cr.metadata),
            names: children_names(cr),
        }
    }

    /// Children in the order in which they are written.
    pub fn build(&self) -> Vec<Child> {
        let engine = self.engine_config();
        // Adapters are pushed: only what a running engine can't change restarts it.
        let engine_hash = hash(&json!(EngineConfig {
            adapters: Vec::new(),
            ..engine.clone()
        }));
        let router = self.router_config();
        let router_hash = hash(&json!(RouterConfig {
            models: Vec::new(),
            stand_ins: BTreeMap::new(),
            ..router.clone()
        }));
        let metadata = |name: &str, component| self.owner.child_metadata(name, component);
        let (engine_map, _) = build_configuration(
            metadata(&self.names.engine, labels::component::ENGINE),
            &engine,
        );
        let (router_map, _) = build_configuration(
            metadata(&self.names.router, labels::component::ROUTER),
            &router,
        );
        let image = self.image(&engine_hash);
        vec![
            Child::ConfigMap(Box::new(engine_map)),
            Child::ConfigMap(Box::new(router_map)),
            Child::Service(Box::new(self.engines_service())),
            Child::Service(Box::new(self.service())),
            Child::Deployment(Box::new(self.engines(&image, &engine_hash))),
            Child::Deployment(Box::new(self.routers(&image, &router_hash))),
        ]
    }

    fn engine_config(&self) -> EngineConfig {
        let engine = &self.cr.spec.engine;
        let base = pod::claim_dir(self.valid.base.claim());
        let path = self.valid.base.path();
        EngineConfig {
            endpoint: self.owner.name.clone(),
            owner_uid: self.owner.uid.clone(),
            operator_keys: self.observed.operator_keys.clone(),
            base_path: if path.is_empty() {
                base
            } else {
                format!("{base}/{path}")
            },
            base_digest: self.base.digest.clone(),
            base_name: self.cr.spec.base_model.name.clone(),
            maximum_batch_size: engine.maximum_batch_size,
            maximum_loaded_adapters: engine.maximum_loaded_adapters,
            maximum_context_tokens: engine
                .maximum_context_tokens
                .unwrap_or(self.base.maximum_positions),
            adapters: self.fleet.list.clone(),
            threads: 0,
            vllm_metrics: self.settings.engine.vllm_metrics,
            quantization: self.valid.engine.quantization,
            adapter_memory_bytes: self.valid.engine.adapter_memory_bytes,
            // The rest of the volume is for what the file system adds, and for a copy that is being written.
            disk_cache_bytes: self.valid.engine.disk_cache_bytes.map(|size| size / 8 * 7),
            store: bucket::configuration(self.settings, &self.owner.namespace),
            key_value_cache_bytes: self.valid.engine.key_value_cache_bytes,
            key_value_format: self.valid.engine.key_value_format,
        }
    }

    fn router_config(&self) -> RouterConfig {
        let served = self
            .cr
            .status
            .as_ref()
            .map_or(&[][..], |status| &status.adapters);
        let stand_ins = stand_ins(&self.cr.spec.adapters, served).into_iter();
        RouterConfig {
            endpoint: self.owner.name.clone(),
            owner_uid: self.owner.uid.clone(),
            operator_keys: self.observed.operator_keys.clone(),
            engines_host: format!(
                "{}.{}.svc.{}",
                self.names.engines_service, self.owner.namespace, self.settings.cluster_domain
            ),
            base_name: self.cr.spec.base_model.name.clone(),
            models: served
                .iter()
                .filter_map(|adapter| {
                    let stable = adapter.stable.as_ref()?;
                    Some(RouterModel {
                        name: adapter.name.clone(),
                        version: stable.version,
                        digest: stable.digest.parse().ok()?,
                        fallback: fallback(&self.cr.spec.adapters, &adapter.name),
                    })
                })
                .collect(),
            stand_ins: stand_ins.map(|it| (it.name, it.model)).collect(),
            response_cache_bytes: match &self.cr.spec.response_cache {
                Some(cache) if cache.enabled => RESPONSE_CACHE_BYTES,
                _ => 0,
            },
        }
    }

    /// The image of a profile is followed; the installation's own is pinned to the revision that it
    /// was first used for.
    fn image(&self, engine_hash: &str) -> String {
        let live = self.observed.engine_deployment.ours();
        let pinned = live.and_then(|deployment| {
            let annotations = deployment.metadata.annotations.as_ref()?;
            let known = annotations.get(REVISION_ANNOTATION)?;
            (*known == self.revision(engine_hash)).then_some(())?;
            let pin = annotations.get(IMAGE_ANNOTATION).cloned();
            pin.or_else(|| unpinned(deployment))
        });
        pinned.unwrap_or_else(|| self.settings.inference_image(self.valid.profile).to_owned())
    }

    fn revision(&self, engine_hash: &str) -> String {
        hash(&json!({"configuration": engine_hash, "profile": self.valid.profile}))
    }

    fn engines(&self, image: &str, engine_hash: &str) -> Deployment {
        let component = labels::component::ENGINE;
        let recipe = Recipe {
            labels: labels::child(component, KIND, &self.owner.name),
            annotations: configuration_hash(engine_hash),
            binary: "engine",
            arguments: Vec::new(),
            image: image.to_owned(),
            resources: self.valid.profile.resources.clone(),
            configuration: self.names.engine.clone(),
            store: Some(StoreAccess::ReadOnly),
            claims: [self.valid.base.claim().to_owned()].into(),
            outputs: std::collections::BTreeSet::new(),
            keys: Vec::new(),
            adapter_cache_bytes: self.valid.engine.disk_cache_bytes,
            ports: ports(),
            readiness: Some(probe("/readyz", 1)),
            liveness: Some(probe("/healthz", 10)),
            // A generation that runs when the pod is asked to go may take as long.
            grace_seconds: 90,
            restart_policy: "Always",
            priority_class_name: None,
        };
        let template = build_pod(recipe, Placement::from(self.valid.profile), self.settings);
        let mut metadata = self.owner.child_metadata(&self.names.engine, component);
        let pin = [
            (REVISION_ANNOTATION.to_owned(), self.revision(engine_hash)),
            (IMAGE_ANNOTATION.to_owned(), image.to_owned()),
        ];
        metadata.annotations = Some(pin.into());
        let replicas = i32::try_from(self.cr.spec.replicas).unwrap_or(i32::MAX);
        deployment(metadata, replicas, self.selector(component), template)
    }

    fn routers(&self, image: &str, router_hash: &str) -> Deployment {
        let component = labels::component::ROUTER;
        let recipe = Recipe {
            labels: labels::child(component, KIND, &self.owner.name),
            annotations: configuration_hash(router_hash),
            binary: "router",
            arguments: Vec::new(),
            image: image.to_owned(),
            resources: self.settings.router.resources.clone(),
            configuration: self.names.router.clone(),
            store: None,
            claims: std::collections::BTreeSet::new(),
            outputs: std::collections::BTreeSet::new(),
            keys: Vec::new(),
            adapter_cache_bytes: None,
            ports: ports(),
            readiness: Some(probe("/readyz", 1)),
            liveness: Some(probe("/healthz", 10)),
            grace_seconds: 120,
            restart_policy: "Always",
            priority_class_name: None,
        };
        let template = build_pod(recipe, Placement::default(), self.settings);
        let metadata = self.owner.child_metadata(&self.names.router, component);
        deployment(
            metadata,
            self.settings.router.replicas,
            self.selector(component),
            template,
        )
    }

    fn selector(&self, component: &str) -> BTreeMap<String, String> {
        labels::selector(component, KIND, &self.owner.name)
    }

    /// What routers fall back to without a table: every ready engine.
    fn engines_service(&self) -> Service {
        let component = labels::component::ENGINE;
        Service {
            metadata: self
                .owner
                .child_metadata(&self.names.engines_service, component),
            spec: Some(ServiceSpec {
                cluster_ip: Some("None".to_owned()),
                selector: Some(self.selector(component)),
                ports: Some(vec![service_port("http", pod::HTTP_PORT, "http")]),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        }
    }

    /// What clients use.
    fn service(&self) -> Service {
        let component = labels::component::ROUTER;
        Service {
            metadata: self.owner.child_metadata(&self.names.service, component),
            spec: Some(ServiceSpec {
                selector: Some(self.selector(component)),
                ports: Some(vec![service_port("http", 80, "http")]),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        }
    }
}

/// The image of a Deployment that an operator without [`IMAGE_ANNOTATION`] made: what the template
/// says, where the operator was the last to say it.
fn unpinned(deployment: &Deployment) -> Option<String> {
    let container = deployment
        .spec
        .as_ref()?
        .template
        .spec
        .as_ref()?
        .containers
        .first()?;
    let field = format!(
        r#"/f:spec/f:template/f:spec/f:containers/k:{{"name":"{}"}}/f:image"#,
        container.name
    );
    let said = deployment.metadata.managed_fields.iter().flatten();
    said.filter(|entry| entry.manager.as_deref() == Some(labels::OPERATOR))
        .filter_map(|entry| entry.fields_v1.as_ref())
        .any(|fields| fields.0.pointer(&field).is_some())
        .then(|| container.image.clone())?
}

fn ports() -> Vec<(&'static str, u16)> {
    vec![
        ("http", pod::HTTP_PORT),
        ("grpc", pod::GRPC_PORT),
        ("metrics", pod::METRICS_PORT),
    ]
}

fn configuration_hash(hash: &str) -> BTreeMap<String, String> {
    [(labels::CONTENT_HASH_ANNOTATION.to_owned(), hash.to_owned())].into()
}

fn hash(value: &serde_json::Value) -> String {
    Digest::of(digest::canonical_json(value).as_bytes())
        .short()
        .to_owned()
}

fn service_port(name: &str, port: u16, target: &str) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(port),
        target_port: Some(IntOrString::String(target.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}

fn probe(path: &str, period_seconds: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(i32::from(pod::METRICS_PORT)),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(5),
        failure_threshold: Some(3),
        ..Probe::default()
    }
}

/// One pod more before one less: no moment without the pods that there were.
fn deployment(
    metadata: ObjectMeta,
    replicas: i32,
    selector: BTreeMap<String, String>,
    template: PodTemplateSpec,
) -> Deployment {
    Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            selector: LabelSelector {
                match_labels: Some(selector),
                ..LabelSelector::default()
            },
            template,
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}
