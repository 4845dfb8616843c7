//! The stories: each is what a user does or what befalls them, on a real cluster, from outside.

mod fixture;
mod inventory;
mod neighbour;
mod postgres;
mod progress;
mod promoted;
mod rows;
mod s3;
mod seen;
mod shell;
pub mod stage;
mod traffic;

mod argo_style;
mod bad_specs;
mod blue_green;
mod canary_promotes;
mod delete_everything;
mod engine_pod_killed;
mod from_git_again;
mod gpu_profile;
mod helm_cycle;
mod hot_swap;
pub(crate) mod live_rollback;
mod manual_approval_and_verbs;
mod nightly_postgres_to_version;
mod operator_killed;
mod pii_rejected;
mod quiet;
mod retention_keeps_referenced;
mod s3_source;
mod s3_source_and_store;
mod source_fails_mid_build;
mod train_then_serve;
mod trainer_killed;

use std::cell::RefCell;
use std::iter::{from_fn, once};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::cluster::Cluster;
use crate::install::Installation;
use crate::report::{all_not_proved, as_speaker, say, seconds, ticking};
pub use fixture::Adapters;
pub use stage::Stage;

/// What every story gets.
#[derive(Clone)]
pub struct World {
    /// The cluster.
    pub cluster: Cluster,
    /// The operator's installation.
    pub installation: Installation,
    /// Who the stories are, as the API server knows them.
    pub user: String,
    /// Adapters that were trained once, to be imported.
    pub adapters: Adapters,
}

/// The audit log of the local cluster; none where the cluster is another one, whose node is not this machine and is not
/// to be touched.
fn audit_log() -> Option<PathBuf> {
    std::env::var_os("GRAFTWORK_AUDIT_LOG").map(PathBuf::from)
}

/// One story: its name and what it does in a namespace of its own.
#[derive(Clone, Copy)]
struct Story {
    name: &'static str,
    run: fn(Stage) -> BoxFuture<'static, anyhow::Result<()>>,
}

macro_rules! stories {
    ($($name:ident),* $(,)?) => {
        &[$(Story { name: stringify!($name), run: |stage| $name::run(stage).boxed() }),*]
    };
}

/// Stories about traffic, of which only one is told at a time.
const TRAFFIC: &[Story] = stories![
    canary_promotes,
    blue_green,
    live_rollback,
    manual_approval_and_verbs,
    hot_swap,
    engine_pod_killed,
];

/// Stories that wait for the control plane most of the time, told beside those about traffic.
const CONTROL: &[Story] = stories![
    train_then_serve,
    bad_specs,
    gpu_profile,
    argo_style,
    from_git_again,
    trainer_killed,
    nightly_postgres_to_version,
    source_fails_mid_build,
    s3_source,
    pii_rejected,
    retention_keeps_referenced,
    delete_everything,
];

/// Stories that touch the installation, or count what it writes: nothing else runs meanwhile.
const ALONE: &[Story] = stories![quiet, operator_killed, s3_source_and_store, helm_cycle];

/// Which stories to run.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Stories {
    /// Only stories whose name contains one of these.
    filter: Vec<String>,
    /// Print the names and run nothing.
    #[arg(long)]
    list: bool,
    /// Leave the namespaces of failed stories as they are.
    #[arg(long)]
    keep: bool,
}

fn known(part: &str) -> bool {
    [TRAFFIC, CONTROL, ALONE]
        .concat()
        .iter()
        .any(|story| story.name.contains(part))
}

impl Stories {
    /// Installs the operator, runs the stories and prints a summary.
    pub async fn run(
        &self,
        cluster: Cluster,
        installation: Installation,
    ) -> anyhow::Result<ExitCode> {
        if self.list {
            [TRAFFIC, CONTROL, ALONE]
                .concat()
                .iter()
                .for_each(|story| say(story.name));
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(unknown) = self.filter.iter().find(|part| !known(part)) {
            anyhow::bail!("no story's name contains {unknown:?}; --list prints the names");
        }
        let start = Instant::now();
        installation
            .install(&cluster, stage::FAST_LEASE)
            .await
            .context("install the operator")?;
        say(&format!(
            "installed the operator in {}",
            seconds(start.elapsed())
        ));
        let user = cluster.user().await?;
        let world = World {
            user,
            adapters: Adapters::default(),
            cluster,
            installation,
        };
        let outcomes = self.tell_all(&world).await;
        let failed: Vec<&str> = outcomes
            .iter()
            .filter(|(_, passed)| !passed)
            .map(|(name, _)| *name)
            .collect();
        if !failed.is_empty() {
            say(&format!("\nfailures: {}", failed.join(", ")));
        }
        for what in all_not_proved() {
            say(&format!("not proved here: {what}"));
        }
        say(&format!("\nstories took {}", seconds(start.elapsed())));
        say(&format!(
            "{} passed, {} failed",
            outcomes.len() - failed.len(),
            failed.len()
        ));
        Ok(if failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    /// Tells the stories that were asked for: their names and whether they passed.
    async fn tell_all(&self, world: &World) -> Vec<(&'static str, bool)> {
        let wanted = |stories: &'static [Story]| stories.iter().filter(|story| self.wants(story));
        let control = RefCell::new(wanted(CONTROL));
        let next = || control.borrow_mut().next();
        // A lane waits most of the time, so that two of them end sooner than one. Who has nothing left to tell takes
        // what the other one has.
        let (mut outcomes, others) = futures::join!(
            self.lane(wanted(TRAFFIC).chain(from_fn(next)), world),
            self.lane(from_fn(next), world)
        );
        outcomes.extend(others);
        for story in wanted(ALONE) {
            outcomes.extend(self.lane(once(story), world).await);
        }
        outcomes
    }

    /// Tells `stories` one after another: their names and whether they passed. A story's namespace goes while the next
    /// one is told; all are gone at the end.
    async fn lane(
        &self,
        stories: impl Iterator<Item = &'static Story>,
        world: &World,
    ) -> Vec<(&'static str, bool)> {
        let mut told = Vec::new();
        for story in stories {
            let start = Instant::now();
            let name = story.name;
            let (outcome, gone) = as_speaker(name, ticking(self.tell(story, world))).await;
            report(name, start, &outcome);
            let gone = gone.map(|gone| tokio::spawn(as_speaker(name, gone)));
            told.push((name, outcome.is_ok(), start, gone));
        }
        let mut outcomes = Vec::new();
        for (name, mut passed, start, gone) in told {
            if let Some(gone) = gone {
                let gone = ticking(gone).await.context("delete the namespace");
                let gone = gone.and_then(|gone| gone);
                if gone.is_err() {
                    report(name, start, &gone);
                    passed = false;
                }
            }
            outcomes.push((name, passed));
        }
        outcomes
    }

    fn wants(&self, story: &Story) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|part| story.name.contains(part))
    }

    /// What became of the story, and what deletes its namespace.
    async fn tell(
        &self,
        story: &Story,
        world: &World,
    ) -> (
        anyhow::Result<()>,
        Option<BoxFuture<'static, anyhow::Result<()>>>,
    ) {
        say(&format!("story::{} ...", story.name));
        let stage = match Stage::set(world.clone(), story.name).await {
            Ok(stage) => stage,
            Err(error) => return (Err(error), None),
        };
        let outcome = (story.run)(stage.clone()).await;
        if let Err(error) = &outcome {
            say(&format!("    {error:#}"));
            stage.describe().await;
            if self.keep {
                return (outcome, None);
            }
        }
        (outcome, Some(async move { stage.strike().await }.boxed()))
    }
}

fn report(name: &str, start: Instant, outcome: &anyhow::Result<()>) {
    let time = seconds(start.elapsed());
    match outcome {
        Ok(()) => say(&format!("test story::{name} ... ok ({time})")),
        Err(error) => say(&format!(
            "test story::{name} ... FAILED ({time})\n    {error:?}"
        )),
    }
}
