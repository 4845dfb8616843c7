//! The types of a table's columns, as its rows have them, and rows as columns of these types.
//!
//! Whole numbers and fractions together are fractions. What fits nothing else together is text: texts as they
//! are, the rest as JSON.

use std::collections::BTreeMap;
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

/// Rows as one array a column.
///
/// # Errors
/// Arrays that the engine does not take, which no rows lead to.
pub fn columns(rows: &[Map<String, Value>], fields: &Fields) -> Result<Vec<ArrayRef>, ArrowError> {
    fields
        .iter()
        .map(|field| {
            let values: Vec<Option<&Value>> =
                rows.iter().map(|row| row.get(field.name())).collect();
            array(&values, field.data_type())
        })
        .collect()
}

fn array(values: &[Option<&Value>], kind: &DataType) -> Result<ArrayRef, ArrowError> {
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
            let items = array(&items, field.data_type())?;
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
                    array(&parts, field.data_type())
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
        let columns = columns(&rows, &fields).unwrap();
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
