"""Several seeds per Optuna trial: the launcher that runs them and averages their values."""

import statistics
from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SeedAveragingLauncher(Launcher):
    """Launches every trial of a batch with every seed; a trial's value is the mean over its runs."""

    def __init__(self, launcher: Launcher, seeds: Sequence[int]) -> None:
        self._launcher = launcher
        self._seeds = seeds
        self.failed: list[JobReturn] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        raise NotImplementedError  # the wrapped launcher is already set up

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        trials = list(dict.fromkeys(map(tuple, job_overrides)))  # a repeated trial runs once
        runs = [[*trial, f"seed={seed}"] for trial in trials for seed in self._seeds]
        returned = iter(self._launcher.launch(runs, initial_job_idx * len(self._seeds)))
        values = {trial: self._mean([next(returned) for _ in self._seeds]) for trial in trials}
        return [values[tuple(trial)] for trial in job_overrides]

    def _mean(self, runs: Sequence[JobReturn]) -> JobReturn:
        failed = [run for run in runs if run.status is not JobStatus.COMPLETED]
        self.failed += failed
        if failed:
            return failed[0]
        mean = statistics.fmean(run.return_value for run in runs)
        return JobReturn(overrides=runs[0].overrides, status=JobStatus.COMPLETED, _return_value=mean)
