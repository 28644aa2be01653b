"""Hydra plugin for hydra/sweeper=optuna, in the namespace package hydra_plugins, where Hydra discovers sweepers."""

from collections.abc import Sequence
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SeededOptunaSweeper(Sweeper):
    """Hydra's Optuna sweeper with several seeds per trial. seeds: of every trial; optuna: OptunaSweeper's arguments."""

    def __init__(self, seeds: Sequence[int], **optuna: Any) -> None:
        from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper  # optional dependency

        self._seeds = list(seeds)
        self._optuna = OptunaSweeper(**optuna)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from bertmon.launch.optuna_seeds import SeedAveragingLauncher

        self._optuna.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        assert self._optuna.sweeper.launcher is not None
        self._launcher = SeedAveragingLauncher(self._optuna.sweeper.launcher, self._seeds)
        self._optuna.sweeper.launcher = self._launcher

    def sweep(self, arguments: list[str]) -> None:
        """Run the search. Once it has ended, raises the exception of the first failed run."""
        self._optuna.sweep(arguments)
        for run in self._launcher.failed:
            run.return_value  # noqa: B018  # raises
