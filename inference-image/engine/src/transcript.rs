//! From sampled tokens to the text of an answer.

use graftwork_model::tokenizer::{StreamDecoder, TextTokenizer, TokenizerError};

use crate::device::Sampled;
use crate::stop::StopMatcher;

/// One token with its log-probability, as text.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenText {
    /// The token's own text; a part of a character is U+FFFD.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The most probable tokens at its place.
    pub top: Vec<(String, f32)>,
}

/// What one more token added to an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Piece {
    /// Text that is certainly part of the answer; may be empty.
    pub text: String,
    /// Where log-probabilities are asked for.
    pub token: Option<TokenText>,
    /// Whether a stop text ended the answer.
    pub stopped: bool,
}

/// The growing text of one answer.
#[derive(Debug)]
pub struct Transcript<'a> {
    tokenizer: &'a TextTokenizer,
    decoder: StreamDecoder,
    stops: StopMatcher,
    tokens: usize,
}

impl<'a> Transcript<'a> {
    /// An empty answer.
    pub fn new(tokenizer: &'a TextTokenizer, stops: Vec<String>) -> Self {
        Self {
            tokenizer,
            decoder: tokenizer.stream(),
            stops: StopMatcher::new(stops),
            tokens: 0,
        }
    }

    /// Takes the next token.
    ///
    /// # Errors
    /// Where the tokenizer does not know the token.
    pub fn push(&mut self, sampled: &Sampled) -> Result<Piece, TokenizerError> {
        self.tokens += 1;
        let token = match &sampled.logprobs {
            None => None,
            Some(logprobs) => Some(TokenText {
                token: self.tokenizer.decode(&[sampled.token], false)?,
                logprob: logprobs.chosen,
                top: logprobs
                    .top
                    .iter()
                    .map(|(id, logprob)| Ok((self.tokenizer.decode(&[*id], false)?, *logprob)))
                    .collect::<Result<_, TokenizerError>>()?,
            }),
        };
        let Some(text) = self.decoder.push(self.tokenizer, sampled.token)? else {
            return Ok(Piece {
                token,
                ..Piece::default()
            });
        };
        let matched = self.stops.push(&text);
        Ok(Piece {
            text: matched.text,
            token,
            stopped: matched.stopped,
        })
    }

    /// What is left when no token comes any more.
    ///
    /// # Errors
    /// As in [`Self::push`].
    pub fn finish(&mut self) -> Result<Piece, TokenizerError> {
        let rest = self.decoder.finish(self.tokenizer)?.unwrap_or_default();
        let matched = self.stops.push(&rest);
        let mut text = matched.text;
        if !matched.stopped {
            text.push_str(&self.stops.finish());
        }
        Ok(Piece {
            text,
            token: None,
            stopped: matched.stopped,
        })
    }

    /// Tokens so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}
