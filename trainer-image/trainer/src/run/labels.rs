//! The classification report: precision, recall and F1 of each label, as scikit-learn's
//! `classification_report` with `zero_division=0` has them. An answer that is no label is wrong, and
//! counts against no other label.

use std::collections::BTreeSet;

use graftwork_contract::run::{
    LABEL_PREFIX, MAXIMUM_LABEL_CHARACTERS, MAXIMUM_LABELS, Metric, MetricKind,
};

use super::statistics::{Scores, metric};
use super::tokens::{Question, first_line};
use crate::failure::Failure;

/// The labels of these questions, in their order by bytes.
///
/// # Errors
/// [`Failure`] with `BadData` where there are too many of them, one is empty, or one is too long to be a
/// name.
pub fn labels(questions: &[Question]) -> Result<Vec<&str>, Failure> {
    let labels: BTreeSet<&str> = questions.iter().map(|it| it.answer.as_str()).collect();
    if labels.len() > MAXIMUM_LABELS {
        return Err(Failure::bad_data(format!(
            "spec.evaluation.metrics names ClassificationReport, and completions of the test split begin \
             with {} different lines, at most {MAXIMUM_LABELS} can be labels; leave that metric out in a new run",
            labels.len()
        )));
    }
    let is_name =
        |label: &str| !label.is_empty() && label.chars().count() <= MAXIMUM_LABEL_CHARACTERS;
    let odd = questions.iter().find(|it| !is_name(&it.answer));
    if let Some(odd) = odd {
        return Err(Failure::bad_data(format!(
            "row {} of the test split: its completion's first line is no label, which has 1 to \
             {MAXIMUM_LABEL_CHARACTERS} characters",
            odd.row + 1
        )));
    }
    Ok(labels.into_iter().collect())
}

/// What a label is measured by.
#[derive(Debug, Clone, Copy)]
enum Measure {
    Precision,
    Recall,
    F1,
}

impl Measure {
    const ALL: [Self; 3] = [Self::Precision, Self::Recall, Self::F1];

    const fn name(self) -> &'static str {
        match self {
            Self::Precision => "precision",
            Self::Recall => "recall",
            Self::F1 => "f1",
        }
    }

    /// Of one label, over rows of `(truth, prediction)`.
    fn of(self, label: &str, rows: &[(&str, &str)]) -> Scores {
        let number = |holds: bool| f64::from(u8::from(holds));
        let rows = rows.iter().map(|(truth, predicted)| {
            let (truth, predicted) = (number(*truth == label), number(*predicted == label));
            let hit = truth * predicted;
            match self {
                Self::Precision => (hit, predicted),
                Self::Recall => (hit, truth),
                Self::F1 => (2.0 * hit, truth + predicted),
            }
        });
        let (sums, weights) = rows.unzip();
        Scores { sums, weights }
    }
}

/// The report of the new adapter's answers beside the reference's: `macro_f1`, then each label's.
pub fn report(
    questions: &[Question],
    new: &[String],
    old: &[String],
    groups: &[usize],
) -> Vec<Metric> {
    let (new, old) = (rows(questions, new), rows(questions, old));
    let labels: BTreeSet<&str> = questions.iter().map(|it| it.answer.as_str()).collect();
    let f1 = |rows: &[(&str, &str)]| -> Vec<Scores> {
        labels.iter().map(|it| Measure::F1.of(it, rows)).collect()
    };
    let summary = MetricKind::ClassificationReport.name();
    let mut metrics = vec![metric(summary, &f1(&new), &f1(&old), groups)];
    for label in &labels {
        for measure in Measure::ALL {
            let name = format!("{LABEL_PREFIX}{label}/{}", measure.name());
            let (new, old) = (measure.of(label, &new), measure.of(label, &old));
            metrics.push(metric(&name, &[new], &[old], groups));
        }
    }
    metrics
}

/// Truth and prediction of each row.
fn rows<'a>(questions: &'a [Question], answers: &'a [String]) -> Vec<(&'a str, &'a str)> {
    let rows = questions.iter().zip(answers);
    rows.map(|(question, answer)| (question.answer.as_str(), first_line(answer)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(row: usize, answer: &str) -> Question {
        Question {
            prompt: vec![1],
            answer: answer.to_owned(),
            completion: answer.to_owned(),
            row,
            was_cut: false,
        }
    }

    fn questions(answers: &[&str]) -> Vec<Question> {
        let rows = answers.iter().enumerate();
        rows.map(|(row, answer)| question(row, answer)).collect()
    }

    #[test]
    fn each_label_has_the_figures_that_scikit_learn_gives() {
        let questions = questions(&["ham", "ham", "ham", "spam", "spam", "eggs"]);
        let new = ["ham", "ham\nor so", "spam", "spam", " spam", "what?"].map(str::to_owned);
        let old = ["ham"; 6].map(str::to_owned);
        let metrics = report(&questions, &new, &old, &[]);
        let names: Vec<&str> = metrics.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "macro_f1",
                "label/eggs/precision",
                "label/eggs/recall",
                "label/eggs/f1",
                "label/ham/precision",
                "label/ham/recall",
                "label/ham/f1",
                "label/spam/precision",
                "label/spam/recall",
                "label/spam/f1",
            ]
        );
        // classification_report(truth, predicted, labels=["eggs", "ham", "spam"], zero_division=0)
        let (ham, spam) = (0.8, 0.8);
        let expected = [
            ((ham + spam) / 3.0, (2.0 / 3.0) / 3.0),
            (0.0, 0.0),
            (0.0, 0.0),
            (0.0, 0.0),
            (1.0, 0.5),
            (2.0 / 3.0, 1.0),
            (ham, 2.0 / 3.0),
            (2.0 / 3.0, 0.0),
            (1.0, 0.0),
            (spam, 0.0),
        ];
        for (metric, (value, baseline)) in metrics.iter().zip(expected) {
            assert!((metric.value - value).abs() < 1e-12, "{metric:?}");
            assert!((metric.baseline - baseline).abs() < 1e-12, "{metric:?}");
            assert_eq!(metric.samples, 6);
        }
    }

    #[test]
    fn labels_are_the_different_answers_in_order() {
        let questions = questions(&["no", "yes", "no"]);
        assert_eq!(labels(&questions), Ok(vec!["no", "yes"]));
    }

    #[test]
    fn too_many_labels_and_what_is_no_label_are_refused_without_data() {
        let many: Vec<String> = (0..=MAXIMUM_LABELS)
            .map(|it| format!("secret{it}"))
            .collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let long = "secret".repeat(11);
        for (answers, said) in [
            (many, "11 different lines, at most 10"),
            (vec!["secret", ""], "row 2 of the test split"),
            (vec!["secret", &long], "row 2 of the test split"),
        ] {
            let failure = labels(&questions(&answers)).unwrap_err();
            assert!(failure.message.contains(said), "{failure}");
            assert!(!failure.message.contains("secret"), "{failure}");
        }
    }
}
