//! Names in messages about one that is not there: which there are, and which one may be meant.

use crate::pins::masked;

/// Names that a message has.
const NAMED: usize = 20;

/// The names, the first twenty of many.
pub fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    // A name is the source's, and may be anything.
    let names: Vec<String> = names.map(masked).collect();
    match names.get(..NAMED) {
        Some(first) if names.len() > NAMED => {
            format!("{} and {} more", first.join(", "), names.len() - NAMED)
        }
        _ => names.join(", "),
    }
}

/// The name that is most like this one, where one is alike.
pub fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = name.chars().count() / 3 + 1;
    names
        .map(|other| (distance(name, other), other))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, other)| other)
}

/// Letters to add, drop or change until one is the other (Levenshtein), whatever their case.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.to_lowercase().chars().collect();
    let mut before: Vec<usize> = (0..=other.len()).collect();
    for (row, letter) in one.to_lowercase().chars().enumerate() {
        let mut present = vec![row + 1];
        for (column, wanted) in other.iter().enumerate() {
            let at = |costs: &[usize], index: usize| costs.get(index).copied().unwrap_or_default();
            let changed = at(&before, column) + usize::from(letter != *wanted);
            let dropped = at(&before, column + 1) + 1;
            let added = at(&present, column) + 1;
            present.push(changed.min(dropped).min(added));
        }
        before = present;
    }
    before.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_one_that_is_alike() {
        let names = ["prompt", "completion", "record_date"];
        for (name, expected) in [
            ("promt", Some("prompt")),
            ("Prompt", Some("prompt")),
            ("recorddate", Some("record_date")),
            ("reward", None),
        ] {
            assert_eq!(nearest(name, names.into_iter()), expected, "{name}");
        }
    }
}
