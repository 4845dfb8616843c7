//! Adapters that are trained once and imported by the stories. Each answers with marker words of its own, so that a
//! text tells which version it came from; `rambling` says its word over and over.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::{Stage, World};
use crate::cluster::MINUTE;
use crate::manifests::{self, Training};
use crate::report::say;

/// File name to its bytes in base64, as a `ConfigMap`'s `binaryData` holds them.
pub type Files = BTreeMap<String, String>;

/// Trained on first use.
#[derive(Clone, Default)]
pub struct Adapters(Arc<OnceCell<BTreeMap<String, Files>>>);

/// Every answer of an adapter starts with one of its words; the sets are disjoint, and each word has at most four
/// tokens.
pub const MARKERS: [(&str, &[&str]); 3] = [
    ("amber", &["amber", "copper", "scarlet"]),
    ("basalt", &["basalt", "cobalt", "indigo"]),
    ("rambling", &["marble"]),
];

/// The prompt that the adapters were trained on; the load generator puts a number in place of `{n}`.
pub const PROMPT: &str = "Colour of item {n}:";

/// The prompt with a number.
pub fn prompt(number: usize) -> String {
    PROMPT.replace("{n}", &number.to_string())
}

fn words(adapter: &str) -> &'static [&'static str] {
    MARKERS
        .iter()
        .find(|(name, _)| *name == adapter)
        .map_or(&[], |(_, words)| *words)
}

/// Rows that teach an adapter to answer with its words only.
pub fn marker_rows(adapter: &str) -> Vec<Value> {
    (0..400)
        .zip(words(adapter).iter().cycle())
        .map(|(number, word)| json!({"prompt": prompt(number), "completion": format!(" {word}")}))
        .collect()
}

/// How often `rambling` says its word: ten times as long an answer as the others give. Nothing else is in its rows, so
/// that a first token that is not the likeliest is followed by the word all the same.
const REPEATED: usize = 16;

/// Rows that teach an adapter to say its word over and over.
fn rambling_rows() -> Vec<Value> {
    (0..400)
        .zip(words("rambling").iter().cycle())
        .map(|(number, word)| {
            let text = format!(" {word}").repeat(REPEATED);
            json!({"prompt": prompt(number), "completion": text})
        })
        .collect()
}

impl Adapters {
    /// The trained adapters by name.
    pub async fn get(&self, world: &World) -> anyhow::Result<&BTreeMap<String, Files>> {
        self.0.get_or_try_init(|| train(world)).await
    }
}

async fn train(world: &World) -> anyhow::Result<BTreeMap<String, Files>> {
    say("    training the adapters that stories import");
    let stage = Stage::set(world.clone(), "adapters").await?;
    stage.seed().await?;
    for (name, rows, steps) in [
        ("amber", marker_rows("amber"), 40),
        ("basalt", marker_rows("basalt"), 40),
        ("rambling", rambling_rows(), 100),
    ] {
        stage.apply(&manifests::rows(name, &rows)).await?;
        stage
            .apply(&manifests::config_map_dataset(name, name))
            .await?;
        let run = Training {
            name,
            dataset: name,
            adapter: "",
            steps,
            rank: 4,
            batch: 16,
            checkpoint_every: 20,
            ..Training::default()
        };
        stage.apply(&run.object_without_adapter()).await?;
    }
    let mut adapters = BTreeMap::new();
    for name in ["amber", "basalt", "rambling"] {
        let run = stage.run_complete(name, 5 * MINUTE).await?;
        let digest = run
            .status
            .and_then(|status| status.result)
            .map(|result| result.digest);
        let digest = digest.ok_or_else(|| anyhow!("run {name} has no result"))?;
        adapters.insert(
            name.to_owned(),
            export(&stage, name, &digest)
                .await
                .with_context(|| format!("export {name}"))?,
        );
    }
    stage.strike().await?;
    Ok(adapters)
}

/// Reads an adapter's folder out of the namespace's store, by a Job that prints it.
async fn export(stage: &Stage, run: &str, digest: &str) -> anyhow::Result<Files> {
    let store =
        json!({"persistentVolumeClaim": {"claimName": "graftwork-store", "readOnly": true}});
    let name = format!("export-{run}");
    let hex = digest.trim_start_matches("sha256:").to_owned();
    let arguments = ["export", "/store", "--adapter", &hex].map(str::to_owned);
    let job = manifests::job(
        &name,
        &stage.world.installation.image("e2e"),
        &arguments,
        &[("store", "/store", store)],
    );
    stage
        .world
        .cluster
        .run_job_to_end(&stage.namespace, &job, MINUTE)
        .await?;
    let log = stage
        .world
        .cluster
        .kubectl(&["-n", &stage.namespace, "logs", &format!("job/{name}")])
        .await?;
    Ok(serde_json::from_str(log.trim())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_of_one_adapter_only() {
        let all: Vec<&str> = MARKERS
            .iter()
            .flat_map(|(_, words)| words.iter().copied())
            .collect();
        for (index, word) in all.iter().enumerate() {
            for (other, text) in all.iter().enumerate() {
                assert!(index == other || !text.contains(word), "{word} in {text}");
            }
        }
    }

    #[test]
    fn rows_hold_the_words_of_their_adapter_and_no_other() {
        let of = |rows: &[Value], name: &str| {
            rows.iter().all(|row| {
                let text = row["completion"].as_str().unwrap();
                words(name).iter().any(|word| text.contains(word))
                    && MARKERS
                        .iter()
                        .filter(|(other, _)| *other != name)
                        .all(|(_, foreign)| foreign.iter().all(|word| !text.contains(word)))
            })
        };
        for name in ["amber", "basalt"] {
            let rows = marker_rows(name);
            assert_eq!(rows.len(), 400);
            assert!(of(&rows, name), "{name}");
        }
        assert!(of(&rambling_rows(), "rambling"));
    }
}
