"""Shared base of the transformers and Lightning callbacks: arguments, folder, Watch and reports to dashboards."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from bertmon.config import MonitorConfig, OnDoomed, VerdictThresholds
from bertmon.errors import require
from bertmon.integrations import resume
from bertmon.integrations.dashboards import log_figure, log_verdict
from bertmon.integrations.guard import Guarded, guarded
from bertmon.integrations.labels import chance_loss
from bertmon.integrations.own_loop import LoopContext, Watch

log = logging.getLogger(__name__)


class TrainerWatch(Guarded):
    """Base class of callbacks that run a Watch inside another library's trainer.

    Arguments as for the callbacks. Raises InputError for an invalid one.
    """

    watch: Watch
    """Set when training begins."""

    def __init__(
        self,
        folder: str | Path,
        *,
        labels: Sequence[int] | Tensor,
        bias_correction: bool,
        every: int,
        figures: bool,
        thresholds: VerdictThresholds | None,
        logits: Callable[[Any], Tensor] | None,
        on_doomed: str,
        on_error: str,
    ) -> None:
        super().__init__(on_error)
        require(on_doomed in list(OnDoomed), "on_doomed", on_doomed, "warn or stop")
        MonitorConfig(every=every)  # raises for a value out of range
        chance_loss(labels)
        self._folder = Path(folder)
        self._stop_doomed = on_doomed == OnDoomed.stop
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

    def _open(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        first_step: int,
        reports: bool,
        context: LoopContext,
        **options: Any,
    ) -> None:
        """Start watching: in the folder if it is free or training resumes from it, otherwise in a new one.

        reports: whether to send figures, signals and verdicts to dashboards. options: further arguments of Watch.
        """
        folder = self._folder
        if resume.contains_run(folder) and not (first_step and resume.load_resume_point(folder, first_step)):
            folder = resume.free_folder(folder)
            log.info(f"{self._folder} already contains a run; writing this one to {folder}")
        self._reports = reports
        context = replace(context, single_process=True, on_figure=self._on_figure if reports else None)
        self.watch = Watch(model, optimizer, folder, first_step=first_step, context=context, **self._options, **options)
        self._reported = len(self.watch.history.snapshots)
        self._verdict = self.watch.diagnosis.verdict
        self._watching = True

    def _may_stop(self, steps: int, processes: int) -> bool:
        """Whether the processes must agree, after this number of steps, on whether to stop a doomed run."""
        return self._stop_doomed and (processes == 1 or (steps - 1) % self._every == 0)

    @property
    def _doomed(self) -> bool:
        return self._watching and self.watch.doomed

    def _report(self, send: Callable[[dict[str, float]], None]) -> None:
        """Send the signals of a new snapshot, whether the run is doomed, and a changed verdict.

        A run that diverges between two snapshots gets a new verdict without a new snapshot.
        """
        if not (self._watching and self._reports):
            return
        snapshots, diagnosis = self.watch.history.snapshots, self.watch.diagnosis
        new, self._reported = snapshots[self._reported :], len(snapshots)
        changed, self._verdict = diagnosis.verdict is not self._verdict, diagnosis.verdict
        if new or changed:
            signals = {f"bertmon/{tag}": value for shot in new[-1:] for tag, value in shot.signals.items()}
            send(signals | {"bertmon/doomed": float(diagnosis.verdict.doomed)})
        if changed:
            log_verdict(str(diagnosis.verdict), str(diagnosis))

    @guarded
    def _on_figure(self, step: int, tag: str, png: bytes) -> None:
        log_figure(step + 1, tag, png)  # trainers count completed updates

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
