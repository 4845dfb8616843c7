"""`make bench-train`: our trainer beside transformers + peft, in speed, memory and time to the first step.

Both train the same adapter from the same start on the same rows; their losses and gradients must agree.
"""

import math
import statistics
import sys
from pathlib import Path

import digests
import machine
import options
import shapes
import texts
import trainer
from children import Child, run_to_end
from report import Report, Row
from rounds import Rounds, rounds_of

HERE = Path(__file__).resolve().parent
# Of a log-normal distribution of lengths; the issue names its mean.
MEAN_LENGTH = 175
# 0.8 took the peer beyond a machine of 24 GiB.
SIGMA = 0.6
# What ours keeps for the backward pass, in bytes, by what the base is quantised to: of 1.3 GB of packed 4x256, or what
# must be kept. The same in all rows of a base. A container's limit would have set it.
ACTIVATION_BYTES = {None: 1 << 30, "Q4_K": 0}
# How far a step's loss may be from peft's in f32: the same arithmetic, a rounded one, a quantised base.
LOSS_TOLERANCE = {"ours f32": 0.01, "ours Q4_K": 0.05, "peft bf16": 0.02, "peft bf16 without AMX": 0.02}


def log_normal_lengths(count: int, mean: int) -> list[int]:
    """The quantiles of the distribution, so that a handful of rows has its shape; 3 at least."""
    normal = statistics.NormalDist()
    raw = [math.exp(SIGMA * normal.inv_cdf((index + 0.5) / count)) for index in range(count)]
    scale = mean * count / sum(raw)
    return [max(3, round(value * scale)) for value in raw]


def jobs(args, base: Path, store: Path, model: shapes.Shape) -> dict[str, trainer.Job]:
    """Packed: four rows that fill a batch exactly. Log-normal: sixteen rows, eight to a micro-batch."""
    rows_of = {
        "packed": [64] * 4 if args.quick else [256] * 4,
        "lengths": log_normal_lengths(16, 40 if args.quick else MEAN_LENGTH),
    }
    found = {}
    for name, lengths in rows_of.items():
        written, ids = texts.rows_of_length(base, lengths, model.vocabulary, seed=len(lengths))
        builder = options.binary(args, "dataset-builder")
        dataset = trainer.build_dataset(builder, args.work, store, f"{model.name}-{name}", written)
        found[name] = trainer.Job(
            name=f"{model.name}-{name}", dataset=dataset, batch=len(lengths), micro_batch=4 if name == "packed" else 8,
            longest=max(lengths), steps=3 if name == "packed" else 2, tokens_per_step=sum(lengths), rows=ids,
        )
    return found


def peft(args, base: Path, start: shapes.AdapterFolder, job: trainer.Job, dtype: str, env: dict[str, str],
         seed: int, more: dict | None = None) -> dict:
    """One run of the peer in a process of its own, which is told `more` where it does not compute as usual."""
    file = args.work / f"peft-{job.name}.json"
    shapes.write_json(file, {
        "model": str(base), "adapter": start.path, "dtype": dtype, "threads": args.threads, "rows": job.rows,
        "micro_batch": job.micro_batch, "steps": job.steps, "learning_rate": trainer.LEARNING_RATE,
        "clip": trainer.CLIP, "seed": seed,
    } | (more or {}))
    log = args.work / "logs" / "train" / f"peft-{dtype}.log"
    env = machine.thread_variables(args.threads) | env
    child = Child([sys.executable, "-P", HERE / "peer_train.py", file], log, env, talks=True)
    answer = child.ask()
    if child.wait(600) != 0:
        raise RuntimeError(f"peft failed:\n{child.tail()}")
    return {
        "first_step_s": answer["ends"][0] - child.begun_unix,
        "tokens_per_s": job.tokens_per_step * (job.steps - 1) / (answer["ends"][-1] - answer["ends"][0]),
        "peak_bytes": answer["peak_bytes"], "losses": answer["losses"], "gradient_norms": answer["gradient_norms"],
        "versions": answer["versions"], "trainable": answer["trainable"],
    }


def check(name: str, job: str, measured: dict, reference: dict) -> str:
    """What was compared; raises where losses disagree or nothing was learned."""
    losses, expected = measured["losses"], reference["losses"]
    if len(losses) != len(expected):
        raise RuntimeError(f"{name}, {job}: {len(losses)} steps, peft f32 has {len(expected)}")
    worst = max(abs(loss - other) / abs(other) for loss, other in zip(losses, expected))
    tolerance = LOSS_TOLERANCE.get(name, 0.01)
    norms = measured["gradient_norms"]
    norm_off = max(abs(norm - other) / other for norm, other in zip(norms, reference["gradient_norms"]))
    if not worst <= tolerance:
        raise RuntimeError(f"{name}, {job}: a loss is {100 * worst:.2f} % from peft f32's: {losses} and {expected}")
    if not all(math.isfinite(norm) and norm > 0 for norm in norms):
        raise RuntimeError(f"{name}, {job}: gradient norms {norms}")
    if name == "ours f32" and norm_off > 0.02:
        raise RuntimeError(f"{name}, {job}: a gradient norm is {100 * norm_off:.1f} % from peft f32's")
    if name == "ours Q4_K" and norm_off > 0.3:
        raise RuntimeError(f"{name}, {job}: a gradient norm is {100 * norm_off:.1f} % from peft f32's")
    if job == "packed":
        # Random weights have a loss of ln(vocabulary) whatever one computes: how far it falls tells more.
        fall, wanted = losses[0] - losses[-1], expected[0] - expected[-1]
        if not fall > 0:
            raise RuntimeError(f"{name}, {job}: the loss does not fall: {losses}")
        if name == "ours f32" and not abs(fall - wanted) <= 0.1 * wanted + 1e-3:
            raise RuntimeError(f"{name}, {job}: the loss falls by {fall:.4f}, peft f32's by {wanted:.4f}")
    return (f"{name}, {job}: losses within {100 * worst:.3f} %, "
            f"gradient norms within {100 * norm_off:.2f} % of peft f32's")


def rows(values: Rounds, amx: bool) -> list[Row]:
    """The table. Where AMX is there, bars are against the peer without it."""
    capped = "peft bf16 without AMX" if amx else "peft bf16"
    f32, q4, peft = ("ours f32", "packed"), ("ours Q4_K", "packed"), ("peft f32", "packed")
    packed, lengths = "packed 4x256, f32 base", f"log-normal lengths, mean {MEAN_LENGTH}"
    found = [values.row(packed, "tokens/s", f32, peft, 1.0)]
    found += [values.row(packed, "tokens/s", f32, (name, "packed")) for name in dict.fromkeys(["peft bf16", capped])]
    return found + [
        values.row(lengths, "useful tokens/s", ("ours f32", "lengths"), ("peft f32", "lengths"), 2.0),
        values.row("QLoRA Q4_K, packed 4x256", "tokens/s", q4, peft, 0.8),
        values.row("peak memory, bf16-stored base", "bytes", ("ours f32", "peak"), (capped, "peak"), 0.6, "lower"),
        values.row("peak memory, QLoRA Q4_K", "bytes", ("ours Q4_K", "peak"), (capped, "peak"), 0.3, "lower"),
        values.row("start to first step", "s", ("ours f32", "first"), ("peft f32", "first"), 0.5, "lower"),
    ]


def main() -> int:
    args = options.parse(options.parser("train", __doc__))
    model, amx = shapes.shape(args.quick), machine.has_amx()
    print("== model, rows and the adapter to start from (once)")
    base = shapes.base(args.work, model)
    base_digest = digests.base_digest(base)
    store = args.work / "store"
    start = shapes.adapters(store, model, 1)[0]
    trainer.put_start(store, start)
    todo = jobs(args, base, store, model)
    described = machine.describe()
    print("== ceilings")
    described["ceilings"] = machine.probe_ceilings(sys.executable, args.threads, args.quick)
    report = Report("train", described, options.settings(args) | {
        "model": model.name, "parameters": model.parameters(), "rank": shapes.RANK, "modules": shapes.LINEAR,
        "sigma_of_lengths": SIGMA, "lengths": log_normal_lengths(16, MEAN_LENGTH),
        "steps": {name: job.steps for name, job in todo.items()},
        "activation_bytes": {name or "f32": size for name, size in ACTIVATION_BYTES.items()},
    }, {})
    count = 0
    seen: dict[tuple[str, str], dict] = {}
    # Of the peer in f32, by job: known after the warm-up, and what every later measurement is held against.
    expected: dict[str, dict] = {}

    def note(name: str, job: str, found: dict) -> dict:
        seen[(name, job)] = found
        if expected:
            check(name, job, found, expected[job])
        return found

    def ours(quantization: str | None, job: str) -> dict:
        nonlocal count
        count += 1
        found = trainer.train(
            options.binary(args, "trainer"), args.work, store, base, base_digest, start, todo[job], quantization,
            args.threads, f"{job} {quantization} {count}", ACTIVATION_BYTES[quantization],
        )
        return note(f"ours {quantization or 'f32'}", job, found)

    def theirs(name: str, dtype: str, env: dict[str, str], job: str) -> dict:
        nonlocal count
        count += 1
        found = peft(args, base, start, todo[job], dtype, env, count)
        report.versions |= found["versions"]
        return note(name, job, found)

    def one_side(run, with_lengths: bool) -> dict:
        packed = run("packed")
        found = {"packed": packed["tokens_per_s"], "first": packed["first_step_s"], "peak": packed["peak_bytes"]}
        if with_lengths:
            found["lengths"] = run("lengths")["tokens_per_s"]
        return found

    contenders = {
        "peft f32": lambda: one_side(lambda job: theirs("peft f32", "float32", {}, job), True),
        "ours f32": lambda: one_side(lambda job: ours(None, job), True),
        "ours Q4_K": lambda: one_side(lambda job: ours("Q4_K", job), False),
        "peft bf16": lambda: one_side(lambda job: theirs("peft bf16", "bfloat16", {}, job), False),
    }
    if amx:
        contenders["peft bf16 without AMX"] = lambda: one_side(
            lambda job: theirs("peft bf16 without AMX", "bfloat16", machine.without_amx(), job), False
        )
    # Once before the rounds: files are in the page cache of all alike, and what disagrees is not timed.
    print("== warm-up, and whether they compute the same")
    for name, measure in contenders.items():
        print(f"   {name}: " + ", ".join(f"{metric} {value:.4g}" for metric, value in measure().items()))
    try:
        for (name, job), measured in seen.items():
            if name != "peft f32":
                report.checks.append(check(name, job, measured, seen[("peft f32", job)]))
                print("   " + report.checks[-1])
        if seen[("ours Q4_K", "packed")]["losses"] == seen[("ours f32", "packed")]["losses"]:
            raise RuntimeError("the trainer took no notice of Q4_K: its losses are those of the f32 base")
    except RuntimeError as error:
        print(f"error: nothing is timed: {error}", file=sys.stderr)
        return 1
    expected |= {job: measured for (name, job), measured in seen.items() if name == "peft f32"}
    values = rounds_of(contenders, args, report)
    report.checks.append("every later measurement, in the same way against peft f32 of the warm-up")
    report.rows = rows(values, amx)
    report.notes.append("peft pads eight rows to their longest, in the order in which rows come; ours packs them")
    report.write(args.out)
    return 0


if __name__ == "__main__":
    run_to_end(main)
