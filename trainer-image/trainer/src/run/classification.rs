//! How far a run's result may go, and what is left of its rows beside it: no further than what it was made of.

use graftwork_artifacts::{MANIFEST_FILE, Store, rows};
use graftwork_contract::adapter::{Manifest, Provenance};
use graftwork_contract::dataset::Classification;
use graftwork_contract::paths;
use graftwork_contract::run::TrainerConfig;

use super::inputs::dataset_failure;
use crate::failure::{Failure, causes};

/// The configuration with the strictest classification of all that the run learns from: the Dataset's by now,
/// the one that the version was built under, and that of the adapter's version that training starts from.
///
/// # Errors
/// The store's.
pub fn classified(store: &Store, config: &TrainerConfig) -> Result<TrainerConfig, Failure> {
    let dataset = &config.resolved.dataset;
    let built = rows::manifest(store, &dataset.name, &dataset.digest)
        .map_err(|error| dataset_failure(config, &error))?;
    Ok(TrainerConfig {
        classification: [
            config.classification,
            built.classification,
            of_initial(store, config)?,
        ]
        .into_iter()
        .max()
        .flatten(),
        ..config.clone()
    })
}

/// Of the version that training starts from. One that is not there is said by who reads it.
fn of_initial(store: &Store, config: &TrainerConfig) -> Result<Option<Classification>, Failure> {
    let Some(initial) = &config.resolved.initial else {
        return Ok(None);
    };
    let folder = paths::adapter(&initial.adapter, &initial.digest);
    let manifest = store.get_json::<Manifest>(&format!("{folder}/{MANIFEST_FILE}"));
    let manifest = manifest.map_err(|error| Failure::unavailable(causes(&error)))?;
    Ok(match manifest.map(|manifest| manifest.provenance) {
        Some(Provenance::Trained { classification, .. }) => classification,
        Some(Provenance::Imported { .. }) | None => None,
    })
}
