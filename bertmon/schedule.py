"""The learning rate as pure functions of the step: the schedule's factor, and that of a missing bias correction.

No torch, no state.
"""

import math


def warmup_steps(warmup_frac: float, total_steps: int) -> int:
    """Steps of warm-up: warmup_frac * total_steps, rounded half up for every fraction alike."""
    return math.floor(warmup_frac * total_steps + 0.5)


def lr_factor(step: int, *, decay: str, warmup_frac: float, total_steps: int) -> float:
    """What the peak learning rate is multiplied by at `step`, counted from 0 to total_steps - 1; in [0, 1].

    With W = warmup_steps(...) and N = total_steps:

        step / W                                     for step < W
        (N - step) / (N - W)                         then, for decay "linear"
        (1 + cos(pi * (step - W) / (N - W))) / 2     then, for decay "cosine"
        1                                            then, for decay "constant"

    Step 0 has factor 0 where there is a warm-up: it moves no weight, and fills the optimizer's moments only. The peak,
    exactly 1, is at step W. The formula is that of transformers' get_*_schedule_with_warmup with a whole W.
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
    """What a missing bias correction of Adam multiplies the learning rate of `step`, counted from 0, by.

    (1 - beta1^t) / sqrt(1 - beta2^t) at the t-th step, t = step + 1.
    """
    return (1 - beta1 ** (step + 1)) / math.sqrt(1 - beta2 ** (step + 1))
