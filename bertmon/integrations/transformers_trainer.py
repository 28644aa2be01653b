"""Monitor a transformers Trainer with a callback.

    Trainer(..., callbacks=[WatchCallback("runs/mine", labels=labels)])

The Trainer clips gradients before any callback runs and does not pass on a step's loss and inputs. So, while it trains,
two of the Trainer's own methods are wrapped: compute_loss, which has inputs and outputs, and training_step, after which
gradients are whole, whatever the loss, the accumulation and the devices. Nothing is put on the model.
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
_WHOLE = {"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU", "MULTI_HPU", "MULTI_MLU", "MULTI_MUSA"}
"""accelerate's kinds of devices, each with the whole model."""


class WatchCallback(TrainerWatch, TrainerCallback):
    """Watches a classifier that a Trainer trains; `watch` is the Watch, once training has begun.

    folder: where to write. A training that the Trainer resumes is continued where its checkpoint was saved; any other
    gets a folder of its own: folder-2, folder-3, ...
    labels, bias_correction, every, figures, thresholds, logits: as for Watch.
    on_doomed: "warn", or "stop": the Trainer ends training at the first doomed verdict.
    report_to: "trainer": headline signals and the verdict also go through the Trainer's own log, and figures to the
    active W&B or MLflow run; "none"; "auto": as "trainer" if the Trainer reports anywhere.
    on_error: "log": whatever goes wrong in watching is logged once, watching stops, and training continues; "raise".

    Gradients are measured before clipping, after the last backward pass of a step. Losses are the cross-entropy,
    whatever loss is trained, with the labels shifted by one token where the model does so (causal language models);
    they stay unknown where no labels fit the model's logits. Of several processes
    (DistributedDataParallel) the first one watches, and losses are those of its texts. Raises InputError for an
    argument that does not fit.
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
        self._trainer: Trainer | None = None  # while it trains, in the first process
        self._replaced: dict[str, Any] = {}  # attributes of the Trainer's own, before they were wrapped
        self._in_step = False
        self._inputs: Any = None
        self._passes: list[tuple[Tensor, Tensor] | None] = []  # sum of cross-entropies and count of texts, of each

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end()  # a training before, which an exception has ended
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
        # outside of what is guarded: the other processes wait for the first one's answer
        if due and distributed.broadcast(self._doomed):
            control.should_training_stop = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._checkpoint(state.global_step)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_training_stop or state.global_step >= state.max_steps:
            self._finish_figures()  # other callbacks end their runs before on_train_end comes here

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end()

    @guarded
    def _begin(self, args: TrainingArguments, state: TrainerState, optimizer: Any, scheduler: Any) -> None:
        trainer = _calling_trainer()
        accelerator = trainer.accelerator
        kind = accelerator.distributed_type.name
        if kind not in _WHOLE:
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
        """Put this callback's versions of the two methods into the Trainer itself, not its class."""
        for name in ("compute_loss", "training_step"):
            if name in vars(trainer):
                self._replaced[name] = vars(trainer)[name]
        self._compute, self._train = trainer.compute_loss, trainer.training_step
        parameters = inspect.signature(self._compute).parameters.values()
        self._gives_outputs = any(
            parameter.name == "return_outputs" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters
        )
        vars(trainer).update(compute_loss=self._compute_loss, training_step=self._training_step)

    def _training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, which ends with the backward pass."""
        self._in_step = True
        try:
            loss = self._train(*args, **kwargs)
        except BaseException:  # Ctrl-C among them: no callback is called
            self._end()
            raise
        finally:
            self._in_step = False
        self._after_backward()
        return loss

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The Trainer's, and what it has seen."""
        if return_outputs or not (self._in_step and self._watching and self._gives_outputs):
            kwargs |= {"return_outputs": True} if return_outputs else {}
            return self._compute(model, inputs, **kwargs)
        before = dict(inputs) if isinstance(inputs, Mapping) else inputs  # a loss of one's own takes the labels out
        result = self._compute(model, inputs, return_outputs=True, **kwargs)
        if not isinstance(result, tuple):
            return result
        self._note_pass(before, result[1])
        return result[0]

    @guarded
    def _note_pass(self, inputs: Any, outputs: Any) -> None:
        """After each forward pass of a step."""
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
        """Mean cross-entropy of the step's texts []; None if it is not known of all."""
        pairs = [one for one in self._passes if one is not None]
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
        """Take the wrapped methods out of the Trainer, and close the Watch."""
        atexit.unregister(self._end)
        trainer, self._trainer = self._trainer, None
        if trainer is not None:
            for name in ("compute_loss", "training_step"):
                vars(trainer).pop(name, None)
            vars(trainer).update(self._replaced)
            self._replaced = {}
        super()._release()

    def _reset_step(self) -> None:
        """A step begins: none of its forward passes is done yet."""
        self._in_step, self._inputs, self._passes = False, None, []


def _calling_trainer() -> Trainer:
    """The Trainer that called this callback; it does not hand itself over. Raises InputError if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    raise InputError("WatchCallback: expected to be called by a transformers Trainer.")
