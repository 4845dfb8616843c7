//! The backward pass: from the gradient of the last hidden states to those of the trained parameters.

use std::borrow::Cow;
use std::collections::BTreeMap;

use rayon::prelude::*;

use super::attention::{
    Attended, ProjectionGradients, Projections, attend_segments_backward, rotate_rows,
};
use super::forward::{Gated, Heads, LayerTape, Pass, Projected, activate, rms_norm};
use crate::base::{EMBEDDING, KEY_NORM, NormNames, QUERY_NORM, layer_tensor_name};
use crate::config::{Activation, LlamaConfig};
use crate::kernel::{self, Epilogue, accumulate_outer, product_parallel};
use crate::lora::Module;

/// Rows of one partial sum of a norm's or bias' gradient: fixed, so that the bits do not depend on threads.
const ROWS: usize = 64;

/// The gradients of all trained parameters in one vector, by offset of each name.
pub(super) struct Gradients<'a> {
    pub flat: Vec<f32>,
    /// Offset and length by name: PEFT's for LoRA, Hugging Face's for whole weights.
    pub places: &'a BTreeMap<String, (usize, usize)>,
    /// Whether the base model's own weights are trained.
    pub full: bool,
}

impl Gradients<'_> {
    pub fn slice(&mut self, name: &str) -> Option<&mut [f32]> {
        let (offset, length) = *self.places.get(name)?;
        self.flat.get_mut(offset..offset + length)
    }

    /// Adds `gᵀ x` to the gradient of `name`.
    pub fn outer(&mut self, name: &str, g: (&[f32], usize), x: (&[f32], usize)) {
        if let Some(sums) = self.slice(name) {
            let outputs = outputs_per_task(g.1);
            sums.par_chunks_mut(outputs * x.1)
                .enumerate()
                .for_each(|(task, sums)| {
                    let first = task * outputs;
                    accumulate_outer(g, x, first..first + sums.len() / x.1, sums);
                });
        }
    }

    /// Adds the column sums of `dy` to the gradient of a bias, where there is one of this name.
    pub fn bias(&mut self, name: &str, dy: &[f32]) {
        let Some(sums) = self.slice(name) else {
            return;
        };
        let width = sums.len();
        let parts: Vec<Vec<f32>> = dy
            .par_chunks(ROWS * width)
            .map(|rows| {
                let mut part = vec![0.0; width];
                rows.chunks_exact(width)
                    .for_each(|row| kernel::add(row, &mut part));
                part
            })
            .collect();
        parts.iter().for_each(|part| kernel::add(part, sums));
    }

    /// Adds the gradients of a row-wise norm: its input's to `dx`, its weight's to `name`.
    pub fn norm(
        &mut self,
        name: &str,
        (x, w, eps): (&[f32], &[f32], f32),
        dy: &[f32],
        dx: &mut [f32],
    ) {
        let size = ROWS * w.len();
        let dw = if self.full { self.slice(name) } else { None };
        let parts: Vec<Vec<f32>> = x
            .par_chunks(size)
            .zip(dy.par_chunks(size))
            .zip(dx.par_chunks_mut(size))
            .map(|((x, dy), dx)| {
                let mut part = vec![0.0; if dw.is_some() { w.len() } else { 0 }];
                kernel::rms_norm_backward(x, w, eps, dy, dx, &mut part);
                part
            })
            .collect();
        if let Some(dw) = dw {
            parts.iter().for_each(|part| kernel::add(part, dw));
        }
    }

    /// The gradient of what was normed before it joined the residual stream, given the stream's; the stream's
    /// own where the layer has no such norm.
    fn output_norm<'s>(
        &mut self,
        (layer, name): (usize, Option<&str>),
        raw: (&[f32], &[f32], f32),
        stream: &'s [f32],
    ) -> Cow<'s, [f32]> {
        let Some(name) = name else {
            return stream.into();
        };
        let mut draw = vec![0.0; stream.len()];
        self.norm(&layer_tensor_name(layer, name), raw, stream, &mut draw);
        draw.into()
    }
}

/// Outputs of one task; a multiple of what a tile holds.
fn outputs_per_task(outputs: usize) -> usize {
    outputs
        .div_ceil(4 * rayon::current_num_threads())
        .next_multiple_of(8)
}

impl Pass<'_> {
    /// Adds the input gradient of a projection to `dx` and the gradients of its parameters.
    fn project_backward(
        &self,
        (layer, module): (usize, Module),
        (x, inner): (&[f32], &[f32]),
        dy: &[f32],
        dx: &mut [f32],
        gradients: &mut Gradients<'_>,
    ) {
        let Some(linear) = self
            .weights
            .layers
            .get(layer)
            .map(|weights| weights.linear(module))
        else {
            return;
        };
        linear.backward(dy, dx, Epilogue::Add);
        let (outputs, inputs) = (linear.outputs(), linear.inputs());
        if gradients.full {
            let name = layer_tensor_name(layer, &module.weight_name());
            gradients.outer(&name, (dy, outputs), (x, inputs));
            gradients.bias(&layer_tensor_name(layer, &module.bias_name()), dy);
        }
        let Some(pair) = self.pair(layer, module) else {
            return;
        };
        let rank = pair.a.forward.outputs();
        let scaled: Vec<f32> = inner.iter().map(|value| value * pair.scaling).collect();
        gradients.outer(
            &module.lora_name(layer, "lora_B"),
            (dy, outputs),
            (&scaled, rank),
        );
        let mut dinner = vec![0.0; inner.len()];
        product_parallel(dy, pair.b.backward(), &mut dinner, Epilogue::Store);
        dinner.iter_mut().for_each(|value| *value *= pair.scaling);
        let dropped = self.dropped(layer, module, x);
        gradients.outer(
            &module.lora_name(layer, "lora_A"),
            (&dinner, rank),
            (&dropped, inputs),
        );
        if self.dropout.is_some() {
            let mut part = vec![0.0; dx.len()];
            product_parallel(&dinner, pair.a.backward(), &mut part, Epilogue::Store);
            self.drop_gradient(layer, module, &mut part);
            kernel::add(&part, dx);
        } else {
            product_parallel(&dinner, pair.a.backward(), dx, Epilogue::Add);
        }
    }

    /// One layer, last to first: turns the gradient of its output into that of its input.
    fn layer_backward(
        &self,
        index: usize,
        tape: LayerTape,
        stream: &mut [f32],
        gradients: &mut Gradients<'_>,
    ) {
        let Some(layer) = self.weights.layers.get(index) else {
            return;
        };
        let config = &self.weights.config;
        let (eps, names) = (config.rms_norm_eps, NormNames::of(config));
        let inner = |module: Module| {
            tape.inner
                .get(module as usize)
                .map_or(&[][..], Vec::as_slice)
        };
        let normed = rms_norm(&tape.input, &layer.input_norm, eps);
        let post_normed = rms_norm(&tape.middle, &layer.post_norm, eps);
        let projected = tape.projected;
        let Projected { heads, gated } =
            projected.unwrap_or_else(|| self.projected(index, &normed, &post_normed));

        let raw = (
            &*tape.raw_feed_forward,
            &*layer.feed_forward_output_norm,
            eps,
        );
        let doutput = gradients.output_norm((index, names.feed_forward_output), raw, stream);
        let (dgate, dup) =
            self.feed_forward_backward(index, gated, inner(Module::DownProj), &doutput, gradients);
        drop(doutput);
        let mut dnormed = vec![0.0; post_normed.len()];
        for (module, dy) in [(Module::GateProj, dgate), (Module::UpProj, dup)] {
            self.project_backward(
                (index, module),
                (&post_normed, inner(module)),
                &dy,
                &mut dnormed,
                gradients,
            );
        }
        let name = layer_tensor_name(index, names.feed_forward);
        gradients.norm(
            &name,
            (&tape.middle, &layer.post_norm, eps),
            &dnormed,
            stream,
        );

        let raw = (&*tape.raw_attention, &*layer.attention_output_norm, eps);
        let doutput = gradients.output_norm((index, names.attention_output), raw, stream);
        let mut dattended = vec![0.0; tape.attended.len()];
        let output = Module::OProj;
        self.project_backward(
            (index, output),
            (&tape.attended, inner(output)),
            &doutput,
            &mut dattended,
            gradients,
        );
        drop(doutput);
        let forward = (&*tape.attended, &*tape.log_sums);
        let (dquery, dkey, dvalue) =
            self.attention_backward(index, &heads, forward, &dattended, gradients);
        let mut dnormed = vec![0.0; normed.len()];
        for (module, dy) in [
            (Module::QProj, &dquery),
            (Module::KProj, &dkey),
            (Module::VProj, &dvalue),
        ] {
            self.project_backward(
                (index, module),
                (&normed, inner(module)),
                dy,
                &mut dnormed,
                gradients,
            );
        }
        let name = layer_tensor_name(index, names.attention);
        gradients.norm(
            &name,
            (&tape.input, &layer.input_norm, eps),
            &dnormed,
            stream,
        );
    }

    /// Through the last projection and the activation of one layer: the gradients of its gate and of what is
    /// gated.
    fn feed_forward_backward(
        &self,
        index: usize,
        Gated { gate, up }: Gated,
        inner: &[f32],
        doutput: &[f32],
        gradients: &mut Gradients<'_>,
    ) -> (Vec<f32>, Vec<f32>) {
        let config = &self.weights.config;
        let activated = activate(config, &gate, &up);
        let mut dactivated = vec![0.0; activated.len()];
        self.project_backward(
            (index, Module::DownProj),
            (&activated, inner),
            doutput,
            &mut dactivated,
            gradients,
        );
        // The widest values of a layer: none stays longer than it is needed.
        drop(activated);
        activate_backward(config, &gate, &up, &dactivated)
    }

    /// Through attention, rotation and head norms of one layer: the gradients of what its projections made
    /// for queries, keys and values, each as wide as its projection.
    fn attention_backward(
        &self,
        index: usize,
        heads: &Heads,
        (attended, log_sums): (&[f32], &[f32]),
        dattended: &[f32],
        gradients: &mut Gradients<'_>,
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let Some(layer) = self.weights.layers.get(index) else {
            return Default::default();
        };
        let config = &self.weights.config;
        let eps = config.rms_norm_eps;
        let mut dquery = vec![0.0; heads.query.len()];
        let mut dkey = vec![0.0; heads.key.len()];
        let mut dvalue = vec![0.0; heads.value.len()];
        let forward = Attended {
            inputs: Projections {
                query: &heads.query,
                key: &heads.key,
                value: &heads.value,
                window: layer.window,
            },
            out: attended,
            log_sums,
        };
        let into = ProjectionGradients {
            query: &mut dquery,
            key: &mut dkey,
            value: &mut dvalue,
        };
        attend_segments_backward(self.weights, self.segments, &forward, dattended, into);
        for (rows, width) in [
            (&mut dquery, config.query_width()),
            (&mut dkey, config.key_width()),
        ] {
            rotate_rows(&layer.rotary, self.segments, rows, width, -1.0);
        }
        for (name, norm, raw, rotated) in [
            (QUERY_NORM, &layer.query_norm, &heads.raw_query, &mut dquery),
            (KEY_NORM, &layer.key_norm, &heads.raw_key, &mut dkey),
        ] {
            if !norm.is_empty() {
                let name = layer_tensor_name(index, name);
                let mut draw = vec![0.0; raw.len()];
                gradients.norm(&name, (raw, norm, eps), rotated, &mut draw);
                *rotated = draw;
            }
        }
        (dquery, dkey, dvalue)
    }

    /// All layers, given the gradient of the last hidden states.
    pub fn run_backward(
        &self,
        tokens: &[u32],
        mut tapes: Vec<LayerTape>,
        mut stream: Vec<f32>,
        gradients: &mut Gradients<'_>,
    ) {
        // Each tape goes when its layer is done.
        while let Some(tape) = tapes.pop() {
            self.layer_backward(tapes.len(), tape, &mut stream, gradients);
        }
        if gradients.full {
            let hidden = self.weights.config.hidden_size;
            if let Some(scale) = self.weights.config.embedding_scale() {
                stream.iter_mut().for_each(|value| *value *= scale);
            }
            if let Some(embedding) = gradients.slice(EMBEDDING) {
                for (token, row) in tokens.iter().zip(stream.chunks_exact(hidden)) {
                    let start = *token as usize * hidden;
                    if let Some(sums) = embedding.get_mut(start..start + hidden) {
                        kernel::add(row, sums);
                    }
                }
            }
        }
    }
}

fn activate_backward(
    config: &LlamaConfig,
    gate: &[f32],
    up: &[f32],
    dy: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let (mut dgate, mut dup) = (vec![0.0; gate.len()], vec![0.0; up.len()]);
    let size = ROWS * config.intermediate_size;
    let inputs = gate
        .par_chunks(size)
        .zip(up.par_chunks(size))
        .zip(dy.par_chunks(size));
    let outputs = dgate.par_chunks_mut(size).zip(dup.par_chunks_mut(size));
    inputs
        .zip(outputs)
        .for_each(|(((gate, up), dy), (dgate, dup))| {
            let mut result = vec![0.0; gate.len()];
            match config.activation() {
                Activation::Silu => {
                    kernel::swiglu_backward(gate, up, dy, dgate, dup, &mut result);
                }
                Activation::GeluTanh => {
                    kernel::geglu_backward(gate, up, dy, dgate, dup, &mut result);
                }
            }
        });
    (dgate, dup)
}
