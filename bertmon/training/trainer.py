"""The training loop: decides when things happen; step, monitor and checkpoint define how.

Step s, counted from 0, is the update from the weights after s updates to those after s + 1. Scalars and statistics are
logged at the step they describe, an evaluation at the number of updates applied before it.
"""

import itertools
import logging
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from bertmon import distributed
from bertmon.config import OnDoomed, Precision, RunConfig, SaveModel
from bertmon.data.batches import Batch, BatchLoader
from bertmon.metrics import EvalResult
from bertmon.monitor.diagnosis import Diagnosis, Finding
from bertmon.monitor.history import History
from bertmon.monitor.monitor import Monitor
from bertmon.notation import format_percent, format_rate
from bertmon.result import Status, Terminated
from bertmon.sanitize import sanitize_line
from bertmon.training.plan import evaluates_after
from bertmon.training.signals import deferred_signals
from bertmon.training.state import TrainState
from bertmon.training.step import GuardedUpdate, compute_logits, forward_backward, maybe_compile
from bertmon.training.task import Task

log = logging.getLogger(__name__)

FindBehind = Callable[[History, Diagnosis], Finding | None]
"""Returns the finding that a run cannot catch up with the best of its sweep; None if it can."""

LogScalars = Callable[[int, Mapping[str, float]], None]
"""Takes a step and its scalars by tag."""


class Trainer:
    """Trains a task to its end, starting from `state` and `monitor.history`.

    log_scalars: receives evaluations. save_checkpoint: called after a step or an evaluation if a checkpoint is due or a
    signal has arrived, whose exception then ends training; None: no checkpoints. save_model: called after an evaluation
    if config.train.save_model requires it; None: models are not saved. find_behind: called to find out whether the run
    cannot catch up with its sweep, which stops it; None: never called.
    """

    def __init__(
        self,
        task: Task,
        config: RunConfig,
        monitor: Monitor,
        state: TrainState,
        *,
        log_scalars: LogScalars,
        name: str,
        save_checkpoint: Callable[[], None] | None = None,
        save_model: Callable[[], None] | None = None,
        find_behind: FindBehind | None = None,
    ) -> None:
        self.state = state
        self._task = task
        self._config = config.train
        self._seed = config.seed
        self._stop_doomed = config.monitor.on_doomed is OnDoomed.stop
        self._monitor = monitor
        self._log_scalars = log_scalars
        self._name = name
        self._save_checkpoint = save_checkpoint
        self._save_model = save_model
        self._find_behind = find_behind
        self._total_steps = len(task.plan)
        self._replica = distributed.wrap_ddp(maybe_compile(task.classifier, config.train.compile))
        self._compiled_shapes: set[torch.Size] = set()
        self._update = GuardedUpdate(task.classifier, task.optimizer, config.train.max_grad_norm)
        self._last_checkpoint = time.monotonic()
        self._model_saved = False  # since the last call of _checkpoint_if_due
        self._signals: list[BaseException] = []

    def fit(self) -> None:
        """Train until the run has ended; `state.status` says how. Leaves the model in train mode."""
        self._started = time.perf_counter() - self.state.train_seconds - self.state.eval_seconds
        with (
            self._progress_bar() as self._bar,
            deferred_signals(self._save_checkpoint is not None) as self._signals,
        ):
            if self._evaluation_missing():  # at step 0, so that curves start at chance, or after an interruption
                self._evaluate_and_save()
                self._checkpoint_if_due()
            if not self.state.ended:
                self._train()

    def _train(self) -> None:
        for step, batches in self._remaining_batches():
            self._train_step(step, batches)
            if self._must_pause(step):
                self._pause(step)
                self._checkpoint_if_due()
                if self.state.ended:
                    return

    def _remaining_batches(self) -> Iterator[tuple[int, Sequence[Batch]]]:
        """The remaining steps, each with the batches whose gradients it accumulates."""
        train, accumulate, step = self._task.train, self._config.accumulate, self.state.steps
        first_epoch, first_step = divmod(step, self._task.steps_per_epoch)
        for epoch in range(first_epoch, self._config.epochs):
            batches = train.epoch_batches(self._seed, epoch, first_step * accumulate if epoch == first_epoch else 0)
            while group := list(itertools.islice(batches, accumulate)):
                yield step, group
                step += 1

    def _train_step(self, step: int, batches: Sequence[Batch]) -> None:
        begin = time.perf_counter()
        loss, logits = forward_backward(self._replica, batches, self._config.precision, self._task.class_weights)
        shapes = {batch.input_ids.shape for batch in batches}
        if self._config.compile and not shapes <= self._compiled_shapes:
            self._compiled_shapes |= shapes
            self.state.compile_seconds += time.perf_counter() - begin
        with self._monitor.update(step, batches[0], logits):
            grad_norm = self._update.update(loss, float(self._task.plan.lr[step]))
        self._monitor.record(loss, grad_norm)
        self._bar.update()

    def _must_pause(self, step: int) -> bool:
        """Whether anything is due after this step; if not, training continues without waiting for the device."""
        if self._logs_after(step) or self._evaluates_after(step) or self._monitor.due(step):
            return True
        if _every(step + 1, self._config.checkpoint_every):
            return True
        requested = bool(self._signals) or (self._save_checkpoint is not None and self._checkpoint_overdue())
        return requested and distributed.world_size() == 1  # clocks and signals differ between processes

    def _logs_after(self, step: int) -> bool:
        return step % self._config.log_every == 0 or step + 1 == self._total_steps

    def _evaluates_after(self, step: int) -> bool:
        return evaluates_after(step + 1, self._config, self._task.steps_per_epoch)

    def _pause(self, step: int) -> None:
        """Wait for the device, update the status of the run, and log and evaluate if due."""
        finite = self._monitor.flush()
        self.state.steps = len(self._monitor.history.losses) - (not finite)
        self.state.status = self._status_after(step, finite)
        if self.state.ended or self._logs_after(step):
            self._show(self._monitor.log_means())
        if self.state.ended or self._evaluates_after(step):
            self._evaluate_and_save()
        self.state.train_seconds = time.perf_counter() - self._started - self.state.eval_seconds

    def _status_after(self, step: int, finite: bool) -> Status:
        if not finite:
            return Status.diverged
        if step + 1 == self._total_steps:
            return Status.finished
        if (self._stop_doomed and self._monitor.doomed) or self._is_behind(step):
            return Status.stopped
        return Status.running

    def _is_behind(self, step: int) -> bool:
        if self._find_behind is None or self._monitor.diagnosis is None or not self._monitor.due(step):
            return False
        finding = self._find_behind(self._monitor.history, self._monitor.diagnosis)
        if finding:
            log.info(f"{self._name}: step {step}: behind - {finding.text}; stopping")
        return finding is not None

    def _evaluation_missing(self) -> bool:
        """Whether the current weights should have been evaluated but have not been."""
        steps, evaluations = self.state.steps, self.state.evaluations
        due = steps == 0 or self.state.ended or self._evaluates_after(steps - 1)
        return due and not (evaluations and evaluations[-1].step == steps)

    def _evaluate_and_save(self) -> None:
        """Evaluate, unless interrupted by a signal, and save the model if required."""
        begin = time.perf_counter()
        if self._evaluation_missing():  # else it diverged at the step after an evaluation: the weights are the same
            with suppress(_EvaluationInterruptedError):
                self._evaluate()
        self.state.eval_seconds += time.perf_counter() - begin
        if self._save_model and not self._evaluation_missing() and self._saves_now():
            self._save_model()
            self._model_saved = True

    def _evaluate(self) -> None:
        evaluated = {"test": self._evaluate_on(self._task.test)}
        if self._task.validation:
            evaluated["validation"] = self._evaluate_on(self._task.validation)
        test = evaluated["test"]
        self.state.add(test, evaluated.get("validation"), self._config.metric)
        for split, result in evaluated.items():
            values = {"loss": result.loss, "accuracy": result.accuracy, "f1_macro": result.f1_macro, "mcc": result.mcc}
            self._log_scalars(result.step, {f"{name}/{split}": value for name, value in values.items()})
        shown = list(reversed(evaluated.items()))
        results = "; ".join(_format_evaluation(split, result, self._config.metric) for split, result in shown)
        log.info(f"{self._name}: step {test.step} of {self._total_steps}: {results}")
        split, selected = shown[0]  # the split that selects the best evaluation
        if self.state.status is not Status.diverged and not math.isfinite(selected.loss):
            self.state.status = Status.diverged
            self._monitor.report_divergence(f"loss/{split}", selected.loss, selected.step)
        stale = self.state.evaluations_since_best(self._config.metric)
        if self.state.status is Status.running and self._config.patience and stale >= self._config.patience:
            reason = f"{stale} evaluations without a better {self._config.metric}"
            log.info(f"{self._name}: step {test.step}: {reason}; stopping early")
            self.state.status = Status.finished

    def _evaluate_on(self, loader: BatchLoader) -> EvalResult:
        task, precision = self._task, self._config.precision
        return evaluate(
            task.classifier,
            loader,
            precision,
            step=self.state.steps,
            class_weights=task.class_weights,
            before_batch=self._interrupt_evaluation,
        )

    def _interrupt_evaluation(self) -> None:
        """Raise if a signal has arrived. Several processes complete the evaluation, since their signals differ."""
        if self._signals and distributed.world_size() == 1:
            raise _EvaluationInterruptedError

    def _saves_now(self) -> bool:
        if self._config.save_model is SaveModel.best:
            return self.state.steps > 0 and self.state.evaluations_since_best(self._config.metric) == 0
        return self._config.save_model is SaveModel.last and self.state.ended

    def _checkpoint_if_due(self) -> None:
        """Save a checkpoint if one is due and the run is not complete, or on a signal, which is then raised."""
        complete = self.state.ended and not self._evaluation_missing()
        due = _every(self.state.steps, self._config.checkpoint_every) or self._checkpoint_overdue()
        due = (due or self._must_match_model()) and not complete
        self._model_saved = False
        due, ending = distributed.broadcast((due, bool(self._signals)))
        if self._save_checkpoint and (due or ending):
            self._save_checkpoint()
            self._last_checkpoint = time.monotonic()
        if ending:
            raise self._signals[0] if self._signals else Terminated(128 + signal.SIGTERM)

    def _must_match_model(self) -> bool:
        """Whether a model was just saved in a run that writes checkpoints: resumed from an earlier one, the run could
        take a different course and have a model from a step that it never reached."""
        config = self._config
        return self._model_saved and (config.checkpoint_every is not None or config.checkpoint_minutes is not None)

    def _checkpoint_overdue(self) -> bool:
        minutes = self._config.checkpoint_minutes
        return minutes is not None and time.monotonic() - self._last_checkpoint >= 60 * minutes

    def _progress_bar(self) -> AbstractContextManager["tqdm[None]"]:
        """A progress bar on terminals, disabled elsewhere."""
        bar: AbstractContextManager[tqdm[None]] = tqdm(
            total=self._total_steps,
            initial=self.state.steps,
            desc=sanitize_line(self._name, max(20, shutil.get_terminal_size().columns // 3)),
            unit="step",
            disable=_no_bar(),
            dynamic_ncols=True,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}, {rate_fmt}]",
        )
        return bar

    def _show(self, means: Mapping[str, float]) -> None:
        """Show the means on the progress bar."""
        shown = {"loss": f"{means['loss/train']:.3f}"}
        if self.state.evaluations:
            shown["accuracy"] = format_percent(self.state.evaluations[-1].accuracy)
        shown["lr"] = format_rate(means["learning_rate"], 2)  # last: a narrow terminal truncates the end
        self._bar.set_postfix(shown, refresh=False)


class _EvaluationInterruptedError(Exception):
    """A signal arrived during an evaluation."""


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: BatchLoader,
    precision: Precision,
    *,
    step: int,
    class_weights: Tensor | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> EvalResult:
    """Metrics over all texts; the model is in eval mode meanwhile and in train mode afterwards.

    class_weights [C]: of the loss, as in training. before_batch: can raise, to abort the evaluation.
    """
    device = next(model.parameters()).device
    classes = int(model.config.num_labels)  # type: ignore[union-attr, arg-type]
    loss = torch.zeros((), device=device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    total_weight = torch.zeros_like(loss)
    bar = tqdm(loader.sorted_by_length(), "evaluating", len(loader), leave=False, disable=_no_bar(), position=1)
    with _eval_mode(model), bar as batches:
        for batch in batches:
            before_batch()
            own = distributed.local_count(batch.global_size)
            logits, labels = compute_logits(model, batch, precision)[:own], batch.labels[:own]
            loss += nn.functional.cross_entropy(logits, labels, weight=class_weights, reduction="sum")
            total_weight += len(labels) if class_weights is None else class_weights[labels].sum()
            cells = labels * classes + logits.argmax(dim=1)
            confusion.index_add_(0, cells, torch.ones_like(cells))  # bincount would wait for the device
    loss, total_weight, confusion = map(distributed.all_reduce_sum, (loss, total_weight, confusion))
    return EvalResult.from_confusion(
        step, loss.item() / total_weight.item(), confusion.view(classes, classes).cpu().numpy()
    )


def _format_evaluation(split: str, result: EvalResult, metric: str) -> str:
    chosen = "" if metric == "accuracy" else f", {metric}/{split} {getattr(result, metric):.3f}"
    return f"loss/{split} {result.loss:.4f}, accuracy/{split} {format_percent(result.accuracy)}{chosen}"


def _every(steps: int, every: int | None) -> bool:
    return every is not None and steps > 0 and steps % every == 0


def _no_bar() -> bool | None:
    """The `disable` argument of tqdm. None: a bar on terminals only, but then tqdm ignores $TQDM_DISABLE."""
    return True if "TQDM_DISABLE" in os.environ else None
