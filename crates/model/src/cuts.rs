//! The regular expressions that a tokenizer cuts texts by, run for their errors alone.
//!
//! Their engine may give up: a run of a million blanks takes more memory for going back than it has. The
//! tokenizers crate takes that for the end of what is found, so that the rest of the text stays in one
//! piece and becomes other tokens than in training, or in another program. Nothing in its answer tells.

use fancy_regex::Regex;
use serde::Deserialize;
use serde_json::Value;

/// What a byte-level pre-tokenizer cuts by itself: GPT-2's expression.
pub(crate) const BYTE_LEVEL: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The parts of a `tokenizer.json` that may have expressions.
#[derive(Debug, Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
}

/// The expressions of one tokenizer.
#[derive(Debug)]
pub(crate) struct Cuts(Vec<Regex>);

impl Cuts {
    /// Those of the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// What is wrong with the file or an expression.
    pub fn parse(file: &str) -> Result<Self, String> {
        let parts: Parts = serde_json::from_str(file).map_err(|error| error.to_string())?;
        let mut patterns = Vec::new();
        collect(&parts.normalizer, &mut patterns);
        collect(&parts.pre_tokenizer, &mut patterns);
        let mut expressions = Vec::new();
        for pattern in patterns {
            expressions.push(Regex::new(pattern).map_err(|error| error.to_string())?);
        }
        Ok(Self(expressions))
    }

    /// Whether every expression comes to the end of `text`. It runs over the text as it is: that a
    /// normalizer or an earlier cut may have changed it makes no run of letters or blanks much longer.
    ///
    /// # Errors
    /// Why one gives up.
    pub fn check(&self, text: &str) -> Result<(), String> {
        for expression in &self.0 {
            for found in expression.find_iter(text) {
                found.map_err(|error| format!("a regular expression gives up: {error}"))?;
            }
        }
        Ok(())
    }
}

/// Adds the expressions of a normalizer or a pre-tokenizer, in sequences of them too.
fn collect<'a>(part: &'a Value, patterns: &mut Vec<&'a str>) {
    match part {
        Value::Array(parts) => {
            for part in parts {
                collect(part, patterns);
            }
        }
        Value::Object(keys) => {
            patterns.extend(keys.get("Regex").and_then(Value::as_str));
            let is_byte_level = keys.get("type").is_some_and(|kind| kind == "ByteLevel");
            if is_byte_level && keys.get("use_regex").is_none_or(|used| used != false) {
                patterns.push(BYTE_LEVEL);
            }
            for part in keys.values() {
                collect(part, patterns);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cuts(pre_tokenizer: Value) -> Cuts {
        Cuts::parse(&json!({ "model": {}, "pre_tokenizer": pre_tokenizer }).to_string()).unwrap()
    }

    #[test]
    fn the_expressions_of_a_sequence_are_found_and_byte_levels_own_where_it_is_used() {
        let split = json!({"type": "Split", "pattern": {"Regex": r"\p{L}+"}});
        let byte_level = |used: bool| json!({"type": "ByteLevel", "use_regex": used});
        let both = json!({"type": "Sequence", "pretokenizers": [split, byte_level(true)]});
        assert_eq!(cuts(both).0.len(), 2);
        assert_eq!(cuts(byte_level(false)).0.len(), 0);
        assert_eq!(cuts(json!({"type": "ByteLevel"})).0.len(), 1);
        assert_eq!(cuts(Value::Null).0.len(), 0);
        let text = json!({"type": "Split", "pattern": {"String": "("}});
        assert_eq!(cuts(text).0.len(), 0);
    }

    #[test]
    fn an_expression_that_gives_up_is_told() {
        let cuts = cuts(json!({"type": "ByteLevel"}));
        cuts.check(&"x ".repeat(100_000)).unwrap();
        let blanks = |count: usize| cuts.check(&(" ".repeat(count) + "x"));
        blanks(100_000).unwrap();
        let error = blanks(2_000_000).unwrap_err();
        assert!(error.contains("gives up"), "{error}");
    }
}
