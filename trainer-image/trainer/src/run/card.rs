//! The card of an adapter or a model (README.md), with front matter as model hubs read it.

use std::path::Path;

use graftwork_contract::run::{Precision, RowsUsed, TrainerConfig};
use serde::Serialize;

use super::package::Outcome;

/// The most of the base model's card that is looked at.
const FRONT_MATTER_BYTES: usize = 64 << 10;

/// What it is, what it was made of and how, how it scores, and what it is not.
pub fn card(config: &TrainerConfig, outcome: &Outcome) -> String {
    let licence = base_licence(Path::new(&config.resolved.base.path));
    let name = config.adapter.as_deref().unwrap_or(&config.run);
    format!(
        "{}\n# {name}\n\n{}\n{}\n{}",
        front_matter(config, outcome, licence.as_deref()),
        making(config, outcome),
        scores(config, outcome),
        limits(config, outcome, licence.as_deref()),
    )
}

/// A value as YAML, of which JSON is a part.
fn yaml(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn front_matter(config: &TrainerConfig, outcome: &Outcome, licence: Option<&str>) -> String {
    let resolved = &config.resolved;
    // What has no licence of a known name is `other` to hubs.
    let licence = match licence {
        Some(licence) => format!("license: {}", yaml(&licence)),
        None => "license: other\nlicense_name: that of the base model".to_owned(),
    };
    let (library, tags, lora) = if config.output.is_some() {
        ("transformers", "", String::new())
    } else {
        let lora = format!("  lora: {}\n", yaml(&config.lora));
        ("peft", "tags:\n- lora\n", lora)
    };
    format!(
        "---\nlibrary_name: {library}\npipeline_tag: text-generation\nbase_model: {base}\n{licence}\n\
         datasets:\n- {dataset}\n{tags}graftwork:\n  base: {resolved_base}\n  \
         dataset: {resolved_dataset}\n  objective: {objective}\n{lora}  \
         hyperparameters: {hyperparameters}\n  metrics: {metrics}\n{classification}---\n",
        base = yaml(&resolved.base.uri),
        dataset = yaml(&resolved.dataset.name),
        resolved_base = yaml(&serde_json::json!({
            "uri": resolved.base.uri, "digest": resolved.base.digest,
            "quantization": resolved.base.quantization,
        })),
        resolved_dataset = yaml(&resolved.dataset),
        objective = yaml(&config.objective),
        hyperparameters = yaml(&config.hyperparameters),
        metrics = yaml(&outcome.metrics),
        classification = match config.classification {
            Some(classification) => format!("  classification: {}\n", classification.name()),
            None => String::new(),
        },
    )
}

fn making(config: &TrainerConfig, outcome: &Outcome) -> String {
    let (resolved, h) = (&config.resolved, &config.hyperparameters);
    let start = match &resolved.initial {
        Some(initial) => format!(
            "- Started from {} version {} (`{}`)\n",
            initial.adapter, initial.version, initial.digest
        ),
        None => String::new(),
    };
    let (what, shape) = if config.output.is_some() {
        (
            "A model made of",
            "Every weight was trained, and is stored in bf16".to_owned(),
        )
    } else {
        let lora = &config.lora;
        let shape = format!(
            "Rank {}, alpha {}, dropout {}, modules {}",
            lora.rank,
            lora.alpha,
            lora.dropout,
            lora.target_modules.join(", ")
        );
        ("A LoRA adapter for", shape)
    };
    format!(
        "{what} `{base}` (`{base_digest}`), trained {precision}on dataset `{dataset}` version \
         {version} (`{dataset_digest}`).\n\n\
         - {shape}\n\
         - {steps} steps of {batch} examples, peak learning rate {rate}, {schedule:?} schedule, \
         seed {seed}\n{start}\
         - Training loss of the last steps: {loss:.4} nats\n",
        base = resolved.base.uri,
        base_digest = resolved.base.digest,
        precision = match resolved.base.quantization {
            Some(quantization) => format!("beside {} weights of it ", quantization.name()),
            None => String::new(),
        },
        dataset = resolved.dataset.name,
        version = resolved.dataset.version,
        dataset_digest = resolved.dataset.digest,
        steps = outcome.steps,
        batch = h.batch_size,
        rate = h.learning_rate,
        schedule = h.schedule,
        seed = h.seed,
        loss = outcome.final_loss,
    )
}

/// A text within a table: the name of a label is what a row says.
fn in_a_cell(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('|', "\\|");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn scores(config: &TrainerConfig, outcome: &Outcome) -> String {
    let reference = match &config.resolved.reference {
        Some(reference) => format!("{} version {}", reference.adapter, reference.version),
        None => "the bare base model".to_owned(),
    };
    let rows: String = outcome
        .metrics
        .iter()
        .map(|metric| {
            format!(
                "| {} | {:.4} ± {:.4} | {:.4} | {:+.4} ± {:.4} | {} |\n",
                in_a_cell(&metric.name),
                metric.value,
                metric.standard_error,
                metric.baseline,
                metric.difference,
                metric.difference_standard_error,
                metric.samples
            )
        })
        .collect();
    let held = match config.evaluation.precision {
        Precision::AsStored => "as it is stored".to_owned(),
        precision => format!("in {}", precision.name()),
    };
    format!(
        "Test split, compared with {reference} on the same rows, by the passes that serve, with the \
         base model {held} (± is one standard error):\n\n\
         | metric | this one | reference | difference | rows |\n\
         |---|---|---|---|---|\n{rows}"
    )
}

fn limits(config: &TrainerConfig, outcome: &Outcome, licence: Option<&str>) -> String {
    let length = config.hyperparameters.maximum_sequence_length;
    let licence = match licence {
        Some(licence) => {
            format!("The base model's licence, {licence}, holds for what derives from it")
        }
        None => "The base model states no licence in its README.md; its terms hold".to_owned(),
    };
    let (train, test) = (outcome.train_rows, outcome.test_rows);
    let looked_at = match outcome.validation_rows {
        RowsUsed {
            cut: 0, dropped: 0, ..
        } => String::new(),
        RowsUsed { rows, cut, dropped } => {
            format!("; of {rows} looked at while training {cut} were cut and {dropped} left out")
        }
    };
    let classification = match config.classification {
        Some(classification) => format!(
            "- What it learned from is classified {}: it may go as far as that may.\n",
            classification.name()
        ),
        None => String::new(),
    };
    let fits = if config.output.is_some() {
        ""
    } else {
        "- It works with the base model of this digest and no other.\n"
    };
    format!(
        "## Limits\n\n{classification}{fits}\
         - It was scored on {tested} rows of the same dataset{benchmarks}, without those that it or its reference is \
         known to have learned from: other inputs, safety and bias are untested.\n\
         - Rows longer than {length} tokens were cut: {train_cut} of {trained} trained on, {test_cut} \
         of {tested} scored{dropped}.\n\
         - {licence}, and so do those of the dataset's sources.\n",
        dropped = match train.dropped {
            0 => looked_at,
            rows => format!("; {rows} to train on were left out{looked_at}"),
        },
        benchmarks = if config.evaluation.benchmarks.is_empty() {
            ""
        } else {
            " and on the benchmarks above"
        },
        tested = test.rows,
        trained = train.rows,
        train_cut = train.cut,
        test_cut = test.cut,
    )
}

/// `license` in the front matter of the base model's README.md, where there is one with a plain
/// name.
fn base_licence(base: &Path) -> Option<String> {
    let bytes = std::fs::read(base.join("README.md")).ok()?;
    let text = String::from_utf8_lossy(bytes.get(..FRONT_MATTER_BYTES).unwrap_or(&bytes));
    let matter = text.strip_prefix("---")?.split("\n---").next()?;
    let value = matter
        .lines()
        .find_map(|line| line.strip_prefix("license:"))?;
    let name = value.trim().trim_matches(['"', '\'']);
    let is_plain = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || ['-', '.', '_', '+'].contains(&c));
    (is_plain && !name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use graftwork_contract::Digest;
    use graftwork_contract::dataset::Classification;
    use serde_json::json;

    use super::*;
    use crate::run::survival::config_on;

    fn card(base: &Path) -> String {
        card_of(base, None)
    }

    fn card_of(base: &Path, quantization: Option<&str>) -> String {
        super::card(&config_of(base, quantization), &outcome())
    }

    fn config_of(base: &Path, quantization: Option<&str>) -> TrainerConfig {
        let mut config = serde_json::to_value(config_on(base)).unwrap();
        config["resolved"]["base"]["uri"] = json!("pvc://models/a: #b");
        config["resolved"]["base"]["quantization"] = json!(quantization);
        config["lora"] =
            json!({"rank": 8, "alpha": 16.0, "dropout": 0.05, "targetModules": ["q_proj"]});
        config["adapter"] = json!("expenses");
        serde_json::from_value(config).unwrap()
    }

    fn outcome() -> Outcome {
        Outcome {
            digest: Digest::of(b"it"),
            steps: 40,
            final_loss: 1.5,
            metrics: Vec::new(),
            train_rows: RowsUsed {
                rows: 90,
                cut: 2,
                dropped: 0,
            },
            validation_rows: RowsUsed {
                rows: 8,
                cut: 3,
                dropped: 1,
            },
            test_rows: RowsUsed {
                rows: 10,
                cut: 1,
                dropped: 0,
            },
        }
    }

    #[test]
    fn the_card_says_how_far_the_adapter_may_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config_of(dir.path(), None);
        config.classification = Some(Classification::Restricted);
        let text = super::card(&config, &outcome());
        assert!(
            text.contains("\n  classification: Restricted\n---\n"),
            "{text}"
        );
        assert!(text.contains("is classified Restricted"), "{text}");
        assert!(!card(dir.path()).contains("classifi"));
    }

    #[test]
    fn the_card_says_what_it_was_made_of_and_what_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"it");
        let text = card(dir.path());
        let matter = text.strip_prefix("---\n").unwrap();
        let (matter, body) = matter.split_once("\n---\n").unwrap();
        for line in [
            // Quoted, because it is no plain scalar of YAML.
            "base_model: \"pvc://models/a: #b\"",
            "license: other",
            "datasets:\n- \"colours\"",
            "\"learningRate\":0.02",
            "\"rank\":8",
            &format!("\"digest\":\"{digest}\""),
        ] {
            assert!(matter.contains(line), "{line} is not in\n{matter}");
        }
        for line in [
            "# expenses",
            "version 4",
            "## Limits",
            "2 of 90 trained on, 1 of 10 scored",
            "of 8 looked at while training 3 were cut and 1 left out",
            "states no licence",
        ] {
            assert!(body.contains(line), "{line} is not in\n{body}");
        }
    }

    #[test]
    fn the_card_says_what_the_base_was_quantised_to() {
        let dir = tempfile::tempdir().unwrap();
        let text = card_of(dir.path(), Some("Q4_K"));
        assert!(text.contains("\"quantization\":\"Q4_K\""), "{text}");
        assert!(
            text.contains("trained beside Q4_K weights of it on dataset"),
            "{text}"
        );
        assert!(card(dir.path()).contains("), trained on dataset"));
    }

    #[test]
    fn the_card_says_by_which_passes_it_was_scored() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config_of(dir.path(), None);
        for (precision, held) in [
            (Precision::Q4K, "in Q4_K"),
            (Precision::AsStored, "as it is stored"),
        ] {
            config.evaluation.precision = precision;
            let text = super::card(&config, &outcome());
            let expected = format!("by the passes that serve, with the base model {held} (±");
            assert!(text.contains(&expected), "{text}");
        }
    }

    #[test]
    fn a_label_stays_within_its_cell() {
        let dir = tempfile::tempdir().unwrap();
        let metric = json!({
            "name": "label/a | b\n\\c/precision", "split": "test", "value": 0.5, "standardError": 0.0,
            "baseline": 0.5, "difference": 0.0, "differenceStandardError": 0.0, "samples": 4,
        });
        let mut outcome = outcome();
        outcome.metrics = vec![serde_json::from_value(metric).unwrap()];
        let text = super::card(&config_of(dir.path(), None), &outcome);
        let row = "\n| label/a \\| b \\\\c/precision | 0.5000 ±";
        assert!(text.contains(row), "{text}");
    }

    #[test]
    fn the_licence_is_the_base_models() {
        let dir = tempfile::tempdir().unwrap();
        for (readme, licence) in [
            (
                "---\nlibrary_name: x\nlicense: \"apache-2.0\"\n---\n# A",
                Some("apache-2.0"),
            ),
            ("---\nlicense: [a, b]\n---\n", None),
            ("# No front matter\nlicense: mit\n", None),
            ("---\ntags: []\n---\nlicense: mit\n", None),
        ] {
            std::fs::write(dir.path().join("README.md"), readme).unwrap();
            assert_eq!(base_licence(dir.path()).as_deref(), licence, "{readme}");
        }
        std::fs::write(dir.path().join("README.md"), "---\nlicense: mit\n---\n").unwrap();
        let text = card(dir.path());
        assert!(text.contains("\nlicense: \"mit\"\n") && text.contains("licence, mit, holds"));
    }
}
