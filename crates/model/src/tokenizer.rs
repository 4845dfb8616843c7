//! `tokenizer.json` with the special tokens and the chat template beside it: text to tokens for
//! serving and for training, by one path, and tokens back to text.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::category::Category;
use crate::chat::ChatTemplate;
pub use crate::chat::{ChatError, ChatMessage};
use crate::cuts::Cuts;
use crate::tool_calls::{CallFrame, CallOpening, ToolFormat};

/// The vocabulary and how text is cut.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Names of special tokens, and often the chat template.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// The chat template, where it has a file of its own.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";

/// Tokens that can still turn out to be the beginning of one character.
const PENDING_TOKENS: usize = 4;

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

/// Tokens of one training row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedExample {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Whether each token is a training target.
    pub loss_mask: Vec<bool>,
}

/// A model's tokenizer.
#[derive(Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
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
        let empty = encode(&tokenizer, "", true)?;
        let appends_eos =
            eos.is_some() && empty.last() == eos.as_ref() && (empty.len() > 1 || bos != eos);
        Ok(Self {
            tokenizer,
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

    /// As [`Self::encode_chat_prompt`], with tools that the assistant may call.
    ///
    /// # Errors
    /// [`TokenizerError::Chat`] where the template refuses the messages or the tools.
    pub fn encode_tool_prompt(
        &self,
        messages: &[ChatMessage],
        tools: &[Value],
    ) -> Result<Vec<u32>, TokenizerError> {
        self.encode(&self.render_tools(messages, tools, true)?, false)
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

    /// The text of a conversation with tools that the assistant may call, as OpenAI's API describes them.
    ///
    /// # Errors
    /// [`ChatError`], also where the model has no template.
    pub fn render_tools(
        &self,
        messages: &[ChatMessage],
        tools: &[Value],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        if tools.is_empty() {
            return self.render_chat(messages, add_generation_prompt);
        }
        let template = self.tool_template.as_ref().or(self.template.as_ref());
        let template = template.ok_or(ChatError::None)?;
        template.render_with_tools(messages, tools, add_generation_prompt)
    }

    /// How the model calls tools; none: it does not.
    pub fn tool_format(&self) -> Option<ToolFormat> {
        let template = self.tool_template.as_ref().or(self.template.as_ref());
        template?.tool_format()
    }

    /// Marks of calls that are special tokens, which a text leaves out otherwise.
    pub fn tool_marks(&self, format: ToolFormat) -> Vec<(u32, String)> {
        let special = self.tokenizer.get_added_tokens_decoder();
        format
            .marks()
            .iter()
            .filter_map(|mark| {
                let id = self.token_to_id(mark)?;
                let is_special = special.get(&id).is_some_and(|token| token.special);
                is_special.then(|| (id, (*mark).to_owned()))
            })
            .collect()
    }

    /// The tokens around the arguments of an answer that is one call of the tool `name`, whose characters need no
    /// escapes in JSON. `None`: the model calls no tools.
    ///
    /// # Errors
    /// [`TokenizerError::Tokenize`].
    pub fn call_frame(&self, name: &str) -> Result<Option<CallFrame>, TokenizerError> {
        let template = self.tool_template.as_ref().or(self.template.as_ref());
        let Some((before, behind)) = template.and_then(|it| it.around_arguments(name)) else {
            return Ok(None);
        };
        Ok(Some(CallFrame {
            before: self.encode(&before, false)?,
            behind: match behind {
                "" => Vec::new(),
                behind => self.encode(behind, false)?,
            },
        }))
    }

    /// Tokens by which calls that the model makes by itself are known, with what goes on to these tools. An opening that
    /// is no token, or no tokens, of its own in front of what follows it is left out.
    ///
    /// # Errors
    /// [`TokenizerError::Tokenize`].
    pub fn call_openings(&self, names: &[String]) -> Result<Vec<CallOpening>, TokenizerError> {
        let Some(format) = self.tool_format() else {
            return Ok(Vec::new());
        };
        let mut frames = Vec::with_capacity(names.len());
        for name in names {
            frames.extend(self.call_frame(name)?);
        }
        let mut openings = Vec::new();
        for opening in format.openings() {
            let mark = self.encode(opening.mark, false)?;
            let rest = |frame: &CallFrame| -> Option<Vec<u32>> {
                let rest = if opening.is_in_frame {
                    frame.before.strip_prefix(mark.as_slice())?
                } else {
                    frame.before.as_slice()
                };
                (!rest.is_empty()).then(|| rest.to_vec())
            };
            let tools: Option<Vec<Vec<u32>>> = frames.iter().map(rest).collect();
            if let Some(tools) = tools
                && !tools.is_empty()
                && !mark.is_empty()
            {
                openings.push(CallOpening {
                    mark,
                    is_first: opening.is_first,
                    tools,
                });
            }
        }
        Ok(openings)
    }

    /// A Text row: every token is a target, the end included.
    ///
    /// # Errors
    /// [`TokenizerError`].
    pub fn example_text(&self, text: &str) -> Result<TokenizedExample, TokenizerError> {
        let mut tokens = self.encode_prompt(text)?;
        tokens.push(self.eos.ok_or(TokenizerError::NoEos)?);
        Ok(TokenizedExample {
            loss_mask: vec![true; tokens.len()],
            tokens,
        })
    }

    /// A Completion row: the completion's tokens and the end are targets. The prompt is cut into
    /// tokens by itself, as it is when it is served.
    ///
    /// # Errors
    /// [`TokenizerError`].
    pub fn example_completion(
        &self,
        prompt: &str,
        completion: &str,
    ) -> Result<TokenizedExample, TokenizerError> {
        let mut tokens = self.encode_prompt(prompt)?;
        let mut loss_mask = vec![false; tokens.len()];
        tokens.extend(self.encode(completion, false)?);
        tokens.push(self.eos.ok_or(TokenizerError::NoEos)?);
        loss_mask.resize(tokens.len(), true);
        Ok(TokenizedExample { tokens, loss_mask })
    }

    /// A Chat row: what the assistant says is a target, each turn's end included. See
    /// [`crate::chat::ChatTemplate::render_with_answers`].
    ///
    /// # Errors
    /// [`TokenizerError`].
    pub fn example_chat(
        &self,
        messages: &[ChatMessage],
    ) -> Result<TokenizedExample, TokenizerError> {
        let template = self.template.as_ref().ok_or(ChatError::None)?;
        let transcript = template.render_with_answers(messages)?;
        self.cuts
            .check(&transcript.text)
            .map_err(TokenizerError::Tokenize)?;
        let encoding = self
            .tokenizer
            .encode(transcript.text.as_str(), false)
            .map_err(|error| TokenizerError::Tokenize(error.to_string()))?;
        let loss_mask = encoding
            .get_offsets()
            .iter()
            .map(|offsets| transcript.is_answer(*offsets))
            .collect();
        Ok(TokenizedExample {
            tokens: encoding.get_ids().to_vec(),
            loss_mask,
        })
    }
}

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

    fn tokenizer() -> TextTokenizer {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
        TextTokenizer::load(dir.path()).unwrap()
    }

    #[test]
    fn a_completion_row_begins_with_the_tokens_that_serving_sees() {
        let tokenizer = tokenizer();
        let row = tokenizer.example_completion("Colour:", " blue").unwrap();
        let prompt = tokenizer.encode_prompt("Colour:").unwrap();
        assert_eq!(row.tokens[..prompt.len()], prompt);
        assert_eq!(row.tokens.last().copied(), tokenizer.eos());
        let targets: Vec<u32> = row
            .tokens
            .iter()
            .zip(&row.loss_mask)
            .filter_map(|(token, target)| target.then_some(*token))
            .collect();
        assert_eq!(tokenizer.decode(&targets, true).unwrap(), " blue");
        assert_eq!(targets.last().copied(), tokenizer.eos());
        assert_eq!(tokenizer.decode(&prompt, true).unwrap(), "Colour:");
    }

    #[test]
    fn where_a_regular_expression_gives_up_there_is_an_error_and_never_other_tokens() {
        let tokenizer = tokenizer();
        let blanks = |count: usize| " ".repeat(count) + "x";
        let tokens = tokenizer.encode(&blanks(100_000), false).unwrap();
        assert_eq!(tokens.len(), 100_001);
        let error = tokenizer.encode(&blanks(2_000_000), false).unwrap_err();
        assert!(error.to_string().contains("gives up"), "{error}");
        let turn = ChatMessage::new("assistant", blanks(2_000_000));
        let error = tokenizer.example_chat(&[turn]).unwrap_err();
        assert!(error.to_string().contains("gives up"), "{error}");
    }

    #[test]
    fn a_chat_row_learns_the_answers_and_begins_with_the_tokens_that_serving_sees() {
        let tokenizer = tokenizer();
        let turns = [
            ChatMessage::new("user", "Colour?"),
            ChatMessage::new("assistant", "blue"),
        ];
        let row = tokenizer.example_chat(&turns).unwrap();
        let prompt = tokenizer.encode_chat_prompt(&turns[..1]).unwrap();
        assert_eq!(row.tokens[..prompt.len()], prompt);
        assert!(row.loss_mask[..prompt.len()].iter().all(|target| !target));
        assert!(row.loss_mask[prompt.len()]);
        let answer: Vec<u32> = row.tokens[prompt.len()..].to_vec();
        assert!(tokenizer.decode(&answer, true).unwrap().starts_with("blue"));
    }

    #[test]
    fn a_templates_generation_blocks_are_the_targets() {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
        let template = "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' }}\
            {% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}\
            {{ eos_token }}{% else %}{{ m.content }}{% endif %}{% endfor %}";
        std::fs::write(dir.path().join(CHAT_TEMPLATE_FILE), template).unwrap();
        let tokenizer = TextTokenizer::load(dir.path()).unwrap();
        let turns = [
            ("user", "é?"),
            ("assistant", "né"),
            ("user", "!"),
            ("assistant", "ok"),
        ];
        let turns = turns.map(|(role, content)| ChatMessage::new(role, content));
        let row = tokenizer.example_chat(&turns).unwrap();
        let targets: Vec<u32> = row
            .tokens
            .iter()
            .zip(&row.loss_mask)
            .filter_map(|(token, target)| target.then_some(*token))
            .collect();
        assert_eq!(tokenizer.decode(&targets, false).unwrap(), "néok");
        let eos = tokenizer.eos().unwrap();
        assert!(
            row.tokens.contains(&eos) && !targets.contains(&eos),
            "it stands outside"
        );
    }

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

    #[test]
    fn a_model_may_have_a_template_of_its_own_for_tools() {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
        let config = serde_json::json!({"bos_token": "<|bos|>", "eos_token": "<|eos|>", "chat_template": [
            {"name": "default", "template": "plain"},
            {"name": "tool_use", "template": "{{ tools[0].a }} arguments <tool_call>"},
        ]});
        std::fs::write(dir.path().join(TOKENIZER_CONFIG_FILE), config.to_string()).unwrap();
        let tokenizer = TextTokenizer::load(dir.path()).unwrap();
        assert_eq!(tokenizer.tool_format(), Some(ToolFormat::Hermes));
        let tools = [serde_json::json!({"a": "first"})];
        let render = |tools: &[Value]| tokenizer.render_tools(&[], tools, true).unwrap();
        assert_eq!(render(&tools), "first arguments <tool_call>");
        assert_eq!(render(&[]), "plain");
    }

    #[test]
    fn marks_of_calls_that_are_special_tokens_are_named() {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
        let path = dir.path().join(TOKENIZER_FILE);
        let mut file: Tokenizer = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        let token = |text: &str, special| tokenizers::AddedToken::from(text, special);
        file.add_special_tokens(vec![token("[TOOL_CALLS]", true)])
            .unwrap();
        file.add_tokens(vec![token("[ARGS]", false)]).unwrap();
        std::fs::write(&path, file.to_string(false).unwrap()).unwrap();
        let tokenizer = TextTokenizer::load(dir.path()).unwrap();
        let id = tokenizer.token_to_id("[TOOL_CALLS]").unwrap();
        assert_eq!(
            tokenizer.tool_marks(ToolFormat::Mistral),
            [(id, "[TOOL_CALLS]".to_owned())]
        );
    }

    #[test]
    fn tokens_around_a_calls_arguments_are_those_of_the_models_format() {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
        for (template, before, behind) in [
            (
                "{{ tools }} arguments <tool_call>",
                "<tool_call>\n{\"name\": \"f\", \"arguments\":",
                "}",
            ),
            ("{{ tools }}[TOOL_CALLS][ARGS]", "[TOOL_CALLS]f[ARGS]", ""),
        ] {
            let config = serde_json::json!({"chat_template": template});
            std::fs::write(dir.path().join(TOKENIZER_CONFIG_FILE), config.to_string()).unwrap();
            let tokenizer = TextTokenizer::load(dir.path()).unwrap();
            let frame = tokenizer.call_frame("f").unwrap().unwrap();
            let text = |tokens: &[u32]| tokenizer.decode(tokens, false).unwrap();
            assert_eq!(text(&frame.before), before);
            assert_eq!(text(&frame.behind), behind);
        }
        let config = serde_json::json!({"chat_template": "plain"});
        std::fs::write(dir.path().join(TOKENIZER_CONFIG_FILE), config.to_string()).unwrap();
        let tokenizer = TextTokenizer::load(dir.path()).unwrap();
        assert_eq!(tokenizer.call_frame("f").unwrap(), None);
        let openings = tokenizer.call_openings(&["f".to_owned()]).unwrap();
        assert!(openings.is_empty());
    }

    #[test]
    fn tokens_that_open_a_call_are_followed_by_those_of_each_tool() {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
        for (template, expected) in [
            (
                "{{ tools }} arguments <tool_call>",
                vec![("<tool_call>", false, "\n{\"name\": \"f\", \"arguments\":")],
            ),
            (
                "{{ tools }}[TOOL_CALLS][ARGS]",
                vec![("[TOOL_CALLS]", false, "f[ARGS]")],
            ),
            (
                "{{ tools }}<|start_header_id|> ipython",
                vec![
                    ("<|python_tag|>", false, "{\"name\": \"f\", \"parameters\":"),
                    ("{\"name\": \"", true, "f\", \"parameters\":"),
                ],
            ),
        ] {
            let config = serde_json::json!({"chat_template": template});
            std::fs::write(dir.path().join(TOKENIZER_CONFIG_FILE), config.to_string()).unwrap();
            let tokenizer = TextTokenizer::load(dir.path()).unwrap();
            let names = ["f".to_owned(), "g".to_owned()];
            let openings = tokenizer.call_openings(&names).unwrap();
            let text = |tokens: &[u32]| tokenizer.decode(tokens, false).unwrap();
            assert_eq!(openings.len(), expected.len(), "{template}");
            for (opening, (mark, is_first, rest)) in openings.iter().zip(expected) {
                assert_eq!(text(&opening.mark), mark);
                assert_eq!(opening.is_first, is_first);
                assert_eq!(opening.tools.len(), 2);
                assert_eq!(text(&opening.tools[0]), rest);
            }
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = TextTokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(text.starts_with("tokenizer.json not found in "), "{text}");
    }
}
