"""Compares two recordings: what was recorded elsewhere, or with other versions, should differ by rounding only.

    python compare.py RECORDED FRESH
"""

import json
import math
import sys
from pathlib import Path

from safetensors.torch import load_file

# Tensors may differ by this part of their norm, numbers by this much: a fifth of the tests' bars.
TENSORS = 2e-3
NUMBERS = 2e-3


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


def tensors_differ(a: Path, b: Path) -> list[str]:
    first, second = load_file(a), load_file(b)
    if first.keys() != second.keys():
        return sorted(first.keys() ^ second.keys())
    apart = []
    for name, value in first.items():
        other = second[name].double()
        value = value.double()
        if value.shape != other.shape or not (value - other).norm() <= TENSORS * value.norm():
            apart.append(name)
    return apart


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    recorded, fresh = files(Path(sys.argv[1])), files(Path(sys.argv[2]))
    problems = [f"{name}: in one of them only" for name in sorted(recorded.keys() ^ fresh.keys())]
    for name in sorted(recorded.keys() & fresh.keys()):
        a, b = recorded[name], fresh[name]
        if a.suffix == ".safetensors":
            problems += [f"{name}: {tensor}" for tensor in tensors_differ(a, b)]
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
