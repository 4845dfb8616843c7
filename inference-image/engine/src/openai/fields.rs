//! A JSON object that is read strictly: each field is taken with its type and range, and what is
//! left over at the end is refused by name.

use std::fmt::Display;
use std::ops::RangeInclusive;

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::ApiError;
use super::error::cut;

/// JSON values of a body: read, each takes a hundred bytes and more. Those of a prompt's token ids count too.
pub const MAXIMUM_VALUES: usize = 1 << 18;

/// Values at which a parameter that this engine does not have changes nothing.
#[derive(Debug, Clone, Copy)]
pub enum Neutral {
    /// Every value: the parameter does not touch the answer.
    Any,
    /// 0.
    Zero,
    /// 1.
    One,
    /// `false`.
    False,
    /// `true`.
    True,
    /// An empty list, object or text.
    Empty,
    /// One of these texts.
    Text(&'static [&'static str]),
    /// `["text"]`.
    TextList,
    /// Any text.
    AnyText,
    /// An object of texts.
    Texts,
}

impl Neutral {
    fn holds(self, value: &Value) -> bool {
        match self {
            Self::Any => true,
            Self::Zero => value.as_f64() == Some(0.0),
            Self::One => value.as_i64() == Some(1),
            Self::False => value == &Value::Bool(false),
            Self::True => value == &Value::Bool(true),
            Self::Empty => match value {
                Value::Array(items) => items.is_empty(),
                Value::Object(items) => items.is_empty(),
                Value::String(text) => text.is_empty(),
                _ => false,
            },
            Self::Text(allowed) => value.as_str().is_some_and(|text| allowed.contains(&text)),
            Self::TextList => value
                .as_array()
                .is_some_and(|items| items.iter().all(|item| item == "text")),
            Self::AnyText => value.is_string(),
            Self::Texts => value
                .as_object()
                .is_some_and(|items| items.values().all(Value::is_string)),
        }
    }

    /// What may be sent, for a message.
    fn accepted(self) -> String {
        match self {
            Self::Any => "anything".to_owned(),
            Self::Zero => "0".to_owned(),
            Self::One => "1".to_owned(),
            Self::False => "false".to_owned(),
            Self::True => "true".to_owned(),
            Self::Empty => "an empty one".to_owned(),
            Self::Text(allowed) => allowed
                .iter()
                .map(|text| format!("{text:?}"))
                .collect::<Vec<_>>()
                .join(" or "),
            Self::TextList => r#"["text"]"#.to_owned(),
            Self::AnyText => "a text".to_owned(),
            Self::Texts => "an object of texts".to_owned(),
        }
    }
}

/// The fields of a request that were not read yet.
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
    /// Put before a field's name, for example `stream_options.`.
    path: String,
}

impl Fields {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 where it is not a JSON object, 413 where it has more than [`MAXIMUM_VALUES`].
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        if has_more_values(body, MAXIMUM_VALUES) {
            return Err(ApiError::refused(
                StatusCode::PAYLOAD_TOO_LARGE,
                "request_too_large",
                format!(
                    "the body has more than {MAXIMUM_VALUES} JSON values; send fewer prompts at one time, or texts in \
                     place of token ids"
                ),
            ));
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self {
                map,
                path: String::new(),
            }),
            Ok(_) => Err(ApiError::bad_request("the body is not a JSON object")),
            Err(error) => Err(ApiError::bad_request(format!(
                "the body is not valid JSON: {error}"
            ))),
        }
    }

    /// Where a field is; a name may be as long as a body.
    fn path(&self, name: &str) -> String {
        format!("{}{}", self.path, cut(name))
    }

    /// Takes a field; `null` counts as absent.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        #[cfg(test)]
        asked::note(self.path(name));
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Whether a field that nobody took yet is an object.
    pub fn is_object(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_object)
    }

    /// Takes a text.
    ///
    /// # Errors
    /// 400 for another type.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(name, "a string", &other)),
        }
    }

    /// Takes a Boolean.
    ///
    /// # Errors
    /// 400 for another type.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong_type(name, "true or false", &other)),
        }
    }

    /// Takes a whole number.
    ///
    /// # Errors
    /// 400 for another type or a value out of `range`.
    pub fn whole(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let Some(number) = value.as_i64() else {
            if value.is_u64() {
                return Err(self.out_of_range(name, &value, range.start(), range.end()));
            }
            return Err(self.wrong_type(name, "a whole number", &value));
        };
        if range.contains(&number) {
            return Ok(Some(number));
        }
        Err(self.out_of_range(name, &number, range.start(), range.end()))
    }

    /// Takes a number.
    ///
    /// # Errors
    /// 400 for another type or a value out of `range`.
    pub fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let Some(number) = value.as_f64() else {
            return Err(self.wrong_type(name, "a number", &value));
        };
        if range.contains(&number) {
            return Ok(Some(number));
        }
        Err(self.out_of_range(name, &number, range.start(), range.end()))
    }

    /// Takes an object.
    ///
    /// # Errors
    /// 400 for another type.
    pub fn object(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self {
                map,
                path: format!("{}.", self.path(name)),
            })),
            Some(other) => Err(self.wrong_type(name, "an object", &other)),
        }
    }

    /// The fields of one element of a list that was taken as `name`.
    ///
    /// # Errors
    /// 400 where the element is not an object.
    pub fn element(&self, name: &str, index: usize, value: Value) -> Result<Self, ApiError> {
        let path = format!("{}[{index}]", self.path(name));
        match value {
            Value::Object(map) => Ok(Self {
                map,
                path: format!("{path}."),
            }),
            _ => Err(ApiError::invalid(
                path.clone(),
                format!("{path} is not an object"),
            )),
        }
    }

    /// Takes parameters that this engine does not have.
    ///
    /// # Errors
    /// 400 naming the first whose value would change the answer.
    pub fn neutral(&mut self, table: &[(&str, Neutral)]) -> Result<(), ApiError> {
        for (name, neutral) in table {
            if let Some(value) = self.take(name)
                && !neutral.holds(&value)
            {
                let remedy = format!("leave it out or send {}", neutral.accepted());
                return Err(self.unsupported(name, &value, &remedy));
            }
        }
        Ok(())
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// 400 naming the first field that nobody took.
    pub fn finish(mut self) -> Result<(), ApiError> {
        self.map.retain(|_, value| !value.is_null());
        let Some(name) = self.map.keys().next() else {
            return Ok(());
        };
        let path = self.path(name);
        let message = format!(
            "{path} is not a parameter that this engine supports; leave it out (GET /openapi.json lists what there is)"
        );
        Err(ApiError::unsupported(path, message))
    }

    /// 400 for a value that this engine can't do anything with.
    pub fn unsupported(&self, name: &str, value: &Value, remedy: &str) -> ApiError {
        let path = self.path(name);
        let message = format!(
            "{path} = {} is not supported by this engine; {remedy}",
            shown(value)
        );
        ApiError::unsupported(path, message)
    }

    /// 400 for a value of the wrong type.
    pub fn wrong_type(&self, name: &str, expected: &str, value: &Value) -> ApiError {
        let path = self.path(name);
        let message = format!("{path} must be {expected}, is {}", shown(value));
        ApiError::invalid(path, message)
    }

    /// 400 for anything else that is wrong with a field.
    pub fn wrong(&self, name: &str, problem: &str) -> ApiError {
        let path = self.path(name);
        let message = format!("{path} {problem}");
        ApiError::invalid(path, message)
    }

    fn out_of_range(
        &self,
        name: &str,
        value: &dyn Display,
        low: &dyn Display,
        high: &dyn Display,
    ) -> ApiError {
        self.wrong(
            name,
            &format!("is {value}, it must be from {low} to {high}"),
        )
    }
}

/// Whether there are more JSON values than `most`, by what separates them.
fn has_more_values(body: &[u8], most: usize) -> bool {
    if body.len() <= most {
        return false;
    }
    let (mut count, mut in_text, mut is_escaped) = (0, false, false);
    for byte in body {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_text,
            b'"' => in_text = !in_text,
            b',' | b':' | b'[' | b'{' if !in_text => count += 1,
            _ => {}
        }
    }
    count > most
}

/// A value in a message: types only where the value itself may be somebody's text.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.len() <= 40 => format!("{text:?}"),
        Value::String(_) => "a long text".to_owned(),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// Which fields the readers of this thread asked for: what the API's description is compared with.
#[cfg(test)]
pub(crate) mod asked {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    thread_local! {
        static PATHS: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
    }

    pub(super) fn note(path: String) {
        PATHS.with_borrow_mut(|paths| paths.insert(path));
    }

    /// The paths that `read` asks for.
    pub(crate) fn during(read: impl FnOnce()) -> BTreeSet<String> {
        PATHS.take();
        read();
        PATHS.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn null_counts_as_absent() {
        let mut read = fields(r#"{"seed": null, "other": null}"#);
        assert_eq!(read.whole("seed", 0..=1).unwrap(), None);
        read.finish().unwrap();
    }

    #[test]
    fn a_body_that_cannot_be_read_has_the_code_that_routers_give_it() {
        for body in [r#"{"messages": "\ud800"}"#, "null", "[1]", "{"] {
            let error = Fields::parse(body.as_bytes()).unwrap_err();
            assert_eq!(error.code, Some("invalid_body"), "{body}");
        }
    }

    #[test]
    fn values_are_counted_and_what_stands_in_texts_is_none() {
        let ids = |count: usize| format!(r#"{{"prompt":[{}1]}}"#, "1,".repeat(count));
        assert!(Fields::parse(ids(MAXIMUM_VALUES - 3).as_bytes()).is_ok());
        let error = Fields::parse(ids(MAXIMUM_VALUES).as_bytes()).unwrap_err();
        assert_eq!(error.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(error.message.contains("262144 JSON values"), "{error}");
        let objects = format!("[{}0]", r#"{"":0},"#.repeat(MAXIMUM_VALUES / 2));
        assert!(has_more_values(objects.as_bytes(), MAXIMUM_VALUES));
        let text = format!(
            r#"{{"prompt":"{}"}}"#,
            r#"[{\\\"a\\\":1,,"#.repeat(MAXIMUM_VALUES)
        );
        assert!(Fields::parse(text.as_bytes()).is_ok());
    }

    #[test]
    fn a_field_that_nobody_took_is_refused_by_name() {
        let mut read = fields(r#"{"a": 1, "stream_options": {"b": 2}}"#);
        let options = read.object("stream_options").unwrap().unwrap();
        let error = options.finish().unwrap_err();
        assert_eq!(error.param.as_deref(), Some("stream_options.b"));
        let error = read.finish().unwrap_err();
        assert_eq!(error.param.as_deref(), Some("a"));
        assert_eq!(error.code, Some("unsupported_parameter"));
    }

    #[test]
    fn a_long_name_is_not_repeated_whole() {
        let name = "\u{e9}".repeat(100);
        let refused = |name: &str| {
            let error = fields(&format!(r#"{{"{name}": 1}}"#)).finish().unwrap_err();
            assert!(error.message.len() < 400, "{error}");
            error.param.unwrap()
        };
        assert_eq!(refused(&name), name);
        assert_eq!(refused(&"\u{e9}".repeat(10_000)), format!("{name}…"));
        let error = ApiError::model_not_found(&"x".repeat(10_000));
        assert!(error.message.len() < 200, "{error}");
    }

    #[test]
    fn types_and_ranges_are_named() {
        let mut read = fields(r#"{"n": 3, "m": 1.5, "t": "x", "f": 2.5}"#);
        assert_eq!(
            read.whole("n", 1..=1).unwrap_err().message,
            "n is 3, it must be from 1 to 1"
        );
        let mut large = fields(r#"{"n": 18446744073709551615}"#);
        assert_eq!(
            large.whole("n", 0..=9).unwrap_err().message,
            "n is 18446744073709551615, it must be from 0 to 9"
        );
        assert_eq!(
            read.whole("m", 0..=9).unwrap_err().message,
            "m must be a whole number, is 1.5"
        );
        assert_eq!(
            read.boolean("t").unwrap_err().message,
            "t must be true or false, is \"x\""
        );
        assert_eq!(
            read.number("f", 0.0..=2.0).unwrap_err().message,
            "f is 2.5, it must be from 0 to 2"
        );
    }

    #[test]
    fn neutral_values_pass_and_others_are_named() {
        let table = [
            ("tools", Neutral::Empty),
            ("presence_penalty", Neutral::Zero),
            ("store", Neutral::False),
            ("modalities", Neutral::TextList),
            ("user", Neutral::AnyText),
            ("metadata", Neutral::Texts),
        ];
        let mut read = fields(
            r#"{"tools": [], "presence_penalty": 0.0, "store": false, "modalities": ["text"],
                "user": "u", "metadata": {"a": "b"}}"#,
        );
        read.neutral(&table).unwrap();
        read.finish().unwrap();
        for (body, param) in [
            (r#"{"tools": [1]}"#, "tools"),
            (r#"{"presence_penalty": 0.1}"#, "presence_penalty"),
            (r#"{"store": true}"#, "store"),
            (r#"{"modalities": ["audio"]}"#, "modalities"),
            (r#"{"user": 7}"#, "user"),
            (r#"{"metadata": "x"}"#, "metadata"),
            (r#"{"metadata": {"a": 1}}"#, "metadata"),
        ] {
            let error = fields(body).neutral(&table).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
            assert_eq!(error.status, axum::http::StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn a_refused_value_comes_with_what_may_be_sent() {
        let error = fields(r#"{"store": true}"#)
            .neutral(&[("store", Neutral::False)])
            .unwrap_err();
        assert_eq!(
            error.message,
            "store = true is not supported by this engine; leave it out or send false"
        );
        let error = fields(r#"{"tier": "x"}"#)
            .neutral(&[("tier", Neutral::Text(&["auto", "default"]))])
            .unwrap_err();
        assert!(
            error.message.ends_with(r#"send "auto" or "default""#),
            "{error}"
        );
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        for body in ["", "[]", "{", "3"] {
            assert!(Fields::parse(body.as_bytes()).is_err(), "{body}");
        }
    }
}
