//! Configuration of a keeper.

use serde::{Deserialize, Serialize};

use crate::store::BucketStore;

/// A record that is longer comes without its content.
pub const MAXIMUM_RECORD_BYTES: u64 = 256 << 10;

/// `config.json` of a keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeeperConfig {
    /// UID of the namespace: calls are signed for it.
    pub owner_uid: String,
    /// The operator's public keys (64 hexadecimal digits each); two during a rotation.
    pub operator_keys: Vec<String>,
    /// The store, where it is in a bucket; none: the folder that is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<BucketStore>,
}
