"""A run that others run beside, in a worker of joblib, submitit or Ray: its lines, its GPU, how it ends.

A worker has one run at a time; that of joblib takes another when it has ended one.
"""

import fcntl
import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from bertmon import result, sanitize

_SHUTDOWN_TIMEOUT_S = 60.0  # seconds that runs get to write a checkpoint when a sweep is broken off


@contextmanager
def parallel_run(name: str) -> Iterator[None]:
    """Around a run: each of its lines on the console begins with its name, and where there are GPUs it has one.

    A run that Slurm's time limit or preemption ends, which submitit tells by a signal of its own, is queued again.
    """
    os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would overwrite each other
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setFormatter(sanitize.SanitizingFormatter(_PrefixFormatter(name)))
    if os.environ.get("SUBMITIT_EXECUTOR") == "local" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # all runs start at once; joblib, Ray and conf's Slurm set it themselves
    with _claim_gpu(torch.cuda.device_count()):
        try:
            yield
        except SystemExit as end:
            queue_again = signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]
            if end.code == 128 + queue_again or (end.code == 128 + signal.SIGTERM and _preempted()):
                signal.raise_signal(queue_again)  # submitit's own handler, now that everything is written
            raise


def _preempted() -> bool:
    """Whether Slurm wants the job's place for another. One that ends before it is killed would not be queued again."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return False
    command = ["scontrol", "show", "job", os.environ["SLURM_JOB_ID"]]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return "PreemptTime=" in told and "PreemptTime=None" not in told


class _PrefixFormatter(logging.Formatter):
    """Bare messages, each line headed by a name."""

    def __init__(self, name: str) -> None:
        super().__init__("%(message)s")
        self._head = f"{name}: "

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).splitlines()
        return "\n".join(line if line.startswith(self._head) else self._head + line for line in lines)


@contextmanager
def _claim_gpu(count: int) -> Iterator[None]:
    """Take the GPU of this machine that the fewest workers of this user have, and have it as `cuda`."""
    if count < 2:  # none, or the one that Slurm or Ray has given
        yield
        return
    folder = Path(tempfile.gettempdir(), f"bertmon-gpus-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    for number in itertools.count():
        with (folder / str(number)).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            torch.cuda.set_device(number % count)
            yield
            return


@contextmanager
def joblib_worker() -> Iterator[None]:
    """Around a run in a worker of joblib: outside of a run SIGTERM and SIGINT do nothing there.

    joblib would kill all other workers as soon as one dies. A worker whose run was ended by a signal takes no other.
    """
    ended = "BERTMON_WORKER_ENDED"
    if ended in os.environ:
        raise result.Terminated(128 + signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launching process has it too, and hands it on as SIGTERM
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        os.environ[ended] = "1"
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise result.Terminated(128 + number)


def drain_pool_on_signal(start: Path) -> None:
    """From now on SIGINT and SIGTERM act when the runs of the launch in `start` have ended, with their checkpoints.

    A second one acts at once.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(number: int, frame: FrameType | None) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGTERM)
        deadline = time.monotonic() + _SHUTDOWN_TIMEOUT_S
        while time.monotonic() < deadline and any(
            result.is_locked(path.parent) for path in start.rglob(result.LOCK_FILE)
        ):
            time.sleep(0.1)
        signal.raise_signal(number)

    for number in before:
        signal.signal(number, end)
