//! What the columns of sources hold. A version's manifest keeps it, and builds under the same spec are held to
//! it: a column of numbers that is text overnight would change what SQL over it means, and nobody would know.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Digest;

/// Keys of a nested object that become columns; with more, it is JSON in a text.
const MAXIMUM_FIELDS: usize = 256;
/// Columns of a source that are looked at; one more is noted, so that it shows.
pub const MAXIMUM_COLUMNS: usize = 1024;

/// What a column holds, as far as its rows were seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shape {
    /// Nothing but nulls.
    #[default]
    Unknown,
    /// True or false.
    Boolean,
    /// Whole numbers of 64 bits.
    Integer,
    /// Numbers.
    Float,
    /// Texts.
    Text,
    /// Lists of one shape.
    List(Box<Shape>),
    /// Objects, by key.
    Object(BTreeMap<String, Shape>),
    /// Several of these.
    Mixed,
}

impl Shape {
    /// Looks at one more value, and what is in it.
    pub fn note(&mut self, value: &Value) {
        self.note_outside(value);
        match (&mut *self, value) {
            (Self::List(items), Value::Array(values)) => {
                for value in values {
                    items.note(value);
                }
            }
            (Self::Object(fields), Value::Object(values)) => {
                for (name, value) in values {
                    fields.entry(name.clone()).or_default().note(value);
                }
                if fields.len() > MAXIMUM_FIELDS {
                    *self = Self::Mixed;
                }
            }
            _ => {}
        }
    }

    /// Looks at one more value, and not at what is in a list or an object.
    pub fn note_outside(&mut self, value: &Value) {
        let other = match value {
            Value::Null => Self::Unknown,
            Value::Bool(_) => Self::Boolean,
            Value::Number(number) if number.is_i64() => Self::Integer,
            Value::Number(number) if number.is_f64() => Self::Float,
            // Above what 64 bits with a sign hold; a fraction would lose digits.
            Value::Number(_) => Self::Mixed,
            Value::String(_) => Self::Text,
            Value::Array(_) => Self::List(Box::default()),
            Value::Object(_) => Self::Object(BTreeMap::new()),
        };
        self.widen(other);
    }

    /// As if what the other one saw had been seen too.
    pub fn widen(&mut self, other: Self) {
        match (&mut *self, other) {
            (_, Self::Unknown)
            | (Self::Mixed, _)
            | (Self::Boolean, Self::Boolean)
            | (Self::Text, Self::Text)
            | (Self::Integer, Self::Integer)
            | (Self::Float, Self::Integer | Self::Float) => {}
            (Self::Integer, Self::Float) => *self = Self::Float,
            (Self::List(items), Self::List(others)) => items.widen(*others),
            (Self::Object(fields), Self::Object(others)) => {
                for (name, shape) in others {
                    fields.entry(name).or_default().widen(shape);
                }
                if fields.len() > MAXIMUM_FIELDS {
                    *self = Self::Mixed;
                }
            }
            (Self::Unknown, other) => *self = other,
            _ => *self = Self::Mixed,
        }
    }

    /// Whether a column of this shape may hold what the other one saw and still mean the same: what is text
    /// takes everything as text, fractions take whole numbers, and an object may have more keys.
    pub fn takes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unknown | Self::Text | Self::Mixed, _)
            | (_, Self::Unknown)
            | (Self::Float, Self::Integer) => true,
            (Self::List(items), Self::List(others)) => items.takes(others),
            (Self::Object(fields), Self::Object(others)) => others
                .iter()
                .all(|(name, other)| fields.get(name).is_none_or(|shape| shape.takes(other))),
            (one, other) => one == other,
        }
    }
}

/// As SQL over the column calls it.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("NULL"),
            Self::Boolean => f.write_str("BOOLEAN"),
            Self::Integer => f.write_str("BIGINT"),
            Self::Float => f.write_str("DOUBLE"),
            Self::Text | Self::Mixed => f.write_str("TEXT"),
            Self::List(items) => write!(f, "a list of {items}"),
            Self::Object(_) => f.write_str("an object"),
        }
    }
}

/// A column, as far as its rows were seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Column {
    /// What it holds.
    pub shape: Shape,
    /// Rows that have a value in it.
    pub values: u64,
}

/// The columns of a source's rows, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceColumns {
    /// Rows.
    pub rows: u64,
    /// Columns that a row had, by name.
    pub columns: BTreeMap<String, Column>,
}

impl SourceColumns {
    /// Looks at one more row; `look` looks at a value of a column.
    pub fn note(&mut self, row: &Map<String, Value>, look: impl Fn(&str, &mut Shape, &Value)) {
        self.rows += 1;
        for (name, value) in row {
            if !self.columns.contains_key(name) {
                if self.columns.len() > MAXIMUM_COLUMNS {
                    continue;
                }
                self.columns.insert(name.clone(), Column::default());
            }
            if let Some(column) = self.columns.get_mut(name) {
                column.values += u64::from(!value.is_null());
                look(name, &mut column.shape, value);
            }
        }
    }

    /// What each column holds, by name.
    pub fn shapes(&self) -> BTreeMap<String, Shape> {
        let columns = self.columns.iter();
        columns
            .map(|(name, column)| (name.clone(), column.shape.clone()))
            .collect()
    }

    /// What another part of the same source saw.
    pub fn add(&mut self, other: Self) {
        self.rows += other.rows;
        for (name, more) in other.columns {
            if self.columns.len() > MAXIMUM_COLUMNS && !self.columns.contains_key(&name) {
                continue;
            }
            let column = self.columns.entry(name).or_default();
            column.values += more.values;
            column.shape.widen(more.shape);
        }
    }
}

/// The schema of a source, as a version was made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceSchema {
    /// Name of the source in the spec.
    pub source: String,
    /// Over `columns`.
    pub digest: Digest,
    /// What each column holds, by name.
    pub columns: BTreeMap<String, Shape>,
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
    fn two_that_saw_a_part_each_know_together_what_one_does() {
        let values = [
            json!(null),
            json!(1),
            json!(0.5),
            json!(true),
            json!("a"),
            json!([1, null]),
            json!(["a"]),
            json!({"a": 1}),
            json!({"a": 0.5, "b": []}),
            json!(u64::MAX),
        ];
        for one in &values {
            for other in &values {
                let both = shape(&[one.clone(), other.clone()]);
                let mut widened = shape(std::slice::from_ref(one));
                widened.widen(shape(std::slice::from_ref(other)));
                assert_eq!(widened, both, "{one} and {other}");
            }
        }
    }

    #[test]
    fn a_column_takes_what_keeps_its_type_and_nothing_else() {
        for (was, is, takes) in [
            (json!(1), json!(2), true),
            (json!(0.5), json!(1), true),
            (json!(1), json!(0.5), false),
            (json!(1), json!("1"), false),
            (json!("1"), json!(1), true),
            (json!(1), json!(null), true),
            (json!(null), json!("a"), true),
            (json!([1]), json!([2, 3]), true),
            (json!([1]), json!(["a"]), false),
            (json!([1]), json!(1), false),
            (json!({"a": 1}), json!({"a": 2, "b": "new"}), true),
            (json!({"a": 1}), json!({"a": "x"}), false),
            (json!(true), json!(1), false),
        ] {
            let found = shape(std::slice::from_ref(&was)).takes(&shape(std::slice::from_ref(&is)));
            assert_eq!(found, takes, "{was} and then {is}");
        }
    }

    #[test]
    fn parts_do_not_add_up_to_more_columns_than_one_may_see() {
        let mut seen = SourceColumns::default();
        for part in 0..3 {
            let mut other = SourceColumns::default();
            let row = (0..700).map(|n| (format!("{part} {n}"), json!(1)));
            other.note(&row.collect(), |_, shape, value| shape.note(value));
            seen.add(other);
        }
        assert_eq!((seen.rows, seen.columns.len()), (3, MAXIMUM_COLUMNS + 1));
    }

    #[test]
    fn rows_without_a_value_are_those_that_are_not_counted() {
        let mut seen = SourceColumns::default();
        for row in [
            json!({"a": 1, "b": null}),
            json!({"a": null}),
            json!({"a": 2, "b": "x"}),
        ] {
            seen.note(row.as_object().unwrap(), |_, shape, value| {
                shape.note(value);
            });
        }
        let mut twice = seen.clone();
        twice.add(seen);
        assert_eq!(
            (
                twice.rows,
                twice.columns["a"].values,
                twice.columns["b"].values
            ),
            (6, 4, 2)
        );
        assert_eq!(twice.columns["b"].shape.to_string(), "TEXT");
    }
}
