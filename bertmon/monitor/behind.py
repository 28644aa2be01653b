"""Whether a run that learns can still catch up with the best run of its sweep. Pure, numpy only.

The measure is the loss reduction: the share of the chance loss that the smoothed training loss has lost, 0 for a run
at chance, 1 for a loss of zero. Learning rates are its clock: in the steps to come a run can gain what the effective
learning rates that are left allow at its pace. A run on a plateau has no pace yet, so it is never judged.

The rule is scored by benchmarks/compute_saved.py. Shapes: N steps of the whole run.
"""

import math
from dataclasses import dataclass

import numpy as np

from bertmon.monitor.diagnosis import Diagnosis, Finding, Verdict
from bertmon.monitor.history import History


@dataclass(frozen=True, slots=True)
class BehindThresholds:
    """When a run is behind for good. Set on the calibration part of the labeled runs: docs/verdicts.md."""

    window: float = 0.25
    """Share of the run's steps over which its pace is taken. In (0, 1)."""
    speedup: float = 2.0
    """Factor by which the pace may still rise. At least 1."""
    min_share_of_best: float = 0.5
    """A run whose best case is below this share of the best run's loss reduction is behind. In (0, 1)."""


def loss_reduction(history: History, steps: int | None = None) -> float:
    """1 - smoothed training loss / chance loss after so many steps (all by default); nan without a step.

    Smoothed over the last twentieth of the run, at least 20 steps.
    """
    losses = history.losses[:steps]
    recent = losses[-max(20, len(history.plan) // 20) :]
    return 1 - float(np.mean(recent)) / history.plan.chance_loss if recent else math.nan


def best_case(history: History, thresholds: BehindThresholds | None = None) -> float:
    """The loss reduction that the run reaches at its end if its pace rises by `speedup`.

    The pace is what was gained over the last `window` of the steps, per unit of effective learning rate. Infinite until
    a window has passed or while no rate has been used.
    """
    thresholds = thresholds or BehindThresholds()
    done, window = len(history.losses), round(thresholds.window * len(history.plan))
    clock = np.cumsum(history.plan.effective_lr)
    if done <= window or clock[done - 1] <= clock[done - 1 - window]:
        return math.inf
    now, before = loss_reduction(history), loss_reduction(history, done - window)
    pace = max(now - before, 0.0) / (clock[done - 1] - clock[done - 1 - window])
    return float(now + thresholds.speedup * pace * (clock[-1] - clock[done - 1]))


def find_behind(
    history: History, diagnosis: Diagnosis, best: float, thresholds: BehindThresholds | None = None
) -> Finding | None:
    """The finding that a run cannot catch up with the best run any more; None if it can, or has not learned yet.

    best: the largest loss_reduction of the sweep's ended runs on the same data; -inf without one.
    """
    thresholds = thresholds or BehindThresholds()
    if diagnosis.verdict is not Verdict.healthy:
        return None
    reachable, needed = best_case(history, thresholds), thresholds.min_share_of_best * best
    if not reachable < needed:
        return None
    text = (
        f"even at {thresholds.speedup:g} times its recent pace the loss ends at most {reachable:.0%} below chance; "
        f"that of the sweep's best run is {best:.0%} below"
    )
    return Finding("loss/train", None, reachable, needed, len(history.losses) - 1, text)
