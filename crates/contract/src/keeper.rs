//! Configuration of a keeper.

use serde::{Deserialize, Serialize};

/// `config.json` of a keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeeperConfig {
    /// UID of the namespace: calls are signed for it.
    pub owner_uid: String,
    /// The operator's public keys (64 hexadecimal digits each); two during a rotation.
    pub operator_keys: Vec<String>,
}
