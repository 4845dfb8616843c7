//! Condition types and reasons: every word that a condition, a version or a rollout can give as
//! its reason, with its meaning and what to do. `docs/conditions.md` is printed from this table.

use std::fmt::Write as _;

/// Condition types. All are set on every object of their kind, `Unknown` while undecided, but for
/// [`RECONCILING`] and [`STALLED`], which exist only while true.
pub mod condition {
    /// The object does what its spec says. Dataset, LoRAAdapter, ServingEndpoint.
    pub const READY: &str = "Ready";
    /// The run ended well (True) or badly (False); Unknown while it can still go on. TrainingRun.
    pub const SUCCEEDED: &str = "Succeeded";
    /// The run ended, well or badly. TrainingRun.
    pub const FINISHED: &str = "Finished";
    /// A version may see traffic. LoRAAdapter.
    pub const VERSION_AVAILABLE: &str = "VersionAvailable";
    /// At least one engine and one router answer. ServingEndpoint.
    pub const AVAILABLE: &str = "Available";
    /// A rollout is under way. ServingEndpoint.
    pub const PROGRESSING: &str = "Progressing";
    /// The newest candidate of an adapter was taken back. ServingEndpoint.
    pub const ROLLED_BACK: &str = "RolledBack";
    /// An adapter that the spec names is not served yet. ServingEndpoint.
    pub const ADAPTERS_PENDING: &str = "AdaptersPending";
    /// The operator works towards the spec (kstatus); absent when it does not.
    pub const RECONCILING: &str = "Reconciling";
    /// Nothing will change without a change from outside (kstatus); absent when that is not so.
    pub const STALLED: &str = "Stalled";

    /// Types that every Dataset carries.
    pub const OF_DATASET: &[&str] = &[READY];
    /// Types that every TrainingRun carries.
    pub const OF_TRAINING_RUN: &[&str] = &[SUCCEEDED, FINISHED];
    /// Types that every LoRAAdapter carries.
    pub const OF_LORA_ADAPTER: &[&str] = &[READY, VERSION_AVAILABLE];
    /// Types that every ServingEndpoint carries.
    pub const OF_SERVING_ENDPOINT: &[&str] =
        &[READY, AVAILABLE, PROGRESSING, ROLLED_BACK, ADAPTERS_PENDING];
}

/// One reason, for people.
#[derive(Clone, Copy, Debug)]
pub struct ReasonEntry {
    /// The word itself.
    pub name: &'static str,
    /// Where it appears.
    pub appears: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

macro_rules! reasons {
    ($( $constant:ident = $name:literal, $appears:literal, $meaning:literal, $remedy:literal; )+) => {
        /// Reasons as they stand in conditions, versions and rollouts.
        pub mod reason {
            $(
                #[doc = $meaning]
                pub const $constant: &str = $name;
            )+
        }

        /// Every reason with its meaning and remedy.
        pub const REASONS: &[ReasonEntry] = &[
            $( ReasonEntry { name: $name, appears: $appears, meaning: $meaning, remedy: $remedy }, )+
        ];
    };
}

reasons! {
    READY = "Ready", "Ready", "The object does what its spec says.", "None.";
    INVALID_SPEC = "InvalidSpec", "Ready, Succeeded, Stalled", "A field of the spec has a value that cannot work; the message names field, value and limit.", "Correct the field. Children that run already are left as they are; a candidate of a ServingEndpoint goes back to its stable version until then.";
    STORAGE_UNAVAILABLE = "StorageUnavailable", "Ready, Succeeded (Unknown)", "The artifact store cannot be reached: its claim is not bound, its bucket does not answer or refuses, or the keeper does not answer.", "Look at the claim, the bucket with its Secret, or the keeper pod that the message names; the operator tries again by itself.";
    OBJECT_NOT_OURS = "ObjectNotOurs", "Ready, Succeeded (Unknown), Stalled", "An object of the name that the operator needs exists and belongs to somebody else.", "Rename or remove the object that the message names; it is never taken over.";
    COMPUTE_PROFILE_NOT_FOUND = "ComputeProfileNotFound", "Ready, Succeeded (Unknown), Stalled", "The installation has no compute profile of that name, or no spot nodes for it.", "Name one of the profiles in the message, or add one, or its spot nodes, to the chart's values.";
    CLAIM_NOT_FOUND = "ClaimNotFound", "TrainingRun Succeeded (Unknown), Stalled", "A claim that the run reads a benchmark from, or writes its model to, is not there or has no volume; the message names the field.", "Create the claim, with what the field names on it; the run goes on by itself.";
    BASE_MODEL_NOT_FOUND = "BaseModelNotFound", "Ready, Succeeded (Unknown), Stalled", "The claim or folder of the base model is not there, or lacks a file such as config.json.", "Put the files there, or correct baseModel.uri; the operator looks again by itself.";
    BASE_MODEL_INVALID = "BaseModelInvalid", "Ready, Succeeded (Unknown), Stalled", "A file of the base model cannot be read as what it should be.", "Replace the file that the message names.";
    BASE_MODEL_UNSUPPORTED = "BaseModelUnsupported", "Ready, Succeeded (Unknown), Stalled", "The base model has an architecture or a setting that is not implemented; the message names it.", "Use a Llama, Mistral, Qwen 2, Qwen 3 or Gemma 3 (text) model.";
    BASE_MODEL_MISMATCH = "BaseModelMismatch", "versions, AdaptersPending, Succeeded (Unknown), Stalled", "The adapter was made for another base model; both digests are in the message.", "Train the adapter for this base, or serve it on an endpoint of its own.";
    CHILD_REFUSED = "ChildRefused", "Ready, Succeeded (Unknown)", "The API server refuses an object that is needed, or its pods: a quota, Pod Security or another admission policy, or a PriorityClass that does not exist. The message has the server's words.", "Raise the quota, or change the policy or the field that the message names; the operator tries again by itself.";
    INTERNAL_ERROR = "InternalError", "Ready, Succeeded", "A bug of graftwork.", "Report the message and the operator's log; the operator tries again by itself.";

    BUILDING = "Building", "Dataset Ready, Reconciling", "A Job builds a version, or is about to.", "Wait.";
    SOURCE_NOT_FOUND = "SourceNotFound", "Dataset Ready", "A ConfigMap, key, claim, file, bucket, object or Secret that a source names, or the Secret with the key of pseudonyms, is not there.", "Create it, or correct the field that the message names; the operator looks again by itself.";
    SPLIT_EMPTY = "SplitEmpty", "Dataset events", "A part of the split that is to have a share of the rows got none; the message names it.", "Give the Dataset more rows, or more values of groupColumn, or change spec.split; runs on this version measure nothing there.";
    DATA_ERROR = "DataError", "Dataset Ready, TrainingRun Succeeded", "The rows break the spec's validation: too many invalid or too few valid; the message names source, line and rule.", "Correct the rows, or relax spec.validation.";
    SOURCE_DENIED = "SourceDenied", "Dataset Ready", "A source's database, store or server refuses who asks, or its certificate or address is not allowed; the message says which.", "Correct the Secret, the user's grants or dataSources.allow in the chart's values, then change the annotation graftwork.dev/refresh.";
    SOURCE_UNAVAILABLE = "SourceUnavailable", "Dataset Ready", "A source's database, store or server does not answer, or went away in the middle of its rows; nothing of them is kept.", "Look at it; the operator tries again by itself, at growing intervals.";
    QUERY_FAILED = "QueryFailed", "Dataset Ready", "A source's query cannot be answered, takes longer or has more rows than it may, or has a column of a type that is not taken; or the SQL of spec.transform can't be used or does not fit in memory. The message names line and column, limit or type.", "Correct the query or spec.transform, or raise timeoutSeconds or maximumRows of the source.";
    BUILD_FAILED = "BuildFailed", "Dataset Ready", "The Job that builds a version failed for a reason other than the rows.", "Read the message and the Job's log. The operator tries again by itself, at growing intervals, where the message names the time of the next attempt; otherwise change the annotation graftwork.dev/refresh.";

    WAITING_FOR_DATASET = "WaitingForDataset", "TrainingRun Succeeded (Unknown)", "The Dataset, or the version that the run names, is not there or not ready.", "Wait for the Dataset, or create it.";
    WAITING_FOR_ADAPTER = "WaitingForAdapter", "TrainingRun Succeeded (Unknown)", "The LoRAAdapter that the run publishes to is not there or not ready.", "Create it, or see its own conditions.";
    QUEUED = "Queued", "TrainingRun Succeeded (Unknown)", "The run's pod waits for a node or for a queue to let it in.", "Look at the pod's events, or at the queue.";
    SUSPENDED = "Suspended", "TrainingRun Succeeded (Unknown)", "spec.suspend is set; what was trained is in the newest checkpoint.", "Set spec.suspend to false to go on.";
    STARTING = "Starting", "TrainingRun Succeeded (Unknown)", "The run's pod is starting and reads model and data.", "Wait.";
    TRAINING = "Training", "TrainingRun Succeeded (Unknown)", "The run takes optimizer steps.", "Wait.";
    EVALUATING = "Evaluating", "TrainingRun Succeeded (Unknown)", "The run measures on the test rows.", "Wait.";
    RESTARTING = "Restarting", "TrainingRun Succeeded (Unknown)", "An attempt ended early; the next one goes on from the newest checkpoint.", "Wait; the message says why the attempt ended and when the next one starts.";
    COMPLETED = "Completed", "TrainingRun Succeeded (True)", "The result is in the store.", "None.";
    DIVERGED = "Diverged", "TrainingRun Succeeded (False)", "The loss, a gradient or a trained value is not finite, or the loss has exploded.", "Lower learningRate or maximumGradientNorm in a new run.";
    OUT_OF_MEMORY = "OutOfMemory", "TrainingRun Succeeded (False)", "The pod needed more memory than its profile gives.", "Lower microBatchSize or maximumSequenceLength, or name a larger profile, in a new run.";
    IMAGE_UNAVAILABLE = "ImageUnavailable", "TrainingRun Succeeded (False)", "The trainer's image cannot be pulled.", "Correct the image in the compute profile.";
    RETRIES_EXHAUSTED = "RetriesExhausted", "TrainingRun Succeeded (False)", "The run failed more often than limits.retries allows.", "Read the message; correct the cause and start a new run.";
    DEADLINE_EXCEEDED = "DeadlineExceeded", "TrainingRun Succeeded (False)", "The attempts were active longer than limits.durationSeconds.", "Start a new run with a longer limit.";

    NO_VERSIONS = "NoVersions", "LoRAAdapter VersionAvailable", "The adapter has no version yet.", "Start a TrainingRun with this adapterRef, or set spec.import.";
    VERSION_APPROVED = "VersionApproved", "LoRAAdapter VersionAvailable (True)", "A version may see traffic.", "None.";
    NO_VERSION_APPROVED = "NoVersionApproved", "LoRAAdapter VersionAvailable (False)", "There are versions, and none of them may see traffic.", "Look at status.versions: approve one, or train a better one.";
    IMPORT_FAILED = "ImportFailed", "LoRAAdapter Ready", "The folder of spec.import cannot become a version; the message names the file and what is wrong.", "Correct the folder or spec.import; the operator looks again by itself.";
    DIGEST_MISMATCH = "DigestMismatch", "LoRAAdapter Ready, versions", "The files do not have the digest that was stated.", "Correct the digest, or find out who changed the files.";
    FILE_TYPE_REFUSED = "FileTypeRefused", "LoRAAdapter Ready, versions", "A file's content is pickled Python, an archive, a program or of an unknown kind; the message names the file.", "Take the file out of the folder, or convert it to safetensors, JSON or Markdown.";
    ADAPTER_INVALID = "AdapterInvalid", "LoRAAdapter Ready, versions", "A file of the adapter cannot be read as what it should be, or holds values that are not finite.", "Replace the file that the message names.";
    ADAPTER_INCOMPATIBLE = "AdapterIncompatible", "LoRAAdapter Ready, versions", "Rank, target modules or shapes of the version do not fit the base model; the message names them.", "Train or import a version for this base model.";
    FILES_NOT_FOUND = "FilesNotFound", "versions (Candidate)", "The store has a record of the version and not its folder.", "Put the folder back, from a backup; the operator looks again by itself.";
    GATE_PENDING = "GatePending", "versions (Candidate)", "The gate has not judged the version yet.", "Wait.";
    GATE_PASSED = "GatePassed", "versions (Approved)", "Every rule of the gate passed.", "None.";
    GATE_FAILED = "GateFailed", "versions (Rejected)", "A rule of the gate failed; the message has value and limit.", "Train a better version; or change the gate, under which the version is judged anew.";
    GATE_INCONCLUSIVE = "GateInconclusive", "versions (Candidate)", "A rule of the gate cannot be judged with the confidence asked for.", "Set approval to Manual and approve the version by hand, or measure on more test rows in a new run.";
    AWAITING_APPROVAL = "AwaitingApproval", "versions (Candidate)", "A person has to approve the version.", "Write the command Approve to status.commands.";
    APPROVED_BY_USER = "ApprovedByUser", "versions (Approved)", "A person approved the version.", "None.";
    REJECTED_BY_USER = "RejectedByUser", "versions (Rejected)", "A person rejected the version.", "Train or import another version.";
    STABLE_ON_ENDPOINT = "StableOnEndpoint", "versions (Production)", "The version is stable on the endpoints in status.production.", "None.";
    ROLLED_BACK_ON_ENDPOINT = "RolledBackOnEndpoint", "versions (Rejected)", "The version was rolled back on the endpoint that the message names, and is stable nowhere.", "Train a better version, or write the command Retry to that endpoint.";

    ENGINES_NOT_READY = "EnginesNotReady", "ServingEndpoint Ready, Available", "No engine is ready yet.", "Look at the engine pods and their events.";
    ROUTERS_NOT_READY = "RoutersNotReady", "ServingEndpoint Ready, Available", "No router is ready yet.", "Look at the router pods and their events.";
    SCALED_TO_ZERO = "ScaledToZero", "ServingEndpoint Ready, Available", "spec.replicas is 0.", "Scale up.";
    ROLLING_ENGINES = "RollingEngines", "ServingEndpoint Reconciling", "Engines are being replaced by engines of the newest spec.", "Wait; where the message says what is wrong with a pod, mend that.";
    REPLICAS_AVAILABLE = "ReplicasAvailable", "ServingEndpoint Available (True)", "Engines and routers answer.", "None.";
    ALL_STABLE = "AllStable", "ServingEndpoint Progressing (False)", "No rollout is under way.", "None.";
    PREPARING = "Preparing", "ServingEndpoint Progressing (True)", "A candidate is being loaded and verified on every ready engine.", "Wait.";
    STEPPING = "Stepping", "ServingEndpoint Progressing (True)", "A candidate has a share of the callers and is being judged.", "Wait.";
    PAUSED = "Paused", "ServingEndpoint Progressing", "The candidate's weight is held by a step, a person or a failed analysis.", "Wait for a timed pause; else write Resume, Promote or Abort to status.commands.";
    PROMOTING = "Promoting", "ServingEndpoint Progressing (True)", "A candidate is taking over all traffic.", "Wait.";
    ROLLING_BACK = "RollingBack", "ServingEndpoint Progressing (True)", "The stable version is getting all traffic back.", "Wait.";
    ANALYSIS_INCONCLUSIVE = "AnalysisInconclusive", "ServingEndpoint Progressing, rollouts", "Too few requests, or routers whose counts are missing, to judge the candidate: its weight is held.", "Send more traffic, lower analysis.minimumRequests, or write Promote or Abort.";
    ERROR_RATE_ABOVE_LIMIT = "ErrorRateAboveLimit", "ServingEndpoint RolledBack, rollouts", "The candidate's share of errors passed the limit; the message has value, limit and samples.", "Train a better version; or write Retry after correcting the cause.";
    LATENCY_ABOVE_LIMIT = "LatencyAboveLimit", "ServingEndpoint RolledBack, rollouts", "The candidate's latency passed the limit; the message has value, limit and samples.", "Train a better version; or write Retry after correcting the cause.";
    ABORTED_BY_USER = "AbortedByUser", "ServingEndpoint RolledBack, rollouts", "A person wrote Abort.", "Write Retry to try the version again.";
    ROLLED_BACK_BY_USER = "RolledBackByUser", "ServingEndpoint rejected versions", "A person wrote Rollback to an older version; this one is left.", "Write Retry to try the version again.";
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded", "ServingEndpoint RolledBack, rollouts", "Engines or routers did not become ready for a step within progressDeadlineSeconds.", "Look at the engine pods; write Retry to try the version again.";
    CANDIDATE_REFUSED = "CandidateRefused", "ServingEndpoint RolledBack, rollouts", "An engine refused the candidate; the message has its reason.", "Publish a version that fits; or write Retry after correcting the cause.";
    CANDIDATE_WITHDRAWN = "CandidateWithdrawn", "ServingEndpoint rollouts", "The candidate may not be served any more, or the spec or the adapter names another version; the message says which.", "None, where that is meant; else correct what the message names: the version is tried again by itself.";
    NOT_ROLLED_BACK = "NotRolledBack", "ServingEndpoint RolledBack (False)", "No adapter's newest candidate was taken back.", "None.";
    ALL_SERVING = "AllServing", "ServingEndpoint AdaptersPending (False)", "Every adapter that the spec names is served.", "None.";
    ADAPTER_NOT_FOUND = "AdapterNotFound", "ServingEndpoint AdaptersPending", "There is no LoRAAdapter of that name, or it is being deleted.", "Create it, or take it out of spec.adapters.";
    VERSION_NOT_FOUND = "VersionNotFound", "ServingEndpoint AdaptersPending", "The LoRAAdapter has no such version.", "Correct the version in spec.adapters.";
    VERSION_NOT_APPROVED = "VersionNotApproved", "ServingEndpoint AdaptersPending", "The version that spec.adapters pins may not see traffic.", "Approve it, or pin another one.";
    PRECISION_MISMATCH = "PrecisionMismatch", "ServingEndpoint AdaptersPending", "The version was scored on the base model in another precision than the endpoint's engines hold it in; both are in the message.", "Set spec.engine.quantization to what the version was scored in, or train one with the endpoint's in evaluation.precision.";
    WAITING_FOR_VERSION = "WaitingForVersion", "ServingEndpoint AdaptersPending", "The LoRAAdapter has no approved version yet; the base model serves.", "Wait for a version, or approve one.";
    ADAPTER_REFUSED = "AdapterRefused", "ServingEndpoint AdaptersPending", "An engine refused the version; the message has its reason.", "Publish a version that fits.";
    LOADING = "Loading", "ServingEndpoint AdaptersPending", "Engines are loading the version.", "Wait.";
}

/// `docs/conditions.md`.
pub fn conditions_markdown() -> String {
    let mut text = String::from(
        "# Conditions and reasons\n\n\
         Generated by `cargo run -p graftwork-api --bin print-crds`; a test fails when it differs.\n\n\
         Every object carries the conditions of its kind, `Unknown` while undecided. `Reconciling` and\n\
         `Stalled` exist only while they are true. Reasons have a stable meaning; messages do not.\n\n\
         `Succeeded` of a TrainingRun is False only when the run is over, with `Finished` beside it; a run\n\
         that can still go on is Unknown, and `Stalled` where somebody has to do something first.\n\n\
         | kind | conditions |\n|---|---|\n",
    );
    for (kind, types) in [
        ("Dataset", condition::OF_DATASET),
        ("TrainingRun", condition::OF_TRAINING_RUN),
        ("LoRAAdapter", condition::OF_LORA_ADAPTER),
        ("ServingEndpoint", condition::OF_SERVING_ENDPOINT),
    ] {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {kind} | {} |", types.join(", "));
    }
    text.push_str("\n| reason | appears in | meaning | what to do |\n|---|---|---|---|\n");
    for entry in REASONS {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            entry.name, entry.appears, entry.meaning, entry.remedy
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn reasons_are_unique_words_with_meaning_and_remedy() {
        let mut seen = BTreeSet::new();
        for entry in REASONS {
            assert!(seen.insert(entry.name), "{} stands twice", entry.name);
            assert!(entry.name.len() <= 63 && entry.name.chars().all(char::is_alphanumeric));
            assert!(
                entry
                    .name
                    .starts_with(|first: char| first.is_ascii_uppercase())
            );
            for text in [entry.meaning, entry.remedy, entry.appears] {
                assert!(
                    !text.is_empty() && !text.contains('|'),
                    "{}: {text}",
                    entry.name
                );
            }
            assert!(
                entry.meaning.ends_with('.') && entry.remedy.ends_with('.'),
                "{}",
                entry.name
            );
        }
    }
}
