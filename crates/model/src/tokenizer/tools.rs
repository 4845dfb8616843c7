//! Tools in a conversation, and the tokens by which the model calls them.

use serde_json::Value;

use super::{TextTokenizer, TokenizerError};
use crate::chat::{ChatError, ChatMessage};
use crate::tool_calls::{CallFrame, CallOpening, ToolFormat};

impl TextTokenizer {
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
}

#[cfg(test)]
mod tests {
    use tokenizers::Tokenizer;

    use super::*;
    use crate::fixture::{TinyShape, write_tiny_base};
    use crate::tokenizer::{TOKENIZER_CONFIG_FILE, TOKENIZER_FILE};

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
}
