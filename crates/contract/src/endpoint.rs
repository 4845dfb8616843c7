//! Configuration of engines and routers, and the HTTP headers between them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::store::BucketStore;

/// Request (router to engine) and answer (to the client): `<adapter>@v<version>`; the bare base model
/// is `<name>@base`.
pub const HEADER_ADAPTER: &str = "x-graftwork-adapter";
/// Request: who calls; requests of one caller stay on one side of a canary.
pub const HEADER_CALLER: &str = "x-graftwork-caller";
/// Request: `candidate` or `stable`, where a rollout allows it.
pub const HEADER_VERSION: &str = "x-graftwork-version";
/// Request and answer: correlates logs.
pub const HEADER_REQUEST_ID: &str = "x-request-id";
/// Answer: what computed it (base model, build, instruction set). Equal values give the same answer to the same
/// request that leaves nothing to chance.
pub const HEADER_ENGINE: &str = "x-graftwork-engine";
/// Answer: `hit` where a router had it.
pub const HEADER_CACHE: &str = "x-graftwork-cache";
/// `error.code` of an engine's 404: the version that [`HEADER_ADAPTER`] names is not on this engine. A
/// router tries another one.
pub const CODE_VERSION_NOT_HERE: &str = "version_not_here";

/// `config.json` of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineConfig {
    /// Name of the ServingEndpoint.
    pub endpoint: String,
    /// Its UID: calls are signed for it.
    pub owner_uid: String,
    /// The operator's public keys (64 hexadecimal digits each).
    pub operator_keys: Vec<String>,
    /// The base model's mounted folder.
    pub base_path: String,
    /// Over the folder's files.
    pub base_digest: Digest,
    /// How the bare base model is called; none: it is not offered.
    pub base_name: Option<String>,
    /// Rows of one forward pass.
    pub maximum_batch_size: u32,
    /// Adapters in memory.
    pub maximum_loaded_adapters: u32,
    /// Prompt and answer together.
    pub maximum_context_tokens: u32,
    /// The versions to register at start; pushes replace the list.
    pub adapters: Vec<EngineAdapter>,
    /// Compute threads; 0: as many as the container may use.
    #[serde(default)]
    pub threads: usize,
    /// Gauges under vLLM's names too. Left out where false, so that nobody's configuration changes who
    /// does not ask for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub vllm_metrics: bool,
    /// What the base model is held in. Left out, and so are the next ones, where the spec says nothing:
    /// as its files have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<BaseFormat>,
    /// Memory of loaded adapters at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_memory_bytes: Option<u64>,
    /// Copies of adapters on the node's own disk at most, in [`pod::ADAPTER_CACHE_DIR`](crate::pod::ADAPTER_CACHE_DIR).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_cache_bytes: Option<u64>,
    /// The store, where it is in a bucket; none: the folder that is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<BucketStore>,
    /// Memory of the KV cache at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_value_cache_bytes: Option<u64>,
    /// What keys and values are held in; left out, in f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_value_format: Option<KeyValueFormat>,
}

/// What the keys and values of an engine on the CPU are held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyValueFormat {
    /// 32 bits a value, as they are computed.
    F32,
    /// 16 bits a value: IEEE 754's binary16.
    F16,
}

/// What a served base model is held in, where that is not what its files have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BaseFormat {
    /// 16 bits a weight.
    #[serde(rename = "BF16")]
    Bf16,
    /// 8.5 bits a weight.
    Q8_0,
    /// 4.5 bits a weight, in blocks of 32.
    Q4_0,
    /// 4.5 bits a weight, in blocks of 256.
    #[serde(rename = "Q4_K")]
    Q4K,
}

impl BaseFormat {
    /// Its name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4K => "Q4_K",
        }
    }
}

/// One adapter version of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineAdapter {
    /// What a client names in `model`.
    pub name: String,
    /// Number.
    pub version: u32,
    /// Content.
    pub digest: Digest,
    /// Folder in the store, relative to the namespace's folder.
    pub folder: String,
    /// The version that a request gets which names the adapter alone.
    pub is_default: bool,
}

/// `config.json` of a router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouterConfig {
    /// Name of the ServingEndpoint.
    pub endpoint: String,
    /// Its UID: calls are signed for it.
    pub owner_uid: String,
    /// The operator's public keys (64 hexadecimal digits each).
    pub operator_keys: Vec<String>,
    /// Host name of the engines' headless Service, used until a table is pushed.
    pub engines_host: String,
    /// The bare base model's name; none: it is not offered.
    pub base_name: Option<String>,
    /// Stable versions only.
    pub models: Vec<RouterModel>,
    /// Models that have no version to answer with yet, and whose stable version answers for each. Left out
    /// where there is none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stand_ins: BTreeMap<String, String>,
    /// Answers that leave nothing to chance are kept up to so many bytes. Left out where 0: none is.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub response_cache_bytes: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// One model of a mounted routing table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouterModel {
    /// What a client names in `model`.
    pub name: String,
    /// Number.
    pub version: u32,
    /// Content.
    pub digest: Digest,
    /// Whose stable version answers where this one is unavailable. Left out where nobody's does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
}

/// The value of [`HEADER_ADAPTER`] for an adapter's version.
pub fn adapter_header(name: &str, version: u32) -> String {
    format!("{name}@v{version}")
}

/// The value of [`HEADER_ADAPTER`] for the bare base model.
pub fn base_header(name: &str) -> String {
    format!("{name}@base")
}

/// Reads a value of [`HEADER_ADAPTER`]: the name, and the version or `None` for the bare base.
pub fn parse_adapter_header(value: &str) -> Option<(&str, Option<u32>)> {
    let (name, version) = value.rsplit_once('@')?;
    if version == "base" {
        return Some((name, None));
    }
    Some((name, Some(version.strip_prefix('v')?.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_written_as_the_api_names_them() {
        for format in [
            BaseFormat::Bf16,
            BaseFormat::Q8_0,
            BaseFormat::Q4_0,
            BaseFormat::Q4K,
        ] {
            let written = serde_json::to_value(format).unwrap();
            assert_eq!(written, format.name());
        }
    }

    #[test]
    fn headers_are_read_back() {
        assert_eq!(
            parse_adapter_header(&adapter_header("a@b", 7)),
            Some(("a@b", Some(7)))
        );
        assert_eq!(
            parse_adapter_header(&base_header("tiny")),
            Some(("tiny", None))
        );
        assert_eq!(parse_adapter_header("x@7"), None);
        assert_eq!(parse_adapter_header("x"), None);
    }
}
