//! The low-rank updates of a pass: rows that share an adapter stand together.
//!
//! Each segment is multiplied with its own adapter's factors, so that every row pays for its own rank. The `A` of
//! modules that read the same input are one product; each `B` adds into the base output. Every element is one
//! chain of its own, so that neither the stacking nor the threads change a bit (SGMV of Punica: Chen et al. 2023,
//! arXiv:2310.18547, section 4, without its padding of ranks).

use crate::kernel::{Addition, Beside, LANES, Weight};
use crate::lora::{LoadedAdapter, Module};

/// Rows that share an adapter.
pub(super) struct Segment<'a> {
    pub rows: std::ops::Range<usize>,
    pub adapter: &'a LoadedAdapter,
}

/// The updates of modules that read the same input.
pub(super) struct Updates<'a> {
    segments: &'a [Segment<'a>],
    layer: usize,
    group: usize,
    /// `A x` of each segment: `[rows, columns of its stack]`; empty where it adapts none of the modules.
    inner: Vec<Vec<f32>>,
}

impl<'a> Updates<'a> {
    /// Of these modules. The segments are in the order of their rows.
    pub fn new(segments: &'a [Segment<'a>], layer: usize, modules: &[Module]) -> Self {
        let group = Module::GROUPS
            .iter()
            .position(|group| modules.first().is_some_and(|first| group.contains(first)));
        let (segments, group) = group.map_or((&[][..], 0), |group| (segments, group));
        let inner = segments.iter().map(|segment| {
            let stack = segment.adapter.layers().stack(layer, group);
            vec![0.0; stack.map_or(0, |stack| segment.rows.len() * stack.outputs())]
        });
        Self {
            segments,
            layer,
            group,
            inner: inner.collect(),
        }
    }

    /// The products `A x` of all adapted modules, by segment.
    pub fn shrink<'p>(&'p mut self, x: &'p [f32]) -> Vec<Beside<'p>> {
        let (layer, group) = (self.layer, self.group);
        let segments = self.segments.iter().zip(&mut self.inner);
        let products = segments.filter_map(|(segment, inner)| {
            let stack = segment.adapter.layers().stack(layer, group)?;
            Some(Beside {
                x,
                rows: segment.rows.clone(),
                w: stack.weight(),
                y: inner,
            })
        });
        products.collect()
    }

    /// `s B (A x)`, to be added to the outputs: product `i` belongs to `modules[i]`, and those are all of their group.
    /// Rows outside of the segments stay as they are.
    pub fn expand(&self, modules: &[Module]) -> Vec<Addition<'a>> {
        let mut all = Vec::with_capacity(modules.len() * self.segments.len());
        let stacked = self.segments.iter().filter_map(|segment| {
            let lora = segment.adapter.layers();
            lora.stack(self.layer, self.group)?;
            Some((&segment.rows, lora))
        });
        for (beside, (rows, lora)) in stacked.enumerate() {
            let mut column = 0;
            for (product, module) in modules.iter().enumerate() {
                let Some(pair) = lora.pair(self.layer, *module) else {
                    continue;
                };
                let Weight::Floats(w) = pair.b.weight() else {
                    unreachable!("second factors are held as they came");
                };
                all.push(Addition {
                    product,
                    rows: rows.clone(),
                    beside,
                    column,
                    w,
                    scale: pair.scaling,
                });
                column += pair.b.inputs().next_multiple_of(LANES);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LlamaConfig;
    use crate::fixture::{TinyShape, random_adapter};
    use crate::kernel::{Base, Epilogue, HalfFormat, HalfWeight, Isa, reference, together};
    use crate::lora::{FirstFactors, LoraConfig};
    use crate::peft::Adapter;
    use crate::quant::{BlockFormat, Blocks};
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

    /// The same with values that bf16 has, so that it is packed as that.
    fn narrow(adapter: Adapter) -> Adapter {
        let mut adapter = adapter;
        for tensor in adapter.tensors.values_mut() {
            tensor.data = HalfWeight::rounded(&tensor.data).widened();
        }
        adapter
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
    fn add_plainly(
        (adapter, first): (&Adapter, FirstFactors),
        (layer, module): (usize, Module),
        x: &[f32],
        y: &mut [f32],
    ) {
        let factor = |factor| adapter.tensors.get(&module.lora_name(layer, factor));
        let (Some(a), Some(b)) = (factor("lora_A"), factor("lora_B")) else {
            return;
        };
        let isa = Isa::detect();
        let mut scaling = adapter.config.scaling(a.shape[0], adapter.config.alpha);
        let inner = if first == FirstFactors::EightBits && x.len().is_multiple_of(32) {
            let largest = a.data.iter().fold(0.0_f32, |most, it| most.max(it.abs()));
            let scale = 2.0_f32.powi(-(largest.log2().floor() as i32));
            scaling /= scale;
            let scaled: Vec<f32> = a.data.iter().map(|value| value * scale).collect();
            let blocks = Blocks::quantize(BlockFormat::Q8_0, &scaled, a.shape[0], x.len());
            reference::integer_product(isa, x, &blocks.unwrap())
        } else {
            reference::product(isa, x, &a.data, x.len())
        };
        let sums = reference::product(isa, &inner, &b.data, inner.len());
        for (y, sum) in y.iter_mut().zip(sums) {
            *y += scaling * sum;
        }
    }

    #[test]
    fn rows_of_mixed_ranks_and_modules_get_the_bits_of_the_plain_update() {
        rows_get_the_bits_of_the_plain_update(FirstFactors::AsStored);
    }

    #[test]
    fn first_factors_in_eight_bits_give_the_bits_of_their_plain_update() {
        rows_get_the_bits_of_the_plain_update(FirstFactors::EightBits);
    }

    fn rows_get_the_bits_of_the_plain_update(first: FirstFactors) {
        let config = config();
        let adapters = [
            adapter(1, &Module::ALL, 1),
            adapter(16, &[Module::QProj, Module::VProj, Module::UpProj], 2),
            adapter(33, &[Module::KProj, Module::OProj, Module::DownProj], 3),
            narrow(adapter(256, &Module::ALL, 4)),
            adapter(5, &[Module::GateProj], 5),
            narrow(patterned(6)),
        ];
        let loaded = adapters
            .each_ref()
            .map(|adapter| LoadedAdapter::with_first_factors(adapter, &config, first).unwrap());
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
                        add_plainly((adapter, first), (layer, *module), x, y);
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
                pool.install(|| {
                    let mut updates = Updates::new(&segments, layer, modules);
                    let additions = updates.expand(modules);
                    let bases = modules.iter().zip(&mut fast).map(|(module, y)| Base {
                        x: &x,
                        w: None,
                        y,
                        outputs: module.shape(&config).0,
                        epilogue: Epilogue::Store,
                    });
                    together(bases.collect(), updates.shrink(&x), &additions);
                });
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
            let plan = adapter.config.plan(&config()).unwrap();
            let bytes = |adapter: &Adapter, format| {
                let loaded = LoadedAdapter::new(adapter, &config()).unwrap();
                assert_eq!(&**loaded.digest(), adapter.digest());
                assert_eq!(loaded.bytes(), plan.packed_bytes(&config(), &|_| format));
                loaded.bytes()
            };
            let single = bytes(&adapter, None);
            let half = bytes(&narrow(adapter), Some(HalfFormat::Bf16));
            assert_eq!(single, 2 * half);
        }
    }

    #[test]
    fn first_factors_in_eight_bits_take_half_of_the_bytes_of_halves_and_an_eighth_more() {
        let adapter = narrow(adapter(16, &[Module::QProj], 1));
        let bytes = |first| {
            let loaded = LoadedAdapter::with_first_factors(&adapter, &config(), first).unwrap();
            let pairs = (0..2).map(|layer| loaded.layers().pair(layer, Module::QProj).unwrap());
            pairs.map(|pair| pair.a.bytes()).sum::<usize>()
        };
        let halves = bytes(FirstFactors::AsStored);
        assert_eq!(bytes(FirstFactors::EightBits), halves / 2 + halves / 32);
    }

    #[test]
    fn factors_of_one_stack_in_several_formats_count_as_f32() {
        let adapter = adapter(4, &[Module::QProj, Module::VProj], 1);
        let plan = adapter.config.plan(&config()).unwrap();
        let bytes =
            |format: &dyn Fn(&str) -> Option<HalfFormat>| plan.packed_bytes(&config(), format);
        let single = bytes(&|_| None);
        let mixed = bytes(&|name| {
            let bf16 = name.contains("q_proj");
            Some(if bf16 {
                HalfFormat::Bf16
            } else {
                HalfFormat::F16
            })
        });
        let only_a = bytes(&|name| name.contains("lora_A").then_some(HalfFormat::Bf16));
        assert_eq!(only_a - single / 2, single - mixed);
        assert!(mixed > single / 2 && mixed < single);
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
