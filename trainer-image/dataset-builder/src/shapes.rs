//! Rows as people have them: the format's own columns, and the shapes of ShareGPT and Alpaca.

use std::collections::BTreeMap;

use graftwork_artifacts::rows::{Message, Row};
use graftwork_contract::dataset::Format;
use serde_json::{Map, Number, Value};

/// Roles of a conversation.
const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// A row's fields, by the names that the format gives them.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    /// The row.
    pub object: &'a Map<String, Value>,
    /// Columns that have another name in it.
    pub renamed: &'a BTreeMap<String, String>,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        let name = self.renamed.get(name).map_or(name, String::as_str);
        self.object.get(name)
    }

    /// The name in messages.
    fn title(&self, name: &str) -> String {
        match self.renamed.get(name) {
            Some(column) => format!("{name} (column {column})"),
            None => name.to_owned(),
        }
    }

    /// A text that is not blank.
    ///
    /// # Errors
    /// The broken rule.
    pub fn string(&self, name: &str) -> Result<String, String> {
        let title = || self.title(name);
        match self.get(name) {
            None => Err(format!("{} is missing", title())),
            Some(Value::String(text)) if text.trim().is_empty() => {
                Err(format!("{} is empty", title()))
            }
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(format!("{} is not a string", title())),
        }
    }

    /// A text, or a number or boolean as it is written.
    ///
    /// # Errors
    /// The broken rule.
    pub fn scalar(&self, name: &str) -> Result<String, String> {
        match self.get(name) {
            Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
            Some(Value::Null | Value::Array(_) | Value::Object(_)) => Err(format!(
                "{} is not a string, number or boolean",
                self.title(name)
            )),
            _ => self.string(name),
        }
    }

    /// A number, or a text that is one; the same number is written in one way.
    ///
    /// # Errors
    /// The broken rule.
    pub fn number(&self, name: &str) -> Result<Number, String> {
        let text = self.scalar(name)?;
        let number = text.trim().parse().ok().and_then(Number::from_f64);
        number.ok_or_else(|| format!("{} is not a number", self.title(name)))
    }

    /// A time: RFC 3339, a date with or without a time of day (in UTC), or seconds since 1970. In
    /// milliseconds since 1970.
    ///
    /// # Errors
    /// The broken rule.
    pub fn time(&self, name: &str) -> Result<i64, String> {
        let text = self.scalar(name)?;
        read_time(text.trim()).ok_or_else(|| {
            let title = self.title(name);
            format!("{title} is not a time (RFC 3339, a date, or seconds since 1970)")
        })
    }
}

fn read_time(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<f64>() {
        // More is past the year 9999, and was meant otherwise.
        let known = seconds.abs() < 253_402_300_800.0;
        return known.then(|| (seconds * 1000.0).round() as i64);
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Some(time.as_millisecond());
    }
    let civil = text.parse::<jiff::civil::DateTime>().ok().or_else(|| {
        let date = text.parse::<jiff::civil::Date>().ok()?;
        Some(date.at(0, 0, 0, 0))
    })?;
    let zoned = civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(zoned.timestamp().as_millisecond())
}

/// Columns of other shapes that become rows of a format.
pub const fn other_columns(format: Format) -> &'static [&'static str] {
    match format {
        Format::Completion => &["instruction", "input", "output"],
        Format::Chat => &["conversations", "instruction", "input", "output", "system"],
        Format::Text | Format::Preference => &[],
    }
}

/// The row that the fields hold.
///
/// # Errors
/// The broken rule.
pub fn row(fields: &Fields<'_>, format: Format) -> Result<Row, String> {
    let is_alpaca = |own: &str| fields.get(own).is_none() && fields.get("instruction").is_some();
    Ok(match format {
        Format::Text => Row::Text {
            text: fields.string("text")?,
        },
        Format::Completion if is_alpaca("prompt") => Row::Completion {
            prompt: instruction(fields)?,
            completion: fields.string("output")?,
        },
        Format::Completion => Row::Completion {
            prompt: fields.string("prompt")?,
            completion: fields.string("completion")?,
        },
        Format::Preference => Row::Preference {
            prompt: fields.string("prompt")?,
            chosen: fields.string("chosen")?,
            rejected: fields.string("rejected")?,
        },
        Format::Chat
            if fields.get("messages").is_none() && fields.get("conversations").is_some() =>
        {
            Row::Chat {
                messages: SHARE_GPT.messages(fields)?,
            }
        }
        Format::Chat if is_alpaca("messages") => Row::Chat {
            messages: alpaca_chat(fields)?,
        },
        Format::Chat => Row::Chat {
            messages: OPEN_AI.messages(fields)?,
        },
    })
}

/// Alpaca's instruction with its input, which may be missing or empty.
fn instruction(fields: &Fields<'_>) -> Result<String, String> {
    let instruction = fields.string("instruction")?;
    Ok(match fields.get("input") {
        None | Some(Value::Null) => instruction,
        Some(Value::String(input)) if input.trim().is_empty() => instruction,
        Some(_) => format!("{instruction}\n\n{}", fields.string("input")?),
    })
}

fn alpaca_chat(fields: &Fields<'_>) -> Result<Vec<Message>, String> {
    let message = |role: &str, content: String| Message {
        role: role.to_owned(),
        content,
    };
    let mut messages = Vec::new();
    match fields.get("system") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) if text.trim().is_empty() => {}
        Some(_) => messages.push(message("system", fields.string("system")?)),
    }
    messages.push(message("user", instruction(fields)?));
    messages.push(message("assistant", fields.string("output")?));
    Ok(messages)
}

/// How a conversation is written.
struct Conversation {
    list: &'static str,
    role: &'static str,
    content: &'static str,
    /// What roles are called, in the order of [`ROLES`]; the first name stands in messages.
    roles: [&'static [&'static str]; 3],
}

const OPEN_AI: Conversation = Conversation {
    list: "messages",
    role: "role",
    content: "content",
    roles: [&["system"], &["user"], &["assistant"]],
};

const SHARE_GPT: Conversation = Conversation {
    list: "conversations",
    role: "from",
    content: "value",
    roles: [
        &["system"],
        &["human", "user"],
        &["gpt", "assistant", "chatgpt", "bing", "bard", "model"],
    ],
};

impl Conversation {
    fn messages(&self, fields: &Fields<'_>) -> Result<Vec<Message>, String> {
        let name = fields.title(self.list);
        let list = match fields.get(self.list) {
            None => return Err(format!("{name} is missing")),
            Some(Value::Array(list)) if list.is_empty() => return Err(format!("{name} is empty")),
            Some(Value::Array(list)) => list,
            Some(_) => return Err(format!("{name} is not a list")),
        };
        let messages = list
            .iter()
            .enumerate()
            .map(|(index, value)| self.message(index, value))
            .collect::<Result<Vec<_>, _>>()?;
        if messages.last().is_none_or(|last| last.role != "assistant") {
            let [_, _, [assistant, ..]] = self.roles else {
                return Err(format!("{name} have no end"));
            };
            return Err(format!("{name} do not end with {} {assistant}", self.role));
        }
        Ok(messages)
    }

    fn message(&self, index: usize, value: &Value) -> Result<Message, String> {
        let at = |problem: String| format!("{}[{index}].{problem}", self.list);
        let Value::Object(object) = value else {
            return Err(format!("{}[{index}] is not a JSON object", self.list));
        };
        let none = BTreeMap::new();
        let fields = Fields {
            object,
            renamed: &none,
        };
        let written = fields.string(self.role).map_err(at)?;
        let role = ROLES
            .iter()
            .zip(self.roles)
            .find(|(_, names)| names.contains(&written.as_str()));
        let Some((role, _)) = role else {
            let known: Vec<&str> = self
                .roles
                .iter()
                .filter_map(|it| it.first().copied())
                .collect();
            return Err(at(format!(
                "{} is not one of {}",
                self.role,
                known.join(", ")
            )));
        };
        if *role == "system" && index > 0 {
            return Err(at(format!(
                "{} is system, which only the first message may be",
                self.role
            )));
        }
        let content = fields.string(self.content).map_err(at)?;
        Ok(Message {
            role: (*role).to_owned(),
            content,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(format: Format, value: Value) -> Result<Row, String> {
        let Value::Object(object) = value else {
            panic!("no object");
        };
        let renamed = BTreeMap::new();
        let fields = Fields {
            object: &object,
            renamed: &renamed,
        };
        row(&fields, format)
    }

    fn said(row: Row) -> Vec<(String, String)> {
        let Row::Chat { messages } = row else {
            panic!("no conversation");
        };
        messages
            .into_iter()
            .map(|it| (it.role, it.content))
            .collect()
    }

    #[test]
    fn conversations_of_share_gpt_become_messages() {
        let row = read(
            Format::Chat,
            json!({"conversations": [
                {"from": "system", "value": "s"}, {"from": "human", "value": "u"},
                {"from": "gpt", "value": "a"}
            ]}),
        );
        let expected = [("system", "s"), ("user", "u"), ("assistant", "a")];
        let expected = expected.map(|(role, content)| (role.to_owned(), content.to_owned()));
        assert_eq!(said(row.unwrap()), expected);
    }

    #[test]
    fn instructions_of_alpaca_become_completions_and_conversations() {
        let value = json!({"instruction": "Add", "input": "1 and 2", "output": "3"});
        let row = read(Format::Completion, value.clone()).unwrap();
        let expected = Row::Completion {
            prompt: "Add\n\n1 and 2".to_owned(),
            completion: "3".to_owned(),
        };
        assert_eq!(row, expected);
        assert_eq!(
            said(read(Format::Chat, value).unwrap())[0].1,
            "Add\n\n1 and 2"
        );
        for input in [json!(""), json!(null)] {
            let value =
                json!({"instruction": "Go", "input": input, "output": "Gone", "system": "s"});
            let said = said(read(Format::Chat, value).unwrap());
            let roles: Vec<_> = said.iter().map(|(role, _)| role.as_str()).collect();
            assert_eq!(roles, ROLES);
            assert_eq!(said[1].1, "Go");
        }
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, milliseconds) in [
            ("1970-01-02T00:00:00Z", 86_400_000),
            ("1970-01-02T01:00:00+01:00", 86_400_000),
            ("1970-01-02", 86_400_000),
            ("1970-01-02 00:00:01", 86_401_000),
            ("1970-01-02T00:00:00.5", 86_400_500),
            ("86400", 86_400_000),
            ("0.25", 250),
            ("-1", -1000),
        ] {
            assert_eq!(read_time(text), Some(milliseconds), "{text}");
        }
        for text in ["", "yesterday", "NaN", "1e300", "2024-13-01", "20 May"] {
            assert_eq!(read_time(text), None, "{text}");
        }
    }

    #[test]
    fn the_formats_own_columns_come_first() {
        let both = json!({"prompt": "p", "completion": "c", "instruction": "i", "output": "o"});
        let expected = Row::Completion {
            prompt: "p".to_owned(),
            completion: "c".to_owned(),
        };
        assert_eq!(read(Format::Completion, both), Ok(expected));
    }

    #[test]
    fn broken_rules_of_other_shapes_are_named_as_those_have_them() {
        let turns = |turns: Value| json!({ "conversations": turns });
        for (format, value, rule) in [
            (
                Format::Chat,
                turns(json!([{"from": "robot", "value": "x"}])),
                "conversations[0].from is not one of system, human, gpt",
            ),
            (
                Format::Chat,
                turns(json!([{"from": "human", "value": "x"}])),
                "conversations do not end with from gpt",
            ),
            (
                Format::Chat,
                turns(json!([{"from": "human"}])),
                "conversations[0].value is missing",
            ),
            (
                Format::Completion,
                json!({"instruction": "i"}),
                "output is missing",
            ),
            (
                Format::Completion,
                json!({"instruction": "i", "input": 1, "output": "o"}),
                "input is not a string",
            ),
            (
                Format::Preference,
                json!({"prompt": "p", "chosen": "c", "rejected": " "}),
                "rejected is empty",
            ),
        ] {
            assert_eq!(read(format, value), Err(rule.to_owned()));
        }
    }
}
