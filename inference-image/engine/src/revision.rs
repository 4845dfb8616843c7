//! What computes answers here, in words: answers that are kept are those of one revision.

use std::sync::OnceLock;

use anyhow::Context as _;
use graftwork_artifacts::digest_of_file;
use graftwork_contract::endpoint::{EngineConfig, KeyValueFormat};
use graftwork_model::kernel::Isa;
use graftwork_model::kv::KvFormat;
use graftwork_model::transformer::Accelerator;

use crate::options::Options;

/// What computes answers here: engines of one revision give the same ones.
pub(crate) fn revision(
    options: &Options,
    config: &EngineConfig,
    build: &str,
    accelerator: Option<&Accelerator>,
) -> String {
    let kernels = match accelerator {
        None => Isa::detect().name().to_owned(),
        // A header's value and a part of a key: `NVIDIA L40S` becomes `NVIDIA-L40S`.
        Some(gpu) => gpu
            .name()
            .replace(|c: char| !c.is_ascii_alphanumeric(), "-"),
    };
    let mut revision = format!(
        "{}-{}-{build}-{kernels}",
        config.base_digest.short(),
        env!("CARGO_PKG_VERSION"),
    );
    if let Some(format) = config.quantization {
        revision.push('-');
        revision.push_str(format.name());
    }
    if accelerator.is_none() && kv_format(options, config) == KvFormat::F16 {
        revision.push_str("-kv-f16");
    }
    revision
}

/// What keys and values are held in on the CPU. What the endpoint says counts before a flag.
pub(crate) fn kv_format(options: &Options, config: &EngineConfig) -> KvFormat {
    match config.key_value_format.unwrap_or(options.kv_cache_format) {
        KeyValueFormat::F32 => KvFormat::F32,
        KeyValueFormat::F16 => KvFormat::F16,
    }
}

/// The digits by which this program differs from another build of the same version, whose sums may have another order.
/// Read once: tests start many engines in one process.
pub(crate) fn build() -> anyhow::Result<String> {
    static BUILD: OnceLock<String> = OnceLock::new();
    if let Some(build) = BUILD.get() {
        return Ok(build.clone());
    }
    let program = std::env::current_exe().context("this program's own file is not known")?;
    let (digest, _) = digest_of_file(&program)
        .with_context(|| format!("this program's own file {}", program.display()))?;
    Ok(BUILD.get_or_init(|| digest.short().to_owned()).clone())
}
