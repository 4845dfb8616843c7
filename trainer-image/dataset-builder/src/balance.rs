//! Rare classes, as often as the most frequent one.

use graftwork_contract::dataset::{Balance, Split};
use sha2::{Digest as _, Sha256};

use crate::failure::Failure;
use crate::order::Ordered;
use crate::spill::sorter::{Records, Sorted, Sorter};
use crate::spill::{Scratch, damaged};
use crate::split::Sides;
use crate::stored::{Hash, array, take_number};

/// How often rows of train come, where that is not once: records of position and number.
#[derive(Debug)]
pub struct Repeats(Option<Sorted>);

impl Repeats {
    /// Each row comes once.
    pub fn none() -> Self {
        Self(None)
    }

    /// To be asked for rows in their order.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn read(&self) -> Result<RepeatsReader<'_>, Failure> {
        let records = self.0.as_ref().map(Sorted::records).transpose()?;
        let mut reader = RepeatsReader {
            records,
            next: None,
        };
        reader.advance()?;
        Ok(reader)
    }
}

/// How often rows come, on the way.
pub struct RepeatsReader<'a> {
    records: Option<Records<'a>>,
    /// A position and how often its row comes.
    next: Option<(u64, u64)>,
}

impl RepeatsReader<'_> {
    /// How often a row comes. Rows are asked for in their order.
    ///
    /// # Errors
    /// Those of the scratch volume.
    pub fn of(&mut self, row: u64) -> Result<u64, Failure> {
        match self.next {
            Some((position, times)) if position == row => {
                self.advance()?;
                Ok(times)
            }
            _ => Ok(1),
        }
    }

    fn advance(&mut self) -> Result<(), Failure> {
        self.next = match &mut self.records {
            None => None,
            Some(records) => match records.next_record()? {
                None => None,
                Some(mut record) => Some((take_number(&mut record)?, take_number(&mut record)?)),
            },
        };
        Ok(())
    }
}

/// Repeats rows of train so that each class comes as often as the most frequent one, and no row more often
/// than the maximum. Rows of a class are repeated in the order in which they come.
///
/// # Errors
/// Those of the scratch volume.
pub fn balance(
    config: &Balance,
    scratch: &Scratch,
    ordered: &Ordered,
    sides: &Sides,
) -> Result<Repeats, Failure> {
    let mut sorter = Sorter::new(scratch);
    let mut reader = ordered.rows.read()?;
    while let Some((position, row)) = reader.next_row()? {
        if ordered.kept.get(position) && sides.get(position) == Split::Train {
            let class: Hash = Sha256::digest(row.class.unwrap_or_default()).into();
            sorter.push(&[&class[..], &position.to_be_bytes()].concat())?;
        }
    }
    drop(reader);
    let classes = sorter.finish()?;
    let mut most = 0;
    let mut counts = Counts::of(&classes)?;
    while let Some(rows) = counts.next_count()? {
        most = most.max(rows);
    }
    let mut repeats = Sorter::new(scratch);
    let mut counts = Counts::of(&classes)?;
    let mut records = classes.records()?;
    while let Some(rows) = counts.next_count()? {
        let wanted = most.min(rows.saturating_mul(u64::from(config.maximum_upsample)));
        for index in 0..rows {
            let mut record = records.next_record()?.ok_or_else(damaged)?;
            let _class: Hash = array(&mut record)?;
            let position = take_number(&mut record)?;
            let times = wanted / rows + u64::from(index < wanted % rows);
            if times != 1 {
                repeats.push(&[position.to_be_bytes(), times.to_be_bytes()].concat())?;
            }
        }
    }
    Ok(Repeats(Some(repeats.finish()?)))
}

/// How many records begin with the same hash, one hash after the other.
struct Counts<'a> {
    records: Records<'a>,
    /// The first hash of those that were not counted yet.
    next: Option<Hash>,
}

impl<'a> Counts<'a> {
    fn of(sorted: &'a Sorted) -> Result<Self, Failure> {
        let mut counts = Self {
            records: sorted.records()?,
            next: None,
        };
        counts.next = counts.read()?;
        Ok(counts)
    }

    fn read(&mut self) -> Result<Option<Hash>, Failure> {
        match self.records.next_record()? {
            None => Ok(None),
            Some(mut record) => array(&mut record).map(Some),
        }
    }

    fn next_count(&mut self) -> Result<Option<u64>, Failure> {
        let Some(current) = self.next else {
            return Ok(None);
        };
        let mut count = 0;
        while self.next == Some(current) {
            count += 1;
            self.next = self.read()?;
        }
        Ok(Some(count))
    }
}
