//! Which versions status lists: all of them where they fit, and else those that somebody still
//! needs. The rest stay in the store.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use graftwork_api::conditions::reason;
use graftwork_api::lora_adapter::VersionStage;

use super::step::{VersionView, View};

/// Versions that status lists: the bound of its schema.
const LISTED: usize = 50;
/// Newest versions that are listed whatever became of them.
const NEWEST: usize = 10;

/// The versions that status lists, newest first.
pub fn listed(view: &View) -> Vec<&VersionView> {
    let newest: BTreeSet<u32> = view.versions.keys().rev().take(NEWEST).copied().collect();
    let mut versions: Vec<(&u32, &VersionView)> = view.versions.iter().collect();
    versions.sort_by_key(|(number, version)| {
        let rank = rank(
            version,
            [view.approved, view.production].contains(&Some(**number)),
            newest.contains(*number),
        );
        (rank, Reverse(**number))
    });
    versions.truncate(LISTED);
    versions.sort_by_key(|(number, _)| Reverse(**number));
    versions.into_iter().map(|(_, version)| version).collect()
}

/// Why a version is listed before an older one that is needed less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It serves, is about to, or is pinned: endpoints and runs look it up.
    Named,
    /// People look for what came last.
    Newest,
    /// It waits for its gate or for a person.
    Waiting,
    /// A person may go back to it.
    MayServe,
    /// It is only history.
    Past,
}

fn rank(version: &VersionView, is_followed: bool, is_newest: bool) -> Rank {
    let may_serve = match version.stage {
        VersionStage::Approved => true,
        VersionStage::Rejected => version.reason == reason::ROLLED_BACK_ON_ENDPOINT,
        _ => false,
    };
    if is_followed || version.is_named || version.stage == VersionStage::Production {
        Rank::Named
    } else if is_newest {
        Rank::Newest
    } else if version.stage == VersionStage::Candidate {
        Rank::Waiting
    } else if may_serve {
        Rank::MayServe
    } else {
        Rank::Past
    }
}
