"""A Llama of the same function whose layers' inputs are multiples of a block's: zeros are added beside its values.

The demo's base has a hidden size of 192, and Q4_K has blocks of 256 inputs: under Q4_K most of its weights would be in
Q8_0. Widened, all of its layers' weights are in blocks of Q4_K. New columns read what is always 0, new rows give 0, and
a norm over more elements, of which the new ones are 0, is made up for in its weight and its epsilon.
"""

import json
import math
import shutil
import struct
from pathlib import Path

WEIGHTS = "model.safetensors"


def up(size: int, block: int) -> int:
    """The next multiple."""
    return -(-size // block) * block


def widened_config(config: dict, block: int) -> dict:
    """Heads keep their size; there are more of them, as many to a group of queries as before."""
    hidden, heads, groups = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or hidden // heads
    more_groups = groups
    while more_groups * (heads // groups) * head % block:
        more_groups += 1
    wide = up(hidden, block)
    return config | {
        "hidden_size": wide, "intermediate_size": up(config["intermediate_size"], block), "head_dim": head,
        "num_attention_heads": more_groups * (heads // groups), "num_key_value_heads": more_groups,
        # The mean of squares has the same sum over more elements.
        "rms_norm_eps": config["rms_norm_eps"] * hidden / wide,
    }


def widened_shape(name: str, config: dict) -> tuple[int, ...]:
    """The shape of a tensor under this configuration."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    last = name.removesuffix(".weight").rpartition(".")[2]
    shapes = {
        "embed_tokens": (config["vocab_size"], hidden), "lm_head": (config["vocab_size"], hidden),
        "q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden), "o_proj": (hidden, queries),
        "gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner),
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,), "norm": (hidden,),
    }
    if last not in shapes:
        raise ValueError(f"tensor {name} is none of a Llama without biases")
    return shapes[last]


def widened_matrix(data: bytes, old: tuple[int, int], new: tuple[int, int], width: int) -> bytes:
    """Row-major values of `width` bytes each, with zeros to the right and below."""
    row = old[1] * width
    right = bytes((new[1] - old[1]) * width)
    rows = b"".join(data[at:at + row] + right for at in range(0, len(data), row))
    return rows + bytes((new[0] - old[0]) * new[1] * width)


def widened_norm(data: bytes, new: int) -> bytes:
    """A norm's weight in bf16, as f32: in bf16 the factor would be rounded."""
    bits = struct.unpack(f"<{len(data) // 2}H", data)
    values = [struct.unpack("<f", struct.pack("<I", each << 16))[0] for each in bits]
    factor = math.sqrt(len(values) / new)
    return struct.pack(f"<{new}f", *(value * factor for value in values), *[0.0] * (new - len(values)))


def read(path: Path) -> tuple[dict, bytes]:
    """Header and data of a safetensors file."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + length])
    header.pop("__metadata__", None)
    return header, raw[8 + length:]


def widen(base: Path, target: Path, block: int) -> dict:
    """Writes the folder `target` beside the other files of `base`, whose weights are in bf16. Its configuration."""
    config = json.loads((base / "config.json").read_text())
    wide = widened_config(config, block)
    header, data = read(base / WEIGHTS)
    made, parts, at = {}, [], 0
    for name, entry in header.items():
        if entry["dtype"] != "BF16":
            raise ValueError(f"tensor {name} is in {entry['dtype']}, not in BF16")
        values = data[entry["data_offsets"][0]:entry["data_offsets"][1]]
        shape = widened_shape(name, wide)
        if len(shape) == 1:
            dtype, part = "F32", widened_norm(values, shape[0])
        else:
            dtype, part = "BF16", widened_matrix(values, tuple(entry["shape"]), shape, 2)
        made[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(part)]}
        parts.append(part)
        at += len(part)
    text = json.dumps(made, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in base.iterdir():
        if file.name not in (WEIGHTS, "config.json", "README.md"):
            shutil.copy(file, target / file.name)
    (target / "config.json").write_text(json.dumps(wide, indent=1) + "\n")
    (target / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    return wide
