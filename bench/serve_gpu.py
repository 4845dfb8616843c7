"""`make bench-serve-gpu`: our engine over HTTP beside transformers + peft in process, on an NVIDIA GPU.

A Llama of the shape of Llama-3.1-8B with random weights in bf16; 64 greedy streams for 1, 8 and 64 different adapters
of rank 16 on all linear layers. What is answered is checked before a time counts.
"""

import json
import sys
from pathlib import Path

import digests
import gpu
import machine
import options
import shapes
from answers import judge_answers, mean, ratio_interval
from children import Child, raise_open_files, run_to_end
from engine import Engine
from report import Report, Row
from rounds import Rounds, rounds_of
from serve import ADAPTERS, HERE, Work, check_answers, draw_samples

STREAMS = 64
# Different adapters in a batch of all streams; none: the base alone.
COUNTS = (0, 1, 8, 64)
PEER = "peft bf16"
# How many times as far from f32 as the peer ours may be. Its adapters are in f32 over a base in bf16, ours in bf16.
FARTHEST = 2.0


def rows(values: Rounds, shape: str) -> list[Row]:
    """No bars: these figures are on record, and which GPU they are of decides them."""
    found = []
    for count in COUNTS:
        case = f"{shape}, {adapters_in_words(count)} in {STREAMS} streams"
        found.append(values.row(case, "tokens/s", ("ours", metric(count)), (PEER, metric(count))))
    for count in COUNTS[1:]:
        case = f"{shape}, {adapters_in_words(count)} against our own base"
        found.append(values.row(case, "tokens/s", ("ours", metric(count)), ("ours", metric(0)), called="our base"))
    return found


def adapters_in_words(count: int) -> str:
    return {0: "no adapter", 1: "1 adapter"}.get(count, f"{count} adapters")


def metric(count: int) -> str:
    return f"adapters_{count}"


def read_arguments():
    made = options.parser("serve-gpu", __doc__)
    made.add_argument("--engine", type=Path, required=True, help="our engine, built for this GPU")
    made.add_argument("--libraries", type=Path, help="the folder of the CUDA libraries that it loads")
    return options.parse(made)


def start_peft(args, name: str, dtype: str, base: Path, adapters: list[shapes.AdapterFolder], report: Report) -> Child:
    """transformers + peft on the GPU, ready."""
    told = {
        "model": str(base), "adapters": [adapter.path for adapter in adapters], "dtype": dtype, "device": "cuda",
        "threads": args.threads,
    }
    log = args.work / "logs" / "serve-gpu" / f"{name.replace(' ', '-')}.log"
    command = [sys.executable, "-P", HERE / "peer_peft.py", json.dumps(told)]
    child = Child(command, log, machine.thread_variables(args.threads), talks=True)
    report.versions[name] = child.ask()["version"]
    print(f"   {name} is ready")
    return child


def main() -> int:
    described = gpu.describe_or_skip()
    args = read_arguments()
    gpu.refuse_others()
    model = shapes.QUICK if args.quick else shapes.EIGHT_BILLION
    work = Work(model, args.quick, STREAMS)
    print("== model, adapters and their digests (once; minutes)")
    base = shapes.base(args.work, model)
    long_base, store = shapes.with_context(args.work, base, model, 8192), args.work / "store"
    adapters = shapes.adapters(store, model, max(COUNTS))
    raise_open_files(4096)
    print("== ceilings")
    machine_described = machine.describe() | described
    machine_described["ceilings"] = machine.probe_gpu(sys.executable, args.quick)
    report = Report("serve-gpu", machine_described, options.settings(args) | {
        "model": model.name, "parameters": model.parameters(), "rank": shapes.RANK, "modules": shapes.LINEAR,
        "streams": STREAMS, "new_tokens": work.new_tokens,
    }, {})

    print("== engine and peer")
    # In f32 it takes the most memory of all, and goes before the others come.
    reference = start_peft(args, "f32 reference", "float32", base, adapters[:ADAPTERS], report)
    samples = draw_samples(reference, args.quick)
    reference.stop()
    empty = gpu.used_bytes()
    engine = Engine(
        gpu.launcher(args.work / "engine-gpu", args.engine, args.libraries), args.work, long_base,
        digests.base_digest(long_base), store, adapters, threads=args.threads, streams=STREAMS, loaded=len(adapters),
        quantization=None,
    )
    engine.wait_for(adapters, {"verified", "resident"}, 1800)
    report.versions["engine"] = engine.revision()
    if not gpu.is_named_in(report.versions["engine"], described["gpu"]):
        print(f"error: our engine does not compute on {described['gpu']}: {engine.child.log}", file=sys.stderr)
        return 1
    print(f"   our engine has verified {len(adapters)} adapters")
    peer = start_peft(args, PEER, "bfloat16", base, adapters, report)

    print("== answers")
    terms, far = check_answers(engine, adapters, samples, {PEER: peer})
    for name, values in terms.items():
        report.checks.append(f"{name}: KL {mean(values):.2e} a token from f32 (without the adapter {far:.2e})")
        print("   " + report.checks[-1])
    low, high = ratio_interval(terms["ours"], terms[PEER])
    report.checks.append(f"ours over {PEER}: {low:.2f} to {high:.2f} times as far from f32 (95 %)")
    print("   " + report.checks[-1])
    wrong = judge_answers(terms, far, PEER, FARTHEST)
    if wrong:
        print("error: nothing is timed: " + "; ".join(wrong), file=sys.stderr)
        return 1

    def ours() -> dict:
        found = {}
        for count in COUNTS:
            streams = work.streams(count)
            asked = [("base" if adapter is None else adapters[adapter].name, prompt) for adapter, prompt in streams]
            seconds = engine.generate(asked, work.new_tokens, STREAMS)
            found[metric(count)] = STREAMS * work.new_tokens / seconds
        return found

    def theirs() -> dict:
        found = {}
        for count in COUNTS:
            answer = peer.ask(do="generate", streams=work.streams(count), new_tokens=work.new_tokens)
            if any(len(tokens) != work.new_tokens for tokens in answer["answers"]):
                raise RuntimeError(f"{PEER} gave another number of tokens than it was asked for")
            found[metric(count)] = STREAMS * work.new_tokens / answer["seconds"]
        return found

    contenders = {"ours": ours, PEER: theirs}
    print("== warm-up")
    for name, measure in contenders.items():
        print(f"   {name}: " + ", ".join(f"{metric} {value:.4g}" for metric, value in measure().items()))
    values = rounds_of(contenders, args, report)
    report.rows = rows(values, model.name)
    together = (gpu.used_bytes() - empty) / 2**30
    peer.stop()
    alone = (gpu.used_bytes() - empty) / 2**30
    report.notes.append(
        f"of the GPU's memory, by nvidia-smi at the end: ours {alone:.1f} GiB with 4 GiB for keys and values, "
        f"{PEER} {together - alone:.1f} GiB, of which torch keeps what it has freed"
    )
    report.write(args.out)
    return 0


if __name__ == "__main__":
    run_to_end(main)
