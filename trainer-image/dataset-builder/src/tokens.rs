//! Lengths of rows in tokens: as many as a trainer makes of them, with what the chat template and the end of a
//! row take. Of a preference the longer answer counts.
//!
//! What counts is behind [`Measure`]; the one there is, is the base model's own tokenizer.

use std::fmt::Debug;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use graftwork_artifacts::rows::{Message, Row};
use graftwork_contract::dataset::{BaseModel, BuildConfig, Format, TokenizerProvenance};
use graftwork_contract::digest::PartsHasher;
use graftwork_model::category::Category;
use graftwork_model::tokenizer::{
    CHAT_TEMPLATE_FILE, ChatMessage, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, TextTokenizer,
    TokenizerError,
};

use crate::failure::{Failure, causes};

/// What can say how long a row is.
pub trait Measure: Debug + Send + Sync {
    /// Tokens of a row.
    ///
    /// # Errors
    /// The rule that the row breaks, in words and without data.
    fn tokens(&self, row: &Row) -> Result<u32, String>;

    /// Tokens of a text alone, without what a template or the end of a row adds.
    ///
    /// # Errors
    /// What is wrong with the text, in words and without data.
    fn count(&self, text: &str) -> Result<u32, String>;
}

/// A measure, and how long a row may be by it.
#[derive(Debug, Clone, Copy)]
pub struct Measured<'a> {
    /// What measures.
    pub measure: &'a dyn Measure,
    /// Most tokens; none: any number.
    pub maximum: Option<u32>,
}

impl Measured<'_> {
    /// Tokens of a row that is not too long.
    ///
    /// # Errors
    /// The rule that the row breaks, in words and without data.
    pub fn tokens(&self, row: &Row) -> Result<u32, String> {
        let tokens = self.measure.tokens(row)?;
        match self.maximum {
            Some(maximum) if tokens > maximum => Err(format!("has more than {maximum} tokens")),
            _ => Ok(tokens),
        }
    }
}

/// The base model's tokenizer.
#[derive(Debug)]
pub struct BaseTokens {
    tokenizer: TextTokenizer,
    /// Where it came from.
    pub provenance: TokenizerProvenance,
}

impl BaseTokens {
    /// The tokenizer of the base model that the configuration names; none where it names none.
    ///
    /// # Errors
    /// A folder or file that is not there, can't be read or can't be used, or a tokenizer that can make no
    /// rows of the configuration's format.
    pub fn load(config: &BuildConfig) -> Result<Option<Arc<Self>>, Failure> {
        let Some(base) = &config.base_model else {
            return Ok(None);
        };
        let tokenizer = TextTokenizer::load(Path::new(&base.path))
            .map_err(|error| failed(base, error.category(), &error))?;
        let lacks = match config.format {
            Format::Chat if !tokenizer.has_chat_template() => Some("chat template"),
            Format::Text | Format::Completion | Format::Preference if tokenizer.eos().is_none() => {
                Some("eos_token")
            }
            _ => None,
        };
        if let Some(what) = lacks {
            return Err(Failure::base_invalid(format!(
                "spec.baseModel ({}) has no {what}, which rows of format {:?} need",
                base.uri, config.format
            )));
        }
        Ok(Some(Arc::new(Self {
            tokenizer,
            provenance: provenance(base)?,
        })))
    }
}

impl Measure for BaseTokens {
    fn tokens(&self, row: &Row) -> Result<u32, String> {
        let tokenizer = &self.tokenizer;
        let length = match row {
            Row::Text { text } => tokenizer.example_text(text).map(|it| it.tokens.len()),
            Row::Completion { prompt, completion } => tokenizer
                .example_completion(prompt, completion)
                .map(|it| it.tokens.len()),
            Row::Preference {
                prompt,
                chosen,
                rejected,
            } => {
                let length = |answer: &str| {
                    let example = tokenizer.example_completion(prompt, answer)?;
                    Ok::<_, TokenizerError>(example.tokens.len())
                };
                length(chosen).and_then(|chosen| Ok(chosen.max(length(rejected)?)))
            }
            Row::Chat { messages } => tokenizer
                .example_chat(&chat(messages))
                .map(|it| it.tokens.len()),
        };
        length
            .map(|length| u32::try_from(length).unwrap_or(u32::MAX))
            .map_err(|error| refused(&error).to_owned())
    }

    fn count(&self, text: &str) -> Result<u32, String> {
        let tokens = self.tokenizer.encode(text, false);
        tokens
            .map(|tokens| u32::try_from(tokens.len()).unwrap_or(u32::MAX))
            .map_err(|error| refused(&error).to_owned())
    }
}

/// What a tokenizer says against a row may repeat the row.
fn refused(error: &TokenizerError) -> &'static str {
    match error {
        TokenizerError::Chat(_) => "is refused by the base model's chat template",
        TokenizerError::Missing(_)
        | TokenizerError::Read { .. }
        | TokenizerError::Format { .. }
        | TokenizerError::Tokenize(_)
        | TokenizerError::NoEos => "is refused by the base model's tokenizer",
    }
}

fn chat(messages: &[Message]) -> Vec<ChatMessage> {
    messages
        .iter()
        .map(|message| ChatMessage::new(message.role.clone(), message.content.clone()))
        .collect()
}

fn failed(base: &BaseModel, category: Category, error: &TokenizerError) -> Failure {
    let message = format!("spec.baseModel ({}): {}", base.uri, causes(error));
    match (category, error) {
        (_, TokenizerError::Missing(_)) => Failure::base_not_found(message),
        (Category::Transient, _) => Failure::unavailable(message),
        (Category::Invalid, _) => Failure::base_invalid(message),
        (Category::Bug, _) => Failure::bug(message),
    }
}

/// Over the tokenizer's files, those that are there.
fn provenance(base: &BaseModel) -> Result<TokenizerProvenance, Failure> {
    let mut hasher = PartsHasher::new();
    for name in [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, CHAT_TEMPLATE_FILE] {
        match std::fs::read(Path::new(&base.path).join(name)) {
            Ok(bytes) => {
                hasher.part(name).part(bytes);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Failure::unavailable(format!(
                    "spec.baseModel ({}): {name} can't be read: {error}",
                    base.uri
                )));
            }
        }
    }
    Ok(TokenizerProvenance {
        uri: base.uri.clone(),
        digest: hasher.finish(),
    })
}
