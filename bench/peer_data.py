"""The data pipeline in Python: pyarrow, jinja2 and tokenizers. Prints seconds by stage, counts and a digest of all ids.

`peer_data.py build SOURCE TARGET` reads, validates and writes Parquet, and hashes, orders and counts rows beside that;
`peer_data.py blocks PARQUET BASE` makes blocks.
"""

import collections
import hashlib
import json
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.compute as compute
import pyarrow.json
import pyarrow.parquet

import digests

BLOCK_TOKENS = 2048
ROLES = ["system", "user", "assistant"]


def build(source: Path, target: Path) -> dict:
    """Vectorised throughout: as fast as pyarrow lets one."""
    begun = time.perf_counter()
    if source.suffix == ".parquet":
        table = pyarrow.parquet.read_table(source)
    else:
        table = pyarrow.json.read_json(source, read_options=pyarrow.json.ReadOptions(block_size=1 << 24))
    messages = table.column("messages").combine_chunks()
    read = time.perf_counter()
    counts = compute.list_value_length(messages)
    parents = compute.list_parent_indices(messages)
    flat = compute.list_flatten(messages)
    roles, contents = compute.struct_field(flat, "role"), compute.struct_field(flat, "content")
    good = compute.and_(
        compute.is_in(roles, pyarrow.array(ROLES)),
        compute.greater(compute.utf8_length(compute.utf8_trim_whitespace(contents)), 0),
    )
    bad_rows = compute.unique(compute.filter(parents, compute.invert(compute.fill_null(good, False))))
    last = compute.subtract(compute.cumulative_sum(counts), 1)
    ends_well = compute.equal(compute.take(roles, last), "assistant")
    rows = pyarrow.array(range(len(messages)), parents.type)
    keep = compute.and_(compute.invert(compute.is_in(rows, bad_rows)), ends_well)
    kept = compute.filter(messages, keep)
    valid = time.perf_counter()
    pyarrow.parquet.write_table(pyarrow.table({"messages": kept}), target, compression="zstd")
    written = time.perf_counter()
    ordered, version = order(kept)
    assert len(ordered) <= len(kept) and version
    done = time.perf_counter()
    return {
        "read_s": read - begun, "validate_s": valid - read, "write_s": written - valid, "order_s": done - written,
        "rows": len(kept),
    }


def order(rows: pyarrow.Array) -> tuple[pyarrow.Array, str]:
    """Each different row once, in the order of canonical rows' hashes, with the version's; and what people are told of
    them: rows by length, characters, words.
    """
    places: dict[bytes, int] = {}
    characters, words, lengths = 0, 0, collections.Counter()
    for place, row in enumerate(rows.to_pylist()):
        text = json.dumps(row, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        places.setdefault(hashlib.sha256(text.encode()).digest(), place)
        contents = [message["content"] for message in row]
        length = sum(map(len, contents))
        characters += length
        words += sum(len(content.split()) for content in contents)
        lengths[length.bit_length()] += 1
    ordered = sorted(places)
    return rows.take(pyarrow.array([places[digest] for digest in ordered])), hashlib.sha256(b"".join(ordered)).hexdigest()


def blocks(source: Path, base: Path) -> dict:
    import jinja2
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    config = json.loads((base / "tokenizer_config.json").read_text())
    # The mask of the assistant's tokens is not made here: ours makes it too, in the time that it takes.
    plain = config["chat_template"].replace("{% generation %}", "").replace("{% endgeneration %}", "")
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(plain)
    begun = time.perf_counter()
    rows = pyarrow.parquet.read_table(source).column("messages").to_pylist()
    read = time.perf_counter()
    texts = [
        template.render(messages=row, bos_token=config["bos_token"], eos_token=config["eos_token"]) for row in rows
    ]
    rendered = time.perf_counter()
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    tokenised = time.perf_counter()
    packed: list[list[int]] = []
    block: list[int] = []
    for row in ids:
        cut = row[:BLOCK_TOKENS]
        if block and len(block) + len(cut) > BLOCK_TOKENS:
            packed.append(block)
            block = []
        block = block + cut
    if block:
        packed.append(block)
    done = time.perf_counter()
    hasher = digests.FieldHasher()
    for row in ids:
        hasher.field(b"".join(token.to_bytes(4, "little") for token in row))
    return {
        "read_s": read - begun, "template_s": rendered - read, "tokens_s": tokenised - rendered,
        "pack_s": done - tokenised, "rows": len(ids), "tokens": sum(map(len, ids)), "blocks": len(packed),
        "ids": hasher.finish(),
    }


def main() -> None:
    pyarrow.set_cpu_count(int(sys.argv[1]))
    what, first, second = sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    print(json.dumps(build(first, second) if what == "build" else blocks(first, second)))


if __name__ == "__main__":
    main()
