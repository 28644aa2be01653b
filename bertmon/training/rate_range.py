"""One short run whose learning rate rises until gradients vanish: at which peak effective rate a model is lost.

How well that predicts the rate from which real runs do not learn is measured: benchmarks/range_validation.py.
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
"""Factor of the rate from one step to the next: 200 in 300 steps. A faster rise overshoots more, and scatters more."""
OVERSHOOT = 1.8
"""By which factor gradients vanish above the cliff in such a run; calibrated in benchmarks/range_validation.py."""
WATCH_EVERY = 2
MEAN_OF = 5
"""Snapshots over which depth ratios are averaged: a single one may be low for a moment."""
LEARNED = 0.5
"""A loss below this share of chance is that of a model that has learned: its gradients are small since its errors are.
Where gradients vanished in the validation, the loss of the last 20 steps was 0.8 of chance and more."""


@dataclass(frozen=True, slots=True)
class RateRange:
    """The outcome of the run."""

    plan: RunPlan  # of the run that was planned
    steps: int  # that the run with the rising rate took
    last: float  # the rate of the last of them
    broke: bool  # whether it ended since gradients vanished, or were not finite

    @property
    def cliff(self) -> float | None:
        """The peak effective rate from which runs are expected not to learn; None if training did not break."""
        return self.last / OVERSHOOT if self.broke else None


def rising_rates(lowest: float, highest: float) -> FloatArray:
    """The rates of all steps [N], from the lowest up to the highest."""
    steps = np.arange(1 + round(math.log(highest / lowest) / math.log(RISE)), dtype=np.float64)
    rates: FloatArray = lowest * RISE**steps
    return rates


def find_cliff(config: RunConfig, lowest: float, highest: float) -> RateRange:
    """Train with a rate that rises exponentially, until gradients vanish towards the input or it is `highest`.

    It is the effective rate that rises: the run has bias correction, whatever the config says, and its own schedule.
    Everything else is as planned. Leaves no file but those of the cache. Raises InputError.
    """
    rates = rising_rates(lowest, highest)
    adam = replace(config.optimizer, bias_correction=True)
    watching = replace(config.monitor, enabled=True, every=WATCH_EVERY)
    task = build_task(replace(config, optimizer=adam), resolve_device(config.device))
    planned = plan_run(config, task.steps_per_epoch, task.plan.chance_loss)
    history = History(RunPlan(rates, rates, task.plan.chance_loss, 1.0, bias_correction=True))
    monitor = build_monitor(replace(config, monitor=watching), task, history, NullLog())
    update = GuardedUpdate(task.classifier, task.optimizer, config.train.max_grad_norm)
    task.classifier.train()
    for step, batches in enumerate(tqdm(_batches(task, config, len(rates)), "range", len(rates), disable=None)):
        loss, logits = forward_backward(task.classifier, batches, config.train.precision, task.class_weights)
        with monitor.update(step, batches[0], logits):
            grad_norm = update.update(loss, float(rates[step]))
        monitor.record(loss, grad_norm)
        if monitor.due(step) and (not monitor.flush() or _vanished(history, config.monitor.thresholds)):
            return RateRange(planned, step + 1, float(rates[step]), broke=True)
    return RateRange(planned, len(rates), float(rates[-1]), broke=False)


def _batches(task: Task, config: RunConfig, steps: int) -> Iterator[Sequence[Batch]]:
    """Those of each step, epoch after epoch, as in a run."""
    for epoch in itertools.count():
        batches = task.train.epoch_batches(config.seed, epoch)
        while group := list(itertools.islice(batches, config.train.accumulate)):
            if steps == 0:
                return
            steps -= 1
            yield group


def _vanished(history: History, thresholds: VerdictThresholds) -> bool:
    """Whether the geometric mean of the last depth ratios is below the verdict's threshold, in a model at chance."""
    last = history.snapshots[-MEAN_OF:]
    if not last[-1].layers.matrix_groups:
        raise InputError(
            "model: expected at least two encoder layers that train, whose gradients can be compared, got fewer."
        )
    ratios = np.nan_to_num([snapshot.depth_ratio[0] for snapshot in last])  # nan: the last layer's are all zero
    learned = np.mean(history.losses[-WATCH_EVERY * MEAN_OF :]) < LEARNED * history.plan.chance_loss
    return bool(np.prod(ratios) < thresholds.min_depth_ratio ** len(ratios) and not learned)


def peak_factor(config: RunConfig, total_steps: int, *, warmup_frac: float, bias_correction: bool) -> float:
    """The peak effective rate of a run of so many steps over its optimizer.lr."""
    adam = replace(config.optimizer, bias_correction=bias_correction)
    schedule = replace(config.schedule, warmup_frac=warmup_frac, warmup_steps=None)
    one_epoch = replace(config, optimizer=adam, schedule=schedule, train=replace(config.train, epochs=1))
    return float(plan_run(one_epoch, total_steps, math.nan).effective_lr.max()) / config.optimizer.lr
