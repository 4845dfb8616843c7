//! Times at which something is looked at by itself.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::enums::open_enum;

/// Times by the clock of a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// Minute, hour, day of the month, month and day of the week, as cron has them: `0 1 * * *`.
    #[schemars(
        length(min = 9, max = 100),
        regex(pattern = r"^[0-9A-Za-z*,/#?-]+( +[0-9A-Za-z*,/#?-]+){4}$")
    )]
    pub cron: String,
    /// Name of the time zone in the IANA database; left out, UTC. A time of day that the clock skips comes
    /// when the skipped hour would have begun, and one that comes twice counts once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9_+/-]+$"))]
    pub time_zone: Option<String>,
    /// What becomes of a time that is over for more than five minutes before anything could begin.
    /// `RunOnce` (also where this is left out): the newest one is made up for. `Skip`: the next one is
    /// waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed_runs: Option<MissedRuns>,
}

open_enum! {
    /// What becomes of times that nobody was there for.
    pub enum MissedRuns (spec) {
        /// The newest one is made up for, once.
        RunOnce = "RunOnce",
        /// They are passed over.
        Skip = "Skip",
    }
}

/// Where a schedule is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ScheduleTimes {
    /// The newest time that was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_time: Option<Time>,
    /// The time that comes next; one that is over waits for a build to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_time: Option<Time>,
}
