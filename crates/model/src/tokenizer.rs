//! `tokenizer.json` with the special tokens and the chat template beside it: text to tokens for
//! serving and for training, by one path, and tokens back to text.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::category::Category;
use crate::chat::ChatTemplate;
pub use crate::chat::{ChatError, ChatMessage};
use crate::cuts::Cuts;

mod rows;
mod stream;
mod tools;
mod words;

pub use rows::TokenizedExample;
pub use stream::StreamDecoder;
use words::Words;

/// The vocabulary and how text is cut.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Names of special tokens, and often the chat template.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// The chat template, where it has a file of its own.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";

/// Why a tokenizer was refused, or refuses a text.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The folder has no `tokenizer.json`.
    #[error("{TOKENIZER_FILE} not found in {}: a base model is a Hugging Face folder", .0.display())]
    Missing(PathBuf),
    /// A file can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{file} can't be used: {problem}")]
    Format {
        /// The file.
        file: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The tokenizers crate refuses the text or the tokens.
    #[error("the tokenizer fails: {0}")]
    Tokenize(String),
    /// Training rows end with a token that this tokenizer does not name.
    #[error(
        "{TOKENIZER_CONFIG_FILE} names no eos_token that {TOKENIZER_FILE} knows, and training rows must end with one"
    )]
    NoEos,
    /// The chat template.
    #[error(transparent)]
    Chat(#[from] ChatError),
}

impl TokenizerError {
    /// What the failure asks of the caller.
    pub fn category(&self) -> Category {
        match self {
            Self::Read { source, .. } => Category::of_io(source),
            Self::Missing(_)
            | Self::Format { .. }
            | Self::Tokenize(_)
            | Self::NoEos
            | Self::Chat(_) => Category::Invalid,
        }
    }
}

/// A model's tokenizer.
#[derive(Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    /// The short way, where there is one for this tokenizer.
    words: Option<Words>,
    cuts: Cuts,
    bos: Option<u32>,
    eos: Option<u32>,
    /// Whether encoding with special tokens ends with EOS, which no prompt may.
    appends_eos: bool,
    template: Option<ChatTemplate>,
    /// The one for requests with tools, where the model has one of its own for them.
    tool_template: Option<ChatTemplate>,
}

impl TextTokenizer {
    /// Reads the tokenizer's files of a model's folder.
    ///
    /// # Errors
    /// A missing or unusable file, by name.
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        let file =
            read(dir, TOKENIZER_FILE)?.ok_or_else(|| TokenizerError::Missing(dir.to_path_buf()))?;
        let format_error = |problem: String| TokenizerError::Format {
            file: TOKENIZER_FILE,
            problem,
        };
        let mut tokenizer: Tokenizer = file
            .parse()
            .map_err(|error: tokenizers::Error| format_error(error.to_string()))?;
        let cuts = Cuts::parse(&file).map_err(format_error)?;
        // A limit or a filler of somebody's training setup has no place in ours.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| TokenizerError::Tokenize(error.to_string()))?;
        let config = match read(dir, TOKENIZER_CONFIG_FILE)? {
            Some(text) => serde_json::from_str(&text).map_err(|error| TokenizerError::Format {
                file: TOKENIZER_CONFIG_FILE,
                problem: error.to_string(),
            })?,
            None => Value::Null,
        };
        let bos_text = special_token(&config, "bos_token");
        let eos_text = special_token(&config, "eos_token");
        let parse = |source: String| ChatTemplate::parse(source, bos_text, eos_text);
        let (template, tool_template) = match read(dir, CHAT_TEMPLATE_FILE)? {
            Some(source) => (Some(source), None),
            None => (
                template_named(&config, "default"),
                template_named(&config, "tool_use"),
            ),
        };
        let template = template.map(parse).transpose()?;
        let tool_template = tool_template.map(parse).transpose()?;
        let id = |text: Option<&str>| text.and_then(|text| tokenizer.token_to_id(text));
        let (bos, eos) = (id(bos_text), id(eos_text));
        let words = Words::of(&file, &tokenizer);
        let empty = encode(&tokenizer, "", true)?;
        let appends_eos =
            eos.is_some() && empty.last() == eos.as_ref() && (empty.len() > 1 || bos != eos);
        Ok(Self {
            tokenizer,
            words,
            cuts,
            bos,
            eos,
            appends_eos,
            template,
            tool_template,
        })
    }

    /// Tokens of `text`. With `add_special_tokens`, with what `tokenizer.json` puts around a text.
    ///
    /// # Errors
    /// [`TokenizerError::Tokenize`], also where a regular expression gives up: never other tokens.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let words = self.words.as_ref();
        if let Some(ids) = words.and_then(|it| it.ids(&self.tokenizer, text, add_special_tokens)) {
            return Ok(ids);
        }
        self.cuts.check(text).map_err(TokenizerError::Tokenize)?;
        encode(&self.tokenizer, text, add_special_tokens)
    }

    /// Tokens of a prompt that the model goes on from: a beginning where the tokenizer wants one,
    /// never an end.
    ///
    /// # Errors
    /// [`TokenizerError::Tokenize`].
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = self.encode(prompt, true)?;
        if self.appends_eos {
            tokens.pop();
        }
        Ok(tokens)
    }

    /// Tokens of a conversation up to where the assistant begins.
    ///
    /// # Errors
    /// [`TokenizerError::Chat`] where the template refuses the messages.
    pub fn encode_chat_prompt(&self, messages: &[ChatMessage]) -> Result<Vec<u32>, TokenizerError> {
        self.encode(&self.render_chat(messages, true)?, false)
    }

    /// Text of `tokens`; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::Tokenize`].
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        self.tokenizer
            .decode(tokens, skip_special)
            .map_err(|error| TokenizerError::Tokenize(error.to_string()))
    }

    /// Whether a text leaves a token out: a special one, or one that the vocabulary does not have.
    fn is_left_out(&self, token: u32) -> bool {
        let added = self.tokenizer.get_added_vocabulary();
        let text = self.tokenizer.id_to_token(token);
        text.is_none_or(|text| added.is_special_token(&text))
    }

    /// A decoder of one stream of tokens, special ones left out.
    pub fn stream(&self) -> StreamDecoder {
        StreamDecoder::default()
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Tokens of the vocabulary, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The id of a token's text.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The text of a token, as it stands in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// The bytes of each token below `count`; none for special and unknown ones. `None`: this
    /// tokenizer's tokens are not bytes.
    pub fn token_bytes(&self, count: usize) -> Option<Vec<Option<Vec<u8>>>> {
        crate::token_bytes::token_bytes(&self.tokenizer, count)
    }

    /// Whether the model can chat.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// [`ChatError`], also where the model has no template.
    pub fn render_chat(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let template = self.template.as_ref().ok_or(ChatError::None)?;
        template.render(messages, add_generation_prompt)
    }
}

fn encode(tokenizer: &Tokenizer, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
    tokenizer
        .encode_fast(text, special)
        .map(|encoding| encoding.get_ids().to_vec())
        .map_err(|error| TokenizerError::Tokenize(error.to_string()))
}

fn read(dir: &Path, file: &str) -> Result<Option<String>, TokenizerError> {
    let path = dir.join(file);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read { path, source }),
    }
}

/// A special token's text: a string, or an object with `content`.
fn special_token<'a>(config: &'a Value, field: &str) -> Option<&'a str> {
    let value = config.get(field)?;
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// `chat_template` is one template, the default, or a list of named ones.
fn template_named(config: &Value, name: &str) -> Option<String> {
    let value = config.get("chat_template")?;
    let text = match value.as_str() {
        Some(text) => (name == "default").then_some(text),
        None => {
            let named = value
                .as_array()?
                .iter()
                .find(|template| template["name"] == name)?;
            named.get("template")?.as_str()
        }
    };
    text.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{TinyShape, write_tiny_base};

    pub(super) fn tokenizer() -> TextTokenizer {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
        TextTokenizer::load(dir.path()).unwrap()
    }

    #[test]
    fn where_a_regular_expression_gives_up_there_is_an_error_and_never_other_tokens() {
        let blanks = |count: usize| " ".repeat(count) + "x";
        let tokens = tokenizer().encode(&blanks(2_000_000), false).unwrap();
        assert_eq!(tokens.len(), 2_000_001);

        // The same expression, in a pipeline that there is no short way for.
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
        let path = dir.path().join(TOKENIZER_FILE);
        let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let byte_level = file["pre_tokenizer"].take();
        file["pre_tokenizer"] =
            serde_json::json!({"type": "Sequence", "pretokenizers": [byte_level]});
        std::fs::write(&path, file.to_string()).unwrap();
        let tokenizer = TextTokenizer::load(dir.path()).unwrap();
        let tokens = tokenizer.encode(&blanks(100_000), false).unwrap();
        assert_eq!(tokens.len(), 100_001);
        let error = tokenizer.encode(&blanks(2_000_000), false).unwrap_err();
        assert!(error.to_string().contains("gives up"), "{error}");
        let turn = ChatMessage::new("assistant", blanks(2_000_000));
        let error = tokenizer.example_chat(&[turn]).unwrap_err();
        assert!(error.to_string().contains("gives up"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = TextTokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(text.starts_with("tokenizer.json not found in "), "{text}");
    }
}
