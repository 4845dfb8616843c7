//! Rows to pre-train on: JSON lines, Text and Chat mixed.

use std::path::{Path, PathBuf};

use graftwork_contract::Digest;
use graftwork_contract::digest::PartsHasher;
use graftwork_model::tokenizer::{ChatMessage, TextTokenizer, TokenizedExample};
use rayon::prelude::*;
use serde::Deserialize;

use crate::failure::{Failure, causes};

/// One row.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Row {
    /// Every token is learnt.
    Text {
        /// The text.
        text: String,
    },
    /// Turns of a conversation; here, too, every token is learnt.
    Chat {
        /// The turns.
        messages: Vec<ChatMessage>,
    },
}

/// The rows of some files, in order.
#[derive(Debug)]
pub struct Corpus {
    /// The rows.
    pub rows: Vec<Row>,
    /// Over the files' bytes.
    pub digest: Digest,
}

impl Corpus {
    /// Reads JSONL files.
    ///
    /// # Errors
    /// [`Failure`] naming file and line: bad data; or a file that can't be read: bad configuration.
    pub fn read(paths: &[PathBuf]) -> Result<Self, Failure> {
        let mut rows = Vec::new();
        let mut hasher = PartsHasher::new();
        for path in paths {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Failure::bad_config(format!("cannot read {}: {error}", path.display()))
            })?;
            hasher.part(&text);
            rows.extend(parse(path, &text)?);
        }
        if rows.is_empty() {
            return Err(Failure::bad_data("the text files hold no rows"));
        }
        Ok(Self {
            rows,
            digest: hasher.finish(),
        })
    }

    /// Every text, without the markup of chats: what the tokenizer is trained on.
    pub fn texts(&self) -> impl Iterator<Item = &str> + Send {
        self.rows
            .iter()
            .flat_map(|row| -> Box<dyn Iterator<Item = &str> + Send> {
                match row {
                    Row::Text { text } => Box::new(std::iter::once(text.as_str())),
                    Row::Chat { messages } => Box::new(messages.iter().map(|m| m.content.as_str())),
                }
            })
    }

    /// The rows as tokens, each cut at its end to `context`. All tokens but the first are targets.
    ///
    /// # Errors
    /// A row that the tokenizer or the chat template refuses.
    pub fn examples(
        &self,
        tokenizer: &TextTokenizer,
        context: usize,
    ) -> Result<Vec<TokenizedExample>, Failure> {
        self.rows
            .par_iter()
            .map(|row| {
                let mut example = match row {
                    Row::Text { text } => tokenizer.example_text(text),
                    Row::Chat { messages } => tokenizer.example_chat(messages),
                }
                .map_err(|error| Failure::bad_data(causes(&error)))?;
                example.tokens.truncate(context);
                example.loss_mask = vec![true; example.tokens.len()];
                if let Some(first) = example.loss_mask.first_mut() {
                    *first = false;
                }
                Ok(example)
            })
            .collect()
    }
}

fn parse(path: &Path, text: &str) -> Result<Vec<Row>, Failure> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|_| {
                Failure::bad_data(format!(
                    "{} line {}: neither {{\"text\": ...}} nor {{\"messages\": [...]}}",
                    path.display(),
                    index + 1
                ))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_line_is_named_without_its_data() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, "{\"text\": \"one\"}\n\n{\"txet\": \"secret\"}\n").unwrap();
        let failure = Corpus::read(std::slice::from_ref(&path)).unwrap_err();
        assert_eq!(failure.code, graftwork_contract::exit::ExitCode::BadData);
        assert!(failure.message.contains("line 3"), "{failure}");
        assert!(!failure.message.contains("secret"), "{failure}");
        std::fs::write(&path, "\n").unwrap();
        assert!(Corpus::read(&[path]).is_err());
    }

    #[test]
    fn chats_and_texts_may_be_mixed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let chat = r#"{"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]}"#;
        std::fs::write(&path, format!("{{\"text\": \"a\"}}\n{chat}\n")).unwrap();
        let corpus = Corpus::read(&[path]).unwrap();
        assert_eq!(corpus.texts().collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
