//! Benchmarks through a tiny model: scores that were worked out by hand.

use graftwork_contract::exit::ExitCode;
use graftwork_contract::run::{self, MetricKind, Precision};
use graftwork_model::base::BaseModel;
use graftwork_model::fixture::{TinyShape, random_adapter, write_tiny_base};
use graftwork_model::lora::{LoraConfig, Module};
use graftwork_model::targets::Targets;
use graftwork_model::transformer::{Llama, PackedBatch};
use serde_json::{Value, json};

use super::*;

/// Lines, figures and scores of tasks in six shapes, by lm-eval 0.4.13 (parity/benchmarks.py).
const RECORDED: &str = include_str!("../../../tests/fixtures/benchmarks.json");

#[test]
fn every_recorded_task_scores_as_lm_evaluation_harness_says() {
    let tasks: Vec<Value> = serde_json::from_str(RECORDED).unwrap();
    assert_eq!(tasks.len(), 6);
    for task in &tasks {
        let name = task["task"].as_str().unwrap();
        let lines = task["lines"].as_array().unwrap().iter();
        let lines: Vec<String> = lines.map(Value::to_string).collect();
        let expected = |metric: &str| task["expected"][metric].as_f64().unwrap();
        match parse(name, &lines.join("\n")).unwrap().0 {
            Questions::Choices(questions) => {
                let values: Vec<Vec<f64>> =
                    serde_json::from_value(task["logLikelihoods"].clone()).unwrap();
                let metrics = ["acc", "acc_norm", "acc_bytes"];
                for ((length, _), metric) in Length::ALL.into_iter().zip(metrics) {
                    let rows = questions.iter().zip(&values);
                    let rows = rows.map(|(question, values)| accuracy(question, values, length));
                    let got = Scores::of_rows(rows.collect()).mean();
                    assert!(close(got, expected(metric)), "{name} {metric} {got}");
                }
            }
            Questions::Prompted(questions) => {
                let texts: Vec<String> = serde_json::from_value(task["generated"].clone()).unwrap();
                let rows = questions.iter().zip(&texts);
                let rows = rows.map(|(question, text)| question.exact_match(text));
                let got = Scores::of_rows(rows.collect()).mean();
                assert!(close(got, expected("exact_match")), "{name} {got}");
            }
        }
    }
}

/// A tiny random model, an adapter of it, and a folder for files.
struct World {
    dir: tempfile::TempDir,
    model: Llama,
    tokenizer: TextTokenizer,
    adapter: LoadedAdapter,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 5).unwrap();
        let base = BaseModel::load(dir.path()).unwrap();
        let model = Llama::new(&base);
        let lora = LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            targets: Targets::of(&[Module::QProj, Module::VProj]),
            use_rslora: false,
        };
        let adapter = random_adapter(model.config(), &lora, 3);
        Self {
            adapter: LoadedAdapter::new(&adapter, model.config()).unwrap(),
            tokenizer: TextTokenizer::load(dir.path()).unwrap(),
            model,
            dir,
        }
    }

    fn evaluation(&self, lines: &[Value]) -> Evaluation {
        let path = self.dir.path().join("critical.jsonl");
        let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        Evaluation {
            metrics: vec![MetricKind::Loss],
            maximum_new_tokens: 8,
            maximum_rows: None,
            benchmarks: vec![run::Benchmark {
                name: "critical".to_owned(),
                uri: "pvc://benchmarks/critical.jsonl".to_owned(),
                path: path.display().to_string(),
            }],
            precision: Precision::AsStored,
        }
    }

    fn read(&self, evaluation: &Evaluation) -> Result<Vec<Benchmark>, Failure> {
        read(evaluation, &self.tokenizer, self.model.config())
    }

    fn evaluator(&self) -> Evaluator<'_> {
        Evaluator {
            model: &self.model,
            tokenizer: &self.tokenizer,
            maximum_new_tokens: 8,
            on_rows: &|_| Ok(()),
        }
    }

    /// The metrics of these lines, for the adapter and the bare base.
    fn metrics(&self, lines: &[Value]) -> Vec<Metric> {
        let benchmarks = self.read(&self.evaluation(lines)).unwrap();
        let benchmark = benchmarks.first().unwrap();
        let evaluator = self.evaluator();
        let adapter = Some(&self.adapter);
        benchmark
            .evaluate((&evaluator, adapter), (&evaluator, None))
            .unwrap()
    }

    /// Of a continuation, by the model alone.
    fn log_likelihood(
        &self,
        context: &str,
        continuation: &str,
        adapter: Option<&LoadedAdapter>,
    ) -> f64 {
        let mut tokens = self.tokenizer.encode_prompt(context).unwrap();
        let given = tokens.len();
        tokens.extend(self.tokenizer.encode(continuation, false).unwrap());
        let mask: Vec<bool> = (0..tokens.len()).map(|index| index >= given).collect();
        let mut batch = PackedBatch::new();
        batch.push(&tokens, &mask);
        let scores = self.model.score(&batch, adapter).unwrap();
        scores.iter().map(|score| -f64::from(score.nll)).sum()
    }
}

fn close(got: f64, expected: f64) -> bool {
    (got - expected).abs() < 1e-12
}

#[test]
fn a_model_that_knows_nothing_prefers_what_is_short_and_per_character_what_is_long() {
    // Every byte is as probable as any other: about ln 260 nats for each, the space before it included.
    // Of "a" that is 11 nats, 11 per character; of ten letters 61, 6 per character.
    let world = World::new();
    let line = |answer: usize, group: &str| {
        json!({
            "context": "Which one?", "choices": ["a", "bbbbbbbbbb"], "answer": answer, "group": group,
        })
    };
    let metrics = world.metrics(&[line(0, "x"), line(1, "x"), line(0, "y")]);
    let names: Vec<&str> = metrics.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "benchmark/critical",
            "benchmark/critical/acc_norm",
            "benchmark/critical/acc_bytes"
        ]
    );
    for (metric, expected) in metrics.iter().zip([2.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0]) {
        assert!(close(metric.value, expected), "{metric:?}");
        assert!(close(metric.baseline, expected), "{metric:?}");
        assert_eq!((metric.samples, metric.groups), (3, Some(2)));
    }
}

#[test]
fn the_most_probable_choice_is_the_one_that_the_models_own_figures_say() {
    let world = World::new();
    let choices = ["red", "sky", "one", "two", "hat"];
    let contexts = ["Item 1", "Item 2", "The colour of the sea is", "x", "Why?"];
    let lines: Vec<Value> = contexts
        .iter()
        .enumerate()
        .map(|(answer, context)| json!({"context": context, "choices": choices, "answer": answer}))
        .collect();
    let metrics = world.metrics(&lines);
    let expected = |adapter: Option<&LoadedAdapter>| {
        let mut right = 0;
        for (answer, context) in contexts.iter().enumerate() {
            let values: Vec<f64> = choices
                .iter()
                .map(|it| world.log_likelihood(context, &format!(" {it}"), adapter))
                .collect();
            let best = (0..choices.len()).max_by(|a, b| values[*a].total_cmp(&values[*b]));
            right += usize::from(best == Some(answer));
        }
        right as f64 / 5.0
    };
    // All are of one length: the three figures are the same.
    for metric in &metrics {
        assert!(
            close(metric.value, expected(Some(&world.adapter))),
            "{metric:?}"
        );
        assert!(close(metric.baseline, expected(None)), "{metric:?}");
    }
}

#[test]
fn what_a_model_generates_is_compared_with_the_answers() {
    let world = World::new();
    let prompts = ["Item 1", "Item 2"].map(|text| world.tokenizer.encode_prompt(text).unwrap());
    let says = world
        .evaluator()
        .answers(&[&prompts[0], &prompts[1]], None, &|_, _| false)
        .unwrap();
    // A text that no answer holds: what is generated is all of the answer.
    let end = "no such end";
    let metrics = world.metrics(&[
        json!({"context": "Item 1", "answers": ["else", says[0]], "until": [end]}),
        json!({"context": "Item 2", "answers": ["else"], "until": [end]}),
    ]);
    let [metric] = metrics.as_slice() else {
        panic!("one metric: {metrics:?}")
    };
    assert_eq!(metric.name, "benchmark/critical");
    assert!(close(metric.baseline, 0.5), "{metric:?} {says:?}");
    assert_eq!((metric.samples, metric.groups), (2, None));
}

#[test]
fn a_file_that_cannot_be_asked_is_named_with_its_reason() {
    let world = World::new();
    let evaluation = world.evaluation(&[json!({"context": "x", "answers": ["y"]})]);
    assert_eq!(world.read(&evaluation).unwrap()[0].work(), 2);
    let mut gone = evaluation.clone();
    gone.benchmarks[0].path.push_str(".gone");
    let gone = world.read(&gone).unwrap_err();
    assert_eq!(gone.code, ExitCode::BadConfig);
    let said = "benchmark critical: cannot read pvc://benchmarks/critical.jsonl";
    assert!(gone.message.starts_with(said), "{gone}");

    let path = world.dir.path().join("critical.jsonl");
    for (content, said) in [
        (
            &br#"{"context": "x", "answers": []}"#[..],
            "benchmark critical line 1: answers is empty",
        ),
        (
            &[0xff, 0xfe],
            "benchmark critical: pvc://benchmarks/critical.jsonl is no UTF-8 text",
        ),
    ] {
        std::fs::write(&path, content).unwrap();
        let odd = world.read(&evaluation).unwrap_err();
        assert_eq!((odd.code, odd.message.as_str()), (ExitCode::BadData, said));
    }
}
