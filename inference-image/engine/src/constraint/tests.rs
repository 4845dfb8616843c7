use std::collections::BTreeSet;

use graftwork_model::fixture::{TinyShape, write_tiny_base};
use graftwork_model::sampler::{SampleKey, SamplingParams, sample};
use graftwork_model::tool_calls::CallFrame;

use super::*;

/// A byte-level tokenizer of 256 bytes and four special tokens, of which the second ends a text.
fn grammars() -> (TextTokenizer, Grammars) {
    let dir = tempfile::tempdir().unwrap();
    let config = write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
    let tokenizer = TextTokenizer::load(dir.path()).unwrap();
    let grammars = Grammars::new(&tokenizer, config.vocab_size, &config.eos_token_ids).unwrap();
    (tokenizer, grammars)
}

fn logits(tokenizer: &TextTokenizer) -> Vec<f32> {
    vec![0.0; tokenizer.vocab_size()]
}

/// An answer that is drawn evenly from what may come next.
fn drawn(tokenizer: &TextTokenizer, mut constraint: Constraint, seed: u64, limit: u32) -> String {
    let mut tokens = vec![];
    for position in 0..limit {
        let mut logits = logits(tokenizer);
        constraint.mask(&mut logits).unwrap();
        let key = SampleKey {
            seed,
            choice: 0,
            position,
        };
        let token = sample(&logits, &SamplingParams::default(), key).unwrap();
        if Some(token) == tokenizer.eos() {
            break;
        }
        constraint.commit(token).unwrap();
        tokens.push(token);
        if constraint.is_complete() {
            break;
        }
    }
    tokenizer.decode(&tokens, false).unwrap()
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 0, "maximum": 99},
            "w": {"enum": ["x", "\u{e4}y"]},
        },
        "required": ["n", "w"], "additionalProperties": false,
    })
}

#[test]
fn whatever_is_drawn_is_json_of_the_schema() {
    let (tokenizer, grammars) = grammars();
    let constraint = grammars.constraint(&schema()).unwrap();
    for seed in 0..20 {
        let text = drawn(&tokenizer, constraint.copy(), seed, 1000);
        let json: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(json["n"].as_u64().is_some_and(|n| n < 100), "{text}");
        assert!(
            ["x", "\u{e4}y"].contains(&json["w"].as_str().unwrap()),
            "{text}"
        );
        assert_eq!(json.as_object().unwrap().len(), 2, "{text}");
    }
}

#[test]
fn the_same_seed_gives_the_same_answer_and_copies_share_nothing() {
    let (tokenizer, grammars) = grammars();
    let constraint = grammars.constraint(&schema()).unwrap();
    let first = drawn(&tokenizer, constraint.copy(), 7, 1000);
    let _ = drawn(&tokenizer, constraint.copy(), 8, 5);
    assert_eq!(drawn(&tokenizer, constraint.copy(), 7, 1000), first);
    let anew = grammars.constraint(&schema()).unwrap();
    assert_eq!(drawn(&tokenizer, anew, 7, 1000), first);
}

#[test]
fn an_end_of_text_may_come_only_where_the_json_is_whole() {
    let (tokenizer, grammars) = grammars();
    let mut constraint = grammars.constraint(&json!({"type": "object"})).unwrap();
    let end = tokenizer.eos().unwrap() as usize;
    let text = tokenizer.encode("{\"a\": 1}", false).unwrap();
    for token in text {
        let mut logits = logits(&tokenizer);
        constraint.mask(&mut logits).unwrap();
        assert!(logits[end] == f32::NEG_INFINITY);
        assert!(logits[token as usize].is_finite());
        // No special token is ever text.
        assert!(
            logits[256..]
                .iter()
                .all(|logit| *logit == f32::NEG_INFINITY)
        );
        constraint.commit(token).unwrap();
    }
    if !constraint.is_complete() {
        let mut logits = logits(&tokenizer);
        constraint.mask(&mut logits).unwrap();
        assert!(logits[end].is_finite());
    }
}

#[test]
fn a_schema_that_nothing_meets_is_refused() {
    let (_, grammars) = grammars();
    let schema = json!({
        "type": "object", "properties": {"a": {"type": "string", "minLength": 3, "maxLength": 2}},
        "required": ["a"],
    });
    assert_eq!(check(&schema), Ok(()));
    let error = grammars.constraint(&schema).unwrap_err();
    assert!(matches!(error, ConstraintError::Schema(_)), "{error}");
    assert!(error.to_string().len() <= MAXIMUM_MESSAGE, "{error}");
}

/// A tool that is called as `<name>{...}!`.
fn tool(tokenizer: &TextTokenizer, name: &str, arguments: Value) -> CallForm {
    let tokens = |text: &str| tokenizer.encode(text, false).unwrap();
    CallForm {
        frame: CallFrame {
            before: tokens(&format!("<{name}>")),
            behind: tokens("!"),
        },
        arguments,
    }
}

#[test]
fn a_call_is_drawn_among_the_tools_and_ends_with_what_makes_it_whole() {
    let (tokenizer, grammars) = grammars();
    let nothing = json!({"type": "object", "additionalProperties": false});
    let tools = vec![
        tool(&tokenizer, "ab", schema()),
        tool(&tokenizer, "ac", nothing),
    ];
    let constraint = grammars.call(tools).unwrap();
    let mut called = BTreeSet::new();
    for seed in 0..20 {
        let text = drawn(&tokenizer, constraint.copy(), seed, 1000);
        let call = text.strip_prefix('<').and_then(|it| it.strip_suffix('!'));
        let (name, json) = call.and_then(|it| it.split_once('>')).unwrap();
        let json: Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {text}"));
        match name {
            "ab" => assert!(json["n"].as_u64().is_some_and(|n| n < 100), "{text}"),
            "ac" => assert_eq!(json, json!({})),
            _ => panic!("{text}"),
        }
        called.insert(name.to_owned());
        assert_eq!(drawn(&tokenizer, constraint.copy(), seed, 1000), text);
    }
    assert_eq!(called.len(), 2);
}

/// What may come next behind a text; none: anything.
fn after(tokenizer: &TextTokenizer, steered: &Constraint, text: &str) -> Option<String> {
    let mut constraint = steered.copy();
    for token in tokenizer.encode(text, false).unwrap() {
        constraint.commit(token).unwrap();
        assert!(!constraint.is_complete());
    }
    let mut logits = logits(tokenizer);
    constraint.mask(&mut logits).unwrap();
    let allowed: Vec<u32> = (0_u32..)
        .zip(&logits)
        .filter(|(_, logit)| logit.is_finite())
        .map(|(id, _)| id)
        .collect();
    (allowed.len() < logits.len()).then(|| tokenizer.decode(&allowed, false).unwrap())
}

/// A tokenizer of a model that calls tools as this template says, with the constraint to calls of `ab` and `ac`.
fn steered(template: &str) -> (TextTokenizer, Constraint) {
    let dir = tempfile::tempdir().unwrap();
    let config = write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
    let file = dir.path().join("chat_template.jinja");
    std::fs::write(file, format!("{{{{ tools }}}} {template}")).unwrap();
    let tokenizer = TextTokenizer::load(dir.path()).unwrap();
    let names = ["ab".to_owned(), "ac".to_owned()];
    let openings = tokenizer.call_openings(&names).unwrap();
    let constraint = Constraint::steered(openings, config.vocab_size);
    (tokenizer, constraint)
}

#[test]
fn a_call_that_the_model_opens_goes_on_as_one_of_the_tools_in_every_format() {
    for (template, mark, before, behind) in [
        (
            "arguments <tool_call>",
            "<tool_call>",
            "\n{\"name\": \"",
            "\", \"arguments\":",
        ),
        (
            "[TOOL_CALLS]",
            "[TOOL_CALLS]",
            "[{\"name\": \"",
            "\", \"arguments\":",
        ),
        ("[TOOL_CALLS] [ARGS]", "[TOOL_CALLS]", "", "[ARGS]"),
        (
            "<|start_header_id|> ipython",
            "<|python_tag|>",
            "{\"name\": \"",
            "\", \"parameters\":",
        ),
    ] {
        let (tokenizer, constraint) = steered(template);
        let after = |text: &str| after(&tokenizer, &constraint, text);
        for text in ["", "a", "So: ", "{\"a\": \"", &mark[..mark.len() - 1]] {
            assert_eq!(after(text), None, "{template}: {text:?}");
        }
        // A second call too.
        for text in ["", "So: ", &format!("{mark}{before}ab{behind} {{}}, ")] {
            let opened = format!("{text}{mark}");
            let next = format!("{before}a").chars().next().map(String::from);
            assert_eq!(after(&opened), next, "{template}: {opened:?}");
            let named = format!("{opened}{before}a");
            assert_eq!(after(&named).as_deref(), Some("bc"), "{named:?}");
            let called = format!("{named}c{behind}");
            assert_eq!(after(&called), None, "{called:?}");
            assert_eq!(after(&format!("{called} {{\"name\": \"")), None);
        }
    }
}

#[test]
fn an_answer_that_begins_as_a_call_of_llama_does_is_one_and_other_json_is_not() {
    let (tokenizer, constraint) = steered("<|start_header_id|> ipython");
    let after = |text: &str| after(&tokenizer, &constraint, text);
    assert_eq!(after("{\"name\": \"").as_deref(), Some("a"));
    assert_eq!(after("{\"name\": \"a").as_deref(), Some("bc"));
    assert_eq!(after("{\"name\": \"ab\", \"parameters\":"), None);
    for text in [
        "{\"name\": ",
        "{\"names\": \"",
        "So: {\"name\": \"",
        " {\"name\": \"",
    ] {
        assert_eq!(after(text), None, "{text:?}");
    }
}

#[test]
fn openings_of_tokens_that_the_model_lacks_steer_nothing() {
    let (tokenizer, _) = steered("[TOOL_CALLS]");
    let openings = tokenizer.call_openings(&["ab".to_owned()]).unwrap();
    let constraint = Constraint::steered(openings, 3);
    assert_eq!(after(&tokenizer, &constraint, "[TOOL_CALLS]"), None);
}

#[test]
fn a_tool_that_can_not_be_forced_is_told_by_its_place() {
    let (tokenizer, grammars) = grammars();
    let unmet = json!({
        "type": "object", "properties": {"a": {"type": "string", "minLength": 3, "maxLength": 2}},
        "required": ["a"],
    });
    let tools = vec![
        tool(&tokenizer, "ab", schema()),
        tool(&tokenizer, "ac", unmet),
    ];
    let (place, error) = grammars.call(tools).unwrap_err();
    assert!(
        place == 1 && matches!(error, ConstraintError::Schema(_)),
        "{error}"
    );
    let mut unknown = tool(&tokenizer, "ab", schema());
    unknown.frame.behind = vec![1_000_000];
    let (place, error) = grammars.call(vec![unknown]).unwrap_err();
    assert!(
        place == 0 && matches!(error, ConstraintError::Unsupported(_)),
        "{error}"
    );
}

#[test]
fn a_regular_expression_that_becomes_no_grammar_is_told_with_its_place() {
    let (_, grammars) = grammars();
    let schema =
        json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "(x"}}});
    assert_eq!(check(&schema), Ok(()));
    assert_eq!(
        grammars.constraint(&schema).unwrap_err().to_string(),
        "/properties/a/pattern is no regular expression that this engine has: unclosed group"
    );
}

#[test]
fn a_grammar_above_its_limit_is_refused() {
    let (_, mut grammars) = grammars();
    grammars.factory.limits_mut().max_grammar_size = 10;
    let error = grammars.constraint(&schema()).unwrap_err();
    assert!(matches!(error, ConstraintError::Schema(_)), "{error}");
    assert!(error.to_string().contains("too big"), "{error}");
}

#[test]
fn a_model_without_an_end_has_no_constraints() {
    let (tokenizer, _) = grammars();
    let error = Grammars::new(&tokenizer, 260, &[]).unwrap_err();
    assert!(matches!(error, ConstraintError::Unsupported(_)), "{error}");
}

#[test]
fn messages_of_the_library_are_short_and_about_the_schema() {
    assert_eq!(
        shown("a\n  while processing b\n<non-verbose/>"),
        "a while processing b"
    );
    assert_eq!(
        shown("panic: x\n<backtrace>"),
        "it can't be made into a grammar"
    );
    assert_eq!(shown(&"x".repeat(1000)).len(), MAXIMUM_MESSAGE);
}
