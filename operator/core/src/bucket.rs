//! What processes get whose store is in a bucket: where it is, a disk for what is on its way, and who asks.

use graftwork_contract::store::{self, BucketStore};
use graftwork_contract::uri::{DataUri, ObjectStore};
use graftwork_contract::{pod, remote};
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Volume, VolumeMount};

use crate::secret_volume;
use crate::settings::Settings;

/// Azure gives an identity to pods with this label alone.
pub const AZURE_IDENTITY: &str = "azure.workload.identity/use";

/// What a process of this namespace is told; none: its store is on a claim.
pub fn configuration(settings: &Settings, namespace: &str) -> Option<BucketStore> {
    let url = settings.store.url.as_deref()?;
    Some(BucketStore {
        url: store::of_namespace(url, namespace),
        secret: settings.store.secret_name.clone(),
        path: pod::STORE_SECRET_DIR.to_owned(),
        allowed_hosts: settings.store.allow.clone(),
    })
}

/// The bucket's URL as that of an object in it.
fn uri(settings: &Settings) -> Option<DataUri> {
    let url = settings.store.url.as_deref()?;
    DataUri::parse(&store::of_namespace(url, "x")).ok()
}

/// Whether pods need the label for an identity of Azure's.
pub fn wants_azure_identity(settings: &Settings) -> bool {
    settings.store.service_account_name.is_some()
        && matches!(
            uri(settings),
            Some(DataUri::Object {
                store: ObjectStore::Az,
                ..
            })
        )
}

/// The volumes of a pod that uses the store, and where they are; none: it is on a claim.
pub fn volumes(settings: &Settings) -> Option<Vec<(Volume, VolumeMount)>> {
    let uri = uri(settings)?;
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let scratch = Volume {
        name: "store".to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    };
    let mut volumes = vec![(scratch, mount("store", pod::STORE_DIR, false))];
    if let Some(secret) = &settings.store.secret_name {
        let name = "store-secret";
        let known = remote::entries(&uri).iter().copied();
        let items = known
            .chain([remote::AUTHORITY])
            .map(|entry| secret_volume::item(entry, entry));
        volumes.push((
            secret_volume::volume(name.to_owned(), secret, items.collect()),
            mount(name, pod::STORE_SECRET_DIR, true),
        ));
    }
    Some(volumes)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use k8s_openapi::api::core::v1::{PodTemplateSpec, ResourceRequirements};

    use super::*;
    use crate::fixtures::settings;
    use crate::workload::{Placement, Recipe, STORE_CLAIM, StoreAccess, build_pod};

    fn in_bucket(url: &str) -> Settings {
        let mut settings = settings();
        settings.store.url = Some(url.to_owned());
        settings.store.secret_name = Some("graftwork-store".to_owned());
        settings.store.service_account_name = Some("graftwork".to_owned());
        settings.store.allow = vec!["minio.storage.svc".to_owned()];
        settings
    }

    fn pod_of(store: Option<StoreAccess>, settings: &Settings) -> PodTemplateSpec {
        let recipe = Recipe {
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            binary: "engine",
            arguments: vec![],
            image: "t".to_owned(),
            resources: ResourceRequirements::default(),
            configuration: "x-config".to_owned(),
            store,
            claims: ["models".to_owned()].into(),
            outputs: BTreeSet::new(),
            keys: vec![],
            adapter_cache_bytes: None,
            ports: vec![],
            readiness: None,
            liveness: None,
            grace_seconds: 30,
            restart_policy: "Always",
            priority_class_name: None,
        };
        build_pod(recipe, Placement::default(), settings)
    }

    #[test]
    fn a_namespace_has_its_own_part_of_the_bucket() {
        let told = configuration(&in_bucket("s3://models/ml/"), "team").unwrap();
        assert_eq!(told.url, "s3://models/ml/team");
        assert_eq!(told.secret.as_deref(), Some("graftwork-store"));
        assert_eq!(told.path, pod::STORE_SECRET_DIR);
        assert_eq!(told.allowed_hosts, ["minio.storage.svc"]);
        assert_eq!(configuration(&settings(), "team"), None);
    }

    #[test]
    fn a_pod_gets_a_disk_the_secrets_entries_and_the_service_account_and_no_claim() {
        let settings = in_bucket("s3://models");
        let spec = pod_of(Some(StoreAccess::ReadOnly), &settings).spec.unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        assert!(
            !text.contains(&format!("\"claimName\":\"{STORE_CLAIM}\"")),
            "{text}"
        );
        assert_eq!(spec.affinity, None, "every node reaches a bucket");
        assert_eq!(spec.service_account_name.as_deref(), Some("graftwork"));
        assert_eq!(spec.automount_service_account_token, Some(false));
        let mounts: BTreeMap<_, _> = spec.containers[0]
            .volume_mounts
            .iter()
            .flatten()
            .map(|mount| (mount.mount_path.as_str(), mount.read_only == Some(true)))
            .collect();
        assert_eq!(mounts.get(pod::STORE_DIR), Some(&false), "copies go there");
        assert_eq!(mounts.get(pod::STORE_SECRET_DIR), Some(&true));
        assert_eq!(mounts.get("/var/lib/graftwork/claims/models"), Some(&true));
        let volumes = spec.volumes.unwrap();
        let secret = volumes.iter().find_map(|it| it.secret.as_ref()).unwrap();
        assert_eq!(
            secret.optional,
            Some(true),
            "who is missing is said by the process"
        );
        let items: Vec<_> = secret.items.iter().flatten().map(|it| &*it.key).collect();
        assert!(items.contains(&"AWS_SECRET_ACCESS_KEY") && items.contains(&"ca.crt"));
        assert!(!items.contains(&"GOOGLE_SERVICE_ACCOUNT_KEY"), "{items:?}");
    }

    #[test]
    fn a_pod_that_does_not_use_the_store_gets_nothing_of_it() {
        let settings = in_bucket("az://models");
        let template = pod_of(None, &settings);
        assert_eq!(template.metadata.unwrap().labels, Some(BTreeMap::new()));
        let spec = template.spec.unwrap();
        assert_eq!(spec.service_account_name, None);
        assert_eq!(
            spec.volumes.unwrap().len(),
            3,
            "configuration, scratch, claim"
        );
    }

    #[test]
    fn azure_gives_its_identity_to_pods_with_its_label() {
        for (url, expected) in [("az://models", Some("true")), ("gs://models", None)] {
            let template = pod_of(Some(StoreAccess::ReadWrite), &in_bucket(url));
            let labels = template.metadata.unwrap().labels.unwrap();
            let found = labels.get(AZURE_IDENTITY).map(String::as_str);
            assert_eq!(found, expected, "{url}");
        }
    }
}
