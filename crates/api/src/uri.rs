//! URIs of models, adapters and data on volumes: `pvc://CLAIM/PATH`.

use std::fmt;

use thiserror::Error;

/// A folder or file on a PersistentVolumeClaim of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PvcUri {
    claim: String,
    path: String,
}

/// Why a URI is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UriError {
    /// There is no `://`.
    #[error("\"{0}\" is not a URI: write pvc://CLAIM/PATH")]
    NotAUri(String),
    /// Another scheme than `pvc`.
    #[error("scheme \"{0}\" is not supported: write pvc://CLAIM/PATH")]
    Scheme(String),
    /// The claim is not a name.
    #[error("claim \"{0}\" is not the name of a PersistentVolumeClaim")]
    Claim(String),
    /// A part of the path is empty, `.` or `..`, or holds a backslash, an encoded dot or slash, or what nobody sees.
    #[error("path {0:?} has a part that is empty, \".\", \"..\", percent-encoded or not printable")]
    Path(String),
    /// The URI holds a query, a fragment or a user.
    #[error("a query, a fragment or a user is not supported: write pvc://CLAIM/PATH")]
    Extra,
}

impl PvcUri {
    /// Reads `pvc://CLAIM/PATH`; the path may be empty for the claim's root, and may end in `/`.
    pub fn parse(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| UriError::NotAUri(text.to_owned()))?;
        if scheme != "pvc" {
            return Err(UriError::Scheme(scheme.to_owned()));
        }
        if rest.contains(['?', '#', '@']) {
            return Err(UriError::Extra);
        }
        let (claim, path) = rest.split_once('/').unwrap_or((rest, ""));
        if !is_object_name(claim) {
            return Err(UriError::Claim(claim.to_owned()));
        }
        let path = match path.strip_suffix('/') {
            Some(folder) if !folder.is_empty() => folder,
            _ => path,
        };
        let bad_part = |part: &str| {
            part.is_empty()
                || part == "."
                || part == ".."
                || part.contains('\\')
                || has_encoded_mark(part)
                || part.chars().any(is_unseen)
        };
        if !path.is_empty() && path.split('/').any(bad_part) {
            return Err(UriError::Path(path.to_owned()));
        }
        Ok(Self {
            claim: claim.to_owned(),
            path: path.to_owned(),
        })
    }

    /// Name of the claim.
    pub fn claim(&self) -> &str {
        &self.claim
    }

    /// Path in the claim, without a slash at either end; empty for its root.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for PvcUri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "pvc://{}/{}", self.claim, self.path)
    }
}

/// Whether who decodes a part would find another path. Nobody here does; people read it so.
fn has_encoded_mark(part: &str) -> bool {
    let part = part.to_ascii_lowercase();
    ["%00", "%25", "%2e", "%2f", "%5c"]
        .iter()
        .any(|mark| part.contains(mark))
}

/// Controls, and the marks that turn text around or have no width: a path with one is not what it looks like.
fn is_unseen(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Whether `name` can be the name of an object (a DNS subdomain).
fn is_object_name(name: &str) -> bool {
    let inner = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    !name.is_empty()
        && name.len() <= 253
        && name
            .chars()
            .all(|letter| inner(letter) || letter == '-' || letter == '.')
        && name.starts_with(inner)
        && name.ends_with(inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn claim_and_path_are_found() {
        for (text, claim, path) in [
            ("pvc://models/tiny", "models", "tiny"),
            ("pvc://models/a/b.jsonl", "models", "a/b.jsonl"),
            ("pvc://models/a/", "models", "a"),
            ("pvc://models/50% über.jsonl", "models", "50% über.jsonl"),
            ("pvc://models", "models", ""),
            ("pvc://models/", "models", ""),
        ] {
            let uri = PvcUri::parse(text).unwrap();
            assert_eq!((uri.claim(), uri.path()), (claim, path), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_its_name() {
        for (text, part) in [
            ("models/tiny", "not a URI"),
            ("s3://bucket/x", "\"s3\""),
            ("https://host/x", "\"https\""),
            ("PVC://models/x", "\"PVC\""),
            ("pvc:///x", "claim \"\""),
            ("pvc://Models/x", "\"Models\""),
            ("pvc://models/../etc", "\"../etc\""),
            ("pvc://models/a//b", "\"a//b\""),
            ("pvc://models/./b", "\"./b\""),
            ("pvc://models//", "\"/\""),
            ("pvc://models/a\\b", "\"a\\\\b\""),
            ("pvc://models/a\nb", "path"),
            ("pvc://models/%2e%2E/b", "percent-encoded"),
            ("pvc://models/a%2Fb", "percent-encoded"),
            ("pvc://models/%252e/b", "percent-encoded"),
            ("pvc://models/a\u{202e}b", "\\u{202e}"),
            ("pvc://models/a\u{200b}", "not printable"),
            ("pvc://models/a?x=1", "query"),
            ("pvc://me:secret@models/a", "user"),
        ] {
            let message = PvcUri::parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_is_written(text in ".{0,64}") {
            if let Ok(uri) = PvcUri::parse(&text) {
                prop_assert_eq!(PvcUri::parse(&uri.to_string()), Ok(uri));
            }
        }

        #[test]
        fn no_path_leaves_its_claim(path in "[a-z./]{0,24}") {
            if let Ok(uri) = PvcUri::parse(&format!("pvc://models/{path}")) {
                prop_assert!(uri.path().split('/').all(|part| part != ".."));
            }
        }
    }
}
