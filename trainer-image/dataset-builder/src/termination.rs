//! The summary that a build leaves as the container's termination message.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use graftwork_contract::dataset::{BuildSummary, PartManifest, UNDER_WAY};
use graftwork_contract::pod::TERMINATION_BYTES;

use crate::build::Built;
use crate::dealing::Part;

/// The summary of a build that ended with a version.
pub fn succeeded(built: &Built) -> BuildSummary {
    let record = &built.record;
    let change = if built.created { "new" } else { "unchanged" };
    BuildSummary {
        reason: "Completed".to_owned(),
        message: format!(
            "version {} ({change}): {} rows to train, {} to validate, {} to test, {} rejected",
            record.version,
            record.rows.train,
            record.rows.validation,
            record.rows.test,
            record.rows.rejected
        ),
        version: Some(record.version),
        digest: Some(record.digest.clone()),
        rows: Some(record.rows),
        rejected: record.rejected.clone(),
    }
}

/// The summary of a part; none was needed where the build came to its end before.
pub fn part_made(part: Part, made: Option<&PartManifest>) -> BuildSummary {
    let rows = made.map_or_else(
        || "the build is done already".to_owned(),
        |made| {
            let rejected: u64 = made.rules.iter().map(|rule| rule.rows).sum();
            format!("{} good rows, {rejected} rejected", made.good)
        },
    );
    BuildSummary {
        reason: "Completed".to_owned(),
        message: format!(
            "part {} of {}: {rows}",
            u64::from(part.index) + 1,
            part.count
        ),
        version: None,
        digest: None,
        rows: None,
        rejected: Vec::new(),
    }
}

/// Where notes go.
static FILE: OnceLock<PathBuf> = OnceLock::new();

/// Has [`note`] write to this file, which the end of the build writes over.
pub fn begin(path: &Path) {
    let _ = FILE.set(path.to_path_buf());
}

/// Leaves word of what the build is at, for who finds it killed: it has no last words then.
pub fn note(doing: &str) {
    let Some(path) = FILE.get() else {
        return;
    };
    let summary = BuildSummary {
        reason: UNDER_WAY.to_owned(),
        message: doing.to_owned(),
        version: None,
        digest: None,
        rows: None,
        rejected: Vec::new(),
    };
    if let Err(error) = write(path, summary) {
        tracing::warn!(%error, path = %path.display(), "cannot write what the build is at");
    }
}

/// Writes `summary`, shortened to what the kubelet keeps: first named rows go, then the message's
/// end.
pub fn write(path: &Path, summary: BuildSummary) -> io::Result<()> {
    std::fs::write(path, encode(summary)?)
}

fn encode(mut summary: BuildSummary) -> serde_json::Result<Vec<u8>> {
    loop {
        let bytes = serde_json::to_vec(&summary)?;
        if bytes.len() <= TERMINATION_BYTES {
            return Ok(bytes);
        }
        if summary.rejected.pop().is_some() {
            continue;
        }
        if summary.message.is_empty() {
            return Ok(bytes);
        }
        let excess = bytes.len() - TERMINATION_BYTES;
        let kept = summary.message.len().saturating_sub(excess);
        let kept = summary.message.floor_char_boundary(kept);
        summary.message.truncate(kept);
    }
}

#[cfg(test)]
mod tests {
    use graftwork_contract::dataset::RejectedRow;

    use super::*;

    #[test]
    fn a_summary_fits_what_the_kubelet_keeps() {
        let row = RejectedRow {
            source: "s".repeat(63),
            file: Some("f".repeat(200)),
            line: u64::MAX,
            rule: "messages[100].content is not a string".to_owned(),
        };
        let summary = BuildSummary {
            reason: "DataError".to_owned(),
            message: "é\n".repeat(2000),
            version: None,
            digest: None,
            rows: None,
            rejected: vec![row; 20],
        };
        let bytes = encode(summary).unwrap();
        assert!(bytes.len() <= TERMINATION_BYTES);
        let back: BuildSummary = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(back.reason, "DataError");
        assert!(back.message.len() > 1000);
    }
}
