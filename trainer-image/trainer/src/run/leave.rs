//! The ends of an attempt that its own thread does not come to: it is busy, or waits for the store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use graftwork_contract::pod::TRAINER_STOP_SECONDS;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::patience;
use super::progress::{Reporter, Stage};
use super::report;
use crate::failure::Failure;
use crate::signals::StopFlag;

/// Time between a request to stop and the end of the process, at most.
const STOP_PATIENCE: Duration = Duration::from_secs(TRAINER_STOP_SECONDS as u64);
/// The same while test rows are scored: that begins anew in any case.
const SCORING_PATIENCE: Duration = Duration::from_secs(10);
/// Time between two looks at a store that does not answer.
const LOOK: Duration = Duration::from_secs(1);

/// Ends the process soon after it was asked to stop, wherever it is: at once while nothing was trained
/// yet, and after [`STOP_PATIENCE`] where a checkpoint or the end of a step takes as long as the pod's
/// grace period: a summary tells more than SIGKILL. An attempt may die at any instant, so it may also
/// leave; a node that gives less time than the pod asks for kills it, and the next one goes on.
pub fn once_asked(
    termination_file: &Path,
    reporter: &Reporter,
    stop: &StopFlag,
) -> Option<JoinHandle<()>> {
    let runtime = Handle::try_current().ok()?;
    let (file, reporter, stop) = (
        termination_file.to_path_buf(),
        reporter.clone(),
        stop.clone(),
    );
    Some(runtime.spawn(async move {
        stop.asked().await;
        let mut waited = Duration::ZERO;
        // A stage may end meanwhile, and the next one has less to lose.
        let patience = loop {
            let patience = patience_in(&reporter.latest().stage);
            if waited >= patience {
                break patience;
            }
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
        };
        let failure = if patience.is_zero() {
            Failure::checkpointed("stopped on request before the first step; nothing is lost")
        } else {
            Failure::checkpointed(format!(
                "stopped on request; what was under way took longer than {} s, and the next attempt \
                 goes on from the checkpoint of step {}",
                patience.as_secs(),
                reporter.latest().checkpoint_step
            ))
        };
        leave(&file, &reporter, failure);
    }))
}

fn patience_in(stage: &str) -> Duration {
    if stage == Stage::Prepare.name() {
        Duration::ZERO
    } else if stage == Stage::Evaluate.name() {
        SCORING_PATIENCE
    } else {
        STOP_PATIENCE
    }
}

/// Ends the process where the store takes longer than `limit` for one call: a volume that hangs answers with no
/// error that could be tried again. The call is left under way, as it is where the process is killed.
pub fn where_the_store_hangs(
    termination_file: &Path,
    reporter: &Reporter,
    limit: Duration,
) -> Option<JoinHandle<()>> {
    let runtime = Handle::try_current().ok()?;
    let (file, reporter): (PathBuf, _) = (termination_file.to_path_buf(), reporter.clone());
    Some(runtime.spawn(async move {
        while patience::waiting().is_none_or(|waiting| waiting < limit) {
            tokio::time::sleep(LOOK).await;
        }
        let failure = Failure::unavailable(format!(
            "the store has not answered for {} s; the next attempt goes on from its newest checkpoint",
            limit.as_secs()
        ));
        leave(&file, &reporter, failure);
    }))
}

fn leave(file: &Path, reporter: &Reporter, failure: Failure) {
    tracing::info!(code = failure.code.code(), "{failure}");
    let code = i32::from(failure.code.code());
    report::write_termination(file, &report::summary(&Err(failure), &reporter.latest()));
    std::process::exit(code);
}
