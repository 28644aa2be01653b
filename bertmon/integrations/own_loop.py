"""Monitor your own training loop with one context manager around `optimizer.step()`.

    with Watch(model, optimizer, "runs/mine", total_steps=1000, labels=labels, scheduler=scheduler) as watch:
        for batch in loader:
            loss = model(**batch).loss
            loss.backward()
            with watch.step(loss, batch):
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

Knows how to derive from such a loop what a run of bertmon knows from its config: weights, rates, steps, inputs.
Shapes: N steps planned, B texts, C classes.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bertmon.config import MonitorConfig, VerdictThresholds
from bertmon.data.corpus import entropy
from bertmon.errors import InputError, require
from bertmon.integrations.plan_ahead import adam_config, current_lr, planned_learning_rates
from bertmon.model import named_weights
from bertmon.monitor.diagnosis import Diagnosis
from bertmon.monitor.history import HISTORY_FILE, History, RunPlan
from bertmon.monitor.monitor import Monitor
from bertmon.monitor.probe import LogitProbe, first_texts
from bertmon.monitor.tensorboard import RunWriter
from bertmon.optimizer import bias_correction_gain
from bertmon.storage import atomic_write

log = logging.getLogger(__name__)

Inputs = Mapping[str, Any]
"""What a model is called with, by name; a row for each text."""


class Watch:
    """Measures a model while your own loop trains it, judges the run, and writes TensorBoard logs and history.npz.

    model: one of transformers' classifiers, or any other whose logits `logits` gives; trained in float32, or in
    bfloat16 under autocast. Its weights are watched, not its biases.
    optimizer: an Adam variant; verdict thresholds are calibrated for Adam only.
    folder: where to write. One that contains a run is refused.
    total_steps: updates that are planned.
    labels: those of the training texts; their entropy is the loss of a model that ignores the texts.
    scheduler: the one that sets the rates; a copy of it is stepped to the end in advance, because the verdict depends
    on the remaining learning rates. None: the rate is constant.
    bias_correction: false for an Adam that does not correct its moments.
    every, figures, thresholds: as the keys monitor.every, monitor.figures and monitor.thresholds.
    logits: the logits [B, C] of what is given to `step`. None: `model(**batch).logits`, without labels.

    Use it as a context manager, or call `close` at the end. Raises InputError for an argument that does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        folder: str | Path,
        *,
        total_steps: int,
        labels: Sequence[int] | Tensor,
        scheduler: LRScheduler | None = None,
        bias_correction: bool = True,
        every: int = 30,
        figures: bool = True,
        thresholds: VerdictThresholds | None = None,
        logits: Callable[[Any], Tensor] | None = None,
    ) -> None:
        require(total_steps >= 1, "total_steps", total_steps, "an integer of at least 1")
        self._folder = Path(folder)
        if (self._folder / HISTORY_FILE).exists():
            raise InputError(f"{folder} already contains a run: choose another folder or delete it.")
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # torch.compile's wrapper adds to the names
        weights = named_weights(self.model)
        require(bool(weights), "model", type(model).__name__, "a model with trainable weights")
        self._optimizer = optimizer
        adam = adam_config(optimizer, bias_correction)
        self._gains = np.array([bias_correction_gain(adam, step) for step in range(total_steps)])
        lr = planned_learning_rates(optimizer, scheduler, total_steps)
        plan = RunPlan(
            lr=lr,
            effective_lr=lr * self._gains,
            chance_loss=_chance_loss(labels),
            warmup_frac=float(lr.argmax()) / total_steps,
            bias_correction=bias_correction,
        )
        self._parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._writer = RunWriter(self._folder, draw=figures)
        self._monitor = Monitor(
            weights,
            History(plan),
            MonitorConfig(every=every, figures=figures, thresholds=thresholds or VerdictThresholds()),
            self._writer,
            probe=LogitProbe(self.model, self._probe_forward(logits)),
        )
        self._step = 0  # the one in progress
        self._warned_about_lr = False
        self._ended = False  # diverged, or longer than planned: nothing is measured any more
        self._closed = False

    @property
    def history(self) -> History:
        """Everything that was measured so far."""
        return self._monitor.history

    @property
    def diagnosis(self) -> Diagnosis:
        """The verdict after the last measured step."""
        assert self._monitor.diagnosis is not None
        return self._monitor.diagnosis

    @property
    def doomed(self) -> bool:
        """Whether the run is not expected to learn any more: a reason to end it."""
        return self._monitor.doomed

    @contextmanager
    def step(self, loss: Tensor, batch: Any) -> Iterator[None]:
        """Put around clipping and the optimizer's step; the scheduler's step and zero_grad come after it.

        loss: mean cross-entropy of the update's texts []. batch: what the model was called with.
        """
        self.measure_gradients()
        self.before_update(loss, batch)
        yield
        self.after_update()

    def measure_gradients(self) -> None:
        """The first part of a step: measure the accumulated gradients before they are clipped. Can be repeated."""
        if self._ended:
            return
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if not gradients:
            raise InputError("watch.step: expected gradients, got none: call it after loss.backward().")
        self._grad_norm = nn.utils.get_total_norm(gradients)
        self._monitor.measure_gradients(self._step)

    def before_update(self, loss: Tensor, batch: Any) -> None:
        """The second part: whatever must be known before the weights change."""
        if self._step == len(self.history.plan) and not self._ended:
            log.warning(f"Step {self._step + 1} exceeds total_steps={self._step}; monitoring stops here.")
            self._ended = True
        if self._ended:
            return
        self._check_learning_rate()
        self._loss = loss.detach().float()
        self._monitor.before_update(self._step, batch)

    def after_update(self) -> None:
        """The third part: measure what has changed, and judge."""
        if self._ended:
            return
        self._monitor.record(self._loss, self._grad_norm.float())
        self._monitor.after_update(self._step)
        self._step += 1
        if self._monitor.due(self._step - 1):
            self._flush()

    def close(self) -> None:
        """Write what is not written yet, history.npz among it."""
        if not self._closed:
            self._closed = True
            self._flush()
            atomic_write(self._folder / HISTORY_FILE, self.history.to_bytes())
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _flush(self) -> None:
        self._ended = not self._monitor.flush() or self._ended
        self._monitor.log_means()

    def _check_learning_rate(self) -> None:
        """Correct the plan by the rate that the optimizer really has."""
        rate, plan = current_lr(self._optimizer), self.history.plan
        planned = plan.lr[self._step]
        if not self._warned_about_lr and not math.isclose(rate, planned, rel_tol=1e-6, abs_tol=1e-12):
            self._warned_about_lr = True
            log.warning(
                f"step {self._step}: the learning rate is {rate:g}, planned was {planned:g}. "
                "Pass the scheduler: verdicts need the remaining learning rates."
            )
        plan.lr[self._step] = rate
        plan.effective_lr[self._step] = rate * self._gains[self._step]

    def _probe_forward(self, logits: Callable[[Any], Tensor] | None) -> Callable[[Any], Tensor]:
        def forward(batch: Any) -> Tensor:
            first = first_texts(batch)
            scores = logits(first) if logits else self._model_logits(first)
            require(scores.ndim == 2, "logits", f"shape {list(scores.shape)}", "a tensor of shape [texts, classes]")
            return scores

        return forward

    def _model_logits(self, batch: Inputs) -> Tensor:
        inputs = {name: rows for name, rows in batch.items() if name != "labels"}
        # not through the object: accelerate wraps its forward in an autocast of its own
        scores: Tensor = type(self.model).forward(self.model, **inputs).logits
        return scores


def _chance_loss(labels: Sequence[int] | Tensor) -> float:
    """Entropy of the labels in nats."""
    classes = labels.tolist() if isinstance(labels, Tensor) else [int(label) for label in labels]
    expected = "the labels of the training texts, of at least two classes"
    require(len(set(classes)) > 1, "labels", f"{len(classes)} labels of {len(set(classes))} classes", expected)
    return entropy(classes)
