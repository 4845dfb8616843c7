//! What is watched, and how much of it is sent.

use graftwork_operator::cache::Caches;
use serde_json::json;

use crate::fake_api::{Answer, FakeApi};

#[tokio::test]
async fn of_config_maps_that_are_not_ours_only_metadata_is_asked_for_and_annotations_are_not_kept()
{
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": "rows", "namespace": "team", "uid": "u", "resourceVersion": "7",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "the whole object"},
        },
    });
    let api = FakeApi::new(|_, _, _| Answer::Take).with("configmaps", vec![map]);
    let (caches, _touches, _receivers) = Caches::start(&api.client());
    caches.ready().await;
    // Watches begin once the lists are done.
    let watched = || {
        let reads = api.reads().into_iter();
        let foreign = reads
            .filter(|read| read.plural == "configmaps" && !read.query.contains("labelSelector"));
        foreign.collect::<Vec<_>>()
    };
    while !watched()
        .iter()
        .any(|read| read.query.contains("watch=true"))
    {
        tokio::task::yield_now().await;
    }
    for read in watched() {
        assert!(read.accept.contains("as=PartialObjectMetadata"), "{read:?}");
    }
    let known = caches.all_config_maps.state();
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].metadata.resource_version.as_deref(), Some("7"));
    assert_eq!(known[0].metadata.annotations, None);
}
