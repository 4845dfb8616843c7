//! The store as its users have it, in a folder and in a bucket. One program: each is linked apart.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a failed step is a failed test, and tests watch the clock"
)]

mod bucket;
mod store;

use graftwork_artifacts::{Put, Store};
use graftwork_contract::Digest;
use serde_json::json;

fn publish(store: &Store, path: &str, digest: &Digest, files: &[(&str, &[u8])]) -> Put {
    let staged = store.stage(path).unwrap();
    for (name, bytes) in files {
        staged.write(name, bytes).unwrap();
    }
    let files = staged.files().unwrap();
    let manifest = json!({"digest": digest, "files": files.digests, "sizeBytes": files.size_bytes});
    staged.publish(&manifest).unwrap()
}

fn paths(store: &Store, prefix: &str) -> Vec<String> {
    let entries = store.list(prefix).unwrap();
    entries.into_iter().map(|entry| entry.path).collect()
}
