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

Derives from such a loop what a bertmon run takes from its config: weights, learning rates, steps, inputs.
Shapes: N steps planned, B texts, C classes.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bertmon import distributed
from bertmon.config import MonitorConfig, VerdictThresholds
from bertmon.errors import InputError, StorageError, require, storage_errors
from bertmon.integrations import resume
from bertmon.integrations.dashboards import register_with_wandb
from bertmon.integrations.guard import Guarded, guarded
from bertmon.integrations.labels import chance_loss
from bertmon.integrations.logits import ModelLogits
from bertmon.integrations.plan_ahead import group_lr_scales
from bertmon.integrations.schedule_tracker import ScheduleTracker
from bertmon.integrations.unwrap import (
    gradient_state,
    loss_scale,
    overflowed,
    unwrap_model,
    unwrap_optimizer,
)
from bertmon.model import NamedWeight, named_weights
from bertmon.monitor.advice import OWN_LOOP, SettingNames
from bertmon.monitor.diagnosis import Diagnosis
from bertmon.monitor.history import HISTORY_FILE, History
from bertmon.monitor.monitor import Monitor, NullLog
from bertmon.monitor.probe import LogitProbe
from bertmon.monitor.tensorboard import RunWriter
from bertmon.storage import atomic_write

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopContext:
    """What a callback knows about its trainer's loop; the defaults are for a loop of your own.

    setting_names: names of the settings in advice. single_process: only this process watches, so it waits for no other.
    on_figure: called with each figure's step, tag and PNG file.
    """

    setting_names: SettingNames = OWN_LOOP
    single_process: bool = False
    on_figure: Callable[[int, str, bytes], None] | None = None


class Watch(Guarded):
    """Measures a model while your own loop trains it, judges the run, and writes TensorBoard logs and history.npz.

    model: a transformers classifier, or any model whose logits `logits` returns; trained in float32, or in bfloat16 or
    float16 under autocast. Its weights are watched, its biases are not.
    optimizer: an Adam variant; verdict thresholds are calibrated for Adam only.
    folder: the output folder. It must not contain a run, unless training resumes from that run.
    total_steps: number of planned updates.
    labels: class numbers of the training texts or, for token classification, one row of them per text; their entropy is
    the loss of a model that ignores the texts.
    scheduler: the learning rate scheduler; a copy of it is stepped to the end in advance, because the verdict depends
    on the remaining learning rates. None: the rate is constant.
    scheduler_every: updates per call of scheduler.step(): 1, or the updates of an epoch.
    bias_correction: False for an Adam without bias correction.
    every: updates between measurements, at least 1.
    figures: whether to draw figures of the measurements, in a separate process.
    thresholds: verdict thresholds; None: VerdictThresholds().
    logits: a function that returns the logits [B, C] of a batch passed to `step`. None: use `model(**batch).logits` of
    its first texts, without labels.
    scaler: the GradScaler of a float16 loop; updates that it skips are not counted.
    first_step: updates done before. The folder's history is continued if `checkpoint` was called at that step; in a
    folder without a run, earlier steps stay unknown.
    on_error: "log": an error in measuring is logged, monitoring stops, and training continues; or "raise". Incorrect
    calls always raise InputError, and with several processes all errors are raised.
    context: used by the callbacks of this package.

    Objects prepared by accelerate and models wrapped in DataParallel or DistributedDataParallel can be passed directly;
    with several processes, the first one writes. Use it as a context manager, or call `close` at the end. Raises
    InputError for an invalid argument.
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
        scheduler_every: int = 1,
        bias_correction: bool = True,
        every: int = 30,
        figures: bool = True,
        thresholds: VerdictThresholds | None = None,
        logits: Callable[[Any], Tensor] | None = None,
        scaler: "torch.amp.GradScaler | None" = None,
        first_step: int = 0,
        on_error: str = "log",
        context: LoopContext | None = None,
    ) -> None:
        context = context or LoopContext()
        self._processes = 1 if context.single_process else distributed.world_size()
        super().__init__("raise" if self._processes > 1 else on_error)
        config = MonitorConfig(every=every, figures=figures, thresholds=thresholds or VerdictThresholds())
        self._folder = Path(folder)
        self._gradient_state = gradient_state(model, optimizer)
        self._optimizer = unwrap_optimizer(optimizer)
        self._scaler = scaler if scaler is not None else getattr(optimizer, "scaler", None)
        self.model = unwrap_model(model)
        _check_model(self.model)
        chance = chance_loss(labels)
        point = _same_everywhere(lambda: _resume_point(self._folder, first_step), self._processes)
        past = point.history.plan.lr[: len(point.history.losses)] if point else None
        self._schedule = ScheduleTracker(
            self._optimizer, scheduler, scheduler_every, first_step, total_steps, past, bias_correction=bias_correction
        )
        history = self._history(point, chance, first_step)
        self._writer = self._open_writer(point, first_step, figures, context)
        self._monitor = self._build_monitor(history, config, logits, context)
        self._step = len(history.losses)  # index of the step in progress
        initial_state = {"diagnosis": None, "logged_steps": self._step, "next_probe_step": 0}
        self._monitor.load_state_dict(point.monitor if point else initial_state)
        self._trainable = _trainable(self.model, self._optimizer)
        # _ended: diverged, or past total_steps; _measuring: whether the step in progress is measured
        self._ended = self._measuring = self._closed = False

    def _build_monitor(
        self, history: History, config: MonitorConfig, logits: Callable[[Any], Tensor] | None, context: LoopContext
    ) -> Monitor:
        return Monitor(
            self._weights(_watched_labels(history)),
            history,
            config,
            self._writer,
            probe=LogitProbe(self.model, ModelLogits(self.model, logits, may_fail=self._processes == 1)),
            lr_scales=group_lr_scales(self._optimizer),
            setting_names=context.setting_names,
            mean_over_processes=_mean_over_processes if self._processes > 1 else None,
        )

    @property
    def folder(self) -> Path:
        """The output folder."""
        return self._folder

    @property
    def history(self) -> History:
        """Everything measured so far."""
        return self._monitor.history

    @property
    def diagnosis(self) -> Diagnosis:
        """The verdict after the last measured step."""
        assert self._monitor.diagnosis is not None
        return self._monitor.diagnosis

    @property
    def doomed(self) -> bool:
        """Whether the run is no longer expected to learn, so that it can be stopped."""
        return self._monitor.doomed

    @contextmanager
    def step(self, loss: Tensor | float, batch: Any) -> Iterator[None]:
        """Context manager for clipping and optimizer.step(); call scheduler.step() and zero_grad() after it.

        loss: mean cross-entropy of the update's texts [].
        batch: the batch that the model was called with.
        """
        self.measure_gradients()
        self.before_update(batch)
        yield
        self.after_update(loss)

    @guarded
    def measure_gradients(self) -> None:
        """First part of `step`: measure the accumulated gradients before clipping. Can be called repeatedly."""
        updating = self._gradient_state is None or bool(self._gradient_state.sync_gradients)
        self._measuring = updating and not self._ended
        if not self._measuring:
            return
        parameters = (parameter for parameter in self.model.parameters() if parameter.requires_grad)
        gradients = [gradient for parameter in parameters if (gradient := parameter.grad) is not None]
        if not gradients:
            raise InputError("watch.step: expected gradients, got none: call it after loss.backward().")
        if (trainable := _trainable(self.model, self._optimizer)) != self._trainable:
            self._trainable = trainable
            self._watch_unfrozen()
        scale = loss_scale(self._scaler, self._optimizer)
        norm = nn.utils.get_total_norm(gradients)
        self._grad_norm = norm if scale is None else norm / scale
        self._monitor.measure_gradients(self._step, scale)

    @guarded
    def before_update(self, batch: Any) -> None:
        """Second part of `step`: measure what is needed before the weights change. batch: as for `step`."""
        if self._measuring and self._step == len(self.history.plan):
            log.warning(f"Step {self._step + 1} exceeds total_steps={self._step}; monitoring stops here.")
            self._ended, self._measuring = True, False
        if self._measuring:
            self._schedule.check(self.history, self._step)
            self._monitor.before_update(self._step, batch)

    @guarded
    def after_update(self, loss: Tensor | float | None) -> None:
        """Third part of `step`: measure the update and judge the run.

        loss: as for `step`; None: unknown, so that verdicts rest on gradients, updates and logits from now on.
        """
        if not self._measuring:
            return
        mean = None if loss is None else torch.as_tensor(loss).detach().to(self._grad_norm.device).float().mean()
        if overflowed(self._scaler, self._grad_norm, mean, self._processes):
            self._schedule.note_skipped_update()
            return
        if mean is None and self.history.plan.loss_known:
            self.history.plan = replace(self.history.plan, chance_loss=math.nan)
        self._monitor.record(mean, self._grad_norm.float())
        self._monitor.after_update(self._step)
        self._step += 1
        last = self._processes > 1 and self._step == len(self.history.plan)  # `close` does not wait for other processes
        if last or self._monitor.due(self._step - 1):
            self._flush()

    @guarded
    def checkpoint(self, steps: int | None = None) -> None:
        """Call when the loop saves a checkpoint, in every process: a Watch with first_step=steps continues from here.

        steps: the loop's count of updates; None: the number of watched updates.
        """
        if self._closed:
            return
        self._flush()
        if isinstance(self._writer, RunWriter):
            resume.save_resume_point(self._folder, self._step if steps is None else steps, self._monitor, self._writer)

    def wait_for_figures(self) -> None:
        """Wait until the figures of everything measured so far are written."""
        if isinstance(self._writer, RunWriter) and not self._closed:
            self._writer.wait_for_figures()

    def close(self) -> None:
        """Write all remaining output, including history.npz."""
        if self._closed:
            return
        if self._processes == 1:
            self._finish()
        self._end()

    @guarded
    def _finish(self) -> None:
        self._flush()

    @guarded
    def _end(self) -> None:
        self._release()

    def _is_mistake(self, error: Exception) -> bool:
        return isinstance(error, InputError) and not isinstance(error, StorageError)

    def _release(self) -> None:
        closed, self._closed = self._closed, True
        self._ended, self._measuring = True, False
        if not closed and isinstance(self._writer, RunWriter):
            with closing(self._writer), storage_errors(self._folder):
                atomic_write(self._folder / HISTORY_FILE, self.history.to_bytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _flush(self) -> None:
        self._ended = not self._monitor.flush() or self._ended
        self._monitor.log_means()

    def _history(self, point: resume.ResumePoint | None, chance: float, first_step: int) -> History:
        """The history so far, with the current plan. Raises InputError if it is that of another model."""
        plan = self._schedule.plan(chance if point is None or point.history.plan.loss_known else math.nan)
        if point:
            self._require_watched_weights(point.history)
            return replace(point.history, plan=plan)
        return History(plan, [math.nan] * first_step, [math.nan] * first_step)

    def _require_watched_weights(self, history: History) -> None:
        """Raise InputError unless the model has all weights that the history has."""
        watched = _watched_labels(history)
        if missing := set(watched) - set(self._weights(watched)):
            raise InputError(f"{self._folder}: expected the model watched there, got one without {min(missing)}.")

    def _open_writer(
        self, point: resume.ResumePoint | None, first_step: int, draw: bool, context: LoopContext
    ) -> "RunWriter | NullLog":
        """The event file writer in the first process; a NullLog in the others."""
        if not context.single_process and distributed.rank() > 0:
            return NullLog()
        writer = RunWriter(
            self._folder, draw=draw, truncate_to=point.event_files if point else None, on_figure=context.on_figure
        )
        register_with_wandb(self._folder)
        if point:
            resume.forget_later_points(self._folder, first_step)
        return writer

    def _watch_unfrozen(self) -> None:
        """Watch newly unfrozen weights, in addition to those watched before."""
        self._monitor.watch_more(self._weights(self._monitor.labels), group_lr_scales(self._optimizer))

    def _weights(self, watched: Sequence[str]) -> dict[str, NamedWeight]:
        """The trainable weights, and those whose labels are in `watched`."""
        return {
            label: weight
            for label, weight in named_weights(self.model, frozen=True).items()
            if label in watched or weight.parameter.requires_grad
        }


def _check_model(model: nn.Module) -> None:
    """Raise InputError for a model that cannot be watched."""
    require(bool(named_weights(model)), "model", type(model).__name__, "a model with trainable weights")
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    single = problem != "multi_label_classification"
    require(single, "model", f"problem_type={problem}", "a classifier with one label for each text or token")


def _watched_labels(history: History) -> tuple[str, ...]:
    return history.snapshots[0].layers.labels if history.snapshots else ()


def _resume_point(folder: Path, first_step: int) -> resume.ResumePoint | None:
    """The point to resume from; None if the folder is free. Raises InputError if it has a run without that point."""
    if not resume.contains_run(folder):
        return None
    point = resume.load_resume_point(folder, first_step) if first_step else None
    if point is None:
        raise InputError(f"{folder} already contains a run: choose another folder or delete it.")
    return point


def _same_everywhere(find: Callable[[], resume.ResumePoint | None], processes: int) -> resume.ResumePoint | None:
    """The result of the first process, or its InputError, in every process."""
    if processes == 1:
        return find()
    point, error = None, None
    if distributed.rank() == 0:
        try:
            point = find()
        except InputError as refusal:
            error = refusal
    point, error = distributed.broadcast((point, error))
    if error is not None:
        raise error
    return point


def _mean_over_processes(values: Tensor) -> Tensor:
    return distributed.all_reduce_sum(values) / distributed.world_size()


def _trainable(model: nn.Module, optimizer: Optimizer) -> tuple[frozenset[int], int]:
    """The trainable parameters and the number of groups, which determine what is watched and at which rates."""
    parameters = frozenset(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    return parameters, len(optimizer.param_groups)
