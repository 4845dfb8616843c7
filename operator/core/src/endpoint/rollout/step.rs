//! One step of the machine: commands first, then what follows by itself.

use graftwork_api::conditions::reason;
use graftwork_api::lora_adapter::Verdict;
use graftwork_api::serving_endpoint::{
    AdapterRollout, Candidate, PausedBy, RejectedDigest, RolloutState, ServedAdapter,
};
use graftwork_api::{Time, VersionedDigest};
use graftwork_contract::Digest;
use jiff::Timestamp;

use super::{Change, End, Inputs, command, is_active, seconds_since};
use crate::conditions::shorten;
use crate::endpoint::analysis::Judgement;
use crate::endpoint::validate::{Step, Strategy};
use crate::plan::Event;

/// All of the callers.
const ALL: u32 = 100;

/// The next change of an adapter's persistent facts; none where nothing changes now.
pub fn step(adapter: &ServedAdapter, inputs: &Inputs<'_>, now: Timestamp) -> Option<Change> {
    let machine = Machine {
        adapter,
        inputs,
        now,
    };
    if let Some(given) = inputs.command {
        return Some(command::obey(&machine, given));
    }
    machine.advance()
}

/// What was persisted, what was observed, and the time.
pub struct Machine<'a> {
    pub adapter: &'a ServedAdapter,
    pub inputs: &'a Inputs<'a>,
    pub now: Timestamp,
}

impl Machine<'_> {
    /// The persisted state; none where the stable version serves alone.
    pub fn state(&self) -> Option<&RolloutState> {
        self.adapter.rollout.as_ref().map(|rollout| &rollout.state)
    }

    fn advance(&self) -> Option<Change> {
        let Some((rollout, candidate)) = self
            .adapter
            .rollout
            .as_ref()
            .zip(self.adapter.candidate.as_ref())
        else {
            return self.rest();
        };
        match rollout.state {
            RolloutState::RollingBack => self.finish_rollback(rollout, candidate),
            RolloutState::Preparing => self
                .withdraw(rollout, candidate)
                .or_else(|| self.refuse(candidate))
                .or_else(|| self.prepare(rollout, candidate)),
            RolloutState::Stepping | RolloutState::Paused => self
                .withdraw(rollout, candidate)
                .or_else(|| self.refuse(candidate))
                .or_else(|| self.judge(rollout, candidate))
                .or_else(|| self.climb(rollout, candidate)),
            RolloutState::Promoting => self
                .withdraw(rollout, candidate)
                .or_else(|| self.refuse(candidate))
                .or_else(|| self.judge(rollout, candidate))
                .or_else(|| self.finish_promotion(rollout, candidate)),
            RolloutState::RolledBack | RolloutState::Other(_) => self.rest(),
        }
    }

    /// No rollout is under way: begin one where another version is wanted.
    fn rest(&self) -> Option<Change> {
        let stable = self.adapter.stable.as_ref();
        if let Some(wanted) = self.inputs.wanted
            && stable.is_none_or(|stable| stable.digest != wanted.digest)
        {
            return Some(self.begin(wanted));
        }
        if self.adapter.rollout.is_none() && self.adapter.candidate.is_none() {
            return None;
        }
        // A rollback stays in sight until spec or gate change.
        let remembered =
            self.inputs.rejected.iter().any(|rejected| {
                rejected.settings_hash.as_deref() == Some(self.inputs.settings_hash)
            });
        let rolled_back = self.state() == Some(&RolloutState::RolledBack);
        if rolled_back && remembered && self.adapter.candidate.is_none() {
            return None;
        }
        Some(Change {
            adapter: ServedAdapter {
                candidate: None,
                rollout: None,
                ..self.adapter.clone()
            },
            ..self.quiet()
        })
    }

    /// A rollout to `version` that a person asked for.
    pub fn begin_commanded(&self, version: &VersionedDigest) -> Change {
        let mut change = self.begin(version);
        if let Some(rollout) = &mut change.adapter.rollout {
            rollout.commanded = true;
        }
        change
    }

    /// A rollout to `version`.
    fn begin(&self, version: &VersionedDigest) -> Change {
        let from = self.adapter.stable.as_ref();
        let salt =
            Digest::of(format!("{}/{}/{}", self.adapter.name, version.digest, self.now).as_bytes());
        let note = match from {
            Some(from) => format!(
                "{}: v{} is to take over from v{}",
                self.adapter.name, version.version, from.version
            ),
            None => format!(
                "{}: v{} is being loaded",
                self.adapter.name, version.version
            ),
        };
        Change {
            adapter: ServedAdapter {
                candidate: Some(Candidate {
                    version: version.version,
                    digest: version.digest.clone(),
                    weight: 0,
                }),
                rollout: Some(AdapterRollout {
                    state: RolloutState::Preparing,
                    step: 0,
                    since: Time(self.now),
                    step_since: None,
                    paused_by: None,
                    commanded: false,
                    failures: 0,
                    window_since: None,
                    last_analysis_time: None,
                    salt: Some(salt.short().to_owned()),
                    reason: Some(reason::PREPARING.to_owned()),
                    message: None,
                    analysis: Vec::new(),
                }),
                ..self.adapter.clone()
            },
            events: vec![Event::normal(reason::PREPARING, shorten(&note))],
            ..self.quiet()
        }
    }

    /// The candidate may not be served any more; or spec or adapter went back to the stable version,
    /// or on to another one.
    fn withdraw(&self, rollout: &AdapterRollout, candidate: &Candidate) -> Option<Change> {
        if let Some(why) = self.inputs.withdrawn {
            let message = format!("v{} is withdrawn: {why}", candidate.version);
            return Some(self.roll_back(reason::CANDIDATE_WITHDRAWN, &message));
        }
        let wanted = self.inputs.wanted?;
        if wanted.digest == candidate.digest {
            return None;
        }
        let back = self
            .adapter
            .stable
            .as_ref()
            .is_some_and(|stable| stable.digest == wanted.digest);
        // What a person began is not ended by a spec that names the stable version all along; and
        // what is nearly there is followed by the next one.
        if (back && rollout.commanded) || (!back && rollout.state == RolloutState::Promoting) {
            return None;
        }
        let message = format!(
            "v{} is wanted in place of v{}",
            wanted.version, candidate.version
        );
        Some(self.roll_back(reason::CANDIDATE_WITHDRAWN, &message))
    }

    fn refuse(&self, candidate: &Candidate) -> Option<Change> {
        let problem = self.inputs.engines.refused.as_ref()?;
        let message = format!(
            "an engine refused v{}: {}: {}",
            candidate.version, problem.reason, problem.message
        );
        Some(self.roll_back(reason::CANDIDATE_REFUSED, &message))
    }

    fn prepare(&self, rollout: &AdapterRollout, candidate: &Candidate) -> Option<Change> {
        let inputs = self.inputs;
        if inputs.engines.have_candidate() {
            if self.adapter.stable.is_none() {
                // There is nothing to compare with and nobody to move.
                return Some(self.settle(candidate));
            }
            return if inputs.routers.follow() {
                Some(self.first_step(rollout))
            } else {
                self.late(rollout)
            };
        }
        self.late(rollout)
    }

    /// Engines or routers that are there and do not get ready in time.
    fn late(&self, rollout: &AdapterRollout) -> Option<Change> {
        let limit = self.inputs.policy.progress_deadline_seconds;
        let entered = rollout
            .step_since
            .as_ref()
            .map_or(rollout.since.0, |time| time.0);
        let nothing_to_go_back_to = self.adapter.stable.is_none();
        if nothing_to_go_back_to
            || self.inputs.engines.ready == 0
            || seconds_since(entered, self.now) < limit
        {
            return None;
        }
        let message = if self.inputs.engines.have_candidate() {
            format!("routers did not take the routing table within progressDeadlineSeconds {limit}")
        } else {
            format!(
                "{} of {} ready engines have the candidate after progressDeadlineSeconds {limit}",
                self.inputs.engines.verified, self.inputs.engines.ready
            )
        };
        Some(self.roll_back(reason::PROGRESS_DEADLINE_EXCEEDED, &message))
    }

    fn first_step(&self, rollout: &AdapterRollout) -> Change {
        match &self.inputs.policy.strategy {
            Strategy::Canary(steps) => self.enter(rollout, steps, 0),
            Strategy::BlueGreen { .. } => self.pause(rollout, 0, PausedBy::Step),
            Strategy::Immediate => self.promote("every engine has it"),
        }
    }

    /// Takes step `index`, or promotes where there is none.
    fn enter(&self, rollout: &AdapterRollout, steps: &[Step], index: usize) -> Change {
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        match steps.get(index) {
            None => self.promote("every step passed"),
            Some(Step::Pause(_)) => self.pause(rollout, number, PausedBy::Step),
            Some(Step::SetWeight(weight)) => {
                let mut next = self.moved(RolloutState::Stepping, reason::STEPPING);
                if let (Some(candidate), Some(rollout)) =
                    (&mut next.adapter.candidate, &mut next.adapter.rollout)
                {
                    candidate.weight = (*weight).min(ALL);
                    rollout.step = number;
                    rollout.step_since = Some(Time(self.now));
                    rollout.window_since = Some(Time(self.now));
                    rollout.analysis = Vec::new();
                    let note = format!(
                        "{}: v{} gets {} % of callers (step {number})",
                        self.adapter.name, candidate.version, candidate.weight
                    );
                    next.events = vec![Event::normal(reason::STEPPING, shorten(&note))];
                }
                next
            }
        }
    }

    /// Holds the weight at step `index`. The step's own clock goes on where it is the same step.
    pub fn pause(&self, from: &AdapterRollout, index: u32, by: PausedBy) -> Change {
        let mut next = self.moved(RolloutState::Paused, reason::PAUSED);
        if let Some(rollout) = &mut next.adapter.rollout {
            let same = from.step == index && from.step_since.is_some();
            rollout.step = index;
            if !same {
                rollout.step_since = Some(Time(self.now));
            }
            rollout.window_since.get_or_insert(Time(self.now));
            rollout.paused_by = Some(by);
        }
        next
    }

    /// Records a judgement, and what follows from a failed one.
    fn judge(&self, rollout: &AdapterRollout, candidate: &Candidate) -> Option<Change> {
        let judgement = self.inputs.judgement?;
        let analysis = self.inputs.policy.analysis.as_ref()?;
        let failed = judgement.verdict == Verdict::Fail;
        // A window that begins ahead of this clock was begun by another one: it begins anew.
        let start = rollout.window_since.as_ref();
        let begins_anew = judgement.gap || start.is_some_and(|start| start.0 > self.now);
        let failures = rollout.failures.saturating_add(u32::from(failed));
        let over = failed && failures > analysis.failure_limit;
        let mut next = if over && self.inputs.policy.auto_rollback {
            let (reason, message) = judgement.failure.clone().unwrap_or_default();
            self.roll_back(reason, &message)
        } else if over
            && rollout.state != RolloutState::Promoting
            && !self.is_paused_by(&PausedBy::Analysis)
        {
            self.pause_after_failure(rollout, candidate, judgement)
        } else {
            Change {
                adapter: self.adapter.clone(),
                ..self.quiet()
            }
        };
        if let Some(rollout) = &mut next.adapter.rollout {
            rollout.failures = failures;
            rollout.last_analysis_time = Some(Time(self.now));
            rollout.analysis.clone_from(&judgement.results);
            if begins_anew {
                rollout.window_since = Some(Time(self.now));
            }
        }
        Some(next)
    }

    fn pause_after_failure(
        &self,
        rollout: &AdapterRollout,
        candidate: &Candidate,
        judgement: &Judgement,
    ) -> Change {
        let (reason, message) = judgement.failure.clone().unwrap_or_default();
        let mut next = self.pause(rollout, rollout.step, PausedBy::Analysis);
        if let Some(rollout) = &mut next.adapter.rollout {
            rollout.reason = Some(reason.to_owned());
            rollout.message = Some(shorten(&message));
        }
        let note = format!(
            "{}: v{} is held: {message}",
            self.adapter.name, candidate.version
        );
        next.events = vec![Event::warning(reason, shorten(&note))];
        next
    }

    /// The next step, where this one is over and traffic allows it.
    fn climb(&self, rollout: &AdapterRollout, candidate: &Candidate) -> Option<Change> {
        if rollout.state == RolloutState::Paused && !self.is_paused_by(&PausedBy::Step) {
            return None;
        }
        if !self.inputs.routers.follow() || !self.inputs.engines.have_candidate() {
            // A step that was never taken can be late; the time of a pause is not a delay.
            return if rollout.state == RolloutState::Stepping {
                self.late(rollout)
            } else {
                None
            };
        }
        let index = rollout.step as usize;
        match &self.inputs.policy.strategy {
            Strategy::Immediate => Some(self.promote("the strategy is Immediate")),
            Strategy::BlueGreen {
                auto_promote,
                preview_seconds,
                ..
            } => {
                let over = Self::is_resumed(rollout)
                    || (*auto_promote && self.elapsed(rollout) >= *preview_seconds);
                (over && self.has_passed(rollout)).then(|| self.promote("the preview is over"))
            }
            Strategy::Canary(steps) => {
                let over = match steps.get(index) {
                    Some(Step::SetWeight(weight)) if candidate.weight != *weight => {
                        // The spec has other steps than when this one was taken.
                        let may = *weight < candidate.weight || self.has_passed(rollout);
                        return may.then(|| self.enter(rollout, steps, index));
                    }
                    Some(Step::Pause(Some(seconds))) => {
                        Self::is_resumed(rollout) || self.elapsed(rollout) >= *seconds
                    }
                    Some(Step::Pause(None)) => Self::is_resumed(rollout),
                    Some(Step::SetWeight(_)) | None => true,
                };
                let more_traffic = !matches!(steps.get(index + 1), Some(Step::Pause(_)));
                let may = over && (!more_traffic || self.has_passed(rollout));
                may.then(|| self.enter(rollout, steps, index + 1))
            }
        }
    }

    /// A pause that a person ended: the state says Stepping at a step that is none.
    fn is_resumed(rollout: &AdapterRollout) -> bool {
        rollout.state == RolloutState::Stepping
    }

    /// Seconds since the step began.
    pub fn elapsed(&self, rollout: &AdapterRollout) -> u64 {
        let entered = rollout
            .step_since
            .as_ref()
            .map_or(rollout.since.0, |time| time.0);
        seconds_since(entered, self.now)
    }

    /// Whether the newest judgement is of the present window and says Pass. Nothing is asked where
    /// nothing is judged.
    fn has_passed(&self, rollout: &AdapterRollout) -> bool {
        if self.inputs.policy.analysis.is_none() {
            return true;
        }
        let judged = rollout
            .last_analysis_time
            .as_ref()
            .zip(rollout.window_since.as_ref())
            .is_some_and(|(last, start)| last.0 > start.0);
        judged
            && !rollout.analysis.is_empty()
            && rollout
                .analysis
                .iter()
                .all(|result| result.verdict == Verdict::Pass)
    }

    /// Whether the pause has that cause.
    pub fn is_paused_by(&self, by: &PausedBy) -> bool {
        self.adapter.rollout.as_ref().is_some_and(|rollout| {
            rollout.state == RolloutState::Paused && rollout.paused_by.as_ref() == Some(by)
        })
    }

    /// Moves all callers to the candidate.
    pub fn promote(&self, why: &str) -> Change {
        let mut next = self.moved(RolloutState::Promoting, reason::PROMOTING);
        if let (Some(candidate), Some(rollout)) =
            (&mut next.adapter.candidate, &mut next.adapter.rollout)
        {
            candidate.weight = ALL;
            rollout.window_since = Some(Time(self.now));
            rollout.step_since = Some(Time(self.now));
            let note = format!(
                "{}: v{} takes over: {why}",
                self.adapter.name, candidate.version
            );
            next.events = vec![Event::normal(reason::PROMOTING, shorten(&note))];
        }
        next
    }

    fn finish_promotion(&self, rollout: &AdapterRollout, candidate: &Candidate) -> Option<Change> {
        let delay = match self.inputs.policy.strategy {
            Strategy::BlueGreen { delay_seconds, .. } => delay_seconds,
            Strategy::Canary(_) | Strategy::Immediate => 0,
        };
        if !self.inputs.routers.follow() {
            return self.late(rollout);
        }
        (seconds_since(rollout.since.0, self.now) >= delay).then(|| self.settle(candidate))
    }

    /// The candidate is the stable version.
    fn settle(&self, candidate: &Candidate) -> Change {
        let note = format!("{}: v{} is stable", self.adapter.name, candidate.version);
        Change {
            adapter: ServedAdapter {
                stable: Some(VersionedDigest {
                    version: candidate.version,
                    digest: candidate.digest.clone(),
                }),
                candidate: None,
                rollout: None,
                ..self.adapter.clone()
            },
            // What serves everybody is not on the list of what must not be tried, whatever brought it there.
            forgiven: Some(candidate.digest.clone()),
            end: Some((End::Promoted, format!("v{} is stable", candidate.version))),
            events: vec![Event::normal(reason::ALL_STABLE, shorten(&note))],
            ..self.quiet()
        }
    }

    /// Gives the stable version all traffic back. Nobody is waited for.
    pub fn roll_back(&self, why: &'static str, message: &str) -> Change {
        let mut next = self.moved(RolloutState::RollingBack, why);
        let Some(candidate) = &mut next.adapter.candidate else {
            return next;
        };
        candidate.weight = 0;
        if let Some(rollout) = &mut next.adapter.rollout {
            rollout.message = Some(shorten(message));
        }
        let note = format!(
            "{}: v{} is taken back: {message}",
            self.adapter.name, candidate.version
        );
        next.events = vec![if why == reason::CANDIDATE_WITHDRAWN {
            Event::normal(why, shorten(&note))
        } else {
            Event::warning(why, shorten(&note))
        }];
        let version = VersionedDigest {
            version: candidate.version,
            digest: candidate.digest.clone(),
        };
        next.rejected =
            (why != reason::CANDIDATE_WITHDRAWN).then(|| self.reject(&version, why, message));
        next
    }

    /// The entry that keeps a version from being tried again by itself.
    pub fn reject(&self, version: &VersionedDigest, why: &str, message: &str) -> RejectedDigest {
        RejectedDigest {
            adapter: self.adapter.name.clone(),
            digest: version.digest.clone(),
            version: version.version,
            reason: why.to_owned(),
            message: shorten(message),
            time: Time(self.now),
            settings_hash: Some(self.inputs.settings_hash.to_owned()),
        }
    }

    /// The candidate can go once every ready router has a table without it; a router that does not
    /// answer has dropped it by itself when its lease ended.
    fn finish_rollback(&self, rollout: &AdapterRollout, candidate: &Candidate) -> Option<Change> {
        let routers = self.inputs.routers;
        let gone = routers.ready == 0 || routers.acknowledged;
        let expired = seconds_since(rollout.since.0, self.now) > self.inputs.policy.lease_seconds;
        if !gone && !expired {
            return None;
        }
        let end = Some((End::TakenBack, taken_back(rollout, candidate)));
        let forgiven = self.kept_after_all();
        if rollout.reason.as_deref() == Some(reason::CANDIDATE_WITHDRAWN) {
            return Some(Change {
                adapter: ServedAdapter {
                    candidate: None,
                    rollout: None,
                    ..self.adapter.clone()
                },
                forgiven,
                end,
                ..self.quiet()
            });
        }
        let mut next = self.moved(RolloutState::RolledBack, reason::ROLLING_BACK);
        next.adapter.candidate = None;
        if let Some(next) = &mut next.adapter.rollout {
            next.reason.clone_from(&rollout.reason);
            next.message = rollout.message.as_ref().map(|message| {
                let version = format!("v{}", candidate.version);
                shorten(&if message.contains(&version) {
                    message.clone()
                } else {
                    format!("{version}: {message}")
                })
            });
        }
        next.forgiven = forgiven;
        next.end = end;
        Some(next)
    }

    /// The stable version, where a person said to leave it and what was to take over is taken back: it was not
    /// left, and may be followed as before.
    fn kept_after_all(&self) -> Option<String> {
        let stable = self.adapter.stable.as_ref()?;
        let mut rejected = self.inputs.rejected.iter();
        let was_left = rejected
            .any(|it| it.digest == stable.digest && it.reason == reason::ROLLED_BACK_BY_USER);
        was_left.then(|| stable.digest.clone())
    }

    /// The same facts in another state, entered now.
    fn moved(&self, state: RolloutState, why: &str) -> Change {
        let mut adapter = self.adapter.clone();
        if let Some(rollout) = &mut adapter.rollout {
            rollout.state = state;
            rollout.since = Time(self.now);
            rollout.paused_by = None;
            rollout.reason = Some(why.to_owned());
            rollout.message = None;
        }
        Change {
            adapter,
            ..self.quiet()
        }
    }

    /// A pause that is over, or a rollout that goes on: Stepping at the same step.
    pub fn resume(&self) -> Change {
        let mut next = self.moved(RolloutState::Stepping, reason::STEPPING);
        if self.is_paused_by(&PausedBy::Analysis)
            && let Some(rollout) = &mut next.adapter.rollout
        {
            rollout.failures = 0;
            rollout.window_since = Some(Time(self.now));
            rollout.analysis = Vec::new();
        }
        next
    }

    /// No change.
    pub fn quiet(&self) -> Change {
        Change {
            adapter: self.adapter.clone(),
            rejected: None,
            forgiven: None,
            answer: None,
            end: None,
            events: Vec::new(),
        }
    }

    /// Whether a rollout is under way.
    pub fn is_active(&self) -> bool {
        self.adapter.candidate.is_some() && self.state().is_some_and(is_active)
    }
}

/// What became of a candidate that was taken back, in a sentence.
fn taken_back(rollout: &AdapterRollout, candidate: &Candidate) -> String {
    let version = format!("v{}", candidate.version);
    let Some(why) = &rollout.message else {
        return format!("{version} was taken back");
    };
    let withdrawn = format!("{version} is withdrawn: ");
    let why = why.strip_prefix(withdrawn.as_str()).unwrap_or(why);
    format!("{version} was taken back: {why}")
}
