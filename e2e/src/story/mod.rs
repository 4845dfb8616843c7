//! The stories: each is what a user does or what befalls them, on a real cluster, from outside.

mod fixture;
mod inventory;
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
mod live_rollback;
mod manual_approval_and_verbs;
mod operator_killed;
mod quiet;
mod train_then_serve;
mod trainer_killed;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::cluster::Cluster;
use crate::install::Installation;
use crate::report::{say, seconds};
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

/// One story: its name and what it does in a namespace of its own.
struct Story {
    name: &'static str,
    run: fn(Stage) -> BoxFuture<'static, anyhow::Result<()>>,
}

macro_rules! stories {
    ($($name:ident),* $(,)?) => {
        &[$(Story { name: stringify!($name), run: |stage| $name::run(stage).boxed() }),*]
    };
}

/// In the order in which they run: the last ones touch the installation itself.
const STORIES: &[Story] = stories![
    train_then_serve,
    bad_specs,
    gpu_profile,
    argo_style,
    canary_promotes,
    blue_green,
    live_rollback,
    manual_approval_and_verbs,
    hot_swap,
    engine_pod_killed,
    from_git_again,
    trainer_killed,
    quiet,
    operator_killed,
    delete_everything,
    helm_cycle,
];

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

impl Stories {
    /// Installs the operator, runs the stories one after another and prints a summary.
    pub async fn run(
        &self,
        cluster: Cluster,
        installation: Installation,
    ) -> anyhow::Result<ExitCode> {
        let chosen: Vec<&Story> = STORIES
            .iter()
            .filter(|story| {
                self.filter.is_empty() || self.filter.iter().any(|part| story.name.contains(part))
            })
            .collect();
        if self.list {
            chosen.iter().for_each(|story| say(story.name));
            return Ok(ExitCode::SUCCESS);
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
        let mut failed = Vec::new();
        for story in &chosen {
            let start = Instant::now();
            let outcome = self.tell(story, &world).await;
            let time = seconds(start.elapsed());
            match outcome {
                Ok(()) => say(&format!("test story::{} ... ok ({time})", story.name)),
                Err(error) => {
                    say(&format!(
                        "test story::{} ... FAILED ({time})\n    {error:?}",
                        story.name
                    ));
                    failed.push(story.name);
                }
            }
        }
        if !failed.is_empty() {
            say(&format!("\nfailures: {}", failed.join(", ")));
        }
        say(&format!("\nstories took {}", seconds(start.elapsed())));
        say(&format!(
            "{} passed, {} failed",
            chosen.len() - failed.len(),
            failed.len()
        ));
        Ok(if failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    async fn tell(&self, story: &Story, world: &World) -> anyhow::Result<()> {
        say(&format!("story::{} ...", story.name));
        let stage = Stage::set(world.clone(), story.name).await?;
        let outcome = (story.run)(stage.clone()).await;
        if let Err(error) = &outcome {
            say(&format!("    {error:#}"));
            stage.describe().await;
            if self.keep {
                return outcome;
            }
        }
        stage.strike().await?;
        outcome
    }
}
