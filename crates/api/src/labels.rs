//! Labels and annotations on children and on the four kinds.

use std::collections::BTreeMap;

/// What a child is: see [`component`].
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// The program that made a child.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The product.
pub const PART_OF: &str = "app.kubernetes.io/part-of";
/// The program in a child's pods.
pub const NAME: &str = "app.kubernetes.io/name";
/// The object that a child belongs to, shortened to a label's 63 characters.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// Kind of the object that a child belongs to, in lower case.
pub const OWNER_KIND: &str = "graftwork.dev/owner-kind";
/// Number of the attempt on a run's Job: for people, since anybody may change it. What counts is the Job's name.
pub const ATTEMPT: &str = "graftwork.dev/attempt";
/// On a Dataset: any new value looks at the sources again.
pub const REFRESH_ANNOTATION: &str = "graftwork.dev/refresh";
/// On a child: hash of what it was built from.
pub const CONTENT_HASH_ANNOTATION: &str = "graftwork.dev/content-hash";
/// On a Job of a build: when the first attempt at it was decided, which is what SQL calls now.
pub const BUILD_TIME_ANNOTATION: &str = "graftwork.dev/build-time";
/// On a pod: any new value makes the kubelet look at its mounted ConfigMaps at once.
pub const NUDGE_ANNOTATION: &str = "graftwork.dev/nudge";

/// Value of [`MANAGED_BY`].
pub const OPERATOR: &str = "graftwork-operator";
/// Value of [`PART_OF`].
pub const PRODUCT: &str = "graftwork";

/// Values of [`COMPONENT`].
pub mod component {
    /// The one writer of a namespace's store.
    pub const KEEPER: &str = "keeper";
    /// A namespace's artifact store.
    pub const STORE: &str = "store";
    /// A Job that builds a dataset version.
    pub const DATASET_BUILDER: &str = "dataset-builder";
    /// A Job that is one attempt of a run.
    pub const TRAINER: &str = "trainer";
    /// Pods that hold the model.
    pub const ENGINE: &str = "engine";
    /// Pods that route requests.
    pub const ROUTER: &str = "router";
}

/// What selects the pods of `component` of the object `owner`; it never changes for an object.
pub fn selector(component: &str, owner_kind: &str, owner: &str) -> BTreeMap<String, String> {
    [
        (COMPONENT, component.to_owned()),
        (INSTANCE, crate::names::label_value(owner)),
        (OWNER_KIND, owner_kind.to_lowercase()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// All labels of a child: its selector and what people and tools look for.
pub fn child(component: &str, owner_kind: &str, owner: &str) -> BTreeMap<String, String> {
    let mut labels = selector(component, owner_kind, owner);
    for (key, value) in [
        (NAME, component),
        (MANAGED_BY, OPERATOR),
        (PART_OF, PRODUCT),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

/// A selector as the `-l` of kubectl and the scale subresource want it.
pub fn to_text(labels: &BTreeMap<String, String>) -> String {
    labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_found_by_its_selector() {
        let labels = child(
            component::ENGINE,
            "ServingEndpoint",
            &"long.name-".repeat(25),
        );
        for (key, value) in selector(
            component::ENGINE,
            "ServingEndpoint",
            &"long.name-".repeat(25),
        ) {
            assert_eq!(labels.get(&key), Some(&value));
        }
        assert!(labels.values().all(|value| value.len() <= 63), "{labels:?}");
    }

    #[test]
    fn selectors_read_as_kubectl_wants_them() {
        assert_eq!(
            to_text(&selector(
                component::ENGINE,
                "ServingEndpoint",
                "assistants"
            )),
            "app.kubernetes.io/component=engine,app.kubernetes.io/instance=assistants,graftwork.dev/owner-kind=servingendpoint"
        );
    }
}
