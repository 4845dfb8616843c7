//! What went wrong between us and a source's server, in words and with a verdict: whether another attempt may
//! help.

use std::error::Error;

pub use graftwork_objects::problem::Problem;
use graftwork_objects::problem::{self, Words};
use object_store::Error as StoreError;

use crate::failure::Failure;

/// Where what may be asked and who asks are said.
const WORDS: Words = Words {
    allow: "dataSources.allow",
    denied: "correct the Secret in secretRef, or what its user may read",
};

/// A problem as the end of a build.
pub trait OfSource {
    /// The failure of a source, named by its title.
    fn failure(self, title: &str) -> Failure;
}

impl OfSource for Problem {
    fn failure(self, title: &str) -> Failure {
        match self {
            Self::Denied(words) => Failure::source_denied(format!(
                "{title}: {words}; then change the annotation graftwork.dev/refresh"
            )),
            Self::NotFound(words) => Failure::source_not_found(format!("{title}: {words}")),
            Self::Changed => Failure::source_changed(format!(
                "{title} changed after it was listed; the next attempt lists it anew"
            )),
            Self::Away(words) => Failure::source_unavailable(format!("{title}: {words}")),
            Self::Wrong(words) => Failure::bad_data(format!("{title}: {words}")),
        }
    }
}

/// The problem by the error of a connection or a request.
pub fn of_connection(error: &(dyn Error + 'static)) -> Problem {
    problem::of_connection(error, &WORDS)
}

/// The problem by the error of an object store.
pub fn of_store(error: &StoreError) -> Problem {
    problem::of_store(error, &WORDS)
}

/// The problem by a server's status, and its code where it gives one.
pub fn of_status(status: u16, code: Option<&str>) -> Problem {
    problem::of_status(status, code, &WORDS)
}

#[cfg(test)]
mod tests {
    use std::io;

    use graftwork_contract::exit::ExitCode;
    use graftwork_objects::connect::ConnectError;
    use graftwork_objects::problem::find;

    use super::*;

    fn store(text: &str) -> StoreError {
        StoreError::Generic {
            store: "S3",
            source: Box::new(io::Error::other(text.to_owned())),
        }
    }

    #[test]
    fn what_another_attempt_may_mend_is_told_from_what_people_have_to() {
        for (text, code, reason) in [
            (
                "status code: 403 Forbidden: <Code>SignatureDoesNotMatch</Code>",
                ExitCode::BadConfig,
                "SourceDenied",
            ),
            (
                "status code: 400 Bad Request: <Code>ExpiredToken</Code>",
                ExitCode::BadConfig,
                "SourceDenied",
            ),
            (
                "status code: 404 Not Found: <Code>NoSuchBucket</Code>",
                ExitCode::BadData,
                "SourceNotFound",
            ),
            (
                "status code: 412 Precondition Failed",
                ExitCode::Unavailable,
                "BuildFailed",
            ),
            (
                "Received redirect without LOCATION, this normally indicates an incorrectly configured region",
                ExitCode::BadConfig,
                "SourceDenied",
            ),
            (
                "status code: 503 Service Unavailable: <Code>SlowDown</Code>",
                ExitCode::Unavailable,
                "SourceUnavailable",
            ),
            (
                "status code: 400 Bad Request: <Code>RequestTimeout</Code>",
                ExitCode::Unavailable,
                "SourceUnavailable",
            ),
            (
                "connection closed before message completed",
                ExitCode::Unavailable,
                "SourceUnavailable",
            ),
        ] {
            let failure = of_store(&store(text)).failure("source faq (s3://b/k)");
            assert_eq!((failure.code, failure.reason), (code, reason), "{failure}");
            assert!(failure.message.starts_with("source faq (s3://b/k)"));
        }
    }

    #[test]
    fn a_stores_code_is_repeated_and_nothing_else_of_what_it_says() {
        let said = "status code: 403 Forbidden: <Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>AKIASECRET</AWSAccessKeyId></Error>";
        let failure = of_store(&store(said)).failure("source faq");
        assert!(
            failure.message.contains("403 (InvalidAccessKeyId)"),
            "{failure}"
        );
        assert!(!failure.message.contains("AKIASECRET"), "{failure}");
        let strange = "status code: 403: <Code>AKIA SECRET</Code>";
        let failure = of_store(&store(strange)).failure("source faq");
        assert!(!failure.message.contains("SECRET"), "{failure}");
    }

    #[test]
    fn a_cause_is_found_however_deep_it_is_wrapped() {
        let refused = ConnectError::Refused(graftwork_contract::address::Refused::Redirects);
        let wrapped = io::Error::other(io::Error::other(refused));
        assert!(find::<ConnectError>(&wrapped).is_some());
        assert!(
            matches!(of_connection(&wrapped), Problem::Denied(words) if words.contains("5 redirects"))
        );
    }
}
