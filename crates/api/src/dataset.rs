//! Dataset: rows from several sources, validated, split, and kept as immutable versions.
#![expect(
    clippy::duplicated_attributes,
    reason = "printed columns share their type"
)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::analyzer::Analyzer;
use crate::decimal::{Decimal, PERCENT_PATTERN};
use crate::enums::open_enum;
use crate::reference::{BaseModelSource, ObjectReference, VersionedDigest};
use crate::schedule::{Schedule, ScheduleTimes};
use crate::schema::{bounds, rules};

/// A versioned dataset: rows from one or more sources, validated and split.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "graftwork.dev",
    version = "v1alpha1",
    kind = "Dataset",
    plural = "datasets",
    namespaced,
    status = "DatasetStatus",
    derive = "PartialEq",
    shortname = "dset",
    category = "graft",
    doc = "A versioned dataset: rows from one or more sources, validated, split and kept as immutable versions.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(
        name = "Version",
        type_ = "integer",
        json_path = ".status.latest.version"
    ),
    printcolumn(name = "Rows", type_ = "integer", json_path = ".status.latest.rows"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "!has(self.classification) || self.classification != 'Restricted' || (has(self.privacy) && self.privacy.mode != 'Allow')",
    "Restricted data needs privacy with a mode other than Allow",
), (
    "has(self.baseModel) || !has(self.validation) || !has(self.validation.maximumTokensPerRow)",
    "maximumTokensPerRow needs baseModel",
), (
    "!has(self.transform) || self.sources.all(source, !has(source.columns))",
    "columns of sources have no place beside transform: name columns there, with AS",
), (
    "!has(self.transform) || !has(self.shards) || self.shards == 1",
    "shards have no place beside transform: one pod runs the SQL",
), (
    "has(self.transform) || !has(self.privacy) || !has(self.privacy.pseudonymKeyRef) || self.privacy.mode == 'Pseudonymise'",
    "pseudonymKeyRef is needed with mode Pseudonymise, and else only with transform",
)])))]
pub struct DatasetSpec {
    /// What the data is, for people: it stands in the manifest and the report of what is built from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,
    /// How far the data may go. Restricted: only with `privacy`, in a mode other than Allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<Classification>,
    /// Where the rows come from; the rows of all sources are taken together, in this order.
    #[schemars(
        length(min = 1, max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub sources: Vec<Source>,
    /// SQL over the sources, each a table by its name: one SELECT, whose columns are those of the rows.
    /// Left out, the rows of the sources are taken as they are. Beside the usual functions there are
    /// `redact(text)`, `pseudonymise(text)`, `token_count(text)` and `sha256_hex(text)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16_384))]
    pub transform: Option<String>,
    /// What a row must hold.
    pub format: DatasetFormat,
    /// What happens to personal data; left out, nobody looks for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<Privacy>,
    /// When a version is good enough to be used.
    #[serde(default)]
    pub validation: Validation,
    /// Repeats rows of rare classes in train; left out, none are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<Balance>,
    /// How rows are divided into train, validation and test.
    #[serde(default)]
    pub split: Split,
    /// The model that the rows are for: their length is measured in its tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<BaseModelSource>,
    /// Pods that read, check, mask and measure rows side by side, before one puts them in order: the
    /// outcome is the same for any number. Left out, one pod does all. The balance's column may not be
    /// masked then: parts lie in the store for a while, and hold it as the source has it. More than one
    /// have no place beside `transform`, which one pod runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub shards: Option<u32>,
    /// When sources that don't tell are looked at again; left out, only when the spec or the annotation
    /// `graftwork.dev/refresh` changes. The same rows make no new version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Which versions are kept; left out, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// How many versions are kept. Those that a run, a version of an adapter or a gate's evidence refers to stay
/// beside them, and so does the one that the sources are now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// Newest versions that are kept.
    #[schemars(range(min = 1, max = 1000))]
    pub versions: u32,
}

/// One place that rows come from: JSONL, CSV with a header, or Parquet, plain, .gz or .zst, where content
/// decides and not the name; or what a database answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    (
        "[has(self.configMapRef), has(self.uri), has(self.postgres)].filter(given, given).size() == 1",
        "a source has exactly one of configMapRef, uri and postgres",
    ),
    (
        "has(self.postgres) || !(has(self.timeoutSeconds) || has(self.maximumRows))",
        "timeoutSeconds and maximumRows are limits of a query: leave them out, or name postgres",
    ),
    (
        "!has(self.secretRef) || (has(self.uri) && !self.uri.startsWith('pvc://'))",
        "secretRef belongs to a uri on the network: leave it out",
    ),
])))]
pub struct Source {
    /// Name of the source, as it appears in status and messages.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// A key of a ConfigMap; a change makes a new version at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<ConfigMapKeyReference>,
    /// Files on a volume, `pvc://CLAIM/PATH`; objects of a store, `s3://BUCKET/KEY`, `gs://BUCKET/NAME` or
    /// `az://CONTAINER/NAME`; files of a dataset repository, `hf://ORG/NAME@REVISION/PATH`; or a file of a
    /// web server, `https://HOST/PATH`. But for the last, `*` stands for any letters of a name, `**` for
    /// folders. Looked at again on `schedule`, and when the annotation `graftwork.dev/refresh` changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 1024),
        regex(pattern = r"^(pvc|s3|gs|az|hf|https)://")
    )]
    pub uri: Option<String>,
    /// A Secret that says who asks for `uri`, by the keys that the stores' own tools read, such as
    /// `AWS_ACCESS_KEY_ID`; left out, the identity of the pod does, or nobody. A change is seen when the
    /// annotation `graftwork.dev/refresh` changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<ObjectReference>,
    /// A query to a PostgreSQL server, in one read-only transaction. Asked again on `schedule`, and when
    /// the annotation `graftwork.dev/refresh` changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresSource>,
    /// Seconds that the query may take; left out, 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub timeout_seconds: Option<u32>,
    /// Rows that the query may have; left out, 10000000. With more, no version is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub maximum_rows: Option<u64>,
    /// How much of this source is taken beside the others: the source with the largest weight gives
    /// all of its valid rows, another one the share that its weight is of that, chosen by their content.
    /// Left out, 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend(
        "pattern" = WEIGHT_PATTERN,
        "x-kubernetes-validations" = bounds(&[(
            "double(self) > 0.0 && double(self) <= 1000.0",
            "weight is above 0 and at most 1000",
        )]),
    ))]
    pub weight: Option<Decimal>,
    /// Keys of the format, `reward`, or the split's groupColumn, that have another name in this source:
    /// the format's name, then the source's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::names")]
    pub columns: BTreeMap<String, String>,
}

/// Names a key of a ConfigMap in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeyReference {
    /// Name of the ConfigMap.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Key in `data` or `binaryData`.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A query, and the Secret that says where to and as whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PostgresSource {
    /// Server, user and password. A change is seen when the annotation `graftwork.dev/refresh` changes.
    pub secret_ref: ConnectionSecretReference,
    /// One SELECT; its columns are the rows' keys.
    #[schemars(length(min = 1, max = 16_384))]
    pub query: String,
}

/// Names a Secret in the same namespace that says how to connect to a database. Certificates in its key
/// `ca.crt` are those that the server's has to come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionSecretReference {
    /// Name of the Secret.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Key that holds a connection URI; left out, the keys `host`, `port`, `dbname`, `user` (or
    /// `username`), `password` and `sslmode` say the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: Option<String>,
}

/// Pattern of a weight: an exact decimal.
const WEIGHT_PATTERN: &str = r"^[0-9]{1,4}(\.[0-9]{1,6})?$";

/// What a row must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatasetFormat {
    /// Text: `text`. Completion: `prompt` and `completion`. Chat: `messages`, each with `role` and
    /// `content`. Preference: `prompt`, `chosen` and `rejected`. Rows of ShareGPT and Alpaca become
    /// Chat, those of Alpaca Completion too.
    #[serde(rename = "type")]
    pub type_: FormatType,
    /// Keeps `reward` beside them: a number that says what answering as the row does is worth. A run's
    /// metric MeanReward needs it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reward: bool,
}

open_enum! {
    /// The keys that a row must have.
    pub enum FormatType (spec) {
        /// `text`: every token is learnt.
        Text = "Text",
        /// `prompt` and `completion`: the completion's tokens are learnt.
        Completion = "Completion",
        /// `messages`: what the assistant says is learnt.
        Chat = "Chat",
        /// `prompt`, `chosen` and `rejected`: the chosen answer's tokens are learnt.
        Preference = "Preference",
    }
}

open_enum! {
    /// How far data may go.
    pub enum Classification (spec) {
        /// Anybody may see it.
        Public = "Public",
        /// Anybody here may see it.
        Internal = "Internal",
        /// Only those who need it may see it.
        Restricted = "Restricted",
    }
}

/// What happens to personal data: e-mail addresses, phone numbers, payment cards, IBANs, IP
/// addresses, national identity numbers, keys and tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[(
    "has(self.pseudonymKeyRef) || self.mode != 'Pseudonymise'",
    "pseudonymKeyRef is needed with mode Pseudonymise",
)])))]
pub struct Privacy {
    /// Redact: its type stands in its place. Pseudonymise: so does a pseudonym, the same one for the
    /// same value. Reject: its row is invalid. Allow: it stays, and is counted.
    pub mode: PrivacyMode,
    /// Columns that are looked at, of the format or the split's groupColumn; left out, every one of
    /// them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 253)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub columns: Vec<String>,
    /// The key of pseudonyms, of at least 16 bytes: for the mode, and for `pseudonymise()` in
    /// `transform`. Another key, other pseudonyms; a change is seen when the annotation
    /// `graftwork.dev/refresh` changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pseudonym_key_ref: Option<SecretKeyReference>,
    /// Who is asked for names and addresses beside; left out, nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analyzer: Option<Analyzer>,
}

open_enum! {
    /// What happens to personal data.
    pub enum PrivacyMode (spec) {
        /// Its type stands in its place: `[EMAIL]`.
        Redact = "Redact",
        /// Its type and a keyed pseudonym stand in its place.
        Pseudonymise = "Pseudonymise",
        /// Its row is invalid.
        Reject = "Reject",
        /// It stays, and is counted.
        Allow = "Allow",
    }
}

/// Names a key of a Secret in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyReference {
    /// Name of the Secret.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Key in `data`.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// When a version is good enough to be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Validation {
    /// Valid rows that a version must have at least.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub minimum_rows: u64,
    /// Percentage of rows that may be invalid; they are left out and counted. More, and no version
    /// is made.
    #[schemars(extend(
        "pattern" = PERCENT_PATTERN,
        "x-kubernetes-validations" = bounds(&[(
            "double(self) <= 100.0",
            "maximumInvalidPercent is at most 100",
        )]),
    ))]
    pub maximum_invalid_percent: Decimal,
    /// Rows that are equal after case and white space are evened out. Keep: they stay. Drop: one
    /// stays.
    #[serde(skip_serializing_if = "Duplicates::is_keep")]
    pub duplicates: Duplicates,
    /// Rows that are nearly equal. Keep: they stay, and nobody looks for them. Report: they stay, and
    /// leakage counts them too. Group: they stay, in one split. Drop: one stays.
    #[serde(skip_serializing_if = "NearDuplicates::is_keep")]
    pub near_duplicates: NearDuplicates,
    /// Tokens of `baseModel` that a row may have, with those that the chat template and the end of a
    /// row take; of a preference the longer answer counts. A row with more is invalid. Left out, no row
    /// is too long.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub maximum_tokens_per_row: Option<u32>,
}

open_enum! {
    /// What becomes of equal rows.
    pub enum Duplicates (spec) {
        /// They stay.
        Keep = "Keep",
        /// One stays.
        Drop = "Drop",
    }
}

open_enum! {
    /// What becomes of nearly equal rows.
    pub enum NearDuplicates (spec) {
        /// They stay, and nobody looks for them.
        Keep = "Keep",
        /// They stay, and `leakage` counts them too.
        Report = "Report",
        /// They stay, in one split.
        Group = "Group",
        /// One stays.
        Drop = "Drop",
    }
}

impl Duplicates {
    fn is_keep(&self) -> bool {
        *self == Self::Keep
    }
}

impl NearDuplicates {
    fn is_keep(&self) -> bool {
        *self == Self::Keep
    }
}

/// Rows of rare classes are repeated in train until their class is as frequent as the most frequent
/// one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Balance {
    /// Key that names a row's class.
    #[schemars(length(min = 1, max = 253))]
    pub column: String,
    /// How often a row may come.
    #[schemars(range(min = 1, max = 1000))]
    pub maximum_upsample: u32,
}

impl Default for Validation {
    fn default() -> Self {
        Self {
            minimum_rows: 1,
            maximum_invalid_percent: Decimal::from("0"),
            duplicates: Duplicates::Keep,
            near_duplicates: NearDuplicates::Keep,
            maximum_tokens_per_row: None,
        }
    }
}

/// How rows are divided; the percentages sum to 100.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    (
        "self.trainPercent + self.validationPercent + self.testPercent == 100",
        "trainPercent, validationPercent and testPercent sum to 100",
    ),
    (
        "has(self.column) == (self.method == 'Time')",
        "column is needed with method Time, and with no other",
    ),
])))]
pub struct Split {
    /// Hash: a row's side follows from its content (or its group) and the seed, so that no row
    /// moves when others arrive. Time: no row is later than one of a later side. Random: exactly the
    /// percentages that were asked for.
    pub method: SplitMethod,
    /// Key of a row's time with method Time: RFC 3339, a date, or seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub column: Option<String>,
    /// Key whose equal values stay on one side.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub group_column: Option<String>,
    /// Percentage of rows to train on.
    #[schemars(range(min = 1, max = 100))]
    pub train_percent: u32,
    /// Percentage of rows that runs look at while they train (`validateEverySteps`), and neither train on nor
    /// measure metrics on.
    #[schemars(range(min = 0, max = 99))]
    pub validation_percent: u32,
    /// Percentage of rows that metrics are measured on.
    #[schemars(range(min = 0, max = 99))]
    pub test_percent: u32,
    /// Enters the hash: another seed, another split.
    #[schemars(range(min = 0, max = 2_147_483_647_i64))]
    pub seed: u64,
}

impl Default for Split {
    fn default() -> Self {
        Self {
            method: SplitMethod::Hash,
            column: None,
            group_column: None,
            train_percent: 80,
            validation_percent: 10,
            test_percent: 10,
            seed: 0,
        }
    }
}

open_enum! {
    /// How a row's side is chosen.
    pub enum SplitMethod (spec) {
        /// By a hash of the row, or of its group, and the seed.
        Hash = "Hash",
        /// By time.
        Time = "Time",
        /// At random by the seed, in exact shares.
        Random = "Random",
    }
}

/// What the operator knows of a Dataset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DatasetStatus {
    /// metadata.generation that this status was computed from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// The newest version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest: Option<LatestVersion>,
    /// Versions, newest first: the present one, those that runs and adapters are of, and ten more. Older
    /// ones stay in the store.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), extend("x-kubernetes-list-type" = "atomic"))]
    pub versions: Vec<DatasetVersion>,
    /// Value of the annotation `graftwork.dev/refresh` that the newest build answered; its digest where it is long.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub observed_refresh: Option<String>,
    /// Where `spec.schedule` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleTimes>,
    /// Ready, Reconciling, Stalled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// The newest version in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatestVersion {
    /// Version number, counted from 1.
    pub version: u32,
    /// Digest of the version's content.
    #[schemars(length(max = 71))]
    pub digest: String,
    /// Valid rows in all splits.
    pub rows: u64,
}

impl LatestVersion {
    /// The version without its row count.
    pub fn versioned_digest(&self) -> VersionedDigest {
        VersionedDigest {
            version: self.version,
            digest: self.digest.clone(),
        }
    }
}

/// One immutable version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatasetVersion {
    /// Version number, counted from 1.
    pub version: u32,
    /// Digest over the canonical rows and their schema.
    #[schemars(length(max = 71))]
    pub digest: String,
    /// Digest over the schema alone: equal where only rows changed.
    #[schemars(length(max = 71))]
    pub schema_hash: String,
    /// When the version was published.
    pub created_time: Time,
    /// Rows by split.
    pub rows: RowCounts,
    /// The first rows that were left out of the present version: where and why, never what.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), extend("x-kubernetes-list-type" = "atomic"))]
    pub rejected: Vec<RejectedRow>,
    /// How often each type of personal data was found, by type.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub findings: BTreeMap<String, u64>,
    /// Rows of other splits that are equal to a row of train, or nearly so where nearly equal rows are
    /// looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leakage: Option<Leakage>,
    /// Tokens of the rows, where `spec.baseModel` was given when the version was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenCounts>,
    /// The version before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u32>,
    /// Size of the version's files.
    pub size_bytes: u64,
    /// Digest over where the rows came from and what built the version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71))]
    pub provenance_digest: Option<String>,
}

/// Rows by split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RowCounts {
    /// Rows to train on.
    pub train: u64,
    /// Rows that are kept apart.
    pub validation: u64,
    /// Rows that metrics are measured on.
    pub test: u64,
    /// Rows left out as invalid.
    pub rejected: u64,
    /// Rows left out as duplicates.
    pub duplicates: u64,
    /// Valid rows left out for their source's weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beyond_weight: Option<u64>,
}

/// Rows of other splits that are trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Leakage {
    /// Rows that are kept apart.
    pub validation: u64,
    /// Rows that metrics are measured on.
    pub test: u64,
}

/// Tokens by split, as the base model's tokenizer has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TokenCounts {
    /// Tokens to train on.
    pub train: u64,
    /// Tokens that are kept apart.
    pub validation: u64,
    /// Tokens that metrics are measured on.
    pub test: u64,
    /// Tokens of the longest row.
    pub longest_row: u64,
}

impl RowCounts {
    /// Valid rows in all splits.
    pub fn valid(&self) -> u64 {
        self.train + self.validation + self.test
    }
}

/// Where a row was that was left out, and the rule that it broke.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RejectedRow {
    /// Name of the source.
    #[schemars(length(max = 63))]
    pub source: String,
    /// The file's path in its volume, where the source has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub file: Option<String>,
    /// Line in the source, counted from 1; of a Parquet file or a query the row.
    pub line: u64,
    /// Name of the rule that the row broke.
    #[schemars(length(max = 253))]
    pub rule: String,
}
