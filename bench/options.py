"""What all benchmarks are told, and where their files are."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

CLONE = Path(__file__).resolve().parent.parent


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graftwork"


def parser(name: str, about: str, rounds: int = 5) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=f"make bench-{name}", description=about,
        epilog=f"Examples: make bench-{name}; make bench-{name} BENCH='--quick'; make bench-{name} BENCH='--rounds 7'",
    )
    made.add_argument("--quick", action="store_true", help="a small shape, two rounds: tries the harness, says nothing")
    made.add_argument("--rounds", type=int, default=None, help=f"rounds that count (default {rounds}, 2 with --quick)")
    made.add_argument("--threads", type=int, default=2, help="compute threads of each side (default 2)")
    made.add_argument("--foreign", type=float, default=3.0, metavar="PERCENT",
                      help="a round in which others took more of the CPU is done again (default 3)")
    made.add_argument("--bin", type=Path, default=binaries(), metavar="FOLDER", help="our binaries")
    made.add_argument("--out", type=Path, default=CLONE / "target" / "bench", metavar="FOLDER", help="where figures go")
    made.add_argument("--work", type=Path, default=cache_folder() / "bench", metavar="FOLDER",
                      help="models, adapters and logs (several GB)")
    return made


def parse(made: argparse.ArgumentParser, rounds: int = 5) -> argparse.Namespace:
    args = made.parse_args()
    args.rounds = args.rounds or (2 if args.quick else rounds)
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    return args


def binaries() -> Path:
    """Cargo's folder for this machine's own target."""
    if "GRAFTWORK_BIN" in os.environ:
        return Path(os.environ["GRAFTWORK_BIN"])
    return CLONE / "target" / "release"


def binary(args: argparse.Namespace, name: str) -> Path:
    found = args.bin / name
    if not found.exists():
        sys.exit(f"error: {found} is not there: build it (`make build`), or name the folder with --bin")
    return found


def settings(args: argparse.Namespace) -> dict:
    return {
        "quick": args.quick, "threads": args.threads, "foreign_limit_percent": args.foreign,
        "commit": subprocess.run(
            ["git", "-C", str(CLONE), "describe", "--always", "--dirty"], capture_output=True, text=True
        ).stdout.strip(),
    }
