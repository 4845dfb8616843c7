"""What the trainer's log says about its steps."""

import datetime
import json


def step_times(lines: list[str]) -> dict[int, float]:
    """When a step was done, in seconds since the epoch: the first and the last are always in the trainer's log."""
    found = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        fields = entry.get("fields", {})
        if fields.get("message") == "training":
            when = datetime.datetime.fromisoformat(entry["timestamp"].replace("Z", "+00:00"))
            found.setdefault(int(fields["step"]), when.timestamp())
    return found
