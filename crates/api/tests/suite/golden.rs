//! What is printed equals what is committed.

use std::path::PathBuf;

use graftwork_api::{conditions, crds, examples};

fn committed(path: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(path)).unwrap_or_default()
}

fn assert_committed(path: &str, printed: &str, command: &str) {
    assert!(
        committed(path) == printed,
        "{path} differs from what the Rust types print; run: cargo run -p graftwork-api --bin {command} -- ."
    );
}

#[test]
fn definitions() {
    for (name, definition) in crds::all().unwrap() {
        let printed = serde_yaml_ng::to_string(&definition).unwrap();
        for folder in crds::FOLDERS {
            assert_committed(&format!("{folder}/{name}.yaml"), &printed, "print-crds");
        }
    }
}

#[test]
fn list_of_reasons() {
    assert_committed(
        "docs/conditions.md",
        &conditions::conditions_markdown(),
        "print-crds",
    );
}

#[test]
fn example_files() {
    for example in examples::all().unwrap() {
        let printed = example.yaml().unwrap();
        assert_committed(
            &format!("examples/{}", example.file),
            &printed,
            "print-examples",
        );
    }
}
