//! One build, from the configuration to a numbered version.

use std::path::Path;

use graftwork_artifacts::rows::{self, Beside, RowWriter, file_name, schema_hash};
use graftwork_artifacts::{Error as StoreError, Put, Store};
use graftwork_contract::dataset::{
    BuildConfig, BuildRecord, Manifest, Provenance, RowCounts, Split, VersionRecord,
};
use graftwork_contract::{Digest, paths};
use serde_json::Number;
use sha2::{Digest as _, Sha256};

use crate::clock;
use crate::deal::{Dealt, deal};
use crate::failure::Failure;
use crate::order::order;
use crate::privacy::Screen;
use crate::report::{REPORT_FILE, report};
use crate::sources::{Collected, collect, judge};
use crate::spill::Scratch;
use crate::statistics::{self, Classes, STATISTICS_FILE, SplitStatistics, Statistics};

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
    /// The namespace's folder of the artifact store.
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
    let store = Store::open(places.store)?;
    if let Some(built) = finished_before(config, &store)? {
        return Ok(built);
    }
    let scratch = places.scratch;
    let screen = Screen::new(config, places.key_file)?;
    let (rows, mut collected) = collect(config, screen.as_ref(), scratch)?;
    let ordered = order(config, scratch, rows)?;
    collected.good = ordered.kept_count;
    collected.duplicates = ordered.duplicates();
    if let Err(mut failure) = judge(config, &collected) {
        failure.rows = Some(RowCounts {
            rejected: collected.rejected_rows(),
            duplicates: collected.duplicates,
            ..RowCounts::default()
        });
        failure.rejected = collected.rejected;
        return Err(failure);
    }
    let dealt = deal(config, scratch, ordered, collected.rejected_rows())?;
    let manifest = publish(config, &store, scratch, &dealt, &collected)?;
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

/// The columns that are kept beside the format's.
fn beside(config: &BuildConfig) -> Beside<'_> {
    Beside {
        group: config.split.group_column.as_deref(),
        reward: config.reward,
    }
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
    let schema_hash = schema_hash(config.format, beside(config));
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
    scratch: &Scratch,
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
        let mut writer = RowWriter::create(&path, config.format, beside(config))?;
        for (_, row) in rows {
            let reward = row.reward.as_ref().and_then(Number::as_f64);
            writer.push(row.row.clone(), row.group.as_deref(), reward)?;
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

/// Writes the files of all splits, and counts what the rows are like. No time stands in the numbers: the
/// same rows and sources have the same.
fn write_rows(
    config: &BuildConfig,
    scratch: &Scratch,
    dealt: &Dealt,
    dir: &Path,
) -> Result<[SplitStatistics; 3], Failure> {
    let group_column = config.split.group_column.as_deref();
    let create =
        |split: Split| RowWriter::create(&dir.join(file_name(split)), config.format, group_column);
    let [train, validation, test] = Split::ALL.map(create);
    let mut writers = [train?, validation?, test?];
    let mut splits: [SplitStatistics; 3] = Default::default();
    let mut classes = Classes::new(scratch, config.privacy.is_some());
    dealt.for_each(|stored, split, times| {
        let (row, group) = stored.row(config.format, group_column)?;
        let index = split as usize;
        if let Some((writer, statistics)) = writers.get_mut(index).zip(splits.get_mut(index)) {
            statistics.add(&row, times);
            for _ in 1..times {
                writer.push(row.clone(), group.as_deref())?;
            }
            if times > 0 {
                writer.push(row, group.as_deref())?;
            }
        }
        match &stored.class {
            Some(class) => classes.add(split, class, times),
            None => Ok(()),
        }
    })?;
    for writer in writers {
        writer.finish()?;
    }
    for (split, classes) in splits.iter_mut().zip(classes.finish()?) {
        split.classes = classes;
    }
    Ok(splits)
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
