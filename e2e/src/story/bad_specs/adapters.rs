//! Adapters: folders that are none, and real ones that are for another base model.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use graftwork_contract::adapter::{CONFIG_FILE, WEIGHTS_FILE};
use serde_json::{Value, json};

use super::super::Stage;
use super::super::fixture::Files;
use super::{READ, SHOWN, expect};
use crate::manifests::{self, CLAIM};

/// Rank of the trained adapters.
const RANK: u64 = 4;

/// Conditions of adapters that can't be imported.
pub async fn refused(stage: &Stage) -> anyhow::Result<()> {
    let import = |name: &str, path: &str| {
        manifests::adapter(name, &json!({}), Some(&format!("pvc://{CLAIM}/{path}")))
    };
    let nowhere = manifests::adapter("no-claim", &json!({}), Some("pvc://absent/adapters/amber"));
    expect(
        stage,
        nowhere,
        "Ready",
        SHOWN,
        &["ImportFailed", "spec.import.uri", "absent"],
    )
    .await?;
    expect(
        stage,
        import("no-folder", "adapters/absent"),
        "Ready",
        READ,
        &["ImportFailed", "spec.import", "absent"],
    )
    .await?;
    expect(
        stage,
        import("not-an-adapter", "text"),
        "Ready",
        READ,
        &["ImportFailed", "spec.import", "adapter_config.json"],
    )
    .await?;
    let mut wrong_digest = import("wrong-digest", "adapters/amber");
    wrong_digest.data["spec"]["import"]["digest"] = json!(format!("sha256:{}", "0".repeat(64)));
    expect(
        stage,
        wrong_digest,
        "Ready",
        READ,
        &["DigestMismatch", "spec.import", "000000"],
    )
    .await?;
    let mut no_base = import("no-base", "adapters/amber");
    no_base.data["spec"]["baseModel"]["uri"] = json!(format!("pvc://{CLAIM}/absent"));
    expect(
        stage,
        no_base,
        "Ready",
        READ,
        &["BaseModelNotFound", "spec.baseModel.uri", "absent"],
    )
    .await?;
    let mut unsupported = import("unsupported", "adapters/amber");
    unsupported.data["spec"]["baseModel"]["uri"] = json!(format!("pvc://{CLAIM}/other-kind"));
    expect(
        stage,
        unsupported,
        "Ready",
        READ,
        &["BaseModelUnsupported", "spec.baseModel.uri", "mamba"],
    )
    .await?;
    // Half as wide, and with half the rank that its configuration names.
    for (name, asked) in [("other-width", 4), ("other-rank", 8)] {
        expect(
            stage,
            import(name, name),
            "Ready",
            READ,
            &[
                "AdapterIncompatible",
                "spec.import",
                "lora_A",
                "has shape [4, ",
                &format!("this base model asks for [{asked}, "),
            ],
        )
        .await?;
    }
    Ok(())
}

/// The adapter as it would be for a base model half as wide.
pub fn other_width(files: &Files) -> anyhow::Result<(String, Files)> {
    let weights = BASE64_STANDARD.decode(files.get(WEIGHTS_FILE).context("no weights")?)?;
    let mut files = files.clone();
    files.insert(
        WEIGHTS_FILE.to_owned(),
        BASE64_STANDARD.encode(halve(&weights)?),
    );
    Ok(("other-width".to_owned(), files))
}

/// The adapter with a configuration of twice its rank.
pub fn other_rank(files: &Files) -> anyhow::Result<(String, Files)> {
    let text = BASE64_STANDARD.decode(files.get(CONFIG_FILE).context("no configuration")?)?;
    let mut config: Value = serde_json::from_slice(&text)?;
    config["r"] = json!(2 * RANK);
    let mut files = files.clone();
    files.insert(
        CONFIG_FILE.to_owned(),
        BASE64_STANDARD.encode(config.to_string()),
    );
    Ok(("other-rank".to_owned(), files))
}

/// A safetensors file with the same tensors, each side but the rank half as long, and zeros in them. The format is eight
/// bytes with the length of the header, little-endian, the header in JSON, and the values.
fn halve(weights: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (length, rest) = weights.split_first_chunk().context("no length")?;
    let length = usize::try_from(u64::from_le_bytes(*length))?;
    let header = rest.get(..length).context("no header")?;
    let tensors: BTreeMap<String, Value> = serde_json::from_slice(header)?;
    let mut end = 0;
    let mut halved = serde_json::Map::new();
    for (name, tensor) in tensors {
        if name == "__metadata__" {
            halved.insert(name, tensor);
            continue;
        }
        let shape: Vec<u64> = serde_json::from_value(tensor["shape"].clone())?;
        let shape: Vec<u64> = shape
            .into_iter()
            .map(|side| if side == RANK { side } else { side / 2 })
            .collect();
        let width = match tensor["dtype"].as_str() {
            Some("F32") => 4,
            Some("BF16" | "F16") => 2,
            other => bail!("{name} has dtype {other:?}"),
        };
        let start = end;
        end += width * shape.iter().product::<u64>();
        let entry = json!({"dtype": tensor["dtype"], "shape": shape, "data_offsets": [start, end]});
        halved.insert(name, entry);
    }
    let mut header = serde_json::to_vec(&halved)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.resize(file.len() + usize::try_from(end)?, 0);
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halved_file_is_whole() {
        let header = br#"{"__metadata__":{"format":"pt"},"a.lora_A.weight":{"dtype":"F32","shape":[4,6],"data_offsets":[0,96]},"b.lora_B.weight":{"dtype":"BF16","shape":[10,4],"data_offsets":[96,176]}}"#;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.resize(file.len() + 176, 7);
        let halved = halve(&file).unwrap();
        let length = u64::from_le_bytes(halved[..8].try_into().unwrap()) as usize;
        assert_eq!(length % 8, 0);
        let header: Value = serde_json::from_slice(&halved[8..8 + length]).unwrap();
        assert_eq!(header["__metadata__"]["format"], "pt");
        assert_eq!(header["a.lora_A.weight"]["shape"], json!([4, 3]));
        assert_eq!(header["a.lora_A.weight"]["data_offsets"], json!([0, 48]));
        assert_eq!(header["b.lora_B.weight"]["shape"], json!([5, 4]));
        assert_eq!(header["b.lora_B.weight"]["data_offsets"], json!([48, 88]));
        assert_eq!(halved.len(), 8 + length + 88);
        assert!(halve(b"short").is_err());
        assert!(halve(&99_u64.to_le_bytes()).is_err());
    }
}
