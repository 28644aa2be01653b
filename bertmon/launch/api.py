"""bertmon.train: train one run from Python, as the command line does."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import run_job as run_hydra_job
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import HydraContext
from omegaconf.errors import OmegaConfBaseException

from bertmon.errors import InputError, require
from bertmon.launch import command_line, final_summary, hydra_setup, threads
from bertmon.launch.compose import search_path

if TYPE_CHECKING:
    from hydra._internal.callbacks import Callbacks

    from bertmon.result import RunResult


def train(overrides: Sequence[str] = (), *, config_dir: Path | str | None = None) -> "RunResult":
    """Train one run and return its result; writes the same folder as the command line.

    overrides: as on the command line, such as ["experiment=quickstart", "schedule.warmup_frac=0.3"].
    config_dir: a folder of your own presets, such as my_conf with my_conf/experiment/mine.yaml.

    Prints the run's messages and shows its progress bar, also in a notebook. Raises InputError for invalid overrides,
    and any exception raised in training.
    """
    threads.configure_threads()
    hydra_setup.register()
    require(not isinstance(overrides, str), "overrides", overrides, 'a list of strings, such as ["seed=1"]')
    arguments = list(overrides)
    for argument in arguments:
        if argument.startswith("-"):
            raise InputError(f"train: expected overrides, got {argument}; a sweep is started by `bertmon run ... -m`.")
    command_line.check_arguments(arguments)
    arguments = [*command_line.with_own_data_defaults(arguments, config_dir), *search_path(config_dir)]
    with _preserve_log_handlers(), initialize_config_module("bertmon.conf", version_base="1.3", job_name="run"):
        return _train(arguments)


def _train(arguments: list[str]) -> "RunResult":
    from bertmon.launch.job import train_in_run_dir
    from bertmon.launch.preflight import start_launch

    try:
        config = compose("config", [*arguments, "hydra.mode=RUN"], return_hydra_config=True)
        sweep_dir = start_launch(config, command=arguments)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(command_line.format_error(error)) from None
    loader = GlobalHydra.instance().config_loader()
    context = HydraContext(config_loader=loader, callbacks=cast("Callbacks", Callback()))
    try:
        job = run_hydra_job(train_in_run_dir, config, "hydra.run.dir", None, context)
        result: RunResult = job.return_value  # raises the run's exception
        return result
    finally:
        final_summary.print_summary(sweep_dir)


@contextmanager
def _preserve_log_handlers() -> Iterator[None]:
    """Restore the caller's log handlers after a run, which logs to its own run.log and to stdout."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for handler in handlers:
        if isinstance(handler, logging.FileHandler):
            handler.mode = "a"  # Hydra closes the handler, which reopens its file for the next record
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
