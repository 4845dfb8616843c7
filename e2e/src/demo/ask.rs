//! Asking the endpoint as people do: with `curl`, the `openai` and the Triton client of Python, `lm_eval`, and a browser,
//! through a port-forward.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::cluster::Cluster;

/// What asks with OpenAI's own client.
const OPENAI: &str = include_str!("../../clients/openai_client.py");
/// What asks over gRPC.
const OPEN_INFERENCE: &str = include_str!("../../clients/open_inference.py");
/// What opens the page at `/`.
const PAGE: &str = include_str!("../../clients/page.py");
/// What scores rows with `lm_eval` and by our own rules.
const LM_EVAL: &str = include_str!("../../clients/lm_eval_score.py");
/// Exit code of these where the machine lacks what they need.
const LACKING: i32 = 3;

/// A `kubectl port-forward` that ends with this value.
pub struct Forward {
    port: u16,
    _child: Child,
    /// What kubectl remembers of the cluster goes with it, and is not left to the user.
    _cache: TempDir,
}

impl Forward {
    /// Forwards a free local port to a Service.
    pub async fn open(cluster: &Cluster, namespace: &str, service: &str) -> anyhow::Result<Self> {
        let cache = tempfile::tempdir()?;
        let mut child = Command::new("kubectl")
            .args([
                "-n",
                namespace,
                "port-forward",
                &format!("svc/{service}"),
                ":80",
            ])
            .env("KUBECONFIG", &cluster.kubeconfig)
            .env("KUBECACHEDIR", cache.path())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("kubectl is not on the PATH")?;
        let output = child.stdout.take().context("no output of kubectl")?;
        // "Forwarding from 127.0.0.1:40123 -> 8080"
        let mut lines = BufReader::new(output).lines();
        let line = lines
            .next_line()
            .await?
            .context("kubectl port-forward ended at once")?;
        let port = line
            .split(':')
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .and_then(|port| port.parse().ok());
        let port = port.with_context(|| format!("kubectl port-forward said {line:?}"))?;
        // Keeps reading, so that kubectl never blocks on a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self {
            port,
            _child: child,
            _cache: cache,
        })
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// Asks with `curl`; the answer's text and its version header.
    pub async fn curl(&self, model: &str, prompt: &str) -> anyhow::Result<(String, String)> {
        let body = json!({"model": model, "prompt": prompt, "max_tokens": 6, "temperature": 0, "stop": ["\n"]});
        let output = Command::new("curl")
            .args([
                "-sS",
                "-i",
                "--max-time",
                "30",
                "-H",
                "content-type: application/json",
                "-d",
                &body.to_string(),
            ])
            .arg(format!("{}/completions", self.url()))
            .output()
            .await
            .context("curl is not on the PATH")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "curl: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let (head, body) = text
            .split_once("\r\n\r\n")
            .with_context(|| format!("an answer without a body: {text:?}"))?;
        let answer: Value =
            serde_json::from_str(body).with_context(|| format!("{head}\n{body}"))?;
        let Some(completion) = answer["choices"][0]["text"].as_str() else {
            bail!("{head}\n{body}")
        };
        let version = head
            .lines()
            .find_map(|line| {
                line.to_lowercase()
                    .strip_prefix("x-graftwork-adapter: ")
                    .map(str::to_owned)
            })
            .with_context(|| format!("no version header: {head}"))?;
        Ok((completion.trim().to_owned(), version))
    }

    /// Asks with the `openai` Python client, alone and together, whole and as streams.
    pub async fn openai(&self, python: &Path, model: &str, prompt: &str) -> anyhow::Result<String> {
        let output = Command::new(python)
            .args(["-c", OPENAI, &self.url(), model, prompt])
            .kill_on_drop(true)
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "openai: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Asks over gRPC with Triton's Python client; `None` where this Python has none.
    pub async fn triton(
        &self,
        python: &Path,
        model: &str,
        prompt: &str,
    ) -> anyhow::Result<Option<String>> {
        let address = format!("127.0.0.1:{}", self.port);
        run(python, OPEN_INFERENCE, &[&address, model, prompt])
            .await
            .context("tritonclient")
    }

    /// Scores rows, JSONL of `prompt` and `completion`, with `lm_eval`'s `local-completions` and by the rules of a run's
    /// metrics, and fails where the two differ. `tokenizer`: the base model's folder. Says both scores.
    pub async fn lm_eval(
        &self,
        python: &Path,
        model: &str,
        (tokenizer, rows): (&Path, &Path),
    ) -> anyhow::Result<String> {
        let output = Command::new(python)
            .args([
                "-c",
                LM_EVAL,
                &format!("http://127.0.0.1:{}", self.port),
                model,
            ])
            .args([tokenizer, rows])
            // The rows are here, and so is the tokenizer.
            .env("HF_HUB_OFFLINE", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "lm_eval: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let said = String::from_utf8_lossy(&output.stdout);
        let scores: Vec<String> = said
            .lines()
            .filter(|line| line.starts_with("exact_match") || line.starts_with("log-likelihood"))
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        ensure!(scores.len() == 2, "lm_eval said {said:?}");
        Ok(scores.join(", "))
    }

    /// Types into the page at `/` in a headless Chromium and takes a picture; `None` where there is no Chromium.
    pub async fn page(
        &self,
        model: &str,
        prompt: &str,
        picture: &Path,
    ) -> anyhow::Result<Option<String>> {
        let url = format!("http://127.0.0.1:{}/", self.port);
        let picture = picture.display().to_string();
        run(Path::new("python3"), PAGE, &[&url, model, prompt, &picture])
            .await
            .context("the page at /")
    }
}

/// What a Python program prints; `None` where the machine lacks what it needs.
async fn run(python: &Path, program: &str, arguments: &[&str]) -> anyhow::Result<Option<String>> {
    let ran = Command::new(python)
        .args(["-c", program])
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let output = match ran {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        ran => ran?,
    };
    if output.status.code() == Some(LACKING) {
        return Ok(None);
    }
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(Some(
        String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    ))
}
