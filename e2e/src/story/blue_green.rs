//! Blue-green between versions: the candidate is reachable by header only, then takes all traffic at once, first when
//! a person says so and then by itself; the version before is kept for a while.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use graftwork_api::Time;
use graftwork_api::serving_endpoint::RolloutState;
use serde_json::{Value, json};

use super::Stage;
use super::stage::{ENGINES, condition};
use super::traffic::{Load, expectations};
use crate::cluster::MINUTE;
use crate::manifests;

/// How long the version before is kept.
const KEPT_SECONDS: i64 = 6;

pub async fn run(stage: Stage) -> anyhow::Result<()> {
    let start = Instant::now();
    stage.serve_amber(1, &rollout(false)).await?;
    let pods = stage.start_times(ENGINES).await?;
    stage.import("colours", "basalt", &json!({})).await?;
    stage
        .rollout_state(&[RolloutState::Paused], 2 * MINUTE)
        .await?;

    let expect = expectations(&[
        ("colours", 1, "amber"),
        ("colours", 2, "basalt"),
        ("colours", 3, "rambling"),
    ]);
    let plain = stage.ask_two_thousand(&Load::new("plain", &expect)).await?;
    ensure!(plain.only("colours@v1"), "without the header: {plain:?}");
    let header = Load {
        version: Some("candidate"),
        ..Load::new("preview", &expect)
    };
    let preview = stage.ask_two_thousand(&header).await?;
    ensure!(preview.only("colours@v2"), "with the header: {preview:?}");
    stage.proved("the candidate is reachable by header only", start.elapsed());

    let traffic = stage.start_traffic(&Load::new("load", &expect)).await?;
    let candidate = stage.served().await?.candidate.context("no candidate")?;
    let answer = stage
        .command("go", "Promote", &candidate.digest, None)
        .await?;
    ensure!(answer.outcome.as_str() != "Refused", "{answer:?}");
    stage
        .rollout_state(&[RolloutState::Promoting], MINUTE)
        .await?;
    let served = stage.served().await?;
    let kept = served.stable.as_ref().is_some_and(|it| it.version == 1)
        && served.candidate.as_ref().is_some_and(|it| it.weight == 100);
    ensure!(kept, "v1 is not kept while v2 takes over: {served:?}");
    let begun = served.rollout.context("no rollout")?.since;
    traffic.seen("colours@v2").await?;
    stage.stable("assistants", "colours", 2, MINUTE).await?;
    let kept = kept_for(&stage, &begun).await?;
    stage.proved(
        &format!("all traffic moved at once by Promote, and v1 was kept for {kept} s"),
        start.elapsed(),
    );

    stage
        .apply(&manifests::endpoint(
            "assistants",
            &["colours"],
            1,
            &rollout(true),
        ))
        .await?;
    stage.import("colours", "rambling", &json!({})).await?;
    stage.stable("assistants", "colours", 3, MINUTE).await?;
    traffic.seen("colours@v3").await?;
    stage.proved("and by itself after its preview", start.elapsed());

    let summary = traffic.stop().await?;
    for version in ["colours@v1", "colours@v2", "colours@v3"] {
        ensure!(
            summary.of(version) > 0,
            "no answer of {version}: {summary:?}"
        );
    }
    let after = stage.ask_two_thousand(&Load::new("after", &expect)).await?;
    ensure!(after.only("colours@v3"), "after the promotions: {after:?}");
    ensure!(
        stage.start_times(ENGINES).await? == pods,
        "an engine was restarted"
    );
    stage.proved("no request failed, no pod restarted", start.elapsed());
    Ok(())
}

/// For how many seconds the version before was kept since the promotion had `begun`, both by the operator's clock, which
/// may have said them in whole seconds. Fails where that is less than the spec says.
async fn kept_for(stage: &Stage, begun: &Time) -> anyhow::Result<i64> {
    let ended = stage
        .endpoint("assistants", MINUTE, "Progressing=False", |endpoint| {
            let progressing = condition(&endpoint.status.as_ref()?.conditions, "Progressing")?;
            (progressing.status == "False").then(|| progressing.last_transition_time.clone())
        })
        .await?;
    let kept = ended.0.as_second() - begun.0.as_second();
    ensure!(
        kept + 1 >= KEPT_SECONDS,
        "v1 was kept for {kept} s, not for {KEPT_SECONDS}: from {begun:?} to {ended:?}"
    );
    Ok(kept)
}

/// The version before is kept for longer than a person's look at it takes.
fn rollout(auto_promote: bool) -> Value {
    json!({
        "strategy": "BlueGreen",
        "blueGreen": {"autoPromote": auto_promote, "previewSeconds": 3, "scaleDownDelaySeconds": KEPT_SECONDS},
    })
}
