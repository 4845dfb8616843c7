//! What the reference makes of all pairs, computed once in a run. Passes over many pairs take as long as many steps do:
//! attempts leave what they have in the store, piece by piece, and the next one goes on from there.

use std::time::Duration;

use graftwork_artifacts::Store;
use graftwork_contract::dataset::Split;
use graftwork_contract::run::TrainerConfig;
use graftwork_contract::{Digest, paths};
use graftwork_model::lora::{LoadedAdapter, LoraParams};
use serde::{Deserialize, Serialize};

use super::fence::Fence;
use super::inputs::{Base, Inputs};
use super::patience;
use super::preference::{self, Pair};
use crate::clock;
use crate::failure::{Failure, causes};

/// Time between two pieces: what is lost with a node at most.
const EVERY: Duration = Duration::from_secs(30);
/// Pairs between two looks at the clock.
const PAIRS: usize = 64;

/// `references/<split>-<start>.json`: margins of the pairs from `start` on.
#[derive(Debug, Serialize, Deserialize)]
struct Piece {
    margins: Vec<f64>,
    /// Of the margins: a damaged piece is computed again.
    digest: Digest,
}

/// Gives all pairs what the reference makes of them: the version that training starts from, or the bare base model.
///
/// # Errors
/// [`Failure`]: stopped on request, fenced off, the passes', or the store's.
pub fn add(
    (store, config): (&Store, &TrainerConfig),
    base: &Base,
    inputs: &mut Inputs,
    params: &LoraParams,
    fence: &mut Fence<'_>,
) -> Result<(), Failure> {
    let reference = match config.resolved.initial {
        None => None,
        Some(_) => {
            let adapter = params
                .to_adapter(&config.resolved.base.uri)
                .map_err(|error| Failure::bug(causes(&error)))?;
            let loaded = LoadedAdapter::new(&adapter, base.model.config())
                .map_err(|error| Failure::bad_config(causes(&error)))?;
            Some(loaded)
        }
    };
    let go_on = fence.watch(
        "stopped on request before the first step; what the reference says of the pairs so far is kept",
    );
    let splits = [
        (Split::Train, &mut inputs.train_pairs),
        (Split::Validation, &mut inputs.validation_pairs),
    ];
    for (split, pairs) in splits {
        let kept = Kept {
            store,
            config,
            split,
            every: EVERY,
        };
        kept.complete(pairs, |pairs| {
            preference::add_references(pairs, &base.model, reference.as_ref(), &go_on)
        })?;
    }
    tracing::info!(pairs = inputs.train_pairs.len(), "the reference is known");
    Ok(())
}

/// The pieces of a split.
struct Kept<'a> {
    store: &'a Store,
    config: &'a TrainerConfig,
    split: Split,
    every: Duration,
}

impl Kept<'_> {
    /// Gives the pairs what is kept of them, computes the others, and keeps those too.
    fn complete(
        &self,
        pairs: &mut [Pair],
        compute: impl Fn(&mut [Pair]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut start = self.restore(pairs)?;
        if start > 0 {
            let (split, all) = (self.split.name(), pairs.len());
            tracing::info!(split, known = start, all, "what the reference says is kept");
        }
        let mut written = clock::monotonic();
        let mut end = start;
        while end < pairs.len() {
            let next = pairs.len().min(end + PAIRS);
            let outcome = compute(pairs.get_mut(end..next).unwrap_or_default());
            if outcome.is_ok() {
                end = next;
            }
            let is_last = end == pairs.len() || outcome.is_err();
            if end > start && (is_last || clock::since(written) >= self.every) {
                self.keep(start, pairs.get(start..end).unwrap_or_default());
                start = end;
                written = clock::monotonic();
            }
            outcome?;
        }
        Ok(())
    }

    fn path(&self, start: usize) -> String {
        let folder = paths::run_references(&self.config.run, &self.config.key);
        format!("{folder}/{}-{start}.json", self.split.name())
    }

    /// Reads what is kept, from the first pair on; how many pairs that are.
    fn restore(&self, pairs: &mut [Pair]) -> Result<usize, Failure> {
        let mut known = 0;
        loop {
            let path = self.path(known);
            let piece = match patience::read(|| self.store.get_json::<Piece>(&path)) {
                Ok(piece) => piece,
                Err(error) if patience::MayPass::may_pass(&error) => {
                    return Err(Failure::unavailable(causes(&error)));
                }
                Err(error) => {
                    tracing::warn!(path, %error, "a piece can't be read: it is computed again");
                    None
                }
            };
            let is_whole = |piece: &Piece| {
                !piece.margins.is_empty()
                    && Digest::of_json(&piece.margins).is_ok_and(|it| it == piece.digest)
            };
            let rest = pairs.get_mut(known..).unwrap_or_default();
            match piece.filter(is_whole) {
                Some(piece) if piece.margins.len() <= rest.len() => {
                    for (pair, margin) in rest.iter_mut().zip(&piece.margins) {
                        pair.reference = *margin;
                    }
                    known += piece.margins.len();
                }
                _ => return Ok(known),
            }
        }
    }

    /// Keeps a piece. It can be computed again, so a failure is only logged; another attempt's piece is as good.
    fn keep(&self, start: usize, pairs: &[Pair]) {
        let margins: Vec<f64> = pairs.iter().map(|pair| pair.reference).collect();
        let path = self.path(start);
        let written = Digest::of_json(&margins).map(|digest| {
            let piece = Piece { margins, digest };
            patience::watched(|| self.store.put_new_json(&path, &piece))
        });
        match written {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(path, %error, "what the reference says is not kept"),
            Err(error) => tracing::warn!(path, %error, "what the reference says is not kept"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::path::Path;

    use graftwork_model::tokenizer::TokenizedExample;

    use super::super::survival::config_on;
    use super::*;

    fn pairs() -> Vec<Pair> {
        let example = TokenizedExample {
            tokens: vec![1, 2],
            loss_mask: vec![false, true],
        };
        let pair = Pair {
            chosen: example.clone(),
            rejected: example,
            reference: 0.0,
        };
        vec![pair; 3 * PAIRS + 5]
    }

    #[test]
    fn what_was_computed_before_a_stop_is_not_computed_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let config = config_on(Path::new("nowhere"));
        let kept = |every| Kept {
            store: &store,
            config: &config,
            split: Split::Train,
            every,
        };
        let computed = Cell::new(0);
        // Numbers of which each takes all of its digits.
        let compute = |pairs: &mut [Pair]| {
            for pair in pairs {
                computed.set(computed.get() + 1);
                pair.reference = 0.1 + f64::from(computed.get()) / 3.0;
            }
            Ok(())
        };
        let whole = {
            let mut pairs = pairs();
            compute(&mut pairs).unwrap();
            pairs
        };
        computed.set(0);
        for stop_at in [2 * PAIRS, 3 * PAIRS] {
            let stopped = kept(EVERY).complete(&mut pairs(), |pairs| {
                if computed.get() as usize == stop_at {
                    return Err(Failure::checkpointed("stopped"));
                }
                compute(pairs)
            });
            assert!(stopped.is_err());
            assert_eq!(computed.get() as usize, stop_at);
        }
        let mut last = pairs();
        kept(Duration::ZERO).complete(&mut last, compute).unwrap();
        assert_eq!(computed.get() as usize, whole.len());
        assert!(last == whole, "to the bit");
        let mut again = pairs();
        kept(EVERY).complete(&mut again, compute).unwrap();
        assert_eq!(computed.get() as usize, whole.len());
        assert!(again == whole);
    }

    #[test]
    fn a_damaged_piece_is_computed_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let config = config_on(Path::new("nowhere"));
        let kept = Kept {
            store: &store,
            config: &config,
            split: Split::Train,
            every: EVERY,
        };
        let set = |pairs: &mut [Pair]| {
            pairs.iter_mut().for_each(|pair| pair.reference = 1.5);
            Ok(())
        };
        kept.complete(&mut pairs(), set).unwrap();
        let path = dir.path().join(kept.path(0));
        let text = std::fs::read_to_string(&path).unwrap();
        for damaged in [text.replacen("1.5", "2.5", 1), String::from("{")] {
            std::fs::write(&path, damaged).unwrap();
            let mut read = pairs();
            kept.complete(&mut read, set).unwrap();
            assert!(
                read.iter()
                    .all(|pair| pair.reference.to_bits() == 1.5_f64.to_bits())
            );
        }
    }
}
