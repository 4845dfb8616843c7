//! The mounted configuration: read at start, and followed while the process runs.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use graftwork_contract::causes::causes;
use graftwork_contract::endpoint::EngineConfig;

use crate::registry::AdapterRegistry;

/// How often the file is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is no configuration of an engine.
    #[error("{} is not an engine's configuration", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
}

/// Reads the configuration.
///
/// # Errors
/// [`ConfigError`].
pub fn load(path: &Path) -> Result<EngineConfig, ConfigError> {
    let bytes = std::fs::read(path).map_err(|source| ConfigError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|source| ConfigError::Format {
        path: path.to_path_buf(),
        source,
    })
}

/// Takes over adapters and keys whenever the file changes. What else changes needs another pod.
/// Ends with the registry.
pub async fn follow(path: PathBuf, registry: AdapterRegistry) {
    // The first look takes it over once more: it may have changed since the start.
    let mut seen = None;
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        let now = stamp(&path);
        if now == seen || now.is_none() {
            continue;
        }
        seen = now;
        let config = match load(&path) {
            Ok(config) => config,
            Err(error) => {
                tracing::warn!(
                    error = causes(&error),
                    "the changed configuration is not used"
                );
                continue;
            }
        };
        match registry.trust(config.operator_keys).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the changed keys are not used"),
            Err(_) => return,
        }
        if registry.mounted(&config.adapters).await.is_err() {
            return;
        }
        tracing::info!(adapters = config.adapters.len(), "configuration changed");
    }
}

/// Modification time and size; a mounted ConfigMap changes by a link, which is followed.
fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
