"""The models of the benchmarks: seeded random weights in Hugging Face's files, a tokenizer, adapters in PEFT's.

Written once to the cache; the same seed gives the same bytes on every machine.
"""

import hashlib
import json
import os
import shutil
import struct
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy

import digests
from texts import Lexicon

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Another value: everything in the cache is made anew.
EDITION = 1
RANK = 16
ALPHA = 16.0


@dataclass(frozen=True)
class Shape:
    """A Llama's shape."""

    name: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_value_heads: int
    vocabulary: int
    context: int = 2048
    # Tokens that the tokenizer has, where the model has rows for more.
    tokens: int | None = None
    # What Llama 3.1's configuration says of positions.
    llama_3: bool = False

    @property
    def words(self) -> int:
        return self.tokens or self.vocabulary

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    def linear(self, module: str) -> tuple[int, int]:
        """Outputs and inputs."""
        narrow = self.key_value_heads * self.head
        return {
            "q_proj": (self.hidden, self.hidden),
            "k_proj": (narrow, self.hidden),
            "v_proj": (narrow, self.hidden),
            "o_proj": (self.hidden, self.hidden),
            "gate_proj": (self.feed_forward, self.hidden),
            "up_proj": (self.feed_forward, self.hidden),
            "down_proj": (self.hidden, self.feed_forward),
        }[module]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        vocabulary = (self.vocabulary, self.hidden)
        found = {name: vocabulary for name in ("model.embed_tokens.weight", "lm_head.weight")}
        found["model.norm.weight"] = (self.hidden,)
        for layer in range(self.layers):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                found[f"model.layers.{layer}.{norm}.weight"] = (self.hidden,)
            for module in LINEAR:
                found[f"model.layers.{layer}.{path(module)}.weight"] = self.linear(module)
        return dict(sorted(found.items()))

    def parameters(self) -> int:
        return sum(numpy.prod(shape, dtype=int) for shape in self.tensors().values()).item()

    def config(self) -> dict:
        positions = {
            "rope_theta": 500000.0,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192},
        }
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads, "head_dim": self.head, "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
            "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
        } | (positions if self.llama_3 else {})


FULL = Shape("llama-443m", 24, 1024, 4096, 16, 8, 32_000)
QUICK = Shape("llama-quick", 4, 256, 1024, 4, 2, 2_048)
# A tokenizer of 128,256 tokens would take long to train, and tells nothing.
EIGHT_BILLION = Shape("llama-3.1-8b", 32, 4096, 14_336, 32, 8, 128_256, 8192, tokens=32_000, llama_3=True)


def shape(quick: bool) -> Shape:
    return QUICK if quick else FULL


def path(module: str) -> str:
    return ("self_attn." if module in LINEAR[:4] else "mlp.") + module


def stream(*names) -> numpy.random.Generator:
    """Random numbers that belong to a name."""
    seed = int.from_bytes(hashlib.sha256(repr((EDITION, *names)).encode()).digest()[:16], "little")
    return numpy.random.Generator(numpy.random.Philox(seed))


def to_bf16(values: numpy.ndarray) -> numpy.ndarray:
    """The bits of the nearest bf16, ties to even."""
    bits = values.astype(numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


def from_bf16(bits: numpy.ndarray) -> numpy.ndarray:
    return (bits.astype(numpy.uint32) << 16).view(numpy.float32)


def write_safetensors(target: Path, shapes: dict[str, tuple[int, ...]], values) -> None:
    """Tensors in bf16, made one after the other by `values(name, shape)` (f32)."""
    header, at = {}, 0
    for name, size in shapes.items():
        end = at + 2 * int(numpy.prod(size, dtype=int))
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, size in shapes.items():
            file.write(to_bf16(values(name, size)).tobytes())


def read_safetensors(source: Path) -> dict[str, numpy.ndarray]:
    """The bits of bf16 tensors, mapped."""
    with source.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
    data = numpy.memmap(source, dtype=numpy.uint8, mode="r", offset=8 + length)
    return {
        name: data[entry["data_offsets"][0]:entry["data_offsets"][1]].view(numpy.uint16).reshape(entry["shape"])
        for name, entry in header.items() if name != "__metadata__"
    }


def weight(name: str, size: tuple[int, ...]) -> numpy.ndarray:
    """Norms one. The output projection is larger than usual, or all tokens would be about equally likely and no
    format's error could be told from another's."""
    if len(size) == 1:
        return numpy.ones(size, numpy.float32)
    spread = 0.08 if name == "lm_head.weight" else 0.02
    return spread * stream("weight", name, size).standard_normal(size, dtype=numpy.float32)


def once(target: Path, make) -> Path:
    """`target`, made beside and moved into place where it is not there: a stopped run leaves no half of it."""
    if not target.exists():
        beside = target.with_name(f"{target.name}.{os.getpid()}.part")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        make(beside)
        beside.rename(target)
    return target


def base(cache: Path, model: Shape) -> Path:
    """The base model's folder."""

    def make(folder: Path) -> None:
        write_json(folder / "config.json", model.config())
        write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})
        Lexicon(model.words).write_tokenizer(folder, model.words)
        write_safetensors(folder / "model.safetensors", model.tensors(), weight)

    print(f"   model {model.name}, {model.parameters() / 1e6:.0f} M parameters")
    return once(cache / f"{model.name}-{EDITION}", make)


def with_context(cache: Path, whole: Path, model: Shape, context: int) -> Path:
    """The same base for longer texts: only the engine is asked for these, and peers keep their files."""

    def make(folder: Path) -> None:
        for file in whole.iterdir():
            os.link(file, folder / file.name)
        (folder / "config.json").unlink()
        write_json(folder / "config.json", model.config() | {"max_position_embeddings": context})

    return once(cache / f"{model.name}-{EDITION}-{context}", make)


def write_json(target: Path, value) -> None:
    target.write_text(json.dumps(value, indent=1) + "\n")


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter in a store: `folder` is relative to the store."""

    name: str
    digest: str
    folder: str
    path: str


def factor_shapes(model: Shape, rank: int) -> dict[str, tuple[int, ...]]:
    found = {}
    for layer in range(model.layers):
        for module in LINEAR:
            outputs, inputs = model.linear(module)
            name = f"base_model.model.model.layers.{layer}.{path(module)}"
            found[f"{name}.lora_A.weight"] = (rank, inputs)
            found[f"{name}.lora_B.weight"] = (outputs, rank)
    return dict(sorted(found.items()))


def factor(seed: int):
    """Values of a factor: A as usual, B away from zero, so that the adapter does something."""

    def values(name: str, size: tuple[int, ...]) -> numpy.ndarray:
        spread = size[1] ** -0.5 if ".lora_A." in name else 0.01
        return spread * stream("factor", seed, name, size).standard_normal(size, dtype=numpy.float32)

    return values


def adapter_config(alpha: float, rank: int = RANK, modules: list[str] = LINEAR) -> dict:
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "bench", "r": rank,
        "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "target_modules": modules, "inference_mode": True,
    }


def adapter_digest(weights: dict[str, numpy.ndarray], alpha: float, rank: int = RANK,
                   modules: list[str] = LINEAR) -> str:
    """What peft.rs calls an adapter with these factors."""
    hasher = digests.FieldHasher()
    hasher.field(b"graftwork.adapter.v1").field(rank.to_bytes(8, "little")).field(struct.pack("<d", alpha))
    hasher.field(b"\0").field(",".join(modules).encode())
    for name in sorted(weights):
        sizes = b"".join(size.to_bytes(8, "little") for size in weights[name].shape)
        hasher.field(name.encode()).field(b"F32").field(sizes).field(from_bf16(weights[name]).tobytes())
    return hasher.finish()


def adapters(store: Path, model: Shape, count: int, different_weights: int = 16) -> list[AdapterFolder]:
    """`count` adapters of rank 16 on all linear layers.

    The first `different_weights` have weights of their own. The others share these files by hard links and differ in
    alpha, which makes them other adapters with other answers, and spares 17 GB of disk for a thousand.
    """
    listed = store / f"adapters-{model.name}-{EDITION}.json"
    known = [AdapterFolder(**entry) for entry in json.loads(listed.read_text())] if listed.exists() else []
    for index in range(len(known), count):
        own = index < different_weights
        alpha = ALPHA if own else ALPHA * (1 + index / 4096)
        known.append(write_adapter(store, model, index, index % different_weights, alpha, known))
        if index % 100 == 99:
            print(f"   {index + 1} of {count} adapters")
    write_json(listed, [asdict(adapter) for adapter in known])
    return known[:count]


def write_adapter(store: Path, model: Shape, index: int, seed: int, alpha: float,
                  known: list[AdapterFolder]) -> AdapterFolder:
    name = f"bench-{index:04}"
    folder = f"adapters/{model.name}/{name}"
    target = store / folder
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    file = target / "adapter_model.safetensors"
    if seed < len(known):
        os.link(Path(known[seed].path) / file.name, file)
    else:
        write_safetensors(file, factor_shapes(model, RANK), factor(seed))
    write_json(target / "adapter_config.json", adapter_config(alpha))
    digest = adapter_digest(read_safetensors(file), alpha)
    write_manifest(target, digest, RANK)
    return AdapterFolder(name, digest, folder, str(target))


def write_manifest(target: Path, digest: str, rank: int) -> None:
    provenance = {"imported": {"uri": "bench", "createdTime": "2026-01-01T00:00:00Z"}}
    files = {each.name: digests.of_bytes(each.read_bytes()) for each in sorted(target.iterdir())}
    write_json(target / "manifest.json", {
        "digest": digest, "files": files, "sizeBytes": sum(each.stat().st_size for each in target.iterdir()),
        "rank": rank, "provenance": provenance, "provenanceDigest": digests.of_json(provenance),
    })


def small_adapters(store: Path, model: Shape, count: int) -> list[AdapterFolder]:
    """`count` names for one adapter of rank 1 on the queries, each in a folder of its own with links to its files."""

    def make(folder: Path) -> None:
        first = folder / "0"
        first.mkdir()
        shapes = {name: size for name, size in factor_shapes(model, 1).items() if ".q_proj." in name}
        write_safetensors(first / "adapter_model.safetensors", shapes, factor(0))
        write_json(first / "adapter_config.json", adapter_config(ALPHA, 1, ["q_proj"]))
        weights = read_safetensors(first / "adapter_model.safetensors")
        write_manifest(first, adapter_digest(weights, ALPHA, 1, ["q_proj"]), 1)
        for index in range(1, count):
            (folder / str(index)).mkdir()
            for file in first.iterdir():
                os.link(file, folder / str(index) / file.name)

    made = once(store / "adapters" / f"{model.name}-small-{count}-{EDITION}", make)
    digest = json.loads((made / "0" / "manifest.json").read_text())["digest"]
    return [
        AdapterFolder(f"small-{index:05}", digest, f"adapters/{made.name}/{index}", str(made / str(index)))
        for index in range(count)
    ]
