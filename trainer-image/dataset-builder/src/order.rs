//! Good rows in canonical order, without the duplicates that the configuration leaves out. The order of
//! rows, and that of sources, does not matter.

use graftwork_contract::dataset::{BuildConfig, Duplicates, NearDuplicates};

use crate::clusters::Clusters;
use crate::duplicates;
use crate::failure::Failure;
use crate::spill::Scratch;
use crate::spill::numbers::Bits;
use crate::stored::Rows;

/// Rows in canonical order, and which of them are kept.
#[derive(Debug)]
pub struct Ordered {
    /// All good rows.
    pub rows: Rows,
    /// Those that are no duplicates, or all.
    pub kept: Bits,
    /// How many are kept.
    pub kept_count: u64,
    /// Equal rows, and nearly equal ones where those are looked for.
    pub clusters: Clusters,
    /// Whether clusters stay in one split.
    pub is_grouped: bool,
}

impl Ordered {
    /// How many rows are left out as duplicates.
    pub fn duplicates(&self) -> u64 {
        self.rows.count() - self.kept_count
    }
}

/// Orders rows, and leaves out duplicates where the configuration says so. Equal rows that stay come each
/// as often as they came.
///
/// # Errors
/// Those of the scratch volume.
pub fn order(config: &BuildConfig, scratch: &Scratch, rows: Rows) -> Result<Ordered, Failure> {
    let validation = &config.validation;
    let drops_near = validation.near_duplicates == NearDuplicates::Drop;
    let drops = drops_near || validation.duplicates == Duplicates::Drop;
    let mut clusters = duplicates::equal(scratch, &rows)?;
    if drops_near {
        duplicates::near(scratch, &rows, config.format, &mut clusters)?;
    }
    let mut kept = Bits::new(rows.count());
    let mut kept_count = 0;
    for row in 0..rows.count() {
        if !drops || clusters.first_of(row)? == row {
            kept.set(row);
            kept_count += 1;
        }
    }
    let is_grouped = validation.near_duplicates == NearDuplicates::Group;
    // Those that stay where they are dealt to are told apart for the count of leakage.
    if is_grouped || validation.near_duplicates == NearDuplicates::Report {
        duplicates::near(scratch, &rows, config.format, &mut clusters)?;
    }
    Ok(Ordered {
        rows,
        kept,
        kept_count,
        clusters,
        is_grouped,
    })
}
