//! Rows dealt to their splits, counted, and the digest that names them.

use graftwork_artifacts::rows::{Beside, schema_hash};
use graftwork_contract::Digest;
use graftwork_contract::dataset::{BuildConfig, Leakage, RowCounts, Split, TokenCounts};
use graftwork_contract::digest::PartsHasher;

use crate::balance::{Repeats, balance};
use crate::failure::Failure;
use crate::order::Ordered;
use crate::spill::Scratch;
use crate::spill::numbers::Bits;
use crate::spill::sorter::{Sorted, Sorter};
use crate::split::{Sides, split};
use crate::stored::{Hash, Stored, array, take_number};

/// Rows in their splits.
#[derive(Debug)]
pub struct Dealt {
    ordered: Ordered,
    sides: Sides,
    repeats: Repeats,
    /// Rows by split, and those that were left out.
    pub counts: RowCounts,
    /// Identity of the schema.
    pub schema_hash: Digest,
    /// Over canonical rows and schema.
    pub digest: Digest,
    /// Rows of other splits that are trained on.
    pub leakage: Leakage,
    /// Tokens of the rows, where a base model is named.
    pub tokens: Option<TokenCounts>,
}

/// The columns that are kept beside the format's.
pub fn beside(config: &BuildConfig) -> Beside<'_> {
    Beside {
        group: config.split.group_column.as_deref(),
        reward: config.reward,
    }
}

/// Deals every row to its split, and repeats rows of rare classes in train.
///
/// # Errors
/// Those of the scratch volume.
pub fn deal(
    config: &BuildConfig,
    scratch: &Scratch,
    mut ordered: Ordered,
    rejected: u64,
) -> Result<Dealt, Failure> {
    let sides = split(&config.split, scratch, &mut ordered)?;
    let leakage = leakage(&mut ordered, &sides)?;
    let repeats = match &config.balance {
        Some(config) => balance(config, scratch, &ordered, &sides)?,
        None => Repeats::none(),
    };
    let mut dealt = Dealt {
        counts: RowCounts {
            rejected,
            duplicates: ordered.duplicates(),
            ..RowCounts::default()
        },
        schema_hash: schema_hash(config.format, beside(config)),
        digest: Digest::of(b""),
        ordered,
        sides,
        repeats,
        leakage,
        tokens: None,
    };
    let (hashes, tokens) = dealt.count(scratch)?;
    dealt.tokens = config.base_model.is_some().then_some(tokens);
    dealt.digest = dealt.digest_of(&hashes)?;
    Ok(dealt)
}

impl Dealt {
    /// Hands over every row that is kept, in canonical order, with its split and how often it comes.
    ///
    /// # Errors
    /// Those of `take` and of the scratch volume.
    pub fn for_each(
        &self,
        mut take: impl FnMut(&Stored<'_>, Split, u64) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut repeats = self.repeats.read()?;
        let mut reader = self.ordered.rows.read()?;
        while let Some((position, row)) = reader.next_row()? {
            if self.ordered.kept.get(position) {
                take(&row, self.sides.get(position), repeats.of(position)?)?;
            }
        }
        Ok(())
    }

    /// Counts rows and tokens by split. Records of a split's number, a row's hash and how often it comes.
    fn count(&mut self, scratch: &Scratch) -> Result<(Sorted, TokenCounts), Failure> {
        let mut counts = [0_u64; 3];
        let mut tokens = TokenCounts::default();
        let mut sorter = Sorter::new(scratch);
        self.for_each(|row, split, times| {
            let number = [split as u8];
            add(&mut tokens, split, row.tokens.unwrap_or_default(), times);
            for (of, count) in Split::ALL.iter().zip(&mut counts) {
                *count += if *of == split { times } else { 0 };
            }
            sorter.push(&[&number[..], &row.hash, &times.to_be_bytes()].concat())
        })?;
        let [train, validation, test] = counts;
        self.counts.train = train;
        self.counts.validation = validation;
        self.counts.test = test;
        Ok((sorter.finish()?, tokens))
    }

    /// Over the schema, and for each split its name, its number of rows and their hashes in order.
    fn digest_of(&self, hashes: &Sorted) -> Result<Digest, Failure> {
        let mut hasher = PartsHasher::new();
        hasher
            .part("graftwork/dataset/v1")
            .part(self.schema_hash.as_str());
        let counts = [self.counts.train, self.counts.validation, self.counts.test];
        let mut records = hashes.records()?;
        let mut next = read(records.next_record()?)?;
        for (split, count) in Split::ALL.iter().zip(counts) {
            hasher.part(split.name()).part(count.to_le_bytes());
            while let Some((_, hash, times)) = next.filter(|next| next.0 == *split as u8) {
                for _ in 0..times {
                    hasher.part(hash);
                }
                next = read(records.next_record()?)?;
            }
        }
        Ok(hasher.finish())
    }
}

/// Counts a row of so many tokens that comes so often.
fn add(counts: &mut TokenCounts, split: Split, tokens: u32, times: u64) {
    if times == 0 {
        return;
    }
    let tokens = u64::from(tokens);
    let all = match split {
        Split::Train => &mut counts.train,
        Split::Validation => &mut counts.validation,
        Split::Test => &mut counts.test,
    };
    *all += tokens * times;
    counts.longest_row = counts.longest_row.max(tokens);
}

/// A record of [`Dealt::count`].
fn read(record: Option<&[u8]>) -> Result<Option<(u8, Hash, u64)>, Failure> {
    let Some(mut record) = record else {
        return Ok(None);
    };
    let [split] = array::<1>(&mut record)?;
    Ok(Some((
        split,
        array(&mut record)?,
        take_number(&mut record)?,
    )))
}

/// Rows of other splits that are equal to a row of train, or of one cluster with it.
fn leakage(ordered: &mut Ordered, sides: &Sides) -> Result<Leakage, Failure> {
    let count = ordered.rows.count();
    let mut trained = Bits::new(count);
    for row in 0..count {
        if ordered.kept.get(row) && sides.get(row) == Split::Train {
            trained.set(ordered.clusters.first_of(row)?);
        }
    }
    let mut leakage = Leakage::default();
    for row in 0..count {
        if ordered.kept.get(row) && trained.get(ordered.clusters.first_of(row)?) {
            match sides.get(row) {
                Split::Train => {}
                Split::Validation => leakage.validation += 1,
                Split::Test => leakage.test += 1,
            }
        }
    }
    Ok(leakage)
}
