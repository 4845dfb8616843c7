//! A version that passes its gate and answers without end is canaried and taken back by itself; status names metric,
//! value, limit and samples, everything that people look at says so, and the digest is not tried again until someone
//! says Retry.

use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use graftwork_api::lora_adapter::Verdict;
use graftwork_api::serving_endpoint::{AdapterRollout, RejectedDigest, RolloutState};
use serde_json::json;

use super::Stage;
use super::stage::{ENGINES, condition};
use super::traffic::{Load, expectations};
use crate::cluster::MINUTE;

/// Requests of the candidate without which nothing is said.
const MINIMUM_REQUESTS: u64 = 20;
/// By how much a candidate may be slower.
const PERCENT: &str = "100";

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let rollout = json!({
        "strategy": "Canary",
        "canary": {"steps": [{"setWeight": 30}, {"pause": {"seconds": 120}}]},
        "analysis": {
            "intervalSeconds": 4, "minimumRequests": MINIMUM_REQUESTS, "failureLimit": 1,
            "rules": [
                {"metric": "error_rate", "maximum": "0.01"},
                {"metric": "latency_p95", "maximumIncreasePercent": PERCENT},
            ],
        },
    });
    stage.serve_amber(1, &rollout).await?;
    let pods = stage.start_times(ENGINES).await?;
    let expect = expectations(&[("colours", 1, "amber"), ("colours", 2, "rambling")]);
    let load = Load {
        max_tokens: 256,
        ..Load::new("load", &expect)
    };
    let traffic = stage.start_traffic(&load).await?;
    stage.import("colours", "rambling", &json!({})).await?;
    stage.weight(30, MINUTE).await?;
    traffic.seen("colours@v2").await?;
    stage
        .rollout_state(&[RolloutState::RolledBack], 2 * MINUTE)
        .await?;
    stage.proved("v2 was taken back", start.elapsed());

    let rejected = everybody_says_so(&stage).await?;
    stage.proved(
        &format!("everybody says so: {}", rejected.message),
        start.elapsed(),
    );

    traffic.stop().await?;
    let after = Load {
        job: "after",
        ..load
    };
    let summary = stage.ask_two_thousand(&after).await?;
    ensure!(
        summary.only("colours@v1"),
        "after the rollback: {summary:?}"
    );
    let served = stage.served().await?;
    ensure!(
        served.candidate.is_none(),
        "it is tried again by itself: {served:?}"
    );
    ensure!(
        stage.start_times(ENGINES).await? == pods,
        "an engine was restarted"
    );
    stage.proved("no request failed, and v1 serves all", start.elapsed());

    let answer = stage
        .command("again", "Retry", &rejected.digest, None)
        .await?;
    ensure!(answer.outcome.as_str() != "Refused", "{answer:?}");
    stage
        .rollout_state(
            &[
                RolloutState::Preparing,
                RolloutState::Stepping,
                RolloutState::Paused,
            ],
            MINUTE,
        )
        .await?;
    stage.proved("Retry canaries it again", start.elapsed());
    Ok(())
}

/// The endpoint's conditions and its list of rejected versions, the adapter's stages, and what `kubectl get` prints.
async fn everybody_says_so(stage: &Stage) -> anyhow::Result<RejectedDigest> {
    // The state is decided first and observed in the conditions after that.
    let status = stage
        .endpoint(
            "assistants",
            MINUTE,
            "RolledBack=True and Ready=True",
            |endpoint| {
                let status = endpoint.status.as_ref()?;
                let rolled_back = condition(&status.conditions, "RolledBack")?;
                let ready = condition(&status.conditions, "Ready")?;
                (rolled_back.status == "True" && ready.status == "True").then(|| status.clone())
            },
        )
        .await?;
    let rolled_back = condition(&status.conditions, "RolledBack").context("RolledBack")?;
    let [rejected] = status.rejected.as_slice() else {
        bail!("not one version is rejected: {:?}", status.rejected);
    };
    ensure!(
        rejected.adapter == "colours" && rejected.version == 2,
        "{rejected:?}"
    );
    for (what, reason, message) in [
        ("RolledBack", &rolled_back.reason, &rolled_back.message),
        ("status.rejected", &rejected.reason, &rejected.message),
    ] {
        ensure!(
            reason == "LatencyAboveLimit" && message.contains("latency_p95"),
            "{what} says {reason}: {message}"
        );
    }
    ensure_says_numbers(&rejected.message)?;

    let served = stage.served().await?;
    let stable = served.stable.as_ref().map(|stable| stable.version);
    ensure!(
        stable == Some(1) && served.candidate.is_none(),
        "{served:?}"
    );
    ensure_judged(&served.rollout.context("the rollout is not in status")?)?;

    let version = stage
        .version("colours", 2, "Rejected", |version| {
            version.stage.as_str() == "Rejected"
        })
        .await?;
    ensure!(version.digest == rejected.digest, "{version:?}");
    ensure!(
        version.reason.as_deref() == Some("RolledBackOnEndpoint")
            && version.message.as_ref().is_some_and(
                |message| message.contains("assistants") && message.contains("latency_p95")
            ),
        "{version:?}"
    );

    let printed = stage
        .world
        .cluster
        .kubectl(&["-n", &stage.namespace, "get", "graft"])
        .await?;
    let has = |start: &str, words: &str| {
        printed
            .lines()
            .any(|line| line.starts_with(start) && line.contains(words))
    };
    ensure!(
        has("servingendpoint.graftwork.dev/assistants", "RolledBack")
            && has("loraadapter.graftwork.dev/colours", "2 Rejected"),
        "kubectl get graft does not show it:\n{printed}"
    );
    Ok(rejected.clone())
}

/// Value, limit and samples: `latency_p95 0.4039 > 0.0109 of the stable version + 100 % over 260 requests`.
fn ensure_says_numbers(message: &str) -> anyhow::Result<()> {
    let numbers: Vec<f64> = message
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let percent: f64 = PERCENT.parse()?;
    let told = match numbers.as_slice() {
        [value, stable, said, samples] => {
            (*said - percent).abs() < f64::EPSILON
                && *value > stable * (1.0 + percent / 100.0)
                && *samples >= MINIMUM_REQUESTS as f64
        }
        _ => false,
    };
    ensure!(
        told && message.contains(" requests"),
        "value, limit and samples are not told: {message}"
    );
    Ok(())
}

/// The judgement itself stays in status.
fn ensure_judged(rollout: &AdapterRollout) -> anyhow::Result<()> {
    let latency = rollout
        .analysis
        .iter()
        .find(|result| result.metric == "latency_p95")
        .with_context(|| format!("no judgement of latency_p95: {rollout:?}"))?;
    ensure!(
        latency.verdict == Verdict::Fail
            && latency.samples >= MINIMUM_REQUESTS
            && latency.candidate.is_some()
            && latency.stable.is_some(),
        "{latency:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_without_one_of_the_numbers_is_refused() {
        let whole = "latency_p95 0.4039 > 0.0109 of the stable version + 100 % over 260 requests";
        ensure_says_numbers(whole).unwrap();
        for (from, to) in [
            ("0.4039", "high"),
            ("0.4039", "0.0200"),
            ("0.0109", "that"),
            ("100", "50"),
            ("260", "19"),
            (" over 260 requests", ""),
        ] {
            let lacking = whole.replace(from, to);
            assert!(ensure_says_numbers(&lacking).is_err(), "{lacking}");
        }
    }
}
