"""Rounds: ours and every peer in turn, disturbed ones thrown away and done again."""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import machine
from report import Report, Row, compare

# As docs/performance.md says.
FOREIGN_LIMIT = 0.03


class TooBusy(Exception):
    """Others take so much of the CPU that no rounds come about."""


@dataclass
class Rounds:
    """The measurements of the rounds that count: by contender, one value after the other."""

    values: dict[str, list[dict]] = field(default_factory=dict)
    foreign: list[float] = field(default_factory=list)
    discarded: list[dict] = field(default_factory=list)

    def series(self, contender: str, metric: str) -> list[float]:
        return [value[metric] for value in self.values[contender]]

    def row(self, case: str, unit: str, ours: tuple[str, str], peer: tuple[str, str], bar: float | None = None,
            better: str = "higher", called: str | None = None) -> Row:
        """A row from two (contender, metric); the peer is called by its contender's name, or as said."""
        return compare(case, unit, self.series(*ours), called or peer[0], self.series(*peer), better, bar)


def run_rounds(contenders: dict[str, Callable[[], dict]], wanted: int, watch, *, limit: float = FOREIGN_LIMIT,
               most_discarded: int | None = None, say: Callable[[str], None] = print) -> Rounds:
    """Runs `wanted` rounds of all contenders.

    A round counts only where every part of it was undisturbed: its values are divided by each other. The order
    turns from round to round, so that nobody is always the one who finds a warm machine.

    Raises TooBusy after `most_discarded` disturbed rounds (three times the wanted ones unless said).
    """
    most = 3 * wanted if most_discarded is None else most_discarded
    rounds = Rounds({name: [] for name in contenders})
    names = list(contenders)
    while len(rounds.foreign) < wanted:
        turn = (len(rounds.foreign) + len(rounds.discarded)) % len(names)
        round_values, worst = {}, 0.0
        for name in names[turn:] + names[:turn]:
            watch.start()
            round_values[name] = contenders[name]()
            share = watch.stop()
            worst = max(worst, share)
            if share > limit:
                break
        if worst > limit:
            rounds.discarded.append({"contender": name, "foreign": round(share, 4)})
            say(f"   disturbed: others took {100 * share:.1f} % of the CPU beside {name}; the round is done again")
            if len(rounds.discarded) > most:
                raise TooBusy(
                    f"{len(rounds.discarded)} rounds were disturbed by other load (limit {100 * limit:.0f} %), "
                    f"{len(rounds.foreign)} of {wanted} came about: try again on a quieter machine"
                )
            continue
        for name, value in round_values.items():
            rounds.values[name].append(value)
        rounds.foreign.append(round(worst, 4))
        say(f"   round {len(rounds.foreign)} of {wanted} done, others took {100 * worst:.1f} %")
    return rounds


def take_turns(base: Callable[[], float], others: dict[str, Callable[[], float]], turns: int) -> dict[str, float]:
    """Our base and, by turns, it with adapters: each kind's median rate, that of the base as "none"; and of each kind
    the turn with the median ratio, as "<kind>_turn" and "<kind>_base": its rate, and the base's right before and after.

    What adapters cost is less than a shared machine's speed changes from one minute to the next.
    """
    bases, pairs = [base()], {name: [] for name in others}
    for _ in range(turns):
        for name, rate in others.items():
            reached = rate()
            bases.append(base())
            pairs[name].append((reached, statistics.mean(bases[-2:])))
    found = {"none": statistics.median(bases)}
    for name, of_turns in pairs.items():
        found[name] = statistics.median(reached for reached, _ in of_turns)
        ordered = sorted(of_turns, key=lambda turn: turn[0] / turn[1])
        found[f"{name}_turn"], found[f"{name}_base"] = ordered[(len(ordered) - 1) // 2]
    return found


def rounds_of(contenders: dict[str, Callable[[], dict]], args, report: Report) -> Rounds:
    """The rounds that the arguments of a benchmark ask for, noted in its report.

    Ends the benchmark with an error where others take too much of the CPU, and where a contender finds out that it
    computes something else.
    """
    print(f"== {args.rounds} rounds")
    try:
        values = run_rounds(contenders, args.rounds, machine.Watch(), limit=args.foreign / 100)
    except (TooBusy, RuntimeError) as error:
        sys.exit(f"error: {error}")
    report.rounds, report.discarded, report.foreign = args.rounds, values.discarded, values.foreign
    return values
