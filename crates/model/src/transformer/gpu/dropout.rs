//! Dropout of LoRA's inputs, and of their gradients, with the mask that the CPU's passes draw.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::lora::Module;
use crate::transformer::forward::Dropout;

/// The dropout of one module's input. A pass and its way back draw the same.
pub(super) struct DropOut {
    pub dropout: Dropout,
    pub layer: usize,
    pub module: Module,
}

impl DropOut {
    /// `x` with elements zeroed or scaled.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1_no_bwd(self)
    }
}

impl CustomOp1 for DropOut {
    fn name(&self) -> &'static str {
        "drop-out"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("dropout on the CPU takes contiguous f32");
        };
        let mut values = values.get(start..end).unwrap_or_default().to_vec();
        self.dropout.apply(self.layer, self.module, &mut values);
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        cuda::drop_out(self, storage, layout)
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    #![expect(unsafe_code, reason = "a kernel is launched with pointers")]

    use std::sync::OnceLock;

    use candle_core::backend::BackendStorage as _;
    use candle_core::cuda_backend::WrapErr as _;
    use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg as _};
    use candle_core::cuda_backend::cudarc::nvrtc::compile_ptx;
    use candle_core::{CudaStorage, Layout, Result, Shape};
    use half::bf16;

    use super::DropOut;

    const SOURCE: &str = include_str!("drop_out.cu");
    /// For any architecture: the driver makes the machine's code of it.
    static PTX: OnceLock<String> = OnceLock::new();

    fn ptx() -> Result<&'static str> {
        if let Some(ptx) = PTX.get() {
            return Ok(ptx);
        }
        let ptx = compile_ptx(SOURCE).w()?.to_src();
        Ok(PTX.get_or_init(|| ptx))
    }

    pub(super) fn drop_out(
        op: &DropOut,
        storage: &CudaStorage,
        layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("dropout on a GPU takes contiguous values");
        };
        let device = storage.device().clone();
        let x = storage.as_cuda_slice::<bf16>()?.slice(start..end);
        let function = device.get_or_load_custom_func("drop_out", "graftwork-drop-out", ptx()?)?;
        let elements = end - start;
        // SAFETY: the kernel writes every element before anything reads it.
        let y = unsafe { device.alloc::<bf16>(elements)? };
        let count = elements as u64;
        let key = op.dropout.stream(op.layer, op.module).key();
        let (threshold, kept) = (op.dropout.threshold(), op.dropout.factor());
        let mut launch = function.builder();
        launch.arg(&x).arg(&y).arg(&count);
        launch.arg(&key).arg(&threshold).arg(&kept);
        // SAFETY: the arguments are those of the kernel's signature, and both buffers have `count` elements.
        unsafe { launch.launch(LaunchConfig::for_num_elems(elements as u32)) }.w()?;
        Ok((
            CudaStorage::wrap_cuda_slice(y, device),
            layout.shape().clone(),
        ))
    }
}
