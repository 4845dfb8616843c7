//! How a request's text begins: an engine that computed the same before still has it in its KV cache.
//!
//! A conversation begins with everything up to the first turn of its user, which all its later turns send again; a
//! prompt with its first bytes. Hashed, and by the words as they stand in the body: what is the same text in other
//! escapes counts as another, which costs time and nothing else.

use std::fmt;
use std::hash::{DefaultHasher, Hasher as _};

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Bytes of a prompt that count.
const PROMPT_BYTES: usize = 256;

/// How a request's text begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beginning {
    /// Of what all turns of a conversation, or prompts of one kind, have in common.
    pub hash: u64,
    /// What it is the beginning of.
    pub turn: Turn,
}

/// What a request's text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// A prompt.
    Prompt,
    /// The first turn of a conversation.
    First,
    /// A later one, which goes on from an answer.
    Later,
}

/// The beginning of what a body asks for; none where it asks for nothing that an engine could know.
pub fn beginning(body: &[u8]) -> Option<Beginning> {
    #[derive(Deserialize)]
    struct Inputs<'a> {
        #[serde(default)]
        messages: Option<Opening>,
        #[serde(default, borrow)]
        prompt: Option<&'a RawValue>,
    }
    let inputs: Inputs<'_> = serde_json::from_slice(body).ok()?;
    if let Some(Opening(beginning)) = inputs.messages {
        return Some(beginning);
    }
    let prompt = inputs.prompt?.get().as_bytes();
    let mut hasher = DefaultHasher::new();
    hasher.write(prompt.get(..PROMPT_BYTES).unwrap_or(prompt));
    Some(Beginning {
        hash: hasher.finish(),
        turn: Turn::Prompt,
    })
}

/// Of all turns up to the first one of the user.
struct Opening(Beginning);

impl<'de> Deserialize<'de> for Opening {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Turns)
    }
}

struct Turns;

impl<'de> Visitor<'de> for Turns {
    type Value = Opening;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of turns")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut turns: A) -> Result<Opening, A::Error> {
        let mut hasher = DefaultHasher::new();
        while let Some(turn) = turns.next_element::<&'de RawValue>()? {
            hasher.write(turn.get().as_bytes());
            if is_of_the_user(turn) {
                break;
            }
        }
        let mut turn = Turn::First;
        while turns.next_element::<IgnoredAny>()?.is_some() {
            turn = Turn::Later;
        }
        let hash = hasher.finish();
        Ok(Opening(Beginning { hash, turn }))
    }
}

fn is_of_the_user(turn: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Turn {
        role: String,
    }
    serde_json::from_str::<Turn>(turn.get()).is_ok_and(|turn| turn.role == "user")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: &str = r#"{"role":"system","content":"be brief"}"#;
    const HI: &str = r#"{"role":"user","content":"hi"}"#;
    const BYE: &str = r#"{"role":"user","content":"bye"}"#;
    const YES: &str = r#"{"role":"assistant","content":"yes"}"#;

    fn chat(turns: &[&str]) -> Option<u64> {
        let body = format!(r#"{{"model":"a","messages":[{}],"n":1}}"#, turns.join(", "));
        beginning(body.as_bytes()).map(|found| found.hash)
    }

    fn prompt(text: &str) -> Option<u64> {
        let body = format!(r#"{{"model":"a","prompt":"{text}"}}"#);
        beginning(body.as_bytes()).map(|found| found.hash)
    }

    #[test]
    fn all_turns_of_a_conversation_begin_alike_and_other_conversations_do_not() {
        let first = chat(&[SYSTEM, HI]);
        assert!(first.is_some());
        assert_eq!(first, chat(&[SYSTEM, HI, YES, BYE]));
        assert_ne!(first, chat(&[SYSTEM, BYE]));
        assert_ne!(first, chat(&[HI]));
        assert_eq!(chat(&[HI]), chat(&[HI, YES, BYE]));
    }

    #[test]
    fn a_later_turn_is_told_from_the_first_and_from_a_prompt() {
        for (body, turn) in [
            (format!(r#"{{"messages":[{SYSTEM},{HI}]}}"#), Turn::First),
            (
                format!(r#"{{"messages":[{SYSTEM},{HI},{YES},{BYE}]}}"#),
                Turn::Later,
            ),
            (r#"{"prompt":"hi"}"#.to_owned(), Turn::Prompt),
        ] {
            assert_eq!(beginning(body.as_bytes()).unwrap().turn, turn, "{body}");
        }
    }

    #[test]
    fn prompts_begin_alike_where_their_first_bytes_are_the_same() {
        let text = "x".repeat(PROMPT_BYTES);
        assert_eq!(
            prompt(&format!("{text} and")),
            prompt(&format!("{text} or"))
        );
        assert_ne!(prompt("and"), prompt("or"));
    }

    #[test]
    fn what_is_no_conversation_and_no_prompt_has_no_beginning() {
        for body in [
            r#"{"model":"a"}"#,
            r#"{"model":"a","messages":5}"#,
            r#"{"model":"a","messages":null,"prompt":null}"#,
            r#"{"model":"a","messages":[{"role":"user"}"#,
            "[]",
            "",
        ] {
            assert_eq!(beginning(body.as_bytes()), None, "{body}");
        }
        assert!(
            chat(&["5", r#"{"role":7}"#, HI]).is_some(),
            "what a turn may be is the engine's to say"
        );
    }
}
