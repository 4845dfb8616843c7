//! Calls of tools in what a model writes: found in the growing text of an answer, in the format that
//! the model's chat template names.
//!
//! What is no call of a tool that the request names stays text: nothing that the model wrote is lost,
//! and nobody is asked to run what they don't have. Arguments are not compared with their schema.

mod parser;

pub use parser::{Called, Parsed, ToolCallParser};

/// Mistral's mark before a call's arguments, since version 11 of its tokenizers.
pub(crate) const ARGUMENTS_MARK: &str = "[ARGS]";

/// A call in a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// What an answer to it names.
    pub id: String,
    /// The tool.
    pub name: String,
    /// A JSON object.
    pub arguments: String,
}

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": ..., "arguments": ...}</tool_call>`: Qwen, and Nous Research's Hermes.
    Hermes,
    /// `[TOOL_CALLS][{"name": ..., "arguments": ...}]`, or `[TOOL_CALLS]name[ARGS]{...}` since version 11
    /// of Mistral's tokenizers.
    Mistral,
    /// The whole answer is `{"name": ..., "parameters": ...}`, or that follows `<|python_tag|>`: Llama 3.
    Llama3,
}

impl ToolFormat {
    /// The format of a model with this chat template.
    pub(crate) fn of_template(source: &str) -> Option<Self> {
        let has = |part: &str| source.contains(part);
        if !has("tools") {
            None
        } else if has("<tool_call>") {
            // Others write the same marks around something that is no JSON.
            (has("arguments") && !has("<function=") && !has("<arg_key>")).then_some(Self::Hermes)
        } else if has("[TOOL_CALLS]") {
            Some(Self::Mistral)
        } else {
            (has("<|start_header_id|>") && has("ipython")).then_some(Self::Llama3)
        }
    }

    /// Texts that stand around calls. Where they are special tokens, they must be printed for
    /// [`ToolCallParser`].
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Mistral => &["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"],
            Self::Llama3 => &["<|python_tag|>"],
        }
    }

    /// What stands before a call.
    fn opening(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Mistral => "[TOOL_CALLS]",
            Self::Llama3 => "<|python_tag|>",
        }
    }

    /// What ends a row of calls, so that text may follow.
    fn closing(self) -> Option<&'static str> {
        match self {
            Self::Hermes => Some("</tool_call>"),
            Self::Mistral | Self::Llama3 => None,
        }
    }

    /// What stands before and behind the arguments where an answer is one call of the tool `name` and nothing else.
    /// `marks_arguments`: whether `[ARGS]` stands between them, as the model's template says. What would close a row of
    /// calls is left out, since [`ToolCallParser`] takes a call as soon as its JSON is whole. No space ends the first
    /// part: a token of its own that is nothing but a space is what models hardly ever see there.
    pub(crate) fn around(self, name: &str, marks_arguments: bool) -> (String, &'static str) {
        match self {
            Self::Hermes => (
                format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\":"),
                "}",
            ),
            Self::Mistral if marks_arguments => (format!("[TOOL_CALLS]{name}{ARGUMENTS_MARK}"), ""),
            Self::Mistral => (
                format!("[TOOL_CALLS][{{\"name\": \"{name}\", \"arguments\":"),
                "}",
            ),
            Self::Llama3 => (format!("{{\"name\": \"{name}\", \"parameters\":"), "}"),
        }
    }

    /// What a call that the model makes by itself opens with. Llama 3 writes its mark or none: what begins an answer as a
    /// call does is a call then.
    pub(crate) fn openings(self) -> &'static [OpeningText] {
        match self {
            Self::Hermes => &[OpeningText {
                mark: "<tool_call>",
                is_first: false,
                is_in_frame: true,
            }],
            Self::Mistral => &[OpeningText {
                mark: "[TOOL_CALLS]",
                is_first: false,
                is_in_frame: true,
            }],
            Self::Llama3 => &[
                OpeningText {
                    mark: "<|python_tag|>",
                    is_first: false,
                    is_in_frame: false,
                },
                OpeningText {
                    mark: "{\"name\": \"",
                    is_first: true,
                    is_in_frame: true,
                },
            ],
        }
    }

    /// Whether this may stand between a mark and a call, or between two calls.
    fn separates(self, character: char) -> bool {
        character.is_whitespace()
            || match self {
                Self::Hermes => false,
                Self::Mistral => matches!(character, '[' | ',' | ']'),
                Self::Llama3 => matches!(character, ';' | ','),
            }
    }
}

/// The tokens around a call's arguments in an answer that is one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallFrame {
    /// Up to the arguments, at least one.
    pub before: Vec<u32>,
    /// What makes the call whole; may be empty.
    pub behind: Vec<u32>,
}

/// The text that opens a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpeningText {
    /// Which.
    pub(crate) mark: &'static str,
    /// Whether it opens a call only where an answer begins with it.
    pub(crate) is_first: bool,
    /// Whether [`ToolFormat::around`] begins with it, or stands behind it.
    pub(crate) is_in_frame: bool,
}

/// Tokens by which a call that the model makes by itself is known, and what goes on from there to the arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallOpening {
    /// What opens the call, at least one.
    pub mark: Vec<u32>,
    /// Whether it does so only where an answer begins with it.
    pub is_first: bool,
    /// What stands between it and the arguments, for each tool; at least one of each.
    pub tools: Vec<Vec<u32>>,
}

/// What an answer may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolUse {
    /// How the model writes it.
    pub format: ToolFormat,
    /// The tools' names.
    pub names: Vec<String>,
    /// Whether the first call ends the answer.
    pub only_one: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_format_is_known_by_its_template() {
        let llama = "{%- if tools is not none %}<|start_header_id|>ipython<|end_header_id|>";
        let qwen =
            "{%- if tools %}<tool_call>{\"name\": <function-name>, \"arguments\": 1}</tool_call>";
        let mistral = "{%- if tools %}[AVAILABLE_TOOLS][TOOL_CALLS]";
        for (template, format) in [
            (llama, Some(ToolFormat::Llama3)),
            (qwen, Some(ToolFormat::Hermes)),
            (mistral, Some(ToolFormat::Mistral)),
            ("{{ messages[0].content }}", None),
            ("<|start_header_id|>{{ messages[0].content }}", None),
            ("{% if tools %}arguments <tool_call><function=f>", None),
            ("{% if tools %}arguments <tool_call>f<arg_key>", None),
        ] {
            assert_eq!(ToolFormat::of_template(template), format, "{template}");
        }
    }

    #[test]
    fn what_stands_around_arguments_makes_a_call_that_the_parser_reads() {
        for (format, marks_arguments) in [
            (ToolFormat::Hermes, false),
            (ToolFormat::Mistral, false),
            (ToolFormat::Mistral, true),
            (ToolFormat::Llama3, false),
        ] {
            let (before, behind) = format.around("look_up-2", marks_arguments);
            let mut parser = ToolCallParser::new(&ToolUse {
                format,
                names: vec!["look_up-2".to_owned(), "look".to_owned()],
                only_one: true,
            });
            let mut parsed = parser.push(&format!("{before}{{\"a\": {{}}}}"));
            if !parsed.done {
                parsed = parser.push(behind);
            }
            assert!(
                parsed.done && parsed.text.is_empty(),
                "{format:?}: {parsed:?}"
            );
            assert_eq!(parsed.calls[0].name, "look_up-2");
            assert_eq!(parsed.calls[0].arguments, "{\"a\": {}}");
        }
    }

    #[test]
    fn what_opens_a_call_begins_what_stands_around_its_arguments_or_stands_before_it() {
        for format in [ToolFormat::Hermes, ToolFormat::Mistral, ToolFormat::Llama3] {
            let (before, behind) = format.around("f", false);
            for opening in format.openings() {
                let written = if opening.is_in_frame {
                    assert!(before.starts_with(opening.mark), "{opening:?}");
                    format!("{before}{{}}{behind}")
                } else {
                    format!("{}{before}{{}}{behind}", opening.mark)
                };
                let mut parser = ToolCallParser::new(&ToolUse {
                    format,
                    names: vec!["f".to_owned()],
                    only_one: true,
                });
                let parsed = parser.push(&written);
                assert_eq!(parsed.calls.len(), 1, "{written:?}: {parsed:?}");
            }
        }
    }
}
