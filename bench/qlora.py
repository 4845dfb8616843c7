"""`make qlora-figures`: the test loss of a fine-tune beside a quantised base, against the same one beside bf16.

The demo's task (a noun's definition, its topic) on the demo's base model, which is widened by zeros such that every
weight of its layers fits the blocks of Q4_K. The same rows, order, start and settings for all; scored by the passes
that serve, on rows that neither base nor adapter has seen. It fails where a bar is missed.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import digests
import machine
import options
import widen
from children import Child, run_to_end

DEMO = options.CLONE / "e2e" / "demo-data"
# Values of one block of Q4_K.
BLOCK = 256
# How much higher than the bf16 base's a test loss may be.
BARS = {"Q8_0": 0.02, "Q4_K": 0.05}
FORMS = ["bf16", *BARS]
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Scored:
    """The loss on the test rows, in nats: of what was trained, and of the bare base."""

    tuned: float
    bare: float
    rows: int


def write_text(work: Path) -> Path:
    """The demo's rows, from WordNet's data files."""
    dictionary = Path(os.environ.get("WORDNET_DIR", "/usr/share/wordnet"))
    if not (dictionary / "data.noun").exists():
        sys.exit(f"error: {dictionary}/data.noun is missing: apt-get install wordnet-base, or set WORDNET_DIR")
    text = work / "text"
    command = [sys.executable, DEMO / "wordnet.py", "--dict", dictionary, "--out", text]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"error: the demo's text can't be made:\n{done.stderr}")
    return text / "topics.jsonl"


def build_dataset(binary: Path, work: Path, rows: Path) -> dict:
    """The version that the builder makes of the rows. What is tested on is what the base never saw: see wordnet.py."""
    config, summary = work / "dataset.json", work / "dataset-summary.json"
    config.write_text(json.dumps({
        "dataset": "topics", "fingerprint": digests.of_bytes(rows.read_bytes()), "format": "Completion",
        "sources": [{"name": "rows", "uri": "bench://topics", "path": str(rows)}],
        "validation": {"minimumRows": 1, "maximumInvalidPercent": "0"},
        "split": {"groupColumn": "synset", "trainPercent": 90, "validationPercent": 5, "testPercent": 5, "seed": 7},
    }))
    command = [binary, "--config", config, "--store", work / "store", "--termination-file", summary]
    child = Child(command, work / "dataset.log")
    if child.wait(600) != 0:
        raise RuntimeError(f"the dataset builder failed:\n{child.tail()}")
    built = json.loads(summary.read_text())
    return {"name": "topics", "version": built["version"], "digest": built["digest"], "format": "Completion"}


def run_config(name: str, base: Path, dataset: dict, form: str, args: argparse.Namespace, seed: int) -> dict:
    """A run as the demo has it, on all linear layers."""
    resolved_base = {"uri": "bench", "path": str(base), "digest": digests.base_digest(base)}
    if form in BARS:
        resolved_base["quantization"] = form
    return {
        "run": name, "adapter": None, "threads": args.threads,
        # Of its own each time: nothing is found done.
        "key": digests.of_bytes(f"{name} {time.time_ns()}".encode()),
        "resolved": {"base": resolved_base, "dataset": dataset, "reference": None},
        "lora": {"rank": 16, "alpha": 32.0, "dropout": 0.0, "targetModules": MODULES},
        "hyperparameters": {
            "learningRate": 2e-3, "schedule": "Cosine", "warmupSteps": min(20, args.steps // 2), "epochs": 1,
            "maximumSteps": args.steps, "batchSize": 32, "microBatchSize": 32, "maximumSequenceLength": 128,
            "weightDecay": 0.0, "maximumGradientNorm": 1.0, "seed": seed,
        },
        "checkpoint": {"everySteps": 10**6, "keep": 1},
        "evaluation": {"metrics": ["Loss"], "maximumNewTokens": 1, "maximumRows": None, "precision": form if form in BARS else "None"},
    }


def train(binary: Path, work: Path, config: dict) -> Scored:
    """Trains, scores, and reads what came out."""
    name, store = config["run"], work / "store"
    shutil.rmtree(store / "runs" / name, ignore_errors=True)
    file = work / f"{name}.json"
    file.write_text(json.dumps(config))
    child = Child(
        [binary, "run", "--config", file, "--store", store, "--termination-file", work / f"{name}-summary.json",
         "--listen", "127.0.0.1:0"],
        work / f"{name}.log", {"RUST_LOG": "info"},
    )
    if child.wait(7200) != 0:
        raise RuntimeError(f"the trainer failed:\n{child.tail()}")
    result = json.loads((store / "runs" / name / config["key"].removeprefix("sha256:") / "result.json").read_text())
    loss = next(metric for metric in result["metrics"] if metric["name"] == "loss")
    return Scored(loss["value"], loss["baseline"], loss["samples"])


def judge(found: dict[str, list[Scored]], demo: Scored) -> tuple[list[dict], list[str]]:
    """A row for each form, with the median of the seeds' ratios; and why these are no figures, or miss their bar."""
    problems = []
    plain = found["bf16"]
    if abs(plain[0].bare / demo.bare - 1) > 1e-3:
        problems.append(f"the widened base has a loss of {plain[0].bare:.4f}, the demo's base of {demo.bare:.4f}: "
                        "widening has changed it")
    rows = []
    for form in FORMS:
        ratios = [mine.tuned / other.tuned for mine, other in zip(found[form], plain)]
        tuned, bare = (statistics.median(values) for values in zip(*((each.tuned, each.bare) for each in found[form])))
        row = {"base": form, "bare": bare, "tuned": tuned, "ratio": statistics.median(ratios), "lowest": min(ratios),
               "highest": max(ratios), "bar": None, "met": None}
        if not tuned < 0.9 * bare:
            problems.append(f"{form}: the test loss went from {bare:.4f} to {tuned:.4f}: nothing was learned")
        if form in BARS:
            row["bar"] = 1 + BARS[form]
            row["met"] = row["ratio"] <= row["bar"]
            if bare == plain[0].bare:
                problems.append(f"{form}: the bare base has the bf16 one's loss: it was not quantised")
            if not row["met"]:
                problems.append(f"{form}: the test loss is {row['ratio']:.4f} of the bf16 base's, above {row['bar']:g}")
        rows.append(row)
    return rows, problems


def table(rows: list[dict]) -> str:
    lines = ["| base | test loss, bare | fine-tuned | to bf16's | lowest to highest | bar | |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        bar = "" if row["bar"] is None else f"<= {row['bar']:g}"
        verdict = {None: "", True: "met", False: "missed"}[row["met"]]
        lines.append(f"| {row['base']} | {row['bare']:.4f} | {row['tuned']:.4f} | {row['ratio']:.4f} "
                     f"| {row['lowest']:.4f} to {row['highest']:.4f} | {bar} | {verdict} |")
    return "\n".join(lines)


def read_arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(
        prog="make qlora-figures", description=__doc__.splitlines()[0],
        epilog="Examples: make qlora-figures; make qlora-figures BENCH='--seeds 3 --steps 200'",
    )
    made.add_argument("--seeds", type=int, default=1, help="fine-tunes of each base; the median counts (default 1)")
    made.add_argument("--steps", type=int, default=400, help="steps of 32 rows (default 400)")
    made.add_argument("--threads", type=int, default=2, help="compute threads (default 2)")
    made.add_argument("--bin", type=Path, default=options.binaries(), metavar="FOLDER", help="our binaries")
    made.add_argument("--out", type=Path, default=options.CLONE / "target" / "bench", metavar="FOLDER",
                      help="where figures go")
    made.add_argument("--work", type=Path, default=options.cache_folder() / "qlora", metavar="FOLDER",
                      help="text, base and logs")
    args = made.parse_args()
    for name in ("seeds", "steps", "threads"):
        if getattr(args, name) < 1:
            made.error(f"--{name} {getattr(args, name)} is too small: it is at least 1")
    return args


def main() -> int:
    args = read_arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    trainer, builder = options.binary(args, "trainer"), options.binary(args, "dataset-builder")
    print("== rows, and the base")
    (args.work / "store").mkdir(exist_ok=True)
    dataset = build_dataset(builder, args.work, write_text(args.work))
    wide = args.work / "base"
    config = widen.widen(DEMO / "base-model", wide, BLOCK)
    print(f"   hidden size {config['hidden_size']}, feed-forward size {config['intermediate_size']}, "
          f"{config['num_hidden_layers']} layers: every weight of a layer fits blocks of {BLOCK} inputs")
    once = argparse.Namespace(**vars(args) | {"steps": 1})
    demo = train(trainer, args.work, run_config("demo", DEMO / "base-model", dataset, "bf16", once, 1))
    print(f"== {args.seeds} fine-tunes each, {args.steps} steps")
    found: dict[str, list[Scored]] = {form: [] for form in FORMS}
    for seed in range(1, args.seeds + 1):
        for form in FORMS:
            begun = time.monotonic()
            name = f"{form.lower().replace('_', '-')}-{seed}"
            scored = train(trainer, args.work, run_config(name, wide, dataset, form, args, seed))
            found[form].append(scored)
            print(f"   {form}, seed {seed}: test loss {scored.bare:.4f} before, {scored.tuned:.4f} after "
                  f"({scored.rows} rows, {time.monotonic() - begun:.0f} s)")
    rows, problems = judge(found, demo)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {"steps": args.steps, "seeds": args.seeds, "threads": args.threads}
    document = {"machine": machine.describe(), "settings": settings, "rows": rows, "problems": problems}
    (args.out / "qlora.json").write_text(json.dumps(document, indent=1) + "\n")
    (args.out / "qlora.md").write_text(table(rows) + "\n")
    print("\n" + table(rows) + f"\n\nwritten: {args.out / 'qlora'}.json and .md")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    run_to_end(main)
