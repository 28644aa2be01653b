"""Runs in parallel workers of joblib, submitit or Ray: their console output, GPU and signals.

A worker trains one run at a time; joblib's workers then take the next one.
"""

import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import torch

from bertmon.errors import InputError, StorageError
from bertmon.result import LOCK_FILE, Terminated, is_running
from bertmon.sanitize import SanitizingFormatter
from bertmon.storage import exclusive

_SHUTDOWN_TIMEOUT_S = 60.0  # for runs to write a checkpoint when a sweep is interrupted
_WORKER_ENDED = "BERTMON_WORKER_ENDED"
_LAUNCHER_PID = "BERTMON_LAUNCHER_PID"


@contextmanager
def parallel_run(name: str) -> Iterator[None]:
    """Prefix the run's console lines with its name, and assign it one of the machine's GPUs.

    A run that ends because of Slurm's time limit or preemption is requeued, by a signal to submitit's handler.
    """
    os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would overwrite each other
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setFormatter(SanitizingFormatter(_PrefixFormatter(name)))
    if os.environ.get("SUBMITIT_EXECUTOR") == "local" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # all runs start at once; joblib, Ray and conf's Slurm preset limit threads themselves
    with _claim_gpu(torch.cuda.device_count()):
        try:
            yield
        except SystemExit as error:
            requeue = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}", None)
            if requeue and (error.code == 128 + requeue or (error.code == 128 + signal.SIGTERM and _is_preempted())):
                signal.raise_signal(requeue)  # for submitit's own handler, now that everything is written
            raise


def _is_preempted() -> bool:
    """Whether Slurm is preempting the job, which Slurm does not requeue if it exits before it is killed."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return False
    command = ["scontrol", "show", "job", os.environ["SLURM_JOB_ID"]]
    job = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return "PreemptTime=" in job and "PreemptTime=None" not in job


class _PrefixFormatter(logging.Formatter):
    """Messages without time and level, each line prefixed with a name."""

    def __init__(self, name: str) -> None:
        super().__init__("%(message)s")
        self._prefix = f"{name}: "

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).splitlines()
        return "\n".join(line if line.startswith(self._prefix) else self._prefix + line for line in lines)


@contextmanager
def _claim_gpu(count: int) -> Iterator[None]:
    """Make the GPU with the fewest workers of this user the current CUDA device."""
    if count < 2:  # no GPU, or the one that Slurm or Ray has assigned
        yield
        return
    folder = Path(tempfile.gettempdir(), f"bertmon-gpus-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        for number in itertools.count():
            try:
                stack.enter_context(exclusive(folder / str(number), "claimed by another worker"))
            except StorageError:
                raise
            except InputError:
                continue
            break
        torch.cuda.set_device(number % count)
        yield


@contextmanager
def joblib_worker() -> Iterator[None]:
    """Handle SIGTERM during a run in a joblib worker; between runs, the worker ignores SIGTERM and SIGINT.

    joblib would kill all other workers as soon as one dies. A worker whose run was ended by a signal takes no more
    runs. With hydra.launcher.n_jobs=1, runs are in the launching process, whose signal handlers are not changed.
    """
    if os.environ.get(_LAUNCHER_PID) == str(os.getpid()):
        yield
        return
    if _WORKER_ENDED in os.environ:
        raise Terminated(128 + signal.SIGTERM)
    for name in ("SIGINT", "SIGHUP"):  # the launching process gets them too, and sends SIGTERM
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        os.environ[_WORKER_ENDED] = "1"
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(128 + number)


def drain_pool_on_signal(sweep_dir: Path) -> None:
    """Delay SIGINT, SIGTERM and SIGHUP until the runs in `sweep_dir` have written their checkpoints and ended.

    A second signal takes effect immediately.
    """
    os.environ[_LAUNCHER_PID] = str(os.getpid())
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}

    def drain(number: int, frame: FrameType | None) -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)
        children = multiprocessing.active_children()
        for child in children:
            os.kill(child.pid or 0, signal.SIGTERM)
        deadline = time.monotonic() + _SHUTDOWN_TIMEOUT_S
        while (
            children
            and time.monotonic() < deadline
            and any(is_running(path.parent) for path in sweep_dir.rglob(LOCK_FILE))
        ):
            time.sleep(0.1)
        signal.raise_signal(number)

    for number in previous:
        signal.signal(number, drain)
