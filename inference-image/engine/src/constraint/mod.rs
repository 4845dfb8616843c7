//! Answers that are JSON of a schema, a call of a tool, or text with calls of some tools alone: which tokens may come
//! next.
//!
//! llguidance follows the answer's bytes through a grammar and says which tokens keep it possible.
//! What is allowed is a function of the tokens so far, so that an answer depends neither on its batch
//! nor on its being computed again. Schemas are untrusted: their size, the compiled grammar and each
//! step have limits that count work and not time, so that the same request always ends the same way.

mod call;
mod schema;
mod steered;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use graftwork_model::tokenizer::TextTokenizer;
use graftwork_model::tool_calls::CallOpening;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

pub use call::CallForm;
use call::{Before, Form};
pub use schema::{MAXIMUM_SCHEMA_BYTES, SchemaError, check};
use steered::Steered;

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
}

/// A grammar asks for more than a step may cost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{param} asks for too much at this place of the answer ({problem}); a simpler schema works"
)]
pub struct StepError {
    /// The request's field with the schema.
    pub param: &'static str,
    /// What is too much.
    problem: String,
}

/// The field with the schema of an answer.
const RESPONSE_FORMAT: &str = "response_format";
/// The field with the schemas of arguments.
const TOOLS: &str = "tools";

/// Makes constraints for one base model.
pub struct Grammars {
    factory: ParserFactory,
    vocabulary: usize,
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
        Ok(Self {
            factory,
            vocabulary,
        })
    }

    /// The constraint of answers of a schema that [`check`] accepted.
    ///
    /// # Errors
    /// [`ConstraintError::Schema`] where the schema can't be met, or is too large.
    pub fn constraint(&self, schema: &Value) -> Result<Constraint, ConstraintError> {
        let guided = self.guided(schema, RESPONSE_FORMAT)?;
        let place = Place::Json {
            guided: Box::new(guided),
            behind: None,
        };
        Ok(Constraint { place })
    }

    /// The constraint of answers that are one call of one of these tools, at least one; [`check`] accepted their
    /// schemas, which are of objects alone.
    ///
    /// # Errors
    /// The tool's place in the list, and why: [`ConstraintError::Schema`] as in [`Self::constraint`],
    /// [`ConstraintError::Unsupported`] where the model lacks a token of the call.
    pub fn call(&self, tools: Vec<CallForm>) -> Result<Constraint, (usize, ConstraintError)> {
        let forms = tools.into_iter().enumerate().map(|(index, tool)| {
            let form = self.form(tool);
            form.map_err(|error| (index, error))
        });
        let forms = forms.collect::<Result<Vec<Form>, _>>()?;
        let place = Place::Before(Before::new(forms));
        Ok(Constraint { place })
    }

    fn form(&self, tool: CallForm) -> Result<Form, ConstraintError> {
        let is_known = |token: &u32| (*token as usize) < self.vocabulary;
        let frame = tool.frame;
        if frame.before.is_empty() || !frame.before.iter().chain(&frame.behind).all(is_known) {
            return Err(ConstraintError::Unsupported(
                "the model has no tokens for what stands around a call",
            ));
        }
        let arguments = self.guided(&tool.arguments, TOOLS)?;
        Ok(Form::new(frame, arguments))
    }

    fn guided(&self, schema: &Value, param: &'static str) -> Result<Guided, ConstraintError> {
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
        Ok(Guided {
            matcher: Matcher::new(Ok(parser)),
            next: None,
            param,
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
#[derive(Debug)]
pub struct Constraint {
    place: Place,
}

/// Where an answer is.
#[derive(Debug)]
enum Place {
    /// In an answer of the model's own making, but for which tools it calls.
    Steered(Steered),
    /// Before the arguments of a call.
    Before(Before),
    /// In JSON of a schema; in a call's arguments, with the tokens that have to follow them.
    Json {
        guided: Box<Guided>,
        behind: Option<VecDeque<u32>>,
    },
    /// Behind the arguments: what has to follow yet.
    Behind(VecDeque<u32>),
}

impl Constraint {
    /// The constraint of answers of the model's own making, but that they call none but the openings' tools; for a model
    /// with so many logits. It needs no grammar, and never ends an answer.
    pub fn steered(openings: Vec<CallOpening>, vocabulary: usize) -> Self {
        let place = Place::Steered(Steered::new(openings, vocabulary));
        Self { place }
    }

    /// One for another answer, at the same place; what changes, they do not share.
    #[must_use]
    pub fn copy(&self) -> Self {
        let place = match &self.place {
            Place::Steered(steered) => Place::Steered(steered.clone()),
            Place::Before(before) => Place::Before(before.clone()),
            Place::Json { guided, behind } => Place::Json {
                guided: Box::new(guided.copy()),
                behind: behind.clone(),
            },
            Place::Behind(rest) => Place::Behind(rest.clone()),
        };
        Self { place }
    }

    /// Makes every token impossible that may not come next. An end of text may come where the JSON is
    /// whole; none comes in a call.
    ///
    /// # Errors
    /// [`StepError`].
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), StepError> {
        match &mut self.place {
            Place::Steered(steered) => {
                if let Some(allowed) = steered.following() {
                    leave(logits, &allowed);
                }
            }
            Place::Before(before) => leave(logits, &before.following()),
            Place::Json { guided, .. } => guided.mask(logits)?,
            Place::Behind(rest) => leave(
                logits,
                rest.front().map(std::slice::from_ref).unwrap_or_default(),
            ),
        }
        Ok(())
    }

    /// Goes on by a token that was drawn, which is no end of text.
    ///
    /// # Errors
    /// [`StepError`].
    pub fn commit(&mut self, token: u32) -> Result<(), StepError> {
        let next = match &mut self.place {
            Place::Steered(steered) => {
                steered.commit(token);
                None
            }
            Place::Before(before) => before.commit(token),
            Place::Json { guided, behind } => {
                guided.commit(token)?;
                // Objects end with their brace: nothing but white space could follow.
                if behind.is_some() && guided.is_whole()? {
                    behind.take().map(Place::Behind)
                } else {
                    None
                }
            }
            Place::Behind(rest) => {
                rest.pop_front();
                None
            }
        };
        if let Some(next) = next {
            self.place = next;
        }
        Ok(())
    }

    /// Whether nothing but an end of text may follow.
    pub fn is_complete(&self) -> bool {
        match &self.place {
            Place::Steered(_) | Place::Before(_) => false,
            Place::Json { guided, behind } => behind.is_none() && guided.is_complete(),
            Place::Behind(rest) => rest.is_empty(),
        }
    }
}

/// Makes every token impossible but these.
fn leave(logits: &mut [f32], allowed: &[u32]) {
    let kept: Vec<(usize, f32)> = allowed
        .iter()
        .filter_map(|id| {
            let id = *id as usize;
            logits.get(id).map(|logit| (id, *logit))
        })
        .collect();
    logits.fill(f32::NEG_INFINITY);
    for (id, kept) in kept {
        if let Some(logit) = logits.get_mut(id) {
            *logit = kept;
        }
    }
}

/// Which tokens may come next in JSON of a schema.
struct Guided {
    matcher: Matcher,
    /// What may come next, where that is known already.
    next: Option<Result<SimpleVob, StepError>>,
    /// The request's field with the schema.
    param: &'static str,
}

impl fmt::Debug for Guided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guided").finish_non_exhaustive()
    }
}

impl Guided {
    fn copy(&self) -> Self {
        Self {
            matcher: self.matcher.deep_clone(),
            next: None,
            param: self.param,
        }
    }

    fn failed(&self, error: &str) -> StepError {
        StepError {
            param: self.param,
            problem: shown(error),
        }
    }

    /// Finds out what may come next.
    fn prepare(&mut self) {
        if self.next.is_none() {
            let mask = self.matcher.compute_mask();
            self.next = Some(mask.map_err(|error| self.failed(&error.to_string())));
        }
    }

    fn mask(&mut self, logits: &mut [f32]) -> Result<(), StepError> {
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

    fn commit(&mut self, token: u32) -> Result<(), StepError> {
        self.next = None;
        let went_on = self.matcher.consume_token(token);
        went_on.map_err(|error| self.failed(&error.to_string()))
    }

    /// Whether the JSON may end here.
    fn is_whole(&mut self) -> Result<bool, StepError> {
        if self.is_complete() {
            return Ok(true);
        }
        let is_accepting = self.matcher.is_accepting();
        is_accepting.map_err(|error| self.failed(&error.to_string()))
    }

    /// Whether the JSON has to end here.
    fn is_complete(&self) -> bool {
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
