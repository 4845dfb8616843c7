//! The YAML that a user would write, as values: the demo and the stories apply these.

use k8s_openapi::api::batch::v1::Job;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use crate::install::Installation;

/// Name of the claim with base model, text and imports.
pub const CLAIM: &str = "demo";
/// The base model's URI.
pub const BASE_URI: &str = "pvc://demo/base-model";
/// How the bare base model is called.
pub const BASE_NAME: &str = "wordnet-tiny";

/// Reads a value as an object.
///
/// # Panics
/// Never: every caller in this file names apiVersion and kind.
#[expect(clippy::expect_used, reason = "the values are literals of this file")]
fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).expect("an object with apiVersion and kind")
}

/// The claim that the seeding Job fills. `ReadWriteOnce` is what every provisioner can give; pods of one node share
/// it.
pub fn claim() -> DynamicObject {
    object(json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }))
}

/// A one-container Job with the restricted pod security profile.
#[expect(
    clippy::missing_panics_doc,
    reason = "the value is a literal of this file"
)]
pub fn job(name: &str, image: &str, arguments: &[String], mounts: &[(&str, &str, Value)]) -> Job {
    let volumes: Vec<Value> = mounts
        .iter()
        .map(|(name, _, source)| {
            let mut volume = source.clone();
            volume["name"] = json!(name);
            volume
        })
        .collect();
    let volume_mounts: Vec<Value> = mounts
        .iter()
        .map(|(name, path, _)| json!({"name": name, "mountPath": path}))
        .collect();
    #[expect(clippy::expect_used, reason = "the value is a literal of this file")]
    serde_json::from_value(json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "main", "image": image, "args": arguments, "volumeMounts": volume_mounts,
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
            "volumes": volumes,
        }}},
    }))
    .expect("a Job")
}

/// A volume source of the claim.
pub fn claim_source() -> Value {
    json!({"persistentVolumeClaim": {"claimName": CLAIM}})
}

/// What the seeding Job copies from its image to the claim: base model and text.
pub const SEEDED: [&str; 2] = ["/data/base-model=/demo/base-model", "/data/text=/demo/text"];

/// The Job that puts base model and text on the claim.
pub fn seed(installation: &Installation) -> Job {
    let mut arguments = vec!["seed".to_owned()];
    for copy in SEEDED {
        arguments.extend(["--copy".to_owned(), copy.to_owned()]);
    }
    job(
        "seed",
        &installation.image("demo-data"),
        &arguments,
        &[("demo", "/demo", claim_source())],
    )
}

/// A Dataset over one file of the claim.
pub fn dataset(name: &str, description: &str, file: &str) -> DynamicObject {
    object(json!({
        "apiVersion": "graftwork.dev/v1alpha1", "kind": "Dataset", "metadata": {"name": name},
        "spec": {
            "description": description,
            "sources": [{"name": "text", "uri": format!("pvc://{CLAIM}/text/{file}")}],
            "format": {"type": "Completion"},
            "validation": {"minimumRows": 1000, "maximumInvalidPercent": "1"},
            "split": {
                "method": "Hash", "groupColumn": "synset", "seed": 7,
                "trainPercent": 90, "validationPercent": 5, "testPercent": 5,
            },
        },
    }))
}

/// A Dataset over one key of a `ConfigMap`.
pub fn config_map_dataset(name: &str, config_map: &str) -> DynamicObject {
    object(json!({
        "apiVersion": "graftwork.dev/v1alpha1", "kind": "Dataset", "metadata": {"name": name},
        "spec": {
            "sources": [{"name": "rows", "configMapRef": {"name": config_map, "key": "rows.jsonl"}}],
            "format": {"type": "Completion"},
            "validation": {"minimumRows": 10, "maximumInvalidPercent": "0"},
            "split": {"method": "Hash", "seed": 7, "trainPercent": 80, "validationPercent": 5, "testPercent": 15},
        },
    }))
}

/// A `ConfigMap` with `rows.jsonl`.
pub fn rows(name: &str, rows: &[Value]) -> DynamicObject {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    object(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"rows.jsonl": text},
    }))
}

/// What a training run may differ in.
#[derive(Debug, Clone, Copy)]
pub struct Training<'a> {
    /// Name of the run.
    pub name: &'a str,
    /// Name of the Dataset.
    pub dataset: &'a str,
    /// The LoRAAdapter that it publishes to.
    pub adapter: &'a str,
    /// Optimiser steps.
    pub steps: u64,
    /// LoRA's rank.
    pub rank: u32,
    /// Examples per step.
    pub batch: u32,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Where gradients are cut.
    pub gradient_norm: &'a str,
}

impl Default for Training<'_> {
    fn default() -> Self {
        Self {
            name: "",
            dataset: "",
            adapter: "",
            steps: 40,
            rank: 8,
            batch: 32,
            checkpoint_every: 50,
            gradient_norm: "1.0",
        }
    }
}

impl Training<'_> {
    /// The TrainingRun, publishing to nothing: the files stay in the run's folder.
    pub fn object_without_adapter(&self) -> DynamicObject {
        let mut run = self.object();
        if let Some(spec) = run.data.get_mut("spec").and_then(Value::as_object_mut) {
            spec.remove("adapterRef");
        }
        run
    }

    /// The TrainingRun.
    pub fn object(&self) -> DynamicObject {
        object(json!({
            "apiVersion": "graftwork.dev/v1alpha1", "kind": "TrainingRun", "metadata": {"name": self.name},
            "spec": {
                "baseModel": {"uri": BASE_URI},
                "datasetRef": {"name": self.dataset},
                "adapterRef": {"name": self.adapter},
                "method": {"type": "LoRA", "lora": {"rank": self.rank, "alpha": (2 * self.rank).to_string(), "dropout": "0"}},
                "hyperparameters": {
                    "learningRate": "2e-3", "schedule": "Cosine", "warmupSteps": self.steps.min(10), "maximumSteps": self.steps,
                    "batchSize": self.batch, "microBatchSize": self.batch, "maximumSequenceLength": 160,
                    "maximumGradientNorm": self.gradient_norm, "seed": 7,
                },
                "checkpoint": {"everySteps": self.checkpoint_every, "keep": 2},
                "evaluation": {"metrics": ["Loss", "ExactMatch"], "maximumNewTokens": 8},
                "limits": {"durationSeconds": 1200, "retries": 2},
            },
        }))
    }
}

/// A LoRAAdapter with the given gate.
pub fn adapter(name: &str, gate: &Value, import: Option<&str>) -> DynamicObject {
    let mut spec = json!({"baseModel": {"uri": BASE_URI}, "gate": gate});
    if let Some(uri) = import {
        spec["import"] = json!({"uri": uri});
    }
    object(json!({
        "apiVersion": "graftwork.dev/v1alpha1", "kind": "LoRAAdapter", "metadata": {"name": name}, "spec": spec,
    }))
}

/// A ServingEndpoint for `adapters`, with the given rollout.
pub fn endpoint(name: &str, adapters: &[&str], replicas: u32, rollout: &Value) -> DynamicObject {
    let adapters: Vec<Value> = adapters
        .iter()
        .map(|name| json!({"name": name, "adapterRef": {"name": name}}))
        .collect();
    object(json!({
        "apiVersion": "graftwork.dev/v1alpha1", "kind": "ServingEndpoint", "metadata": {"name": name},
        "spec": {
            "baseModel": {"uri": BASE_URI, "name": BASE_NAME},
            "adapters": adapters,
            "replicas": replicas,
            "engine": {"maximumBatchSize": 16, "maximumLoadedAdapters": 8},
            "rollout": rollout,
        },
    }))
}
