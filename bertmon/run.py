"""The run function: the only assembler. `python -m bertmon.run` and the console script `bertmon` start here."""

import logging
import os
import shlex
import signal
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from bertmon import config, distributed, sanitize
from bertmon.compare import report, results, summary
from bertmon.errors import InputError, StorageError
from bertmon.launch import preflight, run_dirs
from bertmon.result import Terminated, run_names
from bertmon.training import checkpoint
from bertmon.training.run_training import run_training

log = logging.getLogger(__name__)

config.register()
preflight.register_with_hydra()


@hydra.main(version_base="1.3", config_path="pkg://bertmon.conf", config_name="config")
def _task(composed: DictConfig) -> float:
    sanitize.sanitize_logs()
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    settings = config.from_hydra(composed)
    name, start = str(job.sweep.subdir), run_dirs.sweep_dir_of(folder, str(job.sweep.subdir))
    differs = run_dirs.swept_overrides(job.overrides.task, job.callbacks["bertmon"]["swept"])
    if distributed.rank() == 0:
        _say_progress(start, 0 if OmegaConf.is_missing(job.job, "num") else job.job.num)
    try:
        with preflight.launcher_context(job, name):
            return run_training(settings, folder, name=name, overrides=differs).objective
    except StorageError as error:
        kept, again = folder / checkpoint.CHECKPOINT_FILE, shlex.join(["python", "-m", "bertmon", "resume", str(start)])
        stands = f" {kept} stands." if kept.exists() else ""
        sys.exit(f"{error}{stands} When it can be written again, go on: {again}")
    except InputError:
        raise
    except Exception as error:  # its traceback is on the console and in run.log already
        raise CompactHydraException(f"{folder} failed: {sanitize.sanitize_line(error)}") from None
    finally:
        ended = isinstance(sys.exc_info()[1], KeyboardInterrupt | SystemExit)  # the launch writes the last one
        if not ended and distributed.rank() == 0:
            report.refresh_report(start)


def _say_progress(start: Path, number: int) -> None:
    """One line on how far the sweep is when its run of that number begins. What goes wrong with it harms no run."""
    if number % (1 + len(run_names(start)) // 500):
        return  # it takes a look at all runs: of a large sweep, only some of them do that
    try:
        if progress := summary.progress_line(results.read_sweep([start])):
            log.info(progress)
    except Exception:
        log.exception(f"{start}: no word on the progress of the sweep")


def _terminate(number: int, frame: object) -> None:
    raise Terminated(128 + number)


def main() -> None:
    """The command line."""
    for each in (signal.SIGTERM, signal.SIGUSR1):  # SIGUSR1: what batch scripts ask Slurm for before the time is over
        signal.signal(each, _terminate)
    distributed.init()
    preflight.sync_ranks()
    # Hydra's parser takes no override behind a flag that has others before it: flags first, the order kept.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda a: not a.startswith("-") and ("=" in a or a[:1] in ("~", "+")))
    shown = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would print, tracebacks and control characters alike
    try:
        preflight.check_argv(sys.argv[1:])
        _task()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if shown:
            raise
        print(preflight.format_error(error), file=sys.stderr)
        sys.exit(1)
    finally:
        if shown is None:
            del os.environ["HYDRA_FULL_ERROR"]


if __name__ == "__main__":
    from bertmon.run import main as imported  # a worker finds the functions of this module by its name alone

    imported()
