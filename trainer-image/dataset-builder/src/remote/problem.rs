//! What went wrong between us and a server, in words and with a verdict: whether another attempt may help.
//! Servers' own words are not repeated, but for their codes: stores quote keys and signatures.

use std::error::Error;
use std::io;

use object_store::Error as StoreError;

use crate::connect::ConnectError;
use crate::failure::Failure;

/// Longest code of a store that a message repeats.
const MAXIMUM_CODE: usize = 64;
/// Most letters of an error's cause that a message repeats.
const MAXIMUM_CAUSE: usize = 200;

/// Why something on the network did not come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Who asks, or where, is not allowed: somebody has to change something.
    Denied(String),
    /// It is not there now.
    NotFound(String),
    /// It is another than the one that was listed.
    Changed,
    /// The server does not answer, or went away.
    Away(String),
    /// What is there can't be used.
    Wrong(String),
}

impl Problem {
    /// The failure of a source, named by its title.
    pub fn failure(self, title: &str) -> Failure {
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

/// The first cause of this type, also where an I/O error hides it.
pub fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = inner(error);
    }
    None
}

/// The cause of an error. An I/O error names the cause of what it wraps, and not what it wraps.
fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
    {
        Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
        None => error.source(),
    }
}

/// The problem by the error of a connection or a request.
pub fn of_connection(error: &(dyn Error + 'static)) -> Problem {
    known(error).unwrap_or_else(|| Problem::Away(cause(error)))
}

/// The problem by the error of an object store.
pub fn of_store(error: &StoreError) -> Problem {
    if let Some(problem) = known(error) {
        return problem;
    }
    let text = error.to_string();
    let status = match error {
        StoreError::NotFound { .. } => Some(404),
        StoreError::Precondition { .. } => Some(412),
        StoreError::PermissionDenied { .. } => Some(403),
        StoreError::Unauthenticated { .. } => Some(401),
        StoreError::InvalidPath { .. } => {
            let words = "a key beside it has an empty part or a control character, or is . or ..; name a narrower pattern";
            return Problem::Wrong(words.to_owned());
        }
        // The library's words for a redirect, which S3 answers with where the region is another.
        _ if text.contains("incorrectly configured region") => Some(301),
        _ => status_in(&text),
    };
    match (status, code_in(&text)) {
        (Some(status), code) => of_status(status, code),
        (None, Some(code)) => Problem::Away(format!("the store answers {code}")),
        (None, None) => Problem::Away(cause(error)),
    }
}

/// The problem by a server's status, and its code where it gives one.
pub fn of_status(status: u16, code: Option<&str>) -> Problem {
    let said = match code {
        Some(code) => format!("the server answers {status} ({code})"),
        None => format!("the server answers {status}"),
    };
    match status {
        404 | 410 => Problem::NotFound(format!("there is no such thing: {said}")),
        412 => Problem::Changed,
        300..=399 => Problem::Denied(format!(
            "{said}, which sends us elsewhere; correct region and endpoint in the Secret"
        )),
        408 | 425 | 429 => Problem::Away(said),
        _ if code == Some("RequestTimeout") => Problem::Away(said),
        400..=499 => Problem::Denied(format!(
            "{said}; correct the Secret in secretRef, or what its user may read"
        )),
        _ => Problem::Away(said),
    }
}

/// Of an error, what is known by its type.
fn known(error: &(dyn Error + 'static)) -> Option<Problem> {
    if let Some(problem) = find::<ConnectError>(error) {
        return Some(match problem {
            ConnectError::Refused(refused) => {
                Problem::Denied(format!("{refused} (dataSources.allow)"))
            }
            ConnectError::NoHost => Problem::Denied(problem.to_string()),
            ConnectError::Unknown { .. } | ConnectError::Silent { .. } => {
                Problem::Away(problem.to_string())
            }
        });
    }
    match find::<rustls::Error>(error)? {
        rustls::Error::InvalidCertificate(why) => Some(Problem::Denied(format!(
            "the server's certificate is refused ({why}); name its authority in the Secret's ca.crt"
        ))),
        other => Some(Problem::Away(format!("no TLS with the server: {other}"))),
    }
}

/// The last cause, which names no URI.
fn cause(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(next) = inner(last) {
        last = next;
    }
    let text: String = last.to_string().chars().take(MAXIMUM_CAUSE).collect();
    format!("the server went away or can't be understood: {text}")
}

/// The status in the library's words for an answer.
fn status_in(text: &str) -> Option<u16> {
    let (_, after) = text.split_once("status code: ")?;
    after.get(..3)?.parse().ok()
}

/// The code in a store's XML.
fn code_in(text: &str) -> Option<&str> {
    let (_, after) = text.split_once("<Code>")?;
    let (code, _) = after.split_once("</Code>")?;
    let plain = code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (plain && !code.is_empty() && code.len() <= MAXIMUM_CODE).then_some(code)
}

#[cfg(test)]
mod tests {
    use graftwork_contract::exit::ExitCode;

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
