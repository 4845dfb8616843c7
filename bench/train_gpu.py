"""`make bench-train-gpu`: our trainer beside transformers + peft + sdpa on an NVIDIA GPU, in speed and memory.

A Llama of the shape of Llama-3.1-8B with random weights, rank 16 on all linear layers, rows that fill the batch. Both
train the same adapter from the same start on the same rows in bf16; their losses must agree.
"""

import sys
from pathlib import Path

import digests
import gpu
import machine
import options
import shapes
import texts
import trainer
from agreement import agreement
from children import run_to_end
from report import Report, Row
from rounds import Rounds, rounds_of
from train import peft

# What a loss, and a gradient's norm, may be from the reference's, in parts of these.
TOLERANCE = {"ours bf16": (0.02, 0.1), "ours Q4_K": (0.05, 0.3), "peft bf16": (0.02, 0.1)}
# Keeps few activations, and so fits wherever anything does: the others are held against it.
REFERENCE = "peft bf16, checkpointing"
STEPS = 4


def check(name: str, seen: dict[str, dict]) -> str:
    return agreement(name, seen[name], REFERENCE, seen[REFERENCE], TOLERANCE[name])


def rows(values: Rounds, case: str, names: list[str]) -> list[Row]:
    """No bars: these figures are on record, and which GPU they are of decides them."""
    found = []
    for ours in (name for name in names if name.startswith("ours")):
        for peer in (name for name in names if name.startswith("peft")):
            called = f"{case}, {ours.removeprefix('ours ')} base"
            found.append(values.row(called, "tokens/s", (ours, "speed"), (peer, "speed")))
            found.append(values.row(called, "bytes of the GPU's memory", (ours, "peak"), (peer, "peak"), None, "lower"))
            found.append(values.row(called, "s to the first step", (ours, "first"), (peer, "first"), None, "lower"))
    return found


def read_arguments():
    made = options.parser("train-gpu", __doc__)
    made.add_argument("--rows", type=int, default=4, help="rows of a batch, in one pass (default 4)")
    made.add_argument("--length", type=int, default=4096, help="tokens of a row (default 4096)")
    made.add_argument("--trainer", type=Path, required=True, help="our trainer, built for this GPU")
    made.add_argument("--libraries", type=Path, help="the folder of the CUDA libraries that it loads")
    return options.parse(made)


def main() -> int:
    described = gpu.describe_or_skip()
    args = read_arguments()
    gpu.refuse_others()
    model = shapes.QUICK if args.quick else shapes.EIGHT_BILLION
    length = min(args.length, 256) if args.quick else args.length
    print("== model, rows and the adapter to start from (once; minutes)")
    base = shapes.base(args.work, model)
    base_digest, store = digests.base_digest(base), args.work / "store"
    start = shapes.adapters(store, model, 1)[0]
    trainer.put_start(store, start)
    written, ids = texts.rows_of_length(base, [length] * args.rows, model.words, seed=length)
    name = f"{model.name}-{args.rows}x{length}"
    dataset = trainer.build_dataset(options.binary(args, "dataset-builder"), args.work, store, name, written)
    job = trainer.Job(
        name=name, dataset=dataset, batch=args.rows, micro_batch=args.rows, longest=length, steps=STEPS,
        tokens_per_step=args.rows * length, rows=ids,
    )
    print("== ceilings")
    machine_described = machine.describe() | described
    machine_described["ceilings"] = machine.probe_gpu(sys.executable, args.quick)
    report = Report("train-gpu", machine_described, options.settings(args) | {
        "model": model.name, "parameters": model.parameters(), "rank": shapes.RANK, "modules": shapes.LINEAR,
        "rows": args.rows, "length": length, "steps": STEPS,
    }, {})
    binary = gpu.launcher(args.work / "trainer-gpu", args.trainer, args.libraries)
    count = 0
    seen: dict[str, dict] = {}

    def measured(name: str, run) -> dict:
        """One run of a side, with the GPU's memory watched."""
        nonlocal count
        count += 1
        with gpu.Peak() as peak:
            found = run()
        first = name not in seen
        seen[name] = found
        if not first and name != REFERENCE:
            check(name, seen)
        return {"speed": found["tokens_per_s"], "first": found["first_step_s"], "peak": peak.bytes()}

    def ours(quantization: str | None) -> dict:
        found = trainer.train(
            binary, args.work, store, base, base_digest, start, job, quantization, args.threads,
            f"gpu {quantization} {count}",
        )
        log = (args.work / f"bench-{job.name}.log").read_text()
        if f"computes on {described['gpu']}" not in log:
            raise RuntimeError(f"our trainer does not compute on {described['gpu']}: {args.work}/bench-{job.name}.log")
        return found

    def theirs(checkpointing: bool) -> dict:
        told = {"device": "cuda", "checkpointing": checkpointing}
        found = peft(args, base, start, job, "bfloat16", {}, count, told)
        report.versions |= found["versions"]
        return found

    contenders = {
        REFERENCE: lambda: measured(REFERENCE, lambda: theirs(True)),
        "peft bf16": lambda: measured("peft bf16", lambda: theirs(False)),
        "ours bf16": lambda: measured("ours bf16", lambda: ours(None)),
        "ours Q4_K": lambda: measured("ours Q4_K", lambda: ours("Q4_K")),
    }
    print("== warm-up, and whether they compute the same")
    try:
        for name in list(contenders):
            try:
                found = contenders[name]()
            except RuntimeError as error:
                if name == REFERENCE or not gpu.is_too_large(str(error)):
                    raise
                report.notes.append(f"{name}: {args.rows}x{length} does not fit into the GPU's memory")
                print("   " + report.notes[-1])
                del contenders[name]
                continue
            print(f"   {name}: " + ", ".join(f"{metric} {value:.4g}" for metric, value in found.items()))
        for name in contenders:
            if name != REFERENCE:
                report.checks.append(check(name, seen))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    values = rounds_of(contenders, args, report)
    report.rows = rows(values, f"{model.name}, packed {args.rows}x{length}", list(contenders))
    report.notes.append("the GPU's memory is nvidia-smi's, of the whole process; torch keeps what it has freed")
    report.write(args.out)
    return 0


if __name__ == "__main__":
    run_to_end(main)
