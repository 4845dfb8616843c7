//! An S3 server of a story's own: versitygw as a process of this machine, at an address that pods reach.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use graftwork_contract::Digest;
use kube::api::DynamicObject;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::{Stage, audit_log, neighbour};
use crate::cluster::{MINUTE, wait};
use crate::report::not_proved;

/// Who asks.
pub const KEY_ID: &str = "AKIAE2E4711";
/// What no status, event or log may show.
pub const KEY: &str = "correct-horse-b7d3";
/// Name of the Secret.
pub const SECRET: &str = "corpus";
const REGION: &str = "eu-test-1";
const BUCKET: &str = "corpus";

/// The server with its bucket. It ends with this value.
pub struct Server {
    program: PathBuf,
    dir: tempfile::TempDir,
    address: SocketAddr,
    process: Option<Child>,
}

impl Server {
    /// A server that runs; none, and said so, where this machine has none or no pod reaches it.
    pub async fn start(stage: &Stage) -> anyhow::Result<Option<Self>> {
        let Some(program) = program() else {
            not_proved("anything of S3: versitygw is not built (e2e/run setup builds it)");
            return Ok(None);
        };
        // Only the local cluster has this machine as its neighbour.
        if audit_log().is_none() {
            not_proved("anything of S3: pods of this cluster may not reach this machine");
            return Ok(None);
        }
        let address = neighbour::address(stage).await?;
        let mut server = Self {
            program,
            dir: tempfile::tempdir()?,
            address: (address, neighbour::port(address)?).into(),
            process: None,
        };
        std::fs::create_dir(server.dir.path().join(BUCKET))?;
        server.up().await?;
        Ok(Some(server))
    }

    /// Starts it, and waits until it answers.
    pub async fn up(&mut self) -> anyhow::Result<()> {
        let listen = self.address.to_string();
        let process = neighbour::companion(&self.program, "KILL")
            .args(["--access", KEY_ID, "--secret", KEY, "--region", REGION])
            .args(["--port", &listen, "posix"])
            .arg(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("start versitygw")?;
        self.process = Some(process);
        let address = self.address;
        wait("the S3 server to answer", MINUTE, || async move {
            Ok(TcpStream::connect(address).await.ok().map(drop))
        })
        .await
    }

    /// Ends it as a machine that loses its power does.
    pub async fn down(&mut self) -> anyhow::Result<()> {
        match self.process.take() {
            Some(mut process) => Ok(process.kill().await?),
            None => Ok(()),
        }
    }

    /// Puts an object into the bucket, as a client does.
    pub async fn put(&self, key: &str, text: &str) -> anyhow::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        let digest = Digest::of(text.as_bytes());
        let status = Command::new("curl")
            .args(["-sf", "--aws-sigv4", &format!("aws:amz:{REGION}:s3")])
            .args(["--user", &format!("{KEY_ID}:{KEY}")])
            .args(["-H", &format!("x-amz-content-sha256: {}", digest.hex())])
            .arg("-T")
            .arg(file.path())
            .arg(format!("{}/{BUCKET}/{key}", self.endpoint()))
            .stdout(Stdio::null())
            .status()
            .await?;
        ensure!(status.success(), "put {key}: {status}");
        Ok(())
    }

    /// Lays an object where the server keeps them, while it is away.
    pub fn put_behind(&self, key: &str, text: &str) -> anyhow::Result<()> {
        let path = self.dir.path().join(BUCKET).join(key);
        Ok(std::fs::write(path, text)?)
    }

    /// Whether an object is in the bucket.
    pub fn has(&self, key: &str) -> bool {
        self.dir.path().join(BUCKET).join(key).is_file()
    }

    /// The keys of every object below a folder of the bucket.
    pub fn below(&self, folder: &str) -> anyhow::Result<Vec<String>> {
        let root = self.dir.path().join(BUCKET);
        let mut folders = vec![root.join(folder)];
        let mut keys = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let key = path.strip_prefix(&root)?;
                    keys.push(key.to_string_lossy().into_owned());
                }
            }
        }
        Ok(keys)
    }

    /// Where pods find it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The Secret for this server, with these entries in place of the right ones.
    pub fn secret(&self, wrong: &[(&str, &str)]) -> anyhow::Result<DynamicObject> {
        let endpoint = self.endpoint();
        let right = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", KEY_ID),
            ("AWS_SECRET_ACCESS_KEY", KEY),
        ];
        let data: Map<String, Value> = right
            .iter()
            .chain(wrong)
            .map(|(name, text)| ((*name).to_owned(), BASE64_STANDARD.encode(text).into()))
            .collect();
        Ok(serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "data": data,
        }))?)
    }
}

/// What `e2e/run setup` builds.
fn program() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let folders = std::fs::read_dir(cache.or(home)?.join("graftwork")).ok()?;
    folders
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with("versitygw-")
        })
        .map(|entry| entry.path().join("versitygw"))
        .filter(|program| program.is_file())
        .max()
}

/// A Dataset over objects.
pub fn dataset(name: &str, uri: &str) -> anyhow::Result<DynamicObject> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "graftwork.dev/v1alpha1", "kind": "Dataset", "metadata": {"name": name},
        "spec": {
            "sources": [{"name": "faq", "uri": uri, "secretRef": {"name": SECRET}}],
            "format": {"type": "Completion"},
            "validation": {"minimumRows": 10, "maximumInvalidPercent": "0"},
            "split": {"method": "Hash", "seed": 7, "trainPercent": 80, "validationPercent": 5, "testPercent": 15},
        },
    }))?)
}
