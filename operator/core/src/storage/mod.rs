//! A namespace's storage: while there are objects of ours, a keeper, and a claim unless the store is in a bucket.
//! The claim has no owner and stays; the keeper goes with the last object.

mod children;

use std::collections::BTreeSet;

use graftwork_api::labels;
use graftwork_api::uri::PvcUri;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim};

use crate::observed::Found;
use crate::plan::{Actions, ChildKind, Delete, NAME_TAKEN_PAUSE, Plan};
use crate::settings::Settings;

pub use children::{KEEPER, keeper_labels};

/// What a namespace looks like.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Name of the namespace.
    pub namespace: String,
    /// Its UID: keepers are called with it as owner.
    pub namespace_uid: String,
    /// The namespace is going away: nothing can be created in it.
    pub terminating: bool,
    /// Objects of our four kinds that are not being deleted.
    pub objects: usize,
    /// URIs of base models and imports of those objects, as they stand in spec.
    pub uris: BTreeSet<String>,
    /// Claims that are bound: only these can be mounted without holding the keeper up.
    pub bound_claims: BTreeSet<String>,
    /// The store's claim.
    pub claim: Found<PersistentVolumeClaim>,
    /// The keeper's configuration.
    pub configuration: Found<ConfigMap>,
    /// The keeper.
    pub deployment: Found<Deployment>,
    /// The operator's public keys.
    pub operator_keys: Vec<String>,
}

/// What is to be done in a namespace.
pub fn plan(observed: &Observed, settings: &Settings) -> Plan<()> {
    if observed.terminating {
        return Plan::Act(Actions::default());
    }
    if observed.objects == 0 {
        return Plan::Act(Actions {
            delete: removals(observed),
            ..Actions::default()
        });
    }
    let in_the_way = settings.store.url.is_none() && observed.claim.is_foreign();
    if in_the_way || observed.configuration.is_foreign() || observed.deployment.is_foreign() {
        // The objects of the namespace say so: see `problem`.
        return Plan::Act(Actions {
            requeue_after: Some(NAME_TAKEN_PAUSE),
            ..Actions::default()
        });
    }
    Plan::Act(Actions {
        apply: children::build(observed, &mounted_claims(observed), settings),
        ..Actions::default()
    })
}

/// The claims that the keeper mounts: those of base models and imports that are bound.
fn mounted_claims(observed: &Observed) -> BTreeSet<String> {
    observed
        .uris
        .iter()
        .filter_map(|uri| PvcUri::parse(uri).ok())
        .map(|uri| uri.claim().to_owned())
        .filter(|claim| observed.bound_claims.contains(claim))
        .collect()
}

fn removals(observed: &Observed) -> Vec<Delete> {
    let delete = |kind, metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        if metadata.deletion_timestamp.is_some() {
            return None;
        }
        Some(Delete {
            kind,
            name: metadata.name.clone()?,
            uid: metadata.uid.clone()?,
            grace_seconds: None,
        })
    };
    [
        observed
            .deployment
            .ours()
            .and_then(|found| delete(ChildKind::Deployment, &found.metadata)),
        observed
            .configuration
            .ours()
            .and_then(|found| delete(ChildKind::ConfigMap, &found.metadata)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Why a namespace can have no storage, in words that name the object; shown on every object that
/// needs the store.
pub fn problem(
    claim: &Found<PersistentVolumeClaim>,
    configuration: &Found<ConfigMap>,
    deployment: &Found<Deployment>,
) -> Option<StorageProblem> {
    if claim.is_foreign() {
        return Some(StorageProblem::NotOurs(format!(
            "PersistentVolumeClaim {} exists and does not belong to graftwork: remove it, or label it {}={} \
             if graftwork is to keep its store on it",
            crate::workload::STORE_CLAIM,
            labels::MANAGED_BY,
            labels::OPERATOR
        )));
    }
    let taken = [
        ("ConfigMap", configuration.is_foreign()),
        ("Deployment", deployment.is_foreign()),
    ];
    if let Some((kind, _)) = taken.into_iter().find(|(_, foreign)| *foreign) {
        return Some(StorageProblem::NotOurs(format!(
            "{kind} {KEEPER} exists and does not belong to graftwork: remove it, or make it anew under \
             another name"
        )));
    }
    let lost = claim.ours().filter(|claim| {
        claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            == Some("Lost")
    });
    lost.map(|_| {
        StorageProblem::Unavailable(format!(
            "PersistentVolumeClaim {} has lost its volume",
            crate::workload::STORE_CLAIM
        ))
    })
}

/// Why a namespace has no storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageProblem {
    /// Somebody else has a name that we need.
    NotOurs(String),
    /// It may come back.
    Unavailable(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::settings;
    use crate::plan::Child;
    use crate::workload::STORE_CLAIM;

    fn observed() -> Observed {
        Observed {
            namespace: "team".to_owned(),
            namespace_uid: "ns-uid".to_owned(),
            objects: 1,
            uris: ["pvc://models/tiny".to_owned(), "pvc://absent/x".to_owned()].into(),
            bound_claims: ["models".to_owned(), "other".to_owned()].into(),
            operator_keys: vec!["aa".to_owned()],
            ..Observed::default()
        }
    }

    fn actions(observed: &Observed) -> Actions<()> {
        match plan(observed, &settings()) {
            Plan::Act(actions) => actions,
            Plan::Decide(_) => unreachable!("a namespace has no status"),
        }
    }

    /// The children as a cluster would have them after the plan.
    fn settle(observed: &mut Observed) {
        let named = |metadata: &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            metadata.uid = Some("uid".to_owned());
        };
        for child in actions(observed).apply {
            match child {
                Child::ConfigMap(mut object) => {
                    named(&mut object.metadata);
                    observed.configuration = Found::Ours(object);
                }
                Child::Claim(mut object) => {
                    named(&mut object.metadata);
                    observed.claim = Found::Ours(object);
                }
                Child::Deployment(mut object) => {
                    named(&mut object.metadata);
                    observed.deployment = Found::Ours(object);
                }
                Child::Service(_) => unreachable!("storage has no Service"),
            }
        }
    }

    #[test]
    fn an_object_brings_a_claim_and_a_keeper_in_order() {
        let actions = actions(&observed());
        let kinds: Vec<_> = actions
            .apply
            .iter()
            .map(|child| (child.kind(), child.name()))
            .collect();
        assert_eq!(
            kinds,
            [
                (ChildKind::ConfigMap, KEEPER),
                (ChildKind::PersistentVolumeClaim, STORE_CLAIM),
                (ChildKind::Deployment, KEEPER),
            ]
        );
        assert!(
            actions
                .apply
                .windows(2)
                .all(|two| two[0].stage() <= two[1].stage())
        );
    }

    #[test]
    fn only_bound_claims_are_mounted() {
        let actions = actions(&observed());
        let text = serde_json::to_string(&match &actions.apply[2] {
            Child::Deployment(object) => object.clone(),
            other => unreachable!("{other:?}"),
        })
        .unwrap();
        assert!(text.contains("/var/lib/graftwork/claims/models"));
        assert!(
            !text.contains("absent") && !text.contains("other"),
            "{text}"
        );
    }

    #[test]
    fn the_claim_has_no_owner_and_outlives_the_last_object() {
        let mut world = observed();
        let Child::Claim(claim) = &actions(&world).apply[1] else {
            unreachable!("the second child is the claim")
        };
        assert_eq!(claim.metadata.owner_references, None);
        settle(&mut world);
        world.objects = 0;
        let deleted: Vec<_> = actions(&world).delete.iter().map(|it| it.kind).collect();
        assert_eq!(deleted, [ChildKind::Deployment, ChildKind::ConfigMap]);
        assert!(actions(&world).delete.iter().all(|it| it.uid == "uid"));
    }

    #[test]
    fn a_store_in_a_bucket_has_a_keeper_and_no_claim() {
        let mut settings = settings();
        settings.store.url = Some("s3://models/ml".to_owned());
        let mut world = observed();
        // Somebody's claim of that name is not in the way of a bucket.
        world.claim = Found::Foreign;
        let Plan::Act(actions) = plan(&world, &settings) else {
            unreachable!("a namespace has no status")
        };
        let kinds: Vec<_> = actions.apply.iter().map(Child::kind).collect();
        assert_eq!(kinds, [ChildKind::ConfigMap, ChildKind::Deployment]);
        let Child::ConfigMap(map) = &actions.apply[0] else {
            unreachable!("the first child is the configuration")
        };
        let text = &map.data.as_ref().unwrap()["config.json"];
        let config: graftwork_contract::keeper::KeeperConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.store.unwrap().url, "s3://models/ml/team");
    }

    #[test]
    fn a_claim_that_exists_is_not_changed_by_new_settings() {
        let mut world = observed();
        settle(&mut world);
        let mut settings = settings();
        settings.store.size = k8s_openapi::apimachinery::pkg::api::resource::Quantity("1Ti".into());
        let Plan::Act(actions) = plan(&world, &settings) else {
            unreachable!("a namespace has no status")
        };
        assert!(
            actions
                .apply
                .iter()
                .all(|it| it.kind() != ChildKind::PersistentVolumeClaim)
        );
    }

    #[test]
    fn nothing_is_touched_where_a_name_is_taken_or_the_namespace_goes() {
        let mut taken = observed();
        taken.deployment = Found::Foreign;
        let waits = Actions {
            requeue_after: Some(NAME_TAKEN_PAUSE),
            ..Actions::default()
        };
        assert_eq!(actions(&taken), waits, "the name may become free");
        let mut going = observed();
        going.terminating = true;
        assert_eq!(actions(&going), Actions::default());
        let mut empty = observed();
        empty.objects = 0;
        assert_eq!(
            actions(&empty),
            Actions::default(),
            "there is nothing to delete"
        );
    }

    #[test]
    fn a_name_that_is_taken_is_said_with_what_frees_it() {
        let label = "app.kubernetes.io/managed-by=graftwork-operator";
        type Case = (fn(&mut Observed), &'static str, &'static str);
        let cases: [Case; 3] = [
            (
                |world| world.claim = Found::Foreign,
                "PersistentVolumeClaim graftwork-store exists",
                label,
            ),
            (
                |world| world.configuration = Found::Foreign,
                "ConfigMap graftwork-keeper exists",
                "remove it",
            ),
            (
                |world| world.deployment = Found::Foreign,
                "Deployment graftwork-keeper exists",
                "remove it",
            ),
        ];
        for (take, what, remedy) in cases {
            let said =
                |world: &Observed| problem(&world.claim, &world.configuration, &world.deployment);
            let mut world = observed();
            assert_eq!(said(&world), None);
            take(&mut world);
            let Some(StorageProblem::NotOurs(message)) = said(&world) else {
                panic!("nothing is said of {what}")
            };
            assert!(message.starts_with(what), "{message}");
            assert!(message.contains(remedy), "{message}");
        }
    }

    #[test]
    fn a_name_that_becomes_free_is_taken_at_the_next_look() {
        for take in [
            (|world: &mut Observed| world.deployment = Found::Foreign) as fn(&mut Observed),
            |world| world.claim = Found::Foreign,
            |world| world.configuration = Found::Foreign,
        ] {
            let mut taken = observed();
            take(&mut taken);
            assert_eq!(actions(&taken).requeue_after, Some(NAME_TAKEN_PAUSE));
        }
        assert!((5..=10).contains(&NAME_TAKEN_PAUSE.as_secs()));
        assert_eq!(actions(&observed()).apply.len(), 3);
        assert_eq!(actions(&observed()).requeue_after, None);
    }

    #[test]
    fn another_key_restarts_the_keeper() {
        let template = |keys: &[&str]| {
            let mut world = observed();
            world.operator_keys = keys.iter().map(|&key| key.to_owned()).collect();
            actions(&world).apply.remove(2)
        };
        assert_eq!(template(&["aa"]), template(&["aa"]));
        assert_ne!(template(&["aa"]), template(&["aa", "bb"]));
    }
}
