//! Clusters of rows, by their position: a union-find whose parents may lie on the scratch volume.

use crate::failure::Failure;
use crate::spill::Scratch;
use crate::spill::numbers::{Bits, Numbers};
use crate::spill::sorter::Sorted;
use crate::stored::{Hash, array, take_number};

/// Clusters of rows. The first row of one stands for it.
#[derive(Debug)]
pub struct Clusters {
    /// A row before it in its cluster, of each row that was joined to one.
    earlier: Numbers,
    /// Rows that were. Most were not, and are told apart without a look at the volume.
    joined: Bits,
}

impl Clusters {
    /// Each row alone.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn single(scratch: &Scratch, rows: u64) -> Result<Self, Failure> {
        Ok(Self {
            earlier: Numbers::new(scratch, rows)?,
            joined: Bits::new(rows),
        })
    }

    /// The first row of a row's cluster. What it goes past is made to point further on the way.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn first_of(&mut self, row: u64) -> Result<u64, Failure> {
        let mut at = row;
        while self.joined.get(at) {
            let next = self.earlier.get(at)?;
            if !self.joined.get(next) {
                return Ok(next);
            }
            let over = self.earlier.get(next)?;
            self.earlier.set(at, over)?;
            at = over;
        }
        Ok(at)
    }

    /// Makes one cluster of two.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn join(&mut self, a: u64, b: u64) -> Result<(), Failure> {
        let (a, b) = (self.first_of(a)?, self.first_of(b)?);
        if a != b {
            // The row that comes first stays the first.
            self.earlier.set(a.max(b), a.min(b))?;
            self.joined.set(a.max(b));
        }
        Ok(())
    }

    /// Joins the rows of sorted records that begin with the same hash; each is a hash and a position.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn join_equal(&mut self, sorted: &Sorted) -> Result<(), Failure> {
        let mut records = sorted.records()?;
        let mut last: Option<(Hash, u64)> = None;
        while let Some(mut record) = records.next_record()? {
            let hash: Hash = array(&mut record)?;
            let row = take_number(&mut record)?;
            match last {
                Some((known, first)) if known == hash => self.join(first, row)?,
                _ => last = Some((hash, row)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_row_of_a_cluster_comes_before_the_others_in_memory_and_on_disk(
            joins in prop::collection::vec((0_u64..300, 0_u64..300), 0..400)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let firsts = [0, 1 << 20].map(|memory| {
                let mut clusters =
                    Clusters::single(&Scratch::new(dir.path(), memory), 300).unwrap();
                for (a, b) in &joins {
                    clusters.join(*a, *b).unwrap();
                }
                for (a, b) in &joins {
                    let (a_first, b_first) =
                        (clusters.first_of(*a).unwrap(), clusters.first_of(*b).unwrap());
                    assert_eq!(a_first, b_first);
                    assert!(a_first <= *a.min(b));
                }
                (0..300).map(|row| clusters.first_of(row).unwrap()).collect::<Vec<u64>>()
            });
            prop_assert_eq!(&firsts[0], &firsts[1]);
        }
    }
}
