//! Answers to requests that have one answer: drawn greedily or with a seed, and not streamed. Off unless asked for.
//!
//! The key is everything that an answer depends on: what computed it (as the engine itself says: base model, build
//! and instruction set), the version's digest, the path, the body to the byte, and the caller, so that nobody learns
//! from the time of an answer what somebody else asked. While engines that can answer do not all say the same of
//! themselves, nothing is looked up: during a change of engines there is no one answer.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use graftwork_contract::endpoint::{HEADER_ADAPTER, HEADER_CACHE, HEADER_ENGINE};

/// What an entry takes beside its body, about.
const OVERHEAD_BYTES: usize = 512;
/// A hash of all that an answer depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// Of these parts, each with its length before it: no two lists of parts have the same bytes.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

/// Whether a request's body leaves nothing to chance. Everything else about it is the engine's to judge.
pub fn is_deterministic(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Draw {
        #[serde(default)]
        temperature: Option<Value>,
        #[serde(default)]
        seed: Option<Value>,
        #[serde(default)]
        stream: Option<bool>,
    }
    let Ok(draw) = serde_json::from_slice::<Draw>(body) else {
        return false;
    };
    let is_greedy = draw.temperature.and_then(|value| value.as_f64()) == Some(0.0);
    let is_seeded = draw.seed.is_some_and(|seed| seed.is_i64() || seed.is_u64());
    (is_greedy || is_seeded) && draw.stream != Some(true)
}

#[derive(Debug)]
struct Entry {
    headers: HeaderMap,
    body: Bytes,
    used: u64,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.body.len() + OVERHEAD_BYTES
    }
}

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<Key, Entry>,
    /// Keys by last use.
    by_use: BTreeMap<u64, Key>,
    bytes: usize,
    uses: u64,
}

impl Entries {
    fn remove(&mut self, key: Key) {
        if let Some(entry) = self.by_key.remove(&key) {
            self.by_use.remove(&entry.used);
            self.bytes -= entry.bytes();
        }
    }
}

/// The cache: least recently used goes first.
#[derive(Debug)]
pub struct AnswerCache {
    limit_bytes: usize,
    entries: Mutex<Entries>,
}

impl AnswerCache {
    /// Of at most so many bytes; 0: off.
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            entries: Mutex::default(),
        }
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        self.limit_bytes > 0
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Nothing in here panics half-way.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to this very request.
    pub fn get(&self, key: Key) -> Option<Response<Bytes>> {
        let mut entries = self.lock();
        entries.uses += 1;
        let uses = entries.uses;
        let Entries { by_key, by_use, .. } = &mut *entries;
        let entry = by_key.get_mut(&key)?;
        by_use.remove(&entry.used);
        by_use.insert(uses, key);
        entry.used = uses;
        let mut response = Response::new(entry.body.clone());
        *response.headers_mut() = entry.headers.clone();
        response
            .headers_mut()
            .insert(HEADER_CACHE, HeaderValue::from_static("hit"));
        Some(response)
    }

    /// Keeps an answer of 200.
    pub fn put(&self, key: Key, response: &Response<Bytes>) {
        let body = response.body();
        let needed = body.len() + OVERHEAD_BYTES;
        if response.status() != StatusCode::OK || needed > self.limit_bytes {
            return;
        }
        let names = [
            header::CONTENT_TYPE,
            HeaderName::from_static(HEADER_ADAPTER),
            HeaderName::from_static(HEADER_ENGINE),
        ];
        let kept = |name: HeaderName| {
            let value = response.headers().get(&name)?.clone();
            Some((name, value))
        };
        let headers = names.into_iter().filter_map(kept).collect();
        let mut entries = self.lock();
        entries.remove(key);
        while entries.bytes + needed > self.limit_bytes {
            let Some((_, oldest)) = entries.by_use.first_key_value().map(|(u, k)| (*u, *k)) else {
                break;
            };
            entries.remove(oldest);
        }
        entries.uses += 1;
        let used = entries.uses;
        entries.bytes += needed;
        entries.by_use.insert(used, key);
        let entry = Entry {
            headers,
            body: body.clone(),
            used,
        };
        entries.by_key.insert(key, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Key {
        Key::of(&[&[n]])
    }

    fn answer(body: &str) -> Response<Bytes> {
        Response::builder()
            .header(HEADER_ADAPTER, "a@v1")
            .header("x-request-id", "somebody's")
            .body(Bytes::from(body.to_owned()))
            .unwrap()
    }

    #[test]
    fn an_answer_comes_back_with_what_computed_it_and_without_what_was_the_requests() {
        let cache = AnswerCache::new(10_000);
        assert!(cache.get(key(1)).is_none());
        cache.put(key(1), &answer("one"));
        let hit = cache.get(key(1)).unwrap();
        assert_eq!(hit.body(), "one");
        assert_eq!(hit.headers()[HEADER_ADAPTER], "a@v1");
        assert_eq!(hit.headers()[HEADER_CACHE], "hit");
        assert!(hit.headers().get("x-request-id").is_none());
        assert!(cache.get(key(2)).is_none());
    }

    #[test]
    fn the_least_recently_used_goes_when_room_is_needed_and_errors_are_not_kept() {
        let cache = AnswerCache::new(3 * (OVERHEAD_BYTES + 10));
        for n in 0..3 {
            cache.put(key(n), &answer("0123456789"));
        }
        assert!(cache.get(key(0)).is_some());
        cache.put(key(3), &answer("0123456789"));
        let here: Vec<u8> = (0..4).filter(|n| cache.get(key(*n)).is_some()).collect();
        assert_eq!(here, [0, 2, 3]);
        cache.put(key(3), &answer("again"));
        assert_eq!(cache.get(key(3)).unwrap().body(), "again");
        let mut error = answer("no");
        *error.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        cache.put(key(4), &error);
        cache.put(key(5), &answer(&"x".repeat(10_000)));
        assert!(cache.get(key(4)).is_none() && cache.get(key(5)).is_none());
        let bytes = cache
            .lock()
            .by_key
            .values()
            .map(Entry::bytes)
            .sum::<usize>();
        assert_eq!(cache.lock().bytes, bytes);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(Key::of(&[b"ab", b"c"]), Key::of(&[b"a", b"bc"]));
        assert_ne!(Key::of(&[b"a", b""]), Key::of(&[b"a"]));
    }

    #[test]
    fn a_request_has_one_answer_where_it_is_greedy_or_seeded_and_whole() {
        for (body, expected) in [
            (r#"{"temperature": 0}"#, true),
            (r#"{"temperature": 0.0, "stream": false}"#, true),
            (r#"{"temperature": 1, "seed": 7}"#, true),
            (r#"{"seed": -1, "stream": null}"#, true),
            (r#"{"temperature": 0, "stream": true}"#, false),
            (r#"{"temperature": 0.1}"#, false),
            (r#"{"seed": null}"#, false),
            (r#"{"seed": "7"}"#, false),
            ("{}", false),
            ("[]", false),
        ] {
            assert_eq!(is_deterministic(body.as_bytes()), expected, "{body}");
        }
    }
}
