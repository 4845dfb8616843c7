//! How a new version takes over from the stable one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decimal::{Decimal, UNSIGNED_PATTERN};
use crate::enums::open_enum;
use crate::schema::rules;

/// How a new version of an adapter takes over from the stable one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rollout {
    /// Canary: step by step. BlueGreen: all at once after a preview. Immediate: all at once.
    pub strategy: RolloutStrategy,
    /// Steps of the strategy Canary.
    pub canary: Canary,
    /// Times of the strategy BlueGreen.
    pub blue_green: BlueGreen,
    /// How live traffic is judged; left out, it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub analysis: Option<Analysis>,
    /// Seconds that engines and routers may take to be ready for a step.
    #[schemars(range(min = 10, max = 86_400))]
    pub progress_deadline_seconds: u64,
    /// Whether a failed analysis rolls back by itself; if not, it pauses the rollout for a person.
    pub auto_rollback: bool,
    /// Seconds that a candidate keeps its weight without word from the operator.
    #[schemars(range(min = 10, max = 3600))]
    pub candidate_lease_seconds: u64,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            strategy: RolloutStrategy::Canary,
            canary: Canary::default(),
            blue_green: BlueGreen::default(),
            analysis: None,
            progress_deadline_seconds: 600,
            auto_rollback: true,
            candidate_lease_seconds: 120,
        }
    }
}

open_enum! {
    /// How traffic moves to the candidate.
    pub enum RolloutStrategy (spec) {
        /// Step by step, each judged.
        Canary = "Canary",
        /// All at once, after a preview under the header `x-graftwork-version: candidate`.
        BlueGreen = "BlueGreen",
        /// All at once, as soon as every engine has it.
        Immediate = "Immediate",
    }
}

/// Steps of the strategy Canary; after the last one the candidate is promoted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Canary {
    /// Weights, which rise, and pauses, in order.
    #[schemars(
        length(min = 1, max = 32),
        extend(
            "x-kubernetes-list-type" = "atomic",
            "x-kubernetes-validations" = rules(&[
                (
                    "self.filter(s, has(s.setWeight)).map(s, s.setWeight).isSorted() && self.filter(s, has(s.setWeight)).all(s, self.exists_one(t, has(t.setWeight) && t.setWeight == s.setWeight))",
                    "setWeight rises from step to step",
                ),
                ("has(self[0].setWeight)", "the first step is a setWeight"),
            ]),
        ),
    )]
    pub steps: Vec<CanaryStep>,
}

impl Default for Canary {
    fn default() -> Self {
        Self {
            steps: vec![
                CanaryStep::weight(10),
                CanaryStep::pause(Some(60)),
                CanaryStep::weight(50),
                CanaryStep::pause(Some(60)),
            ],
        }
    }
}

/// One step: a weight or a pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "has(self.setWeight) != has(self.pause)",
    "a step has exactly one of setWeight and pause",
)])))]
pub struct CanaryStep {
    /// Percent of callers that get the candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub set_weight: Option<u32>,
    /// Time at the weight reached; without seconds, until a person says Resume or Promote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
}

impl CanaryStep {
    /// A step to `percent`.
    pub fn weight(percent: u32) -> Self {
        Self {
            set_weight: Some(percent),
            pause: None,
        }
    }

    /// A pause of `seconds`, or until a person ends it.
    pub fn pause(seconds: Option<u64>) -> Self {
        Self {
            set_weight: None,
            pause: Some(Pause { seconds }),
        }
    }
}

/// A pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pause {
    /// Seconds; left out, until a person ends the pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_592_000))]
    pub seconds: Option<u64>,
}

/// Times of the strategy BlueGreen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BlueGreen {
    /// Whether the candidate is promoted by itself after the preview; if not, by Promote.
    pub auto_promote: bool,
    /// Seconds that the candidate is reachable by header alone.
    #[schemars(range(min = 0, max = 2_592_000))]
    pub preview_seconds: u64,
    /// Seconds that the old version is kept after the switch.
    #[schemars(range(min = 0, max = 86_400))]
    pub scale_down_delay_seconds: u64,
}

impl Default for BlueGreen {
    fn default() -> Self {
        Self {
            auto_promote: true,
            preview_seconds: 60,
            scale_down_delay_seconds: 30,
        }
    }
}

/// How live traffic is judged during a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Analysis {
    /// Seconds between judgements.
    #[serde(default = "Analysis::default_interval_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub interval_seconds: u64,
    /// Requests that the candidate must have completed; fewer are Inconclusive. A rule that
    /// compares wants as many of the stable version.
    #[serde(default = "Analysis::default_minimum_requests")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub minimum_requests: u64,
    /// Every rule must pass before the next step is taken.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub rules: Vec<AnalysisRule>,
    /// Failed judgements of one rollout that are tolerated.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub failure_limit: u32,
}

impl Analysis {
    const fn default_interval_seconds() -> u64 {
        30
    }

    const fn default_minimum_requests() -> u64 {
        50
    }
}

/// One rule of an analysis: a metric and exactly one limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "has(self.maximum) != has(self.maximumIncreasePercent)",
    "a rule has exactly one of maximum and maximumIncreasePercent",
)])))]
pub struct AnalysisRule {
    /// The metric that is judged.
    pub metric: AnalysisMetric,
    /// Value that the candidate must not pass: a share for `error_rate`, seconds for
    /// `latency_p95` and `time_to_first_token_p95`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = UNSIGNED_PATTERN))]
    pub maximum: Option<Decimal>,
    /// Percent by which the candidate may be above the stable version in the same window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = UNSIGNED_PATTERN))]
    pub maximum_increase_percent: Option<Decimal>,
}

open_enum! {
    /// A metric of live traffic, as the routers count it.
    pub enum AnalysisMetric (spec) {
        /// 5xx, connection failures and truncated streams over completed requests.
        ErrorRate = "error_rate",
        /// 95th percentile of the time from arrival to last byte, in seconds.
        LatencyP95 = "latency_p95",
        /// 95th percentile of the time from arrival to the first byte of the answer's body, in seconds: of a
        /// stream, its first token.
        TimeToFirstTokenP95 = "time_to_first_token_p95",
    }
}
