//! What the router reads of a request: three fields of the body and four headers.

use std::borrow::Cow;
use std::fmt;

use graftwork_contract::endpoint::{
    HEADER_ADAPTER, HEADER_CALLER, HEADER_REQUEST_ID, HEADER_VERSION,
};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::choice::Side;

/// The fields of a chat or text completion that routing needs. The rest is skipped without being kept.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// What the client wants.
    pub model: String,
    /// Who the client says is asking.
    pub user: Option<String>,
    /// Whether the answer comes as server-sent events.
    pub stream: Option<bool>,
}

/// Why a body can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// In words.
    pub reason: String,
    /// The field that is wrong, where it is one field.
    pub parameter: Option<&'static str>,
}

/// The fields as they stand there, of whatever type.
#[derive(Deserialize)]
#[serde(expecting = "a JSON object")]
struct Fields {
    #[serde(default)]
    model: Option<Seen>,
    #[serde(default)]
    user: Option<Seen>,
    #[serde(default)]
    stream: Option<Seen>,
}

/// A field's value, or what else stands there: of that nothing is kept.
enum Seen {
    Text(String),
    Bool(bool),
    Other(&'static str),
}

impl Seen {
    fn text(self, field: &'static str) -> Result<String, Unreadable> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Bool(_) => Err(Unreadable::mistyped(field, "a string", "a boolean")),
            Self::Other(found) => Err(Unreadable::mistyped(field, "a string", found)),
        }
    }

    fn bool(self, field: &'static str) -> Result<bool, Unreadable> {
        match self {
            Self::Bool(value) => Ok(value),
            Self::Text(_) => Err(Unreadable::mistyped(field, "a boolean", "a string")),
            Self::Other(found) => Err(Unreadable::mistyped(field, "a boolean", found)),
        }
    }
}

impl Unreadable {
    fn mistyped(field: &'static str, expected: &str, found: &str) -> Self {
        Self {
            reason: format!("`{field}` is {found}, expected {expected}"),
            parameter: Some(field),
        }
    }
}

impl<'de> Deserialize<'de> for Seen {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Seen;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Seen, E> {
        Ok(Seen::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Seen, E> {
        Ok(Seen::Bool(value))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Seen, E> {
        Ok(Seen::Other("a number"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Seen, E> {
        Ok(Seen::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Seen, E> {
        Ok(Seen::Other("a number"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Seen, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Seen::Other("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Seen, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Seen::Other("an object"))
    }
}

impl Probe {
    /// Reads a body.
    ///
    /// # Errors
    /// Where it is not a JSON object with a string `model`, or a field has another type.
    pub fn read(body: &[u8]) -> Result<Self, Unreadable> {
        let fields = read_fields(body).map_err(|error| Unreadable {
            reason: error.to_string(),
            parameter: None,
        })?;
        let model = fields.model.ok_or_else(|| Unreadable {
            reason: "`model` is missing, expected a string".to_owned(),
            parameter: Some("model"),
        })?;
        Ok(Self {
            model: model.text("model")?,
            user: fields.user.map(|user| user.text("user")).transpose()?,
            stream: fields.stream.map(|it| it.bool("stream")).transpose()?,
        })
    }
}

fn read_fields(body: &[u8]) -> serde_json::Result<Fields> {
    // Derived structs read arrays too, by position.
    if body.trim_ascii_start().first() == Some(&b'[') {
        let words = "the body is an array, expected a JSON object";
        return Err(serde_json::Error::custom(words));
    }
    serde_json::from_slice(body)
}

/// The value of `x-graftwork-version`; `Err` holds one that is neither `candidate` nor `stable`.
pub fn wanted_side(headers: &HeaderMap) -> Result<Option<Side>, String> {
    let Some(value) = headers.get(HEADER_VERSION) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(value.as_bytes());
    Side::parse(&text)
        .map(Some)
        .ok_or_else(|| text.into_owned())
}

/// Who calls: the header, else the body's `user`; empty counts as nobody.
pub fn caller<'a>(headers: &'a HeaderMap, probe: &'a Probe) -> Option<Cow<'a, str>> {
    headers
        .get(HEADER_CALLER)
        .map(|value| text(value.as_bytes()))
        .filter(|caller| !caller.is_empty())
        .or_else(|| {
            let user = probe.user.as_deref().filter(|user| !user.is_empty());
            user.map(Cow::Borrowed)
        })
}

/// Bytes that are no text stay apart from others: two callers are never one.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(bytes.escape_ascii().to_string()),
    }
}

/// The client's `x-request-id` where it is short and plain, else a new one.
pub fn request_id(headers: &HeaderMap) -> HeaderValue {
    headers
        .get(HEADER_REQUEST_ID)
        .filter(|value| {
            (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
        })
        .cloned()
        .unwrap_or_else(|| {
            let id = format!("{:032x}", rand::random::<u128>());
            HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("none"))
        })
}

/// The headers that go on to the engine.
pub fn onward_headers(
    headers: &HeaderMap,
    adapter: &HeaderValue,
    request_id: &HeaderValue,
) -> HeaderMap {
    let mut onward = headers.clone();
    strip_hop_by_hop(&mut onward);
    // The body is sent whole: its length is set anew, and there is nothing left to expect.
    for name in [header::HOST, header::CONTENT_LENGTH, header::EXPECT] {
        onward.remove(name);
    }
    onward.remove(HEADER_VERSION);
    onward.insert(HEADER_ADAPTER, adapter.clone());
    onward.insert(HEADER_REQUEST_ID, request_id.clone());
    onward
}

/// Removes what belongs to one connection (RFC 9110, section 7.6.1).
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn a_body_gives_its_three_fields() {
        let body = br#"{"messages":[{"role":"user","content":"\"model\": \"x\""}],"model":"a","n":1,"user":"u\u00e9","stream":true}"#;
        let probe = Probe::read(body).unwrap();
        let expected = Probe {
            model: "a".into(),
            user: Some("ué".into()),
            stream: Some(true),
        };
        assert_eq!(probe, expected);
        let null = br#"{"model":"a","user":null,"stream":null}"#;
        assert_eq!(Probe::read(null).unwrap().stream, None);
    }

    #[test]
    fn a_body_that_could_be_read_in_two_ways_is_refused() {
        for body in [
            &br#"{"model":"a","model":"b"}"#[..],
            br#"{"model":1}"#,
            br#"{"prompt":"x"}"#,
            br#"{"model":"a","stream":"yes"}"#,
            br#"{"model":"a"} x"#,
            br#"{"model":"a","prompt":[}"#,
            b"",
            b"\xff",
        ] {
            assert!(
                Probe::read(body).is_err(),
                "{}",
                String::from_utf8_lossy(body)
            );
        }
    }

    #[test]
    fn what_is_wrong_with_a_body_is_said_with_the_field_and_without_our_own_names() {
        for (body, words, parameter) in [
            ("null", "expected a JSON object", None),
            ("[1]", "expected a JSON object", None),
            ("\"x\"", "expected a JSON object", None),
            (r#"{"model":"a""#, "line 1 column 12", None),
            (r#"{"user":"u"}"#, "`model` is missing", Some("model")),
            (r#"{"model":null}"#, "`model` is missing", Some("model")),
            (
                r#"{"model":1.5}"#,
                "`model` is a number, expected a string",
                Some("model"),
            ),
            (
                r#"{"model":{"a":[1,{}]}}"#,
                "`model` is an object",
                Some("model"),
            ),
            (
                r#"{"model":"a","user":["u"]}"#,
                "`user` is an array",
                Some("user"),
            ),
            (
                r#"{"model":"a","stream":"yes"}"#,
                "`stream` is a string, expected a boolean",
                Some("stream"),
            ),
        ] {
            let unreadable = Probe::read(body.as_bytes()).unwrap_err();
            assert!(unreadable.reason.contains(words), "{unreadable:?}");
            assert!(!unreadable.reason.contains("struct"), "{unreadable:?}");
            assert_eq!(unreadable.parameter, parameter, "{body}");
        }
    }

    #[test]
    fn the_header_names_the_caller_before_the_user() {
        let probe = Probe {
            user: Some("u".into()),
            ..Probe::default()
        };
        let named = |name: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER_CALLER, HeaderValue::from_bytes(name).unwrap());
            caller(&headers, &probe).map(Cow::into_owned)
        };
        assert_eq!(named(b"c").as_deref(), Some("c"));
        assert_eq!(named(b"").as_deref(), Some("u"));
        assert_eq!(named("zo\u{eb}".as_bytes()).as_deref(), Some("zo\u{eb}"));
        assert_eq!(named(b"zo\xeb").as_deref(), Some("zo\\xeb"));
        assert_ne!(named(b"zo\xeb"), named(b"zo\xea"));
        let nobody = Probe {
            user: Some(String::new()),
            ..Probe::default()
        };
        assert_eq!(caller(&HeaderMap::new(), &nobody), None);
    }

    #[test]
    fn a_request_keeps_its_plain_id_and_gets_one_otherwise() {
        assert_eq!(
            request_id(&headers(&[(HEADER_REQUEST_ID, "abc-1")])),
            "abc-1"
        );
        for odd in [
            &[][..],
            &[(HEADER_REQUEST_ID, "a b")],
            &[(HEADER_REQUEST_ID, "")],
        ] {
            assert_eq!(request_id(&headers(odd)).len(), 32);
        }
    }

    #[test]
    fn what_belongs_to_the_connection_or_to_us_does_not_go_on() {
        let onward = onward_headers(
            &headers(&[
                ("connection", "close, X-Secret-Hop"),
                ("x-secret-hop", "1"),
                ("transfer-encoding", "chunked"),
                ("keep-alive", "5"),
                ("host", "public"),
                ("content-length", "3"),
                ("content-type", "application/json"),
                (HEADER_ADAPTER, "forged@v9"),
                (HEADER_VERSION, "candidate"),
                (HEADER_CALLER, "c"),
            ]),
            &HeaderValue::from_static("a@v1"),
            &HeaderValue::from_static("id"),
        );
        let expected = headers(&[
            ("content-type", "application/json"),
            (HEADER_ADAPTER, "a@v1"),
            (HEADER_CALLER, "c"),
            (HEADER_REQUEST_ID, "id"),
        ]);
        assert_eq!(onward, expected);
    }
}
