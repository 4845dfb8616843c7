//! Sources on the network: who asks for them. What their Secrets hold has the names that the stores' own
//! tools read.

use serde::{Deserialize, Serialize};

use crate::uri::{DataUri, ObjectStore};

/// The hub of `hf://` URIs, where the installation names no mirror.
pub const HUB_ENDPOINT: &str = "https://huggingface.co";

/// Objects of a store, files of a web server or of a hub.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Remote {
    /// The Secret whose entries say who asks, for messages; none: the pod's identity, or nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

/// The certificates that the server's has to come from, as PEM.
pub const AUTHORITY: &str = "ca.crt";
/// S3: who asks.
pub const S3_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
/// S3: with which key.
pub const S3_KEY: &str = "AWS_SECRET_ACCESS_KEY";
/// S3: beside a key that ends soon.
pub const S3_TOKEN: &str = "AWS_SESSION_TOKEN";
/// S3: the bucket's region.
pub const S3_REGION: &str = "AWS_REGION";
/// S3: where another server than Amazon's is.
pub const S3_ENDPOINT: &str = "AWS_ENDPOINT_URL";
/// S3: `path`, or `virtual` where the bucket is part of the host's name.
pub const S3_STYLE: &str = "AWS_S3_ADDRESSING_STYLE";
/// Google: the JSON key of a service account.
pub const GS_KEY: &str = "GOOGLE_SERVICE_ACCOUNT_KEY";
/// Azure: the storage account.
pub const AZ_ACCOUNT: &str = "AZURE_STORAGE_ACCOUNT";
/// Azure: the account's key.
pub const AZ_KEY: &str = "AZURE_STORAGE_KEY";
/// Azure: a shared access signature.
pub const AZ_SAS: &str = "AZURE_STORAGE_SAS_TOKEN";
/// Azure: a service principal.
pub const AZ_CLIENT_ID: &str = "AZURE_CLIENT_ID";
/// Azure: its secret.
pub const AZ_CLIENT_SECRET: &str = "AZURE_CLIENT_SECRET";
/// Azure: its tenant.
pub const AZ_TENANT: &str = "AZURE_TENANT_ID";
/// Azure: where another server than Azure's own is.
pub const AZ_ENDPOINT: &str = "AZURE_STORAGE_BLOB_ENDPOINT";
/// Web servers: the user.
pub const WEB_USER: &str = "username";
/// Web servers: the password.
pub const WEB_PASSWORD: &str = "password";
/// Web servers: a bearer token, in place of both.
pub const WEB_TOKEN: &str = "token";
/// Hubs: a token that may read the repository.
pub const HUB_TOKEN: &str = "HF_TOKEN";

/// The entries that are read for a URI, apart from the certificates.
pub const fn entries(uri: &DataUri) -> &'static [&'static str] {
    match uri {
        DataUri::Object { store, .. } => match store {
            ObjectStore::S3 => &[
                S3_KEY_ID,
                S3_KEY,
                S3_TOKEN,
                S3_REGION,
                S3_ENDPOINT,
                S3_STYLE,
            ],
            ObjectStore::Gs => &[GS_KEY],
            ObjectStore::Az => &[
                AZ_ACCOUNT,
                AZ_KEY,
                AZ_SAS,
                AZ_CLIENT_ID,
                AZ_CLIENT_SECRET,
                AZ_TENANT,
                AZ_ENDPOINT,
            ],
        },
        DataUri::Web(_) => &[WEB_USER, WEB_PASSWORD, WEB_TOKEN],
        DataUri::Hub { .. } => &[HUB_TOKEN],
    }
}
