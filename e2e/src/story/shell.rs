//! The operator as a process beside the story, as people who work on it run it: by the kubeconfig's user, with pods
//! reached through port-forwards.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::Stage;
use crate::cluster::{MINUTE, wait};
use crate::install::RELEASE;

/// Its name in the Lease; a suffix follows.
const IDENTITY: &str = "from-a-shell";
/// How soon it ends once it is asked to.
const STOPS_WITHIN: Duration = Duration::from_secs(30);

/// The operator's process. It is killed where the story fails.
pub struct Operator {
    process: Child,
    /// Holds settings and log.
    folder: TempDir,
}

impl Operator {
    /// Starts it with the installation's own settings, and waits until it leads.
    pub async fn start(stage: &Stage) -> anyhow::Result<Self> {
        let (cluster, system) = (
            &stage.world.cluster,
            &stage.world.installation.system_namespace,
        );
        let settings = cluster
            .api::<ConfigMap>(system)
            .get(RELEASE)
            .await?
            .data
            .and_then(|data| data.get("settings.json").cloned())
            .context("the installation has no settings.json")?;
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("settings.json");
        std::fs::write(&file, settings)?;
        let log = std::fs::File::create(folder.path().join("log"))?;
        // Cargo puts all programs of the workspace into one folder.
        let program = std::env::current_exe()?.with_file_name("operator");
        let process = Command::new(&program)
            .args(["run", "--namespace", system, "--identity", IDENTITY])
            .args(["--listen", "127.0.0.1:0", "--log-format", "text"])
            .arg("--settings")
            .arg(&file)
            .arg("--kubeconfig")
            .arg(&cluster.kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let mut operator = Self { process, folder };
        let leads = wait("the operator from a shell to lead", MINUTE, || async {
            let lease = cluster
                .api::<Lease>(system)
                .get_opt("graftwork-operator")
                .await?;
            let holder = lease
                .and_then(|lease| lease.spec)
                .and_then(|spec| spec.holder_identity);
            Ok(holder.filter(|it| it.starts_with(IDENTITY)).map(drop))
        });
        match leads.await {
            Ok(()) => Ok(operator),
            Err(error) => Err(operator.told(error)),
        }
    }

    /// An error with what the process logged last.
    pub fn told(&mut self, error: anyhow::Error) -> anyhow::Error {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(20)..);
        let ended = self.process.try_wait();
        error.context(format!(
            "the operator from a shell ({ended:?}) logged last:\n{}",
            tail.unwrap_or_default().join("\n")
        ))
    }

    /// Asks it to end; it does so in time and with success.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.process.id().context("it has ended by itself")?;
        let status = Command::new("kill")
            .args(["-TERM", &pid.to_string()])
            .status()
            .await?;
        ensure!(status.success(), "kill -TERM {pid}");
        let ended = tokio::time::timeout(STOPS_WITHIN, self.process.wait()).await;
        match ended {
            Ok(Ok(status)) if status.success() => Ok(()),
            other => Err(self.told(anyhow::anyhow!("asked to end: {other:?}"))),
        }
    }
}
