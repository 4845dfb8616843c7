"""Peak memory of dataset builds against the size of their source: `make build-memory`.

Arguments: the builder's binary. Environment: SIZES, gigabytes of each source ("0.5 1 2 5"); NEAR, what becomes of
nearly equal rows (Keep, Group or Drop); FOLDER, where sources, store and scratch files go (the system's temporary
folder). It fails above 1.5 GiB, and where the largest source takes more than 15 % over the one before it.
"""

import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time

LIMIT_MIB = 1536
GROWTH = 1.15


def write_source(path, gigabytes):
    """Rows of 200 to 2,000 letters; none is equal to another. Returns how many."""
    choose = random.Random(7)
    words = ["".join(choose.choices("abcdefghijklmnopqrstuvwxyz", k=choose.randint(2, 11))) for _ in range(20000)]
    text = " ".join(choose.choices(words, k=1_000_000))
    size, rows = 0, 0
    with open(path, "w", encoding="ascii", buffering=1 << 20) as file:
        while size < gigabytes * 1e9:
            start = choose.randrange(len(text) - 2000)
            line = f'{{"text": "{rows} {text[start:start + choose.randint(200, 2000)]}"}}\n'
            file.write(line)
            size, rows = size + len(line), rows + 1
    return rows


def least_free(folder, least, done):
    """Notes down the least room that the volume has until `done`."""
    while not done.wait(0.2):
        volume = os.statvfs(folder)
        least[0] = min(least[0], volume.f_bavail * volume.f_frsize)


def build(binary, folder, near):
    """Seconds, MiB of peak memory, GB of disk, and rows by the builder's own count."""
    config = {
        "dataset": "memory",
        "fingerprint": "sha256:" + hashlib.sha256(folder.encode()).hexdigest(),
        "format": "Text",
        "sources": [{"name": "rows", "uri": "configmap://rows/rows.jsonl", "path": f"{folder}/rows.jsonl"}],
        "validation": {"minimumRows": 1, "maximumInvalidPercent": "0", "nearDuplicates": near},
        "split": {"method": "Random", "groupColumn": None, "trainPercent": 80, "validationPercent": 10,
                  "testPercent": 10, "seed": 7},
    }
    with open(f"{folder}/config.json", "w", encoding="ascii") as file:
        json.dump(config, file)
    for name in ("store", "scratch"):
        os.mkdir(f"{folder}/{name}")
    volume = os.statvfs(folder)
    before = volume.f_bavail * volume.f_frsize
    least, done = [before], threading.Event()
    watcher = threading.Thread(target=least_free, args=(folder, least, done))
    watcher.start()
    started = time.monotonic()
    arguments = [binary, "--config", f"{folder}/config.json", "--store", f"{folder}/store",
                 "--scratch", f"{folder}/scratch", "--termination-file", f"{folder}/summary.json"]
    # The binary's own peak: this process, which it begins as a copy of, is smaller.
    process = os.posix_spawn(binary, arguments, {"RUST_LOG": "warn"})
    _, status, usage = os.wait4(process, 0)
    seconds = time.monotonic() - started
    done.set()
    watcher.join()
    with open(f"{folder}/summary.json", encoding="utf-8") as file:
        summary = json.load(file)
    if status != 0:
        sys.exit(f"the build failed: {summary['message']}")
    rows = sum(summary["rows"][split] for split in ("train", "validation", "test"))
    return seconds, usage.ru_maxrss / 1024, (before - least[0]) / 1e9, rows


def main():
    binary = sys.argv[1]
    near = os.environ.get("NEAR") or "Keep"
    peaks = []
    print(f"nearDuplicates: {near}\n{'GB in':>8}{'rows':>12}{'seconds':>10}{'MB/s':>8}{'peak MiB':>10}{'disk GB':>9}")
    for gigabytes in map(float, (os.environ.get("SIZES") or "0.5 1 2 5").split()):
        folder = tempfile.mkdtemp(prefix="graftwork-memory-", dir=os.environ.get("FOLDER") or None)
        try:
            written = write_source(f"{folder}/rows.jsonl", gigabytes)
            seconds, peak, disk, rows = build(binary, folder, near)
        finally:
            shutil.rmtree(folder)
        if near == "Keep" and rows != written:
            sys.exit(f"{written} rows were written, the version has {rows}")
        speed = gigabytes * 1000 / seconds
        print(f"{gigabytes:>8g}{rows:>12}{seconds:>10.1f}{speed:>8.0f}{peak:>10.0f}{disk:>9.1f}", flush=True)
        peaks.append(peak)
    if max(peaks) > LIMIT_MIB:
        sys.exit(f"a build took {max(peaks):.0f} MiB, more than {LIMIT_MIB}")
    if len(peaks) > 1 and peaks[-1] > GROWTH * peaks[-2]:
        sys.exit(f"memory grows with the source: {peaks[-2]:.0f} MiB, then {peaks[-1]:.0f} MiB")


if __name__ == "__main__":
    main()
