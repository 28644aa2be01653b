"""Monitor a transformers Trainer with a callback.

    Trainer(..., callbacks=[WatchCallback("runs/mine", labels=labels)])

Hooks are needed because the Trainer clips gradients before any callback runs and does not pass on a step's loss and
inputs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bertmon.config import OnDoomed, VerdictThresholds
from bertmon.errors import InputError, require
from bertmon.integrations.own_loop import Inputs, Watch


class WatchCallback(TrainerCallback):
    """Watches a classifier that a Trainer trains; `watch` is the Watch, once training has begun.

    folder, labels, bias_correction, every, figures, thresholds: as for Watch.
    on_doomed: "warn", or "stop": the Trainer ends training at the first doomed verdict.

    Gradients are measured before clipping, when the last backward pass of a step is done. One process, one
    device, fp32 or bf16. Raises InputError, when training begins or at its first step, where that is not so, where
    the labels do not reach the model, or for an argument that does not fit.
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
        on_doomed: str = "warn",
    ) -> None:
        require(on_doomed in list(OnDoomed), "on_doomed", on_doomed, "warn or stop")
        self._folder = folder
        self._on_doomed = OnDoomed(on_doomed)
        self._options: dict[str, Any] = {
            "labels": labels,
            "bias_correction": bias_correction,
            "every": every,
            "figures": figures,
            "thresholds": thresholds,
        }
        self._hook: RemovableHandle | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        devices = args.world_size * max(args.n_gpu, 1)
        require(devices == 1, "devices", devices, "one: what several devices do is not watched")
        require(not args.fp16, "fp16", args.fp16, "bf16, or neither: with fp16 gradients are scaled and can overflow")
        model: nn.Module = kwargs["model"]
        scheduler, optimizer = (kwargs[name] for name in ("lr_scheduler", "optimizer"))
        self.watch = Watch(
            model,
            getattr(optimizer, "optimizer", optimizer),  # accelerate's wrappers
            self._folder,
            total_steps=state.max_steps,
            scheduler=getattr(scheduler, "scheduler", scheduler),
            **self._options,
        )
        self._hook = self.watch.model.register_forward_hook(self._on_forward, with_kwargs=True)
        self._reset_step()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._reset_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.watch.before_update(self._loss / self._texts, self._inputs)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self.watch.after_update()
        if self.watch.doomed and self._on_doomed is OnDoomed.stop:
            control.should_training_stop = True
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._hook is not None:
            self._hook.remove()
            self.watch.close()

    def _reset_step(self) -> None:
        """A step begins: its backward passes have nothing done yet."""
        self._loss = torch.zeros(())  # sum of cross-entropies
        self._texts = 0

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _on_forward(self, model: nn.Module, args: tuple[Any, ...], inputs: Inputs, outputs: Any) -> None:
        """Called after each of the model's forward passes."""
        if not model.training:
            return
        labels = inputs.get("labels")
        if labels is None or labels.is_floating_point():
            raise InputError(
                "WatchCallback needs the labels among the model's inputs, as numbers of classes: label smoothing and "
                "loss functions of your own keep them away from it; regression and several labels a text have others."
            )
        self._loss = self._loss + F.cross_entropy(outputs.logits.detach().float(), labels, reduction="sum")
        self._texts += len(labels)
        self._inputs = inputs
        # called when this backward pass is through, with all gradients in place; FSDP does it so
        engine = torch.autograd.Variable._execution_engine
        outputs.loss.register_hook(lambda gradient: engine.queue_callback(self.watch.measure_gradients))
