//! The text of a stream of tokens.

use super::{TextTokenizer, TokenizerError};

/// Tokens that can still turn out to be the beginning of one character.
const PENDING_TOKENS: usize = 4;

/// Turns tokens into text as they come: a character is given out once it is whole, and the pieces
/// joined are the text of all tokens together.
#[derive(Debug, Default)]
pub struct StreamDecoder {
    tokens: Vec<u32>,
    /// Tokens before this one only give the next ones their context.
    context: usize,
    /// Tokens before this one have been given out.
    given: usize,
}

impl StreamDecoder {
    /// Takes the next token; gives text once there is some.
    ///
    /// # Errors
    /// [`TokenizerError::Tokenize`].
    pub fn push(
        &mut self,
        tokenizer: &TextTokenizer,
        token: u32,
    ) -> Result<Option<String>, TokenizerError> {
        self.tokens.push(token);
        let text = self.pending(tokenizer)?;
        let is_cut = text.ends_with('\u{fffd}') && self.tokens.len() - self.given < PENDING_TOKENS;
        if is_cut || text.is_empty() {
            return Ok(None);
        }
        self.context = self.given;
        self.given = self.tokens.len();
        Ok(Some(text))
    }

    /// What is left when no token comes any more.
    ///
    /// # Errors
    /// [`TokenizerError::Tokenize`].
    pub fn finish(&mut self, tokenizer: &TextTokenizer) -> Result<Option<String>, TokenizerError> {
        let text = self.pending(tokenizer)?;
        self.given = self.tokens.len();
        Ok((!text.is_empty()).then_some(text))
    }

    fn pending(&self, tokenizer: &TextTokenizer) -> Result<String, TokenizerError> {
        let known = self
            .tokens
            .get(self.context..self.given)
            .unwrap_or_default();
        let all = self.tokens.get(self.context..).unwrap_or_default();
        let known = tokenizer.decode(known, true)?;
        let all = tokenizer.decode(all, true)?;
        Ok(all.get(known.len()..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use crate::tokenizer::tests::tokenizer;

    #[test]
    fn streamed_pieces_joined_are_the_whole_text() {
        let tokenizer = tokenizer();
        let text = "naïve 漢字 🦀 done";
        let tokens = tokenizer.encode(text, false).unwrap();
        let mut stream = tokenizer.stream();
        let mut pieces = Vec::new();
        for token in &tokens {
            pieces.extend(stream.push(&tokenizer, *token).unwrap());
        }
        pieces.extend(stream.finish(&tokenizer).unwrap());
        assert_eq!(pieces.concat(), text);
        assert!(pieces.len() > 5);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
    }

    #[test]
    fn a_cut_character_comes_out_at_the_end() {
        let tokenizer = tokenizer();
        let tokens = tokenizer.encode("é", false).unwrap();
        assert_eq!(tokens.len(), 2, "one token a byte");
        let mut stream = tokenizer.stream();
        assert_eq!(stream.push(&tokenizer, tokens[0]).unwrap(), None);
        assert_eq!(
            stream.finish(&tokenizer).unwrap().as_deref(),
            Some("\u{fffd}")
        );
    }
}
