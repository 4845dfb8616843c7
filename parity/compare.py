"""Compares two recordings: what was recorded elsewhere, or with other versions, should differ by rounding only.

    python compare.py RECORDED FRESH
"""

import json
import math
import sys
from pathlib import Path

import gguf
import numpy
from safetensors.torch import load_file
from torch import Tensor

# A fifth of the tests' bars: logits by their range, gradients and what was trained by their norm, losses in nats.
LOGITS = 2e-5
GRADIENTS = 2e-4
TRAINED = 2e-3
NUMBERS = 2e-3
# What is drawn from a seed.
DRAWN = 1e-6
# What is rounded to few bits, where a last digit decides: llama.cpp's blocks by their norm, and what it makes of them.
BLOCKS = 1e-3
ROUNDED = 5e-3


def files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def numbers_differ(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return not math.isclose(a, b, rel_tol=0, abs_tol=NUMBERS)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) != len(b) or any(map(numbers_differ, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() != b.keys() or any(numbers_differ(a[key], b[key]) for key in a)
    return a != b


def distance(path: Path, name: str, a: Tensor, b: Tensor) -> float:
    """How far two tensors are apart, in units of what they may be."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    a, b = a.double(), b.double()
    if "logits" in name:
        apart = (a - b).abs().max() / (a.max() - a.min())
        return float(apart) / (ROUNDED if name.endswith("llama.cpp") else LOGITS)
    bar = TRAINED if path.parent.name == "trained" else GRADIENTS if path.name == "expected.safetensors" else DRAWN
    return float((a - b).norm() / a.norm().clamp(min=1e-30)) / bar


def tensors_differ(a: Path, b: Path) -> list[str]:
    first, second = load_file(a), load_file(b)
    if first.keys() != second.keys():
        return sorted(first.keys() ^ second.keys())
    apart = {name: distance(a, name, value, second[name]) for name, value in first.items()}
    return [f"{name}: {times:.2g} times as far as it may be" for name, times in apart.items() if not times <= 1]


def blocks_differ(a: Path, b: Path) -> list[str]:
    first, second = ({tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in (a, b))
    if first.keys() != second.keys():
        return sorted(first.keys() ^ second.keys())
    problems = []
    for name, (one, other) in {name: (first[name], second[name]) for name in first}.items():
        values, others = (gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in (one, other))
        same_form = one.tensor_type == other.tensor_type and values.shape == others.shape
        if not same_form or numpy.linalg.norm(values - others) > BLOCKS * numpy.linalg.norm(values):
            problems.append(name)
    return problems


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    recorded, fresh = files(Path(sys.argv[1])), files(Path(sys.argv[2]))
    problems = [f"{name}: in one of them only" for name in sorted(recorded.keys() ^ fresh.keys())]
    for name in sorted(recorded.keys() & fresh.keys()):
        a, b = recorded[name], fresh[name]
        if a.suffix == ".safetensors":
            problems += [f"{name}: {tensor}" for tensor in tensors_differ(a, b)]
        elif a.suffix == ".gguf":
            problems += [f"{name}: {tensor}" for tensor in blocks_differ(a, b)]
        elif a.suffix == ".json":
            if numbers_differ(json.loads(a.read_text()), json.loads(b.read_text())):
                problems.append(name)
        elif a.read_bytes() != b.read_bytes():
            problems.append(name)
    if problems:
        raise SystemExit("differs from what is recorded:\n  " + "\n  ".join(problems))
    print(f"{len(recorded)} files as recorded", flush=True)


if __name__ == "__main__":
    main()
