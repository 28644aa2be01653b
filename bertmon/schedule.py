"""Learning rate factors as pure functions of the step: the schedule's, and that of missing bias correction.

No torch, no state.
"""

import math


def warmup_steps(warmup_frac: float, total_steps: int) -> int:
    """Number of warm-up steps: warmup_frac * total_steps, always rounded half up."""
    return math.floor(warmup_frac * total_steps + 0.5)


def lr_factor(step: int, *, decay: str, warmup_frac: float, total_steps: int) -> float:
    """The learning rate at `step` (0 to total_steps - 1) as a fraction of its peak, in [0, 1].

    With W = warmup_steps(...) and N = total_steps:

        step / W                                     for step < W
        (N - step) / (N - W)                         then, for decay "linear"
        (1 + cos(pi * (step - W) / (N - W))) / 2     then, for decay "cosine"
        1                                            then, for decay "constant"

    With warm-up, step 0 has factor 0: it changes no weights, only the optimizer's moments. The peak, exactly 1, is at
    step W. The formulas are those of transformers' get_*_schedule_with_warmup with W warm-up steps.
    """
    assert 0 <= step < total_steps, (step, total_steps)
    warmup = warmup_steps(warmup_frac, total_steps)
    if step < warmup:
        return step / warmup
    if decay == "constant":
        return 1.0
    remaining = (total_steps - step) / (total_steps - warmup)
    if decay == "linear":
        return remaining
    assert decay == "cosine", decay
    return (1 + math.cos(math.pi * (1 - remaining))) / 2


def bias_correction_gain(step: int, *, beta1: float, beta2: float) -> float:
    """The factor by which Adam without bias correction scales the learning rate of `step`, counted from 0.

    (1 - beta1^t) / sqrt(1 - beta2^t) with t = step + 1.
    """
    return (1 - beta1 ** (step + 1)) / math.sqrt(1 - beta2 ** (step + 1))
