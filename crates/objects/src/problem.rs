//! What went wrong between us and a server, in words and with a verdict: whether another attempt may help.
//! Servers' own words are not repeated, but for their codes: stores quote keys and signatures.

use std::error::Error;
use std::io;

use object_store::Error as StoreError;

use crate::connect::ConnectError;

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

/// What is said to who can mend it: a source's Secret and the artifact store's have different places.
#[derive(Debug, Clone, Copy)]
pub struct Words {
    /// The chart's value that allows addresses.
    pub allow: &'static str,
    /// What to do where the server refuses who asks.
    pub denied: &'static str,
}

impl Problem {
    /// What there is to say.
    pub fn words(self) -> String {
        match self {
            Self::Denied(words)
            | Self::NotFound(words)
            | Self::Away(words)
            | Self::Wrong(words) => words,
            Self::Changed => "it changed meanwhile".to_owned(),
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
pub fn of_connection(error: &(dyn Error + 'static), words: &Words) -> Problem {
    known(error, words).unwrap_or_else(|| Problem::Away(cause(error)))
}

/// The problem by the error of an object store.
pub fn of_store(error: &StoreError, words: &Words) -> Problem {
    if let Some(problem) = known(error, words) {
        return problem;
    }
    let text = error.to_string();
    let status = match error {
        StoreError::NotFound { .. } => Some(404),
        StoreError::Precondition { .. } => Some(412),
        StoreError::PermissionDenied { .. } => Some(403),
        StoreError::Unauthenticated { .. } => Some(401),
        StoreError::InvalidPath { .. } => {
            let said = "a key beside it has an empty part or a control character, or is . or ..; name a narrower pattern";
            return Problem::Wrong(said.to_owned());
        }
        // The library's words for a redirect, which S3 answers with where the region is another.
        _ if text.contains("incorrectly configured region") => Some(301),
        _ => status_in(&text),
    };
    match (status, code_in(&text)) {
        (Some(status), code) => of_status(status, code, words),
        (None, Some(code)) => Problem::Away(format!("the store answers {code}")),
        (None, None) => Problem::Away(cause(error)),
    }
}

/// The problem by a server's status, and its code where it gives one.
pub fn of_status(status: u16, code: Option<&str>, words: &Words) -> Problem {
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
        400..=499 => Problem::Denied(format!("{said}; {}", words.denied)),
        _ => Problem::Away(said),
    }
}

/// Whether an answer that there is no such thing means the bucket, and not the object.
pub fn is_of_bucket(error: &StoreError) -> bool {
    let text = error.to_string();
    matches!(
        code_in(&text),
        Some("NoSuchBucket" | "ContainerNotFound" | "ContainerBeingDeleted")
    ) || text.contains("The specified bucket does not exist")
}

/// Of an error, what is known by its type.
fn known(error: &(dyn Error + 'static), words: &Words) -> Option<Problem> {
    if let Some(problem) = find::<ConnectError>(error) {
        return Some(match problem {
            ConnectError::Refused(refused) => {
                Problem::Denied(format!("{refused} ({})", words.allow))
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
    use super::*;

    #[test]
    fn a_bucket_that_is_not_there_is_told_from_an_object() {
        let answer = |code: &str| StoreError::NotFound {
            path: "k".to_owned(),
            source: format!("status code: 404: <Error><Code>{code}</Code></Error>").into(),
        };
        for (code, expected) in [
            ("NoSuchBucket", true),
            ("ContainerNotFound", true),
            ("NoSuchKey", false),
            ("BlobNotFound", false),
        ] {
            assert_eq!(is_of_bucket(&answer(code)), expected, "{code}");
        }
    }
}
