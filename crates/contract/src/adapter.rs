//! Adapter versions: the manifest beside the PEFT files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::dataset::Classification;
use crate::run::{Hyperparameters, Objective, Resolved};

/// File names of an adapter's folder, as PEFT writes them.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// PEFT's configuration.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The model card.
pub const CARD_FILE: &str = "README.md";
/// Our manifest, written last.
pub const MANIFEST_FILE: &str = "manifest.json";

/// `manifest.json` of an adapter's folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Over the weights and the config keys that change the maths.
    pub digest: Digest,
    /// The files of this folder: name to SHA-256 of the bytes.
    pub files: BTreeMap<String, Digest>,
    /// Bytes of all files.
    pub size_bytes: u64,
    /// LoRA's rank; 0 of a model of which every weight was trained.
    pub rank: u32,
    /// Where the version came from; does not enter `digest`.
    pub provenance: Provenance,
    /// Digest of `provenance`.
    pub provenance_digest: Digest,
}

/// Where an adapter came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(
    clippy::large_enum_variant,
    reason = "one exists at a time, in a manifest"
)]
pub enum Provenance {
    /// Trained here.
    #[serde(rename_all = "camelCase")]
    Trained {
        /// Name of the TrainingRun.
        run: String,
        /// Pinned inputs.
        resolved: Resolved,
        /// What was optimised; left out where it is the usual.
        #[serde(default, skip_serializing_if = "Objective::is_default")]
        objective: Objective,
        /// Optimisation.
        hyperparameters: Hyperparameters,
        /// How far the adapter may go: as far as what it learned from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        classification: Option<Classification>,
        /// Version of the trainer.
        code_version: String,
        /// RFC 3339.
        created_time: String,
    },
    /// Made elsewhere.
    #[serde(rename_all = "camelCase")]
    Imported {
        /// Where the files were.
        uri: String,
        /// RFC 3339.
        created_time: String,
    },
}
