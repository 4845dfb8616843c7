//! Mixes: how much of a source's rows a version takes.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What is hashed before a row, so that who is taken has nothing to do with who is dealt where.
const DOMAIN: &[u8] = b"graftwork/mix/v1\0";

/// A share of a source's rows, as a fraction that is at most 1.
///
/// Which rows are taken follows from their content alone: those whose place is below the share, where the
/// place is the first eight bytes (highest first) of the SHA-256 of [`DOMAIN`] and the canonical row, as a
/// fraction of 2^64. The same rows are taken on any machine and in any order, and a larger share takes those
/// of a smaller one and more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Of so many.
    pub part: u64,
    /// Out of so many.
    pub whole: u64,
}

impl Share {
    /// Whether the share takes this row, given as canonical JSON.
    pub fn takes(self, canonical: &str) -> bool {
        let hash = Sha256::new()
            .chain_update(DOMAIN)
            .chain_update(canonical)
            .finalize();
        let place = hash
            .iter()
            .take(8)
            .fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        u128::from(place) * u128::from(self.whole) < u128::from(self.part) << 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(part: u64, whole: u64) -> Vec<u32> {
        let share = Share { part, whole };
        let takes = |n: &u32| share.takes(&format!(r#"{{"text":"row {n}"}}"#));
        (0..10_000).filter(takes).collect()
    }

    #[test]
    fn a_share_takes_about_as_many_rows_as_it_says() {
        let quarter = taken(1, 4).len();
        assert!((2_350..2_650).contains(&quarter), "{quarter}");
        assert_eq!(taken(1, 1).len(), 10_000);
        assert_eq!(taken(7_000_000, 7_000_000).len(), 10_000);
        assert!(taken(0, 1).is_empty());
    }

    #[test]
    fn a_larger_share_takes_the_rows_of_a_smaller_one() {
        let (tenth, third) = (taken(100_000, 1_000_000), taken(1, 3));
        assert!(tenth.iter().all(|row| third.contains(row)));
        assert_eq!(tenth, taken(1, 10), "however the fraction is written");
    }

    #[test]
    fn the_rows_are_those_that_the_formula_says() {
        // Computed by Python's hashlib.
        assert_eq!(taken(1, 500), EXPECTED);
    }

    const EXPECTED: [u32; 17] = [
        80, 974, 1122, 1136, 1656, 2449, 2921, 2943, 2953, 4610, 4692, 6008, 6897, 6981, 7795,
        7843, 8759,
    ];
}
