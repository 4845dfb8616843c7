//! What keeps an object's children or their pods from coming to be: the API server refuses them. It
//! is said in the condition by which the object is judged, and is gone from there when the next plan
//! can be carried out, because every plan makes its conditions anew.

use graftwork_api::Condition;
use graftwork_api::conditions::{condition, reason};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;

use crate::conditions::{self, Conditions, Truth};
use crate::jobs::{self, JobState, seconds_between};
use crate::observed::Pod;
use crate::plan::Event;
use crate::sightings::Sightings;

/// Time that a Job's controller takes at most to make a pod that is not refused.
const POD_WITHIN_SECONDS: u64 = 15;
/// It seldom takes so long: the Job's events may say why.
const LATE_SECONDS: u64 = 3;
/// Seconds after which a Job that has no pod yet is looked at again.
pub const LOOK_FOR_POD_SECONDS: u64 = LATE_SECONDS + 1;

/// What is in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hindrance {
    /// Whether it is known to be a refusal; else what the plan says stays, in these words.
    pub refused: bool,
    /// Who refuses what, in the API server's words.
    pub message: String,
}

/// The condition by which an object is judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged<'a> {
    /// Its type.
    pub condition: &'a str,
    /// `metadata.generation` of the object that was looked at.
    pub generation: Option<i64>,
    /// The conditions that its status has.
    pub old: &'a [Condition],
}

/// What a plan says where the spec names something that is not there: mending that comes first, as with
/// everything that makes an object Stalled.
const FIRST_TO_MEND: [&str; 2] = [reason::BASE_MODEL_NOT_FOUND, reason::SOURCE_NOT_FOUND];

/// Why a Deployment's pods can't be made, in the API server's words.
pub fn replica_failure(deployment: &Deployment) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.iter().flatten();
    let failure = conditions
        .filter(|known| known.type_ == "ReplicaFailure" && known.status == "True")
        .find_map(|known| known.message.clone())?;
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    Some(format!("pods of Deployment {name} are refused: {failure}"))
}

/// A Job that should have a pod by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Podless<'a> {
    /// Its name.
    pub job: &'a str,
    /// Its UID: a Job before it may have had that name.
    pub uid: &'a str,
    /// Seconds since it was made.
    pub seconds: u64,
}

/// The Job if it should have a pod and has none: its controller tells of what it is refused in events only.
pub fn without_pod<'a>(
    job: &'a Job,
    pods: &[Pod],
    seen: &Sightings,
    now: Timestamp,
) -> Option<Podless<'a>> {
    let metadata = &job.metadata;
    let name = metadata.name.as_deref()?;
    let counted = job.status.as_ref().is_some_and(|status| {
        [status.active, status.succeeded, status.failed]
            .into_iter()
            .flatten()
            .any(|pods| pods > 0)
    });
    let seconds = seconds_between(seen.made(job), Some(now));
    let lacks = jobs::state(job) == JobState::Active
        && metadata.deletion_timestamp.is_none()
        && !counted
        && seconds > LATE_SECONDS
        && !pods
            .iter()
            .any(|pod| pod.labels.get(jobs::JOB_NAME_LABEL).map(String::as_str) == Some(name));
    lacks.then_some(Podless {
        job: name,
        uid: metadata.uid.as_deref().unwrap_or_default(),
        seconds,
    })
}

/// A Job without a pod, with the words of its newest event about that; none where there is no event and its controller
/// may only be slow.
pub fn no_pod(podless: Podless<'_>, event: Option<&str>) -> Option<Hindrance> {
    let job = podless.job;
    if let Some(words) = event {
        return Some(Hindrance {
            refused: true,
            message: format!("pods of Job {job} are refused: {words}"),
        });
    }
    (podless.seconds > POD_WITHIN_SECONDS).then(|| Hindrance {
        refused: false,
        message: format!(
            "Job {job} has had no pod for more than {POD_WITHIN_SECONDS} s: a quota, Pod Security or \
             another policy may refuse it; the Job's events say which"
        ),
    })
}

/// A Job without a pod, because of its `PriorityClass`.
pub fn no_priority_class(job: &str, class: &str) -> Hindrance {
    Hindrance {
        refused: true,
        message: format!(
            "spec.compute.priorityClassName: there is no PriorityClass \"{class}\", and Job {job} gets \
             no pod without it; create it, or name another one in a new run"
        ),
    }
}

/// Puts what is in the way into the conditions and events of a plan for an object. Returns whether there was
/// a place for it: an object that is finished keeps its verdict, and one whose spec can't work goes on saying
/// so.
pub fn say(
    judged: Judged<'_>,
    hindrance: &Hindrance,
    next: &mut Vec<Condition>,
    events: &mut Vec<Event>,
    now: Timestamp,
) -> bool {
    let Judged {
        condition: judged,
        generation,
        old,
    } = judged;
    let planned = conditions::find(next, judged).cloned();
    let is_spec = planned.as_ref().is_some_and(|planned| {
        let first = conditions::is_true(next, condition::STALLED)
            || FIRST_TO_MEND.contains(&planned.reason.as_str());
        // A run whose spec can't work as things are may go on once they have changed: it is Unknown.
        let fails = planned.status == "False" || judged == condition::SUCCEEDED;
        first && fails && planned.observed_generation == generation
    });
    if is_spec || conditions::is_true(next, condition::FINISHED) {
        return false;
    }
    let planned_reason = planned.as_ref().map(|planned| planned.reason.clone());
    let planned_reason = planned_reason.unwrap_or_default();
    let (truth, why) = match &planned {
        Some(planned) if !hindrance.refused => {
            let truth = match planned.status.as_str() {
                "True" => Truth::True,
                "False" => Truth::False,
                _ => Truth::Unknown,
            };
            (truth, planned_reason.as_str())
        }
        // A run that ended is judged for good, and a quota may be lifted any moment.
        _ if judged == condition::SUCCEEDED => (Truth::Unknown, reason::CHILD_REFUSED),
        _ => (Truth::False, reason::CHILD_REFUSED),
    };
    // Transition times count from what status says, not from what the plan would have said.
    for known in next.iter_mut() {
        if let Some(before) = conditions::find(old, &known.type_)
            && (known.type_ == judged || known.type_ == condition::RECONCILING)
        {
            known.clone_from(before);
        }
    }
    let mut list = Conditions::new(next, generation, now);
    list.set(judged, truth, why, &hindrance.message);
    list.set_while(condition::RECONCILING, true, why, &hindrance.message);
    list.set_while(condition::STALLED, false, why, "");
    *next = list.into_list();
    // What the plan would have said of the condition is not so.
    events.retain(|event| event.reason != planned_reason);
    if conditions::has_turned(old, next, judged) {
        let note = conditions::shorten(&hindrance.message);
        events.push(Event::warning(why, note));
    }
    true
}

#[cfg(test)]
mod tests {
    use graftwork_api::Time;
    use serde_json::json;

    use super::*;
    use crate::fixtures::at;

    fn refused() -> Hindrance {
        Hindrance {
            refused: true,
            message: "deployments.apps \"x\" is forbidden: exceeded quota (403)".to_owned(),
        }
    }

    /// Of an object at the generation that [`planned`] is for.
    fn by<'a>(condition: &'a str, old: &'a [Condition]) -> Judged<'a> {
        Judged {
            condition,
            generation: Some(3),
            old,
        }
    }

    /// What a plan says on top of `old`.
    fn planned(old: &[Condition], kind: &str, truth: Truth, why: &str) -> Vec<Condition> {
        let mut list = Conditions::new(old, Some(3), at(50));
        list.set(kind, truth, why, "as planned");
        list.set_while(condition::RECONCILING, false, why, "");
        list.into_list()
    }

    #[test]
    fn a_refusal_stands_in_the_condition_with_the_servers_words_and_one_warning() {
        for (judged, truth) in [
            (condition::READY, "False"),
            (condition::SUCCEEDED, "Unknown"),
        ] {
            let mut next = planned(&[], judged, Truth::Unknown, reason::STARTING);
            let mut events = vec![
                Event::normal(reason::STARTING, "as planned"),
                Event::normal(reason::GATE_PASSED, "something else"),
            ];
            assert!(say(
                by(judged, &[]),
                &refused(),
                &mut next,
                &mut events,
                at(50)
            ));
            let found = conditions::find(&next, judged).unwrap();
            assert_eq!(found.status, truth);
            assert_eq!(found.reason, reason::CHILD_REFUSED);
            assert!(found.message.contains("exceeded quota"));
            assert_eq!(found.observed_generation, Some(3));
            assert!(conditions::is_true(&next, condition::RECONCILING));
            let reasons: Vec<_> = events.iter().map(|event| event.reason.as_str()).collect();
            assert_eq!(reasons, [reason::GATE_PASSED, reason::CHILD_REFUSED]);
        }
    }

    #[test]
    fn a_refusal_that_lasts_is_written_and_told_once() {
        let mut first = planned(&[], condition::READY, Truth::Unknown, reason::BUILDING);
        say(
            by(condition::READY, &[]),
            &refused(),
            &mut first,
            &mut Vec::new(),
            at(50),
        );
        let mut second = planned(&first, condition::READY, Truth::Unknown, reason::BUILDING);
        let mut events = vec![Event::normal(reason::BUILDING, "as planned")];
        say(
            by(condition::READY, &first),
            &refused(),
            &mut second,
            &mut events,
            at(90),
        );
        let ready = |list: &[Condition]| conditions::find(list, condition::READY).cloned();
        assert_eq!(ready(&second), ready(&first), "transition time and all");
        let of = |list: &[Condition]| list.iter().map(|it| it.type_.clone()).collect::<Vec<_>>();
        assert_eq!(of(&second), of(&first), "in the same order");
        assert_eq!(events, []);
    }

    #[test]
    fn a_plan_that_can_be_carried_out_says_nothing_of_an_earlier_refusal() {
        let mut first = planned(&[], condition::READY, Truth::Unknown, reason::BUILDING);
        say(
            by(condition::READY, &[]),
            &refused(),
            &mut first,
            &mut Vec::new(),
            at(50),
        );
        let second = planned(&first, condition::READY, Truth::True, reason::READY);
        assert!(conditions::is_true(&second, condition::READY));
        assert_eq!(conditions::find(&second, condition::RECONCILING), None);
    }

    #[test]
    fn a_finished_run_keeps_its_verdict() {
        let mut list = Conditions::new(&[], Some(1), at(0));
        list.set(condition::SUCCEEDED, Truth::True, reason::COMPLETED, "");
        list.set(condition::FINISHED, Truth::True, reason::COMPLETED, "");
        let old = list.into_list();
        let mut next = old.clone();
        let mut events = Vec::new();
        let said = say(
            by(condition::SUCCEEDED, &old),
            &refused(),
            &mut next,
            &mut events,
            at(9),
        );
        assert!(!said);
        assert_eq!((next, events), (old, Vec::new()));
    }

    /// A refusal stood in a condition, then the spec came to name something that can't work.
    fn refused_then_cannot_work(judged: &'static str, truth: Truth, why: &str, stalled: bool) {
        let mut old = planned(&[], judged, Truth::Unknown, reason::BUILDING);
        let no_events = &mut Vec::new();
        say(by(judged, &[]), &refused(), &mut old, no_events, at(40));
        for hindrance in [refused(), slow("x-1")] {
            let mut next = Conditions::new(&old, Some(3), at(50));
            next.set(judged, truth, why, "spec.x: 5");
            next.set_while(condition::RECONCILING, false, why, "");
            next.set_while(condition::STALLED, stalled, why, "spec.x: 5");
            let mut next = next.into_list();
            let before = next.clone();
            let mut events = vec![Event::warning(why, "spec.x: 5")];
            let said = say(by(judged, &old), &hindrance, &mut next, &mut events, at(50));
            assert!(!said, "{why}");
            assert_eq!(next, before, "{why}");
            assert_eq!(events.len(), 1, "{why}");
        }
    }

    #[test]
    fn a_spec_that_cannot_work_goes_on_saying_so_whatever_is_refused() {
        for (why, stalled) in [
            (reason::INVALID_SPEC, true),
            (reason::COMPUTE_PROFILE_NOT_FOUND, true),
            (reason::OBJECT_NOT_OURS, true),
            (reason::BASE_MODEL_NOT_FOUND, false),
            (reason::SOURCE_NOT_FOUND, false),
        ] {
            refused_then_cannot_work(condition::READY, Truth::False, why, stalled);
        }
        // A run that can go on later is Unknown meanwhile.
        for why in [
            reason::COMPUTE_PROFILE_NOT_FOUND,
            reason::OBJECT_NOT_OURS,
            reason::BASE_MODEL_NOT_FOUND,
        ] {
            refused_then_cannot_work(condition::SUCCEEDED, Truth::Unknown, why, true);
        }
    }

    #[test]
    fn a_refusal_is_about_the_generation_that_was_looked_at() {
        // The plan leaves status alone: what is there is about the spec before.
        for (truth, stalled) in [(Truth::True, false), (Truth::False, true)] {
            let mut old = Conditions::new(&[], Some(2), at(0));
            old.set(condition::READY, truth, reason::READY, "");
            old.set_while(condition::RECONCILING, !stalled, reason::READY, "");
            old.set_while(condition::STALLED, stalled, reason::INVALID_SPEC, "");
            let old = old.into_list();
            for from in [old.as_slice(), &[]] {
                let mut next = from.to_vec();
                let events = &mut Vec::new();
                let said = say(
                    by(condition::READY, &old),
                    &refused(),
                    &mut next,
                    events,
                    at(9),
                );
                assert!(said);
                for kind in [condition::READY, condition::RECONCILING] {
                    let found = conditions::find(&next, kind).unwrap();
                    assert_eq!(found.reason, reason::CHILD_REFUSED);
                    assert_eq!(found.observed_generation, Some(3), "{kind}");
                }
                assert_eq!(conditions::find(&next, condition::STALLED), None);
            }
        }
    }

    /// A Job whose controller says nothing.
    fn slow(job: &str) -> Hindrance {
        let podless = Podless {
            job,
            uid: "",
            seconds: 16,
        };
        no_pod(podless, None).unwrap()
    }

    #[test]
    fn why_a_job_gets_no_pod_is_said_in_the_words_of_its_event_at_once_and_without_one_after_a_while()
     {
        let podless = |seconds| Podless {
            job: "x-1",
            uid: "",
            seconds,
        };
        let hindrance = no_pod(podless(4), Some("exceeded quota: few")).unwrap();
        assert!(hindrance.refused);
        assert_eq!(
            hindrance.message,
            "pods of Job x-1 are refused: exceeded quota: few"
        );
        assert_eq!(no_pod(podless(15), None), None);
        assert!(!no_pod(podless(16), None).unwrap().refused);
    }

    #[test]
    fn a_job_without_a_pod_is_noticed_after_a_while() {
        let job = |status: serde_json::Value| -> Job {
            serde_json::from_value(json!({
                "metadata": {"name": "run-1", "creationTimestamp": Time(at(0))},
                "status": status,
            }))
            .unwrap()
        };
        let nothing = job(json!({}));
        let seen = Sightings::default();
        assert_eq!(without_pod(&nothing, &[], &seen, at(3)), None);
        let podless = |seconds| Podless {
            job: "run-1",
            uid: "",
            seconds,
        };
        assert_eq!(without_pod(&nothing, &[], &seen, at(4)), Some(podless(4)));
        let pod = |of: &str| Pod {
            labels: [(jobs::JOB_NAME_LABEL.to_owned(), of.to_owned())].into(),
            ..Pod::default()
        };
        assert_eq!(without_pod(&nothing, &[pod("run-1")], &seen, at(60)), None);
        assert_eq!(
            without_pod(&nothing, &[pod("run-2")], &seen, at(60)),
            Some(podless(60))
        );
        for other in [
            json!({"active": 1}),
            json!({"conditions": [{"type": "Suspended", "status": "True"}]}),
            json!({"conditions": [{"type": "Failed", "status": "True"}]}),
        ] {
            assert_eq!(
                without_pod(&job(other.clone()), &[], &seen, at(60)),
                None,
                "{other}"
            );
        }
    }

    #[test]
    fn a_job_without_a_pod_changes_the_words_and_nothing_else() {
        let mut next = planned(&[], condition::SUCCEEDED, Truth::Unknown, reason::STARTING);
        let mut events = Vec::new();
        let hindrance = slow("run-1");
        say(
            by(condition::SUCCEEDED, &[]),
            &hindrance,
            &mut next,
            &mut events,
            at(50),
        );
        let found = conditions::find(&next, condition::SUCCEEDED).unwrap();
        assert_eq!(found.reason, reason::STARTING);
        assert_eq!(found.status, "Unknown");
        assert!(found.message.contains("run-1"), "{}", found.message);
    }

    #[test]
    fn a_deployment_whose_pods_are_refused_says_why() {
        let deployment = |status: &str| -> Deployment {
            serde_json::from_value(json!({
                "metadata": {"name": "keeper"},
                "status": {"conditions": [{
                    "type": "ReplicaFailure", "status": status, "reason": "FailedCreate",
                    "message": "pods \"keeper-x\" is forbidden: violates PodSecurity",
                }]},
            }))
            .unwrap()
        };
        let why = replica_failure(&deployment("True")).unwrap();
        assert!(
            why.contains("keeper") && why.contains("violates PodSecurity"),
            "{why}"
        );
        assert_eq!(replica_failure(&deployment("False")), None);
        assert_eq!(replica_failure(&Deployment::default()), None);
    }
}
