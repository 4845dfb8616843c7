//! One build, from the configuration to a numbered version.

use std::path::Path;
use std::sync::Arc;

use graftwork_artifacts::rows;
use graftwork_artifacts::{Error as StoreError, Put, Store};
use graftwork_contract::dataset::{
    BuildConfig, BuildRecord, Look, Manifest, PrivacyMode, Provenance, RowCounts, VersionRecord,
};
use graftwork_contract::exit::ExitCode;
use graftwork_contract::{Digest, paths};

use crate::clock;
use crate::deal::{Dealt, deal};
use crate::dealing::Part;
use crate::failure::Failure;
use crate::looks::{self, Latest};
use crate::order::order;
use crate::parts;
use crate::pins::{Pins, schemas, spec_digest};
use crate::privacy::{Screen, read_key};
use crate::report::{REPORT_FILE, report};
use crate::sources::{Collected, Gathered, Tools, collect, judge, look};
use crate::spill::Scratch;
use crate::statistics::{self, STATISTICS_FILE, Statistics};
use crate::termination;
use crate::tokens::{BaseTokens, Measure, Measured};
use crate::transform::Given;
use crate::writing::write_rows;

/// The version that a build ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The numbered record.
    pub record: VersionRecord,
    /// False where the latest version holds these rows already.
    pub created: bool,
}

/// Where a build keeps its things.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// The namespace's folder of the artifact store, or one for what is on its way to a bucket.
    pub store: &'a Path,
    /// The key of pseudonyms.
    pub key_file: &'a Path,
    /// What does not fit in memory.
    pub scratch: &'a Scratch,
}

/// Builds one version in the store, or finds that the latest one holds these very rows.
///
/// # Errors
/// See [`Failure`]; rows and the first bad ones are in it as far as they are known.
pub fn build(config: &BuildConfig, places: Places<'_>) -> Result<Built, Failure> {
    let store = Store::open_at(config.store.as_ref(), places.store)?;
    let outcome = match finished_before(config, &store)? {
        Some(built) => Ok(built),
        None => make(config, &store, places).map_err(|failure| {
            let sources = config.sources.iter();
            failure.while_reading(sources.map(|source| source.name.as_str()))
        }),
    };
    // What another attempt at these rows can use stays.
    let is_over = match &outcome {
        Ok(_) => true,
        Err(failure) => failure.code != ExitCode::Unavailable,
    };
    if is_over {
        parts::clean_up(config, &store);
    }
    outcome
}

/// Reads the rows of a part in this process, with what they are measured with.
pub(crate) fn gather(
    config: &BuildConfig,
    part: Part,
    store: &Store,
    places: Places<'_>,
) -> Result<Gathered, Failure> {
    let screen = Screen::new(config, places.key_file)?;
    let base = BaseTokens::load(config)?;
    let measured = base.as_deref().map(|base| Measured {
        measure: base,
        maximum: config.validation.maximum_tokens_per_row,
    });
    let tools = Tools {
        screen: screen.as_ref(),
        measured,
        given: Given {
            tokens: base.clone().map(|base| base as Arc<dyn Measure>),
            key: match &config.transform {
                Some(transform) if transform.pseudonym_key => {
                    Some(read_key(places.key_file, config.pseudonym_key.as_ref())?)
                }
                _ => None,
            },
        },
        pins: Pins::load(config, store)?,
    };
    let mut gathered = collect(config, part, tools, places.scratch)?;
    gathered.noted.tokenizer = base.as_ref().map(|base| base.provenance.clone());
    Ok(gathered)
}

fn make(config: &BuildConfig, store: &Store, places: Places<'_>) -> Result<Built, Failure> {
    let scratch = places.scratch;
    if let Some(built) = unchanged(config, store)? {
        let version = built.record.version;
        tracing::info!(version, "the sources are as they were for this version");
        return finish(config, store, built);
    }
    let (rows, mut collected) = match config.shards.filter(|count| *count > 1) {
        Some(count) => parts::gather(config, count, store, scratch)?,
        None => {
            let mut gathered = gather(config, Part::WHOLE, store, places)?;
            gathered.noted.listing = gathered.is_told.then_some(gathered.listing);
            (gathered.rows, gathered.noted)
        }
    };
    termination::note("while the rows of all sources were ordered, split and written");
    let ordered = order(config, scratch, rows)?;
    collected.good = ordered.kept_count;
    collected.duplicates = ordered.duplicates();
    if let Err(mut failure) = judge(config, &collected) {
        failure.rows = Some(RowCounts {
            rejected: collected.rejected_rows(),
            duplicates: collected.duplicates,
            beyond_weight: collected.beyond_weight,
            ..RowCounts::default()
        });
        return Err(failure);
    }
    let mut dealt = deal(config, scratch, ordered, collected.rejected_rows())?;
    dealt.counts.beyond_weight = collected.beyond_weight;
    let look = Look {
        digest: dealt.digest.clone(),
        code_version: code_version(),
        spec_digest: Some(spec_digest(config)?),
        listing: collected.listing.clone(),
        schemas: schemas(&collected.columns)?,
    };
    let manifest = publish(config, store, scratch, (&dealt, &collected), &look)?;
    let built = number(config, store, &dealt, &manifest, collected)?;
    looks::note(config, store, &manifest, &look)?;
    let version = built.record.version;
    tracing::info!(version, digest = %built.record.digest, created = built.created, "dataset built");
    finish(config, store, built)
}

/// The version of this program: another one may find other rows bad, or mask more.
fn code_version() -> String {
    graftwork_artifacts::code_version(env!("CARGO_PKG_VERSION"))
}

/// The latest version, where this spec and this builder made it last and what there is to read is as it was then.
fn unchanged(config: &BuildConfig, store: &Store) -> Result<Option<Built>, Failure> {
    // What else rows follow from does not tell when it changes: keys, analysers, models, the clock.
    let privacy = config.privacy.as_ref();
    let is_private =
        privacy.is_none_or(|it| it.mode != PrivacyMode::Pseudonymise && it.analyzer.is_none());
    let has_parts = config.shards.is_some_and(|count| count > 1);
    if !is_private || has_parts || config.transform.is_some() || config.base_model.is_some() {
        return Ok(None);
    }
    let Some(Latest {
        record,
        manifest,
        made,
        ..
    }) = looks::latest(config, store)?
    else {
        return Ok(None);
    };
    let is_same = made.listing.is_some()
        && made.code_version == code_version()
        && made.spec_digest == Some(spec_digest(config)?);
    // What can't be looked at says so when it is read.
    if !is_same || look(config).ok().flatten() != made.listing {
        return Ok(None);
    }
    // A damaged version is not built upon, and not ended with either.
    let folder = paths::dataset(&config.dataset, &record.digest);
    store.verify(&folder, &manifest.files)?;
    Ok(Some(Built {
        record,
        created: false,
    }))
}

/// A build of this fingerprint that came to its end, in an earlier attempt.
pub(crate) fn finished_before(
    config: &BuildConfig,
    store: &Store,
) -> Result<Option<Built>, Failure> {
    let path = paths::dataset_build(&config.dataset, &config.fingerprint);
    let Some(done) = store.get_json::<BuildRecord>(&path)? else {
        return Ok(None);
    };
    let path = paths::dataset_version(&config.dataset, done.version);
    let record = store
        .get_json::<VersionRecord>(&path)?
        .ok_or(StoreError::Missing { path })?;
    Ok(Some(Built {
        record,
        created: false,
    }))
}

/// The version's folder with its manifest: the one that is there, or a new one.
fn publish(
    config: &BuildConfig,
    store: &Store,
    scratch: &Scratch,
    (dealt, collected): (&Dealt, &Collected),
    look: &Look,
) -> Result<Manifest, Failure> {
    match rows::manifest(store, &config.dataset, &dealt.digest) {
        Ok(manifest) => {
            store.verify(
                &paths::dataset(&config.dataset, &dealt.digest),
                &manifest.files,
            )?;
            return Ok(manifest);
        }
        Err(StoreError::Missing { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let staged = store.stage(&paths::dataset(&config.dataset, &dealt.digest))?;
    let statistics = Statistics {
        dataset: config.dataset.clone(),
        classification: config.classification,
        rows: dealt.counts,
        leakage: dealt.leakage,
        splits: write_rows(config, scratch, dealt, staged.dir())?,
        findings: collected.findings.by_name(),
        rejected: statistics::rejected(&collected.rules),
        nulls: collected.nulls.clone(),
        source_nulls: statistics::nulls(&collected.columns),
    };
    let json = serde_json::to_vec_pretty(&statistics.to_json())
        .map_err(|error| Failure::bug(error.to_string()))?;
    staged.write(STATISTICS_FILE, &json)?;
    let latest =
        store.latest_numbered::<VersionRecord>(&paths::dataset_versions(&config.dataset))?;
    let provenance = Provenance {
        description: config.description.clone(),
        sources: collected.provenance.clone(),
        code_version: look.code_version.clone(),
        privacy: config.privacy.clone(),
        tokenizer: collected.tokenizer.clone(),
        transform: collected.transform.clone(),
        spec_digest: look.spec_digest.clone(),
        listing: look.listing.clone(),
        schemas: look.schemas.clone(),
        parent: latest.map(|(number, _)| number),
        created_time: clock::rfc3339(),
    };
    let html = report(&statistics, &provenance, &dealt.digest);
    staged.write(REPORT_FILE, html.as_bytes())?;
    let files = staged.files()?;
    let manifest = Manifest {
        digest: dealt.digest.clone(),
        schema_hash: dealt.schema_hash.clone(),
        format: config.format,
        rows: dealt.counts,
        files: files.digests,
        size_bytes: files.size_bytes,
        provenance_digest: Digest::of_json(&provenance)
            .map_err(|error| Failure::bug(error.to_string()))?,
        provenance,
        findings: collected.findings.by_name(),
        classification: config.classification,
    };
    match staged.publish(&manifest)? {
        Put::Created => Ok(manifest),
        // Another builder was faster: its provenance stands.
        Put::Existing => Ok(rows::manifest(store, &config.dataset, &dealt.digest)?),
    }
}

/// Gives the version the next number, unless the latest one has these rows.
fn number(
    config: &BuildConfig,
    store: &Store,
    dealt: &Dealt,
    manifest: &Manifest,
    collected: Collected,
) -> Result<Built, Failure> {
    let findings = collected.findings.by_name();
    let rejected = collected.rejected;
    let created_time = clock::rfc3339();
    let appended = store.append_numbered(
        &paths::dataset_versions(&config.dataset),
        |version, latest: Option<&VersionRecord>| {
            let changed = latest.is_none_or(|latest| latest.digest != dealt.digest);
            changed.then(|| VersionRecord {
                version,
                digest: dealt.digest.clone(),
                schema_hash: dealt.schema_hash.clone(),
                rows: dealt.counts,
                rejected: rejected.clone(),
                size_bytes: manifest.size_bytes,
                created_time: created_time.clone(),
                provenance_digest: manifest.provenance_digest.clone(),
                findings: findings.clone(),
                leakage: dealt.leakage,
                tokens: dealt.tokens,
                parent: latest.map(|latest| latest.version),
            })
        },
    )?;
    Ok(Built {
        record: appended.record,
        created: appended.created,
    })
}

/// Writes down that this fingerprint is done.
fn finish(config: &BuildConfig, store: &Store, built: Built) -> Result<Built, Failure> {
    let record = BuildRecord {
        fingerprint: config.fingerprint.clone(),
        version: built.record.version,
        digest: built.record.digest.clone(),
    };
    let path = paths::dataset_build(&config.dataset, &config.fingerprint);
    match store.put_new_json(&path, &record) {
        Ok(_) => Ok(built),
        // Two builders of one fingerprint read different bytes of a changing source: the first one
        // that ended stands.
        Err(StoreError::Conflict { .. }) => {
            finished_before(config, store)?.ok_or_else(|| Failure::bug("a record disappeared"))
        }
        Err(error) => Err(error.into()),
    }
}
