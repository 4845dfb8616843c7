"""Our trainer and dataset builder as processes, on files and without a cluster."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import digests
from children import Child
from shapes import ALPHA, LINEAR, RANK, AdapterFolder, write_json
from steplog import step_times


@dataclass(frozen=True)
class Dataset:
    """A built version in the store."""

    name: str
    version: int
    digest: str


@dataclass(frozen=True)
class Job:
    """What both sides train: the same rows, the same batches, the same start."""

    name: str
    dataset: Dataset
    batch: int
    micro_batch: int
    longest: int
    # The first is for warming up.
    steps: int
    tokens_per_step: int
    # Rows as ids, for the peer.
    rows: list[list[int]]


LEARNING_RATE = 1e-4
CLIP = 1.0


def build_dataset(binary: Path, work: Path, store: Path, name: str, texts: list[str]) -> Dataset:
    """By the real builder; one that was built before is found again."""
    rows = work / f"{name}.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = {
        "dataset": name, "fingerprint": digests.of_bytes(rows.read_bytes()), "format": "Text",
        "sources": [{"name": "rows", "uri": f"bench://{name}", "path": str(rows)}],
        "validation": {"minimumRows": 1, "maximumInvalidPercent": "0"},
        "split": {"groupColumn": None, "trainPercent": 100, "validationPercent": 0, "testPercent": 0, "seed": 1},
    }
    file, summary = work / f"{name}-build.json", work / f"{name}-summary.json"
    write_json(file, config)
    child = Child([binary, "--config", file, "--store", store, "--termination-file", summary], work / f"{name}.log")
    if child.wait(600) != 0:
        raise RuntimeError(f"the dataset builder failed:\n{child.tail()}")
    built = json.loads(summary.read_text())
    return Dataset(name, built["version"], built["digest"])


def put_start(store: Path, adapter: AdapterFolder) -> None:
    """The adapter that training starts from, where the trainer looks for it."""
    target = store / "adapters" / "start" / adapter.digest.removeprefix("sha256:")
    if not target.exists():
        shutil.copytree(adapter.path, target)


def train(binary: Path, work: Path, store: Path, base: Path, base_digest: str, start: AdapterFolder, job: Job,
          quantization: str | None, threads: int, attempt: str, activation_bytes: int | None = None) -> dict:
    """One run from its start to its result. `attempt` makes it one of its own: nothing is found done."""
    run = f"bench-{job.name}"
    key = digests.of_bytes(attempt.encode())
    folder = store / "runs" / run
    shutil.rmtree(folder, ignore_errors=True)
    resolved_base = {"uri": "bench", "path": str(base), "digest": base_digest}
    if quantization:
        resolved_base["quantization"] = quantization
    config = {
        "run": run, "key": key, "adapter": None, "threads": threads,
        "resolved": {
            "base": resolved_base,
            "dataset": {
                "name": job.dataset.name, "version": job.dataset.version, "digest": job.dataset.digest,
                "format": "Text",
            },
            "reference": None,
            "initial": {"adapter": "start", "version": 1, "digest": start.digest},
        },
        "lora": {"rank": RANK, "alpha": ALPHA, "dropout": 0.0, "targetModules": LINEAR},
        "hyperparameters": {
            "learningRate": LEARNING_RATE, "schedule": "Constant", "warmupSteps": 0, "epochs": 1,
            "maximumSteps": job.steps, "batchSize": job.batch, "microBatchSize": job.micro_batch,
            "maximumSequenceLength": job.longest, "weightDecay": 0.0, "maximumGradientNorm": CLIP, "seed": 1,
        },
        "checkpoint": {"everySteps": 10**6, "keep": 1},
        "evaluation": {"metrics": [], "maximumNewTokens": 1, "maximumRows": None, "precision": quantization or "None"},
    }
    file = work / f"{run}.json"
    write_json(file, config)
    child = Child(
        [binary, "run", "--config", file, "--store", store, "--termination-file", work / f"{run}-summary.json",
         "--listen", "127.0.0.1:0",
         *(["--activation-bytes", str(activation_bytes)] if activation_bytes is not None else [])],
        work / f"{run}.log", {"RUST_LOG": "info"},
    )
    peak = 0

    def look() -> None:
        nonlocal peak
        peak = max(peak, child.peak_bytes())

    if child.wait(3600, look) != 0:
        raise RuntimeError(f"the trainer failed:\n{child.tail()}")
    times = step_times(child.log.read_text().splitlines())
    if set(times) < {1, job.steps}:
        raise RuntimeError(f"the trainer's log has steps {sorted(times)}, not 1 and {job.steps}: {child.log}")
    records = [
        json.loads(line) for each in sorted((folder / key.removeprefix("sha256:") / "metrics").glob("*.jsonl"))
        for line in each.read_text().splitlines()
    ]
    return {
        "first_step_s": times[1] - child.begun_unix,
        "tokens_per_s": job.tokens_per_step * (job.steps - 1) / (times[job.steps] - times[1]),
        "peak_bytes": peak,
        "losses": [record["loss"] for record in records],
        "gradient_norms": [record["gradientNorm"] for record in records],
    }
