//! What a rollout of `colours` leaves behind that went to its end, whoever was killed meanwhile.

use std::time::Duration;

use graftwork_api::ServingEndpointStatus;

use super::Stage;
use crate::cluster::MINUTE;

/// All conditions of the endpoint, by type.
const CONDITIONS: [(&str, &str, &str); 5] = [
    ("AdaptersPending", "False", "AllServing"),
    ("Available", "True", "ReplicasAvailable"),
    ("Progressing", "False", "AllStable"),
    ("Ready", "True", "Ready"),
    ("RolledBack", "False", "NotRolledBack"),
];

impl Stage {
    /// Waits until `version` of `colours`, on one engine, serves as after any rollout: alone, with nothing left of the
    /// rollout in the endpoint's status, in production, and the version before approved.
    pub async fn promoted(&self, version: u32, timeout: Duration) -> anyhow::Result<()> {
        self.stable("assistants", "colours", version, timeout)
            .await?;
        let production = self
            .version("colours", version, "in production", |it| {
                it.stage.as_str() == "Production"
            })
            .await?;
        self.version("colours", version - 1, "approved", |it| {
            it.stage.as_str() == "Approved"
        })
        .await?;
        let what = format!("v{version} to serve as after any rollout");
        self.endpoint("assistants", MINUTE, &what, |endpoint| {
            serves_alone(endpoint.status.as_ref()?, version, &production.digest).then_some(())
        })
        .await
    }
}

fn serves_alone(status: &ServingEndpointStatus, version: u32, digest: &str) -> bool {
    let mut conditions: Vec<_> = status
        .conditions
        .iter()
        .map(|it| (it.type_.as_str(), it.status.as_str(), it.reason.as_str()))
        .collect();
    conditions.sort_unstable();
    let [colours] = status.adapters.as_slice() else {
        return false;
    };
    let stable = colours.stable.as_ref();
    let columns = status.columns.as_ref();
    conditions == CONDITIONS
        && stable.is_some_and(|it| it.version == version && it.digest == digest)
        && colours.candidate.is_none()
        && colours.rollout.is_none()
        && colours.reason.is_none()
        && colours.verified_replicas == Some(1)
        && (status.replicas, status.ready_replicas) == (1, 1)
        && columns.is_some_and(|it| it.adapters == "1/1" && it.rollout == "-")
        && status.rejected.is_empty()
        && status.commands.is_empty()
        && status.answers.is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const DIGEST: &str = "sha256:00";

    #[test]
    fn a_rollout_that_left_something_is_not_over() {
        let conditions: Vec<Value> = CONDITIONS
            .iter()
            .rev()
            .map(|(type_, status, reason)| {
                json!({
                    "type": type_, "status": status, "reason": reason, "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                })
            })
            .collect();
        let whole = json!({
            "replicas": 1, "readyReplicas": 1, "conditions": conditions,
            "columns": {"adapters": "1/1", "rollout": "-"},
            "adapters": [{
                "name": "colours", "stable": {"version": 2, "digest": DIGEST}, "verifiedReplicas": 1,
            }],
        });
        let judge = |status: &Value| {
            let status = serde_json::from_value(status.clone()).unwrap();
            serves_alone(&status, 2, DIGEST)
        };
        assert!(judge(&whole));
        for (pointer, value) in [
            ("/adapters/0/stable/version", json!(1)),
            ("/adapters/0/stable/digest", json!("sha256:01")),
            ("/adapters/0/verifiedReplicas", json!(0)),
            ("/adapters", json!([])),
            ("/readyReplicas", json!(0)),
            ("/columns/rollout", json!("colours v1>v2 RolledBack")),
            ("/conditions/0/status", json!("True")),
            ("/conditions/0", conditions[1].clone()),
        ] {
            let mut other = whole.clone();
            *other.pointer_mut(pointer).unwrap() = value;
            assert!(!judge(&other), "{pointer}");
        }
        for (member, value) in [
            (
                "candidate",
                json!({"version": 3, "digest": "sha256:02", "weight": 10}),
            ),
            (
                "rollout",
                json!({"state": "RolledBack", "since": "2026-01-01T00:00:00Z"}),
            ),
            ("reason", json!("Loading")),
        ] {
            let mut other = whole.clone();
            other["adapters"][0][member] = value;
            assert!(!judge(&other), "{member}");
        }
        let mut other = whole.clone();
        other["rejected"] = json!([{
            "adapter": "colours", "version": 2, "digest": DIGEST, "reason": "AbortedByUser", "message": "",
            "time": "2026-01-01T00:00:00Z",
        }]);
        assert!(!judge(&other), "rejected");
    }
}
