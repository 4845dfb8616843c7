//! Exit codes of the Jobs: the only source of the Job's `podFailurePolicy` and of the operator's
//! retry rules.

use serde::{Deserialize, Serialize};

/// Why a Job's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub enum ExitCode {
    /// Everything was done and the result is in the store.
    Done,
    /// The configuration or the base model can't be used (sysexits `EX_USAGE`).
    BadConfig,
    /// The data can't be used (`EX_DATAERR`).
    BadData,
    /// Something that is trained or its loss is no finite number any more, or the loss exploded.
    Diverged,
    /// The store or the network did not answer; worth another try (`EX_UNAVAILABLE`).
    Unavailable,
    /// A defect of ours (`EX_SOFTWARE`).
    Bug,
    /// Stopped on request after a checkpoint; not a failure (`EX_TEMPFAIL`).
    Checkpointed,
    /// A newer attempt of the same run has taken over.
    Fenced,
}

/// What the operator does after an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterExit {
    /// Nothing: the run is complete.
    Complete,
    /// The run has failed; another attempt would end the same way.
    Fail,
    /// Another attempt, which costs a retry.
    Retry,
    /// Another attempt, which costs nothing.
    Again,
}

impl ExitCode {
    /// Every code, in ascending order.
    pub const ALL: [Self; 8] = [
        Self::Done,
        Self::BadConfig,
        Self::BadData,
        Self::Diverged,
        Self::Unavailable,
        Self::Bug,
        Self::Checkpointed,
        Self::Fenced,
    ];

    /// The number that the process ends with.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::BadConfig => 64,
            Self::BadData => 65,
            Self::Diverged => 66,
            Self::Unavailable => 69,
            Self::Bug => 70,
            Self::Checkpointed => 75,
            Self::Fenced => 76,
        }
    }

    /// The meaning of a number, where it is one of ours.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| i32::from(known.code()) == code)
    }

    /// What the operator does next.
    pub const fn after(self) -> AfterExit {
        match self {
            Self::Done => AfterExit::Complete,
            Self::BadConfig | Self::BadData | Self::Diverged | Self::Fenced => AfterExit::Fail,
            Self::Unavailable | Self::Bug => AfterExit::Retry,
            Self::Checkpointed => AfterExit::Again,
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_its_number() {
        for code in ExitCode::ALL {
            assert_eq!(ExitCode::from_code(i32::from(code.code())), Some(code));
        }
        assert_eq!(ExitCode::from_code(137), None);
    }
}
