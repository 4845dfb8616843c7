//! Content digests: `sha256:` and 64 lower-case hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest in its written form `sha256:<64 hex digits>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// A text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("digest {value:?} is not `sha256:` followed by 64 lower-case hexadecimal digits")]
pub struct InvalidDigest {
    /// The text that was given.
    pub value: String,
}

impl Digest {
    /// Digest of one byte string.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_sha256(Sha256::digest(bytes).into())
    }

    /// Digest of a JSON value in its canonical form: object keys sorted, no white space.
    ///
    /// # Errors
    /// Where `value` cannot be written as JSON (a map with keys that are not strings).
    pub fn of_json<T: Serialize>(value: &T) -> Result<Self, serde_json::Error> {
        Ok(Self::of(
            canonical_json(&serde_json::to_value(value)?).as_bytes(),
        ))
    }

    /// From a finished hash.
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        Self(format!("sha256:{}", hex::encode(hash)))
    }

    /// The written form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hexadecimal digits, as used in folder names.
    pub fn hex(&self) -> &str {
        self.0.strip_prefix("sha256:").unwrap_or(&self.0)
    }

    /// The first 12 digits, for names and messages.
    pub fn short(&self) -> &str {
        self.hex().get(..12).unwrap_or_default()
    }
}

/// A hasher that several parts are fed to, each with its length, so that no two different lists of
/// parts have the same bytes.
#[derive(Debug, Default, Clone)]
pub struct PartsHasher(Sha256);

impl PartsHasher {
    /// An empty hasher.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one part: its length as eight little-endian bytes, then itself.
    pub fn part(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// The digest of all parts so far.
    pub fn finish(&self) -> Digest {
        Digest::from_sha256(self.0.clone().finalize().into())
    }
}

/// JSON with sorted object keys and no white space (the subset of RFC 8785 that we need: numbers
/// are printed as `serde_json` prints them).
pub fn canonical_json(value: &serde_json::Value) -> String {
    let mut json = String::new();
    push_canonical(value, &mut json);
    json
}

/// An object as [`canonical_json`].
pub fn canonical_object(map: &serde_json::Map<String, serde_json::Value>) -> String {
    let mut json = String::new();
    push_object(map, &mut json);
    json
}

fn push_object(map: &serde_json::Map<String, serde_json::Value>, json: &mut String) {
    let mut keys: Vec<_> = map.iter().collect();
    keys.sort_by(|a, b| a.0.cmp(b.0));
    json.push('{');
    for (index, (key, value)) in keys.into_iter().enumerate() {
        if index > 0 {
            json.push(',');
        }
        push_json_text(key, json);
        json.push(':');
        push_canonical(value, json);
    }
    json.push('}');
}

fn push_canonical(value: &serde_json::Value, json: &mut String) {
    use serde_json::Value;
    match value {
        Value::Object(map) => push_object(map, json),
        Value::Array(items) => {
            json.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    json.push(',');
                }
                push_canonical(item, json);
            }
            json.push(']');
        }
        Value::String(text) => push_json_text(text, json),
        Value::Null | Value::Bool(_) | Value::Number(_) => json.push_str(&value.to_string()),
    }
}

/// Adds a text to canonical JSON, in quotes and escaped as `serde_json` does it: the short escapes where JSON has
/// them, `\u00` and two lower-case digits for other control characters, everything else as it is.
pub fn push_json_text(text: &str, json: &mut String) {
    json.reserve(text.len() + 2);
    json.push('"');
    let mut rest = text;
    let is_escaped = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    while let Some(at) = rest.bytes().position(is_escaped) {
        // What is escaped is one byte of ASCII, before which a character ends.
        let (plain, after) = rest.split_at(at);
        json.push_str(plain);
        let mut letters = after.chars();
        match letters.next() {
            Some('"') => json.push_str("\\\""),
            Some('\\') => json.push_str("\\\\"),
            Some('\u{8}') => json.push_str("\\b"),
            Some('\t') => json.push_str("\\t"),
            Some('\n') => json.push_str("\\n"),
            Some('\u{c}') => json.push_str("\\f"),
            Some('\r') => json.push_str("\\r"),
            Some(control) => {
                let digits = [u32::from(control) >> 4, u32::from(control) & 15];
                json.push_str("\\u00");
                json.extend(digits.into_iter().filter_map(|it| char::from_digit(it, 16)));
            }
            None => {}
        }
        rest = letters.as_str();
    }
    json.push_str(rest);
    json.push('"');
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let valid = text.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        });
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidDigest {
                value: text.to_owned(),
            })
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_back_as_it_was_written() {
        let digest = Digest::of(b"abc");
        assert_eq!(
            digest.as_str(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(digest.as_str().parse::<Digest>(), Ok(digest));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "sha256:",
            "sha256:AB",
            "md5:ba7816bf8f01cfea414140de5dae2223",
            &"a".repeat(71),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_order_of_keys_does_not_change_a_json_digest() {
        let a = serde_json::json!({"b": 1, "a": [1, {"y": 2, "x": 3}]});
        let b = serde_json::json!({"a": [1, {"x": 3, "y": 2}], "b": 1});
        assert_eq!(Digest::of_json(&a).unwrap(), Digest::of_json(&b).unwrap());
    }

    #[test]
    fn texts_are_escaped_as_serde_json_does() {
        let all: String = (0..0x250).filter_map(char::from_u32).collect();
        let texts = all.chars().map(|letter| format!("a{letter}é{letter}"));
        for text in texts.chain([String::new(), all.clone(), "\u{2028}\u{1f600}\"".to_owned()]) {
            let mut json = String::new();
            push_json_text(&text, &mut json);
            assert_eq!(json, serde_json::Value::from(text).to_string());
        }
    }

    #[test]
    fn canonical_json_has_sorted_keys_at_every_depth_and_no_space() {
        let value = serde_json::json!({
            "b": [1, -0.5, null, true, {"z": "\n", "y\"": []}], "a": {}, "é": 18_446_744_073_709_551_615_u64
        });
        assert_eq!(
            canonical_json(&value),
            r#"{"a":{},"b":[1,-0.5,null,true,{"y\"":[],"z":"\n"}],"é":18446744073709551615}"#
        );
        let object = value.as_object().unwrap();
        assert_eq!(canonical_object(object), canonical_json(&value));
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let ab_c = PartsHasher::new().part("ab").part("c").finish();
        let a_bc = PartsHasher::new().part("a").part("bc").finish();
        assert_ne!(ab_c, a_bc);
    }
}
