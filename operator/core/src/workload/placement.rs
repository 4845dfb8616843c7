//! Where a pod runs.

use std::collections::BTreeMap;

use graftwork_api::labels;
use k8s_openapi::api::core::v1::{
    Affinity, PodAffinity, PodAffinityTerm, Toleration, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use crate::settings::{ComputeProfile, Settings, SpotNodes};

/// Components other than the keeper whose pods mount the store.
const STORE_READERS: [&str; 3] = [
    labels::component::DATASET_BUILDER,
    labels::component::TRAINER,
    labels::component::ENGINE,
];

/// Where a pod runs, from a compute profile.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Placement {
    /// Labels that the node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pod tolerates.
    pub tolerations: Vec<Toleration>,
    /// `RuntimeClass`.
    pub runtime_class_name: Option<String>,
}

impl From<&ComputeProfile> for Placement {
    fn from(profile: &ComputeProfile) -> Self {
        Self {
            node_selector: profile.node_selector.clone(),
            tolerations: profile.tolerations.clone(),
            runtime_class_name: profile.runtime_class_name.clone(),
        }
    }
}

impl Placement {
    /// The same on spot nodes.
    #[must_use]
    pub fn on_spot(mut self, spot: &SpotNodes) -> Self {
        self.node_selector.extend(spot.node_selector.clone());
        self.tolerations.extend(spot.tolerations.iter().cloned());
        self
    }
}

/// A store that only one node can mount keeps every pod that mounts it on the keeper's node; a pod
/// that can't go there is unschedulable, with the scheduler's words, in place of hanging in a mount.
/// A keeper that moves goes where such pods are already, for they hold the volume; where there are
/// none, it goes anywhere.
pub(super) fn beside_keeper(settings: &Settings, binary: &str) -> Option<Affinity> {
    let shared = |mode: &String| mode == "ReadWriteMany";
    // Every node reaches a bucket.
    if settings.store.url.is_some() || settings.store.access_modes.iter().any(shared) {
        return None;
    }
    let beside = |selector: LabelSelector| PodAffinityTerm {
        label_selector: Some(selector),
        topology_key: "kubernetes.io/hostname".to_owned(),
        ..PodAffinityTerm::default()
    };
    let product = (labels::PART_OF.to_owned(), labels::PRODUCT.to_owned());
    let pod_affinity = if binary == labels::component::KEEPER {
        let readers = LabelSelectorRequirement {
            key: labels::COMPONENT.to_owned(),
            operator: "In".to_owned(),
            values: Some(STORE_READERS.map(str::to_owned).to_vec()),
        };
        PodAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![
                WeightedPodAffinityTerm {
                    pod_affinity_term: beside(LabelSelector {
                        match_expressions: Some(vec![readers]),
                        match_labels: Some([product].into()),
                    }),
                    weight: 100,
                },
            ]),
            ..PodAffinity::default()
        }
    } else {
        let keeper = (
            labels::COMPONENT.to_owned(),
            labels::component::KEEPER.to_owned(),
        );
        PodAffinity {
            required_during_scheduling_ignored_during_execution: Some(vec![beside(
                LabelSelector {
                    match_labels: Some([keeper, product].into()),
                    ..LabelSelector::default()
                },
            )]),
            ..PodAffinity::default()
        }
    };
    Some(Affinity {
        pod_affinity: Some(pod_affinity),
        ..Affinity::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::settings;
    use crate::workload::build_pod;
    use crate::workload::tests::recipe;

    #[test]
    fn a_store_of_one_node_keeps_its_pods_beside_the_keeper() {
        let mut settings = settings();
        let affinity = |settings: &Settings| {
            build_pod(recipe(), Placement::default(), settings)
                .spec
                .unwrap()
                .affinity
        };
        let terms = affinity(&settings)
            .and_then(|affinity| affinity.pod_affinity)
            .and_then(|it| it.required_during_scheduling_ignored_during_execution)
            .unwrap();
        assert_eq!(terms[0].topology_key, "kubernetes.io/hostname");
        let mut keeper = recipe();
        keeper.binary = labels::component::KEEPER;
        let keeper = build_pod(keeper, Placement::default(), &settings);
        let keeper = keeper.spec.unwrap().affinity.unwrap().pod_affinity.unwrap();
        assert_eq!(
            keeper.required_during_scheduling_ignored_during_execution, None,
            "nobody must come before the keeper"
        );
        let preferred = &keeper
            .preferred_during_scheduling_ignored_during_execution
            .unwrap()[0]
            .pod_affinity_term;
        assert_eq!(preferred.topology_key, "kubernetes.io/hostname");
        let selector = preferred.label_selector.clone().unwrap();
        let components = selector.match_expressions.unwrap()[0]
            .values
            .clone()
            .unwrap();
        assert!(components.contains(&labels::component::ENGINE.to_owned()));
        assert!(!components.contains(&labels::component::ROUTER.to_owned()));
        // What the affinity selects is what the keeper's pods carry.
        let carried = labels::child(labels::component::KEEPER, "Namespace", "team");
        let selected = terms[0]
            .label_selector
            .clone()
            .unwrap()
            .match_labels
            .unwrap();
        assert!(
            selected
                .iter()
                .all(|(key, value)| carried.get(key) == Some(value))
        );
        settings.store.access_modes = vec!["ReadWriteMany".to_owned()];
        assert_eq!(affinity(&settings), None);
    }

    #[test]
    fn a_claim_keeps_its_access_modes_whatever_the_chart_says_later() {
        let settings = settings();
        assert_eq!(settings.store.access_modes, ["ReadWriteOnce"]);
        let shared = ["ReadWriteMany".to_owned()];
        let template = |settings: &Settings| build_pod(recipe(), Placement::default(), settings);
        let before = template(&settings.with_access_modes(Some(&shared)));
        assert_eq!(before.spec.as_ref().unwrap().affinity, None);
        let mut upgraded = settings.clone();
        upgraded.store.access_modes = vec!["ReadWriteOncePod".to_owned()];
        let after = template(&upgraded.with_access_modes(Some(&shared)));
        assert_eq!(after, before, "no engine is rolled");
        for none in [None, Some(&[][..])] {
            assert_eq!(*settings.with_access_modes(none), settings);
        }
    }
}
