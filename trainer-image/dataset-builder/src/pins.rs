//! Schemas of sources are inferred once and pinned: a build under the spec of the latest version takes the
//! types that it had when it was made last. Columns that hold less than before keep their type, and one that holds
//! something else ends the build, because the same SQL would mean something else.

use std::collections::BTreeMap;

use graftwork_artifacts::Store;
use graftwork_contract::Digest;
use graftwork_contract::dataset::{
    BuildConfig, MAXIMUM_COLUMNS, Shape, SourceColumns, SourceSchema,
};
use graftwork_privacy::{Counts, Masker, mask};
use serde_json::Value;

use crate::failure::Failure;
use crate::looks;

/// What decides nothing of the rows, or changes with every build, or with the chart.
const NOT_OF_THE_SPEC: [&str; 5] = [
    "fingerprint",
    "allowedHosts",
    "hubEndpoint",
    "store",
    "shards",
];
/// The same of `transform`.
const NOT_OF_TRANSFORM: [&str; 1] = ["now"];
/// The same of a source: where it is mounted, and what was seen of it.
const NOT_OF_A_SOURCE: [&str; 3] = ["path", "root", "digest"];

/// What the columns of each source held in the latest version.
#[derive(Debug, Default)]
pub struct Pins {
    version: u32,
    schemas: BTreeMap<String, BTreeMap<String, Shape>>,
}

impl Pins {
    /// Those of the latest version, where the spec that it was made under last is this one; else none.
    ///
    /// # Errors
    /// Those of the store.
    pub fn load(config: &BuildConfig, store: &Store) -> Result<Self, Failure> {
        let Some(latest) = looks::latest(config, store)? else {
            return Ok(Self::default());
        };
        if latest.made.spec_digest != Some(spec_digest(config)?) {
            return Ok(Self::default());
        }
        let schemas = latest.made.schemas.into_iter();
        Ok(Self {
            version: latest.version,
            schemas: schemas
                .map(|schema| (schema.source, schema.columns))
                .collect(),
        })
    }

    fn of(&self, source: &str, column: &str) -> Option<&Shape> {
        self.schemas.get(source)?.get(&masked(column))
    }

    /// Holds the columns of a source to what they held: those that hold less have the type that they had.
    ///
    /// # Errors
    /// One that holds something else, with what it was and is.
    pub fn hold(&self, source: &str, seen: &mut SourceColumns) -> Result<(), Failure> {
        for (name, column) in &mut seen.columns {
            let Some(pinned) = self.of(source, name) else {
                continue;
            };
            if !pinned.takes(&column.shape) {
                return Err(Failure::bad_data(format!(
                    "source {source}: column {} was {pinned} in version {} and is {}; correct the source; or, to have it as it is, change the Dataset's spec (its description will do) and its annotation graftwork.dev/refresh",
                    masked(name),
                    self.version,
                    column.shape
                )));
            }
            column.shape.widen(pinned.clone());
        }
        Ok(())
    }

    /// Adds the columns that a source had and that no row has now, so that they keep their type.
    pub fn remember(&self, source: &str, seen: &mut SourceColumns) {
        for (name, shape) in self.schemas.get(source).into_iter().flatten() {
            if seen.columns.len() < MAXIMUM_COLUMNS {
                let column = seen.columns.entry(name.clone()).or_default();
                column.shape.widen(shape.clone());
            }
        }
    }
}

/// Over all of the spec that a person writes.
///
/// # Errors
/// None that a configuration leads to.
pub fn spec_digest(config: &BuildConfig) -> Result<Digest, Failure> {
    let failed = |error: serde_json::Error| Failure::bug(error.to_string());
    let mut spec = serde_json::to_value(config).map_err(failed)?;
    let drop = |object: &mut Value, names: &[&str]| {
        if let Some(object) = object.as_object_mut() {
            object.retain(|name, _| !names.contains(&name.as_str()));
        }
    };
    drop(&mut spec, &NOT_OF_THE_SPEC);
    if let Some(transform) = spec.get_mut("transform") {
        drop(transform, &NOT_OF_TRANSFORM);
    }
    let sources = spec.get_mut("sources").and_then(Value::as_array_mut);
    for source in sources.into_iter().flatten() {
        drop(source, &NOT_OF_A_SOURCE);
    }
    Digest::of_json(&spec).map_err(failed)
}

/// What the columns of each source held, for the manifest. Of one without columns there is nothing to say.
///
/// # Errors
/// None that columns lead to.
pub fn schemas(sources: &BTreeMap<String, SourceColumns>) -> Result<Vec<SourceSchema>, Failure> {
    let sources = sources.iter().filter(|(_, seen)| !seen.columns.is_empty());
    sources
        .map(|(source, seen)| {
            let known = seen.columns.iter();
            let columns: BTreeMap<String, Shape> = known
                .filter(|(_, column)| column.shape != Shape::Unknown)
                .map(|(name, column)| (masked(name), column.shape.clone()))
                .collect();
            Ok(SourceSchema {
                source: source.clone(),
                digest: Digest::of_json(&columns)
                    .map_err(|error| Failure::bug(error.to_string()))?,
                columns,
            })
        })
        .collect()
}

/// A column's name without personal data: it is the source's, and may be any text.
pub fn masked(name: &str) -> String {
    mask(name, &Masker::Redact, &mut Counts::default()).unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seen(rows: &[Value]) -> SourceColumns {
        let mut seen = SourceColumns::default();
        for row in rows {
            seen.note(row.as_object().unwrap(), |_, shape, value| {
                shape.note(value);
            });
        }
        seen
    }

    fn pins(rows: &[Value]) -> Pins {
        let sources = BTreeMap::from([("claims".to_owned(), seen(rows))]);
        let schemas = schemas(&sources).unwrap().into_iter();
        Pins {
            version: 3,
            schemas: schemas.map(|it| (it.source, it.columns)).collect(),
        }
    }

    #[test]
    fn a_column_of_another_type_is_named_with_both_and_one_that_holds_less_keeps_its_type() {
        let pins = pins(&[json!({"amount": 0.5, "code": 1, "jane@example.com": 1})]);
        let mut whole = seen(&[json!({"amount": 1, "more": true})]);
        assert_eq!(pins.hold("claims", &mut whole), Ok(()));
        assert_eq!(whole.columns["amount"].shape, Shape::Float);
        assert_eq!(whole.columns["more"].shape, Shape::Boolean);
        pins.remember("claims", &mut whole);
        assert_eq!(whole.columns["code"].shape, Shape::Integer);
        assert_eq!((whole.rows, whole.columns["code"].values), (1, 0));
        let refused = |row: Value| pins.hold("claims", &mut seen(&[row])).unwrap_err();
        let failure = refused(json!({"code": "1"}));
        assert_eq!(failure.reason, "DataError");
        let words = "source claims: column code was BIGINT in version 3 and is TEXT";
        assert!(failure.message.contains(words), "{failure}");
        let other = pins.hold("others", &mut seen(&[json!({"code": "1"})]));
        assert_eq!(other, Ok(()));
        let failure = refused(json!({"jane@example.com": "x"}));
        assert!(
            failure.message.contains("column [EMAIL] was BIGINT"),
            "{failure}"
        );
        assert!(!failure.message.contains("jane"), "{failure}");
    }
}
