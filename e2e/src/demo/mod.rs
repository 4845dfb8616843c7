//! The walk-through: text becomes an adapter that is trained, judged, served, canaried, promoted, and taken back where
//! it is bad. Every step asserts what it shows.

mod ask;
mod clients;
mod evidence;
mod processors;
mod progress;
mod walk;

use clap::Args;

use crate::cluster::Cluster;
use crate::install::Installation;
use crate::report::{say, step};
use clients::Clients;
use walk::Walk;

/// Options of the walk-through.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Demo {
    /// Namespace of the demo's objects; what an earlier demo left in it goes first.
    #[arg(long, default_value = "graftwork-demo")]
    namespace: String,
    /// A Python with the packages `openai` and `tritonclient`, to ask as their users do.
    #[arg(long, env = "GRAFTWORK_OPENAI_PYTHON")]
    openai_python: Option<std::path::PathBuf>,
    /// A Python with the package `lm_eval`, to score as its users do; `make lm-eval-python` fetches one.
    #[arg(long, env = "GRAFTWORK_LM_EVAL_PYTHON")]
    lm_eval_python: Option<std::path::PathBuf>,
    /// A client that is not there is a failure: nobody else would notice that the endpoint was not asked with it.
    #[arg(long, env = "GRAFTWORK_ALL_CLIENTS")]
    all_clients: bool,
    /// Folder for a picture of the endpoint's page.
    #[arg(long, env = "GRAFTWORK_LOGS", default_value = "/tmp")]
    logs: std::path::PathBuf,
}

impl Demo {
    /// Walks through the loop and leaves it running.
    pub async fn run(&self, cluster: &Cluster, installation: &Installation) -> anyhow::Result<()> {
        // Before anything is installed beside it.
        cluster.has_own_namespace(&self.namespace).await?;
        step(
            "Installing the operator with Helm",
            installation.install(cluster, &[]),
        )
        .await?;
        let mut walk = Walk::new(cluster, installation, &self.namespace);
        step(
            "Putting the base model and the text on a volume",
            walk.seed(),
        )
        .await?;
        say("\n1. Text becomes a dataset");
        walk.dataset().await?;
        say("\n2. A run trains on it");
        walk.first_run().await?;
        say("\n3. Its adapter passes the gate and is served beside the base and a second adapter");
        let clients = Clients {
            python: self.openai_python.as_deref(),
            lm_eval: self.lm_eval_python.as_deref(),
            all: self.all_clients,
            logs: &self.logs,
        };
        walk.serve(&clients).await?;
        say("\n4. A better version is canaried under live traffic and promoted");
        walk.better_version().await?;
        say("\n5. A run on shuffled labels is rejected by the gate");
        walk.shuffled_labels().await?;
        say("\n6. A version that passes the gate and misbehaves live is taken back");
        walk.misbehaving_version().await?;
        say(&format!(
            "\nAll of it is still running. Look around:\n  \
             kubectl -n {ns} get graft\n  \
             kubectl -n {ns} describe lora topics\n  \
             kubectl -n {ns} get sep assistants -o yaml\n  \
             kubectl -n {ns} port-forward svc/assistants 8080:80\n  \
             curl -s localhost:8080/v1/completions -H 'content-type: application/json' \\\n    \
             -d '{{\"model\": \"topics\", \"prompt\": \"Definition: a large grey animal with a trunk\\nTopic:\", \"max_tokens\": 4}}'",
            ns = self.namespace,
        ));
        Ok(())
    }
}
