//! An adapter folder on its way into memory: the numbers stay as they are stored, and what takes long runs on all
//! cores.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;

use crate::config::LlamaConfig;
use crate::factor::{FactorValues, FirstFactors};
use crate::identity::{Form, identity};
use crate::kernel::HalfWeight;
use crate::lora::LoadedAdapter;
use crate::peft::{AdapterError, AdapterHeader};
use crate::tensor_file::TensorFile;

/// An adapter in the numbers of its file.
#[derive(Debug)]
pub struct StoredAdapter {
    header: AdapterHeader,
    tensors: BTreeMap<String, StoredTensor>,
}

#[derive(Debug)]
struct StoredTensor {
    shape: [usize; 2],
    values: Values,
}

#[derive(Debug)]
enum Values {
    Single(Vec<f32>),
    Half(HalfWeight),
}

impl StoredTensor {
    fn values(&self) -> FactorValues<'_> {
        match &self.values {
            Values::Single(values) => FactorValues::Single(values),
            Values::Half(weight) => FactorValues::Half(weight),
        }
    }
}

impl StoredAdapter {
    /// Reads a whole adapter folder with the threads of the current rayon pool.
    ///
    /// # Errors
    /// As [`Adapter::load`](crate::peft::Adapter::load).
    pub fn read(dir: &Path) -> Result<Self, AdapterError> {
        let (header, file) = AdapterHeader::open(dir)?;
        let tensors = header.shapes.par_iter().map(|named| tensor(&file, named));
        let tensors = tensors.collect::<Result<_, AdapterError>>()?;
        Ok(Self { header, tensors })
    }

    /// The same on this thread, which gets `breathe` called between tensors.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_slowly(dir: &Path, breathe: &dyn Fn()) -> Result<Self, AdapterError> {
        let (header, file) = AdapterHeader::open(dir)?;
        let shapes = header.shapes.iter().inspect(|_| breathe());
        let tensors = shapes.map(|named| tensor(&file, named));
        let tensors = tensors.collect::<Result<_, AdapterError>>()?;
        Ok(Self { header, tensors })
    }

    /// The content's identity: [`Adapter::digest`](crate::peft::Adapter::digest), without a copy of the values. Calls
    /// `breathe` between tensors.
    pub fn digest(&self, breathe: &dyn Fn()) -> String {
        self.identity(Form::Values, breathe)
    }

    /// An identity of the content as it is stored. Two folders with the same one have the same [`Self::digest`];
    /// it takes half of the time where the numbers are halves. Calls `breathe` between tensors.
    pub fn stored_digest(&self, breathe: &dyn Fn()) -> String {
        self.identity(Form::Stored, breathe)
    }

    /// Whether [`Self::stored_digest`] takes less time.
    pub fn has_halves(&self) -> bool {
        let mut tensors = self.tensors.values();
        tensors.any(|tensor| matches!(tensor.values, Values::Half(_)))
    }

    fn identity(&self, form: Form, breathe: &dyn Fn()) -> String {
        let tensors = self.tensors.iter().inspect(|_| breathe());
        let tensors = tensors.map(|(name, tensor)| (name.as_str(), tensor.shape, tensor.values()));
        identity(&self.header.config, tensors, form)
    }

    /// Checks everything that a forward pass relies on, on this thread. Calls `breathe` between tensors.
    ///
    /// # Errors
    /// As [`Adapter::verify`](crate::peft::Adapter::verify).
    pub fn verify(&self, config: &LlamaConfig, breathe: &dyn Fn()) -> Result<(), AdapterError> {
        self.header.verify_shapes(config)?;
        let mut tensors = self.tensors.iter().inspect(|_| breathe());
        match tensors.find_map(not_finite) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Verifies the adapter and packs it with the threads of the current rayon pool, its first factors as a model
    /// [wants them](crate::transformer::Llama::first_factors). The caller makes sure that `digest` is the content's.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub fn load(
        &self,
        digest: &str,
        config: &LlamaConfig,
        first: FirstFactors,
    ) -> Result<LoadedAdapter, AdapterError> {
        self.header.verify_shapes(config)?;
        if let Some(error) = self.tensors.par_iter().find_map_first(not_finite) {
            return Err(error);
        }
        let plan = self.header.config.plan(config)?;
        let narrow = self.tensors.par_iter().filter_map(|(name, tensor)| {
            let Values::Single(values) = &tensor.values else {
                return None;
            };
            Some((name.as_str(), HalfWeight::exactly(values)?))
        });
        let narrow: BTreeMap<&str, HalfWeight> = narrow.collect();
        let values = |name: &str| match (narrow.get(name), self.tensors.get(name)) {
            (Some(weight), _) => FactorValues::Half(weight),
            (None, Some(tensor)) => tensor.values(),
            (None, None) => FactorValues::Single(&[]),
        };
        Ok(LoadedAdapter::pack(&plan, config, digest, (&values, first)))
    }
}

fn tensor(
    file: &TensorFile,
    (name, shape): (&String, &Vec<usize>),
) -> Result<(String, StoredTensor), AdapterError> {
    let shape: [usize; 2] = shape
        .as_slice()
        .try_into()
        .map_err(|_| AdapterError::UnexpectedTensor(name.clone()))?;
    let values = match file.read_halves(name)? {
        Some(weight) => Values::Half(weight),
        None => Values::Single(file.read_f32(name)?.unwrap_or_default()),
    };
    Ok((name.clone(), StoredTensor { shape, values }))
}

fn not_finite((name, tensor): (&String, &StoredTensor)) -> Option<AdapterError> {
    let element = tensor.values().first_not_finite()?;
    Some(AdapterError::NotFinite {
        tensor: name.clone(),
        element,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{TinyShape, random_adapter};
    use crate::lora::{LoraConfig, Module};
    use crate::peft::{ADAPTER_WEIGHTS_FILE, Adapter};
    use crate::targets::Targets;
    use crate::tensor_file::{self, StoredDtype};

    fn lora() -> LoraConfig {
        LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            targets: Targets::of(&[Module::QProj, Module::KProj, Module::DownProj]),
            use_rslora: false,
        }
    }

    /// A folder whose weights are stored in a format, and the adapter that it holds.
    fn saved(dtype: StoredDtype, change: impl Fn(&mut Adapter)) -> (tempfile::TempDir, Adapter) {
        let dir = tempfile::tempdir().unwrap();
        let mut adapter = random_adapter(&TinyShape::default().config(), &lora(), 1);
        change(&mut adapter);
        adapter.save(dir.path()).unwrap();
        let tensors = adapter.tensors.iter();
        let tensors = tensors.map(|(name, it)| (name.as_str(), &it.shape[..], &it.data[..]));
        tensor_file::write(&dir.path().join(ADAPTER_WEIGHTS_FILE), dtype, tensors).unwrap();
        let adapter = Adapter::load(dir.path()).unwrap();
        (dir, adapter)
    }

    #[test]
    fn a_folder_has_the_digest_of_its_values_whatever_they_are_stored_in() {
        for dtype in [StoredDtype::F32, StoredDtype::Bf16] {
            let (dir, adapter) = saved(dtype, |_| {});
            let stored = StoredAdapter::read(dir.path()).unwrap();
            assert_eq!(stored.digest(&|| ()), adapter.digest(), "{dtype:?}");
            assert_eq!(stored.has_halves(), dtype == StoredDtype::Bf16);
            let digest = stored.digest(&|| ());
            let loaded = stored.load(
                &digest,
                &TinyShape::default().config(),
                FirstFactors::AsStored,
            );
            assert_eq!(**loaded.unwrap().digest(), *digest);
        }
    }

    #[test]
    fn the_digest_as_stored_tells_values_and_formats_apart() {
        let of = |dtype, change: &dyn Fn(&mut Adapter)| {
            let (dir, _) = saved(dtype, change);
            StoredAdapter::read(dir.path())
                .unwrap()
                .stored_digest(&|| ())
        };
        let nothing = |_: &mut Adapter| {};
        let one = of(StoredDtype::Bf16, &nothing);
        assert_eq!(of(StoredDtype::Bf16, &nothing), one);
        assert_ne!(of(StoredDtype::F32, &nothing), one);
        let other = |adapter: &mut Adapter| {
            adapter.tensors.values_mut().next_back().unwrap().data[3] += 1.0;
        };
        assert_ne!(of(StoredDtype::Bf16, &other), one);
        assert_ne!(of(StoredDtype::Bf16, &|a| a.config.alpha = 9.0), one);
    }

    #[test]
    fn halves_take_half_of_the_memory_and_the_header_says_so() {
        let config = TinyShape::default().config();
        let bytes = |dtype| {
            let (dir, _) = saved(dtype, |_| {});
            let stored = StoredAdapter::read(dir.path()).unwrap();
            let loaded = stored
                .load("sha256:", &config, FirstFactors::AsStored)
                .unwrap();
            let said = AdapterHeader::read(dir.path()).unwrap();
            assert_eq!(loaded.bytes(), said.packed_bytes(&config).unwrap());
            loaded.bytes()
        };
        assert_eq!(bytes(StoredDtype::F32), 2 * bytes(StoredDtype::Bf16));
    }

    #[test]
    fn values_in_f32_that_bf16_has_take_half_of_the_memory_too() {
        let config = TinyShape::default().config();
        let (dir, adapter) = saved(StoredDtype::Bf16, |_| {});
        let half = StoredAdapter::read(dir.path()).unwrap();
        let half = half
            .load("sha256:", &config, FirstFactors::AsStored)
            .unwrap()
            .bytes();
        assert_eq!(LoadedAdapter::new(&adapter, &config).unwrap().bytes(), half);
        adapter.save(dir.path()).unwrap();
        let single = StoredAdapter::read(dir.path()).unwrap();
        assert!(!single.has_halves());
        assert_eq!(
            single
                .load("sha256:", &config, FirstFactors::AsStored)
                .unwrap()
                .bytes(),
            half
        );
    }

    #[test]
    fn what_is_not_finite_or_does_not_fit_is_named_as_for_an_adapter_in_memory() {
        let config = TinyShape::default().config();
        let wider = TinyShape {
            hidden: 2 * TinyShape::default().hidden,
            ..TinyShape::default()
        };
        for dtype in [StoredDtype::F32, StoredDtype::Bf16] {
            for (shape, value) in [
                (&config, f32::NAN),
                (&config, f32::NEG_INFINITY),
                (&wider.config(), 1.0),
            ] {
                let (dir, adapter) = saved(dtype, |adapter| {
                    adapter.tensors.values_mut().next_back().unwrap().data[7] = value;
                });
                let stored = StoredAdapter::read(dir.path()).unwrap();
                let expected = adapter.verify(shape).unwrap_err().to_string();
                assert_eq!(
                    stored.verify(shape, &|| ()).unwrap_err().to_string(),
                    expected
                );
                let refused = stored
                    .load("sha256:", shape, FirstFactors::AsStored)
                    .unwrap_err();
                assert_eq!(refused.to_string(), expected);
            }
        }
    }
}
