//! The bytes that each token stands for: what a grammar over bytes needs of a tokenizer.

use std::collections::BTreeMap;

use serde_json::Value;
use tokenizers::Tokenizer;

/// Bytes of the tokens below `count`. A token has none where it is special (it is no text), or where
/// the tokenizer does not know it. `None`: the tokenizer's decoder is not one whose tokens are bytes.
///
/// Decoders of the two kinds that models of our families have: `ByteLevel` (GPT-2, Llama 3, Qwen) and
/// `ByteFallback` (`SentencePiece`: Llama 2, Mistral).
pub(crate) fn token_bytes(tokenizer: &Tokenizer, count: usize) -> Option<Vec<Option<Vec<u8>>>> {
    let mut kind = Kind::default();
    kind.read(&serde_json::to_value(tokenizer.get_decoder()).ok()?);
    if !kind.is_byte_level && !kind.has_byte_fallback {
        return None;
    }
    let added = tokenizer.get_added_tokens_decoder();
    let stand_ins = stand_ins();
    let bytes_of = |id: u32| {
        if let Some(token) = added.get(&id) {
            return (!token.special).then(|| token.content.clone().into_bytes());
        }
        let text = tokenizer.id_to_token(id)?;
        if kind.is_byte_level {
            return text
                .chars()
                .map(|stand_in| stand_ins.get(&stand_in).copied())
                .collect();
        }
        match byte(&text) {
            Some(byte) => Some(vec![byte]),
            None => Some(kind.spaces(&text).into_bytes()),
        }
    };
    Some((0_u32..).take(count).map(bytes_of).collect())
}

/// What a decoder does.
#[derive(Default)]
struct Kind {
    is_byte_level: bool,
    has_byte_fallback: bool,
    /// What stands for a space.
    space: Option<String>,
}

impl Kind {
    fn read(&mut self, decoder: &Value) {
        match decoder["type"].as_str() {
            Some("ByteLevel") => self.is_byte_level = true,
            Some("ByteFallback") => self.has_byte_fallback = true,
            Some("Replace") if decoder["content"] == " " => {
                self.space = decoder
                    .pointer("/pattern/String")
                    .and_then(Value::as_str)
                    .map(str::to_owned);
            }
            Some("Sequence") => {
                let decoders = decoder["decoders"].as_array().into_iter().flatten();
                decoders.for_each(|decoder| self.read(decoder));
            }
            _ => {}
        }
    }

    fn spaces(&self, text: &str) -> String {
        match &self.space {
            Some(space) if !space.is_empty() => text.replace(space.as_str(), " "),
            _ => text.to_owned(),
        }
    }
}

/// `<0x0A>` as `SentencePiece` writes a byte.
fn byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2)
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

/// GPT-2's printable stand-ins of bytes: printable ones for themselves, the others from U+0100 on, in
/// order (`bytes_to_unicode` of its encoder).
/// The character that stands for each byte.
pub(crate) fn stand_in_of_bytes() -> [char; 256] {
    let mut of_bytes = ['\0'; 256];
    for (stand_in, byte) in stand_ins() {
        if let Some(of_byte) = of_bytes.get_mut(usize::from(byte)) {
            *of_byte = stand_in;
        }
    }
    of_bytes
}

fn stand_ins() -> BTreeMap<char, u8> {
    let mut others = '\u{100}'..;
    (0..=u8::MAX)
        .filter_map(|byte| {
            let itself = char::from(byte);
            let stand_in = match itself {
                '!'..='~' | '\u{a1}'..='\u{ac}' | '\u{ae}'..='\u{ff}' => itself,
                _ => others.next()?,
            };
            Some((stand_in, byte))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use tokenizers::decoders::DecoderWrapper;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;

    fn tokenizer(vocabulary: &Value, decoder: &Value) -> Tokenizer {
        let text = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
            "added_tokens": [
                {"id": 3, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
                 "rstrip": false, "normalized": false},
                {"id": 4, "content": "<tool>", "special": false, "single_word": false, "lstrip": false,
                 "rstrip": false, "normalized": false},
            ],
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        });
        text.to_string().parse().unwrap()
    }

    #[expect(clippy::unnecessary_wraps, reason = "as the table holds them")]
    fn bytes(text: &str) -> Option<Vec<u8>> {
        Some(text.as_bytes().to_vec())
    }

    #[test]
    fn tokens_of_byte_level_tokenizers_are_the_bytes_behind_their_stand_ins() {
        let vocabulary = serde_json::json!({"a": 0, "\u{120}b": 1, "\u{c3}\u{a4}": 2});
        let decoder = serde_json::to_value(DecoderWrapper::from(ByteLevel::default())).unwrap();
        let tokenizer = tokenizer(&vocabulary, &decoder);
        assert_eq!(
            token_bytes(&tokenizer, 6).unwrap(),
            [
                bytes("a"),
                bytes(" b"),
                bytes("\u{e4}"),
                None,
                bytes("<tool>"),
                None
            ]
        );
    }

    #[test]
    fn tokens_of_sentencepiece_have_their_spaces_and_bytes() {
        let vocabulary = serde_json::json!({"\u{2581}a": 0, "<0x0A>": 1, "b": 2});
        let decoder = serde_json::json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
        ]});
        let tokenizer = tokenizer(&vocabulary, &decoder);
        assert_eq!(
            token_bytes(&tokenizer, 3).unwrap(),
            [bytes(" a"), bytes("\n"), bytes("b")]
        );
    }

    #[test]
    fn a_decoder_of_another_kind_is_told() {
        let vocabulary = serde_json::json!({"a": 0, "b": 1, "c": 2});
        let decoder = serde_json::json!({"type": "Fuse"});
        assert_eq!(token_bytes(&tokenizer(&vocabulary, &decoder), 1), None);
    }
}
