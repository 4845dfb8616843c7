//! JSON of which nothing is lost in silence. Whole numbers that 64 bits don't hold, and fractions with more digits
//! than a number of 64 bits tells apart, are texts of these digits; as numbers the last ones would be lost. An object
//! that has a key twice is refused, as a CSV header is: of two values one would be lost.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Digits of a fraction that a number of 64 bits tells apart (IEEE 754, `binary64`).
const FRACTION_DIGITS: usize = 17;
/// Digits and points in a row that a longer number has at least.
const SHORTEST: usize = 18;

/// Bytes of a key: the columns of a source are kept while it is read, and named where one is missing.
const LONGEST_KEY: usize = 1024;

/// Reads JSON.
///
/// # Errors
/// Text that is no JSON, with the place in it; where [`is_data`](serde_json::Error::is_data), it is JSON with a key
/// twice in an object, or a very long one.
pub fn read(json: &str) -> serde_json::Result<Value> {
    let kept = quoted(json).and_then(|quoted| serde_json::from_str(&quoted).ok());
    let Once(value) = kept.map_or_else(|| serde_json::from_str(json), Ok)?;
    Ok(value)
}

/// A value in which no object has a key twice.
struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OnceVisitor).map(Self)
    }
}

struct OnceVisitor;

impl<'de> Visitor<'de> for OnceVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // JSON has none that are not finite.
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Once(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, Once(value))) = members.next_entry::<String, Once>()? {
            if name.len() > LONGEST_KEY {
                let words = format!("has a key longer than {LONGEST_KEY} bytes");
                return Err(A::Error::custom(words));
            }
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("has a key twice in an object"));
            }
        }
        Ok(Value::Object(object))
    }
}

/// The JSON with its long numbers in quotes; none where there are none.
fn quoted(json: &str) -> Option<String> {
    if !may_hold_one(json.as_bytes()) {
        return None;
    }
    let mut out = String::with_capacity(json.len() + 64);
    let mut is_changed = false;
    let mut rest = json;
    let begins = |letter: char| letter == '"' || letter == '-' || letter.is_ascii_digit();
    while let Some(at) = rest.find(begins) {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        let length = if after.starts_with('"') {
            text_length(after)
        } else {
            number_length(after)
        };
        let (token, tail) = after.split_at(length);
        // A key that is a number is no JSON, and stays none.
        let is_quoted = is_long(token) && !tail.trim_start().starts_with(':');
        if is_quoted {
            out.push('"');
        }
        out.push_str(token);
        if is_quoted {
            out.push('"');
        }
        is_changed |= is_quoted;
        rest = tail;
    }
    out.push_str(rest);
    is_changed.then_some(out)
}

/// Whether so many digits and points stand in a row. Of these one is at a multiple of their number.
fn may_hold_one(json: &[u8]) -> bool {
    let is_of_number = |byte: &&u8| byte.is_ascii_digit() || **byte == b'.';
    (0..json.len()).step_by(SHORTEST).any(|at| {
        let (before, after) = json.split_at(at);
        let behind = after.iter().take(SHORTEST).take_while(is_of_number);
        let behind = behind.count();
        let ahead = before.iter().rev().take(SHORTEST).take_while(is_of_number);
        behind > 0 && behind + ahead.count() >= SHORTEST
    })
}

/// Bytes of a text that begins with its quote.
fn text_length(json: &str) -> usize {
    let mut is_escaped = false;
    for (at, byte) in json.bytes().enumerate().skip(1) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    json.len()
}

/// Bytes of a number; there is one.
fn number_length(json: &str) -> usize {
    let is_of_number = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
    json.bytes().take_while(is_of_number).count()
}

fn are_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a token is a number (RFC 8259, section 6) that loses digits where 64 bits hold it.
fn is_long(token: &str) -> bool {
    let unsigned = token.strip_prefix('-').unwrap_or(token);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let is_exponent = |text: &str| are_digits(text.strip_prefix(['+', '-']).unwrap_or(text));
    let is_number = are_digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(are_digits)
        && exponent.is_none_or(is_exponent);
    if !is_number {
        return false;
    }
    if fraction.is_none() && exponent.is_none() {
        return token.parse::<i64>().is_err() && token.parse::<u64>().is_err();
    }
    let digits = [whole, fraction.unwrap_or_default()].concat();
    digits.trim_matches('0').len() > FRACTION_DIGITS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_that_64_bits_hold_are_numbers() {
        for number in [
            "0",
            "-7",
            "9223372036854775807",
            "-9223372036854775808",
            "18446744073709551615",
            "0.1",
            "-0.30000000000000004",
            "0.10000000000000001",
            "1e300",
            "1.00000000000000000000",
            "0.00000000000000000000000001",
        ] {
            let plain: Value = serde_json::from_str(number).unwrap();
            let row = format!("{{\"a\": [{number}]}}");
            assert_eq!(read(&row).unwrap(), json!({"a": [plain]}), "{number}");
        }
    }

    #[test]
    fn longer_ones_are_texts_with_every_digit() {
        for number in [
            "18446744073709551616",
            "-9223372036854775809",
            "22345678901234567891",
            "100000000000000000000",
            "0.123456789012345678",
            "100000000000000000000.5e-3",
            "-1234567890.123456789012E+7",
        ] {
            let row = format!("{{\"n\": {number} ,\"m\":[{number},1]}}");
            let expected = json!({"n": number, "m": [number, 1]});
            assert_eq!(read(&row).unwrap(), expected, "{number}");
        }
    }

    #[test]
    fn what_stands_in_texts_stays_and_what_is_no_json_is_none() {
        let text = r#"{"22345678901234567891": "\"22345678901234567891, 0.123456789012345678\\", "é": 22345678901234567891}"#;
        let expected = json!({
            "22345678901234567891": "\"22345678901234567891, 0.123456789012345678\\", "é": "22345678901234567891"
        });
        assert_eq!(read(text).unwrap(), expected);
        for wrong in [
            "{22345678901234567891: 1}",
            "[022345678901234567891]",
            "[22345678901234567891.]",
            "[.22345678901234567891]",
            "[22345678901234567891e]",
            "[1-2345678901234567891]",
            "[22345678901234567891",
            "\"22345678901234567891",
        ] {
            let plain = serde_json::from_str::<Value>(wrong).unwrap_err();
            assert_eq!(
                read(wrong).unwrap_err().to_string(),
                plain.to_string(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn an_object_with_a_key_twice_is_refused_at_any_depth_and_none_is_repeated() {
        for json in [
            r#"{"SECRET": 1, "SECRET": 1}"#,
            r#"[{"a": {"SECRET": 1, "b": 2, "SECRET": null}}]"#,
            r#"{"a": 1, "\u0061": 2}"#,
            r#"{"a": 22345678901234567891, "a": 2}"#,
        ] {
            let error = read(json).unwrap_err();
            assert!(error.is_data(), "{json}: {error}");
            let words = "has a key twice in an object at line 1 column ";
            assert!(error.to_string().starts_with(words), "{error}");
        }
        let keyed = |bytes: usize| read(&format!(r#"{{"a": {{"{}": 1}}}}"#, "k".repeat(bytes)));
        assert!(keyed(1024).is_ok());
        let error = keyed(1025).unwrap_err();
        assert!(error.is_data() && error.to_string().starts_with("has a key longer than 1024"));
        let nested = r#"{"a": [{"a": null}, {"a": [true, -1, 2, 0.5, "é\n"]}], "A": {}}"#;
        let plain: Value = serde_json::from_str(nested).unwrap();
        let read = read(nested).unwrap();
        assert_eq!(read.to_string(), plain.to_string());
        assert_eq!(read, plain);
    }

    proptest! {
        #[test]
        fn fractions_are_read_back_as_they_were(bits in any::<u64>()) {
            let number = f64::from_bits(bits);
            prop_assume!(number.is_finite());
            let written = json!([number]).to_string();
            prop_assert_eq!(read(&written).unwrap()[0].as_f64(), Some(number));
        }

        #[test]
        fn runs_are_found_wherever_they_stand(before in 0_usize..60, run in 1_usize..40) {
            let line = format!("{}{}{}", "x".repeat(before), "1".repeat(run), "x".repeat(50));
            prop_assert_eq!(may_hold_one(line.as_bytes()), run >= SHORTEST);
        }
    }
}
