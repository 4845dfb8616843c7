//! Records in the order of their bytes, however many there are: sorted in memory as far as that goes,
//! then as runs on the scratch volume that are merged while they are read.

use super::Scratch;
use super::runs::{Merge, Runs};
use crate::failure::Failure;

/// Sorts records. Equal ones all stay.
#[derive(Debug)]
pub struct Sorter {
    scratch: Scratch,
    budget: usize,
    held: Held,
    runs: Option<Runs>,
}

/// Records in memory.
#[derive(Debug, Default)]
pub struct Held {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// Where a record is.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Its first eight bytes: most comparisons need no more.
    prefix: u64,
    start: usize,
    length: usize,
}

impl Entry {
    fn of<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes
            .get(self.start..self.start + self.length)
            .unwrap_or_default()
    }
}

/// Missing bytes count as zero: what then looks equal is compared as a whole.
fn prefix(record: &[u8]) -> u64 {
    let bytes = record.iter().copied().chain(std::iter::repeat(0));
    bytes
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(byte))
}

impl Held {
    fn size(&self) -> usize {
        self.bytes.len() + self.entries.len() * size_of::<Entry>()
    }

    fn push(&mut self, record: &[u8]) {
        self.entries.push(Entry {
            prefix: prefix(record),
            start: self.bytes.len(),
            length: record.len(),
        });
        self.bytes.extend_from_slice(record);
    }

    fn sort(&mut self) {
        let Self { bytes, entries } = self;
        // Equal records can't be told apart.
        entries.sort_unstable_by(|a, b| {
            let prefixes = a.prefix.cmp(&b.prefix);
            prefixes.then_with(|| a.of(bytes).cmp(b.of(bytes)))
        });
    }

    fn records(&self) -> impl Iterator<Item = &[u8]> {
        self.entries.iter().map(move |entry| entry.of(&self.bytes))
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
    }
}

impl Sorter {
    /// A sorter without records.
    pub fn new(scratch: &Scratch) -> Self {
        Self::within(scratch, scratch.share_bytes())
    }

    /// A sorter of the rows of a version.
    pub fn of_rows(scratch: &Scratch) -> Self {
        Self::within(scratch, scratch.row_bytes())
    }

    fn within(scratch: &Scratch, budget: usize) -> Self {
        Self {
            scratch: scratch.clone(),
            budget,
            held: Held::default(),
            runs: None,
        }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn push(&mut self, record: &[u8]) -> Result<(), Failure> {
        let size = self.held.size() + record.len() + size_of::<Entry>();
        if size > self.budget && !self.held.entries.is_empty() {
            self.spill()?;
        }
        self.held.push(record);
        Ok(())
    }

    fn spill(&mut self) -> Result<(), Failure> {
        self.held.sort();
        let mut runs = match self.runs.take() {
            Some(runs) => runs,
            None => Runs::new(&self.scratch)?,
        };
        runs.add(self.held.records())?;
        self.runs = Some(runs);
        self.held.clear();
        Ok(())
    }

    /// All records. Where some went to the scratch volume, none stays in memory.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn finish(mut self) -> Result<Sorted, Failure> {
        if self.runs.is_some() && !self.held.entries.is_empty() {
            self.spill()?;
        }
        match self.runs.take() {
            None => {
                self.held.sort();
                Ok(Sorted::Memory(self.held))
            }
            Some(runs) => {
                // The memory is for the merge.
                drop(self.held);
                Ok(Sorted::Disk(runs.reduced()?))
            }
        }
    }
}

/// Sorted records, to be read as often as one likes.
#[derive(Debug)]
pub enum Sorted {
    /// They fit in memory.
    Memory(Held),
    /// They did not.
    Disk(Runs),
}

impl Sorted {
    /// All records from the first.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn records(&self) -> Result<Records<'_>, Failure> {
        Ok(match self {
            Self::Memory(held) => Records(Source::Memory(held, 0)),
            Self::Disk(runs) => Records(Source::Disk(runs.records()?)),
        })
    }
}

/// Records on their way.
pub struct Records<'a>(Source<'a>);

enum Source<'a> {
    /// With the number of records that were read.
    Memory(&'a Held, usize),
    Disk(Merge),
}

impl Records<'_> {
    /// The next record; none at the end.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn next_record(&mut self) -> Result<Option<&[u8]>, Failure> {
        match &mut self.0 {
            Source::Memory(held, read) => {
                let entry = held.entries.get(*read);
                *read += 1;
                Ok(entry.map(|entry| entry.of(&held.bytes)))
            }
            Source::Disk(merge) => merge.next_record(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(sorted: &Sorted) -> Vec<Vec<u8>> {
        let mut records = sorted.records().unwrap();
        let mut all = Vec::new();
        while let Some(record) = records.next_record().unwrap() {
            all.push(record.to_vec());
        }
        all
    }

    fn sorted(scratch: &Scratch, records: &[Vec<u8>]) -> Sorted {
        let mut sorter = Sorter::new(scratch);
        for record in records {
            sorter.push(record).unwrap();
        }
        sorter.finish().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn records_come_in_order_whatever_the_memory(
            records in prop::collection::vec(prop::collection::vec(0_u8..3, 0..40), 0..600)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut expected = records.clone();
            expected.sort();
            for memory in [0, 16 << 10, 1 << 30] {
                let sorted = sorted(&Scratch::new(dir.path(), memory), &records);
                prop_assert_eq!(all(&sorted), expected.clone());
                prop_assert_eq!(all(&sorted), expected.clone(), "read again");
            }
        }
    }

    #[test]
    fn rows_have_twice_the_room_of_what_goes_by_them() {
        let dir = tempfile::tempdir().unwrap();
        let (scratch, record) = (Scratch::new(dir.path(), 6 << 20), vec![7; 64 << 10]);
        for (mut sorter, records, is_held) in [
            (Sorter::new(&scratch), 15, true),
            (Sorter::new(&scratch), 17, false),
            (Sorter::of_rows(&scratch), 31, true),
            (Sorter::of_rows(&scratch), 33, false),
        ] {
            for _ in 0..records {
                sorter.push(&record).unwrap();
            }
            let held = matches!(sorter.finish().unwrap(), Sorted::Memory(_));
            assert_eq!(held, is_held, "{records} records");
        }
    }

    #[test]
    fn a_record_that_is_larger_than_the_memory_is_sorted_too() {
        let dir = tempfile::tempdir().unwrap();
        let records = vec![vec![2; 100_000], vec![1; 5], vec![3; 200_000], vec![]];
        let sorted = sorted(&Scratch::new(dir.path(), 0), &records);
        let lengths: Vec<usize> = all(&sorted).iter().map(Vec::len).collect();
        assert_eq!(lengths, [0, 5, 100_000, 200_000]);
    }

    #[test]
    fn many_runs_are_merged_in_several_rounds_and_leave_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let records: Vec<Vec<u8>> = (0..5000_u32)
            .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes().to_vec())
            .collect();
        // A share of 682 bytes holds 24 records of 28 bytes: 209 runs, four at a time.
        let sorted = sorted(&Scratch::new(dir.path(), 0), &records);
        let Sorted::Disk(_) = &sorted else {
            panic!("nothing was spilled");
        };
        let mut expected = records;
        expected.sort();
        assert_eq!(all(&sorted), expected);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
