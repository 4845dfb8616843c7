//! What a pod mounts, and where.

use graftwork_contract::pod;
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, EmptyDirVolumeSource, KeyToPath, PersistentVolumeClaimVolumeSource,
    Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{Recipe, STORE_CLAIM, StoreAccess};
use crate::bucket;
use crate::settings::Settings;

pub(super) fn build_volumes(
    recipe: &Recipe,
    settings: &Settings,
) -> (Vec<Volume>, Vec<VolumeMount>) {
    let mut volumes = vec![
        config_volume("config", &recipe.configuration, None),
        Volume {
            name: "scratch".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        },
    ];
    let mut mounts = vec![
        mount("config", pod::CONFIG_DIR, true),
        mount("scratch", pod::SCRATCH_DIR, false),
    ];
    if let Some(bytes) = recipe.adapter_cache_bytes {
        volumes.push(Volume {
            name: "adapter-cache".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                size_limit: Some(Quantity(bytes.to_string())),
                ..EmptyDirVolumeSource::default()
            }),
            ..Volume::default()
        });
        mounts.push(mount("adapter-cache", pod::ADAPTER_CACHE_DIR, false));
    }
    let mut claims = &recipe.claims | &recipe.outputs;
    let mut on_claim = recipe.store;
    if let Some(in_bucket) = recipe.store.and_then(|_| bucket::volumes(settings)) {
        on_claim = None;
        for (volume, mount) in in_bucket {
            volumes.push(volume);
            mounts.push(mount);
        }
    }
    if on_claim.is_some() {
        claims.insert(STORE_CLAIM.to_owned());
    }
    for (index, claim) in claims.iter().enumerate() {
        // One volume for each claim: two of the same claim would be attached twice.
        let name = format!("claim-{index}");
        volumes.push(Volume {
            name: name.clone(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.clone(),
                read_only: None,
            }),
            ..Volume::default()
        });
        if let Some(access) = on_claim.filter(|_| claim == STORE_CLAIM) {
            mounts.push(mount(
                &name,
                pod::STORE_DIR,
                access == StoreAccess::ReadOnly,
            ));
        }
        if recipe.claims.contains(claim) {
            mounts.push(mount(&name, &pod::claim_dir(claim), true));
        }
        if recipe.outputs.contains(claim) {
            mounts.push(mount(&name, &pod::output_dir(claim), false));
        }
    }
    for (index, key) in recipe.keys.iter().enumerate() {
        let name = format!("source-{index}");
        volumes.push(config_volume(&name, &key.config_map, Some(&key.key)));
        mounts.push(mount(
            &name,
            &format!("{}/{}", pod::SOURCES_DIR, key.source),
            true,
        ));
    }
    (volumes, mounts)
}

fn config_volume(name: &str, config_map: &str, key: Option<&str>) -> Volume {
    Volume {
        name: name.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: config_map.to_owned(),
            items: key.map(|key| {
                vec![KeyToPath {
                    key: key.to_owned(),
                    path: key.to_owned(),
                    mode: None,
                }]
            }),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::fixtures::settings;
    use crate::workload::tests::recipe;
    use crate::workload::{Placement, build_pod};

    #[test]
    fn mounts_are_where_the_contract_says() {
        let spec = build_pod(recipe(), Placement::default(), &settings())
            .spec
            .unwrap();
        let mounts: BTreeMap<_, _> = spec.containers[0]
            .volume_mounts
            .iter()
            .flatten()
            .map(|mount| (mount.mount_path.as_str(), mount.read_only == Some(true)))
            .collect();
        assert_eq!(
            mounts,
            [
                ("/etc/graftwork", true),
                ("/tmp", false),
                ("/var/lib/graftwork/store", false),
                ("/var/lib/graftwork/claims/models", true),
                ("/var/lib/graftwork/sources/faq", true),
            ]
            .into()
        );
        let names: BTreeSet<_> = spec.volumes.iter().flatten().map(|it| &it.name).collect();
        assert_eq!(names.len(), 5, "every mount has a volume of its own");
    }

    #[test]
    fn an_adapter_cache_is_a_volume_that_cannot_outgrow_its_size() {
        let mut recipe = recipe();
        recipe.adapter_cache_bytes = Some(3 << 30);
        let spec = build_pod(recipe, Placement::default(), &settings())
            .spec
            .unwrap();
        let volumes = spec.volumes.unwrap();
        let cache = volumes.iter().find(|it| it.name == "adapter-cache");
        let size = cache.unwrap().empty_dir.clone().unwrap().size_limit;
        assert_eq!(size, Some(Quantity("3221225472".to_owned())));
        let mounts = spec.containers[0].volume_mounts.as_ref().unwrap();
        let mounted = mounts.iter().find(|it| it.name == "adapter-cache").unwrap();
        assert_eq!(mounted.mount_path, pod::ADAPTER_CACHE_DIR);
        assert_eq!(mounted.read_only, None, "the engine writes there");
    }

    #[test]
    fn a_claim_that_is_read_and_written_is_one_volume_at_two_places() {
        let mut recipe = recipe();
        recipe.outputs = ["models".to_owned(), "made".to_owned()].into();
        let spec = build_pod(recipe, Placement::default(), &settings())
            .spec
            .unwrap();
        let claims: Vec<_> = spec
            .volumes
            .iter()
            .flatten()
            .filter_map(|volume| volume.persistent_volume_claim.as_ref())
            .map(|claim| claim.claim_name.as_str())
            .collect();
        assert_eq!(claims, ["graftwork-store", "made", "models"]);
        let mounts = spec.containers[0].volume_mounts.iter().flatten();
        let mounts: BTreeMap<_, _> = mounts
            .map(|mount| (mount.mount_path.as_str(), mount.read_only == Some(true)))
            .collect();
        for (path, read_only) in [
            ("/var/lib/graftwork/claims/models", Some(&true)),
            ("/var/lib/graftwork/claims/made", None),
            ("/var/lib/graftwork/outputs/models", Some(&false)),
            ("/var/lib/graftwork/outputs/made", Some(&false)),
        ] {
            assert_eq!(mounts.get(path), read_only, "{path}");
        }
    }

    #[test]
    fn a_claim_that_is_also_the_store_is_one_volume() {
        let mut recipe = recipe();
        recipe.claims = [STORE_CLAIM.to_owned()].into();
        recipe.keys.clear();
        let spec = build_pod(recipe, Placement::default(), &settings())
            .spec
            .unwrap();
        assert_eq!(spec.volumes.unwrap().len(), 3);
        assert_eq!(spec.containers[0].volume_mounts.as_ref().unwrap().len(), 4);
    }
}
