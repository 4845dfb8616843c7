//! A version that passes its gate and answers without end is canaried and taken back by itself; status names metric,
//! value, limit and samples, everything that people look at says so, and the digest is not tried again until someone
//! says Retry. So is a version that makes errors: its weights are finite and fit the base model, as those of a training
//! that diverged late are, and what is computed with them is not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use graftwork_api::lora_adapter::Verdict;
use graftwork_api::serving_endpoint::{AdapterRollout, RejectedDigest, RolloutState};
use graftwork_contract::adapter::WEIGHTS_FILE;
use serde_json::{Value, json};

use super::Stage;
use super::fixture::Files;
use super::stage::{ENGINES, condition};
use super::traffic::{Load, expectations};
use crate::cluster::MINUTE;
use crate::load::Outcome;

/// Requests of the candidate without which nothing is said.
const MINIMUM_REQUESTS: u64 = 20;
/// By how much a candidate may be slower. On a busy machine everybody waits, and the one that says ten times as much is
/// hardly twice as slow.
const PERCENT: &str = "50";
/// Which share of a candidate's answers may be errors.
const ERRORS: &str = "0.01";

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    let rollout = json!({
        "strategy": "Canary",
        "canary": {"steps": [{"setWeight": 30}, {"pause": {"seconds": 120}}]},
        "analysis": {
            "intervalSeconds": 4, "minimumRequests": MINIMUM_REQUESTS, "failureLimit": 1,
            "rules": [
                {"metric": "error_rate", "maximum": ERRORS},
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
    let trained = stage.world.adapters.get(&stage.world).await?;
    let folders = [overflowing(trained.get("amber").context("adapter amber")?)?];
    let taken_back = [RolloutState::RolledBack];
    futures::try_join!(
        stage.rollout_state(&taken_back, 2 * MINUTE),
        stage.put("overflowing", &[], &folders),
    )?;
    stage.proved("v2 was taken back", start.elapsed());

    let rejected = everybody_says_so(&stage).await?;
    stage.proved(
        &format!("everybody says so: {}", rejected.message),
        start.elapsed(),
    );

    traffic.stop().await?;
    makes_errors(&stage).await?;
    let served = stage.served().await?;
    ensure!(
        served.candidate.is_none(),
        "it is tried again by itself: {served:?}"
    );
    ensure!(
        stage.start_times(ENGINES).await? == pods,
        "an engine was restarted"
    );
    stage.proved(
        "v3 was taken back for its errors, and v1 serves all",
        start.elapsed(),
    );

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

/// Under traffic, v3 answers with errors until it is taken back. Nobody is answered by v2 any more, and nothing of v1
/// fails though it shares engine, batches and cache with v3.
async fn makes_errors(stage: &Stage) -> anyhow::Result<()> {
    let expect = expectations(&[("colours", 1, "amber")]);
    let traffic = stage
        .start_traffic(&Load::new("with-errors", &expect))
        .await?;
    stage.import("colours", "overflowing", &json!({})).await?;
    let what = "v3 to be rejected and its callers to be back";
    let rejected = stage
        .endpoint("assistants", 2 * MINUTE, what, |endpoint| {
            let status = endpoint.status.as_ref()?;
            let mut served = status.adapters.iter();
            let colours = served.find(|served| served.name == "colours")?;
            let rejected = status.rejected.iter().find(|it| it.version == 3)?;
            colours.candidate.is_none().then(|| rejected.clone())
        })
        .await?;
    ensure!(
        rejected.reason == "ErrorRateAboveLimit"
            && rejected.message.contains("error_rate")
            && rejected.message.contains(&format!("> {ERRORS} over "))
            && rejected.message.contains(" requests"),
        "{rejected:?}"
    );
    stage
        .version("colours", 3, "Rejected", |version| {
            version.stage.as_str() == "Rejected"
        })
        .await?;
    let summary = traffic.stop_with_failures().await?;
    let kinds: BTreeSet<Outcome> = summary.outcomes.keys().copied().collect();
    ensure!(
        summary.failed >= MINIMUM_REQUESTS
            && summary.failed == summary.of("colours@v3")
            && summary.of("colours@v2") == 0
            && kinds == BTreeSet::from([Outcome::Ok, Outcome::Status]),
        "not just v3 failed, and each time: {summary:?}"
    );
    Ok(())
}

/// The adapter with every weight 1e20, which is a number, and whose products with each other are none in 32 bits.
fn overflowing(files: &Files) -> anyhow::Result<(String, Files)> {
    let weights = BASE64_STANDARD.decode(files.get(WEIGHTS_FILE).context("no weights")?)?;
    let mut files = files.clone();
    files.insert(
        WEIGHTS_FILE.to_owned(),
        BASE64_STANDARD.encode(fill(&weights)?),
    );
    Ok(("adapters/overflowing".to_owned(), files))
}

/// The safetensors file with the same header: eight bytes with its length, little-endian, and JSON.
fn fill(weights: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (length, rest) = weights.split_first_chunk().context("no length")?;
    let length = usize::try_from(u64::from_le_bytes(*length))?;
    let (header, values) = rest.split_at_checked(length).context("no header")?;
    let tensors: BTreeMap<String, Value> = serde_json::from_slice(header)?;
    let types: BTreeSet<&str> = tensors
        .values()
        .filter_map(|tensor| tensor["dtype"].as_str())
        .collect();
    let large = 1e20_f32.to_le_bytes();
    let value = match types.iter().copied().collect::<Vec<_>>().as_slice() {
        ["F32"] => &large[..],
        // The upper half.
        ["BF16"] => &large[2..],
        other => bail!("tensors of {other:?}"),
    };
    let mut file = weights[..weights.len() - values.len()].to_vec();
    file.extend(value.iter().cycle().take(values.len()));
    Ok(file)
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
    ensure_says_numbers(&rejected.message, PERCENT, MINIMUM_REQUESTS)?;

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

/// Value, limit and samples: `latency_p95 0.4039 > 0.0109 of the stable version + 50 % over 260 requests`, where so many
/// percent are allowed and nothing is said before so many requests.
pub fn ensure_says_numbers(
    message: &str,
    percent: &str,
    minimum_requests: u64,
) -> anyhow::Result<()> {
    let numbers: Vec<f64> = message
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let percent: f64 = percent.parse()?;
    let told = match numbers.as_slice() {
        [value, stable, said, samples] => {
            (*said - percent).abs() < f64::EPSILON
                && *value > stable * (1.0 + percent / 100.0)
                && *samples >= minimum_requests as f64
        }
        _ => false,
    };
    ensure!(
        told && message.contains("latency_p95") && message.contains(" requests"),
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
    fn every_weight_is_replaced_and_nothing_else() {
        let file = |dtype: &str| {
            let header = format!(
                r#"{{"__metadata__":{{"format":"pt"}},"a":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,8]}}}}"#
            );
            let mut file = (header.len() as u64).to_le_bytes().to_vec();
            file.extend(header.as_bytes());
            let start = file.len();
            file.extend([7; 8]);
            (file, start)
        };
        let (before, start) = file("F32");
        let filled = fill(&before).unwrap();
        assert_eq!(filled[..start], before[..start]);
        assert_eq!(
            filled[start..],
            [1e20_f32, 1e20].map(f32::to_le_bytes).concat()
        );
        assert!((1e20_f32 * 1e20).is_infinite());
        let (before, start) = file("BF16");
        assert_eq!(fill(&before).unwrap()[start..], [0xad_u8, 0x60].repeat(4));
        assert!(fill(&file("I8").0).is_err());
        assert!(fill(b"short").is_err());
    }

    #[test]
    fn a_message_without_one_of_the_numbers_is_refused() {
        let whole = "latency_p95 0.4039 > 0.0109 of the stable version + 50 % over 260 requests";
        let says = |message: &str| ensure_says_numbers(message, PERCENT, MINIMUM_REQUESTS);
        says(whole).unwrap();
        for (from, to) in [
            ("latency_p95", "error_rate"),
            ("0.4039", "high"),
            ("0.4039", "0.0150"),
            ("0.0109", "that"),
            ("50 %", "40 %"),
            ("260", "19"),
            (" over 260 requests", ""),
        ] {
            let lacking = whole.replace(from, to);
            assert!(says(&lacking).is_err(), "{lacking}");
        }
    }
}
