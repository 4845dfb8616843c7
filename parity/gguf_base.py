"""Records what transformers and llama.cpp compute on a base in a GGUF file as people have them: `Q4_K_M`, by llama.cpp.

The file's names, its header and the order of rows that are rotated are those of llama.cpp's own converter, which
bench/gguf_files.py follows; its matrices are packed by llama.cpp's own quantiser (Q4_K, and Q6_K for some).
"""

import ctypes
import sys
import tempfile
from pathlib import Path

import llama_cpp
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from models import Case, build_model, save_model

sys.path.append(str(Path(__file__).parent.parent / "bench"))

import gguf_files
from peer_llama import Llama
from shapes import Shape

# Blocks are of 256 inputs.
SHAPE = Shape("gguf", layers=1, hidden=256, feed_forward=256, heads=4, key_value_heads=2, vocabulary=256, context=256)
SEED = 31
TOKENS = 40


def case() -> Case:
    config = LlamaConfig(
        vocab_size=SHAPE.vocabulary,
        hidden_size=SHAPE.hidden,
        intermediate_size=SHAPE.feed_forward,
        num_hidden_layers=SHAPE.layers,
        num_attention_heads=SHAPE.heads,
        num_key_value_heads=SHAPE.key_value_heads,
        max_position_embeddings=SHAPE.context,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=1,
        attn_implementation="eager",
    )
    return Case("gguf", config, SEED, dtype=torch.bfloat16)


def quantize(source: Path, target: Path) -> None:
    """As `llama-quantize SOURCE TARGET Q4_K_M` does."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    settings.nthread = 1
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))
    if status != 0:
        raise SystemExit(f"gguf: llama_model_quantize gives {status}")


def record(folder: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Writes `base/`; gives the logits of both, and what else is expected."""
    base = folder / "base"
    base.mkdir(parents=True)
    made = case()
    model = build_model(made)
    tokens = torch.randint(0, SHAPE.vocabulary, (TOKENS,), generator=torch.Generator().manual_seed(SEED)).tolist()
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        save_model(model, made, temporary / "plain")
        (temporary / "plain/config.json").rename(base / "config.json")
        plain = gguf_files.write_base(temporary / "plain", temporary / "plain.gguf", SHAPE, "BF16")
        # It keeps all of llama.cpp quiet for as long as it is there.
        llama = load(plain)
        before = logits(llama, tokens)
        quantize(plain, base / "model.gguf")
        packed = logits(load(base / "model.gguf"), tokens)
    unpacked = AutoModelForCausalLM.from_pretrained(
        base, gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        exact = unpacked(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        plainly = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    # Were rows in another order, these would be far apart; and blocks have to be seen.
    plain_apart, packed_apart, blocks = apart(plainly, before), apart(exact, packed), apart(plainly, exact)
    print(
        f"gguf: llama.cpp is {plain_apart:.1e} of the range from torch before and {packed_apart:.1e} after packing,"
        f" which moves logits by {blocks:.1e}",
        flush=True,
    )
    if not (plain_apart < 1e-2 and packed_apart < 2e-2 and blocks > 5e-2):
        raise SystemExit("gguf: transformers and llama.cpp do not agree, or blocks are not seen")
    return {"logits.transformers": exact, "logits.llama.cpp": packed}, {"tokens": tokens}


def load(path: Path) -> Llama:
    return Llama(str(path), [], threads=1, streams=1, context=SHAPE.context)


def logits(llama: Llama, tokens: list[int]) -> torch.Tensor:
    llama.decode([(token, position, 0, True) for position, token in enumerate(tokens)])
    return torch.stack([torch.from_numpy(llama.logits(row).copy()) for row in range(len(tokens))])


def apart(expected: torch.Tensor, values: torch.Tensor) -> float:
    return float((expected - values).abs().max() / (expected.max() - expected.min()))
