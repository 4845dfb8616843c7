//! A ServingEndpoint's spec, read once: after this nothing can fail for what it says.

use std::collections::BTreeSet;

use graftwork_api::conditions::reason;
use graftwork_api::serving_endpoint::{
    AdapterEntry, AnalysisMetric, AnalysisRule, CanaryStep, FALLBACK_STABLE, Rollout,
    RolloutStrategy,
};
use graftwork_api::uri::PvcUri;
use graftwork_api::{Decimal, ServingEndpointSpec};

use crate::adapter::no_share;
use crate::settings::{ComputeProfile, Settings};

mod engine;

pub use engine::{EngineRoom, base_problem};

/// A spec that can be acted on.
#[derive(Debug, Clone, PartialEq)]
pub struct Valid<'a> {
    /// The base model's folder.
    pub base: PvcUri,
    /// The compute profile of engines.
    pub profile: &'a ComputeProfile,
    /// How engines hold their base model, and what they may take.
    pub engine: EngineRoom,
    /// How versions take over.
    pub policy: Policy,
}

/// How a version takes over from another.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// How traffic moves.
    pub strategy: Strategy,
    /// How traffic is judged.
    pub analysis: Option<Analysis>,
    /// Seconds that engines and routers may take to be ready for a step.
    pub progress_deadline_seconds: u64,
    /// Whether a failed analysis rolls back by itself.
    pub auto_rollback: bool,
    /// Seconds that a candidate keeps its weight without word from the operator.
    pub lease_seconds: u64,
}

impl Policy {
    /// The policy while the spec is not acted on: nobody judges, and nothing goes on. Only the lease,
    /// by which routers give a candidate up by themselves, is still the spec's.
    pub const fn holding(lease_seconds: u64) -> Self {
        Self {
            strategy: Strategy::Canary(Vec::new()),
            analysis: None,
            progress_deadline_seconds: u64::MAX,
            auto_rollback: false,
            lease_seconds,
        }
    }
}

/// How traffic moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Strategy {
    /// Step by step.
    Canary(Vec<Step>),
    /// All at once after a preview by header.
    BlueGreen {
        /// Whether the preview ends by itself.
        auto_promote: bool,
        /// Its length.
        preview_seconds: u64,
        /// How long the old version is kept after the switch.
        delay_seconds: u64,
    },
    /// All at once.
    Immediate,
}

/// One step of a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Percent of callers.
    SetWeight(u32),
    /// Seconds; none: until a person ends it.
    Pause(Option<u64>),
}

/// How traffic is judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Analysis {
    /// Seconds between judgements.
    pub interval_seconds: u64,
    /// Requests without which nothing is said.
    pub minimum_requests: u64,
    /// Every one must pass.
    pub rules: Vec<Rule>,
    /// Failed judgements that are tolerated.
    pub failure_limit: u32,
}

/// One rule of an analysis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// What is judged.
    pub metric: Metric,
    /// Against what.
    pub limit: Limit,
}

/// A metric of live traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Share of completed requests.
    ErrorRate,
    /// Seconds to the last byte.
    LatencyP95,
    /// Seconds to the first byte.
    TimeToFirstTokenP95,
}

impl Metric {
    /// The metric's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ErrorRate => "error_rate",
            Self::LatencyP95 => "latency_p95",
            Self::TimeToFirstTokenP95 => "time_to_first_token_p95",
        }
    }

    /// The reason of a rollback for this metric.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::ErrorRate => reason::ERROR_RATE_ABOVE_LIMIT,
            Self::LatencyP95 | Self::TimeToFirstTokenP95 => reason::LATENCY_ABOVE_LIMIT,
        }
    }
}

/// A limit of the candidate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// In the metric's unit.
    Maximum(f64),
    /// Percent above the stable version in the same window.
    MaximumIncreasePercent(f64),
}

/// A field that can't work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// A condition's reason.
    pub reason: &'static str,
    /// Path of the field.
    pub field: String,
    /// What is wrong, with value and limit.
    pub message: String,
}

impl Invalid {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            reason: reason::INVALID_SPEC,
            field: field.into(),
            message: message.into(),
        }
    }
}

/// Reads a spec.
///
/// # Errors
/// The first field that can't work. The schema refuses most of this before; an operator that is
/// older or newer than the schema does not rely on it.
pub fn validate<'a>(
    spec: &ServingEndpointSpec,
    settings: &'a Settings,
) -> Result<Valid<'a>, Invalid> {
    let base = PvcUri::parse(&spec.base_model.uri)
        .map_err(|error| Invalid::new("spec.baseModel.uri", error.to_string()))?;
    let base_name = spec.base_model.name.as_deref();
    check_names(base_name, &spec.adapters)?;
    check_fallbacks(base_name, &spec.adapters)?;
    let profile = settings
        .profile(&spec.engine.compute_profile)
        .map_err(|error| Invalid {
            reason: reason::COMPUTE_PROFILE_NOT_FOUND,
            ..Invalid::new("spec.engine.computeProfile", error.to_string())
        })?;
    Ok(Valid {
        base,
        profile,
        engine: engine::read(&spec.engine, profile)?,
        policy: read_policy(&spec.rollout)?,
    })
}

fn check_names(base: Option<&str>, entries: &[AdapterEntry]) -> Result<(), Invalid> {
    let mut names: BTreeSet<&str> = base.into_iter().collect();
    for (index, entry) in entries.iter().enumerate() {
        if !names.insert(&entry.name) {
            return Err(Invalid::new(
                format!("spec.adapters[{index}].name"),
                format!(
                    "the model name \"{}\" stands twice: rename one of the two",
                    entry.name
                ),
            ));
        }
    }
    Ok(())
}

/// A fallback is another model of the endpoint. One may lead to one that has a fallback itself: only the first
/// is followed, so that there is no circle.
fn check_fallbacks(base: Option<&str>, entries: &[AdapterEntry]) -> Result<(), Invalid> {
    let names: BTreeSet<&str> = entries
        .iter()
        .map(|entry| entry.name.as_str())
        .chain(base)
        .collect();
    for (index, entry) in entries.iter().enumerate() {
        let Some(fallback) = entry.fallback.as_deref() else {
            continue;
        };
        let problem = if fallback == FALLBACK_STABLE {
            continue;
        } else if fallback == entry.name {
            format!(
                "\"{fallback}\" is the model itself; for its stable version say {FALLBACK_STABLE}"
            )
        } else if names.contains(fallback) {
            continue;
        } else {
            format!(
                "the endpoint has no model \"{fallback}\"; say {FALLBACK_STABLE} or one of its models"
            )
        };
        return Err(Invalid::new(
            format!("spec.adapters[{index}].fallback"),
            problem,
        ));
    }
    Ok(())
}

fn read_policy(rollout: &Rollout) -> Result<Policy, Invalid> {
    let strategy = match &rollout.strategy {
        RolloutStrategy::Canary => Strategy::Canary(read_steps(&rollout.canary.steps)?),
        RolloutStrategy::BlueGreen => Strategy::BlueGreen {
            auto_promote: rollout.blue_green.auto_promote,
            preview_seconds: rollout.blue_green.preview_seconds,
            delay_seconds: rollout.blue_green.scale_down_delay_seconds,
        },
        RolloutStrategy::Immediate => Strategy::Immediate,
        RolloutStrategy::Other(other) => {
            return Err(unknown(
                "spec.rollout.strategy",
                other,
                RolloutStrategy::KNOWN,
            ));
        }
    };
    let analysis = rollout
        .analysis
        .as_ref()
        .map(|analysis| {
            let rules = analysis
                .rules
                .iter()
                .enumerate()
                .map(|(index, rule)| {
                    read_rule(&format!("spec.rollout.analysis.rules[{index}]"), rule)
                })
                .collect::<Result<_, _>>()?;
            Ok(Analysis {
                interval_seconds: analysis.interval_seconds.max(1),
                minimum_requests: analysis.minimum_requests,
                rules,
                failure_limit: analysis.failure_limit,
            })
        })
        .transpose()?;
    if let (Strategy::Canary(steps), Some(analysis)) = (&strategy, &analysis) {
        check_comparisons(steps, &analysis.rules)?;
    }
    Ok(Policy {
        strategy,
        analysis,
        progress_deadline_seconds: rollout.progress_deadline_seconds,
        auto_rollback: rollout.auto_rollback,
        lease_seconds: rollout.candidate_lease_seconds,
    })
}

/// With all callers at the candidate there is no stable version to compare with: such a step would hold for
/// ever.
fn check_comparisons(steps: &[Step], rules: &[Rule]) -> Result<(), Invalid> {
    let all = steps.iter().position(|step| *step == Step::SetWeight(100));
    let mut rules = rules.iter();
    let compares = rules.position(|rule| matches!(rule.limit, Limit::MaximumIncreasePercent(_)));
    let (Some(step), Some(rule)) = (all, compares) else {
        return Ok(());
    };
    Err(Invalid::new(
        format!("spec.rollout.canary.steps[{step}].setWeight"),
        format!(
            "100 leaves the stable version no requests, and spec.rollout.analysis.rules[{rule}] compares with \
             them by maximumIncreasePercent: leave the step out, since all callers follow the last one anyway, \
             or name a maximum"
        ),
    ))
}

fn read_steps(steps: &[CanaryStep]) -> Result<Vec<Step>, Invalid> {
    let mut read = Vec::with_capacity(steps.len());
    let mut reached = 0;
    for (index, step) in steps.iter().enumerate() {
        let field = format!("spec.rollout.canary.steps[{index}]");
        read.push(match (step.set_weight, &step.pause) {
            (Some(weight), None) if weight <= reached || weight > 100 => {
                return Err(Invalid::new(
                    format!("{field}.setWeight"),
                    format!("{weight} is not above the {reached} of the step before, up to 100"),
                ));
            }
            (Some(weight), None) => {
                reached = weight;
                Step::SetWeight(weight)
            }
            (None, Some(pause)) if reached > 0 => Step::Pause(pause.seconds),
            (None, Some(_)) => {
                return Err(Invalid::new(
                    field,
                    "is a pause, and the first step is a setWeight: put one before it",
                ));
            }
            _ => {
                return Err(Invalid::new(
                    field,
                    "exactly one of setWeight and pause is needed",
                ));
            }
        });
    }
    if read.is_empty() {
        return Err(Invalid::new(
            "spec.rollout.canary.steps",
            "at least one step is needed",
        ));
    }
    Ok(read)
}

fn read_rule(field: &str, rule: &AnalysisRule) -> Result<Rule, Invalid> {
    let metric = match &rule.metric {
        AnalysisMetric::ErrorRate => Metric::ErrorRate,
        AnalysisMetric::LatencyP95 => Metric::LatencyP95,
        AnalysisMetric::TimeToFirstTokenP95 => Metric::TimeToFirstTokenP95,
        AnalysisMetric::Other(other) => {
            return Err(unknown(
                &format!("{field}.metric"),
                other,
                AnalysisMetric::KNOWN,
            ));
        }
    };
    let limit = match (&rule.maximum, &rule.maximum_increase_percent) {
        (Some(text), None) => {
            let field = format!("{field}.maximum");
            let maximum = number(&field, text)?;
            if metric == Metric::ErrorRate && !(0.0..=1.0).contains(&maximum) {
                return Err(Invalid::new(field, no_share(metric.name(), text)));
            }
            Limit::Maximum(maximum)
        }
        (None, Some(text)) => {
            Limit::MaximumIncreasePercent(number(&format!("{field}.maximumIncreasePercent"), text)?)
        }
        _ => {
            let message = "exactly one of maximum and maximumIncreasePercent is needed";
            return Err(Invalid::new(field, message));
        }
    };
    Ok(Rule { metric, limit })
}

fn number(field: &str, text: &Decimal) -> Result<f64, Invalid> {
    text.value().ok_or_else(|| {
        Invalid::new(
            field,
            format!("\"{text}\" is not a number: write a decimal, such as 0.01"),
        )
    })
}

fn unknown(field: &str, value: &str, known: &[&str]) -> Invalid {
    Invalid::new(
        field,
        format!(
            "\"{value}\" is not known to this version; it knows {}",
            known.join(", ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixtures::settings;

    fn spec(more: &Value) -> ServingEndpointSpec {
        let mut spec = json!({
            "baseModel": {"uri": "pvc://models/tiny", "name": "tiny"},
            "adapters": [{"name": "a", "adapterRef": {"name": "a"}}],
        });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn a_spec_is_read() {
        let settings = settings();
        let spec = spec(&json!({"rollout": {
            "canary": {"steps": [{"setWeight": 10}, {"pause": {}}, {"setWeight": 50}, {"pause": {"seconds": 5}}]},
            "analysis": {"rules": [{"metric": "latency_p95", "maximumIncreasePercent": "5"}]},
        }}));
        let valid = validate(&spec, &settings).unwrap();
        assert_eq!(valid.base.claim(), "models");
        assert_eq!(
            valid.policy.strategy,
            Strategy::Canary(vec![
                Step::SetWeight(10),
                Step::Pause(None),
                Step::SetWeight(50),
                Step::Pause(Some(5)),
            ])
        );
        let analysis = valid.policy.analysis.unwrap();
        assert_eq!(
            (analysis.interval_seconds, analysis.minimum_requests),
            (30, 50)
        );
        assert_eq!(analysis.rules[0].limit, Limit::MaximumIncreasePercent(5.0));
    }

    #[test]
    fn a_fallback_is_stable_or_another_model_of_the_endpoint() {
        let settings = settings();
        for fallback in ["Stable", "b", "tiny"] {
            let adapters = json!([
                {"name": "a", "adapterRef": {"name": "a"}, "fallback": fallback},
                {"name": "b", "adapterRef": {"name": "b"}, "fallback": "a"},
            ]);
            validate(&spec(&json!({"adapters": adapters})), &settings).unwrap();
        }
    }

    #[test]
    fn a_step_with_all_callers_compares_with_nobody() {
        let settings = settings();
        let to_all = |rule: Value| {
            let steps = json!([{"setWeight": 50}, {"setWeight": 100}]);
            let errors = json!({"metric": "error_rate", "maximum": "0.1"});
            json!({"rollout": {"canary": {"steps": steps}, "analysis": {"rules": [errors, rule]}}})
        };
        let slow = json!({"metric": "latency_p95", "maximum": "5"});
        validate(&spec(&to_all(slow)), &settings).unwrap();
        let slower = json!({"metric": "latency_p95", "maximumIncreasePercent": "5"});
        let invalid = validate(&spec(&to_all(slower)), &settings).unwrap_err();
        assert_eq!(invalid.field, "spec.rollout.canary.steps[1].setWeight");
        for part in ["spec.rollout.analysis.rules[1]", "leave the step out"] {
            assert!(invalid.message.contains(part), "{}", invalid.message);
        }
    }

    #[test]
    fn what_cannot_work_is_named() {
        let settings = settings();
        let steps = |steps: Value| json!({"rollout": {"canary": {"steps": steps}}});
        let rule = |rule: Value| json!({"rollout": {"analysis": {"rules": [rule]}}});
        for (more, field) in [
            (
                json!({"baseModel": {"uri": "hf://x/y"}}),
                "spec.baseModel.uri",
            ),
            (
                json!({"engine": {"computeProfile": "moon"}}),
                "spec.engine.computeProfile",
            ),
            (
                json!({"baseModel": {"uri": "pvc://m/x", "name": "a"}}),
                "spec.adapters[0].name",
            ),
            (
                json!({"adapters": [{"name": "a", "adapterRef": {"name": "a"}, "fallback": "b"}]}),
                "spec.adapters[0].fallback",
            ),
            (
                json!({"adapters": [{"name": "a", "adapterRef": {"name": "a"}, "fallback": "a"}]}),
                "spec.adapters[0].fallback",
            ),
            (
                json!({"rollout": {"strategy": "Hope"}}),
                "spec.rollout.strategy",
            ),
            (
                steps(json!([{"setWeight": 10}, {"setWeight": 10}])),
                "spec.rollout.canary.steps[1].setWeight",
            ),
            (
                steps(json!([{"setWeight": 101}])),
                "spec.rollout.canary.steps[0].setWeight",
            ),
            (
                steps(json!([{"pause": {}}])),
                "spec.rollout.canary.steps[0]",
            ),
            (
                steps(json!([{"setWeight": 1, "pause": {}}])),
                "spec.rollout.canary.steps[0]",
            ),
            (steps(json!([])), "spec.rollout.canary.steps"),
            (
                rule(json!({"metric": "mood", "maximum": "1"})),
                "spec.rollout.analysis.rules[0].metric",
            ),
            (
                rule(json!({"metric": "error_rate"})),
                "spec.rollout.analysis.rules[0]",
            ),
        ] {
            assert_eq!(
                validate(&spec(&more), &settings).unwrap_err().field,
                field,
                "{more}"
            );
        }
        for (more, remedy) in [
            (
                json!({"baseModel": {"uri": "pvc://m/x", "name": "a"}}),
                "rename one of the two",
            ),
            (steps(json!([{"pause": {}}])), "put one before it"),
            (
                rule(json!({"metric": "error_rate", "maximum": "x"})),
                "\"x\" is not a number: write a decimal, such as 0.01",
            ),
            (
                rule(json!({"metric": "error_rate", "maximum": "5"})),
                "error_rate is a share from 0 to 1, and \"5\" is none: 5 % is 0.05",
            ),
        ] {
            let message = validate(&spec(&more), &settings).unwrap_err().message;
            assert!(message.contains(remedy), "{message}");
        }
        let invalid = validate(
            &spec(&json!({"engine": {"computeProfile": "moon"}})),
            &settings,
        )
        .unwrap_err();
        assert_eq!(invalid.reason, reason::COMPUTE_PROFILE_NOT_FOUND);
        assert!(invalid.message.contains("default"), "{}", invalid.message);
    }
}
