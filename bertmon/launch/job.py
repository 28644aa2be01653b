"""One run of a launch, as a Hydra job: calls run_training in the context that the launcher requires."""

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bertmon import distributed
from bertmon.compare import report, results, summary
from bertmon.errors import InputError, StorageError
from bertmon.launch import workers
from bertmon.launch.command_line import resume_command
from bertmon.launch.read_config import read_config
from bertmon.launch.run_dirs import sweep_dir_of_run
from bertmon.launch.run_names import setting_overrides
from bertmon.result import RunResult, run_names
from bertmon.sanitize import sanitize_line, sanitize_logs
from bertmon.training.checkpoint import CHECKPOINT_FILE
from bertmon.training.run_training import run_training

log = logging.getLogger(__name__)


def run_job(composed: DictConfig) -> RunResult:
    """Train the run composed by Hydra, in the folder created by Hydra.

    If the run fails, raises InputError or HydraException with only a message: a launcher holds the exception until the
    sweep ends, and traceback frames would keep the run's memory alive. Ends the launch if files cannot be written, or
    if one of several processes fails.
    """
    sanitize_logs()
    job = HydraConfig.get()
    run_dir = Path(job.runtime.output_dir)
    subdir = str(job.sweep.subdir)
    sweep_dir = sweep_dir_of_run(run_dir, subdir)
    if distributed.rank() == 0 and RunResult.read_ended(run_dir) is None:
        log_progress(sweep_dir, 0 if OmegaConf.is_missing(job.job, "num") else job.job.num)
    error: Exception
    try:
        with _refresh_report_at_end(sweep_dir), launcher_context(job, subdir):
            return train_in_run_dir(composed)
    except StorageError as storage_error:
        sys.exit(_explain_storage(storage_error, run_dir, sweep_dir))
    except InputError as input_error:
        error = InputError(str(input_error))
    except Exception as failure:  # its traceback is already on the console and in run.log
        if distributed.world_size() > 1:  # the others wait for this process in a collective: torchrun ends them
            traceback.print_exc()
            sys.exit(1)
        error = HydraException(f"{run_dir} failed: {sanitize_line(failure)}")
    raise error  # outside the try statement, so that it has no context


def train_in_run_dir(composed: DictConfig) -> RunResult:
    """Like `run_job`, but lets the run's exceptions propagate."""
    sanitize_logs()
    job = HydraConfig.get()
    run_dir = Path(job.runtime.output_dir)
    return run_training(read_config(composed), run_dir, name=str(job.sweep.subdir), overrides=_run_overrides(job))


def _run_overrides(job: HydraConf) -> dict[str, str]:
    """The overrides that distinguish the run's setting from others in its sweep; empty for a single run."""
    if job.mode != RunMode.MULTIRUN:
        return {}
    return setting_overrides(job.overrides.task, job.job.config.override_dirname.exclude_keys)


def _explain_storage(error: StorageError, run_dir: Path, sweep_dir: Path) -> str:
    checkpoint = run_dir / CHECKPOINT_FILE
    last = f" The last checkpoint is {checkpoint}." if checkpoint.exists() else ""
    return f"{error}{last} Once that is fixed, resume with: {resume_command(sweep_dir)}"


@contextmanager
def launcher_context(job: HydraConf, name: str) -> Iterator[None]:
    """The context that the run's launcher requires. job: the hydra node of the run's config."""
    choice = job.runtime.choices["hydra/launcher"]
    with ExitStack() as stack:
        if job.mode == RunMode.MULTIRUN and choice != "basic":
            stack.enter_context(workers.parallel_run(name))
        if job.mode == RunMode.MULTIRUN and choice == "joblib":
            stack.enter_context(workers.joblib_worker())
        yield


@contextmanager
def _refresh_report_at_end(sweep_dir: Path) -> Iterator[None]:
    """Refresh the sweep's report when the run finishes or fails; after an interruption, the launch does so."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception:
        _refresh(sweep_dir)
        raise
    else:
        _refresh(sweep_dir)


def _refresh(sweep_dir: Path) -> None:
    if distributed.rank() == 0:
        report.refresh_report(sweep_dir)


def log_progress(sweep_dir: Path, number: int) -> None:
    """Log one line about the sweep's progress when run `number` starts. Errors do not affect the run."""
    if number % (1 + len(run_names(sweep_dir)) // 500):
        return  # reads all results: in a large sweep, only some runs do so
    try:
        if progress := summary.progress_line(results.read_sweep([sweep_dir])):
            log.info(progress)
    except Exception:
        log.exception(f"{sweep_dir}: could not report the progress of the sweep")
