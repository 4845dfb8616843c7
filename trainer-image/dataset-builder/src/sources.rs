//! All sources, line by line: good rows, and bad ones counted and named.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::UNIX_EPOCH;

use graftwork_contract::Digest;
use graftwork_contract::dataset::{
    BrokenRule, BuildConfig, NAMED_REJECTED_ROWS, Query, RejectedRow, Share, Source,
    SourceProvenance, TokenizerProvenance,
};
use graftwork_contract::exit::ExitCode;
use graftwork_privacy::Counts;
use serde_json::{Map, Value};

use crate::config;
use crate::dealing::{Dealing, Part};
use crate::failure::Failure;
use crate::files::files;
use crate::nulls::Nulls;
use crate::privacy::Screen;
use crate::query;
use crate::reader;
use crate::remote::{self, Shelf};
use crate::row::{self, GoodRow, Wanted};
use crate::spill::Scratch;
use crate::stored::{RowSorter, Rows};
use crate::streams::hash;
use crate::tokens::Measured;
use crate::waiting::Waiting;

/// How many different rules a message names.
const NAMED_RULES: usize = 3;

/// Sources on their way: the good rows, and what is noted of all.
#[derive(Debug)]
pub struct Collecting {
    rows: RowSorter,
    /// How much of the present source's rows is taken; none: all of them.
    share: Option<Share>,
    /// Which part of all rows is taken.
    dealing: Dealing,
    /// What waits for an analyser, of the present source.
    waiting: Waiting,
    /// What is noted.
    pub noted: Collected,
}

impl Collecting {
    /// Judges a row that `object` reads, if it is this part's. Texts of a good one may have so many
    /// bytes. Where an analyser is asked about rows, this one waits until there are enough of them.
    ///
    /// # Errors
    /// Those of the scratch volume, and of the analyser.
    pub fn judge(
        &mut self,
        object: impl FnOnce() -> Result<Map<String, Value>, String>,
        limit: usize,
        wanted: Wanted<'_>,
        at: impl FnOnce(String) -> RejectedRow,
    ) -> Result<(), Failure> {
        if !self.dealing.takes_row() {
            return Ok(());
        }
        let object = object();
        if wanted.screen.is_some_and(Screen::looks_ahead) {
            self.waiting.push(object, limit, at(String::new()));
            return if self.waiting.is_full() {
                self.settle(wanted)
            } else {
                Ok(())
            };
        }
        let row = self.read(object, limit, wanted);
        self.take(row, at)
    }

    /// Judges the rows that wait.
    ///
    /// # Errors
    /// Those of the scratch volume, and of the analyser.
    pub fn settle(&mut self, wanted: Wanted<'_>) -> Result<(), Failure> {
        let waiting = std::mem::take(&mut self.waiting);
        let Some(screen) = wanted.screen.filter(|_| !waiting.is_empty()) else {
            return Ok(());
        };
        screen.look_ahead(&waiting.texts(wanted))?;
        for waiter in waiting.into_rows() {
            let row = self.read(waiter.object, waiter.limit, wanted);
            self.take(row, |rule| RejectedRow {
                rule,
                ..waiter.place
            })?;
        }
        Ok(())
    }

    fn read(
        &mut self,
        object: Result<Map<String, Value>, String>,
        limit: usize,
        wanted: Wanted<'_>,
    ) -> Result<GoodRow, String> {
        row::read(&object?, wanted, &mut self.noted.findings)?.bounded(limit)
    }

    /// Keeps a good row; of a bad one where it was and why.
    ///
    /// # Errors
    /// Those of the scratch volume.
    fn take(
        &mut self,
        row: Result<GoodRow, String>,
        at: impl FnOnce(String) -> RejectedRow,
    ) -> Result<(), Failure> {
        match row {
            Ok(good) if self.share.is_some_and(|it| !it.takes(&good.canonical)) => {
                self.noted.beyond_weight += 1;
                Ok(())
            }
            Ok(good) => self.rows.push(&good),
            Err(rule) => {
                self.noted.reject(at(rule));
                Ok(())
            }
        }
    }
}

/// What the sources hold, apart from the rows themselves.
#[derive(Debug, Default)]
pub struct Collected {
    /// Good rows that are no duplicates, or all where those stay.
    pub good: u64,
    /// The first bad rows.
    pub rejected: Vec<RejectedRow>,
    /// How often each rule was broken, in the order of first occurrence.
    pub rules: Vec<BrokenRule>,
    /// The sources as they were read.
    pub provenance: Vec<SourceProvenance>,
    /// What rows were measured with.
    pub tokenizer: Option<TokenizerProvenance>,
    /// How often each type of personal data was found.
    pub findings: Counts,
    /// Rows that were left out and had no value in a column, by column.
    pub nulls: BTreeMap<String, u64>,
    /// Rows that were left out as duplicates.
    pub duplicates: u64,
    /// Good rows that were left out for their source's weight.
    pub beyond_weight: u64,
}

impl Collected {
    /// The number of bad rows.
    pub fn rejected_rows(&self) -> u64 {
        self.rules.iter().map(|broken| broken.rows).sum()
    }

    /// Counts a bad row.
    pub fn reject(&mut self, row: RejectedRow) {
        let known = self
            .rules
            .iter()
            .position(|broken| broken.first.rule == row.rule && broken.first.source == row.source);
        if self.rejected.len() < NAMED_REJECTED_ROWS {
            self.rejected.push(row.clone());
        }
        if known.is_none() && self.rules.len() < MAXIMUM_RULES {
            self.rules.push(BrokenRule {
                first: row,
                rows: 1,
            });
            return;
        }
        // Rules hold positions, so there may be many: what is above the limit counts under the last.
        let index = known.unwrap_or(MAXIMUM_RULES - 1);
        if let Some(broken) = self.rules.get_mut(index) {
            broken.rows += 1;
        }
    }

    fn broken_rules(&self) -> String {
        let mut rules: Vec<&BrokenRule> = self.rules.iter().collect();
        rules.sort_by_key(|broken| std::cmp::Reverse(broken.rows));
        let more = rules.len().saturating_sub(NAMED_RULES);
        let mut text: Vec<String> = rules
            .into_iter()
            .take(NAMED_RULES)
            .map(|broken| {
                let rows = if broken.rows == 1 { "row" } else { "rows" };
                format!("{} ({} {rows})", broken.first, broken.rows)
            })
            .collect();
        if more > 0 {
            text.push(format!("and {more} more rules"));
        }
        text.join("; ")
    }
}

/// Rules that are counted apart.
pub const MAXIMUM_RULES: usize = 1000;

/// What was read of all sources.
#[derive(Debug)]
pub struct Gathered {
    /// Good rows.
    pub rows: Rows,
    /// What is noted.
    pub noted: Collected,
    /// Over the names and states of everything that there is to read, whichever part reads it.
    pub listing: Digest,
}

/// Reads a part of every source.
///
/// # Errors
/// A source that is not there, can't be read, or holds other bytes than the build was planned for.
/// Bad rows are no error here, see [`judge`].
pub fn collect(
    config: &BuildConfig,
    part: Part,
    screen: Option<&Screen>,
    measured: Option<Measured<'_>>,
    scratch: &Scratch,
) -> Result<Gathered, Failure> {
    let mut collecting = Collecting {
        rows: RowSorter::new(scratch),
        share: None,
        dealing: Dealing::new(part),
        waiting: Waiting::default(),
        noted: Collected::default(),
    };
    let nulls = Nulls::default();
    for source in &config.sources {
        collecting.share = source.share;
        let wanted = Wanted {
            format: config.format,
            group_column: config.split.group_column.as_deref(),
            time_column: config.split.time_column.as_deref(),
            class_column: config.balance.as_ref().map(|it| it.column.as_str()),
            reward: config.reward,
            renamed: &source.columns,
            screen,
            measured,
            nulls: Some(&nulls),
        };
        match (&source.query, &source.remote) {
            (Some(asked), _) => ask(config, source, asked, wanted, &mut collecting)?,
            (None, Some(remote)) => {
                let shelf = remote::open(config, source, remote)?;
                fetch(source, &shelf, scratch, wanted, &mut collecting)?;
            }
            (None, None) => read(source, wanted, &mut collecting)?,
        }
        collecting.settle(wanted)?;
        tracing::info!(
            source = source.name,
            good = collecting.rows.count(),
            rejected = collecting.noted.rejected_rows(),
            "source read"
        );
    }
    collecting.noted.nulls = nulls.into_counts();
    Ok(Gathered {
        rows: collecting.rows.finish()?,
        noted: collecting.noted,
        listing: collecting.dealing.listing(),
    })
}

/// Reads the answer to a query: one part does, in one transaction.
fn ask(
    config: &BuildConfig,
    source: &Source,
    query: &Query,
    wanted: Wanted<'_>,
    collecting: &mut Collecting,
) -> Result<(), Failure> {
    if !collecting.dealing.takes_whole(source, &source.uri, None) {
        return Ok(());
    }
    let seen = query::read(config, source, query, &mut |line, record| {
        let at = |rule| RejectedRow {
            source: source.name.clone(),
            file: None,
            line,
            rule,
        };
        collecting.judge(|| record, usize::MAX, wanted, at)
    })?;
    collecting.noted.provenance.push(seen);
    Ok(())
}

/// Reads the files of a source, one after the other.
fn read(source: &Source, wanted: Wanted<'_>, collecting: &mut Collecting) -> Result<(), Failure> {
    let files = files(source)?;
    let is_one = files.len() == 1;
    for file in files {
        let state = source.root.as_ref().and_then(|_| state(&file.path));
        let dealing = &mut collecting.dealing;
        if !dealing.takes(source, &file.uri, state.as_deref(), is_one) {
            continue;
        }
        let outcome = reader::read(source, &file, wanted, collecting);
        let (digest, size_bytes) = match (outcome, &source.digest) {
            (Ok(seen), _) => seen,
            // Bytes that the build was not planned for say nothing of the source.
            (Err(failure), Some(_)) if failure.code == ExitCode::BadData => {
                let seen = File::open(&file.path).and_then(hash);
                match seen {
                    Ok(seen) if source.digest.as_ref() != Some(&seen.0) => seen,
                    _ => return Err(failure),
                }
            }
            (Err(failure), _) => return Err(failure),
        };
        if let Some(planned) = source.digest.as_ref().filter(|planned| **planned != digest) {
            return Err(Failure::source_changed(format!(
                "source {} ({}) changed while the build started: it holds {digest}, the build was planned for {planned}",
                source.name, source.uri
            )));
        }
        collecting.noted.provenance.push(SourceProvenance {
            name: source.name.clone(),
            uri: file.uri,
            digest,
            size_bytes,
            etag: None,
            query: None,
        });
    }
    Ok(())
}

/// The state of a volume's file: its size and the time of its last change, which all pods see alike.
fn state(path: &Path) -> Option<String> {
    let metadata = path.metadata().ok()?;
    let since = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("{} {}", metadata.len(), since.as_nanos()))
}

/// Reads what a source has on the network, one after the other.
fn fetch(
    source: &Source,
    shelf: &Shelf<'_>,
    scratch: &Scratch,
    wanted: Wanted<'_>,
    collecting: &mut Collecting,
) -> Result<(), Failure> {
    let listed = shelf.list()?;
    let is_one = listed.len() == 1;
    for found in listed {
        let dealing = &mut collecting.dealing;
        if !dealing.takes(source, &found.uri, found.state(), is_one) {
            continue;
        }
        let opened = shelf.read(&found)?;
        let named = (source, &found);
        let (digest, size_bytes) =
            reader::read_stream(named, opened.body, scratch, wanted, collecting)?;
        collecting.noted.provenance.push(SourceProvenance {
            name: source.name.clone(),
            uri: found.uri,
            digest,
            size_bytes,
            etag: opened.etag,
            query: None,
        });
    }
    Ok(())
}

/// Whether the rows are good enough for a version.
///
/// # Errors
/// Too many bad rows or too few good ones, with numbers, limits and the rules that were broken.
pub fn judge(config: &BuildConfig, collected: &Collected) -> Result<(), Failure> {
    let validation = &config.validation;
    let (good, rejected) = (collected.good, collected.rejected_rows());
    let duplicates = collected.duplicates;
    let total = good + rejected + duplicates + collected.beyond_weight;
    let limit = &validation.maximum_invalid_percent;
    if config::percent(limit)?.is_exceeded_by(rejected, total) {
        let percent = rejected as f64 * 100.0 / total as f64;
        return Err(Failure::bad_data(format!(
            "{rejected} of {total} rows are invalid ({percent:.2} %), spec.validation.maximumInvalidPercent allows {limit} %: {}; correct the rows or raise the limit",
            collected.broken_rules()
        )));
    }
    let minimum = validation.minimum_rows;
    if good < minimum {
        let rules = match collected.broken_rules() {
            rules if rules.is_empty() => rules,
            rules => format!(" ({rejected} are invalid: {rules})"),
        };
        let mut kept = "valid".to_owned();
        if duplicates > 0 {
            kept = format!("{kept} and not one of {duplicates} duplicates");
        }
        if collected.beyond_weight > 0 {
            kept = format!("{kept} and within their source's weight");
        }
        return Err(Failure::bad_data(format!(
            "{good} of {total} rows are {kept}, spec.validation.minimumRows asks for {minimum}{rules}; add rows or lower the limit"
        )));
    }
    Ok(())
}
