//! Pieces of observation that all kinds share. The shell fills them; each kind's `Observed` is made
//! of them.

use graftwork_contract::key_values::KeyValueBlock;
use jiff::Timestamp;

use crate::plan::Target;

/// An object that we look for by its name.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Found<T> {
    /// There is none of that name.
    #[default]
    Absent,
    /// It is ours: our labels, and the owner that it should have.
    Ours(Box<T>),
    /// Somebody else's object has the name; it is never touched.
    Foreign,
}

impl<T> Found<T> {
    /// The object, where it is ours.
    pub fn ours(&self) -> Option<&T> {
        match self {
            Self::Ours(object) => Some(object),
            Self::Absent | Self::Foreign => None,
        }
    }

    /// Whether somebody else has the name.
    pub const fn is_foreign(&self) -> bool {
        matches!(self, Self::Foreign)
    }
}

/// A claim that a spec names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClaimState {
    /// There is none of that name.
    #[default]
    Absent,
    /// It is being deleted.
    Deleting,
    /// It has no volume.
    NotBound,
    /// It can be mounted.
    Bound,
}

impl ClaimState {
    /// Why pods can't mount the claim of that name; none where they can.
    pub fn problem(self, claim: &str) -> Option<String> {
        let what = match self {
            Self::Absent => "does not exist",
            Self::Deleting => "is being deleted",
            Self::NotBound => "is not bound to a volume",
            Self::Bound => return None,
        };
        Some(format!("PersistentVolumeClaim \"{claim}\" {what}"))
    }
}

/// What was asked of another process.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Asked<T> {
    /// It was not asked: its answer could not matter, or what to ask is not known yet.
    #[default]
    NotAsked,
    /// It was asked and did not answer; in words.
    Unreachable(String),
    /// Its answer.
    Answered(T),
}

impl<T> Asked<T> {
    /// The answer, where there is one.
    pub const fn answer(&self) -> Option<&T> {
        match self {
            Self::Answered(answer) => Some(answer),
            Self::NotAsked | Self::Unreachable(_) => None,
        }
    }
}

/// A pod, as far as decisions need it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pod {
    /// `metadata.name`
    pub name: String,
    /// `metadata.uid`
    pub uid: String,
    /// `metadata.labels`
    pub labels: std::collections::BTreeMap<String, String>,
    /// `metadata.annotations`
    pub annotations: std::collections::BTreeMap<String, String>,
    /// `status.podIP`
    pub ip: Option<String>,
    /// Condition `Ready` is True.
    pub ready: bool,
    /// `status.phase`: Pending, Running, Succeeded, Failed or Unknown.
    pub phase: String,
    /// When its grace period is over; none where it is not being deleted. By our clock, from when it was first
    /// seen so: `metadata.deletionTimestamp` is by the API server's.
    pub deleting_since: Option<Timestamp>,
    /// `metadata.creationTimestamp`: tells pods apart by age, and nothing is waited for from it.
    pub created: Option<Timestamp>,
    /// When it was first seen that its image can't be had, by our clock.
    pub image_missing_since: Option<Timestamp>,
    /// `spec.nodeName`
    pub node: Option<String>,
    /// Message of condition `PodScheduled` where it is False.
    pub unschedulable: Option<String>,
    /// Reason of condition `DisruptionTarget` where it is True: evicted, preempted, node lost.
    pub disrupted: Option<String>,
    /// `status.reason`, for example `Evicted` or `NodeLost`
    pub reason: Option<String>,
    /// The first container.
    pub container: Container,
    /// Restarts of the first container.
    pub restarts: i32,
    /// How its process before this one ended, in words; none where there was none.
    pub last_end: Option<String>,
}

/// State of a pod's first container.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Container {
    /// Nothing is known yet.
    #[default]
    Unknown,
    /// It waits; `ErrImagePull`, `CreateContainerConfigError`, ...
    Waiting {
        /// The kubelet's reason.
        reason: String,
        /// The kubelet's message.
        message: String,
    },
    /// It runs.
    Running {
        /// Since when, by the node's clock.
        since: Option<Timestamp>,
    },
    /// It ended.
    Terminated {
        /// Its exit code.
        exit_code: i32,
        /// `Completed`, `Error`, `OOMKilled`, ...
        reason: String,
        /// The termination message.
        message: String,
        /// When it started.
        started: Option<Timestamp>,
        /// When it ended.
        finished: Option<Timestamp>,
    },
}

impl Pod {
    /// The pod as the target of a call; none without an IP address or while it goes away.
    pub fn target(&self) -> Option<Target> {
        if self.deleting_since.is_some() {
            return None;
        }
        Some(Target {
            pod: self.name.clone(),
            uid: self.uid.clone(),
            ip: self.ip.clone()?,
            restarts: self.restarts,
        })
    }

    /// Whether the container runs.
    pub const fn is_running(&self) -> bool {
        matches!(self.container, Container::Running { .. })
    }

    /// Why it does not start or stay up, in the scheduler's or the kubelet's words; none where nothing
    /// is known to be wrong.
    pub fn problem(&self) -> Option<String> {
        self.unschedulable
            .clone()
            .or_else(|| self.image_problem().map(str::to_owned))
            .or_else(|| self.waiting_problem())
            .or_else(|| match &self.container {
                Container::Terminated {
                    exit_code,
                    reason,
                    message,
                    ..
                } => Some(describe_end(*exit_code, reason, message)),
                // It may end the same way again: what it said counts until it is ready.
                Container::Running { .. } if !self.ready => self
                    .last_end
                    .as_ref()
                    .map(|said| format!("started again: {said}")),
                _ => None,
            })
    }

    /// Why its container waits, in the kubelet's words, where it does not only start.
    pub fn waiting_problem(&self) -> Option<String> {
        match &self.container {
            Container::Waiting { reason, message }
                if !matches!(reason.as_str(), "ContainerCreating" | "PodInitializing") =>
            {
                // The kubelet's own words in a back-off say only how long it is.
                let said = self.last_end.as_ref().unwrap_or(message);
                Some(format!("{reason}: {said}"))
            }
            _ => None,
        }
    }

    /// Why the image can't be had, where that is so.
    pub fn image_problem(&self) -> Option<&str> {
        match &self.container {
            Container::Waiting { reason, message }
                if matches!(
                    reason.as_str(),
                    "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull"
                ) =>
            {
                Some(message)
            }
            _ => None,
        }
    }
}

/// How a process ended, in its own words where it left some.
pub fn describe_end(exit_code: i32, reason: &str, message: &str) -> String {
    let said = if message.is_empty() { reason } else { message };
    format!("exited with {exit_code}: {}", said.trim_end())
}

/// One record of the store, as the keeper gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Path below the namespace's folder.
    pub path: String,
    /// The file's bytes; none where it is longer than a keeper sends.
    pub content: Option<Vec<u8>>,
}

impl Record {
    /// The record's value.
    ///
    /// # Errors
    /// Where the content is not JSON of that type, or did not come; names the path.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, UnreadableRecord> {
        let unreadable = |cause: String| UnreadableRecord {
            path: self.path.clone(),
            cause,
        };
        let content = self.content.as_deref().ok_or_else(|| {
            unreadable(format!(
                "it is longer than {} KiB, which is all that a keeper sends of a record",
                graftwork_contract::keeper::MAXIMUM_RECORD_BYTES >> 10
            ))
        })?;
        serde_json::from_slice(content).map_err(|cause| unreadable(cause.to_string()))
    }
}

/// A record that is not what its path says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {path} can't be read: {cause}")]
pub struct UnreadableRecord {
    /// Path below the namespace's folder.
    pub path: String,
    /// What is wrong with it.
    pub cause: String,
}

/// What a router has acknowledged in its present process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledgement {
    /// Boot of the process.
    pub boot_id: String,
    /// Digest of the encoded table (see [`table_digest`]).
    pub table: graftwork_contract::Digest,
    /// When it was acknowledged: a candidate's lease counts from here.
    pub at: Timestamp,
}

/// Digest of an encoded routing table: two tables are the same where their digests are.
pub fn table_digest(
    table: &graftwork_contract::proto::router::v1::RoutingTable,
) -> graftwork_contract::Digest {
    use prost::Message as _;
    graftwork_contract::Digest::of(&table.encode_to_vec())
}

/// What a keeper says of a base model's folder, or what is wrong with it.
pub type DescribedBase = Result<Base, Problem>;

/// A base model that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Over the folder's files.
    pub digest: graftwork_contract::Digest,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Modules that an adapter may change; empty where the keeper does not say.
    pub target_modules: Vec<String>,
    /// Longest context.
    pub maximum_positions: u32,
    /// A block of its KV cache; none where the keeper is older than this question.
    pub key_values: Option<KeyValueBlock>,
}

/// What is wrong with files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// A condition reason.
    pub reason: String,
    /// File, field, value, limit.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_too_long_is_not_called_bad_json() {
        let record = |content: Option<&[u8]>| Record {
            path: "datasets/d/versions/1.json".to_owned(),
            content: content.map(<[u8]>::to_vec),
        };
        assert_eq!(record(Some(b"7")).read::<u32>().unwrap(), 7);
        assert_eq!(
            record(None).read::<u32>().unwrap_err().to_string(),
            "record datasets/d/versions/1.json can't be read: it is longer than 256 KiB, which is all that a keeper \
             sends of a record"
        );
        let bad = record(Some(b"")).read::<u32>().unwrap_err();
        assert!(bad.to_string().contains("EOF"), "{bad}");
    }
}
