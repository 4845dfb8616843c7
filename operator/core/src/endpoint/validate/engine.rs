//! How engines hold their base model, and whether their pods have room for what they may take.

use graftwork_api::Amount;
use graftwork_api::amount::{MINIMUM, bytes};
use graftwork_api::serving_endpoint::{
    BaseQuantization, EngineSpec, KeyValueCacheFormat, MINIMUM_CONTEXT,
};
use graftwork_contract::endpoint::{BaseFormat, KeyValueFormat};
use graftwork_contract::key_values;

use super::{Invalid, unknown};
use crate::endpoint::ServedBase;
use crate::settings::ComputeProfile;

/// How an engine holds its base model, and what it may take, in bytes; none: nothing is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineRoom {
    /// What the base model is held in; none: as its files have it.
    pub quantization: Option<BaseFormat>,
    /// Memory of loaded adapters.
    pub adapter_memory_bytes: Option<u64>,
    /// Size of the volume for copies of adapters.
    pub disk_cache_bytes: Option<u64>,
    /// Memory of the KV cache.
    pub key_value_cache_bytes: Option<u64>,
    /// What keys and values are held in; none: f32.
    pub key_value_format: Option<KeyValueFormat>,
}

/// A limit of a profile's container.
struct PodLimit<'a> {
    profile: &'a ComputeProfile,
    name: &'a str,
    /// The resource: `memory` or `ephemeral-storage`.
    resource: &'static str,
}

impl PodLimit<'_> {
    /// Refuses more than the container may have; where the profile has no limit, nothing is.
    fn check(&self, field: &str, wanted: u64, written: &str) -> Result<(), Invalid> {
        let limits = self.profile.resources.limits.as_ref();
        let Some(limit) = limits.and_then(|limits| limits.get(self.resource)) else {
            return Ok(());
        };
        if bytes(&limit.0).is_none_or(|limit| wanted <= limit) {
            return Ok(());
        }
        Err(Invalid::new(
            field,
            format!(
                "{written} is more than the {} that a container of compute profile \"{}\" may have \
                 (resources.limits.{}); lower it, or name a profile with more",
                limit.0, self.name, self.resource
            ),
        ))
    }
}

/// Reads what the spec says of engines.
pub(super) fn read(spec: &EngineSpec, profile: &ComputeProfile) -> Result<EngineRoom, Invalid> {
    const ADAPTERS: &str = "spec.engine.adapterMemory";
    const DISK: &str = "spec.engine.diskCache";
    const KEYS: &str = "spec.engine.keyValueCache";
    let room = EngineRoom {
        quantization: read_quantization(&spec.quantization)?,
        adapter_memory_bytes: read_amount(ADAPTERS, spec.adapter_memory.as_ref())?,
        disk_cache_bytes: read_amount(DISK, spec.disk_cache.as_ref())?,
        key_value_cache_bytes: read_amount(KEYS, spec.key_value_cache.as_ref())?,
        key_value_format: read_format(spec.key_value_cache_format.as_ref())?,
    };
    let limit = |resource| PodLimit {
        profile,
        name: &spec.compute_profile,
        resource,
    };
    let memory = limit("memory");
    for (field, wanted, written) in [
        (ADAPTERS, room.adapter_memory_bytes, &spec.adapter_memory),
        (KEYS, room.key_value_cache_bytes, &spec.key_value_cache),
    ] {
        if let (Some(wanted), Some(written)) = (wanted, written) {
            memory.check(field, wanted, written.as_str())?;
        }
    }
    if let (Some(adapters), Some(keys), Some(first), Some(second)) = (
        room.adapter_memory_bytes,
        room.key_value_cache_bytes,
        &spec.adapter_memory,
        &spec.key_value_cache,
    ) {
        let written = format!("with adapterMemory, {second} + {first}");
        memory.check(KEYS, adapters.saturating_add(keys), &written)?;
    }
    if let (Some(wanted), Some(written)) = (room.disk_cache_bytes, &spec.disk_cache) {
        limit("ephemeral-storage").check(DISK, wanted, written.as_str())?;
    }
    Ok(room)
}

fn read_quantization(quantization: &BaseQuantization) -> Result<Option<BaseFormat>, Invalid> {
    match quantization {
        BaseQuantization::AsStored => Ok(None),
        BaseQuantization::Bf16 => Ok(Some(BaseFormat::Bf16)),
        BaseQuantization::Q8_0 => Ok(Some(BaseFormat::Q8_0)),
        BaseQuantization::Q4_0 => Ok(Some(BaseFormat::Q4_0)),
        BaseQuantization::Q4K => Ok(Some(BaseFormat::Q4K)),
        BaseQuantization::Other(other) => Err(unknown(
            "spec.engine.quantization",
            other,
            BaseQuantization::KNOWN,
        )),
    }
}

fn read_format(format: Option<&KeyValueCacheFormat>) -> Result<Option<KeyValueFormat>, Invalid> {
    match format {
        None => Ok(None),
        Some(KeyValueCacheFormat::F32) => Ok(Some(KeyValueFormat::F32)),
        Some(KeyValueCacheFormat::F16) => Ok(Some(KeyValueFormat::F16)),
        Some(KeyValueCacheFormat::Other(other)) => Err(unknown(
            "spec.engine.keyValueCacheFormat",
            other,
            KeyValueCacheFormat::KNOWN,
        )),
    }
}

fn read_amount(field: &str, amount: Option<&Amount>) -> Result<Option<u64>, Invalid> {
    let Some(amount) = amount else {
        return Ok(None);
    };
    let Some(read) = amount.bytes() else {
        return Err(Invalid::new(
            field,
            format!("\"{amount}\" is no amount; write bytes with a unit, such as 512Mi or 4Gi"),
        ));
    };
    if read < bytes(MINIMUM).unwrap_or_default() {
        return Err(Invalid::new(
            field,
            format!(
                "{amount} is below the {MINIMUM} that it has at least; raise it or leave it out"
            ),
        ));
    }
    Ok(Some(read))
}

/// What the base model's files have no room for, or don't have: field, value, limit and remedy.
pub fn base_problem(engine: &EngineSpec, room: &EngineRoom, base: &ServedBase) -> Option<String> {
    context_problem(engine, base).or_else(|| cache_problem(engine, room, base))
}

/// A context that the base model does not have.
fn context_problem(engine: &EngineSpec, base: &ServedBase) -> Option<String> {
    let asked = engine.maximum_context_tokens?;
    (asked > base.maximum_positions).then(|| {
        format!(
            "spec.engine.maximumContextTokens: {asked} is above the base model's {}; lower it, or leave it out",
            base.maximum_positions
        )
    })
}

/// A KV cache without room for one context: an engine refuses to start with it.
fn cache_problem(engine: &EngineSpec, room: &EngineRoom, base: &ServedBase) -> Option<String> {
    let block = match room.key_value_format {
        None | Some(KeyValueFormat::F32) => base.key_values?,
        Some(KeyValueFormat::F16) => base.key_values?.in_halves(),
    };
    let context = engine
        .maximum_context_tokens
        .unwrap_or(base.maximum_positions);
    let default = u64::from(key_values::DEFAULT_MIB) << 20;
    let bytes = room.key_value_cache_bytes.unwrap_or(default);
    let held = block.tokens_in(bytes);
    if held >= u64::from(context) {
        return None;
    }
    let value = match &engine.key_value_cache {
        Some(written) => format!("{written} holds"),
        None => format!("left out, it is {}, which holds", Amount::at_least(default)),
    };
    let least = Amount::at_least(block.bytes_for(u64::from(context)));
    let lower = if held >= u64::from(MINIMUM_CONTEXT) {
        format!(", or spec.engine.maximumContextTokens to at most {held}")
    } else {
        String::new()
    };
    Some(format!(
        "spec.engine.keyValueCache: {value} {held} tokens of this base model, and one context has {context}; \
         set it to at least {least}{lower}"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read_spec(spec: &Value, limits: &Value) -> Result<EngineRoom, Invalid> {
        let spec: EngineSpec = serde_json::from_value(spec.clone()).unwrap();
        let profile: ComputeProfile =
            serde_json::from_value(json!({"resources": {"limits": limits}})).unwrap();
        read(&spec, &profile)
    }

    #[test]
    fn amounts_are_bytes_and_what_is_left_out_is_nothing() {
        let limits = json!({"memory": "4Gi", "ephemeral-storage": "20Gi"});
        assert_eq!(read_spec(&json!({}), &limits), Ok(EngineRoom::default()));
        let all = json!({
            "quantization": "Q4_K", "adapterMemory": "512Mi", "diskCache": "20Gi", "keyValueCache": "3.5Gi",
            "keyValueCacheFormat": "F16",
        });
        let expected = EngineRoom {
            quantization: Some(BaseFormat::Q4K),
            adapter_memory_bytes: Some(512 << 20),
            disk_cache_bytes: Some(20 << 30),
            key_value_cache_bytes: Some(7 << 29),
            key_value_format: Some(KeyValueFormat::F16),
        };
        assert_eq!(read_spec(&all, &limits), Ok(expected));
        assert_eq!(read_spec(&all, &json!({})), Ok(expected));
    }

    #[test]
    fn what_a_pod_has_no_room_for_is_refused_with_field_value_limit_and_remedy() {
        let limits = json!({"memory": "4Gi", "ephemeral-storage": "10Gi"});
        for (spec, field, said) in [
            (
                json!({"keyValueCache": "5Gi"}),
                "spec.engine.keyValueCache",
                "5Gi is more than the 4Gi",
            ),
            (
                json!({"adapterMemory": "4097Mi"}),
                "spec.engine.adapterMemory",
                "4097Mi is more than the 4Gi",
            ),
            (
                json!({"adapterMemory": "2Gi", "keyValueCache": "2049Mi"}),
                "spec.engine.keyValueCache",
                "with adapterMemory, 2049Mi + 2Gi is more than the 4Gi",
            ),
            (
                json!({"diskCache": "11Gi"}),
                "spec.engine.diskCache",
                "11Gi is more than the 10Gi",
            ),
            (
                json!({"diskCache": "64Ki"}),
                "spec.engine.diskCache",
                "64Ki is below the 1Mi",
            ),
            (
                json!({"adapterMemory": "much"}),
                "spec.engine.adapterMemory",
                "\"much\" is no amount",
            ),
            (
                json!({"quantization": "NF4"}),
                "spec.engine.quantization",
                "it knows None, BF16, Q8_0, Q4_0, Q4_K",
            ),
            (
                json!({"keyValueCacheFormat": "Q8_0"}),
                "spec.engine.keyValueCacheFormat",
                "it knows F32, F16",
            ),
        ] {
            let invalid = read_spec(&spec, &limits).unwrap_err();
            assert_eq!(invalid.field, field, "{spec}");
            assert!(invalid.message.contains(said), "{}", invalid.message);
        }
        let message = read_spec(&json!({"keyValueCache": "5Gi"}), &limits)
            .unwrap_err()
            .message;
        assert!(
            message.contains("compute profile \"default\"") && message.contains("lower it"),
            "{message}"
        );
    }
}
