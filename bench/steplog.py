"""What our processes' logs say about when something was done."""

import datetime
import json
from collections.abc import Iterator


def entries(lines: list[str]) -> Iterator[tuple[float, dict]]:
    """Seconds since the epoch and the fields of each line that is an entry."""
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and "timestamp" in entry:
            when = datetime.datetime.fromisoformat(entry["timestamp"].replace("Z", "+00:00"))
            yield when.timestamp(), entry.get("fields", {})


def step_times(lines: list[str]) -> dict[int, float]:
    """When a step was done, in seconds since the epoch: the first and the last are always in the trainer's log."""
    found = {}
    for when, fields in entries(lines):
        if fields.get("message") == "training":
            found.setdefault(int(fields["step"]), when)
    return found


def between(lines: list[str], first: str, last: str) -> float:
    """Seconds from the last entry that says `first` to the last one that says `last`."""
    said = {fields.get("message"): when for when, fields in entries(lines)}
    for message in (first, last):
        if message not in said:
            raise RuntimeError(f"the log does not say {message!r}")
    return said[last] - said[first]
