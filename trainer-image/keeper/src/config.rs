//! The mounted configuration, and the guard of signed calls that follows it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use graftwork_contract::keeper::KeeperConfig;
use graftwork_contract::proto::call::v1::SignedCall;
use graftwork_contract::signing::{Addressee, Fence, Guard, Refusal};

use crate::clock;

/// The guard, with the keys that stand in the file now.
#[derive(Clone)]
pub struct Gatekeeper {
    state: Arc<Mutex<State>>,
    path: PathBuf,
}

struct State {
    guard: Guard,
    /// The newest leader's term that was seen.
    epoch: u64,
}

impl Gatekeeper {
    /// Reads the configuration.
    ///
    /// # Errors
    /// A file that can't be read, or a key that is not one.
    pub fn open(path: &Path, pod_uid: String) -> anyhow::Result<Self> {
        let config = read(path)?;
        let me = Addressee {
            pod_uid,
            owner_uid: config.owner_uid,
        };
        let guard = Guard::new(me, &config.operator_keys)?;
        Ok(Self {
            state: Arc::new(Mutex::new(State { guard, epoch: 0 })),
            path: path.to_path_buf(),
        })
    }

    /// Checks a call and its order; its body.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn admit(&self, call: &SignedCall, method: &str) -> Result<Vec<u8>, Refusal> {
        let now = clock::unix_seconds();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let body = state.guard.verify(call, method, now)?.to_vec();
        // Records are create-only and imports repeat themselves, so the order of calls within a leader's term does not
        // matter; but no older leader may write.
        if call.lease_epoch < state.epoch {
            return Err(Refusal::Stale {
                got: Fence::from(call),
                seen: Fence {
                    lease_epoch: state.epoch,
                    generation: 0,
                },
            });
        }
        state.epoch = call.lease_epoch;
        Ok(body)
    }

    /// This pod's UID.
    pub fn pod_uid(&self) -> String {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .guard
            .pod_uid()
            .to_owned()
    }

    /// Takes over keys that change in the file, for as long as the process runs.
    pub async fn follow(self) {
        let mut tick = tokio::time::interval(Duration::from_secs(2));
        loop {
            tick.tick().await;
            match read(&self.path) {
                Ok(config) => {
                    let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Err(error) = state.guard.replace_keys(&config.operator_keys) {
                        tracing::warn!(%error, "the configuration's keys are not taken over");
                    }
                }
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    "the configuration is not read again"
                ),
            }
        }
    }
}

/// Reads the configuration.
///
/// # Errors
/// A file that can't be read, or is none.
pub fn read(path: &Path) -> anyhow::Result<KeeperConfig> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}
