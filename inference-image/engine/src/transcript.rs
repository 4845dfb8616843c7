//! From tokens to the text of an answer.

use graftwork_model::tokenizer::{StreamDecoder, TextTokenizer, TokenizerError};

use crate::device::{Sampled, TokenLogprobs};
use crate::stop::StopMatcher;

/// One token with its log-probability, as text.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenText {
    /// The token's own text; a part of a character is U+FFFD.
    pub token: String,
    /// Natural logarithm of its probability; none for a prompt's first token, which nothing predicts.
    pub logprob: Option<f32>,
    /// The most probable tokens at its place, best first.
    pub top: Vec<(String, f32)>,
    /// Characters of the text before it, a prompt that is given back included.
    pub offset: usize,
}

/// A prompt that is given back before its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Echo {
    /// As the client sent it, or as its tokens read.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
}

/// What one more token added to an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Piece {
    /// Text that is certainly part of the answer; may be empty.
    pub text: String,
    /// Where log-probabilities are asked for.
    pub tokens: Vec<TokenText>,
    /// Whether a stop text ended the answer.
    pub stopped: bool,
}

/// The growing text of one answer.
#[derive(Debug)]
pub struct Transcript<'a> {
    tokenizer: &'a TextTokenizer,
    decoder: StreamDecoder,
    stops: StopMatcher,
    /// Special tokens that are printed, with their texts.
    marks: Vec<(u32, String)>,
    tokens: usize,
    /// Characters so far.
    characters: usize,
}

impl<'a> Transcript<'a> {
    /// An empty answer.
    pub fn new(tokenizer: &'a TextTokenizer, stops: Vec<String>) -> Self {
        Self {
            tokenizer,
            decoder: tokenizer.stream(),
            stops: StopMatcher::new(stops),
            marks: Vec::new(),
            tokens: 0,
            characters: 0,
        }
    }

    /// Prints these special tokens, which a text leaves out otherwise.
    #[must_use]
    pub fn with_marks(mut self, marks: Vec<(u32, String)>) -> Self {
        self.marks = marks;
        self
    }

    /// The prompt, given back before the answer; stop texts do not look at it. `logprobs` are those of its
    /// tokens from the second on.
    ///
    /// # Errors
    /// Where the tokenizer does not know a token.
    pub fn echo(
        &mut self,
        prompt: &Echo,
        logprobs: Option<&[TokenLogprobs]>,
    ) -> Result<Piece, TokenizerError> {
        let mut tokens = Vec::new();
        if let Some(logprobs) = logprobs {
            let mut decoder = self.tokenizer.stream();
            let mut offset = self.characters;
            let scores = std::iter::once(None).chain(logprobs.iter().map(Some));
            for (token, score) in prompt.tokens.iter().zip(scores) {
                tokens.push(token_text(self.tokenizer, *token, score, offset)?);
                let text = decoder.push(self.tokenizer, *token)?;
                offset += text.map_or(0, |text| text.chars().count());
            }
        }
        self.characters += prompt.text.chars().count();
        Ok(Piece {
            text: prompt.text.clone(),
            tokens,
            stopped: false,
        })
    }

    /// Takes the next token.
    ///
    /// # Errors
    /// Where the tokenizer does not know the token.
    pub fn push(&mut self, sampled: &Sampled) -> Result<Piece, TokenizerError> {
        self.tokens += 1;
        let tokens = match &sampled.logprobs {
            None => Vec::new(),
            score => vec![token_text(
                self.tokenizer,
                sampled.token,
                score.as_ref(),
                self.characters,
            )?],
        };
        let Some(text) = self.decode(sampled.token)? else {
            return Ok(Piece {
                tokens,
                ..Piece::default()
            });
        };
        self.characters += text.chars().count();
        let matched = self.stops.push(&text);
        Ok(Piece {
            text: matched.text,
            tokens,
            stopped: matched.stopped,
        })
    }

    fn decode(&mut self, token: u32) -> Result<Option<String>, TokenizerError> {
        match self.marks.iter().find(|(id, _)| *id == token) {
            None => self.decoder.push(self.tokenizer, token),
            Some((_, mark)) => {
                // A character that was cut off by it stays cut off.
                let mut text = self.decoder.finish(self.tokenizer)?.unwrap_or_default();
                text.push_str(mark);
                Ok(Some(text))
            }
        }
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
            tokens: Vec::new(),
            stopped: matched.stopped,
        })
    }

    /// Tokens so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

fn token_text(
    tokenizer: &TextTokenizer,
    token: u32,
    score: Option<&TokenLogprobs>,
    offset: usize,
) -> Result<TokenText, TokenizerError> {
    let top = score.map_or(&[][..], |score| score.top.as_slice());
    Ok(TokenText {
        token: tokenizer.decode(&[token], false)?,
        logprob: score.map(|score| score.chosen),
        top: top
            .iter()
            .map(|(id, logprob)| Ok((tokenizer.decode(&[*id], false)?, *logprob)))
            .collect::<Result<_, TokenizerError>>()?,
        offset,
    })
}

#[cfg(test)]
mod tests {
    use graftwork_model::fixture::{TinyShape, write_tiny_base};

    use super::*;

    fn tokenizer() -> TextTokenizer {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
        TextTokenizer::load(dir.path()).unwrap()
    }

    fn score(chosen: f32) -> TokenLogprobs {
        TokenLogprobs {
            chosen,
            top: vec![],
        }
    }

    #[test]
    fn offsets_count_the_characters_of_the_text_before() {
        let tokenizer = tokenizer();
        // BOS, which is no text, then two bytes of one character, then a letter.
        let prompt = Echo {
            text: "\u{e4}b".into(),
            tokens: tokenizer.encode_prompt("\u{e4}b").unwrap(),
        };
        let mut transcript = Transcript::new(&tokenizer, vec![]);
        let scores = [score(-1.0), score(-2.0), score(-3.0)];
        let echoed = transcript.echo(&prompt, Some(&scores)).unwrap();
        assert_eq!(echoed.text, "\u{e4}b");
        let read = |token: &TokenText| (token.offset, token.logprob);
        assert_eq!(
            echoed.tokens.iter().map(read).collect::<Vec<_>>(),
            [(0, None), (0, Some(-1.0)), (0, Some(-2.0)), (1, Some(-3.0))]
        );
        let mut offsets = vec![];
        for token in tokenizer.encode("c\u{e4}d", false).unwrap() {
            let sampled = Sampled {
                token,
                logprobs: Some(score(-0.5)),
            };
            let piece = transcript.push(&sampled).unwrap();
            offsets.extend(piece.tokens.iter().map(|token| token.offset));
        }
        assert_eq!(offsets, [2, 3, 3, 4]);
    }

    #[test]
    fn a_mark_is_printed_between_what_stands_around_it() {
        let tokenizer = tokenizer();
        let mark = tokenizer.token_to_id("<|user|>").unwrap();
        let marks = vec![(mark, "<|user|>".to_owned())];
        let mut transcript = Transcript::new(&tokenizer, vec![]).with_marks(marks);
        let mut tokens = tokenizer.encode("a\u{e4}", false).unwrap();
        tokens.push(mark);
        tokens.extend(tokenizer.encode("b", false).unwrap());
        tokens.push(tokenizer.token_to_id("<|assistant|>").unwrap());
        let mut text = String::new();
        for token in tokens {
            let sampled = Sampled {
                token,
                logprobs: None,
            };
            text.push_str(&transcript.push(&sampled).unwrap().text);
        }
        assert_eq!(text, "a\u{e4}<|user|>b");
    }

    #[test]
    fn a_stop_text_in_the_prompt_stops_nothing() {
        let tokenizer = tokenizer();
        let prompt = Echo {
            text: "END".into(),
            tokens: vec![],
        };
        let mut transcript = Transcript::new(&tokenizer, vec!["END".into()]);
        assert_eq!(transcript.echo(&prompt, None).unwrap().text, "END");
        let token = tokenizer.encode("x", false).unwrap()[0];
        let piece = transcript
            .push(&Sampled {
                token,
                logprobs: None,
            })
            .unwrap();
        assert_eq!((piece.text.as_str(), piece.stopped), ("x", false));
    }
}
