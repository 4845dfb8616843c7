//! `dataset-builder detect`: where personal data stands in lines of text. It prints types and offsets,
//! never what stands there.

use std::io::{self, BufRead, Write};

use graftwork_privacy::find;
use serde_json::{Value, json};

/// Reads `{"text": "..."}` a line and writes, for each, `{"findings": [{"type": "email", "start": 3,
/// "end": 20}]}`: offsets in bytes of the text's UTF-8.
///
/// # Errors
/// A line that can't be read, with its number and without its text; a closed pipe.
pub fn detect(input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    for (index, line) in input.lines().enumerate() {
        let bad = || {
            let problem = format!("line {} is not {{\"text\": \"...\"}}", index + 1);
            io::Error::new(io::ErrorKind::InvalidData, problem)
        };
        let value: Value = serde_json::from_str(&line?).map_err(|_| bad())?;
        let text = value.get("text").and_then(Value::as_str).ok_or_else(bad)?;
        let findings: Vec<Value> = find(text)
            .into_iter()
            .map(|it| json!({"type": it.kind.name(), "start": it.start, "end": it.end}))
            .collect();
        writeln!(output, "{}", json!({ "findings": findings }))?;
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_answered_with_types_and_offsets() {
        let mut output = Vec::new();
        let input = "{\"text\": \"é ann@example.com\"}\n{\"text\": \"\"}\n";
        detect(input.as_bytes(), &mut output).unwrap();
        let lines: Vec<Value> = String::from_utf8(output)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(
            lines,
            [
                json!({"findings": [{"type": "email", "start": 3, "end": 18}]}),
                json!({"findings": []}),
            ]
        );
    }

    #[test]
    fn a_bad_line_is_named_by_its_number_alone() {
        let error = detect("{\"text\": \"a\"}\nSECRET".as_bytes(), Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "line 2 is not {\"text\": \"...\"}");
    }
}
