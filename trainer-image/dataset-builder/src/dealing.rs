//! Which rows a part of a build takes. Several files of a source are dealt as they are, one file row by row,
//! so that its parts are as large as one another; a query is one part's.

use graftwork_contract::Digest;
use graftwork_contract::dataset::Source;
use graftwork_contract::digest::PartsHasher;

/// One of several parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its number, from 0.
    pub index: u32,
    /// How many there are.
    pub count: u32,
}

impl Part {
    /// All rows.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    fn has(self, number: u64) -> bool {
        let turn = number.checked_rem(u64::from(self.count));
        turn.is_none_or(|turn| turn == u64::from(self.index))
    }
}

/// Files and rows on their way, in the order of sources, names and lines.
#[derive(Debug)]
pub struct Dealing {
    part: Part,
    /// Files and queries so far.
    things: u64,
    /// Rows of the present file so far.
    rows: u64,
    is_by_row: bool,
    listing: PartsHasher,
    is_told: bool,
}

impl Dealing {
    /// Nothing was dealt yet.
    pub fn new(part: Part) -> Self {
        Self {
            part,
            things: 0,
            rows: 0,
            is_by_row: false,
            listing: PartsHasher::new(),
            is_told: true,
        }
    }

    /// Whether this part reads a file or an object, of which its source has just one or several. Its state
    /// is what a list said of it.
    pub fn takes(&mut self, source: &Source, uri: &str, state: Option<&str>, is_one: bool) -> bool {
        if is_one {
            self.see(source, uri, state);
            self.is_by_row = true;
            true
        } else {
            self.takes_whole(source, uri, state)
        }
    }

    /// Whether this part reads something that only one part does.
    pub fn takes_whole(&mut self, source: &Source, uri: &str, state: Option<&str>) -> bool {
        self.see(source, uri, state);
        self.is_by_row = false;
        self.things += 1;
        self.part.has(self.things - 1)
    }

    fn see(&mut self, source: &Source, uri: &str, state: Option<&str>) {
        self.rows = 0;
        self.is_told &= state.is_some();
        let state = state.unwrap_or_default();
        self.listing.part(&source.name).part(uri).part(state);
    }

    /// Whether the next row is this part's.
    pub fn takes_row(&mut self) -> bool {
        let number = self.rows;
        self.rows += 1;
        !self.is_by_row || self.part.has(number)
    }

    /// Whether everything that was seen has a state, which another content would change.
    pub fn is_told(&self) -> bool {
        self.is_told
    }

    /// Over everything that was seen.
    pub fn listing(&self) -> Digest {
        self.listing.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn source(name: &str) -> Source {
        Source {
            name: name.to_owned(),
            uri: String::new(),
            path: String::new(),
            root: None,
            columns: BTreeMap::new(),
            digest: None,
            query: None,
            remote: None,
            share: None,
        }
    }

    /// What a part takes of three files, a query, and a file of five rows.
    fn taken(index: u32, count: u32) -> (Vec<String>, Digest) {
        let mut dealing = Dealing::new(Part { index, count });
        let mut taken = Vec::new();
        for uri in ["a", "b", "c"] {
            if dealing.takes(&source("many"), uri, None, false) {
                assert!(dealing.takes_row() && dealing.takes_row());
                taken.push(uri.to_owned());
            }
        }
        if dealing.takes_whole(&source("query"), "q", None) {
            assert!(dealing.takes_row() && dealing.takes_row());
            taken.push("q".to_owned());
        }
        assert!(dealing.takes(&source("one"), "o", None, true));
        taken.extend(
            (0..5)
                .filter(|_| dealing.takes_row())
                .map(|row| format!("o{row}")),
        );
        (taken, dealing.listing())
    }

    #[test]
    fn every_thing_and_every_row_is_one_parts_and_all_parts_see_the_same() {
        let all = ["a", "b", "c", "o0", "o1", "o2", "o3", "o4", "q"];
        let (_, listing) = taken(0, 1);
        for count in [1, 2, 3, 7] {
            let mut together = Vec::new();
            for index in 0..count {
                let (part, seen) = taken(index, count);
                assert_eq!(seen, listing);
                together.extend(part);
            }
            together.sort();
            assert_eq!(together, all, "{count} parts");
        }
    }

    #[test]
    fn another_state_is_another_listing() {
        let listing = |state: &str| {
            let mut dealing = Dealing::new(Part::WHOLE);
            dealing.takes(&source("many"), "a", Some(state), false);
            dealing.listing()
        };
        assert_eq!(listing("1"), listing("1"));
        assert_ne!(listing("1"), listing("2"));
    }
}
