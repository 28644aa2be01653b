"""Learning rate range test: one short run whose rate rises until gradients vanish, to find the model's cliff.

benchmarks/range_validation.py measures how well this predicts the peak rate above which real runs do not learn.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm.auto import tqdm

from bertmon.config import RunConfig, VerdictThresholds
from bertmon.data.batches import Batch
from bertmon.errors import InputError
from bertmon.monitor.history import FloatArray, History, RunPlan
from bertmon.monitor.monitor import NullLog
from bertmon.training.plan import plan_run
from bertmon.training.step import GuardedUpdate, forward_backward, resolve_device
from bertmon.training.task import Task, build_monitor, build_task

RISE = 200 ** (1 / 299)
"""Factor of the rate from one step to the next: 200 in 300 steps. A faster rise overshoots more, and varies more."""
OVERSHOOT = 1.8
"""Rate at which gradients vanish in such a run, divided by the cliff; calibrated in benchmarks/range_validation.py."""
WATCH_EVERY = 2
MEAN_SNAPSHOTS = 5
"""Number of snapshots over which depth ratios are averaged: a single one can be low momentarily."""
LEARNED_LOSS_RATIO = 0.5
"""Below this fraction of the chance loss, a model has learned, and its gradients are small because its errors are. When
gradients vanished in the validation, the loss of the last 20 steps was at least 0.8 of the chance loss."""


@dataclass(frozen=True, slots=True)
class RateRange:
    """The outcome of a range test."""

    plan: RunPlan  # of the run as configured
    steps: int  # of the range test
    last_rate: float  # of its last step
    failed: bool  # whether it ended because gradients vanished or were not finite

    @property
    def cliff(self) -> float | None:
        """The peak effective rate above which most runs do not learn; None if training did not fail."""
        return self.last_rate / OVERSHOOT if self.failed else None


def rising_rates(lowest: float, highest: float) -> FloatArray:
    """The rates of all steps [N], rising exponentially from `lowest` to `highest`."""
    steps = np.arange(1 + round(math.log(highest / lowest) / math.log(RISE)), dtype=np.float64)
    rates: FloatArray = lowest * RISE**steps
    return rates


def find_cliff(config: RunConfig, lowest: float, highest: float) -> RateRange:
    """Train with an exponentially rising rate until gradients vanish towards the input or it reaches `highest`.

    The effective rate rises: the run has bias correction, whatever the config says, and its own schedule. Everything
    else is as configured. Writes no files outside the cache. Raises InputError.
    """
    rates = rising_rates(lowest, highest)
    adam = replace(config.optimizer, bias_correction=True)
    monitoring = replace(config.monitor, enabled=True, every=WATCH_EVERY)
    task = build_task(replace(config, optimizer=adam), resolve_device(config.device))
    planned = plan_run(config, task.steps_per_epoch, task.plan.chance_loss)
    history = History(RunPlan(rates, rates, task.plan.chance_loss, 1.0, bias_correction=True))
    monitor = build_monitor(replace(config, monitor=monitoring), task, history, NullLog())
    update = GuardedUpdate(task.classifier, task.optimizer, config.train.max_grad_norm)
    task.classifier.train()
    for step, batches in enumerate(tqdm(_batches(task, config, len(rates)), "range", len(rates), disable=None)):
        loss, logits = forward_backward(task.classifier, batches, config.train.precision, task.class_weights)
        with monitor.update(step, batches[0], logits):
            grad_norm = update.update(loss, float(rates[step]))
        monitor.record(loss, grad_norm)
        if monitor.due(step) and (not monitor.flush() or _vanished(history, config.monitor.thresholds)):
            return RateRange(planned, step + 1, float(rates[step]), failed=True)
    return RateRange(planned, len(rates), float(rates[-1]), failed=False)


def _batches(task: Task, config: RunConfig, steps: int) -> Iterator[Sequence[Batch]]:
    """The batches of each step, epoch after epoch, as in a run."""
    for epoch in itertools.count():
        batches = task.train.epoch_batches(config.seed, epoch)
        while group := list(itertools.islice(batches, config.train.accumulate)):
            if steps == 0:
                return
            steps -= 1
            yield group


def _vanished(history: History, thresholds: VerdictThresholds) -> bool:
    """Whether the geometric mean of the last depth ratios is below the verdict's threshold in a model at chance."""
    last = history.snapshots[-MEAN_SNAPSHOTS:]
    if not last[-1].layers.matrix_groups:
        raise InputError(
            "model: expected at least two encoder layers that train, whose gradients can be compared, got fewer."
        )
    ratios = np.nan_to_num([snapshot.depth_ratio[0] for snapshot in last])  # nan: the last layer has zero gradients
    learned = np.mean(history.losses[-WATCH_EVERY * MEAN_SNAPSHOTS :]) < LEARNED_LOSS_RATIO * history.plan.chance_loss
    return bool(np.prod(ratios) < thresholds.min_depth_ratio ** len(ratios) and not learned)


def peak_factor(config: RunConfig, total_steps: int, *, warmup_frac: float, bias_correction: bool) -> float:
    """The ratio of the peak effective rate to optimizer.lr in a run of `total_steps` steps."""
    adam = replace(config.optimizer, bias_correction=bias_correction)
    schedule = replace(config.schedule, warmup_frac=warmup_frac, warmup_steps=None)
    one_epoch = replace(config, optimizer=adam, schedule=schedule, train=replace(config.train, epochs=1))
    return float(plan_run(one_epoch, total_steps, math.nan).effective_lr.max()) / config.optimizer.lr
