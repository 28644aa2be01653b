"""Checks of a run's planned learning rates before its first step. Pure, numpy only."""

import math

import numpy as np

from bertmon.monitor.history import RunPlan
from bertmon.notation import format_rate

STUDIED_PEAKS = (
    (0.0, 1.5e-4, 33, 63),
    (1.5e-4, 1e-3, 3, 123),
    (1e-3, 1.9e-3, 9, 55),
    (1.9e-3, 4e-3, 32, 46),
    (4e-3, math.inf, 79, 87),
)
"""Peak effective rate from (included) and to (excluded), runs that did not learn, all runs. These are the labeled runs
of docs/verdicts.md: post-LN BERTs of 2 to 12 layers and width 64 and 128 from random weights.
benchmarks/early_signals.py prints the table."""

MAX_STUDIED_LAYERS, MAX_STUDIED_WIDTH = 12, 128

_MIN_BOOST = 1.5  # of the peak by a missing bias correction; a smaller one is not mentioned
_MIN_DECAY = 0.01  # by which weights shrink over all steps; less has next to no effect
_MIN_SHARE = 0.5  # of the studied runs with a similar peak that did not learn; a smaller one is not mentioned


def check_plan(plan: RunPlan, *, beta2: float, weight_decay: float, studied: bool) -> list[str]:
    """Sentences about what is unusual in the plan; empty if nothing is.

    beta2, weight_decay: of Adam. studied: the model resembles those of STUDIED_PEAKS, so that its peak can be compared
    with theirs; larger and pretrained models need smaller rates.
    """
    if not len(plan) or not plan.effective_lr.any():
        return ["the learning rate is 0 at every step: no weight will move"] if len(plan) else []
    checks = [_check_boost(plan, beta2), _check_schedule(plan), _check_decay(plan, weight_decay)]
    if studied:
        checks.append(_check_peak(plan))
    return [sentence for sentence in checks if sentence]


def _check_boost(plan: RunPlan, beta2: float) -> str:
    """The peak is a multiple of the nominal rate: bias correction is missing and the warm-up is too short."""
    peak, nominal = int(plan.effective_lr.argmax()), float(plan.lr.max())
    largest = float(plan.effective_lr[peak])
    if plan.bias_correction or largest < _MIN_BOOST * nominal:
        return ""
    return (
        f"without bias correction the effective learning rate peaks at {format_rate(largest, 2)} (step {peak}), "
        f"{largest / nominal:.1f}x the nominal {format_rate(nominal, 2)}: warm-up is shorter than the "
        f"{round(2 / (1 - beta2))} steps, 2 / (1 - beta2), in which the boost fades"
    )


def _check_schedule(plan: RunPlan) -> str:
    """The rate still rises at the end of the run."""
    if len(plan) < 2 or not np.all(np.diff(plan.lr) > 0):
        return ""
    return f"the learning rate rises until the last step and is largest there ({format_rate(float(plan.lr[-1]), 2)})"


def _check_decay(plan: RunPlan, weight_decay: float) -> str:
    """Weight decay multiplies weights by 1 - lr * weight_decay in a step."""
    shrinkage = -math.expm1(-float(plan.lr.sum()) * weight_decay)
    if not 0 < shrinkage < _MIN_DECAY:
        return ""
    return (
        f"weight_decay={weight_decay:g} shrinks weights by {100 * shrinkage:.2g} % in all {len(plan)} steps: "
        "it has next to no effect"
    )


def _check_peak(plan: RunPlan) -> str:
    """Many of the studied runs with a similar peak did not learn."""
    peak = float(plan.effective_lr.max())
    failed, runs = next((failed, runs) for low, high, failed, runs in STUDIED_PEAKS if low <= peak < high)
    if failed < _MIN_SHARE * runs:
        return ""
    size = "so small a" if peak < STUDIED_PEAKS[0][1] else "such a"
    return (
        f"the effective learning rate peaks at {format_rate(peak, 2)}: of {runs} small BERTs from random weights with "
        f"{size} peak, {failed} did not learn"
    )
