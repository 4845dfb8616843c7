//! A pinned version: its weights stay as long as the lease lives.

use std::sync::Arc;

use graftwork_contract::Digest;
use graftwork_contract::endpoint::adapter_header;
use graftwork_model::lora::LoadedAdapter;
use tokio::sync::mpsc;

use super::state::Version;

/// Weights of one version for one request. Dropping it tells the registry.
#[derive(Debug)]
pub struct Lease {
    version: Version,
    adapter: Arc<LoadedAdapter>,
    /// Unbounded, because `drop` can't wait: it holds at most one message per live request.
    released: mpsc::UnboundedSender<Digest>,
}

impl Lease {
    pub(super) fn new(
        version: Version,
        adapter: Arc<LoadedAdapter>,
        released: mpsc::UnboundedSender<Digest>,
    ) -> Self {
        Self {
            version,
            adapter,
            released,
        }
    }

    /// What a client named.
    pub fn name(&self) -> &str {
        &self.version.name
    }

    /// Number of the version.
    pub fn version(&self) -> u32 {
        self.version.number
    }

    /// `<name>@v<version>`.
    pub fn header(&self) -> String {
        adapter_header(&self.version.name, self.version.number)
    }

    /// The weights.
    pub fn adapter(&self) -> &LoadedAdapter {
        &self.adapter
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Fails only where the registry has ended.
        let _ = self.released.send(self.version.source.digest.clone());
    }
}
