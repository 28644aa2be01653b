"""The monitor: which steps of a run are measured, and what happens with the measurements.

stats -> Snapshot -> History -> diagnosis -> MetricLog. The runner, `Watch` and `WatchCallback` all use this class.
Shapes: L watched weights, S statistics.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bertmon.config import MonitorConfig
from bertmon.monitor import stats
from bertmon.monitor.advice import CONFIG_KEYS, SettingNames
from bertmon.monitor.diagnosis import Diagnosis, Finding, Verdict, diagnose, divergence, unmoved_weights
from bertmon.monitor.history import STATISTICS, History, Snapshot, WeightTable
from bertmon.monitor.probe import LogitProbe

log = logging.getLogger(__name__)


class Weight(Protocol):
    """A parameter to watch; model.NamedWeight is one."""

    @property
    def parameter(self) -> nn.Parameter: ...
    @property
    def kind(self) -> str: ...
    @property
    def depth(self) -> int | None: ...


class MetricLog(Protocol):
    """Where measurements are written; in a run, monitor.tensorboard.RunWriter."""

    def snapshot(self, snapshot: Snapshot) -> None: ...
    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def text(self, tag: str, text: str, step: int) -> None: ...


class NullLog:
    """A MetricLog that writes nothing."""

    def snapshot(self, snapshot: Snapshot) -> None: ...
    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def text(self, tag: str, text: str, step: int) -> None: ...


class _PendingSnapshot(NamedTuple):
    """A measurement that is still on the device."""

    step: int
    rows: list[int]  # of the weights that have a gradient
    values: Tensor  # [rows, S]


class PendingScalars:
    """Losses and gradient norms that are still on the device, so that a step does not wait for them.

    mean_over_processes: averages losses over all processes.
    """

    def __init__(self, mean_over_processes: Callable[[Tensor], Tensor] | None = None) -> None:
        self._pairs: list[Tensor] = []
        self._mean_over_processes = mean_over_processes

    def add(self, loss: Tensor | None, grad_norm: Tensor) -> None:
        """Add the values of one step, [] each. loss: None if it is not known."""
        loss_or_nan = torch.full_like(grad_norm, torch.nan) if loss is None else loss
        self._pairs.append(torch.stack([loss_or_nan, grad_norm]))

    def flush_to(self, history: History) -> bool:
        """Wait for the device and append to `history`, up to the first value that is not finite.

        Returns whether all are finite; unknown losses do not count.
        """
        pairs, self._pairs = self._pairs, []
        if not pairs:
            return True
        losses, grad_norms = torch.stack(pairs).unbind(dim=1)
        if self._mean_over_processes:
            losses = self._mean_over_processes(losses)
        for loss, grad_norm in torch.stack([losses, grad_norms], dim=1).tolist():
            history.losses.append(loss)
            history.grad_norms.append(grad_norm)
            if not math.isfinite(grad_norm) or (history.plan.loss_known and not math.isfinite(loss)):
                return False
        return True


class Monitor:
    """Measures `weights` (by label, from input to output) every config.every steps and judges the run.

    A step is `with monitor.update(step, batch, logits): ...` around clipping and the optimizer's step, then `record`;
    `flush` waits for the device. With config.enabled=false no step is ever due and there is no diagnosis, but losses
    are still recorded and logged.
    probe: None if the logits are not available; verdicts then rest on gradients and updates alone.
    max_grad_norm: the norm that gradients are clipped to, for the share of clipped steps.
    lr_scales: factors of the plan's learning rate, for parameters that have their own.
    name: prefix of log messages.
    suspected_cause: a cause other than the learning rate that would explain why the run does not learn.
    setting_names: how advice refers to the settings. mean_over_processes: averages what each process measures.
    """

    def __init__(
        self,
        weights: Mapping[str, Weight],
        history: History,
        config: MonitorConfig,
        metric_log: MetricLog,
        *,
        probe: LogitProbe | None,
        max_grad_norm: float | None = None,
        lr_scales: Mapping[nn.Parameter, float] | None = None,
        suspected_cause: str | None = None,
        name: str = "",
        setting_names: SettingNames = CONFIG_KEYS,
        mean_over_processes: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.history = history
        self.notes: list[Finding] = []
        """Findings that no verdict rests on, one per signal."""
        self.diagnosis = Diagnosis(Verdict.undecided, 0) if config.enabled else None
        self._lr_scales = lr_scales or {}
        self._watch(weights)
        self._config = config
        self._log = metric_log
        self._probe = probe
        self._max_grad_norm = max_grad_norm
        self._suspected_cause = suspected_cause
        self._heading = f"{name}: " if name else ""
        self._setting_names = setting_names
        self._mean_over_processes = mean_over_processes
        self._scalars = PendingScalars(mean_over_processes)
        self._pending: _PendingSnapshot | None = None
        self._logit_std: Tensor | None = None
        self._logged_steps = 0  # steps whose scalars have been logged

    @property
    def doomed(self) -> bool:
        """Whether the run is not expected to learn any more."""
        return self.diagnosis is not None and self.diagnosis.verdict.doomed

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the watched weights, from input to output."""
        return self._table.labels

    def watch_more(self, weights: Mapping[str, Weight], lr_scales: Mapping[nn.Parameter, float]) -> None:
        """Measure these weights from now on; they must include all weights watched so far.

        In earlier snapshots the values of the new ones are nan. Call it between two steps.
        """
        self._lr_scales = lr_scales
        self._watch(weights)

    def due(self, step: int) -> bool:
        """Whether this step is measured."""
        return self.diagnosis is not None and len(self._table) > 0 and step % self._config.every == 0

    @contextmanager
    def update(self, step: int, batch: Any, logits: Tensor | None = None) -> Iterator[None]:
        """Wrap clipping and the optimizer's step in this context. Does nothing unless the step is due.

        batch: passed to the probe's forward. logits: from the training pass [B, C], if available.
        """
        self.measure_gradients(step)
        self.before_update(step, batch, logits)
        yield
        self.after_update(step)

    def measure_gradients(self, step: int, scale: Tensor | None = None) -> None:
        """The first part of `update`: measure the current gradients.

        scale: the factor [] that they have been multiplied by, for example by a GradScaler.
        """
        if self.due(step):
            self._statistics.measure_gradients(scale)

    def before_update(self, step: int, batch: Any, logits: Tensor | None = None) -> None:
        """The second part: measure the logits and copy the current weights."""
        if self.due(step):
            self._logit_std = self._probe.logit_std(step, batch, logits) if self._probe else None
            self._statistics.keep_weights()

    def after_update(self, step: int) -> None:
        """The third part: measure how the weights have changed since."""
        if self.due(step):
            self._pending = _PendingSnapshot(step, *self._statistics.measure_updates())

    def record(self, loss: Tensor | None, grad_norm: Tensor) -> None:
        """Record a step's mean loss [] and its gradient norm before clipping []; they stay on the device.

        loss: None if it is not known; history.plan.chance_loss must be nan then.
        """
        self._scalars.add(loss, grad_norm)

    def flush(self) -> bool:
        """Wait for the device once and extend the history; if a step was measured, log it and judge the run.

        The run is also judged after its last step, so that its final verdict includes the last losses. Returns False if
        a loss or gradient is not finite; the history then ends with the first of them.
        """
        finite = self._scalars.flush_to(self.history)
        pending, self._pending = self._pending, None
        if pending is not None and pending.step < len(self.history.losses):  # else training diverged before it
            snapshot = self._snapshot(pending)
            self.history.snapshots.append(snapshot)
            self._log.snapshot(snapshot)
            self._log.scalars(snapshot.step, snapshot.signals)
            self._note(unmoved_weights(self.history.snapshots, self._low_precision))
        if self.diagnosis is None:
            if not finite:
                step = len(self.history.losses) - 1
                log.error(f"{self._heading}step {step}: the loss or a gradient is not finite; training stops")
        elif pending is not None or not finite or self._is_complete():
            self._set_diagnosis(diagnose(self.history, self._config.thresholds, self.diagnosis, self._setting_names))
        return finite

    def _is_complete(self) -> bool:
        return len(self.history.losses) == len(self.history.plan) and bool(self.history.snapshots)

    def log_means(self) -> dict[str, float]:
        """Write the last step's scalars, means over the steps since the last call; returns them by tag."""
        steps = len(self.history.losses)
        if steps == self._logged_steps:
            return {}
        values = self.history.mean_since(self._logged_steps, self._max_grad_norm)
        if not self.history.plan.loss_known:
            del values["loss/train"]
        self._log.scalars(steps - 1, values)
        self._logged_steps = steps
        return values

    def report_divergence(self, signal: str, value: float, step: int) -> None:
        """Judge a run whose evaluation returned a value that is not finite."""
        if self.diagnosis is not None:
            self._set_diagnosis(divergence(self.history.plan, signal, value, step, setting_names=self._setting_names))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint stores in addition to the history, as JSON-serializable values."""
        return {
            "diagnosis": asdict(self.diagnosis) if self.diagnosis else None,
            "logged_steps": self._logged_steps,
            "next_probe_step": self._probe.next_step if self._probe else 0,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned. Raises KeyError, TypeError and ValueError."""
        if self.diagnosis is not None and state["diagnosis"] is not None:
            self.diagnosis = Diagnosis.from_dict(state["diagnosis"])
        self._logged_steps = int(state["logged_steps"])
        if self._probe:
            self._probe.next_step = int(state["next_probe_step"])

    def _watch(self, weights: Mapping[str, Weight]) -> None:
        parameters = [weight.parameter for weight in weights.values()]
        self._statistics = stats.WeightStatistics(parameters)
        scales = tuple(self._lr_scales.get(parameter, 1.0) for parameter in parameters)
        self._low_precision = frozenset(
            label for label, weight in weights.items() if torch.finfo(weight.parameter.dtype).bits < 32
        )
        self._table = WeightTable(
            tuple(weights),
            tuple(weight.kind for weight in weights.values()),
            tuple(weight.depth for weight in weights.values()),
            scales if set(scales) - {1.0} else (),
        )
        for position, snapshot in enumerate(self.history.snapshots):
            self.history.snapshots[position] = snapshot.with_layers(self._table)

    def _note(self, note: Finding | None) -> None:
        """Log a finding that no verdict rests on, once per signal."""
        if note is not None and all(other.signal != note.signal for other in self.notes):
            self.notes.append(note)
            log.warning(f"{self._heading}step {note.step}: {note.text}")
            self._log.text("note", note.text, note.step)

    def _set_diagnosis(self, diagnosis: Diagnosis) -> None:
        """Set the diagnosis, and log it if the verdict is new."""
        changed = self.diagnosis is None or diagnosis.verdict is not self.diagnosis.verdict
        if changed and diagnosis.verdict.doomed and self._suspected_cause:
            diagnosis = replace(diagnosis, cause=self._suspected_cause, advice=None)
        self.diagnosis = diagnosis
        if changed:
            log.log(logging.WARNING if diagnosis.verdict.doomed else logging.INFO, f"{self._heading}{diagnosis}")
            self._log.text("verdict", str(diagnosis), diagnosis.since_step)

    def _snapshot(self, pending: _PendingSnapshot) -> Snapshot:
        plan = self.history.plan
        values = np.full((len(self._table), len(STATISTICS)), np.nan)
        values[pending.rows] = pending.values.cpu().numpy()
        logit_std = self._logit_std
        if logit_std is not None and self._mean_over_processes:
            logit_std = self._mean_over_processes(logit_std)
        return Snapshot(
            step=pending.step,
            lr=float(plan.lr[pending.step]),
            effective_lr=float(plan.effective_lr[pending.step]),
            logit_std=math.nan if logit_std is None else logit_std.item(),
            layers=self._table,
            values=values,
        )


def subsample(labels: list[str], skip_prob: float) -> list[str]:
    """The labels without a random share of `skip_prob`, the same at every call; includes the first and the last."""
    kept = np.random.default_rng(0).random(len(labels)) >= skip_prob
    kept[[0, -1]] = True
    return [label for label, keep in zip(labels, kept, strict=True) if keep]
