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


def probe_ceilings(python: str, threads: int, quick: bool) -> dict:
    """FLOP/s by type and bytes/s of memory, with and without AMX where there is AMX.

    In processes of their own: the cap is read once, and their memory is gone before anything is measured.
    """
    ceilings = {}
    variants = {"": {}}
    if has_amx():
        variants["_without_amx"] = without_amx()
    for suffix, more in variants.items():
        command = [python, "-P", str(HERE / "ceilings.py"), str(threads), "quick" if quick else "full"]
        done = subprocess.run(
            command, env={**os.environ, **more, **thread_variables(threads)}, capture_output=True, text=True
        )
        if done.returncode != 0:
            sys.exit(f"error: the ceilings can't be probed:\n{done.stderr}")
        for name, value in json.loads(done.stdout).items():
            ceilings[name + suffix] = value
    return ceilings


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
