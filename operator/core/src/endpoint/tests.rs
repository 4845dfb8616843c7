//! Endpoints in a small world: children are kept, engines and routers take what they are sent.

use std::collections::BTreeSet;

use graftwork_api::conditions::{condition, reason};
use graftwork_api::serving_endpoint::{ResponseCache, RolloutState};
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
mod held;
mod images;
mod replacing;
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
            layers: 2,
            vocabulary: 100,
            maximum_positions: 512,
            parameters: 1000,
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
            Call::Publish(_) | Call::Import(_) => panic!("an endpoint writes no store"),
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

#[test]
fn an_endpoint_comes_up_and_serves_the_approved_version() {
    let mut world = World::new(&json!({}));
    world.settle();
    assert_eq!(
        world.condition(condition::READY),
        ("False", reason::ENGINES_NOT_READY)
    );
    assert_eq!(
        world.condition(condition::ADAPTERS_PENDING),
        ("True", reason::LOADING)
    );
    assert_eq!(
        world.engine_config().adapters.len(),
        1,
        "engines register it at their start"
    );
    world.start_pods();
    world.settle();
    assert_eq!(world.condition(condition::READY), ("True", reason::READY));
    assert_eq!(
        world.condition(condition::AVAILABLE),
        ("True", reason::REPLICAS_AVAILABLE)
    );
    assert_eq!(
        world.condition(condition::PROGRESSING),
        ("False", reason::ALL_STABLE)
    );
    assert_eq!(
        world.condition(condition::ADAPTERS_PENDING),
        ("False", reason::ALL_SERVING)
    );
    let status = world.status();
    assert_eq!(status.url.as_deref(), Some("http://assistants.team.svc:80"));
    assert_eq!(status.ready_replicas, 1);
    assert_eq!(status.columns.as_ref().unwrap().adapters, "1/1");
    assert_eq!(status.columns.as_ref().unwrap().rollout, "-");
    assert_eq!(status.adapters[0].verified_replicas, Some(1));
    let table = world.table.clone().unwrap();
    assert_eq!(table.models[0].stable.as_ref().unwrap().version, 1);
    assert_eq!(table.base_name, "tiny");
    assert_eq!(table.engines[0].address, "10.0.0.1:8080");
    assert_eq!(world.router_config().models.len(), 1);
    assert_eq!(
        world.engine_config().adapters[0].folder,
        format!("adapters/a/{}", digest(1).trim_start_matches("sha256:"))
    );
}

#[test]
fn at_rest_nothing_is_written_or_called() {
    let mut world = World::serving(&json!({}));
    let writes = world.writes;
    world.after(100_000).after(100_000);
    assert_eq!(world.writes, writes);
    let actions = world.act();
    assert_eq!((actions.calls.len(), actions.requeue_after), (0, None));
}

#[test]
fn a_new_version_climbs_without_a_new_pod() {
    let mut world = World::serving(&json!({}));
    let (engines, routers) = (
        template(&world.observed.engine_deployment),
        template(&world.observed.router_deployment),
    );
    world.approve(2).settle();
    assert_eq!(world.state(), RolloutState::Paused);
    assert_eq!(
        world.condition(condition::PROGRESSING),
        ("True", reason::PAUSED)
    );
    assert_eq!(
        world.status().columns.as_ref().unwrap().rollout,
        "a v1>v2 10% Paused"
    );
    let candidate = world.table.clone().unwrap().models[0]
        .candidate
        .clone()
        .unwrap();
    assert_eq!((candidate.weight, candidate.lease_seconds), (10, 120));
    assert!(!candidate.salt.is_empty());
    assert_eq!(world.engine_config().adapters.len(), 2);
    assert_eq!(
        world.router_config().models[0].version,
        1,
        "mounted tables hold stable versions only"
    );
    world.after(60);
    assert_eq!((world.rollout(), world.stable()), (None, 2));
    assert_eq!(world.engine_config().adapters.len(), 1);
    assert_eq!(world.router_config().models[0].version, 2);
    assert_eq!(template(&world.observed.engine_deployment), engines);
    assert_eq!(template(&world.observed.router_deployment), routers);
}

#[test]
fn an_engine_keeps_the_old_version_until_every_router_has_left_it() {
    let mut world = World::serving(&json!({"rollout": {"strategy": "Immediate"}}));
    world.approve(2);
    while world.stable() != 2 {
        assert!(world.carry_out(), "the rollout stands still");
    }
    // The new table is not pushed yet: a request for version 1 may still come.
    world.deaf_routers = true;
    world.settle();
    let versions = |world: &World| -> Vec<u32> {
        world
            .engine_config()
            .adapters
            .iter()
            .map(|it| it.version)
            .collect()
    };
    assert_eq!(versions(&world), [1, 2]);
    world.deaf_routers = false;
    world.settle();
    assert_eq!(versions(&world), [2]);
}

#[test]
fn a_lease_is_renewed_while_a_candidate_has_weight() {
    let mut world = World::serving(
        &json!({"rollout": {"canary": {"steps": [{"setWeight": 10}, {"pause": {}}]}}}),
    );
    world.approve(2).settle();
    assert_eq!(world.act().calls, []);
    assert!(world.act().requeue_after.unwrap() <= Duration::from_secs(40));
    world.now += 39;
    assert_eq!(world.act().calls, []);
    world.now += 1;
    assert!(matches!(&world.act().calls[..], [Call::SyncRouter(..)]));
    assert_eq!(
        world.condition(condition::PROGRESSING),
        ("Unknown", reason::PAUSED)
    );
}

#[test]
fn live_failures_take_the_version_back() {
    let spec = json!({"rollout": {
        "canary": {"steps": [{"setWeight": 10}, {"pause": {"seconds": 60}}]},
        "analysis": {"intervalSeconds": 10, "minimumRequests": 50, "rules": [{"metric": "error_rate", "maximum": "0.01"}]},
    }});
    let mut world = World::serving(&spec);
    world.approve(2).settle();
    world.after(30);
    let rollout = world.status().adapters[0].rollout.clone().unwrap();
    assert_eq!(
        rollout.analysis[0].message.as_deref(),
        Some("the candidate completed 0 requests of minimumRequests 50")
    );
    world.traffic = (400, 40);
    world.after(10);
    assert_eq!(
        (world.state(), world.stable()),
        (RolloutState::RolledBack, 1)
    );
    assert_eq!(
        world.condition(condition::ROLLED_BACK),
        ("True", reason::ERROR_RATE_ABOVE_LIMIT)
    );
    assert_eq!(world.condition(condition::READY), ("True", reason::READY));
    let rejected = &world.status().rejected[0];
    assert_eq!((rejected.version, rejected.adapter.as_str()), (2, "a"));
    assert_eq!(rejected.message, "error_rate 0.1 > 0.01 over 400 requests");
    assert_eq!(
        world.status().columns.as_ref().unwrap().rollout,
        "a v1>v2 RolledBack"
    );
    assert_eq!(world.table.clone().unwrap().models[0].candidate, None);
    world.after(100_000);
    assert_eq!(
        world.state(),
        RolloutState::RolledBack,
        "it is not tried again"
    );
    world.traffic = (400, 0);
    // The LoRAAdapter has written the rollback down by now.
    world.approve(1).settle();
    assert_eq!(world.state(), RolloutState::RolledBack);
    let (outcome, _) = world.say("Retry", 2);

    assert_eq!(outcome, AnswerOutcome::Accepted);
    world.after(10).after(60);
    assert_eq!(world.stable(), 2);
    assert_eq!(
        world.status().answers["adapter/a"].outcome,
        AnswerOutcome::Done
    );
    assert_eq!(world.status().rejected, []);
    assert_eq!(
        world.condition(condition::ROLLED_BACK),
        ("False", reason::NOT_ROLLED_BACK)
    );
}

#[test]
fn an_abort_is_done_when_the_version_is_gone() {
    let mut world = World::serving(&json!({}));
    world.approve(2).settle();
    let (outcome, _) = world.say("Abort", 2);
    assert_eq!(outcome, AnswerOutcome::Done);
    assert_eq!(world.state(), RolloutState::RolledBack);
    world.now += 1;
    assert_eq!(
        world.say("Abort", 2).0,
        AnswerOutcome::Refused,
        "no rollout is under way"
    );
}

#[test]
fn routers_are_told_what_an_engine_lacks() {
    let mut world = World::serving(
        &json!({"rollout": {"canary": {"steps": [{"setWeight": 10}, {"pause": {}}]}}}),
    );
    world.approve(2).settle();
    let fresh = SyncReply {
        adapters: vec![AdapterStatus {
            name: "a".to_owned(),
            version: 1,
            digest: digest(1),
            state: AdapterState::Registered.into(),
            ..AdapterStatus::default()
        }],
        ..SyncReply::default()
    };
    let mut added = EnginePod {
        pod: pod("engine-2"),
        status: Asked::Answered(fresh),
        acknowledged: None,
    };
    world.observed.engines.push(added.clone());
    let table = |world: &World| {
        fleet::Fleet::new(&world.cr, &world.status().adapters, &world.observed).table
    };
    assert_eq!(
        table(&world).engines[1].lacks,
        [digest(2)],
        "registered is enough for what is stable"
    );
    added.status = Asked::Unreachable("timed out".to_owned());
    world.observed.engines[1] = added;
    assert_eq!(
        table(&world).engines[1].lacks,
        [digest(2)],
        "a cut takes no stable traffic away"
    );
    assert_eq!(world.act().nudge.len(), 1);
    world.observed.engines[1].pod.deleting_since = Some(at(0));
    assert_eq!(
        table(&world).engines.len(),
        1,
        "a pod that goes away gets no new requests"
    );
}

#[test]
fn engines_hear_of_a_version_before_routers() {
    let mut world = World::serving(&json!({}));
    world.approve(2);
    for _ in 0..60 {
        world.observe();
        if let Plan::Act(actions) = world.plan() {
            let routed = actions.calls.iter().find_map(|call| match call {
                Call::SyncRouter(_, table) => table.models[0].candidate.clone(),
                _ => None,
            });
            if routed.is_some() {
                let Asked::Answered(reply) = &world.observed.engines[0].status else {
                    unreachable!()
                };
                assert!(reply.adapters.iter().any(|it| it.digest == digest(2)));
                return;
            }
        }
        world.carry_out();
    }
    panic!("the candidate was never routed");
}

#[test]
fn an_engine_that_refuses_leaves_the_stable_version_alone() {
    let mut world = World::with_refusal(reason::ADAPTER_INCOMPATIBLE, "rank 64 is above 16", false);
    world.settle();
    assert_eq!(
        (world.state(), world.stable()),
        (RolloutState::RolledBack, 1)
    );
    assert!(
        world.status().rejected[0]
            .message
            .contains("rank 64 is above 16")
    );
    assert_eq!(world.condition(condition::READY).0, "True");
}

#[test]
fn files_that_an_engine_could_not_read_condemn_no_version_and_are_asked_after() {
    let mut world = World::with_refusal("AdapterFilesUnreadable", "input/output error", true);
    for _ in 0..5 {
        if let Plan::Decide(decision) = world.plan() {
            world.cr.status = Some(decision.status);
        }
    }
    assert_eq!(
        (world.state(), world.stable()),
        (RolloutState::Preparing, 1),
        "the engine looks again, and the rollout waits for it"
    );
    assert!(world.act().requeue_after.unwrap() <= Duration::from_secs(10));
}

#[test]
fn what_is_not_there_is_said_and_the_base_serves() {
    let mut world = World::new(&json!({}));
    world.observed.adapters.clear();
    world.settle();
    world.start_pods();
    world.settle();
    assert_eq!(world.condition(condition::READY), ("True", reason::READY));
    assert_eq!(
        world.condition(condition::ADAPTERS_PENDING),
        ("True", reason::ADAPTER_NOT_FOUND)
    );
    assert_eq!(world.table.clone().unwrap().models, []);
    world
        .observed
        .adapters
        .insert("a".to_owned(), adapter("a", None));
    world.settle();
    assert_eq!(
        world.condition(condition::ADAPTERS_PENDING),
        ("True", reason::WAITING_FOR_VERSION)
    );
    world.approve(1).settle();
    assert_eq!(world.stable(), 1);
}

#[test]
fn an_adapter_that_leaves_the_spec_leaves_routers_first() {
    let mut world = World::serving(&json!({}));
    let mut status = world.status().clone();
    status.commands.insert(
        "adapter/a".to_owned(),
        serde_json::from_value(
            json!({"id": "x", "verb": "Pause", "digest": digest(1), "user": "ann"}),
        )
        .unwrap(),
    );
    status.commands.insert(
        "adapter/never".to_owned(),
        serde_json::from_value(
            json!({"id": "x", "verb": "Pause", "digest": digest(1), "user": "ann"}),
        )
        .unwrap(),
    );
    world.cr.status = Some(status);
    world.settle();
    assert_eq!(
        world.status().answers["adapter/never"].outcome,
        AnswerOutcome::Refused
    );
    world.cr.spec.adapters.clear();
    world.settle();
    assert_eq!(world.table.clone().unwrap().models, []);
    assert_eq!(world.engine_config().adapters, []);
    let commands: Vec<_> = world.status().commands.keys().collect();
    assert_eq!(
        commands,
        ["adapter/never"],
        "commands for what is gone are cleared"
    );
}

#[test]
fn a_keeper_that_is_away_takes_nothing_down() {
    let mut world = World::serving(&json!({}));
    let writes = world.writes;
    world.observed.base = Asked::Unreachable("no pod is ready".to_owned());
    world.settle();
    assert_eq!(world.writes, writes);
    assert_eq!(world.engine_config().maximum_context_tokens, 512);
    let mut new = World::new(&json!({}));
    new.observed.base = Asked::Unreachable("no pod is ready".to_owned());
    new.settle();
    assert_eq!(
        new.condition(condition::READY),
        ("Unknown", reason::STORAGE_UNAVAILABLE)
    );
    assert_eq!(new.observed.engine_deployment, Found::Absent);
}

#[test]
fn trouble_is_said_and_running_children_stay() {
    let context = json!({"engine": {"maximumContextTokens": 4096}});
    let mut world = World::serving(&json!({}));
    let deployed = template(&world.observed.engine_deployment);
    world.cr.spec.engine = serde_json::from_value(context["engine"].clone()).unwrap();
    world.settle();
    assert_eq!(
        world.condition(condition::READY),
        ("False", reason::INVALID_SPEC)
    );
    assert_eq!(template(&world.observed.engine_deployment), deployed);

    let mut world = World::serving(&json!({}));
    world.cr.spec.engine.compute_profile = "moon".to_owned();
    world.settle();
    assert_eq!(
        world.condition(condition::STALLED),
        ("True", reason::COMPUTE_PROFILE_NOT_FOUND)
    );
    assert_eq!(world.act().apply, []);

    let mut world = World::new(&json!({}));
    world.observed.engine_deployment = Found::Foreign;
    world.settle();
    assert_eq!(
        world.condition(condition::READY),
        ("False", reason::OBJECT_NOT_OURS)
    );
    let actions = world.act();
    assert_eq!((actions.apply.len(), actions.calls.len()), (0, 0));
    assert_eq!(
        actions.requeue_after,
        Some(crate::plan::NAME_TAKEN_PAUSE),
        "nobody tells when the name becomes free"
    );

    let mut world = World::new(&json!({}));
    world.observed.base_claim = ClaimState::NotBound;
    world.settle();
    assert_eq!(
        world.condition(condition::READY),
        ("False", reason::BASE_MODEL_NOT_FOUND)
    );

    let mut world = World::serving(&json!({}));
    world.cr.metadata.deletion_timestamp = Some(graftwork_api::Time(at(0)));
    assert_eq!(world.plan(), Plan::Act(Actions::default()));
}

#[test]
fn routers_keep_answers_and_fall_back_where_the_spec_says_so() {
    let written = |world: &World| {
        let map: &ConfigMap = world.observed.router_configuration.ours().unwrap();
        map.data.as_ref().unwrap()["config.json"].clone()
    };
    let mut world = World::serving(&json!({}));
    let plain = written(&world);
    assert!(!plain.contains("responseCache") && !plain.contains("fallback"));
    world.cr.spec.response_cache = Some(ResponseCache { enabled: false });
    world.settle();
    assert!(!written(&world).contains("responseCache"));
    world.cr.spec.response_cache = Some(ResponseCache { enabled: true });
    world.cr.spec.adapters[0].fallback = Some("Stable".to_owned());
    world.settle();
    let config = world.router_config();
    assert!(config.response_cache_bytes > 0);
    let name = config.models[0].name.clone();
    assert_eq!(config.models[0].fallback, Some(name));
}

#[test]
fn engines_are_told_to_export_vllms_names_where_the_installation_says_so() {
    let mut world = World::serving(&json!({}));
    let written = |world: &World| {
        let map: &ConfigMap = world.observed.engine_configuration.ours().unwrap();
        map.data.as_ref().unwrap()["config.json"].clone()
    };
    assert!(
        !written(&world).contains("vllmMetrics"),
        "who does not ask for it has the configuration of before, and no restart"
    );
    world.settings.engine.vllm_metrics = true;
    world.settle();
    assert!(world.engine_config().vllm_metrics);
    assert!(written(&world).contains("vllmMetrics"));
}

#[test]
fn an_upgrade_restarts_no_engine_and_a_change_of_engine_does() {
    let mut world = World::serving(&json!({}));
    let before = template(&world.observed.engine_deployment);
    world.settings.images.inference = "registry/inference:2".to_owned();
    world.settle();
    assert_eq!(template(&world.observed.engine_deployment), before);
    world.cr.spec.engine.maximum_batch_size = 2;
    world.settle();
    let after = template(&world.observed.engine_deployment);
    assert!(
        after.contains("registry/inference:2"),
        "a new revision takes the newest image"
    );
    assert_ne!(after, before);
    let profile = world.settings.compute_profiles.get_mut("default").unwrap();
    profile.images.inference = Some("registry/inference:mine".to_owned());
    world.settle();
    assert!(template(&world.observed.engine_deployment).contains("registry/inference:mine"));
}

#[test]
fn children_belong_to_the_endpoint_and_bear_short_names() {
    let mut world = World::new(&json!({}));
    world.cr.metadata.name = Some("a".repeat(50));
    let mut names = BTreeSet::new();
    world.settle();
    for child in world.act().apply {
        let text = match &child {
            Child::ConfigMap(it) => serde_json::to_string(&it.metadata),
            Child::Service(it) => serde_json::to_string(&it.metadata),
            Child::Deployment(it) => serde_json::to_string(&it.metadata),
            Child::Claim(it) => serde_json::to_string(&it.metadata),
        }
        .unwrap();
        assert!(
            text.contains("\"kind\":\"ServingEndpoint\"") && text.contains("\"uid\":\"u\""),
            "{text}"
        );
        assert!(child.name().len() <= 63);
        assert!(
            names.insert((child.kind(), child.name().to_owned())),
            "named twice"
        );
    }
    assert_eq!(names.len(), 6);
}

#[test]
fn two_endpoints_that_want_one_name_for_their_services_are_kept_apart() {
    let mut second = World::new(&json!({}));
    second.cr.metadata.name = Some("assistants-engines".to_owned());
    let first = World::new(&json!({}));
    assert_eq!(
        children_names(&second.cr).service,
        children_names(&first.cr).engines_service
    );
    second.observed.service = Found::Foreign;
    second.settle();
    let message = |world: &World| {
        let found = crate::conditions::find(&world.status().conditions, condition::READY).unwrap();
        assert_eq!(found.reason, reason::OBJECT_NOT_OURS);
        found.message.clone()
    };
    let said = message(&second);
    assert!(
        said.starts_with("Service assistants-engines, which is what the engines of a ServingEndpoint \"assistants\" are called"),
        "{said}"
    );
    assert_eq!(second.act().apply, []);
    // The other way round: the Service was there first.
    let mut first = first;
    first.observed.engines_service = Found::Foreign;
    first.settle();
    let said = message(&first);
    assert!(
        said.starts_with("Service assistants-engines exists"),
        "{said}"
    );
    assert_eq!(first.act().apply, []);
}

/// Children as they stand in the cluster.
fn children(world: &World) -> String {
    format!(
        "{:?} {:?} {:?} {:?}",
        world.observed.engine_configuration,
        world.observed.router_configuration,
        world.observed.engine_deployment,
        world.observed.router_deployment
    )
}

#[test]
fn a_spec_that_turns_bad_takes_the_candidate_back_and_goes_on_serving() {
    let mut world = World::serving(&json!({}));
    world.approve(2).settle();
    assert_eq!(world.state(), RolloutState::Paused);
    let before = children(&world);
    world.deaf_routers = true;
    let (profile, base) = (
        world.cr.spec.engine.compute_profile.clone(),
        world.cr.spec.base_model.name.clone(),
    );
    world.cr.spec.engine.compute_profile = "moon".to_owned();
    // Also what routers are told comes from the spec that worked.
    world.cr.spec.base_model.name = Some("other".to_owned());
    world.settle();
    assert_eq!(
        world.condition(condition::READY),
        ("False", reason::COMPUTE_PROFILE_NOT_FOUND)
    );
    assert_eq!(
        world.condition(condition::PROGRESSING),
        ("True", reason::ROLLING_BACK)
    );
    let actions = world.act();
    assert!(
        matches!(&actions.calls[..], [Call::SyncRouter(_, table)] if table.models[0].candidate.is_none()),
        "{:?}",
        actions.calls
    );
    assert_eq!(actions.requeue_after, Some(SOON));
    world.deaf_routers = false;
    world.settle();
    assert_eq!((world.rollout(), world.stable()), (None, 1));
    assert_eq!(world.status().columns.as_ref().unwrap().rollout, "-");
    assert_eq!(world.status().rejected, [], "it is nobody's fault");
    assert_eq!(world.table.clone().unwrap().base_name, "tiny");
    assert_eq!(children(&world), before, "children stay as they are");
    let writes = world.writes;
    world.after(100_000);
    let actions = world.act();
    assert_eq!(world.writes, writes);
    assert_eq!((actions.calls.len(), actions.requeue_after), (0, None));

    // A router that starts meanwhile hears what serves; an engine that goes leaves the table.
    world.observed.routers[0].acknowledged = None;
    world.observed.engines.push(EnginePod {
        pod: pod("engine-2"),
        status: Asked::Answered(SyncReply::default()),
        acknowledged: None,
    });
    world.observed.engines.remove(0);
    world.settle();
    let table = world.table.clone().unwrap();
    assert_eq!(table.engines.len(), 1);
    assert_eq!(table.engines[0].pod, "engine-2");
    assert_eq!(table.engines[0].lacks, [""; 0]);

    // With its status lost as well, nobody knows what to tell them.
    let mut lost = World::serving(&json!({}));
    lost.cr.spec.engine.compute_profile = "moon".to_owned();
    lost.cr.status = None;
    lost.settle();
    lost.observed.routers[0].acknowledged = None;
    assert_eq!(lost.act().calls, []);

    // Mended, the version is tried again.
    world.cr.spec.engine.compute_profile = profile;
    world.cr.spec.base_model.name = base;
    world.settle();
    assert_eq!(world.state(), RolloutState::Paused);
    world.after(60);
    assert_eq!(world.stable(), 2);
}

#[test]
fn a_spec_that_turns_bad_before_the_first_version_serves_ends_nothing() {
    let mut world = World::new(&json!({}));
    world.settle();
    assert_eq!(world.state(), RolloutState::Preparing);
    world.cr.spec.engine.compute_profile = "moon".to_owned();
    world.settle();
    assert_eq!(world.state(), RolloutState::Preparing);
    assert_eq!(world.act().requeue_after, None, "nothing is under way");
    world.cr.spec.engine.compute_profile = "default".to_owned();
    world.start_pods();
    world.settle();
    assert_eq!(world.stable(), 1);
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

#[test]
fn a_candidate_that_a_person_rejects_is_taken_back_whether_followed_or_pinned() {
    for pin in [None, Some(2)] {
        let mut world = World::serving(&json!({}));
        world.cr.spec.adapters[0].version = pin;
        world.approve(2).settle();
        assert_eq!(world.state(), RolloutState::Paused);
        restage(&mut world, 2, "Rejected", reason::REJECTED_BY_USER);
        let status = world
            .observed
            .adapters
            .get_mut("a")
            .unwrap()
            .status
            .as_mut();
        // Nothing else may be served either: nothing is wanted in its place.
        status.unwrap().approved = None;
        restage(&mut world, 1, "Rejected", reason::BASE_MODEL_MISMATCH);
        world.after(60).after(100_000);
        assert_eq!((world.rollout(), world.stable()), (None, 1), "{pin:?}");
        assert_eq!(world.table.clone().unwrap().models[0].candidate, None);
        assert_eq!(
            world.condition(condition::ADAPTERS_PENDING).0,
            "True",
            "what serves is not what the spec asks for"
        );
    }
}

#[test]
fn a_candidate_goes_with_its_adapter_and_with_another_base() {
    let losses: [fn(&mut World); 3] = [
        |world| world.observed.adapters.clear(),
        |world| {
            let adapter = world.observed.adapters.get_mut("a").unwrap();
            adapter.metadata.deletion_timestamp = Some(graftwork_api::Time(at(0)));
        },
        |world| {
            let adapter = world.observed.adapters.get_mut("a").unwrap();
            let base = &mut adapter.status.as_mut().unwrap().base_model;
            base.as_mut().unwrap().digest = Digest::of(b"other").to_string();
        },
    ];
    for lose in losses {
        let mut world = World::serving(&json!({}));
        world.approve(2).settle();
        assert_eq!(world.state(), RolloutState::Paused);
        lose(&mut world);
        world.after(60).after(100_000);
        assert_eq!((world.rollout(), world.stable()), (None, 1));
    }
}

#[test]
fn a_rollback_that_a_person_began_heeds_a_later_no_to_its_target() {
    let mut world = World::serving(&json!({}));
    world.approve(3).settle();
    world.after(60);
    assert_eq!(world.stable(), 3);
    assert_eq!(world.say("Rollback", 2).0, AnswerOutcome::Accepted);
    assert_eq!(world.state(), RolloutState::Paused);
    restage(&mut world, 2, "Rejected", reason::REJECTED_BY_USER);
    world.after(60).after(100_000);
    assert_eq!((world.rollout(), world.stable()), (None, 3));
    assert_eq!(
        world.status().answers["adapter/a"].outcome,
        AnswerOutcome::Failed
    );
}

#[test]
fn a_candidate_whose_settings_turn_back_to_those_it_failed_under_is_taken_back() {
    let mut world = World::serving(&json!({}));
    world.approve(2).settle();
    world.say("Abort", 2);
    assert_eq!(world.state(), RolloutState::RolledBack);
    world.cr.spec.rollout.progress_deadline_seconds = 601;
    world.settle();
    assert_eq!(world.state(), RolloutState::Paused, "other settings: again");
    world.cr.spec.rollout.progress_deadline_seconds = 600;
    world.after(60).after(100_000);
    assert_eq!((world.rollout(), world.stable()), (None, 1));
}
