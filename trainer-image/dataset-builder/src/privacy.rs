//! Personal data in rows: masked, refused or counted, as the spec says.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use graftwork_artifacts::rows::Row;
use graftwork_contract::dataset::{self as contract, BuildConfig, PrivacyMode, SecretKey};
use graftwork_privacy::{
    Counts, Key, Kind, MINIMUM_KEY_BYTES, Masker, Other, beside, find, mask_with,
};

use crate::failure::Failure;
use crate::remote::{Analyzer, Answers};

/// What is done about personal data.
#[derive(Debug)]
pub struct Screen {
    columns: Vec<String>,
    action: Action,
    helper: Option<Helper>,
}

/// Who is asked for what no rule of ours finds.
#[derive(Debug)]
struct Helper {
    analyzer: Analyzer,
    /// Its types, by their number: the name in status, and the word in masked text.
    types: Vec<(String, String)>,
    /// What it said of the rows that come next.
    answers: RwLock<Answers>,
}

#[derive(Debug)]
enum Action {
    Mask(Masker),
    Reject,
    Count,
}

impl Screen {
    /// The screen that the configuration asks for; none where nobody looks for personal data. The key
    /// of pseudonyms is read from `key_file`.
    ///
    /// # Errors
    /// A key that is needed and is not there, can't be read, or is too short.
    pub fn new(config: &BuildConfig, key_file: &Path) -> Result<Option<Self>, Failure> {
        let Some(privacy) = &config.privacy else {
            return Ok(None);
        };
        let action = match privacy.mode {
            PrivacyMode::Redact => Action::Mask(Masker::Redact),
            PrivacyMode::Pseudonymise => {
                let key = read_key(key_file, config.pseudonym_key.as_ref())?;
                Action::Mask(Masker::Pseudonymise(key))
            }
            PrivacyMode::Reject => Action::Reject,
            PrivacyMode::Allow => Action::Count,
        };
        let helper = Analyzer::open(config)?.map(|analyzer| Helper {
            types: analyzer
                .entities()
                .iter()
                .map(|entity| (contract::Analyzer::type_name(entity), entity.clone()))
                .collect(),
            analyzer,
            answers: RwLock::default(),
        });
        Ok(Some(Self {
            columns: privacy.columns.clone(),
            action,
            helper,
        }))
    }

    /// Whether rows have to be [looked at](Self::look_ahead) before they are screened.
    pub fn looks_ahead(&self) -> bool {
        self.helper.is_some()
    }

    /// The texts of a row, and of its group column, that are screened.
    pub fn texts(&self, row: &mut Row, group: Option<(&str, &mut String)>) -> Vec<String> {
        row.texts_mut()
            .into_iter()
            .chain(group)
            .filter(|(name, _)| self.is_screened(name))
            .map(|(_, text)| text.clone())
            .collect()
    }

    /// Asks the analyser about the texts of the rows that come next.
    ///
    /// # Errors
    /// An analyser that does not answer, refuses, or makes no sense.
    pub fn look_ahead(&self, texts: &BTreeSet<String>) -> Result<(), Failure> {
        if let Some(helper) = &self.helper {
            let answers = helper.analyzer.ask(texts)?;
            let mut known = helper
                .answers
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            *known = answers;
        }
        Ok(())
    }

    fn is_screened(&self, column: &str) -> bool {
        self.columns.iter().any(|known| known == column)
    }

    /// Whether a column's texts are kept otherwise than the source has them.
    pub fn hides(&self, column: &str) -> bool {
        self.is_screened(column) && matches!(self.action, Action::Mask(_))
    }

    /// Screens a row with the text of its group column.
    ///
    /// # Errors
    /// The broken rule: the types that were found and their column, never what was found.
    pub fn apply(
        &self,
        row: &mut Row,
        group: Option<(&str, &mut String)>,
        counts: &mut Counts,
    ) -> Result<(), String> {
        let mut found = Counts::default();
        let mut rule = None;
        for (name, text) in row.texts_mut().into_iter().chain(group) {
            if !self.is_screened(name) {
                continue;
            }
            let others = match &self.helper {
                None => Vec::new(),
                Some(helper) => helper.others(text, name)?,
            };
            match &self.action {
                Action::Mask(masker) => {
                    if let Some(masked) = mask_with(text, &others, masker, &mut found) {
                        *text = masked;
                    }
                }
                Action::Count => {
                    look(text, &others, &mut found);
                }
                Action::Reject => {
                    let kinds = look(text, &others, &mut found);
                    if rule.is_none() && !kinds.is_empty() {
                        rule = Some(format!("{name} holds personal data ({})", kinds.join(", ")));
                    }
                }
            }
        }
        counts.merge(&found);
        rule.map_or(Ok(()), Err)
    }
}

impl Helper {
    /// What the analyser found in a text.
    ///
    /// # Errors
    /// A rule: nobody asked about this text, so that nobody may say that it holds nothing.
    fn others(&self, text: &str, column: &str) -> Result<Vec<Other<'_>>, String> {
        let answers = self.answers.read().unwrap_or_else(PoisonError::into_inner);
        let spots = answers
            .get(text)
            .ok_or_else(|| format!("{column} was not looked at by spec.privacy.analyzer"))?;
        let other = |spot: &crate::remote::Spot| {
            let (name, placeholder) = self.types.get(spot.entity)?;
            Some(Other {
                name,
                placeholder,
                start: spot.start,
                end: spot.end,
            })
        };
        Ok(spots.iter().filter_map(other).collect())
    }
}

/// Counts what stands in a text, and names its types.
fn look<'a>(text: &str, others: &[Other<'a>], counts: &mut Counts) -> Vec<&'a str> {
    let own = find(text);
    let mut kinds: Vec<Kind> = own.iter().map(|it| it.kind).collect();
    kinds.iter().for_each(|kind| counts.add(*kind));
    kinds.sort_unstable();
    kinds.dedup();
    let mut names: Vec<&'a str> = beside(text, &own, others)
        .iter()
        .map(|it| it.name)
        .collect();
    names.iter().for_each(|name| counts.add_named(name, 1));
    names.sort_unstable();
    names.dedup();
    let own = kinds.into_iter().map(|kind| -> &'a str { kind.name() });
    own.chain(names).collect()
}

/// The field that names the key of pseudonyms.
const KEY_FIELD: &str = "spec.privacy.pseudonymKeyRef";

/// The key of pseudonyms, which lies at `path` and is called as `named` says.
///
/// # Errors
/// A key that is not there, can't be read, or is too short.
pub fn read_key(path: &Path, named: Option<&SecretKey>) -> Result<Key, Failure> {
    let called = named.map_or_else(String::new, |SecretKey { name, key }| {
        format!("Secret \"{name}\", key \"{key}\": ")
    });
    let bytes = std::fs::read(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => missing_key(named),
        _ => Failure::unavailable(format!("{KEY_FIELD}: {called}it can't be read: {error}")),
    })?;
    Key::new(&bytes).map_err(|error| {
        Failure::bad_config(format!(
            "{KEY_FIELD}: {called}{error}; put a longer one there, then change the annotation graftwork.dev/refresh"
        ))
    })
}

/// A key that is not there. It may come, as a file of a volume may.
fn missing_key(named: Option<&SecretKey>) -> Failure {
    let what = match named {
        Some(SecretKey { name, key }) => {
            format!("there is no Secret \"{name}\", or it has no key \"{key}\"")
        }
        None => "there is no such Secret, or it has no such key".to_owned(),
    };
    Failure::source_not_found(format!(
        "{KEY_FIELD}: {what}; create it in the Dataset's namespace, with at least {MINIMUM_KEY_BYTES} bytes under \
         that key, and it is found by itself"
    ))
}

#[cfg(test)]
mod tests {
    use graftwork_artifacts::rows::Message;

    use super::*;

    fn screen(action: Action, columns: &[&str]) -> Screen {
        Screen {
            columns: columns.iter().map(|name| (*name).to_owned()).collect(),
            action,
            helper: None,
        }
    }

    fn row() -> Row {
        Row::Completion {
            prompt: "I am ann@example.com".to_owned(),
            completion: "Call 541-754-3010".to_owned(),
        }
    }

    #[test]
    fn only_the_named_columns_are_masked() {
        let mut counts = Counts::default();
        let mut row = row();
        let screen = screen(Action::Mask(Masker::Redact), &["prompt", "customer"]);
        let mut group = "bob@example.com".to_owned();
        screen
            .apply(&mut row, Some(("customer", &mut group)), &mut counts)
            .unwrap();
        assert_eq!(
            row,
            Row::Completion {
                prompt: "I am [EMAIL]".to_owned(),
                completion: "Call 541-754-3010".to_owned(),
            }
        );
        assert_eq!(group, "[EMAIL]");
        assert_eq!(counts.by_name()["email"], 2);
    }

    #[test]
    fn every_message_of_a_conversation_is_masked_and_no_role() {
        let message = |content: &str| Message {
            role: "user".to_owned(),
            content: content.to_owned(),
        };
        let mut row = Row::Chat {
            messages: vec![message("a@example.com"), message("b@example.com")],
        };
        let screen = screen(Action::Mask(Masker::Redact), &["messages"]);
        screen
            .apply(&mut row, None, &mut Counts::default())
            .unwrap();
        let messages = vec![message("[EMAIL]"), message("[EMAIL]")];
        assert_eq!(row, Row::Chat { messages });
    }

    #[test]
    fn a_refused_row_breaks_a_rule_that_names_column_and_types_alone() {
        let mut counts = Counts::default();
        let mut row = row();
        let screen = screen(Action::Reject, &["prompt", "completion"]);
        let rule = screen.apply(&mut row, None, &mut counts).unwrap_err();
        assert_eq!(rule, "prompt holds personal data (email)");
        assert_eq!(counts.by_name().len(), 2);
    }

    #[test]
    fn what_is_allowed_stays_and_is_counted() {
        let mut counts = Counts::default();
        let mut allowed = row();
        let screen = screen(Action::Count, &["prompt", "completion"]);
        screen.apply(&mut allowed, None, &mut counts).unwrap();
        assert_eq!(allowed, row());
        assert_eq!(counts.by_name()["phone"], 1);
    }

    #[test]
    fn a_key_that_is_missing_or_short_is_named_with_its_field() {
        let dir = tempfile::tempdir().unwrap();
        let named = SecretKey {
            name: "pseudonyms".to_owned(),
            key: "current".to_owned(),
        };
        for named in [None, Some(&named)] {
            let missing = read_key(&dir.path().join("key"), named).unwrap_err();
            assert_eq!(missing.reason, "SourceNotFound");
            let path = dir.path().join("short");
            std::fs::write(&path, "SECRET").unwrap();
            let short = read_key(&path, named).unwrap_err();
            assert_eq!(short.reason, "InvalidSpec");
            for failure in [missing, short] {
                let message = failure.message;
                assert!(message.starts_with("spec.privacy.pseudonymKeyRef:"));
                assert!(!message.contains("SECRET"));
                assert!(message.contains("at least 16"), "{message}");
                for part in ["Secret \"pseudonyms\"", "key \"current\""] {
                    assert_eq!(message.contains(part), named.is_some(), "{message}");
                }
            }
        }
    }
}
