//! The text of a stream of tokens.

use super::{TextTokenizer, TokenizerError};

/// Tokens that can still turn out to be the beginning of one character.
const PENDING_TOKENS: usize = 4;
/// What bytes decode to that are no character, or none yet.
const CUT: char = '\u{fffd}';

/// Turns tokens into text as they come: a character is given out once it is whole, and the pieces
/// joined are the text of all tokens together.
#[derive(Debug, Default)]
pub struct StreamDecoder {
    /// Those that a text does not leave out.
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
        if tokenizer.is_left_out(token) {
            return Ok(None);
        }
        self.tokens.push(token);
        let text = self.pending(tokenizer, self.tokens.len())?;
        if !text.ends_with(CUT) {
            return Ok(self.give(self.tokens.len(), text));
        }
        if self.tokens.len() - self.given < PENDING_TOKENS {
            return Ok(None);
        }
        // No character has so many tokens: those before the last ones, which may begin one, are none.
        for end in (self.tokens.len() - PENDING_TOKENS + 1..self.tokens.len()).rev() {
            let head = self.pending(tokenizer, end)?;
            if !head.is_empty() && text.len() > head.len() && text.starts_with(&head) {
                return Ok(self.give(end, head));
            }
        }
        Ok(self.give(self.tokens.len(), text))
    }

    /// What is left when no token comes any more.
    ///
    /// # Errors
    /// [`TokenizerError::Tokenize`].
    pub fn finish(&mut self, tokenizer: &TextTokenizer) -> Result<Option<String>, TokenizerError> {
        let text = self.pending(tokenizer, self.tokens.len())?;
        Ok(self.give(self.tokens.len(), text))
    }

    /// `text` is that of the tokens up to `end`.
    fn give(&mut self, end: usize, text: String) -> Option<String> {
        // Tokens without text, as SentencePiece's first space, are no context.
        if !text.is_empty() {
            self.context = self.given;
        }
        self.given = end;
        (!text.is_empty()).then_some(text)
    }

    /// The text from what has been given out up to `end`.
    fn pending(&self, tokenizer: &TextTokenizer, end: usize) -> Result<String, TokenizerError> {
        let decode = |tokens: std::ops::Range<usize>| {
            tokenizer.decode(self.tokens.get(tokens).unwrap_or_default(), true)
        };
        let known = decode(self.context..self.given)?;
        match decode(self.context..end)?.strip_prefix(&known) {
            Some(text) => Ok(text.to_owned()),
            // A run of byte tokens has a text only as a whole: with one more, those that were a character may be
            // none any more.
            None => decode(self.given..end),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::tokenizer::tests::tokenizer;

    fn streamed(tokenizer: &TextTokenizer, tokens: &[u32]) -> Vec<String> {
        let mut stream = tokenizer.stream();
        let mut pieces = Vec::new();
        for token in tokens {
            pieces.extend(stream.push(tokenizer, *token).unwrap());
        }
        pieces.extend(stream.finish(tokenizer).unwrap());
        pieces
    }

    #[test]
    fn streamed_pieces_joined_are_the_whole_text() {
        let tokenizer = tokenizer();
        let text = "naïve 漢字 🦀 done";
        let tokens = tokenizer.encode(text, false).unwrap();
        let pieces = streamed(&tokenizer, &tokens);
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

    #[test]
    fn nothing_is_lost_behind_special_tokens_or_bytes_that_are_no_character() {
        let tokenizer = tokenizer();
        let encode = |text: &str| tokenizer.encode(text, false).unwrap();
        let special = [256, 257, 100_000];
        let (crab, stray) = (encode("🦀 and more"), &encode("🦀")[1..2]);
        for before in [&special[..], &[stray, stray, stray].concat()] {
            let tokens = [before, &crab].concat();
            let pieces = streamed(&tokenizer, &tokens).concat();
            assert_eq!(pieces, tokenizer.decode(&tokens, true).unwrap());
            assert!(pieces.ends_with("🦀 and more"), "{pieces}");
        }
    }

    static TOKENIZER: LazyLock<TextTokenizer> = LazyLock::new(tokenizer);

    proptest! {
        #[test]
        fn pieces_of_any_tokens_joined_are_their_whole_text(
            tokens in prop::collection::vec(prop_oneof![0_u32..300, 120_u32..260], 0..40)
        ) {
            let whole = TOKENIZER.decode(&tokens, true).unwrap();
            prop_assert_eq!(streamed(&TOKENIZER, &tokens).concat(), whole);
        }
    }

    /// Tokens in the manner of `SentencePiece`: words with a leading space, bytes where there is no word.
    fn sentencepiece() -> TextTokenizer {
        let mut vocabulary: serde_json::Map<String, serde_json::Value> = (0..256)
            .map(|byte| (format!("<0x{byte:02X}>"), json!(byte)))
            .collect();
        vocabulary.insert("\u{2581}".to_owned(), json!(256));
        vocabulary.insert("\u{2581}word".to_owned(), json!(257));
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        });
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
        TextTokenizer::load(dir.path()).unwrap()
    }

    #[test]
    fn bytes_that_are_characters_only_together_come_out_whole_and_words_keep_their_spaces() {
        let tokenizer = sentencepiece();
        let crab: Vec<u32> = "🦀".bytes().map(u32::from).collect();
        let words = [256, 257, 257];
        let tokens = [&words[..], &crab, &crab, &[257]].concat();
        assert_eq!(
            streamed(&tokenizer, &tokens).concat(),
            " word word🦀🦀 word"
        );
        // What came out whole stays so, whatever follows it.
        let tokens = [&crab, &crab[..3], &crab[..3], &[257]].concat();
        let text = streamed(&tokenizer, &tokens).concat();
        let cut = text
            .strip_prefix("🦀")
            .unwrap()
            .strip_suffix(" word")
            .unwrap();
        assert!(!cut.is_empty() && cut.chars().all(|it| it == CUT), "{text}");
    }
}
