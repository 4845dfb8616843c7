//! Secrets in pods: mounted as files. Neither the operator nor a process's configuration holds anything of them.
//!
//! A Secret that is not there is no hindrance for the pod: the process says what is missing.

use k8s_openapi::api::core::v1::{KeyToPath, SecretVolumeSource, Volume};

/// An entry that is mounted.
pub fn item(key: &str, path: &str) -> KeyToPath {
    KeyToPath {
        key: key.to_owned(),
        path: path.to_owned(),
        // The process's group may read it, nobody else.
        mode: Some(0o440),
    }
}

/// A volume of these entries of a Secret.
pub fn volume(name: String, secret: &str, items: Vec<KeyToPath>) -> Volume {
    Volume {
        name,
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            items: Some(items),
            optional: Some(true),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}
