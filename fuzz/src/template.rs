//! A chat template and a conversation from text: parts between lines of `---`, the template first, then what user and
//! assistant say in turn.

use graftwork_model::chat::{ChatMessage, ChatTemplate};

/// Renders the conversation for serving and for training. Whether the template took it.
///
/// # Panics
/// Where an answer lies outside the text.
pub fn render(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.split("\n---\n");
    let source = parts.next().unwrap_or_default().to_owned();
    let roles = ["user", "assistant"].into_iter().cycle();
    let messages: Vec<ChatMessage> = roles
        .zip(parts)
        .map(|(role, text)| ChatMessage::new(role, text))
        .collect();
    let Ok(template) = ChatTemplate::parse(source, Some("<s>"), Some("</s>")) else {
        return false;
    };
    if let Ok(transcript) = template.render_with_answers(&messages) {
        for answer in transcript.answers {
            assert!(transcript.text.get(answer.clone()).is_some(), "{answer:?}");
        }
    }
    template.render(&messages, true).is_ok()
}
