"""Whether a run that learns can still catch up with the best run of its sweep. Pure, numpy only.

The measure is the loss reduction, 1 - smoothed training loss / chance loss: 0 for a run at chance, 1 for a loss of
zero. Its pace is the gain per unit of effective learning rate, which predicts the gain from the remaining learning
rates. A run on a plateau has no pace yet, so it is never judged.

The rule is evaluated by benchmarks/compute_saved.py.
"""

import math
from dataclasses import dataclass

import numpy as np

from bertmon.monitor.diagnosis import Diagnosis, Finding, Verdict
from bertmon.monitor.history import History


@dataclass(frozen=True, slots=True)
class BehindThresholds:
    """When a run is hopelessly behind. Set on the calibration part of the labeled runs: docs/verdicts.md."""

    window: float = 0.25
    """Share of the run's steps over which its pace is measured. In (0, 1)."""
    speedup: float = 2.0
    """Factor by which the pace can still rise. At least 1."""
    min_share_of_best: float = 0.5
    """A run whose best case is below this share of the best run's loss reduction is behind. In (0, 1)."""


def loss_reduction(history: History, steps: int | None = None) -> float:
    """1 - smoothed training loss / chance loss after `steps` steps (default: all so far); nan before the first step."""
    recent = history.losses[:steps][-history.smoothing_window :]
    return 1 - float(np.mean(recent)) / history.plan.chance_loss if recent else math.nan


def best_case(history: History, thresholds: BehindThresholds | None = None) -> float:
    """The loss reduction that the run reaches at its end if its pace rises by a factor of `speedup`.

    The pace is the gain over the last `window` of the steps, per unit of effective learning rate. Infinite until a
    window has passed and while all learning rates in it are 0.
    """
    thresholds = thresholds or BehindThresholds()
    steps, window = len(history.losses), round(thresholds.window * len(history.plan))
    lr_sum = np.cumsum(history.plan.effective_lr)
    if steps <= window or lr_sum[steps - 1] <= lr_sum[steps - 1 - window]:
        return math.inf
    now, before = loss_reduction(history), loss_reduction(history, steps - window)
    pace = max(now - before, 0.0) / (lr_sum[steps - 1] - lr_sum[steps - 1 - window])
    return float(now + thresholds.speedup * pace * (lr_sum[-1] - lr_sum[steps - 1]))


def find_behind(
    history: History, diagnosis: Diagnosis, best: float, thresholds: BehindThresholds | None = None
) -> Finding | None:
    """The finding that a run can no longer catch up with the best run; None if it can, or has not learned yet.

    best: the largest loss_reduction of the sweep's ended runs on the same data; -inf if there is none.
    """
    thresholds = thresholds or BehindThresholds()
    if diagnosis.verdict is not Verdict.healthy:
        return None
    reachable, needed = best_case(history, thresholds), thresholds.min_share_of_best * best
    if not reachable < needed:
        return None
    text = (
        f"even at {thresholds.speedup:g} times its recent pace the loss ends at most {reachable:.0%} below chance; "
        f"the loss of the sweep's best run is {best:.0%} below"
    )
    return Finding("loss/train", None, reachable, needed, len(history.losses) - 1, text)
