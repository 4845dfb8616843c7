//! A PostgreSQL server of a story's own: a process of this machine, at an address that pods reach.

use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use kube::api::DynamicObject;
use serde_json::json;
use tokio::process::Command;

use super::{Stage, audit_log, neighbour};
use crate::cluster::{MINUTE, wait};
use crate::report::not_proved;

/// The user that the server runs as where we are root, which it refuses.
const NOBODY: u32 = 65534;
/// What no status, event or log may show.
pub const PASSWORD: &str = "correct-horse-9f21";
/// Name of the Secret.
pub const SECRET: &str = "warehouse";

/// The server. It ends with this value.
pub struct Server {
    dir: tempfile::TempDir,
    programs: PathBuf,
    /// Where pods find it.
    pub address: IpAddr,
    port: u16,
    root: bool,
}

impl Server {
    /// A server that runs; none, and said so, where this machine has no PostgreSQL or no pod reaches it.
    pub async fn start(stage: &Stage) -> anyhow::Result<Option<Self>> {
        let Some(programs) = programs() else {
            not_proved("anything of PostgreSQL: Debian's package postgresql-15 is not installed");
            return Ok(None);
        };
        // Only the local cluster has this machine as its neighbour.
        if audit_log().is_none() {
            not_proved("anything of PostgreSQL: pods of this cluster may not reach this machine");
            return Ok(None);
        }
        let dir = tempfile::tempdir()?;
        let address = neighbour::address(stage).await?;
        let server = Self {
            root: std::fs::metadata(dir.path())?.uid() == 0,
            port: neighbour::port(address)?,
            address,
            dir,
            programs,
        };
        std::fs::write(server.path("password"), PASSWORD)?;
        server.give("")?;
        server.give("password")?;
        let initdb =
            "-D data -U ann -A scram-sha-256 --pwfile=password -E UTF8 --locale=C --no-sync";
        server.run("initdb", initdb).await?;
        let configuration = format!(
            "port = {}\nlisten_addresses = '{}'\nunix_socket_directories = ''\nfsync = off\n",
            server.port, server.address
        );
        append(&server.path("data/postgresql.conf"), &configuration)?;
        let anybody = "host all all all scram-sha-256\n";
        append(&server.path("data/pg_hba.conf"), anybody)?;
        server.up().await?;
        Ok(Some(server))
    }

    /// Starts it, and waits until it answers. It goes with us, also when we are killed.
    pub async fn up(&self) -> anyhow::Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))?;
        let postgres = self.programs.join("postgres");
        let mut command = self.prepare(neighbour::companion(&postgres, "QUIT"));
        command.args(["-D", "data"]).stderr(log);
        // `down` finds it by its postmaster.pid.
        drop(command.spawn().context("start postgres")?);
        let answer = wait("PostgreSQL to answer", MINUTE, || async {
            self.sql("SELECT 1").await.map(Some)
        });
        answer
            .await
            .map(drop)
            .with_context(|| std::fs::read_to_string(self.path("log")).unwrap_or_default())
    }

    /// Ends it as a machine that loses its power does.
    pub async fn down(&self) -> anyhow::Result<()> {
        self.run("pg_ctl", "-D data -m immediate -w stop").await
    }

    /// What it answers to somebody else's SQL, as text.
    pub async fn sql(&self, text: &str) -> anyhow::Result<String> {
        let address = self.address.to_string();
        let port = self.port.to_string();
        let output = self
            .command("psql")
            .args(["-h", &address, "-p", &port, "-U", "ann", "-d", "postgres"])
            .args(["-v", "ON_ERROR_STOP=1", "-qAtc", text])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "psql: {}", said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// A connection URI with this password, for a host or for the server itself.
    pub fn uri(&self, password: &str, host: Option<&str>) -> String {
        let own = self.address.to_string();
        let host = host.unwrap_or(&own);
        let port = self.port;
        format!("postgresql://ann:{password}@{host}:{port}/postgres?sslmode=disable")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a file the server's own.
    fn give(&self, name: &str) -> anyhow::Result<()> {
        if self.root {
            chown(self.path(name), Some(NOBODY), Some(NOBODY))?;
        }
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        self.prepare(Command::new(self.programs.join(program)))
    }

    /// `command` in the server's folder, as the server's user, silent.
    fn prepare(&self, mut command: Command) -> Command {
        command
            .current_dir(self.dir.path())
            .env("PGPASSWORD", PASSWORD)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if self.root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    async fn run(&self, program: &str, arguments: &str) -> anyhow::Result<()> {
        let mut command = self.command(program);
        let status = command.args(arguments.split(' ')).status().await?;
        if !status.success() {
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            bail!("{program} {arguments}: {status}\n{log}");
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self
            .command("pg_ctl")
            .into_std()
            .args(["-D", "data", "-m", "immediate", "-w", "stop"])
            .status();
    }
}

fn append(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut file = File::options().append(true).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

/// Debian's newest PostgreSQL.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    versions
        .filter_map(|entry| {
            let folder = entry.ok()?.path();
            let number: u32 = folder.file_name()?.to_str()?.parse().ok()?;
            Some((number, folder.join("bin")))
        })
        .filter(|(_, bin)| bin.join("initdb").exists() && bin.join("psql").exists())
        .max()
        .map(|(_, bin)| bin)
}

/// The Secret with this connection URI.
pub fn secret(uri: &str) -> anyhow::Result<DynamicObject> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET},
        "data": {"url": BASE64_STANDARD.encode(uri)},
    }))?)
}

/// A Dataset over a query.
pub fn dataset(name: &str, query: &str) -> anyhow::Result<DynamicObject> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "graftwork.dev/v1alpha1", "kind": "Dataset", "metadata": {"name": name},
        "spec": {
            "sources": [{
                "name": "decisions", "timeoutSeconds": 120, "maximumRows": 1000,
                "postgres": {"secretRef": {"name": SECRET, "key": "url"}, "query": query},
            }],
            "format": {"type": "Completion"},
            "validation": {"minimumRows": 10, "maximumInvalidPercent": "0"},
            "split": {"method": "Hash", "seed": 7, "trainPercent": 80, "validationPercent": 5, "testPercent": 15},
        },
    }))?)
}
