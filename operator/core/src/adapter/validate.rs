//! A LoRAAdapter's spec, read once: after this nothing can fail for what it says.

use graftwork_api::lora_adapter::{Approval, GateMetric, GateRule};
use graftwork_api::uri::PvcUri;
use graftwork_api::{Decimal, LoRAAdapterSpec};
use graftwork_contract::Digest;
use graftwork_contract::run::{BENCHMARK_PREFIX, LABEL_PREFIX, LATENCY_P50, LATENCY_P95};
use serde_json::json;

/// A spec that can be acted on.
#[derive(Debug, Clone, PartialEq)]
pub struct Valid {
    /// The base model's folder.
    pub base: PvcUri,
    /// What a version must show.
    pub gate: Gate,
}

/// What a version must show before it may see traffic.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// Every one must pass.
    pub rules: Vec<Rule>,
    /// Of intervals, from 0.5 to below 1.
    pub confidence: f64,
    /// Whether a person has to approve.
    pub manual: bool,
    /// Over rules and confidence: another one judges again.
    pub digest: Digest,
}

/// One rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// What is judged.
    pub metric: Metric,
    /// Against what.
    pub limit: Limit,
}

/// A metric that a gate can judge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Metric {
    /// Lower is better.
    Loss,
    /// Lower is better; 1 or more.
    Perplexity,
    /// Higher is better; from 0 to 1.
    ExactMatch,
    /// As [`Self::ExactMatch`].
    TokenAccuracy,
    /// As [`Self::ExactMatch`].
    RougeL,
    /// As [`Self::ExactMatch`].
    MacroF1,
    /// Lower is better; in seconds.
    LatencyP50,
    /// As [`Self::LatencyP50`].
    LatencyP95,
    /// Higher is better.
    MeanReward,
    /// A benchmark's or a label's, by its name; as [`Self::ExactMatch`].
    Named(String),
}

impl Metric {
    /// The metric's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Loss => "loss",
            Self::Perplexity => "perplexity",
            Self::ExactMatch => "exact_match",
            Self::TokenAccuracy => "token_accuracy",
            Self::RougeL => "rouge_l",
            Self::MacroF1 => "macro_f1",
            Self::LatencyP50 => LATENCY_P50,
            Self::LatencyP95 => LATENCY_P95,
            Self::MeanReward => "mean_reward",
            Self::Named(name) => name,
        }
    }

    /// A metric that has a part of its own in its name: `benchmark/<name>`, with `/acc_norm` or
    /// `/acc_bytes` behind it or not, or `label/<label>/f1`, `/precision` or `/recall`.
    fn named(name: &str) -> Option<Self> {
        let is_benchmark = || {
            let rest = name.strip_prefix(BENCHMARK_PREFIX)?;
            let mut parts = rest.split('/');
            let benchmark = parts.next().filter(|benchmark| !benchmark.is_empty());
            let kind = parts.next();
            let fits = matches!(kind, None | Some("acc_norm" | "acc_bytes"));
            (benchmark.is_some() && fits && parts.next().is_none()).then_some(())
        };
        let is_label = || {
            let (label, kind) = name.strip_prefix(LABEL_PREFIX)?.rsplit_once('/')?;
            let fits = matches!(kind, "precision" | "recall" | "f1");
            (!label.is_empty() && fits).then_some(())
        };
        is_benchmark()
            .or_else(is_label)
            .map(|()| Self::Named(name.to_owned()))
    }

    /// Whether the metric is a mean of what is from 0 to 1 in every row.
    pub const fn is_share(&self) -> bool {
        !matches!(
            self,
            Self::Loss | Self::Perplexity | Self::LatencyP50 | Self::LatencyP95 | Self::MeanReward
        )
    }

    /// The sign that makes a difference an improvement.
    pub const fn sign(&self) -> f64 {
        match self {
            Self::Loss | Self::Perplexity | Self::LatencyP50 | Self::LatencyP95 => -1.0,
            Self::ExactMatch
            | Self::TokenAccuracy
            | Self::RougeL
            | Self::MacroF1
            | Self::MeanReward
            | Self::Named(_) => 1.0,
        }
    }
}

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// The value must reach it.
    Minimum(f64),
    /// The value must not pass it.
    Maximum(f64),
    /// Points by which the version must be better than production, or than the bare base.
    MinimumImprovement(f64),
    /// Points by which the version may be worse than production, or than the bare base.
    MaximumRegression(f64),
    /// Percent by which the value may be above production's, or the bare base's.
    MaximumIncrease(f64),
}

/// A field that can't work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// Path of the field.
    pub field: String,
    /// What is wrong, with value and limit.
    pub message: String,
}

impl Invalid {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
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
pub fn validate(spec: &LoRAAdapterSpec) -> Result<Valid, Invalid> {
    let base = PvcUri::parse(&spec.base_model.uri)
        .map_err(|error| Invalid::new("spec.baseModel.uri", error.to_string()))?;
    if let Some(import) = &spec.import {
        PvcUri::parse(&import.uri)
            .map_err(|error| Invalid::new("spec.import.uri", error.to_string()))?;
        if let Some(digest) = &import.digest {
            digest
                .parse::<Digest>()
                .map_err(|error| Invalid::new("spec.import.digest", error.to_string()))?;
        }
    }
    Ok(Valid {
        base,
        gate: read_gate(&spec.gate)?,
    })
}

fn read_gate(gate: &graftwork_api::lora_adapter::Gate) -> Result<Gate, Invalid> {
    let confidence = number("spec.gate.confidence", &gate.confidence)?;
    if !(0.5..1.0).contains(&confidence) {
        return Err(Invalid::new(
            "spec.gate.confidence",
            format!("\"{}\" is not from 0.5 to below 1", gate.confidence),
        ));
    }
    let manual = match &gate.approval {
        Approval::Automatic => false,
        Approval::Manual => true,
        Approval::Other(other) => {
            return Err(unknown("spec.gate.approval", other, Approval::KNOWN));
        }
    };
    let rules = gate
        .rules
        .iter()
        .enumerate()
        .map(|(index, rule)| read_rule(&format!("spec.gate.rules[{index}]"), rule))
        .collect::<Result<_, _>>()?;
    let judged_by = json!({"rules": gate.rules, "confidence": gate.confidence});
    let digest = Digest::of(graftwork_contract::digest::canonical_json(&judged_by).as_bytes());
    Ok(Gate {
        rules,
        confidence,
        manual,
        digest,
    })
}

fn read_rule(field: &str, rule: &GateRule) -> Result<Rule, Invalid> {
    let metric = match &rule.metric {
        GateMetric::Loss => Metric::Loss,
        GateMetric::Perplexity => Metric::Perplexity,
        GateMetric::ExactMatch => Metric::ExactMatch,
        GateMetric::TokenAccuracy => Metric::TokenAccuracy,
        GateMetric::RougeL => Metric::RougeL,
        GateMetric::MacroF1 => Metric::MacroF1,
        GateMetric::LatencyP50 => Metric::LatencyP50,
        GateMetric::LatencyP95 => Metric::LatencyP95,
        GateMetric::MeanReward => Metric::MeanReward,
        GateMetric::Other(other) => Metric::named(other).ok_or_else(|| {
            let mut known = GateMetric::KNOWN.to_vec();
            known.extend(["benchmark/NAME", "label/LABEL/f1"]);
            unknown(&format!("{field}.metric"), other, &known)
        })?,
    };
    let limits = [
        ("minimum", &rule.minimum, Limit::Minimum as fn(f64) -> Limit),
        ("maximum", &rule.maximum, Limit::Maximum),
        (
            "minimumImprovementPoints",
            &rule.minimum_improvement_points,
            Limit::MinimumImprovement,
        ),
        (
            "maximumRegressionPoints",
            &rule.maximum_regression_points,
            Limit::MaximumRegression,
        ),
        (
            "maximumIncreasePercent",
            &rule.maximum_increase_percent,
            Limit::MaximumIncrease,
        ),
    ];
    let mut given = limits
        .into_iter()
        .filter_map(|(key, text, limit)| Some((key, text.as_ref()?, limit)));
    match (given.next(), given.next()) {
        (Some((key, text, limit)), None) => {
            let field = format!("{field}.{key}");
            let limit = limit(number(&field, text)?);
            if let Limit::Minimum(share) | Limit::Maximum(share) = limit
                && metric.is_share()
                && !(0.0..=1.0).contains(&share)
            {
                return Err(Invalid::new(field, no_share(metric.name(), text)));
            }
            Ok(Rule { metric, limit })
        }
        _ => Err(Invalid::new(
            field,
            "exactly one of minimum, maximum, minimumImprovementPoints, maximumRegressionPoints and \
             maximumIncreasePercent is needed",
        )),
    }
}

/// What is wrong with a limit of a share that no share can reach, or pass.
pub(crate) fn no_share(metric: &str, limit: &Decimal) -> String {
    format!("{metric} is a share from 0 to 1, and \"{limit}\" is none: 5 % is 0.05")
}

fn number(field: &str, text: &Decimal) -> Result<f64, Invalid> {
    text.value().ok_or_else(|| {
        Invalid::new(
            field,
            format!("\"{text}\" is not a number: write a decimal, such as 0.95"),
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
    use graftwork_api::BaseModelSource;
    use serde_json::Value;

    use super::*;

    fn spec(gate: &Value) -> LoRAAdapterSpec {
        LoRAAdapterSpec {
            base_model: BaseModelSource {
                uri: "pvc://models/tiny".to_owned(),
            },
            import: None,
            gate: serde_json::from_value(gate.clone()).unwrap(),
        }
    }

    #[test]
    fn rules_are_read() {
        let valid = validate(&spec(&json!({
            "confidence": "0.9",
            "approval": "Manual",
            "rules": [
                {"metric": "loss", "maximum": "2.5"},
                {"metric": "exact_match", "minimumImprovementPoints": "0.5"},
            ],
        })))
        .unwrap();
        assert!(valid.gate.manual);
        assert_eq!(
            valid.gate.rules,
            [
                Rule {
                    metric: Metric::Loss,
                    limit: Limit::Maximum(2.5)
                },
                Rule {
                    metric: Metric::ExactMatch,
                    limit: Limit::MinimumImprovement(0.5)
                },
            ]
        );
    }

    #[test]
    fn benchmarks_and_labels_are_named_in_full() {
        let read = |metric: &str| {
            let rules = json!({"rules": [{"metric": metric, "minimum": "0.5"}]});
            validate(&spec(&rules)).map(|valid| valid.gate.rules[0].metric.clone())
        };
        for name in [
            "benchmark/critical",
            "benchmark/critical/acc_norm",
            "benchmark/critical/acc_bytes",
            "label/approve/f1",
            "label/yes/no/recall",
            "label/no/precision",
        ] {
            assert_eq!(read(name), Ok(Metric::Named(name.to_owned())), "{name}");
        }
        assert_eq!(read("macro_f1"), Ok(Metric::MacroF1));
        for name in [
            "benchmark/",
            "benchmark//acc_norm",
            "benchmark/critical/f1",
            "benchmark/critical/acc_norm/x",
            "label/f1",
            "label//f1",
            "label/approve",
            "critical",
        ] {
            let invalid = read(name).unwrap_err();
            assert_eq!(invalid.field, "spec.gate.rules[0].metric", "{name}");
            assert!(
                invalid.message.contains("benchmark/NAME"),
                "{}",
                invalid.message
            );
        }
    }

    #[test]
    fn what_cannot_work_is_named() {
        for (gate, field) in [
            (json!({"confidence": "1"}), "spec.gate.confidence"),
            (json!({"confidence": "x"}), "spec.gate.confidence"),
            (json!({"approval": "Sometimes"}), "spec.gate.approval"),
            (
                json!({"rules": [{"metric": "mood", "minimum": "1"}]}),
                "spec.gate.rules[0].metric",
            ),
            (json!({"rules": [{"metric": "loss"}]}), "spec.gate.rules[0]"),
            (
                json!({"rules": [{"metric": "loss", "minimum": "1", "maximum": "2"}]}),
                "spec.gate.rules[0]",
            ),
            (
                json!({"rules": [{"metric": "loss", "maximum": "1e999"}]}),
                "spec.gate.rules[0].maximum",
            ),
            (
                json!({"rules": [{"metric": "exact_match", "minimum": "30"}]}),
                "spec.gate.rules[0].minimum",
            ),
            (
                json!({"rules": [{"metric": "benchmark/x", "maximum": "-0.1"}]}),
                "spec.gate.rules[0].maximum",
            ),
        ] {
            assert_eq!(validate(&spec(&gate)).unwrap_err().field, field, "{gate}");
        }
        let no_number = json!({"confidence": "x"});
        assert_eq!(
            validate(&spec(&no_number)).unwrap_err().message,
            "\"x\" is not a number: write a decimal, such as 0.95"
        );
        let mut bad = spec(&json!({}));
        bad.base_model.uri = "s3://models/x".to_owned();
        let invalid = validate(&bad).unwrap_err();
        assert_eq!(invalid.field, "spec.baseModel.uri");
        assert!(invalid.message.contains("\"s3\""), "{}", invalid.message);
    }

    #[test]
    fn another_gate_has_another_digest_and_approval_does_not_enter_it() {
        let digest = |gate: Value| validate(&spec(&gate)).unwrap().gate.digest;
        let rules = json!([{"metric": "loss", "maximum": "2"}]);
        assert_eq!(
            digest(json!({"rules": rules})),
            digest(json!({"rules": rules, "approval": "Manual"}))
        );
        assert_ne!(
            digest(json!({"rules": rules})),
            digest(json!({"rules": rules, "confidence": "0.9"}))
        );
        assert_ne!(digest(json!({"rules": rules})), digest(json!({})));
    }
}
