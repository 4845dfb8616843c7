//! The one error type of a trainer's end: an exit code and a message for a person.

pub use graftwork_contract::causes::causes;
use graftwork_contract::exit::ExitCode;

/// Why a trainer ends without its result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What the process ends with.
    pub code: ExitCode,
    /// What happened, with field, value, limit and remedy; no data.
    pub message: String,
}

impl Failure {
    fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// The configuration or the base model can't be used.
    pub fn bad_config(message: impl Into<String>) -> Self {
        Self::new(ExitCode::BadConfig, message)
    }

    /// The data can't be used.
    pub fn bad_data(message: impl Into<String>) -> Self {
        Self::new(ExitCode::BadData, message)
    }

    /// The loss is no number any more.
    pub fn diverged(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Diverged, message)
    }

    /// The store did not answer.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Unavailable, message)
    }

    /// A defect of ours.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Bug, message)
    }

    /// Stopped on request.
    pub fn checkpointed(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Checkpointed, message)
    }

    /// A newer attempt has taken over.
    pub fn fenced(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Fenced, message)
    }

    /// The condition reason of the TrainingRun that this end stands for.
    pub fn reason(&self) -> &'static str {
        reason(self.code)
    }
}

/// The condition reason of a TrainingRun whose trainer ended with `code`.
pub const fn reason(code: ExitCode) -> &'static str {
    match code {
        ExitCode::Done => "Completed",
        ExitCode::BadConfig => "InvalidSpec",
        ExitCode::BadData => "DataError",
        ExitCode::Diverged => "Diverged",
        ExitCode::Unavailable | ExitCode::Checkpointed | ExitCode::Fenced => "Restarting",
        ExitCode::Bug => "InternalError",
    }
}
