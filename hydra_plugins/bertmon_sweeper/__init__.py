"""bertmon's plugin for Hydra, which finds sweepers in the namespace hydra_plugins: that of hydra/sweeper=optuna."""

from collections.abc import Sequence
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SeededOptunaSweeper(Sweeper):
    """Optuna's sweeper with several seeds per trial. seeds: those of each trial; the other arguments are Optuna's."""

    def __init__(self, seeds: Sequence[int], **optuna: Any) -> None:
        from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper  # an extra

        self._seeds = list(seeds)
        self._optuna = OptunaSweeper(**optuna)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from bertmon.launch.optuna_seeds import SeedAveragingLauncher

        self._optuna.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        assert self._optuna.sweeper.launcher is not None
        self._launcher = SeedAveragingLauncher(self._optuna.sweeper.launcher, self._seeds)
        self._optuna.sweeper.launcher = self._launcher

    def sweep(self, arguments: list[str]) -> None:
        """Search. Raises what the first failed run has raised, once the search has ended."""
        self._optuna.sweep(arguments)
        for run in self._launcher.failed:
            run.return_value  # noqa: B018  # raises
