//! What a router knows without the operator: the mounted configuration, and the engines that DNS names.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use graftwork_contract::endpoint::RouterConfig;
use graftwork_contract::pod::HTTP_PORT;
use http::uri::Authority;

use crate::control::Publisher;
use crate::state::Shared;

/// How often both are looked at.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// A mounted configuration that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such file, or no permission.
    #[error("configuration {path}: can't be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a router's configuration.
    #[error("configuration {path}: is not a router's")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
}

/// The mounted file.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    seen: Vec<u8>,
}

impl Mounted {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn open(path: &Path) -> Result<(Self, RouterConfig), ConfigError> {
        let mut mounted = Self {
            path: path.to_owned(),
            seen: Vec::new(),
        };
        mounted.seen = mounted.read()?;
        let config = mounted.parse()?;
        Ok((mounted, config))
    }

    /// The configuration where the file is not as it was at the last call. An unusable file is complained
    /// about once, not each second.
    fn changed(&mut self) -> Result<Option<RouterConfig>, ConfigError> {
        let bytes = self.read()?;
        if bytes == self.seen {
            return Ok(None);
        }
        self.seen = bytes;
        self.parse().map(Some)
    }

    fn read(&self) -> Result<Vec<u8>, ConfigError> {
        std::fs::read(&self.path).map_err(|source| ConfigError::Read {
            path: self.path.clone(),
            source,
        })
    }

    fn parse(&self) -> Result<RouterConfig, ConfigError> {
        serde_json::from_slice(&self.seen).map_err(|source| ConfigError::Parse {
            path: self.path.clone(),
            source,
        })
    }

    /// Takes up changes of the file and of DNS for ever.
    pub async fn watch(mut self, shared: Arc<Shared>, publisher: Publisher, mut host: String) {
        loop {
            match self.changed() {
                Ok(None) => {}
                Ok(Some(config)) => match publisher.remount(&config) {
                    Ok(()) => {
                        host = config.engines_host;
                        tracing::info!("mounted configuration taken up");
                    }
                    Err(error) => tracing::warn!(%error, "mounted configuration is unusable"),
                },
                Err(error) => {
                    tracing::warn!(error = %error, "mounted configuration is unusable");
                }
            }
            find_engines(&shared, &host).await;
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

/// Asks DNS for the engines. Without an answer those that were known stay: a name server that is away, and
/// a Service without a ready pod, look alike, and engines that are gone get ejected.
async fn find_engines(shared: &Shared, host: &str) {
    let named = host.parse::<Authority>().ok();
    let port = named
        .as_ref()
        .and_then(Authority::port_u16)
        .unwrap_or(HTTP_PORT);
    let name = named.as_ref().map_or(host, Authority::host);
    let looked_up = tokio::net::lookup_host((name, port)).await;
    let addresses = match looked_up {
        Ok(addresses) => addresses,
        Err(error) => {
            tracing::debug!(host, %error, "engines can't be looked up");
            return;
        }
    };
    let mut authorities: Vec<String> = addresses.map(|address| address.to_string()).collect();
    authorities.sort_unstable();
    authorities.dedup();
    let known = shared.found.load();
    if authorities
        .iter()
        .eq(known.iter().map(|engine| engine.authority().as_str()))
    {
        return;
    }
    tracing::info!(?authorities, "engines found by name");
    let engines = authorities
        .iter()
        .filter_map(|authority| authority.parse().ok())
        .map(|authority| shared.registry.engine(&authority))
        .collect();
    shared.found.store(Arc::new(engines));
}
