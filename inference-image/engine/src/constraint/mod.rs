//! Answers that are JSON of a schema: which tokens may come next.
//!
//! llguidance follows the answer's bytes through a grammar and says which tokens keep it possible.
//! What is allowed is a function of the tokens so far, so that an answer depends neither on its batch
//! nor on its being computed again. Schemas are untrusted: their size, the compiled grammar and each
//! step have limits that count work and not time, so that the same request always ends the same way.

mod schema;

use std::fmt;
use std::sync::Arc;

use graftwork_model::tokenizer::TextTokenizer;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

pub use schema::{MAXIMUM_SCHEMA_BYTES, SchemaError, check};

/// White space at one place: without a limit, a model that likes it writes nothing else.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,32}";
/// Characters of the library's messages that are given on.
const MAXIMUM_MESSAGE: usize = 300;

/// What one answer's grammar may cost. A compilation of so much fuel takes milliseconds, as does a
/// step of so much; a state of the lexer is one to two KiB.
fn limits() -> ParserLimits {
    ParserLimits {
        max_grammar_size: 100_000,
        max_lexer_states: 10_000,
        initial_lexer_fuel: 250_000,
        step_lexer_fuel: 100_000,
        step_max_items: 20_000,
        // It would cost each request what few of them need: steps pay for what they look at.
        precompute_large_lexemes: false,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Why an answer can't be constrained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The tokenizer's tokens are no bytes, or nothing ends an answer.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The schema.
    #[error("{0}")]
    Schema(String),
    /// The grammar asks for more than a step may cost.
    #[error(
        "response_format asks for too much at this place of the answer ({0}); a simpler schema works"
    )]
    Step(String),
}

/// Makes constraints for one base model.
pub struct Grammars {
    factory: ParserFactory,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl Grammars {
    /// For a model with so many logits, whose answers end with one of these tokens.
    ///
    /// # Errors
    /// [`ConstraintError::Unsupported`].
    pub fn new(
        tokenizer: &TextTokenizer,
        vocabulary: usize,
        end_tokens: &[u32],
    ) -> Result<Self, ConstraintError> {
        let end_tokens: Vec<u32> = end_tokens
            .iter()
            .copied()
            .filter(|id| (*id as usize) < vocabulary)
            .collect();
        let Some(first) = end_tokens.first() else {
            return Err(ConstraintError::Unsupported(
                "the model names no token that ends an answer",
            ));
        };
        let bytes = tokenizer
            .token_bytes(vocabulary)
            .ok_or(ConstraintError::Unsupported(
                "the model's tokenizer has a decoder whose tokens are no bytes",
            ))?;
        let words: Vec<Vec<u8>> = (0_u32..)
            .zip(bytes)
            .map(|(id, bytes)| match bytes {
                Some(bytes) if !end_tokens.contains(&id) => bytes,
                _ => not_text(id),
            })
            .collect();
        let info = TokRxInfo::new(u32::try_from(words.len()).unwrap_or(u32::MAX), *first);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&end_tokens);
        // Approximate: how the model cuts what the grammar leaves no choice about is the model's.
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|error| {
            tracing::error!(%error, "grammars can't be made for this tokenizer");
            ConstraintError::Unsupported("the model's tokenizer is not one that grammars work with")
        })?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory })
    }

    /// The constraint of answers of a schema that [`check`] accepted.
    ///
    /// # Errors
    /// [`ConstraintError::Schema`] where the schema can't be met, or is too large.
    pub fn constraint(&self, schema: &Value) -> Result<Constraint, ConstraintError> {
        let mut guided = schema.clone();
        if let Some(fields) = guided.as_object_mut() {
            let options = json!({"whitespace_pattern": WHITE_SPACE});
            fields.insert("x-guidance".to_owned(), options);
        }
        let grammar = TopLevelGrammar::from_json_schema(guided);
        let parser = self.factory.create_parser(grammar);
        let parser = parser.map_err(|error| {
            // The library names no place.
            let blamed = schema::blame(schema).map(|blamed| blamed.to_string());
            ConstraintError::Schema(blamed.unwrap_or_else(|| shown(&error.to_string())))
        })?;
        Ok(Constraint {
            matcher: Matcher::new(Ok(parser)),
            next: None,
        })
    }
}

/// Bytes that no grammar matches: 0xFF is never part of a text.
fn not_text(id: u32) -> Vec<u8> {
    let mut bytes = vec![TokTrie::SPECIAL_TOKEN_MARKER];
    bytes.extend(format!("<[{id}]>").bytes());
    bytes
}

/// Which tokens may come next in one answer.
pub struct Constraint {
    matcher: Matcher,
    /// What may come next, where that is known already.
    next: Option<Result<SimpleVob, ConstraintError>>,
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

impl Constraint {
    /// One for another answer, at the same place; they share nothing.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self {
            matcher: self.matcher.deep_clone(),
            next: None,
        }
    }

    /// Finds out what may come next.
    fn prepare(&mut self) {
        if self.next.is_none() {
            let mask = self.matcher.compute_mask();
            self.next =
                Some(mask.map_err(|error| ConstraintError::Step(shown(&error.to_string()))));
        }
    }

    /// Makes every token impossible that may not come next. An end of text may come where the JSON is
    /// whole.
    ///
    /// # Errors
    /// [`ConstraintError::Step`].
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        self.prepare();
        match &self.next {
            None => Ok(()),
            Some(Err(error)) => Err(error.clone()),
            Some(Ok(allowed)) => {
                allowed.iter_unset_entries(|id| {
                    if let Some(logit) = logits.get_mut(id) {
                        *logit = f32::NEG_INFINITY;
                    }
                });
                // The vocabulary is as long as the logits; this keeps it so.
                for logit in logits.iter_mut().skip(allowed.len()) {
                    *logit = f32::NEG_INFINITY;
                }
                Ok(())
            }
        }
    }

    /// Goes on by a token that was drawn, which is no end of text.
    ///
    /// # Errors
    /// [`ConstraintError::Step`].
    pub fn commit(&mut self, token: u32) -> Result<(), ConstraintError> {
        self.next = None;
        self.matcher
            .consume_token(token)
            .map_err(|error| ConstraintError::Step(shown(&error.to_string())))
    }

    /// Whether nothing but an end of text may follow.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

/// A message of the library for a client: on one line, without what is about the library itself.
fn shown(message: &str) -> String {
    let about_the_library = |line: &&str| line.starts_with('<') || line.starts_with("panic");
    let text = message
        .lines()
        .map(str::trim)
        .take_while(|line| !about_the_library(line))
        .collect::<Vec<_>>()
        .join(" ");
    if text.is_empty() {
        return "it can't be made into a grammar".to_owned();
    }
    text.chars().take(MAXIMUM_MESSAGE).collect()
}

#[cfg(test)]
mod tests;
