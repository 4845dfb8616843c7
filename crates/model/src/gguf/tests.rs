use candle_core::quantized::GgmlDType;

use super::*;
use crate::base::{BaseModel, base_digest, check_base, save_base};
use crate::fixture::{TinyShape, write_tiny_gguf};
use crate::quant::Quantization;
use crate::transformer::{Held, Llama, PackedBatch};

fn shape() -> TinyShape {
    TinyShape {
        hidden: 64,
        intermediate: 96,
        ..TinyShape::default()
    }
}

fn folder(family: Family, matrices: GgmlDType) -> (tempfile::TempDir, BaseModel) {
    let dir = tempfile::tempdir().unwrap();
    let config = LlamaConfig {
        head_dim: 16,
        ..shape().family_config(family)
    };
    let base = BaseModel::random(config, 7);
    write_tiny_gguf(dir.path(), &base, matrices).unwrap();
    (dir, base)
}

#[test]
fn every_familys_rows_are_where_hugging_face_has_them() {
    for family in [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3] {
        let (dir, base) = folder(family, GgmlDType::F32);
        let loaded = BaseModel::load(dir.path()).unwrap();
        assert_eq!(loaded.tensors(), base.tensors(), "{family:?}");
        assert_eq!(&check_base(dir.path()).unwrap(), base.config());
    }
}

#[test]
fn gemma_in_gguf_is_refused_by_name() {
    let (dir, _) = folder(Family::Gemma3, GgmlDType::F32);
    let error = BaseModel::load(dir.path()).unwrap_err();
    assert_eq!(error.category(), Category::Invalid);
    let text = error.to_string();
    assert!(
        text.contains("model_type `gemma3_text` are read from safetensors only"),
        "{text}"
    );
}

#[test]
fn blocks_of_a_file_are_used_as_they_are() {
    for family in [Family::Llama, Family::Qwen2] {
        let (dir, base) = folder(family, GgmlDType::Q8_0);
        // The same values quantised by the loader, from f32.
        let plain = tempfile::tempdir().unwrap();
        write_tiny_gguf(plain.path(), &base, GgmlDType::F32).unwrap();
        let mut batch = PackedBatch::new();
        let tokens: Vec<u32> = (0..40).map(|i| i * 37 % 250).collect();
        batch.push(&tokens, &[true; 40]);
        let score = |dir: &Path, quantization| {
            let llama = Llama::load(dir, Held::Blocks(quantization)).unwrap();
            llama.score(&batch, None).unwrap()
        };
        let expected = score(plain.path(), Quantization::Q8_0);
        assert_eq!(
            score(dir.path(), Quantization::Q8_0),
            expected,
            "{family:?}"
        );
        // Whatever is asked for, the file's blocks stay.
        assert_eq!(
            score(dir.path(), Quantization::Q4_0),
            expected,
            "{family:?}"
        );
        let read = BaseModel::load(dir.path()).unwrap();
        assert_eq!(Llama::new(&read).score(&batch, None).unwrap(), expected);
        let stored = Llama::load(dir.path(), Held::AsStored).unwrap();
        assert_eq!(stored.score(&batch, None).unwrap(), expected);
    }
}

#[test]
fn halves_of_a_file_are_used_as_they_are() {
    for family in [Family::Llama, Family::Qwen2] {
        for matrices in [GgmlDType::F16, GgmlDType::BF16] {
            let (dir, _) = folder(family, matrices);
            let plain = Llama::new(&BaseModel::load(dir.path()).unwrap());
            let stored = Llama::load(dir.path(), Held::AsStored).unwrap();
            assert!(stored.bytes() * 10 < plain.bytes() * 6, "{matrices:?}");
            let mut batch = PackedBatch::new();
            batch.push(&[3, 41, 5, 9, 2, 6], &[true; 6]);
            let expected = plain.score(&batch, None).unwrap();
            let scores = stored.score(&batch, None).unwrap();
            assert_eq!(scores, expected, "{family:?} {matrices:?}");
        }
    }
}

#[test]
fn a_file_that_is_not_whole_or_of_another_model_is_refused() {
    let (dir, base) = folder(Family::Llama, GgmlDType::Q8_0);
    let path = dir.path().join("model.gguf");
    let bytes = std::fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = BaseModel::load(dir.path()).unwrap_err();
        assert_eq!(error.category(), Category::Invalid, "{error}");
        error.to_string()
    };
    for cut in [3, 20, 200, bytes.len() / 2, bytes.len() - 64] {
        let text = refused(&bytes[..cut]);
        assert!(text.contains("is not a whole GGUF file"), "{cut}: {text}");
    }
    let mut huge = bytes.clone();
    huge[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(refused(&huge).contains("entries"));
    assert!(refused(b"PK\x03\x04 and more").contains("does not begin with GGUF"));

    std::fs::write(&path, &bytes).unwrap();
    let config = shape().family_config(Family::Qwen2).to_json();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let text = BaseModel::load(dir.path()).unwrap_err().to_string();
    assert!(text.contains("its architecture is \"llama\""), "{text}");

    write_tiny_gguf(dir.path(), &base, GgmlDType::F32).unwrap();
    std::fs::copy(&path, dir.path().join("other.gguf")).unwrap();
    let text = BaseModel::load(dir.path()).unwrap_err().to_string();
    assert!(text.contains("2 GGUF files"), "{text}");
}

#[test]
fn the_digest_covers_a_gguf_file_where_it_is_the_model() {
    let (dir, base) = folder(Family::Llama, GgmlDType::F32);
    let before = base_digest(dir.path()).unwrap();
    std::fs::write(dir.path().join("README.md"), "words").unwrap();
    assert_eq!(base_digest(dir.path()).unwrap(), before);
    let mut bytes = std::fs::read(dir.path().join("model.gguf")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(dir.path().join("model.gguf"), bytes).unwrap();
    assert_ne!(base_digest(dir.path()).unwrap(), before);
    // Beside safetensors it is not read, and digests of before stay what they are.
    save_base(dir.path(), &base).unwrap();
    let with = base_digest(dir.path()).unwrap();
    std::fs::remove_file(dir.path().join("model.gguf")).unwrap();
    assert_eq!(base_digest(dir.path()).unwrap(), with);
}
