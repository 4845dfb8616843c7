//! Runs on rows that are no prompt with its completion: conversations, and texts.

use graftwork_artifacts::rows::Message;
use graftwork_contract::run::Metric;

use super::evaluation::samples;
use super::*;

fn message(role: &str, content: &str) -> Message {
    Message {
        role: role.to_owned(),
        content: content.to_owned(),
    }
}

/// A conversation in which one answer follows on each question.
fn conversation(questions: &[(String, usize)]) -> Row {
    let exchange = |(prompt, index): &(String, usize)| {
        [
            message("user", prompt),
            message("assistant", ANSWERS[index % 3]),
        ]
    };
    Row::Chat {
        messages: questions.iter().flat_map(exchange).collect(),
    }
}

/// A run of so many steps on rows of that format.
fn on(world: &World, format: Format, splits: [Vec<Row>; 3], steps: u64) -> Value {
    let name = format!("{format:?}").to_lowercase();
    let store = Store::open(world.store()).unwrap();
    let digest = write_rows(&store, &name, format, splits);
    let mut config = world.config_of_steps(&name, steps);
    config["resolved"]["dataset"] = json!({
        "name": name, "version": 1, "digest": digest, "format": format,
    });
    config
}

fn metric<'a>(result: &'a RunResult, name: &str) -> &'a Metric {
    result.metrics.iter().find(|it| it.name == name).unwrap()
}

/// A run of so many steps on conversations of two answers each.
pub fn conversations(world: &World, steps: u64) -> Value {
    let train = (0..48)
        .map(|index| conversation(&[(prompt(index), index), (prompt(index + 1), index + 1)]))
        .collect();
    let test = (0..24)
        .map(|index| conversation(&[(test_prompt(index), index)]))
        .collect();
    on(world, Format::Chat, [train, vec![], test], steps)
}

#[test]
fn a_run_on_conversations_learns_what_the_assistant_says_and_is_asked_for_its_last_answer() {
    let world = World::new();
    let config = conversations(&world, 300);
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let result = world.result(&config);
    let (loss, exact) = (metric(&result, "loss"), metric(&result, "exact_match"));
    assert!(loss.value < 0.5 * loss.baseline, "{loss:?}");
    assert_eq!((loss.samples, exact.samples), (24, 24));
    assert!(exact.value > exact.baseline, "{exact:?} {loss:?}");
    let samples = samples(&world, &config);
    assert_eq!(samples.len(), 24);
    // Without the template's marks.
    assert_eq!(samples[1]["prompt"], test_prompt(1));
    assert_eq!(samples[1]["expected"], ANSWERS[1]);
}

#[test]
fn a_run_on_texts_learns_all_of_them_and_can_not_be_asked_for_answers() {
    let world = World::new();
    let text = |prompt: fn(usize) -> String| {
        let row = move |index: usize| Row::Text {
            text: format!("{} {}", prompt(index), ANSWERS[index % 3]),
        };
        (0..24).map(row).collect::<Vec<Row>>()
    };
    let splits = [text(prompt), vec![], text(test_prompt)];
    let mut config = on(&world, Format::Text, splits, 200);
    let (code, reason, message) = world.failure(&config);
    assert_eq!((code, reason.as_str()), (64, "InvalidSpec"), "{message}");
    assert!(message.contains("spec.evaluation.metrics"), "{message}");

    config["evaluation"]["metrics"] = json!(["Loss"]);
    assert_eq!(world.run(&config), 0, "{:?}", world.summary(&config));
    let result = world.result(&config);
    assert_eq!(result.metrics.len(), 1);
    let loss = metric(&result, "loss");
    assert!(loss.value < 0.5 * loss.baseline, "{loss:?}");
    assert_eq!(loss.samples, 24);
    let samples = samples(&world, &config);
    assert_eq!(samples.len(), 24);
    let text = format!("{} {}", test_prompt(1), ANSWERS[1]);
    let [prompt, expected] = ["prompt", "expected"].map(|it| samples[1][it].as_str().unwrap());
    assert!(text.starts_with(prompt) && text.ends_with(expected) && !prompt.is_empty());
}
