//! Values of PostgreSQL, in the binary form that its protocol has, as JSON.
//!
//! What JSON's numbers can't hold exactly becomes text: `numeric` is written with all its digits. Times are
//! RFC 3339 in UTC; a `timestamp` without a time zone is read as UTC.

use std::fmt::Write as _;

use jiff::civil::Date;
use jiff::{Span, Timestamp};
use serde_json::{Number, Value};
use tokio_postgres::types::{Kind, Type};

use crate::digits;

/// Microseconds from 1970 to 2000, where PostgreSQL's times begin.
const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;
/// Deepest array that PostgreSQL has.
const MAXIMUM_DIMENSIONS: i32 = 6;
/// Deepest type of types: an array of a domain over a domain.
const MAXIMUM_DEPTH: usize = 8;

/// How values of a type are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// `bool`
    Bool,
    /// `smallint`, `integer` and `bigint`, by their number of bytes.
    Integer(usize),
    /// `oid`
    Oid,
    /// `real`
    Float4,
    /// `double precision`
    Float8,
    /// `numeric`
    Numeric,
    /// Everything that is sent as it is written.
    Text,
    /// `json`
    Json,
    /// `jsonb`
    Jsonb,
    /// `date`
    Date,
    /// `time`
    Time,
    /// `timestamp` and `timestamptz`
    Timestamp,
    /// `uuid`
    Uuid,
    /// Of any of these.
    Array(Box<Self>),
}

/// How values of a type are read; none where they have no place in JSON (bytes, ranges, intervals,
/// composites and whatever else there is).
pub fn reading(kind: &Type) -> Option<Reading> {
    reading_of(kind, MAXIMUM_DEPTH)
}

fn reading_of(kind: &Type, depth: usize) -> Option<Reading> {
    let deeper = depth.checked_sub(1)?;
    Some(match *kind {
        Type::BOOL => Reading::Bool,
        Type::INT2 => Reading::Integer(2),
        Type::INT4 => Reading::Integer(4),
        Type::INT8 => Reading::Integer(8),
        Type::OID => Reading::Oid,
        Type::FLOAT4 => Reading::Float4,
        Type::FLOAT8 => Reading::Float8,
        Type::NUMERIC => Reading::Numeric,
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN => Reading::Text,
        Type::JSON => Reading::Json,
        Type::JSONB => Reading::Jsonb,
        Type::DATE => Reading::Date,
        Type::TIME => Reading::Time,
        Type::TIMESTAMP | Type::TIMESTAMPTZ => Reading::Timestamp,
        Type::UUID => Reading::Uuid,
        _ => match kind.kind() {
            Kind::Array(element) => Reading::Array(Box::new(reading_of(element, deeper)?)),
            Kind::Domain(base) => reading_of(base, deeper)?,
            Kind::Enum(_) => Reading::Text,
            // An extension's, and text all the same.
            Kind::Simple if kind.name() == "citext" => Reading::Text,
            _ => return None,
        },
    })
}

/// One value.
///
/// # Errors
/// The rule that it breaks, to be read after the column's name; without data.
pub fn value(reading: &Reading, raw: &[u8]) -> Result<Value, String> {
    const MALFORMED: &str = "is not in the form that its type has";
    let malformed = || MALFORMED.to_owned();
    let mut bytes = Bytes(raw);
    Ok(match reading {
        Reading::Bool => match raw {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            _ => return Err(malformed()),
        },
        Reading::Integer(2) => bytes.i16().ok_or_else(malformed)?.into(),
        Reading::Integer(4) => bytes.i32().ok_or_else(malformed)?.into(),
        Reading::Integer(_) => bytes.i64().ok_or_else(malformed)?.into(),
        Reading::Oid => bytes.i32().ok_or_else(malformed)?.cast_unsigned().into(),
        Reading::Float4 => {
            let bits = bytes.i32().ok_or_else(malformed)?.cast_unsigned();
            // By way of the text: 0.1 stays 0.1 and does not become 0.10000000149011612.
            let number = f32::from_bits(bits).to_string().parse().unwrap_or(f64::NAN);
            float(number)?
        }
        Reading::Float8 => {
            let bits = bytes.i64().ok_or_else(malformed)?.cast_unsigned();
            float(f64::from_bits(bits))?
        }
        Reading::Numeric => Value::String(numeric(bytes).ok_or_else(malformed)?),
        Reading::Text => Value::String(text(raw)?.to_owned()),
        Reading::Json => json(raw)?,
        Reading::Jsonb => match raw.split_first() {
            Some((1, document)) => json(document)?,
            _ => return Err(malformed()),
        },
        Reading::Date => date(bytes.i32().ok_or_else(malformed)?)?,
        Reading::Time => time(bytes.i64().ok_or_else(malformed)?),
        Reading::Timestamp => timestamp(bytes.i64().ok_or_else(malformed)?)?,
        Reading::Uuid => uuid(raw).ok_or_else(malformed)?,
        Reading::Array(element) => array(element, bytes).ok_or_else(malformed)??,
    })
}

/// Bytes that are taken from the front, most significant first.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn i16(&mut self) -> Option<i16> {
        self.array().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_be_bytes)
    }
}

fn text(raw: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(raw).map_err(|_| "is not UTF-8".to_owned())
}

fn json(raw: &[u8]) -> Result<Value, String> {
    // The parser's limit is depth: 128 levels.
    digits::read(text(raw)?).map_err(|error| {
        // `json` keeps what was sent; `jsonb` does not.
        if !error.is_data() {
            return "is JSON that can't be read".to_owned();
        }
        let problem = error.to_string();
        let problem = problem.split(" at line ").next().unwrap_or_default();
        format!("is JSON that {problem}")
    })
}

fn float(number: f64) -> Result<Value, String> {
    Number::from_f64(number)
        .map(Value::Number)
        .ok_or_else(|| "is no finite number".to_owned())
}

/// A number of base 10000: how many digits, the power of the first one, the sign, how many decimals are
/// shown, the digits.
fn numeric(mut bytes: Bytes<'_>) -> Option<String> {
    let count = usize::try_from(bytes.i16()?).ok()?;
    let weight = i32::from(bytes.i16()?);
    let sign = bytes.i16()?.cast_unsigned();
    let scale = usize::try_from(bytes.i16()?).ok()?;
    let digits = (0..count)
        .map(|_| bytes.i16().filter(|digit| (0..10_000).contains(digit)))
        .collect::<Option<Vec<i16>>>()?;
    let mut written = match sign {
        0x0000 => String::new(),
        0x4000 => "-".to_owned(),
        0xc000 => return Some("NaN".to_owned()),
        0xd000 => return Some("Infinity".to_owned()),
        0xf000 => return Some("-Infinity".to_owned()),
        _ => return None,
    };
    let digit = |position: i32| {
        let index = usize::try_from(position).ok();
        index
            .and_then(|index| digits.get(index))
            .copied()
            .unwrap_or(0)
    };
    if weight < 0 {
        written.push('0');
    }
    for position in 0..=weight {
        let _ = match position {
            0 => write!(written, "{}", digit(position)),
            _ => write!(written, "{:04}", digit(position)),
        };
    }
    if scale > 0 {
        let mut decimals = String::with_capacity(scale + 4);
        let mut position = weight + 1;
        while decimals.len() < scale {
            let _ = write!(decimals, "{:04}", digit(position));
            position += 1;
        }
        decimals.truncate(scale);
        written.push('.');
        written.push_str(&decimals);
    }
    Some(written)
}

fn timestamp(microseconds: i64) -> Result<Value, String> {
    let time = microseconds
        .checked_add(EPOCH_MICROSECONDS)
        .and_then(|since| Timestamp::from_microsecond(since).ok());
    time.map(|time| Value::String(time.to_string()))
        .ok_or_else(|| "is no time from the years -9999 to 9999".to_owned())
}

fn date(days: i32) -> Result<Value, String> {
    let date = Span::new()
        .try_days(days)
        .and_then(|days| Date::constant(2000, 1, 1).checked_add(days));
    date.map(|date| Value::String(date.to_string()))
        .map_err(|_| "is no date from the years -9999 to 9999".to_owned())
}

/// Microseconds since midnight.
fn time(microseconds: i64) -> Value {
    let (seconds, fraction) = (microseconds / 1_000_000, microseconds % 1_000_000);
    let clock = format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    );
    Value::String(match fraction {
        0 => clock,
        fraction => format!("{clock}.{fraction:06}"),
    })
}

fn uuid(raw: &[u8]) -> Option<Value> {
    let bytes: [u8; 16] = raw.try_into().ok()?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| digits.get(range));
    Some(Value::String(
        parts.map(Option::unwrap_or_default).join("-"),
    ))
}

/// Dimensions, whether there are nulls, the type; of each dimension its length and first index; then the
/// values, each with its length. None where it is malformed; an error where a value breaks a rule.
fn array(element: &Reading, mut bytes: Bytes<'_>) -> Option<Result<Value, String>> {
    let dimensions = bytes.i32()?;
    bytes.take(8)?;
    if !(0..=MAXIMUM_DIMENSIONS).contains(&dimensions) {
        return None;
    }
    let mut lengths = Vec::new();
    for _ in 0..dimensions {
        lengths.push(usize::try_from(bytes.i32()?).ok()?);
        bytes.take(4)?;
    }
    // Without this a few bytes could ask for any number of empty arrays.
    if lengths.is_empty() || lengths.contains(&0) {
        return Some(Ok(Value::Array(Vec::new())));
    }
    items(element, &lengths, &mut bytes)
}

fn items(
    element: &Reading,
    lengths: &[usize],
    bytes: &mut Bytes<'_>,
) -> Option<Result<Value, String>> {
    let Some((length, inner)) = lengths.split_first() else {
        let value = match bytes.i32()? {
            -1 => Ok(Value::Null),
            size => value(element, bytes.take(usize::try_from(size).ok()?)?),
        };
        return Some(value);
    };
    let mut list = Vec::new();
    for _ in 0..*length {
        match items(element, inner, bytes)? {
            Ok(item) => list.push(item),
            Err(rule) => return Some(Err(rule)),
        }
    }
    Some(Ok(Value::Array(list)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// What PostgreSQL sends for a `numeric`.
    fn sent(weight: i16, sign: u16, scale: i16, digits: &[i16]) -> Vec<u8> {
        let count = i16::try_from(digits.len()).unwrap();
        let head = [count, weight, sign.cast_signed(), scale];
        let numbers = head.iter().chain(digits);
        numbers.flat_map(|number| number.to_be_bytes()).collect()
    }

    fn read(reading: Reading, raw: &[u8]) -> Value {
        value(&reading, raw).unwrap()
    }

    #[test]
    fn numbers_in_json_keep_their_digits() {
        let value = super::json(br#"{"a": 22345678901234567891, "b": 7}"#).unwrap();
        assert_eq!(value.to_string(), r#"{"a":"22345678901234567891","b":7}"#);
    }

    #[test]
    fn a_numeric_keeps_every_digit() {
        for (raw, expected) in [
            (sent(0, 0, 0, &[]), "0"),
            (sent(0, 0, 2, &[]), "0.00"),
            (sent(0, 0, 2, &[12, 3400]), "12.34"),
            (sent(0, 0x4000, 4, &[12, 3400]), "-12.3400"),
            (sent(1, 0, 0, &[1, 5]), "10005"),
            (sent(2, 0, 0, &[1]), "100000000"),
            (sent(-1, 0, 3, &[1000]), "0.100"),
            (sent(-2, 0, 9, &[1, 2000]), "0.000000012"),
            (
                sent(
                    4,
                    0,
                    20,
                    &[1234, 5678, 9012, 3456, 7890, 1234, 5678, 9012, 3456, 7890],
                ),
                "12345678901234567890.12345678901234567890",
            ),
            (sent(0, 0xc000, 0, &[]), "NaN"),
            (sent(0, 0xf000, 0, &[]), "-Infinity"),
        ] {
            assert_eq!(read(Reading::Numeric, &raw), expected, "{raw:?}");
        }
    }

    #[test]
    fn times_are_rfc_3339_and_dates_are_days() {
        let at = |microseconds: i64| read(Reading::Timestamp, &microseconds.to_be_bytes());
        assert_eq!(at(0), "2000-01-01T00:00:00Z");
        assert_eq!(at(-1), "1999-12-31T23:59:59.999999Z");
        assert_eq!(at(848_451_661_500_000), "2026-11-20T01:01:01.5Z");
        let on = |days: i32| read(Reading::Date, &days.to_be_bytes());
        assert_eq!(
            (on(0), on(60), on(-1)),
            (
                json!("2000-01-01"),
                json!("2000-03-01"),
                json!("1999-12-31"),
            )
        );
        let clock = |microseconds: i64| read(Reading::Time, &microseconds.to_be_bytes());
        assert_eq!(clock(3_723_000_000), "01:02:03");
        assert_eq!(clock(1), "00:00:00.000001");
        for infinite in [i64::MAX, i64::MIN] {
            assert!(value(&Reading::Timestamp, &infinite.to_be_bytes()).is_err());
        }
        for infinite in [i32::MAX, i32::MIN] {
            assert!(value(&Reading::Date, &infinite.to_be_bytes()).is_err());
        }
    }

    #[test]
    fn numbers_texts_and_documents_become_what_they_are() {
        assert_eq!(read(Reading::Bool, &[1]), json!(true));
        assert_eq!(read(Reading::Integer(2), &[0xff, 0xfe]), json!(-2));
        assert_eq!(
            read(Reading::Integer(8), &i64::MAX.to_be_bytes()),
            json!(i64::MAX)
        );
        assert_eq!(read(Reading::Oid, &[0xff; 4]), json!(u32::MAX));
        assert_eq!(read(Reading::Float4, &0.1_f32.to_be_bytes()), json!(0.1));
        assert_eq!(read(Reading::Float8, &0.1_f64.to_be_bytes()), json!(0.1));
        assert_eq!(read(Reading::Text, "é\n".as_bytes()), json!("é\n"));
        assert_eq!(read(Reading::Json, br#"{"a": [1]}"#), json!({"a": [1]}));
        assert_eq!(read(Reading::Jsonb, b"\x01{}"), json!({}));
        let raw: Vec<u8> = (0..16).collect();
        assert_eq!(
            read(Reading::Uuid, &raw),
            "00010203-0405-0607-0809-0a0b0c0d0e0f"
        );
        for number in [f64::NAN, f64::INFINITY] {
            assert!(value(&Reading::Float8, &number.to_be_bytes()).is_err());
        }
        assert!(value(&Reading::Float4, &f32::NAN.to_be_bytes()).is_err());
        let twice = value(&Reading::Json, br#"{"a": 1, "a": 2}"#).unwrap_err();
        assert!(twice.contains("a key twice"), "{twice}");
    }

    #[test]
    fn arrays_keep_their_shape_and_their_nulls() {
        let array = |words: &[i32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_be_bytes()).collect()
        };
        let of = Reading::Array(Box::new(Reading::Integer(4)));
        let read = |words: &[i32]| value(&of, &array(words));
        assert_eq!(read(&[0, 0, 23]), Ok(json!([])));
        assert_eq!(read(&[1, 1, 23, 2, 1, 4, 7, -1]), Ok(json!([7, null])));
        assert_eq!(
            read(&[2, 0, 23, 2, 1, 1, 1, 4, 7, 4, 8]),
            Ok(json!([[7], [8]]))
        );
        // Lengths that the bytes do not keep.
        for words in [
            &[7, 0, 23][..],
            &[-1, 0, 23],
            &[1, 0, 23, i32::MAX, 1, 4, 7],
            &[1, 0, 23, 1, 1, 400, 7],
            &[1, 0, 23, -2, 1],
        ] {
            assert!(read(words).is_err(), "{words:?}");
        }
        assert_eq!(read(&[2, 0, 23, i32::MAX, 1, 0, 1]), Ok(json!([])));
    }

    #[test]
    fn types_without_a_place_in_json_have_no_reading() {
        for kind in [
            Type::BYTEA,
            Type::INTERVAL,
            Type::INET,
            Type::MONEY,
            Type::INT4_RANGE,
            Type::POINT,
            Type::BYTEA_ARRAY,
            Type::TIMETZ,
        ] {
            assert_eq!(reading(&kind), None, "{kind}");
        }
        let texts = Reading::Array(Box::new(Reading::Text));
        assert_eq!(reading(&Type::TEXT_ARRAY), Some(texts));
        let positive = Type::new(
            "positive".into(),
            1,
            Kind::Domain(Type::INT4),
            "public".into(),
        );
        assert_eq!(reading(&positive), Some(Reading::Integer(4)));
        let mood = Kind::Enum(vec!["sad".into()]);
        let mood = Type::new("mood".into(), 2, mood, "public".into());
        assert_eq!(reading(&mood), Some(Reading::Text));
        let custom = Type::new("vector".into(), 3, Kind::Simple, "public".into());
        assert_eq!(reading(&custom), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
            for reading in [
                Reading::Bool,
                Reading::Integer(2),
                Reading::Integer(4),
                Reading::Integer(8),
                Reading::Oid,
                Reading::Float4,
                Reading::Float8,
                Reading::Numeric,
                Reading::Text,
                Reading::Json,
                Reading::Jsonb,
                Reading::Date,
                Reading::Time,
                Reading::Timestamp,
                Reading::Uuid,
                Reading::Array(Box::new(Reading::Array(Box::new(Reading::Numeric)))),
            ] {
                let _ = value(&reading, &raw);
            }
        }
    }
}
