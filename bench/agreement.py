"""Whether two sides have trained the same: from each step's loss and the norm of its gradient."""

import math


def agreement(name: str, measured: dict, called: str, reference: dict, tolerance: tuple[float, float]) -> str:
    """What was compared; raises where losses or norms disagree, or nothing was learned.

    `tolerance` is what a loss, and a gradient's norm, may be from those of the reference, in parts of these.
    """
    losses, expected = measured["losses"], reference["losses"]
    norms, wanted = measured["gradient_norms"], reference["gradient_norms"]
    if len(losses) != len(expected):
        raise RuntimeError(f"{name}: {len(losses)} steps, {called} has {len(expected)}")
    if not all(math.isfinite(norm) and norm > 0 for norm in norms):
        raise RuntimeError(f"{name}: gradient norms {norms}")
    if not losses[-1] < losses[0]:
        raise RuntimeError(f"{name}: the loss does not fall: {losses}")
    off = max(abs(loss - other) / abs(other) for loss, other in zip(losses, expected))
    norm_off = max(abs(norm - other) / other for norm, other in zip(norms, wanted))
    if not (off <= tolerance[0] and norm_off <= tolerance[1]):
        raise RuntimeError(f"{name}: losses {losses}, gradient norms {norms}; {called} has {expected} and {wanted}")
    return f"{name}: losses within {100 * off:.3f} %, gradient norms within {100 * norm_off:.2f} % of {called}'s"
