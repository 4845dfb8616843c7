//! The operator, installed by Helm as a user would.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use k8s_openapi::api::apps::v1::Deployment;

use crate::cluster::{Cluster, MINUTE};
use crate::namespaces::MADE_BY;

/// Where the images and the chart are.
#[derive(Debug, Clone, Args)]
pub struct Installation {
    /// The chart's folder.
    #[arg(long, default_value = "charts/graftwork", env = "GRAFTWORK_CHART")]
    pub chart: PathBuf,
    /// What stands before `/operator:TAG` and the like in image names.
    #[arg(long, default_value = "graftwork.dev", env = "GRAFTWORK_REGISTRY")]
    pub registry: String,
    /// Tag of all images.
    #[arg(long, default_value = "dev", env = "GRAFTWORK_TAG")]
    pub tag: String,
    /// Another name that the nodes know the inference image by, for a story that changes an engine's image.
    #[arg(long, env = "GRAFTWORK_ANOTHER_INFERENCE")]
    pub another_inference: Option<String>,
    /// Namespace of the operator.
    #[arg(long, default_value = "graftwork-system")]
    pub system_namespace: String,
}

/// Name of the Helm release.
pub const RELEASE: &str = "graftwork";

impl Installation {
    /// The full name of one of our images.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}:{}", self.registry, self.tag)
    }

    /// `values` as Helm's flags, behind those of our images: of those that the chart names, and that of the compute
    /// profile `other` where `values` have one.
    fn flags(&self, values: &[&str]) -> Vec<String> {
        let mut images: Vec<String> = ["operator", "trainer", "inference"]
            .iter()
            .flat_map(|image| {
                [
                    format!("images.{image}.repository={}/{image}", self.registry),
                    format!("images.{image}.tag={}", self.tag),
                ]
            })
            .collect();
        let has_other = values
            .iter()
            .any(|value| value.starts_with("computeProfiles.other."));
        if let Some(image) = self.another_inference.as_ref().filter(|_| has_other) {
            images.push(format!("computeProfiles.other.images.inference={image}"));
        }
        images
            .into_iter()
            .chain(values.iter().map(|value| (*value).to_owned()))
            .flat_map(|value| [flag_of(&value).to_owned(), value])
            .collect()
    }

    /// `helm upgrade --install` into a namespace of ours, waiting until the operator is available.
    pub async fn install(&self, cluster: &Cluster, values: &[&str]) -> anyhow::Result<()> {
        let chart = self
            .chart
            .to_str()
            .context("the chart's path is not UTF-8")?;
        let label = format!("{}={}", MADE_BY.0, MADE_BY.1);
        cluster.claim_namespace(&self.system_namespace).await?;
        let values = self.flags(values);
        let mut arguments = vec![
            "upgrade",
            "--install",
            RELEASE,
            chart,
            "--namespace",
            &self.system_namespace,
            "--wait",
            "--timeout",
            "3m",
            "--labels",
            &label,
        ];
        arguments.extend(values.iter().map(String::as_str));
        if let Err(error) = cluster.helm(&arguments).await {
            let selector = Self::operator_selector();
            return Err(cluster
                .with_hindrances(error, &self.system_namespace, selector)
                .await);
        }
        cluster
            .wait_for::<Deployment, _>(
                &self.system_namespace,
                RELEASE,
                2 * MINUTE,
                "the operator to be available",
                |deployment| {
                    let status = deployment?.status.as_ref()?;
                    (status.available_replicas? >= 1).then_some(())
                },
            )
            .await
    }

    /// `helm uninstall`.
    pub async fn uninstall(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let arguments = [
            "uninstall",
            RELEASE,
            "--namespace",
            &self.system_namespace,
            "--wait",
            "--timeout",
            "2m",
            "--ignore-not-found",
        ];
        cluster.helm(&arguments).await.map(drop)
    }

    /// Label selector of the operator's pods.
    pub const fn operator_selector() -> &'static str {
        "app.kubernetes.io/name=graftwork,app.kubernetes.io/component=operator"
    }
}

/// Helm takes a tag of digits alone for a number, which the chart refuses, unless it is told that it is text. Every
/// value of an image goes so, because Helm lets text win over what `--set` says, in whatever order.
fn flag_of(value: &str) -> &'static str {
    if value.starts_with("images.") {
        "--set-string"
    } else {
        "--set"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_of_digits_is_text_and_a_later_one_comes_later() {
        let installation = Installation {
            chart: PathBuf::from("chart"),
            registry: "registry.example.com/team".to_owned(),
            tag: "20261122".to_owned(),
            another_inference: Some("registry.example.com/inference:1".to_owned()),
            system_namespace: "system".to_owned(),
        };
        let profile = "computeProfiles.other.resources.limits.cpu=1";
        let flags = installation.flags(&["replicas=2", profile, "images.inference.tag=7"]);
        let place = |flag: &str, value: &str| {
            let found = flags.windows(2).position(|it| it == [flag, value]);
            found.unwrap_or_else(|| panic!("no {flag} {value}: {flags:?}"))
        };
        place("--set-string", "images.operator.tag=20261122");
        place(
            "--set-string",
            "images.trainer.repository=registry.example.com/team/trainer",
        );
        place("--set", "replicas=2");
        place("--set", profile);
        place(
            "--set",
            "computeProfiles.other.images.inference=registry.example.com/inference:1",
        );
        let own = place("--set-string", "images.inference.tag=20261122");
        assert!(own < place("--set-string", "images.inference.tag=7"));
        let without = installation.flags(&["replicas=2"]);
        assert!(!without.iter().any(|it| it.contains("computeProfiles")));
    }
}
