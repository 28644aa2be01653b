"""Cadence: at which steps is measured, and what happens with a measurement. stats -> Snapshot -> writer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bertmon.monitor import STATISTICS, Snapshot, stats


class Sink(Protocol):
    """Whoever takes measurements; in a run, monitor.writer.RunWriter."""

    def snapshot(self, snapshot: Snapshot) -> None: ...


class Watch:
    """Measures `layers` (label -> parameter and kind, from input to output) every `every` steps, from step 0 on."""

    def __init__(self, layers: Mapping[str, tuple[nn.Parameter, str]], *, every: int, sink: Sink) -> None:
        self._labels = tuple(layers)
        self._parameters = [parameter for parameter, _ in layers.values()]
        self._kinds = tuple(kind for _, kind in layers.values())
        self._every = every
        self._sink = sink

    @contextmanager
    def update(self, step: int, lr: float) -> Iterator[None]:
        """Put around clipping and the optimizer's step: gradients are measured on entry, changes on exit."""
        if step % self._every or not self._parameters:
            yield
            return
        live = [row for row, parameter in enumerate(self._parameters) if parameter.grad is not None]
        parameters = [self._parameters[row].detach() for row in live]
        before = [parameter.clone() for parameter in parameters]
        gradients = stats.gradient_statistics([_gradient(self._parameters[row]) for row in live])
        yield
        ratios = stats.update_ratios(before, parameters)
        values = np.full((len(self._labels), len(STATISTICS)), np.nan)
        values[live] = torch.cat([gradients, ratios[:, None]], dim=1).cpu().numpy()  # the step's one wait
        self._sink.snapshot(Snapshot(step, lr, self._labels, self._kinds, values))


def thinned(labels: list[str], skip_prob: float) -> list[str]:
    """The labels less a share of `skip_prob`, the same ones at every call; the first and the last always stay."""
    kept = np.random.default_rng(0).random(len(labels)) >= skip_prob
    kept[[0, -1]] = True
    return [label for label, keep in zip(labels, kept, strict=True) if keep]


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
