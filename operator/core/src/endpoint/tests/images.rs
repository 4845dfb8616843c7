//! Which image engines and routers run: that of their revision, whatever somebody else writes.

use graftwork_api::labels;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};

use super::*;
use crate::endpoint::children::IMAGE_ANNOTATION;

/// The image that the installation had when the engines started.
const PINNED: &str = "registry/inference:1";
/// That of the operator's next version.
const NEWER: &str = "registry/inference:2";
/// What somebody writes into a pod template.
const EDITED: &str = "busybox:evil";

fn edit(found: &mut Found<Deployment>, edit: impl FnOnce(&mut Deployment)) {
    let Found::Ours(deployment) = found else {
        unreachable!("it was made")
    };
    edit(deployment);
}

fn set_image(deployment: &mut Deployment, image: &str) {
    let pod = deployment.spec.as_mut().unwrap().template.spec.as_mut();
    pod.unwrap().containers[0].image = Some(image.to_owned());
}

/// Images of engines and routers.
fn images(world: &World) -> [String; 2] {
    let image = |found: &Found<Deployment>| {
        let spec = found.ours().unwrap().spec.as_ref().unwrap();
        let container = &spec.template.spec.as_ref().unwrap().containers[0];
        container.image.clone().unwrap()
    };
    [
        image(&world.observed.engine_deployment),
        image(&world.observed.router_deployment),
    ]
}

#[test]
fn an_image_that_somebody_wrote_into_a_deployment_is_put_back_and_goes_nowhere_else() {
    let deployments: [fn(&mut World) -> &mut Found<Deployment>; 2] = [
        |world| &mut world.observed.engine_deployment,
        |world| &mut world.observed.router_deployment,
    ];
    for deployment in deployments {
        let mut world = World::serving(&json!({}));
        world.settings.images.inference = NEWER.to_owned();
        edit(deployment(&mut world), |it| set_image(it, EDITED));
        world.settle();
        assert_eq!(images(&world), [PINNED, PINNED]);
    }
}

#[test]
fn the_image_of_a_deployment_without_a_pin_is_kept_where_the_operator_wrote_it() {
    for (manager, image, kept) in [
        (labels::OPERATOR, PINNED, PINNED),
        ("kubectl-set", EDITED, NEWER),
    ] {
        let mut world = World::serving(&json!({}));
        world.settings.images.inference = NEWER.to_owned();
        let template = json!({"f:spec": {"f:containers": {
            "k:{\"name\":\"engine\"}": {".": {}, "f:image": {}},
        }}});
        let written = ManagedFieldsEntry {
            manager: Some(manager.to_owned()),
            fields_v1: Some(FieldsV1(json!({"f:spec": {"f:template": template}}))),
            ..ManagedFieldsEntry::default()
        };
        edit(&mut world.observed.engine_deployment, |it| {
            set_image(it, image);
            let annotations = it.metadata.annotations.as_mut().unwrap();
            assert!(annotations.remove(IMAGE_ANNOTATION).is_some());
            it.metadata.managed_fields = Some(vec![written]);
        });
        world.settle();
        assert_eq!(images(&world), [kept, kept], "{manager}");
        let deployment = world.observed.engine_deployment.ours().unwrap();
        let annotations = deployment.metadata.annotations.as_ref().unwrap();
        assert_eq!(annotations[IMAGE_ANNOTATION], kept, "{manager}");
    }
}
