//! Secrets in a build's pod: the key of pseudonyms, and who asks databases, stores and servers. They are
//! mounted as files; neither the operator nor the build's configuration holds anything of them.
//!
//! A Secret that is not there is no hindrance for the pod: the builder says what is missing, and is started
//! again.

use std::path::Path;

use graftwork_contract::dataset::database_secret as entry;
use graftwork_contract::{pod, remote};
use k8s_openapi::api::core::v1::{KeyToPath, PodSpec, PodTemplateSpec, VolumeMount};

use super::validate::{Place, Valid};
use crate::secret_volume::{self, item};

/// The folder of a source's Secret.
pub fn folder(source: &str) -> String {
    format!("{}/{source}", pod::SECRETS_DIR)
}

/// Mounts every Secret that a build needs, and of each the entries that are read.
pub fn mount(valid: &Valid, mut template: PodTemplateSpec) -> PodTemplateSpec {
    let Some(spec) = template.spec.as_mut() else {
        return template;
    };
    if let Some(key) = &valid.pseudonym_key {
        let file = Path::new(pod::PSEUDONYM_KEY_FILE);
        let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
        let name = text(file.file_name().and_then(std::ffi::OsStr::to_str));
        let folder = text(file.parent().and_then(Path::to_str));
        let items = vec![item(&key.key, &name)];
        add(spec, "pseudonym-key".to_owned(), folder, &key.name, items);
    }
    for (index, source) in valid.sources.iter().enumerate() {
        let (secret, items) = match &source.place {
            Place::Query { secret, .. } => {
                let mut items: Vec<KeyToPath> = match &secret.key {
                    Some(key) => vec![item(key, entry::URI)],
                    None => entry::PARTS.map(|part| item(part, part)).to_vec(),
                };
                items.push(item(entry::AUTHORITY, entry::AUTHORITY));
                (&secret.name, items)
            }
            Place::Remote {
                uri,
                secret: Some(secret),
                ..
            } => {
                let known = remote::entries(uri).iter().copied();
                let known = known.chain([remote::AUTHORITY]);
                (secret, known.map(|name| item(name, name)).collect())
            }
            Place::Remote { secret: None, .. } | Place::Key { .. } | Place::File(_) => continue,
        };
        let volume = format!("secret-{index}");
        add(spec, volume, folder(&source.name), secret, items);
    }
    template
}

fn add(spec: &mut PodSpec, volume: String, folder: String, secret: &str, items: Vec<KeyToPath>) {
    let mounted = secret_volume::volume(volume.clone(), secret, items);
    spec.volumes.get_or_insert_default().push(mounted);
    for container in &mut spec.containers {
        container
            .volume_mounts
            .get_or_insert_default()
            .push(VolumeMount {
                name: volume.clone(),
                mount_path: folder.clone(),
                read_only: Some(true),
                ..VolumeMount::default()
            });
    }
}
