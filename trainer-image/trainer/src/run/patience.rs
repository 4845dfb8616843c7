//! A store that fails for a moment ends no attempt.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use graftwork_artifacts::{Category, Error as StoreError};
use graftwork_contract::exit::ExitCode;

use crate::checkpoint::CheckpointError;
use crate::clock;
use crate::failure::Failure;

/// Pauses between tries. What takes longer ends the attempt with exit code 69, and the
/// operator starts another one, perhaps elsewhere.
pub const PAUSES: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// When the call that is under way began. A process runs one attempt, which asks the store one thing at a time.
static UNDER_WAY: Mutex<Option<Instant>> = Mutex::new(None);

/// How long the call that is under way has taken; none where there is none.
pub fn waiting() -> Option<Duration> {
    let began = *UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
    began.map(clock::since)
}

/// Makes a call that [`waiting`] tells of.
pub fn watched<T>(call: impl FnOnce() -> T) -> T {
    let note = |began| {
        let mut under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *under_way, began)
    };
    let outer = note(Some(clock::monotonic()));
    let outcome = call();
    note(outer);
    outcome
}

/// A failure of which the volume may be the cause.
pub trait MayPass: Display {
    /// Whether the same call may succeed later.
    fn may_pass(&self) -> bool;
}

impl MayPass for CheckpointError {
    fn may_pass(&self) -> bool {
        self.is_transient()
    }
}

impl MayPass for StoreError {
    fn may_pass(&self) -> bool {
        self.category() == Category::Transient
    }
}

impl MayPass for Failure {
    fn may_pass(&self) -> bool {
        self.code == ExitCode::Unavailable
    }
}

/// Repeats a call of the beginning of an attempt as [`tried`] does. Nothing is trained yet, and who is asked to stop
/// then leaves at once.
///
/// # Errors
/// Those of the last try.
pub fn read<T, E: MayPass>(call: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    tried(&PAUSES, &|| false, call)
}

/// Repeats `call` while its failure is the volume's, once after each pause; a stop request ends the
/// pauses.
///
/// # Errors
/// Those of the last try.
pub fn tried<T, E: MayPass>(
    pauses: &[Duration],
    is_stopped: &dyn Fn() -> bool,
    mut call: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    for pause in pauses {
        match watched(&mut call) {
            Err(error) if error.may_pass() => {
                tracing::warn!(%error, ?pause, "the store does not do its part, trying again");
                clock::rest(*pause, is_stopped);
            }
            outcome => return outcome,
        }
    }
    watched(call)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use graftwork_artifacts::Error;

    use super::*;

    fn full() -> CheckpointError {
        CheckpointError::Store(Error::Io {
            action: "write",
            path: PathBuf::from("x"),
            source: io::ErrorKind::StorageFull.into(),
        })
    }

    #[test]
    fn what_the_volume_does_not_do_is_tried_again_and_nothing_else() {
        let none = [Duration::ZERO; 2];
        for (failures, tries, ends_well) in [(0, 1, true), (2, 3, true), (3, 3, false)] {
            let mut calls = 0;
            let outcome = tried(&none, &|| false, || {
                calls += 1;
                if calls > failures {
                    Ok(())
                } else {
                    Err(full())
                }
            });
            assert_eq!((calls, outcome.is_ok()), (tries, ends_well));
        }
        let mut calls = 0;
        let outcome: Result<(), _> = tried(&none, &|| false, || {
            calls += 1;
            Err(CheckpointError::Store(Error::Conflict {
                path: "x".to_owned(),
            }))
        });
        assert_eq!((calls, outcome.is_err()), (1, true));
        for (failure, tries) in [
            (Failure::unavailable("away"), 3),
            (Failure::fenced("newer"), 1),
        ] {
            let mut calls = 0;
            let outcome: Result<(), Failure> = tried(&none, &|| false, || {
                calls += 1;
                Err(failure.clone())
            });
            assert_eq!((calls, outcome), (tries, Err(failure)));
        }
    }

    #[test]
    fn who_is_asked_to_stop_does_not_wait() {
        let start = clock::monotonic();
        let hours = [Duration::from_secs(3600); 2];
        let fails = || -> Result<(), CheckpointError> { Err(full()) };
        assert!(tried(&hours, &|| true, fails).is_err());
        assert!(clock::since(start) < Duration::from_secs(60));
    }
}
