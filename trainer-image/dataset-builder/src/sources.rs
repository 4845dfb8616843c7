//! All sources, line by line: good rows, and bad ones counted and named.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use graftwork_contract::dataset::{
    BuildConfig, NAMED_REJECTED_ROWS, RejectedRow, Source, SourceProvenance,
};
use graftwork_privacy::Counts;

use crate::config;
use crate::failure::Failure;
use crate::lines::{Line, Lines, MAXIMUM_LINE_BYTES};
use crate::privacy::Screen;
use crate::row::{self, GoodRow, Wanted};

/// How many different rules a message names.
const NAMED_RULES: usize = 3;

/// What the sources hold.
#[derive(Debug, Default)]
pub struct Collected {
    /// Good rows, in the order of the sources.
    pub good: Vec<GoodRow>,
    /// The first bad rows.
    pub rejected: Vec<RejectedRow>,
    /// How often each rule was broken, in the order of first occurrence.
    pub rules: Vec<BrokenRule>,
    /// The sources as they were read.
    pub provenance: Vec<SourceProvenance>,
    /// How often each type of personal data was found.
    pub findings: Counts,
}

/// A rule that rows of a source broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenRule {
    /// Name of the source.
    pub source: String,
    /// The rule.
    pub rule: String,
    /// How many rows.
    pub rows: u64,
    /// The first line.
    pub first_line: u64,
}

impl Collected {
    /// The number of bad rows.
    pub fn rejected_rows(&self) -> u64 {
        self.rules.iter().map(|broken| broken.rows).sum()
    }

    fn reject(&mut self, source: &str, line: u64, rule: String) {
        if self.rejected.len() < NAMED_REJECTED_ROWS {
            self.rejected.push(RejectedRow {
                source: source.to_owned(),
                line,
                rule: rule.clone(),
            });
        }
        let known = self
            .rules
            .iter()
            .position(|broken| broken.rule == rule && broken.source == source);
        if known.is_none() && self.rules.len() < MAXIMUM_RULES {
            self.rules.push(BrokenRule {
                source: source.to_owned(),
                rule,
                rows: 1,
                first_line: line,
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
                format!(
                    "source {} line {}: {} ({} {rows})",
                    broken.source, broken.first_line, broken.rule, broken.rows
                )
            })
            .collect();
        if more > 0 {
            text.push(format!("and {more} more rules"));
        }
        text.join("; ")
    }
}

/// Rules that are counted apart.
const MAXIMUM_RULES: usize = 1000;

/// Reads every source.
///
/// # Errors
/// A source that is not there, can't be read, or holds other bytes than the build was planned for.
/// Bad rows are no error here, see [`judge`].
pub fn collect(config: &BuildConfig, screen: Option<&Screen>) -> Result<Collected, Failure> {
    let mut collected = Collected::default();
    let wanted = Wanted {
        format: config.format,
        group_column: config.split.group_column.as_deref(),
        screen,
    };
    for source in &config.sources {
        read(source, wanted, &mut collected)?;
        tracing::info!(
            source = source.name,
            good = collected.good.len(),
            rejected = collected.rejected_rows(),
            "source read"
        );
    }
    Ok(collected)
}

fn read(source: &Source, wanted: Wanted<'_>, collected: &mut Collected) -> Result<(), Failure> {
    let name = &source.name;
    let failed = |error: std::io::Error| {
        let message = format!("source {name} ({}) can't be read: {error}", source.uri);
        Failure::unavailable(message)
    };
    let path = Path::new(&source.path);
    let metadata = path.metadata().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
            let message = format!("source {name}: there is no file at {}", source.uri);
            Failure::source_not_found(message)
        }
        _ => failed(error),
    })?;
    if metadata.is_dir() {
        // It does not become a file by waiting.
        return Err(Failure::bad_config(format!(
            "source {name}: {} is a folder; name a JSONL file, and a source for each file",
            source.uri
        )));
    }
    if !metadata.is_file() {
        return Err(Failure::source_not_found(format!(
            "source {name}: {} is not a file; name a JSONL file",
            source.uri
        )));
    }
    let file = File::open(path).map_err(failed)?;
    let mut lines = Lines::new(BufReader::with_capacity(1 << 18, file));
    while let Some((number, line)) = lines.next_line().map_err(failed)? {
        let parsed = match line {
            Line::Whole(line) if line.trim_ascii().is_empty() => continue,
            Line::Whole(line) => row::parse(line, wanted, &mut collected.findings),
            Line::TooLong => Err(format!("is longer than {MAXIMUM_LINE_BYTES} bytes")),
        };
        match parsed {
            Ok(good) => collected.good.push(good),
            Err(rule) => collected.reject(name, number, rule),
        }
    }
    let (digest, size_bytes) = lines.finish();
    if let Some(planned) = source.digest.as_ref().filter(|planned| **planned != digest) {
        return Err(Failure::source_changed(format!(
            "source {name} ({}) changed while the build started: it holds {digest}, the build was planned for {planned}",
            source.uri
        )));
    }
    collected.provenance.push(SourceProvenance {
        name: name.clone(),
        uri: source.uri.clone(),
        digest,
        size_bytes,
    });
    Ok(())
}

/// Whether the rows are good enough for a version.
///
/// # Errors
/// Too many bad rows or too few good ones, with numbers, limits and the rules that were broken.
pub fn judge(config: &BuildConfig, collected: &Collected) -> Result<(), Failure> {
    let validation = &config.validation;
    let (good, rejected) = (collected.good.len() as u64, collected.rejected_rows());
    let total = good + rejected;
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
        return Err(Failure::bad_data(format!(
            "{good} of {total} rows are valid, spec.validation.minimumRows asks for {minimum}{rules}; add rows or lower the limit"
        )));
    }
    Ok(())
}
