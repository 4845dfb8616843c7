//! Functions of our own, and those that tell the time: the snapshot's.
//!
//! What they find of personal data is not counted: an engine may call a function more or less often than
//! there are rows.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray as _, Int64Array, StringArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use graftwork_contract::Digest;
use graftwork_privacy::{Counts, Key, Masker, mask};
use jiff::Timestamp;

use crate::failure::Failure;
use crate::tokens::Measure;

/// Nanoseconds of a day.
const DAY: i64 = 86_400_000_000_000;

/// What functions need.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// What counts tokens, where a base model is named.
    pub tokens: Option<Arc<dyn Measure>>,
    /// The key of pseudonyms, where one is named.
    pub key: Option<Key>,
}

impl Given {
    /// What a function of this name needs and does not have.
    pub fn lacks(&self, function: &str) -> Option<&'static str> {
        match function {
            "token_count" if self.tokens.is_none() => {
                Some("calls token_count(), which needs spec.baseModel")
            }
            "pseudonymise" if self.key.is_none() => {
                Some("calls pseudonymise(), which needs spec.privacy.pseudonymKeyRef")
            }
            _ => None,
        }
    }
}

/// Every function that the engine does not bring, or that it would ask the clock for.
pub fn all(given: &Given, now: Timestamp) -> Vec<ScalarUDF> {
    let mut functions = vec![
        texts("redact", |text| Ok(masked(text, &Masker::Redact))),
        texts("sha256_hex", |text| {
            Ok(Digest::of(text.as_bytes()).hex().to_owned())
        }),
    ];
    let masker = given.key.clone().map(Masker::Pseudonymise);
    functions.push(texts("pseudonymise", move |text| match &masker {
        Some(masker) => Ok(masked(text, masker)),
        None => Err(missing("pseudonymise")),
    }));
    let tokens = given.tokens.clone();
    functions.push(token_count(tokens));
    functions.extend(times(now));
    functions
}

fn masked(text: &str, masker: &Masker) -> String {
    mask(text, masker, &mut Counts::default()).unwrap_or_else(|| text.to_owned())
}

/// Plans that call it are refused before they run.
fn missing(name: &str) -> DataFusionError {
    failed(Failure::bug(format!("{name} lacks what it needs")))
}

fn failed(failure: Failure) -> DataFusionError {
    DataFusionError::External(Box::new(failure))
}

/// One argument: a value for all rows, or one for each.
enum Argument<'a> {
    One(Option<&'a str>),
    Each(&'a ArrayRef),
}

fn argument(arguments: &[ColumnarValue]) -> Result<Argument<'_>> {
    let found = match arguments {
        [ColumnarValue::Scalar(value)] => value.try_as_str().map(Argument::One),
        [ColumnarValue::Array(array)] if array.data_type() == &DataType::Utf8 => {
            Some(Argument::Each(array))
        }
        _ => None,
    };
    found.ok_or_else(|| failed(Failure::bug("a function was called with something else")))
}

/// A function from text to text; null stays null.
fn texts(name: &str, apply: impl Fn(&str) -> Result<String> + Send + Sync + 'static) -> ScalarUDF {
    let function = move |arguments: &[ColumnarValue]| -> Result<ColumnarValue> {
        Ok(match argument(arguments)? {
            Argument::One(text) => {
                ColumnarValue::Scalar(ScalarValue::Utf8(text.map(&apply).transpose()?))
            }
            Argument::Each(array) => {
                let texts = array.as_string::<i32>().iter();
                let answers: Result<StringArray> =
                    texts.map(|text| text.map(&apply).transpose()).collect();
                ColumnarValue::Array(Arc::new(answers?))
            }
        })
    };
    create_udf(
        name,
        vec![DataType::Utf8],
        DataType::Utf8,
        Volatility::Immutable,
        Arc::new(function),
    )
}

/// Tokens of a text, without what a template or the end of a row adds.
fn token_count(tokens: Option<Arc<dyn Measure>>) -> ScalarUDF {
    let count = move |text: &str| -> Result<i64> {
        let Some(measure) = &tokens else {
            return Err(missing("token_count"));
        };
        let count = measure.count(text);
        count.map(i64::from).map_err(|rule| {
            let message = format!("spec.transform: token_count(): a text {rule}");
            failed(Failure::bad_data(message))
        })
    };
    let function = move |arguments: &[ColumnarValue]| -> Result<ColumnarValue> {
        Ok(match argument(arguments)? {
            Argument::One(text) => {
                ColumnarValue::Scalar(ScalarValue::Int64(text.map(&count).transpose()?))
            }
            Argument::Each(array) => {
                let texts = array.as_string::<i32>().iter();
                let answers: Result<Int64Array> =
                    texts.map(|text| text.map(&count).transpose()).collect();
                ColumnarValue::Array(Arc::new(answers?))
            }
        })
    };
    create_udf(
        "token_count",
        vec![DataType::Utf8],
        DataType::Int64,
        Volatility::Immutable,
        Arc::new(function),
    )
}

/// `now()` and its kin, in UTC: always the same answer.
fn times(now: Timestamp) -> Vec<ScalarUDF> {
    let nanoseconds = i64::try_from(now.as_nanosecond()).unwrap_or_default();
    let days = i32::try_from(nanoseconds.div_euclid(DAY)).unwrap_or_default();
    let fixed = |name: &str, answer: ScalarValue| {
        let kind = answer.data_type();
        let function = move |_: &[ColumnarValue]| -> Result<ColumnarValue> {
            Ok(ColumnarValue::Scalar(answer.clone()))
        };
        create_udf(
            name,
            Vec::new(),
            kind,
            Volatility::Immutable,
            Arc::new(function),
        )
    };
    let time = ScalarValue::Time64Nanosecond(Some(nanoseconds.rem_euclid(DAY)));
    vec![
        fixed(
            "now",
            ScalarValue::TimestampNanosecond(Some(nanoseconds), None),
        )
        .with_aliases(["current_timestamp"]),
        fixed("current_date", ScalarValue::Date32(Some(days))).with_aliases(["today"]),
        fixed("current_time", time),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What counts words.
    #[derive(Debug)]
    struct Words;

    impl Measure for Words {
        fn tokens(&self, _: &graftwork_artifacts::rows::Row) -> std::result::Result<u32, String> {
            Ok(0)
        }

        fn count(&self, text: &str) -> std::result::Result<u32, String> {
            Ok(text.split_whitespace().count() as u32)
        }
    }

    #[test]
    fn what_a_function_lacks_is_named_by_its_field() {
        let nothing = Given::default();
        let lacks = |name| nothing.lacks(name).unwrap_or_default();
        assert!(lacks("token_count").ends_with("spec.baseModel"));
        assert!(lacks("pseudonymise").ends_with("spec.privacy.pseudonymKeyRef"));
        assert_eq!(lacks("redact"), "");
        let given = Given {
            tokens: Some(Arc::new(Words)),
            key: Key::new(&[7; 32]).ok(),
        };
        assert_eq!(given.lacks("token_count"), None);
        assert_eq!(given.lacks("pseudonymise"), None);
    }

    #[test]
    fn pseudonyms_are_those_of_the_privacy_modes() {
        let key = Key::new(&[7; 32]).unwrap();
        let text = "write to ann@example.com";
        let expected = masked(text, &Masker::Pseudonymise(key));
        assert!(expected.starts_with("write to [EMAIL-"), "{expected}");
        assert_eq!(masked(text, &Masker::Redact), "write to [EMAIL]");
        assert_eq!(masked("nothing", &Masker::Redact), "nothing");
    }

    #[test]
    fn a_null_stays_a_null() {
        let empty = ColumnarValue::Scalar(ScalarValue::Utf8(None));
        let Ok(Argument::One(None)) = argument(std::slice::from_ref(&empty)) else {
            panic!("a null is no text");
        };
        assert!(argument(&[]).is_err());
    }
}
