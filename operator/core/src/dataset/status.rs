//! A Dataset's status: what is said about each step.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use graftwork_api::conditions::{condition, reason};
use graftwork_api::dataset::{
    DatasetVersion, LatestVersion, Leakage, RejectedRow, RowCounts, Split, TokenCounts,
};
use graftwork_api::{Dataset, DatasetStatus, Time, labels};
use graftwork_contract::Digest;
use graftwork_contract::dataset::VersionRecord;
use jiff::Timestamp;

use super::Observed;
use super::step::{Ended, Step};
use super::validate::Invalid;
use crate::conditions::{self, Conditions, Moving, Truth, cut};
use crate::hindered::LOOK_FOR_POD_SECONDS;
use crate::plan::{Actions, Event, NAME_TAKEN_PAUSE};
use crate::storage::StorageProblem;

/// Versions that status lists: the bound of its schema.
const LISTED_VERSIONS: usize = 50;

/// Versions that it lists beside those that are needed: a person reads it.
const LISTED_OTHERS: usize = 10;

/// Bytes of the refresh annotation, and of a rule that a row broke: the bound of their schema.
const LONGEST_NAME: usize = 253;

/// Bytes of a file's path.
const LONGEST_PATH: usize = 4096;

/// Types of personal data that status lists.
const MOST_FINDINGS: usize = 32;

/// How a message about a build that is tried again begins.
const NEXT_ATTEMPT: &str = "attempt ";

/// Value of the refresh annotation.
pub fn refresh(cr: &Dataset) -> Option<&str> {
    cr.metadata
        .annotations
        .as_ref()?
        .get(labels::REFRESH_ANNOTATION)
        .map(String::as_str)
}

/// The refresh annotation as status has it: an annotation may be longer than a status.
fn shown_refresh(cr: &Dataset) -> Option<String> {
    let value = refresh(cr)?;
    Some(if value.len() <= LONGEST_NAME {
        value.to_owned()
    } else {
        Digest::of(value.as_bytes()).to_string()
    })
}

/// A spec that can't work: nothing is touched, what was built stays.
pub fn invalid(cr: &Dataset, invalid: &Invalid, now: Timestamp) -> Actions<DatasetStatus> {
    let message = format!("{}: {}", invalid.field, invalid.message);
    let said = Said {
        truth: Truth::False,
        reason: reason::INVALID_SPEC,
        message: &message,
        moving: Moving::Stalled,
    };
    say(cr, cr.status.clone().unwrap_or_default(), &said, now)
}

struct Said<'a> {
    truth: Truth,
    reason: &'a str,
    message: &'a str,
    moving: Moving,
}

/// Status and events of a step.
pub fn report(
    cr: &Dataset,
    step: &Step,
    observed: &Observed,
    now: Timestamp,
) -> Actions<DatasetStatus> {
    let old = cr.status.clone().unwrap_or_default();
    let said = |truth, reason, message, moving| Said {
        truth,
        reason,
        message,
        moving,
    };
    match step {
        Step::SourceMissing { reason, message } => {
            let said = said(Truth::False, reason, message, Moving::Rests);
            say(cr, old, &said, now)
        }
        Step::NameTaken { message } | Step::NoStorage(StorageProblem::NotOurs(message)) => {
            let said = said(
                Truth::False,
                reason::OBJECT_NOT_OURS,
                message,
                Moving::Stalled,
            );
            Actions {
                requeue_after: Some(NAME_TAKEN_PAUSE),
                ..say(cr, old, &said, now)
            }
        }
        Step::NoStorage(StorageProblem::Unavailable(message)) => {
            let said = said(
                Truth::False,
                reason::STORAGE_UNAVAILABLE,
                message,
                Moving::Rests,
            );
            say(cr, old, &said, now)
        }
        Step::KeeperAway { message } => keeper_away(cr, old, message, now),
        Step::Ready {
            record, versions, ..
        } => {
            let listed = listed(record.version, versions, &observed.pinned);
            ready(cr, old, record.version, &listed, now)
        }
        Step::Build { attempt, after, .. } => {
            let waits = observed.pods.iter().find_map(waits_for);
            let waits = waits.map_or_else(String::new, |why| format!("; its pod waits: {why}"));
            let mut actions = match after {
                None => {
                    let message = format!("a version is being built{waits}");
                    building(cr, old, &message, now)
                }
                Some(after) => {
                    let next = format!("{NEXT_ATTEMPT}{attempt} is under way{waits}");
                    trying_again(cr, old, after, &next, now)
                }
            };
            let seconds = if observed.pods.is_empty() {
                LOOK_FOR_POD_SECONDS
            } else {
                30
            };
            actions.requeue_after = Some(Duration::from_secs(seconds));
            actions
        }
        Step::Pause {
            after,
            until,
            seconds,
            ..
        } => {
            let next = format!("{NEXT_ATTEMPT}{} starts at {until}", after.attempt + 1);
            let mut actions = trying_again(cr, old, after, &next, now);
            actions.requeue_after = Some(Duration::from_secs(*seconds));
            actions
        }
        Step::Failed {
            reason, message, ..
        } => {
            let mut next = old;
            next.observed_refresh = shown_refresh(cr);
            // A pod's last words outlive it in the condition, those about a next attempt do not.
            let known = conditions::find(&next.conditions, condition::READY)
                .filter(|known| known.reason == *reason && observed.pods.is_empty())
                .filter(|known| !known.message.starts_with(NEXT_ATTEMPT))
                .map(|known| known.message.clone());
            let message = known.as_ref().unwrap_or(message);
            let said = said(Truth::False, reason, message, Moving::Rests);
            say(cr, next, &said, now)
        }
    }
}

fn building(
    cr: &Dataset,
    old: DatasetStatus,
    message: &str,
    now: Timestamp,
) -> Actions<DatasetStatus> {
    let said = Said {
        truth: Truth::Unknown,
        reason: reason::BUILDING,
        message,
        moving: Moving::Reconciling,
    };
    say(cr, old, &said, now)
}

/// Between an attempt that ended early and the end of the next one. A fault stays a fault until an
/// attempt ends well: what is tried again and again does not turn to and fro. Before it is one, what is away is
/// named already: an attempt may take an hour.
fn trying_again(
    cr: &Dataset,
    old: DatasetStatus,
    after: &Ended,
    next: &str,
    now: Timestamp,
) -> Actions<DatasetStatus> {
    let message = format!("{next}; attempt {} ended: {}", after.attempt, after.message);
    let is_fault = after.is_fault();
    if !is_fault && !after.is_away() {
        return building(cr, old, &message, now);
    }
    let (truth, moving) = if is_fault {
        (Truth::False, Moving::Rests)
    } else {
        (Truth::Unknown, Moving::Reconciling)
    };
    let said = Said {
        truth,
        reason: &after.reason,
        message: &message,
        moving,
    };
    say(cr, old, &said, now)
}

/// Why a pod does not start.
fn waits_for(pod: &crate::observed::Pod) -> Option<String> {
    pod.unschedulable
        .clone()
        .or_else(|| pod.image_problem().map(str::to_owned))
        .or_else(|| pod.waiting_problem())
}

/// A keeper that is away for a moment takes nothing back.
fn keeper_away(
    cr: &Dataset,
    old: DatasetStatus,
    message: &str,
    now: Timestamp,
) -> Actions<DatasetStatus> {
    let settled = conditions::is_true(&old.conditions, condition::READY)
        && old.observed_generation == cr.metadata.generation
        && old.observed_refresh == shown_refresh(cr);
    let mut actions = if settled {
        Actions::default()
    } else {
        let said = Said {
            truth: Truth::Unknown,
            reason: reason::STORAGE_UNAVAILABLE,
            message,
            moving: Moving::Reconciling,
        };
        say(cr, old, &said, now)
    };
    actions.requeue_after = Some(Duration::from_secs(2));
    actions
}

/// The versions that status lists, newest first: the one that the sources are now, those that runs
/// pin, and of the others the ten newest. The rest stay in the store.
fn listed<'a>(
    latest: u32,
    versions: &'a [VersionRecord],
    pinned: &BTreeSet<u32>,
) -> Vec<&'a VersionRecord> {
    let mut listed: Vec<_> = versions.iter().collect();
    listed.sort_by_key(|it| {
        let number = it.version;
        (number != latest, !pinned.contains(&number), Reverse(number))
    });
    let is_needed = |it: &&&VersionRecord| it.version == latest || pinned.contains(&it.version);
    let needed = listed.iter().filter(is_needed).count();
    listed.truncate((needed + LISTED_OTHERS).min(LISTED_VERSIONS));
    listed.sort_by_key(|it| Reverse(it.version));
    listed
}

fn ready(
    cr: &Dataset,
    old: DatasetStatus,
    version: u32,
    versions: &[&VersionRecord],
    now: Timestamp,
) -> Actions<DatasetStatus> {
    let latest = versions.iter().find(|known| known.version == version);
    let Some(latest) = latest else {
        let message =
            format!("the store has a build of version {version} and no record of that version");
        let said = Said {
            truth: Truth::False,
            reason: reason::INTERNAL_ERROR,
            message: &message,
            moving: Moving::Rests,
        };
        return say(cr, old, &said, now);
    };
    let changed = old.latest.as_ref().map(|latest| latest.version) != Some(version);
    let mut next = old;
    next.observed_refresh = shown_refresh(cr);
    next.latest = Some(LatestVersion {
        version,
        digest: latest.digest.to_string(),
        rows: valid_rows(latest),
    });
    next.versions = versions.iter().copied().map(print_version).collect();
    // Bad rows are many lines, and those of older versions nobody mends any more.
    for old in next.versions.iter_mut().filter(|it| it.version != version) {
        old.rejected.clear();
    }
    let rows = &latest.rows;
    let empty = empty_parts(&cr.spec.split, latest);
    let mut message = format!(
        "version {version} has {} rows: {} train, {} validation, {} test; {} were left out",
        valid_rows(latest),
        rows.train,
        rows.validation,
        rows.test,
        rows.rejected + rows.duplicates + rows.beyond_weight
    );
    if let Some(empty) = &empty {
        message.push_str("; ");
        message.push_str(empty);
    }
    let said = Said {
        truth: Truth::True,
        reason: reason::READY,
        message: &message,
        moving: Moving::Rests,
    };
    let mut actions = say(cr, next, &said, now);
    if changed && actions.events.is_empty() {
        actions.events = vec![Event::normal(reason::READY, message)];
    }
    if let Some(empty) = empty.filter(|_| changed) {
        let note = format!("version {version}: {empty}");
        let warning = Event::warning(reason::SPLIT_EMPTY, note);
        actions.events.push(warning);
    }
    actions
}

/// Parts of the split that have no row though they are to have some, in words.
fn empty_parts(split: &Split, record: &VersionRecord) -> Option<String> {
    let rows = &record.rows;
    let parts = [
        ("train", split.train_percent, rows.train),
        ("validation", split.validation_percent, rows.validation),
        ("test", split.test_percent, rows.test),
    ];
    let empty: Vec<String> = parts
        .into_iter()
        .filter(|(_, percent, rows)| *percent > 0 && *rows == 0)
        .map(|(name, percent, _)| format!("{name} (spec.split.{name}Percent is {percent})"))
        .collect();
    if empty.is_empty() {
        return None;
    }
    // Those that only evaluate have what they need.
    let waits = if split.train_percent > 0 && rows.train == 0 {
        "; runs that train on it wait for that"
    } else {
        ""
    };
    Some(format!(
        "no row fell into {}: it takes more rows, or more groups, or another split{waits}",
        empty.join(" or ")
    ))
}

fn valid_rows(record: &VersionRecord) -> u64 {
    record.rows.train + record.rows.validation + record.rows.test
}

fn print_version(record: &VersionRecord) -> DatasetVersion {
    DatasetVersion {
        version: record.version,
        digest: record.digest.to_string(),
        schema_hash: record.schema_hash.to_string(),
        created_time: Time(record.created_time.parse().unwrap_or(Timestamp::UNIX_EPOCH)),
        rows: RowCounts {
            train: record.rows.train,
            validation: record.rows.validation,
            test: record.rows.test,
            rejected: record.rows.rejected,
            duplicates: record.rows.duplicates,
            beyond_weight: Some(record.rows.beyond_weight).filter(|rows| *rows > 0),
        },
        rejected: record
            .rejected
            .iter()
            .take(graftwork_contract::dataset::NAMED_REJECTED_ROWS)
            .map(|row| RejectedRow {
                source: row.source.clone(),
                file: row.file.as_ref().map(|file| cut(file, LONGEST_PATH)),
                line: row.line,
                rule: cut(&row.rule, LONGEST_NAME),
            })
            .collect(),
        findings: most_found(&record.findings),
        leakage: Some(Leakage {
            validation: record.leakage.validation,
            test: record.leakage.test,
        }),
        tokens: record.tokens.map(|tokens| TokenCounts {
            train: tokens.train,
            validation: tokens.validation,
            test: tokens.test,
            longest_row: tokens.longest_row,
        }),
        parent: record.parent,
        size_bytes: record.size_bytes,
        provenance_digest: Some(record.provenance_digest.to_string()),
    }
}

/// The types of which most was found.
fn most_found(findings: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut found: Vec<_> = findings.iter().collect();
    found.sort_by_key(|(_, count)| Reverse(**count));
    let found = found.into_iter().take(MOST_FINDINGS);
    found.map(|(name, count)| (name.clone(), *count)).collect()
}

fn say(
    cr: &Dataset,
    mut next: DatasetStatus,
    said: &Said<'_>,
    now: Timestamp,
) -> Actions<DatasetStatus> {
    let old = cr.status.as_ref().map(|status| status.conditions.clone());
    let old = old.unwrap_or_default();
    let mut conditions = Conditions::new(&next.conditions, cr.metadata.generation, now);
    conditions.set(condition::READY, said.truth, said.reason, said.message);
    conditions.set_moving(said.moving, said.reason, said.message);
    next.conditions = conditions.into_list();
    next.observed_generation = cr.metadata.generation;
    let event = conditions::turned(&old, &next.conditions, condition::READY, said.moving);
    Actions {
        status: Some(next),
        events: event.into_iter().collect(),
        ..Actions::default()
    }
}
