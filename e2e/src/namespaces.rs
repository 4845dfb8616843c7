//! Namespaces of the demo and the stories. They use and delete those that carry their label, and no other.

use std::fmt::Debug;

use anyhow::{Context as _, ensure};
use graftwork_api::{Dataset, LoRAAdapter, ServingEndpoint, TrainingRun};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::cluster::{Cluster, FIELD_MANAGER, MINUTE, wait};

/// Label of what the demo and the stories make, namespaces and the Helm release: `e2e/run` tells by it what is theirs.
pub const MADE_BY: (&str, &str) = ("graftwork.dev/made-by", "graftwork-e2e");

impl Cluster {
    fn namespaces(&self) -> Api<Namespace> {
        Api::all(self.client.clone())
    }

    /// Whether a namespace of ours is there.
    ///
    /// # Errors
    /// Somebody else's of that name is there, or the API server can't be asked.
    pub async fn has_own_namespace(&self, name: &str) -> anyhow::Result<bool> {
        let found = self.namespaces().get_opt(name).await?;
        found.as_ref().map(ensure_own).transpose()?;
        Ok(found.is_some())
    }

    /// Makes a namespace with our label in which Pod Security is enforced as `restricted`.
    pub async fn create_namespace(&self, name: &str) -> anyhow::Result<()> {
        let labels =
            json!({MADE_BY.0: MADE_BY.1, "pod-security.kubernetes.io/enforce": "restricted"});
        self.apply_namespace(name, &labels).await
    }

    /// Makes a namespace with our label, or finds it.
    ///
    /// # Errors
    /// Somebody else's of that name is there, or the API server can't be asked.
    pub async fn claim_namespace(&self, name: &str) -> anyhow::Result<()> {
        if self.has_own_namespace(name).await? {
            return Ok(());
        }
        self.apply_namespace(name, &json!({MADE_BY.0: MADE_BY.1}))
            .await
    }

    async fn apply_namespace(&self, name: &str, labels: &serde_json::Value) -> anyhow::Result<()> {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
        });
        self.namespaces()
            .patch(
                name,
                &PatchParams::apply(FIELD_MANAGER).force(),
                &Patch::Apply(&namespace),
            )
            .await
            .map(drop)
            .with_context(|| format!("make the namespace {name}"))
    }

    /// Deletes a namespace of ours and waits until it is gone.
    ///
    /// # Errors
    /// Somebody else's of that name is there, it does not go within two minutes, or the API server can't be asked.
    pub async fn delete_namespace(&self, name: &str) -> anyhow::Result<()> {
        if self.has_own_namespace(name).await? {
            self.empty(name).await?;
        }
        let api = self.namespaces();
        match api.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(error)) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        wait(
            &format!("namespace {name} to be gone"),
            2 * MINUTE,
            || async { Ok(api.get_opt(name).await?.is_none().then_some(())) },
        )
        .await
    }

    /// Ends what runs in a namespace. The namespace controller looks again only after half the grace
    /// period of the pods that it finds, however soon they are gone.
    async fn empty(&self, namespace: &str) -> anyhow::Result<()> {
        self.delete_all::<Dataset>(namespace).await?;
        self.delete_all::<TrainingRun>(namespace).await?;
        self.delete_all::<LoRAAdapter>(namespace).await?;
        self.delete_all::<ServingEndpoint>(namespace).await?;
        self.delete_all::<Job>(namespace).await?;
        let pods: Api<Pod> = self.api(namespace);
        let running = ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed");
        let gone = wait("pods to end", MINUTE, || async {
            Ok(pods.list(&running).await?.items.is_empty().then_some(()))
        });
        // Pods of others, or without an operator: then it takes as long as it takes.
        let _ = gone.await;
        Ok(())
    }

    async fn delete_all<K>(&self, namespace: &str) -> anyhow::Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        let api: Api<K> = self.api(namespace);
        match api
            .delete_collection(&DeleteParams::background(), &ListParams::default())
            .await
        {
            // Its definition is not installed.
            Err(kube::Error::Api(error)) if error.is_not_found() => Ok(()),
            other => other.map(drop).context("delete all objects of a kind"),
        }
    }
}

fn ensure_own(namespace: &Namespace) -> anyhow::Result<()> {
    let (label, value) = MADE_BY;
    let name = namespace.name_any();
    ensure!(
        namespace
            .labels()
            .get(label)
            .is_some_and(|maker| maker == value),
        "the namespace {name} is there, and neither the demo nor the stories made it: use another cluster, or delete it; \
         where it may be used, and deleted with all that it holds, say so by `kubectl label namespace {name} {label}={value}`"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(labels: &serde_json::Value) -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": "graftwork-demo", "labels": labels}}))
            .unwrap()
    }

    #[test]
    fn a_namespace_of_somebody_else_is_refused_with_what_to_do() {
        assert!(ensure_own(&namespace(&json!({MADE_BY.0: MADE_BY.1}))).is_ok());
        for foreign in [json!({}), json!({MADE_BY.0: "somebody"})] {
            let refusal = ensure_own(&namespace(&foreign)).unwrap_err().to_string();
            assert!(
                refusal.contains("the namespace graftwork-demo is there")
                    && refusal.contains(
                        "kubectl label namespace graftwork-demo graftwork.dev/made-by=graftwork-e2e"
                    ),
                "{refusal}"
            );
        }
    }
}
