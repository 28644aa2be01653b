"""Monitor a LightningModule with a callback.

    lightning.Trainer(..., callbacks=[WatchCallback("runs/mine", labels=labels)])

Lightning calls on_before_optimizer_step when gradients are whole and unscaled, and not yet clipped.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from bertmon.config import MonitorConfig, OnDoomed, VerdictThresholds
from bertmon.errors import InputError, require
from bertmon.integrations import resume
from bertmon.integrations.dashboards import log_figure, log_verdict, new_signals
from bertmon.integrations.guard import Guarded, guarded
from bertmon.integrations.labels import chance_loss
from bertmon.integrations.own_loop import LoopFacts, Watch
from bertmon.integrations.unwrap import refuse_shards
from bertmon.monitor.history import Snapshot

log = logging.getLogger(__name__)


class WatchCallback(Guarded, pl.Callback):
    """Watches a LightningModule with one Adam and automatic optimization; `watch` is the Watch, once training began.

    folder, labels, bias_correction, every, figures, thresholds: as for Watch. training_step has to return the mean
    cross-entropy of the batch's texts.
    logits: the logits [B, C] of a batch. None: those of the transformers classifier that is the module's only part.
    on_doomed: "warn", or "stop": training ends at the first doomed verdict.
    report: whether headline signals also go to the loggers of the Trainer.
    on_error: "log": whatever goes wrong in watching is logged once, watching stops, and training continues; "raise".

    A training that Lightning resumes is continued where its checkpoint was saved; any other gets a folder of its own:
    folder-2, folder-3, ... Of several processes (ddp) the first one watches, and losses are those of its texts. Raises
    InputError for an argument that does not fit.
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
        super().__init__(on_error)
        require(on_doomed in list(OnDoomed), "on_doomed", on_doomed, "warn or stop")
        MonitorConfig(every=every)  # raises for a value out of range
        chance_loss(labels)
        self._folder = Path(folder)
        self._stop_doomed = on_doomed == OnDoomed.stop
        self._report = report
        self._every = every
        self._options: dict[str, Any] = {
            "labels": labels,
            "bias_correction": bias_correction,
            "every": every,
            "figures": figures,
            "thresholds": thresholds,
            "logits": logits,
        }
        self._watching = False
        self._updating = False  # an update is between its gradients and its end
        self._losses: list[Tensor] = []  # of the update's batches, each over their number

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()  # a training before, if it is not over yet
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
        due = self._stop_doomed and (trainer.world_size == 1 or (trainer.global_step - 1) % self._every == 0)
        # outside of what is guarded: the other processes wait for the first one's answer
        if due and trainer.strategy.broadcast(self._watching and self.watch.doomed):
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
        folder, first_step = self._folder, trainer.global_step
        if resume.contains_run(folder) and not (first_step and resume.load_resume_point(folder, first_step)):
            folder = resume.free_folder(folder)
            log.info(f"{self._folder} contains another training: this one is watched in {folder}")
        scheduler, steps_per_call = _scheduler(trainer)
        self.watch = Watch(
            _classifier(pl_module),
            trainer.optimizers[0],
            folder,
            total_steps=int(trainer.estimated_stepping_batches),
            scheduler=scheduler,
            first_step=first_step,
            facts=LoopFacts(
                steps_per_call=steps_per_call, alone=True, on_figure=self._on_figure if self._report else None
            ),
            **self._options,
        )
        self._verdict = self.watch.diagnosis.verdict
        self._watching, self._updating, self._losses = True, False, []

    @guarded
    def _before_update(self) -> None:
        if self._watching:
            self.watch.measure_gradients()
            self.watch.before_update(self._batch)
            self._updating = True

    @guarded
    def _after_batch(self, trainer: pl.Trainer, outputs: Any) -> None:
        if not self._watching:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach())
        if self._updating:
            snapshots = len(self.watch.history.snapshots)
            self.watch.after_update(torch.stack(self._losses).sum() if self._losses else None)
            self._updating, self._losses = False, []
            if self._report:
                self._send(trainer, self.watch.history.snapshots[snapshots:])

    def _send(self, trainer: pl.Trainer, new: Sequence[Snapshot]) -> None:
        """To the loggers: the signals of a new snapshot, and a new verdict."""
        diagnosis = self.watch.diagnosis
        if signals := new_signals(diagnosis.verdict, self._verdict, new):
            for logger in trainer.loggers:
                logger.log_metrics(signals, step=trainer.global_step)
        if diagnosis.verdict is not self._verdict:
            self._verdict = diagnosis.verdict
            log_verdict(str(diagnosis.verdict), str(diagnosis))

    @guarded
    def _on_figure(self, step: int, tag: str, png: bytes) -> None:
        log_figure(step + 1, tag, png)

    @guarded
    def _checkpoint(self, steps: int) -> None:
        if self._watching:
            self.watch.checkpoint(steps)

    @guarded
    def _end(self) -> None:
        self._release()

    def _release(self) -> None:
        if self._watching:
            self._watching = False
            self.watch.close()


def _scheduler(trainer: pl.Trainer) -> tuple[Any, int]:
    """The scheduler, if there is one, and the updates between two of its steps (all, in an epoch of unknown length)."""
    configs = trainer.lr_scheduler_configs
    if not configs:
        return None, 1
    updates, total_steps = 1, int(trainer.estimated_stepping_batches)
    if configs[0].interval == "epoch":
        batches = trainer.num_training_batches
        updates = total_steps if math.isinf(batches) else -(-int(batches) // trainer.accumulate_grad_batches)
    return configs[0].scheduler, updates * int(configs[0].frequency)


def _classifier(pl_module: pl.LightningModule) -> nn.Module:
    """The module's only part that has parameters, for names without its own; else the module itself."""
    parts = [part for part in pl_module.children() if next(part.parameters(), None) is not None]
    own = next(pl_module.parameters(recurse=False), None)
    return parts[0] if len(parts) == 1 and own is None else pl_module
