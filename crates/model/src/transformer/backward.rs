//! The backward pass: from the gradient of the last hidden states to those of the trained parameters.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::attention::{
    Attended, ProjectionGradients, Projections, attend_segments_backward, rotate_rows,
};
use super::forward::{Gated, Heads, LayerTape, Pass, Projected, add};
use crate::base::{EMBEDDING, KEY_NORM, NormNames, QUERY_NORM, layer_tensor_name};
use crate::config::Activation;
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
            accumulate_outer(g, x, sums);
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
}

impl Pass<'_> {
    /// Adds the gradients of a projection's parameters, and does with its input's what `dx` says: stores it or adds it.
    fn project_backward(
        &self,
        (layer, module): (usize, Module),
        (x, inner): (&[f32], &[f32]),
        dy: &[f32],
        (dx, epilogue): (&mut [f32], Epilogue),
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
        linear.backward(dy, dx, epilogue);
        let (outputs, inputs) = (linear.outputs(), linear.inputs());
        if gradients.full {
            let name = layer_tensor_name(layer, &module.weight_name());
            gradients.outer(&name, (dy, outputs), (x, inputs));
            gradients.bias(&layer_tensor_name(layer, &module.bias_name()), dy);
        }
        let Some(pair) = self.pair(layer, module) else {
            return;
        };
        let rank = pair.a.outputs();
        let scaled: Vec<f32> = inner.iter().map(|value| value * pair.scaling).collect();
        gradients.outer(
            &module.lora_name(layer, "lora_B"),
            (dy, outputs),
            (&scaled, rank),
        );
        let mut dinner = vec![0.0; inner.len()];
        // Packed the other way for this one product: kept, they would take as much memory as the adapter.
        let b = pair.b.transposed();
        product_parallel(dy, &b, &mut dinner, Epilogue::Store);
        dinner.iter_mut().for_each(|value| *value *= pair.scaling);
        let dropped = self.dropped(layer, module, x);
        gradients.outer(
            &module.lora_name(layer, "lora_A"),
            (&dinner, rank),
            (&dropped, inputs),
        );
        let a = pair.a.transposed();
        if self.dropout.is_some() {
            let mut part = self.memory.take(dx.len());
            product_parallel(&dinner, &a, &mut part, Epilogue::Store);
            self.drop_gradient(layer, module, &mut part);
            add(&part, dx);
            self.memory.give(part);
        } else {
            product_parallel(&dinner, &a, dx, Epilogue::Add);
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
        let LayerTape {
            input,
            attended,
            log_sums,
            raw_attention,
            raw_feed_forward,
            middle,
            inner,
            projected,
        } = tape;
        let inner = |module: Module| inner.get(module as usize).map_or(&[][..], Vec::as_slice);
        let normed = self.norm(&input, &layer.input_norm);
        let post_normed = self.norm(&middle, &layer.post_norm);
        let Projected { heads, gated } =
            projected.unwrap_or_else(|| self.projected(index, &normed, &post_normed));

        let raw = (raw_feed_forward, &*layer.feed_forward_output_norm);
        let draw =
            self.output_norm_backward((index, names.feed_forward_output), raw, stream, gradients);
        let doutput = draw.as_deref().unwrap_or(&*stream);
        let down = inner(Module::DownProj);
        let Gated { gate, up } = self.feed_forward_backward(index, gated, down, doutput, gradients);
        self.memory.give(draw.unwrap_or_default());
        let mut dnormed = self.memory.take(post_normed.len());
        for (module, dy, epilogue) in [
            (Module::GateProj, gate, Epilogue::Store),
            (Module::UpProj, up, Epilogue::Add),
        ] {
            self.project_backward(
                (index, module),
                (&post_normed, inner(module)),
                &dy,
                (&mut dnormed, epilogue),
                gradients,
            );
            self.memory.give(dy);
        }
        self.memory.give(post_normed);
        let name = layer_tensor_name(index, names.feed_forward);
        gradients.norm(&name, (&middle, &layer.post_norm, eps), &dnormed, stream);
        self.memory.give(middle);

        let raw = (raw_attention, &*layer.attention_output_norm);
        let draw =
            self.output_norm_backward((index, names.attention_output), raw, stream, gradients);
        let doutput = draw.as_deref().unwrap_or(&*stream);
        let mut dattended = self.memory.take(attended.len());
        let output = Module::OProj;
        self.project_backward(
            (index, output),
            (&attended, inner(output)),
            doutput,
            (&mut dattended, Epilogue::Store),
            gradients,
        );
        self.memory.give(draw.unwrap_or_default());
        let forward = (&*attended, &*log_sums);
        let (dquery, dkey, dvalue) =
            self.attention_backward(index, &heads, forward, &dattended, gradients);
        heads.give(self.memory);
        for vector in [attended, dattended] {
            self.memory.give(vector);
        }
        for (module, dy, epilogue) in [
            (Module::QProj, dquery, Epilogue::Store),
            (Module::KProj, dkey, Epilogue::Add),
            (Module::VProj, dvalue, Epilogue::Add),
        ] {
            self.project_backward(
                (index, module),
                (&normed, inner(module)),
                &dy,
                (&mut dnormed, epilogue),
                gradients,
            );
            self.memory.give(dy);
        }
        let name = layer_tensor_name(index, names.attention);
        gradients.norm(&name, (&input, &layer.input_norm, eps), &dnormed, stream);
        for vector in [input, normed, dnormed] {
            self.memory.give(vector);
        }
    }

    /// The gradient of what was normed before it joined the residual stream, given the stream's; none where the
    /// layer has no such norm, so that it is the stream's own.
    fn output_norm_backward(
        &self,
        (layer, name): (usize, Option<&str>),
        (raw, norm): (Vec<f32>, &[f32]),
        stream: &[f32],
        gradients: &mut Gradients<'_>,
    ) -> Option<Vec<f32>> {
        let name = layer_tensor_name(layer, name?);
        let eps = self.weights.config.rms_norm_eps;
        let mut draw = self.memory.zeroed(raw.len());
        gradients.norm(&name, (&raw, norm, eps), stream, &mut draw);
        self.memory.give(raw);
        Some(draw)
    }

    /// Through the last projection and the activation of one layer: the gradients of its gate and of what is
    /// gated, in their place.
    fn feed_forward_backward(
        &self,
        index: usize,
        mut gated: Gated,
        inner: &[f32],
        doutput: &[f32],
        gradients: &mut Gradients<'_>,
    ) -> Gated {
        let activated = self.activated(&gated);
        let mut dactivated = self.memory.take(activated.len());
        self.project_backward(
            (index, Module::DownProj),
            (&activated, inner),
            doutput,
            (&mut dactivated, Epilogue::Store),
            gradients,
        );
        let config = &self.weights.config;
        let size = ROWS * config.intermediate_size;
        let inputs = gated.gate.par_chunks_mut(size);
        inputs
            .zip(gated.up.par_chunks_mut(size))
            .zip(dactivated.par_chunks(size))
            .for_each(|((gate, up), dy)| match config.activation() {
                Activation::Silu => kernel::swiglu_backward(gate, up, dy),
                Activation::GeluTanh => kernel::geglu_backward(gate, up, dy),
            });
        for vector in [activated, dactivated] {
            self.memory.give(vector);
        }
        gated
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
        let mut dquery = self.memory.take(heads.query.len());
        let mut dkey = self.memory.take(heads.key.len());
        let mut dvalue = self.memory.take(heads.value.len());
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
                let mut draw = self.memory.zeroed(raw.len());
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
