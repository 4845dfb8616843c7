//! Builds in parts: several pods read, judge, mask and measure each its share of the rows and leave them in the
//! store; one takes them together. What it gets is what it would have read alone, whatever the number of
//! parts: rows are sorted, counts are sums, and bad rows are named in the order of sources, files and lines.
//!
//! All parts are of one snapshot: every one lists all there is to read, hashes what it reads, and the lists
//! and hashes have to agree. Where they don't, the parts go and the next attempt makes new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;

use graftwork_artifacts::{Error as StoreError, MANIFEST_FILE, Store};
use graftwork_contract::dataset::{
    BrokenRule, BuildConfig, NAMED_REJECTED_ROWS, PartManifest, RejectedRow, SourceProvenance,
};
use graftwork_contract::exit::ExitCode;
use graftwork_contract::paths;

use crate::build::{self, Places, finished_before};
use crate::dealing::Part;
use crate::failure::Failure;
use crate::sources::{Collected, Gathered, MAXIMUM_RULES, without_position};
use crate::spill::Scratch;
use crate::stored::{RowSorter, Rows};

/// The good rows of a part: each with its length before it, as eight bytes, the highest first.
const ROWS_FILE: &str = "rows.bin";

/// Makes one part: its good and its bad rows. None where the build came to its end before.
///
/// # Errors
/// Those of reading, named by the part; a part that somebody else made of other rows.
pub fn build_part(
    config: &BuildConfig,
    part: Part,
    places: Places<'_>,
) -> Result<Option<PartManifest>, Failure> {
    let store = Store::open_at(config.store.as_ref(), places.store)?;
    make(config, part, &store, places).map_err(|failure| {
        if failure.code != ExitCode::Unavailable {
            // It ends the whole build: nobody asks for what the others made.
            remove(&store, &own_parts(config));
        }
        let sources = config.sources.iter().map(|source| source.name.as_str());
        named(failure.while_reading(sources), part)
    })
}

/// A failure with the part's number, from 1, before it.
fn named(failure: Failure, part: Part) -> Failure {
    let Part { index, count } = part;
    let number = u64::from(index) + 1;
    Failure {
        message: format!("part {number} of {count}: {}", failure.message),
        ..failure
    }
}

fn make(
    config: &BuildConfig,
    part: Part,
    store: &Store,
    places: Places<'_>,
) -> Result<Option<PartManifest>, Failure> {
    if part.index >= part.count {
        let last = part.count.saturating_sub(1);
        return Err(Failure::bad_config(format!(
            "there is no such part: the last one's index is {last} (spec.shards)"
        )));
    }
    if finished_before(config, store)?.is_some() {
        return Ok(None);
    }
    if part.index == 0 {
        remove_others(config, store)?;
    }
    let folder = folder(config, part);
    if let Some(manifest) = made_before(store, &folder)? {
        return Ok(Some(manifest));
    }
    let gathered = build::gather(config, part, store, places)?;
    let staged = store.stage(&folder)?;
    let file = staged.dir().join(ROWS_FILE);
    write(&gathered.rows, &file)?;
    let manifest = manifest(gathered, staged.files()?.digests);
    match staged.publish(&manifest) {
        Ok(_) => Ok(Some(manifest)),
        Err(StoreError::Conflict { .. }) => Err(Failure::source_changed(
            "another pod made this part of other rows: a source changed meanwhile",
        )),
        Err(error) => Err(error.into()),
    }
}

fn folder(config: &BuildConfig, part: Part) -> String {
    let number = part.index.saturating_add(1);
    paths::dataset_part(&config.dataset, &config.fingerprint, number, part.count)
}

/// A part that an earlier attempt left whole. A damaged one goes.
fn made_before(store: &Store, folder: &str) -> Result<Option<PartManifest>, Failure> {
    let path = format!("{folder}/{MANIFEST_FILE}");
    let Some(manifest) = store.get_json::<PartManifest>(&path)? else {
        return Ok(None);
    };
    match store.verify(folder, &manifest.files) {
        Ok(()) => Ok(Some(manifest)),
        Err(StoreError::DigestMismatch { .. } | StoreError::Missing { .. }) => {
            store.remove_folder(folder)?;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Parts of builds that nobody asks for any more: they were killed in the midst.
fn remove_others(config: &BuildConfig, store: &Store) -> Result<(), Failure> {
    let own = own_parts(config);
    let prefix = format!("{}/", paths::dataset_parts(&config.dataset));
    let mut others = BTreeSet::new();
    for entry in store.list(&prefix)? {
        let below = entry.path.strip_prefix(&prefix).unwrap_or_default();
        let folder = below.split('/').next().unwrap_or_default();
        others.insert(format!("{prefix}{folder}"));
    }
    others.remove(&own);
    for folder in others {
        store.remove_folder(&folder)?;
    }
    Ok(())
}

/// Removes what all parts left, once the build has come to its end. What can't be removed now goes with the
/// next build.
pub fn clean_up(config: &BuildConfig, store: &Store) {
    remove(store, &paths::dataset_parts(&config.dataset));
}

/// Where the parts of this very build lie.
fn own_parts(config: &BuildConfig) -> String {
    let all = paths::dataset_parts(&config.dataset);
    format!("{all}/{}", config.fingerprint.hex())
}

fn remove(store: &Store, folder: &str) {
    let removed = store.list(&format!("{folder}/")).and_then(|left| {
        if left.is_empty() {
            return Ok(());
        }
        store.remove_folder(folder)
    });
    if let Err(error) = removed {
        tracing::warn!(%error, folder, "cannot remove the parts of a build");
    }
}

fn write(rows: &Rows, path: &Path) -> Result<(), Failure> {
    let failed = |source: io::Error| StoreError::Io {
        action: "write",
        path: path.to_path_buf(),
        source,
    };
    let mut file = BufWriter::with_capacity(1 << 18, File::create(path).map_err(failed)?);
    let mut records = rows.records()?;
    while let Some(record) = records.next_record()? {
        let length = (record.len() as u64).to_be_bytes();
        file.write_all(&length)
            .and_then(|()| file.write_all(record))
            .map_err(failed)?;
    }
    file.flush().map_err(failed)?;
    Ok(())
}

fn manifest(
    gathered: Gathered,
    files: BTreeMap<String, graftwork_contract::Digest>,
) -> PartManifest {
    let noted = gathered.noted;
    PartManifest {
        listing: gathered.listing,
        files,
        good: gathered.rows.count(),
        beyond_weight: noted.beyond_weight,
        findings: noted.findings.by_name(),
        sources: noted.provenance,
        tokenizer: noted.tokenizer,
        rejected: noted.rejected,
        rules: noted.rules,
        nulls: noted.nulls,
        columns: noted.columns,
        other_columns: noted.other_columns,
    }
}

/// Takes all parts together.
///
/// # Errors
/// A part that is not there, or parts of different states of a source: another attempt makes them anew.
pub fn gather(
    config: &BuildConfig,
    count: u32,
    store: &Store,
    scratch: &Scratch,
) -> Result<(Rows, Collected), Failure> {
    let mut parts = Vec::new();
    for index in 0..count {
        let part = Part { index, count };
        let Some(manifest) = made_before(store, &folder(config, part))? else {
            let failure = Failure::unavailable(
                "the store does not have it; the next attempt makes it, once the operator sees that",
            );
            return Err(named(failure, part));
        };
        parts.push((part, manifest));
    }
    let mut rows = RowSorter::new(scratch);
    for (part, manifest) in &parts {
        let files = store.peek(&folder(config, *part), &manifest.files)?;
        let path = files.path().join(ROWS_FILE);
        let expected = rows.count() + manifest.good;
        read(&path, &mut rows)?;
        if rows.count() != expected {
            return Err(Failure::bug(
                "a part has another number of rows than it says",
            ));
        }
    }
    let parts = parts.into_iter().map(|(_, manifest)| manifest).collect();
    match together(config, parts) {
        Ok(collected) => Ok((rows.finish()?, collected)),
        Err(failure) => {
            // The next attempt must not find them.
            store.remove_folder(&paths::dataset_parts(&config.dataset))?;
            Err(failure)
        }
    }
}

fn read(path: &Path, rows: &mut RowSorter) -> Result<(), Failure> {
    let failed = |source: io::Error| StoreError::Io {
        action: "read",
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mut left = file.metadata().map_err(failed)?.len();
    let mut file = BufReader::with_capacity(1 << 18, file);
    let mut record = Vec::new();
    while left > 0 {
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(failed)?;
        let length = u64::from_be_bytes(length);
        left = left.saturating_sub(8);
        if length > left {
            return Err(Failure::bug("a record of a part is longer than its file"));
        }
        left -= length;
        record.clear();
        (&mut file)
            .take(length)
            .read_to_end(&mut record)
            .map_err(failed)?;
        rows.push_record(&record)?;
    }
    Ok(())
}

/// What all parts noted, as one that reads all would have.
fn together(config: &BuildConfig, parts: Vec<PartManifest>) -> Result<Collected, Failure> {
    let order: BTreeMap<&str, usize> = config
        .sources
        .iter()
        .enumerate()
        .map(|(number, source)| (source.name.as_str(), number))
        .collect();
    let place = |row: &RejectedRow| {
        let source = order.get(row.source.as_str()).copied();
        (source, row.file.clone(), row.line)
    };
    let listing = parts.first().map(|part| part.listing.clone());
    let mut sources: BTreeMap<(Option<usize>, String), SourceProvenance> = BTreeMap::new();
    let mut rules: BTreeMap<(String, String), BrokenRule> = BTreeMap::new();
    let mut collected = Collected::default();
    for part in parts {
        if listing.as_ref() != Some(&part.listing) {
            return Err(Failure::source_changed(
                "a source has other files than when the first part listed it; the next attempt begins anew",
            ));
        }
        for seen in part.sources {
            let key = (order.get(seen.name.as_str()).copied(), seen.uri.clone());
            let known = sources.entry(key).or_insert_with(|| seen.clone());
            if known.digest != seen.digest {
                return Err(Failure::source_changed(format!(
                    "source {} ({}) changed while parts read it; the next attempt begins anew",
                    seen.name, seen.uri
                )));
            }
        }
        for rule in part.rules {
            let words = without_position(&rule.first.rule).to_owned();
            let key = (rule.first.source.clone(), words);
            match rules.get_mut(&key) {
                None => {
                    rules.insert(key, rule);
                }
                Some(known) => {
                    known.rows += rule.rows;
                    if place(&rule.first) < place(&known.first) {
                        known.first = rule.first;
                    }
                }
            }
        }
        for (name, count) in &part.findings {
            collected.findings.add_named(name, *count);
        }
        for (column, count) in part.nulls {
            *collected.nulls.entry(column).or_default() += count;
        }
        for (source, columns) in part.columns {
            collected.columns.entry(source).or_default().add(columns);
        }
        for (source, names) in part.other_columns {
            let known = collected.other_columns.entry(source).or_default();
            known.extend(names);
        }
        collected.rejected.extend(part.rejected);
        collected.beyond_weight += part.beyond_weight;
        collected.tokenizer = collected.tokenizer.or(part.tokenizer);
    }
    collected.rejected.sort_by_key(place);
    collected.rejected.truncate(NAMED_REJECTED_ROWS);
    collected.rules = rules.into_values().collect();
    collected.rules.sort_by_key(|rule| place(&rule.first));
    while collected.rules.len() > MAXIMUM_RULES {
        // As where one reads all: what is above the limit counts under the last.
        let rows = collected.rules.pop().map_or(0, |rule| rule.rows);
        if let Some(last) = collected.rules.last_mut() {
            last.rows += rows;
        }
    }
    collected.provenance = sources.into_values().collect();
    Ok(collected)
}
