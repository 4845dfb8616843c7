//! The low-rank updates of a pass: rows that share an adapter stand together.
//!
//! Each segment is multiplied with its own adapter's factors, so that every row pays for its own rank. The `A` of
//! modules that read the same input are one product; each `B` adds into the base output. Every element is one
//! chain of its own, so that neither the stacking nor the threads change a bit (SGMV of Punica: Chen et al. 2023,
//! arXiv:2310.18547, section 4, without its padding of ranks).

use rayon::prelude::*;

use crate::kernel::{Epilogue, LANES, Panels, product_parallel};
use crate::lora::{LoadedAdapter, Module};

/// Rows that share an adapter.
pub(super) struct Segment<'a> {
    pub rows: std::ops::Range<usize>,
    pub adapter: &'a LoadedAdapter,
}

/// Adds `s B A x` to the outputs of modules that read the input `x`: `outputs[i]` belongs to `modules[i]`. The
/// segments are in the order of their rows; rows outside of them stay as they are.
pub(super) fn add_updates(
    segments: &[Segment<'_>],
    layer: usize,
    modules: &[Module],
    x: &[f32],
    outputs: &mut [Vec<f32>],
) {
    let group = Module::GROUPS
        .iter()
        .position(|group| modules.first().is_some_and(|first| group.contains(first)));
    let (false, Some(group)) = (segments.is_empty(), group) else {
        return;
    };
    let inner: Vec<Vec<f32>> = segments
        .par_iter()
        .map(|segment| shrink(segment, layer, group, x))
        .collect();
    for (module, output) in modules.iter().zip(outputs) {
        split_rows(output, segments, *module)
            .into_par_iter()
            .zip(segments)
            .zip(&inner)
            .for_each(|((y, segment), inner)| expand(segment, (layer, group), *module, inner, y));
    }
}

/// `A x` of all adapted modules of a group: `[rows, columns of the stack]`; empty where none is adapted.
fn shrink(segment: &Segment<'_>, layer: usize, group: usize, x: &[f32]) -> Vec<f32> {
    let Some(stack) = segment.adapter.layers().stack(layer, group) else {
        return Vec::new();
    };
    let (rows, inputs) = (&segment.rows, stack.inputs());
    let Some(x) = x.get(rows.start * inputs..rows.end * inputs) else {
        return Vec::new();
    };
    let mut inner = vec![0.0; rows.len() * stack.outputs()];
    product_parallel(x, stack, &mut inner, Epilogue::Store);
    inner
}

/// `y = y + s B (A x)` of one module, where the adapter has it.
fn expand(
    segment: &Segment<'_>,
    (layer, group): (usize, usize),
    module: Module,
    inner: &[f32],
    y: &mut [f32],
) {
    let lora = segment.adapter.layers();
    let (Some(pair), Some(stack)) = (lora.pair(layer, module), lora.stack(layer, group)) else {
        return;
    };
    let rank = pair.b.forward.inputs();
    let start: usize = Module::GROUPS
        .get(group)
        .into_iter()
        .flat_map(|group| group.iter())
        .take_while(|other| **other != module)
        .filter_map(|other| lora.pair(layer, *other))
        .map(|before| before.b.forward.inputs().next_multiple_of(LANES))
        .sum();
    let columns = columns(inner, stack, start..start + rank);
    let scaled = Epilogue::AddScaled(pair.scaling);
    product_parallel(&columns, &pair.b.forward, y, scaled);
}

/// Some columns of the stack's product, `[rows, columns]`.
fn columns(inner: &[f32], stack: &Panels, columns: std::ops::Range<usize>) -> Vec<f32> {
    inner
        .chunks_exact(stack.outputs())
        .filter_map(|row| row.get(columns.clone()))
        .flatten()
        .copied()
        .collect()
}

/// Each segment's rows of a module's output.
fn split_rows<'y>(
    output: &'y mut [f32],
    segments: &[Segment<'_>],
    module: Module,
) -> Vec<&'y mut [f32]> {
    let (mut rest, mut at) = (output, 0);
    let mut parts = Vec::with_capacity(segments.len());
    for Segment { rows, adapter } in segments {
        let (width, _) = module.shape(adapter.model());
        let (_, from) = std::mem::take(&mut rest).split_at_mut((rows.start - at) * width);
        let (part, after) = from.split_at_mut(rows.len() * width);
        parts.push(part);
        (rest, at) = (after, rows.end);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LlamaConfig;
    use crate::fixture::{TinyShape, random_adapter};
    use crate::kernel::{Isa, reference};
    use crate::lora::LoraConfig;
    use crate::peft::Adapter;
    use crate::random::Stream;
    use crate::targets::Targets;

    fn config() -> LlamaConfig {
        TinyShape {
            hidden: 256,
            intermediate: 80,
            ..TinyShape::default()
        }
        .config()
    }

    fn adapter(rank: usize, target_modules: &[Module], seed: u64) -> Adapter {
        let lora = LoraConfig {
            rank,
            alpha: 24.0,
            dropout: 0.0,
            targets: Targets::of(target_modules),
            use_rslora: false,
        };
        random_adapter(&config(), &lora, seed)
    }

    /// One whose modules of a group have ranks of their own, narrower and wider than a register.
    fn patterned(seed: u64) -> Adapter {
        let mut lora = adapter(9, &Module::ALL, seed).config;
        let ranks = [
            ("q_proj", 17),
            ("v_proj", 2),
            ("layers.1.mlp.gate_proj", 40),
        ];
        lora.targets.rank_pattern = ranks.map(|(name, rank)| (name.to_owned(), rank)).into();
        random_adapter(&config(), &lora, seed)
    }

    fn values(seed: u64, count: usize) -> Vec<f32> {
        let stream = Stream::new(seed, &[]);
        (0..count as u64).map(|i| stream.normal(i) as f32).collect()
    }

    /// The update of one row, written plainly.
    fn add_plainly(adapter: &Adapter, layer: usize, module: Module, x: &[f32], y: &mut [f32]) {
        let factor = |factor| adapter.tensors.get(&module.lora_name(layer, factor));
        let (Some(a), Some(b)) = (factor("lora_A"), factor("lora_B")) else {
            return;
        };
        let isa = Isa::detect();
        let inner = reference::product(isa, x, &a.data, x.len());
        let sums = reference::product(isa, &inner, &b.data, inner.len());
        let scaling = adapter.config.scaling(a.shape[0], adapter.config.alpha);
        for (y, sum) in y.iter_mut().zip(sums) {
            *y += scaling * sum;
        }
    }

    #[test]
    fn rows_of_mixed_ranks_and_modules_get_the_bits_of_the_plain_update() {
        let config = config();
        let adapters = [
            adapter(1, &Module::ALL, 1),
            adapter(16, &[Module::QProj, Module::VProj, Module::UpProj], 2),
            adapter(33, &[Module::KProj, Module::OProj, Module::DownProj], 3),
            adapter(256, &Module::ALL, 4),
            adapter(5, &[Module::GateProj], 5),
            patterned(6),
        ];
        let loaded = adapters
            .each_ref()
            .map(|adapter| LoadedAdapter::new(adapter, &config).unwrap());
        // Rows 0 to 2, 9 and 18 are of the bare base.
        let ranges = [3..4, 4..9, 10..12, 12..15, 15..16, 16..18];
        let segments: Vec<Segment<'_>> = ranges
            .iter()
            .zip(&loaded)
            .map(|(rows, adapter)| Segment {
                rows: rows.clone(),
                adapter,
            })
            .collect();
        for (layer, modules) in [0, 1]
            .into_iter()
            .flat_map(|layer| Module::GROUPS.map(|modules| (layer, modules)))
        {
            let (_, inputs) = modules[0].shape(&config);
            let x = values(7, 19 * inputs);
            let base: Vec<Vec<f32>> = modules
                .iter()
                .map(|module| values(8, 19 * module.shape(&config).0))
                .collect();
            let mut plain = base.clone();
            for (module, y) in modules.iter().zip(&mut plain) {
                let (width, _) = module.shape(&config);
                for (rows, adapter) in ranges.iter().zip(&adapters) {
                    for row in rows.clone() {
                        let x = &x[row * inputs..(row + 1) * inputs];
                        let y = &mut y[row * width..(row + 1) * width];
                        add_plainly(adapter, layer, *module, x, y);
                    }
                }
            }
            assert_ne!(plain, base, "the update does something");
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                let mut fast = base.clone();
                pool.install(|| add_updates(&segments, layer, modules, &x, &mut fast));
                assert!(fast == plain, "{modules:?}, {threads} threads");
            }
        }
    }

    #[test]
    fn an_adapter_takes_the_bytes_that_its_configuration_says() {
        for adapter in [
            adapter(1, &Module::ALL, 1),
            adapter(40, &[Module::VProj, Module::DownProj], 2),
            patterned(3),
        ] {
            let loaded = LoadedAdapter::new(&adapter, &config()).unwrap();
            let plan = adapter.config.plan(&config()).unwrap();
            assert_eq!(loaded.bytes(), plan.packed_bytes(&config()));
            assert_eq!(&**loaded.digest(), adapter.digest());
        }
    }

    #[test]
    fn groups_hold_every_module_once_and_share_an_input() {
        assert_eq!(Module::GROUPS.concat(), Module::ALL);
        for group in Module::GROUPS {
            for module in group {
                assert_eq!(module.shape(&config()).1, group[0].shape(&config()).1);
            }
        }
    }
}
