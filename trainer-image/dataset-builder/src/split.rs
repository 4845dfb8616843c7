//! Which split each row belongs to.

use graftwork_contract::dataset::{HashSplit, Split, SplitMethod};
use sha2::{Digest as _, Sha256};

use crate::clusters::Clusters;
use crate::failure::Failure;
use crate::order::Ordered;
use crate::spill::Scratch;
use crate::spill::numbers::Bits;
use crate::spill::sorter::{Sorted, Sorter};
use crate::stored::{Hash, array, number, sortable, take_number};

/// The split of each row, by its position.
#[derive(Debug, Clone)]
pub struct Sides {
    validation: Bits,
    test: Bits,
}

impl Sides {
    fn new(rows: u64) -> Self {
        Self {
            validation: Bits::new(rows),
            test: Bits::new(rows),
        }
    }

    /// The split of a row.
    pub fn get(&self, row: u64) -> Split {
        if self.validation.get(row) {
            Split::Validation
        } else if self.test.get(row) {
            Split::Test
        } else {
            Split::Train
        }
    }

    /// A row is set once.
    fn set(&mut self, row: u64, split: Split) {
        match split {
            Split::Train => {}
            Split::Validation => self.validation.set(row),
            Split::Test => self.test.set(row),
        }
    }
}

/// The split of each row that is kept. Rows of one cluster, and rows of one group, stay together.
///
/// - Hash: by the key alone, see [`HashSplit::split_of`]; where clusters or groups were joined, by that of
///   their first row.
/// - Random: in the order of `SHA-256(seed, key)`, cut at the percents of all rows.
/// - Time: in the order of time, cut at the percents of all rows; equal times stay together, and what
///   stays together goes by its latest row. No row is later than one of a later split, but for rows that
///   follow a later one.
///
/// # Errors
/// Those of the scratch volume.
pub fn split(
    config: &HashSplit,
    scratch: &Scratch,
    ordered: &mut Ordered,
) -> Result<Sides, Failure> {
    let mut bundles = bundles(config, scratch, ordered)?;
    match config.method {
        SplitMethod::Hash => by_hash(config, ordered, &mut bundles),
        SplitMethod::Random | SplitMethod::Time => {
            let order = bundle_order(config, scratch, ordered, &mut bundles)?;
            let firsts = cut(config, ordered, &order)?;
            let mut sides = Sides::new(ordered.rows.count());
            for row in 0..ordered.rows.count() {
                if ordered.kept.get(row) {
                    sides.set(row, firsts.get(bundles.first_of(row)?));
                }
            }
            Ok(sides)
        }
    }
}

/// Rows that a cluster or a group joins.
fn bundles(
    config: &HashSplit,
    scratch: &Scratch,
    ordered: &mut Ordered,
) -> Result<Clusters, Failure> {
    let mut bundles = Clusters::single(scratch, ordered.rows.count())?;
    if ordered.is_grouped {
        for row in 0..ordered.rows.count() {
            if ordered.kept.get(row) {
                bundles.join(ordered.clusters.first_of(row)?, row)?;
            }
        }
    }
    let mut keys = Sorter::new(scratch);
    let mut last: Option<(Hash, u64)> = None;
    let mut reader = ordered.rows.read()?;
    while let Some((position, row)) = reader.next_row()? {
        if !ordered.kept.get(position) {
            continue;
        }
        if config.group_column.is_some() {
            let key: Hash = Sha256::digest(row.split_key()).into();
            keys.push(&[&key[..], &position.to_be_bytes()].concat())?;
        } else {
            // The key is the row itself, and equal rows come one after the other.
            match last {
                Some((hash, first)) if hash == row.hash => bundles.join(first, position)?,
                _ => last = Some((row.hash, position)),
            }
        }
    }
    bundles.join_equal(&keys.finish()?)?;
    Ok(bundles)
}

fn by_hash(
    config: &HashSplit,
    ordered: &Ordered,
    bundles: &mut Clusters,
) -> Result<Sides, Failure> {
    let mut sides = Sides::new(ordered.rows.count());
    let mut reader = ordered.rows.read()?;
    while let Some((position, row)) = reader.next_row()? {
        if !ordered.kept.get(position) {
            continue;
        }
        let first = bundles.first_of(position)?;
        let split = if first == position {
            config.split_of(row.split_key())
        } else {
            // The first row of a bundle comes before its others.
            sides.get(first)
        };
        sides.set(position, split);
    }
    Ok(sides)
}

/// A bundle on its way to [`bundle_order`].
struct Bundle {
    first: u64,
    order: Hash,
    /// The time of its latest row.
    time: i64,
    rows: u64,
}

/// Bundles in the order that is cut: records of time, order, first row and number of rows.
fn bundle_order(
    config: &HashSplit,
    scratch: &Scratch,
    ordered: &Ordered,
    bundles: &mut Clusters,
) -> Result<Sorted, Failure> {
    let members = members(config, scratch, ordered, bundles)?;
    let mut sorter = Sorter::new(scratch);
    let mut push = |bundle: Bundle| {
        sorter.push(
            &[
                &sortable(bundle.time)[..],
                &bundle.order,
                &bundle.first.to_be_bytes(),
                &bundle.rows.to_be_bytes(),
            ]
            .concat(),
        )
    };
    let mut bundle: Option<Bundle> = None;
    let mut records = members.records()?;
    while let Some(mut record) = records.next_record()? {
        let first = take_number(&mut record)?;
        let _row = take_number(&mut record)?;
        let time = number(array(&mut record)?);
        match &mut bundle {
            Some(bundle) if bundle.first == first => {
                bundle.time = bundle.time.max(time);
                bundle.rows += 1;
            }
            _ => {
                let next = Bundle {
                    first,
                    order: array(&mut record)?,
                    time,
                    rows: 1,
                };
                if let Some(done) = bundle.replace(next) {
                    push(done)?;
                }
            }
        }
    }
    if let Some(done) = bundle {
        push(done)?;
    }
    sorter.finish()
}

/// Records of a bundle's first row, a row of it, and that row's time; of the first row also what orders
/// the bundle.
fn members(
    config: &HashSplit,
    scratch: &Scratch,
    ordered: &Ordered,
    bundles: &mut Clusters,
) -> Result<Sorted, Failure> {
    let by_time = config.method == SplitMethod::Time;
    let mut sorter = Sorter::new(scratch);
    let mut reader = ordered.rows.read()?;
    let mut record = Vec::new();
    while let Some((position, row)) = reader.next_row()? {
        if !ordered.kept.get(position) {
            continue;
        }
        let first = bundles.first_of(position)?;
        let time = row.time.filter(|_| by_time).unwrap_or(i64::MIN);
        record.clear();
        record.extend_from_slice(&first.to_be_bytes());
        record.extend_from_slice(&position.to_be_bytes());
        record.extend_from_slice(&sortable(time));
        if first == position {
            let order: Hash = Sha256::new()
                .chain_update(config.seed.to_le_bytes())
                .chain_update(row.split_key())
                .finalize()
                .into();
            record.extend_from_slice(&order);
        }
        sorter.push(&record)?;
    }
    sorter.finish()
}

/// Cuts an order at the percents: the split of each bundle's first row. By time, bundles of the same time
/// as the one before stay with it.
fn cut(config: &HashSplit, ordered: &Ordered, order: &Sorted) -> Result<Sides, Failure> {
    let share = |percent: u32| (ordered.kept_count * u64::from(percent) + 50) / 100;
    let train = share(config.train_percent);
    let validation = share(config.train_percent + config.validation_percent);
    let by_time = config.method == SplitMethod::Time;
    let mut firsts = Sides::new(ordered.rows.count());
    let mut before = 0;
    let mut last: Option<(i64, Split)> = None;
    let mut records = order.records()?;
    while let Some(mut record) = records.next_record()? {
        let time = number(array(&mut record)?);
        let _order: Hash = array(&mut record)?;
        let first = take_number(&mut record)?;
        let rows = take_number(&mut record)?;
        let split = match last {
            Some((other, split)) if by_time && other == time => split,
            _ if before < train => Split::Train,
            _ if before < validation => Split::Validation,
            _ => Split::Test,
        };
        firsts.set(first, split);
        before += rows;
        last = Some((time, split));
    }
    Ok(firsts)
}
