//! What is wrong with files, as the operator shows it: a reason with a stable meaning, and words.

use graftwork_contract::proto::store::v1::Problem;
use graftwork_model::base::BaseError;
use graftwork_model::config::ConfigError;
use graftwork_model::peft::AdapterError;

/// A problem.
pub fn problem(reason: &str, message: impl Into<String>) -> Problem {
    Problem { reason: reason.to_owned(), message: message.into() }
}

/// An error and its causes in one line.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Why a base model's configuration can't be used.
pub fn of_config(error: &ConfigError) -> Problem {
    let reason = match error {
        ConfigError::Missing { .. } => "BaseModelNotFound",
        ConfigError::Unsupported { .. } => "BaseModelUnsupported",
        ConfigError::Read { .. } | ConfigError::Json { .. } | ConfigError::Invalid { .. } => "BaseModelInvalid",
    };
    problem(reason, causes(error))
}

/// Why a base model can't be used.
pub fn of_base(error: &BaseError) -> Problem {
    match error {
        BaseError::Config(error) => of_config(error),
        BaseError::NoWeights(_) => problem("BaseModelNotFound", causes(error)),
        _ => problem("BaseModelInvalid", causes(error)),
    }
}

/// Why an adapter can't be used: a file that is missing or broken, or one that does not fit the base model.
pub fn of_adapter(error: &AdapterError) -> Problem {
    let reason = match error {
        AdapterError::Missing { .. } => "AdapterNotFound",
        AdapterError::Io { .. }
        | AdapterError::File(_)
        | AdapterError::Json(_)
        | AdapterError::Invalid { .. }
        | AdapterError::Unsupported { .. } => "AdapterInvalid",
        _ => "AdapterIncompatible",
    };
    problem(reason, causes(error))
}
