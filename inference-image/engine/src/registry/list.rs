//! The desired list, with what requests look up in it: thousands of versions cost a request nothing.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_contract::Digest;

use super::state::{AcquireError, Target, Version};

/// The versions in the order in which they were listed.
#[derive(Debug, Default)]
pub(super) struct List {
    versions: Vec<Version>,
    /// Where the versions of a name stand.
    by_name: BTreeMap<String, Vec<usize>>,
    digests: BTreeSet<Digest>,
}

impl List {
    pub(super) fn new(versions: Vec<Version>) -> Self {
        let mut by_name: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, version) in versions.iter().enumerate() {
            match by_name.get_mut(&version.name) {
                Some(places) => places.push(index),
                None => {
                    by_name.insert(version.name.clone(), vec![index]);
                }
            }
        }
        let digests = versions.iter().map(|version| version.source.digest.clone());
        Self {
            digests: digests.collect(),
            by_name,
            versions,
        }
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, Version> {
        self.versions.iter()
    }

    /// Whether a version has this content.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.digests.contains(digest)
    }

    /// Which version a target means.
    ///
    /// # Errors
    /// A name or a version that is not in the list.
    pub(super) fn find(&self, target: &Target) -> Result<&Version, AcquireError> {
        match target {
            Target::Default(name) => self
                .of_name(name)
                .find(|version| version.is_default)
                .ok_or_else(|| AcquireError::UnknownName(name.clone())),
            Target::Exactly(name, number) => self
                .of_name(name)
                .find(|version| version.number == *number)
                .ok_or_else(|| AcquireError::NotHere {
                    name: name.clone(),
                    version: *number,
                    why: "it is not among this engine's versions".to_owned(),
                }),
        }
    }

    fn of_name(&self, name: &str) -> impl Iterator<Item = &Version> {
        let places = self.by_name.get(name).into_iter().flatten();
        places.filter_map(|index| self.versions.get(*index))
    }
}
