"""What the machine is, what it can do at most, and how much of it others took."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Instruction sets that decide how fast a matrix product is; the rest of the flags would fill a page.
TELLING = re.compile(r"^(avx|avx2|fma|f16c|avx512\w*|avx_vnni|amx_\w+|asimd\w*|bf16|i8mm|sve\w*)$")


def describe() -> dict:
    """CPU model, cores that this process may use, memory and instruction sets."""
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)
    memory = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)
    return {
        "cpu": model.group(1).strip() if model else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory.group(1)) / 2**20, 1) if memory else None,
        "flags": sorted(flag for flag in (flags.group(1).split() if flags else []) if TELLING.match(flag)),
    }


def has_amx() -> bool:
    return "amx_bf16" in describe()["flags"]


def without_amx() -> dict[str, str]:
    """What caps oneDNN, which torch multiplies bf16 with, below AMX."""
    return {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}


@dataclass(frozen=True)
class InstructionSet:
    """Products that libraries make where they are told to use nothing newer."""

    name: str
    # Flags of a CPU that has it.
    flags: frozenset[str]
    # The types that it multiplies better than the sets before it.
    types: tuple[str, ...]
    # For oneDNN (bf16, int8), MKL (torch's f32) and OpenBLAS (numpy's f32).
    cap: dict[str, str]


def cap(onednn: str, mkl: str | None = None, openblas: str | None = None) -> dict[str, str]:
    told = {"ONEDNN_MAX_CPU_ISA": onednn, "MKL_ENABLE_INSTRUCTIONS": mkl, "OPENBLAS_CORETYPE": openblas}
    return {name: value for name, value in told.items() if value}


INSTRUCTION_SETS = [
    InstructionSet("avx2", frozenset({"avx2", "fma"}), ("f32",), cap("AVX2", "AVX2", "Haswell")),
    InstructionSet("avx_vnni", frozenset({"avx_vnni"}), ("int8",), cap("AVX2_VNNI")),
    InstructionSet("avx512", frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"}), ("f32",),
                   cap("AVX512_CORE", "AVX512", "SkylakeX")),
    InstructionSet("avx512_vnni", frozenset({"avx512_vnni"}), ("int8",), cap("AVX512_CORE_VNNI")),
    InstructionSet("avx512_bf16", frozenset({"avx512_bf16"}), ("bf16",), cap("AVX512_CORE_BF16")),
    InstructionSet("amx", frozenset({"amx_bf16", "amx_int8"}), ("bf16", "int8"), cap("AVX512_CORE_AMX")),
]


def instruction_sets(flags: list[str]) -> list[InstructionSet]:
    """Those of a CPU with these flags; none where it is no x86."""
    return [each for each in INSTRUCTION_SETS if each.flags <= set(flags)]


def probe_ceilings(python: str, threads: int, quick: bool) -> dict:
    """FLOP/s by type and bytes/s of memory: with all that the CPU has, and by each of its instruction sets.

    In processes of their own: a cap is read once, and their memory is gone before anything is measured. A type that
    is no library's here is left out.
    """
    ceilings = {}
    variants = [("", ("f32", "bf16", "int8", "dram"), {})]
    variants += [(f"_{each.name}", each.types, each.cap) for each in instruction_sets(describe()["flags"])]
    for suffix, types, more in variants:
        for name, value in probe(python, (threads, quick), types, more).items():
            ceilings[name + suffix] = value
    return ceilings


def probe_gpu(python: str, quick: bool) -> dict:
    """FLOP/s in bf16 and bytes/s of memory of the first GPU."""
    return probe(python, (1, quick), ("gpu",), {})


def probe(python: str, threads_quick: tuple[int, bool], types: tuple[str, ...], more: dict[str, str]) -> dict:
    """One process of ceilings.py."""
    threads, quick = threads_quick
    command = [python, "-P", HERE / "ceilings.py", str(threads), "quick" if quick else "full", ",".join(types)]
    env = {**os.environ, **more, **thread_variables(threads)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"error: the ceilings can't be probed:\n{done.stderr}")
    return json.loads(done.stdout)


def thread_variables(threads: int) -> dict[str, str]:
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"]
    return {name: str(threads) for name in names} | {"TOKENIZERS_PARALLELISM": "true"}


@dataclass(frozen=True)
class Ticks:
    """Clock ticks at one moment: of the cores that we may use, and of our own processes."""

    busy: int
    own: int
    seconds: float


def foreign_share(before: Ticks, after: Ticks, cores: int, hertz: int) -> float:
    """Share of the cores' time that processes other than ours took in between; 0 at least."""
    possible = (after.seconds - before.seconds) * cores * hertz
    if possible <= 0:
        return 0.0
    return max(0.0, (after.busy - before.busy - (after.own - before.own)) / possible)


def busy_ticks(stat: str, cores: set[int]) -> int:
    """Ticks that `cores` did not idle, from the text of /proc/stat. What a hypervisor took counts too."""
    total = 0
    for line in stat.splitlines():
        named = re.match(r"cpu(\d+) (.+)$", line)
        if named and int(named.group(1)) in cores:
            user, nice, system, _idle, _wait, irq, softirq, steal = map(int, named.group(2).split()[:8])
            total += user + nice + system + irq + softirq + steal
    return total


def tree_ticks(processes: dict[int, tuple[int, int]], root: int) -> int:
    """Ticks of `root` and all below it; `processes` is pid -> (parent, ticks with those of waited-for children)."""
    total, queue = 0, [root]
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in processes.items():
        children.setdefault(parent, []).append(pid)
    while queue:
        pid = queue.pop()
        total += processes.get(pid, (0, 0))[1]
        queue += children.get(pid, [])
    return total


def read_processes() -> dict[int, tuple[int, int]]:
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name may hold blanks and brackets: what follows the last bracket does not.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[int(entry.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    return found


class Watch:
    """Measures what others took between `start` and `stop`."""

    def __init__(self) -> None:
        self.cores = os.sched_getaffinity(0)
        self.hertz = os.sysconf("SC_CLK_TCK")
        self.begun = self.now()

    def now(self) -> Ticks:
        busy = busy_ticks(Path("/proc/stat").read_text(), self.cores)
        return Ticks(busy, tree_ticks(read_processes(), os.getpid()), time.monotonic())

    def start(self) -> None:
        self.begun = self.now()

    def stop(self) -> float:
        """The share since `start`."""
        return foreign_share(self.begun, self.now(), len(self.cores), self.hertz)
