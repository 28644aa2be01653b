"""Cadence: at which steps is measured, and what happens with a measurement.

stats -> Snapshot -> History -> {diagnosis, writer}.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bertmon.config import MonitorConfig
from bertmon.monitor import stats
from bertmon.monitor.diagnosis import Diagnosis, Verdict, diagnose
from bertmon.monitor.history import STATISTICS, History, Snapshot, WeightTable

log = logging.getLogger(__name__)


class Layer(Protocol):
    """A parameter to watch; model.Layer is one."""

    @property
    def parameter(self) -> nn.Parameter: ...
    @property
    def kind(self) -> str: ...
    @property
    def depth(self) -> int | None: ...


class MetricLog(Protocol):
    """Whoever takes measurements; in a run, monitor.writer.RunWriter."""

    def snapshot(self, snapshot: Snapshot) -> None: ...
    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def text(self, tag: str, text: str, step: int) -> None: ...


class _PendingSnapshot(NamedTuple):
    """What still is on the device."""

    step: int
    rows: list[int]  # of the layers that have a gradient
    values: Tensor  # [rows, S]


class PendingScalars:
    """Losses and gradient norms that still are on the device, so that a step does not wait for them."""

    def __init__(self) -> None:
        self._pairs: list[Tensor] = []

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Those of one step, [] each."""
        self._pairs.append(torch.stack([loss, norm]))

    def flush_to(self, history: History) -> bool:
        """Wait for them and hand them over, up to the first that is not finite; returns whether all are."""
        pairs, self._pairs = self._pairs, []
        for loss, norm in torch.stack(pairs).tolist() if pairs else ():
            history.losses.append(loss)
            history.grad_norms.append(norm)
            if not math.isfinite(loss + norm):
                return False
        return True


class Monitor:
    """Measures `layers` (by label, from input to output) every so many steps, from step 0 on, and judges the run."""

    def __init__(self, layers: Mapping[str, Layer], history: History, config: MonitorConfig, sink: MetricLog) -> None:
        self._meter = stats.WeightStatistics([layer.parameter for layer in layers.values()])
        self._layers = WeightTable(
            tuple(layers),
            tuple(layer.kind for layer in layers.values()),
            tuple(layer.depth for layer in layers.values()),
        )
        self._history = history
        self._every = config.every
        self._rules = config.thresholds
        self.diagnosis = Diagnosis(Verdict.healthy, 0)
        self._sink = sink
        self._measured: _PendingSnapshot | None = None
        self._spread = torch.full((), torch.nan)

    def due(self, step: int) -> bool:
        """Whether this step is measured."""
        return bool(self._layers) and step % self._every == 0

    @contextmanager
    def update(self, step: int) -> Iterator[None]:
        """Put around clipping and the optimizer's step: gradients are measured on entry, changes on exit."""
        self.measure_gradients()
        self.keep_weights()
        yield
        self.measure_updates(step)

    def measure_gradients(self) -> None:
        """Measure the gradients as they are now."""
        self._meter.measure_gradients()

    def keep_weights(self) -> None:
        """Keep the weights as they are now."""
        self._meter.keep_weights()

    def measure_updates(self, step: int) -> None:
        """Measure what has changed since; `step` is then ready to be read."""
        self._measured = _PendingSnapshot(step, *self._meter.measure_updates())

    def set_logit_std(self, logit_spread: Tensor) -> None:
        """How much the scores of the measured step depend on the text [], still on the device."""
        self._spread = logit_spread

    def flush(self) -> None:
        """Wait for what was measured last, hand it on, and judge the run as its history now stands."""
        measured, self._measured = self._measured, None
        if measured is not None and measured.step < len(self._history.losses):  # else training stopped before it
            snapshot = self._snapshot(measured)
            self._history.snapshots.append(snapshot)
            self._sink.snapshot(snapshot)
            self._sink.scalars(snapshot.step, snapshot.signals)
        self.set_diagnosis(diagnose(self._history, self._rules, self.diagnosis))

    def set_diagnosis(self, found: Diagnosis) -> None:
        """Take over a diagnosis; a verdict that is new is told."""
        changed = found.verdict is not self.diagnosis.verdict
        self.diagnosis = found
        if changed:
            log.log(logging.WARNING if found.verdict.doomed else logging.INFO, found)
            self._sink.text("verdict", str(found), found.since_step)

    def _snapshot(self, measured: _PendingSnapshot) -> Snapshot:
        plan = self._history.plan
        values = np.full((len(self._layers), len(STATISTICS)), np.nan)
        values[measured.rows] = measured.values.cpu().numpy()
        return Snapshot(
            step=measured.step,
            lr=float(plan.lr[measured.step]),
            effective_lr=float(plan.effective_lr[measured.step]),
            logit_std=self._spread.item(),
            layers=self._layers,
            values=values,
        )


def subsample(labels: list[str], skip_prob: float) -> list[str]:
    """The labels less a share of `skip_prob`, the same ones at every call; the first and the last always stay."""
    kept = np.random.default_rng(0).random(len(labels)) >= skip_prob
    kept[[0, -1]] = True
    return [label for label, keep in zip(labels, kept, strict=True) if keep]
