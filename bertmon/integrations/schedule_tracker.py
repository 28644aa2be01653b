"""The planned learning rates of a loop with its own scheduler: computed in advance, corrected during training.

Shapes: N steps planned.
"""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
from torch.optim import Optimizer

from bertmon.errors import require
from bertmon.integrations.plan_ahead import adam_config, current_lr, past_learning_rates, planned_learning_rates
from bertmon.integrations.unwrap import unwrap_scheduler
from bertmon.monitor.history import FloatArray, History, RunPlan
from bertmon.optimizer import bias_correction_gain

log = logging.getLogger(__name__)


class ScheduleTracker:
    """Plans the learning rates and compares them with the optimizer's actual ones.

    every: updates per call of scheduler.step(). first_step: updates done so far. past: the learning rates of the steps
    in the history; None: computed for the updates done so far, where possible. Raises InputError if `first_step` is
    below 0 or if `total_steps` or `every` is below 1.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scheduler: Any,
        every: int,
        first_step: int,
        total_steps: int,
        past: FloatArray | None = None,
        *,
        bias_correction: bool,
    ) -> None:
        require(first_step >= 0, "first_step", first_step, "an integer of at least 0")
        require(total_steps >= 1, "total_steps", total_steps, "an integer of at least 1")
        require(every >= 1, "scheduler_every", every, "an integer of at least 1")
        self._optimizer = optimizer
        self._scheduler, self._calls_per_step = unwrap_scheduler(scheduler)
        self._every = every
        self._bias_correction = bias_correction
        if past is None:
            past = past_learning_rates(
                self._scheduler, first_step, calls_per_step=self._calls_per_step, every=self._every
            )
        self._unwatched = first_step - len(past)  # updates that are not in the history
        self._skipped = False
        self._warned = False
        self._constant = False  # future rates are unknown: assume the current one
        ahead = self._rates_ahead(first_step, max(total_steps - first_step, 0))
        if ahead is None:
            log.warning(
                f"scheduler: the learning rates of {type(self._scheduler).__name__} cannot be known in advance: "
                "verdicts assume that the current rate does not change."
            )
            self._constant = True
            ahead = np.full(max(total_steps - first_step, 0), current_lr(optimizer))
        self._lr = np.concatenate([past, ahead])
        adam = adam_config(optimizer, bias_correction)
        self._gains = np.array([bias_correction_gain(adam, step) for step in range(len(self._lr))])

    def plan(self, chance_loss: float) -> RunPlan:
        """The plan of all steps. It is confirmed once the scheduler has been observed to be stepped as planned."""
        return RunPlan(
            lr=self._lr,
            effective_lr=self._lr * self._gains,
            chance_loss=chance_loss,
            warmup_frac=float(self._lr.argmax()) / len(self._lr),
            bias_correction=self._bias_correction,
            lr_confirmed=self._constant or self._calls() is None,
        )

    def note_skipped_update(self) -> None:
        """Record that a GradScaler skipped the last update; the loop may or may not have stepped the scheduler."""
        self._skipped = True

    def check(self, history: History, step: int) -> None:
        """Correct the history's plan to the optimizer's actual rate; call before the update of `step`."""
        updates = step + self._unwatched
        if self._skipped and not self._constant:
            ahead = self._rates_ahead(updates, len(history.plan) - step)
            assert ahead is not None
            self._set_rates(history.plan, slice(step, None), ahead)
        self._skipped = False
        self._check_calls(history, updates)
        self._check_rate(history, step)

    def _check_calls(self, history: History, updates: int) -> None:
        """Check that the scheduler is called as often as planned; rates that change once an epoch show it too late."""
        calls, planned = self._calls(), self._planned_calls(updates)
        if calls is None or self._constant or updates == self._first_update:
            return
        made = calls - self._first_calls
        if made == planned:
            history.plan = replace(history.plan, lr_confirmed=not self._warned)
            return
        log.warning(
            f"step {updates}: scheduler.step() was called {made} times since step {self._first_update}, but {planned} "
            "calls were planned: no verdict rests on the remaining learning rates. Pass scheduler_every=..., the "
            "updates between two calls."
        )
        self._constant = self._warned = True
        history.plan = replace(history.plan, lr_confirmed=False)

    def _check_rate(self, history: History, step: int) -> None:
        rate, planned = current_lr(self._optimizer), history.plan.lr[step]
        if not (self._constant or self._warned) and not np.isclose(rate, planned, rtol=1e-6, atol=1e-12):
            self._warned = True
            hint = " Pass scheduler=... to Watch." if self._scheduler is None else ""
            log.warning(
                f"step {step}: the learning rate is {rate:g}, but {planned:g} was planned: no verdict rests on the "
                f"remaining learning rates.{hint}"
            )
            history.plan = replace(history.plan, lr_confirmed=False)
        self._set_rates(history.plan, slice(step, None if self._constant else step + 1), rate)

    def _set_rates(self, plan: RunPlan, steps: slice, rates: FloatArray | float) -> None:
        plan.lr[steps] = rates
        plan.effective_lr[steps] = rates * self._gains[steps]

    def _rates_ahead(self, updates: int, steps: int) -> FloatArray | None:
        """Planned rates from the scheduler's current state on; its calls are counted from here."""
        self._first_update, self._first_calls = updates, self._calls() or 0
        return planned_learning_rates(
            self._optimizer,
            self._scheduler,
            steps,
            first_step=updates,
            calls_per_step=self._calls_per_step,
            every=self._every,
        )

    def _calls(self) -> int | None:
        """The call counter that torch's schedulers have; None for other schedulers."""
        count = getattr(self._scheduler, "last_epoch", None)
        return count if isinstance(count, int) else None

    def _planned_calls(self, updates: int) -> int:
        """The planned number of scheduler calls since _first_update."""
        return self._calls_per_step * (updates // self._every - self._first_update // self._every)
