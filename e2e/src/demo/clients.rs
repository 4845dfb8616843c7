//! The clients that the served models are asked with, a step for each.

use std::path::Path;

use anyhow::ensure;
use graftwork_contract::endpoint::base_header;
use serde_json::json;

use super::ask::Forward;
use crate::cluster::{MINUTE, wait};
use crate::manifests::BASE_NAME;
use crate::report::{say, step};

/// A definition that no training row holds.
const PROMPT: &str = "Definition: a large grey animal with a long trunk\nTopic:";
/// Definitions with their topics, some of them as a model of this size says, to be scored by two programs.
const SCORED: [(&str, &str); 8] = [
    ("a large grey animal with a long trunk", "animal"),
    ("a tall perennial plant with a woody trunk", "plant"),
    ("a person who repairs shoes", "person"),
    (
        "a stringed instrument that is played with a bow",
        "artifact",
    ),
    ("the act of throwing something forcefully", "act"),
    ("a sweet baked food made of flour and sugar", "food"),
    ("a strong feeling of great annoyance", "feeling"),
    ("a body of water surrounded by land", "object"),
];
/// The base model's folder in the clone, in which the walk-through is called.
const BASE_FOLDER: &str = "e2e/demo-data/base-model";

/// What the endpoint is asked with beside curl.
pub struct Clients<'a> {
    /// A Python with OpenAI's and Triton's clients.
    pub python: Option<&'a Path>,
    /// A Python with `lm_eval`, which nobody has to have: it brings torch.
    pub lm_eval: Option<&'a Path>,
    /// Whether one that is not there is a failure.
    pub all: bool,
    /// For a picture of the page.
    pub logs: &'a Path,
}

impl Clients<'_> {
    /// Asks with every client that is there, and says which is not.
    pub async fn ask(&self, forward: &Forward) -> anyhow::Result<()> {
        step("Asking with curl", ask_with_curl(forward)).await?;
        match self.python {
            Some(python) => {
                step(
                    "Asking with the openai and Triton clients of Python",
                    self.ask_with_python(forward, python),
                )
                .await?;
            }
            None => self.skip(
                "the openai and Triton clients are not asked: GRAFTWORK_OPENAI_PYTHON names no Python",
            )?,
        }
        match self.lm_eval {
            Some(python) => step("Scoring with lm_eval", score(forward, python)).await?,
            None => {
                say("   (lm_eval does not score the endpoint: make lm-eval-python was not called)");
            }
        }
        step("Opening the page at / in Chromium", self.open_page(forward)).await
    }

    async fn ask_with_python(&self, forward: &Forward, python: &Path) -> anyhow::Result<()> {
        let answer = forward.openai(python, "topics", PROMPT).await?;
        ensure!(!answer.is_empty(), "openai: an empty answer");
        say(&format!(
            "   openai Python client, model topics: {answer:?}"
        ));
        let Some(over_grpc) = forward.triton(python, "topics", PROMPT).await? else {
            return self.skip("tritonclient is not asked: this Python has none");
        };
        ensure!(
            over_grpc == answer,
            "over gRPC {over_grpc:?}, over HTTP {answer:?}"
        );
        say(&format!(
            "   tritonclient over gRPC, model topics: {over_grpc:?}"
        ));
        Ok(())
    }

    async fn open_page(&self, forward: &Forward) -> anyhow::Result<()> {
        let picture = self.logs.join("page.png");
        let Some(said) = forward.page("topics", PROMPT, &picture).await? else {
            return self.skip("the page at / is not opened: there is no Chromium here");
        };
        say(&format!(
            "   the page at / in Chromium: {said}; {}",
            picture.display()
        ));
        Ok(())
    }

    /// Says which client is not there.
    fn skip(&self, what: &str) -> anyhow::Result<()> {
        ensure!(!self.all, "{what}, and every client was to be asked with");
        say(&format!("   ({what})"));
        Ok(())
    }
}

/// Scores the adapter with `lm_eval` and by our own rules.
async fn score(forward: &Forward, python: &Path) -> anyhow::Result<()> {
    let rows: String = SCORED
        .iter()
        .map(|(definition, topic)| {
            let prompt = format!("Definition: {definition}\nTopic:");
            let row = json!({"prompt": prompt, "completion": format!(" {topic}")});
            format!("{row}\n")
        })
        .collect();
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), rows)?;
    let files = (Path::new(BASE_FOLDER), file.path());
    let scores = forward.lm_eval(python, "topics", files).await?;
    say(&format!("   ours and lm_eval, model topics: {scores}"));
    Ok(())
}

/// Asks both adapters and the bare base.
async fn ask_with_curl(forward: &Forward) -> anyhow::Result<()> {
    for model in ["topics", "parts-of-speech", BASE_NAME] {
        let prompt = if model == "parts-of-speech" {
            PROMPT.replace("Topic:", "Part of speech:")
        } else {
            PROMPT.to_owned()
        };
        let (answer, version) = wait("an answer", MINUTE, || async {
            forward.curl(model, &prompt).await.map(Some)
        })
        .await?;
        ensure!(!answer.is_empty(), "curl, model {model}: an empty answer");
        let expected = if model == BASE_NAME {
            base_header(BASE_NAME)
        } else {
            format!("{model}@v1")
        };
        ensure!(
            version == expected,
            "curl, model {model}: answered by {version}, not {expected}"
        );
        say(&format!("   curl, model {model}: {answer:?} ({version})"));
    }
    Ok(())
}
