"""`make bench-serve`: our engine over HTTP beside llama.cpp and transformers + peft in process.

The same random model and adapters for all; what is answered is checked before a time counts.
"""

import json
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import broken
import digests
import fairness
import latency
import machine
import options
import shapes
from answers import divergences, is_quantised, judge_answers, mean, ratio_interval
from children import Child, raise_open_files, run_to_end
from engine import Engine
from report import Report, Row, best_of, compare
from rounds import Rounds, rounds_of, take_turns

HERE = Path(__file__).resolve().parent
STREAMS = 32
ADAPTERS = 8
# Adapters of a round whose first request is timed.
COLD = 5
# How often a round turns from our base to adapters and back.
TURNS = 3


class Work:
    """Sizes of what is asked for, and requests that nobody has seen before: no prefix is in anybody's cache."""

    def __init__(self, model: shapes.Shape, quick: bool, streams: int = STREAMS) -> None:
        self.model = model
        self.new_tokens = 8 if quick else 64
        self.lengths = [16 + (128 - 16) * index // (streams - 1) for index in range(streams)]
        self.prefill = 128 if quick else 512
        self.registered = 64 if quick else 1000
        self.loaded = 40 if quick else 64
        self.turns = 1 if quick else TURNS
        self.numbers = random.Random(3)

    def prompt(self, length: int) -> list[int]:
        return [0] + [self.numbers.randrange(2, self.model.words) for _ in range(length - 1)]

    def streams(self, adapters: int) -> list[tuple[int | None, list[int]]]:
        """All streams; row `i` asks for adapter `i` modulo `adapters`, or for none."""
        wanted = [index % adapters if adapters else None for index in range(len(self.lengths))]
        return [(adapter, self.prompt(length)) for adapter, length in zip(wanted, self.lengths)]

    def zipf(self) -> list[tuple[int, list[int]]]:
        """Three waves of streams, each for an adapter drawn by Zipf's law from all that are registered."""
        weights = [1 / (rank + 1) for rank in range(self.registered)]
        return [
            (self.numbers.choices(range(self.registered), weights)[0], self.prompt(length))
            for length in self.lengths * 3
        ]


class Ours:
    """What is measured of the engine."""

    def __init__(self, engine: Engine, adapters: list[shapes.AdapterFolder], spare: list[shapes.AdapterFolder],
                 work: Work) -> None:
        self.engine, self.adapters, self.spare, self.work = engine, adapters, spare, work
        self.registrations = 0

    def name(self, adapter: int | None) -> str:
        return "base" if adapter is None else self.adapters[adapter].name

    def rate(self, streams: list[tuple[int | None, list[int]]]) -> float:
        requests = [(self.name(adapter), prompt) for adapter, prompt in streams]
        seconds = self.engine.generate(requests, self.work.new_tokens, STREAMS)
        return len(streams) * self.work.new_tokens / seconds

    def rate_in_memory(self, adapters: int) -> float:
        """The same, with adapters that are in memory, as the peers' are. Zipf's streams and the rows of latency load
        others meanwhile; what loading costs has rows of its own.
        """
        self.engine.generate([(self.name(adapter), self.work.prompt(16)) for adapter in range(adapters)], 1)
        return self.rate(self.work.streams(adapters))

    def measure(self) -> dict:
        work = self.work
        registered, verified = self.register()
        cold, warm = self.first_request()
        by_turns = take_turns(lambda: self.rate(work.streams(0)), {
            f"adapters_{count}": lambda count=count: self.rate_in_memory(count) for count in (ADAPTERS, 32)
        }, work.turns)
        return by_turns | {
            "zipf": self.rate(work.zipf()),
            "single": self.rate([(0, work.prompt(64))]),
            "prefill": work.prefill / self.engine.generate([(self.name(1), work.prompt(work.prefill))], 1),
            "register_s": registered,
            "verify_s": verified,
            "cold_s": cold,
            "warm_s": warm,
        }

    def register(self) -> tuple[float, float]:
        """One adapter more: seconds until it can be asked for, and until all of it is verified."""
        added = self.spare[self.registrations % len(self.spare)]
        self.registrations += 1
        registered, states = self.engine.sync([*self.adapters, added])
        if states.get(added.name) not in {"registered", "verified", "resident"}:
            registered += self.engine.wait_for([added], {"registered", "verified", "resident"}, 60)
        verified = registered + self.engine.wait_for([added], {"verified", "resident"}, 60)
        self.engine.sync(self.adapters)
        return registered, verified

    def first_request(self) -> tuple[float, float]:
        """Seconds of a prefill with an adapter that is not in memory, and of another one once it is: medians of several
        adapters, each of which is asked twice, for what loading adds is less than two prefills differ by.
        """
        states = self.engine.states()
        cold = [adapter.name for adapter in reversed(self.adapters) if states.get(adapter.name) == "verified"]
        if len(cold) < COLD:
            raise RuntimeError("adapters are in memory: too few are cold")
        first, again = [], []
        for name in cold[:COLD]:
            for seconds in (first, again):
                seconds.append(self.engine.generate([(name, self.work.prompt(self.work.prefill))], 1))
        return statistics.median(first), statistics.median(again)


def measure_peer(peer: Child, work: Work, registers: str | None) -> dict:
    """What is measured of a peer in process. `registers`: the adapter that it loads once more, where it can."""

    def rate(streams: list) -> float:
        answer = peer.ask(do="generate", streams=streams, new_tokens=work.new_tokens)
        if any(len(tokens) != work.new_tokens for tokens in answer["answers"]):
            raise RuntimeError("a peer gave another number of tokens than it was asked for")
        return len(streams) * work.new_tokens / answer["seconds"]

    found = {
        "none": rate(work.streams(0)),
        "adapters_8": rate(work.streams(ADAPTERS)),
        "single": rate([(0, work.prompt(64))]),
        "prefill": work.prefill / peer.ask(do="prefill", adapter=1, prompt=work.prompt(work.prefill))["seconds"],
    }
    if registers:
        found["register_s"] = peer.ask(do="register", path=registers)["seconds"]
    return found


def draw_samples(reference: Child, quick: bool) -> list[dict]:
    """Texts that the f32 model draws itself with each of the first adapters, and their log-probabilities."""
    return [
        reference.ask(do="sample", adapter=adapter, length=48 if quick else 128, seed=adapter)
        for adapter in range(2 if quick else ADAPTERS)
    ]


def check_answers(engine: Engine, adapters: list[shapes.AdapterFolder], samples: list[dict],
                  peers: dict[str, Child]) -> tuple[dict[str, list[float]], float]:
    """Teacher-forced divergence from f32, by token, of every side; and the mean of the bare base's, which must be far."""
    def asking(peer: Child) -> Callable[[int, list[int]], list[float]]:
        return lambda adapter, tokens: peer.ask(do="logprobs", adapter=adapter, tokens=tokens)["logprobs"]

    sides = {
        "ours": lambda adapter, tokens: engine.logprobs(adapters[adapter].name, tokens),
        "base": lambda _, tokens: engine.logprobs("base", tokens),
    } | {name: asking(peer) for name, peer in peers.items()}
    expected = [value for sample in samples for value in sample["logprobs"]]
    found = {}
    for name, logprobs in sides.items():
        given = [value for adapter, sample in enumerate(samples) for value in logprobs(adapter, sample["tokens"])]
        found[name] = divergences(expected, given)
    base = mean(found.pop("base"))
    return found, base


def latency_rows(values: Rounds, places: int) -> list[Row]:
    """What streams feel of others, and times that have a limit of their own."""
    def felt(case: str, name: str, bar: float | None) -> Row:
        ours, without = ("ours, latency", f"{name}_beside"), ("ours, latency", f"{name}_without")
        return values.row(case, "s between tokens, p99", ours, without, bar, "lower", called="without")

    def within(case: str, metric: str, seconds: float) -> Row:
        taken = values.series("ours, latency", metric)
        return compare(case, "s", taken, f"{seconds:g} s", [seconds] * len(taken), "lower", 1.0)

    return [
        felt("4 streams beside a prompt of 4,000 tokens", "long", 2.0),
        felt("4 streams while 10 adapters load", "loads", None),
        felt("4 streams while 60 broken adapters are refused", "broken", 1.25),
        within("60 broken adapters refused by reason", "broken_seconds", 2.0),
        within(f"1,000 clients vanish, {places} of them in mid-stream: all is free", "vanish_s", 1.0),
    ]


def fairness_rows(values: Rounds) -> list[Row]:
    """Eight times more adapters than places, one of them with more callers than the others."""
    case, of = f"{fairness.ADAPTERS} adapters on {fairness.PLACES} places", "ours, fairness"
    return [
        values.row(case, "s to first token, p99", (of, "fair_p99"), (of, "fair_median"), 5.0, "lower",
                   called="their median"),
        values.row(case, "s to first token, p99", (of, "fair_p99"), (of, "arrival_p99"), None, "lower",
                   called="by arrival"),
        values.row(case, "tokens/s", (of, "fair_rate"), (of, "arrival_rate"), 0.90, called="by arrival"),
    ]


def rows(values: Rounds, amx: bool, format_name: str) -> list[Row]:
    """The table. Where AMX is there, the bars are against the peers without it."""
    capped = " without AMX" if amx else ""
    found = []
    for suffix in dict.fromkeys([capped, ""]):
        has_bars = suffix == capped
        peft, q8, bf16 = f"peft bf16{suffix}", f"llama.cpp Q8_0{suffix}", f"llama.cpp BF16{suffix}"
        for case, metric, llama_bar, peft_bar in (
            ("8 adapters", "adapters_8", 4.0, 3.0),
            ("no adapter", "none", 1.25, None),
        ):
            llama, _ = best_of({name: values.series(name, metric) for name in (q8, bf16)}, "higher")
            for peer, bar in ((llama, llama_bar), (peft, peft_bar)):
                row = values.row(f"{case}, {format_name}", "tokens/s", ("ours", metric), (peer, metric))
                found.append(replace(row, bar=bar if has_bars else None))
        for case, metric, peer in (("1 stream", "single", q8), ("prefill", "prefill", bf16)):
            row = values.row(f"{case} with an adapter, {format_name}", "tokens/s", ("ours", metric), (peer, metric))
            found.append(replace(row, bar=1.0 if has_bars else None))

    def of_base(count: int, bar: float) -> Row:
        turn, base = ("ours", f"adapters_{count}_turn"), ("ours", f"adapters_{count}_base")
        return values.row(f"{count} adapters against our own base, by turns", "tokens/s", turn, base, bar,
                          called="our base")

    loads = (f"peft bf16{capped}", "register_s")
    return found + [
        of_base(ADAPTERS, 0.88),
        of_base(32, 0.70),
        values.row("all registered, by Zipf", "tokens/s", ("ours", "zipf"), ("ours", "adapters_8"), 0.80,
                   called="our 8 adapters"),
        values.row("first request to a cold adapter", "s", ("ours", "cold_s"), ("ours", "warm_s"), 1.05, "lower",
                   called="a warm adapter"),
        values.row("registering an adapter", "s", ("ours", "register_s"), loads, 1 / 20, "lower"),
        values.row("registering and verifying it", "s", ("ours", "verify_s"), loads, None, "lower"),
    ]


def main() -> int:
    made = options.parser("serve", __doc__)
    made.add_argument("--quantization", default="Q8_0", help="what our base is asked to be quantised to; '' for none")
    made.add_argument("--llama-python", default=sys.executable, help="a Python with llama-cpp-python")
    made.add_argument("--llama-python-without-amx", default=None, help="one whose llama.cpp was built without AMX")
    made.add_argument("--no-llama", action="store_true", help="without llama.cpp: tries the rest")
    args = options.parse(made)
    model, amx = shapes.shape(args.quick), machine.has_amx()
    work = Work(model, args.quick)
    print("== model, adapters and their digests (once)")
    base = shapes.base(args.work, model)
    long_base = shapes.with_context(args.work, base, model, 8192)
    store = args.work / "store"
    listed = shapes.adapters(store, model, work.registered + 8)
    adapters, spare = listed[:work.registered], listed[work.registered:]
    raise_open_files(4096)

    print("== ceilings")
    described = machine.describe()
    described["ceilings"] = machine.probe_ceilings(sys.executable, args.threads, args.quick)
    report = Report("serve", described, options.settings(args) | {
        "streams": STREAMS, "new_tokens": work.new_tokens, "prefill": work.prefill, "registered": work.registered,
        "loaded": work.loaded, "quantization": args.quantization or None, "model": model.name,
    }, {})

    print("== engine and peers")
    logs = args.work / "logs" / "serve"
    engine = Engine(
        options.binary(args, "engine"), args.work, long_base, digests.base_digest(long_base), store, adapters,
        threads=args.threads, streams=STREAMS, loaded=work.loaded, quantization=args.quantization,
    )
    engine.wait_for(adapters, {"verified", "resident"}, 1800)
    print(f"   our engine has verified {len(adapters)} adapters")
    engines = {
        admission: Engine(
            options.binary(args, "engine"), args.work, long_base, digests.base_digest(long_base), store,
            adapters[:fairness.ADAPTERS], threads=args.threads, streams=fairness.PLACES, loaded=fairness.ADAPTERS,
            quantization=args.quantization, name=f"engine-{admission}", flags=("--admission", admission),
        )
        for admission in ("fair", "arrival")
    }
    peers, reference = start_peers(args, model, base, adapters, logs, amx, report)

    print("== answers")
    terms, far = check_answers(engine, adapters, draw_samples(reference, args.quick), peers)
    found = {name: mean(values) for name, values in terms.items()}
    reference.stop()
    for name, value in found.items():
        report.checks.append(f"{name}: KL {value:.2e} a token from f32 (without the adapter {far:.2e})")
        print("   " + report.checks[-1])
    quantised = bool(args.quantization) and is_quantised(found)
    format_name = f"base in {args.quantization}" if quantised else "base in f32"
    if args.quantization and not quantised:
        report.notes.append(
            f"by its answers this engine's base is f32: it took no notice of quantization {args.quantization}, "
            "and bars of the 8-bit base are held against that"
        )
    counterpart = "llama.cpp Q8_0" if quantised and "llama.cpp Q8_0" in peers else "peft bf16"
    low, high = ratio_interval(terms["ours"], terms[counterpart])
    report.checks.append(f"ours over {counterpart}: {low:.2f} to {high:.2f} times as far from f32 (95 %)")
    print("   " + report.checks[-1])
    wrong = judge_answers(terms, far, counterpart)
    if wrong:
        print("error: nothing is timed: " + "; ".join(wrong), file=sys.stderr)
        return 1

    ours = Ours(engine, adapters, spare, work)
    felt = latency.Latency(engine, adapters, broken.write(store, spare[0]), work.prompt, args.quick, STREAMS)
    crowds = fairness.Fairness(engines, adapters, work.prompt, args.quick)
    contenders = {"ours": ours.measure, "ours, latency": felt.measure, "ours, fairness": crowds.measure}
    for name, peer in peers.items():
        extra = adapters[ADAPTERS].path if name.startswith("peft") else None
        contenders[name] = lambda peer=peer, extra=extra: measure_peer(peer, work, extra)
    print("== warm-up")
    for name, measure in contenders.items():
        print(f"   {name}: " + ", ".join(f"{metric} {value:.3g}" for metric, value in measure().items()))
    values = rounds_of(contenders, args, report)
    report.versions["engine"] = engine.revision()
    report.rows = rows(values, amx, format_name) if not args.no_llama else rows_without_llama(values)
    report.rows += latency_rows(values, STREAMS) + fairness_rows(values)
    print("== 10,000 registered")
    many = shapes.small_adapters(store, model, 500 if args.quick else 10_000)
    found, _ = latency.ten_thousand(engine, adapters, many, work.prompt)
    report.checks.append(found)
    report.notes.append(f"our engine's most memory: {engine.child.peak_bytes() / 2**30:.2f} GiB")
    report.write(args.out)
    return 0


def rows_without_llama(values: Rounds) -> list[Row]:
    metrics = ("adapters_8", "none", "single", "prefill")
    return [values.row(metric, "tokens/s", ("ours", metric), ("peft bf16", metric)) for metric in metrics]


def start_peers(args, model: shapes.Shape, base: Path, adapters: list[shapes.AdapterFolder], logs: Path, amx: bool,
                report: Report) -> tuple[dict[str, Child], Child]:
    """All peers, ready, and the f32 reference."""
    few = adapters[:ADAPTERS]
    threads = machine.thread_variables(args.threads)

    def start(name: str, script: str, python: str, told: dict, env: dict[str, str]) -> Child:
        told = told | {"threads": args.threads}
        log = logs / f"{name.replace(' ', '-')}.log"
        child = Child([python, "-P", HERE / script, json.dumps(told)], log, threads | env, talks=True)
        ready = child.ask()
        report.versions[name] = ready["version"] if "info" not in ready else f"{ready['version']}: {ready['info']}"
        print(f"   {name} is ready")
        return child

    def peft(name: str, dtype: str, env: dict[str, str]) -> Child:
        told = {"model": str(base), "adapters": [adapter.path for adapter in few], "dtype": dtype}
        return start(name, "peer_peft.py", sys.executable, told, env)

    peers = {"peft bf16": peft("peft bf16", "bfloat16", {})}
    if amx:
        peers["peft bf16 without AMX"] = peft("peft bf16 without AMX", "bfloat16", machine.without_amx())
    if not args.no_llama:
        import gguf_files

        folder = args.work / "gguf" / model.name
        folder.mkdir(parents=True, exist_ok=True)
        files = [str(gguf_files.write_adapter(a, folder / f"{a.name}.gguf", model)) for a in few]
        builds = {"": args.llama_python}
        if amx:
            if not args.llama_python_without_amx:
                sys.exit("error: this machine has AMX: name a Python whose llama.cpp was built without it")
            builds[" without AMX"] = args.llama_python_without_amx
        for kind in ("BF16", "Q8_0"):
            file = gguf_files.write_base(base, folder / f"{kind}.gguf", model, kind)
            for suffix, python in builds.items():
                told = {"model": str(file), "adapters": files, "streams": STREAMS, "context": 256}
                # A prefill alone is longer than a stream's share: all sequences have one buffer.
                name = f"llama.cpp {kind}{suffix}"
                peers[name] = start(name, "peer_llama.py", python, told, {})
    return peers, peft("f32 reference", "float32", {})


if __name__ == "__main__":
    run_to_end(main)
