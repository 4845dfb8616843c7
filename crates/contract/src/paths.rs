//! Where things stand in the artifact store, relative to `<store>/<namespace>/`.
//!
//! A pod mounts the folder of its own namespace only, so no path here holds a namespace.

use crate::Digest;

/// `datasets/<name>/<digest>`: one built version.
pub fn dataset(name: &str, digest: &Digest) -> String {
    format!("datasets/{name}/{}", digest.hex())
}

/// `datasets/<name>/versions`: the numbered records of a dataset.
pub fn dataset_versions(name: &str) -> String {
    format!("datasets/{name}/versions")
}

/// `datasets/<name>/versions/<n>.json`.
pub fn dataset_version(name: &str, version: u32) -> String {
    format!("datasets/{name}/versions/{version}.json")
}

/// `datasets/<name>/builds/<fingerprint>.json`: what a build with this fingerprint of spec and
/// sources ended with, so that a build that changed nothing is not repeated.
pub fn dataset_build(name: &str, fingerprint: &Digest) -> String {
    format!("datasets/{name}/builds/{}.json", fingerprint.hex())
}

/// `datasets/<name>/builds`: what its builds ended with.
pub fn dataset_builds(name: &str) -> String {
    format!("datasets/{name}/builds")
}

/// `datasets/<name>/looks`: how builds were made that ended with rows that were there, as numbered records.
pub fn dataset_looks(name: &str) -> String {
    format!("datasets/{name}/looks")
}

/// `datasets/<name>/parts`: what the parts of a build leave for its end.
pub fn dataset_parts(name: &str) -> String {
    format!("datasets/{name}/parts")
}

/// `datasets/<name>/parts/<fingerprint>/<number>-of-<count>`: one part, by its number from 1.
pub fn dataset_part(name: &str, fingerprint: &Digest, number: u32, count: u32) -> String {
    let folder = dataset_parts(name);
    format!("{folder}/{}/{number}-of-{count}", fingerprint.hex())
}

/// `runs/<name>/<digest of the resolved spec>`.
pub fn run(name: &str, inputs: &Digest) -> String {
    format!("runs/{name}/{}", inputs.hex())
}

/// `runs/<name>/<inputs>/result.json`: written once, on success.
pub fn run_result(name: &str, inputs: &Digest) -> String {
    format!("{}/result.json", run(name, inputs))
}

/// `runs/<name>/<inputs>/resolved.json`.
pub fn run_resolved(name: &str, inputs: &Digest) -> String {
    format!("{}/resolved.json", run(name, inputs))
}

/// `runs/<name>/<inputs>/fence/<epoch>.json`: create-only claims of attempts; the highest wins.
pub fn run_fence(name: &str, inputs: &Digest) -> String {
    format!("{}/fence", run(name, inputs))
}

/// `runs/<name>/<inputs>/checkpoints`.
pub fn run_checkpoints(name: &str, inputs: &Digest) -> String {
    format!("{}/checkpoints", run(name, inputs))
}

/// `runs/<name>/<inputs>/metrics`.
pub fn run_metrics(name: &str, inputs: &Digest) -> String {
    format!("{}/metrics", run(name, inputs))
}

/// `runs/<name>/<inputs>/references`: what a preference's reference says of the pairs.
pub fn run_references(name: &str, inputs: &Digest) -> String {
    format!("{}/references", run(name, inputs))
}

/// `runs/<name>/<inputs>/samples.jsonl`: answers for people to read.
pub fn run_samples(name: &str, inputs: &Digest) -> String {
    format!("{}/samples.jsonl", run(name, inputs))
}

/// `adapters/<name>/<digest>`: a PEFT folder with a manifest.
pub fn adapter(name: &str, digest: &Digest) -> String {
    format!("adapters/{name}/{}", digest.hex())
}

/// `adapters/<name>/versions`: the ledger.
pub fn adapter_versions(name: &str) -> String {
    format!("adapters/{name}/versions")
}

/// `adapters/<name>/versions/<n>/<record>.json`.
pub fn adapter_record(name: &str, version: u32, record: crate::ledger::RecordKind) -> String {
    format!(
        "adapters/{name}/versions/{version}/{}.json",
        record.file_stem()
    )
}

/// `adapters/<name>/versions/<n>/production-<k>.json`: what an endpoint serves from then on.
pub fn adapter_production(name: &str, version: u32, number: u32) -> String {
    let stem = crate::ledger::PRODUCTION;
    format!("adapters/{name}/versions/{version}/{stem}-{number}.json")
}

/// `adapters/<name>/versions/<n>/rejected-<k>.json`: a rollback after one that was undone.
pub fn adapter_rollback(name: &str, version: u32, number: u32) -> String {
    let stem = crate::ledger::REJECTED;
    format!("adapters/{name}/versions/{version}/{stem}-{number}.json")
}

/// Folder of a run's own adapter, where it names no LoRAAdapter to publish to.
pub fn run_adapter(name: &str, inputs: &Digest, digest: &Digest) -> String {
    format!("{}/adapter/{}", run(name, inputs), digest.hex())
}
