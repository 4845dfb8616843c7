//! The same outcome the slow and obvious way, with all rows in memory: what streaming is compared with.

use std::collections::{HashMap, HashSet};

use graftwork_artifacts::rows::schema_hash;
use graftwork_contract::Digest;
use graftwork_contract::dataset::{
    BuildConfig, Duplicates, Leakage, NearDuplicates, RowCounts, Split,
};
use graftwork_contract::digest::PartsHasher;
use sha2::{Digest as _, Sha256};

use self::balance::balance;
use crate::deal::beside;
use crate::duplicates::{BUCKET, bands, identity, normal, shingles, similar};
use crate::row::GoodRow;

mod agreement;
mod balance;
mod split;

/// Clusters of rows, by their position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clusters(Vec<usize>);

impl Clusters {
    /// Each row alone.
    pub fn single(rows: usize) -> Self {
        Self((0..rows).collect())
    }

    /// The first row of a row's cluster.
    pub fn first_of(&self, row: usize) -> usize {
        let mut at = row;
        while let Some(next) = self.0.get(at).filter(|next| **next != at) {
            at = *next;
        }
        at
    }

    /// Makes one cluster of two.
    pub fn join(&mut self, a: usize, b: usize) {
        let firsts = [self.first_of(a), self.first_of(b)];
        // The row that comes first stays the first; the others point at it, so that chains stay short.
        let first = firsts.into_iter().min().unwrap_or(a);
        for row in [a, b].into_iter().chain(firsts) {
            if let Some(of) = self.0.get_mut(row) {
                *of = first;
            }
        }
    }
}

/// Clusters of equal rows.
pub fn equal(rows: &[GoodRow]) -> Clusters {
    let mut clusters = Clusters::single(rows.len());
    let mut first: HashMap<[u8; 32], usize> = HashMap::with_capacity(rows.len());
    for (index, row) in rows.iter().enumerate() {
        let known = *first.entry(identity(&row.row)).or_insert(index);
        clusters.join(known, index);
    }
    clusters
}

/// Adds nearly equal rows to clusters.
pub fn near(rows: &[GoodRow], clusters: &mut Clusters) {
    let mut buckets: HashMap<(usize, u64), Vec<usize>> = HashMap::new();
    for (index, row) in rows.iter().enumerate() {
        if clusters.first_of(index) != index {
            // An equal row stands for this one.
            continue;
        }
        let own = shingles(&normal(&row.row));
        for (band, key) in bands(&own).into_iter().enumerate() {
            let bucket = buckets.entry((band, key)).or_default();
            for other in bucket.iter().copied() {
                let known = clusters.first_of(other) == clusters.first_of(index);
                let is_similar = || {
                    let other = normal(&rows[other].row);
                    similar(&own, &shingles(&other))
                };
                if !known && is_similar() {
                    clusters.join(other, index);
                }
            }
            if bucket.len() < BUCKET {
                bucket.push(index);
            }
        }
    }
}

/// Rows in their splits and in canonical order.
#[derive(Debug)]
pub struct Dealt {
    pub splits: [Vec<(Sha256Bytes, GoodRow)>; 3],
    pub counts: RowCounts,
    pub digest: Digest,
    pub leakage: Leakage,
}

type Sha256Bytes = [u8; 32];

/// Orders rows by the hash of the canonical row, so that neither the order of rows nor that of sources
/// matters, and leaves out duplicates where the configuration says so: how many. Equal rows that stay
/// come each as often as they came.
pub fn order(config: &BuildConfig, good: &mut Vec<GoodRow>) -> (Clusters, u64) {
    good.sort_by_cached_key(canonical_order);
    let validation = &config.validation;
    let before = good.len();
    let drops_near = validation.near_duplicates == NearDuplicates::Drop;
    if drops_near || validation.duplicates == Duplicates::Drop {
        let mut clusters = equal(good);
        if drops_near {
            near(good, &mut clusters);
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
        clusters = equal(good);
        near(good, &mut clusters);
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
pub fn deal(
    config: &BuildConfig,
    good: Vec<GoodRow>,
    clusters: &Clusters,
    duplicates: u64,
    rejected: u64,
) -> Dealt {
    let sides = split::split(&config.split, &good, clusters);
    let leakage = if config.validation.near_duplicates == NearDuplicates::Report {
        let mut alike = equal(&good);
        near(&good, &mut alike);
        leakage(&good, &sides, &alike)
    } else {
        leakage(&good, &sides, clusters)
    };
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
            beyond_weight: 0,
        },
        digest: hasher.finish(),
        splits,
        leakage,
    }
}

/// Rows of other splits that are equal to a row of train, or of one cluster with it.
fn leakage(rows: &[GoodRow], sides: &[Split], clusters: &Clusters) -> Leakage {
    let marks: Vec<([u8; 32], usize)> = rows
        .iter()
        .enumerate()
        .map(|(index, row)| (identity(&row.row), clusters.first_of(index)))
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
