use proptest::prelude::*;

use super::*;

fn parser(format: ToolFormat, only_one: bool) -> ToolCallParser {
    let names = ["f".to_owned(), "get_weather".to_owned()];
    ToolCallParser::new(&ToolUse {
        format,
        names: names.to_vec(),
        only_one,
    })
}

/// A tool's name and its arguments.
type Call = (String, String);
/// Format, what the model writes, the text of it, its calls.
type Case = (ToolFormat, &'static str, &'static str, Vec<Call>);

/// Text and calls of an answer that comes in these pieces.
fn run(format: ToolFormat, pieces: &[&str]) -> (String, Vec<Call>) {
    let mut parser = parser(format, false);
    let mut text = String::new();
    let mut calls = Vec::new();
    for piece in pieces {
        let parsed = parser.push(piece);
        text.push_str(&parsed.text);
        let called = parsed.calls.into_iter();
        calls.extend(called.map(|called| (called.name, called.arguments)));
    }
    text.push_str(&parser.finish());
    (text, calls)
}

fn call(name: &str, arguments: &str) -> Call {
    (name.to_owned(), arguments.to_owned())
}

/// Format, what the model writes, the text of it, its calls.
fn cases() -> Vec<Case> {
    use ToolFormat::{Hermes, Llama3, Mistral};
    vec![
        (
            Hermes,
            "I look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"}</tool_call>\\\"é\"}}\n</tool_call>\n\
             <tool_call>\n{\"name\": \"get_weather\", \"arguments\": {}}\n</tool_call>\n",
            "I look.",
            vec![
                call("f", "{\"x\": \"}</tool_call>\\\"é\"}"),
                call("get_weather", "{}"),
            ],
        ),
        (
            Hermes,
            "<tool_call>{\"name\": \"f\"}</tool_call> and so on",
            " and so on",
            vec![call("f", "{}")],
        ),
        // The end of text takes the closing mark's place.
        (
            Hermes,
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"n\": 12345678901234567890123}}\n",
            "",
            vec![call("f", "{\"n\": 12345678901234567890123}")],
        ),
        (
            Mistral,
            "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": [1, {\"b\": \"[\"}]}}, {\"name\": \"get_weather\", \"arguments\": {}, \"id\": \"abcdefghi\"}]",
            "",
            vec![
                call("f", "{\"a\": [1, {\"b\": \"[\"}]}"),
                call("get_weather", "{}"),
            ],
        ),
        (
            Mistral,
            "Yes. [TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS] {\"b\": 2}",
            "Yes.",
            vec![call("f", "{\"a\": 1}"), call("get_weather", "{\"b\": 2}")],
        ),
        (
            Llama3,
            "{\"name\": \"f\", \"parameters\": {\"a\": \"1\"}}; {\"name\": \"f\", \"parameters\": {}}",
            "",
            vec![call("f", "{\"a\": \"1\"}"), call("f", "{}")],
        ),
        (
            Llama3,
            "<|python_tag|>{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}",
            "",
            vec![call("f", "{}")],
        ),
    ]
}

/// Format, and what the model writes: no call.
fn texts() -> Vec<(ToolFormat, &'static str)> {
    use ToolFormat::{Hermes, Llama3, Mistral};
    vec![
        (Hermes, "a < b, <tool, a <tool_call"),
        (Hermes, "a \n<tool_call>not JSON</tool_call>\n b"),
        (
            Hermes,
            "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
        ),
        (
            Hermes,
            "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
        ),
        (Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\""),
        (Hermes, "{\"name\": \"f\", \"arguments\": {}}"),
        (Mistral, "a [TOOL_CALLS] b"),
        (Mistral, "[TOOL_CALLS]unknown[ARGS]{}"),
        (Mistral, "[TOOL_CALLS]f[ARGS]12"),
        (Llama3, " {\"answer\": 42}\n"),
        (Llama3, "{\"name\": \"f\", \"param"),
        (Llama3, "<|python_tag|>print(1)"),
        (Llama3, "See {\"name\": \"f\", \"parameters\": {}}"),
    ]
}

#[test]
fn calls_are_found_in_each_format_and_the_text_around_them_is_kept() {
    for (format, written, text, calls) in cases() {
        assert_eq!(
            run(format, &[written]),
            (text.to_owned(), calls),
            "{written}"
        );
    }
}

#[test]
fn what_is_no_call_of_a_known_tool_stays_text_to_the_last_character() {
    for (format, written) in texts() {
        assert_eq!(run(format, &[written]), (written.to_owned(), vec![]));
    }
}

#[test]
fn a_second_call_may_follow_one_that_was_none() {
    let written = "<tool_call>no</tool_call><tool_call>{\"name\": \"f\"}</tool_call>";
    assert_eq!(
        run(ToolFormat::Hermes, &[written]),
        (
            "<tool_call>no</tool_call>".to_owned(),
            vec![call("f", "{}")]
        )
    );
}

#[test]
fn text_after_calls_is_not_lost() {
    let calls = "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}}]";
    assert_eq!(
        run(ToolFormat::Mistral, &[calls, " as I said"]),
        ("] as I said".to_owned(), vec![call("f", "{}")])
    );
}

#[test]
fn text_is_given_out_at_once_and_a_call_when_it_is_complete() {
    let mut parser = parser(ToolFormat::Hermes, false);
    assert_eq!(parser.push("Hello <b").text, "Hello <b");
    assert_eq!(parser.push(" <tool").text, "");
    assert_eq!(parser.push("s>").text, " <tools>");
    assert!(parser.push("<tool_call>{\"name\": \"f\"").calls.is_empty());
    assert_eq!(parser.push("}").calls.len(), 1);
}

#[test]
fn where_one_call_is_allowed_the_first_ends_the_answer() {
    let mut parser = parser(ToolFormat::Mistral, true);
    let parsed = parser.push(
        "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"f\", \"arguments\": {}}]",
    );
    assert!(parsed.done);
    assert_eq!(parsed.calls.len(), 1);
    assert_eq!(
        (parsed.text, parser.finish()),
        (String::new(), String::new())
    );
}

/// Pieces of `text`, cut after every `step` characters.
fn pieces(text: &str, step: usize) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    characters.chunks(step).map(String::from_iter).collect()
}

proptest! {
    #[test]
    fn pieces_do_not_change_what_is_found(step in 1_usize..12) {
        let texts = texts().into_iter().map(|(format, written)| (format, written, written, vec![]));
        for (format, written, text, calls) in cases().into_iter().chain(texts) {
            let pieces = pieces(written, step);
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(run(format, &pieces), (text.to_owned(), calls), "{}", written);
        }
    }

    #[test]
    fn any_text_comes_to_an_end(
        format in prop::sample::select(vec![ToolFormat::Hermes, ToolFormat::Mistral, ToolFormat::Llama3]),
        parts in prop::collection::vec(prop::sample::select(vec![
            "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>",
            "{\"name\": \"f\"}", "{", "}", "[", "]", "\"", "\\", ",", ";", " ", "\n", "f", "é",
        ]), 0..20),
    ) {
        let whole = parts.concat();
        let (text, calls) = run(format, &parts);
        prop_assert!(text.len() <= whole.len());
        prop_assert_eq!(run(format, &[&whole]), (text, calls));
    }
}
