"""Ratios with their spread, the table for people and the file for programs."""

import json
import math
import statistics
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path


@dataclass
class Row:
    """One comparison. `ratio` is ours / peer: the median of the rounds, each round's two values divided."""

    case: str
    metric: str
    ours: float
    peer: str
    peer_value: float
    ratio: float
    ratio_low: float
    ratio_high: float
    better: str
    # What the ratio must reach (or stay under, where lower is better); none: it is printed for information.
    bar: float | None = None

    def verdict(self) -> str:
        if self.bar is None:
            return ""
        if self.better == "higher":
            met, always = self.ratio >= self.bar, self.ratio_low >= self.bar
        else:
            met, always = self.ratio <= self.bar, self.ratio_high <= self.bar
        if not met:
            return "missed"
        return "met" if always else "met, not in every round"


def compare(case: str, metric: str, ours: list[float], peer: str, theirs: list[float], better: str,
            bar: float | None = None) -> Row:
    """A row of two series, round by round.

    Rounds are divided before the median is taken: what slows a whole round down slows both sides.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{case}, {metric}: {len(ours)} rounds of ours, {len(theirs)} of {peer}")
    if any(not math.isfinite(value) or value <= 0 for value in [*ours, *theirs]):
        raise ValueError(f"{case}, {metric}: a value that is no positive number: {ours} and {theirs}")
    ratios = [mine / other for mine, other in zip(ours, theirs)]
    return Row(case, metric, statistics.median(ours), peer, statistics.median(theirs), statistics.median(ratios),
               min(ratios), max(ratios), better, bar)


def best_of(series: dict[str, list[float]], better: str) -> tuple[str, list[float]]:
    """The peer with the better median, by name."""
    pick = max if better == "higher" else min
    name = pick(series, key=lambda key: statistics.median(series[key]))
    return name, series[name]


def shares(seconds: dict[str, list[float]]) -> str:
    """What part of all stages each one takes, in percent of the sum of their medians."""
    medians = {stage: statistics.median(values) for stage, values in seconds.items()}
    whole = sum(medians.values())
    if not whole > 0:
        raise ValueError(f"no stage takes any time: {medians}")
    return ", ".join(f"{stage} {100 * value / whole:.0f} %" for stage, value in medians.items())


@dataclass
class Report:
    """What one benchmark found."""

    name: str
    machine: dict
    settings: dict
    versions: dict
    rounds: int = 0
    # What was thrown away, and the share of the CPU that others had taken then.
    discarded: list[dict] = field(default_factory=list)
    # Foreign shares of the rounds that count.
    foreign: list[float] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def markdown(self) -> str:
        ceilings = ", ".join(f"{name} {value}" for name, value in self.machine.get("ceilings", {}).items())
        lines = [
            f"## {self.name}, {datetime.now(timezone.utc):%Y-%m-%d}",
            "",
            *self.warning(),
            f"{self.machine['cpu']}, {self.machine['cores']} cores{self.gpu()}. Ceilings: {ceilings or 'none probed'}.",
            f"{self.rounds} rounds, {len(self.discarded)} thrown away; others took at most "
            f"{100 * max(self.foreign, default=0):.1f} % of the CPU in those that count.",
            "",
            "| case | metric | ours | peer | peer's | ratio | lowest to highest | bar | |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            sign = ">=" if row.better == "higher" else "<="
            bar = "" if row.bar is None else f"{sign} {row.bar:g}"
            lines.append(
                f"| {row.case} | {row.metric} | {number(row.ours)} | {row.peer} | {number(row.peer_value)} "
                f"| {row.ratio:.3g} | {row.ratio_low:.3g} to {row.ratio_high:.3g} | {bar} | {row.verdict()} |"
            )
        lines += [""] + [f"- checked: {check}" for check in self.checks] + [f"- {note}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def gpu(self) -> str:
        known = self.machine
        return f"; {known['gpu']}, {known['gpu_memory_gib']} GiB, driver {known['driver']}" if "gpu" in known else ""

    def warning(self) -> list[str]:
        if not self.settings.get("quick"):
            return []
        return ["A trial of the harness with small shapes: these are no figures.", ""]

    def document(self) -> dict:
        return {
            "name": self.name,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": self.machine,
            "versions": self.versions,
            "settings": self.settings,
            "rounds": self.rounds,
            "discarded": self.discarded,
            "foreign": self.foreign,
            "checks": self.checks,
            "notes": self.notes,
            "rows": [asdict(row) | {"verdict": row.verdict()} for row in self.rows],
        }

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # A trial of the harness is no figure: it does not take the place of one.
        name = self.name + ("-quick" if self.settings.get("quick") else "")
        (folder / f"{name}.json").write_text(json.dumps(self.document(), indent=1) + "\n")
        (folder / f"{name}.md").write_text(self.markdown())
        print("\n" + self.markdown())
        print(f"written: {folder / name}.json and .md")


def number(value: float) -> str:
    """Three digits, as people read them."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"
