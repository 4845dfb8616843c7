//! The files of a version. Rows are read back and described on all cores, some thousands at a time, while those
//! before them are written.

use std::path::Path;

use graftwork_artifacts::rows::{Row, RowWriter, file_name};
use graftwork_contract::dataset::{BuildConfig, Split};
use rayon::prelude::*;

use crate::deal::{Dealt, beside};
use crate::failure::Failure;
use crate::labels::Labels;
use crate::languages::{guess, is_looked_at};
use crate::spill::Scratch;
use crate::statistics::{Classes, SplitStatistics};
use crate::stored::{Hash, Stored, read_reward, read_row};

/// Rows that are read back at a time.
const BATCH_ROWS: usize = 4096;
/// Bytes of them, but for the last row's.
const BATCH_BYTES: usize = 8 << 20;
/// Into so many pieces, about, they are cut.
const PIECES: usize = 32;

/// Writes the files of all splits, and counts what the rows are like. No time stands in the numbers: the
/// same rows and sources have the same.
///
/// # Errors
/// Those of the store and of the scratch volume.
pub fn write_rows(
    config: &BuildConfig,
    scratch: &Scratch,
    dealt: &Dealt,
    dir: &Path,
) -> Result<[SplitStatistics; 3], Failure> {
    let mut files = Files::create(config, scratch, dir)?;
    let reading = Reading {
        config,
        rows: dealt.counts.kept(),
    };
    let mut batch = Batch::default();
    let mut read = Vec::new();
    dealt.for_each(|stored, split, times| {
        batch.push(stored, split, times);
        if batch.is_full() {
            let full = std::mem::take(&mut batch);
            let before = std::mem::take(&mut read);
            let (written, next) = rayon::join(|| files.write(before), || reading.read(&full));
            written?;
            read = next?;
        }
        Ok(())
    })?;
    files.write(read)?;
    files.write(reading.read(&batch)?)?;
    files.finish()
}

/// A row of the scratch volume, with where it goes.
struct Waiter {
    hash: Hash,
    canonical: Vec<u8>,
    class: Option<String>,
    tokens: Option<u32>,
    split: Split,
    times: u64,
}

/// Rows that wait to be read back.
#[derive(Default)]
struct Batch {
    rows: Vec<Waiter>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, stored: &Stored<'_>, split: Split, times: u64) {
        self.bytes += stored.canonical.len();
        self.rows.push(Waiter {
            hash: stored.hash,
            canonical: stored.canonical.to_owned(),
            class: stored.class.clone(),
            tokens: stored.tokens,
            split,
            times,
        });
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= BATCH_ROWS || self.bytes >= BATCH_BYTES
    }
}

/// A row as it is written.
struct Ready {
    row: Row,
    group: Option<String>,
    reward: Option<f64>,
    class: Option<String>,
    split: Split,
    times: u64,
}

/// Some rows in their order, with what they are like.
#[derive(Default)]
struct Piece {
    rows: Vec<Ready>,
    statistics: [SplitStatistics; 3],
}

/// How rows are read back.
struct Reading<'a> {
    config: &'a BuildConfig,
    /// Rows of the version.
    rows: u64,
}

impl Reading<'_> {
    fn read(&self, batch: &Batch) -> Result<Vec<Piece>, Failure> {
        let rows = (batch.rows.len() / PIECES).max(1);
        let pieces = batch.rows.par_chunks(rows);
        pieces.map(|rows| self.piece(rows)).collect()
    }

    fn piece(&self, rows: &[Waiter]) -> Result<Piece, Failure> {
        let config = self.config;
        let group_column = config.split.group_column.as_deref();
        let mut piece = Piece::default();
        for waiter in rows {
            let (split, times) = (waiter.split, waiter.times);
            let (row, group) = read_row(&waiter.canonical, config.format, group_column)?;
            let reward = config.reward.then(|| read_reward(&waiter.canonical));
            if let Some(statistics) = piece.statistics.get_mut(split as usize) {
                statistics.add(&row, times);
                if is_looked_at(&waiter.hash, self.rows) {
                    statistics.note_language(guess(&row), times);
                }
                if let Some(tokens) = waiter.tokens {
                    statistics.measure(tokens, times);
                }
            }
            piece.rows.push(Ready {
                row,
                group,
                reward: reward.transpose()?,
                class: waiter.class.clone(),
                split,
                times,
            });
        }
        Ok(piece)
    }
}

/// The files on their way.
struct Files {
    writers: [RowWriter; 3],
    statistics: [SplitStatistics; 3],
    classes: Classes,
    labels: Labels,
}

impl Files {
    fn create(config: &BuildConfig, scratch: &Scratch, dir: &Path) -> Result<Self, Failure> {
        let create = |split: Split| {
            RowWriter::create(&dir.join(file_name(split)), config.format, beside(config))
        };
        let [train, validation, test] = Split::ALL.map(create);
        Ok(Self {
            writers: [train?, validation?, test?],
            statistics: Default::default(),
            classes: Classes::new(scratch, config.privacy.is_some()),
            labels: Labels::new(config),
        })
    }

    fn write(&mut self, pieces: Vec<Piece>) -> Result<(), Failure> {
        for piece in pieces {
            for (all, more) in self.statistics.iter_mut().zip(piece.statistics) {
                all.merge(more);
            }
            for ready in piece.rows {
                self.write_row(ready)?;
            }
        }
        Ok(())
    }

    fn write_row(&mut self, ready: Ready) -> Result<(), Failure> {
        let Ready {
            row, split, times, ..
        } = ready;
        self.labels.note(&row, split, times);
        let group = ready.group.as_deref();
        if let Some(writer) = self.writers.get_mut(split as usize) {
            for _ in 1..times {
                writer.push(row.clone(), group, ready.reward)?;
            }
            if times > 0 {
                writer.push(row, group, ready.reward)?;
            }
        }
        match &ready.class {
            Some(class) => self.classes.add(split, class, times),
            None => Ok(()),
        }
    }

    fn finish(self) -> Result<[SplitStatistics; 3], Failure> {
        for writer in self.writers {
            writer.finish()?;
        }
        let mut splits = self.statistics;
        for (split, classes) in splits.iter_mut().zip(self.classes.finish()?) {
            split.classes = classes;
        }
        let labels = self.labels.finish().into_iter().flatten();
        for (split, labels) in splits.iter_mut().zip(labels) {
            split.classes = labels;
        }
        Ok(splits)
    }
}
