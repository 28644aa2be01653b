"""Monitor a transformers Trainer with a callback.

    Trainer(..., callbacks=[WatchCallback("runs/mine", labels=labels)])

The Trainer clips gradients before any callback runs and does not pass a step's loss and inputs to callbacks. During
training, two of its methods are therefore wrapped: compute_loss, which sees inputs and outputs, and training_step,
after which gradients are complete, for any loss, gradient accumulation and devices. The model is not modified.
"""

import atexit
import inspect
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bertmon import distributed
from bertmon.config import VerdictThresholds
from bertmon.errors import InputError, require
from bertmon.integrations.guard import guarded
from bertmon.integrations.labels import cross_entropy_sum
from bertmon.integrations.next_token import scored_labels, shifts_labels
from bertmon.integrations.own_loop import LoopContext
from bertmon.integrations.trainer_watch import TrainerWatch
from bertmon.integrations.unwrap import refuse_shards
from bertmon.monitor.advice import SettingNames

log = logging.getLogger(__name__)

_SETTING_NAMES = SettingNames(
    "learning_rate={value}",
    "warmup_steps={steps}",
    "an optimizer with bias correction, as the Trainer's default",
)
_UNSHARDED = {"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU", "MULTI_HPU", "MULTI_MLU", "MULTI_MUSA"}
"""accelerate's distributed types in which every device holds the whole model."""


class WatchCallback(TrainerWatch, TrainerCallback):
    """Watches a classifier that a Trainer trains; `watch` is set when training begins.

    folder: the output folder. If the Trainer resumes from a checkpoint, the history continues from there; any other
    training gets a new folder (folder-2, folder-3, ...) if this one already contains a run.
    labels, bias_correction, every, figures, thresholds, logits: as for Watch.
    on_doomed: "warn", or "stop" to end training at the first doomed verdict.
    report_to: "trainer": also send headline signals and the verdict through the Trainer's own log, and figures to the
    active W&B or MLflow run; "none"; "auto": like "trainer" if the Trainer reports anywhere.
    on_error: "log": an error in monitoring is logged once, monitoring stops, and training continues; or "raise".

    Gradients are measured after the last backward pass of a step, before clipping. Losses are cross-entropies, whatever
    the training loss, with labels shifted by one token if the model shifts them (causal language models); they are
    unknown if the labels do not match the model's logits. With several processes (DistributedDataParallel), only the
    first one watches, and losses are those of its own texts. Raises InputError for an invalid argument.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        labels: Sequence[int] | Tensor,
        bias_correction: bool = True,
        every: int = 30,
        figures: bool = True,
        thresholds: VerdictThresholds | None = None,
        logits: Any = None,
        on_doomed: str = "warn",
        report_to: str = "auto",
        on_error: str = "log",
    ) -> None:
        super().__init__(
            folder,
            labels=labels,
            bias_correction=bias_correction,
            every=every,
            figures=figures,
            thresholds=thresholds,
            logits=logits,
            on_doomed=on_doomed,
            on_error=on_error,
        )
        require(report_to in ("auto", "trainer", "none"), "report_to", report_to, "auto, trainer or none")
        self._report_to = report_to
        self._trainer: Trainer | None = None  # set during training, in the first process
        self._replaced: dict[str, Any] = {}  # instance attributes of the Trainer that the wrappers replace
        self._in_step = False
        self._inputs: Any = None
        self._passes: list[tuple[Tensor, Tensor] | None] = []  # of each: sum and number of cross-entropies

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end()  # a previous training that an exception ended
        self._failed = False
        if state.is_world_process_zero:
            self._begin(args, state, kwargs["optimizer"], kwargs["lr_scheduler"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._reset_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._before_update()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._after_update()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self._report_step()
        due = self._may_stop(state.global_step, distributed.world_size())
        # not guarded, because all other processes wait for this broadcast
        if due and distributed.broadcast(self._doomed):
            control.should_training_stop = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._checkpoint(state.global_step)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_training_stop or state.global_step >= state.max_steps:
            self._finish_figures()  # other callbacks close their runs before on_train_end of this one

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end()

    @guarded
    def _begin(self, args: TrainingArguments, state: TrainerState, optimizer: Any, scheduler: Any) -> None:
        trainer = _calling_trainer()
        accelerator = trainer.accelerator
        kind = accelerator.distributed_type.name
        if kind not in _UNSHARDED:
            refuse_shards(kind)
        self._open(
            accelerator.unwrap_model(trainer.model, keep_torch_compile=False),
            optimizer,
            first_step=state.global_step,
            reports=self._report_to == "trainer" or (self._report_to == "auto" and bool(args.report_to)),
            context=LoopContext(_SETTING_NAMES),
            total_steps=state.max_steps,
            scheduler=scheduler,
            scaler=accelerator.scaler,
        )
        self._shifted = shifts_labels(self.watch.model)
        self._trainer = trainer
        self._wrap(trainer)
        atexit.register(self._end)

    def _wrap(self, trainer: Trainer) -> None:
        """Override the two methods on the Trainer instance, not on its class."""
        for name in ("compute_loss", "training_step"):
            if name in vars(trainer):
                self._replaced[name] = vars(trainer)[name]
        self._original_compute_loss, self._original_training_step = trainer.compute_loss, trainer.training_step
        parameters = inspect.signature(self._original_compute_loss).parameters.values()
        self._can_return_outputs = any(
            parameter.name == "return_outputs" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters
        )
        vars(trainer).update(compute_loss=self._compute_loss, training_step=self._training_step)

    def _training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's training_step, which ends with the backward pass."""
        self._in_step = True
        try:
            loss = self._original_training_step(*args, **kwargs)
        except BaseException:  # including Ctrl-C: no callback is called
            self._end()
            raise
        finally:
            self._in_step = False
        self._after_backward()
        return loss

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The Trainer's compute_loss, with its inputs and outputs recorded."""
        if return_outputs or not (self._in_step and self._watching and self._can_return_outputs):
            kwargs |= {"return_outputs": True} if return_outputs else {}
            return self._original_compute_loss(model, inputs, **kwargs)
        original = dict(inputs) if isinstance(inputs, Mapping) else inputs  # a custom loss may remove the labels
        result = self._original_compute_loss(model, inputs, return_outputs=True, **kwargs)
        if not isinstance(result, tuple):
            return result
        self._record_pass(original, result[1])
        return result[0]

    @guarded
    def _record_pass(self, inputs: Any, outputs: Any) -> None:
        """Record a forward pass of the step."""
        self._inputs = inputs
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
        if not isinstance(logits, Tensor):
            raise InputError(
                "model: expected one whose output has .logits (in transformers: a model with a head, and "
                f"return_dict=True), got a {type(outputs).__name__}."
            )
        labels = scored_labels(inputs, self._shifted)
        self._passes.append(cross_entropy_sum(logits, labels) if logits.ndim > 1 else None)

    @guarded
    def _after_backward(self) -> None:
        if self._watching:
            self.watch.measure_gradients()

    @guarded
    def _before_update(self) -> None:
        if self._watching:
            self.watch.before_update(self._inputs)

    @guarded
    def _after_update(self) -> None:
        if self._watching:
            loss = self._loss()
            if loss is None and self.watch.history.plan.loss_known:
                log.warning(
                    "The inputs have no labels that fit the model's logits: the loss is not known, and verdicts rest "
                    "on gradients, updates and logits."
                )
            self.watch.after_update(loss)

    def _loss(self) -> Tensor | None:
        """Mean cross-entropy over the step []; None if it is unknown for any forward pass."""
        pairs = [pair for pair in self._passes if pair is not None]
        if not pairs or len(pairs) < len(self._passes):
            return None
        sums, counts = zip(*pairs, strict=True)
        return torch.stack(sums).sum() / torch.stack(counts).sum()

    @guarded
    def _report_step(self) -> None:
        if self._trainer is not None:
            self._report(self._trainer.log)

    @guarded
    def _finish_figures(self) -> None:
        if self._watching:
            self.watch.wait_for_figures()

    def _release(self) -> None:
        """Restore the Trainer's methods and close the Watch."""
        atexit.unregister(self._end)
        trainer, self._trainer = self._trainer, None
        if trainer is not None:
            for name in ("compute_loss", "training_step"):
                vars(trainer).pop(name, None)
            vars(trainer).update(self._replaced)
            self._replaced = {}
        super()._release()

    def _reset_step(self) -> None:
        """Clear the records of the previous step."""
        self._in_step, self._inputs, self._passes = False, None, []


def _calling_trainer() -> Trainer:
    """The Trainer that called this callback, found on the call stack. Raises InputError if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    raise InputError("WatchCallback: expected to be called by a transformers Trainer.")
