"""Prints as JSON what this machine can do at most: FLOP/s of products by type, bytes/s of memory.

Arguments: threads, `quick` or `full`, and what is asked for (f32, bf16, int8, dram; or gpu alone). A process of its
own, so that caps on instruction sets count. By torch where it is installed, else by numpy, which has f32 and memory
alone.
"""

import json
import sys
import time


# A first product that takes longer is by no kernel at all, and its figure needs no others beside it.
PATIENCE_SECONDS = 5


def best(work, rounds: int) -> float:
    """Seconds of the fastest round: others can only slow a ceiling down."""
    begun = time.perf_counter()
    work()
    times = [time.perf_counter() - begun]
    if times[0] > PATIENCE_SECONDS:
        return times[0]
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def by_torch(threads: int, asked: set[str], size: int, megabytes: int, rounds: int) -> dict:
    import torch

    torch.set_num_threads(threads)
    found = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        if name in asked:
            a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
            found[f"{name}_gflops"] = 2 * size**3 / best(lambda: a @ b, rounds) / 1e9
    if "int8" in asked:
        try:
            a, b = (torch.randint(-127, 127, (size, size), dtype=torch.int8) for _ in range(2))
            found["int8_gops"] = 2 * size**3 / best(lambda: torch._int_mm(a, b), rounds) / 1e9
        except (RuntimeError, AttributeError):
            pass  # not in every build
    if "dram" in asked:
        source = torch.ones(megabytes << 18)
        target = torch.empty_like(source)
        seconds = best(lambda: target.copy_(source), rounds)
        found["dram_copy_gb_per_s"] = 2 * (megabytes << 20) / seconds / 1e9
    return found


def by_gpu(quick: bool) -> dict:
    """Of the first GPU, in bf16: what products reach that its memory does not hold back, and a copy's bytes."""
    import torch

    size, megabytes, rounds = (2048, 256, 3) if quick else (8192, 4096, 10)

    def timed(work) -> float:
        def once() -> None:
            work()
            torch.cuda.synchronize()

        return best(once, rounds)

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.ones(megabytes << 18, device="cuda")
    target = torch.empty_like(source)
    return {
        "gpu_bf16_tflops": 2 * size**3 / timed(lambda: a @ b) / 1e12,
        "gpu_copy_gb_per_s": 2 * (megabytes << 20) / timed(lambda: target.copy_(source)) / 1e9,
    }


def by_numpy(asked: set[str], size: int, megabytes: int, rounds: int) -> dict:
    import numpy

    found = {}
    if "f32" in asked:
        a, b = (numpy.random.default_rng(1).standard_normal((size, size), dtype=numpy.float32) for _ in range(2))
        found["f32_gflops"] = 2 * size**3 / best(lambda: a @ b, rounds) / 1e9
    if "dram" in asked:
        source = numpy.ones(megabytes << 18, dtype=numpy.float32)
        target = numpy.empty_like(source)
        seconds = best(lambda: numpy.copyto(target, source), rounds)
        found["dram_copy_one_thread_gb_per_s"] = 2 * (megabytes << 20) / seconds / 1e9
    return found


def main() -> None:
    threads, quick, asked = int(sys.argv[1]), sys.argv[2] == "quick", set(sys.argv[3].split(","))
    size, megabytes, rounds = (1024, 128, 3) if quick else (2048, 1024, 5)
    try:
        found = by_gpu(quick) if "gpu" in asked else by_torch(threads, asked, size, megabytes, rounds)
    except ImportError:
        found = by_numpy(asked, size, megabytes, rounds)
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))


if __name__ == "__main__":
    main()
