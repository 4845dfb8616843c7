//! A benchmark's file: JSON Lines, all of one kind. docs/training.md has their shape.

use std::collections::HashMap;

use serde::Deserialize;

use super::answers::Prompted;
use super::choices::Choice;
use crate::failure::Failure;

/// Lines of a file at most.
const MOST_LINES: usize = 100_000;
/// Choices of a question at most.
const MOST_CHOICES: usize = 64;

/// What a file asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Questions {
    /// Which of several continuations is the most probable one.
    Choices(Vec<Choice>),
    /// What comes next.
    Prompted(Vec<Prompted>),
}

/// A line as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    context: String,
    choices: Option<Vec<String>>,
    answer: Option<usize>,
    delimiter: Option<String>,
    answers: Option<Vec<String>>,
    until: Option<Vec<String>>,
    ignore_case: Option<bool>,
    ignore_punctuation: Option<bool>,
    group: Option<String>,
}

/// One line's question.
enum Question {
    Choice(Choice),
    Prompted(Prompted),
}

/// The questions of a file, and the number of each one's group; no numbers where no line has a group.
///
/// # Errors
/// [`Failure`] with `BadData`, naming line and rule, without the line's data.
pub fn parse(named: &str, text: &str) -> Result<(Questions, Vec<usize>), Failure> {
    let (mut choices, mut prompted, mut groups) = (Vec::new(), Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let refuse = |rule: &str| Failure::bad_data(format!("{named} line {number}: {rule}"));
        if line.trim().is_empty() {
            continue;
        }
        if groups.len() == MOST_LINES {
            return Err(refuse(&format!("a file has at most {MOST_LINES} lines")));
        }
        // The parser's own words may quote the line.
        let line: Line = serde_json::from_str(line).map_err(|error| {
            refuse(&format!(
                "no object of a benchmark's shape, at column {}",
                error.column()
            ))
        })?;
        groups.push(line.group.clone());
        match question(line).map_err(|rule| refuse(&rule))? {
            Question::Choice(question) => choices.push(question),
            Question::Prompted(question) => prompted.push(question),
        }
        if !choices.is_empty() && !prompted.is_empty() {
            return Err(refuse(
                "another kind of question than before: a file has choices in all lines, or answers",
            ));
        }
    }
    if groups.is_empty() {
        return Err(Failure::bad_data(format!("{named} has no lines")));
    }
    let questions = if choices.is_empty() {
        Questions::Prompted(prompted)
    } else {
        Questions::Choices(choices)
    };
    Ok((questions, numbered(groups)))
}

/// The question of a line.
///
/// # Errors
/// The rule that it breaks.
fn question(line: Line) -> Result<Question, String> {
    if line.context.trim().is_empty() {
        return Err("context is empty".to_owned());
    }
    match (line.choices, line.answers) {
        (Some(choices), None) => {
            let of_answers = line.until.is_some()
                || line.ignore_case.is_some()
                || line.ignore_punctuation.is_some();
            if of_answers {
                return Err("until, ignoreCase and ignorePunctuation belong to answers".to_owned());
            }
            let count = choices.len();
            if !(2..=MOST_CHOICES).contains(&count) {
                return Err(format!("{count} choices, must be 2 to {MOST_CHOICES}"));
            }
            if choices.iter().any(String::is_empty) {
                return Err("a choice is empty".to_owned());
            }
            let answer = line.answer.ok_or("answer is missing")?;
            if answer >= count {
                return Err(format!(
                    "answer is {answer}, must be below the number of choices {count}"
                ));
            }
            Ok(Question::Choice(Choice {
                context: line.context,
                choices,
                answer,
                delimiter: line.delimiter.unwrap_or_else(|| " ".to_owned()),
            }))
        }
        (None, Some(answers)) => {
            if line.answer.is_some() || line.delimiter.is_some() {
                return Err("answer and delimiter belong to choices".to_owned());
            }
            if answers.is_empty() {
                return Err("answers is empty".to_owned());
            }
            let until = line.until.unwrap_or_else(|| vec!["\n".to_owned()]);
            if until.iter().any(String::is_empty) {
                return Err("a text of until is empty".to_owned());
            }
            Ok(Question::Prompted(Prompted {
                context: line.context,
                answers,
                until,
                ignore_case: line.ignore_case.unwrap_or_default(),
                ignore_punctuation: line.ignore_punctuation.unwrap_or_default(),
            }))
        }
        _ => Err("choices or answers are needed, and not both".to_owned()),
    }
}

/// Groups by number; a line without one is its own.
fn numbered(groups: Vec<Option<String>>) -> Vec<usize> {
    if groups.iter().all(Option::is_none) {
        return Vec::new();
    }
    let mut known = HashMap::new();
    let mut next = 0;
    let mut fresh = || {
        next += 1;
        next - 1
    };
    let numbers = groups.into_iter().map(|group| match group {
        None => fresh(),
        Some(name) => *known.entry(name).or_insert_with(&mut fresh),
    });
    numbers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_and_answers_are_read() {
        let (choices, groups) = parse(
            "benchmark arc",
            "{\"context\": \"Sky?\", \"choices\": [\"red\", \"blue\"], \"answer\": 1}\n\n\
             {\"context\": \"Sea?\", \"choices\": [\"blue\", \"red\"], \"answer\": 0, \"delimiter\": \"\"}\n",
        )
        .unwrap();
        let Questions::Choices(choices) = choices else {
            panic!("choices")
        };
        assert_eq!(choices.len(), 2, "an empty line is none");
        assert_eq!((choices[0].answer, choices[0].delimiter.as_str()), (1, " "));
        assert_eq!((choices[1].answer, choices[1].delimiter.as_str()), (0, ""));
        assert_eq!(groups, [0; 0]);

        let (prompted, _) = parse(
            "benchmark trivia",
            r#"{"context": "Sky?", "answers": ["blue", "azure"], "ignoreCase": true}"#,
        )
        .unwrap();
        let expected = Prompted {
            context: "Sky?".to_owned(),
            answers: vec!["blue".to_owned(), "azure".to_owned()],
            until: vec!["\n".to_owned()],
            ignore_case: true,
            ignore_punctuation: false,
        };
        assert_eq!(prompted, Questions::Prompted(vec![expected]));
    }

    #[test]
    fn lines_of_one_group_have_one_number_and_others_their_own() {
        let line = |group: &str| format!(r#"{{"context": "x", "answers": ["y"]{group}}}"#);
        let text = [
            line(r#", "group": "a""#),
            line(""),
            line(r#", "group": "b""#),
            line(r#", "group": "a""#),
            line(""),
        ];
        let (_, groups) = parse("benchmark x", &text.join("\n")).unwrap();
        assert_eq!(groups, [0, 1, 2, 0, 3]);
    }

    #[test]
    fn what_cannot_be_asked_is_named_by_line_and_rule_without_data() {
        for (line, rule) in [
            ("secret", "no object of a benchmark's shape, at column 1"),
            (r#"{"context": 7, "answers": ["secret"]}"#, "shape"),
            (r#"{"context": "x", "secret": 1}"#, "shape"),
            (
                r#"{"context": " ", "answers": ["secret"]}"#,
                "context is empty",
            ),
            (r#"{"context": "secret"}"#, "choices or answers are needed"),
            (
                r#"{"context": "x", "choices": ["a", "b"], "answers": ["a"]}"#,
                "not both",
            ),
            (r#"{"context": "x", "answers": []}"#, "answers is empty"),
            (
                r#"{"context": "x", "answers": ["a"], "answer": 0}"#,
                "belong to choices",
            ),
            (
                r#"{"context": "x", "answers": ["a"], "until": [""]}"#,
                "until is empty",
            ),
            (
                r#"{"context": "x", "choices": ["a"], "answer": 0}"#,
                "1 choices, must be 2 to 64",
            ),
            (
                r#"{"context": "x", "choices": ["a", "b"], "answer": 2}"#,
                "answer is 2, must be below the number of choices 2",
            ),
            (
                r#"{"context": "x", "choices": ["a", "b"]}"#,
                "answer is missing",
            ),
            (
                r#"{"context": "x", "choices": ["a", ""], "answer": 0}"#,
                "a choice is empty",
            ),
            (
                r#"{"context": "x", "choices": ["a", "b"], "answer": 0, "until": ["x"]}"#,
                "belong to answers",
            ),
            (
                r#"{"context": "x", "choices": ["a", "b"], "answer": 0}"#,
                "another kind of question",
            ),
        ] {
            let text = format!("{}\n{line}\n", r#"{"context": "x", "answers": ["y"]}"#);
            let failure = parse("benchmark x", &text).unwrap_err();
            let message = failure.message;
            assert!(message.starts_with("benchmark x line 2: "), "{message}");
            assert!(message.contains(rule), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
        let nothing = parse("benchmark x", "\n\n").unwrap_err();
        assert_eq!(nothing.message, "benchmark x has no lines");
    }
}
