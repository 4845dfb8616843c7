//! Rare classes, as often as the most frequent one.

use std::collections::BTreeMap;

use graftwork_contract::dataset::Balance;

use crate::row::GoodRow;

/// Repeats rows so that each class comes as often as the most frequent one, and no row more often than
/// the maximum. Rows of a class are repeated in the order in which they come.
pub fn balance(config: &Balance, rows: Vec<GoodRow>) -> Vec<GoodRow> {
    let mut classes: BTreeMap<String, Vec<GoodRow>> = BTreeMap::new();
    for row in rows {
        let class = row.class.clone().unwrap_or_default();
        classes.entry(class).or_default().push(row);
    }
    let most = classes.values().map(Vec::len).max().unwrap_or(0);
    classes
        .into_values()
        .flat_map(|rows| {
            let wanted = most.min(rows.len().saturating_mul(config.maximum_upsample as usize));
            rows.into_iter().cycle().take(wanted)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::tests_support::text_row;

    fn rows(counts: &[(&str, usize)]) -> Vec<GoodRow> {
        let of = |class: &str, n: usize| {
            let mut row = text_row(&format!("{class} {n}"));
            row.class = Some(class.to_owned());
            row
        };
        counts
            .iter()
            .flat_map(|(class, count)| (0..*count).map(move |n| of(class, n)))
            .collect()
    }

    fn times(rows: &[GoodRow]) -> BTreeMap<&str, usize> {
        rows.iter().fold(BTreeMap::new(), |mut times, row| {
            *times.entry(row.canonical.as_str()).or_default() += 1;
            times
        })
    }

    #[test]
    fn rare_classes_reach_the_most_frequent_one_or_the_maximum() {
        let config = Balance {
            column: "class".to_owned(),
            maximum_upsample: 3,
        };
        let balanced = balance(&config, rows(&[("a", 10), ("b", 4), ("c", 2), ("d", 10)]));
        let count = |class: &str| {
            let class = Some(class.to_owned());
            balanced.iter().filter(|row| row.class == class).count()
        };
        assert_eq!(["a", "b", "c", "d"].map(count), [10, 10, 6, 10]);
        let times = times(&balanced);
        assert!(times.values().all(|times| *times <= 3));
        // Ten of four: two rows three times, the first ones.
        assert_eq!(
            (times[r#"{"text":"b 0"}"#], times[r#"{"text":"b 3"}"#]),
            (3, 2)
        );
    }

    #[test]
    fn a_maximum_of_one_and_one_class_change_nothing() {
        for (maximum_upsample, counts) in [(1, vec![("a", 3), ("b", 1)]), (9, vec![("a", 3)])] {
            let config = Balance {
                column: "class".to_owned(),
                maximum_upsample,
            };
            let before = rows(&counts);
            assert_eq!(balance(&config, before.clone()), before);
        }
        let config = Balance {
            column: "class".to_owned(),
            maximum_upsample: 2,
        };
        assert_eq!(balance(&config, Vec::new()), Vec::new());
    }
}
