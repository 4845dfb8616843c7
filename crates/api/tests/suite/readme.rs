//! The README's commands, which people copy.

use std::path::PathBuf;

use graftwork_api::lora_adapter::AdapterCommand;
use graftwork_api::serving_endpoint::EndpointCommand;
use serde_json::Value;

/// What a merge patch does not name stays as the command before had it.
#[test]
fn every_command_of_the_readme_names_every_field_so_that_none_is_left_of_the_command_before() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    let mut targets = Vec::new();
    for rest in readme.split("--type=merge -p '").skip(1) {
        let (patch, _) = rest.split_once('\'').unwrap();
        let patch: Value = serde_json::from_str(patch).unwrap();
        let commands = patch.pointer("/status/commands").unwrap();
        for (target, command) in commands.as_object().unwrap() {
            let mut fields = vec!["digest", "id", "reason", "user", "verb"];
            if target.starts_with("adapter/") {
                fields.push("step");
                serde_json::from_value::<EndpointCommand>(command.clone()).unwrap();
            } else {
                serde_json::from_value::<AdapterCommand>(command.clone()).unwrap();
            }
            fields.sort_unstable();
            let named = command.as_object().unwrap().keys();
            let mut named: Vec<&str> = named.map(String::as_str).collect();
            named.sort_unstable();
            assert_eq!(named, fields, "{target}");
            targets.push(target.clone());
        }
    }
    assert_eq!(targets, ["version/7", "adapter/expenses"]);
}
