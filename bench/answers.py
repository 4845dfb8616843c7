"""How far teacher-forced answers are from those of f32."""

import math

# An estimate from some hundred tokens is no more exact than this.
KL_MARGIN = 1.25


def divergence(reference: list[float], other: list[float]) -> float:
    """KL(reference || other) per token, from log-probabilities of tokens that were drawn from the reference.

    `r - 1 - ln r` with `r = other / reference` has the expectation of `-ln r` and far less variance
    (Schulman 2020, "Approximating KL divergence"): it is never negative.
    """
    ratios = [mine - theirs for theirs, mine in zip(reference, other)]
    return sum(math.expm1(ratio) - ratio for ratio in ratios) / len(ratios)


def judge_answers(found: dict[str, float], base: float, counterpart: str) -> list[str]:
    """Where something is wrong: why nothing is timed."""
    wrong = []
    if found["ours"] > KL_MARGIN * found[counterpart] + 1e-9:
        wrong.append(f"ours is farther from f32 ({found['ours']:.2e}) than {counterpart} ({found[counterpart]:.2e})")
    for name, value in found.items():
        if value > 0.1 * base:
            wrong.append(f"{name} is as far from f32 ({value:.2e}) as if it had no adapter ({base:.2e})")
    return wrong


def is_quantised(found: dict[str, float]) -> bool:
    """Whether our answers are those of rounded weights: exact ones are thousands of times nearer to f32 than bf16."""
    return found["ours"] > 0.01 * found["peft bf16"]
