//! Low-rank adapters (Hu et al. 2021): which modules, how large, and the trainable parameters.
//!
//! An adapted linear layer computes `y = x Wᵀ + s · dropout(x) Aᵀ Bᵀ` with `A: [rank, in]`,
//! `B: [out, rank]` and `s = alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA (Kalajdzievski 2023).

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use candle_core::{Device, Tensor, Var};
use rayon::prelude::*;

use crate::config::LlamaConfig;
pub use crate::factor::FirstFactors;
use crate::factor::{FactorPanels, FactorValues};
use crate::kernel::HalfWeight;
use crate::peft::{Adapter, AdapterError, AdapterTensor};
use crate::random::Stream;
use crate::targets::{LoraPlan, Targets, Update};
use crate::transformer::Accelerator;
use crate::transformer::gpu::GpuUpdates;

/// The linear layers of a transformer layer, all of which can carry an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Module {
    /// Queries.
    QProj,
    /// Keys.
    KProj,
    /// Values.
    VProj,
    /// Attention's output.
    OProj,
    /// The feed-forward layer's gate.
    GateProj,
    /// The feed-forward layer's input.
    UpProj,
    /// The feed-forward layer's output.
    DownProj,
}

impl Module {
    /// All of them, in the order in which a layer uses them.
    pub const ALL: [Self; 7] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// Those that read the same input, in the order of [`Self::ALL`].
    pub const GROUPS: [&'static [Self]; 4] = [
        &[Self::QProj, Self::KProj, Self::VProj],
        &[Self::OProj],
        &[Self::GateProj, Self::UpProj],
        &[Self::DownProj],
    ];

    /// The name that `target_modules` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }

    /// The module of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|module| module.name() == name)
    }

    /// The module's path inside a layer.
    pub fn path(self) -> &'static str {
        match self {
            Self::QProj => "self_attn.q_proj",
            Self::KProj => "self_attn.k_proj",
            Self::VProj => "self_attn.v_proj",
            Self::OProj => "self_attn.o_proj",
            Self::GateProj => "mlp.gate_proj",
            Self::UpProj => "mlp.up_proj",
            Self::DownProj => "mlp.down_proj",
        }
    }

    /// The name of its weight within a layer.
    pub fn weight_name(self) -> String {
        format!("{}.weight", self.path())
    }

    /// The name of its bias within a layer, where it has one.
    pub fn bias_name(self) -> String {
        format!("{}.bias", self.path())
    }

    /// `(out, in)` of the module's weight.
    pub fn shape(self, config: &LlamaConfig) -> (usize, usize) {
        let hidden = config.hidden_size;
        match self {
            Self::QProj => (config.query_width(), hidden),
            Self::KProj | Self::VProj => (config.key_width(), hidden),
            Self::OProj => (hidden, config.query_width()),
            Self::GateProj | Self::UpProj => (config.intermediate_size, hidden),
            Self::DownProj => (hidden, config.intermediate_size),
        }
    }

    /// The layer and module of a factor by its name in PEFT's files.
    pub fn of_lora_name(name: &str) -> Option<(usize, Self)> {
        let (layer, rest) = name
            .strip_prefix("base_model.model.model.layers.")?
            .split_once('.')?;
        let path = rest
            .strip_suffix(".lora_A.weight")
            .or_else(|| rest.strip_suffix(".lora_B.weight"))?;
        let module = Self::ALL.into_iter().find(|module| module.path() == path)?;
        Some((layer.parse().ok()?, module))
    }

    /// The name of one of its factors, `lora_A` or `lora_B`, in PEFT's files.
    pub fn lora_name(self, layer: usize, factor: &str) -> String {
        format!(
            "base_model.model.model.layers.{layer}.{}.{factor}.weight",
            self.path()
        )
    }
}

/// What an adapter is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Inner dimension of an update; from 1 to the hidden size.
    pub rank: usize,
    /// Numerator of the scaling.
    pub alpha: f64,
    /// Probability with which an element of the update's input is dropped in training.
    pub dropout: f64,
    /// The modules that are adapted, and where rank and alpha are others.
    pub targets: Targets,
    /// Whether to scale by `alpha / sqrt(rank)`.
    pub use_rslora: bool,
}

impl LoraConfig {
    /// The factor of an update of this rank and alpha.
    pub(crate) fn scaling(&self, rank: usize, alpha: f64) -> f32 {
        let rank = rank as f64;
        let divisor = if self.use_rslora { rank.sqrt() } else { rank };
        (alpha / divisor) as f32
    }

    /// The updates of a model's modules, ranges checked.
    ///
    /// # Errors
    /// The field and its limit, or a target that the model does not have.
    pub fn plan(&self, config: &LlamaConfig) -> Result<LoraPlan, AdapterError> {
        self.check_size(self.rank, self.alpha, config)?;
        let dropout = self.dropout;
        check(
            "lora_dropout",
            dropout.to_string(),
            (0.0..1.0).contains(&dropout),
            "at least 0 and below 1".to_owned(),
        )?;
        LoraPlan::new(self, config)
    }

    /// Whether a rank and an alpha, the adapter's or a pattern's, are in range.
    pub(crate) fn check_size(
        &self,
        rank: usize,
        alpha: f64,
        config: &LlamaConfig,
    ) -> Result<(), AdapterError> {
        let limit = config.hidden_size;
        check(
            "r",
            rank.to_string(),
            (1..=limit).contains(&rank),
            format!("from 1 to the hidden size {limit}"),
        )?;
        // Weights are multiplied with it in f32.
        let scaling = self.scaling(rank, alpha);
        check(
            "lora_alpha",
            alpha.to_string(),
            alpha > 0.0 && scaling.is_finite() && scaling > 0.0,
            "a positive number with a scaling that f32 holds".to_owned(),
        )
    }
}

fn check(field: &'static str, value: String, ok: bool, range: String) -> Result<(), AdapterError> {
    if ok {
        return Ok(());
    }
    Err(AdapterError::OutOfRange {
        field,
        value,
        range,
    })
}

/// The trainable parameters of an adapter, in the order of their PEFT names.
#[derive(Debug, Clone)]
pub struct LoraParams {
    config: LoraConfig,
    plan: Arc<LoraPlan>,
    vars: BTreeMap<String, Var>,
}

impl LoraParams {
    /// A fresh adapter, initialised as PEFT does: `A` Kaiming-uniform with `a = sqrt(5)`, that is
    /// uniform within `1 / sqrt(in)`; `B` zero. The same seed gives the same bits.
    ///
    /// # Errors
    /// The configuration does not fit the model.
    pub fn init(lora: &LoraConfig, config: &LlamaConfig, seed: u64) -> Result<Self, AdapterError> {
        let plan = lora.plan(config)?;
        let tensors =
            plan.tensor_shapes(config)
                .into_iter()
                .enumerate()
                .map(|(index, (name, shape))| {
                    let elements = shape.iter().product::<usize>();
                    let data = if name.contains("lora_A") {
                        let [_, inputs] = shape;
                        let bound = 1.0 / (inputs as f64).sqrt();
                        let stream = Stream::new(seed, &[index as u64]);
                        (0..elements as u64)
                            .map(|i| ((2.0 * stream.uniform(i) - 1.0) * bound) as f32)
                            .collect()
                    } else {
                        vec![0.0; elements]
                    };
                    (name, AdapterTensor { shape, data })
                });
        Self::from_tensors(lora.clone(), plan, tensors)
    }

    /// The parameters of an adapter that exists, to train on.
    ///
    /// # Errors
    /// The adapter does not fit the model.
    pub fn from_adapter(adapter: &Adapter, config: &LlamaConfig) -> Result<Self, AdapterError> {
        adapter.verify(config)?;
        let tensors = adapter
            .tensors
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.clone()));
        let plan = adapter.config.plan(config)?;
        Self::from_tensors(adapter.config.clone(), plan, tensors)
    }

    fn from_tensors(
        config: LoraConfig,
        plan: LoraPlan,
        tensors: impl Iterator<Item = (String, AdapterTensor)>,
    ) -> Result<Self, AdapterError> {
        let vars = tensors
            .map(|(name, tensor)| {
                let [rows, columns] = tensor.shape;
                Ok((
                    name,
                    Var::from_vec(tensor.data, (rows, columns), &Device::Cpu)?,
                ))
            })
            .collect::<Result<_, candle_core::Error>>()?;
        Ok(Self {
            config,
            plan: Arc::new(plan),
            vars,
        })
    }

    /// Rank, scaling and modules.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The updates of the model that they were made for.
    pub(crate) fn plan(&self) -> &Arc<LoraPlan> {
        &self.plan
    }

    /// The parameters in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// Replaces a parameter's values, row-major.
    ///
    /// # Errors
    /// No parameter has this name, or the number of values differs.
    pub fn set(&self, name: &str, values: &[f32]) -> Result<(), AdapterError> {
        let var = self
            .vars
            .get(name)
            .ok_or_else(|| AdapterError::MissingTensor(name.to_owned()))?;
        var.set(&Tensor::from_slice(values, var.shape(), &Device::Cpu)?)?;
        Ok(())
    }

    /// A copy of the current values as a PEFT adapter.
    ///
    /// # Errors
    /// A parameter's memory can't be read.
    pub fn to_adapter(&self, base_model_name_or_path: &str) -> Result<Adapter, AdapterError> {
        let tensors = self
            .vars
            .iter()
            .map(|(name, var)| {
                let (rows, columns) = var.dims2()?;
                let data = var.flatten_all()?.to_vec1()?;
                let shape = [rows, columns];
                Ok((name.clone(), AdapterTensor { shape, data }))
            })
            .collect::<Result<_, candle_core::Error>>()?;
        Ok(Adapter {
            config: self.config.clone(),
            base_model_name_or_path: base_model_name_or_path.to_owned(),
            tensors,
        })
    }
}

/// One module's update, packed.
#[derive(Debug)]
pub(crate) struct LoraPair {
    /// `[rank, in]`
    pub a: FactorPanels,
    /// `[out, rank]`
    pub b: FactorPanels,
    /// What the update is multiplied with.
    pub scaling: f32,
}

/// All updates of a model, packed.
#[derive(Debug)]
pub(crate) struct LoraLayers {
    layers: Vec<LayerUpdates>,
}

#[derive(Debug)]
struct LayerUpdates {
    pairs: [Option<LoraPair>; Module::ALL.len()],
    /// The `A` of each group's modules in one piece, which the pairs share.
    stacks: [Option<FactorPanels>; Module::GROUPS.len()],
}

impl LayerUpdates {
    fn pack<'a>(
        plan: &LoraPlan,
        config: &LlamaConfig,
        layer: usize,
        (tensor, first): (&dyn Fn(&str) -> FactorValues<'a>, FirstFactors),
    ) -> Self {
        let mut pairs: [Option<LoraPair>; Module::ALL.len()] = Default::default();
        let stacks = Module::GROUPS.map(|group| {
            let adapted: Vec<(Module, Update)> = group
                .iter()
                .filter_map(|module| Some((*module, plan.update(layer, *module)?)))
                .collect();
            let (_, inputs) = adapted.first()?.0.shape(config);
            let factors: Vec<(FactorValues<'_>, usize)> = adapted
                .iter()
                .map(|(module, update)| (tensor(&module.lora_name(layer, "lora_A")), update.rank))
                .collect();
            let eight = match first {
                FirstFactors::AsStored => None,
                FirstFactors::EightBits => FactorPanels::stack_in_eight_bits(&factors, inputs),
            };
            let (stack, parts) = eight.unwrap_or_else(|| {
                let (stack, parts) = FactorPanels::stack(&factors, inputs);
                (stack, parts.into_iter().map(|part| (part, 1.0)).collect())
            });
            for ((module, update), (a, scale)) in adapted.iter().zip(parts) {
                let (outputs, _) = module.shape(config);
                let b = tensor(&module.lora_name(layer, "lora_B"));
                if let Some(pair) = pairs.get_mut(*module as usize) {
                    *pair = Some(LoraPair {
                        a,
                        b: FactorPanels::pack(b, outputs, update.rank),
                        scaling: update.scaling * scale,
                    });
                }
            }
            Some(stack)
        });
        Self { pairs, stacks }
    }

    /// All factors in the order in which a pass reads them, each stack with its parts.
    fn factors(&mut self) -> Vec<(&mut FactorPanels, Vec<&mut FactorPanels>)> {
        let mut factors = Vec::with_capacity(self.stacks.len() + self.pairs.len());
        let mut pairs = self.pairs.iter_mut();
        for (group, stack) in Module::GROUPS.iter().zip(&mut self.stacks) {
            let pairs = pairs.by_ref().take(group.len()).flatten();
            let (parts, second): (Vec<_>, Vec<_>) =
                pairs.map(|pair| (&mut pair.a, &mut pair.b)).unzip();
            factors.extend(stack.as_mut().map(|stack| (stack, parts)));
            factors.extend(second.into_iter().map(|b| (b, Vec::new())));
        }
        factors
    }
}

impl LoraLayers {
    /// Packs the factors that `tensor` finds by their PEFT names, as f32: for training, which changes them.
    pub fn pack<'a>(
        plan: &LoraPlan,
        config: &LlamaConfig,
        tensor: &dyn Fn(&str) -> &'a [f32],
    ) -> Self {
        let values = |name: &str| FactorValues::Single(tensor(name));
        Self {
            layers: (0..config.num_hidden_layers)
                .map(|layer| {
                    LayerUpdates::pack(plan, config, layer, (&values, FirstFactors::AsStored))
                })
                .collect(),
        }
    }

    /// Packs the factors for serving, layers beside each other, into one piece of memory.
    pub fn pack_for_serving<'a>(
        plan: &LoraPlan,
        config: &LlamaConfig,
        (tensor, first): (&(dyn Fn(&str) -> FactorValues<'a> + Sync), FirstFactors),
    ) -> Self {
        let layers = (0..config.num_hidden_layers).into_par_iter();
        let layers = layers.map(|layer| LayerUpdates::pack(plan, config, layer, (&tensor, first)));
        let mut layers: Vec<LayerUpdates> = layers.collect();
        FactorPanels::gather(layers.iter_mut().flat_map(LayerUpdates::factors).collect());
        Self { layers }
    }

    /// The update of a module, if it has one.
    pub fn pair(&self, layer: usize, module: Module) -> Option<&LoraPair> {
        self.layers.get(layer)?.pairs.get(module as usize)?.as_ref()
    }

    /// The `A` of all modules of `Module::GROUPS[group]` that have an update, each at a column of its own:
    /// see [`FactorPanels::stack`].
    pub fn stack(&self, layer: usize, group: usize) -> Option<&FactorPanels> {
        self.layers.get(layer)?.stacks.get(group)?.as_ref()
    }
}

/// An adapter packed for the forward pass. Share it in an `Arc`; the last user's end frees it.
#[derive(Debug)]
pub struct LoadedAdapter {
    digest: Arc<str>,
    model: LlamaConfig,
    layers: LoraLayers,
    /// The same on a GPU, once a pass there has asked for it.
    on_gpu: OnceLock<GpuUpdates>,
}

impl LoadedAdapter {
    /// Verifies an adapter against a model and packs it. What bf16 or f16 has to the bit takes half of the memory.
    ///
    /// # Errors
    /// As [`Adapter::verify`].
    pub fn new(adapter: &Adapter, config: &LlamaConfig) -> Result<Self, AdapterError> {
        Self::with_first_factors(adapter, config, FirstFactors::AsStored)
    }

    /// The same, with its first factors as a model [wants them](crate::transformer::Llama::first_factors).
    ///
    /// # Errors
    /// As [`Adapter::verify`].
    pub fn with_first_factors(
        adapter: &Adapter,
        config: &LlamaConfig,
        first: FirstFactors,
    ) -> Result<Self, AdapterError> {
        adapter.verify(config)?;
        let tensors = adapter.tensors.par_iter();
        let halves: BTreeMap<&str, HalfWeight> = tensors
            .filter_map(|(name, tensor)| Some((&**name, HalfWeight::exactly(&tensor.data)?)))
            .collect();
        let values = |name: &str| match (halves.get(name), adapter.tensors.get(name)) {
            (Some(weight), _) => FactorValues::Half(weight),
            (None, tensor) => {
                FactorValues::Single(tensor.map_or(&[][..], |tensor| tensor.data.as_slice()))
            }
        };
        let plan = adapter.config.plan(config)?;
        Ok(Self::pack(
            &plan,
            config,
            &adapter.digest(),
            (&values, first),
        ))
    }

    /// Packs what was verified.
    pub(crate) fn pack<'a>(
        plan: &LoraPlan,
        config: &LlamaConfig,
        digest: &str,
        values: (&(dyn Fn(&str) -> FactorValues<'a> + Sync), FirstFactors),
    ) -> Self {
        Self {
            digest: digest.into(),
            model: config.clone(),
            layers: LoraLayers::pack_for_serving(plan, config, values),
            on_gpu: OnceLock::new(),
        }
    }

    /// The adapter's content digest.
    pub fn digest(&self) -> &Arc<str> {
        &self.digest
    }

    /// Bytes of packed weights.
    pub fn bytes(&self) -> usize {
        let pairs = self.layers.layers.iter().flat_map(|layer| &layer.pairs);
        pairs
            .flatten()
            .map(|pair| pair.a.bytes() + pair.b.bytes())
            .sum()
    }

    /// Whether it was packed for a model of this shape.
    pub(crate) fn fits(&self, config: &LlamaConfig) -> bool {
        self.model == *config
    }

    /// The packed updates.
    pub(crate) fn layers(&self) -> &LoraLayers {
        &self.layers
    }

    /// The updates in a GPU's memory, where they stay as long as the adapter. A process has one GPU.
    ///
    /// # Errors
    /// Its memory is full.
    pub(crate) fn on_gpu(&self, accelerator: &Accelerator) -> candle_core::Result<&GpuUpdates> {
        if let Some(updates) = self.on_gpu.get() {
            return Ok(updates);
        }
        let updates = GpuUpdates::of_packed(&self.layers, &self.model, accelerator)?;
        Ok(self.on_gpu.get_or_init(|| updates))
    }

    /// Tells loaded adapters apart, for grouping rows; no part of any result.
    pub(crate) fn address(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }
}
