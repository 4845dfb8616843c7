//! What a trainer leaves behind however it ends: the termination message.

use std::path::Path;

use graftwork_contract::Digest;
use graftwork_contract::exit::ExitCode;
use graftwork_contract::pod::TERMINATION_BYTES;
use graftwork_contract::proto::trainer::v1::Progress;
use graftwork_contract::run::RunSummary;

use crate::failure::{Failure, reason};

/// The summary of an end at this progress.
pub fn summary(outcome: &Result<Digest, Failure>, progress: &Progress) -> RunSummary {
    let (reason, message, digest) = match outcome {
        Ok(digest) => {
            let message = format!("trained {} steps", progress.step);
            (reason(ExitCode::Done), message, Some(digest.clone()))
        }
        Err(failure) => (failure.reason(), failure.message.clone(), None),
    };
    RunSummary {
        reason: reason.to_owned(),
        message,
        step: progress.step,
        total_steps: progress.total_steps,
        checkpoint_step: (progress.checkpoint_saved_unix_seconds > 0)
            .then_some(progress.checkpoint_step),
        digest,
    }
}

/// JSON of at most [`TERMINATION_BYTES`]: a message that is too long loses its end.
pub fn termination_message(summary: &RunSummary) -> String {
    let mut summary = summary.clone();
    loop {
        let text = serde_json::to_string(&summary).unwrap_or_default();
        let excess = text.len().saturating_sub(TERMINATION_BYTES);
        if excess == 0 || summary.message.is_empty() {
            return text;
        }
        // An escape takes up to six bytes for one, so this may take more than one round.
        let keep = summary
            .message
            .len()
            .saturating_sub(excess.div_ceil(6).max(4));
        let end = summary.message.floor_char_boundary(keep);
        summary.message.truncate(end);
    }
}

/// Writes the termination message. A failure to do so is only logged: the exit code still tells.
pub fn write_termination(path: &Path, summary: &RunSummary) {
    if let Err(error) = std::fs::write(path, termination_message(summary)) {
        tracing::warn!(path = %path.display(), %error, "cannot write the termination message");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_and_stays_json() {
        for filler in ["x", "é", "\"", "\u{1}"] {
            let failure = Failure::bad_data(filler.repeat(9000));
            let summary = summary(&Err(failure), &Progress::default());
            let text = termination_message(&summary);
            assert!(text.len() <= TERMINATION_BYTES, "{} bytes", text.len());
            let parsed: RunSummary = serde_json::from_str(&text).unwrap();
            assert_eq!(parsed.reason, "DataError");
            assert!(
                parsed.message.len() > 600,
                "{filler:?}: {}",
                parsed.message.len()
            );
        }
    }

    #[test]
    fn a_summary_says_where_the_run_stood() {
        let progress = Progress {
            step: 7,
            total_steps: 9,
            checkpoint_step: 5,
            checkpoint_saved_unix_seconds: 1,
            ..Progress::default()
        };
        let digest = Digest::of(b"adapter");
        let done = summary(&Ok(digest.clone()), &progress);
        assert_eq!(
            (done.reason.as_str(), done.step, done.total_steps),
            ("Completed", 7, 9)
        );
        assert_eq!((done.checkpoint_step, done.digest), (Some(5), Some(digest)));
        let never_saved = summary(&Err(Failure::bug("x")), &Progress::default());
        assert_eq!(
            (never_saved.reason.as_str(), never_saved.checkpoint_step),
            ("InternalError", None)
        );
    }
}
