//! Rows to score that the adapter or its reference was trained on. They are left out: that a model
//! knows what it has seen says nothing about what it has learnt.

use std::collections::{BTreeSet, HashMap};

use graftwork_artifacts::rows::{self, Message, Row};
use graftwork_artifacts::{Category, Error as StoreError, MANIFEST_FILE, Store};
use graftwork_contract::adapter::{Manifest, Provenance};
use graftwork_contract::dataset::Split;
use graftwork_contract::run::{Resolved, ResolvedReference, TrainerConfig};
use graftwork_contract::{Digest, paths};

use super::patience;
use crate::failure::{Failure, causes};

/// Versions that one line of versions, each of which started from the one before, is followed through.
const LONGEST_LINE: usize = 100;

/// A dataset version by name and content.
type Data = (String, Digest);

/// What of a row is learned, and scored: of two answers the better one, whichever format the row is of.
#[derive(PartialEq, Eq, Hash)]
enum Learned<'a> {
    Text(&'a str),
    Answer { prompt: &'a str, answer: &'a str },
    Talk(&'a [Message]),
}

impl<'a> Learned<'a> {
    fn of(row: &'a Row) -> Self {
        match row {
            Row::Text { text } => Self::Text(text),
            Row::Completion {
                prompt,
                completion: answer,
            }
            | Row::Preference {
                prompt,
                chosen: answer,
                ..
            } => Self::Answer { prompt, answer },
            Row::Chat { messages } => Self::Talk(messages),
        }
    }
}

/// Whether what is scored of each of these rows of the run's dataset was trained on: by the run, by its reference, or
/// by a version that one of the two started from.
///
/// # Errors
/// [`Failure`]: the store's. What the store does not have any more is passed over with a warning.
pub fn rows_trained_on(
    store: &Store,
    config: &TrainerConfig,
    rows: &[Row],
) -> Result<Vec<bool>, Failure> {
    let mut places: HashMap<Learned<'_>, Vec<usize>> = HashMap::new();
    for (place, row) in rows.iter().enumerate() {
        places.entry(Learned::of(row)).or_default().push(place);
    }
    let mut was_seen = vec![false; rows.len()];
    for (name, digest) in data_trained_on(store, config)? {
        let open = || rows::open(store, &name, &digest, Split::Train);
        let mut trained = match patience::read(open) {
            Ok(rows) => rows,
            Err(StoreError::Missing { path }) => {
                tracing::warn!(path, "rows that were trained on are gone: none is left out");
                continue;
            }
            Err(error) => return Err(failure(&name, &error)),
        };
        while let Some(row) = patience::watched(|| trained.next()) {
            let row = row.map_err(|error| failure(&name, &error))?;
            for place in places.get(&Learned::of(&row)).into_iter().flatten() {
                if let Some(was_seen) = was_seen.get_mut(*place) {
                    *was_seen = true;
                }
            }
        }
    }
    Ok(was_seen)
}

/// The dataset versions that the adapter and its reference are trained on.
fn data_trained_on(store: &Store, config: &TrainerConfig) -> Result<BTreeSet<Data>, Failure> {
    let resolved = &config.resolved;
    let mut data = BTreeSet::new();
    if !config.evaluate_only {
        data.insert((
            resolved.dataset.name.clone(),
            resolved.dataset.digest.clone(),
        ));
    }
    for version in [&resolved.reference, &resolved.initial]
        .into_iter()
        .flatten()
    {
        follow(version, &mut data, |version| made_from(store, version))?;
    }
    Ok(data)
}

/// Adds what a version was trained on, and what those were that it started from.
fn follow(
    version: &ResolvedReference,
    data: &mut BTreeSet<Data>,
    made_from: impl Fn(&ResolvedReference) -> Result<Option<Resolved>, Failure>,
) -> Result<(), Failure> {
    let mut next = Some(version.clone());
    for _ in 0..LONGEST_LINE {
        let Some(version) = next else {
            return Ok(());
        };
        let Some(made_from) = made_from(&version)? else {
            tracing::warn!(
                adapter = version.adapter,
                version = version.version,
                "what this version was trained on is not known: no row is left out for it"
            );
            return Ok(());
        };
        data.insert((made_from.dataset.name, made_from.dataset.digest));
        next = made_from.initial;
    }
    Ok(())
}

/// What a version was made from; none where it was made elsewhere, or is gone.
fn made_from(store: &Store, version: &ResolvedReference) -> Result<Option<Resolved>, Failure> {
    let folder = paths::adapter(&version.adapter, &version.digest);
    let path = format!("{folder}/{MANIFEST_FILE}");
    let manifest: Option<Manifest> = patience::read(|| store.get_json(&path))
        .map_err(|error| Failure::unavailable(causes(&error)))?;
    Ok(match manifest.map(|manifest| manifest.provenance) {
        Some(Provenance::Trained { resolved, .. }) => Some(resolved),
        Some(Provenance::Imported { .. }) | None => None,
    })
}

fn failure(dataset: &str, error: &StoreError) -> Failure {
    match error.category() {
        Category::Invalid => Failure::bad_data(format!(
            "dataset {dataset}, of which a version was trained on: {}",
            causes(error)
        )),
        Category::Transient | Category::Bug => Failure::unavailable(causes(error)),
    }
}

#[cfg(test)]
mod tests {
    use graftwork_contract::dataset::Format;
    use graftwork_contract::run::{ResolvedBase, ResolvedDataset};

    use super::*;

    fn version(number: u32) -> ResolvedReference {
        ResolvedReference {
            adapter: "topics".to_owned(),
            version: number,
            digest: Digest::of(&number.to_le_bytes()),
        }
    }

    fn resolved(dataset: &str, initial: Option<u32>) -> Resolved {
        Resolved {
            base: ResolvedBase {
                uri: "pvc://models/tiny".to_owned(),
                path: "/x".to_owned(),
                digest: Digest::of(b"base"),
                quantization: None,
            },
            dataset: ResolvedDataset {
                name: dataset.to_owned(),
                version: 1,
                digest: Digest::of(dataset.as_bytes()),
                format: Format::Completion,
            },
            reference: None,
            initial: initial.map(version),
        }
    }

    fn followed(versions: &[(u32, Resolved)], start: u32) -> Vec<String> {
        let mut data = BTreeSet::new();
        let made_from = |version: &ResolvedReference| {
            let found = versions.iter().find(|it| it.0 == version.version);
            Ok(found.map(|it| it.1.clone()))
        };
        follow(&version(start), &mut data, made_from).unwrap();
        data.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_line_of_versions_is_followed_to_its_beginning() {
        let versions = [
            (1, resolved("first", None)),
            (2, resolved("second", Some(1))),
            (3, resolved("third", Some(2))),
            (4, resolved("fourth", Some(9))),
            (5, resolved("fifth", Some(5))),
        ];
        assert_eq!(followed(&versions, 3), ["first", "second", "third"]);
        assert_eq!(followed(&versions, 1), ["first"]);
        assert_eq!(followed(&versions, 4), ["fourth"], "version 9 is gone");
        assert_eq!(followed(&versions, 5), ["fifth"], "a ring comes to an end");
        assert_eq!(followed(&versions, 9), [""; 0]);
    }
}
