//! What engine and trainer do with a chat template and a conversation.

#![no_main]

#[path = "../src/template.rs"]
mod template;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    template::render(bytes);
});
