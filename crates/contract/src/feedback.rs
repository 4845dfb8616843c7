//! What people say about answers: the table that routers hand to the namespace's keeper, that the keeper writes
//! into the artifact store. The files are Parquet, and a Dataset reads them as it reads any; a source of their
//! own they are not yet.
//!
//! The table of an endpoint's adapter is a folder of Parquet files, one folder for each day (UTC). A file is
//! written once and never changed, its rows in the order of `time` and `id`. A judgement that is taken back or
//! changed is a new row with the `id` of the old one: of rows with one `id` the newest counts. A reader skips
//! columns that it does not know; a column that is not there holds nulls. Files are named after their first
//! row's time and their content, so that a keeper that writes one twice writes the same one.

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::dataset::Classification;

/// Metadata of each file: which columns to expect.
pub const SCHEMA_KEY: &str = "graftwork.feedback";
/// Its value.
pub const SCHEMA_VERSION: &str = "1";
/// Most bytes of a text of a row (1 MiB); an answer with a longer one is not taken.
pub const MAXIMUM_TEXT_BYTES: usize = 1 << 20;
/// Most characters of `id`, `request` and `caller`.
pub const MAXIMUM_NAME_CHARACTERS: usize = 128;

/// Type of a column, as Parquet and Arrow know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// `Utf8`
    Text,
    /// `Timestamp(Millisecond, UTC)`
    Time,
    /// `UInt32`
    Number,
    /// `Float64`
    Fraction,
}

/// One column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: ColumnType,
    /// Whether it may be null.
    pub is_optional: bool,
}

const fn column(name: &'static str, kind: ColumnType, is_optional: bool) -> Column {
    Column {
        name,
        kind,
        is_optional,
    }
}

/// The columns in their order, one for each field of [`FeedbackRow`].
pub const COLUMNS: [Column; 13] = [
    column("id", ColumnType::Text, false),
    column("time", ColumnType::Time, false),
    column("request", ColumnType::Text, false),
    column("caller", ColumnType::Text, true),
    column("endpoint", ColumnType::Text, false),
    column("adapter", ColumnType::Text, false),
    column("version", ColumnType::Number, true),
    column("digest", ColumnType::Text, true),
    column("messages", ColumnType::Text, false),
    column("answer", ColumnType::Text, false),
    column("rating", ColumnType::Fraction, true),
    column("correction", ColumnType::Text, true),
    column("classification", ColumnType::Text, true),
];

/// One judgement of one answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FeedbackRow {
    /// Names the judgement: a later row with the same one takes its place.
    pub id: String,
    /// RFC 3339 time at which the router took it.
    pub time: String,
    /// Names the request that was answered.
    pub request: String,
    /// Who judged, as a keyed pseudonym: rows of one caller are one cluster. None: nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// Name of the ServingEndpoint.
    pub endpoint: String,
    /// What the request named as its model.
    pub adapter: String,
    /// The version that answered; none: the bare base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// What was asked: the conversation up to the answer, as JSON of a list of `role` and `content`. A request
    /// that had a prompt in place of a conversation is one message of the user.
    pub messages: String,
    /// What was answered.
    pub answer: String,
    /// How good that was, from 0 to 1. None: it was corrected, and not rated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rating: Option<f64>,
    /// What should have been answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correction: Option<String>,
    /// How far the row may go: as far as the version that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<Classification>,
}

impl FeedbackRow {
    /// Why a row is not taken; none where it is. No data stands in it.
    pub fn problem(&self) -> Option<&'static str> {
        let is_name = |text: &str| {
            (1..=MAXIMUM_NAME_CHARACTERS).contains(&text.chars().count())
                && !text.chars().any(char::is_control)
        };
        let is_short = |text: &str| text.len() <= MAXIMUM_TEXT_BYTES;
        let rules = [
            (is_name(&self.id), "id is empty, too long or not printable"),
            (
                is_name(&self.request),
                "request is empty, too long or not printable",
            ),
            (
                self.caller.as_deref().is_none_or(is_name),
                "caller is empty, too long or not printable",
            ),
            (
                self.rating.is_some() || self.correction.is_some(),
                "neither rating nor correction is given",
            ),
            (
                self.rating.is_none_or(|it| (0.0..=1.0).contains(&it)),
                "rating is not from 0 to 1",
            ),
            (
                self.version.is_some() == self.digest.is_some(),
                "version and digest go together",
            ),
            (
                [&self.messages, &self.answer]
                    .into_iter()
                    .all(|it| is_short(it))
                    && self.correction.as_deref().is_none_or(is_short),
                "a text is too long",
            ),
            (
                is_conversation(&self.messages),
                "messages is no conversation",
            ),
        ];
        rules.iter().find(|(holds, _)| !holds).map(|rule| rule.1)
    }

    /// What should have been answered: the correction, or the answer where it was rated so high.
    pub fn right_answer(&self, minimum_rating: f64) -> Option<&str> {
        let is_good = self.rating.is_some_and(|rating| rating >= minimum_rating);
        self.correction
            .as_deref()
            .or_else(|| is_good.then_some(self.answer.as_str()))
    }
}

/// Whether a text is a list of messages that ends with the user's.
fn is_conversation(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Message {
        role: String,
        #[serde(rename = "content")]
        _content: String,
    }
    let messages: Vec<Message> = serde_json::from_str(text).unwrap_or_default();
    messages.last().is_some_and(|last| last.role == "user")
}

/// `feedback/<endpoint>/<adapter>`: the table of what one model of an endpoint answered.
pub fn table(endpoint: &str, adapter: &str) -> String {
    format!("feedback/{endpoint}/{adapter}")
}

/// `feedback/<endpoint>/<adapter>/<day>/<milliseconds>-<content>.parquet`: `day` as `2026-11-20`, the first
/// row's time in milliseconds since 1970, and twelve digits of the digest of the rows as lines of JSON.
pub fn file(endpoint: &str, adapter: &str, day: &str, first: u64, rows: &Digest) -> String {
    format!(
        "{}/{day}/{first:013}-{}.parquet",
        table(endpoint, adapter),
        rows.short()
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn row() -> FeedbackRow {
        FeedbackRow {
            id: "r-1/ann".to_owned(),
            time: "2026-11-20T10:00:00Z".to_owned(),
            request: "r-1".to_owned(),
            caller: Some("c-7f3a".to_owned()),
            endpoint: "assistants".to_owned(),
            adapter: "expenses".to_owned(),
            version: Some(6),
            digest: Some(Digest::of(b"adapter")),
            messages: r#"[{"role":"user","content":"Taxi?"}]"#.to_owned(),
            answer: "Travel".to_owned(),
            rating: Some(0.9),
            correction: Some("Travel, local".to_owned()),
            classification: Some(Classification::Restricted),
        }
    }

    #[test]
    fn every_field_has_its_column_and_optional_ones_may_be_null() {
        let full = serde_json::to_value(row()).unwrap();
        let fields: BTreeSet<&str> = full
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let columns: BTreeSet<&str> = COLUMNS.iter().map(|column| column.name).collect();
        assert_eq!(fields, columns);
        assert_eq!(columns.len(), COLUMNS.len(), "a name stands twice");
        for column in COLUMNS {
            let mut value = full.clone();
            value.as_object_mut().unwrap().remove(column.name);
            let read = serde_json::from_value::<FeedbackRow>(value);
            assert_eq!(read.is_ok(), column.is_optional, "{}", column.name);
        }
    }

    #[test]
    fn rows_that_say_nothing_or_can_not_be_used_are_not_taken() {
        type Change = fn(&mut FeedbackRow);
        assert_eq!(row().problem(), None);
        let changes: [(Change, &str); 11] = [
            (|row| row.id.clear(), "id"),
            (|row| row.request = "a\nb".to_owned(), "request"),
            (|row| row.caller = Some("c".repeat(129)), "caller"),
            (|row| (row.rating, row.correction) = (None, None), "neither"),
            (|row| row.rating = Some(1.01), "rating"),
            (|row| row.rating = Some(f64::NAN), "rating"),
            (|row| row.digest = None, "version and digest"),
            (
                |row| row.answer = "a".repeat(MAXIMUM_TEXT_BYTES + 1),
                "a text is too long",
            ),
            (|row| row.messages = "[]".to_owned(), "messages"),
            (
                |row| row.messages = r#"[{"role":"user"}]"#.to_owned(),
                "messages",
            ),
            (
                |row| row.messages = r#"[{"role":"assistant","content":"a"}]"#.to_owned(),
                "messages",
            ),
        ];
        for (change, words) in changes {
            let mut changed = row();
            change(&mut changed);
            let problem = changed.problem().unwrap_or_default();
            assert!(problem.starts_with(words), "{words}: {problem}");
        }
    }

    #[test]
    fn a_correction_is_right_and_an_answer_where_it_was_rated_high_enough() {
        let mut row = row();
        assert_eq!(row.right_answer(0.0), Some("Travel, local"));
        row.correction = None;
        assert_eq!(row.right_answer(0.9), Some("Travel"));
        assert_eq!(row.right_answer(0.91), None);
        row.rating = None;
        assert_eq!(row.right_answer(0.0), None);
    }

    #[test]
    fn files_of_a_day_sort_by_time() {
        let name = |first| {
            file(
                "assistants",
                "expenses",
                "2026-11-20",
                first,
                &Digest::of(b""),
            )
        };
        let early = name(999_999_999_999);
        assert!(early < name(1_000_000_000_000), "{early}");
        assert!(
            early
                .starts_with("feedback/assistants/expenses/2026-11-20/0999999999999-e3b0c44298fc.")
        );
    }
}
