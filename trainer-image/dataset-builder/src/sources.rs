//! All sources, line by line: good rows, and bad ones counted and named.

use std::collections::{BTreeMap, BTreeSet};
use std::panic;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::UNIX_EPOCH;

use graftwork_contract::Digest;
use graftwork_contract::dataset::{
    BrokenRule, BuildConfig, NAMED_REJECTED_ROWS, RejectedRow, Share, Source, SourceColumns,
    SourceProvenance, TokenizerProvenance, TransformProvenance,
};
use graftwork_contract::exit::ExitCode;
use graftwork_privacy::Counts;

use crate::absent::absent;
use crate::config;
use crate::dealing::{Dealing, Part};
use crate::failure::Failure;
use crate::files::{files, open};
use crate::judging::{Judge, Judged};
use crate::nulls::Nulls;
use crate::pins::Pins;
use crate::privacy::Screen;
use crate::query;
use crate::reader::{self, Raw, Take};
use crate::remote::{self, Shelf};
use crate::row::Wanted;
use crate::spill::Scratch;
use crate::stored::{RowSorter, Rows};
use crate::streams::hash;
use crate::termination;
use crate::tokens::Measured;
use crate::transform::{self, Given, Means};
use crate::waiting::{ASKED, JUDGED, Waiting};

/// How many different rules a message names.
const NAMED_RULES: usize = 3;

/// Sources on their way: the good rows, and what is noted of all.
#[derive(Debug)]
pub struct Collecting {
    rows: RowSorter,
    /// How much of the present source's rows is taken; none: all of them.
    pub share: Option<Share>,
    /// Which part of all rows is taken.
    pub dealing: Dealing,
    /// What waits to be judged, of the present source.
    waiting: Waiting,
    /// The columns of the present source; none: what is read is no source.
    columns: Option<SourceColumns>,
    /// Those whose shape is looked at, as the source names them.
    shaped: Arc<BTreeSet<String>>,
    /// The columns of its files that list them before their rows.
    listed: BTreeSet<String>,
    /// What is noted.
    pub noted: Collected,
}

impl Collecting {
    /// Nothing yet.
    pub fn new(scratch: &Scratch, part: Part) -> Self {
        Self {
            rows: RowSorter::new(scratch),
            share: None,
            dealing: Dealing::new(part),
            waiting: Waiting::default(),
            columns: None,
            shaped: Arc::default(),
            listed: BTreeSet::new(),
            noted: Collected::default(),
        }
    }

    /// Begins with a source, of which these columns are asked for.
    fn begin(&mut self, source: &Source, asked: &[&str]) {
        self.share = source.share;
        self.columns = Some(SourceColumns::default());
        let asked = asked.iter().map(|name| (*name).to_owned());
        self.shaped = Arc::new(asked.collect());
    }

    /// Ends with a source: its columns, as far as anybody asks for them, hold what they held before.
    fn end(&mut self, source: &Source, pins: &Pins) -> Result<(), Failure> {
        if let Some(mut columns) = self.columns.take() {
            pins.hold(&source.name, &mut columns)?;
            pins.remember(&source.name, &mut columns);
            self.noted.columns.insert(source.name.clone(), columns);
        }
        let listed = std::mem::take(&mut self.listed);
        if !listed.is_empty() {
            self.noted.other_columns.insert(source.name.clone(), listed);
        }
        Ok(())
    }

    /// Good and bad rows so far, of all sources.
    fn tally(&self) -> (u64, u64) {
        (self.rows.count(), self.noted.rejected_rows())
    }

    /// Keeps good rows; of bad ones where they were and why.
    fn keep(&mut self, judged: Vec<Judged>) -> Result<(), Failure> {
        judged
            .into_iter()
            .try_for_each(|judged| self.keep_piece(judged))
    }

    fn keep_piece(&mut self, judged: Judged) -> Result<(), Failure> {
        for record in judged.records() {
            self.rows.push_encoded(record)?;
        }
        self.noted.findings.merge(&judged.findings);
        self.noted.beyond_weight += judged.beyond_weight;
        if let Some(columns) = &mut self.columns {
            columns.add(judged.columns);
        }
        for row in judged.rejected {
            self.noted.reject(row);
        }
        Ok(())
    }
}

/// Takes records as rows of the version: keeps good ones, and of bad ones where they were and why. They wait until
/// there are enough of them to be judged on all cores, or where there is an analyser, to be asked about. One lot is
/// judged while the next is read.
#[derive(Debug)]
pub struct RowTake<'c, 's, 'e> {
    /// What is asked of a row.
    wanted: Wanted<'e>,
    /// Where it goes.
    collecting: &'c mut Collecting,
    /// Where records are judged while the next ones are read; none: they are judged before that.
    beside: Option<&'s Scope<'s, 'e>>,
    /// Those that are being judged there.
    judging: Option<ScopedJoinHandle<'s, Vec<Judged>>>,
}

impl<'c, 's, 'e> RowTake<'c, 's, 'e> {
    /// Takes nothing yet.
    pub fn new(wanted: Wanted<'e>, collecting: &'c mut Collecting) -> Self {
        Self {
            wanted,
            collecting,
            beside: None,
            judging: None,
        }
    }

    /// The same, with records that are judged while the next ones are read.
    fn beside(self, scope: &'s Scope<'s, 'e>) -> Self {
        // An analyser is asked about what waits, and no more of it waits than it is asked about.
        let beside = (!self.looks_ahead()).then_some(scope);
        Self { beside, ..self }
    }

    fn looks_ahead(&self) -> bool {
        self.wanted.screen.is_some_and(Screen::looks_ahead)
    }

    /// Takes the records that wait, all of them.
    ///
    /// # Errors
    /// Those of the scratch volume, and of the analyser.
    pub fn settle(&mut self) -> Result<(), Failure> {
        let before = self.judged();
        self.collecting.keep(before)?;
        let waiting = std::mem::take(&mut self.collecting.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        if let Some(screen) = self.wanted.screen.filter(|it| it.looks_ahead()) {
            screen.look_ahead(&waiting.texts(self.wanted))?;
        }
        self.collecting.keep(self.judge(waiting)())
    }

    /// Has the records that wait judged while others are read, once those before them are through.
    fn go_on(&mut self) -> Result<(), Failure> {
        let Some(scope) = self.beside else {
            return self.settle();
        };
        let before = self.judged();
        let waiting = std::mem::take(&mut self.collecting.waiting);
        self.judging = Some(scope.spawn(self.judge(waiting)));
        self.collecting.keep(before)
    }

    /// What judges these records.
    fn judge(&self, waiting: Waiting) -> impl FnOnce() -> Vec<Judged> + Send + use<'e> {
        let (wanted, share) = (self.wanted, self.collecting.share);
        let shaped = Arc::clone(&self.collecting.shaped);
        let shaped = self.collecting.columns.as_ref().map(|_| shaped);
        move || {
            waiting.judge(Judge {
                wanted,
                share,
                shaped: shaped.as_deref(),
            })
        }
    }

    /// What became of those that were being judged; waits for it.
    fn judged(&mut self) -> Vec<Judged> {
        self.judging.take().map(joined).unwrap_or_default()
    }
}

/// What a thread came to; a panic there is one here.
fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|problem| panic::resume_unwind(problem))
}

impl Take for RowTake<'_, '_, '_> {
    fn columns(&self) -> Option<Vec<&str>> {
        Some(self.wanted.columns())
    }

    fn dealing(&mut self) -> &mut Dealing {
        &mut self.collecting.dealing
    }

    fn hear_of(&mut self, columns: Vec<String>) {
        self.collecting.listed.extend(columns);
    }

    fn take(&mut self, raw: Raw<'_>, at: &dyn Fn(String) -> RejectedRow) -> Result<(), Failure> {
        let looks_ahead = self.looks_ahead();
        let waiting = &mut self.collecting.waiting;
        // An analyser is asked about texts of objects.
        let limits = if looks_ahead {
            waiting.push(Raw::Record(raw.record()), at(String::new()));
            ASKED
        } else {
            waiting.push(raw, at(String::new()));
            JUDGED
        };
        if waiting.is_full(limits) {
            self.go_on()
        } else {
            Ok(())
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
    /// What was made of the sources.
    pub transform: Option<TransformProvenance>,
    /// How often each type of personal data was found.
    pub findings: Counts,
    /// Rows that were left out and had no value in a column, by column.
    pub nulls: BTreeMap<String, u64>,
    /// Rows that were left out as duplicates.
    pub duplicates: u64,
    /// Good rows that were left out for their source's weight.
    pub beyond_weight: u64,
    /// The columns of each source.
    pub columns: BTreeMap<String, SourceColumns>,
    /// Names of all columns of each source's files that list them, also of those that nobody looks at.
    pub other_columns: BTreeMap<String, BTreeSet<String>>,
    /// Over the names and states of what was read, where these tell of a change.
    pub listing: Option<Digest>,
}

impl Collected {
    /// Which sources had no row, in words that follow others.
    fn empty_sources(&self, config: &BuildConfig) -> String {
        let is_empty = |name: &str| {
            let rows = self.columns.get(name).map_or(0, |seen| seen.rows);
            rows == 0 && self.rules.iter().all(|broken| broken.first.source != name)
        };
        let names = config.sources.iter().map(|source| source.name.as_str());
        let names: Vec<&str> = names.filter(|name| is_empty(name)).collect();
        match names.as_slice() {
            [] => String::new(),
            [name] => format!("; source {name} has no rows"),
            names => format!("; sources {} have no rows", names.join(", ")),
        }
    }

    /// The number of bad rows.
    pub fn rejected_rows(&self) -> u64 {
        self.rules.iter().map(|broken| broken.rows).sum()
    }

    /// Counts a bad row.
    pub fn reject(&mut self, row: RejectedRow) {
        let known = self.rules.iter().position(|broken| {
            let is_same = without_position(&broken.first.rule) == without_position(&row.rule);
            is_same && broken.first.source == row.source
        });
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
        // Rules name values and limits, so there may be many: what is above the limit counts under the last.
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

/// A rule without where in its line it is broken: ` (byte 7)`, ` (expected value, column 1)`.
pub fn without_position(rule: &str) -> &str {
    match rule.rsplit_once(" (") {
        Some((words, place)) if place.contains("byte ") || place.contains("column ") => words,
        _ => rule,
    }
}

/// Rules that are counted apart.
pub const MAXIMUM_RULES: usize = 1000;

/// What rows are made with.
#[derive(Debug)]
pub struct Tools<'a> {
    /// Who looks for personal data in them.
    pub screen: Option<&'a Screen>,
    /// How long they are.
    pub measured: Option<Measured<'a>>,
    /// What SQL over the sources may call.
    pub given: Given,
    /// What the sources' columns held in the version before.
    pub pins: Pins,
}

/// What was read of all sources.
#[derive(Debug)]
pub struct Gathered {
    /// Good rows.
    pub rows: Rows,
    /// What is noted.
    pub noted: Collected,
    /// Over the names and states of everything that there is to read, whichever part reads it.
    pub listing: Digest,
    /// Whether all of it has a state, which another content would change.
    pub is_told: bool,
}

/// Reads a part of every source, and makes of them what the SQL says where there is any.
///
/// # Errors
/// A source that is not there, can't be read, or holds other bytes than the build was planned for.
/// Bad rows are no error here, see [`judge`].
pub fn collect(
    config: &BuildConfig,
    part: Part,
    tools: Tools<'_>,
    scratch: &Scratch,
) -> Result<Gathered, Failure> {
    let mut collecting = Collecting::new(scratch, part);
    let nulls = Nulls::default();
    // What SQL returns has the format's names.
    let own_names = BTreeMap::new();
    let asked = Wanted {
        format: config.format,
        group_column: config.split.group_column.as_deref(),
        time_column: config.split.time_column.as_deref(),
        class_column: config.balance.as_ref().map(|it| it.column.as_str()),
        reward: config.reward,
        renamed: &own_names,
        screen: tools.screen,
        measured: tools.measured,
        nulls: Some(&nulls),
    };
    if config.transform.is_some() {
        let means = Means {
            given: tools.given,
            pins: &tools.pins,
        };
        transform::collect(config, means, asked, scratch, &mut collecting)?;
    } else {
        for source in &config.sources {
            let before = collecting.tally();
            let wanted = Wanted {
                renamed: &source.columns,
                ..asked
            };
            collecting.begin(source, &wanted.columns());
            let seen = thread::scope(|scope| {
                let mut take = RowTake::new(wanted, &mut collecting).beside(scope);
                let seen = read_source(config, source, scratch, &mut take)?;
                take.settle().map(|()| seen)
            })
            .map_err(|failure| failure.while_reading([source.name.as_str()].into_iter()))?;
            collecting.noted.provenance.extend(seen);
            collecting.end(source, &tools.pins)?;
            let (good, rejected) = collecting.tally();
            tracing::info!(
                source = source.name,
                good = good - before.0,
                rejected = rejected - before.1,
                "source read"
            );
        }
    }
    collecting.noted.nulls = nulls.into_counts();
    Ok(Gathered {
        rows: collecting.rows.finish()?,
        noted: collecting.noted,
        listing: collecting.dealing.listing(),
        is_told: collecting.dealing.is_told(),
    })
}

/// Looks at the names and states of all that there is to read, and reads none of it. None where they would not
/// tell of a change.
///
/// # Errors
/// See [`collect`].
pub fn look(config: &BuildConfig) -> Result<Option<Digest>, Failure> {
    let mut dealing = Dealing::new(Part::WHOLE);
    for source in &config.sources {
        if source.query.is_some() {
            return Ok(None);
        }
        if let Some(remote) = &source.remote {
            let listed = remote::open(config, source, remote)?.list()?;
            let is_one = listed.len() == 1;
            for found in listed {
                dealing.takes(source, &found.uri, found.state(), is_one);
            }
            continue;
        }
        let files = files(source)?;
        let is_one = files.len() == 1;
        for file in files {
            let state = state(source, &file.path);
            dealing.takes(source, &file.uri, state.as_deref(), is_one);
        }
    }
    Ok(dealing.is_told().then(|| dealing.listing()))
}

/// Reads one source, or this part's share of it: what was read of it.
///
/// # Errors
/// See [`collect`].
pub fn read_source(
    config: &BuildConfig,
    source: &Source,
    scratch: &Scratch,
    take: &mut dyn Take,
) -> Result<Vec<SourceProvenance>, Failure> {
    termination::note(&format!("while source {} was read", source.name));
    let seen = read_any(config, source, scratch, take);
    seen.map_err(|failure| failure.while_reading([source.name.as_str()].into_iter()))
}

fn read_any(
    config: &BuildConfig,
    source: &Source,
    scratch: &Scratch,
    take: &mut dyn Take,
) -> Result<Vec<SourceProvenance>, Failure> {
    if let Some(asked) = &source.query {
        // One part asks, in one transaction.
        if !take.dealing().takes_whole(source, &source.uri, None) {
            return Ok(Vec::new());
        }
        let seen = query::read(config, source, asked, &mut |line, record| {
            take.take(Raw::Record(record), &|rule| RejectedRow {
                source: source.name.clone(),
                file: None,
                line,
                rule,
            })
        })?;
        return Ok(vec![seen]);
    }
    match &source.remote {
        Some(remote) => {
            let shelf = remote::open(config, source, remote)?;
            fetch(source, &shelf, scratch, take)
        }
        None => read(source, take),
    }
}

/// Reads the files of a source, one after the other.
fn read(source: &Source, take: &mut dyn Take) -> Result<Vec<SourceProvenance>, Failure> {
    let mut provenance = Vec::new();
    let files = files(source)?;
    let is_one = files.len() == 1;
    for file in files {
        let state = state(source, &file.path);
        if !take
            .dealing()
            .takes(source, &file.uri, state.as_deref(), is_one)
        {
            continue;
        }
        let outcome = reader::read(source, &file, take);
        let (digest, size_bytes) = match (outcome, &source.digest) {
            (Ok(seen), _) => seen,
            // Bytes that the build was not planned for say nothing of the source.
            (Err(failure), Some(_)) if failure.code == ExitCode::BadData => {
                let seen = open(source, &file).ok().and_then(|file| hash(file).ok());
                match seen {
                    Some(seen) if source.digest.as_ref() != Some(&seen.0) => seen,
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
        provenance.push(SourceProvenance {
            name: source.name.clone(),
            uri: file.uri,
            digest,
            size_bytes,
            etag: None,
            query: None,
        });
    }
    Ok(provenance)
}

/// The state of a volume's file: its size and the time of its last change, which all pods see alike. Of another
/// one the digest that it was planned with.
fn state(source: &Source, path: &Path) -> Option<String> {
    if source.root.is_none() {
        return source.digest.as_ref().map(ToString::to_string);
    }
    let metadata = path.metadata().ok()?;
    let since = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("{} {}", metadata.len(), since.as_nanos()))
}

/// Reads what a source has on the network, one after the other.
fn fetch(
    source: &Source,
    shelf: &Shelf<'_>,
    scratch: &Scratch,
    take: &mut dyn Take,
) -> Result<Vec<SourceProvenance>, Failure> {
    let mut provenance = Vec::new();
    let listed = shelf.list()?;
    let is_one = listed.len() == 1;
    for found in listed {
        if !take
            .dealing()
            .takes(source, &found.uri, found.state(), is_one)
        {
            continue;
        }
        let opened = shelf.read(&found)?;
        let named = (source, &found);
        let (digest, size_bytes) = reader::read_stream(named, opened.body, scratch, take)?;
        provenance.push(SourceProvenance {
            name: source.name.clone(),
            uri: found.uri,
            digest,
            size_bytes,
            etag: opened.etag,
            query: None,
        });
    }
    Ok(provenance)
}

/// Whether the rows are good enough for a version.
///
/// # Errors
/// Too many bad rows or too few good ones, with numbers, limits and the rules that were broken; or a column
/// that a source does not have, where most of them are bad for that.
pub fn judge(config: &BuildConfig, collected: &Collected) -> Result<(), Failure> {
    judge_rows(config, collected).map_err(|failure| {
        let absent = absent(config, collected);
        let is_said = |row: &RejectedRow| {
            let said = absent.as_ref().map(|absent| absent.first);
            said.is_some_and(|said| said.source == row.source && said.rule == row.rule)
        };
        let rejected = collected.rejected.iter().filter(|row| !is_said(row));
        let rejected = rejected.cloned().collect();
        let message = absent.map_or_else(|| failure.message.clone(), |absent| absent.message);
        Failure {
            message,
            rejected,
            ..failure
        }
    })
}

fn judge_rows(config: &BuildConfig, collected: &Collected) -> Result<(), Failure> {
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
            "{good} of {total} rows are {kept}, spec.validation.minimumRows asks for {minimum}{rules}{}; add rows or lower the limit",
            collected.empty_sources(config)
        )));
    }
    Ok(())
}
