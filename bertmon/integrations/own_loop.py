"""The same watching in a training loop of your own: one line around the optimizer's step.

    with Watch(model, optimizer, "runs/mine", total_steps=1000, labels=labels, scheduler=scheduler) as watch:
        for batch in loader:
            loss = model(**batch).loss
            loss.backward()
            with watch.step(loss, batch):
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

Knows how to learn from such a loop what a run of bertmon knows beforehand: rates, steps, inputs.
Shapes: N steps planned, B texts, C classes.
"""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from bertmon import model as bert
from bertmon.config import MonitorConfig, OptimizerConfig, VerdictThresholds
from bertmon.data.corpus import entropy
from bertmon.errors import InputError, require
from bertmon.monitor import stats
from bertmon.monitor.diagnosis import Diagnosis
from bertmon.monitor.history import HISTORY_FILE, FloatArray, History, RunPlan
from bertmon.monitor.monitor import Monitor, PendingScalars
from bertmon.monitor.tensorboard import RunWriter
from bertmon.optimizer import bias_correction_gain
from bertmon.storage import atomic_write

log = logging.getLogger(__name__)

Inputs = Mapping[str, Any]
"""What a model is called with, by name; a row for each text."""


class Watch:
    """Measures a model while a loop of your own trains it, judges the run, writes TensorBoard logs and history.npz.

    model: one of transformers' classifiers, or any other whose scores `logits` gives; trained in fp32, or in bf16 under
    autocast. Its weights are watched, not its biases.
    optimizer: Adam or a kin of it: the thresholds of the verdicts were set for no other.
    folder: for what is written. One that holds a run is refused.
    total_steps: updates that are planned.
    labels: those of the training texts; their entropy is the loss of a model that ignores the texts.
    scheduler: the one that sets the rates; a copy of it is run ahead. None: the rate stays as it is.
    bias_correction: false for an Adam that does not correct its moments.
    every, figures, rules: as in the keys monitor.every, monitor.figures and monitor.thresholds.
    logits: the scores [B, C] of what is given to `step`. None: `model(**batch).logits`, labels left out.

    Use it as a context manager, or call `close` in the end. Raises InputError for an argument that does not fit.
    """

    _TEXTS = 8  # of a batch, for the spread of the logits
    _APART = 10  # steps between two passes for it

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        folder: str | Path,
        *,
        total_steps: int,
        labels: Sequence[int] | Tensor,
        scheduler: LRScheduler | None = None,
        bias_correction: bool = True,
        every: int = 30,
        figures: bool = True,
        rules: VerdictThresholds | None = None,
        logits: Callable[[Inputs], Tensor] | None = None,
    ) -> None:
        require(total_steps >= 1, "total_steps", total_steps, "a whole number of at least 1")
        classes = [int(label) for label in labels]
        require(len(set(classes)) > 1, "labels", f"{len(classes)} labels", "the labels of the texts, of two classes")
        self._folder = Path(folder)
        if (self._folder / HISTORY_FILE).exists():
            raise InputError(f"{folder} holds a run already: give another folder, or take this one away.")
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # torch.compile's wrapper adds to the names
        layers = bert.named_weights(self.model)
        require(bool(layers), "model", type(model).__name__, "one with weights that are trained")
        self._parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = optimizer
        self._logits = logits or self._scores
        adam = _adam_config(optimizer, bias_correction)
        self._factors = np.array([bias_correction_gain(adam, step) for step in range(total_steps)])
        lr = planned_learning_rates(optimizer, scheduler, total_steps)
        self.history = History(
            RunPlan(
                lr=lr,
                effective_lr=lr * self._factors,
                chance_loss=entropy(classes),
                warmup_frac=float(lr.argmax()) / total_steps,
                bias_correction=bias_correction,
            )
        )
        config = MonitorConfig(every=every, figures=figures, thresholds=rules or VerdictThresholds())
        self._writer = RunWriter(self._folder, draw=figures)
        self._observer = Monitor(layers, self.history, config, self._writer)
        self._numbers = PendingScalars()
        self._written_steps = 0
        self._step = 0  # the one that is being made
        self._next_pass = 0
        self._warned_about_lr = False  # by a rate that was not planned
        self._ended = False  # diverged, or longer than planned: nothing is measured any more
        self._closed = False

    @property
    def diagnosis(self) -> Diagnosis:
        """The verdict after the last measured step."""
        return self._observer.diagnosis

    @property
    def doomed(self) -> bool:
        """Whether the run is not expected to learn any more: a reason to end it."""
        return self.diagnosis.verdict.doomed

    @contextmanager
    def step(self, loss: Tensor, batch: Inputs) -> Iterator[None]:
        """Put around clipping and the optimizer's step; the scheduler's step and zero_grad come after it.

        loss: mean cross-entropy of the update's texts []. batch: what the model was called with.
        """
        self.gradients()
        self.before(loss, batch)
        yield
        self.after()

    def gradients(self) -> None:
        """The first part of a step: measure the gradients, whole and not clipped yet. Can be called again."""
        if self._ended:
            return
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if not gradients:
            raise InputError("no weight has a gradient yet: put watch.step behind loss.backward().")
        self._norm = nn.utils.get_total_norm(gradients)
        if self._observer.due(self._step):
            self._observer.measure_gradients()

    def before(self, loss: Tensor, batch: Inputs) -> None:
        """The second part: whatever has to be known before the weights change."""
        if self._step == len(self.history.plan) and not self._ended:
            log.warning(f"This is step {self._step + 1} of {self._step} planned ones: it is not watched any more.")
            self._ended = True
        if self._ended:
            return
        self._check_learning_rate()
        self._loss = loss.detach().float()
        if self._observer.due(self._step):
            self._observer.set_logit_std(self._spread(loss, batch))
            self._observer.keep_weights()

    def after(self) -> None:
        """The third part: measure what has changed, and judge."""
        if self._ended:
            return
        self._numbers.add(self._loss, self._norm.float())
        due = self._observer.due(self._step)
        if due:
            self._observer.measure_updates(self._step)
        self._step += 1
        if due:
            self._read()

    def close(self) -> None:
        """Write what is not written yet, history.npz among it."""
        if not self._closed:
            self._closed = True
            self._read()
            atomic_write(self._folder / HISTORY_FILE, self.history.to_bytes())
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        """Wait for the device, write, judge."""
        finite = self._numbers.flush_to(self.history)
        done = len(self.history.losses)
        if done == self._written_steps:
            return
        self._observer.flush()
        self._writer.scalars(done - 1, self.history.mean_since(self._written_steps))
        self._written_steps = done
        self._ended = self._ended or not finite

    def _check_learning_rate(self) -> None:
        """The plan is made true by what the optimizer has."""
        rate, plan = _rate(self._optimizer), self.history.plan
        planned = plan.lr[self._step]
        if not self._warned_about_lr and not math.isclose(rate, planned, rel_tol=1e-6, abs_tol=1e-12):
            self._warned_about_lr = True
            log.warning(
                f"step {self._step}: the learning rate is {rate:g} where {planned:g} was planned. Give the scheduler "
                "that sets it: whether a run can still learn depends on the rates to come."
            )
        plan.lr[self._step] = rate
        plan.effective_lr[self._step] = rate * self._factors[self._step]

    def _spread(self, loss: Tensor, batch: Inputs) -> Tensor:
        """Of the logits of some of the batch's texts []; nan between two passes."""
        if self._step < self._next_pass:
            return torch.full_like(loss, torch.nan)
        self._next_pass = self._step + self._APART
        some = {
            name: rows[: self._TEXTS] if isinstance(rows, Tensor) and rows.ndim else rows
            for name, rows in batch.items()
        }
        with stats.eval_fp32(self.model):
            scores = self._logits(some)
        require(scores.ndim == 2, "logits", f"of shape {list(scores.shape)}", "scores of shape [texts, classes]")
        return stats.logit_std(scores)

    def _scores(self, batch: Inputs) -> Tensor:
        inputs = {name: rows for name, rows in batch.items() if name != "labels"}
        # not through the object: accelerate puts an autocast of its own around its forward
        scores: Tensor = type(self.model).forward(self.model, **inputs).logits
        return scores


def planned_learning_rates(
    optimizer: torch.optim.Optimizer, scheduler: LRScheduler | None, total_steps: int
) -> FloatArray:
    """The learning rate of every step to come [N], that of the group with the largest; neither argument is changed.

    Raises InputError for a scheduler whose rates depend on what happens, such as ReduceLROnPlateau.
    """
    if scheduler is None:
        return np.full(total_steps, _rate(optimizer))
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    double = torch.optim.SGD([option | {"params": [nn.Parameter(torch.zeros(()))]} for option in options], lr=0.0)
    ahead = copy.deepcopy(scheduler, {id(optimizer): double})
    rates = np.empty(total_steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the double has not been stepped: it has nothing to learn
        for step in range(total_steps):
            rates[step] = _rate(double)
            try:
                ahead.step()
            except TypeError:
                raise InputError(
                    f"scheduler={type(scheduler).__name__} is not possible: its rates are not known beforehand. "
                    "Leave it out; the rate is then taken to stay as it is."
                ) from None
    return rates


def _rate(optimizer: torch.optim.Optimizer) -> float:
    return max(float(group["lr"]) for group in optimizer.param_groups)


def _adam_config(optimizer: torch.optim.Optimizer, bias_correction: bool) -> OptimizerConfig:
    group = optimizer.param_groups[0]
    if "betas" not in group:
        log.warning(f"{type(optimizer).__name__} is no Adam: the verdicts' thresholds were not set for it.")
        return OptimizerConfig()
    beta1, beta2 = group["betas"]
    return OptimizerConfig(bias_correction=bias_correction, beta1=float(beta1), beta2=float(beta2))
