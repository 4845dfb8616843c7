"""Adapters that nobody may serve: copies of a whole one, each broken in another way."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
EACH = 5


def with_header(data: bytes, change: Callable[[dict, list[str]], None]) -> bytes:
    """The file with a changed header, and as many bytes of data as a header may be wrong about."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    change(header, [name for name in header if name != "__metadata__"])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length:]


def overlap(header: dict, names: list[str]) -> None:
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]


def turn(header: dict, names: list[str]) -> None:
    header[names[0]]["shape"].reverse()


def other_type(header: dict, names: list[str]) -> None:
    header[names[0]]["dtype"] = "I8"


def leave_out(header: dict, names: list[str]) -> None:
    del header[names[-1]]


# What becomes of the weights' bytes.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:len(data) // 2],
    "no-header": lambda data: data[8:4096],
    "lying-length": lambda data: struct.pack("<Q", 1 << 62) + data[8:4096],
    "pickle": lambda data: b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
    "zip": lambda data: b"PK\x03\x04" + data[:4096],
    "overlap": lambda data: with_header(data, overlap),
    "turned": lambda data: with_header(data, turn),
    "other-type": lambda data: with_header(data, other_type),
    "left-out": lambda data: with_header(data, leave_out),
    # The last value: everything before it is read first.
    "nan-at-the-end": lambda data: data[:-2] + b"\xff\x7f",
}


def write(store: Path, whole) -> list:
    """Sixty folders beside `whole`, an `AdapterFolder`, whose digest they pretend to have."""
    folder = f"adapters/broken-{Path(whole.folder).name}"
    shutil.rmtree(store / folder, ignore_errors=True)
    source = Path(whole.path)
    data = (source / WEIGHTS).read_bytes()
    found = []

    def add(name: str) -> Path:
        target = store / folder / name
        target.mkdir(parents=True)
        for file in source.iterdir():
            if file.name != WEIGHTS:
                shutil.copy(file, target)
        found.append(replace(whole, name=f"broken-{name}", folder=f"{folder}/{name}", path=str(target)))
        return target

    for kind, damage in DAMAGES.items():
        for index in range(EACH):
            (add(f"{kind}-{index}") / WEIGHTS).write_bytes(damage(data))
    for index in range(EACH):
        target = add(f"rank-{index}")
        os.link(source / WEIGHTS, target / WEIGHTS)
        config = json.loads((target / CONFIG).read_text())
        (target / CONFIG).write_text(json.dumps(config | {"r": 100_000}))
    return found
