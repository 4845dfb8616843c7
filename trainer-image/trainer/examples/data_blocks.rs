//! Times what the trainer does with a dataset's version before it computes: rows, chat template, token ids, packed
//! blocks.
//!
//! `data_blocks STORE DATASET DIGEST BASE THREADS` prints seconds by stage, counts and a digest of all ids as one JSON
//! line; `make bench-data` calls it. Rows are of format Chat.
#![expect(clippy::disallowed_methods, reason = "it measures")]

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use graftwork_artifacts::Store;
use graftwork_artifacts::rows::{self, Row};
use graftwork_contract::Digest;
use graftwork_contract::dataset::Split;
use graftwork_contract::digest::PartsHasher;
use graftwork_model::chat::ChatTemplate;
use graftwork_model::tokenizer::{ChatMessage, TextTokenizer, TokenizedExample};
use graftwork_model::transformer::PackedBatch;
use rayon::prelude::*;
use serde_json::{Value, json};

/// Tokens of one block; a longer row is cut.
const BLOCK_TOKENS: usize = 2048;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, dataset, digest, base, threads] = arguments.as_slice() else {
        return Err("usage: data_blocks STORE DATASET DIGEST BASE THREADS".into());
    };
    let digest: Digest = digest.parse()?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.parse()?)
        .build()?;
    let found = pool.install(|| stages(Path::new(store), dataset, &digest, Path::new(base)))?;
    println!("{found}");
    Ok(())
}

fn stages(store: &Path, dataset: &str, digest: &Digest, base: &Path) -> Result<Value, Failure> {
    let tokenizer = TextTokenizer::load(base)?;
    let template = template(base)?;

    let begun = Instant::now();
    let rows = rows::read(&Store::open(store)?, dataset, digest, Split::Train)?;
    let read = begun.elapsed();

    let begun = Instant::now();
    let conversations = rows
        .into_iter()
        .map(conversation)
        .collect::<Result<Vec<_>, Failure>>()?;
    let converted = begun.elapsed();

    // By itself, so that one knows what the tokenizer takes of what follows.
    let begun = Instant::now();
    let texts: Vec<usize> = conversations
        .par_iter()
        .map(|messages| Ok(template.render_with_answers(messages)?.text.len()))
        .collect::<Result<_, Failure>>()?;
    let rendered = begun.elapsed();

    let begun = Instant::now();
    let examples: Vec<TokenizedExample> = conversations
        .par_iter()
        .map(|messages| Ok(tokenizer.example_chat(messages)?))
        .collect::<Result<_, Failure>>()?;
    let tokenised = begun.elapsed();

    let begun = Instant::now();
    let blocks = pack(&examples);
    let packed = begun.elapsed();

    let mut ids = PartsHasher::new();
    for example in &examples {
        let bytes: Vec<u8> = example
            .tokens
            .iter()
            .flat_map(|token| token.to_le_bytes())
            .collect();
        ids.part(bytes);
    }
    Ok(json!({
        "read_s": read.as_secs_f64() + converted.as_secs_f64(),
        "template_s": rendered.as_secs_f64(),
        "template_and_tokens_s": tokenised.as_secs_f64(),
        "pack_s": packed.as_secs_f64(),
        "rows": examples.len(),
        "text_bytes": texts.iter().sum::<usize>(),
        "tokens": examples.iter().map(|example| example.tokens.len()).sum::<usize>(),
        "blocks": blocks.len(),
        "targets": blocks.iter().map(PackedBatch::targets).sum::<usize>(),
        "ids": ids.finish().as_str(),
    }))
}

/// The template of `tokenizer_config.json`, with its tokens.
fn template(base: &Path) -> Result<ChatTemplate, Failure> {
    let config: Value =
        serde_json::from_slice(&std::fs::read(base.join("tokenizer_config.json"))?)?;
    let text = |name: &str| config.get(name).and_then(Value::as_str);
    let source = text("chat_template").ok_or("tokenizer_config.json has no chat_template")?;
    Ok(ChatTemplate::parse(
        source.to_owned(),
        text("bos_token"),
        text("eos_token"),
    )?)
}

fn conversation(row: Row) -> Result<Vec<ChatMessage>, Failure> {
    let Row::Chat { messages } = row else {
        return Err("the dataset's format is not Chat".into());
    };
    Ok(messages
        .into_iter()
        .map(|message| ChatMessage::new(message.role, message.content))
        .collect())
}

/// Whole rows, in their order: a block ends where the next one does not fit.
fn pack(examples: &[TokenizedExample]) -> Vec<PackedBatch> {
    let mut blocks = Vec::new();
    let mut block = PackedBatch::new();
    for example in examples {
        let tokens = example
            .tokens
            .get(..BLOCK_TOKENS)
            .unwrap_or(&example.tokens);
        if block.rows() > 0 && block.rows() + tokens.len() > BLOCK_TOKENS {
            blocks.push(std::mem::take(&mut block));
        }
        block.push(tokens, &example.loss_mask);
    }
    if block.rows() > 0 {
        blocks.push(block);
    }
    blocks
}
