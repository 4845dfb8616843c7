//! An adapter's folder from bytes: its configuration, a zero, and its weights.

use std::path::Path;

use graftwork_model::fixture::TinyShape;
use graftwork_model::lora::LoadedAdapter;
use graftwork_model::peft::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, Adapter, AdapterHeader};

/// Writes the folder and does with it what an engine does. Whether the adapter was loaded.
///
/// # Panics
/// Where what was loaded does not fit the model, or its header alone was refused.
pub fn load(dir: &Path, bytes: &[u8]) -> bool {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    for file in [ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE] {
        std::fs::write(dir.join(file), parts.next().unwrap_or_default()).unwrap();
    }
    let model = TinyShape::default().config();
    let fits = |header: AdapterHeader| header.verify_shapes(&model);
    let is_registered = AdapterHeader::read(dir).and_then(fits).is_ok();
    let Ok(adapter) = Adapter::load(dir) else {
        return false;
    };
    if LoadedAdapter::new(&adapter, &model).is_err() {
        return false;
    }
    assert!(is_registered, "the header was refused");
    let shapes = adapter.config.plan(&model).unwrap().tensor_shapes(&model);
    assert_eq!(adapter.tensors.len(), shapes.len());
    for (name, tensor) in &adapter.tensors {
        assert_eq!(shapes.get(name), Some(&tensor.shape), "{name}");
        assert_eq!(tensor.data.len(), tensor.shape[0] * tensor.shape[1]);
        assert!(tensor.data.iter().all(|value| value.is_finite()), "{name}");
    }
    true
}
