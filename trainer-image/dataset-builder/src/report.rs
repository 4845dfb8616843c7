//! A version's numbers for people, and where it comes from: one HTML file that loads nothing, with charts as SVG. It
//! says nothing that `statistics.json` and `manifest.json` do not, and no time of the build: the same rows of the
//! same sources have the same report.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use graftwork_contract::Digest;
use graftwork_contract::dataset::{Provenance, SourceProvenance};

use crate::pins::masked;
use crate::statistics::{SplitStatistics, Statistics};

/// File name in the version's folder.
pub const REPORT_FILE: &str = "report.html";
/// Pixels of the longest bar.
const WIDTH: u64 = 360;
/// Files and queries that are named; the manifest has all.
const NAMED_SOURCES: usize = 50;
/// Pixels of a row of a chart.
const ROW: u64 = 20;

const HEAD: &str = "<!doctype html>
<html lang=\"en\"><head><meta charset=\"utf-8\">
<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">
<meta name=\"viewport\" content=\"width=device-width\">
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222; }
h1, h2 { font-weight: 600; } h2 { margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: right; }
td:first-child, th:first-child { text-align: left; } th { border-bottom: 1px solid #bbb; font-weight: 600; }
svg { display: block; font: 12px system-ui, sans-serif; } rect { fill: #4477aa; } code { font-size: 12px; }
figure { margin: 0 0 1rem; } figcaption { color: #555; }
</style>
";

/// The report.
pub fn report(statistics: &Statistics, provenance: &Provenance, digest: &Digest) -> String {
    let mut html = String::from(HEAD);
    let name = escaped(&statistics.dataset);
    let _ = write!(
        html,
        "<title>{name}</title></head><body>\n<h1>{name}</h1>\n<p><code>{digest}</code></p>\n"
    );
    if let Some(description) = &provenance.description {
        let _ = writeln!(html, "<p>{}</p>", escaped(description));
    }
    if let Some(classification) = statistics.classification {
        let _ = writeln!(html, "<p>Classification: {}</p>", classification.name());
    }
    html.push_str(&rows(statistics));
    for (name, split) in statistics
        .named_splits()
        .filter(|(_, split)| split.rows > 0)
    {
        let _ = write!(html, "<h2>{name}</h2>\n{}", charts(split));
    }
    if !statistics.findings.is_empty() {
        html.push_str("<h2>Personal data</h2>\n");
        html.push_str(&chart("Findings by type", &labelled(&statistics.findings)));
    }
    if !statistics.nulls.is_empty() {
        html.push_str("<h2>Values that are not there</h2>\n");
        html.push_str(&chart(
            "Rows left out, by column",
            &labelled(&statistics.nulls),
        ));
    }
    for (source, nulls) in &statistics.source_nulls {
        let missing: Vec<(String, u64)> = nulls
            .iter()
            .filter(|(_, rows)| **rows > 0)
            .map(|(column, rows)| (column.clone(), *rows))
            .collect();
        if !missing.is_empty() {
            let title = format!("Rows of source {source} without a value, by column");
            html.push_str(&chart(&title, &missing));
        }
    }
    if !statistics.rejected.is_empty() {
        html.push_str("<h2>Rows left out</h2>\n<table><tr><th>rule</th><th>rows</th></tr>\n");
        for (rule, rows) in &statistics.rejected {
            let _ = writeln!(html, "<tr><td>{}</td><td>{rows}</td></tr>", escaped(rule));
        }
        html.push_str("</table>\n");
    }
    html.push_str(&lineage(provenance));
    html.push_str("</body></html>\n");
    html
}

/// Where the rows come from, and what was done with them.
fn lineage(provenance: &Provenance) -> String {
    let mut html = String::from(
        "<h2>Where it comes from</h2>\n<table><tr><th>source</th><th>file, object or query</th><th>bytes</th><th>state</th><th>SHA-256</th></tr>\n",
    );
    for source in provenance.sources.iter().take(NAMED_SOURCES) {
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td><code>{}</code></td></tr>",
            escaped(&source.name),
            escaped(&masked(&source.uri)),
            source.size_bytes,
            escaped(&state(source)),
            source.digest.short()
        );
    }
    html.push_str("</table>\n");
    let more = provenance.sources.len().saturating_sub(NAMED_SOURCES);
    if more > 0 {
        let _ = writeln!(html, "<p>And {more} more, which manifest.json names.</p>");
    }
    if let Some(transform) = &provenance.transform {
        let sql = escaped(&masked(&transform.text));
        let _ = writeln!(html, "<p>SQL: <code>{sql}</code></p>");
    }
    if let Some(tokenizer) = &provenance.tokenizer {
        let (uri, digest) = (escaped(&tokenizer.uri), tokenizer.digest.short());
        let _ = writeln!(html, "<p>Tokens of {uri}, <code>{digest}</code></p>");
    }
    if let Some(privacy) = &provenance.privacy {
        let columns: Vec<String> = privacy.columns.iter().map(|name| masked(name)).collect();
        let columns = escaped(&columns.join(", "));
        let _ = writeln!(
            html,
            "<p>Personal data: {:?} in {columns}</p>",
            privacy.mode
        );
    }
    let after = match provenance.parent {
        Some(version) => format!(", after version {version}"),
        None => String::new(),
    };
    let _ = writeln!(
        html,
        "<p>Built by release {}{after}</p>",
        provenance.code_version
    );
    html
}

/// What a server calls what was read, or when a database was asked what.
fn state(source: &SourceProvenance) -> String {
    match (&source.query, &source.etag) {
        (Some(query), _) => format!(
            "{} rows of query {} at {}",
            query.rows,
            query.digest.short(),
            query.snapshot_time
        ),
        (None, Some(etag)) => etag.clone(),
        (None, None) => String::new(),
    }
}

fn rows(statistics: &Statistics) -> String {
    let mut html = String::from(
        "<table><tr><th>split</th><th>rows</th><th>characters</th><th>words</th><th>longest row</th><th>also in train</th></tr>\n",
    );
    for (name, split) in statistics.named_splits() {
        let leaked = match name {
            "validation" => statistics.leakage.validation.to_string(),
            "test" => statistics.leakage.test.to_string(),
            _ => String::new(),
        };
        let _ = writeln!(
            html,
            "<tr><td>{name}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{leaked}</td></tr>",
            split.rows, split.characters, split.words, split.longest
        );
    }
    let _ = writeln!(
        html,
        "</table>\n<p>Left out: {} rows that break a rule, {} duplicates, {} for their source's weight.</p>",
        statistics.rows.rejected, statistics.rows.duplicates, statistics.rows.beyond_weight
    );
    html
}

fn charts(split: &SplitStatistics) -> String {
    let lengths: Vec<(String, u64)> = split
        .lengths
        .iter()
        .map(|(below, rows)| (format!("below {below}"), *rows))
        .collect();
    let mut html = chart("Rows by characters", &lengths);
    let columns: Vec<(String, u64)> = split
        .columns
        .iter()
        .map(|(name, characters)| ((*name).to_owned(), *characters))
        .collect();
    html.push_str(&chart("Characters by column", &columns));
    if !split.token_lengths.is_empty() {
        let lengths: Vec<(String, u64)> = split
            .token_lengths
            .iter()
            .map(|(below, rows)| (format!("below {below}"), *rows))
            .collect();
        let title = format!(
            "Rows by tokens: {} in all, {} in the longest row",
            split.tokens, split.longest_tokens
        );
        html.push_str(&chart(&title, &lengths));
    }
    if !split.languages.is_empty() {
        let languages: Vec<(String, u64)> = split
            .languages
            .iter()
            .map(|(code, rows)| ((*code).to_owned(), *rows))
            .collect();
        html.push_str(&chart("Rows looked at, by likely language", &languages));
    }
    if !split.classes.is_empty() {
        html.push_str(&chart("Rows by class", &labelled(&split.classes)));
    }
    html
}

fn labelled(counts: &BTreeMap<String, u64>) -> Vec<(String, u64)> {
    counts
        .iter()
        .map(|(name, count)| (name.clone(), *count))
        .collect()
}

/// Horizontal bars with their labels and numbers.
fn chart(title: &str, bars: &[(String, u64)]) -> String {
    let most = bars
        .iter()
        .map(|(_, count)| *count)
        .max()
        .unwrap_or(0)
        .max(1);
    let height = ROW * bars.len() as u64;
    let mut svg = format!(
        "<figure><figcaption>{}</figcaption>\n<svg width=\"{}\" height=\"{height}\" role=\"img\" aria-label=\"{}\">\n",
        escaped(title),
        WIDTH + 340,
        escaped(title)
    );
    for (index, (label, count)) in bars.iter().enumerate() {
        let top = ROW * index as u64;
        // The product of a count and a few pixels fits twice over.
        let width = (u128::from(*count) * u128::from(WIDTH) / u128::from(most)) as u64;
        let _ = writeln!(
            svg,
            "<text x=\"190\" y=\"{}\" text-anchor=\"end\">{}</text><rect x=\"200\" y=\"{}\" width=\"{width}\" height=\"14\"/><text x=\"{}\" y=\"{}\">{count}</text>",
            top + 14,
            escaped(label),
            top + 3,
            206 + width,
            top + 14
        );
    }
    svg.push_str("</svg></figure>\n");
    svg
}

/// A text within HTML.
fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            letter if letter.is_control() => html.push(' '),
            letter => html.push(letter),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use graftwork_contract::dataset::{
        Classification, Leakage, Privacy, PrivacyMode, QueryProvenance, RowCounts,
        TokenizerProvenance, TransformProvenance,
    };

    use super::*;
    use crate::row::tests_support::text_row;

    fn source(uri: &str) -> SourceProvenance {
        SourceProvenance {
            name: "faq".to_owned(),
            uri: uri.to_owned(),
            digest: Digest::of(b"bytes"),
            size_bytes: 4711,
            etag: Some("0x8D<".to_owned()),
            query: None,
        }
    }

    fn provenance() -> Provenance {
        Provenance {
            description: None,
            sources: vec![source("pvc://text/of-ann@example.com.jsonl")],
            code_version: "7.8.9".to_owned(),
            privacy: None,
            tokenizer: None,
            transform: None,
            spec_digest: None,
            listing: None,
            schemas: Vec::new(),
            parent: None,
            created_time: "2026-11-20T01:00:00Z".to_owned(),
        }
    }

    #[test]
    fn lineage_says_what_was_read_and_done_and_not_when_it_was_built() {
        let html = report(&statistics(), &provenance(), &Digest::of(b"rows"));
        let short = Digest::of(b"bytes").short().to_owned();
        for words in [
            "<td>pvc://text/[EMAIL]</td><td>4711</td><td>0x8D&lt;</td>",
            short.as_str(),
            "Built by release 7.8.9</p>",
        ] {
            assert!(html.contains(words), "{words}: {html}");
        }
        assert!(!html.contains("2026-11-20"), "{html}");
        let mut provenance = provenance();
        provenance.sources = vec![source("s3://corpus/a.jsonl"); 53];
        provenance.sources[0].query = Some(QueryProvenance {
            digest: Digest::of(b"SELECT 1"),
            snapshot_time: "2026-11-19T00:00:00Z".to_owned(),
            rows: 12,
        });
        provenance.parent = Some(4);
        provenance.privacy = Some(Privacy {
            mode: PrivacyMode::Redact,
            columns: vec!["prompt".to_owned(), "text".to_owned()],
            analyzer: None,
        });
        provenance.tokenizer = Some(TokenizerProvenance {
            uri: "pvc://models/base".to_owned(),
            digest: Digest::of(b"tokenizer"),
        });
        provenance.transform = Some(TransformProvenance {
            digest: Digest::of(b"sql"),
            text: "SELECT a < b AS text".to_owned(),
            now: "2026-11-20T00:00:00Z".to_owned(),
        });
        let html = report(&statistics(), &provenance, &Digest::of(b"rows"));
        let asked = format!("12 rows of query {}", Digest::of(b"SELECT 1").short());
        for words in [
            asked.as_str(),
            "And 3 more",
            "after version 4</p>",
            "Redact in prompt, text</p>",
            "Tokens of pvc://models/base",
            "<code>SELECT a &lt; b AS text</code>",
        ] {
            assert!(html.contains(words), "{words}: {html}");
        }
        assert_eq!(html.matches("s3://corpus/a.jsonl").count(), 50);
        assert!(!html.contains("2026-11-20"), "{html}");
    }

    fn statistics() -> Statistics {
        let mut row = text_row("a text");
        row.class = Some("<script>alert('x')</script>".to_owned());
        let mut train = crate::statistics::tests_support::of([row].iter(), false);
        train.measure(31, 1);
        train.note_language("swe", 1);
        Statistics {
            dataset: "topics".to_owned(),
            classification: Some(Classification::Restricted),
            rows: RowCounts {
                rejected: 3,
                duplicates: 4,
                ..RowCounts::default()
            },
            leakage: Leakage {
                validation: 0,
                test: 5,
            },
            splits: [
                train,
                SplitStatistics::default(),
                SplitStatistics::default(),
            ],
            findings: BTreeMap::from([("email".to_owned(), 211)]),
            rejected: vec![("prompt is missing".to_owned(), 3)],
            nulls: BTreeMap::from([("completion".to_owned(), 17)]),
            source_nulls: BTreeMap::from([(
                "faq".to_owned(),
                BTreeMap::from([("region".to_owned(), 23), ("id".to_owned(), 0)]),
            )]),
        }
    }

    #[test]
    fn the_report_has_every_number_and_loads_nothing() {
        let html = report(&statistics(), &provenance(), &Digest::of(b"rows"));
        for words in [
            "<h1>topics</h1>",
            "<p>Classification: Restricted</p>",
            Digest::of(b"rows").as_str(),
            "3 rows that break a rule, 4 duplicates",
            "<td>5</td></tr>",
            "below 8",
            ">211</text>",
            "<td>prompt is missing</td><td>3</td>",
            ">17</text>",
            "source faq without a value",
            ">23</text>",
            "31 in the longest row",
            ">swe</text>",
        ] {
            assert!(html.contains(words), "{words}: {html}");
        }
        for loads in [
            "http://", "https://", "src=", "href=", "url(", "@import", "<script",
        ] {
            assert!(!html.contains(loads), "{loads}");
        }
    }

    #[test]
    fn a_description_is_a_text_and_where_there_is_none_nothing_stands() {
        let described = Provenance {
            description: Some("What <b>we</b> know".to_owned()),
            ..provenance()
        };
        let said = report(&statistics(), &described, &Digest::of(b""));
        assert!(
            said.contains("<p>What &lt;b&gt;we&lt;/b&gt; know</p>"),
            "{said}"
        );
        let unsaid = report(&statistics(), &provenance(), &Digest::of(b""));
        assert!(!unsaid.contains("<p></p>"), "{unsaid}");
    }

    #[test]
    fn names_of_classes_are_texts_and_never_markup() {
        let html = report(&statistics(), &provenance(), &Digest::of(b"rows"));
        assert!(
            html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"),
            "{html}"
        );
    }

    #[test]
    fn every_tag_that_opens_is_closed() {
        let html = report(&statistics(), &provenance(), &Digest::of(b"rows"));
        for tag in [
            "html", "head", "body", "style", "table", "tr", "td", "th", "svg", "text", "figure",
            "h2", "p", "code",
        ] {
            let opens = html.matches(&format!("<{tag}>")).count()
                + html.matches(&format!("<{tag} ")).count();
            assert_eq!(opens, html.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn the_longest_bar_is_as_wide_as_the_chart_whatever_its_count() {
        let svg = chart("x", &[("a".to_owned(), u64::MAX), ("b".to_owned(), 0)]);
        assert!(
            svg.contains("width=\"360\"") && svg.contains("width=\"0\""),
            "{svg}"
        );
        assert!(chart("x", &[]).contains("height=\"0\""));
    }
}
