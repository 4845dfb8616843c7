//! A store that fails for a moment ends no attempt.

use std::time::Duration;

use crate::checkpoint::CheckpointError;
use crate::clock;

/// Pauses between tries of a save. What takes longer ends the attempt with exit code 69, and the
/// operator starts another one, perhaps elsewhere.
pub const PAUSES: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// Repeats `save` while its failure is the volume's, once after each pause; a stop request ends the
/// pauses.
///
/// # Errors
/// Those of the last try.
pub fn saved(
    pauses: &[Duration],
    is_stopped: &dyn Fn() -> bool,
    mut save: impl FnMut() -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    for pause in pauses {
        match save() {
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, ?pause, "the checkpoint can't be saved, trying again");
                clock::rest(*pause, is_stopped);
            }
            outcome => return outcome,
        }
    }
    save()
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
            let outcome = saved(&none, &|| false, || {
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
        let outcome = saved(&none, &|| false, || {
            calls += 1;
            Err(CheckpointError::Store(Error::Conflict {
                path: "x".to_owned(),
            }))
        });
        assert_eq!((calls, outcome.is_err()), (1, true));
    }

    #[test]
    fn who_is_asked_to_stop_does_not_wait() {
        let start = clock::monotonic();
        let hours = [Duration::from_secs(3600); 2];
        assert!(saved(&hours, &|| true, || Err(full())).is_err());
        assert!(clock::since(start) < Duration::from_secs(60));
    }
}
