//! The types of a table's columns, as its rows have them, and rows as columns of these types.
//!
//! Whole numbers and fractions together are fractions; those that would lose digits are noted. What fits nothing
//! else together is text: texts as they are, the rest as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, StringArray, StructArray,
};
use datafusion::arrow::buffer::{NullBuffer, OffsetBuffer};
use datafusion::arrow::datatypes::{DataType, Field, Fields};
use datafusion::arrow::error::ArrowError;
use graftwork_contract::dataset::Shape;
use graftwork_contract::digest::canonical_json;
use serde_json::{Map, Value};

/// The engine's type of a column.
pub fn data_type(shape: &Shape) -> DataType {
    match shape {
        Shape::Boolean => DataType::Boolean,
        Shape::Integer => DataType::Int64,
        Shape::Float => DataType::Float64,
        Shape::List(items) => DataType::List(Arc::new(field("item", items))),
        Shape::Object(members) if !members.is_empty() => DataType::Struct(fields(members)),
        Shape::Unknown | Shape::Text | Shape::Mixed | Shape::Object(_) => DataType::Utf8,
    }
}

/// Columns by name.
pub fn fields(shapes: &BTreeMap<String, Shape>) -> Fields {
    shapes
        .iter()
        .map(|(name, shape)| field(name, shape))
        .collect()
}

fn field(name: &str, shape: &Shape) -> Field {
    Field::new(name, data_type(shape), true)
}

/// Whether a value is a whole number that a fraction of 64 bits (IEEE 754, `binary64`) does not hold.
fn is_long(value: &Value) -> bool {
    let magnitude = value.as_i64().map_or(0, i64::unsigned_abs);
    let bits = u64::BITS - magnitude.leading_zeros();
    bits.saturating_sub(magnitude.trailing_zeros()) > f64::MANTISSA_DIGITS
}

/// Whether there is such a number in a value.
pub fn has_long(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(has_long),
        Value::Object(members) => members.values().any(has_long),
        other => is_long(other),
    }
}

/// Tells the path of each such number in a value at `at`: `score`, `who.score`, `scores[]`.
pub fn long_paths(value: &Value, at: &str, tell: &mut dyn FnMut(String)) {
    match value {
        Value::Array(items) => {
            let at = format!("{at}[]");
            items.iter().for_each(|item| long_paths(item, &at, tell));
        }
        Value::Object(members) => {
            for (name, member) in members {
                long_paths(member, &format!("{at}.{name}"), tell);
            }
        }
        other if is_long(other) => tell(at.to_owned()),
        _ => {}
    }
}

/// Columns that lost digits, because fractions were to hold what they don't, with the path of such numbers.
pub type Lossy = BTreeMap<String, String>;

/// Rows as one array a column.
///
/// # Errors
/// Arrays that the engine does not take, which no rows lead to.
pub fn columns(
    rows: &[Map<String, Value>],
    fields: &Fields,
    lossy: &mut Lossy,
) -> Result<Vec<ArrayRef>, ArrowError> {
    let mut columns = Vec::with_capacity(fields.len());
    for field in fields {
        let name = field.name();
        let values: Vec<Option<&Value>> = rows.iter().map(|row| row.get(name)).collect();
        let mut paths = BTreeSet::new();
        columns.push(array(&values, field.data_type(), name, &mut paths)?);
        if let Some(path) = paths.pop_first() {
            lossy.entry(name.clone()).or_insert(path);
        }
    }
    Ok(columns)
}

/// The values at a path as one array; the paths of those that lost digits are noted.
fn array(
    values: &[Option<&Value>],
    kind: &DataType,
    at: &str,
    lossy: &mut BTreeSet<String>,
) -> Result<ArrayRef, ArrowError> {
    let present = values.iter().copied();
    Ok(match kind {
        DataType::Boolean => {
            let values: BooleanArray = present.map(|it| it.and_then(Value::as_bool)).collect();
            Arc::new(values)
        }
        DataType::Int64 => {
            let values: Int64Array = present.map(|it| it.and_then(Value::as_i64)).collect();
            Arc::new(values)
        }
        DataType::Float64 => {
            if present.clone().flatten().any(is_long) {
                lossy.insert(at.to_owned());
            }
            let values: Float64Array = present.map(|it| it.and_then(Value::as_f64)).collect();
            Arc::new(values)
        }
        DataType::List(field) => {
            let lists: Vec<Option<&Vec<Value>>> =
                present.map(|it| it.and_then(Value::as_array)).collect();
            let lengths = lists.iter().map(|list| list.map_or(0, Vec::len));
            let offsets = OffsetBuffer::from_lengths(lengths);
            let items: Vec<Option<&Value>> = lists
                .iter()
                .copied()
                .flatten()
                .flat_map(|list| list.iter().map(Some))
                .collect();
            let nulls: NullBuffer = lists.iter().map(Option::is_some).collect();
            let items = array(&items, field.data_type(), &format!("{at}[]"), lossy)?;
            Arc::new(ListArray::try_new(
                Arc::clone(field),
                offsets,
                items,
                Some(nulls),
            )?)
        }
        DataType::Struct(fields) => {
            let objects: Vec<Option<&Map<String, Value>>> =
                present.map(|it| it.and_then(Value::as_object)).collect();
            let members = fields
                .iter()
                .map(|field| {
                    let parts: Vec<Option<&Value>> = objects
                        .iter()
                        .map(|it| it.and_then(|object| object.get(field.name())))
                        .collect();
                    let at = format!("{at}.{}", field.name());
                    array(&parts, field.data_type(), &at, lossy)
                })
                .collect::<Result<Vec<ArrayRef>, ArrowError>>()?;
            let nulls: NullBuffer = objects.iter().map(Option::is_some).collect();
            Arc::new(StructArray::try_new(fields.clone(), members, Some(nulls))?)
        }
        _ => {
            let values: StringArray = present.map(|it| it.and_then(text)).collect();
            Arc::new(values)
        }
    })
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(canonical_json(other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shape(values: &[Value]) -> Shape {
        let mut shape = Shape::default();
        values.iter().for_each(|value| shape.note(value));
        shape
    }

    #[test]
    fn a_column_is_what_all_of_its_values_are() {
        for (values, expected) in [
            (vec![json!(null)], DataType::Utf8),
            (vec![json!(1), json!(null), json!(-2)], DataType::Int64),
            (vec![json!(1), json!(0.5)], DataType::Float64),
            (vec![json!(0.5), json!(1)], DataType::Float64),
            (vec![json!(u64::MAX)], DataType::Utf8),
            (vec![json!(true), json!(false)], DataType::Boolean),
            (vec![json!("a"), json!(1)], DataType::Utf8),
            (vec![json!({})], DataType::Utf8),
            (vec![json!([1]), json!("a")], DataType::Utf8),
        ] {
            assert_eq!(data_type(&shape(&values)), expected, "{values:?}");
        }
        let nested = shape(&[json!([{"role": "user"}]), json!([{"content": "a", "n": 1}])]);
        let DataType::List(item) = data_type(&nested) else {
            panic!("{nested:?}");
        };
        let DataType::Struct(members) = item.data_type() else {
            panic!("{nested:?}");
        };
        let names: Vec<&str> = members.iter().map(|it| it.name().as_str()).collect();
        assert_eq!(names, ["content", "n", "role"]);
    }

    #[test]
    fn whole_numbers_that_fractions_do_not_hold_are_long() {
        let edge = 1_i64 << 53;
        for number in [0, 1, -1, edge, -edge, edge + 2, 3 << 60, i64::MIN] {
            assert!(!is_long(&json!(number)), "{number}");
            assert_eq!(i128::from(number), (number as f64) as i128, "{number}");
        }
        for number in [edge + 1, -edge - 1, (1 << 62) + 1, i64::MAX, i64::MIN + 1] {
            assert!(is_long(&json!(number)), "{number}");
            assert_ne!(i128::from(number), (number as f64) as i128, "{number}");
        }
        for other in [json!(null), json!(1e300), json!("9007199254740993")] {
            assert!(!is_long(&other), "{other}");
        }
    }

    #[test]
    fn columns_that_lose_digits_are_told_by_the_paths_of_the_numbers() {
        let long = (1_i64 << 53) + 1;
        let rows = [
            json!({"id": long, "score": long, "tags": [{"n": long}], "who": {"a": 1, "b": long}}),
            json!({"id": 1, "score": 0.5, "tags": [{"n": 0.5}], "who": {"a": 0.5, "b": 1}}),
        ];
        let mut told = Vec::new();
        assert!(has_long(&rows[0]) && !has_long(&rows[1]));
        let rows: Vec<Map<String, Value>> = rows
            .into_iter()
            .filter_map(|row| row.as_object().cloned())
            .collect();
        let mut shapes: BTreeMap<String, Shape> = BTreeMap::new();
        for (name, value) in rows.iter().flatten() {
            shapes.entry(name.clone()).or_default().note(value);
            long_paths(value, name, &mut |path| told.push(path));
        }
        assert_eq!(told, ["id", "score", "tags[].n", "who.b"]);
        let mut lossy = Lossy::new();
        columns(&rows, &fields(&shapes), &mut lossy).unwrap();
        let expected = [("score", "score"), ("tags", "tags[].n")];
        let expected = expected.map(|(column, path)| (column.to_owned(), path.to_owned()));
        assert_eq!(lossy, Lossy::from(expected));
    }

    #[test]
    fn an_object_with_too_many_keys_is_json() {
        let many: Map<String, Value> = (0..=256).map(|n| (n.to_string(), json!(n))).collect();
        assert_eq!(shape(&[Value::Object(many)]), Shape::Mixed);
    }

    #[test]
    fn rows_come_back_from_their_columns_as_they_were() {
        let rows = [
            json!({"id": 1, "score": 0.5, "on": true, "tags": ["a", null], "who": {"name": "x"}}),
            json!({"id": null, "score": 2, "tags": null, "who": {"name": null}, "mixed": [1]}),
            json!({"mixed": "é", "tags": []}),
        ];
        let rows: Vec<Map<String, Value>> = rows
            .into_iter()
            .filter_map(|row| row.as_object().cloned())
            .collect();
        let mut shapes: BTreeMap<String, Shape> = BTreeMap::new();
        for (name, value) in rows.iter().flatten() {
            shapes.entry(name.clone()).or_default().note(value);
        }
        let fields = fields(&shapes);
        let mut lossy = Lossy::new();
        let columns = columns(&rows, &fields, &mut lossy).unwrap();
        assert_eq!(lossy, Lossy::new());
        let schema = Arc::new(datafusion::arrow::datatypes::Schema::new(fields));
        let batch = datafusion::arrow::record_batch::RecordBatch::try_new(schema, columns).unwrap();
        let read = crate::parquet_rows::objects(&batch).unwrap();
        let expected = [
            json!({"id": 1, "mixed": null, "on": true, "score": 0.5, "tags": ["a", null], "who": {"name": "x"}}),
            json!({"id": null, "mixed": "[1]", "on": null, "score": 2.0, "tags": null, "who": {"name": null}}),
            json!({"id": null, "mixed": "é", "on": null, "score": null, "tags": [], "who": null}),
        ];
        let read: Vec<Value> = read.into_iter().map(Value::Object).collect();
        assert_eq!(read, expected);
    }
}
