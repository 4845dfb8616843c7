//! A training's state as bytes: a safetensors file.
//!
//! | tensor | holds |
//! |---|---|
//! | `parameters/<name>` | values |
//! | `first/<name>`, `second/<name>` | AdamW's moments |
//! | `gradients/<name>` | accumulated gradients; absent between batches |
//! | `counters` | u64: step, micro-batch, tokens |
//! | `losses` | f64: the batch's loss so far, then the newest steps' |
//! | `best/<name>` | values of the best validated step; absent before the first validation |
//! | `validation` | u64: newest validated step, validations since the best, the best step; absent as `best` |
//! | `best_loss` | f64: of the best step; absent as `best` |

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};

use crate::optimizer::{AdamW, AdamWConfig};
use crate::train::{State, Validation};

/// Bytes that are no training state.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// Not safetensors, or cut short.
    #[error("the checkpoint's state is no safetensors file: {0}")]
    Format(#[from] SafeTensorError),
    /// A tensor is missing or of another type.
    #[error("the checkpoint's state has no {dtype:?} tensor {name}")]
    Missing {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: Dtype,
    },
}

/// Writes `state`, whose tensors are called `names`, in the same order.
///
/// # Errors
/// None that a state made by this program can cause.
pub fn encode(state: &State, names: &[String]) -> Result<Vec<u8>, StateFileError> {
    let mut tensors: BTreeMap<String, (Dtype, Vec<u8>)> = BTreeMap::new();
    let mut lists = vec![
        ("parameters", &state.parameters),
        ("first", &state.optimizer.first),
        ("second", &state.optimizer.second),
    ];
    if state.micro_batch > 0 {
        lists.push(("gradients", &state.gradients));
    }
    if let Some(validation) = &state.validation {
        lists.push(("best", &validation.best));
        let counters = [validation.step, validation.worse, validation.best_step];
        let bytes = counters.iter().flat_map(|c| c.to_le_bytes()).collect();
        tensors.insert("validation".to_owned(), (Dtype::U64, bytes));
        let bytes = validation.best_loss.to_le_bytes().to_vec();
        tensors.insert("best_loss".to_owned(), (Dtype::F64, bytes));
    }
    for (kind, list) in lists {
        for (name, values) in names.iter().zip(list) {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            tensors.insert(format!("{kind}/{name}"), (Dtype::F32, bytes));
        }
    }
    let counters = [state.step, state.micro_batch, state.tokens];
    let bytes = counters.iter().flat_map(|c| c.to_le_bytes()).collect();
    tensors.insert("counters".to_owned(), (Dtype::U64, bytes));
    let losses = std::iter::once(&state.batch_loss).chain(&state.losses);
    let bytes = losses.flat_map(|loss| loss.to_le_bytes()).collect();
    tensors.insert("losses".to_owned(), (Dtype::F64, bytes));

    let views = tensors
        .iter()
        .map(|(name, (dtype, bytes))| {
            let elements = bytes.len() / if *dtype == Dtype::F32 { 4 } else { 8 };
            Ok((name, TensorView::new(*dtype, vec![elements], bytes)?))
        })
        .collect::<Result<Vec<_>, SafeTensorError>>()?;
    Ok(safetensors::serialize(views, None)?)
}

/// Reads what [`encode`] wrote. Accumulated gradients that are absent are zeros.
///
/// # Errors
/// See [`StateFileError`].
pub fn decode(
    bytes: &[u8],
    names: &[String],
    optimizer: AdamWConfig,
) -> Result<State, StateFileError> {
    let file = SafeTensors::deserialize(bytes)?;
    let floats = |kind: &str| -> Result<Vec<Vec<f32>>, StateFileError> {
        names
            .iter()
            .map(|name| {
                read(
                    &file,
                    &format!("{kind}/{name}"),
                    Dtype::F32,
                    f32::from_le_bytes,
                )
            })
            .collect()
    };
    let parameters = floats("parameters")?;
    let counters = read(&file, "counters", Dtype::U64, u64::from_le_bytes)?;
    let losses = read(&file, "losses", Dtype::F64, f64::from_le_bytes)?;
    let missing = |name: &str, dtype| StateFileError::Missing {
        name: name.to_owned(),
        dtype,
    };
    let [step, micro_batch, tokens] = counters[..] else {
        return Err(missing("counters", Dtype::U64));
    };
    let Some((batch_loss, losses)) = losses.split_first() else {
        return Err(missing("losses", Dtype::F64));
    };
    let gradients = if micro_batch > 0 {
        floats("gradients")?
    } else {
        parameters
            .iter()
            .map(|values| vec![0.0; values.len()])
            .collect()
    };
    let validation = match file.tensor("validation") {
        Err(_) => None,
        Ok(_) => {
            let counters = read(&file, "validation", Dtype::U64, u64::from_le_bytes)?;
            let best_loss = read(&file, "best_loss", Dtype::F64, f64::from_le_bytes)?;
            let ([step, worse, best_step], [best_loss]) = (&counters[..], &best_loss[..]) else {
                return Err(missing("validation", Dtype::U64));
            };
            Some(Validation {
                step: *step,
                worse: *worse,
                best_step: *best_step,
                best_loss: *best_loss,
                best: floats("best")?,
            })
        }
    };
    Ok(State {
        step,
        micro_batch,
        batch_loss: *batch_loss,
        tokens,
        losses: losses.to_vec(),
        gradients,
        optimizer: AdamW::restore(optimizer, floats("first")?, floats("second")?),
        parameters,
        validation,
    })
}

fn read<T, const N: usize>(
    file: &SafeTensors<'_>,
    name: &str,
    dtype: Dtype,
    parse: fn([u8; N]) -> T,
) -> Result<Vec<T>, StateFileError> {
    let view = file.tensor(name).ok().filter(|view| view.dtype() == dtype);
    let view = view.ok_or_else(|| StateFileError::Missing {
        name: name.to_owned(),
        dtype,
    })?;
    let (numbers, _) = view.data().as_chunks::<N>();
    Ok(numbers.iter().map(|bytes| parse(*bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(micro_batch: u64) -> (State, Vec<String>) {
        let list = |x: f32| vec![vec![x, -x, 1e-30], vec![x + 0.1]];
        let state = State {
            step: 17,
            micro_batch,
            batch_loss: 0.1 + 0.2,
            tokens: 1 << 40,
            losses: vec![1.0 / 3.0, 2.0 / 3.0],
            parameters: list(0.3),
            gradients: list(if micro_batch > 0 { 0.7 } else { 0.0 })
                .into_iter()
                .map(|g| {
                    if micro_batch > 0 {
                        g
                    } else {
                        vec![0.0; g.len()]
                    }
                })
                .collect(),
            optimizer: AdamW::restore(AdamWConfig::default(), list(0.5), list(0.6)),
            validation: (micro_batch > 0).then(|| Validation {
                step: 16,
                worse: 2,
                best_step: 8,
                best_loss: 0.1,
                best: list(0.9),
            }),
        };
        (state, vec!["a.weight".to_owned(), "b.weight".to_owned()])
    }

    #[test]
    fn a_state_is_read_back_bit_for_bit() {
        for micro_batch in [0, 3] {
            let (state, names) = state(micro_batch);
            let bytes = encode(&state, &names).unwrap();
            assert_eq!(
                decode(&bytes, &names, AdamWConfig::default()).unwrap(),
                state
            );
        }
    }

    #[test]
    fn a_cut_or_foreign_file_is_refused() {
        let (state, names) = state(0);
        let bytes = encode(&state, &names).unwrap();
        let cut = decode(&bytes[..bytes.len() - 1], &names, AdamWConfig::default());
        assert!(matches!(cut, Err(StateFileError::Format(_))));
        let other = decode(&bytes, &["c".to_owned()], AdamWConfig::default()).unwrap_err();
        assert!(other.to_string().contains("parameters/c"), "{other}");
    }
}
