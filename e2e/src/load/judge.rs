//! Whether an answer is what was asked for.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::client::{Answer, Request};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it should.
    Ok,
    /// An open stream ended in an error event; counted apart, because a killed engine can't do better.
    StreamError,
    /// No answer.
    Connection,
    /// A status other than 200.
    Status,
    /// No last byte in time.
    Timeout,
    /// A stream without `[DONE]`.
    Truncated,
    /// A text that is not the header's version's, or no version header.
    WrongVersion,
    /// A version that nothing is said of: nobody may be answered by it.
    UnlistedVersion,
}

impl Outcome {
    /// Whether it counts as failed.
    pub fn is_failure(self) -> bool {
        !matches!(self, Self::Ok | Self::StreamError)
    }
}

/// Words that the answers of each version contain.
#[derive(Debug, Clone, Default)]
pub struct Expectations(BTreeMap<String, Vec<String>>);

impl FromStr for Expectations {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(serde_json::from_str(text)?))
    }
}

impl Expectations {
    /// How an answer of `version` is judged by its `text`: as it should be with one of the version's own words and none
    /// of another version's. Without any expectation nothing is judged; with some, every version has to be among them.
    fn judge(&self, version: &str, text: &str) -> Outcome {
        if self.0.is_empty() {
            return Outcome::Ok;
        }
        let Some(own) = self.0.get(version) else {
            return Outcome::UnlistedVersion;
        };
        let text = text.to_lowercase();
        let foreign = self
            .0
            .values()
            .flatten()
            .filter(|word| !own.contains(word))
            .any(|word| text.contains(word.as_str()));
        if own.iter().any(|word| text.contains(word.as_str())) && !foreign {
            Outcome::Ok
        } else {
            Outcome::WrongVersion
        }
    }
}

/// Judges one answer.
pub fn judge(request: &Request, answer: &Answer, expectations: &Expectations) -> Outcome {
    match answer.status {
        _ if answer.timed_out => Outcome::Timeout,
        None => Outcome::Connection,
        Some(200) => match &answer.version {
            _ if answer.stream_error => Outcome::StreamError,
            _ if request.stream && !answer.done => Outcome::Truncated,
            _ if answer.error.is_some() => Outcome::Truncated,
            Some(version) => expectations.judge(version, &answer.text),
            None => Outcome::WrongVersion,
        },
        Some(_) => Outcome::Status,
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::read;
    use super::*;

    fn request(stream: bool) -> Request {
        Request {
            model: "m".into(),
            user: "u".into(),
            prompt: "p".into(),
            max_tokens: 4,
            stream,
            version: None,
            caller: 0,
        }
    }

    fn judged(stream: bool, status: Option<u16>, version: Option<&str>, body: &str) -> Outcome {
        let expectations = r#"{"m@v1": ["amber"], "m@v2": ["cobalt"]}"#;
        judged_by(expectations, stream, status, version, body)
    }

    fn judged_by(
        expectations: &str,
        stream: bool,
        status: Option<u16>,
        version: Option<&str>,
        body: &str,
    ) -> Outcome {
        let expectations = expectations.parse().unwrap();
        let mut answer = Answer {
            status,
            version: version.map(str::to_owned),
            ..Answer::default()
        };
        if status.is_some() {
            read(&request(stream), body.as_bytes(), &mut answer);
        }
        judge(&request(stream), &answer, &expectations)
    }

    #[test]
    fn every_way_to_fail_has_a_name() {
        let good = r#"{"choices": [{"text": " amber"}]}"#;
        assert_eq!(judged(false, Some(200), Some("m@v1"), good), Outcome::Ok);
        assert_eq!(
            judged(false, Some(200), Some("m@v2"), good),
            Outcome::WrongVersion
        );
        assert_eq!(judged(false, Some(200), None, good), Outcome::WrongVersion);
        assert_eq!(
            judged(
                false,
                Some(200),
                Some("m@v1"),
                r#"{"choices": [{"text": "amber cobalt"}]}"#
            ),
            Outcome::WrongVersion
        );
        assert_eq!(judged(false, Some(503), None, "busy"), Outcome::Status);
        assert_eq!(judged(false, None, None, ""), Outcome::Connection);
        assert_eq!(
            judged(false, Some(200), Some("m@v1"), "{}"),
            Outcome::Truncated
        );
    }

    #[test]
    fn a_version_that_nobody_listed_has_failed_whatever_it_says() {
        let good = r#"{"choices": [{"text": " amber"}]}"#;
        let outcome = judged(false, Some(200), Some("m@v7"), good);
        assert_eq!(outcome, Outcome::UnlistedVersion);
        assert!(outcome.is_failure());
        assert_eq!(
            judged_by("{}", false, Some(200), Some("m@v7"), good),
            Outcome::Ok,
            "who expects nothing judges no text"
        );
        assert_eq!(
            judged_by("{}", false, Some(200), None, good),
            Outcome::WrongVersion
        );
    }

    #[test]
    fn a_stream_ends_with_done_or_says_why() {
        let piece = "data: {\"choices\": [{\"text\": \" am\"}]}\n\ndata: {\"choices\": [{\"text\": \"ber\"}]}\n\n";
        assert_eq!(
            judged(
                true,
                Some(200),
                Some("m@v1"),
                &format!("{piece}data: [DONE]\n\n")
            ),
            Outcome::Ok
        );
        assert_eq!(
            judged(true, Some(200), Some("m@v1"), piece),
            Outcome::Truncated
        );
        let error = format!("{piece}data: {{\"error\": {{\"message\": \"engine lost\"}}}}\n\n");
        assert_eq!(
            judged(true, Some(200), Some("m@v1"), &error),
            Outcome::StreamError
        );
    }
}
