//! A Dataset's spec, read once: after this nothing can fail for what it says.

use std::collections::BTreeMap;

use graftwork_api::DatasetSpec;
use graftwork_api::dataset::{
    ConnectionSecretReference, Duplicates, FormatType, NearDuplicates, PrivacyMode,
    SecretKeyReference, SplitMethod,
};
use graftwork_api::uri::PvcUri;
use graftwork_contract::dataset::{
    self as contract, Balance, Classification, DatabaseKind, Format, HashSplit, Percent, Privacy,
    Query, REWARD_COLUMN, Share, Validation,
};
use graftwork_contract::glob::{Glob, is_pattern};
use graftwork_contract::uri::DataUri;

use super::timing::{self, Timing};
use super::{analyzer, mix, parts};

/// A spec that can be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Valid {
    /// Shape of the rows.
    pub format: Format,
    /// Whether the column of rewards is kept.
    pub reward: bool,
    /// Where they come from.
    pub sources: Vec<Source>,
    /// SQL that makes rows of the sources.
    pub transform: Option<String>,
    /// Which are good.
    pub validation: Validation,
    /// How they are dealt.
    pub split: HashSplit,
    /// Whether rare classes are repeated.
    pub balance: Option<Balance>,
    /// How far the data may go.
    pub classification: Option<Classification>,
    /// What happens to personal data.
    pub privacy: Option<Privacy>,
    /// The Secret that holds the key of pseudonyms.
    pub pseudonym_key: Option<SecretKeyReference>,
    /// How many versions are kept, apart from those that somebody needs; none: all.
    pub kept_versions: Option<u32>,
    /// The folder of the model whose tokens rows are measured in.
    pub base: Option<PvcUri>,
    /// When the sources are looked at again.
    pub timing: Option<Timing>,
    /// How many pods read the rows; none: the one that does the rest.
    pub shards: Option<u32>,
}

impl Valid {
    /// Whether the operator sees everything that decides a build's outcome: there is nothing to look at again.
    pub fn is_seen_whole(&self) -> bool {
        let is_key = |source: &Source| matches!(source.place, Place::Key { .. });
        let asks = self
            .privacy
            .as_ref()
            .is_some_and(|privacy| privacy.analyzer.is_some());
        // SQL may ask what time it is.
        let tells_time = self.transform.is_some();
        let reads_more = self.pseudonym_key.is_some() || self.base.is_some() || asks || tells_time;
        !reads_more && self.sources.iter().all(is_key)
    }
}

/// One source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// What it points at.
    pub place: Place,
    /// Columns that have another name there.
    pub columns: BTreeMap<String, String>,
    /// How much of its rows is taken; none: all of them.
    pub share: Option<Share>,
}

/// What a source points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A key of a `ConfigMap`.
    Key {
        /// Name of the `ConfigMap`.
        config_map: String,
        /// The key.
        key: String,
    },
    /// A file on a claim.
    File(PvcUri),
    /// Something on the network.
    Remote {
        /// The URI as it was written.
        text: String,
        /// The same, read.
        uri: DataUri,
        /// The Secret that says who asks.
        secret: Option<String>,
    },
    /// A query.
    Query {
        /// The Secret that says where to and as whom.
        secret: ConnectionSecretReference,
        /// What is asked.
        query: Query,
    },
}

/// Seconds that a query may take where the spec does not say.
const TIMEOUT_SECONDS: u32 = 3600;
/// Rows that a query may have where the spec does not say.
const MAXIMUM_ROWS: u64 = 10_000_000;

/// A field that can't work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// Path of the field.
    pub field: String,
    /// What is wrong, with value and limit.
    pub message: String,
}

impl Invalid {
    /// A field and what is wrong with it.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

/// Reads what rows are, also of a spec that can't work for another reason: its versions stay usable.
///
/// # Errors
/// A format that this version does not know.
pub fn read_format(spec: &DatasetSpec) -> Result<Format, Invalid> {
    match &spec.format.type_ {
        FormatType::Text => Ok(Format::Text),
        FormatType::Completion => Ok(Format::Completion),
        FormatType::Chat => Ok(Format::Chat),
        FormatType::Preference => Ok(Format::Preference),
        FormatType::Other(other) => Err(unknown("spec.format.type", other, FormatType::KNOWN)),
    }
}

/// Reads a spec.
///
/// # Errors
/// The first field that can't work. The schema refuses most of this before; an operator that is
/// older or newer than the schema does not rely on it.
pub fn validate(spec: &DatasetSpec) -> Result<Valid, Invalid> {
    let format = read_format(spec)?;
    if spec.sources.is_empty() {
        return Err(Invalid::new(
            "spec.sources",
            "at least one source is needed",
        ));
    }
    let reward = read_reward(spec)?;
    let mut known = known_columns(spec, format);
    known.extend(reward.then_some(REWARD_COLUMN));
    let mut sources: Vec<Source> = Vec::with_capacity(spec.sources.len());
    for (source, share) in spec.sources.iter().zip(mix::read(&spec.sources)?) {
        let source = Source {
            share,
            ..read_source(source, &known)?
        };
        if sources.iter().any(|known| known.name == source.name) {
            return Err(Invalid::new(
                "spec.sources",
                format!(
                    "the name {:?} stands twice: rename one of the two",
                    source.name
                ),
            ));
        }
        sources.push(source);
    }
    let percent = &spec.validation.maximum_invalid_percent;
    if Percent::parse(percent.as_str()).is_none() {
        return Err(Invalid::new(
            "spec.validation.maximumInvalidPercent",
            format!("\"{percent}\" is not a decimal from 0 to 100, such as 2.5"),
        ));
    }
    let classification = read_classification(spec)?;
    let transform = read_transform(spec)?;
    let (privacy, pseudonym_key) = read_privacy(spec, format)?;
    let kept_versions = spec.retention.as_ref().map(|retention| retention.versions);
    if kept_versions == Some(0) {
        return Err(Invalid::new(
            "spec.retention.versions",
            "is 0, must be at least 1",
        ));
    }
    Ok(Valid {
        classification,
        privacy,
        pseudonym_key,
        kept_versions,
        format,
        reward,
        sources,
        transform,
        validation: Validation {
            minimum_rows: spec.validation.minimum_rows,
            maximum_invalid_percent: percent.to_string(),
            duplicates: read_duplicates(&spec.validation)?,
            near_duplicates: read_near_duplicates(&spec.validation)?,
            maximum_tokens_per_row: spec.validation.maximum_tokens_per_row,
        },
        base: read_base(spec)?,
        balance: read_balance(spec)?,
        split: read_split(&spec.split)?,
        timing: timing::read(spec)?,
        shards: parts::read(spec)?,
    })
}

/// How far the rows may go. What is not known to this version is taken for the strictest.
pub fn classification(spec: &DatasetSpec) -> Option<Classification> {
    read_classification(spec).unwrap_or(Some(Classification::Restricted))
}

fn read_classification(spec: &DatasetSpec) -> Result<Option<Classification>, Invalid> {
    use graftwork_api::dataset::Classification as Said;
    let classification = match &spec.classification {
        None => return Ok(None),
        Some(Said::Public) => Classification::Public,
        Some(Said::Internal) => Classification::Internal,
        Some(Said::Restricted) => Classification::Restricted,
        Some(Said::Other(other)) => {
            return Err(unknown("spec.classification", other, Said::KNOWN));
        }
    };
    Ok(Some(classification))
}

/// What happens to personal data, with the Secret that it needs.
fn read_privacy(
    spec: &DatasetSpec,
    format: Format,
) -> Result<(Option<Privacy>, Option<SecretKeyReference>), Invalid> {
    let restricted =
        spec.classification == Some(graftwork_api::dataset::Classification::Restricted);
    let Some(privacy) = &spec.privacy else {
        if restricted {
            return Err(Invalid::new(
                "spec.privacy",
                "is missing, and spec.classification is Restricted: name a mode other than Allow",
            ));
        }
        return Ok((None, None));
    };
    let mode = match &privacy.mode {
        PrivacyMode::Redact => contract::PrivacyMode::Redact,
        PrivacyMode::Pseudonymise => contract::PrivacyMode::Pseudonymise,
        PrivacyMode::Reject => contract::PrivacyMode::Reject,
        PrivacyMode::Allow => contract::PrivacyMode::Allow,
        PrivacyMode::Other(other) => {
            return Err(unknown("spec.privacy.mode", other, PrivacyMode::KNOWN));
        }
    };
    if restricted && mode == contract::PrivacyMode::Allow {
        return Err(Invalid::new(
            "spec.privacy.mode",
            "is Allow, and spec.classification is Restricted: such data is masked or refused",
        ));
    }
    let keyed = mode == contract::PrivacyMode::Pseudonymise;
    let is_named = privacy.pseudonym_key_ref.is_some();
    // SQL may call pseudonymise() whatever happens to its columns afterwards.
    let is_idle = is_named && !keyed && spec.transform.is_none();
    if is_idle || (keyed && !is_named) {
        return Err(Invalid::new(
            "spec.privacy.pseudonymKeyRef",
            "is needed with mode Pseudonymise, and else only with spec.transform",
        ));
    }
    let known = known_columns(spec, format);
    if let Some(column) = privacy
        .columns
        .iter()
        .find(|column| !known.contains(&column.as_str()))
    {
        return Err(Invalid::new(
            "spec.privacy.columns",
            format!(
                "\"{column}\" is not kept; columns of text are {}",
                known.join(", ")
            ),
        ));
    }
    let columns = if privacy.columns.is_empty() {
        known.into_iter().map(str::to_owned).collect()
    } else {
        privacy.columns.clone()
    };
    Ok((
        Some(Privacy {
            mode,
            columns,
            analyzer: privacy.analyzer.as_ref().map(analyzer::read).transpose()?,
        }),
        privacy.pseudonym_key_ref.clone(),
    ))
}

/// The SQL. Whether it can be used, the build says.
fn read_transform(spec: &DatasetSpec) -> Result<Option<String>, Invalid> {
    let Some(sql) = &spec.transform else {
        return Ok(None);
    };
    if sql.trim().is_empty() {
        return Err(Invalid::new("spec.transform", "is empty; write one SELECT"));
    }
    if let Some(source) = spec.sources.iter().find(|it| !it.columns.is_empty()) {
        return Err(Invalid::new(
            format!("spec.sources[{}].columns", source.name),
            "has no place beside spec.transform: name columns there, with AS",
        ));
    }
    Ok(Some(sql.clone()))
}

/// The columns that a row can keep.
fn known_columns(spec: &DatasetSpec, format: Format) -> Vec<&str> {
    let group = spec.split.group_column.as_deref();
    let own = group.filter(|name| !format.columns().contains(name));
    format.columns().iter().copied().chain(own).collect()
}

/// Whether rewards are kept.
fn read_reward(spec: &DatasetSpec) -> Result<bool, Invalid> {
    let is_kept = spec.format.reward;
    if is_kept && spec.split.group_column.as_deref() == Some(REWARD_COLUMN) {
        return Err(Invalid::new(
            "spec.split.groupColumn",
            "\"reward\" is kept as a number by spec.format.reward and can't group rows",
        ));
    }
    Ok(is_kept)
}

fn read_source(source: &graftwork_api::dataset::Source, known: &[&str]) -> Result<Source, Invalid> {
    let field = |rest: &str| format!("spec.sources[{}]{rest}", source.name);
    if source.postgres.is_none()
        && (source.timeout_seconds.is_some() || source.maximum_rows.is_some())
    {
        return Err(Invalid::new(
            field(""),
            "timeoutSeconds and maximumRows are limits of a query: leave them out, or name postgres",
        ));
    }
    let on_network = |uri: &String| !uri.starts_with("pvc://");
    if source.secret_ref.is_some() && !source.uri.as_ref().is_some_and(on_network) {
        return Err(Invalid::new(
            field(".secretRef"),
            "belongs to a uri on the network: leave it out",
        ));
    }
    let place = match (&source.config_map_ref, &source.uri, &source.postgres) {
        (Some(reference), None, None) => Place::Key {
            config_map: reference.name.clone(),
            key: reference.key.clone(),
        },
        (None, Some(text), None) if !text.starts_with("pvc://") && text.contains("://") => {
            let uri = read_remote(text).map_err(|problem| Invalid::new(field(".uri"), problem))?;
            Place::Remote {
                text: text.clone(),
                uri,
                secret: source.secret_ref.as_ref().map(|it| it.name.clone()),
            }
        }
        (None, Some(text), None) => {
            let uri = PvcUri::parse(text)
                .map_err(|error| Invalid::new(field(".uri"), error.to_string()))?;
            if text.ends_with('/') && !uri.path().is_empty() {
                let message = format!(
                    "\"{text}\" is a folder: name a file, or a pattern such as {text}*.jsonl"
                );
                return Err(Invalid::new(field(".uri"), message));
            }
            if uri.path().is_empty() {
                return Err(Invalid::new(
                    field(".uri"),
                    format!("\"{uri}\" names no file: write pvc://CLAIM/PATH"),
                ));
            }
            if is_pattern(uri.path()) {
                Glob::parse(uri.path())
                    .map_err(|error| Invalid::new(field(".uri"), format!("\"{uri}\": {error}")))?;
            }
            Place::File(uri)
        }
        (None, None, Some(postgres)) => Place::Query {
            secret: postgres.secret_ref.clone(),
            query: read_query(source, postgres).map_err(|(rest, problem)| {
                let message = format!("{problem}, must be at least 1");
                Invalid::new(field(rest), message)
            })?,
        },
        _ => {
            return Err(Invalid::new(
                field(""),
                "exactly one of configMapRef, uri and postgres is needed",
            ));
        }
    };
    let mut columns = source.columns.keys();
    if let Some(column) = columns.find(|column| !known.contains(&column.as_str())) {
        return Err(Invalid::new(
            field(".columns"),
            format!("\"{column}\" is not kept; columns are {}", known.join(", ")),
        ));
    }
    Ok(Source {
        name: source.name.clone(),
        place,
        columns: source.columns.clone(),
        share: None,
    })
}

/// Reads a URI on the network. Messages show it where it can't hold a secret.
fn read_remote(text: &str) -> Result<DataUri, String> {
    let uri = DataUri::parse(text).map_err(|error| error.to_string())?;
    let pattern = match &uri {
        DataUri::Object { key, .. } => key,
        DataUri::Hub { path, .. } if path.is_empty() => {
            return Err(format!(
                "\"{text}\" names no file: write hf://ORG/NAME@REVISION/PATH"
            ));
        }
        DataUri::Hub { path, .. } => path,
        DataUri::Web(web) if is_pattern(&web.path) => {
            return Err(format!(
                "\"{text}\": a web server has no lists; name a file"
            ));
        }
        DataUri::Web(_) => return Ok(uri),
    };
    if is_pattern(pattern) {
        Glob::parse(pattern).map_err(|error| format!("\"{text}\": {error}"))?;
    }
    Ok(uri)
}

/// What a database is asked.
///
/// # Errors
/// A field below the source, and what is wrong with it.
fn read_query(
    source: &graftwork_api::dataset::Source,
    postgres: &graftwork_api::dataset::PostgresSource,
) -> Result<Query, (&'static str, &'static str)> {
    let query = Query {
        database: DatabaseKind::Postgres,
        text: postgres.query.clone(),
        timeout_seconds: source.timeout_seconds.unwrap_or(TIMEOUT_SECONDS),
        maximum_rows: source.maximum_rows.unwrap_or(MAXIMUM_ROWS),
    };
    match (query.timeout_seconds, query.maximum_rows) {
        (0, _) => Err((".timeoutSeconds", "is 0")),
        (_, 0) => Err((".maximumRows", "is 0")),
        _ => Ok(query),
    }
}

/// The model whose tokens rows are measured in.
fn read_base(spec: &DatasetSpec) -> Result<Option<PvcUri>, Invalid> {
    let maximum = spec.validation.maximum_tokens_per_row;
    let limit = |problem| Invalid::new("spec.validation.maximumTokensPerRow", problem);
    match &spec.base_model {
        None if maximum.is_some() => Err(limit("needs spec.baseModel, whose tokens are counted")),
        None => Ok(None),
        Some(_) if maximum == Some(0) => Err(limit("is 0, must be at least 1")),
        Some(base) => PvcUri::parse(&base.uri)
            .map(Some)
            .map_err(|error| Invalid::new("spec.baseModel.uri", error.to_string())),
    }
}

fn read_duplicates(
    validation: &graftwork_api::dataset::Validation,
) -> Result<contract::Duplicates, Invalid> {
    match &validation.duplicates {
        Duplicates::Keep => Ok(contract::Duplicates::Keep),
        Duplicates::Drop => Ok(contract::Duplicates::Drop),
        Duplicates::Other(other) => Err(unknown(
            "spec.validation.duplicates",
            other,
            Duplicates::KNOWN,
        )),
    }
}

fn read_near_duplicates(
    validation: &graftwork_api::dataset::Validation,
) -> Result<contract::NearDuplicates, Invalid> {
    match &validation.near_duplicates {
        NearDuplicates::Keep => Ok(contract::NearDuplicates::Keep),
        NearDuplicates::Report => Ok(contract::NearDuplicates::Report),
        NearDuplicates::Group => Ok(contract::NearDuplicates::Group),
        NearDuplicates::Drop => Ok(contract::NearDuplicates::Drop),
        NearDuplicates::Other(other) => Err(unknown(
            "spec.validation.nearDuplicates",
            other,
            NearDuplicates::KNOWN,
        )),
    }
}

fn read_balance(spec: &DatasetSpec) -> Result<Option<Balance>, Invalid> {
    let Some(balance) = &spec.balance else {
        return Ok(None);
    };
    if balance.maximum_upsample == 0 {
        return Err(Invalid::new(
            "spec.balance.maximumUpsample",
            "is 0, must be at least 1",
        ));
    }
    Ok(Some(Balance {
        column: balance.column.clone(),
        maximum_upsample: balance.maximum_upsample,
    }))
}

fn read_split(split: &graftwork_api::dataset::Split) -> Result<HashSplit, Invalid> {
    let method = match &split.method {
        SplitMethod::Hash => contract::SplitMethod::Hash,
        SplitMethod::Time => contract::SplitMethod::Time,
        SplitMethod::Random => contract::SplitMethod::Random,
        SplitMethod::Other(other) => {
            return Err(unknown("spec.split.method", other, SplitMethod::KNOWN));
        }
    };
    if (method == contract::SplitMethod::Time) != split.column.is_some() {
        return Err(Invalid::new(
            "spec.split.column",
            "is needed with method Time, and with no other",
        ));
    }
    let sum = u64::from(split.train_percent)
        + u64::from(split.validation_percent)
        + u64::from(split.test_percent);
    if sum != 100 {
        return Err(Invalid::new(
            "spec.split",
            format!(
                "trainPercent, validationPercent and testPercent sum to {sum}, not to 100: {} one of them by {}",
                if sum > 100 { "lower" } else { "raise" },
                sum.abs_diff(100)
            ),
        ));
    }
    Ok(HashSplit {
        method,
        time_column: split.column.clone(),
        group_column: split.group_column.clone(),
        train_percent: split.train_percent,
        validation_percent: split.validation_percent,
        test_percent: split.test_percent,
        seed: split.seed,
    })
}

/// A value that this version does not know.
pub fn unknown(field: &str, value: &str, known: &[&str]) -> Invalid {
    Invalid::new(
        field,
        format!(
            "\"{value}\" is not known to this version; it knows {}",
            known.join(", ")
        ),
    )
}
