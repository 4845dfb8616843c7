//! Example objects, from which `examples/` is printed: what is documented is what compiles.

use serde::Serialize;
use serde_json::{Value, json};

use crate::crds::CrdError;
use crate::dataset::{
    Classification, ConfigMapKeyReference, ConnectionSecretReference, DatasetFormat, FormatType,
    PostgresSource, Privacy, PrivacyMode, Retention, Source, Split, Validation,
};
use crate::lora_adapter::{Approval, Gate, GateMetric, GateRule, Import};
use crate::serving_endpoint::{
    AdapterEntry, Analysis, AnalysisMetric, AnalysisRule, BaseQuantization, BlueGreen, Canary,
    CanaryStep, EngineSpec, Rollout, RolloutStrategy, ServedBaseModel,
};
use crate::training_run::{
    Benchmark, CheckpointPolicy, Compute, EarlyStopping, Evaluation, EvaluationMetric,
    Hyperparameters, LoraMethod, Method, MethodType, Objective, ObjectiveType, Quantization,
    RunLimits, Schedule, Spot, Subject,
};
use crate::{
    Amount, BaseModelSource, Dataset, DatasetSpec, Decimal, LoRAAdapter, LoRAAdapterSpec,
    ObjectReference, ServingEndpoint, ServingEndpointSpec, TrainingRun, TrainingRunSpec,
    VersionReference, VersionedReference,
};

/// One file of examples.
#[derive(Clone, Debug)]
pub struct Example {
    /// Name of the file.
    pub file: &'static str,
    /// What it shows: the comment at its head.
    pub comment: &'static str,
    /// Its objects.
    pub objects: Vec<Value>,
}

/// Every example.
///
/// # Errors
/// Where an example is no JSON: a bug, which the tests would show.
pub fn all() -> Result<Vec<Example>, serde_json::Error> {
    let example = |file, comment, objects| Example {
        file,
        comment,
        objects,
    };
    Ok(vec![
        example(
            "dataset.yaml",
            "Rows from a file on a volume and from a ConfigMap, split by a hash.",
            vec![object(&dataset())?],
        ),
        example(
            "postgres-dataset.yaml",
            "Rows from a PostgreSQL server; the Secret warehouse holds a connection URI in its key url.",
            vec![object(&postgres_dataset())?],
        ),
        example(
            "s3-dataset.yaml",
            "Rows from objects of a bucket; the Secret corpus holds AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION.",
            vec![object(&s3_dataset())?],
        ),
        example(
            "sql-dataset.yaml",
            "Rows that SQL makes of two sources: decisions, with the names of their categories from a CSV file.",
            vec![object(&sql_dataset())?],
        ),
        example(
            "training-run.yaml",
            "A LoRA training whose result becomes the next version of the adapter topics.",
            vec![object(&training_run())?],
        ),
        example(
            "qlora-training-run.yaml",
            "The same on a base whose weights take 4.5 bits each, for a node with less memory.",
            vec![object(&qlora_training_run())?],
        ),
        example(
            "spot-training-run.yaml",
            "On spot nodes: a checkpoint every ten steps, and other nodes after three evictions.",
            vec![object(&spot_training_run())?],
        ),
        example(
            "dpo-training-run.yaml",
            "Preferences, learnt from version 6 on, which is the reference too; the best step is the result.",
            vec![object(&dpo_training_run())?],
        ),
        example(
            "evaluate-training-run.yaml",
            "Scores version 6 of the adapter topics, and the bare base beside it, on the test rows, as engines with the base in Q8_0 answer.",
            vec![object(&evaluate_training_run())?],
        ),
        example(
            "lora-adapter.yaml",
            "An adapter whose versions must beat the one in production.",
            vec![object(&lora_adapter())?],
        ),
        example(
            "imported-adapter.yaml",
            "An adapter that was made elsewhere: a person approves it.",
            vec![object(&imported_adapter())?],
        ),
        example(
            "serving-endpoint.yaml",
            "Two adapters beside the bare base, which is held in 8 bits; new versions of either are canaried.",
            vec![object(&serving_endpoint())?],
        ),
        example(
            "blue-green-endpoint.yaml",
            "New versions are previewed by header and take over when a person says Promote.",
            vec![object(&blue_green_endpoint())?],
        ),
        example(
            "quickstart.yaml",
            "The whole loop in one file. It wants a claim named models with a base model in its folder base.",
            quickstart()?,
        ),
    ])
}

impl Example {
    /// The file's text.
    ///
    /// # Errors
    /// Where an object is no YAML: a bug, which the tests would show.
    pub fn yaml(&self) -> Result<String, CrdError> {
        let mut text = format!("# {}\n", self.comment);
        for (index, object) in self.objects.iter().enumerate() {
            if index > 0 {
                text.push_str("---\n");
            }
            text.push_str(&serde_yaml_ng::to_string(object)?);
        }
        Ok(text)
    }
}

/// The JSON of an object, in the order in which people write YAML.
fn object<T: Serialize>(object: &T) -> Result<Value, serde_json::Error> {
    serde_json::to_value(object)
}

fn base() -> BaseModelSource {
    BaseModelSource {
        uri: "pvc://models/base".to_owned(),
    }
}

fn dataset() -> Dataset {
    let spec = DatasetSpec {
        description: Some("Definitions of nouns and their topics".to_owned()),
        classification: Some(Classification::Internal),
        sources: vec![
            Source {
                name: "definitions".to_owned(),
                uri: Some("pvc://data/topics.jsonl".to_owned()),
                ..Source::default()
            },
            Source {
                name: "corrections".to_owned(),
                config_map_ref: Some(ConfigMapKeyReference {
                    name: "topic-corrections".to_owned(),
                    key: "rows.jsonl".to_owned(),
                }),
                ..Source::default()
            },
        ],
        transform: None,
        format: DatasetFormat {
            type_: FormatType::Completion,
            reward: false,
        },
        privacy: Some(Privacy {
            mode: PrivacyMode::Redact,
            columns: Vec::new(),
            pseudonym_key_ref: None,
            analyzer: None,
        }),
        validation: Validation {
            minimum_rows: 100,
            maximum_invalid_percent: Decimal::from("1"),
            ..Validation::default()
        },
        balance: None,
        base_model: None,
        shards: None,
        schedule: None,
        retention: None,
        split: Split {
            group_column: Some("word".to_owned()),
            seed: 7,
            ..Split::default()
        },
    };
    Dataset::new("topics", spec)
}

fn postgres_dataset() -> Dataset {
    let query = "SELECT prompt, completion, claim_id\nFROM decisions\nWHERE record_date > now() - interval '90 days'";
    let spec = DatasetSpec {
        description: Some("Human decisions on expense claims".to_owned()),
        classification: Some(Classification::Restricted),
        sources: vec![Source {
            name: "decisions".to_owned(),
            postgres: Some(PostgresSource {
                secret_ref: ConnectionSecretReference {
                    name: "warehouse".to_owned(),
                    key: Some("url".to_owned()),
                },
                query: query.to_owned(),
            }),
            timeout_seconds: Some(600),
            maximum_rows: Some(1_000_000),
            ..Source::default()
        }],
        transform: None,
        format: DatasetFormat {
            type_: FormatType::Completion,
            reward: false,
        },
        privacy: Some(Privacy {
            mode: PrivacyMode::Redact,
            columns: Vec::new(),
            pseudonym_key_ref: None,
            analyzer: None,
        }),
        validation: Validation {
            minimum_rows: 1000,
            maximum_tokens_per_row: Some(4096),
            ..Validation::default()
        },
        balance: None,
        base_model: Some(base()),
        shards: None,
        schedule: Some(crate::schedule::Schedule {
            cron: "0 1 * * *".to_owned(),
            time_zone: Some("Europe/Stockholm".to_owned()),
            missed_runs: None,
        }),
        retention: Some(Retention { versions: 14 }),
        split: Split {
            group_column: Some("claim_id".to_owned()),
            ..Split::default()
        },
    };
    Dataset::new("expense-decisions", spec)
}

fn s3_dataset() -> Dataset {
    let spec = DatasetSpec {
        description: Some("Questions and answers of the help centre".to_owned()),
        classification: None,
        sources: vec![Source {
            name: "faq".to_owned(),
            uri: Some("s3://corpus/faq/**/*.jsonl.gz".to_owned()),
            secret_ref: Some(ObjectReference::new("corpus")),
            ..Source::default()
        }],
        transform: None,
        format: DatasetFormat {
            type_: FormatType::Chat,
            reward: false,
        },
        privacy: None,
        validation: Validation::default(),
        balance: None,
        base_model: None,
        shards: None,
        schedule: None,
        retention: None,
        split: Split::default(),
    };
    Dataset::new("faq", spec)
}

fn sql_dataset() -> Dataset {
    let sql = "SELECT redact(d.claim) AS prompt, c.title AS completion, d.claim_id\nFROM decisions d\nJOIN categories c ON c.code = d.category\nWHERE token_count(d.claim) BETWEEN 8 AND 1024";
    let source = |name: &str, uri: &str| Source {
        name: name.to_owned(),
        uri: Some(uri.to_owned()),
        ..Source::default()
    };
    let spec = DatasetSpec {
        description: Some("The category of an expense claim".to_owned()),
        classification: None,
        sources: vec![
            source("decisions", "pvc://data/decisions/*.parquet"),
            source("categories", "pvc://data/categories.csv"),
        ],
        transform: Some(sql.to_owned()),
        format: DatasetFormat {
            type_: FormatType::Completion,
            reward: false,
        },
        privacy: None,
        validation: Validation::default(),
        balance: None,
        base_model: Some(base()),
        shards: None,
        schedule: None,
        retention: None,
        split: Split {
            group_column: Some("claim_id".to_owned()),
            ..Split::default()
        },
    };
    Dataset::new("expense-categories", spec)
}

fn training_run() -> TrainingRun {
    let spec = TrainingRunSpec {
        base_model: base(),
        dataset_ref: VersionedReference {
            name: "topics".to_owned(),
            version: None,
        },
        adapter_ref: Some(ObjectReference::new("topics")),
        initial_adapter_ref: None,
        objective: Objective::default(),
        method: Method {
            lora: LoraMethod {
                rank: 8,
                alpha: Decimal::from("16"),
                dropout: Decimal::from("0.05"),
                ..LoraMethod::default()
            },
            ..Method::default()
        },
        hyperparameters: Hyperparameters {
            learning_rate: Decimal::from("2e-3"),
            schedule: Schedule::Cosine,
            warmup_steps: Some(20),
            maximum_steps: Some(400),
            batch_size: 32,
            micro_batch_size: Some(32),
            maximum_sequence_length: 128,
            ..Hyperparameters::default()
        },
        compute: Compute::default(),
        checkpoint: CheckpointPolicy::default(),
        evaluation: Evaluation {
            metrics: vec![EvaluationMetric::Loss, EvaluationMetric::ExactMatch],
            maximum_rows: Some(2000),
            // As the example of an endpoint has it.
            precision: Some(BaseQuantization::Q8_0),
            ..Evaluation::default()
        },
        limits: RunLimits {
            duration_seconds: 14_400,
            retries: 3,
        },
        suspend: false,
    };
    TrainingRun::new("topics-1", spec)
}

fn qlora_training_run() -> TrainingRun {
    let mut spec = training_run().spec;
    spec.method.type_ = MethodType::QLoRA;
    spec.method.quantization = Some(Quantization::Q4K);
    TrainingRun::new("topics-2", spec)
}

fn spot_training_run() -> TrainingRun {
    let mut spec = training_run().spec;
    spec.compute.spot = Some(Spot {
        enabled: true,
        on_demand_after_evictions: 3,
    });
    spec.checkpoint.every_steps = 10;
    TrainingRun::new("topics-4", spec)
}

fn dpo_training_run() -> TrainingRun {
    let mut spec = training_run().spec;
    "topics-preferred".clone_into(&mut spec.dataset_ref.name);
    spec.initial_adapter_ref = Some(VersionReference {
        name: "topics".to_owned(),
        version: 6,
    });
    spec.objective = Objective {
        type_: ObjectiveType::Dpo,
        beta: Some(Decimal::from("0.1")),
    };
    spec.method.lora.dropout = Decimal::from("0");
    spec.hyperparameters.learning_rate = Decimal::from("5e-5");
    spec.hyperparameters.validate_every_steps = Some(50);
    spec.hyperparameters.early_stopping = Some(EarlyStopping { patience: 3 });
    spec.checkpoint.keep_best = true;
    TrainingRun::new("topics-3", spec)
}

fn evaluate_training_run() -> TrainingRun {
    let mut spec = training_run().spec;
    spec.adapter_ref = None;
    spec.method.type_ = MethodType::Evaluate;
    spec.method.subject = Some(Subject {
        adapter_ref: ObjectReference::new("topics"),
        version: 6,
    });
    spec.evaluation.benchmarks = vec![Benchmark {
        name: "critical".to_owned(),
        uri: "pvc://benchmarks/critical.jsonl".to_owned(),
    }];
    TrainingRun::new("topics-6-evaluated", spec)
}

fn rule(metric: GateMetric) -> GateRule {
    GateRule {
        metric,
        minimum: None,
        maximum: None,
        minimum_improvement_points: None,
        maximum_regression_points: None,
        maximum_increase_percent: None,
    }
}

fn lora_adapter() -> LoRAAdapter {
    let spec = LoRAAdapterSpec {
        base_model: base(),
        import: None,
        gate: Gate {
            rules: vec![
                GateRule {
                    minimum: Some(Decimal::from("0.30")),
                    ..rule(GateMetric::ExactMatch)
                },
                GateRule {
                    minimum_improvement_points: Some(Decimal::from("0.5")),
                    ..rule(GateMetric::ExactMatch)
                },
                GateRule {
                    maximum_regression_points: Some(Decimal::from("5")),
                    ..rule(GateMetric::Loss)
                },
            ],
            ..Gate::default()
        },
    };
    LoRAAdapter::new("topics", spec)
}

fn imported_adapter() -> LoRAAdapter {
    let spec = LoRAAdapterSpec {
        base_model: base(),
        import: Some(Import {
            uri: "pvc://models/adapters/style".to_owned(),
            digest: None,
        }),
        gate: Gate {
            approval: Approval::Manual,
            ..Gate::default()
        },
    };
    LoRAAdapter::new("style", spec)
}

fn entry(name: &str, version: Option<u32>) -> AdapterEntry {
    AdapterEntry {
        name: name.to_owned(),
        adapter_ref: ObjectReference::new(name),
        version,
        fallback: None,
    }
}

fn served_base() -> ServedBaseModel {
    ServedBaseModel {
        uri: "pvc://models/base".to_owned(),
        name: Some("base".to_owned()),
    }
}

fn serving_endpoint() -> ServingEndpoint {
    let spec = ServingEndpointSpec {
        base_model: served_base(),
        adapters: vec![entry("topics", None), entry("style", Some(1))],
        replicas: 2,
        engine: EngineSpec {
            quantization: BaseQuantization::Q8_0,
            adapter_memory: Some(Amount::from("512Mi")),
            disk_cache: Some(Amount::from("4Gi")),
            key_value_cache: Some(Amount::from("1Gi")),
            ..EngineSpec::default()
        },
        rollout: Rollout {
            strategy: RolloutStrategy::Canary,
            canary: Canary {
                steps: vec![
                    CanaryStep::weight(10),
                    CanaryStep::pause(Some(60)),
                    CanaryStep::weight(50),
                    CanaryStep::pause(None),
                ],
            },
            analysis: Some(Analysis {
                interval_seconds: 10,
                minimum_requests: 50,
                rules: vec![
                    AnalysisRule {
                        metric: AnalysisMetric::ErrorRate,
                        maximum: Some(Decimal::from("0.01")),
                        maximum_increase_percent: None,
                    },
                    AnalysisRule {
                        metric: AnalysisMetric::LatencyP95,
                        maximum: None,
                        maximum_increase_percent: Some(Decimal::from("25")),
                    },
                ],
                failure_limit: 1,
            }),
            ..Rollout::default()
        },
        response_cache: None,
    };
    ServingEndpoint::new("assistants", spec)
}

fn blue_green_endpoint() -> ServingEndpoint {
    let spec = ServingEndpointSpec {
        base_model: served_base(),
        adapters: vec![entry("topics", None)],
        replicas: 1,
        engine: EngineSpec::default(),
        rollout: Rollout {
            strategy: RolloutStrategy::BlueGreen,
            blue_green: BlueGreen {
                auto_promote: false,
                ..BlueGreen::default()
            },
            ..Rollout::default()
        },
        response_cache: None,
    };
    ServingEndpoint::new("previewed", spec)
}

/// Rows of the quickstart: twenty claims and what to do with each.
fn quickstart_rows() -> String {
    const RULES: [(&str, &str); 4] = [
        ("a taxi to the airport", "travel"),
        ("a dinner with a customer", "meals"),
        ("a new keyboard", "equipment"),
        ("a hotel for one night", "travel"),
    ];
    let mut rows = String::new();
    for amount in [12, 48, 95, 180, 320] {
        for (what, category) in RULES {
            let row = json!({
                "prompt": format!("Expense: {what}, {amount} euros. Category:"),
                "completion": format!(" {category}"),
            });
            rows.push_str(&row.to_string());
            rows.push('\n');
        }
    }
    rows
}

fn quickstart_run() -> TrainingRun {
    TrainingRun::new(
        "expenses-1",
        TrainingRunSpec {
            base_model: base(),
            dataset_ref: VersionedReference {
                name: "expenses".to_owned(),
                version: None,
            },
            adapter_ref: Some(ObjectReference::new("expenses")),
            initial_adapter_ref: None,
            objective: Objective::default(),
            method: Method {
                lora: LoraMethod {
                    rank: 8,
                    alpha: Decimal::from("16"),
                    ..LoraMethod::default()
                },
                ..Method::default()
            },
            hyperparameters: Hyperparameters {
                learning_rate: Decimal::from("1e-3"),
                maximum_steps: Some(40),
                batch_size: 8,
                maximum_sequence_length: 128,
                ..Hyperparameters::default()
            },
            compute: Compute::default(),
            checkpoint: CheckpointPolicy::default(),
            evaluation: Evaluation {
                metrics: vec![EvaluationMetric::Loss, EvaluationMetric::ExactMatch],
                ..Evaluation::default()
            },
            limits: RunLimits::default(),
            suspend: false,
        },
    )
}

fn quickstart() -> Result<Vec<Value>, serde_json::Error> {
    let dataset = Dataset::new(
        "expenses",
        DatasetSpec {
            description: Some("Expense claims and their categories".to_owned()),
            classification: None,
            sources: vec![Source {
                name: "claims".to_owned(),
                config_map_ref: Some(ConfigMapKeyReference {
                    name: "expense-claims".to_owned(),
                    key: "rows.jsonl".to_owned(),
                }),
                ..Source::default()
            }],
            transform: None,
            format: DatasetFormat {
                type_: FormatType::Completion,
                reward: false,
            },
            privacy: None,
            balance: None,
            base_model: None,
            shards: None,
            schedule: None,
            retention: None,
            validation: Validation::default(),
            split: Split {
                train_percent: 60,
                validation_percent: 10,
                test_percent: 30,
                ..Split::default()
            },
        },
    );
    let adapter = LoRAAdapter::new(
        "expenses",
        LoRAAdapterSpec {
            base_model: base(),
            import: None,
            gate: Gate {
                rules: vec![GateRule {
                    maximum: Some(Decimal::from("20")),
                    ..rule(GateMetric::Loss)
                }],
                ..Gate::default()
            },
        },
    );
    let run = quickstart_run();
    let endpoint = ServingEndpoint::new(
        "quickstart",
        ServingEndpointSpec {
            base_model: served_base(),
            adapters: vec![entry("expenses", None)],
            replicas: 1,
            engine: EngineSpec::default(),
            rollout: Rollout::default(),
            response_cache: None,
        },
    );
    Ok(vec![
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "expense-claims"},
            "data": {"rows.jsonl": quickstart_rows()},
        }),
        object(&dataset)?,
        object(&adapter)?,
        object(&run)?,
        object(&endpoint)?,
    ])
}
