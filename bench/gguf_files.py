"""The same weights as GGUF, for llama.cpp: the base in BF16 or Q8_0, adapters in F32."""

from pathlib import Path

import gguf
import numpy

from shapes import ALPHA, LINEAR, RANK, AdapterFolder, Shape, from_bf16, path, read_safetensors

NAMES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}
FORMATS = {"BF16": gguf.GGMLQuantizationType.BF16, "Q8_0": gguf.GGMLQuantizationType.Q8_0}


def permuted(rows: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Query and key rows in the order in which llama.cpp rotates them."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def order(module: str, values: numpy.ndarray, model: Shape) -> numpy.ndarray:
    heads = {"q_proj": model.heads, "k_proj": model.key_value_heads}.get(module)
    return permuted(values, heads) if heads else values


def write_base(folder: Path, target: Path, model: Shape, kind: str) -> Path:
    """Matrices in `kind`, norms in F32. It has no tokenizer: the benchmark sends token ids."""
    if target.exists():
        return target
    beside = target.with_suffix(".part")
    writer = gguf.GGUFWriter(str(beside), "llama")
    writer.add_block_count(model.layers)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.hidden)
    writer.add_feed_forward_length(model.feed_forward)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.key_value_heads)
    writer.add_rope_dimension_count(model.head)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(model.vocabulary)
    writer.add_tokenizer_model("none")
    stored = read_safetensors(folder / "model.safetensors")

    def add(name: str, values: numpy.ndarray) -> None:
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            packed = gguf.quants.quantize(values, FORMATS[kind])
            writer.add_tensor(name, packed, raw_dtype=FORMATS[kind])

    add("token_embd.weight", from_bf16(stored["model.embed_tokens.weight"]))
    add("output_norm.weight", from_bf16(stored["model.norm.weight"]))
    add("output.weight", from_bf16(stored["lm_head.weight"]))
    for layer in range(model.layers):
        start = f"model.layers.{layer}."
        add(f"blk.{layer}.attn_norm.weight", from_bf16(stored[start + "input_layernorm.weight"]))
        add(f"blk.{layer}.ffn_norm.weight", from_bf16(stored[start + "post_attention_layernorm.weight"]))
        for module in LINEAR:
            values = from_bf16(stored[f"{start}{path(module)}.weight"])
            add(f"blk.{layer}.{NAMES[module]}.weight", order(module, values, model))
    finish(writer, beside, target)
    return target


def write_adapter(adapter: AdapterFolder, target: Path, model: Shape) -> Path:
    if target.exists():
        return target
    beside = target.with_suffix(".part")
    writer = gguf.GGUFWriter(str(beside), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", ALPHA)
    stored = read_safetensors(Path(adapter.path) / "adapter_model.safetensors")
    for layer in range(model.layers):
        for module in LINEAR:
            start = f"base_model.model.model.layers.{layer}.{path(module)}"
            name = f"blk.{layer}.{NAMES[module]}.weight"
            writer.add_tensor(f"{name}.lora_a", from_bf16(stored[f"{start}.lora_A.weight"]))
            raised = from_bf16(stored[f"{start}.lora_B.weight"])
            assert raised.shape[1] == RANK
            writer.add_tensor(f"{name}.lora_b", numpy.ascontiguousarray(order(module, raised, model)))
    finish(writer, beside, target)
    return target


def finish(writer: gguf.GGUFWriter, beside: Path, target: Path) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    beside.rename(target)
