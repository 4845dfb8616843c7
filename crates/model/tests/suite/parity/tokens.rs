//! Token ids and chat templates beside tokenizers' and transformers'.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_model::tokenizer::{
    CHAT_TEMPLATE_FILE, ChatError, ChatMessage, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE,
    TextTokenizer, TokenizerError,
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{fixture, read_json};

/// The recorded tokenisers.
const TOKENIZERS: [&str; 4] = ["llama-3", "qwen", "llama-2", "gemma"];

#[derive(Deserialize)]
struct Ids {
    /// Of each line.
    hashes: Vec<String>,
    /// Of the first lines, as they are.
    shown: Vec<Vec<u32>>,
    long: Vec<Long>,
}

/// A line of one piece again and again.
#[derive(Deserialize)]
struct Long {
    piece: String,
    times: usize,
    end: String,
    ids: usize,
    hash: String,
}

/// As `fingerprint` of parity/tokens.py.
fn fingerprint(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    let mut digits = hex::encode(Sha256::digest(ids.join(",").as_bytes()));
    digits.truncate(16);
    digits
}

fn load(name: &str) -> (TextTokenizer, Ids) {
    let tokenizer = TextTokenizer::load(&fixture(&format!("tokens/{name}"))).unwrap();
    (tokenizer, read_json(&format!("tokens/{name}/ids.json")))
}

#[test]
fn ids_of_a_thousand_lines_of_many_scripts_are_those_of_transformers() {
    let lines: Vec<String> = read_json("tokens/lines.json");
    assert_eq!(lines.len(), 1000);
    for name in TOKENIZERS {
        let (tokenizer, ids) = load(name);
        assert_eq!(ids.hashes.len(), lines.len());
        assert!(ids.hashes.iter().collect::<BTreeSet<_>>().len() > 900);
        for (line, expected) in lines.iter().zip(&ids.shown) {
            assert_eq!(
                tokenizer.encode(line, true).unwrap(),
                *expected,
                "{name}: {line:?}"
            );
        }
        for (line, expected) in lines.iter().zip(&ids.hashes) {
            let ids = tokenizer.encode(line, true).unwrap();
            assert_eq!(fingerprint(&ids), *expected, "{name}: {line:?} is {ids:?}");
        }
    }
}

#[test]
fn a_line_of_a_hundred_thousand_blanks_has_the_right_ids_or_none_and_some_have_them() {
    for name in TOKENIZERS {
        let (tokenizer, ids) = load(name);
        assert_eq!(ids.long.len(), 5);
        let mut refused = Vec::new();
        for long in &ids.long {
            let line = long.piece.repeat(long.times) + &long.end;
            let Ok(got) = tokenizer.encode(&line, true) else {
                refused.push(&long.piece);
                continue;
            };
            let what = format!("{name}: {:?} {} times", long.piece, long.times);
            assert_eq!(got.len(), long.ids, "{what}");
            assert_eq!(fingerprint(&got), long.hash, "{what}");
        }
        assert!(refused.len() < ids.long.len(), "{name} refuses {refused:?}");
    }
}

#[derive(Deserialize)]
struct Kind {
    template: String,
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<ChatMessage>,
    /// What the template says against the messages.
    refused: Option<String>,
    #[serde(default)]
    text: String,
    #[serde(default)]
    tokens: Vec<u32>,
    /// Which tokens the assistant wrote; none where nobody can say.
    mask: Option<Vec<u8>>,
    /// Tokens of all but the last turn, up to where the assistant begins.
    #[serde(default)]
    prompt: Vec<u32>,
}

/// The Llama 3 tokeniser with a template.
fn with_template(template: &str) -> TextTokenizer {
    let dir = tempfile::tempdir().unwrap();
    for file in [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE] {
        std::fs::copy(fixture("tokens/llama-3").join(file), dir.path().join(file)).unwrap();
    }
    std::fs::write(dir.path().join(CHAT_TEMPLATE_FILE), template).unwrap();
    TextTokenizer::load(dir.path()).unwrap()
}

#[test]
fn texts_ids_and_assistants_tokens_of_conversations_are_those_of_transformers() {
    let kinds: BTreeMap<String, Kind> = read_json("tokens/chats.json");
    assert_eq!(kinds.len(), 6);
    let (mut refusals, mut unknown) = (0, 0);
    for (name, kind) in &kinds {
        let tokenizer = with_template(&kind.template);
        assert_eq!(kind.chats.len(), 4);
        for chat in &kind.chats {
            let row = tokenizer.example_chat(&chat.messages);
            if let Some(refused) = &chat.refused {
                let error = row.unwrap_err().to_string();
                assert!(error.contains(refused), "{name}: {error}");
                refusals += 1;
                continue;
            }
            let text = tokenizer.render_chat(&chat.messages, false).unwrap();
            assert_eq!(text, chat.text, "{name}");
            let asked = &chat.messages[..chat.messages.len() - 1];
            let prompt = tokenizer.encode_chat_prompt(asked).unwrap();
            assert_eq!(prompt, chat.prompt, "{name}: {text:?}");
            let Some(mask) = &chat.mask else {
                let error = row.unwrap_err();
                let is_told = matches!(error, TokenizerError::Chat(ChatError::NotIncremental));
                assert!(is_told, "{name}: {error}");
                unknown += 1;
                continue;
            };
            let row = row.unwrap();
            assert_eq!(row.tokens, chat.tokens, "{name}: {text:?}");
            let mask: Vec<bool> = mask.iter().map(|bit| *bit == 1).collect();
            assert!(mask.contains(&true), "{name}: {text:?}");
            assert_eq!(row.loss_mask, mask, "{name}: {text:?}");
        }
    }
    assert_eq!((refusals, unknown), (3, 1));
}
