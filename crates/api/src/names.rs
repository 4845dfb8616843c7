//! Names of children: deterministic, at most 63 characters with every suffix, a DNS label.

use sha2::{Digest as _, Sha256};

/// Longest name of a Service, a pod's host name, a label's value.
pub const LONGEST: usize = 63;
/// Hexadecimal digits of the hash that replaces the end of a long name.
const HASH_DIGITS: usize = 10;

/// `<owner>-<suffix>`, or a shortened owner, its hash and the suffix where that is longer than 63
/// characters or not a DNS label.
///
/// Names of our kinds may hold dots and 253 characters; what children are called may not. Two
/// owners that differ anywhere get different names.
pub fn child_name(owner: &str, suffix: &str) -> String {
    join(owner, suffix, LONGEST)
}

/// Name of attempt `number` (counted from 1) of a run: a Job's pods add `-` and five characters.
pub fn attempt_name(run: &str, number: u32) -> String {
    join(run, &number.to_string(), LONGEST - 6)
}

/// The owner's name as a label's value.
pub fn label_value(owner: &str) -> String {
    if owner.len() <= LONGEST {
        owner.to_owned()
    } else {
        shorten(owner, LONGEST)
    }
}

fn join(owner: &str, suffix: &str, longest: usize) -> String {
    let plain = format!("{owner}-{suffix}");
    if plain.len() <= longest && is_label(&plain) {
        return plain;
    }
    let room = longest.saturating_sub(suffix.len() + 1);
    format!("{}-{suffix}", shorten(owner, room))
}

/// The start of `owner` that fits, and a hash of all of it.
fn shorten(owner: &str, room: usize) -> String {
    let hash = hex::encode(Sha256::digest(owner.as_bytes()));
    let hash = hash.get(..HASH_DIGITS).unwrap_or(&hash);
    let kept: String = owner
        .chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() {
                letter.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(room.saturating_sub(HASH_DIGITS + 1))
        .collect();
    let kept = kept.trim_matches('-');
    // A Service's name starts with a letter.
    if kept.starts_with(|first: char| first.is_ascii_lowercase()) {
        format!("{kept}-{hash}")
    } else {
        let kept: String = kept
            .chars()
            .take(room.saturating_sub(HASH_DIGITS + 3))
            .collect();
        format!("g-{}-{hash}", kept.trim_matches('-')).replace("--", "-")
    }
}

/// Whether `name` can be the name of a Service (RFC 1035).
fn is_label(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.ends_with(|last: char| last.is_ascii_lowercase() || last.is_ascii_digit())
        && name
            .chars()
            .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_names_stay_readable() {
        assert_eq!(child_name("assistants", "router"), "assistants-router");
        assert_eq!(attempt_name("nightly", 3), "nightly-3");
    }

    #[test]
    fn long_and_dotted_names_keep_apart() {
        let long = "a".repeat(253);
        let other = format!("{}b", "a".repeat(252));
        assert_ne!(child_name(&long, "router"), child_name(&other, "router"));
        assert_ne!(child_name("a.b", "router"), child_name("a-b", "router"));
        assert_ne!(label_value(&long), label_value(&other));
    }

    proptest! {
        #[test]
        fn every_name_makes_a_label(
            owner in "[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?",
            suffix in "[a-z]{1,16}",
            attempt in 1_u32..1000,
        ) {
            let name = child_name(&owner, &suffix);
            prop_assert!(name.len() <= LONGEST && is_label(&name), "{name}");
            prop_assert!(name.ends_with(&suffix));
            let job = attempt_name(&owner, attempt);
            prop_assert!(job.len() + 6 <= LONGEST && is_label(&job), "{job}");
            prop_assert!(label_value(&owner).len() <= LONGEST);
        }
    }
}
