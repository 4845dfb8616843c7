//! What is wrong with files, as the operator shows it: a reason with a stable meaning, and words.
//!
//! A [`Problem`] is about the files that were asked about and stays until they change: the operator
//! may reject a version for it. Everything that may pass by itself is another [`Failure`].

use std::path::Path;

use graftwork_artifacts::{Category, Error as StoreError};
pub use graftwork_contract::causes::causes;
use graftwork_contract::proto::store::v1::Problem;
use graftwork_model::base::BaseError;
use graftwork_model::category::Category as FileCategory;
use graftwork_model::config::ConfigError;
use graftwork_model::gguf::GgufError;
use graftwork_model::peft::AdapterError;
use graftwork_model::tensor_file::TensorFileError;
use graftwork_model::tokenizer::TokenizerError;
use tonic::Status;

/// Why a question about an adapter has no good answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Failure {
    /// The files can't be used, now and later.
    Problem(Problem),
    /// The base model that they are compared with can't be used; says nothing about them.
    Base(Problem),
    /// A volume did not do its part.
    Unavailable(String),
    /// A defect of ours.
    Bug(String),
}

impl Failure {
    /// A problem of the files.
    pub fn problem(reason: &str, message: impl Into<String>) -> Self {
        Self::Problem(problem(reason, message))
    }

    /// With a folder named as the user named it, and not by the path that it is mounted at here.
    #[must_use]
    pub fn naming(self, mounted: &Path, uri: &str) -> Self {
        let mounted = mounted.display().to_string();
        let named = |message: String| message.replace(&mounted, uri);
        let of = |problem: Problem| Problem {
            message: named(problem.message),
            ..problem
        };
        match self {
            Self::Problem(problem) => Self::Problem(of(problem)),
            Self::Base(problem) => Self::Base(of(problem)),
            Self::Unavailable(message) => Self::Unavailable(named(message)),
            Self::Bug(message) => Self::Bug(named(message)),
        }
    }

    /// The answer: a problem in the reply, or a status.
    pub fn into_problem(self) -> Result<Problem, Status> {
        match self {
            Self::Problem(problem) => Ok(problem),
            Self::Base(Problem { reason, message }) => {
                Err(Status::failed_precondition(format!("{reason}: {message}")))
            }
            Self::Unavailable(message) => Err(Status::unavailable(message)),
            Self::Bug(message) => Err(Status::internal(message)),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let message = causes(&error);
        match (error.category(), &error) {
            (Category::Transient, _) => Self::Unavailable(message),
            (Category::Bug, _) => Self::Bug(message),
            (
                Category::Invalid,
                StoreError::DigestMismatch { .. } | StoreError::Conflict { .. },
            ) => Self::problem("DigestMismatch", message),
            (Category::Invalid, StoreError::FileType { .. }) => {
                Self::problem("FileTypeRefused", message)
            }
            (Category::Invalid, _) => Self::problem("AdapterInvalid", message),
        }
    }
}

impl From<AdapterError> for Failure {
    fn from(error: AdapterError) -> Self {
        let message = causes(&error);
        match error {
            AdapterError::Io { .. } | AdapterError::File(TensorFileError::Read { .. }) => {
                Self::Unavailable(message)
            }
            AdapterError::Tensor(_) | AdapterError::File(TensorFileError::Write { .. }) => {
                Self::Bug(message)
            }
            AdapterError::Missing { .. }
            | AdapterError::File(_)
            | AdapterError::Unusable { .. }
            | AdapterError::Json(_)
            | AdapterError::Invalid { .. }
            | AdapterError::Unsupported { .. }
            | AdapterError::NotFinite { .. } => Self::problem("AdapterInvalid", message),
            AdapterError::UnknownModule(_)
            | AdapterError::OutOfRange { .. }
            | AdapterError::MissingTensor(_)
            | AdapterError::UnexpectedTensor(_)
            | AdapterError::Shape { .. } => Self::problem("AdapterIncompatible", message),
        }
    }
}

/// A problem.
pub fn problem(reason: &str, message: impl Into<String>) -> Problem {
    Problem {
        reason: reason.to_owned(),
        message: message.into(),
    }
}

/// Why a base model can't be used: its files, or the volume that does not give them.
pub fn of_base(error: &BaseError) -> Failure {
    let reason = match error {
        BaseError::Config(ConfigError::Missing { .. }) | BaseError::NoWeights(_) => {
            "BaseModelNotFound"
        }
        BaseError::Config(ConfigError::Unsupported { .. })
        | BaseError::File(TensorFileError::Dtype { .. })
        | BaseError::Gguf(GgufError::Family { .. } | GgufError::Type { .. }) => {
            "BaseModelUnsupported"
        }
        BaseError::Config(_)
        | BaseError::File(_)
        | BaseError::Gguf(_)
        | BaseError::Quantize { .. }
        | BaseError::Device { .. }
        | BaseError::SeveralGguf { .. }
        | BaseError::Io { .. }
        | BaseError::Index(_)
        | BaseError::MissingTensor(_)
        | BaseError::UnexpectedTensor(_)
        | BaseError::Shape { .. } => "BaseModelInvalid",
    };
    of_base_file(error.category(), reason, causes(error))
}

/// Why a base model's tokenizer can't be used.
pub fn of_tokenizer(error: &TokenizerError) -> Failure {
    let reason = match error {
        TokenizerError::Missing(_) => "BaseModelNotFound",
        _ => "BaseModelInvalid",
    };
    of_base_file(error.category(), reason, causes(error))
}

fn of_base_file(category: FileCategory, reason: &str, message: String) -> Failure {
    match category {
        FileCategory::Invalid => Failure::Base(problem(reason, message)),
        FileCategory::Transient => Failure::Unavailable(message),
        FileCategory::Bug => Failure::Bug(message),
    }
}
