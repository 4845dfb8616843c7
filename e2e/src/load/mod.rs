//! The load generator: closed-loop callers inside the cluster, one JSON line for each request, a summary at the end.
//!
//! It ends by its own limits, at SIGTERM, or where it is told to (see [`control`]). It never retries. It judges every answer by itself and always ends with success, so that its Job completes and the
//! story judges the summary.

mod client;
pub mod control;
mod judge;
mod summary;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    /// Ends after this many requests.
    #[arg(long)]
    requests: Option<u64>,
    /// Ends after this long.
    #[arg(long)]
    seconds: Option<u64>,
    /// A file with the pod's annotations: goes on until it holds graftwork.dev/stop-load, and at least for --requests.
    #[arg(long)]
    control: Option<PathBuf>,
    /// What a caller waits after an answer before it asks again.
    #[arg(long, default_value_t = 0)]
    think_milliseconds: u64,
    /// Distinct values of `user`, used in turn.
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
    /// JSON `{"name@vN": ["word", ...]}`: an answer of that version contains one of its words and none of the others', and
    /// no other version answers; {} judges no text.
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
            told: AtomicBool::new(false),
        });
        if let Some(file) = self.control.clone() {
            let plan = Arc::clone(&plan);
            tokio::spawn(async move {
                control::told(&file).await;
                plan.told.store(true, Ordering::Relaxed);
            });
        }
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
        summary.told = plan.told.load(Ordering::Relaxed);
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
    /// Whether somebody said that it is enough.
    told: AtomicBool,
}

impl Plan {
    /// The number of the next request, counted from 0; none where no other may start.
    fn another(&self) -> Option<u64> {
        let elapsed = self.start.elapsed().as_secs();
        if self.load.seconds.is_some_and(|limit| elapsed >= limit) {
            return None;
        }
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        let goes_on = match (&self.load.control, self.load.requests) {
            (Some(_), requests) => {
                !self.told.load(Ordering::Relaxed) || number < requests.unwrap_or_default()
            }
            (None, Some(requests)) => number < requests,
            (None, None) => self.load.seconds.is_some(),
        };
        goes_on.then_some(number)
    }

    fn request(&self, caller: u64, number: u64) -> Request {
        let mut random = rand::rng();
        let item: u64 = random.random_range(0..400);
        let model = random.random_range(0..self.load.models.len());
        Request {
            model: self.load.models.get(model).cloned().unwrap_or_default(),
            user: format!("user-{}", number % self.load.users.max(1)),
            prompt: self.load.prompt_template.replace("{n}", &item.to_string()),
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
    let think = Duration::from_millis(plan.load.think_milliseconds);
    while !*stopped.borrow() {
        let Some(number) = plan.another() else { return };
        let request = plan.request(caller, number);
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
        if !think.is_zero() {
            tokio::time::sleep(think).await;
        }
    }
}

/// Requests by version.
pub type Versions = BTreeMap<String, VersionSummary>;

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        load: Load,
    }

    fn plan(arguments: &[&str]) -> Plan {
        let fixed = ["load", "--url", "http://a", "--model", "m"];
        let load = Command::parse_from(fixed.iter().chain(arguments)).load;
        Plan {
            client: Client::new(&load.url, Duration::from_secs(1)).unwrap(),
            load,
            expectations: Expectations::default(),
            start: Instant::now(),
            sent: AtomicU64::new(0),
            told: AtomicBool::new(false),
        }
    }

    #[tokio::test]
    async fn a_controlled_load_goes_on_until_it_was_told_and_has_asked_enough() {
        let plan = plan(&["--control", "/nowhere", "--requests", "3"]);
        for number in 0..5 {
            assert_eq!(plan.another(), Some(number));
        }
        plan.told.store(true, Ordering::Relaxed);
        assert_eq!(plan.another(), None);

        let early = self::plan(&["--control", "/nowhere", "--requests", "3"]);
        early.told.store(true, Ordering::Relaxed);
        let asked: Vec<_> = (0..5).map(|_| early.another()).collect();
        assert_eq!(asked, [Some(0), Some(1), Some(2), None, None]);

        let late = self::plan(&["--control", "/nowhere", "--seconds", "0"]);
        assert_eq!(late.another(), None);
    }

    #[tokio::test]
    async fn without_control_the_numbers_end_it() {
        let plan = self::plan(&["--requests", "2"]);
        let asked: Vec<_> = (0..3).map(|_| plan.another()).collect();
        assert_eq!(asked, [Some(0), Some(1), None]);
        assert_eq!(self::plan(&[]).another(), None);
    }

    #[tokio::test]
    async fn users_take_turns() {
        let plan = plan(&["--users", "3"]);
        let users: Vec<_> = (0..4).map(|number| plan.request(0, number).user).collect();
        assert_eq!(users, ["user-0", "user-1", "user-2", "user-0"]);
    }
}
