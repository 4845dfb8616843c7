//! The backward pass: from the gradient of the last hidden states to those of LoRA's factors.

use candle_core::{DType, Result, Tensor};

use super::attention::{HeadCut, Projected};
use super::maths::{activate, activate_backward, rms_norm_backward};
use super::pass::{AttentionInputs, GpuPass, Inputs, Tape};
use crate::lora::Module;

/// Gradients in f32 by their PEFT names.
pub(in crate::transformer) type NamedGradients = Vec<(String, Tensor)>;

impl GpuPass<'_> {
    /// The input gradient of a projection in f32; adds the gradients of its factors.
    fn project_backward(
        &self,
        at: (usize, Module),
        x: &Tensor,
        dy: &Tensor,
        gradients: &mut NamedGradients,
    ) -> Result<Tensor> {
        let (layer, module) = at;
        let linear = self.weights.layer(layer)?.linear(module);
        let dx = linear.weight.backward(dy)?.to_dtype(DType::F32)?;
        let Some(update) = self.update(at) else {
            return Ok(dx);
        };
        let x = self.dropped(at, x)?;
        let dinner = dy.matmul(&update.b)?.affine(update.scaling, 0.0)?;
        for (factor, gradient) in [
            ("lora_A", dinner.t()?.matmul(&x)?),
            ("lora_B", dy.t()?.matmul(&update.inner(&x)?)?),
        ] {
            let name = module.lora_name(layer, factor);
            gradients.push((name, gradient.to_dtype(DType::F32)?));
        }
        let through = self.dropped(at, &dinner.matmul(&update.a)?)?;
        dx.add(&through.to_dtype(DType::F32)?)
    }

    /// One layer, last to first: turns the gradient of its output into that of its input.
    fn layer_backward(
        &self,
        index: usize,
        tape: Tape,
        stream: &Tensor,
        gradients: &mut NamedGradients,
    ) -> Result<Tensor> {
        let layer = self.weights.layer(index)?;
        let normed = self.normed(&tape.input, &layer.input_norm)?;
        let post_normed = self.normed(&tape.middle, &layer.post_norm)?;
        let Inputs {
            attention,
            gate,
            up,
        } = match tape.projected {
            Some(inputs) => inputs,
            None => self.inputs(index, &normed, &post_normed)?,
        };

        let activation = self.weights.config.activation();
        let activated = activate(activation, &gate, &up)?;
        let norm = layer.feed_forward_output_norm.as_ref();
        let doutput = self.output_backward(stream, tape.raw_feed_forward.as_ref().zip(norm))?;
        let down = (index, Module::DownProj);
        let dactivated = self.project_backward(down, &activated, &doutput, gradients)?;
        // The widest values of a layer: none stays longer than it is needed.
        drop((activated, doutput));
        let (dgate, dup) = activate_backward(activation, (&gate, &up), &dactivated)?;
        drop((gate, up, dactivated));
        let through = [(Module::GateProj, dgate), (Module::UpProj, dup)];
        let dnormed = self.sum_backward(index, &post_normed, through, gradients)?;
        let dmiddle = rms_norm_backward(&tape.middle, &layer.post_norm, self.eps(), &dnormed)?;
        let stream = stream.add(&dmiddle)?;

        let norm = layer.attention_output_norm.as_ref();
        let doutput = self.output_backward(&stream, tape.raw_attention.as_ref().zip(norm))?;
        let output = (index, Module::OProj);
        let dattended = self.project_backward(output, &tape.attended, &doutput, gradients)?;
        drop(doutput);
        let forward = (&tape.attended, tape.log_sums.as_slice());
        let through = self.attention_backward(index, &attention, forward, &dattended)?;
        let dnormed = self.sum_backward(index, &normed, through, gradients)?;
        let dinput = rms_norm_backward(&tape.input, &layer.input_norm, self.eps(), &dnormed)?;
        stream.add(&dinput)
    }

    /// The gradient of what was normed, where there is a norm, before it joined the residual stream, given the
    /// stream's; as products read it.
    fn output_backward(&self, stream: &Tensor, norm: Option<(&Tensor, &Tensor)>) -> Result<Tensor> {
        let dtype = self.dtype();
        match norm {
            Some((raw, weight)) => {
                rms_norm_backward(raw, weight, self.eps(), stream)?.to_dtype(dtype)
            }
            None => stream.to_dtype(dtype),
        }
    }

    /// The summed input gradient of projections that read the same input.
    fn sum_backward<const N: usize>(
        &self,
        index: usize,
        x: &Tensor,
        outputs: [(Module, Tensor); N],
        gradients: &mut NamedGradients,
    ) -> Result<Tensor> {
        let mut sum = x.zeros_like()?.to_dtype(DType::F32)?;
        for (module, dy) in outputs {
            sum = sum.add(&self.project_backward((index, module), x, &dy, gradients)?)?;
        }
        Ok(sum)
    }

    /// Through attention, rotation and head norms of one layer: the gradients of what its projections made.
    fn attention_backward(
        &self,
        index: usize,
        inputs: &AttentionInputs,
        (attended, log_sums): (&Tensor, &[Vec<Tensor>]),
        dattended: &Tensor,
    ) -> Result<[(Module, Tensor); 3]> {
        let layer = self.weights.layer(index)?;
        let heads = HeadCut::new(&self.weights.config, layer.window);
        let dattended = dattended.to_dtype(self.dtype())?;
        let (mut dqueries, mut dkeys, mut dvalues) = (Vec::new(), Vec::new(), Vec::new());
        for ((start, count), log_sums) in self.parts().into_iter().zip(log_sums) {
            let [query, key, value] = &inputs.part(start, count)?;
            let out = attended.narrow(0, start, count)?;
            let dout = dattended.narrow(0, start, count)?;
            let inputs = Projected { query, key, value };
            let [dquery, dkey, dvalue] =
                heads.attend_backward(inputs, (&out, log_sums.as_slice()), &dout)?;
            dqueries.push(dquery);
            dkeys.push(dkey);
            dvalues.push(dvalue);
        }
        let dquery = self.unrotated(layer, &Tensor::cat(&dqueries, 0)?)?;
        let dkey = self.unrotated(layer, &Tensor::cat(&dkeys, 0)?)?;
        let (raw_query, raw_key) = (inputs.raw_query.as_ref(), inputs.raw_key.as_ref());
        Ok([
            (
                Module::QProj,
                self.unnormed(dquery, raw_query.zip(layer.query_norm.as_ref()))?,
            ),
            (
                Module::KProj,
                self.unnormed(dkey, raw_key.zip(layer.key_norm.as_ref()))?,
            ),
            (Module::VProj, Tensor::cat(&dvalues, 0)?),
        ])
    }

    /// Through the norm of each head, where there is one.
    fn unnormed(&self, dy: Tensor, norm: Option<(&Tensor, &Tensor)>) -> Result<Tensor> {
        let Some((raw, weight)) = norm else {
            return Ok(dy);
        };
        let (rows, width) = dy.dims2()?;
        let dim = self.weights.config.head_dim;
        let heads = |x: &Tensor| x.reshape((rows * width / dim, dim));
        let draw = rms_norm_backward(&heads(raw)?, weight, self.eps(), &heads(&dy)?)?;
        draw.reshape((rows, width))?.to_dtype(self.dtype())
    }

    /// All layers, given the gradient of the last hidden states in f32.
    pub(super) fn run_backward(
        &self,
        mut tapes: Vec<Tape>,
        mut stream: Tensor,
    ) -> Result<NamedGradients> {
        let mut gradients = NamedGradients::new();
        // Each tape goes when its layer is done.
        while let Some(tape) = tapes.pop() {
            stream = self.layer_backward(tapes.len(), tape, &stream, &mut gradients)?;
        }
        Ok(gradients)
    }
}
