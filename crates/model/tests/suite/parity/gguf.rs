//! A base in a GGUF file that llama.cpp has quantised, beside transformers and llama.cpp.

use graftwork_model::quant::Quantization;
use graftwork_model::tensor_file::TensorFile;
use graftwork_model::transformer::{Held, Llama};
use serde::Deserialize;

use super::{LOGITS, apart, fixture, logits, norm_apart, read_json};

#[derive(Deserialize)]
struct Recorded {
    tokens: Vec<u32>,
}

#[test]
fn a_file_that_llama_cpp_quantised_is_trained_and_served_on_as_transformers_and_llama_cpp_read_it()
{
    let Recorded { tokens } = read_json("gguf/expected.json");
    let expected = TensorFile::open(&fixture("gguf/expected.safetensors")).unwrap();
    let expected = |name| expected.read_f32(name).unwrap().unwrap();
    let (exact, peer) = (
        expected("logits.transformers"),
        expected("logits.llama.cpp"),
    );
    let folder = fixture("gguf/base");

    // Q4_K and Q6_K stay what they are, whatever is asked for.
    for held in [Held::AsStored, Held::Blocks(Quantization::Q8_0)] {
        let llama = Llama::load(&folder, held).unwrap();
        let apart = apart(&logits(&llama, &tokens, None), &exact);
        assert!(apart <= LOGITS, "{held:?}: apart by {apart:e}");
    }

    // Inputs in 8 bits, as llama.cpp's are: no farther from what the blocks say.
    let served = Llama::load_served(&folder, Held::AsStored).unwrap();
    let ours = norm_apart(&logits(&served, &tokens, None), &exact);
    let theirs = norm_apart(&peer, &exact);
    assert!(0.0 < ours && ours <= theirs, "{ours:e} and {theirs:e}");
}
