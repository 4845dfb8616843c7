//! Which version a request gets. Pure: time and chance come in as arguments.

use std::sync::Arc;
use std::time::Instant;

use sha2::{Digest as _, Sha256};

use crate::table::{Model, Version};

/// The value of `x-graftwork-version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The version on trial.
    Candidate,
    /// The version that serves.
    Stable,
}

impl Side {
    /// Reads the header's value.
    pub fn parse(value: &str) -> Option<Self> {
        match value {
            "candidate" => Some(Self::Candidate),
            "stable" => Some(Self::Stable),
            _ => None,
        }
    }
}

/// The header asked for a candidate and there is none (any more).
#[derive(Debug, PartialEq, Eq)]
pub struct NoCandidate;

/// Picks the version: what the header says; else by the caller's place in the rollout, which does not
/// move as the weight grows but from stable to candidate, once; else by `draw` (0 to 99), which is
/// called only where nobody is named.
pub fn choose(
    model: &Model,
    wanted: Option<Side>,
    caller: Option<&str>,
    now: Instant,
    draw: impl FnOnce() -> u32,
) -> Result<Arc<Version>, NoCandidate> {
    let open = model
        .candidate
        .as_ref()
        .filter(|candidate| candidate.is_open(now));
    match (wanted, open) {
        (Some(Side::Candidate), Some(candidate)) => Ok(candidate.version.clone()),
        (Some(Side::Candidate), None) => Err(NoCandidate),
        (Some(Side::Stable), _) | (None, None) => Ok(model.stable.clone()),
        (None, Some(candidate)) => {
            let weight = candidate.live_weight(now);
            let place = match caller {
                _ if weight == 0 => 100,
                Some(caller) => place(&candidate.salt, caller),
                None => draw(),
            };
            let version = if place < weight {
                &candidate.version
            } else {
                &model.stable
            };
            Ok(version.clone())
        }
    }
}

/// A caller's place in a rollout, 0 to 99: it gets the candidate once the weight is above it.
pub fn place(salt: &str, caller: &str) -> u32 {
    let hash = Sha256::new()
        .chain_update((salt.len() as u64).to_le_bytes())
        .chain_update(salt)
        .chain_update(caller)
        .finalize();
    let mut head = [0; 8];
    head.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
    (u64::from_be_bytes(head) % 100) as u32
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use graftwork_contract::proto::router::v1 as wire;
    use graftwork_contract::signing::Fence;
    use graftwork_listen::clock;
    use proptest::prelude::*;

    use super::*;
    use crate::engine::Registry;
    use crate::table::Table;

    fn model(weight: u32, by_header: bool, salt: &str, now: Instant) -> Model {
        let version = |version| {
            Some(wire::Version {
                version,
                digest: format!("sha256:{version}"),
            })
        };
        let push = wire::RoutingTable {
            models: vec![wire::Model {
                name: "m".into(),
                stable: version(1),
                candidate: Some(wire::Candidate {
                    version: version(2),
                    weight,
                    by_header,
                    lease_seconds: 10,
                    salt: salt.into(),
                }),
                fallback: String::new(),
            }],
            ..Default::default()
        };
        let mut table =
            Table::from_push(&push, Fence::default(), &Registry::default(), now).unwrap();
        table.models.remove("m").unwrap()
    }

    fn number(model: &Model, wanted: Option<Side>, caller: Option<&str>, now: Instant) -> u32 {
        choose(model, wanted, caller, now, || panic!("nobody is named"))
            .unwrap()
            .number
            .unwrap()
    }

    proptest! {
        #[test]
        fn a_caller_moves_at_most_once_as_the_weight_grows(caller in ".{0,40}", salt in ".{0,40}") {
            let now = clock::now();
            let seen: Vec<_> = (0..=100)
                .map(|weight| number(&model(weight, true, &salt, now), None, Some(&caller), now))
                .collect();
            prop_assert!(seen.is_sorted());
            prop_assert_eq!((seen[0], seen[100]), (1, 2));
            let place = place(&salt, &caller) as usize;
            prop_assert_eq!((seen[place], seen[place + 1]), (1, 2));
        }
    }

    #[test]
    fn callers_spread_evenly_and_differently_for_each_salt() {
        let mut counts = [0u32; 100];
        let mut same = 0;
        for caller in 0..20_000 {
            let caller = format!("user-{caller}");
            let first = place("a", &caller);
            counts[first as usize] += 1;
            same += u32::from((first < 10) && (place("b", &caller) < 10));
        }
        // 200 expected each with a deviation of 14; 200 in both tenths.
        assert!(
            counts.iter().all(|count| (130..270).contains(count)),
            "{counts:?}"
        );
        assert!((130..270).contains(&same), "{same}");
    }

    #[test]
    fn without_a_caller_chance_decides_at_the_exact_border() {
        let now = clock::now();
        let model = model(30, false, "s", now);
        let split = (0..100)
            .filter(|draw| choose(&model, None, None, now, || *draw).unwrap().number == Some(2))
            .count();
        assert_eq!(split, 30);
    }

    #[test]
    fn the_header_wins_while_the_candidate_is_open() {
        let now = clock::now();
        let by_header = model(0, true, "s", now);
        assert_eq!(number(&by_header, Some(Side::Candidate), Some("u"), now), 2);
        assert_eq!(number(&by_header, None, Some("u"), now), 1);
        let all = model(100, false, "s", now);
        assert_eq!(number(&all, Some(Side::Stable), Some("u"), now), 1);
        assert_eq!(number(&all, Some(Side::Candidate), None, now), 2);
        let hidden = model(0, false, "s", now);
        assert_eq!(
            choose(&hidden, Some(Side::Candidate), None, now, || 0),
            Err(NoCandidate)
        );
    }

    #[test]
    fn after_the_lease_everybody_is_on_stable() {
        let now = clock::now();
        let model = model(100, true, "s", now);
        let later = now + Duration::from_secs(10);
        assert_eq!(number(&model, None, Some("u"), later), 1);
        assert_eq!(
            choose(&model, Some(Side::Candidate), None, later, || 0),
            Err(NoCandidate)
        );
        assert_eq!(
            choose(&model, None, None, later, || 0).unwrap().number,
            Some(1)
        );
    }
}
