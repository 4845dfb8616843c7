//! The loss as one differentiable operation on the trained parameters.
//!
//! All trained tensors are joined into one vector, and the whole pass is one custom operation on it: forward
//! computes loss and gradient together, backward hands the gradient out. Autograd thus sees one node, and no
//! gradient of a frozen weight is ever computed (4 N floating-point operations a token instead of 6 N). On a GPU
//! only the pass is there: the parameters, their gradients and the optimiser stay in the host's memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor, Var};

use super::backward::Gradients;
use super::forward::{Dropout, Pass};
use super::gpu::{GpuPass, GpuUpdates, GpuWeights};
use super::memory::Memory;
use super::preference::{PreferenceBatch, pair_loss};
use super::weights::{Llama, Place, Weights};
use super::{ModelError, PackedBatch, TokenScore};
use crate::base::{BaseModel, tensor_shapes};
use crate::config::LlamaConfig;
use crate::lora::{LoraLayers, LoraParams};
use crate::targets::LoraPlan;

/// What dropout depends on besides an element's place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepSeed {
    /// Of the run.
    pub seed: u64,
    /// Different for every pass of the run.
    pub step: u64,
}

/// The loss of one pass.
#[derive(Debug)]
pub struct Loss {
    /// Sum of the targets' negative log-likelihoods, in nats: a scalar to call `backward` on. For the mean of a
    /// batch of several passes divide each by the targets of all of them.
    pub sum: Tensor,
    /// Targets of this pass.
    pub targets: usize,
}

/// Offset and length of each tensor in the joined vector.
type Places = BTreeMap<String, (usize, usize)>;

/// What the joined vector is.
enum Trained {
    /// LoRA's tensors over frozen weights.
    Lora {
        weights: Arc<Weights>,
        plan: Arc<LoraPlan>,
        dropout: f64,
        /// As [`Llama::with_activation_bytes`].
        activation_bytes: usize,
    },
    /// The same on a GPU.
    GpuLora {
        weights: Arc<GpuWeights>,
        plan: Arc<LoraPlan>,
        dropout: f64,
        activation_bytes: usize,
    },
    /// The whole model.
    Full { config: LlamaConfig },
}

/// What the loss is of.
pub(super) enum Goal {
    /// The targets' negative log-likelihoods.
    Likelihood,
    /// Which of two answers is the better one.
    Preference { batch: PreferenceBatch, beta: f64 },
}

struct LossOp {
    trained: Trained,
    goal: Goal,
    places: Places,
    batch: PackedBatch,
    seed: StepSeed,
    /// Of the summed loss; made by the forward pass.
    gradient: Mutex<Vec<f32>>,
}

impl LossOp {
    fn compute(&self, flat: &[f32]) -> candle_core::Result<(f64, Vec<f32>)> {
        let slice = |name: &str| {
            let (offset, length) = self.places.get(name).copied().unwrap_or_default();
            flat.get(offset..offset + length).unwrap_or_default()
        };
        let mut gradients = Gradients {
            flat: vec![0.0; flat.len()],
            places: &self.places,
            full: matches!(self.trained, Trained::Full { .. }),
        };
        let segments = &self.batch.segments;
        match &self.trained {
            Trained::Lora {
                weights,
                plan,
                dropout,
                activation_bytes,
            } => {
                let layers = LoraLayers::pack(plan, &weights.config, &slice);
                let pass = Pass {
                    weights,
                    lora: Some(&layers),
                    dropout: self.dropout(*dropout),
                    segments,
                    memory: &Memory::default(),
                };
                let sum = self.pass(&pass, *activation_bytes, &mut gradients);
                Ok((sum, gradients.flat))
            }
            Trained::GpuLora {
                weights,
                plan,
                dropout,
                activation_bytes,
            } => {
                let (config, on) = (weights.config(), weights.accelerator());
                let updates = GpuUpdates::of_tensors(plan, config, on, &slice)?;
                let dropout = self.dropout(*dropout);
                let pass = GpuPass::new(weights, Some(&updates), dropout, segments)?;
                let (sum, named) =
                    pass.loss_and_gradients(&self.batch, &self.goal, *activation_bytes)?;
                for (name, gradient) in named {
                    let values = gradient.flatten_all()?.to_vec1::<f32>()?;
                    if let Some(slot) = gradients.slice(&name) {
                        slot.copy_from_slice(&values);
                    }
                }
                Ok((sum, gradients.flat))
            }
            Trained::Full { config } => {
                let weights = Weights::pack(config, &slice);
                let pass = Pass {
                    weights: &weights,
                    lora: None,
                    dropout: None,
                    segments,
                    memory: &Memory::default(),
                };
                let sum = self.pass(&pass, usize::MAX, &mut gradients);
                Ok((sum, gradients.flat))
            }
        }
    }

    fn dropout(&self, probability: f64) -> Option<Dropout> {
        (probability > 0.0).then_some(Dropout {
            probability,
            seed: self.seed.seed,
            step: self.seed.step,
        })
    }

    fn pass(&self, pass: &Pass<'_>, activation_bytes: usize, gradients: &mut Gradients<'_>) -> f64 {
        let (hidden, tapes) = pass.run_keeping(&self.batch.tokens, activation_bytes);
        // Logits are large, and no layer's vectors are of use to them.
        pass.memory.clear();
        let targets = &self.batch.targets;
        let (sum, dhidden) = match &self.goal {
            Goal::Likelihood => pass.loss_and_gradient(&hidden, targets, None, gradients),
            Goal::Preference { batch, beta } => {
                let scores = pass.target_scores(&hidden, &self.batch);
                let (sum, factors) = preference_factors(batch, *beta, &scores);
                let (_, dhidden) =
                    pass.loss_and_gradient(&hidden, targets, Some(&factors), gradients);
                (sum, dhidden)
            }
        };
        pass.run_backward(&self.batch.tokens, tapes, dhidden, gradients);
        sum
    }
}

/// The summed loss of all pairs, and what each target's negative log-likelihood adds to it.
pub(super) fn preference_factors(
    batch: &PreferenceBatch,
    beta: f64,
    scores: &[TokenScore],
) -> (f64, Vec<f32>) {
    let losses: Vec<(f64, f64)> = batch
        .margins(scores)
        .iter()
        .zip(&batch.references)
        .map(|(margin, reference)| pair_loss(*margin, *reference, beta))
        .collect();
    let factor = |score: &TokenScore| {
        let (_, by_chosen) = losses.get(score.segment / 2).copied().unwrap_or_default();
        // By the negative log-likelihood: of the chosen answer the other sign.
        let sign = if score.segment.is_multiple_of(2) {
            -1.0
        } else {
            1.0
        };
        (sign * by_chosen) as f32
    };
    let sum = losses.iter().map(|(loss, _)| loss).sum();
    (sum, scores.iter().map(factor).collect())
}

impl CustomOp1 for LossOp {
    fn name(&self) -> &'static str {
        "llama-loss"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let CpuStorage::F32(values) = storage else {
            candle_core::bail!(
                "trained parameters are f32, not {:?}",
                storage_name(storage)
            );
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("the joined parameters are not contiguous");
        };
        let (sum, gradient) = self.compute(values.get(start..end).unwrap_or_default())?;
        *self.gradient.lock().unwrap_or_else(PoisonError::into_inner) = gradient;
        Ok((CpuStorage::F32(vec![sum as f32]), Shape::from(())))
    }

    fn bwd(
        &self,
        argument: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let scale = upstream.to_scalar::<f32>()?;
        // Handed out once: there is no second copy of it.
        let mut gradient =
            std::mem::take(&mut *self.gradient.lock().unwrap_or_else(PoisonError::into_inner));
        if gradient.len() != argument.elem_count() {
            candle_core::bail!("the gradient of a loss is there for one backward pass");
        }
        gradient.iter_mut().for_each(|value| *value *= scale);
        let gradient = Tensor::from_vec(gradient, argument.shape(), argument.device())?;
        Ok(Some(gradient))
    }
}

fn storage_name(storage: &CpuStorage) -> &'static str {
    use candle_core::backend::BackendStorage as _;
    storage.dtype().as_str()
}

fn join<'a>(
    parameters: impl Iterator<Item = (&'a str, &'a Var)>,
) -> candle_core::Result<(Tensor, Places)> {
    let mut places = Places::new();
    let mut parts = Vec::new();
    let mut offset = 0;
    for (name, variable) in parameters {
        let part = variable.as_tensor().flatten_all()?;
        let length = part.elem_count();
        places.insert(name.to_owned(), (offset, length));
        offset += length;
        parts.push(part);
    }
    Ok((Tensor::cat(&parts, 0)?, places))
}

fn loss<'a>(
    parameters: impl Iterator<Item = (&'a str, &'a Var)>,
    (trained, goal): (Trained, Goal),
    batch: &PackedBatch,
    seed: StepSeed,
) -> Result<Loss, ModelError> {
    if batch.targets() == 0 {
        return Err(ModelError::NoTargets);
    }
    let (flat, places) = join(parameters)?;
    let op = LossOp {
        trained,
        goal,
        places,
        batch: batch.clone(),
        seed,
        gradient: Mutex::default(),
    };
    Ok(Loss {
        sum: flat.apply_op1(op)?,
        targets: batch.targets(),
    })
}

impl Llama {
    /// The summed loss of a batch as a differentiable function of LoRA's parameters. Dropout is on where its
    /// probability is not zero.
    ///
    /// # Errors
    /// Tokens outside the vocabulary, sequences that are too long, a batch without targets.
    pub fn forward_train(
        &self,
        batch: &PackedBatch,
        lora: &LoraParams,
        seed: StepSeed,
    ) -> Result<Loss, ModelError> {
        self.forward_lora(batch, Goal::Likelihood, lora, seed)
    }

    /// The summed loss of any goal.
    pub(super) fn forward_lora(
        &self,
        batch: &PackedBatch,
        goal: Goal,
        lora: &LoraParams,
        seed: StepSeed,
    ) -> Result<Loss, ModelError> {
        batch.check(self.config())?;
        let (plan, dropout) = (Arc::clone(lora.plan()), lora.config().dropout);
        let activation_bytes = self.activation_bytes;
        let trained = match &self.place {
            Place::Host(weights) => Trained::Lora {
                weights: Arc::clone(weights),
                plan,
                dropout,
                activation_bytes,
            },
            Place::Gpu(weights) => Trained::GpuLora {
                weights: Arc::clone(weights),
                plan,
                dropout,
                activation_bytes,
            },
        };
        loss(lora.iter(), (trained, goal), batch, seed)
    }
}

/// A model of which every weight is trained.
#[derive(Debug)]
pub struct TrainableLlama {
    config: LlamaConfig,
    variables: BTreeMap<String, Var>,
}

impl TrainableLlama {
    /// Starts from the weights of a base model.
    ///
    /// # Errors
    /// A tensor that can't be made.
    pub fn new(base: &BaseModel) -> Result<Self, ModelError> {
        let shapes = tensor_shapes(base.config());
        let mut variables = BTreeMap::new();
        for (name, values) in base.tensors() {
            let shape = shapes.get(name).cloned().unwrap_or_default();
            variables.insert(name.clone(), Var::from_slice(values, shape, &Device::Cpu)?);
        }
        Ok(Self {
            config: base.config().clone(),
            variables,
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Every weight by its Hugging Face name, in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.variables
            .iter()
            .map(|(name, variable)| (name.as_str(), variable))
    }

    /// The summed loss of a batch as a differentiable function of all weights.
    ///
    /// # Errors
    /// Tokens outside the vocabulary, sequences that are too long, a batch without targets.
    pub fn forward_train(&self, batch: &PackedBatch) -> Result<Loss, ModelError> {
        batch.check(&self.config)?;
        loss(
            self.iter(),
            (
                Trained::Full {
                    config: self.config.clone(),
                },
                Goal::Likelihood,
            ),
            batch,
            StepSeed::default(),
        )
    }

    /// The weights as they are now.
    ///
    /// # Errors
    /// A tensor that can't be read.
    pub fn to_base(&self) -> Result<BaseModel, ModelError> {
        let mut tensors = BTreeMap::new();
        for (name, variable) in &self.variables {
            tensors.insert(
                name.clone(),
                variable.as_tensor().flatten_all()?.to_vec1::<f32>()?,
            );
        }
        Ok(BaseModel::from_tensors(self.config.clone(), tensors)?)
    }

    /// The model as it is now, for scoring.
    ///
    /// # Errors
    /// A tensor that can't be read.
    pub fn to_llama(&self) -> Result<Llama, ModelError> {
        Ok(Llama::new(&self.to_base()?))
    }
}
