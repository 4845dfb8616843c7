//! What an engine does with an adapter's files.

#![no_main]

#[path = "../src/adapter.rs"]
mod adapter;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static DIR: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a folder for temporary files"));

fuzz_target!(|bytes: &[u8]| {
    adapter::load(DIR.path(), bytes);
});
