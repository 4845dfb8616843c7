//! Every reason that docs/conditions.md explains is given by a program, and a test has provoked it.
#![expect(clippy::unwrap_used, reason = "a test that panics fails")]

use std::path::{Path, PathBuf};

use graftwork_api::conditions::REASONS;

/// Folders with Rust sources, but for this crate, where the reasons are declared.
const SOURCES: [&str; 6] = [
    "operator",
    "trainer-image",
    "inference-image",
    "crates/artifacts",
    "crates/contract",
    "e2e/src",
];
/// Where a file's own tests begin.
const OWN_TESTS: &str = "#[cfg(test)]\nmod tests {";

/// All sources below `folder`: those of programs, and those of tests.
fn read(folder: &Path, programs: &mut String, tests: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if name != "target" {
                read(&path, programs, tests);
            }
            continue;
        }
        if path.extension().is_none_or(|it| it != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let place = path.to_str().unwrap();
        if place.contains("/tests/") || place.contains("/e2e/") || name.ends_with("tests.rs") {
            tests.push_str(&text);
            continue;
        }
        let own = text.find(OWN_TESTS).unwrap_or(text.len());
        let (program, own) = text.split_at(own);
        programs.push_str(program);
        tests.push_str(own);
    }
}

/// The reason's constant: `GATE_FAILED` of `GateFailed`.
fn constant(name: &str) -> String {
    let mut constant = String::new();
    for (place, letter) in name.chars().enumerate() {
        if place > 0 && letter.is_ascii_uppercase() {
            constant.push('_');
        }
        constant.push(letter.to_ascii_uppercase());
    }
    constant
}

#[test]
fn every_reason_is_given_by_a_program_and_provoked_by_a_test() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (mut programs, mut tests) = (String::new(), String::new());
    for folder in SOURCES {
        read(&root.join(folder), &mut programs, &mut tests);
    }
    for reason in REASONS {
        let forms = [
            format!("reason::{}", constant(reason.name)),
            format!("\"{}\"", reason.name),
        ];
        let is_in = |text: &str| forms.iter().any(|form| text.contains(form.as_str()));
        assert!(is_in(&programs), "no program gives {}", reason.name);
        assert!(is_in(&tests), "no test provokes {}", reason.name);
    }
}
