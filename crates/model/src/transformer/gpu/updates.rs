//! An adapter's low-rank updates in a device's memory.

use candle_core::{Result, Tensor};

use super::accelerator::Accelerator;
use crate::config::LlamaConfig;
use crate::factor::FactorPanels;
use crate::lora::{LoraLayers, Module};
use crate::targets::LoraPlan;

/// One module's update, in the type of products.
#[derive(Debug)]
pub(super) struct GpuUpdate {
    /// `[rank, in]`
    pub a: Tensor,
    /// `[out, rank]`
    pub b: Tensor,
    /// What the update is multiplied with.
    pub scaling: f64,
}

impl GpuUpdate {
    /// `s B A x` of every row.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.inner(x)?.matmul(&self.b.t()?)
    }

    /// `s A x` of every row.
    pub fn inner(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.a.t()?)?.affine(self.scaling, 0.0)
    }
}

/// The updates of one layer.
type LayerUpdates = [Option<GpuUpdate>; Module::ALL.len()];

/// All updates of an adapter.
#[derive(Debug)]
pub(crate) struct GpuUpdates {
    layers: Vec<LayerUpdates>,
}

impl GpuUpdates {
    /// Uploads the factors that `tensor` finds by their PEFT names.
    pub fn of_tensors<'a>(
        plan: &LoraPlan,
        config: &LlamaConfig,
        on: &Accelerator,
        tensor: &dyn Fn(&str) -> &'a [f32],
    ) -> Result<Self> {
        Self::build(config, |layer, module| {
            let Some(update) = plan.update(layer, module) else {
                return Ok(None);
            };
            let (outputs, inputs) = module.shape(config);
            let factor = |name| tensor(&module.lora_name(layer, name)).to_vec();
            Ok(Some(GpuUpdate {
                a: on.upload(factor("lora_A"), (update.rank, inputs))?,
                b: on.upload(factor("lora_B"), (outputs, update.rank))?,
                scaling: f64::from(update.scaling),
            }))
        })
    }

    /// Uploads an adapter that is packed for the CPU.
    pub fn of_packed(layers: &LoraLayers, config: &LlamaConfig, on: &Accelerator) -> Result<Self> {
        Self::build(config, |layer, module| {
            let Some(pair) = layers.pair(layer, module) else {
                return Ok(None);
            };
            let factor = |panels: &FactorPanels| {
                on.upload(panels.row_major(), (panels.outputs(), panels.inputs()))
            };
            Ok(Some(GpuUpdate {
                a: factor(&pair.a)?,
                b: factor(&pair.b)?,
                scaling: f64::from(pair.scaling),
            }))
        })
    }

    fn build(
        config: &LlamaConfig,
        update: impl Fn(usize, Module) -> Result<Option<GpuUpdate>>,
    ) -> Result<Self> {
        let layer = |index| -> Result<LayerUpdates> {
            let mut updates = LayerUpdates::default();
            for (slot, module) in updates.iter_mut().zip(Module::ALL) {
                *slot = update(index, module)?;
            }
            Ok(updates)
        };
        let layers = (0..config.num_hidden_layers).map(layer);
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
        })
    }

    /// The update of a module, if it has one.
    pub(super) fn get(&self, layer: usize, module: Module) -> Option<&GpuUpdate> {
        self.layers.get(layer)?.get(module as usize)?.as_ref()
    }
}
