//! Small objects that were read, by the state that a list says they are in. Records are written once, and are
//! listed again and again.

use std::collections::BTreeMap;

use crate::store::Entry;

/// Bytes that are kept at most (32 MiB).
const MAXIMUM_BYTES: usize = 32 << 20;

/// What was read.
#[derive(Default)]
pub(crate) struct Known {
    /// By path: the state and the bytes.
    records: BTreeMap<String, (String, Vec<u8>)>,
    bytes: usize,
}

impl Known {
    /// The bytes of an entry, where they are known in that state.
    pub(crate) fn get(&self, entry: &Entry) -> Option<Vec<u8>> {
        let state = entry.state.as_ref()?;
        let (known, bytes) = self.records.get(&entry.path)?;
        (known == state && bytes.len() as u64 == entry.size).then(|| bytes.clone())
    }

    /// Keeps the bytes of an entry.
    pub(crate) fn keep(&mut self, entry: &Entry, bytes: &[u8]) {
        let Some(state) = &entry.state else { return };
        if bytes.len() as u64 != entry.size {
            return;
        }
        if self.bytes + bytes.len() > MAXIMUM_BYTES {
            // What is asked for again is read again.
            *self = Self::default();
        }
        self.bytes += bytes.len();
        let record = (state.clone(), bytes.to_vec());
        if let Some((_, before)) = self.records.insert(entry.path.clone(), record) {
            self.bytes -= before.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(state: Option<&str>, size: u64) -> Entry {
        Entry {
            path: "a/1.json".to_owned(),
            size,
            state: state.map(str::to_owned),
        }
    }

    #[test]
    fn what_was_read_is_known_in_the_state_that_it_was_read_in() {
        let mut known = Known::default();
        known.keep(&entry(Some("x"), 2), b"{}");
        assert_eq!(known.get(&entry(Some("x"), 2)).unwrap(), b"{}");
        assert_eq!(known.get(&entry(Some("y"), 2)), None);
        assert_eq!(known.get(&entry(None, 2)), None);
        known.keep(&entry(Some("y"), 3), b"[1]");
        assert_eq!(known.get(&entry(Some("y"), 3)).unwrap(), b"[1]");
        assert_eq!(known.bytes, 3);
    }

    #[test]
    fn a_part_of_an_object_is_not_kept_for_the_whole() {
        let mut known = Known::default();
        known.keep(&entry(Some("x"), 9), b"{}");
        assert_eq!(known.get(&entry(Some("x"), 9)), None);
    }
}
