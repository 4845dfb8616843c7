//! Numbered records: `<folder>/1.json`, `<folder>/2.json`, ...

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::encode;
use crate::{Error, Put, Result, Store};

/// The record that an append ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended<T> {
    /// Its number, from 1.
    pub number: u32,
    /// The record.
    pub record: T,
    /// False where the latest record was kept.
    pub created: bool,
}

impl Store {
    /// The record with the highest number in `folder`.
    pub fn latest_numbered<T: DeserializeOwned>(&self, folder: &str) -> Result<Option<(u32, T)>> {
        let prefix = format!("{folder}/");
        let number = |path: &str| -> Option<u32> {
            let stem = path.strip_prefix(&prefix)?.strip_suffix(".json")?;
            stem.parse().ok().filter(|n: &u32| n.to_string() == stem)
        };
        let newest = self
            .list(&prefix)?
            .iter()
            .filter_map(|e| number(&e.path))
            .max();
        let Some(newest) = newest else {
            return Ok(None);
        };
        let path = format!("{folder}/{newest}.json");
        let record = self.get_json(&path)?.ok_or(Error::Missing { path })?;
        Ok(Some((newest, record)))
    }

    /// Adds a record with the next number. `make` is told that number and the latest record and
    /// answers with the new one, or `None` to keep the latest (`None` on an empty folder is an error).
    /// Where another writer takes the number first, `make` is asked again.
    pub fn append_numbered<T, F>(&self, folder: &str, mut make: F) -> Result<Appended<T>>
    where
        T: Serialize + DeserializeOwned,
        F: FnMut(u32, Option<&T>) -> Option<T>,
    {
        loop {
            let latest = self.latest_numbered::<T>(folder)?;
            let next = latest.as_ref().map_or(1, |(number, _)| number + 1);
            let Some(record) = make(next, latest.as_ref().map(|(_, record)| record)) else {
                let (number, record) = latest.ok_or_else(|| Error::Missing {
                    path: folder.to_owned(),
                })?;
                return Ok(Appended {
                    number,
                    record,
                    created: false,
                });
            };
            let path = format!("{folder}/{next}.json");
            match self.put_new(&path, encode(&path, &record)?.as_bytes()) {
                Ok(put) => {
                    return Ok(Appended {
                        number: next,
                        record,
                        created: put == Put::Created,
                    });
                }
                Err(Error::Conflict { .. }) => {
                    tracing::debug!(path, "another writer took the number");
                }
                Err(error) => return Err(error),
            }
        }
    }
}
