//! An analyser over HTTP, in the shape of Presidio's: what it finds in texts, of the types that the
//! configuration names. Texts go to it and nowhere else, and of its answers a type and two offsets stay.
//!
//! One request has one text, which every release of Presidio reads; several are on their way at a time.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use graftwork_contract::address::Guard;
use graftwork_contract::dataset::{self as contract, BuildConfig};
use graftwork_contract::uri::Endpoint;
use graftwork_objects::authorities;
use graftwork_objects::client::Client;
use http::Request;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http_body_util::{BodyExt as _, Limited};
use object_store::client::HttpRequestBody;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::problem::{OfSource as _, Problem, of_connection};
use super::web::US;
use crate::failure::{Failure, causes};

/// Requests that are on their way at a time.
const AT_ONCE: usize = 8;
/// How often a text is asked about.
const ATTEMPTS: u32 = 4;
/// Before the second attempt; each later one waits four times as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest text of one request, in characters: spaCy, which Presidio asks, refuses a million.
const MAXIMUM_CHARACTERS: usize = 50_000;
/// Longest answer that is read.
const MAXIMUM_ANSWER_BYTES: usize = 16 << 20;
/// The field that messages name.
const TITLE: &str = "spec.privacy.analyzer";

/// Where something stands in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// Number of its type among the configuration's.
    pub entity: usize,
    /// First byte, at a character's boundary.
    pub start: usize,
    /// One past the last byte, at a character's boundary.
    pub end: usize,
}

/// What was found, by text; the surest first.
pub type Answers = HashMap<String, Vec<Spot>>;

/// An analyser.
#[derive(Debug)]
pub struct Analyzer {
    // Other connections have runtimes of their own and read rows within them: this one has a thread.
    runtime: Runtime,
    asker: Arc<Asker>,
}

impl Analyzer {
    /// The analyser that the configuration names; none where it names none. Nothing is asked yet.
    ///
    /// # Errors
    /// A field that can't be used, or a host that the installation does not name.
    pub fn open(config: &BuildConfig) -> Result<Option<Self>, Failure> {
        let privacy = config.privacy.as_ref();
        let Some(asked) = privacy.and_then(|it| it.analyzer.as_ref()) else {
            return Ok(None);
        };
        let endpoint = Endpoint::parse(&asked.url)
            .map_err(|error| Failure::bad_config(format!("{TITLE}.url {error}")))?;
        let minimum_score = contract::Analyzer::score(&asked.minimum_score).ok_or_else(|| {
            let value = &asked.minimum_score;
            Failure::bad_config(format!(
                "{TITLE}.minimumScore is {value:?}; it must be a decimal from 0 to 1"
            ))
        })?;
        let guard = Guard::parse(&config.allowed_hosts)
            .map_err(|error| Failure::bad_config(format!("dataSources.allow: {error}")))?;
        // Rows as they are go there: not to whom a spec names, but to whom the installation does.
        if !guard.is_named(&endpoint.host) {
            let words = format!(
                "host {} gets personal data only where the chart's values name it (dataSources.allow)",
                endpoint.host
            );
            return Err(Problem::Denied(words).failure(TITLE));
        }
        let client = Client::new(guard, authorities::known())
            .map_err(|error| Failure::bug(causes(&error)))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| Failure::bug(format!("no runtime for the analyser: {error}")))?;
        Ok(Some(Self {
            runtime,
            asker: Arc::new(Asker {
                client,
                uri: format!("{endpoint}/analyze"),
                asked: asked.clone(),
                minimum_score,
            }),
        }))
    }

    /// The types that count, as the analyser calls them.
    pub fn entities(&self) -> &[String] {
        &self.asker.asked.entities
    }

    /// What stands in each text.
    ///
    /// # Errors
    /// An analyser that does not answer after several attempts, that refuses, or whose answers make no
    /// sense.
    pub fn ask(&self, texts: &BTreeSet<String>) -> Result<Answers, Failure> {
        let mut places = Vec::new();
        let mut pieces = Vec::new();
        for text in texts {
            for (offset, piece) in cut(text) {
                if piece.chars().any(char::is_alphanumeric) {
                    places.push((text, offset));
                    pieces.push(piece.to_owned());
                }
            }
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        let asker = Arc::clone(&self.asker);
        self.runtime.spawn(async move {
            let answers = stream::iter(pieces)
                .map(|piece| {
                    let asker = Arc::clone(&asker);
                    async move { asker.analyze(&piece).await }
                })
                .buffered(AT_ONCE)
                .try_collect::<Vec<Vec<Spot>>>()
                .await;
            // Who asked waits for it.
            let _ = sender.send(answers);
        });
        let found = receiver
            .recv()
            .map_err(|_| Failure::bug("the analyser's thread ended"))?
            .map_err(|problem| problem.failure(TITLE))?;
        let mut answers: Answers = texts
            .iter()
            .map(|text| (text.clone(), Vec::new()))
            .collect();
        for ((text, offset), spots) in places.into_iter().zip(found) {
            if let Some(known) = answers.get_mut(text) {
                known.extend(spots.into_iter().map(|spot| Spot {
                    start: spot.start + offset,
                    end: spot.end + offset,
                    ..spot
                }));
            }
        }
        Ok(answers)
    }
}

/// What asks.
#[derive(Debug)]
struct Asker {
    client: Client,
    uri: String,
    asked: contract::Analyzer,
    minimum_score: f64,
}

impl Asker {
    /// What stands in a text, after several attempts where those may help.
    async fn analyze(&self, text: &str) -> Result<Vec<Spot>, Problem> {
        let question = json!({
            "text": text,
            "language": self.asked.language,
            "entities": self.asked.entities,
            "score_threshold": self.minimum_score,
        });
        let body = Bytes::from(question.to_string());
        let mut pause = FIRST_PAUSE;
        for _ in 1..ATTEMPTS {
            match self.exchange_in_time(body.clone(), text).await {
                Err(Problem::Away(_)) => tokio::time::sleep(pause).await,
                done => return done,
            }
            pause *= 4;
        }
        self.exchange_in_time(body, text).await
    }

    async fn exchange_in_time(&self, body: Bytes, text: &str) -> Result<Vec<Spot>, Problem> {
        let seconds = self.asked.timeout_seconds;
        let limit = Duration::from_secs(u64::from(seconds));
        match timeout(limit, self.exchange(body, text)).await {
            Ok(answer) => answer,
            Err(_) => Err(Problem::Away(format!(
                "no answer within {seconds} s, which is timeoutSeconds"
            ))),
        }
    }

    async fn exchange(&self, body: Bytes, text: &str) -> Result<Vec<Spot>, Problem> {
        let request = Request::post(self.uri.as_str())
            .header(USER_AGENT, US)
            .header(CONTENT_TYPE, "application/json")
            .body(HttpRequestBody::from(body))
            .map_err(|_| Problem::Denied("its URL leads to what is no URI".to_owned()))?;
        let answer = self
            .client
            .send(request)
            .await
            .map_err(|error| of_connection(&error))?;
        of_status(answer.status().as_u16())?;
        let bytes = Limited::new(answer.into_body(), MAXIMUM_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|_| {
                Problem::Away(format!(
                    "its answer broke off, or has more than {MAXIMUM_ANSWER_BYTES} bytes"
                ))
            })?
            .to_bytes();
        self.spots(text, &bytes)
    }

    /// Reads an answer. Its offsets count characters, as those of Python's strings do.
    fn spots(&self, text: &str, answer: &[u8]) -> Result<Vec<Spot>, Problem> {
        let wrong = || {
            Problem::Wrong(
                "it does not answer with a list of entity_type, start, end and score within the text"
                    .to_owned(),
            )
        };
        let Ok(Value::Array(found)) = serde_json::from_slice(answer) else {
            return Err(wrong());
        };
        let mut bytes: Vec<usize> = text.char_indices().map(|(byte, _)| byte).collect();
        bytes.push(text.len());
        let byte = |entity: &Value, name: &str| {
            let character = usize::try_from(entity.get(name)?.as_u64()?).ok()?;
            bytes.get(character).copied()
        };
        let mut spots = Vec::new();
        for entity in &found {
            let read = || {
                let name = entity.get("entity_type")?.as_str()?;
                let score = entity.get("score")?.as_f64()?;
                Some((name, score, byte(entity, "start")?, byte(entity, "end")?))
            };
            let (name, score, start, end) = read().ok_or_else(wrong)?;
            if start >= end {
                return Err(wrong());
            }
            let number = self.asked.entities.iter().position(|known| known == name);
            if let Some(entity) = number.filter(|_| score >= self.minimum_score) {
                spots.push((score, Spot { entity, start, end }));
            }
        }
        // The order of an answer means nothing.
        spots.sort_by(|(one, a), (other, b)| {
            let place = |spot: &Spot| (spot.start, std::cmp::Reverse(spot.end), spot.entity);
            other.total_cmp(one).then_with(|| place(a).cmp(&place(b)))
        });
        Ok(spots.into_iter().map(|(_, spot)| spot).collect())
    }
}

/// What a status means. Presidio answers 500 to what it can't do as well: another attempt may help.
fn of_status(status: u16) -> Result<(), Problem> {
    let said = format!("it answers {status}");
    match status {
        200 => Ok(()),
        300..=399 => Err(Problem::Denied(format!(
            "{said}; redirects are not followed"
        ))),
        404 => Err(Problem::Denied(format!("{said}: there is no /analyze"))),
        408 | 425 | 429 => Err(Problem::Away(said)),
        400..=499 => Err(Problem::Denied(said)),
        _ => Err(Problem::Away(said)),
    }
}

/// A text in pieces that one request takes, each with its first byte: cut after the last line that fits,
/// else after the last word.
fn cut(text: &str) -> Vec<(usize, &str)> {
    let mut pieces = Vec::new();
    let (mut offset, mut rest) = (0, text);
    while !rest.is_empty() {
        let limit = rest.char_indices().nth(MAXIMUM_CHARACTERS);
        let end = limit.map_or(rest.len(), |(limit, _)| {
            let head = rest.get(..limit).unwrap_or_default();
            let gap = head.rfind('\n').or_else(|| head.rfind(' '));
            gap.map_or(limit, |gap| gap + 1)
        });
        let (piece, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        pieces.push((offset, piece));
        offset += piece.len();
        rest = after;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use rustls::RootCertStore;

    use super::*;

    fn asker() -> Asker {
        let roots = RootCertStore::empty();
        Asker {
            client: Client::new(Guard::default(), roots).unwrap(),
            uri: String::new(),
            asked: contract::Analyzer {
                url: String::new(),
                language: "en".to_owned(),
                entities: vec!["PERSON".to_owned(), "LOCATION".to_owned()],
                minimum_score: "0.5".to_owned(),
                timeout_seconds: 1,
            },
            minimum_score: 0.5,
        }
    }

    fn entity(name: &str, start: u64, end: u64, score: f64) -> Value {
        json!({"entity_type": name, "start": start, "end": end, "score": score})
    }

    #[test]
    fn offsets_count_characters_and_the_surest_comes_first() {
        let text = "\u{1f600} Zo\u{eb} in K\u{f6}ln";
        let answer = json!([
            entity("LOCATION", 9, 13, 0.6),
            entity("PERSON", 2, 5, 0.9),
            entity("PERSON", 0, 1, 0.4),
            entity("DATE_TIME", 0, 1, 1.0),
        ]);
        let spots = asker().spots(text, answer.to_string().as_bytes()).unwrap();
        let named: Vec<_> = spots
            .iter()
            .map(|spot| (spot.entity, &text[spot.start..spot.end]))
            .collect();
        assert_eq!(named, [(0, "Zo\u{eb}"), (1, "K\u{f6}ln")]);
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_refused_without_its_words() {
        for answer in [
            "SECRET".to_owned(),
            "{}".to_owned(),
            r#"[{"entity_type": "PERSON"}]"#.to_owned(),
            json!([entity("PERSON", 2, 2, 1.0)]).to_string(),
            json!([entity("PERSON", 0, 99, 1.0)]).to_string(),
            json!([{"entity_type": "PERSON", "start": -1, "end": 1, "score": 1.0}]).to_string(),
        ] {
            let problem = asker().spots("Ann", answer.as_bytes()).unwrap_err();
            assert!(
                matches!(&problem, Problem::Wrong(words) if !words.contains("SECRET")),
                "{answer}"
            );
        }
    }

    #[test]
    fn a_long_text_is_cut_between_lines_and_nothing_is_lost() {
        let line = format!("{}\n", "Ann \u{e9}l ".repeat(1000));
        let text = line.repeat(20);
        let pieces = cut(&text);
        assert!(pieces.len() > 1);
        let mut from = 0;
        for (offset, piece) in &pieces {
            assert_eq!(*offset, from);
            assert!(piece.ends_with('\n') && piece.chars().count() <= MAXIMUM_CHARACTERS);
            from += piece.len();
        }
        assert_eq!(from, text.len());
        let unbroken = "x".repeat(MAXIMUM_CHARACTERS + 1);
        assert_eq!(cut(&unbroken).len(), 2);
        assert!(cut("").is_empty());
    }

    #[test]
    fn what_another_attempt_may_help_is_told_from_what_it_may_not() {
        assert_eq!(of_status(200), Ok(()));
        for status in [408, 429, 500, 503] {
            assert!(matches!(of_status(status), Err(Problem::Away(_))));
        }
        for status in [302, 400, 401, 404, 422] {
            assert!(matches!(of_status(status), Err(Problem::Denied(_))));
        }
    }
}
