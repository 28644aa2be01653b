"""A search: Optuna's sweeper for Hydra with several seeds a point, each of them a run of its own."""

import statistics
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
from omegaconf import DictConfig


class SeedAveragingLauncher(Launcher):
    """Launches every point of a batch with every seed; a point's value is the mean of its runs'."""

    def __init__(self, launcher: Launcher, seeds: Sequence[int]) -> None:
        self._launcher = launcher
        self._seeds = seeds
        self.failed: list[JobReturn] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        raise NotImplementedError  # the launcher inside is set up already

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        points = list(dict.fromkeys(map(tuple, job_overrides)))  # one that is asked for twice runs once
        runs = [[*point, f"seed={seed}"] for point in points for seed in self._seeds]
        ended = iter(self._launcher.launch(runs, initial_job_idx * len(self._seeds)))
        values = {point: self._mean([next(ended) for _ in self._seeds]) for point in points}
        return [values[tuple(point)] for point in job_overrides]

    def _mean(self, runs: Sequence[JobReturn]) -> JobReturn:
        failed = [run for run in runs if run.status is not JobStatus.COMPLETED]
        self.failed += failed
        if failed:
            return failed[0]
        mean = statistics.fmean(run.return_value for run in runs)
        return JobReturn(overrides=runs[0].overrides, status=JobStatus.COMPLETED, _return_value=mean)


class SeededOptunaSweeper(Sweeper):
    """hydra/sweeper=optuna. seeds: those of each point; the other arguments are those of Optuna's sweeper."""

    def __init__(self, seeds: Sequence[int], **optuna: Any) -> None:
        self._seeds = list(seeds)
        self._optuna = OptunaSweeper(**optuna)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._optuna.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        assert self._optuna.sweeper.launcher is not None
        self._launcher = SeedAveragingLauncher(self._optuna.sweeper.launcher, self._seeds)
        self._optuna.sweeper.launcher = self._launcher

    def sweep(self, arguments: list[str]) -> None:
        """Search. Raises what the first run that failed has raised, once the search has ended."""
        try:
            self._optuna.sweep(arguments)
        finally:
            for run in self._launcher.failed:
                run.return_value  # noqa: B018  # raises
