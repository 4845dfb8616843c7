"""How far teacher-forced answers are from those of f32."""

import math
import random

RESAMPLES = 2000


def divergences(reference: list[float], other: list[float]) -> list[float]:
    """KL(reference || other) by token, from log-probabilities of tokens that were drawn from the reference.

    `r - 1 - ln r` with `r = other / reference` has the expectation of `-ln r` and far less variance
    (Schulman 2020, "Approximating KL divergence"): it is never negative.
    """
    ratios = [mine - theirs for theirs, mine in zip(reference, other)]
    return [math.expm1(ratio) - ratio for ratio in ratios]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def ratio_interval(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """The 95 % interval of the ratio of two means over the same tokens: a paired bootstrap."""
    numbers, count = random.Random(1), len(ours)
    pairs, found = list(zip(ours, theirs)), []
    for _ in range(RESAMPLES):
        drawn = numbers.choices(pairs, k=count)
        # Where both are exact, neither is farther.
        found.append((sum(mine for mine, _ in drawn) + 1e-12) / (sum(other for _, other in drawn) + 1e-12))
    found.sort()
    return found[RESAMPLES * 25 // 1000], found[RESAMPLES * 975 // 1000]


def judge_answers(terms: dict[str, list[float]], base: float, counterpart: str, most: float = 1.0) -> list[str]:
    """Where something is wrong: why nothing is timed. Ours may not be farther from f32 than so many times the
    counterpart, by more than the tokens' own noise."""
    wrong = []
    found = {name: mean(values) for name, values in terms.items()}
    low, high = ratio_interval(terms["ours"], terms[counterpart])
    if low > most:
        wrong.append(
            f"ours is farther from f32 ({found['ours']:.2e}) than {counterpart} ({found[counterpart]:.2e}): "
            f"{low:.2f} to {high:.2f} times, at most {most:g}"
        )
    for name, value in found.items():
        if value > 0.1 * base:
            wrong.append(f"{name} is as far from f32 ({value:.2e}) as if it had no adapter ({base:.2e})")
    return wrong


def is_quantised(found: dict[str, float]) -> bool:
    """Whether our answers are those of rounded weights: exact ones are thousands of times nearer to f32 than bf16."""
    return found["ours"] > 0.01 * found["peft bf16"]
