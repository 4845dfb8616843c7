"""`make bench-data`: conversations from JSONL and Parquet to packed blocks of token ids, beside the same in Python.

Ours: the dataset builder, then the trainer's own reading, template, tokenizer and packing. The peer: pyarrow, jinja2
and tokenizers' `encode_batch_fast`. Both give the same ids.
"""

import json
import random
import shutil
import sys
import time
from pathlib import Path

import digests
import machine
import options
import shapes
import texts
from children import Child, run_to_end
from report import Report, compare, shares
from rounds import rounds_of
from steplog import between

HERE = Path(__file__).resolve().parent
# Of a thousand rows so many are bad: both sides must leave out the same ones.
BAD_PER_THOUSAND = 2
# Where the time goes: the stages of each side, which follow each other, and what they are measured as.
AGAIN = {"read again": "read_s", "template": "template_s", "token ids": "tokens_s", "pack": "pack_s"}
STAGES = {
    "ours": {"read and judge": "judge_s", "order and write": "order_s"} | AGAIN,
    "peer": {"read": "source_s", "validate": "validate_s", "write": "write_s"} | AGAIN,
}


def write_conversations(target: Path, megabytes: int, vocabulary: int) -> Path:
    """JSONL of chats of two to six messages."""
    if target.exists():
        return target
    lexicon, numbers = texts.Lexicon(vocabulary), random.Random(5)
    # Drawing words is slow: whole sentences are drawn once and come again in other orders.
    sentences = [lexicon.sentence(numbers) for _ in range(100_000 if megabytes > 10 else 5_000)]

    def message(role: str, most: int) -> dict:
        return {"role": role, "content": " ".join(numbers.choices(sentences, k=numbers.randint(1, most)))}

    beside, written = target.with_suffix(".part"), 0
    with beside.open("w") as file:
        while written < megabytes << 20:
            messages = [message("system", 1)] if numbers.random() < 0.3 else []
            for _ in range(numbers.randint(1, 3)):
                messages += [message("user", 3), message("assistant", 8)]
            if numbers.randrange(1000) < BAD_PER_THOUSAND:
                messages[-1]["content"] = "  "
            line = json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
            file.write(line)
            written += len(line.encode())
    beside.rename(target)
    return target


def write_parquet(source: Path, target: Path) -> Path:
    import pyarrow.json
    import pyarrow.parquet

    if not target.exists():
        beside = target.with_suffix(".part")
        table = pyarrow.json.read_json(source, read_options=pyarrow.json.ReadOptions(block_size=1 << 24))
        pyarrow.parquet.write_table(table, beside, compression="zstd")
        beside.rename(target)
    return target


class Pipelines:
    """Both sides over one corpus."""

    def __init__(self, args, base: Path, sources: dict[str, Path]) -> None:
        self.args, self.base, self.sources = args, base, sources
        self.work = args.work / "data"
        self.threads = machine.thread_variables(args.threads)
        # Where the newest version of ours lies: the peer makes blocks of the same rows in the same order.
        self.version: Path | None = None

    def run(self, command: list, name: str, level: str = "warn") -> tuple[str, float, int]:
        """Output, seconds and peak memory of a process."""
        log, peak = self.work / f"{name}.log", 0
        begun = time.perf_counter()
        child = Child(command, log, self.threads | {"RUST_LOG": level})

        def look() -> None:
            nonlocal peak
            peak = max(peak, child.peak_bytes())

        if child.wait(1800, look) != 0:
            raise RuntimeError(f"{name} failed:\n{child.tail()}")
        return log.read_text(), time.perf_counter() - begun, peak

    def ours(self, kind: str) -> dict:
        store = self.work / "store"
        shutil.rmtree(store, ignore_errors=True)
        store.mkdir(parents=True)
        config, summary = self.work / "build.json", self.work / "summary.json"
        shapes.write_json(config, {
            "dataset": "bench", "fingerprint": digests.of_bytes(kind.encode()), "format": "Chat",
            "sources": [{"name": "rows", "uri": f"bench://{kind}", "path": str(self.sources[kind])}],
            "validation": {"minimumRows": 1, "maximumInvalidPercent": "1"},
            "split": {"groupColumn": None, "trainPercent": 100, "validationPercent": 0, "testPercent": 0, "seed": 1},
        })
        builder = options.binary(self.args, "dataset-builder")
        said, seconds, peak = self.run(
            [builder, "--config", config, "--store", store, "--termination-file", summary], "dataset-builder", "info"
        )
        order = between(said.splitlines(), "source read", "dataset built")
        built = json.loads(summary.read_text())
        digest = built["digest"]
        self.version = store / "datasets" / "bench" / digest.removeprefix("sha256:") / "train.parquet"
        text, _, blocks_peak = self.run(
            [self.args.blocks, store, "bench", digest, self.base, self.args.threads], "data_blocks"
        )
        found = json.loads(text.splitlines()[-1])
        tokens = max(0.0, found["template_and_tokens_s"] - found["template_s"])
        return found | {
            "build_s": seconds, "judge_s": seconds - order, "order_s": order, "tokens_s": tokens,
            "peak_bytes": max(peak, blocks_peak),
            "whole_s": seconds + found["read_s"] + found["template_and_tokens_s"] + found["pack_s"],
            "without_tokens_s": seconds + found["read_s"] + found["template_s"] + found["pack_s"],
            "rejected": built["rows"]["rejected"],
        }

    def peer(self, kind: str) -> dict:
        target = self.work / "peer.parquet"
        script = [sys.executable, HERE / "peer_data.py", self.args.threads]
        text, _, peak = self.run([*script, "build", self.sources[kind], target], "peer-build")
        built = json.loads(text.splitlines()[-1])
        text, _, blocks_peak = self.run([*script, "blocks", self.version, self.base], "peer-blocks")
        found = json.loads(text.splitlines()[-1])
        # What starts Python and imports is not counted.
        build = built["read_s"] + built["validate_s"] + built["write_s"]
        rest = found["read_s"] + found["template_s"] + found["pack_s"]
        return found | {
            "source_s": built["read_s"], "validate_s": built["validate_s"], "write_s": built["write_s"],
            "ordered_s": build + built["order_s"] + rest,
            "build_s": build, "built_rows": built["rows"], "whole_s": build + rest + found["tokens_s"],
            "without_tokens_s": build + rest, "peak_bytes": max(peak, blocks_peak),
        }


def check(ours: dict, peer: dict) -> str:
    if ours["ids"] != peer["ids"]:
        raise RuntimeError(f"the ids differ: {ours['tokens']} tokens of ours, {peer['tokens']} of the peer")
    if not ours["rows"] == peer["rows"] == peer["built_rows"]:
        raise RuntimeError(f"rows differ: {ours['rows']} of ours, the peer keeps {peer['built_rows']}")
    if ours["blocks"] != peer["blocks"]:
        raise RuntimeError(f"blocks differ: {ours['blocks']} of ours, {peer['blocks']} of the peer")
    return (f"{ours['rows']:,} rows ({ours['rejected']} bad ones left out), {ours['tokens']:,} ids, "
            f"{ours['blocks']:,} blocks: the same")


def main() -> int:
    made = options.parser("data", __doc__)
    made.add_argument("--blocks", type=Path, default=None, metavar="FILE", help="the example data_blocks, built")
    args = options.parse(made)
    args.blocks = args.blocks or args.bin / "examples" / "data_blocks"
    if not args.blocks.exists():
        sys.exit(f"error: {args.blocks} is not there: cargo build --package trainer --example data_blocks")
    model = shapes.shape(args.quick)
    (args.work / "data").mkdir(parents=True, exist_ok=True)
    print("== tokenizer and rows (once)")
    base = shapes.base(args.work, model)
    megabytes = 4 if args.quick else 100
    jsonl = write_conversations(args.work / "data" / f"{model.name}-{megabytes}.jsonl", megabytes, model.vocabulary)
    sources = {"JSONL": jsonl, "Parquet (zstd)": write_parquet(jsonl, jsonl.with_suffix(".parquet"))}
    described = machine.describe()
    described["ceilings"] = machine.probe_ceilings(sys.executable, args.threads, args.quick)
    import pyarrow
    import tokenizers

    size = jsonl.stat().st_size / 1e6
    report = Report("data", described, options.settings(args) | {"megabytes_of_jsonl": round(size, 1)}, {
        "pyarrow": pyarrow.__version__, "tokenizers": tokenizers.__version__,
    })
    pipelines = Pipelines(args, base, sources)
    print("== warm-up, and whether they make the same")
    contenders = {}
    for kind in sources:
        try:
            report.checks.append(f"{kind}: " + check(pipelines.ours(kind), pipelines.peer(kind)))
        except RuntimeError as error:
            print(f"error: nothing is timed: {error}", file=sys.stderr)
            return 1
        print("   " + report.checks[-1])
        contenders[f"ours {kind}"] = lambda kind=kind: pipelines.ours(kind)
        contenders[f"peer {kind}"] = lambda kind=kind: pipelines.peer(kind)
    values = rounds_of(contenders, args, report)

    def rate(contender: str, stage: str) -> list[float]:
        return [size / max(seconds, 1e-6) for seconds in values.series(contender, stage)]

    stages = {
        "whole": ("whole_s", 1.5), "without the tokenise stage": ("without_tokens_s", 3.0),
        "read, validate, write": ("build_s", None), "read again": ("read_s", None), "template": ("template_s", None),
        "token ids": ("tokens_s", None), "pack": ("pack_s", None),
    }
    peer = "pyarrow, jinja2, tokenizers"
    for kind in sources:
        for stage, (metric, bar) in stages.items():
            report.rows.append(compare(
                f"{kind}: {stage}", "MB/s", rate(f"ours {kind}", metric), peer, rate(f"peer {kind}", metric), "higher",
                bar,
            ))
        report.rows.append(compare(
            f"{kind}: without the tokenise stage, rows hashed, ordered and counted", "MB/s",
            rate(f"ours {kind}", "without_tokens_s"), peer, rate(f"peer {kind}", "ordered_s"), "higher",
        ))
        report.rows.append(compare(
            f"{kind}: peak memory", "bytes", values.series(f"ours {kind}", "peak_bytes"), peer,
            values.series(f"peer {kind}", "peak_bytes"), "lower",
        ))
        for side, called in (("ours", "ours"), ("peer", "the peer's")):
            spent = {stage: values.series(f"{side} {kind}", metric) for stage, metric in STAGES[side].items()}
            report.notes.append(f"where the time goes, {kind}, {called}: {shares(spent)}")
    report.notes += [
        "MB/s are of the JSONL's bytes, for Parquet too; ours also hashes, orders, describes and publishes the version, "
        "of which the peer does what a loop in Python and hashlib do, in the row that says so alone",
        "ours makes the mask of what the assistant says within its token ids; the peer makes none",
        "ours orders and writes between two entries of the builder's log; the rest of the build is reading and judging",
    ]
    report.write(args.out)
    return 0


if __name__ == "__main__":
    run_to_end(main)
