//! Trains a byte-level BPE tokenizer and writes it as Hugging Face files.

use std::path::Path;

use serde_json::json;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    TokenizerBuilder,
};

/// Begins every sequence; id 0.
pub const BOS: &str = "<|bos|>";
/// Ends every sequence and every turn of a chat; id 1.
pub const EOS: &str = "<|eos|>";
/// The tokens that begin a turn of a chat; ids 2 to 4.
pub const ROLES: [&str; 3] = ["<|system|>", "<|user|>", "<|assistant|>"];

/// A turn is its role's token, the text and the end token.
const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
    {{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// A tokenizer that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VocabularyError {
    /// From the tokenizers crate.
    #[error("cannot train the tokenizer: {0}")]
    Train(String),
    /// A file that can't be written.
    #[error("cannot write {file}")]
    Write {
        /// The file.
        file: String,
        /// The cause.
        source: std::io::Error,
    },
}

impl From<tokenizers::Error> for VocabularyError {
    fn from(error: tokenizers::Error) -> Self {
        Self::Train(error.to_string())
    }
}

/// Trains on `texts` and writes `tokenizer.json` and `tokenizer_config.json` to `dir`. The same
/// texts give the same bytes. Returns the number of tokens, which is `size` or (where the texts do
/// not have that many pairs) less.
///
/// # Errors
/// See [`VocabularyError`].
pub fn train_tokenizer<'a>(
    texts: impl Iterator<Item = &'a str> + Send,
    size: usize,
    context: usize,
    dir: &Path,
) -> Result<usize, VocabularyError> {
    let special: Vec<AddedToken> = [BOS, EOS]
        .into_iter()
        .chain(ROLES)
        .map(|token| AddedToken::from(token, true))
        .collect();
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(size)
        .min_frequency(2)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new()
    .with_model(BPE::default())
    .with_pre_tokenizer(Some(byte_level.into()))
    .with_decoder(Some(byte_level.into()))
    .build()?;
    tokenizer.train(&mut trainer, texts)?;
    let begin = TemplateProcessing::builder()
        .try_single(format!("{BOS} $A"))
        .and_then(|builder| builder.try_pair(format!("{BOS} $A $B")))
        .map_err(VocabularyError::Train)?
        .special_tokens(vec![(BOS, 0)])
        .build()
        .map_err(|error| VocabularyError::Train(error.to_string()))?;
    tokenizer.with_post_processor(Some(begin));
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "add_bos_token": true,
        "add_eos_token": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    });
    write(dir, "tokenizer.json", &tokenizer.to_string(true)?)?;
    write(dir, "tokenizer_config.json", &format!("{config:#}"))?;
    Ok(tokenizer.get_vocab_size(true))
}

fn write(dir: &Path, file: &str, text: &str) -> Result<(), VocabularyError> {
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(dir.join(file), format!("{text}\n")))
        .map_err(|source| VocabularyError::Write {
            file: file.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use graftwork_model::tokenizer::{ChatMessage, TextTokenizer};

    use super::*;

    #[test]
    fn the_same_texts_make_the_same_tokenizer_and_it_reads_back_what_it_wrote() {
        let texts = [
            "the cat sat on the mat",
            "the dog sat on the log",
            "naïve 漢字",
        ];
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for dir in &dirs {
            let size = train_tokenizer(texts.into_iter(), 280, 64, dir.path()).unwrap();
            assert!(size > 261 && size <= 280, "{size}");
        }
        let [first, second] = dirs
            .each_ref()
            .map(|d| std::fs::read(d.path().join("tokenizer.json")).unwrap());
        assert_eq!(first, second);

        let tokenizer = TextTokenizer::load(dirs[0].path()).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), Some(1)));
        let tokens = tokenizer.encode_prompt("the cat, naïve 🦀").unwrap();
        assert_eq!(tokens[0], 0);
        assert!(tokens.len() < 20, "merges are used: {tokens:?}");
        assert_eq!(
            tokenizer.decode(&tokens, true).unwrap(),
            "the cat, naïve 🦀"
        );

        let chat = [
            ChatMessage::new("user", "cat?"),
            ChatMessage::new("assistant", "mat"),
        ];
        let text = tokenizer.render_chat(&chat, false).unwrap();
        assert_eq!(text, "<|bos|><|user|>cat?<|eos|><|assistant|>mat<|eos|>");
        let row = tokenizer.example_chat(&chat).unwrap();
        let learnt: Vec<u32> = std::iter::zip(&row.tokens, &row.loss_mask)
            .filter_map(|(token, target)| target.then_some(*token))
            .collect();
        assert_eq!(tokenizer.decode(&learnt, false).unwrap(), "mat<|eos|>");
        assert_eq!(
            tokenizer.encode_chat_prompt(&chat[..1]).unwrap(),
            row.tokens[..row.tokens.len() - learnt.len()]
        );
    }
}
