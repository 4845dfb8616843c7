//! The device that computes.

use std::path::Path;

use candle_core::{DType, Device, Result, Shape, Tensor};

/// There where the NVIDIA driver gives a container a GPU.
const GPU_FILE: &str = "/dev/nvidiactl";

/// What a process computes on.
#[derive(Debug)]
pub struct Choice {
    /// None: the CPU.
    pub accelerator: Option<Accelerator>,
    /// What was chosen and why, for a log.
    pub reason: String,
    /// Whether whoever chose image and compute profile wanted something else.
    pub is_unwanted: bool,
}

/// A binary that was built for GPUs finds none: what it would take hours for on a CPU is not begun.
#[derive(Debug, thiserror::Error)]
#[error(
    "this image is built for GPUs, but none can be used ({0}): give the pod a GPU whose driver the image can use, or \
     name an image for CPUs in the compute profile"
)]
pub struct NoGpu(candle_core::Error);

/// A device that computes whole passes.
#[derive(Debug, Clone)]
pub struct Accelerator {
    device: Device,
    /// Of weights and products.
    dtype: DType,
}

impl Accelerator {
    /// The GPU, where this binary was built for GPUs, and else the CPU.
    ///
    /// # Errors
    /// It was built for GPUs, and none can be used.
    pub fn choose() -> std::result::Result<Choice, NoGpu> {
        choice(Self::first(), Path::new(GPU_FILE).exists())
    }

    /// The first GPU. None where this binary was built without kernels for GPUs (the feature `cuda`).
    ///
    /// # Errors
    /// It was built for GPUs, and none can be used.
    pub fn first() -> Result<Option<Self>> {
        if !candle_core::utils::cuda_is_available() {
            return Ok(None);
        }
        // One stream for all threads: with one for each, a thread would read what another is still writing.
        Ok(Some(Self {
            device: Device::new_cuda_with_stream(0)?,
            dtype: DType::BF16,
        }))
    }

    /// The CPU by a GPU's operations, in f32. For tests: the CPU's own passes are many times faster.
    pub fn imitated() -> Self {
        Self {
            device: Device::Cpu,
            dtype: DType::F32,
        }
    }

    /// What it calls itself.
    pub fn name(&self) -> String {
        asked(&self.device).map_or_else(|| "the CPU".to_owned(), |(name, _)| name)
    }

    /// Bytes of its memory that nothing holds. None where nobody counts them.
    pub fn free_bytes(&self) -> Option<usize> {
        asked(&self.device).map(|(_, free)| free)
    }

    /// Where tensors live.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// Of weights and products.
    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Values as a tensor for products.
    pub(super) fn upload(&self, values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
        self.upload_f32(values, shape)?.to_dtype(self.dtype)
    }

    /// Values as they are.
    pub(super) fn upload_f32(&self, values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape: Shape = shape.into();
        Tensor::from_vec(values, shape, &self.device)
    }

    /// Row numbers or tokens.
    pub(super) fn ids(&self, ids: Vec<u32>) -> Result<Tensor> {
        let count = ids.len();
        Tensor::from_vec(ids, count, &self.device)
    }
}

fn choice(
    first: Result<Option<Accelerator>>,
    is_gpu_here: bool,
) -> std::result::Result<Choice, NoGpu> {
    let (accelerator, reason, is_unwanted) = match first.map_err(NoGpu)? {
        Some(gpu) => {
            let reason = format!("computes on {}", gpu.name());
            (Some(gpu), reason, false)
        }
        None if is_gpu_here => {
            let reason = "a GPU is here, but this image is not built for GPUs: computes on the CPU. Name an image \
                          built for CUDA in the compute profile, or leave its GPUs out";
            (None, reason.to_owned(), true)
        }
        None => (None, "computes on the CPU".to_owned(), false),
    };
    Ok(Choice {
        accelerator,
        reason,
        is_unwanted,
    })
}

/// A GPU's name, and the free bytes of its memory.
#[cfg(feature = "cuda")]
fn asked(device: &Device) -> Option<(String, usize)> {
    let Device::Cuda(device) = device else {
        return None;
    };
    let stream = device.cuda_stream();
    let context = stream.context();
    let (free, _) = context.mem_get_info().ok()?;
    Some((context.name().ok()?, free))
}

#[cfg(not(feature = "cuda"))]
fn asked(_: &Device) -> Option<(String, usize)> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_nobody_uses_is_said() {
        let here = choice(Ok(None), true).unwrap();
        assert!(here.is_unwanted && here.accelerator.is_none());
        assert!(here.reason.contains("image"), "{}", here.reason);
        let unusable = choice(Err(candle_core::Error::NotCompiledWithCudaSupport), false);
        let error = unusable.unwrap_err().to_string();
        assert!(
            error.contains("cuda") && error.contains("compute profile"),
            "{error}"
        );
    }

    #[test]
    fn what_was_asked_for_is_no_cause_for_a_warning() {
        let cpu = choice(Ok(None), false).unwrap();
        assert!(!cpu.is_unwanted && cpu.accelerator.is_none());
        let gpu = choice(Ok(Some(Accelerator::imitated())), true).unwrap();
        assert!(!gpu.is_unwanted && gpu.accelerator.is_some());
    }
}
