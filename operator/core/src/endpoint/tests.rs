//! Endpoints in a small world: children are kept, engines and routers take what they are sent.

use graftwork_api::conditions::{condition, reason};
use graftwork_api::serving_endpoint::RolloutState;
use graftwork_api::{AnswerOutcome, LoRAAdapter, ServingEndpoint, ServingEndpointStatus};
use graftwork_contract::Digest;
use graftwork_contract::endpoint::{EngineConfig, RouterConfig};
use graftwork_contract::proto::engine::v1::{AdapterState, AdapterStatus, SyncReply};
use graftwork_contract::proto::router::v1::{RoutingTable, StatsReply, VersionStats};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::*;
use crate::fixtures::{at, settings};
use crate::observed::{Acknowledgement, Asked, Base, ClaimState, Found, Pod, table_digest};
use crate::plan::{Actions, Child};
use crate::settings::Settings;

mod anew;
mod answered;
mod held;
mod images;
mod many;
mod moves;
mod objects;
mod replacing;
mod serving;
mod taken_back;
mod uncounted;
mod words;

fn digest(number: u32) -> String {
    Digest::of(&number.to_be_bytes()).to_string()
}

fn pod(name: &str) -> Pod {
    Pod {
        name: name.to_owned(),
        uid: format!("{name}-uid"),
        ip: Some("10.0.0.1".to_owned()),
        ready: true,
        phase: "Running".to_owned(),
        ..Pod::default()
    }
}

fn adapter(name: &str, approved: Option<u32>) -> LoRAAdapter {
    let versions: Vec<Value> = (1..=5)
        .rev()
        .map(|number| {
            json!({"version": number, "digest": digest(number), "stage": "Approved", "createdTime": "2026-01-01T00:00:00Z"})
        })
        .collect();
    serde_json::from_value(json!({
        "apiVersion": "graftwork.dev/v1alpha1",
        "kind": "LoRAAdapter",
        "metadata": {"name": name},
        "spec": {"baseModel": {"uri": "pvc://models/tiny"}},
        "status": {"approved": approved, "versions": versions, "baseModel": {"digest": Digest::of(b"base")}},
    }))
    .unwrap()
}

struct World {
    cr: ServingEndpoint,
    observed: Observed,
    settings: Settings,
    /// What routers were sent last.
    table: Option<RoutingTable>,
    /// Requests that each router reports for every version of its table.
    traffic: (u64, u64),
    /// Routers do not take what they are sent.
    deaf_routers: bool,
    /// Status writes.
    writes: u32,
    now: i64,
}

impl World {
    fn new(spec: &Value) -> Self {
        let mut whole = json!({
            "baseModel": {"uri": "pvc://models/tiny", "name": "tiny"},
            "adapters": [{"name": "a", "adapterRef": {"name": "a"}}],
            "rollout": {"canary": {"steps": [{"setWeight": 10}, {"pause": {"seconds": 60}}]}},
        });
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let cr = serde_json::from_value(json!({
            "apiVersion": "graftwork.dev/v1alpha1",
            "kind": "ServingEndpoint",
            "metadata": {"name": "assistants", "namespace": "team", "uid": "u", "generation": 1},
            "spec": whole,
        }))
        .unwrap();
        let base = Base {
            digest: Digest::of(b"base"),
            hidden_size: 64,
            target_modules: vec![],
            maximum_positions: 512,
            // 512 tokens take 1.5 MiB.
            key_values: KeyValueBlock::new(49_152, 16),
        };
        Self {
            cr,
            observed: Observed {
                base_claim: ClaimState::Bound,
                base: Asked::Answered(Ok(base)),
                adapters: [("a".to_owned(), adapter("a", Some(1)))].into(),
                operator_keys: vec!["key".to_owned()],
                ..Observed::default()
            },
            settings: settings(),
            table: None,
            traffic: (0, 0),
            deaf_routers: false,
            writes: 0,
            now: 0,
        }
    }

    /// One with an engine, a router and version 1 stable.
    fn serving(spec: &Value) -> Self {
        let mut world = Self::new(spec);
        world.settle();
        world.start_pods();
        world.settle();
        assert_eq!(world.stable(), 1);
        world
    }

    fn start_pods(&mut self) {
        let engine = EnginePod {
            pod: pod("engine-1"),
            status: Asked::Answered(SyncReply::default()),
            acknowledged: None,
        };
        self.observed.engines.push(engine);
        self.observed.routers.push(RouterPod {
            pod: pod("router-1"),
            ..RouterPod::default()
        });
    }

    /// Version 2 was approved, and the engine refuses it.
    fn with_refusal(reason: &str, message: &str, may_pass: bool) -> Self {
        let mut world = Self::serving(&json!({}));
        world.approve(2);
        world.carry_out();
        let Asked::Answered(reply) = &mut world.observed.engines[0].status else {
            unreachable!()
        };
        reply.adapters.push(AdapterStatus {
            name: "a".to_owned(),
            version: 2,
            digest: digest(2),
            state: AdapterState::Refused.into(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            may_pass,
        });
        world
    }

    fn plan(&self) -> Plan<ServingEndpointStatus> {
        plan(&self.cr, &self.observed, &self.settings, at(self.now))
    }

    fn act(&self) -> Actions<ServingEndpointStatus> {
        match self.plan() {
            Plan::Act(actions) => actions,
            Plan::Decide(decision) => panic!("something was left to decide: {decision:#?}"),
        }
    }

    /// The answers of routers to what has to be asked now.
    fn observe(&mut self) {
        let windows = windows(&self.cr, at(self.now));
        let (completed, errors) = self.traffic;
        for router in &mut self.observed.routers {
            router.stats.clear();
            for name in windows.keys() {
                let versions = (1..=5)
                    .map(|number| VersionStats {
                        model: name.clone(),
                        version: number,
                        digest: digest(number),
                        completed,
                        errors: if number == 1 { 0 } else { errors },
                        ..VersionStats::default()
                    })
                    .collect();
                let reply = StatsReply {
                    covered: true,
                    versions,
                    ..StatsReply::default()
                };
                router.stats.insert(name.clone(), Asked::Answered(reply));
            }
        }
    }

    /// Carries a plan out; whether anything changed.
    fn carry_out(&mut self) -> bool {
        self.observe();
        let actions = match self.plan() {
            Plan::Decide(decision) => {
                self.cr.status = Some(decision.status);
                self.writes += 1;
                return true;
            }
            Plan::Act(actions) => actions,
        };
        let mut moved = false;
        for child in actions.apply {
            moved |= self.keep(child);
        }
        for call in actions.calls {
            moved |= self.take(call);
        }
        if actions.status.is_some() && actions.status != self.cr.status {
            self.cr.status = actions.status;
            self.writes += 1;
            moved = true;
        }
        moved
    }

    fn keep(&mut self, child: Child) -> bool {
        let names = children_names(&self.cr);
        let observed = &mut self.observed;
        match child {
            Child::ConfigMap(map) => {
                let name = map.metadata.name.clone().unwrap();
                let slot = if name == names.engine {
                    &mut observed.engine_configuration
                } else {
                    &mut observed.router_configuration
                };
                replace(slot, map)
            }
            Child::Service(service) => {
                let headless = service.metadata.name.as_deref() == Some(&names.engines_service);
                replace(
                    if headless {
                        &mut observed.engines_service
                    } else {
                        &mut observed.service
                    },
                    service,
                )
            }
            Child::Deployment(mut deployment) => {
                let engine = deployment.metadata.name.as_deref() == Some(&names.engine);
                let replicas = deployment.spec.as_ref().unwrap().replicas;
                deployment.status = Some(DeploymentStatus {
                    replicas,
                    updated_replicas: replicas,
                    ready_replicas: replicas,
                    ..DeploymentStatus::default()
                });
                let slot = if engine {
                    &mut observed.engine_deployment
                } else {
                    &mut observed.router_deployment
                };
                replace(slot, deployment)
            }
            Child::Claim(_) => panic!("an endpoint makes no claims"),
        }
    }

    fn take(&mut self, call: Call) -> bool {
        let now = at(self.now);
        let acknowledged = |table| {
            Some(Acknowledgement {
                boot_id: "boot".to_owned(),
                table,
                at: now,
            })
        };
        match call {
            Call::SyncEngine(target, request) => {
                let engine = self
                    .observed
                    .engines
                    .iter_mut()
                    .find(|it| it.pod.name == target.pod)
                    .unwrap();
                engine.acknowledged = acknowledged(list_digest(&request));
                let adapters = request
                    .adapters
                    .into_iter()
                    .map(|it| AdapterStatus {
                        name: it.name,
                        version: it.version,
                        digest: it.digest,
                        state: AdapterState::Verified.into(),
                        ..AdapterStatus::default()
                    })
                    .collect();
                engine.status = Asked::Answered(SyncReply {
                    adapters,
                    ..SyncReply::default()
                });
            }
            Call::SyncRouter(target, table) => {
                if self.deaf_routers {
                    return false;
                }
                let router = self
                    .observed
                    .routers
                    .iter_mut()
                    .find(|it| it.pod.name == target.pod)
                    .unwrap();
                router.acknowledged = acknowledged(table_digest(&table));
                self.table = Some(table);
            }
            Call::Publish(_) | Call::Import(_) | Call::Prune(_) => {
                panic!("an endpoint writes no store")
            }
        }
        true
    }

    /// Reconciles at the same time until nothing changes.
    fn settle(&mut self) -> &mut Self {
        for _ in 0..60 {
            if !self.carry_out() {
                return self;
            }
        }
        panic!("does not come to rest: {:#?}", self.cr.status);
    }

    fn after(&mut self, seconds: i64) -> &mut Self {
        self.now += seconds;
        self.settle()
    }

    fn approve(&mut self, number: u32) -> &mut Self {
        self.observed
            .adapters
            .insert("a".to_owned(), adapter("a", Some(number)));
        self
    }

    fn status(&self) -> &ServingEndpointStatus {
        self.cr.status.as_ref().unwrap()
    }

    fn stable(&self) -> u32 {
        self.status().adapters[0]
            .stable
            .as_ref()
            .map_or(0, |stable| stable.version)
    }

    /// None where the stable version serves alone.
    fn rollout(&self) -> Option<RolloutState> {
        let rollout = self.status().adapters[0].rollout.as_ref();
        rollout.map(|it| it.state.clone())
    }

    fn state(&self) -> RolloutState {
        self.rollout().expect("a rollout")
    }

    fn condition(&self, kind: &str) -> (&str, &str) {
        let found = crate::conditions::find(&self.status().conditions, kind).unwrap();
        (found.status.as_str(), found.reason.as_str())
    }

    fn message(&self, kind: &str) -> &str {
        let found = crate::conditions::find(&self.status().conditions, kind);
        &found.unwrap().message
    }

    fn engine_config(&self) -> EngineConfig {
        fleet::read_configuration(self.observed.engine_configuration.ours()).unwrap()
    }

    fn router_config(&self) -> RouterConfig {
        let map: &ConfigMap = self.observed.router_configuration.ours().unwrap();
        serde_json::from_str(&map.data.as_ref().unwrap()["config.json"]).unwrap()
    }

    fn say(&mut self, verb: &str, number: u32) -> (AnswerOutcome, String) {
        let mut status = self.status().clone();
        status.commands.insert(
            "adapter/a".to_owned(),
            serde_json::from_value(json!({
                "id": format!("at-{}", self.now), "verb": verb, "digest": digest(number), "user": "ann",
            }))
            .unwrap(),
        );
        self.cr.status = Some(status);
        self.settle();
        let answer = &self.status().answers["adapter/a"];
        (answer.outcome.clone(), answer.message.clone())
    }
}

/// Whether what is kept differs from what was there, but for what the cluster adds.
fn replace<T: PartialEq>(slot: &mut Found<T>, object: Box<T>) -> bool {
    if slot.ours() == Some(&*object) {
        return false;
    }
    *slot = Found::Ours(object);
    true
}

fn template(deployment: &Found<Deployment>) -> String {
    let spec = deployment.ours().unwrap().spec.clone().unwrap();
    serde_json::to_string(&spec.template).unwrap()
}

/// The adapter with another stage of one version.
fn restage(world: &mut World, number: u32, stage: &str, why: &str) {
    let adapter = world.observed.adapters.get_mut("a").unwrap();
    let status = adapter.status.as_mut().unwrap();
    let version = status.versions.iter_mut().find(|it| it.version == number);
    let version = version.unwrap();
    version.stage = stage.into();
    version.reason = Some(why.to_owned());
    version.message = Some(format!("{why} by somebody"));
}
