//! One build, from the configuration to a numbered version.

use std::collections::HashSet;
use std::path::Path;

use graftwork_artifacts::rows::{self, RowWriter, file_name, schema_hash};
use graftwork_artifacts::{Error as StoreError, Put, Store};
use graftwork_contract::dataset::{
    BuildConfig, BuildRecord, Duplicates, Leakage, Manifest, NearDuplicates, Provenance, RowCounts,
    Split, VersionRecord,
};
use graftwork_contract::digest::PartsHasher;
use graftwork_contract::{Digest, paths};
use sha2::{Digest as _, Sha256};

use crate::balance::balance;
use crate::clock;
use crate::duplicates::{self, Clusters};
use crate::failure::Failure;
use crate::privacy::Screen;
use crate::report::{REPORT_FILE, report};
use crate::row::GoodRow;
use crate::sources::{Collected, collect, judge};
use crate::split;
use crate::statistics::{self, STATISTICS_FILE, SplitStatistics, Statistics};

/// The version that a build ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The numbered record.
    pub record: VersionRecord,
    /// False where the latest version holds these rows already.
    pub created: bool,
}

/// Builds one version in the store at `store`, or finds that the latest one holds these very rows.
/// Pseudonyms are made with the key in `key_file`.
///
/// # Errors
/// See [`Failure`]; rows and the first bad ones are in it as far as they are known.
pub fn build(config: &BuildConfig, store: &Path, key_file: &Path) -> Result<Built, Failure> {
    let store = Store::open(store)?;
    if let Some(built) = finished_before(config, &store)? {
        return Ok(built);
    }
    let screen = Screen::new(config, key_file)?;
    let mut collected = collect(config, screen.as_ref())?;
    let (clusters, duplicates) = order(config, &mut collected.good);
    collected.duplicates = duplicates;
    let rejected_rows = collected.rejected_rows();
    if let Err(mut failure) = judge(config, &collected) {
        failure.rows = Some(RowCounts {
            rejected: rejected_rows,
            duplicates,
            ..RowCounts::default()
        });
        failure.rejected = collected.rejected;
        return Err(failure);
    }
    let good = std::mem::take(&mut collected.good);
    let dealt = deal(config, good, &clusters, duplicates, rejected_rows);
    let manifest = publish(config, &store, &dealt, &collected)?;
    let built = number(config, &store, &dealt, &manifest, collected)?;
    let version = built.record.version;
    tracing::info!(version, digest = %built.record.digest, created = built.created, "dataset built");
    finish(config, &store, built)
}

/// A build of this fingerprint that came to its end, in an earlier attempt.
fn finished_before(config: &BuildConfig, store: &Store) -> Result<Option<Built>, Failure> {
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

/// Rows in their splits and in canonical order.
#[derive(Debug)]
struct Dealt {
    splits: [Vec<(Sha256Bytes, GoodRow)>; 3],
    counts: RowCounts,
    schema_hash: Digest,
    digest: Digest,
    leakage: Leakage,
}

type Sha256Bytes = [u8; 32];

/// Orders rows by the hash of the canonical row, so that neither the order of rows nor that of sources
/// matters, and leaves out duplicates where the configuration says so: how many. Equal rows that stay
/// come each as often as they came.
fn order(config: &BuildConfig, good: &mut Vec<GoodRow>) -> (Clusters, u64) {
    good.sort_by_cached_key(canonical_order);
    let validation = &config.validation;
    let before = good.len();
    let drops_near = validation.near_duplicates == NearDuplicates::Drop;
    if drops_near || validation.duplicates == Duplicates::Drop {
        let mut clusters = duplicates::equal(good);
        if drops_near {
            duplicates::near(good, &mut clusters);
        }
        let mut index = 0;
        good.retain(|_| {
            index += 1;
            clusters.first_of(index - 1) == index - 1
        });
    }
    let dropped = (before - good.len()) as u64;
    let mut clusters = Clusters::single(good.len());
    if validation.near_duplicates == NearDuplicates::Group {
        clusters = duplicates::equal(good);
        duplicates::near(good, &mut clusters);
    }
    (clusters, dropped)
}

fn hash(row: &GoodRow) -> Sha256Bytes {
    Sha256::digest(&row.canonical).into()
}

/// By the canonical row, and among equal ones by what decides their split: which of them comes first
/// must not depend on the order of sources either.
fn canonical_order(row: &GoodRow) -> (Sha256Bytes, String, Option<i64>, Option<String>) {
    (
        hash(row),
        row.split_key().to_owned(),
        row.time,
        row.class.clone(),
    )
}

/// Deals every row to its split, and repeats rows of rare classes in train.
fn deal(
    config: &BuildConfig,
    good: Vec<GoodRow>,
    clusters: &Clusters,
    duplicates: u64,
    rejected: u64,
) -> Dealt {
    let sides = split::split(&config.split, &good, clusters);
    let leakage = leakage(&good, &sides, clusters);
    let mut rows: [Vec<GoodRow>; 3] = Default::default();
    for (row, side) in good.into_iter().zip(sides) {
        let [train, validation, test] = &mut rows;
        match side {
            Split::Train => train.push(row),
            Split::Validation => validation.push(row),
            Split::Test => test.push(row),
        }
    }
    if let Some(config) = &config.balance {
        let [train, ..] = &mut rows;
        *train = balance(config, std::mem::take(train));
    }
    let mut splits = rows.map(|rows| -> Vec<(Sha256Bytes, GoodRow)> {
        rows.into_iter().map(|row| (hash(&row), row)).collect()
    });
    let schema_hash = schema_hash(config.format, config.split.group_column.as_deref());
    let mut hasher = PartsHasher::new();
    hasher
        .part("graftwork/dataset/v1")
        .part(schema_hash.as_str());
    for (split, rows) in Split::ALL.iter().zip(&mut splits) {
        rows.sort_by_key(|(hash, _)| *hash);
        hasher
            .part(split.name())
            .part((rows.len() as u64).to_le_bytes());
        for (hash, _) in rows {
            hasher.part(hash);
        }
    }
    let [train, validation, test] = splits.each_ref().map(|rows| rows.len() as u64);
    Dealt {
        counts: RowCounts {
            train,
            validation,
            test,
            rejected,
            duplicates,
        },
        digest: hasher.finish(),
        schema_hash,
        splits,
        leakage,
    }
}

/// Rows of other splits that are equal to a row of train, or of one cluster with it.
fn leakage(rows: &[GoodRow], sides: &[Split], clusters: &Clusters) -> Leakage {
    let marks: Vec<([u8; 32], usize)> = rows
        .iter()
        .enumerate()
        .map(|(index, row)| (duplicates::identity(row), clusters.first_of(index)))
        .collect();
    let (mut texts, mut firsts) = (HashSet::new(), HashSet::new());
    for ((text, first), _) in marks
        .iter()
        .zip(sides)
        .filter(|(_, side)| **side == Split::Train)
    {
        texts.insert(text);
        firsts.insert(first);
    }
    let mut leakage = Leakage::default();
    for ((text, first), side) in marks.iter().zip(sides) {
        if texts.contains(text) || firsts.contains(first) {
            match side {
                Split::Train => {}
                Split::Validation => leakage.validation += 1,
                Split::Test => leakage.test += 1,
            }
        }
    }
    leakage
}

/// The version's folder with its manifest: the one that is there, or a new one.
fn publish(
    config: &BuildConfig,
    store: &Store,
    dealt: &Dealt,
    collected: &Collected,
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
    for (split, rows) in Split::ALL.iter().zip(&dealt.splits) {
        let path = staged.dir().join(file_name(*split));
        let mut writer =
            RowWriter::create(&path, config.format, config.split.group_column.as_deref())?;
        for (_, row) in rows {
            writer.push(row.row.clone(), row.group.as_deref())?;
        }
        writer.finish()?;
    }
    let statistics = statistics(config, dealt, collected);
    let json = serde_json::to_vec_pretty(&statistics.to_json())
        .map_err(|error| Failure::bug(error.to_string()))?;
    staged.write(STATISTICS_FILE, &json)?;
    staged.write(REPORT_FILE, report(&statistics, &dealt.digest).as_bytes())?;
    let latest =
        store.latest_numbered::<VersionRecord>(&paths::dataset_versions(&config.dataset))?;
    let provenance = Provenance {
        sources: collected.provenance.clone(),
        code_version: env!("CARGO_PKG_VERSION").to_owned(),
        privacy: config.privacy.clone(),
        parent: latest.map(|(number, _)| number),
        created_time: clock::rfc3339(),
    };
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
    };
    match staged.publish(&manifest)? {
        Put::Created => Ok(manifest),
        // Another builder was faster: its provenance stands.
        Put::Existing => Ok(rows::manifest(store, &config.dataset, &dealt.digest)?),
    }
}

/// The version's numbers, for machines and people. No time stands in them: the same rows and sources
/// have the same.
fn statistics(config: &BuildConfig, dealt: &Dealt, collected: &Collected) -> Statistics {
    let masks = config.privacy.is_some();
    Statistics {
        dataset: config.dataset.clone(),
        rows: dealt.counts,
        leakage: dealt.leakage,
        splits: dealt
            .splits
            .each_ref()
            .map(|rows| SplitStatistics::of(rows.iter().map(|(_, row)| row), masks)),
        findings: collected.findings.by_name(),
        rejected: statistics::rejected(&collected.rules),
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
