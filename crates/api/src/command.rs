//! What people say through the status subresource, and what the operator answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Time;
use crate::enums::open_enum;

open_enum! {
    /// What became of a command.
    pub enum AnswerOutcome (status) {
        /// Taken; its effect follows.
        Accepted = "Accepted",
        /// Not taken: the message says why; nothing changed.
        Refused = "Refused",
        /// Its effect is complete.
        Done = "Done",
        /// Taken, but its effect did not come about.
        Failed = "Failed",
    }
}

/// The operator's answer to a command, under the command's target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Id of the command that is answered.
    #[schemars(length(max = 64))]
    pub id: String,
    /// Accepted, Refused, Done or Failed.
    pub outcome: AnswerOutcome,
    /// Why, in words.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When the answer was given.
    pub time: Time,
}
