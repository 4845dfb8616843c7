//! The load generator: closed-loop callers inside the cluster, one JSON line for each request, a summary at the end.
//!
//! It never retries. It judges every answer by itself and always ends with success, so that its Job completes and the
//! story judges the summary.

mod client;
mod judge;
mod summary;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use rand::RngExt as _;
use tokio::sync::{mpsc, watch};

use crate::report::say;
use client::{Client, Request};
pub use judge::{Expectations, Outcome};
pub use summary::{Record, Summary, VersionSummary};

/// Options of the load.
#[derive(Debug, Clone, Args)]
pub struct Load {
    /// The endpoint, for example `http://assistants.finance.svc`.
    #[arg(long)]
    url: String,
    /// The model to ask; repeatable, then drawn evenly.
    #[arg(long = "model", required = true)]
    models: Vec<String>,
    /// Callers; each waits for its answer before it asks again.
    #[arg(long, default_value_t = 16)]
    callers: u64,
    /// Ends after this many requests (and not before --minimum-seconds).
    #[arg(long)]
    requests: Option<u64>,
    /// Goes on at least this long, even when --requests are done.
    #[arg(long, default_value_t = 0)]
    minimum_seconds: u64,
    /// Ends after this long.
    #[arg(long)]
    seconds: Option<u64>,
    /// Distinct values of `user`.
    #[arg(long, default_value_t = 200)]
    users: u64,
    /// The prompt; `{n}` becomes a number below 400.
    #[arg(long, default_value = "Tell me about item {n}.")]
    prompt_template: String,
    /// Share of streamed requests.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    stream_percent: u32,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 16)]
    max_tokens: u32,
    /// A request without its last byte after this many seconds has failed.
    #[arg(long, default_value_t = 30)]
    timeout: u64,
    /// JSON `{"name@vN": ["word", ...]}`: an answer of that version contains one of its words and none of the others'.
    #[arg(long, default_value = "{}")]
    expect: String,
    /// Sent as `x-graftwork-version`.
    #[arg(long)]
    version: Option<String>,
    /// Where the summary is left for the kubelet.
    #[arg(long, default_value = "/dev/termination-log")]
    termination_file: PathBuf,
}

impl Load {
    /// Runs the load until its end or SIGTERM.
    pub async fn run(&self) -> anyhow::Result<()> {
        let expectations: Expectations = self.expect.parse().context("--expect")?;
        let client = Client::new(&self.url, Duration::from_secs(self.timeout))?;
        let (records, mut received) = mpsc::channel::<Record>(1024);
        let (stop, stopped) = watch::channel(false);
        let plan = Arc::new(Plan {
            load: self.clone(),
            client,
            expectations,
            start: Instant::now(),
            sent: AtomicU64::new(0),
        });
        for caller in 0..self.callers.max(1) {
            tokio::spawn(call(
                Arc::clone(&plan),
                caller,
                records.clone(),
                stopped.clone(),
            ));
        }
        drop(records);
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut summary = Summary::default();
        loop {
            tokio::select! {
                record = received.recv() => {
                    let Some(record) = record else { break };
                    say(&serde_json::to_string(&record)?);
                    summary.add(&record);
                }
                // The callers finish what they have begun.
                _ = terminate.recv() => { let _ = stop.send(true); }
                _ = tokio::signal::ctrl_c() => { let _ = stop.send(true); }
            }
        }
        summary.finish(plan.start.elapsed());
        let text = serde_json::to_string(&summary)?;
        say(&text);
        // Outside of a pod there is no such file, and nobody who reads it.
        let _ = std::fs::write(&self.termination_file, &text);
        Ok(())
    }
}

struct Plan {
    load: Load,
    client: Client,
    expectations: Expectations,
    start: Instant,
    sent: AtomicU64,
}

impl Plan {
    /// Whether another request may start; counts it.
    fn another(&self) -> bool {
        let elapsed = self.start.elapsed().as_secs();
        if self.load.seconds.is_some_and(|limit| elapsed >= limit) {
            return false;
        }
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        match self.load.requests {
            Some(limit) => number < limit || elapsed < self.load.minimum_seconds,
            None => self.load.seconds.is_some() || elapsed < self.load.minimum_seconds,
        }
    }

    fn request(&self, caller: u64) -> Request {
        let mut random = rand::rng();
        let number: u64 = random.random_range(0..400);
        let model = random.random_range(0..self.load.models.len());
        Request {
            model: self.load.models.get(model).cloned().unwrap_or_default(),
            user: format!("user-{}", random.random_range(0..self.load.users.max(1))),
            prompt: self
                .load
                .prompt_template
                .replace("{n}", &number.to_string()),
            max_tokens: self.load.max_tokens,
            stream: random.random_range(0..100) < self.load.stream_percent,
            version: self.load.version.clone(),
            caller,
        }
    }
}

async fn call(
    plan: Arc<Plan>,
    caller: u64,
    records: mpsc::Sender<Record>,
    stopped: watch::Receiver<bool>,
) {
    while !*stopped.borrow() && plan.another() {
        let request = plan.request(caller);
        let begun = plan.start.elapsed();
        let answer = plan.client.send(&request).await;
        let outcome = judge::judge(&request, &answer, &plan.expectations);
        let failed = outcome.is_failure();
        let record = Record::new(begun, request, answer, outcome);
        if records.send(record).await.is_err() {
            return;
        }
        if failed {
            // A refused connection answers at once; without a breath, one dead second would be a million requests.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Requests by version.
pub type Versions = BTreeMap<String, VersionSummary>;
