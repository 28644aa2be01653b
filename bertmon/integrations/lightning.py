"""Monitor a LightningModule with a callback.

    lightning.Trainer(..., callbacks=[WatchCallback("runs/mine", labels=labels)])

Lightning calls on_before_optimizer_step when gradients are fully accumulated and unscaled, but not yet clipped.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from bertmon.config import VerdictThresholds
from bertmon.errors import InputError
from bertmon.integrations.guard import guarded
from bertmon.integrations.own_loop import LoopContext
from bertmon.integrations.trainer_watch import TrainerWatch
from bertmon.integrations.unwrap import refuse_shards


class WatchCallback(TrainerWatch, pl.Callback):
    """Watches a LightningModule with one Adam and automatic optimization; `watch` is set when training begins.

    folder, labels, bias_correction, every, figures, thresholds: as for Watch. training_step must return the mean
    cross-entropy of the batch's texts.
    logits: a function that returns the logits [B, C] of a batch. None: call the transformers classifier that is the
    module's only child.
    on_doomed: "warn", or "stop" to end training at the first doomed verdict.
    report: whether to send headline signals to the Trainer's loggers as well.
    on_error: "log": an error in monitoring is logged once, monitoring stops, and training continues; or "raise".

    If Lightning resumes from a checkpoint, the history continues from there; any other training gets a new folder
    (folder-2, folder-3, ...) if `folder` already contains a run. With several processes (DDP), only the first one
    watches, and losses are those of its own texts. Raises InputError for an invalid argument.
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
        logits: Callable[[Any], Tensor] | None = None,
        on_doomed: str = "warn",
        report: bool = True,
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
        self._report_to_loggers = report
        self._updating = False  # between before_update and after_update
        self._losses: list[Tensor] = []  # one per batch of the current update

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()  # a previous training that was not closed
        self._failed = False
        if trainer.is_global_zero:
            self._begin(trainer, pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        self._batch = batch

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._before_update()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._after_batch(trainer, outputs)
        due = self._may_stop(trainer.global_step, trainer.world_size)
        # not guarded, because all other processes wait for this broadcast
        if due and trainer.strategy.broadcast(self._doomed):
            trainer.should_stop = True

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._checkpoint(trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end()

    @guarded
    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        strategy = type(trainer.strategy).__name__
        if not strategy.startswith(("SingleDevice", "DDP")):
            refuse_shards(strategy)
        if len(trainer.optimizers) != 1 or not pl_module.automatic_optimization:
            raise InputError(
                "configure_optimizers: expected one optimizer and automatic optimization, "
                f"got {len(trainer.optimizers)} and automatic_optimization={pl_module.automatic_optimization}."
            )
        if math.isinf(trainer.estimated_stepping_batches):
            raise InputError("Trainer: expected max_steps, or max_epochs with a known number of batches, got neither.")
        scheduler, scheduler_every = _scheduler(trainer)
        self._open(
            _classifier(pl_module),
            trainer.optimizers[0],
            first_step=trainer.global_step,
            reports=self._report_to_loggers,
            context=LoopContext(),
            total_steps=int(trainer.estimated_stepping_batches),
            scheduler=scheduler,
            scheduler_every=scheduler_every,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
        )
        self._updating, self._losses = False, []

    @guarded
    def _before_update(self) -> None:
        gradients = (parameter.grad for parameter in self.watch.model.parameters()) if self._watching else ()
        if any(gradient is not None for gradient in gradients):  # else training_step skipped the batch
            self.watch.measure_gradients()
            self.watch.before_update(self._batch)
            self._updating = True

    @guarded
    def _after_batch(self, trainer: pl.Trainer, outputs: Any) -> None:
        if not self._watching:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):  # Lightning has divided it by accumulate_grad_batches
            self._losses.append(loss.detach() * trainer.accumulate_grad_batches)
        if self._updating:
            self.watch.after_update(torch.stack(self._losses).mean() if self._losses else None)
            self._updating, self._losses = False, []
            self._report(lambda signals: _log(trainer, signals))


def _log(trainer: pl.Trainer, signals: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(signals, step=trainer.global_step)


def _scheduler(trainer: pl.Trainer) -> tuple[Any, int]:
    """The scheduler, if any, and the number of updates per scheduler step (all if the epoch length is unknown)."""
    configs = trainer.lr_scheduler_configs
    if not configs:
        return None, 1
    updates, total_steps = 1, int(trainer.estimated_stepping_batches)
    if configs[0].interval == "epoch":
        batches = trainer.num_training_batches
        updates = total_steps if math.isinf(batches) else -(-int(batches) // trainer.accumulate_grad_batches)
    return configs[0].scheduler, updates * int(configs[0].frequency)


def _classifier(pl_module: pl.LightningModule) -> nn.Module:
    """The only child with parameters, so that weight names lack its prefix; otherwise the module itself."""
    children = [child for child in pl_module.children() if next(child.parameters(), None) is not None]
    own_parameter = next(pl_module.parameters(recurse=False), None)
    return children[0] if len(children) == 1 and own_parameter is None else pl_module
