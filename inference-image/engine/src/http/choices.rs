//! The growing answers of one request: what each event adds to which of them.

use graftwork_model::tokenizer::{TextTokenizer, TokenizerError};

use super::record::Record;
use crate::device::{Event, TokenLogprobs};
use crate::openai::ApiError;
use crate::openai::answer::FinishReason;
use crate::transcript::{Echo, Piece, TokenText, Transcript};

/// What was asked for, as far as the answers' texts depend on it.
pub(super) struct Shape {
    /// The prompts, where they are given back; `answers` for each.
    pub(super) echoes: Vec<Echo>,
    /// Answers to each prompt.
    pub(super) answers: usize,
    /// Answers in all.
    pub(super) count: usize,
    /// Stop texts.
    pub(super) stops: Vec<String>,
    /// Whether log-probabilities are asked for.
    pub(super) logprobs: bool,
}

/// What one event adds to an answer.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Step {
    pub(super) text: String,
    pub(super) tokens: Vec<TokenText>,
    pub(super) finish: Option<FinishReason>,
}

impl Step {
    /// Whether there is nothing to show yet.
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.tokens.is_empty()
    }
}

/// The texts of all answers, in the order of prompts and, for each, of its answers.
pub(super) struct Choices<'a> {
    shape: Shape,
    transcripts: Vec<Transcript<'a>>,
}

impl<'a> Choices<'a> {
    pub(super) fn new(tokenizer: &'a TextTokenizer, shape: Shape) -> Self {
        let transcripts = (0..shape.count)
            .map(|_| Transcript::new(tokenizer, shape.stops.clone()))
            .collect();
        Self { shape, transcripts }
    }

    pub(super) fn count(&self) -> usize {
        self.shape.count
    }

    /// Tokens of all answers.
    pub(super) fn tokens(&self) -> usize {
        self.transcripts.iter().map(Transcript::tokens).sum()
    }

    /// What an answer begins with: its prompt, unless that waits for its log-probabilities.
    pub(super) fn open(&mut self, index: usize) -> Result<Step, ApiError> {
        if self.shape.logprobs {
            return Ok(Step::default());
        }
        self.echo(index, None)
    }

    /// What an event adds.
    pub(super) fn take(
        &mut self,
        index: usize,
        event: &Event,
        record: &mut Record,
    ) -> Result<Step, ApiError> {
        match event {
            Event::Prompt(scores) => self.echo(index, Some(scores)),
            Event::Token(sampled) => {
                record.token();
                let piece = self.transcript(index)?.push(sampled);
                Ok(step(piece.map_err(undecodable)?, None))
            }
            Event::Finished(finish) => {
                let piece = self.transcript(index)?.finish();
                Ok(step(piece.map_err(undecodable)?, Some(*finish)))
            }
            Event::Failed(message) => Err(ApiError::internal(message.clone())),
        }
    }

    fn echo(&mut self, index: usize, scores: Option<&[TokenLogprobs]>) -> Result<Step, ApiError> {
        let prompt = index / self.shape.answers.max(1);
        match (
            self.shape.echoes.get(prompt),
            self.transcripts.get_mut(index),
        ) {
            (Some(echo), Some(transcript)) => {
                let piece = transcript.echo(echo, scores).map_err(undecodable)?;
                Ok(step(piece, None))
            }
            _ => Ok(Step::default()),
        }
    }

    fn transcript(&mut self, index: usize) -> Result<&mut Transcript<'a>, ApiError> {
        self.transcripts
            .get_mut(index)
            .ok_or_else(|| ApiError::internal("an answer came that nobody asked for"))
    }
}

fn step(piece: Piece, finish: Option<FinishReason>) -> Step {
    Step {
        text: piece.text,
        tokens: piece.tokens,
        finish: if piece.stopped {
            Some(FinishReason::Stop)
        } else {
            finish
        },
    }
}

fn undecodable(error: TokenizerError) -> ApiError {
    ApiError::internal(error.to_string())
}
