//! Jobs as dataset builds and runs use them: one pod, no retry by Kubernetes, and an end that can
//! be read from the pod, or from the Job alone where the pod is gone.

use graftwork_contract::exit::ExitCode;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
    PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::observed::{Container, Pod};
use crate::plan::{ChildKind, Delete};
use crate::sightings::Sightings;

/// Seconds after its grace period that a pod may take to stop before it is forced out.
const STUCK_SECONDS: u64 = 30;

/// Label that the Job controller puts on a Job's pods.
pub const JOB_NAME_LABEL: &str = "batch.kubernetes.io/job-name";

/// Attempts that are counted; no object comes near it.
const MOST_ATTEMPTS: u32 = 1_000_000;

/// The number that a Job's name ends with, where it may be an attempt's.
pub fn number_in(name: &str) -> Option<u32> {
    let (_, number) = name.rsplit_once('-')?;
    let number: u32 = number.parse().ok()?;
    (1..=MOST_ATTEMPTS).contains(&number).then_some(number)
}

/// A Job that runs `template` once.
pub fn build_job(metadata: ObjectMeta, template: PodTemplateSpec) -> Job {
    let container = template
        .spec
        .as_ref()
        .and_then(|spec| spec.containers.first())
        .map(|container| container.name.clone());
    Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(0),
            pod_failure_policy: Some(build_failure_policy(container)),
            template,
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// A Job that runs `template` once for every index below `count`, all at a time. The first that fails ends
/// all.
pub fn build_indexed(metadata: ObjectMeta, template: PodTemplateSpec, count: u32) -> Job {
    let count = i32::try_from(count).unwrap_or(i32::MAX);
    let mut job = build_job(metadata, template);
    if let Some(spec) = &mut job.spec {
        spec.completion_mode = Some(INDEXED.to_owned());
        spec.completions = Some(count);
        spec.parallelism = Some(count);
    }
    job
}

/// The completion mode of Jobs with several pods.
pub const INDEXED: &str = "Indexed";

/// The exit codes that get a rule, in the order of the rules.
fn ruled_codes() -> impl Iterator<Item = ExitCode> {
    ExitCode::ALL
        .into_iter()
        .filter(|code| *code != ExitCode::Done)
}

/// One `FailJob` rule for each exit code and one for disruptions: the Job's condition then names the
/// rule, and the cause stays readable when the pod is gone. `Ignore` would back off without end.
fn build_failure_policy(container: Option<String>) -> PodFailurePolicy {
    let by_code = ruled_codes().map(|code| PodFailurePolicyRule {
        action: "FailJob".to_owned(),
        on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
            container_name: container.clone(),
            operator: "In".to_owned(),
            values: vec![i32::from(code.code())],
        }),
        on_pod_conditions: None,
    });
    let by_disruption = PodFailurePolicyRule {
        action: "FailJob".to_owned(),
        on_exit_codes: None,
        on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
        }]),
    };
    PodFailurePolicy {
        rules: by_code.chain([by_disruption]).collect(),
    }
}

/// Where a Job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// Somebody (a queue) holds it back.
    Suspended,
    /// It runs, or is about to.
    Active,
    /// Its pod ended with 0.
    Complete,
    /// Its pod failed or went away.
    Failed,
}

/// Where a Job is.
pub fn state(job: &Job) -> JobState {
    if condition(job, "Complete").is_some() {
        JobState::Complete
    } else if condition(job, "Failed").is_some() {
        JobState::Failed
    } else if condition(job, "Suspended").is_some()
        || job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true)
    {
        JobState::Suspended
    } else {
        JobState::Active
    }
}

fn condition<'a>(
    job: &'a Job,
    kind: &str,
) -> Option<&'a k8s_openapi::api::batch::v1::JobCondition> {
    job.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .find(|condition| condition.type_ == kind && condition.status == "True")
}

/// When a finished Job finished, by the clock of the Jobs' controller.
pub fn finished_at(job: &Job) -> Option<Timestamp> {
    let condition = condition(job, "Complete").or_else(|| condition(job, "Failed"))?;
    condition.last_transition_time.as_ref().map(|time| time.0)
}

/// Why a pod's process is no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// It ended with a code of the contract.
    Exit(ExitCode),
    /// It ended with another code, for example 137 after SIGKILL.
    Killed(i32),
    /// The kernel killed it for its memory.
    OutOfMemory,
    /// The pod was taken away: evicted, preempted, deleted, node lost.
    TakenAway(String),
}

/// The end of a Job's pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub cause: Cause,
    /// The termination message; empty where there is none any more.
    pub summary: String,
    /// Seconds that the container ran.
    pub active_seconds: u64,
}

/// How long a finished Job's pod may still look alive: its watch is another one than the Job's.
const POD_LAG_SECONDS: u64 = 5;

/// The end of a failed or complete Job, from its pod, or from its condition where the pod is gone;
/// none while the pod's end is not known yet.
pub fn end(job: &Job, pods: &[Pod], seen: &Sightings, now: Timestamp) -> Option<End> {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let own: Vec<&Pod> = pods
        .iter()
        .filter(|pod| pod.labels.get(JOB_NAME_LABEL).map(String::as_str) == Some(name))
        .collect();
    let newest = own.iter().copied().max_by_key(|pod| pod.created);
    // Of several pods the first that failed by itself says why the others were stopped.
    let pod = first_failed(job, &own).or(newest);
    let Some(pod) = pod else {
        return Some(end_of_job(job));
    };
    let lagging = seconds_between(seen.ended(job), Some(now)) < POD_LAG_SECONDS;
    end_of_pod(pod).or_else(|| (!lagging).then(|| end_of_job(job)))
}

fn first_failed<'a>(job: &Job, pods: &[&'a Pod]) -> Option<&'a Pod> {
    let spec = job.spec.as_ref();
    if spec.and_then(|spec| spec.completion_mode.as_deref()) != Some(INDEXED) {
        return None;
    }
    let failed = pods.iter().filter_map(|pod| match &pod.container {
        Container::Terminated {
            exit_code,
            finished,
            ..
        } if *exit_code != 0 => {
            // What a pod that was stopped ends with is no code of ours.
            let is_own = ExitCode::from_code(*exit_code).is_some();
            Some((!is_own, *finished, *pod))
        }
        _ => None,
    });
    failed
        .min_by_key(|(is_foreign, finished, _)| (*is_foreign, *finished))
        .map(|(.., pod)| pod)
}

/// The end of a pod; none where it did not end.
pub fn end_of_pod(pod: &Pod) -> Option<End> {
    let taken_away = pod
        .disrupted
        .clone()
        .or_else(|| pod.reason.clone())
        .filter(|_| pod.phase == "Failed" || pod.disrupted.is_some());
    match &pod.container {
        Container::Terminated {
            exit_code,
            reason,
            message,
            started,
            finished,
        } => {
            let code = ExitCode::from_code(*exit_code);
            // Bad data stays bad data where the pod was evicted as well.
            let settled =
                code.filter(|code| code.after() == graftwork_contract::exit::AfterExit::Fail);
            #[expect(clippy::match_same_arms, reason = "the order is the rule")]
            let cause = match (settled, taken_away, code) {
                (Some(code), ..) => Cause::Exit(code),
                (None, _, Some(ExitCode::Done)) => Cause::Exit(ExitCode::Done),
                (None, Some(reason), _) => Cause::TakenAway(reason),
                (None, None, _) if reason == "OOMKilled" => Cause::OutOfMemory,
                (None, None, Some(code)) => Cause::Exit(code),
                (None, None, None) => Cause::Killed(*exit_code),
            };
            Some(End {
                cause,
                summary: message.clone(),
                active_seconds: seconds_between(*started, *finished),
            })
        }
        _ if pod.phase == "Failed" => Some(End {
            cause: Cause::TakenAway(taken_away.unwrap_or_else(|| "Failed".to_owned())),
            summary: String::new(),
            active_seconds: 0,
        }),
        _ => None,
    }
}

fn end_of_job(job: &Job) -> End {
    let failed = condition(job, "Failed");
    let message = failed
        .and_then(|condition| condition.message.as_deref())
        .unwrap_or_default();
    // "Container trainer for pod ns/x failed with exit code 65 matching FailJob rule at index 1"
    let index = message
        .rsplit_once("rule at index ")
        .and_then(|(_, index)| index.trim().parse::<usize>().ok());
    let cause = if condition(job, "Complete").is_some() {
        Cause::Exit(ExitCode::Done)
    } else {
        index
            .and_then(|index| ruled_codes().nth(index))
            .map_or_else(|| Cause::TakenAway("pod is gone".to_owned()), Cause::Exit)
    };
    let started = job
        .status
        .as_ref()
        .and_then(|status| status.start_time.as_ref())
        .map(|time| time.0);
    End {
        cause,
        summary: String::new(),
        active_seconds: seconds_between(started, finished_at(job)),
    }
}

/// Pods that do not stop: their node is lost. They are forced out, so that their Jobs end; what such
/// a pod may still write is fenced off by the store.
pub fn stuck(pods: &[Pod], now: Timestamp) -> impl Iterator<Item = Delete> {
    pods.iter()
        .filter(move |pod| seconds_between(pod.deleting_since, Some(now)) > STUCK_SECONDS)
        .map(|pod| Delete {
            kind: ChildKind::Pod,
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            grace_seconds: Some(0),
        })
}

/// Whole seconds from `start` to `end`; 0 where either is unknown.
pub fn seconds_between(start: Option<Timestamp>, end: Option<Timestamp>) -> u64 {
    match (start, end) {
        (Some(start), Some(end)) => {
            u64::try_from(end.duration_since(start).as_secs()).unwrap_or_default()
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};

    use super::*;
    use crate::fixtures::at;
    use crate::sightings::Sighting;

    fn job(kind: &str, message: &str) -> Job {
        Job {
            metadata: ObjectMeta {
                name: Some("run-1".to_owned()),
                ..ObjectMeta::default()
            },
            status: Some(JobStatus {
                conditions: Some(vec![JobCondition {
                    type_: kind.to_owned(),
                    status: "True".to_owned(),
                    message: Some(message.to_owned()),
                    ..JobCondition::default()
                }]),
                ..JobStatus::default()
            }),
            ..Job::default()
        }
    }

    fn pod(exit_code: i32, reason: &str) -> Pod {
        Pod {
            labels: [(JOB_NAME_LABEL.to_owned(), "run-1".to_owned())].into(),
            phase: "Failed".to_owned(),
            container: Container::Terminated {
                exit_code,
                reason: reason.to_owned(),
                message: "{}".to_owned(),
                started: Some(at(0)),
                finished: Some(at(90)),
            },
            ..Pod::default()
        }
    }

    #[test]
    fn a_pod_says_why_it_ended() {
        let failed = job("Failed", "");
        for (pod, cause) in [
            (pod(65, "Error"), Cause::Exit(ExitCode::BadData)),
            (pod(137, "OOMKilled"), Cause::OutOfMemory),
            (pod(137, "Error"), Cause::Killed(137)),
            (
                Pod {
                    disrupted: Some("PreemptionByScheduler".to_owned()),
                    ..pod(75, "Error")
                },
                Cause::TakenAway("PreemptionByScheduler".to_owned()),
            ),
            (
                Pod {
                    disrupted: Some("EvictionByEvictionAPI".to_owned()),
                    ..pod(65, "Error")
                },
                Cause::Exit(ExitCode::BadData),
            ),
            (
                Pod {
                    reason: Some("Evicted".to_owned()),
                    container: Container::Unknown,
                    ..pod(0, "")
                },
                Cause::TakenAway("Evicted".to_owned()),
            ),
        ] {
            let pods = std::slice::from_ref(&pod);
            let end = end(&failed, pods, &Sightings::default(), at(100)).unwrap();
            assert_eq!(end.cause, cause, "{pod:?}");
        }
        let pods = [pod(70, "Error")];
        let end = end(&failed, &pods, &Sightings::default(), at(100)).unwrap();
        assert_eq!(end.active_seconds, 90);
    }

    #[test]
    fn of_several_pods_the_first_that_failed_by_itself_says_why() {
        let mut several = build_indexed(ObjectMeta::default(), PodTemplateSpec::default(), 3);
        let failed = job("Failed", "");
        (several.metadata, several.status) = (failed.metadata, failed.status);
        let at_second = |code: i32, second: i64| {
            let mut pod = pod(code, "Error");
            if let Container::Terminated { finished, .. } = &mut pod.container {
                *finished = Some(at(second));
            }
            pod.created = Some(at(second));
            pod
        };
        let pods = [
            at_second(143, 1),
            at_second(69, 9),
            at_second(65, 5),
            at_second(0, 2),
        ];
        let end = end(&several, &pods, &Sightings::default(), at(100)).unwrap();
        assert_eq!(end.cause, Cause::Exit(ExitCode::BadData));
    }

    #[test]
    fn a_job_says_why_where_the_pod_is_gone() {
        let policy = build_failure_policy(Some("trainer".to_owned()));
        for (index, rule) in policy.rules.iter().enumerate() {
            let message = format!(
                "Container trainer for pod ns/run-1-abcde failed with exit code 1 matching FailJob rule at index {index}"
            );
            let expected = match &rule.on_exit_codes {
                Some(codes) => Cause::Exit(ExitCode::from_code(codes.values[0]).unwrap()),
                None => Cause::TakenAway("pod is gone".to_owned()),
            };
            let job = job("Failed", &message);
            let end = end(&job, &[], &Sightings::default(), at(0)).unwrap();
            assert_eq!(end.cause, expected);
        }
        let message = "Job has reached the specified backoff limit";
        let cause = |job: &Job| {
            let end = end(job, &[], &Sightings::default(), at(0));
            end.unwrap().cause
        };
        assert_eq!(
            cause(&job("Failed", message)),
            Cause::TakenAway("pod is gone".to_owned())
        );
        assert_eq!(cause(&job("Complete", "")), Cause::Exit(ExitCode::Done));
    }

    #[test]
    fn a_pod_that_still_looks_alive_is_waited_for() {
        let mut failed = job("Failed", "");
        failed.metadata.uid = Some("uid".to_owned());
        failed.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].last_transition_time =
            Some(graftwork_api::Time(at(0)));
        let alive = Pod {
            labels: [(JOB_NAME_LABEL.to_owned(), "run-1".to_owned())].into(),
            phase: "Running".to_owned(),
            ..Pod::default()
        };
        let pods = [alive];
        let end_at = |seen: &Sightings, second: i64| end(&failed, &pods, seen, at(second));
        assert_eq!(end_at(&Sightings::default(), 1), None);
        assert!(end_at(&Sightings::default(), 9).is_some());
        // The Jobs' controller may have another time: what counts is when we saw it.
        for second in [-3600, 3600] {
            let ended = Some(at(second));
            let seen = Sighting {
                made: at(second),
                ended,
            };
            let seen: Sightings = [("uid".to_owned(), seen)].into_iter().collect();
            assert_eq!(end_at(&seen, second + 1), None);
            assert!(end_at(&seen, second + 9).is_some());
        }
    }

    #[test]
    fn the_policy_only_fails_jobs_and_fits_the_api() {
        let policy = build_failure_policy(Some("trainer".to_owned()));
        assert!(policy.rules.iter().all(|rule| rule.action == "FailJob"));
        assert!(policy.rules.len() <= 20);
        assert_eq!(policy.rules.len(), ExitCode::ALL.len());
    }

    #[test]
    fn a_name_ends_with_the_number_of_an_attempt_or_with_none() {
        for (name, number) in [
            ("nightly-1", Some(1)),
            ("a-b-1000000", Some(1_000_000)),
            ("nightly-1000001", None),
            ("nightly-4294967295", None),
            ("nightly-99999999999999", None),
            ("nightly-0", None),
            ("nightly-x", None),
            ("nightly-", None),
            ("nightly", None),
            ("", None),
        ] {
            assert_eq!(number_in(name), number, "{name}");
        }
    }

    #[test]
    fn states_are_told_apart() {
        for (kind, expected) in [
            ("Complete", JobState::Complete),
            ("Failed", JobState::Failed),
            ("Suspended", JobState::Suspended),
            ("FailureTarget", JobState::Active),
        ] {
            assert_eq!(state(&job(kind, "")), expected);
        }
    }
}
