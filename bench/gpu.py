"""The first NVIDIA GPU of this machine, as nvidia-smi tells it."""

import re
import subprocess
import sys
import threading
from pathlib import Path

# Between two looks at its memory, in seconds; a look takes about as long.
INTERVAL = 0.1
# More than a driver and a display take: somebody computes.
FOREIGN_BYTES = 2 << 30


def ask(*fields: str) -> list[str]:
    """What it says about itself; empty where there is none."""
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [field.strip() for field in done.stdout.strip().split(",")] if done.returncode == 0 else []


def describe() -> dict | None:
    """Name, driver, memory and architecture; none where there is no GPU."""
    found = ask("name", "driver_version", "memory.total", "compute_cap")
    if len(found) != 4:
        return None
    return {"gpu": found[0], "driver": found[1], "gpu_memory_gib": round(int(found[2]) / 1024, 1),
            "compute_capability": found[3]}


def describe_or_skip() -> dict:
    """The same; where there is no GPU, a benchmark says so and ends, and has not failed."""
    described = describe()
    if described is None:
        print("skipped: no GPU (nvidia-smi finds none)")
        sys.exit(0)
    return described


def used_bytes() -> int:
    """What is in use of its memory, whoever uses it."""
    found = ask("memory.used")
    if not found:
        raise RuntimeError("nvidia-smi does not answer any more")
    return int(found[0]) << 20


def refuse_others() -> None:
    """Ends a benchmark where others compute on the GPU: no figures can be taken beside them."""
    used = used_bytes()
    if used > FOREIGN_BYTES:
        sys.exit(f"error: {used / 2**30:.1f} GiB of the GPU's memory are in use: others compute on it")


def launcher(target: Path, program: Path, libraries: Path | None) -> Path:
    """One of our programs with the CUDA libraries that it loads; the peers have their own."""
    variable = f"LD_LIBRARY_PATH='{libraries}' " if libraries else ""
    target.write_text(f'#!/bin/sh\n{variable}exec "{program}" "$@"\n')
    target.chmod(0o755)
    return target


def is_named_in(revision: str, name: str) -> bool:
    """Whether what an engine says of itself (`x-graftwork-engine`) names this GPU, in place of an instruction set."""
    return re.sub(r"[^A-Za-z0-9]", "-", name) in revision


def is_too_large(said: str) -> bool:
    """Whether a trainer's last words, ours or torch's, are for want of the GPU's memory."""
    return any(words in said for words in ("OutOfMemoryError", "CUDA out of memory", "the GPU's memory is full"))


class Peak:
    """The most of its memory that is in use at a time within `with`, above what was in use before."""

    def __init__(self, used=used_bytes) -> None:
        self.used, self.before, self.most = used, 0, 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def look(self) -> None:
        while not self.done.wait(INTERVAL):
            self.most = max(self.most, self.used())

    def __enter__(self) -> "Peak":
        self.before = self.most = self.used()
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.done.set()
        self.thread.join()

    def bytes(self) -> int:
        return self.most - self.before
