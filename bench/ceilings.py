"""Prints as JSON what this machine can do at most: FLOP/s of products by type, bytes/s of memory.

A process of its own, so that ONEDNN_MAX_CPU_ISA counts. By torch where it is installed, else by numpy.
"""

import json
import sys
import time


def best(work, rounds: int) -> float:
    """Seconds of the fastest round: others can only slow a ceiling down."""
    work()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def by_torch(threads: int, size: int, megabytes: int, rounds: int) -> dict:
    import torch

    torch.set_num_threads(threads)
    found = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        found[f"{name}_gflops"] = 2 * size**3 / best(lambda: a @ b, rounds) / 1e9
    try:
        a, b = (torch.randint(-127, 127, (size, size), dtype=torch.int8) for _ in range(2))
        found["int8_gops"] = 2 * size**3 / best(lambda: torch._int_mm(a, b), rounds) / 1e9
    except (RuntimeError, AttributeError):
        pass  # not in every build
    source = torch.ones(megabytes << 18)
    target = torch.empty_like(source)
    seconds = best(lambda: target.copy_(source), rounds)
    found["dram_copy_gb_per_s"] = 2 * (megabytes << 20) / seconds / 1e9
    return found


def by_numpy(size: int, megabytes: int, rounds: int) -> dict:
    import numpy

    a, b = (numpy.random.default_rng(1).standard_normal((size, size), dtype=numpy.float32) for _ in range(2))
    found = {"f32_gflops": 2 * size**3 / best(lambda: a @ b, rounds) / 1e9}
    source = numpy.ones(megabytes << 18, dtype=numpy.float32)
    target = numpy.empty_like(source)
    seconds = best(lambda: numpy.copyto(target, source), rounds)
    found["dram_copy_one_thread_gb_per_s"] = 2 * (megabytes << 20) / seconds / 1e9
    return found


def main() -> None:
    threads, quick = int(sys.argv[1]), sys.argv[2] == "quick"
    size, megabytes, rounds = (1024, 128, 3) if quick else (2048, 1024, 5)
    try:
        found = by_torch(threads, size, megabytes, rounds)
    except ImportError:
        found = by_numpy(size, megabytes, rounds)
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))


if __name__ == "__main__":
    main()
