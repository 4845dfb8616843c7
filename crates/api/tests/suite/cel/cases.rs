//! The cases of every rule, by kind.

mod datasets;
mod runs;
mod served;

use serde_json::{Value, json};

/// One rule: the message it is known by, a patch that keeps it and one that breaks it.
pub struct Case {
    pub plural: &'static str,
    pub message: &'static str,
    pub keeps: Value,
    pub breaks: Value,
    /// Where the rule compares with the object before.
    pub transition: bool,
}

fn case(plural: &'static str, message: &'static str, keeps: Value, breaks: Value) -> Case {
    Case {
        plural,
        message,
        keeps,
        breaks,
        transition: false,
    }
}

fn immutable(message: &'static str, breaks: Value) -> Case {
    Case {
        plural: "trainingruns",
        message,
        keeps: json!({"spec": {"suspend": true}}),
        breaks,
        transition: true,
    }
}

/// All of them.
pub fn cases() -> Vec<Case> {
    [datasets::cases(), runs::cases(), served::cases()]
        .into_iter()
        .flatten()
        .collect()
}
