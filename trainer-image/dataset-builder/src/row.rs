//! One line of JSON to one row, or the rule that it breaks.

use std::collections::BTreeMap;

use graftwork_artifacts::rows::{Message, Row, columns};
use graftwork_contract::Digest;
use graftwork_contract::dataset::{Format, REWARD_COLUMN};
use graftwork_contract::digest::push_json_text;
use graftwork_privacy::Counts;
use serde_json::{Map, Number, Value};

use crate::digits;
use crate::nulls::Nulls;
use crate::privacy::Screen;
use crate::shapes::{self, Fields};
use crate::tokens::Measured;

/// A good row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoodRow {
    /// The columns of the format.
    pub row: Row,
    /// The text of the group column, where the split has one.
    pub group: Option<String>,
    /// The kept columns as canonical JSON: two rows are the same where this is.
    pub canonical: String,
    /// Milliseconds since 1970, where the split goes by time.
    pub time: Option<i64>,
    /// The class, where classes are balanced.
    pub class: Option<String>,
    /// Length in the base model's tokens, where one is named.
    pub tokens: Option<u32>,
    /// The group as the source has it, which decides the split whatever is masked; of one that is masked its
    /// SHA-256.
    source_group: Option<String>,
}

impl GoodRow {
    /// The row, where its texts have no more than so many bytes.
    ///
    /// # Errors
    /// The rule that a longer one breaks.
    pub fn bounded(self, limit: usize) -> Result<Self, String> {
        if self.row.text_bytes() > limit {
            return Err(format!("is longer than {limit} bytes"));
        }
        Ok(self)
    }

    /// What decides the row's split: its group, or all of it.
    pub fn split_key(&self) -> &str {
        self.source_group.as_deref().unwrap_or(&self.canonical)
    }

    /// The group as the source has it, before anything is masked.
    pub fn source_group(&self) -> Option<&str> {
        self.source_group.as_deref()
    }
}

/// What is asked of a row.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its shape.
    pub format: Format,
    /// The column that groups rows.
    pub group_column: Option<&'a str>,
    /// The column that holds the time.
    pub time_column: Option<&'a str>,
    /// The column that names the class.
    pub class_column: Option<&'a str>,
    /// Whether the column of rewards is kept.
    pub reward: bool,
    /// Columns that have another name in this source.
    pub renamed: &'a BTreeMap<String, String>,
    /// What is done about personal data.
    pub screen: Option<&'a Screen>,
    /// How long a row may be.
    pub measured: Option<Measured<'a>>,
    /// What counts values that are not there.
    pub nulls: Option<&'a Nulls>,
}

impl<'a> Wanted<'a> {
    /// The columns that are read, as this source names them.
    pub fn columns(&self) -> Vec<&'a str> {
        let renamed = self.renamed;
        let name = |name: &'a str| renamed.get(name).map_or(name, String::as_str);
        let format = columns(self.format).iter().copied();
        let reward = self.reward.then_some(REWARD_COLUMN);
        let dealing = [
            self.group_column,
            self.time_column,
            self.class_column,
            reward,
        ];
        let others = shapes::other_columns(self.format);
        format
            .chain(dealing.into_iter().flatten())
            .map(name)
            .chain(others.iter().copied())
            .collect()
    }
}

/// Reads a line that is not blank. Columns that neither the format nor the split asks for are left
/// out. What is found of personal data is counted.
///
/// # Errors
/// The broken rule, in words and without data.
pub fn parse(line: &[u8], wanted: Wanted<'_>, counts: &mut Counts) -> Result<GoodRow, String> {
    read(&object(line)?, wanted, counts)
}

/// The object of a line that is not blank.
///
/// # Errors
/// The broken rule, in words and without data.
pub fn object(line: &[u8]) -> Result<Map<String, Value>, String> {
    let text = std::str::from_utf8(line)
        .map_err(|error| format!("is not UTF-8 (byte {})", error.valid_up_to() + 1))?;
    let value = digits::read(text).map_err(|error| {
        let problem = error.to_string();
        let problem = problem.split(" at line ").next().unwrap_or_default();
        let column = error.column();
        if error.is_data() {
            format!("{problem} (column {column})")
        } else {
            format!("is not JSON ({problem}, column {column})")
        }
    })?;
    match value {
        Value::Object(object) => Ok(object),
        Value::Array(_) => {
            Err("is a JSON array: each object stands in a line of its own".to_owned())
        }
        _ => Err("is not a JSON object".to_owned()),
    }
}

/// The texts of a row that its screen will look at; none of a row that breaks a rule before.
pub fn screened_texts(object: &Map<String, Value>, wanted: Wanted<'_>) -> Vec<String> {
    let fields = Fields {
        object,
        renamed: wanted.renamed,
    };
    let (Some(screen), Ok(mut row)) = (wanted.screen, shapes::row(&fields, wanted.format)) else {
        return Vec::new();
    };
    let own = own_group(wanted);
    let mut group = own.and_then(|name| fields.scalar(name).ok());
    screen.texts(&mut row, own.zip(group.as_mut()))
}

/// The group column, where the format has none of its name: such a one is kept, and screened, as the
/// format's.
fn own_group(wanted: Wanted<'_>) -> Option<&str> {
    wanted
        .group_column
        .filter(|name| !columns(wanted.format).contains(name))
}

/// Reads a row that is an object already, see [`parse`].
///
/// # Errors
/// The broken rule, in words and without data.
pub fn read(
    object: &Map<String, Value>,
    wanted: Wanted<'_>,
    counts: &mut Counts,
) -> Result<GoodRow, String> {
    let row = judge(object, wanted, counts);
    if let (Err(_), Some(nulls)) = (&row, wanted.nulls) {
        nulls.look(object, &wanted);
    }
    row
}

fn judge(
    object: &Map<String, Value>,
    wanted: Wanted<'_>,
    counts: &mut Counts,
) -> Result<GoodRow, String> {
    let fields = Fields {
        object,
        renamed: wanted.renamed,
    };
    let mut row = shapes::row(&fields, wanted.format)?;
    let group = wanted.group_column.map(|name| fields.scalar(name));
    let source_group = asked_by("spec.split.groupColumn", group)?;
    let time = wanted.time_column.map(|name| fields.time(name));
    let time = asked_by("spec.split.column", time)?;
    let class = wanted.class_column.map(|name| fields.scalar(name));
    let class = asked_by("spec.balance.column", class)?;
    let reward = wanted.reward.then(|| fields.number(REWARD_COLUMN));
    let reward = asked_by("spec.format.reward", reward)?;
    let mut group = source_group.clone();
    let own = own_group(wanted);
    if let Some(screen) = wanted.screen {
        screen.apply(&mut row, own.zip(group.as_mut()), counts)?;
    }
    let measured = wanted.measured;
    let tokens = measured.map(|it| it.tokens(&row)).transpose()?;
    let canonical = canonical(&row, own.zip(group.as_deref()), reward.as_ref());
    // It deals the row, and lies in the parts of a build for a while.
    let hides = |screen: &Screen| wanted.group_column.is_some_and(|name| screen.hides(name));
    let source_group = if wanted.screen.is_some_and(hides) {
        source_group.map(|text| Digest::of(text.as_bytes()).hex().to_owned())
    } else {
        source_group
    };
    Ok(GoodRow {
        row,
        group,
        canonical,
        time,
        class,
        tokens,
        source_group,
    })
}

/// What a field of the spec asks a row for beside the columns of the format; the broken rule names it.
fn asked_by<T>(field: &str, value: Option<Result<T, String>>) -> Result<Option<T>, String> {
    value.transpose().map_err(|rule| format!("{field}: {rule}"))
}

/// A column that is kept.
enum Kept<'a> {
    Text(&'a str),
    Number(&'a Number),
    Messages(&'a [Message]),
}

/// The columns of the format, the group column where it is its own, and the reward, as canonical JSON: what
/// [`canonical_json`](graftwork_contract::digest::canonical_json) makes of them, without a tree in between.
fn canonical(row: &Row, own: Option<(&str, &str)>, reward: Option<&Number>) -> String {
    let mut columns: BTreeMap<&str, Kept<'_>> = match row {
        Row::Chat { messages } => BTreeMap::from([("messages", Kept::Messages(messages))]),
        Row::Text { .. } | Row::Completion { .. } | Row::Preference { .. } => {
            let texts = row.texts().into_iter();
            texts.map(|(name, text)| (name, Kept::Text(text))).collect()
        }
    };
    columns.extend(own.map(|(name, text)| (name, Kept::Text(text))));
    columns.extend(reward.map(|reward| (REWARD_COLUMN, Kept::Number(reward))));
    let mut json = String::with_capacity(row.text_bytes() + 64);
    for (name, column) in columns {
        json.push(if json.is_empty() { '{' } else { ',' });
        push_json_text(name, &mut json);
        json.push(':');
        match column {
            Kept::Text(text) => push_json_text(text, &mut json),
            Kept::Number(number) => json.push_str(&number.to_string()),
            Kept::Messages(messages) => push_messages(messages, &mut json),
        }
    }
    json.push('}');
    json
}

fn push_messages(messages: &[Message], json: &mut String) {
    json.push('[');
    for (index, message) in messages.iter().enumerate() {
        if index > 0 {
            json.push(',');
        }
        json.push_str("{\"content\":");
        push_json_text(&message.content, json);
        json.push_str(",\"role\":");
        push_json_text(&message.role, json);
        json.push('}');
    }
    json.push(']');
}

/// Rows for the tests of other modules.
#[cfg(test)]
pub mod tests_support {
    use super::*;

    /// A row of text with the columns that decide its split.
    pub fn row_of(text: &str, group: Option<&str>, time: Option<i64>) -> GoodRow {
        let row = Row::Text {
            text: text.to_owned(),
        };
        GoodRow {
            canonical: canonical(&row, None, None),
            row,
            group: group.map(str::to_owned),
            time,
            class: None,
            tokens: None,
            source_group: group.map(str::to_owned),
        }
    }

    /// A row of text.
    pub fn text_row(text: &str) -> GoodRow {
        row_of(text, None, None)
    }
}

#[cfg(test)]
mod tests {
    use graftwork_contract::digest::canonical_json;
    use serde_json::json;

    use super::*;

    /// What is asked of a row of that shape, and no more.
    fn plain(format: Format, renamed: &BTreeMap<String, String>) -> Wanted<'_> {
        Wanted {
            format,
            group_column: None,
            time_column: None,
            class_column: None,
            reward: false,
            renamed,
            screen: None,
            measured: None,
            nulls: None,
        }
    }

    fn parse(line: &[u8], format: Format, group_column: Option<&str>) -> Result<GoodRow, String> {
        let renamed = BTreeMap::new();
        let wanted = Wanted {
            group_column,
            ..plain(format, &renamed)
        };
        super::parse(line, wanted, &mut Counts::default())
    }

    fn rule(format: Format, line: &str) -> String {
        parse(line.as_bytes(), format, None).unwrap_err()
    }

    #[test]
    fn good_rows_keep_the_columns_of_their_format_and_the_group() {
        let line = br#"{"other": [1], "synset": "n1", "completion": "b", "prompt": "a"}"#;
        let good = parse(line, Format::Completion, Some("synset")).unwrap();
        assert_eq!(
            good.canonical,
            r#"{"completion":"b","prompt":"a","synset":"n1"}"#
        );
        assert_eq!(good.split_key(), "n1");
        let alone = parse(line, Format::Completion, None).unwrap();
        assert_eq!(alone.canonical, r#"{"completion":"b","prompt":"a"}"#);
        assert_eq!(alone.split_key(), alone.canonical);
        let own = parse(line, Format::Completion, Some("prompt")).unwrap();
        assert_eq!((own.split_key(), &own.canonical), ("a", &alone.canonical));
    }

    #[test]
    fn a_row_is_written_as_its_tree_would_be() {
        let text = "\"é\\\u{1}\n";
        let message = |role: &str| Message {
            role: role.to_owned(),
            content: text.to_owned(),
        };
        let messages = vec![message("user"), message("assistant")];
        let [prompt, completion] = [text, "b"].map(str::to_owned);
        let reward = Number::from_f64(-0.25).unwrap();
        for (row, tree) in [
            (
                Row::Text {
                    text: text.to_owned(),
                },
                json!({"text": text}),
            ),
            (
                Row::Completion { prompt, completion },
                json!({"prompt": text, "completion": "b"}),
            ),
            (
                Row::Preference {
                    prompt: "p".to_owned(),
                    chosen: text.to_owned(),
                    rejected: "r".to_owned(),
                },
                json!({"prompt": "p", "chosen": text, "rejected": "r"}),
            ),
            (
                Row::Chat { messages },
                json!({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}),
            ),
        ] {
            assert_eq!(canonical(&row, None, None), canonical_json(&tree));
            for name in ["a\"", "ü", "reward"] {
                let mut tree = tree.clone();
                tree[name] = json!("g\t");
                let own = Some((name, "g\t"));
                assert_eq!(canonical(&row, own, None), canonical_json(&tree));
                tree["reward"] = json!(-0.25);
                assert_eq!(canonical(&row, own, Some(&reward)), canonical_json(&tree));
            }
        }
    }

    #[test]
    fn groups_may_be_numbers() {
        let line = br#"{"text": "a", "id": 7}"#;
        assert_eq!(
            parse(line, Format::Text, Some("id"))
                .unwrap()
                .group
                .unwrap(),
            "7"
        );
        // Those that differ in their last digit are two groups.
        for id in ["12345678901234567891", "0.1234567890123456789"] {
            let line = format!(r#"{{"text": "a", "id": {id}}}"#);
            let good = parse(line.as_bytes(), Format::Text, Some("id")).unwrap();
            assert_eq!(good.canonical, format!(r#"{{"id":"{id}","text":"a"}}"#));
        }
        let wrong = br#"{"text": "a", "id": null}"#;
        let rule = parse(wrong, Format::Text, Some("id")).unwrap_err();
        assert_eq!(
            rule,
            "spec.split.groupColumn: id is not a string, number or boolean"
        );
        let missing = br#"{"text": "a"}"#;
        assert_eq!(
            parse(missing, Format::Text, Some("id")).unwrap_err(),
            "spec.split.groupColumn: id is missing"
        );
    }

    #[test]
    fn a_column_that_only_the_spec_asks_for_is_named_with_its_field() {
        let renamed = BTreeMap::new();
        let wanted = plain(Format::Text, &renamed);
        let timed = Wanted {
            time_column: Some("day"),
            ..wanted
        };
        let balanced = Wanted {
            class_column: Some("topic"),
            ..wanted
        };
        for (wanted, rule) in [
            (timed, "spec.split.column: day is missing"),
            (balanced, "spec.balance.column: topic is missing"),
        ] {
            let parsed = super::parse(br#"{"text": "a"}"#, wanted, &mut Counts::default());
            assert_eq!(parsed.unwrap_err(), rule);
        }
    }

    #[test]
    fn a_conversation_is_kept_in_order() {
        let line = r#"{"messages": [{"role": "system", "content": "s"},
            {"role": "user", "content": "u", "name": "x"}, {"role": "assistant", "content": "a"}]}"#;
        let Row::Chat { messages } = parse(line.as_bytes(), Format::Chat, None).unwrap().row else {
            panic!("not a conversation");
        };
        let roles: Vec<_> = messages
            .iter()
            .map(|message| message.role.as_str())
            .collect();
        assert_eq!(roles, ["system", "user", "assistant"]);
    }

    #[test]
    fn a_reward_is_kept_as_a_number_and_makes_another_row() {
        let renamed = BTreeMap::from([("reward".to_owned(), "kpi".to_owned())]);
        let wanted = Wanted {
            reward: true,
            ..plain(Format::Text, &renamed)
        };
        let parse = |line: &str| super::parse(line.as_bytes(), wanted, &mut Counts::default());
        for line in [
            r#"{"text": "a", "kpi": 1}"#,
            r#"{"text": "a", "kpi": 1.0}"#,
            r#"{"text": "a", "kpi": " 1e0 "}"#,
        ] {
            let good = parse(line).unwrap();
            assert_eq!(good.canonical, r#"{"reward":1.0,"text":"a"}"#, "{line}");
        }
        for (line, rule) in [
            (
                r#"{"text": "a"}"#,
                "spec.format.reward: reward (column kpi) is missing",
            ),
            (
                r#"{"text": "a", "kpi": "much"}"#,
                "spec.format.reward: reward (column kpi) is not a number",
            ),
            (
                r#"{"text": "a", "kpi": "nan"}"#,
                "spec.format.reward: reward (column kpi) is not a number",
            ),
            (
                r#"{"text": "a", "kpi": true}"#,
                "spec.format.reward: reward (column kpi) is not a number",
            ),
        ] {
            assert_eq!(parse(line).unwrap_err(), rule, "{line}");
        }
        assert!(wanted.columns().contains(&"kpi"));
    }

    #[test]
    fn columns_with_another_name_are_read_and_named_by_it() {
        let renamed = BTreeMap::from([
            ("prompt".to_owned(), "question".to_owned()),
            ("id".to_owned(), "claim".to_owned()),
        ]);
        let wanted = Wanted {
            group_column: Some("id"),
            ..plain(Format::Completion, &renamed)
        };
        let parse = |line: &str| super::parse(line.as_bytes(), wanted, &mut Counts::default());
        let good = parse(r#"{"question": "a", "completion": "b", "claim": 7}"#).unwrap();
        assert_eq!(
            good.canonical,
            r#"{"completion":"b","id":"7","prompt":"a"}"#
        );
        assert_eq!(
            parse(r#"{"prompt": "a", "completion": "b", "claim": 7}"#).unwrap_err(),
            "prompt (column question) is missing"
        );
        let columns = wanted.columns();
        assert!(columns.starts_with(&["question", "completion", "claim"]));
    }

    #[test]
    fn values_that_are_not_there_are_counted_by_column_where_a_row_is_left_out() {
        let renamed = BTreeMap::from([("prompt".to_owned(), "question".to_owned())]);
        let nulls = Nulls::default();
        let wanted = Wanted {
            group_column: Some("id"),
            nulls: Some(&nulls),
            ..plain(Format::Completion, &renamed)
        };
        for (line, is_good) in [
            (
                r#"{"question": "a", "completion": "b", "id": 1, "other": null}"#,
                true,
            ),
            (r#"{"question": null, "completion": "b"}"#, false),
            (r#"{"prompt": "a", "completion": "b", "id": 1}"#, false),
            (r#"{"question": 7, "completion": "b", "id": 1}"#, false),
            (r#"{"instruction": "a", "output": null, "id": null}"#, false),
        ] {
            let row = super::parse(line.as_bytes(), wanted, &mut Counts::default());
            assert_eq!(row.is_ok(), is_good, "{line}");
        }
        let expected = [("id", 2), ("prompt", 2)].map(|(name, rows)| (name.to_owned(), rows));
        assert_eq!(nulls.into_counts(), BTreeMap::from(expected));
    }

    #[test]
    fn every_broken_rule_is_named() {
        use Format::{Chat, Completion, Preference, Text};
        for (format, line, expected) in [
            (Text, "{}", "text is missing"),
            (Text, r#"{"text": 1}"#, "text is not a string"),
            (Text, r#"{"text": " \n"}"#, "text is empty"),
            (
                Text,
                "[]",
                "is a JSON array: each object stands in a line of its own",
            ),
            (Text, "7", "is not a JSON object"),
            (
                Text,
                r#"{"text": "a"} {"#,
                "is not JSON (trailing characters, column 15)",
            ),
            (Completion, r#"{"prompt": "a"}"#, "completion is missing"),
            (
                Completion,
                r#"{"prompt": null, "completion": "b"}"#,
                "prompt is not a string",
            ),
            (
                Preference,
                r#"{"prompt": "a", "chosen": "b"}"#,
                "rejected is missing",
            ),
            (Chat, r#"{"messages": "a"}"#, "messages is not a list"),
            (Chat, r#"{"messages": []}"#, "messages is empty"),
            (
                Chat,
                r#"{"messages": [1]}"#,
                "messages[0] is not a JSON object",
            ),
            (
                Chat,
                r#"{"messages": [{"content": "a"}]}"#,
                "messages[0].role is missing",
            ),
            (
                Chat,
                r#"{"messages": [{"role": "robot", "content": "a"}]}"#,
                "messages[0].role is not one of system, user, assistant",
            ),
            (
                Chat,
                r#"{"messages": [{"role": "user", "content": "a"}]}"#,
                "messages do not end with role assistant",
            ),
            (
                Chat,
                r#"{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "a"}]}"#,
                "messages[1].role is system, which only the first message may be",
            ),
            (
                Chat,
                r#"{"messages": [{"role": "assistant", "content": ""}]}"#,
                "messages[0].content is empty",
            ),
        ] {
            assert_eq!(rule(format, line), expected);
        }
        let twice = rule(Text, r#"{"text": "a", "text": "b"}"#);
        assert!(
            twice.starts_with("has a key twice in an object (column "),
            "{twice}"
        );
        assert_eq!(
            parse(b"ab\xff", Text, None).unwrap_err(),
            "is not UTF-8 (byte 3)"
        );
    }

    #[test]
    fn a_rule_never_repeats_data() {
        for line in [
            r#"{"text": "SECRET"#,
            r#"{"text": 1} SECRET"#,
            "SECRET",
            r#"{"SECRET": 1}"#,
            r#"{"SECRET": 1, "SECRET": 2}"#,
        ] {
            assert!(
                !rule(Format::Text, line).contains("SECRET"),
                "{}",
                rule(Format::Text, line)
            );
        }
    }
}
